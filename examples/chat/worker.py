"""The worker: tells notify what the backend has put into the outbox, in that order, each once.

It deletes a row when notify has answered that it is stored. Where it dies between the two, or the answer does not arrive, it comes
with the same row again, under the same key, and notify knows it (within two minutes; after that the page still knows a
message by its id). Run one: a second one waits until the first is gone.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sqlite3
import time
from contextlib import closing
from http.client import HTTPException
from urllib.request import Request, urlopen

import store

from notify.client import Publisher, PublishFailed

API = os.environ.get("NOTIFY_API_URL", "http://127.0.0.1:8081")
#: seconds between looks at an outbox that is empty, and between tries while notify is away
LOOK, AGAIN = 0.05, 1.0
#: what notify will never take, however often it is sent
REFUSED = (400, 413, 422)

log = logging.getLogger("worker")


def main() -> None:
    """Run until killed, which may be at any time."""
    key = (store.DATA / "worker-key").read_text()
    with (store.DATA / "worker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with closing(store.connect()) as db, Publisher(API, key, timeout=10) as publisher:
            while True:
                try:
                    told = empty(db, publisher, key)
                except sqlite3.OperationalError as error:
                    # Somebody else has it for long, or the disk is full: what was told is told again under its key.
                    log.warning("the database: %s", error)
                    time.sleep(AGAIN)
                else:
                    time.sleep(0 if told else LOOK)


def empty(db: sqlite3.Connection, publisher: Publisher, key: str) -> int:
    """Tell notify what there is, the oldest first; gives how much that was."""
    rows = db.execute("SELECT * FROM outbox ORDER BY id LIMIT 100").fetchall()
    for row in rows:
        tell(row, publisher, key)
        db.execute("DELETE FROM outbox WHERE id = ?", (row["id"],))
    return len(rows)


def tell(row: sqlite3.Row, publisher: Publisher, key: str) -> None:
    """One row, until notify has taken it: what comes behind it waits, or the order would be lost."""
    body, away = json.loads(row["body"]), False
    while True:
        try:
            if row["path"] == "/v1/publish":
                publisher.publish(body["subject"], body["payload"], key=row["key"])
            else:
                command(row["path"], body, key)
        except (PublishFailed, OSError) as error:
            if getattr(error, "status", None) in REFUSED:
                log.error("row %s is left out, notify refuses it: %s", row["id"], error)
                return
            if not away:
                log.warning("row %s waits: %s", row["id"], error)
            away = True
            time.sleep(AGAIN)
        else:
            if away:
                log.warning("goes on")
            return


def command(path: str, body: object, key: str) -> None:
    """A command of notify's HTTP API. Raises OSError unless all of its nodes have carried it out."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        with urlopen(Request(API + path, json.dumps(body).encode(), headers), timeout=10) as answer:
            missing = json.load(answer)["reached"]["missing"]
    except (HTTPException, ValueError) as error:
        raise OSError(f"an answer that is none: {error}") from error
    if missing:
        raise OSError(f"no answer from {', '.join(missing)}")


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    main()
