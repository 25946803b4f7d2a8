/** A chat as the demo page's list: its history page by page, what comes, and what is edited and deleted. Text is text nodes only. */

const PAGE = 30; // messages of the history that are asked for at once
const MOST = 300; // items that stay; more only while somebody reads further up
const NEAR = 80; // so many pixels from the top, older ones are asked for

export class Messages {
  #list; #user; #history; #pick;
  #shown = new Map(); // message_id -> { item, message, caught }, oldest first
  #changes = new Map(); // "message_id sender_id" -> { text, seq }, also of messages that are not shown; text null: deleted
  #start = null; // before this there are older ones; null: there are none
  #asking = false;

  /** `history(options)` gives a page; `pick(message, text)` is told of one's own message that is to be changed. */
  constructor(list, user, history, pick) {
    this.#list = list;
    this.#user = user;
    this.#history = history;
    this.#pick = pick;
    list.addEventListener("scroll", () => {
      if (list.scrollTop < NEAR) this.#older();
    });
  }

  /** Begin anew with the newest page. Rejects with Refused. */
  async load() {
    const page = await this.#history({ limit: PAGE });
    this.#shown.clear();
    this.#changes.clear();
    this.#list.replaceChildren();
    this.#prepend(page);
    this.#list.scrollTop = this.#list.scrollHeight;
    this.#fill();
  }

  /** A message that came; gives its item, or null where it is there already. */
  show(message, caught) {
    if (this.#shown.has(String(message.message_id))) return null;
    const item = this.#item(message, caught);
    this.append(item);
    return item;
  }

  /** An event that came: an edit or a deletion. */
  change(event) {
    this.#learn(event);
    const shown = this.#shown.get(String(event.refers_to));
    if (shown) this.#draw(shown);
  }

  /** As if the newest of one's own messages were clicked. */
  pickLast() {
    const own = ({ message }) => message.sender_id === this.#user && this.#text(message) !== null;
    const last = [...this.#shown.values()].findLast(own);
    if (last) this.#picked(last.message);
  }

  append(item) {
    const list = this.#list;
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
    list.append(item);
    while (list.children.length > (atEnd ? MOST : 3 * MOST)) list.firstElementChild.remove();
    for (const [id, { item: oldest, message }] of this.#shown) {
      if (oldest.isConnected) break;
      this.#shown.delete(id);
      this.#start = { ...message.position, seq: message.position.seq + 1 }; // it is of the history again
    }
    if (atEnd) list.scrollTop = list.scrollHeight;
  }

  async #older() {
    const start = this.#start;
    if (start === null || this.#asking) return;
    this.#asking = true;
    try {
      const page = await this.#history({ before: start, limit: PAGE });
      if (this.#start === start) this.#prepend(page); // else it was loaded anew meanwhile
    } catch (error) {
      // Of another history, as after a restart: there is nothing before it. Otherwise the next look asks again.
      if (error.code === "history_unavailable" && this.#start === start) this.#start = null;
      return;
    } finally {
      this.#asking = false;
    }
    this.#fill();
  }

  /** Where there is nothing to scroll, nobody can ask for more. */
  #fill() {
    if (this.#list.scrollHeight <= this.#list.clientHeight + NEAR) this.#older();
  }

  #prepend({ messages, more, start }) {
    const list = this.#list, height = list.scrollHeight, newer = this.#shown;
    this.#shown = new Map();
    for (const one of messages) if ("kind" in one) this.#learn(one);
    const fresh = messages.filter((one) => !("kind" in one) && !newer.has(String(one.message_id)));
    list.prepend(...fresh.map((message) => this.#item(message, false)));
    for (const [id, shown] of newer) this.#shown.set(id, shown);
    list.scrollTop += list.scrollHeight - height;
    this.#start = more ? start : null;
  }

  /** Only who wrote a message changes it; what is deleted stays so, and of two edits the later one counts. */
  #learn({ kind, refers_to, data, sender_id, position: { seq } }) {
    const text = kind === "deleted" ? null : kind === "edited" ? data?.content : undefined;
    if (text !== null && typeof text !== "string") return;
    const key = `${refers_to} ${sender_id}`, before = this.#changes.get(key);
    if (text !== null && before && (before.text === null || before.seq > seq)) return;
    this.#changes.set(key, { text, seq });
  }

  #item(message, caught) {
    const own = message.sender_id === this.#user;
    const item = document.createElement("li"), shown = { item, message, caught };
    item.className = `u${message.sender_id}${own ? " own" : ""}`;
    item.dataset.seq = message.position.seq;
    if (own) {
      item.title = "Edit or delete";
      item.addEventListener("click", () => {
        if (getSelection().isCollapsed) this.#picked(message);
      });
    }
    this.#shown.set(String(message.message_id), shown);
    this.#draw(shown);
    return item;
  }

  #changed(message) {
    return this.#changes.get(`${message.message_id} ${message.sender_id}`);
  }

  #picked(message) {
    const text = this.#text(message);
    if (text !== null) this.#pick(message, text);
  }

  /** What it says now; null: it was deleted. */
  #text(message) {
    return (this.#changed(message) ?? { text: message.content }).text;
  }

  #draw({ item, message, caught }) {
    const text = this.#text(message), deleted = text === null;
    const about = [message.position.seq, caught && "caught up", !deleted && this.#changed(message) && "edited"];
    item.classList.toggle("deleted", deleted);
    item.replaceChildren(
      text ?? "deleted",
      Object.assign(document.createElement("small"), { textContent: about.filter(Boolean).join(" · ") }),
    );
  }
}
