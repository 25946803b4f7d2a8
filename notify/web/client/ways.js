/** Which way the next connection takes: a WebSocket, or an event stream where those are blocked (docs/client.md, rule 32). */

/** Milliseconds after which whoever connects anew tries a WebSocket again. */
export const AGAIN = 60_000;

export class Ways {
  #blocked = null;

  /** Whether the next one is a stream. `now` in milliseconds. */
  stream(now) {
    return this.#blocked !== null && now - this.#blocked < AGAIN;
  }

  /** A WebSocket did not open, and plain requests pass. */
  blocked(now) {
    this.#blocked = now;
  }

  /** A stream did not begin, or a WebSocket opened. */
  free() {
    this.#blocked = null;
  }
}
