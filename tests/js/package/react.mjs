// A React page that tests/client/test_react.py opens.
import { StrictMode, createElement as h, useState } from "react";
import { createRoot } from "react-dom/client";
import { NotifyClient } from "notify-client";
import { useChat, useConnection, useTyping } from "notify-client/react";

const parameters = new URLSearchParams(location.search);
const client = new NotifyClient(parameters.get("url"), {
  token: parameters.get("token"),
  settings: { features: ["events", "signals"], backoff_base: 0.5 },
});
const loaded = [];
window.loads = loaded;
window.client = client;

function load(position) {
  loaded.push(position);
  if (window.away) throw new Error("the backend is away");
  return [{ message_id: 1, content: "from the backend" }];
}

function Chat({ id }) {
  const { messages, ready, error } = useChat(client, id, {
    load,
    most: 3,
    onEvent: ({ kind, refers_to, data }, change) =>
      kind === "edited" && change((all) => all.map((one) => (one.message_id === refers_to ? { ...one, content: data } : one))),
  });
  const [users, typed] = useTyping(client, id, { every: 200, stays: 400 });
  window.typed = typed;
  return h("section", null,
    h("h1", null, error ? error.code ?? error.message : ready ? `ready ${id}` : "loading"),
    h("ul", null, messages.map((one) => h("li", { key: one.message_id }, one.content))),
    h("em", null, users.join()));
}

function App() {
  const [id, choose] = useState(7), { state } = useConnection(client);
  window.choose = choose;
  return h("main", null, h("p", null, state), id !== null && h(Chat, { id }));
}

createRoot(document.getElementById("root")).render(h(StrictMode, null, h(App)));
client.start();
