"""What the publishers for threads, asyncio and Twisted have in common: their constructor and how they build jobs."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from notify.client._each import Each, Keyed
from notify.client._job import Job
from notify.client._keys import digest
from notify.client._messages import Message, dump, encode
from notify.client._outcome import Item, PublishFailed
from notify.client._publishing import Options
from notify.client._wire import Address
from notify.client.actions import Id, Position

_KEY = re.compile(r"[!-~]+", re.ASCII)
#: the maximum length of a key, and how much of it a message's index in a list needs
MOST_KEY, _INDEX = 128, 13
#: what the server appends to the key of a broadcast to make the key of each message
_EACH = ":*"
#: the default timeout of a signal (seconds): later it is worth nothing
SIGNAL = 5.0


class Face:
    """See :class:`~notify.client.publisher.Publisher`."""

    def __init__(self, url: str, api_key: str, options: Options) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the address of the HTTP API is like http://127.0.0.1:8081")
        if options.tries is not None and options.tries < 1:
            raise ValueError("tries: at least one")
        if options.connections < 1:
            raise ValueError("connections: at least one")
        for name, seconds in (
            ("timeout", options.timeout),
            ("try_timeout", options.try_timeout),
            ("duplicate_window", options.duplicate_window),
        ):
            _seconds(name, seconds)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        self._prefix = parts.path.rstrip("/") + "/v1/"
        self._address = Address(secure, parts.hostname, port, self._prefix + "stream")
        self._api_key, self._options = api_key, options

    def _job_of_one(
        self,
        message: Message,
        key: str | None,
        timeout: float | None,
        made: Collection[str] = (),
    ) -> Job:
        """``made`` names the payload's fields that were generated because the caller did not give them."""
        body = encode(*message)
        if key is None:
            key = uuid.uuid4().hex
            item = Item(body, key)
        else:
            item = Item(body, _checked(key, MOST_KEY), digest(body, made))
        return self._job([item], key, timeout)

    def _job_of_many(self, batch: Sequence[bytes], key: str | None, first: int, timeout: float | None) -> Job:
        """``first`` is the number of messages that came before this batch under the same key."""
        if key is None:
            key = uuid.uuid4().hex
            items = [Item(body, f"{key}:{index}") for index, body in enumerate(batch)]
            return self._job(items, key, timeout, many=True)
        # The keys do not depend on where the list is cut: a retry may cut it elsewhere.
        items = [Item(body, f"{key}:{index}", digest(body)) for index, body in enumerate(batch, first)]
        return self._job(items, key, timeout, many=True, own_keys=True)

    def _each(self, messages: Iterable[Keyed], now: Callable[[], float], timeout: float | None) -> Each:
        return Each(messages, lambda key: _checked(key, MOST_KEY), now, self._time(timeout))

    def _job_of_each(self, items: Sequence[Item], timeout: float) -> Job:
        """A job of messages to different subjects."""
        path = self._prefix + "publish"
        tries = self._options.tries
        return Job(items, path, "", timeout, tries, many=True, own_keys=True, apart=True)

    def _job_of_broadcast(
        self, subjects: Collection[str], payload: Mapping[str, Any], key: str | None, timeout: float | None
    ) -> Job:
        # These are the keys that the server gives the messages. They do not depend on the order of the subjects.
        own = None if key is None else _checked(key, MOST_KEY - _INDEX) + _EACH
        items = []
        for subject in subjects:
            known = None if own is None else digest(encode(subject, payload))
            items.append(Item(b"", own or "", known))
        return Job(
            items,
            self._prefix + "broadcast",
            key or uuid.uuid4().hex,
            self._time(timeout),
            self._options.tries,
            many=True,
            body=dump({"subjects": list(subjects), "payload": payload}),
        )

    def _job_of_all(self, messages: Iterable[Message], key: str | None, timeout: float | None) -> Job:
        """One request for the whole list, also on every retry."""
        bodies = [encode(*message) for message in messages]
        if key is not None:
            _checked(key, MOST_KEY - _INDEX)
        items = [
            Item(b"", "", None) if key is None else Item(b"", f"{key}:{index}", digest(body))
            for index, body in enumerate(bodies)
        ]
        return Job(
            items,
            self._prefix + "publish?atomic=true",
            key or uuid.uuid4().hex,
            self._time(timeout),
            self._options.tries,
            many=True,
            body=b"[" + b",".join(bodies) + b"]",
        )

    def _job_of_signal(
        self, workspace_id: Id, chat_id: Id, user_id: Id, kind: str, data: Any, timeout: float | None
    ) -> Job:
        fields = {
            "workspace_id": workspace_id,
            "chat_id": chat_id,
            "user_id": user_id,
            "kind": kind,
            "data": data,
        }
        seconds = min(self._options.timeout, SIGNAL) if timeout is None else self._time(timeout)
        path = self._prefix + "signal"
        return Job([Item(b"", "")], path, None, seconds, self._options.tries, body=dump(fields))

    def _time(self, timeout: float | None) -> float:
        return self._options.timeout if timeout is None else _seconds("timeout", timeout)

    def _job(
        self,
        items: Sequence[Item],
        key: str,
        timeout: float | None,
        *,
        many: bool = False,
        own_keys: bool = False,
    ) -> Job:
        path, seconds = self._prefix + "publish", self._time(timeout)
        return Job(items, path, key, seconds, self._options.tries, many=many, own_keys=own_keys)


class Tally:
    """Collects the outcomes of many messages, batch by batch. ``key`` is the key of the whole list."""

    def __init__(self, key: str | None) -> None:
        self.key = None if key is None else _checked(key, MOST_KEY - _INDEX)
        self.positions: list[Position] = []

    def add(self, job: Job) -> None:
        """Add a batch. Raises :class:`PublishFailed` with the outcomes of all messages so far if one of them failed."""
        try:
            self.positions += job.result()
        except PublishFailed as error:
            error.positions = [*self.positions, *error.positions]
            error.errors = [*([None] * len(self.positions)), *error.errors]
            error.nothing_stored = error.nothing_stored and not self.positions
            raise


def _seconds(name: str, seconds: float) -> float:
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name}: a number of seconds above 0")
    return seconds


def _checked(key: str, most: int) -> str:
    if not _KEY.fullmatch(key) or len(key) > most:
        text = f"the key must be 1 to {most} visible ASCII characters"
        raise PublishFailed("bad_request", text, 400, nothing_stored=True)
    return key
