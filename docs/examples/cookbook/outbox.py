"""The half of an outbox that knows no database: it publishes rows, and says what became of each."""

import json
import logging
import time
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

from notify.client import Position, Publisher

log = logging.getLogger("outbox")

#: seconds that one call may try to publish
PATIENCE = 10
#: seconds from a row's making for which notify surely remembers its key, should it have been published: well below
#: `duplicate_window` (120) less PATIENCE. Whoever raises that may raise this.
REMEMBERED = 60
#: messages of a chat that others may have published since a row was
FAR = 1000
#: seconds for which a chat is left alone that could not be published to
REST = 2


class Row(NamedTuple):
    """``key`` is the idempotency key, ``payload`` the message as JSON, and ``age`` in seconds."""

    id: int
    key: str
    subject: str
    payload: str
    age: float


class Outbox:
    """Publishes rows. For one worker at a time, which sees to it that nobody else has rows of the same subjects."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url, self._api_key = url, api_key
        self._publisher = Publisher(url, api_key)
        self._resting: dict[str, float] = {}

    def resting(self) -> list[str]:
        """The subjects that could not be published to a moment ago: leave their rows where they are."""
        now = time.monotonic()
        self._resting = {subject: until for subject, until in self._resting.items() if until > now}
        return list(self._resting)

    def deliver(self, rows: list[Row]) -> tuple[list[int], dict[int, str]]:
        """Publish rows, which are in order.

        Gives the ids of those that notify has, and by id what is wrong with those that it never will have. The others stay:
        bring them again, with what has come behind them.
        """
        self.resting()
        payloads = {row.id: _decoded(row.payload) for row in rows}
        done = self._published_before(rows, payloads)
        rows = [row for row in rows if row.id not in done and row.subject not in self._resting]
        messages = [(row.key, row.subject, payloads[row.id]) for row in rows]
        refused = {}
        for row, outcome in zip(rows, self._publisher.publish_each(messages, timeout=PATIENCE), strict=True):
            if isinstance(outcome, Position):
                done.append(row.id)
            elif outcome.refused:
                refused[row.id] = str(outcome)
                log.error("row %s is put aside: %s", row.id, outcome)
            else:
                self._rest(row.subject, outcome)
        return done, refused

    def _published_before(self, rows: list[Row], payloads: dict[int, Any]) -> list[int]:
        """Those rows that are so old that notify may have forgotten their keys, and that its history has."""
        found = []
        old = [row for row in rows if not 0 <= row.age < REMEMBERED]
        subjects = dict.fromkeys(row.subject for row in old)
        until = time.monotonic() + PATIENCE
        for subject in subjects:
            if time.monotonic() > until:
                # The keys of the other rows grow old meanwhile.
                self._rest(subject, TimeoutError("there was no time left to look for it"))
                continue
            ids = {row.id: _name(payloads[row.id]) for row in old if row.subject == subject}
            try:
                there = self._newest(subject, list(ids.values()))
            except (HTTPError, ValueError) as error:
                self._rest(subject, error)
            except (OSError, HTTPException) as error:
                # Nobody is there: do not wait as long for each of the others.
                for other in subjects:
                    self._rest(other, error)
                break
            else:
                found += [id for id, name in ids.items() if name in there]
        return found

    def _newest(self, subject: str, wanted: list[Any]) -> list[Any]:
        """The ids of a subject's newest messages: back to those wanted, and no further than FAR behind the last of them."""
        found: list[Any] = []
        before, others = "newest", 0
        while before and others < FAR:
            page = self._get(f"/v1/history?subject={quote(subject)}&limit=1000&before={before}")
            names = [_name(message["payload"]) for message in page["messages"]]
            found += names
            others = 0 if any(name in names for name in wanted) else others + len(names)
            before = None if page["complete"] else page["previous"]
        return found

    def _get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self._api_key}"}
        try:
            with urlopen(Request(self._url + path, headers=headers), timeout=PATIENCE) as answer:
                return json.load(answer)
        except HTTPError as error:
            if error.code != 422:
                raise
            # No subject of notify's: publishing will say so.
            return {"messages": [], "complete": True}

    def _rest(self, subject: str, why: Exception) -> None:
        if subject not in self._resting:
            log.warning("%s has to wait: %s", subject, why)
            self._resting[subject] = time.monotonic() + REST


def _decoded(payload: str) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return None  # which is no message, and will be refused


def _name(payload: Any) -> Any:
    """What tells a message from others."""
    return isinstance(payload, dict) and payload.get("message_id", payload.get("notification_id"))
