"""Two ends of a link in one process: what one writes, the other receives in a later turn, in pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from notify.core.dispatcher import end_of_turn
from notify.workers.link import Link


class Joined:
    """The two ends of a link. If one gives it up, ``ended`` gets the reason, and ``given_up`` is called."""

    def __init__(self, reactor: Any, piece: int = 7, most_waiting: int = 2**20) -> None:
        self.ended: list[str] = []
        self.given_up: Callable[[], object] = lambda: None
        soon = end_of_turn(reactor)

        def writer(other: str) -> Any:
            def write(data: bytes) -> None:
                pieces = [data[at : at + piece] for at in range(0, min(len(data), 40 * piece), piece)]
                pieces.append(data[40 * piece :])
                for part in pieces:
                    reactor.callLater(0, lambda part=part: getattr(self, other).received(part))

            return write

        self.head = Link(writer("worker"), soon, self.end, most_waiting)
        self.worker = Link(writer("head"), soon, self.end, most_waiting)

    def end(self, reason: str) -> None:
        """Give up the link, as one of its ends does."""
        self.ended.append(reason)
        self.head.gone()
        self.worker.gone()
        self.given_up()
