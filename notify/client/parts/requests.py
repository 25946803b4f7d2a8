"""The frames that a client sends on its current connection, and those that the server has not answered yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from msgspec import Struct

from notify.client.actions import Action, Frame, Send, Settings
from notify.client.parts.pace import Pace

#: error codes that are retried if the server does not say (docs/client.md, rule 15)
RETRIED = frozenset(("unavailable", "history_unavailable", "rate_limited", "internal"))
#: the feature with which the server answers ``history``
HISTORY = "history"
#: the feature with which the server forwards signals from chat members
SIGNALS = "signals"


def positioned(frame: Any) -> bool:
    """Whether a frame is a message with a valid position."""
    return (
        isinstance(frame, dict)
        and isinstance(frame.get("epoch"), str)
        and isinstance(frame.get("seq"), int)
        and isinstance(frame.get("prev"), int)
    )


class Refusal(Struct, frozen=True):
    """The contents of an ``error`` from the server. ``again``: a retry may succeed later."""

    code: str
    message: str
    again: bool

    @classmethod
    def of(cls, frame: Frame) -> Refusal:
        """Read an ``error`` frame."""
        code = str(frame.get("code", ""))
        return cls(code, str(frame.get("message", "")), bool(frame.get("retry", code in RETRIED)))


class Asker(Protocol):
    """A module that sends requests to the server."""

    def answered(self, request: Request, frame: Frame, now: float) -> None:
        """The server carried out the request."""

    def refused(self, request: Request, refusal: Refusal, now: float) -> None:
        """The server refused the request."""


class Request(Struct, frozen=True):
    """A frame that the server has not answered yet. ``key`` is how its asker identifies it."""

    id: int
    asker: Asker
    key: Any
    sent: float


class Requests:
    """The outgoing side of a connection. Ids continue across connections, so that a late answer is never mistaken for another."""

    def __init__(self, settings: Settings, do: Callable[[Action], None]) -> None:
        #: the connection is authenticated
        self.ready = False
        #: the optional features that the server has granted on this connection
        self.features: frozenset[str] = frozenset()
        self.pace = Pace(settings)
        self._timeout = settings.answer_timeout
        self._do = do
        self._ids = 0
        self._unanswered: dict[int, Request] = {}

    def grant(self, features: Any) -> None:
        """The connection is authenticated, with these features in force."""
        named = features if isinstance(features, list) else []
        self.ready, self.features = True, frozenset(one for one in named if isinstance(one, str))

    def send(self, frame: Frame, now: float) -> None:
        """Send a frame that expects no answer."""
        self.pace.spend(now)
        self._do(Send(frame))

    def ask(self, asker: Asker, key: Any, frame: Frame, now: float) -> int:
        """Send a frame and remember its asker. Returns the frame's id."""
        self._ids += 1
        self._unanswered[self._ids] = Request(self._ids, asker, key, now)
        self.send({**frame, "id": self._ids}, now)
        return self._ids

    def answered(self, frame: Frame, now: float) -> None:
        """An answer arrived. It is ignored if nobody waits for it."""
        request = self._take(frame)
        if request is not None:
            request.asker.answered(request, frame, now)

    def refused(self, frame: Frame, refusal: Refusal, now: float) -> bool:
        """An error arrived. Returns whether it answered a request."""
        request = self._take(frame)
        if request is not None:
            request.asker.refused(request, refusal, now)
        return request is not None

    def due(self) -> float | None:
        """When the oldest request times out, after which the connection counts as dead."""
        oldest = next(iter(self._unanswered.values()), None)
        return None if oldest is None else oldest.sent + self._timeout

    def forget(self) -> None:
        """The connection is lost."""
        self.ready, self.features = False, frozenset()
        self._unanswered.clear()

    def _take(self, frame: Frame) -> Request | None:
        id = frame.get("id")
        return self._unanswered.pop(id, None) if isinstance(id, int) else None
