/** What dist/notify-client.global.js is made of, the file for a plain script tag: one global, the client's class. */

import * as exported from "./notify-client.js";

const { NotifyClient, ...others } = exported;
globalThis.NotifyClient = Object.assign(NotifyClient, others);
