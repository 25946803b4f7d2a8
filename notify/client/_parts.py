"""Parts of the client's state machine: what it keeps of each topic and request, its token, how fast it may send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec import Struct

from notify.client.actions import Frame, Position, Settings


class Topic(Struct):
    """What the machine keeps of one chat, or of the notifications (``chat`` None)."""

    chat: int | None
    position: Position | None = None
    watch: bool = False
    live: bool = False
    paused: bool = False
    #: something was thrown away while paused
    behind: bool = False
    #: a message was handed over since the last gap
    progress: bool = True
    tries: int = 0
    request: int | None = None

    def judge(self, frame: Frame) -> Literal["next", "duplicate", "gap"]:
        """What a message is, seen from the position."""
        if self.position is None or frame["epoch"] != self.position.epoch:
            return "gap"
        if frame["seq"] <= self.position.seq:
            return "duplicate"
        return "gap" if frame["prev"] > self.position.seq else "next"

    def advance(self, frame: Frame) -> None:
        """A message is handed over."""
        self.position, self.progress, self.tries = Position(frame["epoch"], frame["seq"]), True, 0


class Command(Struct):
    """A presence or ping that someone waits for."""

    frame: Frame
    deadline: float
    request: int | None = None
    sent: float = 0.0


class Request(Struct, frozen=True):
    """A frame that the server has not answered yet."""

    kind: str
    key: int
    sent: float


class Credentials:
    """The token in use, the one that is to replace it, and when that has to happen. Times as in the machine."""

    def __init__(self, settings: Settings, random: Callable[[], float], unix: Callable[[], float]) -> None:
        self.value: str | None = None
        #: a server took this token once
        self.accepted = False
        #: when to fetch the next one
        self.refresh_at: float | None = None
        self._settings, self._random, self._unix = settings, random, unix
        self._obtained = 0.0
        self._expires: float | None = None
        self._lifetime: float | None = None
        self._offered: tuple[str, float, float | None] | None = None

    @property
    def replacing(self) -> bool:
        """Whether a new token was offered to the server, and not answered."""
        return self._offered is not None

    def usable(self, now: float) -> bool:
        """Whether to try with the token at hand."""
        return self.value is not None and (self._expires is None or now < self._expires)

    def adopt(self, value: str, now: float, expires_at: float | None) -> None:
        """Use this token; ``expires_at`` is Unix time, where it is known."""
        self.value, self._obtained, self.accepted = value, now, False
        self._expires = None if expires_at is None else now + expires_at - self._unix()

    def drop(self) -> None:
        """Use it no more."""
        self.value = None

    def confirmed(self, now: float, expires_at: float | None) -> None:
        """The server took it."""
        self.accepted = True
        self._schedule(now, expires_at)

    def offer(self, value: str, now: float, expires_at: float | None) -> None:
        """This one was sent to replace it."""
        self._offered = value, now, expires_at

    def replaced(self, now: float, expires_at: float | None) -> None:
        """The server took the one that was offered.

        Where nobody says when it expires, it is taken to live as long as the one before it.
        """
        if self._offered is not None:
            value, obtained, known = self._offered
            self.adopt(value, obtained, None)
            if known is None and expires_at is None and self._lifetime is not None:
                self._expires = obtained + self._lifetime
            self._offered = None
            self.confirmed(now, expires_at if expires_at is not None else known)

    def disconnected(self) -> None:
        """Nothing is replaced without a connection."""
        self._offered = self.refresh_at = None

    def not_replaced(self, at: float) -> None:
        """Try again then."""
        self._offered, self.refresh_at = None, at

    def _schedule(self, now: float, expires_at: float | None) -> None:
        """Replace it early enough, and not all clients at once.

        Where it has expired by our clock though the server took it, our clock is wrong: then 4002 will tell.
        """
        if expires_at is not None:
            self._expires = now + expires_at - self._unix()
            self._lifetime = self._expires - self._obtained
        self.refresh_at = None
        if self._expires is not None and self._expires <= now:
            self._expires = None
        if self._expires is not None:
            margin = min(self._settings.refresh_margin, (self._expires - now) / 4)
            self.refresh_at = self._expires - margin * (1 + self._random())


class Pace:
    """A bucket of frames that fills at the settings' rate up to their burst."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._allowance, self._at = 0.0, 0.0

    def start(self, now: float) -> None:
        """A new connection has a full bucket."""
        self._allowance, self._at = float(self._settings.burst), now

    def spend(self, now: float) -> None:
        """A frame is sent, whether allowed or not."""
        self._earn(now)
        self._allowance -= 1

    def allows(self, now: float) -> bool:
        """Whether a frame that can wait may be sent."""
        self._earn(now)
        return self._allowance >= 0.999

    def next(self) -> float:
        """When one will be."""
        return self._at + max(0.0, 1 - self._allowance) / self._settings.rate

    def _earn(self, now: float) -> None:
        earned = (now - self._at) * self._settings.rate
        self._allowance, self._at = min(float(self._settings.burst), self._allowance + earned), now


def positioned(frame: Frame) -> bool:
    """Whether a message names its position as it should."""
    return (
        isinstance(frame.get("epoch"), str)
        and isinstance(frame.get("seq"), int)
        and isinstance(frame.get("prev"), int)
    )


def advice(reason: str) -> float | None:
    """Seconds of ``{"retry_after_ms": N}``, a close reason's advice; None: there is none."""
    try:
        wait = msgspec.json.decode(reason)["retry_after_ms"]
    except (msgspec.DecodeError, KeyError, TypeError, IndexError):
        return None
    return wait / 1000 if isinstance(wait, int | float) and not isinstance(wait, bool) and wait >= 0 else None
