// @ts-check
/**
 * The page of the example: what the backend has of a chat, and what comes through notify after that.
 *
 * Whatever is said or changed goes to the backend, and comes back to every page through notify; so this page works on while notify is
 * away, and shows the rest later. Each message is shown once, by its id, in the order of ids.
 *
 * @typedef {import("./show.js").Message} Message
 */

import { NotifyClient } from "/client/notify-client.js";
import { api, eventually, pause } from "./backend.js";
import { $, draw, drawChats, drawMembers, face, place } from "./show.js";

const TYPING_EVERY = 3000, TYPING_STAYS = 5000, READ_AFTER = 300; // milliseconds

let me = null; // the user: { id, name }
/** @type {NotifyClient} */ let client = null;
let chats = []; // as the backend lists them
let room = null; // the chat that is shown
let editing = null; // the id of the message whose text is in the composer

// --- who is there

// All windows of a browser have one session: what one does to it, the others have to know.
const windows = new BroadcastChannel("session");
windows.onmessage = () => location.reload();

async function begin() {
  const session = await eventually("GET", "session");
  if (session.user === null) {
    $("sign-in").hidden = false;
    return $("name").focus();
  }
  me = session.user;
  $("sign-in").hidden = true;
  $("app").hidden = false;
  $("my-name").textContent = me.name;
  face($("my-avatar"), me.id, me.name);
  client = new NotifyClient(session.notify_url, { token: fetchToken, settings: { features: ["events", "signals"] } });
  client.on("state", showState);
  client.on("presence", ({ chat_id, users }) => {
    if (room?.id !== chat_id) return;
    room.present = new Set(users.map(({ user_id }) => user_id));
    showMembers();
  });
  client.on("signal", ({ chat_id, user_id, kind }) => chat_id === room?.id && kind === "typing" && types(user_id));
  await loadChats(); // also where notify is away
  client.start().catch(() => {}); // the state says it
  listen().catch(() => {}); // so does it when it ends
  const last = Number(location.hash.slice(1));
  if (chats.some(({ id }) => id === last)) openChat(last);
}

/** A token for the client; null: signed out, perhaps in another window. An error: it asks again. */
async function fetchToken() {
  try {
    return await api("GET", "token");
  } catch (error) {
    if (error.status !== 401) throw error;
    location.reload();
    return null;
  }
}

function showState({ state, delay, code, reason }) {
  const words = {
    connected: "Connected",
    waiting: `Offline, next try in ${Math.ceil(delay)} s`,
    closed: code === null ? "Signed out" : "Disconnected: reload the page",
  };
  $("state").textContent = $("offline").textContent = words[state] ?? "Connecting…";
  $("state").title = reason ?? "";
  $("app").dataset.state = state;
}

$("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await api("POST", "session", { name: $("name").value });
  } catch (error) {
    return void (document.querySelector("#sign-in .wrong").textContent = error.message);
  }
  windows.postMessage("signed in");
  begin();
});

$("sign-out").addEventListener("click", () => attempt(async () => {
  await api("DELETE", "session");
  await client.close();
  windows.postMessage("signed out");
  location.reload();
}));

// --- the list of chats

async function loadChats() {
  chats = await eventually("GET", "chats");
  if (room && !chats.some(({ id }) => id === room.id)) shut(`You are not in “${$("title").textContent}” any more.`);
  showChats();
}

/** What the user is told, in whichever chat. First of all, and wherever something of it is lost, the list is loaded. */
async function listen() {
  client.notifications.load = loadChats;
  for await (const { kind, data } of client.notifications) {
    const about = /** @type {{chat_id: number, unread: number}} */ (data), chat = chats.find(({ id }) => id === about.chat_id);
    if (kind === "unread" && chat) {
      chat.unread = about.unread;
      showChats();
    } else if (kind === "chats") await loadChats();
  }
}

function showChats() {
  const seen = document.hidden ? null : room?.id; // what comes there is read at once
  drawChats(chats, me, room?.id, seen, openChat);
  const unread = chats.reduce((sum, chat) => sum + (chat.id === seen ? 0 : chat.unread), 0);
  document.title = unread ? `(${unread}) Chat` : "Chat";
}

// --- one chat

/** Show a chat, until another is shown. */
async function openChat(id) {
  shut("Loading…");
  const mine = { id, stream: null, owner: 0, newest: 0, read: 0, reading: null, members: [],
    names: new Map(), present: new Set(), typing: new Map(), items: new Map(), fetching: null };
  room = mine;
  history.replaceState(null, "", `#${id}`);
  showChats();
  const load = async () => {
    const state = await eventually("GET", `chats/${id}`);
    if (room === mine) showChat(state);
    return state;
  };
  while (room === mine) {
    try {
      const { position } = await load();
      if (room !== mine) return;
      // On from where the state is; where the backend could not be told that, the client finds a place, and has it loaded again.
      const from = position ? { since: position, onLost: load } : { load };
      mine.stream = client.chat(id, { ...from, onEvent: (event) => room === mine && happened(event), watchPresence: true });
      for await (const message of mine.stream) {
        put(message);
        stopTyping(message.sender_id);
      }
      return; // closed
    } catch (error) {
      if (room !== mine || client.state.state === "closed") return;
      if (error.status === 404) return shut(`You are not in “${$("title").textContent}” any more.`);
      mine.stream?.close(); // where a loss could not be loaded it is there, and would be in the way of the next
      await pause(); // notify does not let us in: does the backend, still?
    }
  }
}

function shut(words = "Choose a chat.") {
  room?.stream?.close();
  room = null;
  stopEditing();
  $("messages").replaceChildren();
  $("notice").textContent = $("typing").textContent = "";
  $("chat").hidden = true;
  $("people").open = false;
  $("nothing").textContent = words;
  $("app").dataset.view = "list";
  showChats();
}

/** All of it, as the backend has it. What is being sent stays. */
function showChat(state) {
  $("chat").hidden = false;
  $("app").dataset.view = "chat";
  $("title").textContent = state.title;
  room.owner = state.owner_id;
  room.names = new Map([...state.senders, ...state.members].map(({ id, name }) => [id, name]));
  room.members = state.members;
  showMembers();
  const kept = [...room.items].filter(([, { message }]) => message.pending);
  room.items = new Map(kept);
  $("messages").replaceChildren(...kept.map(([, { item }]) => item));
  for (const message of state.messages) put(message);
  $("earlier").hidden = !state.more;
  $("log").scrollTop = $("log").scrollHeight;
}

function showMembers() {
  const { id: chat, owner, members, present } = room;
  const remove = me.id === owner && ((id) => attempt(() => api("DELETE", `chats/${chat}/members/${id}`)));
  drawMembers(members, present, me, remove);
}

/** Show a message, or how it is now, unless that is known already. @param {Message} message */
function put(message) {
  const log = $("log"), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  const key = message.message_id, known = room.items.get(key);
  if (known?.message.edited > (message.edited ?? 0)) return; // it has been edited since
  const item = known?.item ?? place(message.pending ? Infinity : key);
  room.items.set(key, { item, message });
  draw(item, message, room.names.get(message.sender_id) ?? "Somebody", message.sender_id === me.id);
  for (const one of [item, item.nextElementSibling]) {
    one?.classList.toggle("follows", one.previousElementSibling?.dataset.sender === one.dataset.sender);
  }
  if (atEnd) log.scrollTop = log.scrollHeight;
  if (!message.pending) room.newest = Math.max(room.newest, key);
  read();
}

/** What happened beside the messages. @param {any} event */
function happened({ kind, data, refers_to }) {
  if (kind === "members") {
    room.members = data.members;
    for (const { id, name } of data.members) room.names.set(id, name);
    return showMembers();
  }
  if (room.items.has(refers_to)) put(data); // "edited", "deleted"
  else room.fetching?.push(data); // it is further up than what is shown: perhaps in what comes, as it was before
}

/** What is shown is read, where somebody looks. */
function read() {
  if (document.hidden || !room || room.newest <= room.read) return;
  const mine = room;
  mine.read = mine.newest;
  mine.reading ??= setTimeout(() => {
    mine.reading = null;
    eventually("PUT", `chats/${mine.id}/read`, { to: mine.read }).catch(() => {}); // not in it any more
  }, READ_AFTER);
}
document.addEventListener("visibilitychange", () => (read(), showChats()));

async function earlier() {
  const mine = room, log = $("log"), [first] = $("messages").children;
  if (!first || mine.fetching || $("earlier").hidden) return;
  const changed = mine.fetching = [];
  const page = await eventually("GET", `chats/${mine.id}/messages?before=${first.dataset.id}`).catch(() => null);
  mine.fetching = null;
  if (room !== mine || page === null) return;
  const below = log.scrollHeight - log.scrollTop;
  for (const message of page.messages) put(message);
  for (const message of changed) if (mine.items.has(message.message_id)) put(message);
  $("earlier").hidden = !page.more;
  log.scrollTop = log.scrollHeight - below;
  watch.unobserve($("earlier"));
  watch.observe($("earlier")); // still in sight: on
}
const watch = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && earlier(), { root: $("log") });
watch.observe($("earlier"));
$("earlier").addEventListener("click", earlier);

// --- typing: told now and then while it is so, and grows old by itself

let told = -Infinity;
$("text").addEventListener("input", () => {
  if (editing === null && performance.now() - told > TYPING_EVERY && client.signal(room.id, "typing", true)) told = performance.now();
});

function types(user) {
  const mine = room;
  clearTimeout(mine.typing.get(user));
  mine.typing.set(user, setTimeout(() => mine === room && stopTyping(user), TYPING_STAYS));
  showTyping();
}

function stopTyping(user) {
  clearTimeout(room.typing.get(user));
  if (room.typing.delete(user)) showTyping();
}

function showTyping() {
  const names = [...room.typing.keys()].map((id) => room.names.get(id) ?? "Somebody");
  $("typing").textContent = names.length ? `${names.join(" and ")} ${names.length > 1 ? "are" : "is"} typing…` : "";
}

// --- what the user does

/** Do it, and say so where the backend does not. */
async function attempt(what) {
  $("notice").textContent = "";
  try {
    return await what();
  } catch (error) {
    $("notice").textContent = error.status ? error.message : "The server does not answer: try again.";
  }
}

let sending = Promise.resolve(); // one after the other, so that they stay in order
function send(text) {
  const mine = room, key = crypto.randomUUID();
  put({ message_id: /** @type any */ (key), sender_id: me.id, content: text, timestamp: Date.now() / 1000, pending: true });
  $("log").scrollTop = $("log").scrollHeight;
  sending = sending.then(() => attempt(async () => {
    try {
      // However often it is tried: under one key it is one message.
      const message = await eventually("POST", `chats/${mine.id}/messages`, { key, text });
      if (room === mine) put(message);
    } finally {
      mine.items.get(key)?.item.remove();
      mine.items.delete(key);
    }
  }));
}

/** Edit or delete a message. A text that could not be saved is in the composer again, unless there is another. */
function change(method, id, body = undefined) {
  const mine = room;
  attempt(async () => {
    try {
      const message = await api(method, `chats/${mine.id}/messages/${id}`, body);
      if (room === mine) put(message);
    } catch (error) {
      if (body && room === mine && $("text").value === "") startEditing(id, body.text);
      throw error;
    }
  });
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim(), id = editing;
  if (!text) return;
  if (id === null) send(text);
  else change("PUT", id, { text });
  stopEditing();
  told = -Infinity;
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  } else if (event.key === "Escape" && editing !== null) stopEditing();
});
$("stop-editing").addEventListener("click", stopEditing);

function startEditing(id, text) {
  editing = id;
  $("text").value = text;
  $("send").textContent = "Save";
  $("stop-editing").hidden = false;
  $("text").focus();
}

function stopEditing() {
  editing = null;
  $("text").value = "";
  $("send").textContent = "Send";
  $("stop-editing").hidden = true;
}

$("messages").addEventListener("click", ({ target }) => {
  const id = Number(target.closest("li")?.dataset.id);
  if (target.matches(".delete")) change("DELETE", id);
  if (target.matches(".edit")) startEditing(id, room.items.get(id).message.content);
});

$("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const { name } = event.target.elements;
  attempt(async () => {
    await api("POST", `chats/${room.id}/members`, { name: name.value });
    name.value = "";
  });
});
$("leave").addEventListener("click", () => attempt(() => api("DELETE", `chats/${room.id}/members/${me.id}`)));
$("back").addEventListener("click", () => shut());

begin();
