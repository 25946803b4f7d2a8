/** What a program asks the server and waits for: docs/client.md, rule 22. */

import { HISTORY, positioned } from "./requests.js";

/** The commands in hand. They outlive connections: one without an answer is sent again on the next. */
export class Commands {
  #settings; #requests; #do; #waiting = new Map();

  constructor(settings, requests, act) {
    this.#settings = settings;
    this.#requests = requests;
    this.#do = act;
  }

  /** Ask now, or once connected; the action `done` or `failed` with this `n` is the end of it. */
  add(n, frame, now) {
    if (this.#waiting.size >= this.#settings.max_commands) {
      this.#do({ do: "failed", n, code: "busy" });
      return;
    }
    this.#waiting.set(n, { frame, deadline: now + this.#settings.command_timeout, sent: 0 });
    if (this.#requests.ready) this.#send(n, now);
  }

  /** A connection stands. */
  connected(now) {
    for (const n of [...this.#waiting.keys()]) this.#send(n, now);
  }

  /** The server's answer; nobody waits for it any more where it came too late. */
  answered({ key: n }, frame, now) {
    const command = this.#waiting.get(n);
    if (!this.#waiting.delete(n)) return;
    const took = now - command.sent;
    if (command.frame.type !== HISTORY) {
      this.#do({ do: "done", n, took, users: frame.users });
      return;
    }
    const { messages, more, epoch, start, seq } = frame;
    if (!Array.isArray(messages)) {
      this.#do({ do: "failed", n, code: "internal", message: "the answer has no messages" });
      return;
    }
    const done = { do: "done", n, took, messages: messages.filter(positioned), more: more === true };
    if (typeof epoch === "string" && Number.isInteger(start)) done.start = { epoch, seq: start };
    if (typeof epoch === "string" && Number.isInteger(seq)) done.position = { epoch, seq };
    this.#do(done);
  }

  /** The server's refusal. */
  refused({ key: n }, { code, message }) {
    if (this.#waiting.delete(n)) this.#do({ do: "failed", n, code, message });
  }

  /** When the first takes too long; null: none waits. */
  due() {
    let due = null;
    for (const { deadline } of this.#waiting.values()) if (due === null || deadline < due) due = deadline;
    return due;
  }

  /** Fail what has taken too long. */
  tick(now) {
    for (const [n, { deadline }] of [...this.#waiting]) {
      if (deadline > now) continue;
      this.#waiting.delete(n);
      this.#do({ do: "failed", n, code: "timeout" });
    }
  }

  /** Fail them all. */
  close() {
    const waiting = this.#waiting;
    this.#waiting = new Map();
    for (const n of waiting.keys()) this.#do({ do: "failed", n, code: "closed" });
  }

  #send(n, now) {
    const command = this.#waiting.get(n);
    if (command.frame.type === HISTORY && !this.#requests.features.has(HISTORY)) {
      this.#waiting.delete(n);
      this.#do({ do: "failed", n, code: "unsupported", message: "this server gives clients no history" });
      return;
    }
    command.sent = now;
    this.#requests.ask(this, n, command.frame, now);
  }
}
