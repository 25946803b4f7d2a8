/** React hooks over the client. React is the page's own (18 or later); a page without it never loads this file. */

import { useCallback, useEffect, useRef, useState, useSyncExternalStore } from "react";

/** The connection's state, as the client's event `state` tells it. */
export function useConnection(client) {
  const subscribe = useCallback((changed) => client.on("state", changed), [client]);
  const read = () => client.state;
  return useSyncExternalStore(subscribe, read, read);
}

/** Milliseconds, more or less, after which a page's backend is asked again. */
const AGAIN = 2000;
const NOTHING = { messages: [], ready: false, error: null };

/**
 * A chat as a list of messages, oldest first, each once by its `message_id`: `{ messages, ready, error }`.
 *
 * `load(position)` gives the messages that the page's backend has, or a promise of them; it is called first, and again wherever
 * some were lost. `onEvent(event, change)` is told each event (edits, deletions), with the feature `events`, and may give
 * `change` a function from the list to the new list. At most the newest `most` are kept. `error` is what `load` or `onEvent` threw, which
 * is tried again every two seconds or so and gone when that was of use; or what ended it, such as Refused.
 */
export function useChat(client, id, { load = null, onEvent = null, most = 500 } = {}) {
  const [shown, show] = useState(NOTHING);
  const calls = useRef({});
  calls.current = { load, onEvent, most };
  const loads = load !== null, events = onEvent !== null;
  useEffect(() => {
    let over = false, messages = new Map();
    const tell = (more = {}) => {
      if (!over) show((before) => ({ ...before, messages: [...messages.values()], ...more }));
    };
    const put = (message) => messages.set(String(message.message_id), message);
    const change = (how) => {
      messages = new Map(how([...messages.values()]).map((message) => [String(message.message_id), message]));
      tell();
    };
    const options = loads ? {} : { onLost: () => {} }; // without its past there is nothing to load again
    if (events) options.onEvent = (event) => calls.current.onEvent?.(event, change);
    if (loads) {
      options.load = async (position) => {
        const state = await calls.current.load(position);
        messages = new Map();
        for (const message of state) put(message);
        tell({ ready: true, error: null });
      };
    }
    show(NOTHING);
    const chat = client.chat(id, options);
    if (!loads) chat.ready().then(() => tell({ ready: true }), () => {});
    const read = async () => {
      for await (const message of chat) {
        put(message);
        for (const [oldest] of messages) {
          if (messages.size <= calls.current.most) break;
          messages.delete(oldest);
        }
        tell({ error: null });
      }
    };
    (async () => {
      while (!over) {
        try {
          return await read();
        } catch (error) {
          tell({ error });
          if (chat.state === "closed" || chat.state === "refused") return;
          await new Promise((resolve) => setTimeout(resolve, AGAIN * (0.5 + Math.random())));
        }
      }
    })();
    return () => {
      over = true;
      chat.close();
    };
  }, [client, id, loads, events]);
  return shown;
}

/**
 * Who types in a chat, and a function to call at each key stroke: `[users, typed]`. Needs a client with the feature `signals`. A
 * signal goes out every `every` milliseconds at most; who has not been heard of for `stays` is not shown any more.
 */
export function useTyping(client, id, { every = 3000, stays = 5000 } = {}) {
  const [users, show] = useState([]);
  const last = useRef(-Infinity);
  useEffect(() => {
    const timers = new Map();
    const tell = () => show([...timers.values()].map(({ user }) => user));
    const off = client.on("signal", ({ chat_id, user_id: user, kind }) => {
      if (kind !== "typing" || String(chat_id) !== String(id)) return;
      const key = String(user);
      clearTimeout(timers.get(key)?.timer);
      const timer = setTimeout(() => {
        timers.delete(key);
        tell();
      }, stays);
      timers.set(key, { user, timer });
      tell();
    });
    return () => {
      off();
      for (const { timer } of timers.values()) clearTimeout(timer);
      show([]);
    };
  }, [client, id, stays]);
  const typed = useCallback(() => {
    const now = performance.now();
    if (now - last.current >= every && client.signal(id, "typing", true)) last.current = now;
  }, [client, id, every]);
  return [users, typed];
}
