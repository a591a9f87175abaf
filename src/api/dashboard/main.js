// Signing in and out, which page is shown, and the beat to which its numbers are asked for.

import { Api, Problem } from "./api.js";
import { clockSeconds, el, say, write } from "./dom.js";
import { Overview } from "./overview.js";
import { Room } from "./room.js";
import { Live } from "./stream.js";
import { now } from "./time.js";
import { forget, keep, kept, read } from "./token.js";

/** Between two rounds of calls while all is well, and at most while it is not; in milliseconds. */
const BEAT = 2_000, LONGEST = 30_000;
/** How long a page that nobody looks at keeps its stream, in milliseconds. */
const HIDDEN = 15_000;
/** How long before its end a token's end is spoken of, in milliseconds. */
const WARNING = 5 * 60_000;

/** A room's name, as openapi.yaml has it. */
const ROOM = /^[a-z][a-z0-9_-]{0,31}:[A-Za-z0-9._~:@|+-]{1,128}$/;

const at = (id) => document.getElementById(id);

class Session {
  #live;
  #view;
  #timer;
  #asking;
  #tries = 0;
  #fresh = Date.now();
  #streaming = false;
  #trouble;

  constructor(api) {
    this.api = api;
    this.#live = new Live(api, {
      count: (count) => this.#view?.count(count),
      state: (up) => {
        this.#streaming = up;
        this.#showState();
      },
    });
  }

  /** Shows the page that the address names: `#/room/…`, else the overview. */
  show() {
    this.#view?.close();
    const room = roomInAddress();
    const page = { api: this.api, refresh: () => this.refresh() };
    if (room === undefined) this.#view = new Overview(page);
    else if (ROOM.test(room)) this.#view = new Room(room, page);
    else this.#view = new Overview({ ...page, lost: room });
    at("view").replaceChildren(this.#view.element);
    document.title = `${this.#view.title} · livecount`;
    this.resume();
  }

  /** Sets the numbers in motion, again or for the first time. */
  resume() {
    this.#tries = 0;
    this.#live.start();
    this.refresh();
  }

  /** Lets them rest. The stream goes too, at once or when it is told to. */
  pause() {
    clearTimeout(this.#timer);
    this.#asking?.abort();
    this.#asking = undefined;
    this.#showState();
  }

  rest() {
    this.#live.stop();
  }

  end() {
    this.pause();
    this.rest();
    this.#view?.close();
    at("view").replaceChildren();
  }

  /** Asks for everything now, and from then on at each beat. */
  async refresh() {
    clearTimeout(this.#timer);
    this.#asking?.abort();
    const asking = this.#asking = new AbortController();
    let wait = BEAT;
    try {
      await this.#view.ask(asking.signal);
      if (asking.signal.aborted) return;
      if (this.#tries > 0) say("The numbers are live again.");
      this.#tries = 0;
      this.#fresh = Date.now();
      this.#live.want(this.#view.rooms);
    } catch (error) {
      if (asking.signal.aborted) return;
      if (!(error instanceof Problem)) console.error(error);
      if (error.signsOut) return signOut(excuse(error));
      if (this.#tries === 0) say(`The numbers are stale: ${error.message}`);
      wait = Math.min(LONGEST, BEAT * 2 ** this.#tries++) * (0.75 + Math.random() / 2);
      this.#trouble = error;
    }
    this.#asking = undefined;
    this.#showState();
    this.#timer = setTimeout(() => this.refresh(), wait);
  }

  #showState() {
    const { expires } = this.api.token;
    const ending = expires !== undefined && expires - now() < WARNING;
    at("notice").hidden = !ending;
    if (ending) write(at("notice"), `This token ends at ${clockSeconds(expires)}; then another is needed.`);

    const stale = this.#tries > 0;
    const state = document.hidden ? "pause" : stale ? "stale" : this.#streaming ? "live" : "poll";
    at("state").dataset.state = document.documentElement.dataset.state = state;
    at("try-now").hidden = !stale;
    write(at("state-text"), {
      pause: "Paused",
      stale: `Stale since ${clockSeconds(this.#fresh)}. ${this.#trouble?.message}`,
      live: "Live",
      poll: "Updated every 2 s",
    }[state]);
  }
}

function roomInAddress() {
  const [, name] = /^#\/room\/(.+)$/.exec(location.hash) ?? [];
  try {
    return name && decodeURIComponent(name);
  } catch {
    return name;
  }
}

let session;

/** Why a token was not let in, for whoever holds it. */
function excuse(error) {
  switch (error.code) {
    case "token_expired": return "This token has expired. Sign in with a new one.";
    case "insufficient_scope": return "This token is valid, but lacks the scope read.";
    case "invalid_token": return `The service does not accept this token. ${error.message}`;
    default: return error.message;
  }
}

function show(signedIn) {
  at("sign-in").hidden = signedIn;
  for (const id of ["view", "state", "who"]) at(id).hidden = !signedIn;
  at("skip").hidden = !signedIn;
}

function signOut(why = "") {
  forget();
  session?.end();
  session = undefined;
  at("notice").hidden = true;
  delete document.documentElement.dataset.state;
  document.title = "Sign in · livecount";
  show(false);
  write(at("token-error"), why);
  at("token").focus();
}

function start(token) {
  session = new Session(new Api(token));
  write(at("token-error"), "");
  at("who-text").replaceChildren(el("b", {}, token.sub || "signed in"), " ",
    el("span", { class: "soft" }, token.scopes.join(", ")));
  show(true);
  session.show();
}

at("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = at("sign-in-button");
  if (button.ariaDisabled === "true") return;
  button.ariaDisabled = "true";
  write(at("token-error"), "");
  try {
    const token = read(at("token").value);
    await new Api(token).get("v1/stats");
    start(token);
    if (at("keep").checked) keep(token);
    at("token").value = "";
    at("main").focus();
    say("Signed in.");
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    at("token").ariaInvalid = "true";
    write(at("token-error"), error instanceof Problem ? excuse(error) : error.message);
    at("token").focus();
  } finally {
    button.ariaDisabled = "false";
  }
});
at("token").addEventListener("input", () => {
  at("token").ariaInvalid = "false";
});
at("sign-out").addEventListener("click", () => {
  signOut();
  say("Signed out.");
});
at("try-now").addEventListener("click", () => session?.resume());
at("skip").addEventListener("click", (event) => {
  // The address names the page, so it does not name the place in it.
  event.preventDefault();
  at("main").focus();
});

addEventListener("hashchange", () => {
  if (!session) return;
  session.show();
  at("view").querySelector("h1").focus();
});
addEventListener("online", () => session?.resume());

let resting;
document.addEventListener("visibilitychange", () => {
  clearTimeout(resting);
  if (!document.hidden) return session?.resume();
  session?.pause();
  resting = setTimeout(() => session?.rest(), HIDDEN);
});
// A page that may come back is to hold no stream while it is away.
addEventListener("pagehide", () => {
  session?.pause();
  session?.rest();
});
addEventListener("pageshow", (event) => {
  if (event.persisted) session?.resume();
});

// A service that is away right now is no reason to forget a token that it let in before.
const known = kept();
if (known === undefined) signOut();
else start(known);
