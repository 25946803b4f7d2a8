"""Records stored for all nodes, in a separate stream.

    {stream}_KEPT                    the stream
    control.{stream}.kept.{key}      a record; it expires by itself (per-message TTL)

A record replaces the previous one under its key (roll-up), in one step, and only if that is the record it was derived from. Nothing
else removes a record. Somebody who publishes to a stream can have the acknowledgement sent to one of these subjects: such a message
lies beside the records, is not one, and goes with ``max_age``. If the stream is full, a new record is refused, and none is
dropped for it.

All methods raise ``Unavailable`` if the server cannot be asked now, or does not store.
"""

from __future__ import annotations

import math
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import msgspec

from notify.errors import Unavailable
from notify.nats import headers
from notify.nats.asking import Asking
from notify.nats.jetstream import ApiError, JetStream, covers

#: the longest time in seconds for which a record may be kept
OLDEST = 366 * 86400

_MOST = 250_000  # messages; there is no limit in bytes, which NATS would reserve
_LARGEST = 4096  # bytes per message
_PAGE = 1000  # messages per read
_PAGE_BYTES = 2**20
_ATTEMPTS = 5  # if others store something under the same key at the same time
_NANO = 10**9

# JetStream's errors for a wrong Nats-Expected-Last-Subject-Sequence (nats-server, server/errors.json).
_WRONG_LAST = frozenset({10071, 10164})


class KeptStream:
    """See the module docstring. ``now()`` is Unix time in seconds; ``heard(key, record)`` is called with each record that is read."""

    def __init__(
        self,
        connection: Asking,
        jetstream: JetStream,
        stream: str,
        replicas: int,
        now: Callable[[], float],
        heard: Callable[[str, bytes], None],
    ) -> None:
        self._connection = connection
        self._jetstream = jetstream
        self._prefix = f"control.{stream}.kept."
        self.name = f"{stream}_KEPT"
        self._replicas = replicas
        self._now = now
        self._heard = heard
        self._created = ""
        self._read_to = 0

    @property
    def subjects(self) -> str:
        """The subject pattern of all records."""
        return f"{self._prefix}>"

    def concerns(self, words: str) -> bool:
        """Whether NATS's words about a missing permission concern this stream."""
        return f".{self.name.lower()}" in words.lower()

    def key(self, subject: bytes) -> str:
        """The key of a record, from its subject."""
        return subject.decode("utf-8", "replace").removeprefix(self._prefix)

    async def ensure(self) -> None:
        """Create, update or check the stream. Also raises ``StartError``."""
        await self._jetstream.ensure_stream(self.name, self._wanted, self._required)

    async def catch_up(self) -> None:
        """Read the records stored since the last call; all of them if the stream was recreated or has gone back."""
        try:
            answer = await self._jetstream.api(f"STREAM.INFO.{self.name}")
        except ApiError as error:
            raise Unavailable(f"stream {self.name}: {error}") from None
        created, last = str(answer["created"]), int(answer["state"]["last_seq"])
        if created != self._created or last < self._read_to:
            self._created, self._read_to = created, 0
        if last > self._read_to:
            await self._read()
            self._read_to = max(self._read_to, last)

    async def _read(self) -> None:
        # Any replica answers the pages, perhaps not up to the end; the rest comes from the leader.
        while True:
            start = {"seq": self._read_to + 1, "next_by_subj": self.subjects}
            body = msgspec.json.encode({**start, "batch": _PAGE, "max_bytes": _PAGE_BYTES})
            *replies, end = await self._connection.gather(f"$JS.API.DIRECT.GET.{self.name}", body)
            status = headers.status(end.block)
            if status not in (204, 404):
                raise Unavailable(f"what is kept cannot be read: {headers.description(end.block)}")
            for reply in replies:
                subject = headers.text(reply.block, headers.SUBJECT)
                self._take(headers.number(reply.block, headers.SEQUENCE), subject, reply.data)
            if not replies:
                break
        while message := await self._get({"seq": self._read_to + 1, "next_by_subj": self.subjects}):
            self._take(int(message["seq"]), message["subject"], b64decode(message.get("data", "")))

    def _take(self, seq: int, subject: str, data: bytes) -> None:
        self._read_to = max(self._read_to, seq)
        self._heard(self.key(subject.encode()), data)

    async def keep(self, key: str, merge: Callable[[bytes | None], bytes], until: float) -> None:
        """Replace the record under a key by what ``merge`` returns for the present one, or for None if there is none."""
        subject = self._prefix + key
        for _ in range(_ATTEMPTS):
            there = await self._get({"last_by_subj": subject})
            record = merge(b64decode(there.get("data", "")) if there else None)
            fields = {
                "Nats-Rollup": "sub",
                "Nats-Expected-Last-Subject-Sequence": str(there["seq"] if there else 0),
                "Nats-TTL": f"{max(1, math.ceil(until - self._now()))}s",
            }
            reply = await self._connection.request(subject, record, None, fields)
            try:
                error = msgspec.json.decode(reply.data).get("error")
            except (msgspec.DecodeError, AttributeError):
                raise Unavailable("nobody keeps it") from None
            if not error:
                return
            if error.get("err_code") not in _WRONG_LAST:
                raise Unavailable(f"stream {self.name}: {error.get('description')}")
        raise Unavailable("others keep something under the same key at the same time")

    async def _get(self, request: dict[str, Any]) -> Any:
        """A message as the leader has it, or None."""
        try:
            return await self._jetstream.message(self.name, request)
        except ApiError as error:
            raise Unavailable(f"stream {self.name}: {error}") from None

    # ------------------------------------------------------------------ the stream

    def _wanted(self, have: dict[str, Any]) -> dict[str, Any]:
        return {
            "subjects": [self.subjects],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "num_replicas": self._replicas,
            "max_msgs": _MOST,
            "max_msg_size": _LARGEST,
            "max_msgs_per_subject": -1,
            "max_age": OLDEST * _NANO,
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,
        }

    def _required(self, have: dict[str, Any]) -> list[str]:
        needs = {
            "retention": "limits",
            "discard": "new",
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,
        }
        wrong = [
            f"{key} is {have.get(key)!r}, not {value!r}"
            for key, value in needs.items()
            if have.get(key) != value
        ]
        if not any(covers(subject, self.subjects) for subject in have.get("subjects") or ()):
            wrong.append(f"its subjects lack {self.subjects}")
        if have.get("max_msgs_per_subject", -1) > 0:
            wrong.append("max_msgs_per_subject is set: what is no record could take the place of one")
        if 0 < have.get("max_age", 0) < OLDEST * _NANO:
            wrong.append("max_age is less than 366 days")
        return wrong
