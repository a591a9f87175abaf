// Elements, tables whose rows keep their place and focus, and how numbers and times are written.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

/** An element; attributes named `on…` are listeners. Text is always text, never markup. */
export const el = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);

/** The same within a drawing. */
export const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

/** Writes a text where it changed: what did not is left to those who select or read it. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const counts = new Intl.NumberFormat("en");
const decimals = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const minutes = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const seconds = new Intl.DateTimeFormat("en", {
  hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});
const days = new Intl.DateTimeFormat("en", { day: "numeric", month: "short" });

export const number = (value) => counts.format(value);
export const decimal = (value) => decimals.format(value);
export const clock = (when) => minutes.format(when);
export const clockSeconds = (when) => seconds.format(when);

/** A time of today as 14:31, of another day as 3 May, 14:31. */
export function moment(when) {
  const date = new Date(when);
  const today = date.toDateString() === new Date().toDateString();
  return today ? clock(date) : `${days.format(date)}, ${clock(date)}`;
}

/** How long, in the two largest units: 3 d 4 h, 12 min 5 s. */
export function duration(ms) {
  let rest = Math.max(0, Math.round(ms / 1000));
  const parts = [];
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    const whole = Math.floor(rest / size);
    rest -= whole * size;
    if (whole > 0) parts.push(`${whole} ${unit}`);
    else if (parts.length > 0) break;
    if (parts.length === 2) break;
  }
  return parts.join(" ") || "0 s";
}

export const plural = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;

/** A table's body of one row per key. Rows are made once and moved only where they must be. */
export class Rows {
  #made = new Map();

  constructor(body, make) {
    this.body = body;
    this.make = make;
  }

  get keys() {
    return [...this.#made.keys()];
  }

  get(key) {
    return this.#made.get(key);
  }

  /** Shows these items, in this order. Whoever's focus was in a row keeps it. */
  show(items, key) {
    const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
    const wanted = new Map(items.map((item) => [key(item), item]));
    for (const [name, row] of this.#made) {
      if (wanted.has(name)) continue;
      row.element.remove();
      this.#made.delete(name);
    }
    let at = this.body.firstElementChild;
    const inOrder = new Map();
    for (const [name, item] of wanted) {
      const row = this.#made.get(name) ?? this.make(item);
      inOrder.set(name, row);
      row.update(item);
      if (row.element === at) at = at.nextElementSibling;
      else this.body.insertBefore(row.element, at);
    }
    this.#made = inOrder;
    if (focused?.isConnected && document.activeElement !== focused) {
      focused.focus({ preventScroll: true });
    }
  }
}

let due, text;
/** Has a screen reader read this out; of what comes within a second, the last. */
export function say(what) {
  text = what;
  due ??= setTimeout(() => {
    due = undefined;
    document.getElementById("said").textContent = text;
  }, 1000);
}
