/** How long to wait before a retry: docs/client.md, rule 1. */

/** Exponential backoff with full jitter: a random time between a floor and a window that doubles with each attempt up to a cap. */
export class Backoff {
  #settings; #random; #tries = 0;

  constructor(settings, random) {
    this.#settings = settings;
    this.#random = random;
  }

  /** Count an attempt and return the seconds to wait before it. */
  next() {
    const { backoff_floor: floor, backoff_base: base, backoff_cap: cap } = this.#settings;
    const window = Math.min(cap, base * 2 ** Math.min(this.#tries, 30));
    this.#tries += 1;
    return floor + this.#random() * Math.max(0, window - floor);
  }

  /** An attempt succeeded: start over. */
  reset() {
    this.#tries = 0;
  }
}
