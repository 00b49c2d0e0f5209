/**
 * Pictures of every page, wide and narrow, light and dark, and one of them for the documents:
 * `node shots.mjs DIRECTORY PICTURE`, or `make console-pictures`.
 */
import { openBrowser, PAGES, signIn, startStory } from "./stage.mjs";

const [directory, picture] = process.argv.slice(2);
const [story, browser] = await Promise.all([startStory(), openBrowser()]);

async function openAt(width, colorScheme, name) {
  const context = await browser.newContext({ colorScheme, viewport: { width, height: 900 } });
  const page = await context.newPage();
  await page.goto(`${story.url}/sign-in`);
  if (name === undefined) return page;
  await signIn(page, story, name);
  return page;
}

for (const colorScheme of ["light", "dark"]) {
  for (const width of [1400, 420]) {
    const entrance = await openAt(width, colorScheme);
    await entrance.screenshot({ path: `${directory}/sign-in-${width}-${colorScheme}.png` });
    const page = await openAt(width, colorScheme, "dag");
    for (const [name, path] of Object.entries(PAGES)) {
      await page.goto(story.url + path.replace("{device}", story.device));
      if (name === "device") await page.locator("[data-live=yes] canvas").first().waitFor();
      if (name === "bundles") await page.locator("details summary").first().click();
      await page.screenshot({ path: `${directory}/${name}-${width}-${colorScheme}.png`, fullPage: true });
    }
  }
}
const page = await openAt(1200, "light", "ann");
await page.setViewportSize({ width: 1200, height: 1180 });
await page.goto(`${story.url}/rollouts/5`);
await page.screenshot({ path: picture });
await browser.close();
await story.end();
