// The scenarios that the Python client runs too.
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { play } from "./play.mjs";

const table = JSON.parse(readFileSync(new URL("../conformance/scenarios.json", import.meta.url)));

for (const scenario of table.scenarios) test(scenario.name, () => play(scenario, table.preludes));
