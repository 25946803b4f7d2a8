"""A transport without a socket, whose room the test decides."""

from __future__ import annotations

from typing import Any


class Transport:
    """A socket that takes ``room`` bytes, and Twisted's buffer behind it, as in the write-through transport."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.wire = b""
        self.buffer = b""
        self.sends: list[int] = []
        self.producer: Any = None
        self.reading = True
        self.lost = False

    def send(self, data: bytes) -> int:
        taken = data[: self.room]
        if not taken:
            raise BlockingIOError
        self.room -= len(taken)
        self.wire += taken
        self.sends.append(len(taken))
        return len(taken)

    def fileno(self) -> int:
        return -1

    def write(self, data: bytes) -> None:
        if not self.buffer:
            try:
                data = data[self.send(data) :]
            except BlockingIOError:
                pass
        self.buffer += data
        if self.buffer and self.producer:
            self.producer.pauseProducing()

    def drain(self, room: int) -> None:
        self.room += room
        taken, self.buffer = self.buffer[: self.room], self.buffer[self.room :]
        self.room -= len(taken)
        self.wire += taken
        if not self.buffer and self.producer:
            self.producer.resumeProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def loseConnection(self) -> None:
        self.lost = True

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True
