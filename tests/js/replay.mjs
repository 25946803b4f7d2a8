// Plays scenarios from a file, one JSON object a line: node replay.mjs FILE
import { readFileSync } from "node:fs";
import { play } from "./play.mjs";

const lines = readFileSync(process.argv[2], "utf8").trim().split("\n");
lines.forEach((line, number) => {
  try {
    play(JSON.parse(line));
  } catch (error) {
    console.log(`life ${number}: ${error.message}`);
    process.exit(1);
  }
});
console.log(`${lines.length} lives alike`);
