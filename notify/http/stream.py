"""A streamed answer: connects the producer that writes it with the connection that sends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Streaming:
    """A :class:`~notify.http.answers.Sink`.

    ``chunks``: the client supports chunked bodies. ``done()`` is called at the end.
    """

    def __init__(self, transport: Any, chunks: bool, done: Callable[[], None]) -> None:
        self._transport = transport
        self._chunks = chunks
        self._done: Callable[[], None] | None = done
        self._producer: Any = None

    def start(self, producer: Any, blocked: bool) -> None:
        """Set the producer that writes the answer; it starts paused if the client is ``blocked``."""
        if self._done is not None:
            self._producer = producer
            if blocked:
                producer.pauseProducing()

    def write(self, data: bytes) -> None:
        """See :class:`~notify.http.answers.Sink`."""
        if data and self._done is not None:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunks else data)

    def finish(self) -> None:
        """See :class:`~notify.http.answers.Sink`."""
        done, self._done, self._producer = self._done, None, None
        if done is not None:
            if self._chunks:
                self._transport.write(b"0\r\n\r\n")
            done()

    def pause(self) -> None:
        """The client does not take what was written."""
        if self._producer is not None:
            self._producer.pauseProducing()

    def resume(self) -> None:
        """The client has taken everything."""
        if self._producer is not None:
            self._producer.resumeProducing()

    def stop(self) -> None:
        """The client is gone."""
        producer, self._producer, self._done = self._producer, None, None
        if producer is not None:
            producer.stopProducing()
