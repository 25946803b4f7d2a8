/**
 * A connection for networks that block WebSockets: server-sent events, read with `fetch` (docs/protocol.md, Event streams).
 *
 * To the machine it is a link like the WebSocket one. What the machine says in frames is part of the stream's request. Another
 * chat or another token therefore needs another stream. It begins at the position of the current stream and replaces it once it
 * has begun; messages that both deliver are dropped by their number.
 */

import { decode } from "./int64.js";

/** The maximum number of chats of a stream, and the milliseconds in which frames that need a new stream are collected. */
const MOST = 32, TOGETHER = 20;
/** The maximum number of frames kept for a chat until the machine subscribes to it; it does so at once, or never if it was unsubscribed. */
const MOST_EARLY = 1000;
/** The key of the notifications among the topics, as the server writes it. */
const MINE = "*";
/** Features that the server grants on a WebSocket only. */
const SOCKETS = new Set(["history", "signals"]);
/** Close codes for HTTP statuses whose response has no code. */
const CODES = { 401: 4500, 429: 1013, 503: 1013 };

/** The address of another path on the server, derived from that of its WebSockets; null if it cannot be derived. */
export function beside(url, name) {
  const [path, query] = url.split("?");
  if (!/^wss?:\/\/.*\/ws$/i.test(path)) return null;
  return `${path.replace(/^ws/i, "http").slice(0, -2)}${name}${query ? `?${query}` : ""}`;
}

/** The `id` of an event: the client's position in each of its topics. */
export function composed(positions) {
  const epochs = new Map();
  for (const [key, { epoch, seq }] of positions) {
    const name = encodeURIComponent(epoch).replace(/[!'()*]/g, (one) => `%${one.charCodeAt(0).toString(16).toUpperCase()}`);
    epochs.set(name, [...(epochs.get(name) ?? []), `${key}=${seq}`]);
  }
  return [...epochs].map(([epoch, places]) => `${epoch}:${places.join(",")}`).join(";");
}

/** Parses received text into events `[type, data]`; a type of null is a keep-alive. */
export class Events {
  #rest = "";

  take(text) {
    const blocks = (this.#rest + text).split("\n\n"), found = [];
    this.#rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n"), value = (name) => lines.find((line) => line.startsWith(name))?.slice(name.length);
      found.push([value("event: ") ?? null, value("data: ") ?? ""]);
    }
    return found;
  }
}

/**
 * Calls `events`: `opened()`, `frame(value)` and `closed(code, reason)` as Link does, `begun()` once the server has answered, and
 * `wanted()`, which returns `[{ chat, position, watch }]`: the chats that the machine will subscribe to. Calls nothing once it was
 * left, cut or closed.
 */
export class EventLink {
  #fetch; #url; #events; #over = false;
  #token = ""; #features = []; #begun = false; #refreshing = null;
  /** This client's position in each topic. */
  #positions = new Map();
  /** The chats asked for, by key: `{ chat, id, watch, answered }`. For chats not asked for yet: the frames received, and refusals. */
  #chats = new Map(); #early = new Map();
  #stream = null; #next = null; #soon = null; #pings = [];

  constructor(fetch, url, events) {
    [this.#fetch, this.#url, this.#events] = [fetch, url, events];
    queueMicrotask(() => this.#over || events.opened());
  }

  send(frame) {
    const key = String(frame.chat_id);
    switch (frame.type) {
      case "auth":
        this.#token = frame.token;
        this.#features = (frame.features ?? []).filter((one) => !SOCKETS.has(one));
        if (frame.since?.epoch) this.#positions.set(MINE, frame.since);
        for (const { chat, position, watch } of this.#events.wanted().slice(0, MOST)) {
          this.#early.set(String(chat), { chat, watch, frames: [] });
          if (position !== null) this.#positions.set(String(chat), position);
        }
        return this.#open();
      case "subscribe": return this.#subscribe(key, frame);
      case "unsubscribe":
        this.#chats.delete(key);
        return void this.#positions.delete(key);
      case "refresh":
        this.#token = frame.token;
        this.#refreshing = frame.id;
        return this.#reopen();
      case "ping": return void this.#pings.push(frame.id);
      default:
        if (frame.id !== undefined) {
          this.#say({ type: "error", id: frame.id, code: "unsupported", message: "not over an event stream", retry: false });
        }
    }
  }

  /** Close the connection. */
  async leave(_code, _reason) {
    this.cut();
  }

  /** Drop the connection. Returns false if it was already gone. */
  cut() {
    const open = !this.#over;
    this.#over = true;
    clearTimeout(this.#soon);
    this.#stream?.abort.abort();
    this.#next?.abort.abort();
    return open;
  }

  // --- the machine's frames

  #subscribe(key, { chat_id: chat, id, since, watch_presence: watch = false }) {
    const early = this.#early.get(key);
    this.#early.delete(key);
    if (early === undefined && !this.#chats.has(key) && this.#chats.size + this.#early.size >= MOST) {
      // A chat that was subscribed to before, on a WebSocket, waits until another one leaves, or for the next WebSocket.
      const message = `an event stream has at most ${MOST} chats`, retry = Boolean(since?.epoch);
      return this.#say({ type: "error", id, code: "too_many_subscriptions", message, retry });
    }
    this.#chats.set(key, { chat, id, watch, answered: false });
    if (early !== undefined) {
      // The current stream, or the one being opened, already has this chat, from this position.
      for (const frame of early.frames) this.#take(frame);
      return;
    }
    if (since?.epoch) this.#positions.set(key, since);
    else this.#positions.delete(key);
    this.#reopen();
  }

  /** Open one new stream for all frames that arrive together. */
  #reopen() {
    this.#soon ??= setTimeout(() => {
      this.#soon = null;
      if (!this.#over) this.#open();
    }, TOGETHER);
  }

  // --- streams

  #open() {
    this.#next?.abort.abort();
    const wanted = new Map([...this.#early, ...this.#chats]);
    const query = [...wanted.values()].map(({ chat }) => `chat=${encodeURIComponent(chat)}`);
    if (this.#features.length > 0) query.push(`features=${this.#features.map(encodeURIComponent).join(",")}`);
    if ([...wanted.values()].some(({ watch }) => watch)) query.push("watch_presence=true");
    const stream = { abort: new AbortController(), keys: [...wanted.keys()] };
    this.#next = stream;
    const places = [...this.#positions].filter(([key]) => key === MINE || wanted.has(key));
    const headers = { Authorization: `Bearer ${this.#token}`, ...(places.length > 0 && { "Last-Event-ID": composed(places) }) };
    const url = [this.#url, query.join("&")].filter(Boolean).join(this.#url.includes("?") ? "&" : "?");
    this.#read(stream, url, { headers, signal: stream.abort.signal, cache: "no-store", credentials: "omit", redirect: "error" }).catch(
      (error) => this.#current(stream) && this.#close(1006, `the event stream broke: ${error?.message ?? error}`),
    );
  }

  #current(stream) {
    return !this.#over && (stream === this.#stream || stream === this.#next);
  }

  async #read(stream, url, options) {
    const response = await this.#fetch(url, options);
    if (!this.#current(stream)) return;
    if (!response.ok) return this.#failed(stream, response.status, await response.text());
    const reader = response.body.getReader(), text = new TextDecoder(), events = new Events();
    for (;;) {
      const { done, value } = await reader.read();
      if (!this.#current(stream)) return;
      if (done) return this.#close(1006, "");
      for (const [type, data] of events.take(text.decode(value, { stream: true }))) {
        if (!this.#current(stream)) return;
        if (type === null) this.#say({ type: "pong" });
        else this.#event(stream, type, decode(data));
      }
      for (const id of this.#pings.splice(0)) this.#say({ type: "pong", id });
    }
  }

  #event(stream, type, frame) {
    if (type === "close") {
      const { code, reason = "", retry_after_ms, elsewhere } = frame;
      return this.#close(code, advice(retry_after_ms, elsewhere) || reason);
    }
    if (type === "auth_result") return this.#begin(stream, frame);
    if (stream === this.#stream) this.#take(frame);
  }

  /** The server has answered: this stream now replaces the previous one. */
  #begin(stream, frame) {
    this.#stream?.abort.abort();
    [this.#stream, this.#next] = [stream, null];
    const known = this.#positions.has(MINE);
    if (!known && frame.epoch !== undefined) this.#positions.set(MINE, { epoch: frame.epoch, seq: frame.seq });
    if (!this.#begun) {
      this.#begun = true;
      this.#events.begun();
      this.#say(frame);
    } else if (known && frame.recovered === false) return this.#close(4004, "history lost");
    if (this.#refreshing !== null) {
      this.#say({ type: "ok", id: this.#refreshing, expires_at: frame.expires_at ?? null });
      this.#refreshing = null;
    }
  }

  /** Handle a frame of the stream. Its chat may be one that the machine has not subscribed to yet. */
  #take(frame) {
    const key = frame.chat_id === undefined ? MINE : String(frame.chat_id), asked = this.#chats.get(key);
    if (key !== MINE && asked === undefined) {
      if (this.#early.get(key)?.frames.push(frame) > MOST_EARLY) this.#early.delete(key);
      return;
    }
    if (frame.type === "lost") return; // the answer has said so already
    if (frame.type === "subscribed") return this.#answered(key, asked, frame);
    if (frame.type === "error" && asked !== undefined) {
      this.#chats.delete(key);
      this.#positions.delete(key);
      const { chat_id: _, ...refusal } = frame;
      return this.#say(asked.answered ? frame : { ...refusal, id: asked.id });
    }
    if (frame.epoch !== undefined) this.#positions.set(key, { epoch: frame.epoch, seq: frame.seq });
    this.#say(frame);
  }

  #answered(key, asked, frame) {
    if (asked.answered) {
      // The new stream continues where the previous one was, unless the server cannot.
      if (!frame.recovered) this.#close(4004, "history lost");
      return;
    }
    asked.answered = true;
    if (!frame.recovered || !this.#positions.has(key)) this.#positions.set(key, { epoch: frame.epoch, seq: frame.seq });
    this.#say({ ...frame, id: asked.id });
  }

  /** The server answered, but did not open a stream. */
  #failed(stream, status, text) {
    let error = {};
    try {
      error = decode(text).error ?? {};
    } catch {
      // Not from a notify server: only the status is known.
    }
    if (status === 403 && error.code === "forbidden" && stream.keys.length > 0) {
      // The client may see none of its chats. The notifications remain.
      for (const key of stream.keys) {
        const { chat } = this.#chats.get(key) ?? this.#early.get(key) ?? {};
        if (chat !== undefined) this.#take({ type: "error", code: error.code, message: error.message, chat_id: chat });
      }
      return this.#open();
    }
    const code = error.close ?? CODES[status] ?? 1006;
    this.#close(code, advice(error.retry_after_ms, error.elsewhere) || (error.message ?? `HTTP ${status} from ${this.#url.split("?")[0]}`));
  }

  #close(code, reason) {
    if (this.cut()) this.#events.closed(code, reason);
  }

  #say(frame) {
    if (!this.#over) this.#events.frame(frame);
  }
}

/** The advice in the form of a close reason; empty if there is none. */
function advice(retry_after_ms, elsewhere) {
  return retry_after_ms === undefined && elsewhere === undefined ? "" : JSON.stringify({ retry_after_ms, elsewhere });
}
