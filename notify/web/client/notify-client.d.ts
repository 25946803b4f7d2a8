/**
 * A client of a notify server that never loses its place. docs/client.md describes its behaviour.
 * These types need neither the DOM library nor Node's types.
 */

/**
 * The id of a chat, user or message: an integer, as a number if that holds it exactly and otherwise as a bigint; or text such
 * as a UUID. On input, text that spells an integer is that integer.
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

/** An event in a chat other than a message: an edit, a deletion, a reaction, a change of members. */
export interface ChatEvent {
  readonly chat_id: Id;
  readonly message_id: Id;
  readonly sender_id: Id;
  readonly kind: string;
  readonly data: unknown;
  readonly timestamp: number;
  /** The message_id of the message that the event is about, if it is about one. */
  readonly refers_to?: Id;
  readonly position: Position;
}

/** A transient signal from another member of a chat; `data` is any JSON value. Signals are not stored. */
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

/** A page of a chat's history, oldest first. It contains events if the client asked for them. */
export interface Page {
  readonly messages: readonly (ChatMessage | ChatEvent)[];
  /** Whether there are further messages in the direction asked for, even if this page is empty. */
  readonly more: boolean;
  /** Where the page begins: continue `before` it. null if the server does not say. */
  readonly start: Position | null;
  /** Where the page ends: continue `after` it. On the newest page it is the newest position of the chat. */
  readonly position: Position | null;
}

export interface Presence {
  readonly user_id: Id;
  readonly connections: number;
}

/** The messages after `before` up to and including `after` are no longer available: reload them from the backend. */
export interface Loss {
  /** null for the user's notifications. */
  readonly chat_id: Id | null;
  readonly before: Position;
  readonly after: Position;
}

export interface State {
  readonly state: "idle" | "connecting" | "authenticating" | "connected" | "waiting" | "closed";
  /** Seconds until the next attempt; set with `waiting`. */
  readonly delay?: number;
  /** Why the previous connection ended: a close code, or null if the client gave it up itself. */
  readonly code?: number | null;
  readonly reason?: string;
  readonly user_id?: Id;
  readonly connection_id?: string;
}

export type Token = string | { readonly value: string; /** Unix seconds. */ readonly expiresAt?: number | null };

/** Keeps positions beyond the life of the page. A store belongs to one user: the positions of two users must not mix. */
export interface Store {
  load(key: string): Position | null | undefined | Promise<Position | null | undefined>;
  save(positions: Readonly<Record<string, Position>>): void | Promise<void>;
  /** The program has closed the client: release what the store holds. */
  close?(): void | Promise<void>;
}

/** All times are in seconds; the last six settings are not times. */
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
  /** Messages per request for a chat's history, 1 to 100. */
  page: number;
  /** Optional features to ask the server for: `events`, `signals`; the client adds `history` itself. */
  features: readonly string[];
}

export const DEFAULTS: Readonly<Settings>;

export interface Options {
  /** A token, or a function that returns one; if it returns null, the client signs out. */
  token: string | (() => Token | null | Promise<Token | null>);
  store?: Store | null;
  /**
   * Replaces the random client_id: 1 to 64 of A-Z a-z 0-9 _ -. Proxies hash it to route the client back to its node. The client
   * appends a suffix when the server sends it to another node.
   */
  clientId?: string;
  settings?: Partial<Settings>;
  /** The maximum number of messages that wait for the reader of a stream; beyond it the client takes no more from the server. */
  queue?: number;
  /** For the notifications, and for each chat that sets neither its own `onLost` nor `load`. */
  onLost?: ((loss: Loss) => void | Promise<void>) | null;
  /** For Node before 22: a WebSocket class, for example that of the package `ws`. */
  WebSocket?: new (url: string, protocols: string[]) => any;
  /**
   * Whether to use an event stream if a WebSocket does not open although the server answers plain requests. The default is true if
   * the address ends in `/ws`. An event stream has no history, presence on demand or signals, and at most 32 chats.
   */
  eventStreams?: boolean;
  /** Replaces the platform's own `fetch`. */
  fetch?: (url: string, options: any) => Promise<any>;
  random?: () => number;
}

export interface ChatOptions {
  /** Begin after this position, rather than after the stored one or with new messages. */
  since?: Position | null;
  /** Report who is present: see the client's event `presence`. */
  watchPresence?: boolean;
  /** Called and awaited in place of messages that were lost. Without it reading throws HistoryLost. */
  onLost?: ((loss: Loss) => void | Promise<void>) | null;
  /** Called and awaited with each event at its place between the messages. Needs the feature `events`. */
  onEvent?: ((event: ChatEvent) => void | Promise<void>) | null;
  /**
   * Loads the chat's state as of the given position, or later. Called and awaited while the reader waits: before the first
   * message, with the chat's newest position, from where the messages continue; and again wherever messages are lost. Replaces
   * `since`, a stored position and `onLost`. If it throws, so does reading; it is called again when reading continues.
   */
  load?: ((position: Position) => void | Promise<void>) | null;
}

/** `for await (const message of stream)` yields each message once and in order. A stream has one reader at a time. */
export class Stream<M> implements AsyncIterableIterator<M> {
  private constructor();
  readonly state: "subscribing" | "live" | "waiting" | "paused" | "refused" | "closed";
  /** The position of the last message that was handled. */
  readonly position: Position | null;
  /** The number of messages that have arrived and were not read yet. */
  readonly waiting: number;
  onLost: ((loss: Loss) => void | Promise<void>) | null;
  onEvent: ((event: ChatEvent) => void | Promise<void>) | null;
  load: ((position: Position) => void | Promise<void>) | null;
  /** Resolves once the server has confirmed the subscription. Rejects with Refused or ClientClosed, or with TimedOut after `timeout` seconds. */
  ready(options?: { timeout?: number | null }): Promise<void>;
  next(): Promise<IteratorResult<M, undefined>>;
  [Symbol.asyncIterator](): this;
  /** Mark the message that was read last as handled. Reading the next one does so by itself. */
  handled(): void;
  /** Unsubscribe (chats only). Unread messages are dropped, and the message that was read last counts as handled. */
  close(): void;
  /**
   * Called by `break` and by an error in `for await`. Unsubscribes (chats only). The message that was read last does not count as
   * handled, unless `handled` was called.
   */
  return(value?: undefined): Promise<IteratorResult<M, undefined>>;
  /** For `await using`: closes the stream. */
  [Symbol.asyncDispose](): Promise<void>;
}

export class NotifyClient {
  constructor(url: string | { readonly href: string }, options: Options);
  readonly state: State;
  /** The client_id in use. */
  readonly clientId: string;
  readonly notifications: Stream<Notification>;
  /**
   * Resolves once connected, however long that takes; rejects with ClientClosed if the client ends instead. After `timeout`
   * seconds it rejects with TimedOut, which says why the last attempt failed, and the client keeps trying.
   */
  start(options?: { timeout?: number | null }): Promise<void>;
  close(): Promise<void>;
  /** For `await using`: closes the client. */
  [Symbol.asyncDispose](): Promise<void>;
  /**
   * A further call for the same chat returns another stream, which continues from the subscription's current position (no `since`,
   * no `watchPresence`). Every stream gets every message. The slowest one sets the pace, and its position is the one that is
   * stored. If the client is closed, the returned stream has already ended.
   */
  chat(id: Id, options?: ChatOptions): Stream<ChatMessage>;
  presence(id: Id): Promise<Presence[]>;
  /**
   * Sends a short-lived signal to the other members of a chat, such as that the user is typing; repeat it while the state lasts. A
   * signal is sent immediately or not at all, and is not stored. Returns whether it was sent. `kind` has 1 to 64 characters; `data`
   * is any JSON value, by default up to 1 KiB; throws TypeError if they are invalid. Needs the feature `signals`.
   */
  signal(id: Id, kind: string, data?: unknown): boolean;
  /**
   * Returns a page of up to `limit` (1 to 100) messages: the newest ones, or those next to a position. Rejects with Refused:
   * `history_unavailable` if the server no longer has the messages at that position, `unsupported` if it does not give clients history.
   */
  history(
    id: Id,
    options?: { before?: Position | null; after?: Position | null; limit?: number },
  ): Promise<Page>;
  /** The newest position of a chat. Rejects with Refused, as `history` does. */
  position(id: Id): Promise<Position>;
  /** The round-trip time in seconds. */
  ping(): Promise<number>;
  /**
   * Fetches a token now and uses it, for example because its claims have changed. Resolves once the server has accepted it;
   * rejects with Refused.
   */
  refresh(): Promise<void>;
  /** Report that the network is back. In browsers the client notices by itself. */
  online(): void;
  /** Drop the connection as if the network had failed. */
  cut(): void;
  on(name: "state", listener: (state: State) => void): () => void;
  on(name: "presence", listener: (presence: { chat_id: Id; users: Presence[] }) => void): () => void;
  /** Signals from other members of subscribed chats; needs the feature `signals`. */
  on(name: "signal", listener: (signal: Signal) => void): () => void;
  on(name: "error", listener: (error: Error) => void): () => void;
  /** Every action of the machine, for diagnostics. */
  on(name: "action", listener: (action: Action) => void): () => void;
}

/** The part of the `Storage` interface that is used. */
export interface StorageLike {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
}

/** For one client. Each open tab has its own positions, held by a Web Lock; a tab that opens takes over the first free ones. */
export class LocalStorageStore implements Store {
  /**
   * `prefix` names the user; `storage` defaults to `localStorage`. The options are for tests, and for pages without
   * `navigator.locks` or `sessionStorage`. Without locks the positions are kept in `session`, for this tab only; without both,
   * the constructor throws.
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

/** An operation did not finish within the given time; the message says what it was waiting for. */
export class TimedOut extends Error {}

/** What the machine asks its front end to do, or reports. `chat` is null for the notifications; `n` is the number of the fetch or request. */
export type Action =
  | ({ readonly do: "state" } & State)
  | { readonly do: "token"; readonly n: number }
  /** With `elsewhere`: use a new client_id from now on. */
  | { readonly do: "open"; readonly elsewhere?: true }
  | { readonly do: "send"; readonly frame: Frame }
  | { readonly do: "close"; readonly code: number; readonly reason: string }
  | {
      readonly do: "subscription";
      readonly chat: Id | null;
      readonly state: "subscribing" | "live" | "waiting" | "paused" | "refused";
      /** With `live`: from where it continues. */
      readonly position?: Position;
      /** With `waiting`: seconds until the next attempt. */
      readonly delay?: number;
      /** With `waiting` and `refused`: the reason, an error code of the protocol. */
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

/** A frame of the protocol: see docs/protocol.md. */
export type Frame = { readonly type: string; readonly [field: string]: unknown };

/** The state machine without sockets and clocks, for your own front end. `now` is the seconds of a monotonic clock. */
export class Machine {
  constructor(settings: Partial<Settings>, random: () => number, unix: () => number);
  readonly settings: Readonly<Settings>;
  readonly state: State["state"];
  /** The actions to carry out, in order. The caller empties it. */
  readonly actions: Action[];
  /** The notifications' position may be set before `start`. */
  readonly topics: { readonly notifications: { position: Position | null } };
  start(now: number): void;
  stop(now: number): void;
  subscribe(chat: Id, now: number, since?: Position | null, watch?: boolean): void;
  unsubscribe(chat: Id, now: number): void;
  pause(chat: Id | null, now: number): void;
  /** Also required after a page of history, because the machine then pauses the chat itself: docs/client.md, rule 27. */
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

/** Parses JSON; integers beyond 2^53 become BigInts. */
export function decode(text: string): any;
export function encode(value: unknown): string;
