// The last hour of a room, or of all of them: steps as the service keeps them, carried on to this
// moment by the numbers that come in live.

import { now } from "./time.js";

/** How many minutes to ask for, so that the steps reach back that far: one of them is running. */
export const reach = (minutes) => Math.min(1440, minutes + 1);

/** A step's times in milliseconds, and what was counted in it. */
function step(told) {
  const at = Date.parse(told.at);
  return { at, end: at + told.seconds * 1000, viewers: told.viewers, connections: told.connections };
}

function widen(range, value) {
  range.min = Math.min(range.min, value);
  range.max = Math.max(range.max, value);
}

export class History {
  steps = [];
  peak;
  /** The newest count. */
  last;
  /** When it was last taken, by the clock of `performance.now()`. */
  taken = -Infinity;

  /** Takes an answer of `/v1/history` or `/v1/rooms/{room}/history`. */
  take(told) {
    this.steps = told.steps.map(step);
    this.peak = told.peak === null ? undefined
      : { viewers: told.peak.viewers, at: Date.parse(told.peak.at) };
    this.taken = performance.now();
    this.live(told.now);
  }

  /** Takes a count that holds now: it belongs to the running minute. */
  live({ viewers, connections }) {
    const at = now();
    this.last = { viewers, connections };
    if (viewers > (this.peak?.viewers ?? 0)) this.peak = { viewers, at };
    const running = this.steps.at(-1);
    if (running === undefined || at >= running.end) return;
    widen(running.viewers, viewers);
    widen(running.connections, connections);
  }

  /** Steps that reach into the time after `from`. */
  since(from) {
    return this.steps.filter((step) => step.end > from);
  }

  /** By how much the number now differs from the mean of some minutes ago; nothing where unknown. */
  trend(minutes) {
    const at = now() - minutes * 60_000;
    const then = this.steps.find((step) => step.at <= at && at < step.end);
    if (then === undefined || this.last === undefined) return undefined;
    return Math.round(this.last.viewers - then.viewers.mean);
  }
}
