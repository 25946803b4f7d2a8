/** A chat as a client shows it: what the backend has loaded, with messages and events on top, each of which may be in it already. */
export class ChatState {
  messages = new Map(); // message_id -> { text, version, reactions: Map("user emoji" -> { on, version }) }
  members = new Map(); // user -> { joined, version }
  #gone = new Set(); // message_ids that were deleted

  /** What the backend answers: `{ messages: [{ id, text, version, reactions }], deleted: [ids], members }`. */
  loaded({ messages, deleted, members }) {
    this.#gone = new Set(deleted.map(String));
    this.messages = new Map(messages.map(({ id, text, version, reactions }) => [String(id), {
      text, version, reactions: new Map(reactions.map(({ user, emoji, on, version }) => [`${user} ${emoji}`, { on, version }])),
    }]));
    this.members = new Map(members.map(({ user, joined, version }) => [String(user), { joined, version }]));
  }

  /** A chat message: one that is there is newer or the same, one that was deleted stays away. */
  message({ message_id, content }) {
    const id = String(message_id);
    if (this.messages.has(id) || this.#gone.has(id)) return;
    this.messages.set(id, { text: content, version: 0, reactions: new Map() });
  }

  /** A chat event. What is not known, a kind or a message, is passed over. */
  event({ kind, refers_to, sender_id, data }) {
    const id = String(refers_to), message = this.messages.get(id);
    switch (kind) {
      case "edited":
        if (message !== undefined && data.version > message.version) {
          message.text = data.text;
          message.version = data.version;
        }
        break;
      case "deleted":
        this.#gone.add(id);
        this.messages.delete(id);
        break;
      case "reaction":
        if (message !== undefined) newer(message.reactions, `${sender_id} ${data.emoji}`, { on: data.on, version: data.version });
        break;
      case "member":
        newer(this.members, String(data.user), { joined: data.joined, version: data.version });
    }
  }
}

function newer(map, key, value) {
  if (value.version > (map.get(key)?.version ?? -1)) map.set(key, value);
}
