import { NotifyClient } from "../../../notify/web/client/notify-client.js";
import { fetchToken } from "./token.js";
import { hearTyping, sayPointer, sayTyping } from "./typing.js";

const form = document.querySelector("form"), input = form.querySelector("input");
const client = new NotifyClient(document.body.dataset.notify, {
  token: fetchToken,
  settings: { features: ["signals"] },
});
client.start();
const chat = client.chat(7);
const said = sayTyping(client, 7, input);
const heard = hearTyping(client, 7, (users) => {
  document.querySelector("p").textContent = users.length > 3 ? "several people" : users.join(", ");
});
sayPointer(client, 7, document.body);

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = input.value;
  input.value = "";
  said();
  await fetch("/api/chats/7/messages", { method: "POST", body: JSON.stringify({ text }) });
});

await chat.ready();
form.hidden = false;
for await (const message of chat) heard(message);
