"""Push for those who are not there, in the database of ``outbox_sqlite.py``; ``send`` is yours."""

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import outbox_sqlite
import unread

log = logging.getLogger("push")

Present = Callable[[int], set[int]]
Send = Callable[[int, int], None]

TABLES = """
CREATE TABLE IF NOT EXISTS members (
    chat_id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    PRIMARY KEY (chat_id, user_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pushes (
    user_id INTEGER NOT NULL,
    chat_id INTEGER NOT NULL,
    message_id INTEGER NOT NULL,
    looks INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL,
    PRIMARY KEY (user_id, chat_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pushes_due ON pushes (due);
"""

#: seconds from a message to the first look; each further one is twice as far away as the one before
DELAY = 5
#: after so many looks a push is sent, also to somebody who is there: an open window is not a reader
LOOKS = 4
#: seconds that notify may take to say who is in a chat
PATIENCE = 5

DUE = """
SELECT pushes.user_id, chat_id, message_id, looks, members.user_id IS NOT NULL
FROM pushes LEFT JOIN members USING (user_id, chat_id) WHERE due <= ? ORDER BY due LIMIT 500
"""


def connect(path: str) -> sqlite3.Connection:
    """Open a database with all tables."""
    db = outbox_sqlite.connect(path)
    db.executescript(unread.TABLES + TABLES)
    return db


def post(db: sqlite3.Connection, workspace_id: int, chat_id: int, sender_id: int, content: str) -> int:
    """``outbox_sqlite.post``, and in the same transaction: see later whether the other members have read it."""
    db.execute("BEGIN IMMEDIATE")
    with db:
        message_id = outbox_sqlite.write(db, workspace_id, chat_id, sender_id, content)
        db.execute(
            "INSERT INTO pushes (user_id, chat_id, message_id, due)"
            " SELECT user_id, chat_id, ?, ? FROM members WHERE chat_id = ? AND user_id <> ?"
            " ON CONFLICT (user_id, chat_id) DO UPDATE SET message_id = excluded.message_id",
            [message_id, time.time() + DELAY, chat_id, sender_id],
        )
    return message_id


def look(db: sqlite3.Connection, present: Present, send: Send, now: float) -> None:
    """See about those whose time has come: who has read it needs no push, who is there may read it yet."""
    there: dict[int, set[int]] = {}
    away = False
    for user_id, chat_id, message_id, looks, member in db.execute(DUE, [now]).fetchall():
        done = not member or unread.state(db, user_id, chat_id)["last_read"] >= message_id
        if not done:
            if chat_id not in there and not away:
                try:
                    there[chat_id] = present(chat_id)
                except OSError as error:
                    # Nobody answers: do not wait as long for each of the other chats.
                    log.warning("nobody knows who is there: %s", error)
                    away = True
            if user_id not in there.get(chat_id, ()) or looks + 1 >= LOOKS:
                done = _sent(send, user_id, chat_id)
        if done:
            # Unless a newer message has come meanwhile.
            forget = "DELETE FROM pushes WHERE user_id = ? AND chat_id = ? AND message_id = ?"
            db.execute(forget, [user_id, chat_id, message_id])
        else:
            later = "UPDATE pushes SET looks = looks + 1, due = ? WHERE user_id = ? AND chat_id = ?"
            db.execute(later, [now + DELAY * 2 ** min(looks + 1, 7), user_id, chat_id])


def _sent(send: Send, user_id: int, chat_id: int) -> bool:
    try:
        send(user_id, chat_id)
    except Exception:
        log.exception("no push to user %s: another try later", user_id)
        return False
    return True


def present(chat_id: int) -> set[int]:
    """Who is in a chat, on any node. Where that cannot be told, nobody: better one push too many than none.

    Raises OSError where nobody answers.
    """
    url = f"{os.environ['NOTIFY_API_URL']}/v1/presence?workspace_id=1&chat_id={chat_id}"
    headers = {"Authorization": f"Bearer {os.environ['NOTIFY_API_KEY']}"}
    try:
        with urlopen(Request(url, headers=headers), timeout=PATIENCE) as answer:
            return {user["user_id"] for user in json.load(answer)["users"]}
    except (HTTPError, HTTPException, ValueError) as error:
        log.warning("nobody knows who is in chat %s: %s", chat_id, error)
        return set()


def send(user_id: int, chat_id: int) -> None:
    """Yours: hand a push for each of the user's devices to FCM, APNs or a web push service."""
    print(f"user {user_id}: new messages in chat {chat_id}", flush=True)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    db = connect(os.environ["DATABASE"])
    while True:
        look(db, present, send, time.time())
        time.sleep(1)


if __name__ == "__main__":
    main()
