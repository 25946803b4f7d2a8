"""Unread counts, the backend's half, in the database of ``outbox_sqlite.py``."""

import sqlite3
import time
from uuid import uuid4

from outbox_sqlite import put

TABLES = """
CREATE TABLE IF NOT EXISTS reads (
    user_id INTEGER NOT NULL,
    chat_id INTEGER NOT NULL,
    last_read INTEGER NOT NULL,
    PRIMARY KEY (user_id, chat_id)
) WITHOUT ROWID;
"""

#: what is counted of a chat at most: a badge says 99+
MOST = 100


#: in one statement, so that all of it is of one moment
STATE = """
SELECT last_read, newest, (
    SELECT count(*) FROM (
        SELECT 1 FROM messages WHERE chat_id = :chat AND id > last_read AND sender_id <> :user LIMIT :most
    )
)
FROM (SELECT coalesce(max(last_read), 0) AS last_read FROM reads WHERE user_id = :user AND chat_id = :chat),
    (SELECT coalesce(max(id), 0) AS newest FROM messages WHERE chat_id = :chat)
"""


def state(db: sqlite3.Connection, user_id: int, chat_id: int) -> dict[str, int]:
    """How a chat stands for a user: what was read, what is newest, and how many messages of others are between."""
    [found] = db.execute(STATE, {"user": user_id, "chat": chat_id, "most": MOST})
    last_read, newest, unread = found
    return {"chat_id": chat_id, "last_read": last_read, "newest": newest, "unread": unread}


def mark_read(
    db: sqlite3.Connection, workspace_id: int, user_id: int, chat_id: int, message_id: int
) -> dict[str, int]:
    """A user has read a chat up to a message. Says so to all devices of the user, and gives how the chat stands now."""
    db.execute("BEGIN IMMEDIATE")
    with db:
        before = state(db, user_id, chat_id)
        read = min(message_id, before["newest"])
        if read <= before["last_read"]:
            return before
        db.execute(
            "INSERT INTO reads VALUES (?, ?, ?) ON CONFLICT (user_id, chat_id)"
            " DO UPDATE SET last_read = excluded.last_read",
            [user_id, chat_id, read],
        )
        now = state(db, user_id, chat_id)
        notification = {
            "notification_id": str(uuid4()),
            "workspace_id": workspace_id,
            "user_id": user_id,
            "kind": "read",
            "data": now,
            "timestamp": int(time.time()),
        }
        put(db, f"workspace.{workspace_id}.user.{user_id}.notifications", notification)
    return now
