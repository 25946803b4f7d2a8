/** What the client throws. */

/** The client has ended and will not reconnect; `code` is the server's close code (null: no token). */
export class ClientClosed extends Error {
  name = "ClientClosed";
  constructor(code, reason) {
    super(`closed with ${code}${reason ? ` (${reason})` : ""}`);
    this.code = code;
    this.reason = reason;
  }
}

/** A reader without `onLost` came to a place where messages are lost. Reload, then read on. */
export class HistoryLost extends Error {
  name = "HistoryLost";
  constructor(loss) {
    super(`messages of ${loss.chat_id === null ? "the notifications" : `chat ${loss.chat_id}`} were lost`);
    this.loss = loss;
  }
}

/** The server refused a subscription or a command; or it timed out, was one too many, or the client was closed. */
export class Refused extends Error {
  name = "Refused";
  constructor(code, message = "") {
    super(message ? `${code}: ${message}` : code);
    this.code = code;
  }
}
