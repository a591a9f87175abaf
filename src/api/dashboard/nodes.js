// The nodes and how they are, where there are several: one alone is no news.

import { Rows, duration, el, moment, number, write } from "./dom.js";
import { now } from "./time.js";

/** From which lag on a node is said to lag, in milliseconds. */
const LAGGING = 2_000;

export class Nodes {
  #body = el("tbody");
  #rows = new Rows(this.#body, row);
  element = el("section", { class: "panel", "aria-labelledby": "nodes-title", hidden: true },
    el("h2", { id: "nodes-title" }, "Nodes"),
    el("table", { class: "nodes" },
      el("caption", { class: "aside" }, "Nodes and their health"),
      el("thead", {}, el("tr", {},
        el("th", { scope: "col" }, "Node"),
        el("th", { scope: "col" }, "Health"),
        el("th", { scope: "col", class: "number" }, "Connections"),
        el("th", { scope: "col", class: "number" }, "Lag"),
        el("th", { scope: "col", class: "number wide" }, "Up for"))),
      this.#body));

  show(nodes) {
    this.element.hidden = nodes.length < 2;
    this.#rows.show(nodes, (node) => node.name);
  }
}

function row(node) {
  const health = el("td");
  const [connections, lag] = [el("td", { class: "number" }), el("td", { class: "number" })];
  const up = el("td", { class: "number wide" });
  const update = (node) => {
    const since = Date.parse(node.since);
    health.className = node.lag_ms < LAGGING ? "well" : "unwell";
    write(health, node.lag_ms < LAGGING ? "well" : "lagging");
    write(connections, number(node.connections));
    write(lag, `${number(node.lag_ms)} ms`);
    write(up, duration(now() - since));
    up.title = `since ${moment(since)}`;
  };
  return { element: el("tr", {}, el("th", { scope: "row" }, node.name), health, connections, lag, up), update };
}
