/** React hooks for the client, for React 18 and later. These types do not need React's. */

import type { ChatEvent, ChatMessage, Id, NotifyClient, Position, State } from "./notify-client.js";

/** The state of the connection. */
export function useConnection(client: NotifyClient): State;

export interface ShownChat<M> {
  /** Oldest first, each message once. */
  readonly messages: readonly (M | ChatMessage)[];
  /** The chat is subscribed to, and `load` has finished. */
  readonly ready: boolean;
  /** What `load` or `onEvent` threw, until a retry succeeds (retries are automatic); or what ended the stream, such as Refused. */
  readonly error: Error | null;
}

/**
 * A chat as a list. `load` returns the messages that the page's backend has as of this position or later. It is called first, and
 * again wherever messages are lost. Without it the list contains only new messages. `onEvent` receives each event, with the feature
 * `events`, and may call `change` with a function from the list to the new list. At most the newest `most` (500) messages are kept.
 */
export function useChat<M extends { readonly message_id: Id } = ChatMessage>(
  client: NotifyClient,
  id: Id,
  options?: {
    load?: ((position: Position) => Iterable<M> | Promise<Iterable<M>>) | null;
    onEvent?:
      | ((event: ChatEvent, change: (how: (messages: (M | ChatMessage)[]) => (M | ChatMessage)[]) => void) => void | Promise<void>)
      | null;
    most?: number;
  },
): ShownChat<M>;

/**
 * The users who are typing in a chat, and the function to call at each keystroke. Needs the feature `signals`. A signal is sent at
 * most every `every` (3000) milliseconds; a user whose last signal is older than `stays` (5000) is not shown.
 */
export function useTyping(
  client: NotifyClient,
  id: Id,
  options?: { every?: number; stays?: number },
): [users: readonly Id[], typed: () => void];
