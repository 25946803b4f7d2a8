"""What the publishers for threads, for asyncio and for Twisted have in common: how they are made, and the jobs they hand in."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from notify.client._job import Job
from notify.client._messages import encode
from notify.client._outcome import Item, PublishFailed
from notify.client._publishing import Options
from notify.client._wire import Address
from notify.client.actions import Position

_KEY = re.compile(r"[!-~]{1,128}", re.ASCII)


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
        for name, seconds in (("timeout", options.timeout), ("try_timeout", options.try_timeout)):
            _seconds(name, seconds)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        self._path = parts.path.rstrip("/")
        self._address = Address(secure, parts.hostname, port, self._path + "/v1/stream")
        self._api_key, self._options = api_key, options

    def _job_of_one(
        self, subject: str, payload: Mapping[str, Any], key: str | None, timeout: float | None
    ) -> Job:
        key = uuid.uuid4().hex if key is None else _checked(key)
        return self._job([Item(encode(subject, payload), key)], key, timeout)

    def _job_of_many(self, batch: Sequence[bytes], timeout: float | None) -> Job:
        key = uuid.uuid4().hex
        items = [Item(body, f"{key}:{index}") for index, body in enumerate(batch)]
        return self._job(items, key, timeout, many=True)

    def _job(self, items: Sequence[Item], key: str, timeout: float | None, *, many: bool = False) -> Job:
        timeout = self._options.timeout if timeout is None else _seconds("timeout", timeout)
        return Job(items, self._path, key, timeout, self._options.tries, many=many)


class Tally:
    """What became of many messages so far, batch after batch."""

    def __init__(self) -> None:
        self.positions: list[Position] = []

    def add(self, job: Job) -> None:
        """Take a batch. Raises :class:`PublishFailed` with what became of all."""
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


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        text = "the key must be 1 to 128 visible ASCII characters"
        raise PublishFailed("bad_request", text, 400, nothing_stored=True)
    return key
