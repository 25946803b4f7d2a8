"""Reads of single messages from the stream's leader, whose answer is authoritative when copies are not trusted."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from notify.brokers.jetstream.stored import Stored
from notify.brokers.jetstream.stream import Streams
from notify.errors import HistoryLost, Unavailable
from notify.nats.jetstream import ApiError


class Leader:
    """See the module docstring. Methods raise ``Unavailable`` if the leader cannot be asked now."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def newest(self, subject: str, since: int = 1) -> int:
        """The newest number of one subject; 0 if there is none from ``since`` on."""
        if since > 1 and await self._get({"seq": since, "next_by_subj": subject}) is None:
            return 0  # this read transfers no message
        message = await self._get({"last_by_subj": subject})
        return 0 if message is None else int(message["seq"])

    async def next(self, subject: str, start: int, epoch: str) -> Stored | None:
        """A subject's first message from a number on, or None."""
        message = await self._get({"seq": start, "next_by_subj": subject})
        if message is None:
            return None
        data, block = b64decode(message.get("data", "")), b64decode(message.get("hdrs", ""))
        return Stored.of(message["seq"], data, block, epoch)

    async def at(self, seq: int) -> tuple[str, bytes]:
        """The subject and payload of the message with a number. Raises ``HistoryLost`` if there is none."""
        message = await self._get({"seq": seq})
        if message is None:
            raise HistoryLost(f"number {seq} is gone")
        return message["subject"], b64decode(message.get("data", ""))

    async def _get(self, request: dict[str, Any]) -> Any:
        """The requested message, or None."""
        try:
            return await self._streams.message(self._streams.name, request)
        except ApiError as error:
            raise Unavailable(f"stream {self._streams.name}: {error}") from None
