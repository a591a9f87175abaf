// The demo page at `/`.

import assert from "node:assert/strict";
import { test } from "node:test";
import { axe, reader, screenshot, serve, shown, until } from "./helpers.mjs";

test("a second reader counts, a second tab does not, and a closed one counts as none", async (t) => {
  const service = await serve(t);
  const { context, open } = await reader(t);
  const first = await open(service.url);
  await until(() => shown(first), "1 reading now");
  const opened = context.waitForEvent("page");
  await first.getByRole("link", { name: "second tab as another reader" }).click();
  const second = await opened;
  await until(() => shown(second), "2 reading now");
  await until(() => first.textContent("#viewers"), "2");
  await second.close();
  await until(() => first.textContent("#viewers"), "1");
  const same = await open(service.url);
  await until(() => shown(same), "1 reading now");
  assert.equal(await service.count("demo"), "1/1/0");
});

test("the command beside it joins", async (t) => {
  const service = await serve(t);
  const page = await (await reader(t)).open(service.url);
  await until(() => page.textContent("#curl"), (command) => command.includes(`${service.url}/v1/join \\\n  -H`));
});

for (const [name, width, colorScheme] of [["phone", 360, "light"], ["wide", 1280, "light"], ["wide-dark", 1280, "dark"]]) {
  test(`nothing overflows and axe finds no serious fault, ${name}`, async (t) => {
    const service = await serve(t);
    const { open } = await reader(t, { colorScheme, viewport: { width, height: 800 } });
    const page = await open(service.url);
    await until(() => page.textContent("#viewers"), "1");
    await screenshot(page, `demo-${name}`, { fullPage: true });
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), width);
    assert.deepEqual(await axe(page), []);
  });
}

test("with seventeen readers it is a picture for the README", async (t) => {
  const service = await serve(t);
  for (let reader = 0; reader < 16; reader++) {
    const leaving = new AbortController();
    t.after(() => leaving.abort());
    await fetch(`${service.url}/v1/stream?blog_id=demo`, { signal: leaving.signal });
  }
  for (const colorScheme of ["light", "dark"]) {
    const { context, open } = await reader(t, { colorScheme, viewport: { width: 720, height: 360 } });
    const page = await open(service.url);
    await until(() => shown(page), "17 reading now");
    await screenshot(page, `page-${colorScheme}`);
    await context.close();
    await until(() => service.count("demo"), "16/16/0");
  }
});
