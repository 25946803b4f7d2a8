"""How long to wait before something is tried again: docs/client.md, rule 1."""

from __future__ import annotations

from collections.abc import Callable

from notify.client.actions import Settings


class Backoff:
    """Full jitter: anywhere between a floor and a window that doubles with each try up to a cap."""

    def __init__(self, settings: Settings, random: Callable[[], float]) -> None:
        self._settings, self._random = settings, random
        self._tries = 0

    def next(self) -> float:
        """The seconds to wait before the next try, which is counted."""
        settings = self._settings
        window = min(settings.backoff_cap, settings.backoff_base * 2.0 ** min(self._tries, 30))
        self._tries += 1
        return settings.backoff_floor + self._random() * max(0.0, window - settings.backoff_floor)

    def reset(self) -> None:
        """It has succeeded: start over."""
        self._tries = 0
