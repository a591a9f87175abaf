// One room's page: its numbers and plot, who is connected, and what may be done about it.

import { roomPath } from "./api.js";
import { Connections } from "./connections.js";
import { el } from "./dom.js";
import { History, reach } from "./history.js";
import { MessageForm } from "./message.js";
import { Ranges, Tiles } from "./parts.js";
import { Plot } from "./plot.js";

/** How long a history serves before it is asked for again, in milliseconds; counts carry it on. */
const SERVES = 5_000;

export class Room {
  #page;
  #room;
  #history = new History();
  #minutes;
  #tiles = new Tiles(["viewers", "connections", "members"]);
  #ranges = new Ranges(() => this.#page.refresh());
  #plot;
  #connections;
  #message;

  constructor(room, page) {
    this.#page = page;
    this.#room = room;
    this.title = room;
    const { token } = page.api;
    this.#connections = new Connections(room, page);
    if (token.may("publish", room)) this.#message = new MessageForm(room, page);
    // Nobody keeps the history of one reader.
    if (!room.startsWith("user:")) this.#plot = new Plot(room);
    const split = room.indexOf(":") + 1;
    this.element = el("div", { class: "room" },
      el("nav", { "aria-label": "Where you are" }, el("a", { href: "#/" }, "All rooms")),
      el("h1", { tabindex: "-1" }, el("span", { class: "soft" }, room.slice(0, split)), room.slice(split)),
      el("section", { class: "panel now", "aria-label": "Now" },
        this.#tiles.element,
        this.#plot && el("div", { class: "drawing" }, this.#ranges.element, this.#plot.element)),
      el("div", { class: this.#message ? "sides" : "" },
        this.#connections.element, this.#message?.element));
  }

  get rooms() {
    return [this.#room];
  }

  close() {
    this.#plot?.close();
    this.#connections.close();
  }

  async ask(signal) {
    const { api } = this.#page;
    const { minutes } = this.#ranges;
    const asksHistory = this.#plot
      && (performance.now() - this.#history.taken > SERVES || this.#minutes !== minutes);
    const [count, history] = await Promise.all([
      api.get(roomPath(this.#room), {}, signal),
      asksHistory ? api.get(roomPath(this.#room, "/history"), { minutes: reach(minutes) }, signal) : undefined,
      this.#connections.ask(signal),
    ]);
    if (history) {
      this.#history.take(history);
      this.#minutes = minutes;
    }
    this.count(count);
  }

  /** A count, asked for or brought by the stream. */
  count(count) {
    if (count.room !== this.#room) return;
    this.#history.live(count);
    this.#tiles.show(count);
    this.#connections.count(count);
    this.#message?.show(count);
    if (this.#minutes !== undefined) this.#plot?.show(this.#history, this.#minutes);
  }
}
