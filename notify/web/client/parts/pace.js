/** How fast a client may send: docs/client.md, rule 16. */

/** A bucket of frames that fills at the settings' rate up to their burst. */
export class Pace {
  #settings; #allowance = 0; #at = 0;

  constructor(settings) {
    this.#settings = settings;
  }

  /** A new connection has a full bucket. */
  start(now) {
    this.#allowance = this.#settings.burst;
    this.#at = now;
  }

  /** A frame is sent, whether allowed or not. */
  spend(now) {
    this.#earn(now);
    this.#allowance -= 1;
  }

  /** Whether a frame that can wait may be sent. */
  allows(now) {
    this.#earn(now);
    return this.#allowance >= 0.999;
  }

  /** When one will be. */
  next() {
    return this.#at + Math.max(0, 1 - this.#allowance) / this.#settings.rate;
  }

  #earn(now) {
    this.#allowance = Math.min(this.#settings.burst, this.#allowance + (now - this.#at) * this.#settings.rate);
    this.#at = now;
  }
}
