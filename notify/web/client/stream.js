import { ClientClosed, HistoryLost, within } from "./errors.js";
import { NOTIFICATIONS } from "./parts/topics.js";

/**
 * `for await (const message of stream)` yields each message once and in order, across any number of reconnects. A stream has one
 * reader at a time. A message counts as handled when the reader asks for the next one; then its position is stored.
 * A reader that lags gets the messages page by page, as fast as it reads them. Each stream of a chat gets all messages, and the
 * slowest one sets the pace.
 */
export class Stream {
  state = "subscribing";
  position = null;
  #hooks; #queue = []; #taken = null; #error = null; #paused = false; #measuring = null; #reading = false; #waiting = null; #ready = [];

  #begun = false;

  constructor(hooks, key, { onLost = null, onEvent = null, load = null } = {}) {
    this.#hooks = hooks;
    this.key = key;
    this.onLost = onLost;
    this.onEvent = onEvent;
    this.load = load;
  }

  /** The number of messages that have arrived and were not read yet. */
  get waiting() {
    return this.#queue.length;
  }

  /** Resolves once the server has confirmed the subscription, within `timeout` seconds or however long it takes. */
  async ready({ timeout = null } = {}) {
    const what = this.key === NOTIFICATIONS ? "the notifications are" : `chat ${this.key} is`;
    await within(this.#isReady(), timeout, () =>
      `${what} not live within ${timeout} s: ${this.state}; ${this.#hooks.standing()}`);
  }

  async #isReady() {
    while (this.state !== "live" && this.state !== "paused") {
      if (this.#over()) throw this.#error ?? new ClientClosed(1000, "");
      await new Promise((resolve) => this.#ready.push(resolve));
    }
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  async next() {
    // Checked also while a callback runs: two readers would take the same position, and one of them would skip the next message.
    if (this.#reading) throw new Error("this stream has a reader already");
    this.#reading = true;
    try {
      return await this.#next();
    } finally {
      this.#reading = false;
    }
  }

  async #next() {
    this.handled();
    for (;;) {
      if (this.#queue.length > 0) {
        const [kind, item] = this.#queue[0];
        const loads = this.load !== null && (kind === "load" || kind === "loss");
        // If this throws, reading on calls it again.
        if (loads) await this.load(item.after);
        if (this.#queue.length === 0) continue; // the stream was closed meanwhile
        this.#queue.shift();
        this.#askOn();
        this.#taken = item.after ?? item.position;
        if (kind === "message") return { done: false, value: item };
        if (kind === "event") await this.onEvent?.(item);
        else if (loads) this.handled();
        else if (this.onLost === null) throw new HistoryLost(item);
        else await this.onLost(item);
        this.handled();
      } else if (this.#over()) {
        if (this.#error !== null) throw this.#error;
        return { done: true, value: undefined };
      } else {
        await new Promise((resolve) => (this.#waiting = resolve));
        this.#waiting = null;
      }
    }
  }

  /** Mark the message that was read last as handled. `next` and the client's `close` call this. */
  handled() {
    if (this.#taken !== null) {
      this.position = this.#taken;
      this.#taken = null;
    }
    if (this.position !== null) this.#hooks.save(this);
  }

  /** Unsubscribe (chats only). Unread messages are dropped, and the message that was read last counts as handled. */
  close() {
    if (this.key === NOTIFICATIONS) return;
    this.#queue = [];
    this.#hooks.close(this);
  }

  /**
   * `for await` ends before the stream does: unsubscribe (chats only). Whether by `break` or by an error is unknown, so the message
   * that was read last does not count as handled, unless `handled` was called.
   */
  async return(value) {
    if (this.key !== NOTIFICATIONS) this.#taken = null;
    this.close();
    return { done: true, value };
  }

  async [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    this.close();
  }

  // Called by the client.

  /** `kind` is "message", "event", "loss" or "load". */
  put(kind, item) {
    this.#queue.push([kind, item]);
    if (this.#queue.length >= this.#hooks.bound && !this.#paused) {
      // One event may bring more messages than the queue may hold: let the reader run first.
      this.#measuring ??= setTimeout(() => this.#measure(), 0);
    }
    this.#waiting?.();
  }

  #measure() {
    this.#measuring = null;
    if (this.#queue.length < this.#hooks.bound || this.#paused || this.#over()) return;
    this.#paused = true;
    this.#hooks.pause(this);
  }

  #askOn() {
    if (!this.#paused || this.#over() || this.#queue.length > this.#hooks.bound / 2) return;
    this.#paused = false;
    this.#hooks.resume(this);
  }

  changed(state, position) {
    this.state = state;
    if (state === "paused") {
      this.#wake();
      if (this.#paused) return;
      this.#paused = true; // after a page; the reader asks for the next one
      this.#hooks.hold(this);
      this.#askOn();
    }
    if (state !== "live") return;
    this.begin(position);
    this.#wake();
  }

  /** Continue from this position. */
  begin(position) {
    if (this.load !== null) {
      if (!this.#begun) this.put("load", { after: position });
      this.#begun = true;
    } else if (this.position === null && this.#taken === null && this.#queue.length === 0) {
      this.position = position;
      if (this.key !== NOTIFICATIONS) this.handled();
    }
  }

  finish(state, error) {
    if (this.#over()) return;
    this.state = state;
    this.#error = error;
    this.#wake();
    this.#waiting?.();
  }

  #over() {
    return this.state === "refused" || this.state === "closed";
  }

  #wake() {
    for (const resolve of this.#ready.splice(0)) resolve();
  }
}
