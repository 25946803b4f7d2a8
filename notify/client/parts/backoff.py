"""How long to wait before a retry: docs/client.md, rule 1."""

from __future__ import annotations

from collections.abc import Callable

from notify.client.actions import Settings


class Backoff:
    """Exponential backoff with full jitter: a random time between a floor and a window that doubles with each attempt up to a cap."""

    def __init__(self, settings: Settings, random: Callable[[], float]) -> None:
        self._settings, self._random = settings, random
        self._tries = 0

    def next(self) -> float:
        """Count an attempt and return the seconds to wait before it."""
        settings = self._settings
        window = min(settings.backoff_cap, settings.backoff_base * 2.0 ** min(self._tries, 30))
        self._tries += 1
        return settings.backoff_floor + self._random() * max(0.0, window - settings.backoff_floor)

    def reset(self) -> None:
        """An attempt succeeded: start over."""
        self._tries = 0
