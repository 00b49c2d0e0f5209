/** Consoles in processes of their own (tests/fleet/web/serve_story.py, serve_agent.py), and a Chromium to look at them. */
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const root = fileURLToPath(new URL("../../../..", import.meta.url));

export const startStory = (...options) => start("tests.fleet.web.serve_story", ...options);

/** A real agent that answers, and a console with a playground. */
export const serveAgent = () => start("tests.fleet.web.serve_agent");

async function start(module, ...options) {
  const python = process.env.EDGE_PYTHON ?? `${root}/.venv/bin/python`;
  const child = spawn(python, ["-m", module, ...options], {
    cwd: root, stdio: ["pipe", "pipe", "inherit"],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error("the console ended");
    return JSON.parse(value);
  };
  const said = await next();
  return {
    ...said,
    passMinutes: async (minutes) => {
      child.stdin.write(`${minutes}\n`);
      return next();
    },
    end: () =>
      new Promise((resolve) => {
        child.once("exit", resolve);
        child.stdin.end();
      }),
  };
}

export async function openBrowser() {
  const found = [process.env.EDGE_CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
  const executablePath = found.find((each) => each && existsSync(each));
  if (executablePath === undefined) throw new Error("Chromium is missing; on Debian: apt install chromium");
  return chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
}

/** Signs in by the form, as people do. */
export async function signIn(page, story, name) {
  await page.goto(`${story.url}/sign-in`);
  await page.getByLabel("Name").fill(name);
  await page.getByLabel("Password").fill(story.password);
  await page.getByRole("button", { name: "Sign in", exact: true }).click();
  await page.waitForURL(`${story.url}/`);
}

export const PAGES = {
  overview: "/",
  devices: "/devices",
  device: "/devices/{device}",
  rollouts: "/rollouts",
  rollout: "/rollouts/5",
  halted: "/rollouts/3",
  new: "/rollouts/new?bundle=smollm2@1.4.0&where=*",
  bundles: "/bundles",
  playground: "/playground",
  audit: "/audit",
  accounts: "/accounts",
  self: "/self",
};
