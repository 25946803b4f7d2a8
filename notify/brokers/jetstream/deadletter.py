"""Dead letters: messages that cannot be delivered to anyone are stored separately, once, with the reason and their origin.

The subject of a dead letter identifies the original message, and it is stored only if that subject is still empty. However many
nodes meet a bad message, and however often, it is therefore stored once. Its payload is that of the original message.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any, NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from notify.errors import TooLarge, Unavailable
from notify.observe.metrics import Metrics

_REMEMBERED = 4096  # messages already handled, so that they are not sent again
_AT_ONCE = 64  # in flight to the stream; more wait
_HELD = 1024  # in flight and waiting; beyond that a message is left to the next node that meets it
_HELD_BYTES = 8 << 20  # bytes of their payloads
_WRONG_LAST_SEQUENCE = (10071, 10164)


class _Letter(NamedTuple):
    where: tuple[str, int]
    subject: str
    payload: bytes
    fields: dict[str, str]


class DeadLetters:
    """See the module docstring. ``subject`` is the prefix before ``{epoch}.{seq}``."""

    log = Logger()

    def __init__(self, connection: Any, subject: str, metrics: Metrics) -> None:
        self._connection = connection
        self._subject = subject
        self._metrics = metrics
        self._seen: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._waiting: deque[_Letter] = deque()
        self._workers = 0
        self._held = self._held_bytes = 0

    def keep(self, epoch: str, subject: str, seq: int, payload: bytes, reason: str) -> None:
        """Count, log and store one message. ``reason`` must not quote the payload.

        If too many are waiting, the message is only counted as failed. It is stored when it is met again.
        """
        where = (epoch, seq)
        if where in self._seen:
            return
        if self._held and (self._held >= _HELD or self._held_bytes + len(payload) > _HELD_BYTES):
            self._metrics.dead_letters.labels("failed").inc()
            return
        self._seen[where] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        self._metrics.poison.inc()
        self.log.warn(
            "dead letter: {subject} number {seq}: {reason}", subject=subject, seq=seq, reason=reason
        )
        fields = {
            "Nats-Expected-Last-Subject-Sequence": "0",
            "Notify-Reason": reason[:500],
            "Notify-Subject": subject,
            "Notify-Sequence": str(seq),
            "Notify-Epoch": epoch,
        }
        self._waiting.append(_Letter(where, f"{self._subject}.{epoch}.{seq}", payload, fields))
        self._held += 1
        self._held_bytes += len(payload)
        if self._workers < _AT_ONCE:
            self._workers += 1
            Deferred.fromCoroutine(self._work())

    async def _work(self) -> None:
        """Store the waiting messages one after the other."""
        try:
            while self._waiting:
                letter = self._waiting.popleft()
                result = "failed"
                try:
                    result = await self._store(letter)
                finally:
                    self._held -= 1
                    self._held_bytes -= len(letter.payload)
                    if result == "failed":
                        self._seen.pop(letter.where, None)  # retried when the message is met again
                    self._metrics.dead_letters.labels(result).inc()
        finally:
            self._workers -= 1

    async def _store(self, letter: _Letter) -> str:
        subject, payload, fields = letter.subject, letter.payload, letter.fields
        try:
            try:
                reply = await self._connection.request(subject, payload, None, fields)
            except TooLarge:  # the new headers are longer than its own: it stays only in the stream
                fields = {**fields, "Notify-Size": str(len(payload))}
                reply = await self._connection.request(subject, b"", None, fields)
            error = msgspec.json.decode(reply.data).get("error")
        except (TooLarge, Unavailable, msgspec.DecodeError):
            return "failed"
        if error is None:
            return "kept"
        return "known" if error.get("err_code") in _WRONG_LAST_SEQUENCE else "failed"
