/** A real OpenID provider (oidc-provider), with people by their name: `node provider.mjs REDIRECT`. Prints its issuer. */
import { createServer } from "node:http";
import Provider from "oidc-provider";

const GROUPS = { olga: ["fleet-operators", "staff"], vera: ["fleet-viewers"], uwe: ["staff"], ann: ["fleet-operators"] };

const server = createServer();
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const issuer = `http://127.0.0.1:${server.address().port}`;
const provider = new Provider(issuer, {
  clients: [{
    client_id: "edge-fleet", client_secret: "a secret of the client, for tests alone", redirect_uris: [process.argv[2]],
    grant_types: ["authorization_code"], response_types: ["code"], token_endpoint_auth_method: "client_secret_basic",
  }],
  pkce: { required: () => true },
  claims: { openid: ["sub"], profile: ["preferred_username"], groups: ["groups"] },
  scopes: ["openid", "profile", "groups"],
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, preferred_username: id, groups: GROUPS[id] ?? [] }),
  }),
  cookies: { keys: ["for tests"] },
});
server.on("request", provider.callback());
process.stdout.write(`${JSON.stringify({ issuer })}\n`);
process.stdin.on("end", () => process.exit(0)).resume();
