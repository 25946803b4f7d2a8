/** The errors that the client throws. */

/** What to do about a close code that ends the client (docs/protocol.md, Close codes). */
const ENDS = new Map([
  [4500, "the server does not accept the token: its key, audience or expiry is not what the server is set up for, whose log says which"],
  [4501, "the server did not get the token in time, three times in a row"],
  [4502, "the server took what the client sent for invalid"],
  [4503, "an operator has disconnected this user"],
  [4504, "the client sent more than the server allows"],
  [null, "the token function gave none, which means that the user has signed out"],
]);

/** The client has ended and will not reconnect. `code` is the server's close code; null means that there was no token. */
export class ClientClosed extends Error {
  name = "ClientClosed";
  constructor(code, reason) {
    const words = ENDS.has(code) ? `: ${ENDS.get(code)}` : "", said = reason && reason !== "no token" ? ` (${reason})` : "";
    super(`closed${code === null ? "" : ` with ${code}`}${words}${said}`);
    this.code = code;
    this.reason = reason;
  }
}

/** A reader without `onLost` reached a gap whose messages are lost. Reload them from the backend, then continue to read. */
export class HistoryLost extends Error {
  name = "HistoryLost";
  constructor(loss) {
    super(`messages of ${loss.chat_id === null ? "the notifications" : `chat ${loss.chat_id}`} were lost`);
    this.loss = loss;
  }
}

/** The server refused a subscription or a command; or it timed out, too many were waiting, or the client was closed. */
export class Refused extends Error {
  name = "Refused";
  constructor(code, message = "") {
    super(message ? `${code}: ${message}` : code);
    this.code = code;
  }
}

/** An operation did not finish within the given time; the message says what it was waiting for. */
export class TimedOut extends Error {
  name = "TimedOut";
}

/** Await the promise for at most `timeout` seconds (null: as long as it takes), then throw TimedOut with these words. */
export async function within(promise, timeout, words) {
  if (timeout === null) return promise;
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new TimedOut(words())), timeout * 1000);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
