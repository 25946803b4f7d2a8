/** One WebSocket connection, from its creation until the client has left it. */

import { decode, encode } from "./int64.js";

const PROTOCOLS = ["notify.v1.json.batch", "notify.v1.json"];
/** Milliseconds that the other side has to answer a close frame. */
const GOODBYE = 2000;

/** Calls `events`: `opened()`, `frame(value)`, `closed(code, reason)`; nothing once it was left, cut or closed. */
export class Link {
  #socket = null; #events; #opened = false; #error = "";

  constructor(WebSocket, url, events) {
    this.#events = events;
    try {
      this.#socket = new WebSocket(url, PROTOCOLS);
    } catch (error) {
      queueMicrotask(() => events.closed(1006, String(error?.message ?? error)));
      return;
    }
    this.#socket.onopen = () => {
      this.#opened = true;
      events.opened();
    };
    // A close event follows. Browsers hide the reason; elsewhere it is available here.
    this.#socket.onerror = (event) => (this.#error = event?.message ?? "");
    this.#socket.onmessage = ({ data }) => this.#received(data);
    this.#socket.onclose = ({ code, reason }) => {
      this.#detach();
      events.closed(code, reason || (this.#opened ? "" : unopened(url, this.#error)));
    };
  }

  send(frame) {
    this.#socket?.send(encode(frame));
  }

  /** Close the connection. Resolves once it is gone. */
  async leave(code, reason) {
    const socket = this.#detach();
    if (socket === null) return;
    const gone = new Promise((resolve) => {
      // Node's `ws` would wait long for the other side's close frame.
      const give = setTimeout(() => {
        socket.terminate?.();
        resolve();
      }, GOODBYE);
      socket.onclose = () => {
        clearTimeout(give);
        resolve();
      };
    });
    socket.close(code, reason);
    await gone;
  }

  /** Drop the connection as if the network had failed. Returns false if it was already gone. */
  cut() {
    const socket = this.#detach();
    if (socket === null) return false;
    if (socket.terminate) socket.terminate();
    else socket.close();
    return true;
  }

  #received(data) {
    if (typeof data !== "string") return;
    let frames;
    try {
      frames = decode(data);
    } catch {
      return;
    }
    for (const frame of Array.isArray(frames) ? frames : [frames]) this.#events.frame(frame);
  }

  #detach() {
    const socket = this.#socket;
    if (socket !== null) socket.onopen = socket.onmessage = socket.onclose = null;
    this.#socket = null;
    return socket;
  }
}

/** The possible reasons for which a connection could not be opened. */
function unopened(url, error) {
  const address = url.split("?", 1)[0], origin = globalThis.location?.origin;
  const pages = origin ? `, and does the server allow pages of ${origin} (listen.allowed_origins)` : "";
  return `${address} could not be opened${error ? ` (${error})` : ""}: is the address right, with its path /ws, is the server there${pages}?`;
}
