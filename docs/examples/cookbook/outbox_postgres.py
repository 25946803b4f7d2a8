"""An outbox in PostgreSQL: ``post`` is for the application; as a program, in any number, this publishes what is in it."""

import logging
import os
from typing import Any

import psycopg
from outbox import Outbox, Row
from psycopg.rows import class_row
from psycopg.types.json import Json

TABLES = """
CREATE TABLE IF NOT EXISTS chats (
    id bigint PRIMARY KEY,
    workspace_id bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chat_id bigint NOT NULL REFERENCES chats,
    sender_id bigint NOT NULL,
    content text NOT NULL,
    created timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS messages_of_chat ON messages (chat_id, id);
CREATE TABLE IF NOT EXISTS outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key uuid NOT NULL DEFAULT gen_random_uuid(),
    subject text NOT NULL,
    payload json NOT NULL,
    created timestamptz NOT NULL DEFAULT now(),
    error text
);
CREATE INDEX IF NOT EXISTS outbox_waiting ON outbox (subject, id) WHERE error IS NULL;
"""

#: seconds after which a worker looks, whether it was notified or not
POLL = 2

#: chats that nobody has, each of which is this worker's until its transaction ends
CLAIM = """
SELECT subject FROM (
    SELECT subject FROM outbox WHERE error IS NULL AND subject <> ALL (%s) GROUP BY subject ORDER BY min(id)
) AS waiting
WHERE pg_try_advisory_xact_lock('outbox'::regclass::oid::int, hashtext(subject)) LIMIT 100
"""

#: the oldest rows of each
READ = """
SELECT oldest.* FROM unnest(%s::text[]) AS mine, LATERAL (
    SELECT id, key::text, subject, payload::text, extract(epoch FROM clock_timestamp() - created)::float AS age
    FROM outbox WHERE subject = mine AND error IS NULL ORDER BY id LIMIT 100
) AS oldest ORDER BY id LIMIT 500
"""


def post(db: psycopg.Connection, chat_id: int, sender_id: int, content: str) -> int:
    """Write a message into a chat, and into the outbox, in one transaction; gives its id."""
    with db.transaction():
        # One writer of a chat at a time: so its rows are committed in the order of their ids.
        chat = db.execute("SELECT workspace_id FROM chats WHERE id = %s FOR NO KEY UPDATE", [chat_id])
        [workspace_id] = chat.fetchone() or [None]
        message = db.execute(
            "INSERT INTO messages (chat_id, sender_id, content) VALUES (%s, %s, %s)"
            " RETURNING id, extract(epoch FROM created)::bigint",
            [chat_id, sender_id, content],
        )
        [message_id, timestamp] = message.fetchone() or [None, None]
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


def put(db: psycopg.Connection, subject: str, payload: dict[str, Any]) -> None:
    """Put something to publish into the outbox, in the transaction that is open."""
    db.execute("INSERT INTO outbox (subject, payload) VALUES (%s, %s)", [subject, Json(payload)])
    db.execute("NOTIFY outbox")


def work(db: psycopg.Connection, outbox: Outbox) -> bool:
    """Publish some of what waits; whether there was any."""
    with db.transaction():
        subjects = [subject for [subject] in db.execute(CLAIM, [outbox.resting()])]
        # A statement of its own: it sees what was done by those who had these chats before.
        rows = db.cursor(row_factory=class_row(Row)).execute(READ, [subjects]).fetchall()
        done, refused = outbox.deliver(rows)
        db.execute("DELETE FROM outbox WHERE id = ANY (%s)", [done])
        for id, error in refused.items():
            db.execute("UPDATE outbox SET error = %s WHERE id = %s", [error, id])
    return bool(rows)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    outbox = Outbox(os.environ["NOTIFY_API_URL"], os.environ["NOTIFY_API_KEY"])
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as db:
        db.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        db.execute("LISTEN outbox")
        while True:
            while work(db, outbox):
                pass
            for _ in db.notifies(timeout=POLL, stop_after=1):
                pass


if __name__ == "__main__":
    main()
