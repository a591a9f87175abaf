// What pages live through: the back/forward cache, networks that go, a service that is away, kicks, ends of
// tickets and tokens, prerendering.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { front, page, reader, serve, shown, site, until } from "./helpers.mjs";

const blog = (id, rest = "") => `<live-count blog-id="${id}" ${rest}>nobody knows</live-count>`;
const state = (tab) => tab.getAttribute("live-count", "state");

/// A service, a proxy before it, a site on which its widget counts blog 42, and a tab there.
async function reading(t, settings, attributes) {
  const service = await serve(t, settings);
  const proxy = await front(t, service);
  const html = () => page(proxy, blog(42, attributes), `${proxy.url}/widget.js`);
  const pages = await site(t, { "/": html, "/else": "<title>Elsewhere</title><p>Nothing is counted here.</p>" });
  const person = await reader(t);
  return { service, proxy, pages, person, start: async () => person.open(pages.url) };
}

/// Opens streams of blog 42 that are nobody's page.
async function crowd(t, service, size) {
  const leaving = new AbortController();
  t.after(() => leaving.abort());
  for (let each = 0; each < size; each++) {
    const answer = await fetch(`${service.url}/v1/stream?blog_id=42`, { signal: leaving.signal });
    await answer.body.getReader().read();
  }
}

/// Watches blog 42 from outside; `counts()` are all that were told. By two streams, begun one after the
/// other and each anew where it ends, so that one of them sees what happens while the other has ended.
async function watch(t, service) {
  const leaving = new AbortController();
  t.after(() => leaving.abort());
  const told = ["", ""];
  const follow = async (at) => {
    for (;;) {
      const answer = await fetch(`${service.url}/v1/watch?blog_id=42`, { signal: leaving.signal });
      for await (const bytes of answer.body) told[at] += Buffer.from(bytes);
    }
  };
  follow(0).catch(() => {});
  await new Promise((resolve) => setTimeout(resolve, 700));
  follow(1).catch(() => {});
  await until(() => told[1].includes("event: count"), true);
  return { counts: () => told.flatMap((text) => text.match(/\{"room".*\}/g).map((data) => JSON.parse(data))) };
}

describe("what pages live through", { concurrency: 5 }, () => {
  test("a page that goes into the back/forward cache is gone, and back when it is shown again", async (t) => {
    const { service, pages, start } = await reading(t);
    const tab = await start();
    await until(() => service.count(42), "1/1/0");
    await tab.evaluate(() => (window.same = true));
    await tab.goto(`${pages.url}/else`);
    await until(() => service.count(42), "0/0/0");
    // `commit`: a page out of the cache has no load event.
    await tab.goBack({ waitUntil: "commit" });
    await until(() => service.count(42), "1/1/0");
    assert.equal(await tab.evaluate(() => window.same), true, "it is the page out of the cache");
    await until(() => shown(tab), "1 reading now");
  });

  test("leaving is told at once, also where a broken stream would count on", async (t) => {
    const { service, proxy, start, pages } = await reading(t, { leave_grace: "1m" });
    const tab = await start();
    await until(() => service.count(42), "1/1/0");
    await tab.goto(`${pages.url}/else`);
    await until(() => service.count(42), "0/0/0");
    assert.ok(proxy.calls.some((call) => /^POST .*\/close$/.test(call)), "by a beacon");
  });

  test("offline the number goes, and online it is back", async (t) => {
    const { service, proxy, person, start } = await reading(t);
    const tab = await start();
    await until(() => shown(tab), "1 reading now");
    await person.context.setOffline(true);
    proxy.cut();
    await until(() => state(tab), "away");
    assert.equal(await shown(tab), "nobody knows");
    await until(() => service.count(42), "0/0/0");
    await person.context.setOffline(false);
    await until(() => shown(tab), "1 reading now");
  });

  test("a service that is killed and started again is found again", async (t) => {
    const { service, start } = await reading(t);
    const tab = await start();
    await until(() => shown(tab), "1 reading now");
    await service.kill();
    await until(() => state(tab), "away");
    await service.start();
    await until(() => service.count(42), "1/1/0", 20);
    await until(() => shown(tab), "1 reading now");
  });

  test("a service that drains is found again", async (t) => {
    const { service, start } = await reading(t);
    const tab = await start();
    await until(() => shown(tab), "1 reading now");
    await service.stop();
    await service.start();
    await until(() => service.count(42), "1/1/0", 20);
    await until(() => shown(tab), "1 reading now");
  });

  for (const [status, times] of [[503, 3], [401, 1], [429, 1]]) {
    test(`a ${status} is followed by other tries, later and later`, async (t) => {
      const { service, proxy, start } = await reading(t);
      let left = times;
      const tries = [];
      proxy.trouble = (request, path) => {
        if (path !== "/v1/join" || request.method !== "POST") return undefined;
        tries.push(Date.now());
        return left-- > 0 ? status : undefined;
      };
      const tab = await start();
      await until(() => state(tab), "away");
      await until(() => shown(tab), "1 reading now", 20);
      assert.equal(await service.count(42), "1/1/0");
      const waits = tries.slice(1).map((time, at) => time - tries[at]);
      // 0.5 to 1.5 s, then twice that, then twice that again.
      waits.forEach((wait, at) => assert.ok(wait >= 500 * 2 ** at, `waited ${waits} ms`));
    });
  }

  test("it does not come back before the service asks for it", async (t) => {
    const { proxy, start } = await reading(t);
    const tries = [];
    proxy.trouble = (request, path) => {
      if (path !== "/v1/join" || request.method !== "POST") return undefined;
      return tries.push(Date.now()) === 1 ? { status: 503, headers: { "retry-after": "3" } } : undefined;
    };
    const tab = await start();
    await until(() => shown(tab), "1 reading now");
    assert.ok(tries[1] - tries[0] >= 3000, `${tries[1] - tries[0]} ms`);
  });

  test("a stream that falls silent is opened anew, as the same connection", async (t) => {
    const { service, proxy, start } = await reading(t, { heartbeat: "1s" });
    const tab = await start();
    await until(() => shown(tab), "1 reading now");
    const connections = async () =>
      (await service.call("GET", "/v1/rooms/blog:42/connections")).connections.map(({ connection }) => connection);
    const [before] = await connections();
    proxy.mute();
    await until(() => proxy.times("GET /v1/stream"), 2, 15);
    await crowd(t, service, 1);
    await until(() => shown(tab), "2 reading now");
    assert.equal(proxy.times("POST /v1/join"), 1);
    assert.ok((await connections()).includes(before));
  });

  test("whoever is kicked stays away, with all tabs", async (t) => {
    const { service, proxy, start } = await reading(t);
    const tabs = [await start(), await start()];
    for (const tab of tabs) await until(() => shown(tab), "1 reading now");
    const [{ connection }] = (await service.call("GET", "/v1/rooms/blog:42/connections")).connections;
    await service.call("DELETE", `/v1/connections/${connection}`);
    for (const tab of tabs) await until(() => state(tab), "stopped");
    const third = await start();
    await until(() => state(third), "stopped");
    await third.reload();
    await until(() => state(third), "stopped");
    assert.deepEqual([proxy.times("GET /v1/stream"), await service.count(42)], [1, "0/0/0"]);
  });

  test("a ticket's end is the beginning of another's, and nobody sees it", async (t) => {
    const { service, proxy, start } = await reading(t, { ticket_ttl: "3s" });
    const tab = await start();
    await until(() => shown(tab), "1 reading now");
    await tab.evaluate(() => {
      window.states = [];
      new MutationObserver(() => window.states.push(document.querySelector("live-count").getAttribute("state")))
        .observe(document.querySelector("live-count"), { attributes: true });
    });
    await until(() => proxy.times("POST /v1/join") > 2, true, 20);
    assert.deepEqual([...new Set(await tab.evaluate(() => window.states))].filter((state) => state !== "live"), []);
    await until(() => service.count(42), "1/1/0");
  });

  for (const attribute of ["", "no-viewer"]) {
    test(`others see one viewer all the time while one ticket follows another${attribute && ", also without a stored id"}`, async (t) => {
      const { service, proxy, start } = await reading(t, { ticket_ttl: "6s" }, attribute);
      const tab = await start();
      await until(() => shown(tab), "1 reading now");
      const told = await watch(t, service);
      // Long enough for everybody to hear of a gap.
      proxy.lag = 200;
      await until(() => proxy.times("POST /v1/join") > 2, true, 25);
      await until(() => service.count(42), "1/1/0");
      assert.deepEqual([...new Set(told.counts().map(({ viewers }) => viewers))], [1]);
      assert.ok(told.counts().some(({ connections }) => connections === 2), "the next stream began before the last one ended");
    });
  }

  test("the word that the network is back disturbs no stream that works", async (t) => {
    const { service, proxy, start } = await reading(t);
    const tab = await start();
    await until(() => shown(tab), "1 reading now");
    await tab.evaluate(() => dispatchEvent(new Event("online")));
    // What it would open is there before this call is answered to the tab.
    await tab.evaluate((url) => fetch(`${url}/livez`), proxy.url);
    assert.equal(proxy.times("GET /v1/stream"), 1);
    await crowd(t, service, 1);
    await until(() => shown(tab), "2 reading now");
  });

  for (const [source, answer] of [
    ["leads to a page on which to log in", { status: 302, headers: { location: "/login" }, body: "" }],
    ["is a page", { body: "<!doctype html><title>Log in</title>" }],
    ["is empty", { type: "text/plain", body: "\n" }],
    ["fails", { status: 500, body: "" }],
    ["never answers", undefined],
    ["answers what is no token", { type: "text/plain", body: "nobody" }],
  ]) {
    test(`a source of tokens that ${source} costs nobody the number`, async (t) => {
      const service = await serve(t);
      const html = page(service, blog(42, 'token="/token"'));
      const pages = await site(t, { "/": html, "/login": "<title>Log in</title>", "/token": () => answer ?? new Promise(() => {}) });
      const tab = await (await reader(t)).open(pages.url);
      await until(() => shown(tab), "1 reading now", 25);
      assert.equal(await service.count(42), "1/1/0");
    });
  }

  for (const kind of ["a function", "an address"]) {
    test(`a reader's token comes from ${kind}, and a new one prolongs the stream`, async (t) => {
      const service = await serve(t);
      const proxy = await front(t, service);
      let given = 0;
      const token = () => {
        given += 1;
        return { body: `${service.token("7", { ttl: "9s" })}\n`, type: "text/plain" };
      };
      const source = kind === "a function" ? "readersToken" : "/token";
      const script = '<script>async function readersToken() { return (await fetch("/token")).text(); }</script>';
      const html = page(proxy, `${blog(42, `token="${source}"`)}${script}`, `${proxy.url}/widget.js`);
      const pages = await site(t, { "/": html, "/token": token });
      const tab = await (await reader(t)).open(pages.url);
      await until(() => service.count(42), "1/1/1");
      await until(() => given > 1, true, 20);
      await until(() => proxy.calls.some((call) => call.endsWith("/renew")), true);
      assert.equal(await service.count(42), "1/1/1");
      assert.deepEqual([proxy.times("POST /v1/join"), proxy.times("GET /v1/stream")], [1, 1]);
      assert.equal(await shown(tab), "1 reading now");
    });
  }

  test("another reader's token is another connection", async (t) => {
    const service = await serve(t);
    let user = "7";
    const token = () => ({ body: service.token(user, { ttl: user === "7" ? "4s" : "1h" }), type: "text/plain" });
    const pages = await site(t, { "/": page(service, blog(42, 'token="/token"')), "/token": token });
    await (await reader(t)).open(pages.url);
    const users = async () => (await service.call("GET", "/v1/rooms/blog:42/connections")).connections.map((one) => one.user_id).join();
    await until(users, "7");
    user = "8";
    await until(users, "8", 20);
  });

  test("a page that is prerendered is counted when it is shown", async (t) => {
    const { service, proxy, pages, person } = await reading(t);
    const tab = await person.context.newPage();
    // Under remote control browsers do not prerender, so the page is told that it is.
    await tab.addInitScript(() => Object.defineProperty(document, "prerendering", { value: true, configurable: true }));
    await tab.goto(pages.url);
    await until(() => state(tab), "waiting");
    // Longer than any page takes from its counter to its join.
    await new Promise((resolve) => setTimeout(resolve, 500));
    assert.deepEqual([proxy.times("POST /v1/join"), await service.streams()], [0, 0]);
    await tab.evaluate(() => {
      delete document.prerendering;
      document.dispatchEvent(new Event("prerenderingchange"));
    });
    await until(() => service.count(42), "1/1/0");
  });
});
