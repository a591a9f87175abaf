// Sending a message to everybody in a room.

import { roomPath } from "./api.js";
import { el, plural, say, write } from "./dom.js";

/** What may name a message, as openapi.yaml has it; the service refuses what it keeps for itself. */
const EVENT = /^[A-Za-z][A-Za-z0-9_.-]{0,63}$/;

/** A key that no other message has; `randomUUID` is missing where the page came by plain HTTP. */
const freshKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)),
  (byte) => byte.toString(16).padStart(2, "0")).join("");

export class MessageForm {
  #room;
  #page;
  #event = el("input", {
    id: "message-event", type: "text", value: "message", autocomplete: "off", autocapitalize: "off",
    spellcheck: "false", maxlength: "64", "aria-describedby": "message-error",
  });
  #data = el("textarea", {
    id: "message-data", rows: "6", spellcheck: "false", autocapitalize: "off", autocomplete: "off",
    placeholder: '{"text": "Back in five minutes"}', "aria-describedby": "message-error",
  });
  #reach = el("p", { class: "hint" });
  #error = el("p", { class: "error", id: "message-error", role: "alert" });
  #sent = el("p", { class: "sent" });
  #send = el("button", { type: "submit", class: "primary" }, "Send");
  #last = {};

  constructor(room, page) {
    this.#room = room;
    this.#page = page;
    this.element = el("section", { class: "panel", "aria-labelledby": "message-title" },
      el("h2", { id: "message-title" }, "Send a message"),
      el("form", { novalidate: true, onsubmit: (event) => {
        event.preventDefault();
        this.#submit();
      } },
      el("label", { for: "message-event" }, "Event name"), this.#event,
      el("label", { for: "message-data" }, "Data, as JSON"), this.#data,
      this.#error, this.#reach, this.#send, this.#sent));
    for (const field of [this.#event, this.#data]) {
      field.addEventListener("input", () => {
        field.ariaInvalid = "false";
        write(this.#sent, "");
      });
    }
  }

  show({ connections }) {
    write(this.#reach, connections === 0 ? "Nobody is here; it is kept for those who come back."
      : `Goes to ${plural(connections, "connection", "connections")}.`);
  }

  #refuse(field, why) {
    write(this.#error, why);
    field.ariaInvalid = "true";
    field.focus();
  }

  async #submit() {
    if (this.#send.ariaDisabled === "true") return;
    write(this.#error, "");
    write(this.#sent, "");
    const event = this.#event.value.trim();
    if (!EVENT.test(event)) {
      return this.#refuse(this.#event,
        "An event's name is a letter, then up to 63 letters, digits, dots, dashes or underscores.");
    }
    let data;
    try {
      data = JSON.parse(this.#data.value);
    } catch (error) {
      return this.#refuse(this.#data, `This is no JSON: ${error.message}`);
    }
    // The same message again after a lost answer is the same message: it is not delivered twice.
    const text = JSON.stringify([event, data]);
    if (this.#last.text !== text) this.#last = { text, key: freshKey() };
    this.#send.ariaDisabled = "true";
    try {
      const { duplicate } = await this.#page.api.post(roomPath(this.#room, "/messages"),
        { event, data, idempotency_key: this.#last.key });
      this.#last = {};
      const done = duplicate ? "It had been sent before." : "Sent.";
      write(this.#sent, done);
      say(done);
    } catch (error) {
      if (error.code === "invalid_event") this.#refuse(this.#event, error.message);
      else write(this.#error, error.message);
    } finally {
      this.#send.ariaDisabled = "false";
    }
  }
}
