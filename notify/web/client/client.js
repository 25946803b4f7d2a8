/** The client: the methods that an application calls, and the streams that it reads. */

import { ClientClosed, Refused, within } from "./errors.js";
import { asText, chatKey, holdsBigInt, isJson } from "./int64.js";
import { CLOSE_DONE } from "./machine.js";
import { NOTIFICATIONS } from "./parts/topics.js";
import { Runner } from "./runner.js";
import { Saver } from "./saver.js";
import { Stream } from "./stream.js";

/** Convert a message for the application. */
function read({ type: _, epoch, seq, prev: __, ...message }) {
  message.position = { epoch, seq };
  // JSON.stringify cannot write a BigInt. An id as text is the same id wherever the client accepts one.
  if (holdsBigInt(message)) Object.defineProperty(message, "toJSON", { value: () => asText({ ...message }) });
  return message;
}

export class NotifyClient {
  #runner; #bound; #saver; #chats = new Map(); #held = new Map(); #listeners = new Map();
  #settled = []; #awake; #hidden; #kept; #onLost; #starters = 0; #reason = "";

  constructor(url, options = {}) {
    const { store = null, queue = 256, onLost = null } = options;
    this.#runner = new Runner(String(url), options, {
      action: (action) => this.#tell("action", action),
      told: (action) => this.#told(action),
      error: (error) => this.#tell("error", error),
      why: (code) => this.#why(code),
    });
    this.#bound = queue;
    this.#onLost = onLost;
    this.#saver = new Saver(store, (error) => this.#tell("error", error));
    this.state = { state: "idle" };
    this.notifications = new Stream(this.#hooks(), NOTIFICATIONS, { onLost });
    this.#awake = () => this.online();
    this.#hidden = () => {
      if (globalThis.document.visibilityState === "visible") this.online();
      else this.#saver.flush();
    };
    // The browser may keep a page that its user leaves, with its open socket, although nobody is there. When shown again it becomes visible.
    this.#kept = ({ persisted }) => {
      if (persisted) this.cut();
    };
  }

  /** The client id, which proxies hash: the application's own or a random one. It changes once the server sends the client elsewhere. */
  get clientId() {
    return this.#runner.clientId;
  }

  /** `on("state" | "presence" | "signal" | "action" | "error", listener)`. Returns a function that removes the listener. */
  on(name, listener) {
    if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
    this.#listeners.get(name).add(listener);
    return () => this.#listeners.get(name).delete(listener);
  }

  /**
   * Connect. Resolves once connected, within `timeout` seconds or however long it takes. Rejects with TimedOut, which says why the
   * last attempt failed, while the client keeps trying; and with ClientClosed if the client ends instead. Each failed attempt is
   * reported to the listeners of `state`; if there are none, it is logged to the console while this method waits.
   */
  async start({ timeout = null } = {}) {
    this.#starters += 1;
    try {
      await within(this.#connected(), timeout, () => `not connected within ${timeout} s: ${this.#standing()}`);
    } finally {
      this.#starters -= 1;
    }
  }

  async #connected() {
    if (this.state.state === "closed") throw new Error("a closed client stays closed: make a new one");
    if (this.state.state === "idle") {
      const stored = (await this.#saver.load(NOTIFICATIONS)) ?? null;
      if (this.state.state !== "idle") return this.#connected();
      this.#runner.machine.topics.notifications.position = stored;
      this.notifications.position = stored;
      globalThis.addEventListener?.("online", this.#awake);
      globalThis.document?.addEventListener("visibilitychange", this.#hidden);
      globalThis.addEventListener?.("pagehide", this.#kept);
      this.#runner.event("start");
    }
    while (this.state.state !== "connected") {
      if (this.state.state === "closed") throw new ClientClosed(this.state.code, this.state.reason);
      await new Promise((resolve) => this.#settled.push(resolve));
    }
  }

  #standing() {
    const reasons = [this.#reason];
    if (this.#runner.fetching && this.state.state === "connecting") reasons.push("the token function has not answered");
    return [`the client is ${this.state.state}`, ...reasons.filter(Boolean)].join(", ");
  }

  async [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    await this.close();
  }

  /** Close for good: end the streams and save the positions. */
  async close() {
    for (const stream of this.#streams()) stream.handled();
    this.#runner.event("stop");
    await this.#saver.close();
    await this.#runner.gone();
  }

  /**
   * Subscribe to a chat, now or once connected: from after `since`, else the stored position, else from now on.
   * `onEvent` needs a client with `settings: { features: ["events"] }`. `load` loads the chat's state as of the given position, or
   * later. It is awaited while the reader waits: before the first message, and again wherever messages are lost.
   *
   * A further call for the same chat returns another stream, which continues from the subscription's current position; so it takes
   * neither `since` nor `watchPresence`. Every stream gets every message. The slowest one sets the pace, and its position is the
   * one that is stored. If the client is closed, the returned stream has already ended.
   */
  chat(id, { since = null, watchPresence = false, onLost = null, onEvent = null, load = null } = {}) {
    if (load !== null && (onLost !== null || since !== null)) {
      throw new TypeError("load: it begins at the newest position, and is called on a loss: no since, no onLost");
    }
    const key = chatKey(id);
    if (onEvent !== null && !this.#runner.machine.settings.features.includes("events")) {
      throw new TypeError('onEvent: the client must ask for events: settings: { features: ["events"] }');
    }
    if (this.state.state === "closed") {
      const ended = new Stream(this.#hooks(), key);
      ended.finish("closed", this.#end());
      return ended;
    }
    const readers = this.#chats.get(key);
    if (readers !== undefined && (since !== null || watchPresence)) {
      throw new Error(`chat ${key} is subscribed to already: name since and watchPresence the first time`);
    }
    const chat = new Stream(this.#hooks(), key, { onLost: onLost ?? this.#onLost, onEvent, load });
    if (readers !== undefined) {
      const [{ state }] = readers, position = this.#runner.machine.topics.chats.get(key)?.position ?? null;
      readers.push(chat);
      if (position !== null) {
        chat.begin(position);
        chat.changed(state, position);
      }
      return chat;
    }
    const all = [chat];
    this.#chats.set(key, all);
    const begin = (position) => {
      if (this.#chats.get(key) !== all || this.state.state === "closed") return;
      chat.position = position;
      this.#runner.event("subscribe", key, position, watchPresence);
    };
    const loaded = since ?? (load === null ? this.#saver.load(key) : undefined);
    if (since !== null || loaded === undefined) begin(since);
    else Promise.resolve(loaded).then((stored) => begin(stored ?? null), (error) => {
      this.#tell("error", error);
      begin(null);
    });
    return chat;
  }

  /**
   * Send a short-lived signal to the other members of a chat, such as that the user is typing; repeat it while the state lasts. A
   * signal is sent immediately or not at all, and is not stored. Returns whether it was sent: it is not if the chat is not live, if
   * the server has no signals, or if the client's rate limit is reached. `kind` has 1 to 64 characters, and `data` is any JSON
   * value; throws TypeError for anything else. Needs a client with `settings: { features: ["signals"] }`, whose event `signal`
   * reports the signals of others.
   */
  signal(id, kind, data = null) {
    if (!this.#runner.machine.settings.features.includes("signals")) {
      throw new TypeError('signal: the client must ask for signals: settings: { features: ["signals"] }');
    }
    if (typeof kind !== "string" || kind === "" || [...kind].length > 64) throw new TypeError("kind: 1 to 64 characters");
    if (!isJson(data) || !isJson(kind)) throw new TypeError("signal: what is no JSON in UTF-8, as text that was cut in an emoji");
    return this.#runner.signal(chatKey(id), kind, data);
  }

  /** The users in a chat, on all nodes: `[{user_id, connections}]`. */
  async presence(id) {
    return (await this.#runner.command("request", { type: "presence", chat_id: chatKey(id) })).users ?? [];
  }

  /**
   * Returns a page of up to `limit` (1 to 100) messages of a chat, oldest first: the newest ones, or those next to a position, as
   * `{messages, more, start, position}`. Continue `before` start, or `after` position. Rejects with Refused.
   */
  async history(id, { before = null, after = null, limit = 50 } = {}) {
    if (before !== null && after !== null) throw new TypeError("a page is before a position or after one");
    if (!Number.isInteger(limit) || limit < 1 || limit > 100) throw new RangeError("limit: 1 to 100 messages");
    const frame = { type: "history", chat_id: chatKey(id), limit };
    if (before !== null) frame.before = before;
    if (after !== null) frame.after = after;
    const done = await this.#runner.command("request", frame), messages = done.messages.map(read);
    const start = done.start ?? messages[0]?.position ?? null;
    return { messages, more: done.more, start, position: done.position ?? messages.at(-1)?.position ?? after };
  }

  /** The newest position of a chat. Rejects with Refused. */
  async position(id) {
    const { position } = await this.#runner.command("request", { type: "history", chat_id: chatKey(id), limit: 1 });
    if (position === undefined) throw new Refused("internal", "the server did not say which position is the newest");
    return position;
  }

  /** The round-trip time in seconds. */
  async ping() {
    return (await this.#runner.command("request", { type: "ping" })).took;
  }

  /**
   * Fetch a token now and use it. Call this when its claims have changed, for example after the user was invited to a chat.
   * Resolves once the server has accepted it; without a connection, once the next one is authenticated. Rejects with Refused.
   */
  async refresh() {
    await this.#runner.command("refresh");
  }

  /** Report that the network is back. In browsers the client notices by itself. */
  online() {
    this.#runner.event("online");
  }

  /** Drop the connection as if the network had failed: for demonstrations and tests. */
  cut() {
    this.#runner.cut();
  }

  #hooks() {
    return {
      bound: this.#bound,
      standing: () => this.#standing(),
      pause: (stream) => {
        this.#hold(stream);
        this.#runner.event("pause", stream.key);
      },
      hold: (stream) => this.#hold(stream),
      resume: (stream) => this.#resume(stream),
      save: (stream) => this.#save(stream),
      close: (stream) => this.#unsubscribe(stream),
    };
  }

  #streams() {
    return [this.notifications, ...[...this.#chats.values()].flat()];
  }

  #hold(stream) {
    if (!this.#held.has(stream.key)) this.#held.set(stream.key, new Set());
    this.#held.get(stream.key).add(stream);
  }

  /** The stream has room again. A chat's messages go to all its streams, so the last stream with a full queue resumes the chat. */
  #resume(stream) {
    const held = this.#held.get(stream.key);
    held?.delete(stream);
    if (held?.size > 0) return;
    this.#held.delete(stream.key);
    this.#runner.event("resume", stream.key);
  }

  /** Store the position of the slowest reader. A position in an earlier epoch counts as behind. */
  #save({ key }) {
    const { topics } = this.#runner.machine, topic = key === NOTIFICATIONS ? topics.notifications : topics.chats.get(key);
    const current = ({ epoch }) => (epoch === topic?.position?.epoch ? 1 : 0);
    const places = this.#readers(key).map(({ position }) => position).filter((position) => position !== null);
    if (places.length === 0) return;
    this.#saver.save(key, places.reduce((a, b) => ((current(a) - current(b) || a.seq - b.seq) <= 0 ? a : b)));
  }

  #unsubscribe(stream) {
    const { key } = stream, readers = this.#readers(key);
    if (!readers.includes(stream)) return;
    stream.handled();
    stream.finish("closed", null);
    readers.splice(readers.indexOf(stream), 1);
    if (readers.length === 0) {
      this.#chats.delete(key);
      this.#held.delete(key);
      this.#runner.event("unsubscribe", key);
    } else if (this.#held.get(key)?.has(stream)) this.#resume(stream);
  }

  // --- actions of the machine

  #told(action) {
    switch (action.do) {
      case "message": return this.#deliver(action);
      case "state": return this.#state(action);
      case "subscription": return this.#subscription(action);
      case "lost": {
        const loss = { chat_id: action.chat, before: action.before, after: action.after };
        for (const stream of this.#readers(action.chat)) stream.put("loss", loss);
        return;
      }
      case "signal": {
        const { chat, user, kind, data } = action;
        return this.#tell("signal", { chat_id: chat, user_id: user, kind, data });
      }
      case "presence": return this.#tell("presence", { chat_id: action.chat, users: action.users });
      case "error": return this.#tell("error", new Refused(action.code, action.message));
    }
  }

  #deliver({ chat, frame }) {
    const kind = frame.type === "chat_event" ? "event" : "message";
    for (const stream of this.#readers(chat)) stream.put(kind, read(frame));
  }

  #readers(chat) {
    return chat === NOTIFICATIONS ? [this.notifications] : this.#chats.get(chat) ?? [];
  }

  #subscription({ chat, state, position, code, message }) {
    const readers = this.#readers(chat);
    if (state === "refused") {
      this.#chats.delete(chat);
      this.#held.delete(chat);
      for (const stream of readers) stream.finish("refused", new Refused(code, message));
    } else for (const stream of readers) stream.changed(state, position);
  }

  #state({ do: _, ...state }) {
    this.state = state;
    if (state.state === "connected") this.#reason = "";
    else if (state.state === "waiting") {
      this.#reason = state.reason || `the connection was closed with ${state.code}`;
      if (this.#starters > 0 && !this.#listeners.get("state")?.size) {
        console.warn(`notify: not connected: ${this.#reason}; trying again in ${state.delay.toFixed(1)} s`);
      }
    } else if (state.state === "closed") {
      globalThis.removeEventListener?.("online", this.#awake);
      globalThis.document?.removeEventListener("visibilitychange", this.#hidden);
      globalThis.removeEventListener?.("pagehide", this.#kept);
      for (const stream of this.#streams()) stream.finish("closed", this.#end());
    }
    if (state.state === "closed" || state.state === "connected") {
      for (const resolve of this.#settled.splice(0)) resolve();
    }
    this.#tell("state", state);
  }

  /** The explanation for a command that fails with `closed`. */
  #why(code) {
    if (this.state.state === "idle") return "the client has not been started";
    return code === "closed" && this.state.state === "closed" ? this.#end()?.message : "";
  }

  /** The error that the client's end throws in readers; null if the application closed the client. */
  #end() {
    const { code, reason } = this.state;
    return code === CLOSE_DONE ? null : new ClientClosed(code, reason);
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
}
