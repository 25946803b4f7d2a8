// Evaluates the file for a script tag as a classic script.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { runInThisContext } from "node:vm";
import * as module from "notify-client";
import { receive } from "./receive.mjs";

const before = new Set(Object.getOwnPropertyNames(globalThis));
runInThisContext(readFileSync("node_modules/notify-client/dist/notify-client.global.js", "utf8"));
assert.deepEqual(Object.getOwnPropertyNames(globalThis).filter((name) => !before.has(name)), ["NotifyClient"]);
const { NotifyClient } = globalThis;
assert.deepEqual(["NotifyClient", ...Object.keys(NotifyClient)].sort(), Object.keys(module));
await receive(NotifyClient);
