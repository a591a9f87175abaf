/** The numbers of a room, as the service pushes them. */
export interface Count {
  /** The room: `blog:42`. */
  room: string;
  /** The blog, where the room is a blog's. */
  blog_id?: string;
  /** Distinct readers. */
  viewers: number;
  /** Open streams. Tabs of one browser share one. */
  connections: number;
  /** Readers known by a token. */
  members: number;
  /** The numbers of other nodes are not known yet. */
  partial?: boolean;
}

/**
 * - `waiting`: no number yet;
 * - `live`: the number is current, or a break of it is so short that nobody need know;
 * - `away`: the service does not answer; it is tried again, later and later;
 * - `stopped`: closed, or refused for good: `kicked`, `replaced`, or the `code` of an error.
 */
export type State = "waiting" | "live" | "away" | "stopped";

export interface Options {
  /** The blog. This or `room`. */
  blogId?: string | number;
  /** The room's full name, such as `match:12`. */
  room?: string;
  /** The service's address, with its path prefix. Where the script came from, unless given. */
  server?: string;
  /** Shows the number without being counted. */
  watch?: boolean;
  /**
   * The reader's token: a function that answers one, the name of a global function that does, or the
   * address of one as plain text. Asked before each join and each renewal. What is no token, such as a
   * page to log in, or a redirect: the reader is anonymous. An error, an answer of 5xx or none within 5 s:
   * tried once more, then the reader is anonymous until the next join or renewal.
   */
  token?: string | (() => string | undefined | null | Promise<string | undefined | null>);
  /** `include` sends cookies to a service of another origin, which must list this one. */
  credentials?: RequestCredentials;
  /**
   * `false`: keeps no viewer id in local storage and shares nothing with other tabs, each of which is then
   * a connection and a viewer.
   */
  viewer?: boolean;
  /** Called with each new number. */
  onCount?(count: Count): void;
  /** Called when the state changes; with why, where it is `stopped`. */
  onState?(state: State, reason?: string): void;
}

/**
 * The number of a room, as it changes. All that a page makes share one connection, and so do the tabs of
 * a browser.
 */
export class LiveCount {
  constructor(options: Options);
  /** The newest number. */
  readonly count?: Count;
  readonly state: State;
  /** The room. */
  readonly room: string;
  /** Ends it: the page is no longer counted by it. */
  close(): void;
}
