// The counter on a page: what it shows, and how.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { gzipSync } from "node:zlib";
import { axe, page, reader, screenshot, serve, shown, site, until } from "./helpers.mjs";

const counter = (rest = "") => `<live-count blog-id="42" ${rest}></live-count>`;

/// Open streams of blog 42 that are nobody's page.
async function visitors(t, service, number) {
  const streams = Array.from({ length: number }, async () => {
    const leaving = new AbortController();
    const answer = await fetch(`${service.url}/v1/stream?blog_id=42`, { signal: leaving.signal });
    await answer.body.getReader().read();
    t.after(() => leaving.abort());
    return () => leaving.abort();
  });
  return Promise.all(streams);
}

/// A tab with these counters, watching blog 42 with this many visitors.
async function showing(t, number, body, options) {
  const service = await serve(t);
  const leave = await visitors(t, service, number);
  const pages = await site(t, { "/": page(service, body) });
  const tab = await (await reader(t, options)).open(pages.url);
  await until(() => tab.getAttribute("live-count", "state"), (state) => state !== "waiting");
  return { service, tab, leave };
}

test("it is at most 4 KB, compressed", async (t) => {
  const service = await serve(t);
  const script = Buffer.from(await (await fetch(`${service.url}/widget.js`)).arrayBuffer());
  const size = gzipSync(script, { level: 9 }).length;
  assert.ok(size <= 4096, `${size} bytes`);
});

describe("a counter", { concurrency: 4 }, () => {
  test("shows a page's readers as they come and go", async (t) => {
    const service = await serve(t);
    const blog = await site(t, { "/": page(service, counter()) });
    const first = await (await reader(t)).open(blog.url);
    await until(() => shown(first), "1 reading now");
    const second = await (await reader(t)).open(blog.url);
    await until(() => shown(first), "2 reading now");
    await until(() => shown(second), "2 reading now");
    await second.close();
    await until(() => shown(first), "1 reading now");
    assert.equal(await service.count(42), "1/1/0");
  });

  test("is hidden below a number, and shown from it on", async (t) => {
    const { service, tab, leave } = await showing(t, 1, counter('watch-only hide-below="2"'));
    assert.equal(await tab.getAttribute("live-count", "state"), "few");
    assert.equal(await shown(tab), "");
    await visitors(t, service, 1);
    await until(() => shown(tab), "2 reading now");
    leave[0]();
    await until(() => shown(tab), "");
  });

  test("speaks as the page says, in the plurals of its language", async (t) => {
    const polish = 'lang="pl" text-one="{n} osoba czyta" text-few="{n} osoby czytają" text-many="{n} osób czyta"';
    const english = 'text="{n} readers" text-1="You are alone here"';
    const broken = 'lang="en_US" text-one="one: {n}" text="more: {n}"';
    const body = [polish, english, broken].map((rest, at) => `<p id="p${at}">${counter(`watch-only ${rest}`)}</p>`).join("");
    const { service, tab } = await showing(t, 1, body);
    const texts = () => Promise.all([0, 1, 2].map((at) => shown(tab, `#p${at} live-count`)));
    const expect = (...expected) => until(async () => (await texts()).join(" | "), expected.join(" | "));
    await expect("1 osoba czyta", "You are alone here", "one: 1");
    await visitors(t, service, 2);
    await expect("3 osoby czytają", "3 readers", "more: 3");
    await visitors(t, service, 2);
    await expect("5 osób czyta", "5 readers", "more: 5");
  });

  test("writes numbers as its language does", async (t) => {
    const { tab } = await showing(t, 1, counter('watch-only lang="fa-IR"'));
    await until(() => shown(tab), "۱ reading now");
  });

  test("is read aloud, but not with every number", async (t) => {
    const { service, tab } = await showing(t, 1, `${counter("watch-only announce=polite")}<i>${counter("watch-only")}</i>`);
    const said = (at) => tab.evaluate((at) => {
      const { ariaLive, textContent } = document.querySelectorAll("live-count")[at].shadowRoot.querySelector("[part=said]");
      return `${ariaLive}: ${textContent}`;
    }, at);
    await until(() => said(0), "polite: 1 reading now");
    await until(() => said(1), "off: 1 reading now");
    await visitors(t, service, 1);
    await until(() => shown(tab), "2 reading now");
    assert.equal(await said(0), "polite: 1 reading now", "what changes within half a minute is told at its end");
  });

  test("moves only where motion is welcome", async (t) => {
    const { tab } = await showing(t, 1, counter("watch-only"));
    const animation = () => tab.evaluate(() =>
      getComputedStyle(document.querySelector("live-count").shadowRoot.querySelector("[part=dot]")).animationName);
    assert.equal(await animation(), "pulse");
    await tab.emulateMedia({ reducedMotion: "reduce" });
    assert.equal(await animation(), "none");
  });

  test("without a blog is no counter, and says so by its state", async (t) => {
    const { service, tab } = await showing(t, 0, "<live-count>–</live-count>");
    await until(() => tab.getAttribute("live-count", "state"), "stopped");
    assert.equal(await shown(tab), "–");
    assert.equal(await service.streams(), 0);
  });

  for (const colorScheme of ["light", "dark"]) {
    test(`is legible and has no serious fault, ${colorScheme}`, async (t) => {
      const style = `<style>:root { color-scheme: light dark; font: 1.25rem/1.6 system-ui, sans-serif }
        p { max-width: 34rem } #box { padding: .3em .9em; border: 1px solid; border-radius: 9em }
        #own::part(number) { font-weight: 700 } #own { --live-count-dot: #c2410c }</style>`;
      const body = `${style}<p>As it comes: ${counter("watch-only")}</p>
        <p>In a box: ${counter('id="box" watch-only text="{n} readers right now"')}</p>
        <p>With a number and a dot of its own: ${counter('id="own" watch-only')}</p>
        <p>Away: <live-count blog-id="1" server="http://127.0.0.1:9/">nobody knows</live-count></p>`;
      const { tab } = await showing(t, 17, body, { colorScheme, viewport: { width: 640, height: 360 } });
      await until(() => shown(tab), "17 reading now");
      await until(() => shown(tab, "[server]"), "nobody knows");
      await screenshot(tab, `counter-${colorScheme}`);
      assert.deepEqual(await axe(tab), []);
    });
  }
});

test("LiveCount tells a script the numbers and the state, until it is closed", async (t) => {
  const service = await serve(t);
  const pages = await site(t, { "/": "<title>A page</title>" });
  const tab = await (await reader(t)).open(pages.url);
  await tab.evaluate(async (url) => {
    const { LiveCount } = await import(`${url}/widget.js`);
    window.told = [];
    const tell = (what) => (value) => window.told.push(`${what} ${JSON.stringify(value)}`);
    window.counter = new LiveCount({
      server: url,
      blogId: 42,
      onCount: ({ viewers }) => tell("count")(viewers),
      onState: tell("state"),
    });
  }, service.url);
  await until(() => service.count(42), "1/1/0");
  await until(() => tab.evaluate(() => window.counter.state), "live");
  assert.equal(await tab.evaluate(() => window.counter.count.viewers), 1);
  await tab.evaluate(() => window.counter.close());
  await until(() => service.count(42), "0/0/0");
  assert.deepEqual(await tab.evaluate(() => window.told), ["count 1", 'state "live"', 'state "stopped"']);
});
