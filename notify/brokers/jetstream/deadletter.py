"""Dead letters: what can be delivered to nobody is kept apart, once, with the reason and where it came from.

A dead letter's subject names the message that it is made of, and is stored only where nothing is yet: however
many nodes meet a bad message, and however often, it is kept once. Its payload is the message's own.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from notify.errors import Unavailable
from notify.observe.metrics import Metrics

_REMEMBERED = 4096  # messages that were seen to, so that they are not sent again
_AT_ONCE = 64  # on their way to the stream; more are counted and logged only
_WRONG_LAST_SEQUENCE = (10071, 10164)


class DeadLetters:
    """See the module. ``subject`` is what stands before ``{epoch}.{seq}``."""

    log = Logger()

    def __init__(self, connection: Any, subject: str, metrics: Metrics) -> None:
        self._connection = connection
        self._subject = subject
        self._metrics = metrics
        self._seen: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._sending = 0

    def keep(self, epoch: str, subject: str, seq: int, payload: bytes, reason: str) -> None:
        """Count, log and keep one message. ``reason`` must not quote the payload."""
        where = (epoch, seq)
        if where in self._seen:
            return
        self._seen[where] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        self._metrics.poison.inc()
        self.log.warn(
            "dead letter: {subject} number {seq}: {reason}", subject=subject, seq=seq, reason=reason
        )
        if self._sending >= _AT_ONCE:
            self._metrics.dead_letters.labels("failed").inc()
            return
        self._sending += 1
        fields = {
            "Nats-Expected-Last-Subject-Sequence": "0",
            "Notify-Reason": reason[:500],
            "Notify-Subject": subject,
            "Notify-Sequence": str(seq),
            "Notify-Epoch": epoch,
        }
        Deferred.fromCoroutine(self._store(f"{self._subject}.{epoch}.{seq}", payload, fields, where))

    async def _store(
        self, subject: str, payload: bytes, fields: dict[str, str], where: tuple[str, int]
    ) -> None:
        result = "failed"
        try:
            reply = await self._connection.request(subject, payload, None, fields)
            answer = msgspec.json.decode(reply.data)
            error = answer.get("error")
            if error is None:
                result = "kept"
            elif error.get("err_code") in _WRONG_LAST_SEQUENCE:
                result = "known"
        except (Unavailable, msgspec.DecodeError):
            pass
        finally:
            self._sending -= 1
        if result == "failed":
            self._seen.pop(where, None)  # whoever meets it next tries again
        self._metrics.dead_letters.labels(result).inc()
