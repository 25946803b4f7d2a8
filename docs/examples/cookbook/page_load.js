import { NotifyClient } from "../../../notify/web/client/notify-client.js";
import { fetchToken } from "./token.js";

const list = document.querySelector("ol");
const shown = new Map(); // message_id -> its item

function show({ message_id, content }) {
  const id = String(message_id); // an integer beyond 2^53 comes as a BigInt, and as text from the backend
  if (!shown.has(id)) shown.set(id, list.appendChild(document.createElement("li")));
  shown.get(id).textContent = content;
}

async function load() {
  const answer = await fetch("/api/chats/7/messages", { cache: "no-store" });
  if (!answer.ok) throw new Error(`the backend answered ${answer.status}`);
  const messages = await answer.json();
  list.replaceChildren();
  shown.clear();
  messages.forEach(show);
}

const client = new NotifyClient(document.body.dataset.notify, { token: fetchToken });
client.start();
const chat = client.chat(7, { load });
for (;;) {
  try {
    for await (const message of chat) show(message);
    break;
  } catch (error) {
    if (chat.state === "closed" || chat.state === "refused") throw error;
    await new Promise((resolve) => setTimeout(resolve, 1000 + 2000 * Math.random())); // the backend is away: load again
  }
}
