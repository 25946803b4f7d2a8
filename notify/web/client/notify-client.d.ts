/**
 * A client of a notify server that never loses its place. How it behaves is docs/client.md.
 * These types need no library of browsers' or Node's.
 */

/**
 * Of a chat, a user or a message: an integer, a number where that holds it exactly and else a bigint; or text like a
 * UUID. Going in, text that spells an integer is that integer.
 */
export type Id = number | bigint | string;

declare global {
  interface SymbolConstructor {
    readonly asyncDispose: unique symbol;
  }
}

export interface Position {
  readonly epoch: string;
  readonly seq: number;
}

export interface ChatMessage {
  readonly chat_id: Id;
  readonly message_id: Id;
  readonly sender_id: Id;
  readonly content: string;
  /** Unix time in seconds, as the publisher gave it. */
  readonly timestamp: number;
  readonly position: Position;
}

/** What happened in a chat beside its messages: an edit, a deletion, a reaction, a change of members. */
export interface ChatEvent {
  readonly chat_id: Id;
  readonly message_id: Id;
  readonly sender_id: Id;
  readonly kind: string;
  readonly data: unknown;
  readonly timestamp: number;
  /** The message_id of what it is about, where it is about a message. */
  readonly refers_to?: Id;
  readonly position: Position;
}

/** What another member of a chat signals now; `data` is any JSON value. Nobody keeps it. */
export interface Signal {
  readonly chat_id: Id;
  readonly user_id: Id;
  readonly kind: string;
  readonly data: unknown;
}

export interface Notification {
  readonly notification_id: Id;
  readonly user_id: Id;
  readonly kind: string;
  readonly data: unknown;
  readonly timestamp: number;
  readonly position: Position;
}

/** A part of a chat's history, oldest first; events are in it where the client asked for them. */
export interface Page {
  readonly messages: readonly (ChatMessage | ChatEvent)[];
  /** There are more in the direction that was asked for, also where this page has none. */
  readonly more: boolean;
  /** Where it begins: go on `before` that. null: nothing says. */
  readonly start: Position | null;
  /** Where it ends: go on `after` that. Of the newest page it is the chat's newest. */
  readonly position: Position | null;
}

export interface Presence {
  readonly user_id: Id;
  readonly connections: number;
}

/** What lies between these positions cannot be had any more: reload it from the backend. */
export interface Loss {
  /** null: the user's notifications. */
  readonly chat_id: Id | null;
  readonly before: Position;
  readonly after: Position;
}

export interface State {
  readonly state: "idle" | "connecting" | "authenticating" | "connected" | "waiting" | "closed";
  /** Seconds until the next try, with `waiting`. */
  readonly delay?: number;
  /** Why the connection before ended: a close code, or null where the client gave it up itself. */
  readonly code?: number | null;
  readonly reason?: string;
  readonly user_id?: Id;
  readonly connection_id?: string;
}

export type Token = string | { readonly value: string; /** Unix seconds. */ readonly expiresAt?: number | null };

/** Where positions outlive the page. One store is for one user: positions of two must not mix. */
export interface Store {
  load(key: string): Position | null | undefined | Promise<Position | null | undefined>;
  save(positions: Readonly<Record<string, Position>>): void | Promise<void>;
  /** The program has closed the client: let go of what is held. */
  close?(): void | Promise<void>;
}

/** Seconds, but for the last six. */
export interface Settings {
  backoff_floor: number;
  backoff_base: number;
  backoff_cap: number;
  stable_after: number;
  advice_cap: number;
  token_timeout: number;
  connect_timeout: number;
  answer_timeout: number;
  ping_interval: number;
  pong_timeout: number;
  refresh_margin: number;
  command_timeout: number;
  max_commands: number;
  window: number;
  burst: number;
  rate: number;
  /** Messages that are asked for at once of a chat's history, 1 to 100. */
  page: number;
  /** What the client can take beyond what everyone gets: `events`; `history` it asks for by itself. */
  features: readonly string[];
}

export const DEFAULTS: Readonly<Settings>;

export interface Options {
  /** A token, or a function that gives one; null from it signs out. */
  token: string | (() => Token | null | Promise<Token | null>);
  store?: Store | null;
  /**
   * On which proxies hash, so that the client comes back to its node: 1 to 64 of A-Z a-z 0-9 _ -, instead of a random one. It
   * gets a suffix when the server sends the client elsewhere.
   */
  clientId?: string;
  settings?: Partial<Settings>;
  /** Messages that may wait for a reader, per stream; then the client takes no more from the server. */
  queue?: number;
  /** Of the notifications, and of each chat that names neither its own nor `load`. */
  onLost?: ((loss: Loss) => void | Promise<void>) | null;
  /** For Node before 22, for example that of the package `ws`. */
  WebSocket?: new (url: string, protocols: string[]) => any;
  /**
   * Whether an event stream takes the place of a WebSocket that does not open while the server answers plain requests; true by
   * default, where the address ends in `/ws`. Over one there is no history, presence on demand or signal, and at most 32 chats.
   */
  eventStreams?: boolean;
  /** In place of the platform's own. */
  fetch?: (url: string, options: any) => Promise<any>;
  random?: () => number;
}

export interface ChatOptions {
  /** Begin after this position, rather than after the stored one or with what comes from now on. */
  since?: Position | null;
  /** Hear of who is there: see the client's event `presence`. */
  watchPresence?: boolean;
  /** Called, and awaited, in the place of messages that were lost; without it reading throws HistoryLost. */
  onLost?: ((loss: Loss) => void | Promise<void>) | null;
  /** Called, and awaited, with each event in its place between the messages; needs the feature `events`. */
  onEvent?: ((event: ChatEvent) => void | Promise<void>) | null;
  /**
   * Loads the chat's state as it is at this position, or later. Called, and awaited, in the reader's turn: first of all, with
   * the chat's newest position, from which the messages then go on; and again wherever some are lost. In place of `since`, a
   * stored position and `onLost`. Where it throws, so does reading, and calls it again when read on.
   */
  load?: ((position: Position) => void | Promise<void>) | null;
}

/** `for await (const message of stream)`: each message once and in order. One reader at a time. */
export class Stream<M> implements AsyncIterableIterator<M> {
  private constructor();
  readonly state: "subscribing" | "live" | "waiting" | "paused" | "refused" | "closed";
  /** The last message that was handled. */
  readonly position: Position | null;
  /** Messages that have come and were not read yet. */
  readonly waiting: number;
  onLost: ((loss: Loss) => void | Promise<void>) | null;
  onEvent: ((event: ChatEvent) => void | Promise<void>) | null;
  load: ((position: Position) => void | Promise<void>) | null;
  /** Resolves once the server has confirmed it; rejects with Refused, ClientClosed, or after `timeout` seconds TimedOut. */
  ready(options?: { timeout?: number | null }): Promise<void>;
  next(): Promise<IteratorResult<M, undefined>>;
  [Symbol.asyncIterator](): this;
  /** The message that was read last is dealt with; reading on says so by itself. */
  handled(): void;
  /** Unsubscribe (chats only); what was not read is forgotten, and what was read last is handled. */
  close(): void;
  /**
   * What `break` and an error in `for await` call: unsubscribes (chats only). What was read last is not handled, unless `handled`
   * was called.
   */
  return(value?: undefined): Promise<IteratorResult<M, undefined>>;
  /** `await using`: close. */
  [Symbol.asyncDispose](): Promise<void>;
}

export class NotifyClient {
  constructor(url: string | { readonly href: string }, options: Options);
  readonly state: State;
  /** The client_id in use. */
  readonly clientId: string;
  readonly notifications: Stream<Notification>;
  /**
   * Resolves once connected, however long it takes; rejects with ClientClosed where it ends instead. After `timeout` seconds it
   * rejects with TimedOut, which says why the last try failed, and goes on trying.
   */
  start(options?: { timeout?: number | null }): Promise<void>;
  close(): Promise<void>;
  /** `await using`: close. */
  [Symbol.asyncDispose](): Promise<void>;
  /**
   * Called again for the same chat it gives another stream, which goes on from where the subscription is (no `since`, no
   * `watchPresence`). Each stream gets every message, the slowest sets the pace, and its position is what is stored.
   * Of a client that is closed it has ended, as the others have.
   */
  chat(id: Id, options?: ChatOptions): Stream<ChatMessage>;
  presence(id: Id): Promise<Presence[]>;
  /**
   * Tells the other members of a chat something that holds for a moment, as that the user types: say it again while it does. It is
   * sent at once or never, and kept nowhere; gives whether it was sent. `kind` has 1 to 64 characters, `data` is any JSON value, up to
   * 1 KiB by default; throws TypeError for what is none. Needs the feature `signals`.
   */
  signal(id: Id, kind: string, data?: unknown): boolean;
  /**
   * A page of up to `limit` (1 to 100) messages: the newest, or those next to a position. Rejects with Refused:
   * `history_unavailable` where the server cannot go on from that position, `unsupported` where it gives clients no history.
   */
  history(
    id: Id,
    options?: { before?: Position | null; after?: Position | null; limit?: number },
  ): Promise<Page>;
  /** A chat's newest position. Rejects with Refused, as `history`. */
  position(id: Id): Promise<Position>;
  /** The round trip's seconds. */
  ping(): Promise<number>;
  /**
   * Fetches a token now and goes on with it, because its claims have changed; resolves once the server has taken it, and
   * rejects with Refused.
   */
  refresh(): Promise<void>;
  /** Say that the network has come back; browsers' own event does so by itself. */
  online(): void;
  /** Drop the connection as if the network had. */
  cut(): void;
  on(name: "state", listener: (state: State) => void): () => void;
  on(name: "presence", listener: (presence: { chat_id: Id; users: Presence[] }) => void): () => void;
  /** What others signal in the chats that are subscribed to, with the feature `signals`. */
  on(name: "signal", listener: (signal: Signal) => void): () => void;
  on(name: "error", listener: (error: Error) => void): () => void;
  /** Every action of the machine, for diagnostics. */
  on(name: "action", listener: (action: Action) => void): () => void;
}

/** What is used of a `Storage`. */
export interface StorageLike {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
}

/** For one client. Each open tab has positions of its own, held by a Web Lock, and one that opens goes on with the first free ones. */
export class LocalStorageStore implements Store {
  /**
   * The prefix names the user; the storage is `localStorage` where none is given. The options are for pages that have no
   * `navigator.locks` or `sessionStorage`, and for tests: without locks positions are kept in `session`, for this tab alone;
   * without both it throws.
   */
  constructor(prefix: string, storage?: StorageLike, options?: { locks?: any; session?: StorageLike | null });
  load(key: string): Promise<Position | null>;
  save(positions: Readonly<Record<string, Position>>): void | Promise<void>;
  close(): Promise<void>;
}

export class ClientClosed extends Error {
  readonly code: number | null;
  readonly reason: string;
}

export class HistoryLost extends Error {
  readonly loss: Loss;
}

export class Refused extends Error {
  /** An error code of the protocol, or `timeout`, `busy`, `closed`, `unsupported`. */
  readonly code: string;
}

/** It did not happen within the time that the program gave it; the message says what stands in the way. */
export class TimedOut extends Error {}

/** What the machine asks its front to do, or tells it. `chat` null: the notifications. `n` is the fetch's or request's. */
export type Action =
  | ({ readonly do: "state" } & State)
  | { readonly do: "token"; readonly n: number }
  /** With `elsewhere`: under another client_id than before, from now on. */
  | { readonly do: "open"; readonly elsewhere?: true }
  | { readonly do: "send"; readonly frame: Frame }
  | { readonly do: "close"; readonly code: number; readonly reason: string }
  | {
      readonly do: "subscription";
      readonly chat: Id | null;
      readonly state: "subscribing" | "live" | "waiting" | "paused" | "refused";
      /** With `live`: where it goes on from. */
      readonly position?: Position;
      /** Seconds until it is tried again, with `waiting`. */
      readonly delay?: number;
      /** Why, with `waiting` and `refused`: an error code of the protocol. */
      readonly code?: string;
      readonly message?: string;
    }
  | { readonly do: "message"; readonly chat: Id | null; readonly frame: Frame }
  | { readonly do: "gap"; readonly chat: Id | null; readonly last: number; readonly prev: number }
  | { readonly do: "lost"; readonly chat: Id | null; readonly before: Position; readonly after: Position }
  | { readonly do: "presence"; readonly chat: Id; readonly users: Presence[] }
  | { readonly do: "signal"; readonly chat: Id; readonly user: Id; readonly kind: string; readonly data: unknown }
  | { readonly do: "done"; readonly n: number; readonly took: number; readonly users?: Presence[] }
  | {
      readonly do: "done";
      readonly n: number;
      readonly took: number;
      readonly messages: Frame[];
      readonly more: boolean;
      readonly start?: Position;
      readonly position?: Position;
    }
  | { readonly do: "failed"; readonly n: number; readonly code: string; readonly message?: string }
  | { readonly do: "error"; readonly code: string; readonly message: string };

/** A frame of the protocol: docs/protocol.md. */
export type Frame = { readonly type: string; readonly [field: string]: unknown };

/** The state machine apart from sockets and clocks, for fronts of your own. `now` is seconds of a steady clock. */
export class Machine {
  constructor(settings: Partial<Settings>, random: () => number, unix: () => number);
  readonly settings: Readonly<Settings>;
  readonly state: State["state"];
  /** What is to be done, in order; empty it. */
  readonly actions: Action[];
  /** The notifications' position may be set before `start`. */
  readonly topics: { readonly notifications: { position: Position | null } };
  start(now: number): void;
  stop(now: number): void;
  subscribe(chat: Id, now: number, since?: Position | null, watch?: boolean): void;
  unsubscribe(chat: Id, now: number): void;
  pause(chat: Id | null, now: number): void;
  /** Also due behind a page of history, after which a chat is `paused` by itself: docs/client.md, rule 27. */
  resume(chat: Id | null, now: number): void;
  request(n: number, frame: Frame, now: number): void;
  token(n: number, value: string | null, now: number, expiresAt?: number | null): void;
  token_failed(n: number, reason: string, now: number): void;
  opened(now: number): void;
  received(frame: unknown, now: number): void;
  closed(code: number, reason: string, now: number): void;
  online(now: number): void;
  deadline(): number | null;
  tick(now: number): void;
}

/** JSON whose integers beyond 2^53 are BigInts. */
export function decode(text: string): any;
export function encode(value: unknown): string;
