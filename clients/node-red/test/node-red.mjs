/** A real Node-RED, headless, in a process of its own, with one flow. */
import { spawn } from "node:child_process";
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const PACKAGE = fileURLToPath(new URL("..", import.meta.url));

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

export async function startNodeRed(flow) {
  const home = await mkdtemp(join(tmpdir(), "node-red-"));
  const port = await freePort();
  await mkdir(join(home, "node_modules"));
  await symlink(PACKAGE, join(home, "node_modules", "node-red-contrib-edge-bundle"), "dir");
  const dependencies = { "node-red-contrib-edge-bundle": "*" };
  await writeFile(join(home, "package.json"), JSON.stringify({ name: "test", version: "0.0.1", dependencies }));
  await writeFile(join(home, "flows.json"), JSON.stringify(flow));
  await writeFile(
    join(home, "settings.js"),
    `module.exports = { uiHost: "127.0.0.1", uiPort: ${port}, flowFile: "flows.json", credentialSecret: false,
      telemetry: { enabled: false, updateNotification: false } };`,
  );
  const red = join(PACKAGE, "node_modules", "node-red", "red.js");
  const child = spawn(process.execPath, [red, "-u", home], { stdio: ["ignore", "pipe", "pipe"] });
  let log = "";
  const started = new Promise((resolve, reject) => {
    const hear = (data) => {
      log += data;
      if (/Started flows/.test(log)) resolve();
    };
    child.stdout.on("data", hear);
    child.stderr.on("data", hear);
    child.once("exit", () => reject(new Error(`Node-RED ended: ${log}`)));
  });
  await started;
  const url = `http://127.0.0.1:${port}`;
  return {
    url,
    log: () => log,
    /** Deploy another flow through the admin API, as the editor does. */
    deploy: async (nodes) => {
      const headers = { "content-type": "application/json", "Node-RED-Deployment-Type": "full" };
      const answer = await fetch(`${url}/flows`, { method: "POST", headers, body: JSON.stringify(nodes) });
      if (!answer.ok) throw new Error(`deploying failed: ${answer.status} ${await answer.text()}`);
    },
    end: async () => {
      await new Promise((resolve) => {
        child.removeAllListeners("exit").once("exit", resolve);
        child.kill("SIGTERM");
      });
      await rm(home, { recursive: true, force: true });
    },
  };
}
