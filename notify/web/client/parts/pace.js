/** The client's own rate limit: docs/client.md, rule 16. */

/** A token bucket for frames: `rate` of the settings refills it, up to `burst`. */
export class Pace {
  #settings; #allowance = 0; #at = 0;

  constructor(settings) {
    this.#settings = settings;
  }

  /** A new connection starts with a full bucket. */
  start(now) {
    this.#allowance = this.#settings.burst;
    this.#at = now;
  }

  /** Count a frame that is sent, whether allowed or not. */
  spend(now) {
    this.#earn(now);
    this.#allowance -= 1;
  }

  /** Whether a frame that can wait may be sent now. */
  allows(now) {
    this.#earn(now);
    return this.#allowance >= 0.999;
  }

  /** When the next frame may be sent. */
  next() {
    return this.#at + Math.max(0, 1 - this.#allowance) / this.#settings.rate;
  }

  #earn(now) {
    this.#allowance = Math.min(this.#settings.burst, this.#allowance + (now - this.#at) * this.#settings.rate);
    this.#at = now;
  }
}
