/** Positions in `localStorage` (or another `Storage`). The prefix names the user: positions of two must not mix. */
export class LocalStorageStore {
  #prefix; #storage;

  constructor(prefix, storage = globalThis.localStorage) {
    this.#prefix = prefix;
    this.#storage = storage;
  }

  load(key) {
    try {
      const position = JSON.parse(this.#storage.getItem(`${this.#prefix}:${key}`));
      return typeof position?.epoch === "string" && Number.isInteger(position.seq) ? position : null;
    } catch {
      return null;
    }
  }

  save(positions) {
    for (const [key, position] of Object.entries(positions)) {
      this.#storage.setItem(`${this.#prefix}:${key}`, JSON.stringify(position));
    }
  }
}
