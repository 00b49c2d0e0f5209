/** examples/node/ask.mjs, as its README says, with this package in place of the one that npm would install. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { copyFile, mkdir, mkdtemp, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { startStage } from "./stage.js";

const example = fileURLToPath(new URL("../../../examples/node/ask.mjs", import.meta.url));

test("the example asks and prints the answer", async () => {
  const directory = await mkdtemp(join(tmpdir(), "edge-example-"));
  const stage = await startStage();
  try {
    await copyFile(example, join(directory, "ask.mjs"));
    await mkdir(join(directory, "node_modules"));
    await symlink(fileURLToPath(new URL("..", import.meta.url)), join(directory, "node_modules", "edge-bundle"));
    const env = { ...process.env, EDGE_BROKER: stage.mqtt };
    const run = promisify(execFile);
    const { stdout } = await run(process.execPath, ["ask.mjs", "count 4"], { cwd: directory, env });
    assert.equal(stdout.trim(), "0 1 2 3");
    const nobody = run(process.execPath, ["ask.mjs", "count 4"], { cwd: directory, env: { ...env, EDGE_DEVICE: "nobody" } });
    await assert.rejects(nobody, (error) => error.code === 1 && error.stderr.includes("nobody"));
  } finally {
    await stage.end();
    await rm(directory, { recursive: true });
  }
});
