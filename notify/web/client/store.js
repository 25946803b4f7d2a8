/** Positions in the browser's storage. Tabs do not share them: whoever reads one has written it. */

const LOCK = "notify-client";
/** Milliseconds that a page which loads again waits for the one before it to let go. */
const HANDOVER = 1000;

/**
 * Positions in `localStorage` (or another `Storage`). The prefix names the user: positions of two must not mix.
 *
 * Each open tab has a slot of its own, which it holds by a Web Lock: the first the keys `prefix:…`, the others
 * `prefix#1:…` and so on. A tab that opens takes the first free slot and goes on from where that was left, a page that is
 * loaded again the slot that it had. Without Web Locks (a page needs https or localhost for them) positions are kept for the
 * tab alone, in `sessionStorage`, and the console is told; without that, too, the constructor throws.
 */
export class LocalStorageStore {
  #prefix; #storage; #session; #locks;
  #opening = null; #base = null; #release = null; #released = null;

  constructor(prefix, storage = globalThis.localStorage, options = {}) {
    const { locks = globalThis.navigator?.locks ?? null, session = globalThis.sessionStorage ?? null } = options;
    this.#prefix = prefix;
    this.#session = session;
    this.#storage = storage;
    this.#locks = storage === session ? null : locks;
    if (this.#locks === null) {
      if (session === null) {
        throw new Error(
          "LocalStorageStore: neither Web Locks nor sessionStorage here, so that two tabs would mix their positions; " +
          "serve the page by https, or give the client a store of your own: an object with load(key) and save(positions)");
      }
      if (storage !== session) {
        console.warn("LocalStorageStore: no Web Locks here (they need https or localhost): positions last as long as this tab");
      }
      this.#storage = session;
    }
  }

  /** The position under a key, or null; waits for a slot. */
  async load(key) {
    await this.#open();
    try {
      const position = JSON.parse(this.#storage.getItem(`${this.#base}:${key}`));
      return typeof position?.epoch === "string" && Number.isInteger(position.seq) ? position : null;
    } catch {
      return null;
    }
  }

  /** At once where a position was loaded before: a page that goes away has no time to wait. */
  save(positions) {
    if (this.#base === null) return this.#open().then(() => this.save(positions));
    for (const [key, position] of Object.entries(positions)) {
      this.#storage.setItem(`${this.#base}:${key}`, JSON.stringify(position));
    }
  }

  /** Let another store have the slot; the client does so when the program closes it. */
  async close() {
    await this.#opening;
    const released = this.#released;
    this.#release?.();
    this.#opening = this.#base = this.#release = this.#released = null;
    await released;
  }

  #open() {
    this.#opening ??= this.#take().catch((error) => {
      this.#opening = null;
      throw error;
    });
    return this.#opening;
  }

  async #take() {
    if (this.#locks === null) {
      this.#base = this.#prefix;
      return;
    }
    const mark = `${this.#prefix}#slot`, had = this.#session?.getItem(mark) ?? null;
    let slot = /^\d{1,4}$/.test(had ?? "") ? Number(had) : null;
    // The page before this one in the tab may not be gone yet. A tab's copy has its mark, too, but finds the slot taken.
    let held = slot !== null && (await this.#hold(slot, { signal: AbortSignal.timeout(HANDOVER) }));
    for (let free = 0; !held; free++) held = await this.#hold((slot = free), { ifAvailable: true });
    this.#session?.setItem(mark, String(slot));
    this.#base = slot === 0 ? this.#prefix : `${this.#prefix}#${slot}`;
  }

  /** Whether the slot is ours, from now until it is released or the page is gone. */
  #hold(slot, options) {
    return new Promise((resolve, reject) => {
      const keep = (lock) => {
        resolve(lock !== null);
        if (lock === null) return undefined;
        this.#released = asked;
        return new Promise((release) => (this.#release = release));
      };
      const asked = this.#locks.request(`${LOCK}:${this.#prefix}:${slot}`, options, keep).catch((error) => {
        if (error?.name === "TimeoutError" || error?.name === "AbortError") resolve(false);
        else reject(error);
      });
    });
  }
}
