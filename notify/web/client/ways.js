/** Whether the next connection is a WebSocket, or an event stream because WebSockets are blocked (docs/client.md, rule 32). */

/** Milliseconds after which a new connection tries a WebSocket again. */
export const AGAIN = 60_000;

export class Ways {
  #blocked = null;

  /** Whether the next connection is an event stream. `now` is in milliseconds. */
  stream(now) {
    return this.#blocked !== null && now - this.#blocked < AGAIN;
  }

  /** A WebSocket did not open, but plain requests are answered. */
  blocked(now) {
    this.#blocked = now;
  }

  /** An event stream did not begin, or a WebSocket opened. */
  free() {
    this.#blocked = null;
  }
}
