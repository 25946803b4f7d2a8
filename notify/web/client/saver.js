/** Saves positions to the store shortly after they have changed. */

import { NOTIFICATIONS } from "./parts/topics.js";

/** Milliseconds from the first changed position until all are saved. */
const SAVING = 200;

/** Connects the streams to a store. Without one (null) there is nothing to load, and saving does nothing. */
export class Saver {
  #store; #failed; #unsaved = {}; #timer = null;

  /** `failed` is called with what the store throws while saving. */
  constructor(store, failed) {
    this.#store = store;
    this.#failed = failed;
  }

  /** The stored position of a topic, or a promise of it; null or undefined if there is none. */
  load(key) {
    return this.#store?.load(name(key));
  }

  /** The position of a topic has changed. */
  save(key, position) {
    if (this.#store === null) return;
    this.#unsaved[name(key)] = position;
    this.#timer ??= setTimeout(() => this.flush(), SAVING);
  }

  /** Save what is not saved yet, and release the store. */
  async close() {
    await this.flush();
    try {
      await this.#store?.close?.();
    } catch (error) {
      this.#failed(error);
    }
  }

  /** Save now what is not saved yet. */
  async flush() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const unsaved = this.#unsaved;
    this.#unsaved = {};
    if (this.#store === null || Object.keys(unsaved).length === 0) return;
    try {
      await this.#store.save(unsaved);
    } catch (error) {
      this.#failed(error);
    }
  }
}

function name(key) {
  return key === NOTIFICATIONS ? "notifications" : `chat:${key}`;
}
