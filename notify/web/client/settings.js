/** The client's numbers, each with the rule that it belongs to: docs/client.md. Seconds, but for the last six. */
export const DEFAULTS = Object.freeze({
  // A retry waits a random time between the floor and min(cap, base * 2 ** tries).
  backoff_floor: 0.1,
  backoff_base: 2,
  backoff_cap: 30,
  stable_after: 10,
  advice_cap: 300,
  token_timeout: 30,
  connect_timeout: 10,
  answer_timeout: 10,
  ping_interval: 25,
  pong_timeout: 10,
  refresh_margin: 60,
  command_timeout: 10,
  max_commands: 1000,
  // Subscribe frames without an answer at once; and all frames, kept below the server's default limits.
  window: 16,
  burst: 900,
  rate: 45,
  // Messages that are asked for at once of a chat's history, 1 to 100.
  page: 100,
  // What the client can take beyond what everyone gets: `events`; `history` it asks for by itself.
  features: Object.freeze([]),
});
