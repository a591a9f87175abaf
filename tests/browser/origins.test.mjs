// Pages of other origins: with and without credentials, under strict policies.

import assert from "node:assert/strict";
import { test } from "node:test";
import { page, reader, serve, shown, site, until } from "./helpers.mjs";

const counter = (rest = "") => `<live-count blog-id="42" ${rest}>–</live-count>`;

test("a page of any origin counts its readers, without cookies", async (t) => {
  const service = await serve(t);
  const pages = await site(t, { "/": page(service, counter()) });
  const { context, open } = await reader(t);
  await context.addCookies([{ name: "livecount_token", value: service.token("7"), url: service.url }]);
  const tab = await open(pages.url);
  await until(() => shown(tab), "1 reading now");
  assert.equal(await service.count(42), "1/1/0");
});

test("a page of a listed origin may send the reader's cookie, and one that is not listed may not", async (t) => {
  const html = {};
  const pages = await site(t, { "/": () => html.body });
  const stranger = await site(t, { "/": () => html.body });
  const service = await serve(t, { cors_origins: pages.url });
  html.body = page(service, counter('credentials="include"'));
  const { context, open } = await reader(t);
  await context.addCookies([{ name: "livecount_token", value: service.token("7"), url: service.url }]);
  const tab = await open(pages.url);
  await until(() => shown(tab), "1 reading now");
  assert.equal(await service.count(42), "1/1/1");
  const refused = await open(stranger.url);
  // Not even the script is for it.
  assert.equal(await refused.evaluate(() => customElements.get("live-count")), undefined);
  assert.equal(await service.count(42), "1/1/1");
});

test("with the service under the page's own origin the cookie goes along unasked", async (t) => {
  const service = await serve(t);
  const { context, open } = await reader(t);
  await context.addCookies([{ name: "livecount_token", value: service.token("7"), url: service.url }]);
  await open(service.url);
  await until(() => service.count("demo"), "1/1/1");
});

test("a policy without unsafe-inline, and with trusted types, is kept", async (t) => {
  const service = await serve(t);
  const policy =
    `default-src 'none'; script-src ${service.url}; style-src 'none'; img-src data:; ` +
    `connect-src ${service.url}; require-trusted-types-for 'script'; trusted-types 'none'`;
  const headers = { "content-security-policy": policy };
  const pages = await site(t, { "/": () => ({ body: page(service, counter()), headers }) });
  const tab = await (await reader(t)).open(pages.url);
  await until(() => shown(tab), "1 reading now");
  const dot = await tab.evaluate(() => getComputedStyle(document.querySelector("live-count").shadowRoot.querySelector("[part=dot]")).backgroundColor);
  assert.equal(dot, "rgb(42, 157, 98)", "its style is applied");
});

test("in a sandbox, without storage or locks, it counts all the same", async (t) => {
  const service = await serve(t);
  const frame = '<!doctype html><title>Frame</title><iframe sandbox="allow-scripts" src="/frame"></iframe>';
  const pages = await site(t, { "/": frame, "/frame": page(service, counter()) });
  await (await reader(t)).open(pages.url);
  await until(() => service.count(42), "1/1/0");
});

test("a service behind a path is found by the script's own address", async (t) => {
  const service = await serve(t);
  const pages = await site(t, { "/": page(service, counter(), "/live/widget.js") });
  const tab = await (await reader(t)).context.newPage();
  await tab.route("**/live/**", (route) => route.continue({ url: route.request().url().replace(/^.*\/live/, service.url) }));
  await tab.goto(pages.url);
  await until(() => shown(tab), "1 reading now");
});
