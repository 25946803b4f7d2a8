/**
 * The client's state machine: events in, actions out. It uses no socket, no clock and no source of randomness itself.
 *
 * docs/client.md specifies the behaviour. Every method that reports an event takes `now`, the seconds of any monotonic
 * clock, and appends to `actions`; the front end carries those out and empties the list. After each call `deadline()` says
 * when `tick` is due. The test scenarios run against both this class and its Python counterpart.
 */

import { isId } from "./int64.js";
import { AUTH_FAILED, AUTH_TIMEOUT, Attempts, TOKEN_EXPIRED, advice } from "./parts/attempts.js";
import { Commands } from "./parts/commands.js";
import { Credentials } from "./parts/credentials.js";
import { Heartbeat } from "./parts/heartbeat.js";
import { HISTORY, Requests, isObject, positioned, refusal } from "./parts/requests.js";
import { KINDS, NOTIFICATIONS, Topics } from "./parts/topics.js";
import { DEFAULTS } from "./settings.js";

/** The close codes that the client itself uses. */
export const CLOSE_DONE = 1000, CLOSE_GAP = 3000, CLOSE_DEAD = 3001;
/** The types of frame that answer a request. */
const ANSWERS = new Set(["subscribed", "ok", "pong", "presence", "history"]);

/**
 * One client. `random` returns numbers in [0, 1), `unix` the Unix time in seconds.
 *
 * States: idle, connecting, authenticating, connected, waiting, closed. The machine keeps the state of the connection and passes
 * events on to the modules in parts/ that they concern. None of those knows the machine, a socket, a clock or the other modules.
 */
export class Machine {
  settings;
  state = "idle";
  actions = [];
  topics;
  #wake = null; // when the present state times out
  #open = false; // a connection is open, or is being opened
  #elsewhere = false; // the next connection needs a new client_id
  #attempts; #requests; #heartbeat; #credentials; #commands;

  constructor(settings, random, unix) {
    this.settings = { ...DEFAULTS, ...settings };
    const act = (action) => this.#do(action);
    this.#attempts = new Attempts(this.settings, random);
    this.#requests = new Requests(this.settings, act);
    this.#heartbeat = new Heartbeat(this.settings, this.#requests);
    this.#credentials = new Credentials(this.settings, random, unix, this.#requests, act);
    this.#commands = new Commands(this.settings, this.#requests, act);
    this.topics = new Topics(this.settings, random, this.#requests, act);
  }

  // --- what the application does

  /** Connect, and stay connected. Has no effect unless the machine is idle or closed. */
  start(now) {
    if (this.state !== "idle" && this.state !== "closed") return;
    this.#attempts.start();
    this.#attempt(now);
  }

  /** Close for good. Commands that still wait fail. */
  stop(_now) {
    if (this.state === "closed") return;
    this.#leave(CLOSE_DONE, "");
    this.#end(CLOSE_DONE, "");
  }

  /** Subscribe to this chat from now on, or from after `since`. Has no effect if the chat is already subscribed to. */
  subscribe(chat, now, since = null, watch = false) {
    this.topics.subscribe(chat, now, since, watch);
  }

  /** Unsubscribe from this chat. */
  unsubscribe(chat, now) {
    this.topics.unsubscribe(chat, now);
  }

  /** The reader is behind: deliver no more of this topic until `resume`. */
  pause(chat, now) {
    this.topics.pause(chat, now);
  }

  /**
   * The reader has caught up: continue after the last message that was handed over. Also required after a page of history, because
   * the machine then pauses the chat itself (docs/client.md, rule 27).
   */
  resume(chat, now) {
    if (this.topics.resume(chat, now)) this.#reconnect(CLOSE_GAP, "resync", now);
  }

  /** Send a command (`presence`, `history` or `ping`) now or once connected. The outcome is `done` or `failed`. */
  request(n, frame, now) {
    if (this.state === "idle" || this.state === "closed") this.#do({ do: "failed", n, code: "closed" });
    else this.#commands.add(n, frame, now);
  }

  /** Send a signal to the other members of a live chat. Returns whether it was sent; if not, it is lost. */
  signal(chat, kind, data, now) {
    return this.topics.signal(chat, kind, data, now);
  }

  /** Fetch a new token and use it. The outcome is `done` once the server has accepted it, or `failed`. */
  refresh(n, now) {
    if (this.state === "idle" || this.state === "closed") this.#do({ do: "failed", n, code: "closed" });
    else this.#credentials.renew(n, now, this.state);
  }

  // --- what happens to the client

  /** The token callback returned `value`; null means that the user has signed out. `expiresAt` is in Unix seconds, if known. */
  token(n, value, now, expiresAt = null) {
    if (!this.#credentials.fetched(n)) return;
    if (value === null) {
      this.#leave(CLOSE_DONE, "");
      this.#end(null, "no token");
    } else if (this.state === "connected") this.#credentials.offer(value, now, expiresAt);
    else {
      this.#credentials.adopt(value, now, expiresAt);
      this.#dial(now);
    }
  }

  /** The token callback failed; the machine will ask for it again later. */
  token_failed(n, reason, now) {
    if (!this.#credentials.fetched(n)) return;
    if (this.state === "connected") this.#credentials.notReplaced(now, "no_token", reason);
    else this.#wait(null, `no token: ${reason}`, now);
  }

  /** The connection is open. */
  opened(now) {
    if (this.state !== "connecting" || !this.#open) return;
    this.#wake = now + this.settings.answer_timeout;
    this.#enter({ state: "authenticating" });
    this.#requests.pace.start(now);
    const features = [...new Set([...this.settings.features, HISTORY])];
    this.#requests.send({ type: "auth", token: this.#credentials.value, since: this.topics.since(), features }, now);
  }

  /** The server sent a frame (decoded JSON). Unknown frames are ignored. */
  received(frame, now) {
    if ((this.state !== "authenticating" && this.state !== "connected") || !isObject(frame)) return;
    this.#heartbeat.heard(now);
    const { type, chat_id: chat } = frame;
    if (KINDS.has(type)) {
      if (isId(chat) && positioned(frame)) this.topics.message(chat, frame, now);
    } else if (type === "notification") {
      if (positioned(frame) && this.topics.message(NOTIFICATIONS, frame, now)) this.#reconnect(CLOSE_GAP, "gap", now);
    } else if (type === "auth_result") this.#authenticated(frame, now);
    else if (type === "error") this.#refused(frame, now);
    else if (type === "presence" && frame.id === undefined) this.topics.presence(chat, frame.users ?? []);
    else if (type === "signal") this.topics.signalled(chat, frame);
    else if (ANSWERS.has(type)) this.#requests.answered(frame, now);
  }

  /** The connection ended or could not be opened. `code` is 1006 if no close frame arrived. */
  closed(code, reason, now) {
    if (!this.#open) return;
    if (code === TOKEN_EXPIRED || code === AUTH_TIMEOUT) this.#credentials.drop();
    if (code === AUTH_FAILED) this.#rejected(reason, now);
    else if (this.#attempts.final(code)) this.#end(code, reason);
    else {
      const { wait, elsewhere } = advice(reason);
      this.#elsewhere ||= elsewhere;
      this.#wait(code, reason, now, wait);
    }
  }

  /** The network is back: connect now, or check whether the connection survived. */
  online(now) {
    if (this.state === "waiting" && !this.#attempts.advised) this.#attempt(now);
    else if (this.state === "connected") this.#heartbeat.probe(now);
  }

  /** The time at which `tick` is next due, or null if the machine waits for nothing. */
  deadline() {
    const due = [
      this.#wake,
      this.#credentials.fetchDue,
      this.#credentials.refreshAt,
      this.#commands.due(),
      this.#requests.due(),
      this.#heartbeat.due,
      this.topics.due(),
    ].filter((at) => at !== null);
    return due.length > 0 ? Math.min(...due) : null;
  }

  /** Act on the time that has passed. Harmless if nothing is due. */
  tick(now) {
    this.#commands.tick(now);
    if (past(this.#credentials.fetchDue, now)) {
      this.token_failed(this.#credentials.fetchNumber, "the callback took too long", now);
    } else if (past(this.#wake, now)) {
      if (this.state === "waiting") this.#attempt(now);
      else this.#reconnect(CLOSE_DEAD, "no answer", now);
    } else if (this.state === "connected") this.#tickConnected(now);
  }

  // --- the connection

  #attempt(now) {
    this.#wake = null;
    this.#enter({ state: "connecting" });
    if (this.#credentials.usable(now)) this.#dial(now);
    else this.#credentials.fetch(now);
  }

  #dial(now) {
    this.#wake = now + this.settings.connect_timeout;
    this.#open = true;
    this.#do(this.#elsewhere ? { do: "open", elsewhere: true } : { do: "open" });
    this.#elsewhere = false;
  }

  #authenticated(frame, now) {
    if (this.state !== "authenticating") return;
    if (frame.success !== true) {
      this.#leave(CLOSE_DONE, "");
      this.#rejected("", now);
      return;
    }
    this.#wake = null;
    this.#attempts.connected(now);
    this.#heartbeat.start(now, frame.ping_interval);
    this.#credentials.confirmed(now, frame.expires_at ?? null);
    this.#requests.grant(frame.features);
    this.#enter({ state: "connected", user_id: frame.user_id, connection_id: frame.connection_id });
    this.topics.authenticated(frame, now);
    this.#commands.connected(now);
    this.topics.connected(now);
  }

  #refused(frame, now) {
    const refused = refusal(frame);
    if (this.#requests.refused(frame, refused, now) || this.topics.withdrawn(frame.chat_id, refused, now)) return;
    this.#do({ do: "error", code: refused.code, message: refused.message });
  }

  #tickConnected(now) {
    if (this.#heartbeat.dead(now)) this.#reconnect(CLOSE_DEAD, "no pong", now);
    else if (past(this.#requests.due(), now)) this.#reconnect(CLOSE_DEAD, "no answer", now);
    else {
      if (this.#heartbeat.silent(now)) this.#heartbeat.probe(now);
      if (past(this.#credentials.refreshAt, now)) this.#credentials.fetch(now);
      this.topics.tick(now);
    }
  }

  /** Ask for a new token if the rejected one was accepted before, as it may have expired. A new token that is rejected ends the client. */
  #rejected(reason, now) {
    if (this.#credentials.aged) {
      this.#credentials.drop();
      this.#wait(AUTH_FAILED, reason, now);
    } else this.#end(AUTH_FAILED, reason);
  }

  #reconnect(code, reason, now) {
    this.#leave(code, reason);
    this.#wait(null, reason, now);
  }

  #wait(code, reason, now, advised = null) {
    this.#forget();
    const delay = this.#attempts.next(now, advised);
    this.#wake = now + delay;
    this.#enter({ state: "waiting", delay, code, reason });
  }

  #end(code, reason) {
    this.#forget();
    this.#credentials.drop();
    this.#wake = null;
    this.#enter({ state: "closed", code, reason });
    this.#commands.close();
    this.#credentials.close();
  }

  #leave(code, reason) {
    if (this.#open) this.#do({ do: "close", code, reason });
  }

  /** Drop the state of the connection. Topics and commands outlive it. */
  #forget() {
    this.#open = false;
    this.#requests.forget();
    this.#heartbeat.stop();
    this.#credentials.disconnected();
    this.topics.disconnected();
  }

  #enter(change) {
    this.state = change.state;
    this.#do({ do: "state", ...change });
  }

  #do(action) {
    this.actions.push(action);
  }
}

function past(due, now) {
  return due !== null && due <= now;
}
