/**
 * A client of a notify server that never loses its place, for browsers and Node. No dependencies, no build step.
 *
 *   import { NotifyClient } from "./notify-client.js";
 *   const client = new NotifyClient("wss://host/ws", { token: () => fetchToken() });
 *   await client.start();
 *   for await (const message of client.chat(7)) console.log(message.content);
 *
 * How it behaves is docs/client.md; types are in notify-client.d.ts. `Machine` is the state machine apart from
 * sockets and clocks, the twin of the Python client's: the scenarios of the tests drive both.
 */

export const DEFAULTS = Object.freeze({
  // Seconds. A retry waits a random time between the floor and min(cap, base * 2 ** tries).
  backoff_floor: 0.1,
  backoff_base: 2,
  backoff_cap: 30,
  stable_after: 10,
  advice_cap: 300,
  token_timeout: 30,
  connect_timeout: 10,
  answer_timeout: 10,
  ping_interval: 25,
  pong_timeout: 10,
  refresh_margin: 60,
  command_timeout: 10,
  max_commands: 1000,
  // Subscribe frames without an answer at once; and all frames, kept below the server's default limits.
  window: 16,
  burst: 900,
  rate: 45,
});

const CLOSE_DONE = 1000, CLOSE_GAP = 3000, CLOSE_DEAD = 3001;
const TOKEN_EXPIRED = 4002, AUTH_FAILED = 4500, AUTH_TIMEOUT = 4501;
const MAX_AUTH_TIMEOUTS = 3;
const RETRIED = new Set(["unavailable", "history_unavailable", "rate_limited", "internal"]);
const NOTIFICATIONS = null;

const isId = (value) => Number.isInteger(value) || typeof value === "bigint";
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** The token in use, the one that is to replace it, and when that has to happen. */
class Credentials {
  value = null;
  accepted = false;
  refreshAt = null;
  #settings; #random; #unix;
  #obtained = 0; #expires = null; #lifetime = null; #offered = null;

  constructor(settings, random, unix) {
    this.#settings = settings;
    this.#random = random;
    this.#unix = unix;
  }

  get replacing() {
    return this.#offered !== null;
  }

  usable(now) {
    return this.value !== null && (this.#expires === null || now < this.#expires);
  }

  adopt(value, now, expiresAt) {
    this.value = value;
    this.#obtained = now;
    this.accepted = false;
    this.#expires = expiresAt === null ? null : now + expiresAt - this.#unix();
  }

  drop() {
    this.value = null;
  }

  confirmed(now, expiresAt) {
    this.accepted = true;
    this.#schedule(now, expiresAt);
  }

  offer(value, now, expiresAt) {
    this.#offered = [value, now, expiresAt];
  }

  /** Where nobody says when the new token expires, it is taken to live as long as the one before it. */
  replaced(now, expiresAt) {
    if (this.#offered === null) return;
    const [value, obtained, known] = this.#offered;
    this.adopt(value, obtained, null);
    if (known === null && expiresAt === null && this.#lifetime !== null) this.#expires = obtained + this.#lifetime;
    this.#offered = null;
    this.confirmed(now, expiresAt ?? known);
  }

  disconnected() {
    this.#offered = this.refreshAt = null;
  }

  notReplaced(at) {
    this.#offered = null;
    this.refreshAt = at;
  }

  /** Early enough, and not all clients at once. A token that the server took though it has expired by our clock
   * says that our clock is wrong: then 4002 will tell. */
  #schedule(now, expiresAt) {
    if (expiresAt !== null) {
      this.#expires = now + expiresAt - this.#unix();
      this.#lifetime = this.#expires - this.#obtained;
    }
    this.refreshAt = null;
    if (this.#expires !== null && this.#expires <= now) this.#expires = null;
    if (this.#expires !== null) {
      const margin = Math.min(this.#settings.refresh_margin, (this.#expires - now) / 4);
      this.refreshAt = this.#expires - margin * (1 + this.#random());
    }
  }
}

/** A bucket of frames that fills at the settings' rate up to their burst. */
class Pace {
  #settings; #allowance = 0; #at = 0;

  constructor(settings) {
    this.#settings = settings;
  }

  start(now) {
    this.#allowance = this.#settings.burst;
    this.#at = now;
  }

  spend(now) {
    this.#earn(now);
    this.#allowance -= 1;
  }

  allows(now) {
    this.#earn(now);
    return this.#allowance >= 0.999;
  }

  next() {
    return this.#at + Math.max(0, 1 - this.#allowance) / this.#settings.rate;
  }

  #earn(now) {
    this.#allowance = Math.min(this.#settings.burst, this.#allowance + (now - this.#at) * this.#settings.rate);
    this.#at = now;
  }
}

/**
 * The state machine: events in, `actions` out. Every event takes `now`, seconds of any steady clock; `deadline()`
 * says when `tick` is due. `random` gives numbers in [0, 1), `unix` the Unix time in seconds.
 */
export class Machine {
  state = "idle";
  actions = [];
  topics = new Map();
  #random; #credentials; #pace;
  #tries = 0; #authTimeouts = 0; #refreshTries = 0;
  #wake = null; #advised = false; #connectedAt = 0;
  #ids = 0; #tokens = 0; #fetching = null;
  #requests = new Map(); #queue = new Set(); #unanswered = 0;
  #heard = 0; #pongDue = null; #interval;
  #commands = new Map(); #retries = new Map();

  constructor(settings, random, unix) {
    this.settings = { ...DEFAULTS, ...settings };
    this.#random = random;
    this.#credentials = new Credentials(this.settings, random, unix);
    this.#pace = new Pace(this.settings);
    this.#interval = this.settings.ping_interval;
    this.topics.set(NOTIFICATIONS, this.#topic(NOTIFICATIONS, null, false));
  }

  // --- what the user does

  start(now) {
    if (this.state !== "idle" && this.state !== "closed") return;
    this.#tries = this.#authTimeouts = 0;
    this.#attempt(now);
  }

  stop(_now) {
    if (this.state === "closed") return;
    this.#leave(CLOSE_DONE, "");
    this.#end(CLOSE_DONE, "");
  }

  subscribe(chat, now, since = null, watch = false) {
    if (this.topics.has(chat)) return;
    this.topics.set(chat, this.#topic(chat, since, watch));
    this.#do({ do: "subscription", chat, state: "subscribing" });
    this.#want(chat, now);
  }

  unsubscribe(chat, now) {
    const topic = this.topics.get(chat);
    if (topic === undefined || chat === NOTIFICATIONS) return;
    this.topics.delete(chat);
    this.#withdraw(topic, now);
  }

  pause(chat, now) {
    const topic = this.topics.get(chat);
    if (topic === undefined || topic.paused) return;
    topic.paused = true;
    if (chat !== NOTIFICATIONS) this.#withdraw(topic, now);
    this.#do({ do: "subscription", chat, state: "paused" });
  }

  resume(chat, now) {
    const topic = this.topics.get(chat);
    if (topic === undefined || !topic.paused) return;
    topic.paused = false;
    this.#do({ do: "subscription", chat, state: "subscribing" });
    if (chat !== NOTIFICATIONS) this.#want(chat, now);
    else if (topic.live && topic.behind) this.#reconnect(CLOSE_GAP, "resync", now);
    else if (topic.live) this.#do({ do: "subscription", chat, state: "live", position: topic.position });
  }

  request(n, frame, now) {
    if (this.state === "idle" || this.state === "closed") this.#do({ do: "failed", n, code: "closed" });
    else if (this.#commands.size >= this.settings.max_commands) this.#do({ do: "failed", n, code: "busy" });
    else {
      this.#commands.set(n, { frame, deadline: now + this.settings.command_timeout, sent: 0 });
      if (this.state === "connected") this.#command(n, now);
    }
  }

  // --- what happens

  /** The token callback's answer; null: there is none, the user has signed out. */
  token(n, value, now, expiresAt = null) {
    if (n !== this.#tokens || this.#fetching === null) return;
    if (value === null) {
      this.#leave(CLOSE_DONE, "");
      this.#end(null, "no token");
      return;
    }
    this.#fetching = null;
    if (this.state === "connected") {
      const id = this.#ask("refresh", 0, now);
      this.#credentials.offer(value, now, expiresAt);
      this.#send({ type: "refresh", token: value, id }, now);
    } else {
      this.#credentials.adopt(value, now, expiresAt);
      this.#open(now);
    }
  }

  token_failed(n, reason, now) {
    if (n !== this.#tokens || this.#fetching === null) return;
    this.#fetching = null;
    if (this.state === "connected") this.#refreshLater(now);
    else this.#wait(null, `no token: ${reason}`, now);
  }

  opened(now) {
    if (this.state !== "connecting" || this.#fetching !== null) return;
    this.#heard = now;
    this.#pace.start(now);
    this.#wake = now + this.settings.answer_timeout;
    this.#enter({ state: "authenticating" });
    const since = this.topics.get(NOTIFICATIONS).position ?? { epoch: "", seq: 0 };
    this.#send({ type: "auth", token: this.#credentials.value, since }, now);
  }

  received(frame, now) {
    if ((this.state !== "authenticating" && this.state !== "connected") || !isObject(frame)) return;
    this.#heard = now;
    this.#pongDue = null;
    const { type, chat_id: chat } = frame;
    if (type === "chat_message") {
      if (positioned(frame) && isId(chat)) this.#message(chat, frame, now);
    } else if (type === "notification") {
      if (positioned(frame)) this.#message(NOTIFICATIONS, frame, now);
    } else if (type === "auth_result") this.#authenticated(frame, now);
    else if (type === "error") this.#refused(frame, now);
    else if (type === "presence" && frame.id === undefined) {
      if (isId(chat) && this.topics.has(chat)) this.#do({ do: "presence", chat, users: frame.users ?? [] });
    } else if (type === "subscribed" || type === "ok" || type === "pong" || type === "presence") {
      this.#answered(frame, now);
    }
  }

  closed(code, reason, now) {
    if (!this.#hasConnection()) return;
    if (code === TOKEN_EXPIRED || code === AUTH_TIMEOUT) this.#credentials.drop();
    if (code === AUTH_TIMEOUT) this.#authTimeouts += 1;
    const again = code === AUTH_TIMEOUT && this.#authTimeouts < MAX_AUTH_TIMEOUTS;
    if (code === AUTH_FAILED) this.#rejected(reason, now);
    else if (code >= 4500 && code <= 4999 && !again) this.#end(code, reason);
    else this.#wait(code, reason, now, advice(reason));
  }

  online(now) {
    if (this.state === "waiting" && !this.#advised) this.#attempt(now);
    else if (this.state === "connected" && this.#pongDue === null) this.#ping(now);
  }

  deadline() {
    let due = Infinity;
    const at = (time) => {
      if (time !== null && time < due) due = time;
    };
    at(this.#wake);
    at(this.#fetching);
    for (const command of this.#commands.values()) at(command.deadline);
    if (this.state === "connected") {
      at(this.#pongDue ?? this.#heard + this.#interval);
      for (const time of this.#retries.values()) at(time);
      at(this.#credentials.refreshAt);
      const oldest = this.#requests.values().next().value;
      if (oldest !== undefined) at(oldest.sent + this.settings.answer_timeout);
      if (this.#queue.size > 0 && this.#unanswered < this.settings.window) at(this.#pace.next());
    }
    return due === Infinity ? null : due;
  }

  tick(now) {
    for (const [n, command] of [...this.#commands]) {
      if (command.deadline <= now) {
        this.#commands.delete(n);
        this.#do({ do: "failed", n, code: "timeout" });
      }
    }
    if (this.#fetching !== null && this.#fetching <= now) {
      this.token_failed(this.#tokens, "the callback took too long", now);
    } else if (this.#wake !== null && this.#wake <= now) {
      if (this.state === "waiting") this.#attempt(now);
      else this.#reconnect(CLOSE_DEAD, "no answer", now);
    } else if (this.state === "connected") this.#tickConnected(now);
  }

  // --- the connection

  #tickConnected(now) {
    const oldest = this.#requests.values().next().value;
    if (this.#pongDue !== null && this.#pongDue <= now) return this.#reconnect(CLOSE_DEAD, "no pong", now);
    if (oldest !== undefined && oldest.sent + this.settings.answer_timeout <= now) {
      return this.#reconnect(CLOSE_DEAD, "no answer", now);
    }
    if (this.#pongDue === null && this.#heard + this.#interval <= now) this.#ping(now);
    if (this.#credentials.refreshAt !== null && this.#credentials.refreshAt <= now) {
      this.#credentials.refreshAt = null;
      this.#fetch(now);
    }
    for (const [chat, at] of [...this.#retries]) {
      if (at <= now) {
        this.#retries.delete(chat);
        this.#want(chat, now);
      }
    }
    this.#pump(now);
  }

  #attempt(now) {
    this.#wake = null;
    this.#enter({ state: "connecting" });
    if (this.#credentials.usable(now)) this.#open(now);
    else this.#fetch(now);
  }

  #open(now) {
    this.#wake = now + this.settings.connect_timeout;
    this.#do({ do: "open" });
  }

  #authenticated(frame, now) {
    if (this.state !== "authenticating") return;
    if (frame.success !== true) {
      this.#leave(CLOSE_DONE, "");
      this.#rejected("", now);
      return;
    }
    this.#wake = null;
    this.#authTimeouts = this.#refreshTries = 0;
    this.#connectedAt = now;
    this.#interval = frame.ping_interval || this.settings.ping_interval;
    this.#credentials.confirmed(now, frame.expires_at ?? null);
    this.#enter({ state: "connected", user_id: frame.user_id, connection_id: frame.connection_id });
    if (frame.epoch !== undefined) this.#settle(this.topics.get(NOTIFICATIONS), frame);
    for (const n of this.#commands.keys()) this.#command(n, now);
    for (const chat of this.topics.keys()) if (chat !== NOTIFICATIONS) this.#want(chat, now);
  }

  /** A token that once was good may have aged: a new one is a change. A new one that is refused ends it. */
  #rejected(reason, now) {
    if (this.#credentials.accepted && !this.#credentials.replacing) {
      this.#credentials.drop();
      this.#wait(AUTH_FAILED, reason, now);
    } else this.#end(AUTH_FAILED, reason);
  }

  #reconnect(code, reason, now) {
    this.#leave(code, reason);
    this.#wait(null, reason, now);
  }

  #wait(code, reason, now, advised = null) {
    if (this.state === "connected" && now - this.#connectedAt >= this.settings.stable_after) this.#tries = 0;
    this.#forget();
    let delay = this.#delay(this.#tries);
    this.#advised = advised !== null;
    if (this.#advised) delay = Math.max(this.settings.backoff_floor, Math.min(advised, this.settings.advice_cap));
    this.#tries += 1;
    this.#wake = now + delay;
    this.#enter({ state: "waiting", delay, code, reason });
  }

  /** Full jitter: anywhere between the floor and a window that doubles with each try. */
  #delay(tries) {
    const { backoff_floor: floor, backoff_base: base, backoff_cap: cap } = this.settings;
    return floor + this.#random() * Math.max(0, Math.min(cap, base * 2 ** Math.min(tries, 30)) - floor);
  }

  #end(code, reason) {
    this.#forget();
    this.#credentials.drop();
    this.#wake = null;
    const commands = this.#commands;
    this.#commands = new Map();
    this.#enter({ state: "closed", code, reason });
    for (const n of commands.keys()) this.#do({ do: "failed", n, code: "closed" });
  }

  #leave(code, reason) {
    if (this.#hasConnection()) this.#do({ do: "close", code, reason });
  }

  #hasConnection() {
    return this.state === "authenticating" || this.state === "connected" ||
      (this.state === "connecting" && this.#fetching === null);
  }

  /** Drop what belonged to the connection; topics and commands outlive it. */
  #forget() {
    this.#requests.clear();
    this.#queue.clear();
    this.#retries.clear();
    this.#unanswered = 0;
    this.#pongDue = this.#fetching = null;
    this.#credentials.disconnected();
    for (const topic of this.topics.values()) {
      topic.live = false;
      topic.request = null;
      topic.tries = 0;
    }
  }

  #ping(now) {
    this.#pongDue = now + this.settings.pong_timeout;
    this.#send({ type: "ping" }, now);
  }

  // --- the token

  #fetch(now) {
    this.#tokens += 1;
    this.#fetching = now + this.settings.token_timeout;
    this.#do({ do: "token", n: this.#tokens });
  }

  #refreshLater(now) {
    this.#credentials.notReplaced(now + this.#delay(this.#refreshTries));
    this.#refreshTries += 1;
  }

  // --- topics

  #topic(chat, position, watch) {
    return {
      chat, position, watch, live: false, paused: false, behind: false, progress: true, tries: 0, request: null,
    };
  }

  #want(chat, now) {
    const topic = this.topics.get(chat);
    if (this.state !== "connected" || topic === undefined || topic.paused) return;
    this.#queue.add(chat);
    this.#pump(now);
  }

  #withdraw(topic, now) {
    this.#queue.delete(topic.chat);
    this.#retries.delete(topic.chat);
    if (this.state === "connected" && (topic.live || topic.request !== null)) {
      this.#send({ type: "unsubscribe", chat_id: topic.chat }, now);
    }
    topic.live = false;
    topic.request = null;
  }

  /** Subscribe to what is wanted, as far as the window and the server's rate limit allow. */
  #pump(now) {
    while (this.#queue.size > 0 && this.#unanswered < this.settings.window && this.#pace.allows(now)) {
      const chat = this.#queue.values().next().value;
      this.#queue.delete(chat);
      const topic = this.topics.get(chat);
      topic.live = false;
      topic.request = this.#ask("subscribe", chat, now);
      this.#unanswered += 1;
      const frame = { type: "subscribe", chat_id: chat, id: topic.request };
      if (topic.position !== null) frame.since = topic.position;
      if (topic.watch) frame.watch_presence = true;
      this.#send(frame, now);
    }
  }

  /** The server has answered from where a topic goes on. */
  #settle(topic, answer) {
    const newest = { epoch: answer.epoch, seq: answer.seq };
    if (topic.position === null) topic.position = newest;
    else if (answer.recovered !== true) {
      this.#do({ do: "lost", chat: topic.chat, before: topic.position, after: newest });
      topic.position = newest;
    }
    topic.live = true;
    topic.behind = false;
    topic.request = null;
    if (!topic.paused) this.#do({ do: "subscription", chat: topic.chat, state: "live", position: topic.position });
  }

  #message(chat, frame, now) {
    const topic = this.topics.get(chat);
    if (topic === undefined || !topic.live || topic.position === null) return;
    if (topic.paused) {
      topic.behind = true;
      return;
    }
    const last = topic.position;
    if (frame.epoch === last.epoch && frame.seq <= last.seq) return;
    if (frame.epoch !== last.epoch || frame.prev > last.seq) {
      this.#do({ do: "gap", chat, last: last.seq, prev: frame.prev });
      this.#fill(topic, now);
      return;
    }
    topic.position = { epoch: frame.epoch, seq: frame.seq };
    topic.progress = true;
    topic.tries = 0;
    this.#do({ do: "message", chat, frame });
  }

  /** Ask again from the last position. What comes meanwhile is ignored: the answer includes it. */
  #fill(topic, now) {
    topic.live = false;
    if (topic.chat === NOTIFICATIONS) this.#reconnect(CLOSE_GAP, "gap", now);
    else if (topic.progress) {
      topic.progress = false;
      this.#want(topic.chat, now);
    } else this.#retry(topic, now);
  }

  #retry(topic, now) {
    const delay = this.#delay(topic.tries);
    topic.tries += 1;
    this.#retries.set(topic.chat, now + delay);
    return delay;
  }

  // --- requests and answers

  #command(n, now) {
    const command = this.#commands.get(n);
    command.sent = now;
    this.#send({ ...command.frame, id: this.#ask("command", n, now) }, now);
  }

  #ask(kind, key, now) {
    this.#ids += 1;
    this.#requests.set(this.#ids, { kind, key, sent: now });
    return this.#ids;
  }

  #take(frame) {
    const request = this.#requests.get(frame.id);
    if (request === undefined) return null;
    this.#requests.delete(frame.id);
    if (request.kind === "subscribe") this.#unanswered -= 1;
    return request;
  }

  #answered(frame, now) {
    const request = this.#take(frame);
    if (request === null) return;
    if (request.kind === "subscribe") {
      const topic = this.topics.get(request.key);
      if (topic !== undefined && topic.request === frame.id && frame.epoch !== undefined) this.#settle(topic, frame);
      this.#pump(now);
    } else if (request.kind === "command") {
      const command = this.#commands.get(request.key);
      if (this.#commands.delete(request.key)) {
        this.#do({ do: "done", n: request.key, took: now - command.sent, users: frame.users });
      }
    } else {
      this.#refreshTries = 0;
      this.#credentials.replaced(now, frame.expires_at ?? null);
    }
  }

  #refused(frame, now) {
    const code = String(frame.code ?? ""), message = String(frame.message ?? "");
    const again = frame.retry ?? RETRIED.has(code);
    const request = this.#take(frame);
    if (request === null) {
      const chat = frame.chat_id;
      if (isId(chat) && !again && this.topics.delete(chat)) {
        this.#queue.delete(chat);
        this.#retries.delete(chat);
        this.#do({ do: "subscription", chat, state: "refused", code, message });
      } else this.#do({ do: "error", code, message });
    } else if (request.kind === "refresh") {
      this.#do({ do: "error", code, message });
      this.#refreshLater(now);
    } else if (request.kind === "command") {
      if (this.#commands.delete(request.key)) this.#do({ do: "failed", n: request.key, code, message });
    } else {
      const topic = this.topics.get(request.key);
      if (topic !== undefined && topic.request === frame.id) {
        topic.request = null;
        const delay = again ? this.#retry(topic, now) : undefined;
        if (!again) this.topics.delete(request.key);
        const state = again ? "waiting" : "refused";
        this.#do({ do: "subscription", chat: request.key, state, delay, code, message });
      }
      this.#pump(now);
    }
  }

  #send(frame, now) {
    this.#pace.spend(now);
    this.#do({ do: "send", frame });
  }

  #enter(change) {
    this.state = change.state;
    this.#do({ do: "state", ...change });
  }

  #do(action) {
    this.actions.push(action);
  }
}

function positioned(frame) {
  return typeof frame.epoch === "string" && Number.isInteger(frame.seq) && Number.isInteger(frame.prev);
}

/** Seconds of `{"retry_after_ms": N}`, a close reason's advice; null: there is none. */
function advice(reason) {
  try {
    const wait = JSON.parse(reason).retry_after_ms;
    return typeof wait === "number" && wait >= 0 ? wait / 1000 : null;
  } catch {
    return null;
  }
}

// --- JSON with 64-bit integers: those that a Number cannot hold exactly are BigInts

const MARK = `\u0000${Math.random().toString(36).slice(2)}:`;
const WRITTEN_MARK = JSON.stringify(MARK).slice(1, -1);
const LONG = /\d{16}/;
const TOKENS = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const MARKED = new RegExp(`"${WRITTEN_MARK.replace(/\\/g, "\\\\")}(-?\\d+)"`, "g");

export function decode(text) {
  if (!LONG.test(text)) return JSON.parse(text);
  const marked = text.replace(TOKENS, (token) =>
    /^-?\d{16,}$/.test(token) && !Number.isSafeInteger(Number(token)) ? `"${WRITTEN_MARK}${token}"` : token);
  return JSON.parse(marked, (_, value) =>
    typeof value === "string" && value.startsWith(MARK) ? BigInt(value.slice(MARK.length)) : value);
}

export function encode(value) {
  return JSON.stringify(value, (_, part) => (typeof part === "bigint" ? `${MARK}${part}` : part))
    .replace(MARKED, "$1");
}

function chatKey(id) {
  const key = typeof id === "string" && /^-?\d+$/.test(id) ? BigInt(id) : id;
  if (typeof key === "bigint" && BigInt.asIntN(64, key) === key) {
    return Number.isSafeInteger(Number(key)) ? Number(key) : key;
  }
  if (Number.isSafeInteger(key)) return key;
  throw new TypeError("a chat's id is a 64-bit integer; write those beyond 2^53 as a BigInt");
}

// --- what is thrown

/** The client has ended and will not reconnect; `code` is the server's close code (null: no token). */
export class ClientClosed extends Error {
  name = "ClientClosed";
  constructor(code, reason) {
    super(`closed with ${code}${reason ? ` (${reason})` : ""}`);
    this.code = code;
    this.reason = reason;
  }
}

/** A reader without `onLost` came to a place where messages are lost. Reload, then read on. */
export class HistoryLost extends Error {
  name = "HistoryLost";
  constructor(loss) {
    super(`messages of ${loss.chat_id === null ? "the notifications" : `chat ${loss.chat_id}`} were lost`);
    this.loss = loss;
  }
}

/** The server refused a subscription or a command; or it timed out, was one too many, or the client was closed. */
export class Refused extends Error {
  name = "Refused";
  constructor(code, message = "") {
    super(message ? `${code}: ${message}` : code);
    this.code = code;
  }
}

// --- stores

/** Positions in `localStorage` (or another `Storage`). The prefix names the user: positions of two must not mix. */
export class LocalStorageStore {
  #prefix; #storage;

  constructor(prefix, storage = globalThis.localStorage) {
    this.#prefix = prefix;
    this.#storage = storage;
  }

  load(key) {
    try {
      const position = JSON.parse(this.#storage.getItem(`${this.#prefix}:${key}`));
      return typeof position?.epoch === "string" && Number.isInteger(position.seq) ? position : null;
    } catch {
      return null;
    }
  }

  save(positions) {
    for (const [key, position] of Object.entries(positions)) {
      this.#storage.setItem(`${this.#prefix}:${key}`, JSON.stringify(position));
    }
  }
}

// --- streams

/**
 * `for await (const message of stream)`: each message once and in order, over any number of reconnects. One reader
 * at a time. A message counts as handled when the reader comes for the next one; then its position is stored.
 */
export class Stream {
  state = "subscribing";
  position = null;
  #hooks; #queue = []; #taken = null; #error = null; #paused = false; #measuring = null; #reading = null; #ready = [];

  constructor(hooks, key, onLost = null) {
    this.#hooks = hooks;
    this.key = key;
    this.onLost = onLost;
  }

  /** Messages that have come and were not read yet. */
  get waiting() {
    return this.#queue.length;
  }

  async ready() {
    while (this.state !== "live" && this.state !== "paused") {
      if (this.#over()) throw this.#error ?? new ClientClosed(1000, "");
      await new Promise((resolve) => this.#ready.push(resolve));
    }
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  async next() {
    if (this.#reading !== null) throw new Error("this stream has a reader already");
    this.handled();
    for (;;) {
      if (this.#queue.length > 0) {
        const item = this.#queue.shift();
        if (this.#paused && !this.#over() && this.#queue.length <= this.#hooks.bound / 2) {
          this.#paused = false;
          this.#hooks.resume(this.key);
        }
        if (item.loss === undefined) {
          this.#taken = item.position;
          return { done: false, value: item };
        }
        this.#taken = item.loss.after;
        if (this.onLost === null) throw new HistoryLost(item.loss);
        await this.onLost(item.loss);
        this.handled();
      } else if (this.#over()) {
        if (this.#error !== null) throw this.#error;
        return { done: true, value: undefined };
      } else {
        await new Promise((resolve) => (this.#reading = resolve));
        this.#reading = null;
      }
    }
  }

  /** The message that was read last is dealt with; `next` and the client's `close` call this. */
  handled() {
    if (this.#taken !== null) {
      this.position = this.#taken;
      this.#taken = null;
    }
    if (this.position !== null) this.#hooks.save(this.key, this.position);
  }

  /** Unsubscribe; what was not read is forgotten. */
  close() {
    this.#queue = [];
    this.#hooks.close(this);
  }

  // The client's side.

  put(item) {
    this.#queue.push(item);
    if (this.#queue.length >= this.#hooks.bound && !this.#paused) {
      // One event may bring more than the bound at once: the reader has its turn first.
      this.#measuring ??= setTimeout(() => this.#measure(), 0);
    }
    this.#reading?.();
  }

  #measure() {
    this.#measuring = null;
    if (this.#queue.length < this.#hooks.bound || this.#paused || this.#over()) return;
    this.#paused = true;
    this.#hooks.pause(this.key);
  }

  changed(state, position) {
    this.state = state;
    if (state !== "live") return;
    if (this.position === null && this.#taken === null && this.#queue.length === 0) {
      this.position = position;
      if (this.key !== NOTIFICATIONS) this.handled();
    }
    this.#wake();
  }

  finish(state, error) {
    if (this.#over()) return;
    this.state = state;
    this.#error = error;
    this.#wake();
    this.#reading?.();
  }

  #over() {
    return this.state === "refused" || this.state === "closed";
  }

  #wake() {
    for (const resolve of this.#ready.splice(0)) resolve();
  }
}

// --- the client

const now = () => performance.now() / 1000;
const SAVING = 200; // milliseconds from the first position that has changed to saving all

export class NotifyClient {
  #url; #token; #store; #WebSocket; #machine; #socket = null; #carryingOut = false;
  #timer = null; #timerDue = 0; #bound; #chats = new Map(); #commands = new Map(); #count = 0;
  #listeners = new Map(); #unsaved = {}; #saver = null; #settled = []; #awake; #hidden; #closing = null;

  constructor(url, options = {}) {
    const { token, store = null, settings = {}, queue = 256, random = Math.random } = options;
    this.#WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (this.#WebSocket === undefined) {
      throw new Error("no WebSocket here (Node has one from version 22 on): give that of the package 'ws' as options.WebSocket");
    }
    if (token === undefined) throw new TypeError("options.token: a token, or a function that gives one");
    this.#url = String(url);
    this.#token = token;
    this.#store = store;
    this.#bound = queue;
    this.#machine = new Machine(settings, random, () => Date.now() / 1000);
    this.state = { state: "idle" };
    this.notifications = new Stream(this.#hooks(), NOTIFICATIONS);
    this.#awake = () => this.online();
    this.#hidden = () => {
      if (globalThis.document.visibilityState === "visible") this.online();
      else this.#saveNow();
    };
  }

  /** `on("state" | "presence" | "event" | "error", listener)`; returns a function that takes it away again. */
  on(name, listener) {
    if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
    this.#listeners.get(name).add(listener);
    return () => this.#listeners.get(name).delete(listener);
  }

  /** Connect; resolves once connected, however long it takes. Rejects with ClientClosed where it ends instead. */
  async start() {
    if (this.state.state === "closed") throw new Error("a closed client stays closed: make a new one");
    if (this.state.state === "idle") {
      const stored = (await this.#store?.load("notifications")) ?? null;
      if (this.state.state !== "idle") return this.start();
      this.#machine.topics.get(NOTIFICATIONS).position = stored;
      this.notifications.position = stored;
      globalThis.addEventListener?.("online", this.#awake);
      globalThis.document?.addEventListener("visibilitychange", this.#hidden);
      this.#event("start");
    }
    while (this.state.state !== "connected") {
      if (this.state.state === "closed") throw new ClientClosed(this.state.code, this.state.reason);
      await new Promise((resolve) => this.#settled.push(resolve));
    }
  }

  /** Close for good: streams end, positions are saved. */
  async close() {
    for (const stream of this.#streams()) stream.handled();
    this.#event("stop");
    await this.#saveNow();
    await this.#closing;
  }

  /** Subscribe to a chat, now or as soon as connected, from `since`, else the stored position, else from now on. */
  chat(id, { since = null, watchPresence = false, onLost = null } = {}) {
    const key = chatKey(id);
    if (this.#chats.has(key)) throw new Error(`chat ${key} is subscribed to already`);
    const chat = new Stream(this.#hooks(), key, onLost);
    this.#chats.set(key, chat);
    const begin = (position) => {
      if (this.#chats.get(key) !== chat || chat.state === "closed") return;
      chat.position = position;
      this.#event("subscribe", key, position, watchPresence);
    };
    if (since !== null || this.#store === null) begin(since);
    else Promise.resolve(this.#store.load(`chat:${key}`)).then((stored) => begin(stored ?? null), (error) => {
      this.#tell("error", error);
      begin(null);
    });
    return chat;
  }

  /** Who is in a chat, on any node: `[{user_id, connections}]`. */
  async presence(id) {
    return (await this.#ask({ type: "presence", chat_id: chatKey(id) })).users ?? [];
  }

  /** The round trip's seconds. */
  async ping() {
    return (await this.#ask({ type: "ping" })).took;
  }

  /** Tell the client that the network has come back; browsers' own event does so by itself. */
  online() {
    this.#event("online");
  }

  /** Drop the connection as if the network had: for demonstrations and tests. */
  cut() {
    const socket = this.#socket;
    if (socket === null) return;
    this.#detach();
    socket.terminate ? socket.terminate() : socket.close();
    this.#event("closed", 1006, "cut");
  }

  #hooks() {
    return {
      bound: this.#bound,
      pause: (key) => this.#event("pause", key),
      resume: (key) => this.#event("resume", key),
      save: (key, position) => this.#save(key, position),
      close: (stream) => this.#unsubscribe(stream),
    };
  }

  #streams() {
    return [this.notifications, ...this.#chats.values()];
  }

  #unsubscribe(stream) {
    if (this.#chats.get(stream.key) !== stream) return;
    stream.handled();
    this.#chats.delete(stream.key);
    stream.finish("closed", null);
    this.#event("unsubscribe", stream.key);
  }

  #ask(frame) {
    this.#count += 1;
    const n = this.#count;
    return new Promise((resolve, reject) => {
      this.#commands.set(n, [resolve, reject]);
      this.#event("request", n, frame);
    });
  }

  // --- the machine

  #event(name, ...args) {
    // Every event takes `now` last but these two, which have optional arguments behind it.
    if (name === "subscribe") this.#machine.subscribe(args[0], now(), args[1], args[2]);
    else if (name === "token") this.#machine.token(args[0], args[1], now(), args[2]);
    else this.#machine[name](...args, now());
    this.#carryOut();
  }

  #carryOut() {
    if (this.#carryingOut) return;
    this.#carryingOut = true;
    try {
      while (this.#machine.actions.length > 0) {
        for (const action of this.#machine.actions.splice(0)) {
          this.#tell("event", action);
          this.#do(action);
        }
      }
    } finally {
      this.#carryingOut = false;
    }
    this.#arm();
  }

  #arm() {
    const due = this.#machine.deadline();
    if (this.#timer !== null && (due === null || due < this.#timerDue)) {
      clearTimeout(this.#timer);
      this.#timer = null;
    }
    if (this.#timer === null && due !== null) {
      this.#timerDue = due;
      const wait = Math.min(Math.max(0, Math.ceil((due - now()) * 1000)), 2 ** 31 - 1);
      this.#timer = setTimeout(() => {
        this.#timer = null;
        this.#event("tick");
      }, wait);
    }
  }

  #do(action) {
    switch (action.do) {
      case "message": return this.#deliver(action);
      case "send": return this.#socket?.send(encode(action.frame));
      case "open": return this.#open();
      case "close": return this.#leave(action.code, action.reason);
      case "token": return void this.#fetch(action.n);
      case "state": return this.#state(action);
      case "subscription": return this.#subscription(action);
      case "lost": {
        const loss = { chat_id: action.chat, before: action.before, after: action.after };
        return this.#stream(action.chat)?.put({ loss });
      }
      case "presence": return this.#tell("presence", { chat_id: action.chat, users: action.users });
      case "error": return this.#tell("error", new Refused(action.code, action.message));
      case "done": return this.#settle(action.n, (resolve) => resolve(action));
      case "failed": return this.#settle(action.n, (_, reject) => reject(new Refused(action.code, action.message)));
    }
  }

  #deliver({ chat, frame }) {
    const { type: _, epoch, seq, prev: __, ...message } = frame;
    this.#stream(chat)?.put({ ...message, position: { epoch, seq } });
  }

  #stream(chat) {
    return chat === NOTIFICATIONS ? this.notifications : this.#chats.get(chat);
  }

  #settle(n, how) {
    const command = this.#commands.get(n);
    this.#commands.delete(n);
    how(...command);
  }

  #subscription({ chat, state, position, code, message }) {
    const stream = this.#stream(chat);
    if (state === "refused") {
      this.#chats.delete(chat);
      stream?.finish("refused", new Refused(code, message));
    } else stream?.changed(state, position);
  }

  #state({ do: _, ...state }) {
    this.state = state;
    if (state.state === "closed") {
      globalThis.removeEventListener?.("online", this.#awake);
      globalThis.document?.removeEventListener("visibilitychange", this.#hidden);
      const error = state.code === CLOSE_DONE ? null : new ClientClosed(state.code, state.reason);
      for (const stream of this.#streams()) stream.finish("closed", error);
    }
    if (state.state === "closed" || state.state === "connected") {
      for (const resolve of this.#settled.splice(0)) resolve();
    }
    this.#tell("state", state);
  }

  #tell(name, value) {
    for (const listener of this.#listeners.get(name) ?? []) {
      try {
        listener(value);
      } catch (error) {
        console.error(error);
      }
    }
  }

  async #fetch(n) {
    let token;
    try {
      token = typeof this.#token === "function" ? await this.#token() : this.#token;
    } catch (error) {
      return this.#event("token_failed", n, String(error?.message ?? error));
    }
    const value = isObject(token) ? token.value : token;
    this.#event("token", n, value ?? null, (isObject(token) ? token.expiresAt : null) ?? null);
  }

  // --- the socket

  #open() {
    let socket;
    try {
      socket = new this.#WebSocket(this.#url, ["notify.v1.json.batch", "notify.v1.json"]);
    } catch (error) {
      queueMicrotask(() => this.#event("closed", 1006, String(error?.message ?? error)));
      return;
    }
    this.#socket = socket;
    socket.onopen = () => this.#event("opened");
    socket.onerror = () => {}; // a close event follows, and says more
    socket.onmessage = ({ data }) => this.#received(data);
    socket.onclose = ({ code, reason }) => {
      this.#detach();
      this.#event("closed", code, reason);
    };
  }

  #received(data) {
    if (typeof data !== "string") return;
    let frames;
    try {
      frames = decode(data);
    } catch {
      return;
    }
    for (const frame of Array.isArray(frames) ? frames : [frames]) {
      try {
        this.#machine.received(frame, now());
      } catch (error) {
        // Not of the protocol: come back later, perhaps to another server.
        this.#tell("error", error);
        this.#leave(CLOSE_DEAD, "malformed frame");
        this.#machine.closed(1002, "the server sent a malformed frame", now());
      }
      this.#carryOut();
    }
  }

  #detach() {
    if (this.#socket === null) return;
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket = null;
  }

  #leave(code, reason) {
    const socket = this.#socket;
    if (socket === null) return;
    this.#detach();
    // Node's `ws` would wait long for the other side's close frame.
    this.#closing = new Promise((resolve) => {
      const give = setTimeout(() => {
        socket.terminate?.();
        resolve();
      }, 2000);
      socket.onclose = () => {
        clearTimeout(give);
        resolve();
      };
    });
    socket.close(code, reason);
  }

  // --- positions

  #save(key, position) {
    if (this.#store === null) return;
    this.#unsaved[key === NOTIFICATIONS ? "notifications" : `chat:${key}`] = position;
    this.#saver ??= setTimeout(() => this.#saveNow(), SAVING);
  }

  async #saveNow() {
    clearTimeout(this.#saver);
    this.#saver = null;
    const unsaved = this.#unsaved;
    this.#unsaved = {};
    if (this.#store === null || Object.keys(unsaved).length === 0) return;
    try {
      await this.#store.save(unsaved);
    } catch (error) {
      this.#tell("error", error);
    }
  }
}
