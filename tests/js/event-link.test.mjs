// The client when no WebSocket opens: it uses server-sent events instead.
import assert from "node:assert/strict";
import { test } from "node:test";
import { NotifyClient } from "../../notify/web/client/notify-client.js";
import { Events, beside, composed } from "../../notify/web/client/event-link.js";
import { AGAIN, Ways } from "../../notify/web/client/ways.js";

const SETTINGS = { backoff_floor: 0.001, backoff_base: 0.005, backoff_cap: 0.02 };

async function until(what, holds) {
  for (let n = 0; n < 2000; n++) {
    if (holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assert.fail(`never: ${what}`);
}

/** WebSockets that do not open, and a fake server of event streams: `say` and `end` act on the newest stream. */
class World {
  requests = []; streams = []; epoch = "e"; seqs = new Map(); refuse = null; expires = null; sockets = 0;

  constructor() {
    const world = this;
    this.WebSocket = class {
      constructor() {
        world.sockets += 1;
        setTimeout(() => this.onclose?.({ code: 1006, reason: "" }), 0);
      }
      close() {}
    };
    this.fetch = async (url, { headers = {}, signal } = {}) => {
      const { pathname, searchParams } = new URL(url);
      if (pathname === "/health") return new Response("ok");
      const request = { chats: searchParams.getAll("chat"), query: searchParams, at: headers["Last-Event-ID"] ?? "", token: headers.Authorization };
      world.requests.push(request);
      const refused = world.refuse?.(request);
      if (refused) return Response.json({ error: refused }, { status: refused.status });
      let say;
      const body = new ReadableStream({
        start(controller) {
          signal.addEventListener("abort", () => controller.error(signal.reason));
          say = controller;
        },
      });
      world.streams.push({ request, say, signal });
      const places = new Map(request.at.split(/[:,;]/).filter((one) => one.includes("=")).map((one) => one.split("=")));
      world.say({ type: "auth_result", success: true, user_id: 5, connection_id: "c", expires_at: world.expires, ping_interval: 25, ...world.place("*", places) });
      for (const chat of request.chats) world.say({ type: "subscribed", chat_id: Number(chat), ...world.place(chat, places) });
      for (const chat of request.chats) {
        for (let seq = Number(places.get(chat) ?? this.seqs.get(chat) ?? 0) + 1; seq <= (world.seqs.get(chat) ?? 0); seq++) world.say(world.frame(chat, seq));
      }
      return new Response(body);
    };
  }

  place(key, places) {
    return { epoch: this.epoch, seq: this.seqs.get(key) ?? 0, recovered: places.has(key) };
  }

  frame(chat, seq) {
    return { type: "chat_message", chat_id: Number(chat), message_id: seq, sender_id: 2, content: String(seq), timestamp: 3, epoch: this.epoch, seq, prev: seq - 1 };
  }

  message(chat) {
    const seq = (this.seqs.get(String(chat)) ?? 0) + 1;
    this.seqs.set(String(chat), seq);
    for (const one of this.open()) if (one.request.chats.includes(String(chat))) this.write(one, this.frame(chat, seq));
  }

  open() {
    return this.streams.filter(({ signal, ended }) => !signal.aborted && !ended);
  }

  write(stream, frame) {
    stream.say.enqueue(new TextEncoder().encode(`event: ${frame.type}\ndata: ${JSON.stringify(frame)}\nid: x\n\n`));
  }

  say(frame) {
    this.write(this.streams.at(-1), frame);
  }

  cut() {
    for (const stream of this.open()) {
      stream.ended = true;
      stream.say.error(new Error("cut"));
    }
  }
}

/** A client that is closed at the end of its test. */
function made(t, world, options = {}, url = "ws://h/ws") {
  const client = new NotifyClient(url, { token: "T", settings: SETTINGS, WebSocket: world.WebSocket, fetch: world.fetch, ...options });
  t.after(() => client.close());
  return client;
}

async function connected(t, world, options = {}) {
  const client = made(t, world, options);
  await client.start({ timeout: 10 });
  return client;
}

async function take(chat, count) {
  const found = [];
  while (found.length < count) found.push((await chat.next()).value.content);
  return found;
}

test("where no WebSocket opens a stream takes its place, with the token in a header", async (t) => {
  const world = new World(), client = await connected(t, world);
  const chat = client.chat(7);
  await chat.ready();
  world.message(7);
  world.message(7);
  assert.deepEqual(await take(chat, 2), ["1", "2"]);
  assert.ok(world.sockets >= 1);
  for (const { token, query } of world.requests) {
    assert.equal(token, "Bearer T");
    assert.ok(!query.toString().includes("T&") && !query.has("token"));
  }
  await client.close();
  assert.deepEqual(world.open(), []);
});

test("nothing is missed over cuts, and all chats are asked for at once", async (t) => {
  const world = new World(), client = await connected(t, world);
  const chats = [7, 8].map((id) => client.chat(id));
  for (const chat of chats) await chat.ready();
  const before = world.requests.length;
  for (let n = 0; n < 5; n++) {
    world.message(7);
    world.cut();
    world.message(7);
    world.message(8);
    assert.deepEqual(await take(chats[0], 2), [String(2 * n + 1), String(2 * n + 2)]);
    assert.deepEqual(await take(chats[1], 1), [String(n + 1)]);
  }
  const after = world.requests.slice(before);
  assert.ok(after.every(({ chats }) => chats.join() === "7,8"), JSON.stringify(after.map(({ chats }) => chats)));
});

test("another chat is another stream, in which the first goes on", async (t) => {
  const world = new World(), client = await connected(t, world), first = client.chat(7);
  await first.ready();
  world.message(7);
  const second = client.chat(8);
  world.message(7);
  await second.ready();
  world.message(7);
  world.message(8);
  assert.deepEqual(await take(first, 3), ["1", "2", "3"]);
  assert.deepEqual(await take(second, 1), ["1"]);
  assert.equal(world.open().length, 1);
  second.close();
  world.message(8);
  world.message(7);
  assert.deepEqual(await take(first, 1), ["4"]);
});

test("a new token is another stream", async (t) => {
  const world = new World();
  let count = 0;
  const client = await connected(t, world, { token: () => `T${++count}` }), chat = client.chat(7);
  await chat.ready();
  await client.refresh();
  assert.equal(world.requests.at(-1).token, `Bearer T${count}`);
  world.message(7);
  assert.deepEqual(await take(chat, 1), ["1"]);
});

test("a chat that may not be seen is refused, alone or among others", async (t) => {
  const world = new World();
  world.refuse = ({ chats }) => chats.join() === "-1" && { status: 403, code: "forbidden", message: "no" };
  const client = await connected(t, world), refused = client.chat(-1);
  await assert.rejects(refused.ready(), { code: "forbidden" });
  const chat = client.chat(7);
  await chat.ready();
  world.say({ type: "error", code: "forbidden", message: "no", chat_id: 7 });
  await assert.rejects(chat.next(), { code: "forbidden" });
});

test("what a stream lost is told once", async (t) => {
  const world = new World(), client = await connected(t, world), losses = [];
  const chat = client.chat(7, { onLost: (loss) => void losses.push(loss) });
  await chat.ready();
  world.message(7);
  assert.deepEqual(await take(chat, 1), ["1"]);
  const place = world.place;
  world.place = (key) => ({ epoch: "f", seq: key === "7" ? 5 : 0, recovered: false });
  const before = world.streams.length;
  world.cut();
  const next = chat.next();
  await until("a stream that is live", () => world.streams.length > before && losses.length === 1);
  world.place = place;
  world.say({ ...world.frame(7, 6), epoch: "f" });
  assert.equal((await next).value.content, "6");
  assert.equal(losses.length, 1);
});

test("what a server says of the end is obeyed", async (t) => {
  const world = new World(), client = await connected(t, world);
  const states = [];
  client.on("state", ({ state, code }) => states.push([state, code]));
  world.say({ type: "close", code: 1012, retry_after_ms: 120, elsewhere: true });
  world.refuse = () => ({ status: 401, code: "unauthorized", message: "bad", close: 4503 });
  await until("closed", () => client.state.state === "closed");
  assert.deepEqual(states[0], ["waiting", 1012]);
  assert.equal(client.state.code, 4503);
});

test("what needs a WebSocket is refused in words", async (t) => {
  const world = new World(), client = await connected(t, world);
  await client.chat(7).ready();
  await assert.rejects(client.presence(7), { code: "unsupported" });
  await assert.rejects(client.history(7), { code: "unsupported" });
  for (let id = 100; id < 131; id++) client.chat(id);
  await assert.rejects(client.chat(999).ready(), { code: "too_many_subscriptions" });
});

test("a chat that was had before and finds no room waits for it", async (t) => {
  const world = new World(), client = await connected(t, world);
  const chats = Array.from({ length: 32 }, (_, index) => client.chat(100 + index));
  await Promise.all(chats.map((chat) => chat.ready()));
  const one = client.chat(7, { since: { epoch: "e", seq: 0 } });
  await until("it waits", () => one.state === "waiting");
  chats[0].close();
  await one.ready();
  assert.equal(one.state, "live");
});

test("a WebSocket that hangs while it opens is one that does not open", async (t) => {
  const world = new World();
  const WebSocket = class {
    close() {
      setTimeout(() => this.onclose?.({ code: 1006, reason: "" }), 0);
    }
  };
  const client = await connected(t, world, { WebSocket, settings: { ...SETTINGS, connect_timeout: 0.05 } });
  await client.chat(7).ready();
  assert.equal(world.open().length, 1);
});

test("a stream that hangs before it begins gives way to a WebSocket", async (t) => {
  const world = new World();
  let sockets = 0;
  const hanging = (url) => (new URL(url).pathname === "/health" ? Promise.resolve(new Response("ok")) : new Promise(() => {}));
  const counted = class extends world.WebSocket {
    constructor() {
      super();
      sockets += 1;
    }
  };
  const client = made(t, world, { WebSocket: counted, fetch: hanging, settings: { ...SETTINGS, answer_timeout: 0.05 } });
  client.start().catch(() => {});
  await until("a WebSocket is tried again, and a stream behind it", () => sockets >= 3);
});

test("a server that is away is no reason for a stream", async (t) => {
  const world = new World(), asked = [];
  const fetch = async (url) => {
    asked.push(new URL(url).pathname);
    throw new TypeError("away");
  };
  await assert.rejects(made(t, world, { fetch }).start({ timeout: 0.2 }));
  assert.deepEqual([...new Set(asked)], ["/health"]);
});

test("streams can be switched off, and need an address that ends in /ws", async (t) => {
  for (const [url, options] of [["ws://h/ws", { eventStreams: false }], ["ws://h/socket", {}]]) {
    const world = new World();
    await assert.rejects(made(t, world, { fetch: assert.fail, ...options }, url).start({ timeout: 0.1 }));
  }
});

test("a WebSocket is tried again after a while, and after a stream that does not begin", () => {
  const ways = new Ways();
  assert.equal(ways.stream(0), false);
  ways.blocked(10);
  assert.equal(ways.stream(11), true);
  assert.equal(ways.stream(10 + AGAIN), false);
  ways.blocked(20);
  ways.free();
  assert.equal(ways.stream(21), false);
});

test("addresses and positions", () => {
  assert.equal(beside("wss://h:1/a/ws?client_id=x", "events"), "https://h:1/a/events?client_id=x");
  assert.equal(beside("ws://h/ws", "health"), "http://h/health");
  assert.equal(beside("ws://h/other", "events"), null);
  assert.equal(composed([["*", { epoch: "a", seq: 3 }], ["7", { epoch: "a", seq: 4n }], ["c-1", { epoch: "b:(x)", seq: 1 }]]), "a:*=3,7=4;b%3A%28x%29:c-1=1");
});

test("events come whole however they are cut", () => {
  const text = ": alive\n\nevent: a\ndata: {\"x\": 1}\nid: i\n\nevent: close\nretry: 5\ndata: {}\n\n";
  for (let at = 0; at <= text.length; at++) {
    const events = new Events();
    assert.deepEqual([...events.take(text.slice(0, at)), ...events.take(text.slice(at))], [[null, ""], ["a", '{"x": 1}'], ["close", "{}"]]);
  }
});
