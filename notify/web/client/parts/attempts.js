/** Whether the client comes back after a connection, and when: docs/client.md, rules 1 to 5. */

import { Backoff } from "./backoff.js";

/** Close codes of the server that the client does something about (docs/protocol.md). */
export const TOKEN_EXPIRED = 4002, AUTH_FAILED = 4500, AUTH_TIMEOUT = 4501;
/** Authentication time-outs in a row after which the client ends. */
const MAX_AUTH_TIMEOUTS = 3;

/** The tries to have a connection since the last stable one. */
export class Attempts {
  /** The server has named the time of the next try. */
  advised = false;
  #settings; #backoff; #connectedAt = null; #authTimeouts = 0;

  constructor(settings, random) {
    this.#settings = settings;
    this.#backoff = new Backoff(settings, random);
  }

  /** Begin anew. */
  start() {
    this.#backoff.reset();
    this.#connectedAt = null;
    this.#authTimeouts = 0;
  }

  /** A try has succeeded. */
  connected(now) {
    this.#connectedAt = now;
    this.#authTimeouts = 0;
  }

  /** Whether the server's close with this code ends the client. `AUTH_FAILED` is the caller's to judge. */
  final(code) {
    if (code === AUTH_TIMEOUT) {
      this.#authTimeouts += 1;
      return this.#authTimeouts >= MAX_AUTH_TIMEOUTS;
    }
    return code >= 4500 && code <= 4999;
  }

  /** The seconds to wait before the next try, which is counted; `advice` is the server's, or null. */
  next(now, advice) {
    if (this.#connectedAt !== null && now - this.#connectedAt >= this.#settings.stable_after) this.#backoff.reset();
    this.#connectedAt = null;
    const delay = this.#backoff.next();
    this.advised = advice !== null;
    if (!this.advised) return delay;
    return Math.max(this.#settings.backoff_floor, Math.min(advice, this.#settings.advice_cap));
  }
}

/**
 * A close reason's advice, `{"retry_after_ms": N, "elsewhere": true}`: `wait` in seconds, null where it names none, and whether
 * to come back by another client_id.
 */
export function advice(reason) {
  try {
    const { retry_after_ms: wait, elsewhere } = JSON.parse(reason);
    return { wait: typeof wait === "number" && wait >= 0 ? wait / 1000 : null, elsewhere: elsewhere === true };
  } catch {
    return { wait: null, elsewhere: false };
  }
}
