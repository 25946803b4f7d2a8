"""What a client sends on the present connection, and which of it the server has not answered yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from msgspec import Struct

from notify.client.actions import Action, Frame, Send, Settings
from notify.client.parts.pace import Pace

#: error codes that are retried where the server does not say (docs/client.md, rule 15)
RETRIED = frozenset(("unavailable", "history_unavailable", "rate_limited", "internal"))
#: the feature that has the server answer ``history``
HISTORY = "history"
#: that with which it passes on what the members of a chat signal
SIGNALS = "signals"


def positioned(frame: Any) -> bool:
    """Whether a message is one, and names its position as it should."""
    return (
        isinstance(frame, dict)
        and isinstance(frame.get("epoch"), str)
        and isinstance(frame.get("seq"), int)
        and isinstance(frame.get("prev"), int)
    )


class Refusal(Struct, frozen=True):
    """What an ``error`` of the server says. ``again``: it may succeed later."""

    code: str
    message: str
    again: bool

    @classmethod
    def of(cls, frame: Frame) -> Refusal:
        """Read an ``error`` frame."""
        code = str(frame.get("code", ""))
        return cls(code, str(frame.get("message", "")), bool(frame.get("retry", code in RETRIED)))


class Asker(Protocol):
    """A part that asks the server something."""

    def answered(self, request: Request, frame: Frame, now: float) -> None:
        """The server did what was asked."""

    def refused(self, request: Request, refusal: Refusal, now: float) -> None:
        """The server did not."""


class Request(Struct, frozen=True):
    """A frame that the server has not answered yet. ``key`` is what its asker knows it by."""

    id: int
    asker: Asker
    key: Any
    sent: float


class Requests:
    """The outgoing side of a connection. Ids go on over connections, so that no late answer is mistaken."""

    def __init__(self, settings: Settings, do: Callable[[Action], None]) -> None:
        #: the connection is authenticated
        self.ready = False
        #: what the server has granted on it beyond what everyone gets
        self.features: frozenset[str] = frozenset()
        self.pace = Pace(settings)
        self._timeout = settings.answer_timeout
        self._do = do
        self._ids = 0
        self._unanswered: dict[int, Request] = {}

    def grant(self, features: Any) -> None:
        """The connection is authenticated, and the server has said which features are in force."""
        named = features if isinstance(features, list) else []
        self.ready, self.features = True, frozenset(one for one in named if isinstance(one, str))

    def send(self, frame: Frame, now: float) -> None:
        """Send a frame that has no answer of its own."""
        self.pace.spend(now)
        self._do(Send(frame))

    def ask(self, asker: Asker, key: Any, frame: Frame, now: float) -> int:
        """Send a frame and remember who asked; gives its id."""
        self._ids += 1
        self._unanswered[self._ids] = Request(self._ids, asker, key, now)
        self.send({**frame, "id": self._ids}, now)
        return self._ids

    def answered(self, frame: Frame, now: float) -> None:
        """An answer came; one that nobody waits for is ignored."""
        request = self._take(frame)
        if request is not None:
            request.asker.answered(request, frame, now)

    def refused(self, frame: Frame, refusal: Refusal, now: float) -> bool:
        """An error came. Whether it was an answer."""
        request = self._take(frame)
        if request is not None:
            request.asker.refused(request, refusal, now)
        return request is not None

    def due(self) -> float | None:
        """When the oldest must be answered, for the link to count as alive."""
        oldest = next(iter(self._unanswered.values()), None)
        return None if oldest is None else oldest.sent + self._timeout

    def forget(self) -> None:
        """The connection is gone."""
        self.ready, self.features = False, frozenset()
        self._unanswered.clear()

    def _take(self, frame: Frame) -> Request | None:
        id = frame.get("id")
        return self._unanswered.pop(id, None) if isinstance(id, int) else None
