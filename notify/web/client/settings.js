/** The default settings; docs/client.md describes the rules that use them. All times are in seconds; the last six are not times. */
export const DEFAULTS = Object.freeze({
  // Before a retry the client waits for a random time between the floor and min(cap, base * 2 ** tries).
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
  // How many subscribe frames may be unanswered; then the rate limit for all frames, below the server's default limits.
  window: 16,
  burst: 900,
  rate: 45,
  // Messages per request for a chat's history, 1 to 100.
  page: 100,
  // Optional features to ask the server for: `events`, `signals`; the client adds `history` itself.
  features: Object.freeze([]),
});
