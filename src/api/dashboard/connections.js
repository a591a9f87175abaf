// Who is in a room, page by page, and the ending of connections after a question.

import { roomPath } from "./api.js";
import { Rows, duration, el, moment, number, say, write } from "./dom.js";
import { roomLink } from "./parts.js";
import { now } from "./time.js";

/** Connections on one page. */
const PAGE = 25;

export class Connections {
  #room;
  #page;
  #cursors = [undefined];
  #next = null;
  #shown;
  #rows;
  #table;
  #empty = el("p", { class: "empty", hidden: true }, "Nobody is connected to this room right now.");
  #where = el("p", { class: "soft", id: "connections-page" });
  #before = el("button", { type: "button", onclick: () => this.#turn(-1) }, "Previous page");
  #after = el("button", { type: "button", onclick: () => this.#turn(1) }, "Next page");
  #pages = el("div", { class: "pages", hidden: true }, this.#before, this.#after);
  #title = el("h2", { id: "connections-title", tabindex: "-1" }, "Connections");
  #dialog;

  constructor(room, page) {
    this.#room = room;
    this.#page = page;
    const kicks = page.api.token.may("manage", room);
    const body = el("tbody");
    this.#rows = new Rows(body, (connection) => this.#row(connection, kicks));
    this.#table = el("table", { class: "connections" },
      el("caption", { class: "aside" }, `Connections in ${room}`),
      el("thead", {}, el("tr", {},
        el("th", { scope: "col" }, "Reader"),
        el("th", { scope: "col", class: "wide" }, "Connection"),
        el("th", { scope: "col", class: "number" }, "Here for"),
        kicks && el("th", { scope: "col" }, el("span", { class: "aside" }, "Action")))),
      body);
    this.#dialog = kicks ? new KickDialog(page, () => this.#gone()) : undefined;
    this.element = el("section", { class: "panel", "aria-labelledby": "connections-title" },
      el("div", { class: "head" }, this.#title, this.#where),
      this.#empty, this.#table,
      this.#pages,
      this.#dialog?.element);
  }

  close() {
    this.#dialog?.close();
  }

  async ask(signal) {
    const cursor = this.#cursors.at(-1);
    const { connections, next_cursor } = await this.#page.api.get(
      roomPath(this.#room, "/connections"), { limit: PAGE, cursor }, signal);
    // Meanwhile another page was turned to.
    if (cursor !== this.#cursors.at(-1)) return;
    if (connections.length === 0 && this.#cursors.length > 1) {
      this.#cursors.pop();
      return this.ask(signal);
    }
    this.#next = next_cursor;
    const page = this.#cursors.length;
    const none = connections.length === 0;
    // A row that went with the focus in it gives the focus to the one that took its place.
    const focused = this.#rows.keys.findIndex(
      (key) => this.#rows.get(key).element.contains(document.activeElement));
    this.#rows.show(connections, ({ connection }) => connection);
    if (focused >= 0 && document.activeElement === document.body) this.#focus(focused);
    this.#table.hidden = none;
    this.#empty.hidden = !none;
    this.#shown = none ? undefined : (page - 1) * PAGE + connections.length;
    const paged = page > 1 || next_cursor !== null;
    this.#pages.hidden = !paged;
    // Not `disabled`, which would take the focus away from under a finger.
    this.#before.ariaDisabled = String(page === 1);
    this.#after.ariaDisabled = String(next_cursor === null);
  }

  /** Says how many there are beside those on the page. */
  count({ connections }) {
    const first = (this.#cursors.length - 1) * PAGE + 1;
    write(this.#where, this.#shown === undefined ? ""
      : `${number(first)} to ${number(this.#shown)} of ${number(Math.max(connections, this.#shown))}`);
  }

  #turn(by) {
    if (by > 0 && this.#next !== null) this.#cursors.push(this.#next);
    else if (by < 0 && this.#cursors.length > 1) this.#cursors.pop();
    else return;
    this.#page.refresh();
    say(`Page ${this.#cursors.length} of the connections.`);
  }

  #focus(index) {
    const row = this.#rows.get(this.#rows.keys[Math.min(index, this.#rows.keys.length - 1)]);
    (row?.element.querySelector("button, a") ?? this.#title).focus();
  }

  #row(listed, kicks) {
    const { connection, user_id, viewer, since } = listed;
    const who = user_id !== null ? roomLink(`user:${user_id}`) : viewer ?? "anonymous";
    // Where the column of connections has no room, its beginning tells one from another.
    const short = el("code", { class: "narrow soft" }, ` ${connection.slice(0, 8)}`);
    const time = el("time", { datetime: since, title: moment(Date.parse(since)) });
    const element = el("tr", {},
      el("th", { scope: "row", class: user_id === null && viewer === null && "soft" }, who, short),
      el("td", { class: "wide" }, el("code", {}, connection)),
      el("td", { class: "number" }, time),
      kicks && el("td", { class: "action" }, el("button", {
        type: "button", "aria-label": `End the connection of ${name(listed)}`,
        onclick: () => this.#dialog.ask(listed),
      }, "End…")));
    return { element, update: () => write(time, duration(now() - Date.parse(since))) };
  }

  #gone() {
    this.#page.refresh();
  }
}

const name = ({ connection, user_id, viewer }) =>
  user_id !== null ? `user ${user_id}` : viewer ?? `the anonymous reader ${connection.slice(0, 8)}`;

/** Asks before it ends one connection, or all of a signed-in reader's. */
class KickDialog {
  #page;
  #gone;
  #listed;
  #question = el("p", { id: "kick-question" });
  #one = el("input", { type: "radio", name: "kick", value: "one", checked: true });
  #all = el("input", { type: "radio", name: "kick", value: "all" });
  #allText = el("span");
  #choice = el("fieldset", {},
    el("legend", {}, "What ends"),
    el("label", { class: "check" }, this.#one, " This connection"),
    el("label", { class: "check" }, this.#all, " ", this.#allText));
  #block = el("input", {
    id: "kick-block", type: "number", min: "0", max: "86400", step: "1", value: "60", inputmode: "numeric",
    "aria-describedby": "kick-hint",
  });
  #hint = el("p", { class: "hint", id: "kick-hint" });
  #error = el("p", { class: "error", role: "alert" });
  #cancel = el("button", { type: "button", onclick: () => this.close() }, "Cancel");
  #confirm = el("button", { type: "submit", class: "danger" }, "End it");

  constructor(page, gone) {
    this.#page = page;
    this.#gone = gone;
    this.element = el("dialog", { "aria-labelledby": "kick-title", "aria-describedby": "kick-question" },
      el("form", { novalidate: true, onsubmit: (event) => {
        event.preventDefault();
        this.#kick();
      } },
      el("h2", { id: "kick-title" }, "End this connection?"),
      this.#question, this.#choice,
      el("label", { for: "kick-block" }, "Seconds to keep them out"), this.#block,
      this.#hint,
      this.#error,
      el("div", { class: "buttons" },
this.#cancel, this.#confirm)));
  }

  ask(listed) {
    this.#listed = listed;
    const { user_id, viewer } = listed;
    write(this.#hint, `At most 86,400, a day. ${user_id === null && viewer === null
      ? "Who gave no name may be back before, by reloading the page."
      : "Until then they are refused, reloading or not."}`);
    write(this.#question,
      `The page of ${name(listed)} gets no more counts and messages, and does not reconnect by itself.`);
    this.#choice.hidden = user_id === null;
    this.#one.checked = true;
    write(this.#allText, `All connections of user ${user_id}`);
    write(this.#error, "");
    this.#confirm.ariaDisabled = "false";
    this.element.showModal();
    this.#cancel.focus();
  }

  close() {
    this.element.close();
  }

  async #kick() {
    if (this.#confirm.ariaDisabled === "true") return;
    const block = Number(this.#block.value);
    if (this.#block.value === "" || !Number.isInteger(block) || block < 0 || block > 86_400) {
      write(this.#error, "Say a whole number of seconds from 0 to 86,400.");
      return this.#block.focus();
    }
    const { connection, user_id } = this.#listed;
    const all = user_id !== null && this.#all.checked;
    const path = all ? `v1/users/${encodeURIComponent(user_id)}/connections` : `v1/connections/${connection}`;
    this.#confirm.ariaDisabled = "true";
    try {
      await this.#page.api.delete(path, { block });
      say(all ? `All connections of user ${user_id} are ended.` : "The connection is ended.");
    } catch (error) {
      if (error.code !== "unknown_connection") {
        this.#confirm.ariaDisabled = "false";
        return write(this.#error, error.message);
      }
      say("The connection had already ended.");
    }
    this.close();
    this.#gone();
  }
}
