// Calls to the service, and why one failed.

import { learn } from "./time.js";

/** How long an answer may take, in milliseconds. */
const PATIENCE = 10_000;

/** A call that did not do what was asked. Status 0 where there was no answer at all. */
export class Problem extends Error {
  constructor(status, code, detail, options) {
    super(detail, options);
    this.status = status;
    this.code = code;
  }

  /** True where the token is at fault, so that only another one helps. */
  get signsOut() {
    return this.status === 401 || this.code === "insufficient_scope";
  }
}

/** The problem that an answer tells of (RFC 9457). */
export async function problem(response) {
  let told = {};
  try {
    told = await response.json();
  } catch {
    // A proxy's page: the status has to do.
  }
  const detail = told.detail ?? told.title ?? `The answer was ${response.status}.`;
  return new Problem(response.status, told.code ?? "unknown", detail);
}

export class Api {
  constructor(token) {
    this.token = token;
  }

  /** Where a path is, below the prefix that the page was served under. */
  url(path, query = {}) {
    const url = new URL(path, new URL("./", location.href));
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined) url.searchParams.set(name, value);
    }
    return url;
  }

  /** The request with the token in its header: nowhere else is it ever sent. */
  async fetch(url, options) {
    const headers = { ...options.headers, authorization: `Bearer ${this.token.text}` };
    try {
      return await fetch(url, {
        ...options, headers, credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
      });
    } catch (error) {
      if (options.signal?.aborted) throw options.signal.reason;
      throw new Problem(0, "unreachable", "The service does not answer.", { cause: error });
    }
  }

  async #call(method, path, { query, body, signal } = {}) {
    const stop = new AbortController();
    const late = new Problem(0, "unreachable", "The service takes too long to answer.");
    const timer = setTimeout(() => stop.abort(late), PATIENCE);
    const follow = () => stop.abort(signal.reason);
    signal?.addEventListener("abort", follow);
    if (signal?.aborted) follow();
    try {
      const response = await this.fetch(this.url(path, query), {
        method,
        headers: body === undefined ? {} : { "content-type": "application/json" },
        body: body === undefined ? undefined : JSON.stringify(body),
        signal: stop.signal,
      });
      learn(response.headers.get("date"));
      if (!response.ok) throw await problem(response);
      return response.status === 204 ? undefined : await response.json();
    } catch (error) {
      // The body broke off half-way.
      if (error instanceof Problem || stop.signal.aborted) throw error;
      throw new Problem(0, "unreachable", "The answer broke off.");
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", follow);
    }
  }

  get(path, query, signal) {
    return this.#call("GET", path, { query, signal });
  }

  post(path, body) {
    return this.#call("POST", path, { body });
  }

  delete(path, body) {
    return this.#call("DELETE", path, { body });
  }
}

/** A room's own path. */
export const roomPath = (room, rest = "") => `v1/rooms/${encodeURIComponent(room)}${rest}`;
