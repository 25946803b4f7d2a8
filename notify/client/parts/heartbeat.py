"""Whether the connection is alive: docs/client.md, rule 7."""

from __future__ import annotations

from notify.client.actions import Settings
from notify.client.parts.requests import Requests


class Heartbeat:
    """Sends a ping after some silence, and notices when there is no answer. Runs while connected."""

    def __init__(self, settings: Settings, requests: Requests) -> None:
        #: when to send a ping, or when to give up
        self.due: float | None = None
        self._settings, self._requests = settings, requests
        self._interval = settings.ping_interval
        self._asked = False

    def start(self, now: float, interval: float | None) -> None:
        """The connection is authenticated. ``interval`` is the server's ping interval in seconds, if it names one."""
        self._interval = float(interval or self._settings.ping_interval)
        self._asked, self.due = False, now + self._interval

    def stop(self) -> None:
        """The connection is lost."""
        self.due = None

    def heard(self, now: float) -> None:
        """Something was received."""
        if self.due is not None:
            self._asked, self.due = False, now + self._interval

    def silent(self, now: float) -> bool:
        """Whether it is time to send a ping."""
        return self.due is not None and not self._asked and self.due <= now

    def dead(self, now: float) -> bool:
        """Whether a ping was sent and nothing was received in time."""
        return self.due is not None and self._asked and self.due <= now

    def probe(self, now: float) -> None:
        """Send a ping, unless one is already in flight."""
        if not self._asked:
            self._asked, self.due = True, now + self._settings.pong_timeout
            self._requests.send({"type": "ping"}, now)
