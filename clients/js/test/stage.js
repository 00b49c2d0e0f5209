/** A broker and devices in a process of their own: tests/clients/stage.py. */
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

export async function startStage() {
  const root = fileURLToPath(new URL("../../..", import.meta.url));
  const python = process.env.EDGE_PYTHON ?? `${root}/.venv/bin/python`;
  const child = spawn(python, ["-m", "tests.clients.stage"], { cwd: root, stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error("the stage ended");
    return JSON.parse(value);
  };
  const urls = await next();
  return {
    ...urls,
    order: async (line) => {
      child.stdin.write(`${line}\n`);
      await next();
    },
    end: () =>
      new Promise((resolve) => {
        child.once("exit", resolve);
        child.stdin.end();
      }),
  };
}
