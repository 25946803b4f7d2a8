/** The topics that a client is subscribed to, and its position in each: docs/client.md, rules 8 to 17, 27 to 30. */

import { isId } from "../int64.js";
import { Backoff } from "./backoff.js";
import { HISTORY, SIGNALS, positioned } from "./requests.js";

/** The key of the notifications among the topics; the key of a chat is its id. */
export const NOTIFICATIONS = null;
/** The kinds of message in a chat. */
export const KINDS = new Set(["chat_message", "chat_event"]);
const NOWHERE = { epoch: "", seq: 0 };

/** The state of one chat, or of the notifications. */
class Topic {
  live = false;
  paused = false;
  /** Messages were discarded while paused. */
  behind = false;
  /** A message was handed over since the last gap. */
  progress = true;
  /** The id of the unanswered `subscribe` or `history` frame for this topic. */
  request = null;
  /** The topic is behind, and catches up by pages of history before it is subscribed to. */
  paging = false;
  /** History was asked for the messages after this position. */
  asked = false;
  /** The `seq` in the answer that made it live: once the replay is received, nothing up to there is missing. */
  answered = 0;

  constructor(chat, backoff, position = null, watch = false) {
    this.chat = chat;
    this.backoff = backoff;
    this.position = position;
    this.watch = watch;
  }

  /** How a message follows the current position: "next", "duplicate" or "gap". */
  judge(frame) {
    if (frame.epoch !== this.position.epoch) return "gap";
    if (frame.seq <= this.position.seq) return "duplicate";
    const answers = frame.seq > this.answered && this.answered > this.position.seq;
    return frame.prev > (answers ? this.answered : this.position.seq) ? "gap" : "next";
  }

  /** A message was handed over. */
  advance({ epoch, seq }) {
    this.position = { epoch, seq };
    this.progress = true;
    this.asked = false;
    this.backoff.reset();
  }
}

/**
 * The subscribed chats, and the notifications, which are always subscribed to. They outlive connections.
 *
 * Chats are subscribed to one by one, but notifications come with the connection. Only a new connection can therefore fill a
 * gap in the notifications, and the methods that find such a gap say so.
 */
export class Topics {
  notifications;
  chats = new Map();
  #settings; #random; #requests; #do;
  // Of the current connection: chats to subscribe to, in order; and when to retry those that were refused for now.
  #queue = new Set(); #retries = new Map(); #unanswered = 0;

  constructor(settings, random, requests, act) {
    this.#settings = settings;
    this.#random = random;
    this.#requests = requests;
    this.#do = act;
    this.notifications = new Topic(NOTIFICATIONS, new Backoff(settings, random));
  }

  // --- what the application does

  /** Subscribe to this chat from now on, or from after `since`. Has no effect if the chat is already subscribed to. */
  subscribe(chat, now, since, watch) {
    if (this.chats.has(chat)) return;
    this.chats.set(chat, new Topic(chat, new Backoff(this.#settings, this.#random), since, watch));
    this.#say(chat, "subscribing");
    this.#want(chat, now);
  }

  /** Unsubscribe from this chat. */
  unsubscribe(chat, now) {
    const topic = this.chats.get(chat);
    if (this.chats.delete(chat)) this.#withdraw(topic, now);
  }

  /** Deliver no more of a topic until it is resumed. */
  pause(chat, now) {
    const topic = this.#get(chat);
    if (topic === undefined || topic.paused) return;
    topic.paused = true;
    if (chat !== NOTIFICATIONS) this.#withdraw(topic, now);
    this.#say(chat, "paused");
  }

  /** Continue after the last message that was handed over. Returns whether that requires a new connection. */
  resume(chat, now) {
    const topic = this.#get(chat);
    if (topic === undefined || !topic.paused) return false;
    topic.paused = false;
    this.#say(chat, "subscribing");
    if (chat !== NOTIFICATIONS) {
      topic.paging = true;
      topic.answered = 0;
      this.#want(chat, now);
    } else if (topic.live && !topic.behind) this.#say(chat, "live", { position: topic.position });
    return chat === NOTIFICATIONS && topic.live && topic.behind;
  }

  /** Send a signal to a chat's members. Returns whether it was sent; if not, it is lost. */
  signal(chat, kind, data, now) {
    const live = this.chats.get(chat)?.live === true;
    if (!live || !this.#requests.features.has(SIGNALS) || !this.#requests.pace.allows(now)) return false;
    this.#requests.send({ type: "signal", chat_id: chat, kind, data }, now);
    return true;
  }

  /** The chats that a connection subscribes to: `[{ chat, position, watch }]`. */
  wanted() {
    return [...this.chats.values()].filter(({ paused }) => !paused).map(({ chat, position, watch }) => ({ chat, position, watch }));
  }

  // --- what happens to the client

  /** The position from which to resume the notifications, for `auth`. Without one, a position that asks the server for one. */
  since() {
    return this.notifications.position ?? NOWHERE;
  }

  /** The server has said from where the notifications continue, unless it does not store them. */
  authenticated(frame, now) {
    if (frame.epoch !== undefined) this.#settle(this.notifications, frame, now);
  }

  /** The connection accepts subscriptions. */
  connected(now) {
    for (const chat of this.chats.keys()) this.#want(chat, now);
  }

  /** The connection is lost. */
  disconnected() {
    this.#queue.clear();
    this.#retries.clear();
    this.#unanswered = 0;
    for (const topic of [this.notifications, ...this.chats.values()]) {
      topic.live = false;
      topic.request = null;
      topic.asked = false;
      topic.backoff.reset();
    }
  }

  /** A message arrived with its position. Returns whether a new connection is needed to get the messages missing before it. */
  message(chat, frame, now) {
    const topic = this.#get(chat);
    if (topic === undefined || !topic.live || topic.position === null) return false;
    if (topic.paused) {
      topic.behind = true;
      return false;
    }
    const judged = topic.judge(frame);
    if (judged === "gap") {
      this.#do({ do: "gap", chat, last: topic.position.seq, prev: frame.prev });
      topic.live = false;
      if (chat === NOTIFICATIONS) return true;
      this.#fill(topic, now);
    } else if (judged === "next") {
      topic.advance(frame);
      this.#do({ do: "message", chat, frame });
    }
    return false;
  }

  /** A user entered or left a chat. */
  presence(chat, users) {
    if (this.chats.has(chat)) this.#do({ do: "presence", chat, users });
  }

  /** A member of a chat sent a signal. */
  signalled(chat, { user_id: user, kind, data = null }) {
    if (this.chats.has(chat) && isId(user) && typeof kind === "string") this.#do({ do: "signal", chat, user, kind, data });
  }

  /** The server has subscribed the client to a chat, or has sent a page of it. */
  answered(request, frame, now) {
    this.#unanswered -= 1;
    const topic = this.chats.get(request.key);
    if (topic?.request === request.id) {
      if (topic.paging) this.#turn(topic, frame, now);
      else if (frame.epoch !== undefined) this.#settle(topic, frame, now);
    }
    this.#pump(now);
  }

  /** The server refused, temporarily or for good. */
  refused(request, { code, message, again }, now) {
    this.#unanswered -= 1;
    const chat = request.key, topic = this.chats.get(chat);
    if (topic?.request === request.id) {
      topic.request = null;
      if (topic.paging && (code === "history_unavailable" || !again)) {
        topic.paging = false; // subscribe instead: that answer says what is lost, or that access is denied
        this.#want(chat, now);
      } else if (again) this.#say(chat, "waiting", { delay: this.#retry(topic, now), code, message });
      else {
        this.chats.delete(chat);
        this.#say(chat, "refused", { code, message });
      }
    }
    this.#pump(now);
  }

  /** An unsolicited error arrived. Returns whether it ends the subscription to the chat that it names. */
  withdrawn(chat, { code, message, again }, now) {
    const topic = this.chats.get(chat);
    if (topic === undefined) return false;
    if (again) {
      if (!topic.live) return true; // it is not subscribed, or is about to be again
      topic.live = false;
      this.#say(chat, "waiting", { delay: this.#retry(topic, now), code, message });
      return true;
    }
    this.chats.delete(chat);
    this.#queue.delete(chat);
    this.#retries.delete(chat);
    this.#say(chat, "refused", { code, message });
    return true;
  }

  /** When `tick` is next due; null if nothing waits. */
  due() {
    let due = Infinity;
    for (const at of this.#retries.values()) due = Math.min(due, at);
    if (this.#queue.size > 0 && this.#unanswered < this.#settings.window) due = Math.min(due, this.#requests.pace.next());
    return due === Infinity ? null : due;
  }

  /** Queue the subscriptions whose retry is due. */
  tick(now) {
    for (const [chat, at] of [...this.#retries]) {
      if (at > now) continue;
      this.#retries.delete(chat);
      this.#want(chat, now);
    }
    this.#pump(now);
  }

  // --- subscribing

  #get(chat) {
    return chat === NOTIFICATIONS ? this.notifications : this.chats.get(chat);
  }

  #want(chat, now) {
    const topic = this.chats.get(chat);
    if (!this.#requests.ready || topic === undefined || topic.paused) return;
    this.#queue.add(chat);
    this.#pump(now);
  }

  #withdraw(topic, now) {
    this.#queue.delete(topic.chat);
    this.#retries.delete(topic.chat);
    if (topic.live || (topic.request !== null && !topic.paging)) this.#requests.send({ type: "unsubscribe", chat_id: topic.chat }, now);
    topic.live = false;
    topic.request = null;
  }

  /** Subscribe to the queued chats, as far as the window and the server's rate limit allow. */
  #pump(now) {
    while (this.#queue.size > 0 && this.#unanswered < this.#settings.window && this.#requests.pace.allows(now)) {
      const chat = this.#queue.values().next().value;
      this.#queue.delete(chat);
      const topic = this.chats.get(chat);
      this.#unanswered += 1;
      topic.live = false;
      topic.request = this.#requests.ask(this, chat, this.#frame(topic), now);
    }
  }

  /** The request for a chat: for its next page, or for the subscription. */
  #frame(topic) {
    const { chat, position } = topic;
    topic.paging &&= position !== null && this.#requests.features.has(HISTORY);
    if (topic.paging) {
      topic.asked = true;
      return { type: "history", chat_id: chat, after: position, limit: this.#settings.page };
    }
    const frame = { type: "subscribe", chat_id: chat };
    if (position !== null) frame.since = position;
    if (topic.watch) frame.watch_presence = true;
    return frame;
  }

  /** The server has said from where a topic continues. */
  #settle(topic, { epoch, seq, recovered }, now) {
    const newest = { epoch, seq };
    if (topic.position === null) topic.position = newest;
    else if (recovered !== true) {
      if (topic.chat !== NOTIFICATIONS && this.#further(topic, newest)) {
        // Too much for one resume. Unsubscribe, as messages that arrive before it has caught up would be discarded.
        this.#requests.send({ type: "unsubscribe", chat_id: topic.chat }, now);
        topic.request = null;
        topic.paging = true;
        topic.answered = 0;
        this.#want(topic.chat, now);
        return;
      }
      this.#do({ do: "lost", chat: topic.chat, before: topic.position, after: newest });
      topic.position = newest;
    }
    topic.answered = seq;
    topic.live = true;
    topic.behind = false;
    topic.request = null;
    if (!topic.paused) this.#say(topic.chat, "live", { position: topic.position });
  }

  /** Whether history may have messages that the resume could not replay. */
  #further({ position, asked }, { epoch, seq }) {
    return this.#requests.features.has(HISTORY) && !asked && position.epoch === epoch && position.seq < seq;
  }

  /** A page arrived. The reader asks for the next one with `resume`; after the last page the chat goes live. */
  #turn(topic, { type, messages, more, epoch, seq }, now) {
    const { chat } = topic;
    topic.request = null;
    let handed = false, whole = type === HISTORY && Array.isArray(messages);
    for (const message of whole ? messages : []) {
      if (!positioned(message) || message.chat_id !== chat || !KINDS.has(message.type)) continue;
      const judged = topic.judge(message);
      if (judged === "gap") {
        this.#do({ do: "gap", chat, last: topic.position.seq, prev: message.prev });
        whole = false;
        break;
      }
      if (judged === "next") {
        topic.advance(message);
        this.#do({ do: "message", chat, frame: message });
        handed = true;
      }
    }
    if (handed && whole && more === true) {
      topic.paused = true;
      this.#say(chat, "paused");
      return;
    }
    const { position } = topic, further = Number.isInteger(seq) && epoch === position.epoch && seq > position.seq;
    if (whole && more === true && further) topic.position = { epoch, seq }; // nothing up to there is for this client
    else topic.paging = false;
    this.#want(chat, now);
  }

  /** Ask again from the last position. Messages that arrive meanwhile are ignored, because the answer includes them. */
  #fill(topic, now) {
    if (topic.progress) {
      topic.progress = false;
      this.#want(topic.chat, now);
    } else this.#retry(topic, now);
  }

  #retry(topic, now) {
    const delay = topic.backoff.next();
    this.#retries.set(topic.chat, now + delay);
    return delay;
  }

  #say(chat, state, details = {}) {
    this.#do({ do: "subscription", chat, state, ...details });
  }
}
