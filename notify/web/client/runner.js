/** Carries out the machine's actions: its connection, its timer, its tokens, and the commands that wait for an answer. */

import { ClientId } from "./client-id.js";
import { Refused } from "./errors.js";
import { EventLink, beside } from "./event-link.js";
import { Link } from "./link.js";
import { CLOSE_DEAD, Machine } from "./machine.js";
import { Ways } from "./ways.js";

const now = () => performance.now() / 1000;
/** Timeout in milliseconds for the plain request that shows whether the server is there. */
const PROBE = 5000;

export class Runner {
  machine;
  #clientId; #token; #WebSocket; #http; #program; #ways = new Ways(); #trying = null; #link = null; #closing = null;
  #carryingOut = false; #timer = null; #timerDue = 0; #commands = new Map(); #count = 0;
  #fetching = null; // the number of the token fetch in flight

  /**
   * `options` are those of the client. Calls `program`: `action(action)` for each action, `told(action)` for those that concern the
   * application (states, subscriptions, messages for readers), `error(error)`, and `why(code)` for a refusal without a reason.
   */
  constructor(url, options, program) {
    const { token, settings = {}, random = Math.random } = options;
    this.#WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (this.#WebSocket === undefined) {
      throw new Error("no WebSocket here (Node has one from version 22 on): give that of the package 'ws' as options.WebSocket");
    }
    if (token === undefined) throw new TypeError("options.token: a token, or a function that gives one");
    this.#clientId = new ClientId(url, options.clientId ?? null, random);
    const streams = (options.eventStreams ?? true) && beside(this.#clientId.url, "events") !== null;
    this.#http = streams ? options.fetch ?? globalThis.fetch?.bind(globalThis) ?? null : null;
    this.#token = token;
    this.#program = program;
    this.machine = new Machine(settings, random, () => Date.now() / 1000);
  }

  get clientId() {
    return this.#clientId.value;
  }

  /** Whether the token function was called and has not answered yet. */
  get fetching() {
    return this.#fetching !== null;
  }

  /** Report an event to the machine, by the name of its method, and carry out the resulting actions. */
  event(name, ...args) {
    // Every event takes `now` as its last argument except these two, where optional arguments follow it.
    if (name === "subscribe") this.machine.subscribe(args[0], now(), args[1], args[2]);
    else if (name === "token") this.machine.token(args[0], args[1], now(), args[2]);
    else this.machine[name](...args, now());
    this.#carryOut();
  }

  /** Give the machine a numbered command. Returns a promise of its outcome. */
  command(name, ...args) {
    this.#count += 1;
    const n = this.#count;
    return new Promise((resolve, reject) => {
      this.#commands.set(n, [resolve, reject]);
      this.event(name, n, ...args);
    });
  }

  /** Send a signal. Returns whether it was sent. */
  signal(chat, kind, data) {
    const sent = this.machine.signal(chat, kind, data, now());
    this.#carryOut();
    return sent;
  }

  /** Drop the connection as if the network had failed. */
  cut() {
    if (this.#link?.cut()) this.event("closed", 1006, "cut");
  }

  /** Resolves once the connection that was left last is gone. */
  async gone() {
    await this.#closing;
  }

  #carryOut() {
    if (this.#carryingOut) return;
    this.#carryingOut = true;
    try {
      while (this.machine.actions.length > 0) {
        for (const action of this.machine.actions.splice(0)) {
          this.#program.action(action);
          this.#do(action);
        }
      }
    } finally {
      this.#carryingOut = false;
    }
    this.#arm();
  }

  #arm() {
    const due = this.machine.deadline();
    if (this.#timer !== null && (due === null || due < this.#timerDue)) {
      clearTimeout(this.#timer);
      this.#timer = null;
    }
    if (this.#timer === null && due !== null) {
      this.#timerDue = due;
      const wait = Math.min(Math.max(0, Math.ceil((due - now()) * 1000)), 2 ** 31 - 1);
      this.#timer = setTimeout(() => {
        this.#timer = null;
        this.event("tick");
      }, wait);
    }
  }

  #do(action) {
    switch (action.do) {
      case "send": return this.#link?.send(action.frame);
      case "open": return this.#open(action.elsewhere);
      case "close": return this.#leave(action.code, action.reason);
      case "token": return void this.#fetch(action.n);
      case "done": return this.#settle(action.n, (resolve) => resolve(action));
      case "failed": {
        const { n, code, message } = action;
        return this.#settle(n, (_, reject) => reject(new Refused(code, message || this.#program.why(code))));
      }
      default: return this.#program.told(action);
    }
  }

  #settle(n, how) {
    const command = this.#commands.get(n);
    this.#commands.delete(n);
    how(...command);
  }

  async #fetch(n) {
    let token;
    this.#fetching = n;
    try {
      token = (typeof this.#token === "function" ? await this.#token() : this.#token) ?? null;
      if (token !== null && typeof (token.value ?? token) !== "string") {
        throw new TypeError("a token is text, { value, expiresAt } or null");
      }
    } catch (error) {
      this.#fetched(n);
      return this.event("token_failed", n, String(error?.message ?? error));
    }
    this.#fetched(n);
    this.event("token", n, token?.value ?? token, token?.expiresAt ?? null);
  }

  #fetched(n) {
    if (this.#fetching === n) this.#fetching = null;
  }

  // --- the connection

  #open(elsewhere) {
    if (elsewhere) this.#clientId.move();
    const stream = this.#http !== null && this.#ways.stream(performance.now());
    const frame = (frame) => this.#received(frame);
    const closed = (code, reason) => {
      this.#tried();
      this.event("closed", code, reason);
    };
    if (stream) {
      this.#trying = () => this.#ways.free();
      this.#link = new EventLink(this.#http, beside(this.#clientId.url, "events"), {
        opened: () => this.event("opened"),
        begun: () => (this.#trying = null),
        wanted: () => this.machine.topics.wanted(),
        frame,
        closed,
      });
      return;
    }
    this.#trying = () => this.#probe();
    this.#link = new Link(this.#WebSocket, this.#clientId.url, {
      opened: () => {
        this.#trying = null;
        this.#ways.free();
        this.event("opened");
      },
      frame,
      closed,
    });
  }

  /** The present attempt is over. If it failed, the next one may use the other kind of connection. */
  #tried() {
    this.#trying?.();
    this.#trying = null;
  }

  /** A WebSocket did not open. If the server answers plain requests, WebSockets may be blocked: the next attempt uses an event stream. */
  async #probe() {
    if (this.#http === null) return;
    try {
      const signal = AbortSignal.timeout(PROBE);
      await this.#http(beside(this.#clientId.url, "health"), { mode: "no-cors", cache: "no-store", credentials: "omit", signal });
      this.#ways.blocked(performance.now());
    } catch {
      // The server cannot be reached.
    }
  }

  #received(frame) {
    try {
      this.machine.received(frame, now());
    } catch (error) {
      // A violation of the protocol: reconnect later, perhaps to another node.
      this.#program.error(error);
      this.#leave(CLOSE_DEAD, "malformed frame");
      this.machine.closed(1002, "the server sent a malformed frame", now());
    }
    this.#carryOut();
  }

  #leave(code, reason) {
    if (code === CLOSE_DEAD) this.#tried();
    this.#closing = this.#link?.leave(code, reason);
  }
}
