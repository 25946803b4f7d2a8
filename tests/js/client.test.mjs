// The parts of the client around the state machine: sockets, streams, stores, 64-bit integers.
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  ClientClosed, HistoryLost, LocalStorageStore, NotifyClient, Refused, TimedOut, decode, encode,
} from "../../notify/web/client/notify-client.js";
import { ClientId } from "../../notify/web/client/client-id.js";

const SETTINGS = { backoff_floor: 0.001, backoff_base: 0.002, backoff_cap: 0.004 };
const turn = () => new Promise((resolve) => setTimeout(resolve, 0));

/** A fake server: frames that clients send go to `said`; `say` sends frames to the newest socket. */
class World {
  sockets = [];
  said = [];
  epoch = "e";
  seqs = new Map([[null, 3]]);
  recovered = true;
  longest = Infinity; // most messages in one resumption
  features = undefined; // those that it grants
  stored = []; // the history

  constructor() {
    const world = this;
    this.WebSocket = class {
      constructor(url, protocols) {
        Object.assign(this, { url, protocols });
        world.sockets.push(this);
        setTimeout(() => this.onopen?.(), 0);
      }
      send(text) {
        const frame = decode(text);
        world.said.push(frame);
        world.answer(frame);
      }
      close(code, reason) {
        this.closed = [code, reason];
        setTimeout(() => this.onclose?.({ code, reason }), 0);
      }
    };
  }

  say(...frames) {
    this.sockets.at(-1).onmessage?.({ data: encode(frames) });
  }

  cut(code = 1006, reason = "") {
    this.sockets.at(-1).onclose?.({ code, reason });
  }

  message(chat, content) {
    const prev = this.seqs.get(chat) ?? 0;
    this.seqs.set(chat, prev + 1);
    this.say({ type: "chat_message", chat_id: chat, message_id: 1, sender_id: 2, content, timestamp: 3, epoch: this.epoch, seq: prev + 1, prev });
  }

  /** Add `count` messages of a chat to the history, without sending them to anybody. */
  store(chat, count) {
    const length = this.stored.length;
    for (let seq = length + 1; seq <= length + count; seq++) {
      this.stored.push({ type: "chat_message", chat_id: chat, message_id: seq, sender_id: 2, content: String(seq), timestamp: 3, epoch: this.epoch, seq, prev: seq - 1 });
    }
    this.seqs.set(chat, length + count);
  }

  page({ id, chat_id, before, after, limit }) {
    const answer = { type: "history", chat_id, id };
    if (after?.epoch === "gone") return { type: "error", id, code: "history_unavailable", message: "gone" };
    const found = this.stored.filter(({ seq }) => (after ? seq > after.seq : before ? seq < before.seq : true));
    const messages = after ? found.slice(0, limit) : found.slice(-limit);
    if (!after && !before) Object.assign(answer, { epoch: this.epoch, seq: this.seqs.get(chat_id) ?? 0 });
    return { ...answer, messages, more: messages.length < found.length };
  }

  event(chat, kind, refers_to) {
    const prev = this.seqs.get(chat) ?? 0;
    this.seqs.set(chat, prev + 1);
    this.say({ type: "chat_event", chat_id: chat, message_id: 1, sender_id: 2, kind, data: null, timestamp: 3, refers_to, epoch: this.epoch, seq: prev + 1, prev });
  }

  answer(frame) {
    const place = (key) => {
      const seq = this.seqs.get(key) ?? 0;
      const recovered = this.recovered && frame.since !== undefined && seq - frame.since.seq <= this.longest;
      return { epoch: this.epoch, seq, recovered };
    };
    if (frame.type === "auth") this.say({ type: "auth_result", success: true, user_id: 5, connection_id: "c", expires_at: null, ping_interval: 25, features: this.features, ...place(null) });
    else if (frame.type === "history") this.say(this.page(frame));
    else if (frame.type === "subscribe" && frame.chat_id < 0) this.say({ type: "error", id: frame.id, code: "forbidden", message: "no" });
    else if (frame.type === "subscribe") this.say({ type: "subscribed", chat_id: frame.chat_id, id: frame.id, ...place(frame.chat_id) });
    else if (frame.type === "refresh" && frame.token === "late") this.say({ type: "error", id: frame.id, code: "unavailable", message: "later", retry: true });
    else if (frame.type === "refresh") this.say({ type: "ok", id: frame.id, expires_at: null });
    else if (frame.type === "ping") this.say({ type: "pong", id: frame.id });
    else if (frame.type === "presence") this.say({ type: "presence", id: frame.id, chat_id: frame.chat_id, users: [{ user_id: 5, connections: 1 }] });
  }
}

async function connected(options = {}, world = new World()) {
  const client = new NotifyClient("ws://h/ws", { token: "T", settings: SETTINGS, WebSocket: world.WebSocket, eventStreams: false, ...options });
  await client.start();
  return [client, world];
}

function state(client, wanted) {
  return new Promise((resolve) => {
    const off = client.on("state", ({ state }) => {
      if (state === wanted) {
        off();
        resolve();
      }
    });
  });
}

async function take(stream, count) {
  const got = [];
  while (got.length < count) got.push((await stream.next()).value.content);
  return got;
}

test("messages are read in order, with their positions", async () => {
  const [client, world] = await connected();
  assert.deepEqual(world.sockets[0].protocols, ["notify.v1.json.batch", "notify.v1.json"]);
  const chat = client.chat(7);
  await chat.ready();
  world.message(7, "a");
  world.message(7, "b");
  const { value } = await chat.next();
  assert.deepEqual(value, {
    chat_id: 7, message_id: 1, sender_id: 2, content: "a", timestamp: 3, position: { epoch: "e", seq: 1 },
  });
  assert.deepEqual(await take(chat, 1), ["b"]);
  await client.close();
  assert.deepEqual(world.sockets[0].closed, [1000, ""]);
  assert.deepEqual(await chat.next(), { done: true, value: undefined });
});

test("it comes back by its client_id, and by another when it is sent elsewhere", async () => {
  const [client, world] = await connected();
  const own = client.clientId;
  assert.match(own, /^[A-Za-z0-9_-]{16}$/);
  for (const reason of ["", '{"retry_after_ms": 0, "elsewhere": true}', ""]) {
    const again = state(client, "connected");
    world.cut(1012, reason);
    await again;
  }
  assert.notEqual(client.clientId, own);
  const used = [own, own, client.clientId, client.clientId];
  assert.deepEqual(world.sockets.map(({ url }) => url), used.map((one) => `ws://h/ws?client_id=${one}`));
  await client.close();
});

test("a client_id of the program's own gets a suffix when it has to move", async () => {
  const own = "x".repeat(64);
  const [client, world] = await connected({ clientId: own });
  for (let turn = 0; turn < 2; turn++) {
    const again = state(client, "connected");
    world.cut(1012, '{"elsewhere": true}');
    await again;
    assert.match(client.clientId, /^x{55}-[A-Za-z0-9_-]{8}$/);
  }
  assert.equal(new Set(world.sockets.map(({ url }) => url)).size, 3);
  await client.close();
});

test("the client_id has its place in the query", () => {
  const { WebSocket } = new World();
  const of = (url, more = {}) => new NotifyClient(url, { token: "T", WebSocket, ...more });
  assert.equal(of("ws://h/ws?client_id=mine").clientId, "mine");
  assert.equal(of("ws://h/ws?client_id=mine", { clientId: "other" }).clientId, "other");
  assert.notEqual(of("ws://h/ws").clientId, of("ws://h/ws").clientId);
  for (const clientId of ["", "x".repeat(65), "a b", "ä", "a\n", "a&b"]) assert.throws(() => of("ws://h/ws", { clientId }), /clientId/);
  for (const [url, expected] of [
    ["/ws", "/ws?client_id=me"],
    ["ws://h/ws?", "ws://h/ws?client_id=me"],
    ["ws://h/ws?a=1&client_id=x&b=2#c", "ws://h/ws?a=1&b=2&client_id=me"],
    ["ws://h/ws?my_client_id=x&a=%20?", "ws://h/ws?my_client_id=x&a=%20?&client_id=me"],
  ]) assert.equal(new ClientId(url, "me", Math.random).url, expected);
});

test("a program has the token replaced, and goes on once it is", async () => {
  const tokens = ["T1", "T2", "late"];
  const [client, world] = await connected({ token: async () => tokens.shift() });
  assert.equal(await client.refresh(), undefined);
  assert.deepEqual(world.said.filter(({ type }) => type === "refresh").map(({ token }) => token), ["T2"]);
  await assert.rejects(client.refresh(), (error) => error instanceof Refused && error.code === "unavailable");
  await client.close();
  await assert.rejects(client.refresh(), (error) => error instanceof Refused && error.code === "closed");
});

test("after a cut it resumes from the last message", async () => {
  const [client, world] = await connected();
  const chat = client.chat(7);
  await chat.ready();
  world.message(7, "a");
  const again = state(client, "connected");
  world.cut();
  await again;
  assert.deepEqual(world.said.at(-1).since, { epoch: "e", seq: 1 });
  world.message(7, "b");
  assert.deepEqual(await take(chat, 2), ["a", "b"]);
  await client.close();
});

test("a slow reader pauses its chat and goes on where it was", async () => {
  const [client, world] = await connected({ queue: 2 });
  const chat = client.chat(7);
  await chat.ready();
  for (const text of "ab") world.message(7, text);
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(chat.state, "paused");
  assert.equal(world.said.at(-1).type, "unsubscribe");
  world.message(7, "c");
  assert.equal(chat.waiting, 2);
  assert.deepEqual(await take(chat, 2), ["a", "b"]);
  assert.deepEqual(world.said.at(-1).since, { epoch: "e", seq: 2 });
  await client.close();
});

test("a slow reader gets what is more than one resumption page by page, and holds no more than a page", async () => {
  const world = Object.assign(new World(), { features: ["history"], longest: 2 });
  const [client] = await connected({ queue: 4, settings: { ...SETTINGS, page: 3 } }, world);
  const chat = client.chat(7);
  await chat.ready();
  world.store(7, 4);
  for (const message of world.stored) world.say(message);
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(chat.state, "paused");
  world.store(7, 100);
  const got = [];
  let most = 0;
  while (got.length < 104) {
    got.push(Number((await chat.next()).value.content));
    most = Math.max(most, chat.waiting);
    if (got.length === 40) world.cut();
  }
  assert.deepEqual(got, Array.from({ length: 104 }, (_, index) => index + 1));
  assert.ok(most <= 4 + 3, `${most} waited`);
  assert.ok(world.said.filter(({ type }) => type === "history").length > 30);
  await chat.ready();
  world.say({ ...world.stored[0], seq: 105, prev: 104, content: "live" });
  assert.equal((await chat.next()).value.content, "live");
  await client.close();
});

test("a reader that waits to be ready is, though a page is all that it can hold", async () => {
  const world = Object.assign(new World(), { features: ["history"], longest: 2 });
  world.store(7, 20);
  const [client] = await connected({ queue: 2, settings: { ...SETTINGS, page: 5 } }, world);
  const chat = client.chat(7, { since: { epoch: "e", seq: 1 } });
  await chat.ready();
  assert.deepEqual([chat.state, chat.waiting], ["paused", 5]);
  await client.close();
});

test("a chat's state is loaded with the position first, and again on a loss", async () => {
  const [client, world] = await connected({ store: { load: () => ({ epoch: "e", seq: 1 }), save: () => {} } });
  world.seqs.set(7, 2);
  const places = [];
  const load = async (place) => {
    places.push(place);
    if (places.length === 1) throw new Error("the backend is away");
    await turn();
    world.message(7, `during load ${places.length}`);
  };
  const chat = client.chat(7, { load });
  await assert.rejects(chat.next(), /away/);
  assert.equal((await chat.next()).value.content, "during load 2");
  assert.deepEqual(places, [{ epoch: "e", seq: 2 }, { epoch: "e", seq: 2 }]);
  world.recovered = false;
  world.seqs.set(7, 8);
  const again = state(client, "connected");
  world.cut();
  await again;
  assert.equal((await chat.next()).value.content, "during load 3");
  assert.deepEqual([places[2], chat.position], [{ epoch: "e", seq: 8 }, { epoch: "e", seq: 8 }]);
  assert.throws(() => client.chat(8, { load, onLost: load }), TypeError);
  assert.throws(() => client.chat(8, { load, since: places[0] }), TypeError);
  const closed = client.chat(9, { load: () => closed.close() });
  assert.deepEqual(await closed.next(), { done: true, value: undefined });
  await client.close();
});

test("what keeps it from connecting is said in words, and waited for as long as is wished", async (t) => {
  const warn = t.mock.method(console, "warn", () => {});
  const failing = (message) => class {
    constructor() {
      setTimeout(() => {
        this.onerror?.({ message });
        this.onclose?.({ code: 1006, reason: "" });
      }, 0);
    }
    close() {}
  };
  globalThis.location = { origin: "https://page.example" };
  t.after(() => delete globalThis.location);
  const wrong = (words) => (error) => error instanceof TimedOut && words.every((one) => error.message.includes(one));
  const client = new NotifyClient("ws://h/wrong", { token: "T", settings: { ...SETTINGS, backoff_floor: 5 }, WebSocket: failing("answered 404") });
  const words = ["ws://h/wrong could not be opened (answered 404)", "allow pages of https://page.example (listen.allowed_origins)"];
  await assert.rejects(client.start({ timeout: 0.05 }), wrong(["not connected within 0.05 s: the client is waiting, ", ...words]));
  assert.match(warn.mock.calls[0].arguments[0], /^notify: not connected: .*; trying again in 5\.0 s$/);
  await assert.rejects(client.chat(7).ready({ timeout: 0.01 }), wrong(["chat 7 is not live within 0.01 s: subscribing; ", ...words]));
  await assert.rejects(client.notifications.ready({ timeout: 0.01 }), wrong(["the notifications are not live"]));
  await client.close();
  const broken = new NotifyClient("ws://h/ws", { token: () => { throw new Error("no session"); }, settings: { ...SETTINGS, backoff_floor: 5 }, WebSocket: failing(), eventStreams: false });
  const states = [];
  broken.on("state", ({ reason }) => states.push(reason));
  await assert.rejects(broken.start({ timeout: 0.05 }), wrong(["no token: no session"]));
  assert.equal(warn.mock.callCount(), 1, "who listens is told there");
  assert.ok(states.includes("no token: no session"));
  await broken.close();
});

test("the end is said in words", async () => {
  assert.match(new ClientClosed(4500, "").message, /^closed with 4500: the server does not accept the token/);
  assert.match(new ClientClosed(null, "no token").message, /^closed: the token function gave none.*signed out$/);
  assert.equal(new ClientClosed(4999, "why").message, "closed with 4999 (why)");
});

test("break and errors end a chat's subscription, and what was read last comes again", async () => {
  const saved = {};
  const [client, world] = await connected({ store: { load: () => null, save: (positions) => Object.assign(saved, positions) } });
  const chat = client.chat(7);
  await chat.ready();
  for (const text of "abc") world.message(7, text);
  for await (const { content } of chat) if (content === "b") break;
  assert.deepEqual(world.said.at(-1), { type: "unsubscribe", chat_id: 7 });
  assert.deepEqual([chat.state, await chat.next()], ["closed", { done: true, value: undefined }]);
  const other = client.chat(8);
  await other.ready();
  world.message(8, "a");
  await assert.rejects(async () => { for await (const _ of other) throw new Error("mine"); }, /mine/);
  assert.equal(other.state, "closed");
  world.say({ type: "notification", notification_id: 1, user_id: 5, kind: "k", data: 1, timestamp: 1, epoch: "e", seq: 4, prev: 3 });
  world.say({ type: "notification", notification_id: 2, user_id: 5, kind: "k", data: 2, timestamp: 1, epoch: "e", seq: 5, prev: 4 });
  for await (const { data } of client.notifications) if (data === 1) break;
  assert.equal((await client.notifications.next()).value.data, 2, "notifications go on");
  const disposed = client.chat(9);
  await disposed[Symbol.asyncDispose]();
  assert.equal(disposed.state, "closed");
  await client[Symbol.asyncDispose]();
  assert.deepEqual([client.state.state, saved["chat:7"], saved["chat:8"]], ["closed", { epoch: "e", seq: 1 }, { epoch: "e", seq: 0 }]);
});

test("losses go to the client where a stream names nobody", async () => {
  const losses = [], own = [];
  const [client, world] = await connected({ onLost: (loss) => losses.push(loss.chat_id) });
  const since = { epoch: "of old", seq: 3 };
  world.recovered = false;
  for (const chat of [client.chat(7, { since }), client.chat(8, { since, onLost: (loss) => own.push(loss.chat_id) })]) {
    await chat.ready();
    world.message(chat.key, "a");
    await take(chat, 1);
  }
  assert.deepEqual([losses, own], [[7], [8]]);
  assert.notEqual(client.notifications.onLost, null);
  await client.close();
});

test("a message whose ids are beyond 2^53 can be written as JSON, by ids that the client takes", async () => {
  const [client, world] = await connected();
  const id = 9007199254740993n, chat = client.chat(id);
  await chat.ready();
  world.message(id, "a");
  const { value } = await chat.next();
  assert.equal(value.chat_id, id);
  assert.deepEqual(JSON.parse(JSON.stringify({ value })).value.chat_id, String(id));
  assert.deepEqual({ ...value }, structuredClone(value));
  world.say({ type: "notification", notification_id: 1, user_id: 5, kind: "k", data: [{ chat: id }, null], timestamp: 1, epoch: "e", seq: 4, prev: 3 });
  const note = (await client.notifications.next()).value;
  assert.equal(note.data[0].chat, id);
  assert.deepEqual(JSON.parse(JSON.stringify(note)).data, [{ chat: String(id) }, null]);
  await client.close();
});

test("a chat's history is paged through in both directions", async () => {
  const world = Object.assign(new World(), { features: ["history"] });
  world.store(7, 10);
  const [client] = await connected({}, world);
  assert.deepEqual(await client.position(7), { epoch: "e", seq: 10 });
  const newest = await client.history(7, { limit: 2 });
  assert.deepEqual(newest.messages.map(({ content, position }) => [content, position.seq]), [["9", 9], ["10", 10]]);
  assert.deepEqual([newest.more, newest.position], [true, { epoch: "e", seq: 10 }]);
  assert.equal(newest.messages[0].type, undefined);
  const before = await client.history("7", { before: newest.messages[0].position });
  assert.deepEqual([before.messages.length, before.more, before.start], [8, false, { epoch: "e", seq: 1 }]);
  const after = await client.history(7, { after: { epoch: "e", seq: 3 }, limit: 2 });
  assert.deepEqual([after.messages.map(({ content }) => content), after.more], [["4", "5"], true]);
  const code = (wanted) => (error) => error instanceof Refused && error.code === wanted;
  await assert.rejects(client.history(7, { after: { epoch: "gone", seq: 3 } }), code("history_unavailable"));
  await assert.rejects(client.history(7, { limit: 101 }), RangeError);
  await assert.rejects(client.history(7, { after: newest.position, before: newest.position }), TypeError);
  await client.close();
  const [older] = await connected();
  await assert.rejects(older.history(7), code("unsupported"));
  await assert.rejects(older.position(7), code("unsupported"));
  await older.close();
});

test("a reader that is behind when the client ends reads what has come and is told", async () => {
  const [client, world] = await connected({ queue: 2 });
  const chat = client.chat(7);
  await chat.ready();
  for (const text of "ab") world.message(7, text);
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(chat.state, "paused");
  world.cut(4503);
  assert.deepEqual(await take(chat, 2), ["a", "b"]);
  assert.equal(chat.state, "closed");
  await assert.rejects(chat.next(), (error) => error instanceof ClientClosed && error.code === 4503);
  assert.equal(client.state.state, "closed");
});

test("a reader that keeps up is not paused, however much comes at once", async () => {
  const [client, world] = await connected({ queue: 2 });
  const chat = client.chat(7);
  await chat.ready();
  const reading = take(chat, 50);
  for (let number = 0; number < 50; number++) world.message(7, String(number));
  assert.equal((await reading).length, 50);
  await turn();
  assert.equal(chat.state, "live");
  assert.ok(!world.said.some((frame) => frame.type === "unsubscribe"));
  await client.close();
});

test("a loss throws in its place, or goes to onLost, and reading goes on behind it", async () => {
  const [client, world] = await connected();
  const since = { epoch: "old", seq: 1 }, losses = [];
  world.recovered = false;
  world.seqs.set(7, 4);
  const [strict, gentle] = [client.chat(7, { since }), client.chat(8, { since, onLost: async (loss) => losses.push(loss) })];
  await assert.rejects(strict.next(), (error) => error instanceof HistoryLost && error.loss.chat_id === 7);
  world.message(7, "a");
  world.message(8, "b");
  assert.deepEqual(await take(strict, 1), ["a"]);
  assert.deepEqual(await take(gentle, 1), ["b"]);
  assert.deepEqual(losses, [{ chat_id: 8, before: since, after: { epoch: "e", seq: 0 } }]);
  await client.close();
});

test("positions are stored once a message was handled, and used by the next client", async () => {
  const items = new Map();
  const storage = { getItem: (key) => items.get(key) ?? null, setItem: (key, value) => items.set(key, value) };
  const [client, world] = await connected({ store: new LocalStorageStore("user-5", storage, { session: storage }) });
  const chat = client.chat(7);
  await chat.ready();
  for (const text of "abc") world.message(7, text);
  assert.deepEqual(await take(chat, 2), ["a", "b"]);
  await client.close();
  assert.equal(items.get("user-5:chat:7"), '{"epoch":"e","seq":2}');
  const store = { load: async (key) => (key === "chat:7" ? { epoch: "e", seq: 2 } : null), save: async () => {} };
  const [next, other] = await connected({ store }, world);
  await next.chat(7).ready();
  assert.deepEqual(other.said.at(-1).since, { epoch: "e", seq: 2 });
  await next.close();
});

/** The parts of a browser's `Storage` (and below, of `navigator.locks`) that the client uses. */
function storage(items = new Map()) {
  return { items, getItem: (key) => items.get(key) ?? null, setItem: (key, value) => void items.set(key, value) };
}

class Locks {
  held = new Set();
  #waiting = [];

  async request(name, { ifAvailable = false, signal }, callback) {
    await null;
    if (this.held.has(name) && ifAvailable) return callback(null);
    while (this.held.has(name)) {
      await new Promise((resolve, reject) => {
        this.#waiting.push(resolve);
        signal.addEventListener("abort", () => reject(signal.reason));
      });
    }
    this.held.add(name);
    try {
      return await callback({ name });
    } finally {
      this.held.delete(name);
      for (const go of this.#waiting.splice(0)) go();
    }
  }
}

test("tabs have positions of their own, and one that opens goes on with the first that are free", async () => {
  const shared = storage(), locks = new Locks();
  const tab = (session = storage()) => new LocalStorageStore("u", shared, { locks, session });
  const place = (seq) => ({ epoch: "e", seq });
  const first = tab(), sessionOfSecond = storage(), second = tab(sessionOfSecond);
  assert.deepEqual([await first.load("chat:7"), await second.load("chat:7")], [null, null]);
  await first.save({ "chat:7": place(3) });
  await second.save({ "chat:7": place(9) });
  assert.equal(shared.items.get("u:chat:7"), JSON.stringify(place(3)));
  const awake = setInterval(() => {}, 1000); // Node does not wait for the signal's timer
  const copy = tab(storage(new Map(sessionOfSecond.items))); // the tab was duplicated
  assert.equal(await copy.load("chat:7"), null);
  await first.close();
  const waiting = tab(sessionOfSecond).load("chat:7"); // reloaded before the previous page is gone
  await second.close();
  assert.deepEqual(await waiting, place(9));
  const third = tab();
  assert.deepEqual(await third.load("chat:7"), place(3));
  await third.close();
  assert.deepEqual(await third.load("chat:7"), place(3)); // used again after its client was closed
  assert.equal(locks.held.size, 3);
  clearInterval(awake);
});

test("a client that is closed lets go of its slot, so that the next one in the page goes on", async () => {
  const shared = storage(), locks = new Locks(), session = storage(), world = new World();
  for (const text of "ab") {
    const [client] = await connected({ store: new LocalStorageStore("u", shared, { locks, session }) }, world);
    const chat = client.chat(7);
    await chat.ready();
    assert.equal(world.said.at(-1).since?.seq, text === "b" ? 1 : undefined);
    world.message(7, text);
    assert.deepEqual(await take(chat, 1), [text]);
    await client.close();
    await turn();
    assert.equal(locks.held.size, 0);
  }
});

test("without Web Locks positions are the tab's own, and it is told where there is no place for them", async (t) => {
  const warn = t.mock.method(console, "warn", () => {});
  const shared = storage(), session = storage();
  const store = new LocalStorageStore("u", shared, { locks: null, session });
  await store.save({ "chat:7": { epoch: "e", seq: 3 } });
  assert.equal(shared.items.size, 0);
  assert.deepEqual(await store.load("chat:7"), { epoch: "e", seq: 3 });
  assert.match(warn.mock.calls[0].arguments[0], /no Web Locks/);
  assert.throws(() => new LocalStorageStore("u", shared, { locks: null, session: null }), /mix their positions/);
});

test("a store that is broken or full is told, and costs no message", async () => {
  const broken = { load: () => ({ epoch: "e", seq: 0 }), save: () => { throw new Error("full"); } };
  const [client, world] = await connected({ store: broken });
  const errors = [];
  client.on("error", (error) => errors.push(error.message));
  const chat = client.chat(7);
  await chat.ready();
  world.message(7, "a");
  assert.deepEqual(await take(chat, 1), ["a"]);
  await client.close();
  assert.deepEqual(errors, ["full"]);
  const storage = { getItem: () => "{not JSON" };
  assert.equal(await new LocalStorageStore("x", storage, { session: storage }).load("chat:7"), null);
});

test("the token callback is asked again on 4002, and may sign out", async () => {
  const tokens = [() => "T1", async () => { throw new Error("away"); }, async () => ({ value: "T2", expiresAt: 4e9 }), () => null];
  const [client, world] = await connected({ token: () => tokens.shift()() });
  const again = state(client, "connected");
  world.cut(4002);
  await again;
  assert.deepEqual(world.said.map((frame) => frame.token), ["T1", "T2"]);
  const chat = client.chat(7);
  world.cut(4002);
  await assert.rejects(chat.next(), (error) => error instanceof ClientClosed && error.code === null);
});

test("what is no token is a failed try in words, and so is a function that does not answer", async () => {
  for (const wrong of [17, {}, { token: "T" }, { value: 17 }]) {
    const tokens = [wrong, "T"], world = new World(), said = [];
    const client = new NotifyClient("ws://h/ws", { token: () => tokens.shift(), settings: SETTINGS, WebSocket: world.WebSocket });
    client.on("state", ({ state, reason }) => state === "waiting" && said.push(reason));
    await client.start();
    assert.deepEqual(said, ["no token: a token is text, { value, expiresAt } or null"]);
    await client.close();
  }
  const hangs = new NotifyClient("ws://h/ws", { token: () => new Promise(() => {}), WebSocket: class {} });
  await assert.rejects(hangs.start({ timeout: 0.05 }), { message: "not connected within 0.05 s: the client is connecting, the token function has not answered" });
  await hangs.close();
});

test("a command says why the client is closed", async () => {
  const tokens = ["T", new Promise(() => {})];
  const [client, world] = await connected({ token: () => tokens.shift() });
  const refreshed = client.refresh();
  world.cut(4503);
  for (const failed of [refreshed, client.ping()]) {
    await assert.rejects(failed, { code: "closed", message: "closed: closed with 4503: an operator has disconnected this user" });
  }
  const idle = new NotifyClient("ws://h/ws", { token: "T", WebSocket: class {} });
  await assert.rejects(idle.ping(), { code: "closed", message: "closed: the client has not been started" });
});

test("the operator's disconnect ends it, and so does a refusal its subscription", async () => {
  const [client, world] = await connected();
  await assert.rejects(client.chat(-1).ready(), (error) => error instanceof Refused && error.code === "forbidden");
  const chat = client.chat(7);
  await chat.ready();
  world.cut(4503, "bye");
  await assert.rejects(chat.next(), (error) => error.code === 4503 && error.reason === "bye");
  await assert.rejects(client.ping(), (error) => error.code === "closed");
  await assert.rejects(client.start());
});

test("a chat of a client that has ended has ended, too", async () => {
  const store = { load: () => assert.fail("the store was let go of"), save: () => {} };
  for (const code of [1000, 4503]) {
    const [client, world] = await connected();
    if (code === 4503) world.cut(code, "bye");
    else await client.close();
    const chat = client.chat(7);
    if (code === 4503) await assert.rejects(chat.next(), (error) => error instanceof ClientClosed && error.code === code);
    else assert.deepEqual(await chat.next(), { done: true, value: undefined });
    await assert.rejects(chat.ready(), ClientClosed);
    chat.close();
  }
  const client = new NotifyClient("ws://h/ws", { token: "T", store, WebSocket: class {} });
  await client.close();
  assert.equal(client.chat(7).state, "closed");
});

test("presence and ping", async () => {
  const [client, world] = await connected(), seen = [];
  client.on("presence", (presence) => seen.push(presence));
  await client.chat(7, { watchPresence: true }).ready();
  world.say({ type: "presence", chat_id: 7, users: [] });
  assert.deepEqual(seen, [{ chat_id: 7, users: [] }]);
  assert.deepEqual(await client.presence(7), [{ user_id: 5, connections: 1 }]);
  assert.ok((await client.ping()) >= 0);
  await client.close();
});

test("signals", async () => {
  const world = new World();
  world.features = ["signals"];
  const [client] = await connected({ settings: { ...SETTINGS, features: ["signals"] } }, world), seen = [];
  client.on("signal", (signal) => seen.push(signal));
  const chat = client.chat(7);
  assert.equal(client.signal(8, "typing"), false);
  await chat.ready();
  world.say({ type: "signal", chat_id: 7, user_id: "u-6", kind: "typing", data: { on: true } });
  assert.deepEqual(seen, [{ chat_id: 7, user_id: "u-6", kind: "typing", data: { on: true } }]);
  assert.equal(client.signal("7", "typing", [1]), true);
  await client.ping();
  const said = world.said.filter(({ type }) => type === "signal");
  assert.deepEqual(said, [{ type: "signal", chat_id: 7, kind: "typing", data: [1] }]);
  await client.close();
});

test("a signal that no server would take is refused before it is sent", async () => {
  const world = new World();
  world.features = ["signals"];
  const [client] = await connected({ settings: { ...SETTINGS, features: ["signals"] } }, world);
  await client.chat(7).ready();
  const half = "cut in an emoji: \ud83d", cyclic = {};
  cyclic.self = cyclic;
  for (const data of [half, [{ text: half }], { [half]: 1 }, () => 1, cyclic]) {
    assert.throws(() => client.signal(7, "typing", data), TypeError);
  }
  for (const kind of ["", "k".repeat(65), half, 7]) assert.throws(() => client.signal(7, kind), TypeError);
  const good = ["whole: \u{1f600}", "\\ud83d", { id: 2n ** 60n }, null];
  for (const data of good) assert.equal(client.signal(7, "\u{1f600}".repeat(64), data), true);
  assert.deepEqual(world.said.filter(({ type }) => type === "signal").map(({ data }) => data), good);
  await client.close();
});

test("signals must be asked for", async () => {
  const [client] = await connected();
  assert.throws(() => client.signal(7, "typing"), TypeError);
  await client.close();
});

test("a chat that is closed ends, and can be had again", async () => {
  const [client, world] = await connected();
  const chat = client.chat(7);
  await chat.ready();
  chat.close();
  assert.equal(world.said.at(-1).type, "unsubscribe");
  assert.equal((await chat.next()).done, true);
  await client.chat(7).ready();
  await client.close();
});

test("each stream of a chat gets every message, and the slowest is stored and sets the pace", async () => {
  const saved = {};
  const store = { load: async () => null, save: (positions) => Object.assign(saved, positions) };
  const [client, world] = await connected({ queue: 4, store });
  const first = client.chat(7), early = client.chat(7); // before the store answers
  await Promise.all([first.ready(), early.ready()]);
  world.message(7, "1");
  assert.deepEqual([await take(first, 1), await take(early, 1)], [["1"], ["1"]]);
  early.close();
  const places = [], loading = client.chat(7, { load: (place) => places.push(place) }), second = client.chat(7);
  assert.throws(() => client.chat(7, { since: { epoch: "e", seq: 1 } }), /subscribed to already/);
  assert.throws(() => client.chat(7, { watchPresence: true }), /subscribed to already/);
  world.message(7, "2");
  assert.deepEqual([await take(loading, 1), places], [["2"], [{ epoch: "e", seq: 1 }]]);
  for (const text of "3456") world.message(7, text);
  const [a, b] = [await take(loading, 2), await take(first, 4)];
  assert.deepEqual([a, b], [["3", "4"], ["2", "3", "4", "5"]]);
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual([first.state, second.waiting], ["paused", 5]);
  loading.close();
  assert.equal(first.state, "paused");
  const joined = client.chat(7);
  assert.equal(joined.state, "paused");
  assert.deepEqual(await take(second, 3), ["2", "3", "4"]);
  await second.ready();
  assert.equal(first.state, "live");
  world.message(7, "7");
  assert.deepEqual([await take(first, 2), await take(joined, 1), await take(second, 3)], [["6", "7"], ["7"], ["5", "6", "7"]]);
  first.close();
  joined.close();
  assert.notEqual(world.said.at(-1).type, "unsubscribe");
  await client.close();
  assert.deepEqual(saved["chat:7"], { epoch: "e", seq: 7 });
  const [other] = await connected();
  const refused = [other.chat(-1), other.chat(-1)];
  for (const chat of refused) await assert.rejects(chat.next(), Refused);
  await other.close();
});

test("two readers of one stream are refused", async () => {
  const [client] = await connected();
  const chat = client.chat(7);
  const first = chat.next();
  await turn();
  await assert.rejects(chat.next());
  await client.close();
  await first;
});

test("a second reader is refused while the first one's state loads, and nothing is passed over", async () => {
  const [client, world] = await connected();
  const chat = client.chat(7, {
    load: async () => {
      for (const text of "ab") world.message(7, text);
      await assert.rejects(chat.next(), /has a reader already/);
    },
  });
  assert.deepEqual(await take(chat, 2), ["a", "b"]);
  await client.close();
});

test("a socket that cannot even be made is a try that failed", async () => {
  const world = new World();
  let failures = 2;
  class Flaky extends world.WebSocket {
    constructor(...args) {
      if (failures-- > 0) throw new Error("no network");
      super(...args);
    }
  }
  const [client] = await connected({ WebSocket: Flaky }, world);
  assert.equal(world.sockets.length, 1);
  await client.close();
});

test("integers beyond 2^53 are kept exactly, and everything else as it is", () => {
  const text = '{"a":9007199254740993,"b":-9223372036854775808,"c":"9007199254740993 \\" 9007199254740993","d":1.2345678901234567,"e":9007199254740991,"f":[1e300,12345678901234567890]}';
  const value = decode(text);
  assert.equal(value.a, 9007199254740993n);
  assert.equal(value.b, -9223372036854775808n);
  assert.equal(value.c, '9007199254740993 " 9007199254740993');
  assert.equal(value.d, 1.2345678901234567);
  assert.equal(value.e, 9007199254740991);
  assert.deepEqual(value.f, [1e300, 12345678901234567890n]);
  assert.equal(encode({ chat_id: 9007199254740993n, text: '9007199254740993"' }), '{"chat_id":9007199254740993,"text":"9007199254740993\\""}');
});

test("chats of such ids are subscribed to by BigInt or text, and nothing else is taken for an id", async () => {
  const [client, world] = await connected();
  const chat = client.chat("9007199254740993");
  await chat.ready();
  assert.equal(world.said.at(-1).chat_id, 9007199254740993n);
  world.message(9007199254740993n, "a");
  assert.deepEqual(await take(chat, 1), ["a"]);
  for (const id of [1.5, "007", "-0", "+5", "a b", "é", "", "9".repeat(20), "x".repeat(65), 2 ** 60, 2n ** 64n, null]) assert.throws(() => client.chat(id), TypeError);
  await client.close();
});

test("a chat's id may be text, and its events come in their places", async () => {
  const [client, world] = await connected({ settings: { ...SETTINGS, features: ["events"] } });
  const seen = [];
  const chat = client.chat("01JD9Z5V8M", { onEvent: async (event) => void seen.push(`${event.kind} ${event.refers_to}`) });
  await chat.ready();
  world.message("01JD9Z5V8M", "a");
  world.event("01JD9Z5V8M", "edited", "m-1");
  world.message("01JD9Z5V8M", "b");
  assert.deepEqual(await take(chat, 2), ["a", "b"]);
  assert.deepEqual(seen, ["edited m-1"]);
  assert.throws(() => new NotifyClient("ws://h/ws", { token: "T", WebSocket: class {} }).chat(7, { onEvent() {} }), /events/);
  await client.close();
});

test("what is missing is said at once", () => {
  assert.throws(() => new NotifyClient("ws://h/ws", { WebSocket: class {} }), /token/);
  if (globalThis.WebSocket === undefined) assert.throws(() => new NotifyClient("ws://h/ws", { token: "T" }), /WebSocket/);
});

test("a page that comes back, or its network, ends the wait at once", async () => {
  const events = new Map();
  const fake = { addEventListener: (name, f) => events.set(name, f), removeEventListener: (name) => events.delete(name) };
  const before = { add: globalThis.addEventListener, remove: globalThis.removeEventListener, document: globalThis.document };
  Object.assign(globalThis, { ...fake, document: { ...fake, visibilityState: "visible" } });
  try {
    for (const name of ["online", "visibilitychange"]) {
      const slow = { backoff_floor: 60, backoff_base: 60, backoff_cap: 60 };
      const [client, world] = await connected({ settings: slow });
      world.cut();
      assert.equal(client.state.state, "waiting");
      const again = state(client, "connected");
      events.get(name)();
      await again;
      await client.close();
      assert.equal(events.size, 0);
    }
  } finally {
    globalThis.addEventListener = before.add;
    globalThis.removeEventListener = before.remove;
    globalThis.document = before.document;
  }
});

test("a frame that breaks the machine costs the connection, not the client", async () => {
  const [client, world] = await connected();
  const errors = [];
  client.on("error", (error) => errors.push(error));
  const again = state(client, "connected");
  world.say({ type: "error", code: { toString: null } });
  await again;
  assert.equal(errors.length, 1);
  assert.deepEqual(world.sockets[0].closed, [3001, "malformed frame"]);
  await client.close();
});
