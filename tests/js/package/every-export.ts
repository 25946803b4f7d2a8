// Uses every export of the package correctly, and incorrectly where an error is expected.
import {
  ClientClosed, DEFAULTS, HistoryLost, LocalStorageStore, Machine, NotifyClient, Refused, Stream, TimedOut, decode, encode,
} from "notify-client";
import { type ShownChat, useChat, useConnection, useTyping } from "notify-client/react";

import type {
  Action, ChatEvent, ChatMessage, ChatOptions, Frame, Id, Loss, Notification, Options, Page, Position, Presence, Settings, Signal, State, StorageLike, Store,
  Token,
} from "notify-client";

const position: Position = { epoch: "e", seq: 1 };
const ids: Id[] = [7, 9007199254740993n, "01JD9Z5V8M2Q4W6X7Y8Z9A0B1C"];
const memory = new Map<string, string>();
const storage: StorageLike = {
  getItem: (key) => memory.get(key) ?? null,
  setItem: (key, value) => void memory.set(key, value),
};
const local = new LocalStorageStore("user-1", storage, { session: storage });
const store: Store = {
  load: async (key) => local.load(key),
  save: (positions) => local.save(positions),
  close: () => local.close(),
};
const settings: Partial<Settings> = { backoff_cap: DEFAULTS.backoff_cap / 2 };
const token: Token = { value: "T", expiresAt: 1.5 };
class Socket {
  constructor(readonly url: string, readonly protocols: string[]) {}
}
const options: Options = { token: async () => token, store, settings, queue: 10, WebSocket: Socket, random: () => 0.5, onLost: (loss) => void loss.after };

export async function main(): Promise<string[]> {
  const texts: string[] = [];
  const client = new NotifyClient("ws://h/ws", options);
  const off: () => void = client.on("state", (state: State) => texts.push(state.state, String(state.delay?.toFixed())));
  client.on("presence", ({ chat_id, users }) => texts.push(`${chat_id} ${users.length}`));
  client.on("error", (error) => texts.push(error.message));
  client.on("action", (action: Action) => {
    if (action.do === "close") texts.push(action.code.toFixed(), action.reason);
    if (action.do === "subscription" && action.position !== undefined) texts.push(action.position.epoch);
  });
  await client.start({ timeout: 10 });
  const lost = (loss: Loss): void => void texts.push(`${loss.chat_id} ${loss.before.seq} ${loss.after.seq}`);
  const happened = (event: ChatEvent): void => void texts.push(event.kind, `${event.refers_to}`);
  const more: ChatOptions = { since: position, watchPresence: true, onLost: lost, onEvent: happened };
  const loading: ChatOptions = { load: async (place: Position) => void texts.push(place.epoch) };
  client.chat(8, loading).close();
  const chat: Stream<ChatMessage> = client.chat(ids[1] ?? "9007199254740993", more);
  await chat.ready({ timeout: 1.5 });
  try {
    for await (const message of chat) texts.push(message.content, message.position.seq.toFixed());
    const next: IteratorResult<Notification, undefined> = await client.notifications.next();
    if (!next.done) texts.push(next.value.kind);
  } catch (error) {
    if (error instanceof ClientClosed) texts.push(`${error.code} ${error.reason}`);
    else if (error instanceof HistoryLost) lost(error.loss);
    else if (error instanceof Refused) texts.push(error.code);
    else if (error instanceof TimedOut) texts.push(error.message);
  }
  const users: Presence[] = await client.presence(7);
  const sent: boolean = client.signal(7, "typing", { on: true });
  client.on("signal", ({ chat_id, user_id, kind, data }: Signal) => [chat_id, user_id, kind, data, sent]);
  texts.push(`${chat.state} ${chat.waiting} ${chat.position?.seq} ${users[0]?.connections} ${await client.ping()}`);
  const page: Page = await client.history(7, { before: await client.position(7), limit: 10 });
  texts.push(`${page.more} ${page.messages[0]?.position.seq} ${page.position?.seq}`);
  // @ts-expect-error: a position, not a number
  void client.history(7, { after: 3 });
  chat.handled();
  chat.close();
  await client.refresh();
  client.online();
  client.cut();
  off();
  await client.close();
  return texts;
}

export function front(): string {
  const machine = new Machine(settings, () => 0.5, () => 1000);
  const ping: Frame = { type: "ping" };
  machine.topics.notifications.position = position;
  machine.start(0);
  machine.token(1, "T", 0, 1060);
  machine.token_failed(1, "away", 0);
  machine.opened(0);
  machine.received(decode('{"type": "pong"}'), 0);
  machine.subscribe(7, 0, position, true);
  machine.pause(null, 0);
  machine.resume(null, 0);
  machine.unsubscribe(7, 0);
  machine.request(1, ping, 0);
  machine.online(0);
  machine.closed(1006, "", 0);
  const due: number | null = machine.deadline();
  if (due !== null) machine.tick(due);
  machine.stop(machine.settings.ping_interval);
  return encode(machine.actions.map((action) => action.do)) + machine.state;
}

export function wrong(client: NotifyClient, machine: Machine, stream: Stream<ChatMessage>): unknown[] {
  // @ts-expect-error a token is needed
  const without = new NotifyClient("ws://h/ws", {});
  // @ts-expect-error no such setting
  const setting = new NotifyClient("ws://h/ws", { token: "T", settings: { patience: 1 } });
  // @ts-expect-error no such event
  client.on("message", () => {});
  // @ts-expect-error an id is no object
  client.chat({});
  // @ts-expect-error the client sets it
  client.state = { state: "closed" };
  // @ts-expect-error streams come from a client
  const own = new Stream();
  // @ts-expect-error chats have no kind
  void stream.next().then((result) => !result.done && result.value.kind);
  // @ts-expect-error `now` is missing
  machine.tick();
  // @ts-expect-error DEFAULTS are frozen
  DEFAULTS.window = 1;
  // @ts-expect-error a position has a seq
  const half: Position = { epoch: "e" };
  return [without, setting, own, half];
}

/** Uses the hooks as a React component does. */
export function component(client: NotifyClient, texts: string[]): void {
  const shown: ShownChat<{ message_id: number; text: string }> = useChat(client, 7, {
    load: async (position) => [{ message_id: position.seq, text: "a" }],
    onEvent: (event, change) => change((all) => all.filter((one) => one.message_id !== event.refers_to)),
    most: 10,
  });
  const [users, typed] = useTyping(client, 7, { every: 1000 });
  typed();
  texts.push(`${shown.ready} ${shown.error?.message} ${shown.messages.length} ${users.length} ${useConnection(client).state}`);
  // @ts-expect-error: a message has an id
  useChat(client, 7, { load: () => [{ text: "a" }] });
}
