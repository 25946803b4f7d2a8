/**
 * A client of a notify server that never loses its place, for browsers and Node. No dependencies, no build step.
 *
 *   import { NotifyClient } from "./notify-client.js";
 *   const client = new NotifyClient("wss://host/ws", { token: () => fetchToken() });
 *   await client.start();
 *   for await (const message of client.chat(7)) console.log(message.content);
 *
 * docs/client.md describes its behaviour; the types are in notify-client.d.ts. Import only this file. It is made of:
 *
 *   client.js    the client: the methods that an application calls, and the streams (stream.js) that it reads
 *   runner.js    carries out the machine's actions
 *   machine.js   the state machine without sockets and clocks, made of the modules in parts/
 *   link.js      one connection; int64.js: JSON with 64-bit integers
 *   client-id.js the id that proxies hash
 *   saver.js     saves positions to a store (store.js)
 */

export { NotifyClient } from "./client.js";
export { ClientClosed, HistoryLost, Refused, TimedOut } from "./errors.js";
export { decode, encode } from "./int64.js";
export { Machine } from "./machine.js";
export { DEFAULTS } from "./settings.js";
export { LocalStorageStore } from "./store.js";
export { Stream } from "./stream.js";
