import { NotifyClient } from "../../../notify/web/client/notify-client.js";
import { fetchToken } from "./token.js";

const list = document.querySelector("ol"), { chat, epoch, seq } = list.dataset;

function show({ message_id, content }) {
  const there = list.querySelector(`[data-id="${message_id}"]`);
  const item = there ?? list.appendChild(document.createElement("li"));
  item.dataset.id = message_id;
  item.textContent = content;
}

const client = new NotifyClient(document.body.dataset.notify, { token: fetchToken });
client.start();
const since = { epoch, seq: Number(seq) };
for await (const message of client.chat(Number(chat), { since, onLost: () => location.reload() })) show(message);
