/** The token in use and its replacement: docs/client.md, rules 18 to 21. */

import { Backoff } from "./backoff.js";

/** The token in use, the token that is to replace it, and the time of the replacement. Times are the machine's. */
export class Credentials {
  value = null;
  /** The number of the last fetch, and its deadline; null: no fetch is in flight. */
  fetchNumber = 0;
  fetchDue = null;
  /** When to fetch the next token. */
  refreshAt = null;
  #settings; #random; #unix; #requests; #do; #backoff;
  #accepted = false; #obtained = 0; #expires = null; #lifetime = null; #offered = null;
  #renewing = new Map(); // the commands that wait for a new token to be accepted, and since when
  #stale = false; // the token in flight was fetched before the last of them

  constructor(settings, random, unix, requests, act) {
    this.#settings = settings;
    this.#random = random;
    this.#unix = unix;
    this.#requests = requests;
    this.#do = act;
    this.#backoff = new Backoff(settings, random);
  }

  /** Whether a refusal may be due to the token's age: a server accepted it before, and the refused token is not its replacement. */
  get aged() {
    return this.#accepted && this.#offered === null;
  }

  /** Whether the token at hand is worth trying. */
  usable(now) {
    return this.value !== null && (this.#expires === null || now < this.#expires);
  }

  // --- fetching

  /** Ask the application for a token. */
  fetch(now) {
    this.fetchNumber += 1;
    this.fetchDue = now + this.#settings.token_timeout;
    this.refreshAt = null;
    this.#do({ do: "token", n: this.fetchNumber });
  }

  /** The application answered a fetch. Returns whether the answer is in time and the first one; if not, ignore it. */
  fetched(n) {
    if (n !== this.fetchNumber || this.fetchDue === null) return false;
    this.fetchDue = null;
    return true;
  }

  // --- using

  /** Use this token. `expiresAt` is its expiry in Unix seconds, or null if unknown. */
  adopt(value, now, expiresAt) {
    this.value = value;
    this.#obtained = now;
    this.#accepted = false;
    this.#expires = expiresAt === null ? null : now + expiresAt - this.#unix();
  }

  /** Stop using the token. */
  drop() {
    this.value = null;
  }

  /** The server accepted the token. */
  confirmed(now, expiresAt) {
    this.#accepted = true;
    this.#backoff.reset();
    this.#schedule(now, expiresAt);
    if (this.#stale) {
      this.#stale = false;
      this.fetch(now);
      return;
    }
    const renewing = this.#renewing;
    this.#renewing = new Map();
    for (const [n, since] of renewing) this.#do({ do: "done", n, took: now - since });
  }

  /** Without a connection no token is fetched or replaced. */
  disconnected() {
    this.#offered = this.refreshAt = this.fetchDue = null;
    this.#stale = false;
    if (this.#renewing.size > 0) this.drop();
  }

  /** The client has ended: fail the commands that wait for a new token. */
  close() {
    this.#fail("closed");
  }

  // --- replacing

  /** The application wants a token fetched from now on. The command ends with `done` or `failed` with this `n`. */
  renew(n, now, state) {
    this.#renewing.set(n, now);
    if (this.fetchDue !== null || (state === "connected" && this.#offered === null)) this.fetch(now);
    else if (state === "waiting") this.drop();
    else this.#stale = true;
  }

  /** Ask the server to accept this token in place of the current one. */
  offer(value, now, expiresAt) {
    this.#offered = { value, obtained: now, known: expiresAt };
    this.#requests.ask(this, 0, { type: "refresh", token: value }, now);
  }

  /**
   * The server accepted the offered token.
   * If nobody says when it expires, it is assumed to live as long as the token before it.
   */
  answered(_request, frame, now) {
    if (this.#offered === null) return;
    const { value, obtained, known } = this.#offered;
    const expiresAt = frame.expires_at ?? null;
    this.adopt(value, obtained, null);
    if (known === null && expiresAt === null && this.#lifetime !== null) this.#expires = obtained + this.#lifetime;
    this.#offered = null;
    this.confirmed(now, expiresAt ?? known);
  }

  /** The server refused the offered token. */
  refused(_request, { code, message }, now) {
    this.#do({ do: "error", code, message });
    this.notReplaced(now, code, message);
  }

  /** The replacement failed: try again later. */
  notReplaced(now, code, message) {
    this.#offered = null;
    this.refreshAt = now + this.#backoff.next();
    this.#fail(code, message);
  }

  #fail(code, message) {
    const renewing = this.#renewing;
    this.#renewing = new Map();
    this.#stale = false;
    for (const n of renewing.keys()) this.#do({ do: "failed", n, code, ...(message ? { message } : {}) });
  }

  /**
   * Schedule the next replacement early enough, and spread over time so that not all clients replace their tokens at once.
   * If the server accepted a token that is expired by the client's clock, that clock is wrong. Then wait for the close code 4002.
   */
  #schedule(now, expiresAt) {
    if (expiresAt !== null) {
      this.#expires = now + expiresAt - this.#unix();
      this.#lifetime = this.#expires - this.#obtained;
    }
    this.refreshAt = null;
    if (this.#expires !== null && this.#expires <= now) this.#expires = null;
    if (this.#expires !== null) {
      const margin = Math.min(this.#settings.refresh_margin, (this.#expires - now) / 4);
      this.refreshAt = this.#expires - margin * (1 + this.#random());
    }
  }
}
