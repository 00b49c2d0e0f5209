/** The playground in a real Chromium, answered by a real agent with a real model. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { openBrowser, serveAgent, signIn } from "./stage.mjs";

const QUESTION = "What is the capital of France?";
const ANSWER = "The capital of France is Paris.";
let story, browser;
before(async () => {
  [story, browser] = await Promise.all([serveAgent(), openBrowser()]);
});
after(async () => {
  await browser?.close();
  await story?.end();
});

for (const javaScriptEnabled of [true, false]) {
  for (const target of ["tiny", "device:box.7"]) {
    test(`${target} answers, ${javaScriptEnabled ? "with" : "without"} scripts`, async () => {
      const context = await browser.newContext({ javaScriptEnabled });
      const page = await context.newPage();
      const faults = [];
      page.on("pageerror", (error) => faults.push(String(error)));
      page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
      await signIn(page, story, "eva");
      await page.goto(`${story.url}/playground`);
      await page.getByLabel("device:NAME").fill(target);
      await page.getByLabel("Prompt").fill(QUESTION);
      await page.getByRole("button", { name: "Ask" }).click();
      await page.locator(".answer", { hasText: ANSWER }).waitFor();
      assert.match(await page.locator(".answer").innerText(), /^box\.7 answers\s/);
      assert.deepEqual(faults, []);
      await context.close();
    });
  }
}

test("the answer comes as it is made, and what nobody answers is said in its place", async () => {
  const context = await browser.newContext();
  const page = await context.newPage();
  await signIn(page, story, "eva");
  await page.goto(`${story.url}/playground`);
  const cookie = (await context.cookies()).map(({ name, value }) => `${name}=${value}`).join("; ");
  const csrf = await page.locator("form[action='/playground'] input[name=csrf]").getAttribute("value");
  const ask = (target) =>
    fetch(`${story.url}/playground`, {
      method: "POST",
      headers: { cookie, origin: story.url },
      body: new URLSearchParams({ csrf, target, prompt: QUESTION }),
    });
  const pieces = [];
  const decoder = new TextDecoder();
  for await (const chunk of (await ask("tiny")).body) pieces.push(decoder.decode(chunk, { stream: true }));
  // The page around it is there before the answer is.
  assert.ok(pieces.join("").includes(ANSWER));
  assert.ok(!pieces[0].includes(ANSWER));
  assert.match(await (await ask("tinny")).text(), /did you mean &#39;tiny&#39;\?/);
  await context.close();
});
