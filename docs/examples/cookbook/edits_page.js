import { NotifyClient } from "../../../notify/web/client/notify-client.js";
import { ChatState } from "./edits.js";
import { fetchToken } from "./token.js";

const state = new ChatState(), list = document.querySelector("ol");

function draw() {
  list.replaceChildren(...[...state.messages.values()].map(({ text, reactions }) => {
    const emojis = [...reactions].filter(([, { on }]) => on).map(([key]) => key.split(" ")[1]);
    return Object.assign(document.createElement("li"), { textContent: [text, ...emojis].join(" ") });
  }));
  const there = [...state.members].filter(([, { joined }]) => joined);
  document.querySelector("p").textContent = there.map(([user]) => user).join(" ");
}

const client = new NotifyClient(document.body.dataset.notify, {
  token: fetchToken,
  settings: { features: ["events"] }, // without it no event comes
});
client.start();
const chat = client.chat(7, {
  load: async () => {
    const answer = await fetch("/api/chats/7", { cache: "no-store" });
    if (!answer.ok) throw new Error(`the backend answered ${answer.status}`);
    state.loaded(await answer.json());
    draw();
  },
  onEvent: (event) => {
    state.event(event);
    draw();
  },
});
for await (const message of chat) {
  state.message(message);
  draw();
}
