/** Positions on their way to the store, a moment after they change. */

import { NOTIFICATIONS } from "./parts/topics.js";

/** Milliseconds from the first position that has changed to saving all. */
const SAVING = 200;

/** Between the streams and a store; without one (null) there is nothing to load, and saving does nothing. */
export class Saver {
  #store; #failed; #unsaved = {}; #timer = null;

  /** `failed` is called with what the store throws when it saves. */
  constructor(store, failed) {
    this.#store = store;
    this.#failed = failed;
  }

  /** The position stored for a topic, or a promise of it: null or undefined where there is none. */
  load(key) {
    return this.#store?.load(name(key));
  }

  /** A topic's position has changed. */
  save(key, position) {
    if (this.#store === null) return;
    this.#unsaved[name(key)] = position;
    this.#timer ??= setTimeout(() => this.flush(), SAVING);
  }

  /** Save what has not been, and let go of the store. */
  async close() {
    await this.flush();
    try {
      await this.#store?.close?.();
    } catch (error) {
      this.#failed(error);
    }
  }

  /** Save now what has not been. */
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
