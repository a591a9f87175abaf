// The first page: everybody, the rooms with the most viewers, and the nodes.

import { roomPath } from "./api.js";
import { Rows, clock, el, number, plural, say, write } from "./dom.js";
import { History, reach } from "./history.js";
import { Nodes } from "./nodes.js";
import { Plot, Spark } from "./plot.js";
import { Ranges, Tiles, roomLink } from "./parts.js";

/** Rooms shown at first, added by each press of the button, and at most. */
const FIRST = 20, MORE = 20, MOST = 100;
/** How long a history serves before it is asked for again, in milliseconds; counts carry it on. */
const TOTAL_SERVES = 1_500, ROOM_SERVES = 20_000;
/** How many histories of rooms are asked for in one beat: those that are missing come first. */
const HISTORIES = 20;
/** How long a pointer that rests keeps the rows in their places, in milliseconds. */
const POINTED = 10_000;
/** Against the number of how many minutes ago a trend is told. */
const TREND = 10;
/** What can begin a room's name, as openapi.yaml has it. */
const PREFIX = /^(?:[a-z][a-z0-9_-]{0,31}(?::[A-Za-z0-9._~:@|+-]{0,128})?)?$/;

export class Overview {
  title = "Overview";
  #page;
  #total = new History();
  #histories = new Map();
  #limit = FIRST;
  #list = [];
  #pointed = -Infinity;
  #minutes;
  #said;
  #saidAt;
  #typing;
  #tiles;
  #ranges;
  #plot;
  #search;
  #found;
  #table;
  #rows;
  #empty;
  #more;
  #legend;
  #nodes = new Nodes();

  constructor(page) {
    this.#page = page;
    this.#build();
  }

  #build() {
    this.#tiles = new Tiles(["viewers", "connections", "members", "rooms"]);
    this.#plot = new Plot("Everybody");
    this.#ranges = new Ranges(() => this.#page.refresh());
    this.#search = el("input", {
      id: "search", type: "search", autocomplete: "off", autocapitalize: "off", spellcheck: "false",
      placeholder: "42 or match:", maxlength: "161", "aria-describedby": "search-hint",
      oninput: () => {
        clearTimeout(this.#typing);
        this.#typing = setTimeout(() => this.#page.refresh(), 200);
      },
    });
    const body = el("tbody");
    this.#rows = new Rows(body, (count) => this.#row(count));
    this.#table = el("table", {
      class: "rooms",
      onpointermove: () => { this.#pointed = performance.now(); },
      onpointerleave: () => { this.#pointed = -Infinity; },
    },
      el("caption", { class: "aside" }, "Rooms with the most viewers now"),
      el("thead", {}, el("tr", {},
        el("th", { scope: "col" }, "Room"),
        el("th", { scope: "col", class: "number" }, "Viewers"),
        el("th", { scope: "col", class: "number trend" }, "Trend"),
        el("th", { scope: "col", class: "sparkline" }, "Last hour"),
        el("th", { scope: "col", class: "number peaks" }, "Peak"),
        el("th", { scope: "col", class: "number wide" }, "Connections"),
        el("th", { scope: "col", class: "number wide" }, "Members"))),
      body);
    this.#empty = el("p", { class: "empty", hidden: true });
    this.#more = el("button", { type: "button", hidden: true, onclick: () => {
      this.#limit = Math.min(MOST, this.#limit + MORE);
      this.#page.refresh();
    } }, "Show more");
    this.#legend = el("p", { class: "hint" },
      `Trend: viewers now against the mean of the minute ${TREND} minutes ago.`);
    this.#found = el("p", { class: "hint", id: "search-hint" });
    this.element = el("div", { class: "overview" },
      el("h1", { tabindex: "-1" }, "Reading now"),
      this.#page.lost && el("p", { class: "error" }, `${this.#page.lost} is no room's name.`),
      el("section", { class: "panel now", "aria-label": "Everybody" },
        el("div", {}, this.#tiles.element, el("p", { class: "hint own" },
          "You are among them: this page's own stream is a connection, you a viewer and a member.")),
        el("div", { class: "drawing" }, this.#ranges.element, this.#plot.element)),
      el("section", { class: "panel", "aria-labelledby": "rooms-title" },
        el("div", { class: "head" },
          el("h2", { id: "rooms-title" }, "Rooms"),
          el("div", { class: "search", role: "search" },
            el("label", { for: "search" }, "Begins with"), this.#search)),
        this.#found, this.#table, this.#empty, this.#more, this.#legend),
      this.#nodes.element);
  }

  /** What is watched by the stream: the rooms on the screen. */
  get rooms() {
    return this.#list.map((count) => count.room);
  }

  close() {
    clearTimeout(this.#typing);
    this.#plot.close();
  }

  /** One beat: asks for all that is on the screen. */
  async ask(signal) {
    const { api } = this.#page;
    const { minutes } = this.#ranges;
    const prefix = this.#prefix;
    const [stats, page, history] = await Promise.all([
      api.get("v1/stats", {}, signal),
      PREFIX.test(prefix) ? api.get("v1/rooms", { prefix, limit: this.#limit }, signal)
        : { rooms: [], next_cursor: null },
      performance.now() - this.#total.taken < TOTAL_SERVES && this.#minutes === minutes
        ? undefined : api.get("v1/history", { minutes: reach(minutes) }, signal),
    ]);
    if (history) this.#total.take(history);
    this.#minutes = minutes;
    this.#total.live(stats);
    this.#tiles.show(stats);
    this.#plot.show(this.#total, minutes);
    this.#showRooms(page);
    this.#nodes.show(stats.nodes);
    this.#announce(stats);
    await this.#askHistories(signal);
  }

  /** A count that the stream brought. */
  count(count) {
    const row = this.#rows.get(count.room);
    const place = this.#list.findIndex(({ room }) => room === count.room);
    if (row === undefined || place < 0) return;
    this.#list[place] = count;
    // Numbers at once, lines with the next beat: a hundred rooms may change ten times a second.
    row.update(count, false);
  }

  /** What is looked for: a blog by its id, or any room by kind and name. */
  get #prefix() {
    const text = this.#search.value.trim();
    return text === "" || text.includes(":") ? text : `blog:${text}`;
  }

  /** While it is pointed at or used, no row moves from under the pointer or the focus. */
  #ordered(rooms) {
    const pointed = performance.now() - this.#pointed < POINTED;
    if (!pointed && !this.#rows.body.contains(document.activeElement)) return rooms;
    const fresh = new Map(rooms.map((count) => [count.room, count]));
    const gone = { viewers: 0, connections: 0, members: 0 };
    const searched = (name) => name.startsWith(this.#prefix);
    const stay = this.#rows.keys.filter((name) => fresh.has(name) || searched(name));
    const added = rooms.filter((count) => !stay.includes(count.room));
    return [...stay.map((room) => fresh.get(room) ?? { ...gone, room }), ...added].slice(0, MOST);
  }

  #showRooms({ rooms, next_cursor }) {
    this.#list = this.#ordered(rooms);
    this.#rows.show(this.#list, (count) => count.room);
    const prefix = this.#prefix;
    const none = this.#list.length === 0;
    this.#table.hidden = none;
    this.#empty.hidden = !none;
    this.#legend.hidden = none;
    this.#more.hidden = next_cursor === null || this.#limit >= MOST;
    const exact = PREFIX.test(prefix) && /:./.test(prefix) && !this.rooms.includes(prefix);
    if (none && prefix === "") {
      write(this.#empty, "Nobody is reading right now. A room appears here with its first viewer.");
    } else if (none) {
      write(this.#empty, `Nobody is in a room that begins with ${prefix} right now.`);
    }
    if (this.#found.dataset.prefix === `${prefix} ${exact}`) return;
    this.#found.dataset.prefix = `${prefix} ${exact}`;
    this.#found.replaceChildren(...(exact
      ? ["Nobody there, or not among these: ", roomLink(prefix)]
      : ["A blog's ID, or a room's full name such as match:12."]));
  }

  #row(count) {
    const { room } = count;
    const spark = new Spark();
    const cell = (name) => el("td", { class: name });
    const cells = {
      viewers: cell("number strong"), trend: cell("number trend"), peak: cell("number peaks"),
      connections: cell("number wide"), members: cell("number wide"),
    };
    const element = el("tr", {},
      el("th", { scope: "row" }, roomLink(room)),
      cells.viewers, cells.trend, el("td", { class: "sparkline" }, spark.element),
      cells.peak, cells.connections, cells.members);
    const update = (count, draws = true) => {
      const history = this.#histories.get(room);
      history?.live(count);
      for (const name of ["viewers", "connections", "members"]) write(cells[name], number(count[name]));
      element.classList.toggle("partial", count.partial === true);
      if (history === undefined) return;
      showTrend(cells.trend, history.trend(TREND));
      const { peak } = history;
      write(cells.peak, peak ? `${number(peak.viewers)} at ${clock(peak.at)}` : "–");
      if (draws) spark.show(history, 60);
    };
    return { element, update };
  }

  /** Brings the histories of the rooms on the screen up to date, a few in each beat. */
  async #askHistories(signal) {
    const shown = new Set(this.rooms);
    for (const room of this.#histories.keys()) {
      if (!shown.has(room)) this.#histories.delete(room);
    }
    const asked = performance.now();
    const old = (room) => asked - (this.#histories.get(room)?.taken ?? -Infinity);
    // Personal rooms have none.
    const due = [...shown].filter((room) => !room.startsWith("user:") && old(room) > ROOM_SERVES)
      .sort((a, b) => (old(a) === old(b) ? 0 : old(b) - old(a))).slice(0, HISTORIES);
    await Promise.all(due.map(async (room) => {
      const history = new History();
      history.take(await this.#page.api.get(roomPath(room, "/history"), { minutes: reach(60) }, signal));
      this.#histories.set(room, history);
      const count = this.#list.find((count) => count.room === room);
      if (count) this.#rows.get(room)?.update(count);
    }));
  }

  /** Says the number once, then where it is another by a tenth, and at most once a minute. */
  #announce({ viewers, connections }) {
    const heard = performance.now();
    const changed = Math.abs(viewers - (this.#said ?? Infinity)) > (this.#said ?? 0) / 10;
    if (this.#saidAt !== undefined && (!changed || heard - this.#saidAt < 60_000)) return;
    this.#said = viewers;
    this.#saidAt = heard;
    say(`${plural(viewers, "viewer", "viewers")}, ${plural(connections, "connection", "connections")}.`);
  }
}

/** A difference with its sign; more and less differ in colour, too. */
function showTrend(cell, trend) {
  const way = Math.sign(trend ?? 0);
  const size = number(Math.abs(trend ?? 0));
  write(cell, trend === undefined ? "–" : way === 0 ? "±0" : `${way > 0 ? "+" : "−"}${size}`);
  cell.dataset.way = way;
}
