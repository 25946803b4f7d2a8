/** Stores positions in the browser. Tabs do not share them: only the tab that wrote a position reads it. */

const LOCK = "notify-client";
/** Milliseconds for which a reloaded page waits until its previous instance releases the slot. */
const HANDOVER = 1000;

/**
 * Keeps positions in `localStorage` (or another `Storage`). The prefix names the user: the positions of two users must not mix.
 *
 * Each open tab has its own slot, held by a Web Lock. The first slot has the keys `prefix:…`, the others `prefix#1:…` and so on.
 * A tab that opens takes the first free slot and continues from the positions in it; a reloaded page takes its previous slot.
 * Without Web Locks (a page needs https or localhost for them) positions are kept in `sessionStorage`, for this tab only, and a
 * warning is logged to the console. Without `sessionStorage` as well, the constructor throws.
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

  /** The position under a key, or null. Waits for a slot. */
  async load(key) {
    await this.#open();
    try {
      const position = JSON.parse(this.#storage.getItem(`${this.#base}:${key}`));
      return typeof position?.epoch === "string" && Number.isInteger(position.seq) ? position : null;
    } catch {
      return null;
    }
  }

  /** Saves synchronously if a position was loaded before: a page that is being closed has no time to wait. */
  save(positions) {
    if (this.#base === null) return this.#open().then(() => this.save(positions));
    for (const [key, position] of Object.entries(positions)) {
      this.#storage.setItem(`${this.#base}:${key}`, JSON.stringify(position));
    }
  }

  /** Release the slot for another store. The client calls this when the program closes it. */
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
    // The tab's previous page may not be gone yet. A duplicated tab also has the mark, but finds the slot taken.
    let held = slot !== null && (await this.#hold(slot, { signal: AbortSignal.timeout(HANDOVER) }));
    for (let free = 0; !held; free++) held = await this.#hold((slot = free), { ifAvailable: true });
    this.#session?.setItem(mark, String(slot));
    this.#base = slot === 0 ? this.#prefix : `${this.#prefix}#${slot}`;
  }

  /** Try to take the slot. Resolves to whether it is held, which lasts until it is released or the page is gone. */
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
