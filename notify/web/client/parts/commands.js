/** Commands that the application sends and waits for: docs/client.md, rule 22. */

import { HISTORY, positioned } from "./requests.js";

/** The pending commands. They outlive connections: an unanswered command is sent again on the next connection. */
export class Commands {
  #settings; #requests; #do; #waiting = new Map();

  constructor(settings, requests, act) {
    this.#settings = settings;
    this.#requests = requests;
    this.#do = act;
  }

  /** Send a command now or once connected. It ends with the action `done` or `failed` with this `n`. */
  add(n, frame, now) {
    if (this.#waiting.size >= this.#settings.max_commands) {
      this.#do({ do: "failed", n, code: "busy" });
      return;
    }
    this.#waiting.set(n, { frame, deadline: now + this.#settings.command_timeout, sent: 0 });
    if (this.#requests.ready) this.#send(n, now);
  }

  /** The connection is authenticated. */
  connected(now) {
    for (const n of [...this.#waiting.keys()]) this.#send(n, now);
  }

  /** The server answered. An answer that came too late is ignored. */
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

  /** The server refused the command. */
  refused({ key: n }, { code, message }) {
    if (this.#waiting.delete(n)) this.#do({ do: "failed", n, code, message });
  }

  /** When the first command times out; null if none waits. */
  due() {
    let due = null;
    for (const { deadline } of this.#waiting.values()) if (due === null || deadline < due) due = deadline;
    return due;
  }

  /** Fail the commands that have timed out. */
  tick(now) {
    for (const [n, { deadline }] of [...this.#waiting]) {
      if (deadline > now) continue;
      this.#waiting.delete(n);
      this.#do({ do: "failed", n, code: "timeout" });
    }
  }

  /** Fail all commands. */
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
