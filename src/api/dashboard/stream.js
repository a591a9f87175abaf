// Counts as they change: one stream of the rooms on the screen, read by fetch since EventSource
// sends no Authorization header.

import { problem } from "./api.js";

/** Most rooms that one stream watches. */
const MOST = 100;
/** Shortest time between two streams where only the rooms changed, in milliseconds. */
const SETTLE = 5_000;
/** First and longest wait before another try, in milliseconds. */
const FIRST = 1_000, LONGEST = 30_000;

/** Reads a stream of server-sent events; `act` gets each one's name and data. */
async function read(body, act) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", name = "", data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data.length > 0) act(name, JSON.parse(data.join("\n")));
        [name, data] = ["", []];
        continue;
      }
      const [, field, text] = /^([^:]*):? ?(.*)$/.exec(line);
      if (field === "event") name = text;
      else if (field === "data") data.push(text);
      else if (field === "retry") act("retry", Number(text));
    }
  }
}

export class Live {
  #api;
  #tell;
  #rooms = [];
  #watching = new Set();
  /** Rooms that one stream watches: fewer where their names are too long for a ticket. */
  #most = MOST;
  #current;
  #next;
  #timer;
  #opened = -Infinity;
  #tries = 0;
  #running = false;

  /** `tell` has `count`, called with each count, and `state`, with true while all rooms are watched. */
  constructor(api, tell) {
    this.#api = api;
    this.#tell = tell;
  }

  start() {
    this.#running = true;
    this.#tries = 0;
    if (this.#current === undefined && this.#next === undefined) this.#open();
  }

  stop() {
    this.#running = false;
    this.#clear();
    for (const stream of [this.#current, this.#next]) stream?.abort();
    this.#current = this.#next = undefined;
    this.#watching.clear();
    this.#tell.state(false);
  }

  /** Watches these rooms. Another stream is opened only where one of them is not watched yet. */
  want(rooms) {
    // Nobody is sent the counts of personal rooms.
    this.#rooms = rooms.filter((room) => !room.startsWith("user:"));
    this.#settle();
  }

  get #wanted() {
    return this.#rooms.slice(0, this.#most);
  }

  #settle() {
    const watched = (room) => this.#watching.has(room);
    if (this.#current) this.#tell.state(this.#rooms.every(watched));
    if (!this.#running || this.#next || this.#wanted.every(watched)) return;
    if (this.#current) this.#again(this.#opened + SETTLE - performance.now());
    else if (this.#timer === undefined) this.#again(0);
  }

  #again(wait) {
    this.#clear();
    this.#timer = setTimeout(() => this.#open(), Math.max(0, wait));
  }

  #clear() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  async #open() {
    this.#clear();
    if (!this.#running || this.#wanted.length === 0) return;
    this.#next?.abort();
    const stream = new AbortController();
    this.#next = stream;
    this.#opened = performance.now();
    // What was on the screen a moment ago is likely to come back to it.
    const watch = [...new Set([...this.#wanted, ...this.#watching])].slice(0, this.#most);
    let silence = 50_000, watchdog, asked, smaller = false;
    const awake = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => stream.abort(), silence);
    };
    awake();
    try {
      const response = await this.#api.fetch(this.#api.url("v1/join"), {
        method: "POST",
        headers: { "content-type": "application/json", accept: "text/event-stream" },
        body: JSON.stringify({ watch }),
        signal: stream.signal,
      });
      if (!response.ok) throw await problem(response);
      await read(response.body, (name, told) => {
        awake();
        if (name === "connected") {
          // A silence of two and a half pings: this stream is dead, though nobody said so.
          silence = told.heartbeat * 2500;
          this.#tries = 0;
          const old = this.#current;
          [this.#current, this.#next] = [stream, undefined];
          this.#watching = new Set(watch);
          old?.abort();
          this.#settle();
        } else if (name === "count") this.#tell.count(told);
        else if (name === "retry") asked = told;
        else if (name === "closed") asked = Math.max(asked ?? 0, FIRST);
      });
    } catch (error) {
      // Whatever the cause, the way back is the same; why calls fail, the polling tells.
      asked = error.status === 429 ? LONGEST : undefined;
      smaller = error.code === "ticket_too_large" && watch.length > 1;
    }
    clearTimeout(watchdog);
    if (stream !== this.#current && stream !== this.#next) return;
    if (stream === this.#current) {
      this.#current = undefined;
      this.#watching.clear();
      this.#tell.state(false);
      if (this.#next) return;
    } else {
      this.#next = undefined;
    }
    if (!this.#running) return;
    if (smaller) {
      this.#most = Math.ceil(watch.length / 2);
      return this.#again(0);
    }
    const growing = Math.min(LONGEST, FIRST * 2 ** this.#tries++);
    this.#again(Math.max(asked ?? 0, growing * (0.5 + Math.random() / 2)));
  }
}
