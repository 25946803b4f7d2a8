/** The token in use and the one that is to replace it: docs/client.md, rules 18 to 21. */

import { Backoff } from "./backoff.js";

/** The token in use, the one that is to replace it, and when that has to happen. Times as in the machine. */
export class Credentials {
  value = null;
  /** The number of the last fetch, and by when it has to be done; null: none is under way. */
  fetchNumber = 0;
  fetchDue = null;
  /** When to fetch the next one. */
  refreshAt = null;
  #settings; #random; #unix; #requests; #do; #backoff;
  #accepted = false; #obtained = 0; #expires = null; #lifetime = null; #offered = null;
  #renewing = new Map(); // who waits for a new token to be in force, since when
  #stale = false; // the one that is on its way was fetched before that

  constructor(settings, random, unix, requests, act) {
    this.#settings = settings;
    this.#random = random;
    this.#unix = unix;
    this.#requests = requests;
    this.#do = act;
    this.#backoff = new Backoff(settings, random);
  }

  /** Whether a refusal can be for its age: a server took it once, and it is not its successor that is refused. */
  get aged() {
    return this.#accepted && this.#offered === null;
  }

  /** Whether to try with the token at hand. */
  usable(now) {
    return this.value !== null && (this.#expires === null || now < this.#expires);
  }

  // --- fetching

  /** Ask the program for a token. */
  fetch(now) {
    this.fetchNumber += 1;
    this.fetchDue = now + this.#settings.token_timeout;
    this.refreshAt = null;
    this.#do({ do: "token", n: this.fetchNumber });
  }

  /** The program's answer to a fetch has come, in time and for the first time; else false: ignore it. */
  fetched(n) {
    if (n !== this.fetchNumber || this.fetchDue === null) return false;
    this.fetchDue = null;
    return true;
  }

  // --- using

  /** Use this token; `expiresAt` is Unix time, or null where it is not known. */
  adopt(value, now, expiresAt) {
    this.value = value;
    this.#obtained = now;
    this.#accepted = false;
    this.#expires = expiresAt === null ? null : now + expiresAt - this.#unix();
  }

  /** Use it no more. */
  drop() {
    this.value = null;
  }

  /** The server took it. */
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

  /** Nothing is fetched or replaced without a connection. */
  disconnected() {
    this.#offered = this.refreshAt = this.fetchDue = null;
    this.#stale = false;
    if (this.#renewing.size > 0) this.drop();
  }

  /** It is over: fail those who wait for a new token. */
  close() {
    this.#fail("closed");
  }

  // --- replacing

  /** The program wants a token that is fetched from now on; `done` or `failed` with this `n` is the end of it. */
  renew(n, now, state) {
    this.#renewing.set(n, now);
    if (this.fetchDue !== null || (state === "connected" && this.#offered === null)) this.fetch(now);
    else if (state === "waiting") this.drop();
    else this.#stale = true;
  }

  /** Ask the server to take this one instead. */
  offer(value, now, expiresAt) {
    this.#offered = { value, obtained: now, known: expiresAt };
    this.#requests.ask(this, 0, { type: "refresh", token: value }, now);
  }

  /**
   * The server took the one that was offered.
   * Where nobody says when it expires, it is taken to live as long as the one before it.
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

  /** The server did not take it. */
  refused(_request, { code, message }, now) {
    this.#do({ do: "error", code, message });
    this.notReplaced(now, code, message);
  }

  /** Try again later. */
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
   * Replace it early enough, and not all clients at once.
   * Where it has expired by our clock though the server took it, our clock is wrong: then 4002 will tell.
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
