/** The console in a real Chromium: keyboard, axe-core, roles, scripts off, strict CSP, live parts, 10,000 devices. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { openBrowser, PAGES, signIn, startStory } from "./stage.mjs";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

let story, browser;
before(async () => {
  [story, browser] = await Promise.all([startStory("--devices", "10000"), openBrowser()]);
});
after(async () => {
  await browser?.close();
  await story?.end();
});

/** A page of its own session; `faults` are errors of scripts, refusals of the policy and answers that failed. */
async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1400, height: 900 }, ...options });
  const page = await context.newPage();
  const faults = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  page.on("response", (response) => response.status() >= 400 && faults.push(`${response.status()} ${response.url()}`));
  return { context, page, faults };
}

const pathOf = (path) => story.url + path.replace("{device}", story.device);

for (const colorScheme of ["light", "dark"]) {
  test(`axe-core finds nothing on any page, ${colorScheme}, wide and narrow`, async () => {
    const { context, page, faults } = await open({ colorScheme });
    // The policy of the pages lets no script in but theirs: axe is evaluated by the browser's own tools.
    const check = async (name) => {
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
      const told = violations.map((each) => `${name}: ${each.id}: ${each.nodes[0].html} ${each.nodes[0].failureSummary}`);
      assert.deepEqual(told, []);
    };
    await page.goto(`${story.url}/sign-in`);
    await check("sign-in");
    await signIn(page, story, "dag");
    for (const width of [1400, 420]) {
      await page.setViewportSize({ width, height: 900 });
      for (const [name, path] of Object.entries(PAGES)) {
        await page.goto(pathOf(path));
        for (const summary of await page.locator("details > summary").all()) await summary.press("Enter");
        await check(`${name} at ${width}`);
        const [is, may] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
        assert.ok(is <= may, `${name} is ${is} wide at ${width}`);
      }
    }
    assert.deepEqual(faults, []);
    await context.close();
  });
}

test("everything is done by the keyboard alone", async () => {
  const { context, page, faults } = await open();
  const focused = () =>
    page.evaluate(() => {
      const found = document.activeElement;
      const outline = getComputedStyle(found).outlineStyle;
      return { text: (found.textContent || found.getAttribute("name") || "").trim(), outline };
    });
  const tabTo = async (text) => {
    for (let i = 0; i < 120; i += 1) {
      await page.keyboard.press("Tab");
      const now = await focused();
      if (now.text === text) {
        assert.notEqual(now.outline, "none", `${text} does not show that it has the focus`);
        return;
      }
    }
    assert.fail(`${text} cannot be reached`);
  };
  await page.goto(`${story.url}/sign-in`);
  await tabTo("name");
  await page.keyboard.type("ann");
  await page.keyboard.press("Tab");
  await page.keyboard.type(story.password);
  await page.keyboard.press("Enter");
  await page.waitForURL(`${story.url}/`);
  await page.keyboard.press("Tab");
  assert.equal((await focused()).text, "Skip to the content");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "main");
  await page.goto(`${story.url}/rollouts/5`);
  await tabTo("Pause…");
  await page.keyboard.press("Enter");
  await tabTo("Pause rollout 5");
  await page.keyboard.press("Enter");
  await page.waitForURL(/done=pause/);
  assert.match(await page.locator("#summary h1").innerText(), /paused/);
  await tabTo("Resume…");
  await page.keyboard.press("Enter");
  await tabTo("Resume rollout 5");
  await page.keyboard.press("Enter");
  await page.waitForURL(/done=resume/);
  await page.goto(`${story.url}/devices`);
  await tabTo("where");
  await page.keyboard.type("site=oslo");
  await page.keyboard.press("Enter");
  await page.getByText("8 of 10,032 devices").waitFor();
  await tabTo("oslo-depot-01");
  await page.keyboard.press("Enter");
  await page.waitForURL(/devices\/oslo-depot-01/);
  assert.deepEqual(faults, []);
  await context.close();
});

test("two roles see what they may, and approve together", async () => {
  const [viewer, approver, author] = await Promise.all([open(), open(), open()]);
  await signIn(viewer.page, story, "cleo");
  await viewer.page.goto(`${story.url}/rollouts/4`);
  assert.equal(await viewer.page.locator(".action, a[href='/accounts'], a[href='/playground']").count(), 0);
  await signIn(author.page, story, "ann");
  await author.page.goto(`${story.url}/rollouts/4`);
  await author.page.getByText("approval of another person than its author").last().waitFor();
  assert.equal(await author.page.getByText("Approve…").count(), 0);
  await signIn(approver.page, story, "bo");
  await approver.page.goto(`${story.url}/rollouts/4`);
  assert.equal(await approver.page.getByText("Abort…").count(), 0);
  await approver.page.getByText("Approve…").click();
  await approver.page.getByRole("button", { name: "Approve rollout 4" }).click();
  await approver.page.waitForURL(/done=approve/);
  // The author's page has heard of it, and offers what is possible now.
  await author.page.getByText("Pause…").waitFor();
  assert.match(await author.page.locator("#summary").innerText(), /approved by bo/);
  for (const each of [viewer, approver, author]) {
    assert.deepEqual(each.faults, []);
    await each.context.close();
  }
});

test("a rollout and a device's plots are live", async () => {
  const { context, page, faults } = await open();
  await signIn(page, story, "cleo");
  await page.goto(pathOf(PAGES.device));
  await page.locator("[data-live=yes] canvas").first().waitFor();
  const was = await page.locator("figure[data-field=requests_per_minute] .value").innerText();
  await story.passMinutes(1);
  await story.passMinutes(1);
  await page.waitForFunction(
    (old) => document.querySelector("figure[data-field=requests_per_minute] .value").innerText !== old, was,
  );
  await page.goto(`${story.url}/rollouts/5`);
  await page.locator("#waves").waitFor();
  await story.passMinutes(10);
  await page.locator(".wave:nth-child(2).is-passed").waitFor();
  await page.locator(".wave:nth-child(3).is-open, .wave:nth-child(3).is-baking").waitFor();
  assert.deepEqual(faults, []);
  await context.close();
});

test("without scripts everything is read and done", async () => {
  const { context, page, faults } = await open({ javaScriptEnabled: false });
  await signIn(page, story, "dag");
  for (const [name, path] of Object.entries(PAGES)) {
    await page.goto(pathOf(path));
    assert.ok((await page.locator("main").innerText()).length > 40, name);
  }
  await page.goto(pathOf(PAGES.device));
  assert.equal(await page.locator("figure polyline").count(), 4);
  await page.goto(`${story.url}/rollouts/5`);
  await page.getByText("Halt…").click();
  await page.getByRole("button", { name: "Halt rollout 5" }).click();
  await page.getByText("halted by dag").first().waitFor();
  await page.goto(`${story.url}/devices?where=device=quiet-00003`);
  await page.getByRole("link", { name: "quiet-00003" }).click();
  await page.getByLabel("Labels").fill("site=hall");
  await page.getByRole("button", { name: "Save labels" }).click();
  await page.getByText("The device is changed.").waitFor();
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByText("You are signed out.").waitFor();
  assert.deepEqual(faults, []);
  await context.close();
});

test("10,000 devices are paged and filtered as one types", async () => {
  const { context, page, faults } = await open();
  await signIn(page, story, "cleo");
  await page.goto(`${story.url}/devices`);
  await page.getByText("10,032 of 10,032 devices").waitFor();
  await page.getByRole("link", { name: "Next page" }).click();
  await page.getByRole("link", { name: "First page" }).waitFor();
  await page.locator("#where").pressSequentially("device~quiet-*42 and online=true");
  await page.getByText("85 of 10,032 devices").waitFor();
  assert.match(page.url(), /where=device/);
  assert.equal(await page.locator("#results tbody tr").count(), 50);
  // Half a selection is refused in words, in place.
  faults.length = 0;
  await page.locator("#where").fill("site=");
  await page.getByText("the selection cannot be read").waitFor();
  await context.close();
});
