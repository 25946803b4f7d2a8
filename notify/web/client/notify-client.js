/**
 * A client of a notify server that never loses its place, for browsers and Node. No dependencies, no build step.
 *
 *   import { NotifyClient } from "./notify-client.js";
 *   const client = new NotifyClient("wss://host/ws", { token: () => fetchToken() });
 *   await client.start();
 *   for await (const message of client.chat(7)) console.log(message.content);
 *
 * How it behaves is docs/client.md; types are in notify-client.d.ts. This file is all that there is to import:
 *
 *   client.js    the client: what a program calls, and the streams (stream.js) that it reads
 *   runner.js    carries out what the machine asks for
 *   machine.js   the state machine apart from sockets and clocks, made of the modules in parts/
 *   link.js      one connection; int64.js: JSON with 64-bit integers
 *   client-id.js what proxies hash
 *   saver.js     positions on their way to a store (store.js)
 */

export { NotifyClient } from "./client.js";
export { ClientClosed, HistoryLost, Refused, TimedOut } from "./errors.js";
export { decode, encode } from "./int64.js";
export { Machine } from "./machine.js";
export { DEFAULTS } from "./settings.js";
export { LocalStorageStore } from "./store.js";
export { Stream } from "./stream.js";
