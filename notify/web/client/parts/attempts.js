/** Whether and when the client reconnects: docs/client.md, rules 1 to 5. */

import { Backoff } from "./backoff.js";

/** The server's close codes that the client treats specially (docs/protocol.md). */
export const TOKEN_EXPIRED = 4002, AUTH_FAILED = 4500, AUTH_TIMEOUT = 4501;
/** The client ends after this many authentication timeouts in a row. */
const MAX_AUTH_TIMEOUTS = 3;

/** The attempts to connect since the last stable connection. */
export class Attempts {
  /** The server has set the time of the next attempt. */
  advised = false;
  #settings; #backoff; #connectedAt = null; #authTimeouts = 0;

  constructor(settings, random) {
    this.#settings = settings;
    this.#backoff = new Backoff(settings, random);
  }

  /** Start over. */
  start() {
    this.#backoff.reset();
    this.#connectedAt = null;
    this.#authTimeouts = 0;
  }

  /** An attempt succeeded. */
  connected(now) {
    this.#connectedAt = now;
    this.#authTimeouts = 0;
  }

  /** Whether this close code of the server ends the client. The caller decides about `AUTH_FAILED`. */
  final(code) {
    if (code === AUTH_TIMEOUT) {
      this.#authTimeouts += 1;
      return this.#authTimeouts >= MAX_AUTH_TIMEOUTS;
    }
    return code >= 4500 && code <= 4999;
  }

  /** Count an attempt and return the seconds to wait before it. `advice` is the server's, in seconds, or null. */
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
 * Parse a close reason `{"retry_after_ms": N, "elsewhere": true}`: `wait` is the seconds to wait, or null if it has none;
 * `elsewhere` is whether to reconnect with another client_id.
 */
export function advice(reason) {
  try {
    const { retry_after_ms: wait, elsewhere } = JSON.parse(reason);
    return { wait: typeof wait === "number" && wait >= 0 ? wait / 1000 : null, elsewhere: elsewhere === true };
  } catch {
    return { wait: null, elsewhere: false };
  }
}
