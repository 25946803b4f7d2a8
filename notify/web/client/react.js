/** React hooks for the client. React (18 or later) comes from the page; a page without React never loads this file. */

import { useCallback, useEffect, useRef, useState, useSyncExternalStore } from "react";

/** The state of the connection, as the client's event `state` reports it. */
export function useConnection(client) {
  const subscribe = useCallback((changed) => client.on("state", changed), [client]);
  const read = () => client.state;
  return useSyncExternalStore(subscribe, read, read);
}

/** Approximate milliseconds before the page's backend is asked again. */
const AGAIN = 2000;
const NOTHING = { messages: [], ready: false, error: null };

/**
 * A chat as a list of messages, oldest first, each once by its `message_id`: `{ messages, ready, error }`.
 *
 * `load(position)` returns the messages that the page's backend has, or a promise of them. It is called first, and again wherever
 * messages are lost. `onEvent(event, change)` receives each event (edits, deletions), with the feature `events`; it may pass
 * `change` a function from the list to the new list. At most the newest `most` messages are kept. `error` is what `load` or
 * `onEvent` threw: the call is repeated about every two seconds, and the error disappears once it succeeds. Or it is what ended
 * the stream, such as Refused.
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
    const options = loads ? {} : { onLost: () => {} }; // without earlier messages there is nothing to reload
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
 * The users who are typing in a chat, and a function to call at each keystroke: `[users, typed]`. Needs a client with the feature
 * `signals`. A signal is sent at most every `every` milliseconds; a user whose last signal is older than `stays` is not shown.
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
