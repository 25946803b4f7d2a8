/** What a client sends on the present connection, and which of it the server has not answered yet. */

import { Pace } from "./pace.js";

/** Error codes that are retried where the server does not say: docs/client.md, rule 15. */
const RETRIED = new Set(["unavailable", "history_unavailable", "rate_limited", "internal"]);
/** The feature that has the server answer `history`. */
export const HISTORY = "history";
/** That with which it passes on what the members of a chat signal. */
export const SIGNALS = "signals";

export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Whether a message is one, and names its position as it should. */
export function positioned(frame) {
  return isObject(frame) && typeof frame.epoch === "string" && Number.isInteger(frame.seq) && Number.isInteger(frame.prev);
}

/** What an `error` of the server says: `{code, message, again}`. `again`: it may succeed later. */
export function refusal(frame) {
  const code = String(frame.code ?? "");
  return { code, message: String(frame.message ?? ""), again: frame.retry ?? RETRIED.has(code) };
}

/**
 * The outgoing side of a connection. Ids go on over connections, so that no late answer is mistaken.
 *
 * Who asks has two methods: `answered(request, frame, now)` and `refused(request, refusal, now)`. A request is
 * `{id, asker, key, sent}`, where `key` is what its asker knows it by.
 */
export class Requests {
  /** The connection is authenticated. */
  ready = false;
  /** What the server has granted on it beyond what everyone gets. */
  features = new Set();
  pace;
  #timeout; #do; #ids = 0; #unanswered = new Map();

  constructor(settings, act) {
    this.pace = new Pace(settings);
    this.#timeout = settings.answer_timeout;
    this.#do = act;
  }

  /** The connection is authenticated, and the server has said which features are in force. */
  grant(features) {
    this.ready = true;
    this.features = new Set(Array.isArray(features) ? features : []);
  }

  /** Send a frame that has no answer of its own. */
  send(frame, now) {
    this.pace.spend(now);
    this.#do({ do: "send", frame });
  }

  /** Send a frame and remember who asked; gives its id. */
  ask(asker, key, frame, now) {
    this.#ids += 1;
    const id = this.#ids;
    this.#unanswered.set(id, { id, asker, key, sent: now });
    this.send({ ...frame, id }, now);
    return id;
  }

  /** An answer came; one that nobody waits for is ignored. */
  answered(frame, now) {
    const request = this.#take(frame);
    request?.asker.answered(request, frame, now);
  }

  /** An error came. Whether it was an answer. */
  refused(frame, refusal, now) {
    const request = this.#take(frame);
    request?.asker.refused(request, refusal, now);
    return request !== undefined;
  }

  /** When the oldest must be answered, for the link to count as alive; null: none is open. */
  due() {
    const oldest = this.#unanswered.values().next().value;
    return oldest === undefined ? null : oldest.sent + this.#timeout;
  }

  /** The connection is gone. */
  forget() {
    this.ready = false;
    this.features = new Set();
    this.#unanswered.clear();
  }

  #take(frame) {
    const request = this.#unanswered.get(frame.id);
    this.#unanswered.delete(frame.id);
    return request;
  }
}
