// The service's time. Its histories are told in it, and the clock of who looks may be wrong.

/** Smaller differences are the network's, or of no matter; in milliseconds. */
const TOLERATED = 3_000;

let ahead = 0;

/** Learns the service's time from the `Date` of an answer. */
export function learn(date) {
  const difference = Date.parse(date ?? "") - Date.now();
  if (Number.isNaN(difference)) return;
  if (Math.abs(difference - ahead) > TOLERATED) ahead = Math.abs(difference) > TOLERATED ? difference : 0;
}

/** Now, in milliseconds of Unix time, as the service has it. */
export const now = () => Date.now() + ahead;
