"""Commands that the application sends and waits for: docs/client.md, rule 22."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from notify.client.actions import Action, Done, Failed, Frame, Position, Settings
from notify.client.parts.requests import HISTORY, Refusal, Request, Requests, positioned


class Command(Struct):
    """A presence, history or ping command that a caller waits for."""

    frame: Frame
    deadline: float
    sent: float = 0.0


class Commands:
    """The pending commands. They outlive connections: an unanswered command is sent again on the next connection."""

    def __init__(self, settings: Settings, requests: Requests, do: Callable[[Action], None]) -> None:
        self._settings, self._requests, self._do = settings, requests, do
        self._waiting: dict[int, Command] = {}

    def add(self, n: int, frame: Frame, now: float) -> None:
        """Send a command now or once connected. It ends with ``Done`` or ``Failed`` with this ``n``."""
        if len(self._waiting) >= self._settings.max_commands:
            self._do(Failed(n, "busy"))
            return
        self._waiting[n] = Command(frame, now + self._settings.command_timeout)
        if self._requests.ready:
            self._send(n, now)

    def connected(self, now: float) -> None:
        """The connection is authenticated."""
        for n in list(self._waiting):
            self._send(n, now)

    def answered(self, request: Request, frame: Frame, now: float) -> None:
        """The server answered. An answer that came too late is ignored."""
        command = self._waiting.pop(request.key, None)
        if command is None:
            return
        took = now - command.sent
        if command.frame["type"] != HISTORY:
            self._do(Done(request.key, took, frame.get("users")))
            return
        messages = frame.get("messages")
        if not isinstance(messages, list):
            self._do(Failed(request.key, "internal", "the answer has no messages"))
            return
        page = [message for message in messages if positioned(message)]
        start, end = _place(frame, "start"), _place(frame, "seq")
        self._do(Done(request.key, took, None, page, frame.get("more") is True, start, end))

    def refused(self, request: Request, refusal: Refusal, now: float) -> None:
        """The server refused the command."""
        if self._waiting.pop(request.key, None) is not None:
            self._do(Failed(request.key, refusal.code, refusal.message))

    def due(self) -> float | None:
        """When the first command times out."""
        return min((command.deadline for command in self._waiting.values()), default=None)

    def tick(self, now: float) -> None:
        """Fail the commands that have timed out."""
        for n in [n for n, command in self._waiting.items() if command.deadline <= now]:
            del self._waiting[n]
            self._do(Failed(n, "timeout"))

    def close(self) -> None:
        """Fail all commands."""
        waiting, self._waiting = self._waiting, {}
        for n in waiting:
            self._do(Failed(n, "closed"))

    def _send(self, n: int, now: float) -> None:
        command = self._waiting[n]
        if command.frame["type"] == HISTORY and HISTORY not in self._requests.features:
            del self._waiting[n]
            self._do(Failed(n, "unsupported", "this server gives clients no history"))
            return
        command.sent = now
        self._requests.ask(self, n, command.frame, now)


def _place(frame: Frame, name: str) -> Position | None:
    epoch, seq = frame.get("epoch"), frame.get(name)
    return Position(epoch, seq) if isinstance(epoch, str) and isinstance(seq, int) else None
