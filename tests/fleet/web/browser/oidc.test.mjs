/** Signing in with a real OpenID provider (oidc-provider), in a real Chromium. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";
import { openBrowser, signIn, startStory } from "./stage.mjs";

let provider, story, browser, directory;

/** A port that was free a moment ago: the provider has to know the console's address, and the console the provider's. */
async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

before(async () => {
  const port = await freePort();
  const script = fileURLToPath(new URL("provider.mjs", import.meta.url));
  provider = spawn(process.execPath, [script, `http://127.0.0.1:${port}/sign-in/oidc/back`], {
    stdio: ["pipe", "pipe", "ignore"],
  });
  const lines = createInterface({ input: provider.stdout })[Symbol.asyncIterator]();
  const { issuer } = JSON.parse((await lines.next()).value);
  directory = mkdtempSync(join(tmpdir(), "edge-fleet-oidc-"));
  writeFileSync(join(directory, "secret"), "a secret of the client, for tests alone\n");
  writeFileSync(join(directory, "oidc.toml"), `
issuer = "${issuer}"
title = "Example ID"
client_id = "edge-fleet"
client_secret_file = "secret"
scope = "openid profile groups"

[roles]
fleet-operators = "operator"
fleet-viewers = "viewer"
`);
  [story, browser] = await Promise.all([
    startStory("--port", String(port), "--oidc", join(directory, "oidc.toml")), openBrowser(),
  ]);
});

after(async () => {
  await browser?.close();
  await story?.end();
  provider?.stdin.end();
  rmSync(directory, { recursive: true, force: true });
});

/** By the provider's own forms: who one is, and that the console may know. */
async function signInAt(page, name, path = "/") {
  await page.goto(story.url + path);
  await page.getByRole("link", { name: "Sign in with Example ID" }).click();
  await page.locator("input[name=login]").fill(name);
  await page.locator("input[name=password]").fill("any");
  await page.getByRole("button", { name: /sign-in/i }).click();
  await page.getByRole("button", { name: /continue/i }).click();
  await page.waitForURL((url) => url.href.startsWith(story.url));
}

async function open() {
  const context = await browser.newContext();
  return context.newPage();
}

test("a group is a role, and one comes back to the page that one wanted", async () => {
  const page = await open();
  await signInAt(page, "olga", "/rollouts");
  assert.equal(new URL(page.url()).pathname, "/rollouts");
  await page.getByRole("link", { name: "New rollout" }).waitFor();
  await page.goto(`${story.url}/self`);
  assert.match(await page.locator("main").innerText(), /operator/);
  assert.equal(await page.getByLabel("Current password").count(), 0);
  const viewer = await open();
  await signInAt(viewer, "vera");
  assert.equal((await viewer.goto(`${story.url}/rollouts/new`)).status(), 403);
  // Nothing of the handshake is left, and the session is a cookie that scripts cannot read.
  // (Cookies know no ports: the provider's own are here, too.)
  const cookies = await page.context().cookies(story.url);
  const ours = cookies.filter(({ name }) => name.startsWith("edge-fleet") && name !== "edge-fleet-form");
  assert.deepEqual(ours.map((each) => [each.name, each.httpOnly, each.sameSite]), [["edge-fleet", true, "Lax"]]);
});

test("who has no role is refused, and so is a name that is somebody else's", async () => {
  const page = await open();
  await signInAt(page, "uwe");
  assert.match(await page.locator("main").innerText(), /no group of uwe has a role here/);
  const other = await open();
  // There is a local account ann: being called so elsewhere does not make one her.
  await signInAt(other, "ann");
  assert.match(await other.locator("main").innerText(), /account ann is somebody else's/);
  for (const each of [page, other]) assert.match((await each.goto(`${story.url}/devices`)).url(), /sign-in/);
});

test("an answer that is not to a question of this browser is refused", async () => {
  const page = await open();
  await page.goto(`${story.url}/sign-in`);
  await page.getByRole("link", { name: "Sign in with Example ID" }).click();
  await page.locator("input[name=login]").fill("olga");
  await page.locator("input[name=password]").fill("any");
  await page.getByRole("button", { name: /sign-in/i }).click();
  await page.getByRole("button", { name: /continue/i }).waitFor();
  await page.context().clearCookies({ name: "edge-fleet-oidc" });
  await page.getByRole("button", { name: /continue/i }).click();
  await page.getByText("this sign-in was not begun here").waitFor();
  assert.match((await page.goto(`${story.url}/devices`)).url(), /sign-in/);
  // With a cookie of ours, another state, and a code that the provider did not give.
  const begun = await fetch(`${story.url}/sign-in/oidc`, { redirect: "manual" });
  const cookie = begun.headers.get("set-cookie").split(";")[0];
  const state = new URL(begun.headers.get("location")).searchParams.get("state");
  for (const [sent, words] of [["forged", /was not begun here/], [state, /cannot be relied on/]]) {
    const answer = await fetch(`${story.url}/sign-in/oidc/back?code=made-up&state=${sent}`, { headers: { cookie } });
    assert.equal(answer.status, 403);
    assert.match(await answer.text(), words);
    // The attempt is over.
    assert.match(answer.headers.get("set-cookie"), /edge-fleet-oidc="";.*Max-Age=0/i);
  }
});

test("a code is bound to its verifier, and the request has PKCE, state and nonce", async () => {
  const begun = await fetch(`${story.url}/sign-in/oidc`, { redirect: "manual" });
  const asked = new URL(begun.headers.get("location")).searchParams;
  assert.equal(asked.get("code_challenge_method"), "S256");
  for (const name of ["code_challenge", "state", "nonce"]) assert.ok(asked.get(name).length >= 43, name);
  const again = await fetch(`${story.url}/sign-in/oidc`, { redirect: "manual" });
  assert.notEqual(new URL(again.headers.get("location")).searchParams.get("state"), asked.get("state"));
});

test("who was disabled here is not let in by being known there", async () => {
  const first = await open();
  await signInAt(first, "vera");
  const admin = await open();
  await signIn(admin, story, "dag");
  await admin.goto(`${story.url}/accounts`);
  await admin.getByText("Change vera").click();
  await admin.locator("li", { hasText: "Change vera" }).getByRole("button", { name: "Disable" }).click();
  await admin.getByText("The account is changed.").waitFor();
  assert.match((await first.goto(`${story.url}/devices`)).url(), /sign-in/);
  const again = await open();
  await signInAt(again, "vera");
  assert.match(await again.locator("main").innerText(), /account vera is disabled/);
});
