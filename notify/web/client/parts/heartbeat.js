/** Whether the link is alive: docs/client.md, rule 7. */

/** Asks for a sign of life after some silence, and says when none has come. Runs while connected. */
export class Heartbeat {
  /** When to ask, or when to give up; null: it does not run. */
  due = null;
  #settings; #requests; #interval; #asked = false;

  constructor(settings, requests) {
    this.#settings = settings;
    this.#requests = requests;
    this.#interval = settings.ping_interval;
  }

  /** The connection stands; `interval` is the server's, in seconds. */
  start(now, interval) {
    this.#interval = interval || this.#settings.ping_interval;
    this.#asked = false;
    this.due = now + this.#interval;
  }

  /** The connection is gone. */
  stop() {
    this.due = null;
  }

  /** Something came. */
  heard(now) {
    if (this.due === null) return;
    this.#asked = false;
    this.due = now + this.#interval;
  }

  /** Whether it is time to ask. */
  silent(now) {
    return this.due !== null && !this.#asked && this.due <= now;
  }

  /** Whether nothing has come though it was asked for. */
  dead(now) {
    return this.due !== null && this.#asked && this.due <= now;
  }

  /** Ask, unless that is done already. */
  probe(now) {
    if (this.#asked) return;
    this.#asked = true;
    this.due = now + this.#settings.pong_timeout;
    this.#requests.send({ type: "ping" }, now);
  }
}
