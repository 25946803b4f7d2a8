// @ts-check
/**
 * What things look like. Text becomes text nodes, never HTML.
 *
 * @typedef {{message_id: number, sender_id: number, content: string, timestamp: number, edited?: number, deleted?: boolean,
 *   pending?: boolean}} Message  `edited` is how often; as the backend gives it, and as it comes through notify
 */

/** The element with an id. @returns {any} */
export const $ = (id) => document.getElementById(id);
/** An element, with properties. @returns {any} */
export const make = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);

/** A round thing with a letter, for whom there is no picture. */
export function face(element, id, name) {
  element.textContent = [...name][0].toUpperCase();
  element.dataset.hue = id % 6;
}

/** A new item, in the order of ids; what is being sent stands last. */
export function place(id) {
  const item = $("message").content.firstElementChild.cloneNode(true), list = $("messages");
  item.dataset.id = id;
  let next = null;
  for (let one = list.lastElementChild; one && Number(one.dataset.id) > id; one = one.previousElementSibling) next = one;
  list.insertBefore(item, next);
  return item;
}

/** A message, as it is now. @param {Message} message */
export function draw(item, message, name, mine) {
  item.classList.toggle("mine", mine);
  item.classList.toggle("deleted", message.deleted === true);
  item.classList.toggle("pending", message.pending === true);
  item.dataset.sender = message.sender_id;
  const part = (css) => item.querySelector(css);
  face(part(".avatar"), message.sender_id, name);
  part(".sender").textContent = name;
  part(".content").textContent = message.deleted ? "This message was deleted." : message.content;
  const at = new Date(message.timestamp * 1000);
  part("time").textContent = message.pending ? "sending…" : at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  part("time").dateTime = at.toISOString();
  part("time").title = at.toLocaleString();
  part(".edited").textContent = message.edited && !message.deleted ? " · edited" : "";
  part(".actions").hidden = !mine || message.deleted === true || message.pending === true;
}

/** The list of chats: which is shown, and how much is unread in those that are not seen. */
export function drawChats(chats, me, shown, seen, open) {
  const focused = $("chats").querySelector(":focus")?.dataset.chat;
  $("chats").replaceChildren(...chats.map((chat) => {
    const button = make("button", { type: "button" }), item = make("li");
    const others = chat.members.filter(({ id }) => id !== me.id).map(({ name }) => name);
    button.dataset.chat = chat.id;
    button.append(make("strong", { textContent: chat.title }));
    button.append(make("span", { className: "dim", textContent: others.join(", ") || "only you" }));
    if (chat.id === shown) button.setAttribute("aria-current", "true");
    if (chat.unread && chat.id !== seen) {
      button.append(make("b", { className: "badge", textContent: chat.unread }));
      button.lastChild.append(make("span", { className: "unseen", textContent: " unread" }));
    }
    button.addEventListener("click", () => open(chat.id));
    item.append(button);
    return item;
  }));
  $("chats").querySelector(`[data-chat="${Number(focused)}"]`)?.focus();
  $("no-chats").hidden = chats.length > 0;
}

/** Who is in a chat, and who of them is here; `remove` is for its owner. */
export function drawMembers(members, present, me, remove) {
  const here = members.filter(({ id }) => present.has(id)).length;
  $("present").textContent = `${members.length} members, ${here} here`;
  $("members").replaceChildren(...members.map(({ id, name }) => {
    const item = make("li"), there = present.has(id);
    item.append(make("i", { className: there ? "dot here" : "dot" }), make("span", { textContent: id === me.id ? `${name} (you)` : name }));
    item.append(make("span", { className: "unseen", textContent: there ? ", here" : ", away" }));
    if (remove && id !== me.id) {
      item.append(make("button", { type: "button", textContent: "Remove", ariaLabel: `Remove ${name}` }));
      item.lastChild.addEventListener("click", () => remove(id));
    }
    return item;
  }));
}
