// The demo page at `/`.

import assert from "node:assert/strict";
import { test } from "node:test";
import { axe, reader, screenshot, serve, until } from "./helpers.mjs";

test("two pages count as two, and a closed one as none", async (t) => {
  const service = await serve(t);
  const [ann, bob] = [await reader(t), await reader(t)];
  await ann.open(service.url);
  await until(() => service.count("demo"), "1/1/0");
  const second = await bob.open(service.url);
  await until(() => service.count("demo"), "2/2/0");
  await second.close();
  await until(() => service.count("demo"), "1/1/0");
});

test("axe finds no serious fault", async (t) => {
  const service = await serve(t);
  for (const colorScheme of ["light", "dark"]) {
    const { open } = await reader(t, { colorScheme });
    const page = await open(service.url);
    await until(() => page.textContent("#viewers"), "1");
    await screenshot(page, `demo-${colorScheme}`, { fullPage: true });
    assert.deepEqual(await axe(page), []);
    await page.close();
  }
});
