// Parts that both pages have: the numbers in large, the choice of a time, a link to a room.

import { el, number, write } from "./dom.js";

const NAMES = {
  viewers: ["Viewers", "Distinct readers"],
  connections: ["Connections", "Open streams"],
  members: ["Members", "Distinct readers signed in by a token"],
  rooms: ["Rooms", "Rooms with at least one viewer"],
};

/** The numbers in large. */
export class Tiles {
  #values = new Map();
  #list;
  #partial = el("p", { class: "hint", hidden: true },
    "Other nodes' numbers are unknown right now: these are too low.");

  constructor(names) {
    this.#list = el("dl", {}, ...names.map((name) => {
      const value = el("dd", { class: name }, "–");
      this.#values.set(name, value);
      const [title, meaning] = NAMES[name];
      return el("div", {}, el("dt", { title: meaning }, title), value);
    }));
    this.element = el("div", { class: "tiles" }, this.#list, this.#partial);
  }

  show(count) {
    for (const [name, value] of this.#values) write(value, number(count[name]));
    this.#list.classList.toggle("partial", count.partial === true);
    this.#partial.hidden = count.partial !== true;
  }
}

/** The choice of how far back a plot goes. */
export class Ranges {
  minutes = 60;

  constructor(changed) {
    this.element = el("fieldset", { class: "ranges" },
      el("legend", { class: "aside" }, "Time shown"),
      ...[[15, "15 min"], [60, "1 h"], [180, "3 h"], [1440, "24 h"]].map(([minutes, name]) => el("label", {},
        el("input", { type: "radio", name: "range", checked: minutes === this.minutes, onchange: () => {
          this.minutes = minutes;
          changed();
        } }),
        el("span", {}, name))));
  }
}

/** A link to a room's page; the kind of the room is said quietly. */
export function roomLink(room) {
  const split = room.indexOf(":") + 1;
  return el("a", { href: `#/room/${encodeURIComponent(room)}` },
    el("span", { class: "soft" }, room.slice(0, split)), room.slice(split));
}
