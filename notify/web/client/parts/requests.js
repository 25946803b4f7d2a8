/** The frames that a client sends on its current connection, and those that the server has not answered yet. */

import { Pace } from "./pace.js";

/** Error codes that are retried if the server does not say: docs/client.md, rule 15. */
const RETRIED = new Set(["unavailable", "history_unavailable", "rate_limited", "internal"]);
/** The feature with which the server answers `history`. */
export const HISTORY = "history";
/** The feature with which the server forwards signals from chat members. */
export const SIGNALS = "signals";

export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Whether a frame is a message with a valid position. */
export function positioned(frame) {
  return isObject(frame) && typeof frame.epoch === "string" && Number.isInteger(frame.seq) && Number.isInteger(frame.prev);
}

/** The contents of an `error` from the server: `{code, message, again}`. `again`: a retry may succeed later. */
export function refusal(frame) {
  const code = String(frame.code ?? "");
  return { code, message: String(frame.message ?? ""), again: frame.retry ?? RETRIED.has(code) };
}

/**
 * The outgoing side of a connection. Ids continue across connections, so that a late answer is never mistaken for another.
 *
 * An asker has two methods: `answered(request, frame, now)` and `refused(request, refusal, now)`. A request is
 * `{id, asker, key, sent}`, where `key` is how its asker identifies it.
 */
export class Requests {
  /** The connection is authenticated. */
  ready = false;
  /** The optional features that the server has granted on this connection. */
  features = new Set();
  pace;
  #timeout; #do; #ids = 0; #unanswered = new Map();

  constructor(settings, act) {
    this.pace = new Pace(settings);
    this.#timeout = settings.answer_timeout;
    this.#do = act;
  }

  /** The connection is authenticated, with these features in force. */
  grant(features) {
    this.ready = true;
    this.features = new Set(Array.isArray(features) ? features : []);
  }

  /** Send a frame that expects no answer. */
  send(frame, now) {
    this.pace.spend(now);
    this.#do({ do: "send", frame });
  }

  /** Send a frame and remember its asker. Returns the frame's id. */
  ask(asker, key, frame, now) {
    this.#ids += 1;
    const id = this.#ids;
    this.#unanswered.set(id, { id, asker, key, sent: now });
    this.send({ ...frame, id }, now);
    return id;
  }

  /** An answer arrived. It is ignored if nobody waits for it. */
  answered(frame, now) {
    const request = this.#take(frame);
    request?.asker.answered(request, frame, now);
  }

  /** An error arrived. Returns whether it answered a request. */
  refused(frame, refusal, now) {
    const request = this.#take(frame);
    request?.asker.refused(request, refusal, now);
    return request !== undefined;
  }

  /** When the oldest request times out, after which the connection counts as dead; null if there is none. */
  due() {
    const oldest = this.#unanswered.values().next().value;
    return oldest === undefined ? null : oldest.sent + this.#timeout;
  }

  /** The connection is lost. */
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
