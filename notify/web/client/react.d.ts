/** React hooks over the client, for React 18 and later. These types need none of React's. */

import type { ChatEvent, ChatMessage, Id, NotifyClient, Position, State } from "./notify-client.js";

/** The connection's state. */
export function useConnection(client: NotifyClient): State;

export interface ShownChat<M> {
  /** Oldest first, each once. */
  readonly messages: readonly (M | ChatMessage)[];
  /** The chat is subscribed to, and what was to be loaded is there. */
  readonly ready: boolean;
  /** What `load` or `onEvent` threw, until it was of use to try again, which goes by itself; or what ended it, such as Refused. */
  readonly error: Error | null;
}

/**
 * A chat as a list. `load` gives the messages that the page's backend has as of this position or later; it is called first, and again
 * wherever some were lost; without it the list is what comes from now on. `onEvent` is told each event, with the feature `events`, and
 * may call `change` with a function from the list to the new one. At most the newest `most` (500) are kept.
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
 * Who types in a chat, and what to call at each key stroke; needs the feature `signals`. A signal goes out every `every` (3000)
 * milliseconds at most; who has not been heard of for `stays` (5000) is shown no more.
 */
export function useTyping(
  client: NotifyClient,
  id: Id,
  options?: { every?: number; stays?: number },
): [users: readonly Id[], typed: () => void];
