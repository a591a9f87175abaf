// livecount's counter; how it is used is said in widget.d.ts and the README.
//
// A line is a connection to a server, shared by all counters of a page and all tabs of a browser. One tab
// holds the line's lock and leads: it streams, hears what the others show, and tells them the numbers.
// They queue for the lock. A tab also holds a lock of its own, by which the leader knows that it lives.
//
// Comments, which have lines of their own, and what white space needs not be are not served: the rest,
// compressed, must not exceed 4 KB, which is why some things are said shorter here than elsewhere.

// By name: what distinguishes one line from another.
const lines = {};
// 52 bits tell apart all readers of a page, and are no secret.
const own = "" + Math.random();
const without = (rooms, others) => rooms.filter((room) => !others.includes(room));

// The same for all tabs, and another one every day. Where none may be stored, the page's own.
function viewerId() {
  try {
    const today = new Date().toJSON().slice(0, 10);
    if (!localStorage.livecount?.startsWith(today)) localStorage.livecount = today + own;
    return localStorage.livecount;
  } catch {}
}

// By a function, the name of a global one, or an address. What is no token, such as a page on which to log
// in, says that nobody is signed in. Fails where there is no answer in time.
async function tokenOf(source) {
  const make = globalThis[source] ?? source;
  if (!make) return;
  const load = async () => {
    if (make.call) return make();
    const answer = await fetch(make, { redirect: "manual" });
    if (answer.status > 499) throw {};
    return answer.ok && answer.text();
  };
  const text = await Promise.race([load(), new Promise((_, late) => setTimeout(late, 5e3))]);
  return /^\s*([\w.-]+)\s*$/.exec(text || "")?.[1];
}

function newLine(name, { server, token, credentials, viewer }) {
  const counters = new Set();
  const counts = {};
  // Rooms to join, and to watch: what a service allows unless it is told otherwise, and unless their names
  // are too long for a ticket. All others are asked for.
  let most = 16, more = 96;
  let turn = Promise.resolve();
  let state, tab, tabs, barred, page, channel, leads, patience, telling;
  let source, before, connection, ticket, has, tries, timer, seen, silence = 5e4;
  let me, bearer, doubts = 0;

  // Between tabs: `{from, rooms}` is what a tab shows, `{news}` what the leader knows, and `{}` a new leader's
  // question what the others show.

  function begin() {
    if (page || document.prerendering || !counters.size) return;
    barred = {};
    if (state !== "live") state = "waiting";
    tries = 0;
    page = new AbortController();
    if (!viewer || !navigator.locks) return lead();
    channel = new BroadcastChannel(name);
    channel.onmessage = ({ data }) => hear(data);
    const id = own + name;
    hold(id, () => follow(id), lead);
  }

  // A page in the back/forward cache may hold neither locks nor streams, so it ends like one that is closed.
  function end() {
    if (!page) return;
    if (connection) {
      tabs.delete(tab);
      const [verb, rooms] = tabs.size ? ["leave", without(has[0], wanted()[0])] : ["close"];
      navigator.sendBeacon(`${server}v1/connections/${connection}/${verb}`, JSON.stringify({ ticket, rooms }));
    }
    page.abort();
    channel?.close();
    page = tab = leads = drop();
    clearTimeout(patience);
  }

  // Holds a lock until the page goes. `lost`: it was stolen, or there are no locks here, as in a sandbox.
  function hold(lock, act, lost, options) {
    const { signal } = page;
    const held = () => signal.aborted || act() || new Promise((end) => signal.addEventListener("abort", end));
    navigator.locks.request(lock, options ?? { signal }, held).catch(() => signal.aborted || lost());
  }

  function follow(id = tab) {
    tab = id;
    leads = drop();
    tell();
    hold(name, lead, follow);
  }

  function lead() {
    leads = true;
    clearTimeout(patience);
    tabs = new Map();
    channel?.postMessage({});
    tell();
  }

  // Says which rooms this tab shows: once for all counters that come or go together.
  function tell() {
    telling ??= Promise.resolve().then(() => {
      telling = undefined;
      const rooms = {};
      for (const { watch, room } of counters) rooms[room] |= !watch;
      arrange(tab, rooms);
      if (leads || !tab) return;
      channel.postMessage({ from: tab, rooms });
      // A leader that a phone put to sleep keeps its lock, and is silent.
      clearTimeout(patience);
      patience = setTimeout(() => document.hidden || hold(name, lead, follow, { steal: true }), 5e3);
    });
  }

  function hear({ from, rooms, news }) {
    if (leads) {
      if (!from) return;
      // What is answered is true, or else this page would keep the lock of the tab that is gone.
      if (!tabs.has(from)) hold(from, () => [tabs.delete(from), arrange()]);
      arrange(from, rooms);
    } else if (news) {
      clearTimeout(patience);
      update(news);
    } else if (!from) tell();
  }

  function arrange(from, rooms) {
    if (!leads) return;
    if (rooms) tabs.set(from, rooms);
    publish({ state, barred, counts: Object.values(counts) });
    turn = turn.then(agree).catch(failed);
  }

  function publish(news) {
    channel?.postMessage({ news });
    update(news);
  }

  // What the leader tells, itself included.
  function update(news) {
    ({ state, barred = barred } = news);
    for (const count of news.counts ?? []) counts[count.room] = count;
    for (const counter of [...counters]) {
      const { room } = counter;
      if (barred[room]) counter.close(barred[room]);
      else counter.update(state, counts[room], news.reason);
    }
  }

  // What all tabs want: rooms to join, rooms to watch, and those to ask for. What is too much to join is
  // watched.
  function wanted() {
    const counted = {};
    for (const rooms of tabs.values()) for (const room in rooms) counted[room] |= rooms[room];
    const all = Object.keys(counted).filter((room) => !barred[room]);
    const joined = all.filter((room) => counted[room]).slice(0, most);
    const rest = without(all, joined);
    return [joined, rest.splice(0, more), rest.slice(0, 1e3)];
  }

  // With the server.

  // Brings the connection in line with what the tabs want. In turns, so that no two calls cross.
  async function agree() {
    if (!leads || state === "stopped") return;
    const [rooms, watch, rest] = wanted();
    if (!connection) return source || timer || join();
    await change("leave", without(has[0], rooms));
    await change("unwatch", without(has[1], watch));
    await change("join", without(rooms, has[0]));
    await change("watch", without(watch, has[1]));
    // What the connection has no place for.
    if (rest[0]) {
      post("counts", { rooms: rest }, bearer)
        .then(({ counts }) => connection && publish({ state: "live", counts }))
        .catch(({ room, code }) => room && arrange((barred[room] = code)));
    }
  }

  async function change(verb, rooms) {
    if (connection && rooms[0]) learn(await post(`connections/${connection}/${verb}`, { rooms }, ticket));
  }

  async function join() {
    const [rooms, watch] = wanted().map((rooms) => rooms[0] && rooms);
    if (!rooms && !watch) return;
    // The same viewer for as long as one stream follows another.
    if (!connection) me = (viewer && viewerId()) || own;
    // A source of tokens that fails twice is not to cost the reader the number.
    bearer = ++doubts % 3 && (await tokenOf(token));
    doubts = 0;
    ({ ticket } = await post("join", { rooms, watch, viewer: me }, bearer));
    if (leads) open();
  }

  async function post(path, body, bearer) {
    const headers = { "Content-Type": "application/json" };
    if (bearer) headers.Authorization = `Bearer ${bearer}`;
    const signal = AbortSignal.timeout(2e4);
    body = JSON.stringify(body);
    const answer = await fetch(`${server}v1/${path}`, { method: "POST", headers, body, credentials, signal });
    const said = await answer.json();
    if (answer.ok) return said;
    throw { ...said, wait: answer.headers.get("Retry-After") * 1e3 };
  }

  // A member's own room is joined unasked, and stays.
  function learn(said) {
    ({ ticket } = said);
    has = [said.rooms.filter((room) => !/^user:/.test(room)), said.watching];
  }

  // EventSource would come back by itself, but for ever to the same ticket and its rooms, and never from an
  // error status. So any end closes it, and `retry` decides. One that is open stays until the next one has
  // begun, so that nobody sees a viewer less.
  function open() {
    before?.close();
    clearTimeout(timer);
    before = source;
    connection = undefined;
    const stream = (source = new EventSource(`${server}v1/stream?ticket=${ticket}`));
    const on = {
      ping() {},
      connected(said) {
        before?.close();
        ({ connection } = said);
        silence = said.heartbeat * 2500;
        tries = 0;
        learn(said);
        arrange();
      },
      count(count) {
        publish({ state: "live", counts: [count] });
      },
      // At a random time within what is left, since many tickets may end at once.
      expiring(said) {
        timer = setTimeout(renew, said.expires_in * (250 + 500 * Math.random()));
      },
      closed({ reason }) {
        if (/kick|repl|left/.test(reason)) return stop(reason);
        if (reason === "expired") ticket = 0;
        else tries ||= 3;
        retry();
      },
    };
    for (const name in on) {
      stream.addEventListener(name, ({ data }) => {
        seen = Date.now();
        if (stream === source) on[name](JSON.parse(data));
      });
    }
    stream.onerror = () => stream === source && retry();
    seen = Date.now();
  }

  // A new token prolongs the stream; without one, or with another reader's, a new join takes its place. What
  // fails here is tried again when the ticket has ended.
  async function renew() {
    try {
      bearer = await tokenOf(token);
      if (bearer) return learn(await post(`connections/${connection}/renew`, { ticket }, bearer));
    } catch {}
    join().catch(() => {});
  }

  // A room that is refused stops its own counters and no others.
  function failed(error) {
    const { status, code, room, wait } = Object(error);
    if (!leads) return;
    if (code === "invalid_token") doubts = 2;
    if (room && !barred[room] && (status !== 401 || !token)) barred[room] = code;
    else if (status !== 400 && status !== 403) return retry(wait);
    else if (/large/.test(code) && more) more >>= 1;
    else if (/too_/.test(code) && most > 1) most >>= 1;
    else return stop(code);
    arrange();
  }

  function stop(reason) {
    ticket = drop();
    publish({ state: "stopped", reason });
  }

  // The same connection if it was open, else one anew; later and later. A first break shows nobody anything:
  // the number is gone when a try has failed.
  function retry(least) {
    if (!connection) {
      ticket = 0;
      publish({ state: "away" });
    }
    drop();
    timer = setTimeout(attempt, Math.max(least || 0, 2 ** Math.min(++tries, 7) * (250 + 500 * Math.random())));
  }

  function attempt() {
    drop();
    if (ticket) open();
    else arrange();
  }

  function drop() {
    source?.close();
    before?.close();
    clearTimeout(timer);
    source = before = connection = timer = undefined;
  }

  return {
    counters,
    begin,
    end,
    tell,
    online() {
      tries = 0;
      if (leads && !(source && Date.now() - seen < silence / 2)) attempt();
    },
    // By the clock, since timers sleep when machines do.
    check: () => (source && Date.now() - seen > silence ? retry() : arrange()),
  };
}

// Captured, since not all of these bubble from the document.
const all = (act) => Object.values(lines).forEach((line) => line[act]());
const on = (event, act) => addEventListener(event, () => all(act), true);
on("online", "online");
on("pagehide", "end");
on("pageshow", "begin");
on("prerenderingchange", "begin");
on("visibilitychange", "tell");
setInterval(all, 5e3, "check");

export class LiveCount {
  state = "waiting";

  constructor({ server, blogId = "", room = `blog:${blogId}`, watch, token, credentials, viewer = true, onCount, onState }) {
    server = new URL(server?.replace(/\/?$/, "/") ?? new URL(".", import.meta.url), document.baseURI);
    const name = ["livecount1", server, token?.name ?? token, credentials, viewer].join();
    const line = (lines[name] ??= newLine(name, { server, token, credentials, viewer }));
    Object.assign(this, { line, room, watch, onCount, onState });
    line.counters.add(this);
    line.begin();
    line.tell();
  }

  close(reason) {
    const { line } = this;
    line.counters.delete(this);
    if (line.counters.size) line.tell();
    else line.end();
    this.update("stopped", this.count, reason);
  }

  update(state, count, reason) {
    if (state === "live" && !count) return;
    if (JSON.stringify(count) !== JSON.stringify(this.count)) this.onCount?.((this.count = count));
    if (state !== this.state) this.onState?.((this.state = state), reason);
  }
}

// A constructed sheet needs no unsafe-inline.
const sheet = new CSSStyleSheet();
sheet.replaceSync(`
:host{display:inline-block}
:host([hidden]),:host([state=few]),:host([state=live]) slot,:host(:not([state=live])) span{display:none}
[part=dot]{display:inline-block;margin-right:.5em;padding:.28em;border-radius:50%;background:var(--live-count-dot,#2a9d62)}
[aria-live]{position:absolute;width:1px;overflow:hidden;opacity:0;white-space:pre}
@media (prefers-reduced-motion:no-preference){[part=dot]{animation:pulse 2s infinite}}
@keyframes pulse{50%{opacity:.35}}`);

// No innerHTML: it does not pass trusted types.
const span = (part) => Object.assign(document.createElement("span"), { part });

class LiveCountElement extends HTMLElement {
  static observedAttributes = ["blog-id", "room", "watch-only", "no-viewer"];
  #text = span("text");
  #number = span("number");
  #said = span("said");
  #counter;
  #saying;

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [sheet];
    root.append(span("dot"), this.#text, this.#said, document.createElement("slot"));
  }

  connectedCallback() {
    const options = { watch: this.hasAttribute("watch-only"), viewer: !this.hasAttribute("no-viewer") };
    for (const { name, value } of this.attributes) options[name] ??= value;
    options.blogId = options["blog-id"];
    options.onCount = options.onState = () => this.#draw();
    this.#counter?.close();
    this.#counter = new LiveCount(options);
    this.#draw();
  }

  disconnectedCallback() {
    this.#counter.close();
  }

  attributeChangedCallback() {
    this.#counter && this.isConnected && this.connectedCallback();
  }

  // Templates: for this very number, for its plural form, for any.
  #draw() {
    const { state, count, watch } = this.#counter;
    const n = count?.viewers;
    const live = state === "live";
    this.setAttribute("state", live && n < this.getAttribute("hide-below") ? "few" : state);
    if (!live) return;
    const [lang] = this.closest("[lang]")?.lang.match(/^[a-z]{2,3}(-\w{2,4})*$/i) ?? [];
    const form = (name) => this.getAttribute("text" + name);
    const template = form("-" + n) ?? form("-" + new Intl.PluralRules(lang).select(n)) ?? form("") ?? "{n} reading now";
    this.#number.textContent = n.toLocaleString(lang);
    this.#text.replaceChildren(...template.split(/({n})/).map((part) => (part === "{n}" ? this.#number : part)));
    // Read aloud at most twice a minute, and in lists of counters only where it is asked for.
    this.#text.ariaHidden = true;
    this.#said.ariaLive = this.getAttribute("announce") ?? (watch ? "off" : "polite");
    this.#saying ??= setTimeout(() => {
      this.#saying = undefined;
      this.#said.textContent = this.#text.textContent;
    }, this.#said.textContent && 3e4);
  }
}

customElements.get("live-count") ?? customElements.define("live-count", LiveCountElement);
