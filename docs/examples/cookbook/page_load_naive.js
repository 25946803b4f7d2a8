import { NotifyClient } from "../../../notify/web/client/notify-client.js";
import { fetchToken } from "./token.js";

const list = document.querySelector("ol");
const show = ({ content }) => list.append(Object.assign(document.createElement("li"), { textContent: content }));

const answer = await fetch("/api/chats/7/messages", { cache: "no-store" });
(await answer.json()).forEach(show);
// What is said now is in neither.
const client = new NotifyClient(document.body.dataset.notify, { token: fetchToken });
await client.start();
for await (const message of client.chat(7)) show(message);
