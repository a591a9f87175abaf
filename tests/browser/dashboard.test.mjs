// The dashboard at `/dashboard`.

import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { test } from "node:test";
import { axe, front, reader, screenshot, serve, until } from "./helpers.mjs";

/// Opens that many streams by bare sockets, as a load generator does, and waits until each one is
/// greeted. `said` is what they were sent, by stream.
async function crowd(t, service, query, size, token) {
  const { hostname, port } = new URL(service.url);
  const bearer = token ? `Authorization: Bearer ${token}\r\n` : "";
  const head = `GET /v1/stream?${query} HTTP/1.1\r\nHost: ${hostname}\r\n${bearer}\r\n`;
  const sockets = Array.from({ length: size }, () => net.connect(port, hostname, function () { this.write(head); }));
  const said = sockets.map(() => "");
  const leave = (number = sockets.length) => sockets.splice(0, number).forEach((socket) => socket.destroy());
  t.after(() => leave());
  await Promise.all(sockets.map(async (socket, index) => {
    const greeted = once(socket, "data");
    socket.on("error", () => {});
    socket.on("data", (bytes) => { said[index] += bytes; });
    await greeted;
  }));
  return { leave, said };
}

/// Has the page told of an hour and more before the minute in which the test began: nobody waits for
/// one. What the service recorded since stays as it is.
async function recall(page) {
  await page.route("**/history?*", async (route) => {
    const response = await route.fetch();
    const told = await response.json();
    const asked = Number(new URL(route.request().url()).searchParams.get("minutes"));
    const { viewers, connections } = told.now;
    const begin = Date.parse(told.steps[0].at);
    const before = Array.from({ length: asked - told.steps.length }, (_, index) => {
      const at = begin - (asked - told.steps.length - index) * 60_000;
      const swell = 0.75 + 0.2 * Math.sin(at / 7e5 + viewers) + 0.05 * Math.sin(at / 9e4);
      const range = (now) => ({
        min: Math.floor(now * swell * 0.93), mean: now * swell, max: Math.ceil(now * swell * 1.05),
      });
      return { at: new Date(at).toISOString(), seconds: 60, viewers: range(viewers), connections: range(connections) };
    });
    const steps = [...before, ...told.steps];
    const top = steps.reduce((top, step) => (step.viewers.max > top.viewers.max ? step : top));
    const peak = { viewers: top.viewers.max, at: top.at };
    await route.fulfill({ response, json: { ...told, from: steps[0].at, peak, steps } });
  });
}

/// Opens the dashboard, signed in with a token of this scope; the tab.
async function signIn(t, service, { scope = "read", options, at = "/dashboard", prepare, ...token } = {}) {
  const page = await (await reader(t, options)).open((service.opsUrl ?? service.url) + at);
  await prepare?.(page);
  await page.fill("#token", service.token("editor", { scope, ...token }));
  await page.click("#sign-in-button");
  await page.waitForSelector("#view h1");
  return page;
}

const text = (page, selector) => page.locator(selector).first().textContent();
const rooms = (page) => page.locator(".rooms tbody th").allTextContents();
const state = (page) => page.getAttribute("#state", "data-state");

test("a token that does not serve is refused with the reason, and one that does is let in", async (t) => {
  const service = await serve(t);
  const page = await (await reader(t)).open(`${service.url}/dashboard`);
  const [head, payload] = service.token("7", { scope: "read" }).split(".");
  for (const [given, reason] of [
    ["", /paste a token/i],
    ["hello", /three parts/],
    ["lct1.abc", /ticket/],
    [`${head}.${payload}.AAAA`, /does not accept/],
    [service.token("7", { scope: "publish manage" }), /lacks the scope read/],
  ]) {
    await page.fill("#token", given);
    await page.click("#sign-in-button");
    await until(() => text(page, "#token-error"), (said) => reason.test(said));
    assert.equal(await page.getAttribute("#token", "aria-invalid"), "true");
    assert.equal(await page.isVisible("#view"), false);
  }
  await page.fill("#token", `Bearer ${service.token("7", { scope: "read" })}\n`);
  await page.keyboard.press("Enter");
  await page.waitForSelector("#view h1");
  await until(() => text(page, "dd.viewers"), /\d/.test.bind(/\d/));
});

test("a token that expires while the page is open leads back to the form, which says so", async (t) => {
  const service = await serve(t);
  const page = await signIn(t, service);
  const expired = { status: 401, code: "token_expired", detail: "The token has expired." };
  await page.route("**/v1/stats", (route) => route.fulfill({
    status: 401, contentType: "application/problem+json", body: JSON.stringify(expired),
  }));
  await page.waitForSelector("#sign-in:visible");
  assert.match(await text(page, "#token-error"), /expired/);
  assert.equal(await page.evaluate(() => document.activeElement.id), "token");
});

test("the token stands in no address and in no storage that outlives the tab", async (t) => {
  const service = await serve(t);
  const { context, open } = await reader(t);
  const page = await open(`${service.url}/dashboard`);
  const token = service.token("editor", { scope: "read" });
  const addresses = [];
  context.on("request", (request) => addresses.push(request.url()));
  const kept = () => page.evaluate(() => [
    location.href, document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage),
    document.querySelector("#token").value,
  ].join("\n"));

  await page.fill("#token", token);
  await page.click("#sign-in-button");
  await page.waitForSelector("#view h1");
  assert.ok(!(await kept()).includes(token), "it is kept in memory alone");
  await page.reload();
  await page.waitForSelector("#sign-in:visible");

  await page.fill("#token", token);
  await page.check("#keep");
  await page.click("#sign-in-button");
  await page.waitForSelector("#view h1");
  await page.reload();
  await page.waitForSelector("#view h1");
  assert.deepEqual(await page.evaluate(() => [localStorage.length, document.cookie]), [0, ""]);
  const other = await open(`${service.url}/dashboard`);
  await other.waitForSelector("#sign-in:visible");
  await other.close();

  await page.click("#sign-out");
  assert.ok(!(await kept()).includes(token), "signing out forgets it");
  await page.reload();
  await page.waitForSelector("#sign-in:visible");
  assert.ok(addresses.length > 10);
  assert.deepEqual(addresses.filter((address) => address.includes(token)), []);
  const state = await context.storageState({ indexedDB: true });
  assert.deepEqual([state.cookies, state.origins], [[], []]);
});

test("plot and table follow a thousand viewers, without a reload", async (t) => {
  const service = await serve(t);
  const page = await signIn(t, service);
  await until(() => text(page, ".empty"), (said) => said.startsWith("Nobody is reading"));
  await page.evaluate(() => { globalThis.sameDocument = true; });
  const [many] = await Promise.all([
    crowd(t, service, "blog_id=42", 700), crowd(t, service, "blog_id=7", 300),
  ]);
  // The one beside them is whoever looks.
  await until(() => text(page, "dd.viewers"), "1,001");
  await until(() => rooms(page), (found) => found.join() === "blog:42,blog:7");
  assert.equal(await text(page, ".rooms td.strong"), "700");
  await until(() => text(page, ".rooms td.peaks"), (peak) => peak.startsWith("700 at "));
  await until(() => page.getAttribute(".plot", "aria-label"), (said) => said.includes("and 1,001"));
  // Drawn as high as the axis says: the last point against the ticks above and below it.
  const height = await page.evaluate(() => {
    const ticks = [...document.querySelectorAll(".plot .y")].map((tick) => [
      Number(tick.textContent.replace(",", "")), Number(tick.getAttribute("y")) - 4,
    ]);
    const [[low, bottom], [high, top]] = [ticks[0], ticks.at(-1)];
    const y = Number(document.querySelector(".plot .last").getAttribute("cy"));
    return low + ((bottom - y) / (bottom - top)) * (high - low);
  });
  assert.ok(Math.abs(height - 1001) < 1, `drawn at ${height}`);
  assert.ok(await page.locator(".plot .band").count() > 0 && await page.locator(".spark .mean").count() > 0);
  await page.click(".figures summary");
  await until(() => text(page, ".figures td:nth-of-type(4)"), "1,001");

  many.leave(600);
  await until(() => rooms(page), (found) => found.join() === "blog:7,blog:42");
  await until(() => text(page, "dd.viewers"), "401");
  assert.ok(await page.evaluate(() => globalThis.sameDocument));
});

test("a count on the screen changes at once by the stream, between two rounds of calls", async (t) => {
  const service = await serve(t);
  const one = await crowd(t, service, "blog_id=42", 1);
  const page = await signIn(t, service);
  await until(() => state(page), "live");
  await page.waitForSelector(".rooms tbody tr");
  await page.route("**/v1/rooms?*", () => {});
  await crowd(t, service, "blog_id=42", 4);
  await until(() => text(page, ".rooms td.strong"), "5");
  one.leave();
  await until(() => text(page, ".rooms td.strong"), "4");
});

test("it is called live only while all rooms on the screen are watched, and never tries in vain for long", async (t) => {
  const service = await serve(t);
  const name = (at) => `${String(at).padStart(3, "0")}-how-to-bake-good-bread-at-home-in-a-small-kitchen-in-summer`;
  await Promise.all(Array.from({ length: 60 }, (_, at) => crowd(t, service, `blog_id=${name(at)}`, 1)));
  const answers = [];
  const listen = (page) => page.on("response", (answer) => answer.url().endsWith("/v1/join") && answers.push(answer.status()));
  const page = await signIn(t, service, { prepare: listen });
  await until(() => state(page), "live");
  for (const shown of [40, 60]) {
    await page.click("text=Show more");
    await until(() => page.locator(".rooms tbody tr").count(), shown);
  }
  await until(() => state(page), "poll");
  assert.equal(await text(page, "#state-text"), "Updated every 2 s");
  await until(() => answers, () => answers.includes(400) && answers.at(-1) === 200, 15);
  // What is not watched is asked for.
  await crowd(t, service, `blog_id=${name(59)}`, 2);
  await until(() => text(page, `tr:has(a[href$="${name(59)}"]) td.strong`), "3");
  await page.fill("#search", "00");
  await until(() => page.locator(".rooms tbody tr").count(), 10);
  await until(() => state(page), "live", 15);
  // Half of sixty fit, and that is remembered.
  assert.equal(answers.filter((status) => status === 400).length, 1);
});

test("rows stay where they are, and focus too, while the table is used", async (t) => {
  const service = await serve(t);
  await crowd(t, service, "blog_id=1", 3);
  await crowd(t, service, "blog_id=2", 2);
  const page = await signIn(t, service);
  await until(() => rooms(page), (found) => found.join() === "blog:1,blog:2");
  await page.focus('a[href$="blog%3A2"]');
  await crowd(t, service, "blog_id=2", 5);
  await crowd(t, service, "blog_id=3", 4);
  await until(() => rooms(page), (found) => found.join() === "blog:1,blog:2,blog:3");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "blog:2");
  await page.focus("#search");
  await until(() => rooms(page), (found) => found.join() === "blog:2,blog:3,blog:1");
});

test("the search finds rooms by how their names begin, and leads to those where nobody is", async (t) => {
  const service = await serve(t, { anonymous_rooms: "blog:*,match:*" });
  for (const query of ["blog_id=42", "blog_id=421", "blog_id=7", "room=match:12"]) await crowd(t, service, query, 1);
  const page = await signIn(t, service);
  await until(() => rooms(page), (found) => found.length === 4);
  await page.fill("#search", "42");
  await until(() => rooms(page), (found) => found.join() === "blog:42,blog:421");
  await page.fill("#search", "match:");
  await until(() => rooms(page), (found) => found.join() === "match:12");
  await page.fill("#search", "no such name");
  await until(() => page.isVisible(".empty"), true);
  assert.equal(await state(page), "live", "what is no name is no fault");
  await page.fill("#search", "43");
  await page.click("#search-hint a");
  await until(() => text(page, "#view h1"), "blog:43");
  assert.equal(await page.title(), "blog:43 · livecount");
  await until(() => text(page, "dd.viewers"), "0");
});

test("a room's page shows its numbers, its plot and its connections, page by page", async (t) => {
  const service = await serve(t);
  await crowd(t, service, "blog_id=42", 28);
  await crowd(t, service, "blog_id=42", 2, service.token("ann"));
  const page = await signIn(t, service, { at: "/dashboard#/room/blog%3A42" });
  await until(() => page.locator("dd").allTextContents(), (found) => found.join() === "29,30,1");
  await until(() => text(page, "#connections-page"), "1 to 25 of 30");
  await until(() => page.getAttribute(".plot", "aria-label"), (said) => said.includes("and 29"));
  await page.click("text=Next page");
  await until(() => text(page, "#connections-page"), "26 to 30 of 30");
  assert.equal(await page.locator(".connections tbody tr").count(), 5);
  await page.click("text=Previous page");
  await until(() => text(page, "#connections-page"), "1 to 25 of 30");
  await page.goto(`${service.url}/dashboard#/room/user%3Aann`);
  await until(() => page.locator(".connections tbody tr").count(), 2);
  assert.equal(await page.locator(".plot").count(), 0, "nobody keeps the history of one reader");
  await page.goto(`${service.url}/dashboard#/room/nonsense`);
  await until(() => text(page, ".overview .error"), "nonsense is no room's name.");
});

test("a wrong clock of who looks moves neither plot nor times", async (t) => {
  const service = await serve(t);
  await crowd(t, service, "blog_id=42", 2);
  const hurry = (page) => page.evaluate(() => {
    const right = Date.now;
    Date.now = () => right() + 3 * 3_600_000;
  });
  const page = await signIn(t, service, { prepare: hurry, at: "/dashboard#/room/blog%3A42" });
  await until(() => page.locator(".connections time").count(), 2);
  assert.match(await text(page, ".connections time"), /^\d+ s$/);
  await until(() => page.getAttribute(".plot", "aria-label"), (said) => said.includes("and 2"));
  assert.equal(await page.isVisible("#notice"), false, "the token holds for an hour");
});

test("a connection is ended after a question, and focus stays in the table", async (t) => {
  const service = await serve(t);
  await crowd(t, service, "blog_id=42", 3);
  const page = await signIn(t, service, { scope: "read manage", at: "/dashboard#/room/blog%3A42" });
  await until(() => page.locator(".connections tbody tr").count(), 3);
  await page.click(".action button >> nth=1");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Cancel");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "End…");
  assert.equal(await service.count("42"), "3/3/0");
  await page.keyboard.press("Enter");
  await page.fill("#kick-block", "1.5");
  await page.click("text=End it");
  await until(() => text(page, "dialog .error"), (said) => said.includes("whole number"));
  await page.fill("#kick-block", "5");
  await page.click("text=End it");
  await until(() => service.count("42"), "2/2/0");
  await until(() => page.locator(".connections tbody tr").count(), 2);
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "End…");
  await until(() => text(page, "#said"), "The connection is ended.");
});

test("all connections of one reader are ended at once", async (t) => {
  const service = await serve(t);
  const ann = service.token("ann");
  const tabs = await crowd(t, service, "blog_id=42", 2, ann);
  await crowd(t, service, "blog_id=7", 1, ann);
  const page = await signIn(t, service, { scope: "read manage", at: "/dashboard#/room/blog%3A42" });
  await page.click(".action button >> nth=0");
  await page.check("text=All connections of user ann");
  await page.click("text=End it");
  await until(() => page.isVisible("text=Nobody is connected to this room right now."), true);
  await until(() => tabs.said.every((said) => said.includes('{"reason":"kicked"}')), true);
  assert.equal(await service.count("7"), "0/0/0");
});

test("a message reaches everybody in the room, once", async (t) => {
  const service = await serve(t);
  const { said } = await crowd(t, service, "blog_id=42", 2);
  const page = await signIn(t, service, { scope: "read publish", at: "/dashboard#/room/blog%3A42" });
  await until(() => page.isVisible("text=Goes to 2 connections."), true);
  for (const [event, data, reason] of [
    ["1st", "{}", /letter/], ["message", "{oops", /no JSON/], ["ping", "{}", /./],
  ]) {
    await page.fill("#message-event", event);
    await page.fill("#message-data", data);
    await page.click("text=Send >> nth=-1");
    await until(() => text(page, "#message-error"), (found) => reason.test(found));
  }
  await page.fill("#message-event", "notice");
  await page.fill("#message-data", '{"text": "<b>Back in five minutes</b>"}');
  // The answer to the first try is lost; the second is the same message.
  let tries = 0;
  await page.route("**/messages", async (route) => {
    if (tries++ > 0) return route.continue();
    await route.fetch();
    await route.abort();
  });
  await page.click("text=Send >> nth=-1");
  await until(() => text(page, "#message-error"), (found) => found.includes("does not answer"));
  await page.click("text=Send >> nth=-1");
  await until(() => text(page, ".sent"), "It had been sent before.");
  const data = 'data: {"room":"blog:42","data":{"text":"<b>Back in five minutes</b>"}}';
  await until(() => said.every((all) => all.includes("event: notice") && all.includes(data)), true);
  assert.deepEqual(said.map((all) => all.split(data).length - 1), [1, 1]);
});

test("nobody is offered what their token does not say", async (t) => {
  const service = await serve(t);
  await crowd(t, service, "blog_id=42", 1);
  const page = await (await reader(t)).open(`${service.url}/dashboard#/room/blog%3A42`);
  for (const [token, kicks, publishes] of [
    [{ scope: "read" }, false, false],
    [{ scope: "read manage" }, true, false],
    [{ scope: "read publish" }, false, true],
    [{ scope: "admin" }, true, true],
    [{ scope: "admin", rooms: "match:*" }, false, false],
  ]) {
    await page.fill("#token", service.token("editor", token));
    await page.click("#sign-in-button");
    await page.waitForSelector(".connections tbody tr");
    const offered = [await page.isVisible(".action button"), await page.isVisible("#message-data")];
    assert.deepEqual(offered, [kicks, publishes], JSON.stringify(token));
    await page.click("#sign-out");
  }
});

test("numbers are called stale while the service is away, and live when it is back", async (t) => {
  const service = await serve(t);
  const page = await signIn(t, service);
  await crowd(t, service, "blog_id=42", 2);
  await until(() => state(page), "live");
  await service.kill();
  await until(() => state(page), "stale");
  assert.match(await text(page, "#state-text"), /^Stale since \d\d:\d\d:\d\d\. The service does not answer\.$/);
  await until(() => text(page, "#said"), (said) => said.startsWith("The numbers are stale"));
  assert.equal(await text(page, ".rooms td.strong"), "2", "the last number stays");
  await service.start();
  await crowd(t, service, "blog_id=42", 3);
  await page.click("#try-now");
  await until(() => state(page), "live");
  await until(() => text(page, ".rooms td.strong"), "3");
});

test("a page that nobody looks at asks nothing", async (t) => {
  const service = await serve(t);
  await crowd(t, service, "blog_id=42", 1);
  const proxy = await front(t, service);
  const page = await signIn(t, { url: proxy.url, token: service.token.bind(service) });
  await until(() => state(page), "live");
  const show = (shown) => page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }, !shown);
  await show(false);
  assert.equal(await text(page, "#state-text"), "Paused");
  const asked = proxy.calls.length;
  // A little more than a beat: what was to come would have come.
  await new Promise((next) => setTimeout(next, 2_500));
  assert.equal(proxy.calls.length, asked);
  await show(true);
  await until(() => proxy.calls.length > asked, true, 1);
  await until(() => state(page), "live");
});

test("nodes are shown where there are several, and what is partial as such", async (t) => {
  const service = await serve(t);
  await crowd(t, service, "blog_id=42", 1);
  const page = await signIn(t, service);
  await page.waitForSelector(".rooms tbody tr");
  assert.equal(await page.isVisible(".nodes"), false, "one node is no news");
  const alter = (path, change) => page.route(path, async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, json: change(await response.json()) });
  });
  await alter("**/v1/stats", (stats) => ({
    ...stats, partial: true,
    nodes: [12, 9_000].map((lag_ms, n) => ({ ...stats.nodes[0], name: `web-${n + 1}`, lag_ms })),
  }));
  await alter("**/v1/rooms?*", ({ rooms, ...page }) => ({
    ...page, rooms: rooms.map((count) => ({ ...count, partial: true })),
  }));
  await until(() => page.locator(".nodes tbody th, .nodes tbody td:nth-of-type(1)").allTextContents(),
    (found) => found.join() === "web-1,well,web-2,lagging");
  await until(() => page.isVisible("text=these are too low"), true);
  await page.waitForSelector(".rooms tr.partial");
});

test("the dashboard is on the operators' listener alone, where there is one", async (t) => {
  const service = await serve(t, { ops_listen: "127.0.0.1:0" });
  for (const path of ["/dashboard", "/dashboard/main.js"]) {
    assert.equal((await fetch(service.url + path)).status, 404);
  }
  await crowd(t, service, "blog_id=42", 2);
  const page = await signIn(t, service);
  await until(() => rooms(page), (found) => found.join() === "blog:42");
  await until(() => state(page), "live");
});

test("it works by keyboard alone", async (t) => {
  const service = await serve(t);
  await crowd(t, service, "blog_id=42", 2);
  const page = await (await reader(t)).open(`${service.url}/dashboard`);
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.textContent);
  await until(focused, "token");
  await page.keyboard.insertText(service.token("editor", { scope: "read" }));
  await page.keyboard.press("Enter");
  await until(focused, "main");
  await page.waitForSelector(".rooms tbody tr");
  const tabTo = async (name) => {
    for (let presses = 0; (await focused()) !== name; presses += 1) {
      assert.ok(presses < 20, `Tab reaches ${name}`);
      await page.keyboard.press("Tab");
    }
  };
  await tabTo("blog:42");
  await page.keyboard.press("Enter");
  await until(focused, "blog:42");
  await until(() => page.title(), "blog:42 · livecount");
  await page.evaluate(() => document.activeElement.blur());
  await tabTo("skip");
  await page.keyboard.press("Enter");
  assert.equal(await focused(), "main");
  assert.equal(await text(page, "#view h1"), "blog:42", "the skip link leads to no other page");
});

test("axe finds no serious fault; three widths, light and dark", async (t) => {
  const service = await serve(t);
  for (const [blog, size] of [["42", 60], ["breakfast-in-berlin", 24], ["7", 9], ["a-long-slug-of-a-post-in-many-words", 3]]) {
    await crowd(t, service, `blog_id=${blog}`, size);
  }
  await crowd(t, service, "blog_id=42&viewer=a-tablet", 1);
  await crowd(t, service, "blog_id=42", 2, service.token("ann"));
  for (const [width, height, colorScheme] of [
    [390, 844, "light"], [390, 844, "dark"], [820, 1100, "dark"], [1280, 900, "light"], [1280, 900, "dark"],
  ]) {
    const options = { colorScheme, viewport: { width, height }, reducedMotion: "reduce" };
    const page = await signIn(t, service, { scope: "read manage publish", options, prepare: recall });
    const look = async (name) => {
      await screenshot(page, `dashboard-${name}-${width}-${colorScheme}`, { fullPage: name !== "question" });
      // Colours are the same at every width, and what is where is the same in every colour.
      if (colorScheme === (width === 390 ? "light" : "dark") && width !== 820) {
        assert.deepEqual(await axe(page), [], `${name}, ${width} wide, ${colorScheme}`);
      }
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.equal(overflow, 0, `${name} is as wide as the window of ${width}`);
    };
    await until(() => page.locator(".spark .mean").count(), 4);
    await until(() => state(page), "live");
    await look("overview");
    await page.click("text=breakfast-in-berlin");
    await until(() => page.locator(".connections tbody tr").count(), 24);
    await until(() => page.locator(".plot .mean").count(), 1);
    await look("room");
    if (width !== 820) {
      await page.click(".action button >> nth=0");
      await look("question");
      await page.keyboard.press("Escape");
      await page.click("#sign-out");
      await look("sign-in");
    }
    await page.close();
  }
});
