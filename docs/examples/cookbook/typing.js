/** Say that the user types in `input`: at once, every `every` milliseconds while it goes on, and once that it is over. */
export function sayTyping(client, chat, input, { every = 3000 } = {}) {
  let said = -Infinity;
  const say = () => {
    const typing = input.value.trim() !== "";
    if (typing ? performance.now() - said < every : said === -Infinity) return;
    said = client.signal(chat, "typing", typing) && typing ? performance.now() : -Infinity;
  };
  input.addEventListener("input", say);
  return say; // call it when a program has emptied the input, as at sending
}

/**
 * `show(users)` whenever it changes who types. Who has not said so for `stays` milliseconds types no more: longer than `every`,
 * by a signal that is late. Gives a function to call with each message: its sender has sent, and types no more.
 */
export function hearTyping(client, chat, show, { stays = 5000 } = {}) {
  const typists = new Map(); // user -> the timer that ends it
  const set = (user, typing) => {
    const before = typists.has(user);
    clearTimeout(typists.get(user));
    typists.delete(user);
    if (typing) typists.set(user, setTimeout(() => set(user, false), stays));
    if (before !== typing) show([...typists.keys()]);
  };
  client.on("signal", ({ chat_id, user_id, kind, data }) => {
    if (String(chat_id) === String(chat) && kind === "typing") set(user_id, data === true);
  });
  return ({ sender_id }) => set(sender_id, false);
}

/** Say where the pointer is over `board`, as shares of its size: the newest place, at most `rate` times a second. */
export function sayPointer(client, chat, board, { rate = 5 } = {}) {
  let place = null, timer = null;
  const say = () => {
    timer = null;
    if (place === null) return;
    client.signal(chat, "pointer", place);
    place = null;
    timer = setTimeout(say, 1000 / rate);
  };
  board.addEventListener("pointermove", ({ clientX, clientY }) => {
    const { left, top, width, height } = board.getBoundingClientRect();
    place = [(clientX - left) / width, (clientY - top) / height].map((share) => Number(share.toFixed(3)));
    if (timer === null) say();
  });
}
