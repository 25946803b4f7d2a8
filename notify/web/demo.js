/** The demo page: two clients side by side, and ways to make their life hard. */

import { NotifyClient } from "./client/notify-client.js";
import { Messages } from "./demo-messages.js";

const QUERY = new URLSearchParams(location.search);
const ASKED = QUERY.get("chat") || "1", CHAT = /^-?\d+$/.test(ASKED) ? Number(ASKED) : ASKED;
const IS_CHAT = typeof CHAT === "string" ? /^[A-Za-z0-9_-]{1,64}$/.test(CHAT) : Number.isSafeInteger(CHAT) && String(CHAT) === ASKED;
const TOKEN_SECONDS = 15;
const READER_QUEUE = 10;
const TYPING_EVERY = 3000, TYPING_STAYS = 5000; // milliseconds: said anew, and believed without being said anew
const PEOPLE = { 1: "Ada", 2: "Grace" };
const PHRASES = [
  "Did you see the launch?", "All green here.", "Sending you the numbers now.", "Back in five.",
  "That was quick!", "Let us try it with the cable pulled.", "Still there?", "Every message, in order.",
  "I was in a tunnel just now.", "And yet nothing is missing.", "Lunch at noon?", "Count me in.",
];

const sent = new Map(); // message_id -> when it was published, for messages of this page
const socketUrl = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`;
const now = () => performance.now();
const seconds = (ms) => (ms < 9950 ? (ms / 1000).toFixed(1) : Math.round(ms / 1000).toString());
const millis = (ms) => (ms < 9.95 ? ms.toFixed(1) : Math.round(ms).toString());

function complain(text) {
  const banner = document.getElementById("banner");
  banner.textContent = text;
  banner.hidden = false;
}

async function ask(path, options) {
  const response = await fetch(path, { ...options, cache: "no-store" });
  if (response.status === 404) complain("This page talks to a server that runs as `twistd notify --dev`.");
  if (!response.ok) throw new Error(`${path} answered ${response.status}`);
  return response.json();
}

// One publish at a time, so that what is said first also comes first.
let publishing = Promise.resolve();
function publish(sender_id, content) {
  const message_id = Math.floor(Math.random() * Number.MAX_SAFE_INTEGER);
  post("/demo/publish", { sender_id, content, message_id }, () => sent.set(message_id, now()));
}

/** Edit a message, or with null delete it. */
function change(sender_id, refers_to, content) {
  post("/demo/change", { sender_id, refers_to, content });
}

function post(path, what, begun = () => {}) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ chat_id: CHAT, ...what }) };
  publishing = publishing.then(() => {
    begun();
    return ask(path, options);
  }).catch((error) => panels.forEach((panel) => panel.note(`Not published: ${error.message}`, "bad")));
}

class Panel {
  user; element; client; chat;
  fields = {};
  lost = null; // what to say of a loss once the chat was loaded anew
  counts = { resumes: 0, caught: 0, gaps: 0, losses: 0 };
  latencies = [];
  expiresAt = null; tokenSeconds = TOKEN_SECONDS; withhold = false;
  paused = null; heldUntil = 0; // a promise that ends the pause, and when the last one ended
  leftAt = null; liveAt = 0; backAt = null; resumed = null;
  changing = null; typedAt = -Infinity; // the message_id that is edited; when it was last said that this user types
  typists = new Map(); // who types -> the timer that ends it

  constructor(user) {
    this.user = user;
    this.element = document.getElementById("panel").content.firstElementChild.cloneNode(true);
    this.element.dataset.user = user;
    this.element.classList.add(`u${user}`);
    for (const field of this.element.querySelectorAll("[data-field]")) this.fields[field.dataset.field] = field;
    this.fields.initial.textContent = PEOPLE[user][0];
    this.fields.initial.classList.add(`u${user}`);
    this.fields.name.append(PEOPLE[user], Object.assign(document.createElement("small"), { textContent: `user ${user}` }));
    this.messages = new Messages(
      this.fields.messages, user, (options) => this.client.history(CHAT, options), (message, text) => this.edit(message, text),
    );
    this.text = this.fields.composer.elements.text;
    this.text.addEventListener("input", () => this.typed());
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.edit(null);
      else if (event.key === "ArrowUp" && this.text.value === "") {
        event.preventDefault(); // or the cursor would go to the front of what is put there
        this.messages.pickLast();
      }
    });
    this.fields.composer.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = this.text.value.trim();
      if (text && this.changing === null) publish(user, text);
      else if (text) change(user, this.changing, text);
      this.edit(null);
    });
    for (const button of this.element.querySelectorAll("[data-action]")) {
      button.addEventListener("click", () => this[button.dataset.action](button));
    }
    document.getElementById("panels").append(this.element);
  }

  connect() {
    const settings = { features: ["events", "signals"] };
    this.client = new NotifyClient(socketUrl, { token: () => this.token(), settings, queue: READER_QUEUE });
    this.client.on("state", (state) => this.state(state));
    this.client.on("presence", ({ users }) => this.presence(users));
    this.client.on("signal", (signal) => this.signal(signal));
    this.client.on("action", (action) => this.action(action));
    this.chat = this.client.chat(CHAT, { watchPresence: true, load: () => this.load(), onEvent: (event) => this.event(event) });
    this.client.start().catch(() => {}); // the state says it
    this.read();
  }

  async token() {
    if (this.withhold) throw new Error("withheld, to let the present one expire");
    const { token, expires_at } = await ask(`/demo/token?user=${this.user}&ttl=${TOKEN_SECONDS}`);
    this.expiresAt = expires_at;
    return { value: token, expiresAt: expires_at };
  }

  async read() {
    const { chat } = this;
    while (chat.state !== "closed" && chat.state !== "refused") {
      try {
        for (let next = await chat.next(); !next.done; next = await chat.next()) {
          await this.paused?.promise;
          this.show(next.value);
        }
      } catch {
        // The end, which the state tells; a click on it begins anew. Or no history for now: it is asked for again.
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    }
  }

  /** The chat as it is: the newest page of its history. Called again wherever messages were lost. */
  async load() {
    try {
      await this.messages.load();
    } catch (error) {
      if (error.code !== "unsupported") throw error; // over an event stream there is none
    }
    if (this.lost !== null) this.note(this.lost, "bad");
    this.lost = null;
  }

  async event(event) {
    await this.paused?.promise;
    this.messages.change(event);
    if (this.changing === event.refers_to && event.kind === "deleted") this.edit(null);
    this.place(event.position);
  }

  // --- the composer

  /** Take one's own message into the composer; null, or the same one again: leave it. */
  edit(message, text = "") {
    this.changing = message === null || message.message_id === this.changing ? null : message.message_id;
    this.text.value = this.changing === null ? "" : text;
    this.fields.send.textContent = this.changing === null ? "Send" : "Save";
    this.fields.remove.hidden = this.changing === null;
    if (this.changing !== null) this.text.focus();
    this.typed();
  }

  remove() {
    change(this.user, this.changing, null);
    this.edit(null);
  }

  /** Say that this user types, now and then while that is so, and once that it is over. */
  typed() {
    const typing = this.text.value.trim() !== "";
    if (typing && now() - this.typedAt < TYPING_EVERY) return;
    if (!typing && this.typedAt === -Infinity) return;
    this.typedAt = this.client.signal(CHAT, "typing", typing) && typing ? now() : -Infinity;
  }

  signal({ chat_id, user_id, kind, data }) {
    if (chat_id === CHAT && kind === "typing") this.types(user_id, data !== false);
  }

  types(user, does) {
    clearTimeout(this.typists.get(user));
    this.typists.delete(user);
    if (does) this.typists.set(user, setTimeout(() => this.types(user, false), TYPING_STAYS));
    const names = [...this.typists.keys()].map((one) => PEOPLE[one] ?? `user ${one}`);
    this.fields.typing.textContent =
      names.length === 0 ? "" : names.length > 3 ? "Several people are typing…" : `${names.join(", ")} ${names.length > 1 ? "are" : "is"} typing…`;
  }

  // --- buttons

  cut() {
    if (this.client.state.state === "closed") return this.connect();
    this.note("Connection cut");
    this.client.cut();
  }

  expire(button) {
    this.withhold = true;
    button.disabled = true;
    this.note("No new token until this one has expired");
  }

  pause(button) {
    if (this.paused === null) {
      let resume;
      const promise = new Promise((resolve) => (resume = resolve));
      this.paused = { promise, resume };
      this.note("Reader paused");
    } else {
      this.paused.resume();
      this.heldUntil = now();
      this.paused = null;
      this.note("Reader goes on");
    }
    button.setAttribute("aria-pressed", String(this.paused !== null));
    button.textContent = this.paused ? "Resume reader" : "Pause reader";
    this.refresh();
  }

  // --- what the client tells

  state({ state, delay, code, reason }) {
    this.backAt = state === "waiting" ? now() + delay * 1000 : null;
    if ((state === "waiting" || state === "closed") && this.liveAt && this.leftAt === null) this.leftAt = now();
    if (code === 4002) {
      this.withhold = false;
      this.element.querySelector("[data-action=expire]").disabled = false;
      this.note("The server closed: token expired (4002)");
    } else if (code === 1012 || code === 4001 || code === 4503) {
      this.note(`The server closed with ${code}${reason ? `: ${reason}` : ""}`);
    }
    if (state === "waiting" || state === "closed") this.presence([]);
    if (state === "connected") queueMicrotask(() => this.ping());
    this.element.querySelector("[data-action=cut]").textContent =
      state === "closed" ? "Connect again" : "Cut connection";
    this.refresh();
  }

  action(action) {
    if (action.chat !== CHAT) return;
    if (action.do === "gap") this.count("gaps");
    if (action.do === "lost") {
      this.count("losses");
      const why = action.before.epoch === action.after.epoch ? "is too old" : "is of another history, as after a restart";
      this.lost = `Position ${action.before.seq} ${why}: the chat was loaded anew`;
    }
    if (action.do === "subscription" && action.state === "live") {
      if (this.leftAt !== null) {
        this.count("resumes");
        this.resumed = { after: now() - this.leftAt, from: action.position.seq, caught: 0 };
        this.resumed.note = this.note(this.tellResume(), "good");
        this.leftAt = null;
      } else this.resumed = null;
      this.liveAt = now();
      this.place(action.position);
    }
    queueMicrotask(() => this.refresh());
  }

  tellResume() {
    const { after, from, caught } = this.resumed;
    const what = caught === 0 ? "nothing missed" : `${caught} message${caught > 1 ? "s" : ""} caught up, none lost`;
    return `Back after ${seconds(after)} s, from position ${from}: ${what}`;
  }

  presence(users) {
    this.fields.presence.replaceChildren(...users.map(({ user_id, connections }) => {
      const one = document.createElement("span");
      one.className = `u${user_id}`;
      one.append(document.createElement("i"), (PEOPLE[user_id] ?? `user ${user_id}`) + (connections > 1 ? ` ×${connections}` : ""));
      return one;
    }));
  }

  // --- what is shown

  show(message) {
    this.types(message.sender_id, false);
    const published = sent.get(message.message_id);
    const caught = published !== undefined && published < this.liveAt;
    this.place(message.position);
    if (this.messages.show(message, caught) === null) return;
    if (caught) {
      this.count("caught");
      if (this.resumed) {
        this.resumed.caught += 1;
        this.resumed.note.textContent = this.tellResume();
      }
    } else if (published !== undefined && published >= this.heldUntil) this.latency(now() - published);
    this.refresh();
  }

  note(text, kind = "") {
    const item = Object.assign(document.createElement("li"), { className: `note ${kind}`, textContent: text });
    this.messages.append(item);
    return item;
  }

  place({ epoch, seq }) {
    this.fields.position.textContent = seq;
    this.fields.epoch.textContent = `of ${epoch.slice(0, 5)}`;
    this.fields.epoch.title = epoch;
  }

  latency(ms) {
    this.latencies = [...this.latencies.slice(-39), ms];
    this.measure("latency", millis(ms), "ms");
    const most = Math.max(...this.latencies, 1), last = this.latencies.length - 1;
    this.fields.spark.setAttribute("points", this.latencies
      .map((value, index) => `${last ? (index / last) * 80 : 0},${18 - (value / most) * 16}`).join(" "));
  }

  measure(field, value, unit) {
    this.fields[field].replaceChildren(value, Object.assign(document.createElement("small"), { textContent: unit }));
  }

  count(name) {
    this.counts[name] += 1;
    const field = this.fields[name === "losses" ? "lost" : name];
    field.textContent = this.counts[name];
    if (name === "losses" || name === "gaps") field.closest("div").classList.add("alarm");
  }

  refresh() {
    const { state } = this.client.state, pill = this.fields.state;
    let text = { idle: "starting", connecting: "connecting", authenticating: "connecting", connected: "connected", closed: "closed" }[state];
    if (state === "waiting") text = `back in ${seconds(Math.max(0, this.backAt - now()))} s`;
    pill.dataset.state = state;
    if (state === "connected" && this.paused) {
      pill.dataset.state = "paused";
      text = this.chat.state === "paused" ? `${this.chat.waiting} wait here, the rest there` : `paused, ${this.chat.waiting} waiting`;
    }
    if (pill.textContent !== text) pill.textContent = text;
    const left = this.expiresAt === null ? 0 : Math.max(0, this.expiresAt - Date.now() / 1000);
    this.measure("token", Math.ceil(left), "s");
    this.fields.meter.style.width = `${(left / TOKEN_SECONDS) * 100}%`;
  }

  async ping() {
    if (this.client.state.state !== "connected") return;
    try {
      this.measure("trip", millis((await this.client.ping()) * 1000), "ms");
    } catch {
      // The connection went meanwhile; its state is shown.
    }
  }
}

if (!IS_CHAT) complain(`No chat has the id “${ASKED}”: an integer below 2^53, or text of 1 to 64 of A-Z a-z 0-9 _ -`);
const panels = IS_CHAT ? [1, 2].map((user) => new Panel(user)) : [];
for (const panel of panels) panel.connect();
setInterval(() => panels.forEach((panel) => panel.refresh()), 200);
setInterval(() => panels.forEach((panel) => panel.ping()), 3000);

let turn = 0, talking = null;
const phrase = () => PHRASES[turn % PHRASES.length];
const say = () => {
  publish((turn % 2) + 1, phrase());
  turn += 1;
};

document.getElementById("talk").addEventListener("click", ({ currentTarget }) => {
  if (talking === null) {
    say();
    talking = setInterval(say, 900);
  } else {
    clearInterval(talking);
    talking = null;
  }
  currentTarget.setAttribute("aria-pressed", String(talking !== null));
});

document.getElementById("burst").addEventListener("click", () => {
  for (let number = 1; number <= 50; number++) publish((number % 2) + 1, `${number} of 50`);
});
