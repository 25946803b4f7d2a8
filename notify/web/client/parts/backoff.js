/** How long to wait before something is tried again: docs/client.md, rule 1. */

/** Full jitter: anywhere between a floor and a window that doubles with each try up to a cap. */
export class Backoff {
  #settings; #random; #tries = 0;

  constructor(settings, random) {
    this.#settings = settings;
    this.#random = random;
  }

  /** The seconds to wait before the next try, which is counted. */
  next() {
    const { backoff_floor: floor, backoff_base: base, backoff_cap: cap } = this.#settings;
    const window = Math.min(cap, base * 2 ** Math.min(this.#tries, 30));
    this.#tries += 1;
    return floor + this.#random() * Math.max(0, window - floor);
  }

  /** It has succeeded: start over. */
  reset() {
    this.#tries = 0;
  }
}
