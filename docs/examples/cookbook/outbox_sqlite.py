"""An outbox in SQLite: ``post`` is for the application; as a program, of which one works at a time, this publishes what is in it."""

import fcntl
import json
import logging
import os
import sqlite3
import time
from typing import Any

from outbox import Outbox, Row

TABLES = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    chat_id INTEGER NOT NULL,
    sender_id INTEGER NOT NULL,
    content TEXT NOT NULL,
    created INTEGER NOT NULL DEFAULT (unixepoch())
);
CREATE INDEX IF NOT EXISTS messages_of_chat ON messages (chat_id, id);
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL DEFAULT (hex(randomblob(16))),
    subject TEXT NOT NULL,
    payload TEXT NOT NULL,
    created INTEGER NOT NULL DEFAULT (unixepoch()),
    error TEXT
);
CREATE INDEX IF NOT EXISTS outbox_waiting ON outbox (id) WHERE error IS NULL;
"""

#: seconds between two looks
POLL = 0.2

READ = """
SELECT id, key, subject, payload, unixepoch() - created FROM outbox
WHERE error IS NULL AND subject NOT IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT 500
"""


def connect(path: str) -> sqlite3.Connection:
    """Open a database, which has its tables then."""
    db = sqlite3.connect(path, timeout=30, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(TABLES)
    return db


def post(db: sqlite3.Connection, workspace_id: int, chat_id: int, sender_id: int, content: str) -> int:
    """Write a message into a chat, and into the outbox, in one transaction; gives its id."""
    # There is one writer at a time from here on: so rows are committed in the order of their ids.
    db.execute("BEGIN IMMEDIATE")
    with db:
        return write(db, workspace_id, chat_id, sender_id, content)


def write(db: sqlite3.Connection, workspace_id: int, chat_id: int, sender_id: int, content: str) -> int:
    """``post``, in the transaction that is open."""
    [[message_id, timestamp]] = db.execute(
        "INSERT INTO messages (chat_id, sender_id, content) VALUES (?, ?, ?) RETURNING id, created",
        [chat_id, sender_id, content],
    ).fetchall()
    payload = {
        "message_id": message_id,
        "chat_id": chat_id,
        "workspace_id": workspace_id,
        "sender_id": sender_id,
        "content": content,
        "timestamp": timestamp,
    }
    put(db, f"workspace.{workspace_id}.chat.{chat_id}.messages", payload)
    return message_id


def put(db: sqlite3.Connection, subject: str, payload: dict[str, Any]) -> None:
    """Put something to publish into the outbox, in the transaction that is open."""
    db.execute("INSERT INTO outbox (subject, payload) VALUES (?, ?)", [subject, json.dumps(payload)])


def work(db: sqlite3.Connection, outbox: Outbox) -> bool:
    """Publish some of what waits; whether there was any."""
    # No transaction is open while this publishes: writers would wait for it.
    rows = [Row(*found) for found in db.execute(READ, [json.dumps(outbox.resting())])]
    done, refused = outbox.deliver(rows)
    if done or refused:
        db.execute("BEGIN IMMEDIATE")
        with db:
            db.executemany("DELETE FROM outbox WHERE id = ?", [[id] for id in done])
            db.executemany("UPDATE outbox SET error = ? WHERE id = ?", [(refused[id], id) for id in refused])
    return bool(rows)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    path = os.environ["DATABASE"]
    outbox = Outbox(os.environ["NOTIFY_API_URL"], os.environ["NOTIFY_API_KEY"])
    with open(f"{path}.worker", "w") as lock:
        fcntl.flock(
            lock, fcntl.LOCK_EX
        )  # a second worker waits here until the first has ended, however it did
        db = connect(path)
        while True:
            if not work(db, outbox):
                time.sleep(POLL)


if __name__ == "__main__":
    main()
