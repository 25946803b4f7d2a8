/** Whether the connection is alive: docs/client.md, rule 7. */

/** Sends a ping after some silence, and notices when there is no answer. Runs while connected. */
export class Heartbeat {
  /** When to send a ping, or when to give up; null while not running. */
  due = null;
  #settings; #requests; #interval; #asked = false;

  constructor(settings, requests) {
    this.#settings = settings;
    this.#requests = requests;
    this.#interval = settings.ping_interval;
  }

  /** The connection is authenticated. `interval` is the server's ping interval in seconds, if it names one. */
  start(now, interval) {
    this.#interval = interval || this.#settings.ping_interval;
    this.#asked = false;
    this.due = now + this.#interval;
  }

  /** The connection is lost. */
  stop() {
    this.due = null;
  }

  /** Something was received. */
  heard(now) {
    if (this.due === null) return;
    this.#asked = false;
    this.due = now + this.#interval;
  }

  /** Whether it is time to send a ping. */
  silent(now) {
    return this.due !== null && !this.#asked && this.due <= now;
  }

  /** Whether a ping was sent and nothing was received in time. */
  dead(now) {
    return this.due !== null && this.#asked && this.due <= now;
  }

  /** Send a ping, unless one is already in flight. */
  probe(now) {
    if (this.#asked) return;
    this.#asked = true;
    this.due = now + this.#settings.pong_timeout;
    this.#requests.send({ type: "ping" }, now);
  }
}
