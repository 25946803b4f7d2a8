// Plays a scenario on the JavaScript state machine; throws if the machine deviates from the scenario.
import assert from "node:assert/strict";
import { Machine } from "../../notify/web/client/notify-client.js";

const NEAR = 1e-6;
// Values of an action that are defaults, and that a scenario therefore omits.
const DEFAULTS = { code: [null, ""], reason: [""], message: [""] };

function plain(action) {
  const kept = Object.entries(JSON.parse(JSON.stringify(action)))
    .filter(([key, value]) => !(DEFAULTS[key] ?? []).includes(value));
  return Object.fromEntries(kept);
}

function same(a, b) {
  if (typeof a === "number" && typeof b === "number") return Math.abs(a - b) < NEAR;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return a === b;
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((key) => key in b && same(a[key], b[key]));
}

function tell(machine, now, [name, ...args]) {
  if (name === "subscribe") return machine.subscribe(args[0], now, args[1], args[2]);
  if (name === "token") return machine.token(args[0], args[1], now, args[2]);
  const names = { open: "opened", close: "closed", frame: "received", timer: "tick" };
  return machine[names[name] ?? name](...args, now);
}

/** `scenario.random` is a number, or a list of numbers to return one after another. */
export function play(scenario, preludes = {}) {
  let now = 0, drawn = 0;
  const random = () => (Array.isArray(scenario.random) ? scenario.random[drawn++] : scenario.random ?? 0.5);
  const machine = new Machine(scenario.settings, random, () => (scenario.unix ?? 0) + now);
  const steps = [...(preludes[scenario.after] ?? []), ...scenario.steps];
  steps.forEach(([at, event, expected], number) => {
    const where = `step ${number}, ${JSON.stringify(event)} at ${at}`;
    const due = machine.deadline();
    if (event[0] === "timer") {
      assert.ok(due !== null && same(due, at), `${where}: the timer is due at ${due}`);
      now = due;
    } else {
      assert.ok(due === null || due >= at - NEAR, `${where}: a timer was due at ${due}`);
      now = at;
    }
    tell(machine, now, event);
    const actions = machine.actions.splice(0).map(plain);
    const shown = () => `${where}\n  did: ${JSON.stringify(actions)}\n  not: ${JSON.stringify(expected)}`;
    assert.ok(same(actions, expected), shown());
  });
}
