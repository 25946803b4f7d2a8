/** What a client wants to hear, and how far it has come in each: docs/client.md, rules 8 to 17, 27 to 30. */

import { isId } from "../int64.js";
import { Backoff } from "./backoff.js";
import { HISTORY, SIGNALS, positioned } from "./requests.js";

/** The key of the notifications among the topics; chats have their ids. */
export const NOTIFICATIONS = null;
/** What a chat consists of. */
export const KINDS = new Set(["chat_message", "chat_event"]);
const NOWHERE = { epoch: "", seq: 0 };

/** What is kept of one chat, or of the notifications. */
class Topic {
  live = false;
  paused = false;
  /** Something was thrown away while paused. */
  behind = false;
  /** A message was handed over since the last gap. */
  progress = true;
  /** The id of the frame that asks for it, `subscribe` or `history`, and is not answered yet. */
  request = null;
  /** It is behind, and catches up by pages of history before it is subscribed to. */
  paging = false;
  /** History was asked for what lies after this position. */
  asked = false;
  /** The `seq` in the answer that made it live: up to there nothing is missing once what was replayed has come. */
  answered = 0;

  constructor(chat, backoff, position = null, watch = false) {
    this.chat = chat;
    this.backoff = backoff;
    this.position = position;
    this.watch = watch;
  }

  /** What a message is, seen from the position: "next", "duplicate" or "gap". */
  judge(frame) {
    if (frame.epoch !== this.position.epoch) return "gap";
    if (frame.seq <= this.position.seq) return "duplicate";
    const answers = frame.seq > this.answered && this.answered > this.position.seq;
    return frame.prev > (answers ? this.answered : this.position.seq) ? "gap" : "next";
  }

  /** A message is handed over. */
  advance({ epoch, seq }) {
    this.position = { epoch, seq };
    this.progress = true;
    this.asked = false;
    this.backoff.reset();
  }
}

/**
 * The chats that are wanted, and the notifications, which always are. They outlive connections.
 *
 * Chats are subscribed to one by one; notifications come with the connection. So where these have a gap, only a
 * new connection helps, and the methods that find one say so.
 */
export class Topics {
  notifications;
  chats = new Map();
  #settings; #random; #requests; #do;
  // Of the present connection: chats to subscribe to, in order; and when to do so again where it was refused for now.
  #queue = new Set(); #retries = new Map(); #unanswered = 0;

  constructor(settings, random, requests, act) {
    this.#settings = settings;
    this.#random = random;
    this.#requests = requests;
    this.#do = act;
    this.notifications = new Topic(NOTIFICATIONS, new Backoff(settings, random));
  }

  // --- what the program does

  /** Want this chat's messages, from now on or those after `since`. No effect where it is wanted already. */
  subscribe(chat, now, since, watch) {
    if (this.chats.has(chat)) return;
    this.chats.set(chat, new Topic(chat, new Backoff(this.#settings, this.#random), since, watch));
    this.#say(chat, "subscribing");
    this.#want(chat, now);
  }

  /** Want it no more. */
  unsubscribe(chat, now) {
    const topic = this.chats.get(chat);
    if (this.chats.delete(chat)) this.#withdraw(topic, now);
  }

  /** Take no more of a topic until it is resumed. */
  pause(chat, now) {
    const topic = this.#get(chat);
    if (topic === undefined || topic.paused) return;
    topic.paused = true;
    if (chat !== NOTIFICATIONS) this.#withdraw(topic, now);
    this.#say(chat, "paused");
  }

  /** Go on from the last message that was handed over. Whether that takes a new connection. */
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

  /** Signal something to a chat's members. Whether it is on its way: where it cannot be now, it is lost. */
  signal(chat, kind, data, now) {
    const live = this.chats.get(chat)?.live === true;
    if (!live || !this.#requests.features.has(SIGNALS) || !this.#requests.pace.allows(now)) return false;
    this.#requests.send({ type: "signal", chat_id: chat, kind, data }, now);
    return true;
  }

  /** The chats that a connection is asked for: `[{ chat, position, watch }]`. */
  wanted() {
    return [...this.chats.values()].filter(({ paused }) => !paused).map(({ chat, position, watch }) => ({ chat, position, watch }));
  }

  // --- what happens

  /** Where the notifications go on from, for `auth`: without a place yet, one that asks for it. */
  since() {
    return this.notifications.position ?? NOWHERE;
  }

  /** The server has said where the notifications go on from, unless it keeps none. */
  authenticated(frame, now) {
    if (frame.epoch !== undefined) this.#settle(this.notifications, frame, now);
  }

  /** A connection takes subscriptions. */
  connected(now) {
    for (const chat of this.chats.keys()) this.#want(chat, now);
  }

  /** It is gone. */
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

  /** A message came, with its position. Whether it takes a new connection to have what lies before it. */
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

  /** Somebody came to a chat or left it. */
  presence(chat, users) {
    if (this.chats.has(chat)) this.#do({ do: "presence", chat, users });
  }

  /** A member of a chat signals something. */
  signalled(chat, { user_id: user, kind, data = null }) {
    if (this.chats.has(chat) && isId(user) && typeof kind === "string") this.#do({ do: "signal", chat, user, kind, data });
  }

  /** The server has subscribed to a chat, or has sent a page of it. */
  answered(request, frame, now) {
    this.#unanswered -= 1;
    const topic = this.chats.get(request.key);
    if (topic?.request === request.id) {
      if (topic.paging) this.#turn(topic, frame, now);
      else if (frame.epoch !== undefined) this.#settle(topic, frame, now);
    }
    this.#pump(now);
  }

  /** The server has not, now or for good. */
  refused(request, { code, message, again }, now) {
    this.#unanswered -= 1;
    const chat = request.key, topic = this.chats.get(chat);
    if (topic?.request === request.id) {
      topic.request = null;
      if (topic.paging && (code === "history_unavailable" || !again)) {
        topic.paging = false; // the answer to a subscribe says what is lost, or that it may not be had
        this.#want(chat, now);
      } else if (again) this.#say(chat, "waiting", { delay: this.#retry(topic, now), code, message });
      else {
        this.chats.delete(chat);
        this.#say(chat, "refused", { code, message });
      }
    }
    this.#pump(now);
  }

  /** An error came that nobody asked for. Whether it ends a subscription, to the chat that it names. */
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

  /** When `tick` is due next; null: nothing waits. */
  due() {
    let due = Infinity;
    for (const at of this.#retries.values()) due = Math.min(due, at);
    if (this.#queue.size > 0 && this.#unanswered < this.#settings.window) due = Math.min(due, this.#requests.pace.next());
    return due === Infinity ? null : due;
  }

  /** Subscribe to what has waited long enough. */
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

  /** Subscribe to what is wanted, as far as the window and the server's rate limit allow. */
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

  /** What asks for a chat: its next page, or the subscription. */
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

  /** The server has answered from where a topic goes on. */
  #settle(topic, { epoch, seq, recovered }, now) {
    const newest = { epoch, seq };
    if (topic.position === null) topic.position = newest;
    else if (recovered !== true) {
      if (topic.chat !== NOTIFICATIONS && this.#further(topic, newest)) {
        // Too much for one resumption. Until it has caught up, what comes would be thrown away.
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

  /** Whether history may have what a resumption did not bring. */
  #further({ position, asked }, { epoch, seq }) {
    return this.#requests.features.has(HISTORY) && !asked && position.epoch === epoch && position.seq < seq;
  }

  /** A page has come. The next one is for the reader to ask for, by `resume`; behind the last one it is live. */
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
    if (whole && more === true && further) topic.position = { epoch, seq }; // up to there nothing is for this client
    else topic.paging = false;
    this.#want(chat, now);
  }

  /** Ask again from the last position. What comes meanwhile is ignored: the answer includes it. */
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
