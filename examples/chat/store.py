"""The example's database: its tables, its transactions, and the outbox, which is what the worker has to tell notify.

Whatever changes something and is to be told calls :func:`message`, :func:`event`, :func:`notification` or :func:`unsubscribe` within
the transaction that changes it: both are there afterwards, or neither is. Rows of the outbox get their numbers in the order in
which transactions are committed, since SQLite has one writer at a time.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

#: where database, keys and logs are
DATA = Path(os.environ.get("CHAT_DATA") or Path(__file__).parent / "data")
#: notify keeps the users of different customers apart by workspaces; this example has one
WORKSPACE = 1

TABLES = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE);
CREATE TABLE IF NOT EXISTS sessions (
    digest TEXT PRIMARY KEY,  -- SHA-256 of the cookie: who reads the table cannot sign in
    user_id INTEGER NOT NULL REFERENCES users,
    ends INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS chats (id INTEGER PRIMARY KEY, title TEXT NOT NULL, owner_id INTEGER NOT NULL REFERENCES users);
CREATE TABLE IF NOT EXISTS members (
    chat_id INTEGER NOT NULL REFERENCES chats,
    user_id INTEGER NOT NULL REFERENCES users,
    read_to INTEGER NOT NULL DEFAULT 0,  -- the newest message that was read
    PRIMARY KEY (chat_id, user_id)
);
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    chat_id INTEGER NOT NULL REFERENCES chats,
    sender_id INTEGER NOT NULL REFERENCES users,
    text TEXT,  -- NULL: deleted
    edited INTEGER NOT NULL DEFAULT 0,  -- how often: what a page has it compares with what comes
    sent INTEGER NOT NULL,
    key TEXT NOT NULL,  -- the page's own: a post that is repeated is one message
    UNIQUE (chat_id, sender_id, key)
);
CREATE INDEX IF NOT EXISTS messages_of_chat ON messages (chat_id, id);
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,  -- under which notify takes a repeat for what it is
    path TEXT NOT NULL,  -- of notify's HTTP API
    body TEXT NOT NULL
);
"""
PEOPLE = ("Ada", "Grace", "Radia")
CHATS = {"Launch": ("Ada", "Grace", "Radia"), "Lunch": ("Grace", "Ada"), "Papers": ("Ada", "Radia")}


def create() -> None:
    """Make the tables, and somebody to try them with."""
    with closing(connect()) as db:
        db.executescript(TABLES)
    with transaction() as db:
        if db.execute("SELECT 1 FROM users").fetchone():
            return
        ids = {name: db.execute("INSERT INTO users (name) VALUES (?)", (name,)).lastrowid for name in PEOPLE}
        for title, names in CHATS.items():
            made = db.execute("INSERT INTO chats (title, owner_id) VALUES (?, ?)", (title, ids[names[0]]))
            for name in names:
                db.execute(
                    "INSERT INTO members (chat_id, user_id) VALUES (?, ?)", (made.lastrowid, ids[name])
                )


def connect() -> sqlite3.Connection:
    """A connection in autocommit mode, whose rows know their columns."""
    db = sqlite3.connect(DATA / "chat.sqlite", timeout=10, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA foreign_keys = ON")
    return db


@contextmanager
def transaction(write: bool = True) -> Iterator[sqlite3.Connection]:
    """A transaction: committed at the end of the ``with``, rolled back where that raises."""
    with closing(connect()) as db:
        # The lock for writing from the beginning on: nobody changes what we have read before we write.
        db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        with db:
            yield db


# --- the outbox


def message(db: sqlite3.Connection, chat_id: int, sender_id: int, message_id: int, text: str) -> None:
    """Tell a chat's members of a new message."""
    _publish(db, _chat(chat_id), message_id=message_id, chat_id=chat_id, sender_id=sender_id, content=text)


def event(
    db: sqlite3.Connection, chat_id: int, sender_id: int, kind: str, data: Any, refers_to: int | None = None
) -> None:
    """Tell them what else happened: an edit, a deletion, a change of members."""
    about = {} if refers_to is None else {"refers_to": refers_to}
    own = {"message_id": str(uuid.uuid4()), "chat_id": chat_id, "sender_id": sender_id}
    _publish(db, _chat(chat_id), kind=kind, data=data, **own, **about)


def notification(db: sqlite3.Connection, user_id: int, kind: str, data: Any) -> None:
    """Tell one user something, wherever that one has a page open."""
    subject = f"workspace.{WORKSPACE}.user.{user_id}.notifications"
    _publish(db, subject, notification_id=str(uuid.uuid4()), user_id=user_id, kind=kind, data=data)


def unsubscribe(db: sqlite3.Connection, chat_id: int, user_id: int) -> None:
    """End what a user hears of a chat at once. Whoever asks to hear it again is asked about at ``/notify/authorize``."""
    _add(db, "/v1/unsubscribe", {"workspace_id": WORKSPACE, "user_id": user_id, "chat_id": chat_id})


def _chat(chat_id: int) -> str:
    return f"workspace.{WORKSPACE}.chat.{chat_id}.messages"


def _publish(db: sqlite3.Connection, subject: str, **payload: Any) -> None:
    payload |= {"workspace_id": WORKSPACE, "timestamp": int(time.time())}
    _add(db, "/v1/publish", {"subject": subject, "payload": payload})


def _add(db: sqlite3.Connection, path: str, body: dict[str, Any]) -> None:
    values = (str(uuid.uuid4()), path, json.dumps(body))
    db.execute("INSERT INTO outbox (key, path, body) VALUES (?, ?, ?)", values)
