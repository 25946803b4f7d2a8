"""The client's own rate limit: docs/client.md, rule 16."""

from __future__ import annotations

from notify.client.actions import Settings


class Pace:
    """A token bucket for frames: ``rate`` of the settings refills it, up to ``burst``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._allowance, self._at = 0.0, 0.0

    def start(self, now: float) -> None:
        """A new connection starts with a full bucket."""
        self._allowance, self._at = float(self._settings.burst), now

    def spend(self, now: float) -> None:
        """Count a frame that is sent, whether allowed or not."""
        self._earn(now)
        self._allowance -= 1

    def allows(self, now: float) -> bool:
        """Whether a frame that can wait may be sent now."""
        self._earn(now)
        return self._allowance >= 0.999

    def next(self) -> float:
        """When the next frame may be sent."""
        return self._at + max(0.0, 1 - self._allowance) / self._settings.rate

    def _earn(self, now: float) -> None:
        earned = (now - self._at) * self._settings.rate
        self._allowance, self._at = min(float(self._settings.burst), self._allowance + earned), now
