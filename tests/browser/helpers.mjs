// What the tests share: the real service, small sites of other origins, a proxy that misbehaves,
// and the browser. Everything listens on a loopback port of its own and ends with its test.

import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import path from "node:path";
import { createInterface } from "node:readline";
import { after } from "node:test";

const { LIVECOUNT, CHROMIUM, BROWSER_MODULES, SCREENSHOTS } = process.env;
if (!BROWSER_MODULES) throw new Error("Run these tests by tests/browser/run.");
const require = createRequire(path.join(BROWSER_MODULES, "package.json"));
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const SECRET = "the-secret-of-the-browser-tests-has-32-bytes";

/// The running service. `settings` are those of the README, without `LIVECOUNT_`, in lower case.
export async function serve(t, settings = {}) {
  const service = new Service(settings);
  t.after(() => service.kill());
  await service.start();
  return service;
}

class Service {
  #settings;
  #process;

  constructor(settings) {
    this.#settings = {
      listen: "127.0.0.1:0", jwt_secret: SECRET, push_interval: "10ms", drain: "1s", demo: "true", ...settings,
    };
  }

  /// Starts the process; on the port that it had, if it ran before.
  async start() {
    const env = { ...process.env };
    for (const [name, value] of Object.entries(this.#settings)) env[`LIVECOUNT_${name.toUpperCase()}`] = value;
    env.LIVECOUNT_LOG_FORMAT = "json";
    this.#process = spawn(LIVECOUNT, ["serve"], { env, stdio: ["ignore", "ignore", "pipe"] });
    const expected = this.#settings.ops_listen ? 2 : 1;
    const urls = [];
    const said = [];
    const lines = createInterface({ input: this.#process.stderr });
    await new Promise((resolve, reject) => {
      lines.on("line", (line) => {
        said.push(line);
        const { url } = JSON.parse(line);
        if (url && urls.push(url) === expected) resolve();
      });
      this.#process.once("exit", () => reject(new Error(`livecount did not start:\n${said.join("\n")}`)));
    });
    [this.url, this.opsUrl] = urls;
    this.#settings.listen = new URL(this.url).host;
  }

  /// Ends the process without a word to anybody.
  async kill(signal = "SIGKILL") {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    this.#process.kill(signal);
    await once(this.#process, "exit");
  }

  /// Ends it as an operator does: streams are drained.
  stop() {
    return this.kill("SIGTERM");
  }

  /// A signed token.
  token(sub, { scope, rooms, ttl = "1h" } = {}) {
    const flags = ["token", "--sub", sub, "--ttl", ttl];
    if (scope) flags.push("--scope", scope);
    if (rooms) flags.push("--rooms", rooms);
    const env = { ...process.env, LIVECOUNT_JWT_SECRET: SECRET };
    return execFileSync(LIVECOUNT, flags, { env, encoding: "utf8" }).trim();
  }

  /// Calls as a back end does, by default as an admin; the answer's JSON, or its status.
  async call(method, at, { body, token = this.token("tests", { scope: "admin" }) } = {}) {
    const headers = { authorization: `Bearer ${token}`, ...(body && { "content-type": "application/json" }) };
    const answer = await fetch(this.url + at, { method, headers, body: body && JSON.stringify(body) });
    const text = await answer.text();
    return text ? JSON.parse(text) : answer.status;
  }

  /// A blog's numbers as `viewers/connections/members`.
  async count(blog) {
    const { viewers, connections, members } = await this.call("GET", `/v1/blogs/${blog}/count`);
    return `${viewers}/${connections}/${members}`;
  }

  /// Open streams.
  async streams() {
    return (await this.call("GET", "/v1/stats")).connections;
  }
}

/// A site: pages by path, each `{body, type?, headers?, status?}`, an HTML text, or a function of
/// the request that answers one of these, or a promise of it. Its `url` is an origin of its own.
export async function site(t, pages) {
  const answer = async (request) => {
    const page = pages[new URL(request.url, "http://site").pathname];
    const found = typeof page === "function" ? await page(request) : page;
    return typeof found === "string" ? { body: found } : (found ?? { status: 404, body: "" });
  };
  const server = http.createServer(async (request, response) => {
    const { status = 200, type = "text/html; charset=utf-8", headers, body } = await answer(request);
    response.writeHead(status, { "content-type": type, ...headers }).end(body);
  });
  const port = await listen(t, server);
  return { url: `http://127.0.0.1:${port}`, named: (host) => `http://${host}:${port}` };
}

/// A proxy in front of the service. `calls` are the requests that came, as `POST /v1/join`;
/// `trouble(request)` may answer in the service's place, by a status or by `{status, headers}`;
/// `mute()` withholds from now on what the service says on the streams that are open, and their reader
/// sees no end; each request goes on after `lag` milliseconds.
export async function front(t, service) {
  const proxy = { calls: [], trouble: () => undefined, lag: 0 };
  const open = new Set();
  proxy.mute = () => open.clear();
  const server = http.createServer(async (request, response) => {
    const { pathname } = new URL(request.url, service.url);
    proxy.calls.push(`${request.method} ${pathname}`);
    const trouble = proxy.trouble(request, pathname);
    if (trouble) {
      const { status, headers } = typeof trouble === "number" ? { status: trouble } : trouble;
      const cors = { "access-control-allow-origin": "*", "access-control-expose-headers": "Retry-After" };
      response.writeHead(status, { "content-type": "application/problem+json", ...cors, ...headers });
      response.end(JSON.stringify({ status, code: "of_the_proxy" }));
      return;
    }
    if (proxy.lag) await new Promise((resolve) => setTimeout(resolve, proxy.lag));
    const onward = http.request(service.url + request.url, { method: request.method, headers: request.headers });
    onward.on("response", (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      response.flushHeaders();
      open.add(response);
      answer.on("data", (bytes) => open.has(response) && response.write(bytes));
      answer.on("close", () => open.delete(response) && response.end());
    });
    onward.on("error", () => response.destroy());
    response.on("close", () => onward.destroy());
    request.pipe(onward);
  });
  /// Ends all connections that there are.
  proxy.cut = () => server.closeAllConnections();
  const port = await listen(t, server);
  proxy.url = `http://127.0.0.1:${port}`;
  proxy.times = (call) => proxy.calls.filter((made) => made === call).length;
  return proxy;
}

async function listen(t, server) {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return server.address().port;
}

let launched;
after(async () => (await launched)?.close());

/// The browser, one for all tests of a file. Names that end in `.test` are this machine, and as
/// such no secure context, as `127.0.0.1` is.
export function browser() {
  launched ??= chromium.launch({
    executablePath: CHROMIUM,
    args: ["--host-resolver-rules=MAP *.test 127.0.0.1", ...(process.getuid?.() === 0 ? ["--no-sandbox"] : [])],
    // What readers have, tests must have.
    ignoreDefaultArgs: ["--disable-back-forward-cache"],
  });
  return launched;
}

/// One person's browser: its tabs share storage, and nothing with others. `options` are those of
/// Playwright's newContext. What scripts fail at, and what a policy blocked, fails the test.
export async function reader(t, options = {}) {
  const context = await (await browser()).newContext(options);
  const faults = [];
  context.on("weberror", (error) => faults.push(error.error().stack));
  context.on("console", (message) => {
    if (/Content.Security.Policy/i.test(message.text())) faults.push(message.text());
  });
  t.after(async () => {
    await context.close();
    if (faults.length) throw new Error(`faults in the page:\n${faults.join("\n")}`);
  });
  return {
    context,
    /// A new tab at this address.
    async open(url) {
      const page = await context.newPage();
      await page.goto(url);
      return page;
    },
  };
}

/// Waits until `look` answers `expected`, or, where that is a function, until it holds.
export async function until(look, expected, seconds = 10) {
  const holds = typeof expected === "function" ? expected : (found) => found === expected;
  const deadline = Date.now() + seconds * 1000;
  for (let found; ; ) {
    try {
      found = await look();
      if (holds(found)) return found;
    } catch (error) {
      found = error;
    }
    if (Date.now() > deadline) {
      throw new Error(`expected ${expected}, found ${found instanceof Error ? found.stack : JSON.stringify(found)}`);
    }
    await new Promise((next) => setTimeout(next, 20));
  }
}

/// The serious and critical faults that axe-core finds, as text; none is the empty list.
export async function axe(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  return serious.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ target }) => target).join(", ")}`);
}

/// Writes target/screenshots/{name}.png: of the window, a locator, or with `{fullPage: true}` all.
export function screenshot(what, name, options = {}) {
  return what.screenshot({ path: path.join(SCREENSHOTS, `${name}.png`), animations: "disabled", ...options });
}

/// A page with this body, on which the service's widget is loaded.
export function page(service, body, script = `${service.url}/widget.js`) {
  return `<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title>
    <link rel="icon" href="data:,"><script type="module" src="${script}"></script><h1>A page</h1>${body}</html>`;
}

/// What a counter shows: its number's text, its slot while there is none, nothing if hidden.
export function shown(tab, selector = "live-count") {
  return tab.evaluate((selector) => {
    const counter = document.querySelector(selector);
    const parts = [counter, ...counter.shadowRoot.querySelectorAll("[part=text], slot")];
    const [host, ...seen] = parts.map((part) => getComputedStyle(part).display !== "none" && part);
    const texts = seen.map((part) => part && (part.localName === "slot" ? counter : part).textContent);
    return host ? texts.filter(Boolean).join().trim() : "";
  }, selector);
}
