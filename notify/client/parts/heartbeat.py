"""Whether the link is alive: docs/client.md, rule 7."""

from __future__ import annotations

from notify.client.actions import Settings
from notify.client.parts.requests import Requests


class Heartbeat:
    """Asks for a sign of life after some silence, and says when none has come. Runs while connected."""

    def __init__(self, settings: Settings, requests: Requests) -> None:
        #: when to ask, or when to give up
        self.due: float | None = None
        self._settings, self._requests = settings, requests
        self._interval = settings.ping_interval
        self._asked = False

    def start(self, now: float, interval: float | None) -> None:
        """The connection stands; ``interval`` is the server's, in seconds."""
        self._interval = float(interval or self._settings.ping_interval)
        self._asked, self.due = False, now + self._interval

    def stop(self) -> None:
        """The connection is gone."""
        self.due = None

    def heard(self, now: float) -> None:
        """Something came."""
        if self.due is not None:
            self._asked, self.due = False, now + self._interval

    def silent(self, now: float) -> bool:
        """Whether it is time to ask."""
        return self.due is not None and not self._asked and self.due <= now

    def dead(self, now: float) -> bool:
        """Whether nothing has come though it was asked for."""
        return self.due is not None and self._asked and self.due <= now

    def probe(self, now: float) -> None:
        """Ask, unless that is done already."""
        if not self._asked:
            self._asked, self.due = True, now + self._settings.pong_timeout
            self._requests.send({"type": "ping"}, now)
