// Tabs of one browser, and many counters on one page: one connection.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { front, page, reader, serve, shown, site, until } from "./helpers.mjs";

const blog = (id) => `<live-count blog-id="${id}"></live-count>`;

describe("one connection", { concurrency: 3 }, () => {
  test("seven tabs of one blog are one viewer and one connection, and none of them hangs", async (t) => {
    const service = await serve(t);
    const pages = await site(t, { "/": page(service, blog(42)) });
    const { open } = await reader(t);
    const tabs = [];
    for (let tab = 0; tab < 7; tab++) tabs.push(await open(pages.url));
    for (const tab of tabs) await until(() => shown(tab), "1 reading now");
    assert.equal(await service.count(42), "1/1/0");
    assert.equal(await service.streams(), 1);
    // The connection pool has room for another call from the last of them.
    assert.equal(await tabs[6].evaluate((url) => fetch(url).then((answer) => answer.status), `${service.url}/livez`), 200);
  });

  test("each tab is counted in its own blog, as long as it is open", async (t) => {
    const service = await serve(t);
    const pages = await site(t, { "/1": page(service, blog(1)), "/2": page(service, blog(2)), "/3": page(service, blog(3)) });
    const { open } = await reader(t);
    const [one, two, three] = [await open(`${pages.url}/1`), await open(`${pages.url}/2`), await open(`${pages.url}/3`)];
    for (const tab of [one, two, three]) await until(() => shown(tab), "1 reading now");
    const counts = async () => `${await service.count(1)} ${await service.count(2)} ${await service.count(3)}`;
    await until(counts, "1/1/0 1/1/0 1/1/0");
    assert.equal(await service.streams(), 1);
    await two.close();
    await until(counts, "1/1/0 0/0/0 1/1/0");
    // The one that leads: another takes over.
    await one.close();
    await until(counts, "0/0/0 0/0/0 1/1/0");
    await until(() => shown(three), "1 reading now");
    const four = await open(`${pages.url}/1`);
    await until(counts, "1/1/0 0/0/0 1/1/0");
    await four.goto(`${pages.url}/2`);
    await until(counts, "0/0/0 1/1/0 1/1/0");
    assert.equal(await service.streams(), 1);
  });

  test("with a grace nobody sees that another tab took over", async (t) => {
    const service = await serve(t, { leave_grace: "5s" });
    const pages = await site(t, { "/1": page(service, blog(1)), "/2": page(service, blog(2)) });
    const { open } = await reader(t);
    const [leader] = [await open(`${pages.url}/1`), await open(`${pages.url}/2`)];
    await until(() => service.count(2), "1/1/0");
    const held = async () => (await service.call("GET", "/v1/rooms/blog:2/connections")).connections.at(-1)?.connection;
    const before = await held();
    const watching = new AbortController();
    t.after(() => watching.abort());
    const stream = await fetch(`${service.url}/v1/watch?blog_id=2`, { signal: watching.signal });
    let told = "";
    (async () => {
      for await (const bytes of stream.body) told += Buffer.from(bytes);
    })().catch(() => {});
    await leader.close();
    await until(() => service.count(1), "0/0/0");
    await until(held, (found) => found && found !== before);
    assert.equal(await service.count(2), "1/1/0");
    assert.deepEqual([...new Set(told.match(/"viewers":\d+/g))], ['"viewers":1']);
  });

  test("whatever tabs come, go and move, each open page is counted once", async (t) => {
    const service = await serve(t);
    const pages = await site(t, { "/0": "<title>Nothing</title>", "/1": page(service, blog(1)), "/2": page(service, blog(2)) });
    const { open } = await reader(t);
    const tabs = [];
    let seed = 7919;
    const draw = (below) => (seed = (seed * 1103515245 + 12345) % 2 ** 31) % 65521 % below;
    for (let step = 0; step < 20; step++) {
      const url = `${pages.url}/${draw(3)}`;
      const one = tabs[draw(tabs.length || 1)];
      const what = draw(3);
      if (tabs.length < 2 || (what === 0 && tabs.length < 7)) tabs.push(await open(url));
      else if (what === 1) await tabs.splice(tabs.indexOf(one), 1)[0].close();
      else await one.goto(url, { waitUntil: "commit" });
    }
    const expected = [1, 2].map((id) => (tabs.some((tab) => tab.url().endsWith(`/${id}`)) ? "1/1/0" : "0/0/0"));
    await until(async () => `${await service.count(1)} ${await service.count(2)}`, expected.join(" "));
    await until(() => service.streams(), expected.includes("1/1/0") ? 1 : 0);
    for (const tab of tabs) if (!tab.url().endsWith("/0")) await until(() => shown(tab), "1 reading now");
  });

  test("a leading tab that crashes is followed by another", async (t) => {
    const service = await serve(t);
    const pages = await site(t, { "/1": page(service, blog(1)), "/2": page(service, blog(2)) });
    const { context, open } = await reader(t);
    const leader = await open(`${pages.url}/1`);
    const other = await open(`${pages.url}/2`);
    await until(() => service.count(2), "1/1/0");
    const devtools = await context.newCDPSession(leader);
    devtools.send("Page.crash").catch(() => {});
    await until(() => service.count(1), "0/0/0");
    await until(() => service.count(2), "1/1/0");
    await until(() => shown(other), "1 reading now");
  });

  test("a sleeping leader is followed by a tab that is looked at", async (t) => {
    const service = await serve(t);
    const pages = await site(t, { "/1": page(service, blog(1)), "/2": page(service, blog(2)), "/3": page(service, blog(3)) });
    const { context, open } = await reader(t);
    const leader = await open(`${pages.url}/1`);
    await until(() => service.count(1), "1/1/0");
    const third = await open(`${pages.url}/3`);
    await until(() => service.count(3), "1/1/0");
    // A phone that suspends a tab in the background stops its scripts and leaves it its locks.
    const devtools = await context.newCDPSession(leader);
    await devtools.send("Debugger.enable");
    await devtools.send("Debugger.pause");
    leader.evaluate(() => 0).catch(() => {});
    const other = await open(`${pages.url}/2`);
    await until(() => service.count(2), "1/1/0", 15);
    await until(() => shown(other), "1 reading now");
    await devtools.send("Debugger.resume");
    await until(() => service.streams(), 1);
    await until(() => service.count(1), "1/1/0");
    await until(() => shown(leader), "1 reading now");
    // Whoever led once does not keep the lock of a tab that is gone.
    await until(() => service.count(3), "1/1/0");
    await third.close();
    await until(() => service.count(3), "0/0/0");
    assert.equal(`${await service.count(1)} ${await service.count(2)}`, "1/1/0 1/1/0");
  });

  test("fifty counters on a page open one stream, the page's own among them", async (t) => {
    const service = await serve(t);
    const proxy = await front(t, service);
    const list = Array.from({ length: 50 }, (_, at) => `<live-count watch-only blog-id="${at}"></live-count>`).join("");
    const body = `<live-count blog-id="own"></live-count>${list}`;
    const pages = await site(t, { "/": page(proxy, body, `${proxy.url}/widget.js`), "/7": page(service, blog(7)) });
    const tab = await (await reader(t)).open(pages.url);
    await until(() => shown(tab, "[blog-id='49']"), "0 reading now");
    await until(() => shown(tab, "[blog-id=own]"), "1 reading now");
    const visitor = await (await reader(t)).open(`${pages.url}/7`);
    await until(() => shown(tab, "[blog-id='7']"), "1 reading now");
    await visitor.close();
    await until(() => shown(tab, "[blog-id='7']"), "0 reading now");
    assert.equal(await service.streams(), 1);
    assert.deepEqual([proxy.times("POST /v1/join"), proxy.times("GET /v1/stream")], [1, 1]);
  });

  for (const [what, number, length] of [["names too long for one connection", 50, 70], ["more names than a connection watches", 200, 3]]) {
    test(`a list of ${what} shows all its numbers, and follows them`, async (t) => {
      const service = await serve(t);
      const name = (at) => String(at).padStart(length, "a-long-slug-");
      const list = Array.from({ length: number }, (_, at) => `<live-count watch-only blog-id="${name(at)}"></live-count>`).join("");
      const pages = await site(t, { "/": page(service, `${blog("own")}${list}`), "/last": page(service, blog(name(number - 1))) });
      const tab = await (await reader(t)).open(pages.url);
      const waiting = () => tab.evaluate(() => document.querySelectorAll("live-count:not([state=live])").length);
      await until(waiting, 0);
      assert.equal(await shown(tab, "[blog-id=own]"), "1 reading now");
      await (await reader(t)).open(`${pages.url}/last`);
      await until(() => shown(tab, `[blog-id="${name(number - 1)}"]`), "1 reading now");
      assert.equal(await service.count("own"), "1/1/0");
      assert.equal(await service.streams(), 2);
    });
  }

  test("counters that come and go change the open stream", async (t) => {
    const service = await serve(t);
    const proxy = await front(t, service);
    const pages = await site(t, { "/": page(proxy, blog(1), `${proxy.url}/widget.js`) });
    const tab = await (await reader(t)).open(pages.url);
    await until(() => shown(tab), "1 reading now");
    await tab.evaluate(() => document.body.insertAdjacentHTML("beforeend", '<live-count blog-id="2"></live-count>'));
    await until(() => shown(tab, "[blog-id='2']"), "1 reading now");
    await until(() => service.count(2), "1/1/0");
    await tab.evaluate(() => document.querySelector("[blog-id='2']").setAttribute("blog-id", 3));
    await until(() => service.count(3), "1/1/0");
    await until(() => service.count(2), "0/0/0");
    await tab.evaluate(() => document.querySelector("[blog-id='3']").remove());
    await until(() => service.count(3), "0/0/0");
    assert.equal(await service.count(1), "1/1/0");
    assert.deepEqual([proxy.times("POST /v1/join"), proxy.times("GET /v1/stream")], [1, 1]);
  });

  test("a forbidden room stops its own counter and no other", async (t) => {
    const service = await serve(t);
    const pages = await site(t, { "/": page(service, `${blog(1)}<live-count room="private:9">closed</live-count>`) });
    const tab = await (await reader(t)).open(pages.url);
    await until(() => shown(tab), "1 reading now");
    await until(() => tab.getAttribute("[room]", "state"), "stopped");
    assert.equal(await shown(tab, "[room]"), "closed");
  });

  test("more blogs than a connection may join are watched", async (t) => {
    const service = await serve(t, { max_rooms_per_connection: 4 });
    const body = Array.from({ length: 6 }, (_, at) => blog(at)).join("");
    const tab = await (await reader(t)).open((await site(t, { "/": page(service, body) })).url);
    for (let at = 0; at < 6; at++) await until(() => shown(tab, `[blog-id='${at}']`), `${at < 4 ? 1 : 0} reading now`);
    assert.equal(await service.streams(), 1);
  });

  test("without a secure context each tab has a connection, and all are one viewer", async (t) => {
    const service = await serve(t);
    const pages = await site(t, { "/": page(service, blog(42)) });
    const { open } = await reader(t);
    const [first] = [await open(pages.named("blog.test")), await open(pages.named("blog.test"))];
    await until(() => service.count(42), "1/2/0");
    await until(() => shown(first), "1 reading now");
  });

  test("without a viewer id each tab is a viewer, and nothing is stored", async (t) => {
    const service = await serve(t);
    const pages = await site(t, { "/": page(service, '<live-count blog-id="42" no-viewer></live-count>') });
    const { context, open } = await reader(t);
    const [first] = [await open(pages.url), await open(pages.url)];
    await until(() => service.count(42), "2/2/0");
    await until(() => shown(first), "2 reading now");
    assert.deepEqual(await first.evaluate(() => Object.keys(localStorage)), []);
    assert.deepEqual(await context.cookies(), []);
  });

  test("the viewer id is another one the next day, and no cookie is set", async (t) => {
    const service = await serve(t);
    const pages = await site(t, { "/": page(service, blog(42)) });
    const { context, open } = await reader(t);
    const tab = await open(pages.url);
    await until(() => service.count(42), "1/1/0");
    const id = () => tab.evaluate(() => localStorage.livecount);
    const first = await id();
    const [{ viewer }] = (await service.call("GET", "/v1/rooms/blog:42/connections")).connections;
    assert.equal(viewer, first);
    await tab.reload();
    await until(() => service.count(42), "1/1/0");
    assert.equal(await id(), first);
    await tab.evaluate(() => (localStorage.livecount = localStorage.livecount.replace(/^.{10}/, "2020-01-01")));
    await tab.reload();
    await until(id, (found) => found !== first && !found.startsWith("2020"));
    assert.deepEqual(await context.cookies(), []);
  });
});
