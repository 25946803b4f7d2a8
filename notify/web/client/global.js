/** The source of dist/notify-client.global.js, the file for a plain script tag. Its one global is the client's class. */

import * as exported from "./notify-client.js";

const { NotifyClient, ...others } = exported;
globalThis.NotifyClient = Object.assign(NotifyClient, others);
