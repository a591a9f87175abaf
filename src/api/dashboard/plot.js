// Plots, drawn as SVG: a band from the least to the most of each minute with the mean in it.

import { clock, decimal, duration, el, moment, number, svg, write } from "./dom.js";
import { now } from "./time.js";

/** Shortest time between two drawings of changed numbers, in milliseconds. */
const PAUSE = 250;
const MARGIN = { top: 12, right: 14, bottom: 24, left: 52 };

/** Round numbers from 0 to at least `most`, in about `wanted` steps; whole ones, for people. */
export function ticks(most, wanted) {
  const rough = Math.max(1, most) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = Math.max(1, [1, 2, 5, 10].find((factor) => factor * power >= rough) * power);
  return Array.from({ length: Math.ceil(Math.max(1, most) / size) + 1 }, (_, n) => n * size);
}

/** Whole minutes of the clock between two times, at most about `wanted` of them. */
function times(from, to, wanted) {
  const sizes = [5, 10, 15, 30, 60, 120, 180, 240, 360].map((minutes) => minutes * 60_000);
  const size = sizes.find((size) => (to - from) / size <= wanted) ?? sizes.at(-1);
  const zone = new Date(from).getTimezoneOffset() * 60_000;
  const first = Math.ceil((from - zone) / size) * size + zone;
  const found = [];
  for (let at = first; at <= to; at += size) found.push(at);
  return found;
}

const path = (points) => points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L");

/** The middle of each step; first and last carried out to the edges of what was recorded. */
function points(steps, to, value, x, y) {
  const end = (step) => Math.min(step.end, to);
  const inside = steps.map((step) => [x((step.at + end(step)) / 2), y(value(step))]);
  const [first, last] = [steps[0], steps.at(-1)];
  return [[x(first.at), y(value(first))], ...inside, [x(end(last)), y(value(last))]];
}

/** Band and mean of the viewers, in the coordinates of `x` and `y`. */
function viewers(steps, to, x, y) {
  if (steps.length === 0) return [];
  const most = points(steps, to, (step) => step.viewers.max, x, y);
  const least = points(steps, to, (step) => step.viewers.min, x, y).reverse();
  const mean = points(steps, to, (step) => step.viewers.mean, x, y);
  return [
    svg("path", { class: "band", d: `M${path([...most, ...least])}Z` }),
    svg("path", { class: "mean", d: `M${path(mean)}` }),
  ];
}

function connections(steps, to, x, y) {
  if (steps.length === 0) return [];
  const mean = points(steps, to, (step) => step.connections.mean, x, y);
  return [svg("path", { class: "connections", d: `M${path(mean)}` })];
}

/** A line of the last hour, as wide as a cell. What it says stands in the cells beside it. */
export class Spark {
  element = svg("svg", { class: "spark", viewBox: "0 0 120 28", "aria-hidden": "true" });

  show(history, minutes) {
    const to = now(), from = to - minutes * 60_000;
    const steps = history.since(from);
    const most = Math.max(1, ...steps.map((step) => step.viewers.max));
    const x = (at) => (120 * (Math.max(at, from) - from)) / (to - from);
    const y = (value) => 26 - (24 * value) / most;
    const ground = svg("path", { class: "ground", d: "M0,27H120" });
    this.element.replaceChildren(ground, ...viewers(steps, to, x, y));
  }
}

/** The plot of a page, with what is under the pointer, its legend, and its figures as a table. */
export class Plot {
  #history;
  #minutes = 60;
  #under;
  #drawn = -Infinity;
  #due;
  #sized = new ResizeObserver(() => this.#draw());
  #drawing = svg("svg", { class: "plot", role: "img" });
  #readout = el("p", { class: "readout" });
  #body = el("tbody");
  #table = el("details", { class: "figures" },
    el("summary", {}, "Figures as a table"),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Figures of the plot" },
      el("table", {},
        el("thead", {}, el("tr", {}, ...["From", "Lasting", "Least", "Mean", "Most", "Connections"].map(
          (name, column) => el("th", { scope: "col", class: column > 0 && "number" }, name)))),
        this.#body)));

  constructor(name) {
    this.name = name;
    this.element = el("figure", { class: "plotted" },
      el("div", { class: "canvas" }, this.#drawing),
      el("figcaption", {},
        el("ul", { class: "legend" },
          el("li", { class: "of-mean" }, "viewers, mean of each minute"),
          el("li", { class: "of-band" }, "least to most"),
          el("li", { class: "of-connections" }, "connections")),
        this.#readout),
      this.#table);
    this.#drawing.addEventListener("pointermove", (event) => {
      this.#under = event.offsetX;
      this.#draw();
    });
    this.#drawing.addEventListener("pointerleave", () => {
      this.#under = undefined;
      this.#draw();
    });
    this.#table.addEventListener("toggle", () => this.#list());
    this.#sized.observe(this.element);
  }

  close() {
    this.#sized.disconnect();
    clearTimeout(this.#due);
  }

  /** Shows a history up to now, at once or, where it was drawn a moment ago, in a moment. */
  show(history, minutes) {
    const other = this.#minutes !== minutes;
    this.#history = history;
    this.#minutes = minutes;
    clearTimeout(this.#due);
    const wait = other ? 0 : this.#drawn + PAUSE - performance.now();
    this.#due = setTimeout(() => {
      this.#draw();
      this.#list();
    }, Math.max(0, wait));
  }

  #draw() {
    const history = this.#history, width = this.#drawing.clientWidth, height = this.#drawing.clientHeight;
    if (!history || !width) return;
    this.#drawn = performance.now();
    const to = now(), from = to - this.#minutes * 60_000;
    const steps = history.since(from);
    const tops = steps.map((step) => Math.max(step.viewers.max, step.connections.mean));
    const most = Math.max(4, ...tops, history.last?.connections ?? 0);
    const marks = ticks(most, height < 200 ? 4 : 5);
    const x = (at) => MARGIN.left
      + ((width - MARGIN.left - MARGIN.right) * (Math.max(at, from) - from)) / (to - from);
    const y = (value) => height - MARGIN.bottom
      - ((height - MARGIN.top - MARGIN.bottom) * value) / marks.at(-1);
    const right = width - MARGIN.right, ground = height - MARGIN.bottom;
    const parts = [];
    for (const mark of marks) {
      parts.push(
        svg("path", { class: mark === 0 ? "ground" : "grid", d: `M${MARGIN.left},${y(mark)}H${right}` }),
        svg("text", { class: "axis y", x: MARGIN.left - 8, y: y(mark) + 4 }, number(mark)));
    }
    for (const at of times(from, to, width < 500 ? 4 : 8)) {
      parts.push(
        svg("path", { class: "ground", d: `M${x(at)},${ground}v4` }),
        svg("text", { class: "axis x", x: x(at), y: height - 5 }, clock(at)));
    }
    parts.push(...connections(steps, to, x, y), ...viewers(steps, to, x, y));
    if (steps.length > 0 && steps[0].at - from > 90_000) {
      parts.push(svg("path", { class: "start", d: `M${x(steps[0].at)},${MARGIN.top}V${ground}` }));
    }
    const { peak, last } = history;
    if (peak && peak.at >= from) {
      const step = steps.find((step) => step.at <= peak.at && peak.at < step.end);
      const middle = step ? (step.at + Math.min(step.end, to)) / 2 : peak.at;
      parts.push(svg("circle", { class: "peak", cx: x(middle), cy: y(peak.viewers), r: 4 }));
    }
    if (last) parts.push(svg("circle", { class: "last", cx: x(to), cy: y(last.viewers), r: 3.5 }));
    parts.push(...this.#reading(steps, from, to, x, ground));
    this.#drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.#drawing.setAttribute("aria-label", this.#summary(steps));
    this.#drawing.replaceChildren(...parts);
  }

  /** A rule under the pointer, and in words what it points at. */
  #reading(steps, from, to, x, ground) {
    const at = this.#under;
    const step = at === undefined ? undefined
      : steps.find((step) => x(step.at) <= at && at <= x(Math.min(step.end, to)));
    if (step === undefined) {
      write(this.#readout, this.#idle(steps, from));
      return [];
    }
    const { min, mean, max } = step.viewers;
    write(this.#readout, `${moment(step.at)} · least ${number(min)} · mean ${decimal(mean)} · most `
      + `${number(max)} · connections ${decimal(step.connections.mean)}`);
    return [svg("path", { class: "rule", d: `M${at},${MARGIN.top}V${ground}` })];
  }

  #idle(steps, from) {
    if (steps.length === 0) return "Nothing recorded yet.";
    const since = steps[0].at - from > 90_000 ? `Recorded since ${moment(steps[0].at)}. ` : "";
    const { peak } = this.#history;
    return peak ? `${since}Peak ${number(peak.viewers)} at ${moment(peak.at)}` : since.trim();
  }

  #summary(steps) {
    if (steps.length === 0) return `${this.name}: nothing recorded yet.`;
    const least = Math.min(...steps.map((step) => step.viewers.min));
    const most = Math.max(...steps.map((step) => step.viewers.max));
    return `${this.name}, last ${duration(this.#minutes * 60_000)}: viewers between ${number(least)} and `
      + `${number(most)}. The figures follow as a table.`;
  }

  #list() {
    if (!this.#table.open || !this.#history) return;
    const steps = this.#history.since(now() - this.#minutes * 60_000);
    this.#body.replaceChildren(...steps.reverse().map((step) => el("tr", {},
      el("th", { scope: "row" }, moment(step.at)),
      ...[duration(step.end - step.at), number(step.viewers.min), decimal(step.viewers.mean),
        number(step.viewers.max), decimal(step.connections.mean)].map(
        (text) => el("td", { class: "number" }, text)))));
  }
}
