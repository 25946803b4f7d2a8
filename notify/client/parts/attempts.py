"""Whether and when the client reconnects: docs/client.md, rules 1 to 5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from notify.client.actions import Settings
from notify.client.parts.backoff import Backoff

#: the server's close codes that the client treats specially (docs/protocol.md)
TOKEN_EXPIRED, AUTH_FAILED, AUTH_TIMEOUT = 4002, 4500, 4501
#: the client ends after this many authentication timeouts in a row
MAX_AUTH_TIMEOUTS = 3


class Attempts:
    """The attempts to connect since the last stable connection."""

    def __init__(self, settings: Settings, random: Callable[[], float]) -> None:
        #: the server has set the time of the next attempt
        self.advised = False
        self._settings = settings
        self._backoff = Backoff(settings, random)
        self._connected_at: float | None = None
        self._auth_timeouts = 0

    def start(self) -> None:
        """Start over."""
        self._backoff.reset()
        self._connected_at, self._auth_timeouts = None, 0

    def connected(self, now: float) -> None:
        """An attempt succeeded."""
        self._connected_at, self._auth_timeouts = now, 0

    def final(self, code: int) -> bool:
        """Whether this close code of the server ends the client. The caller decides about ``AUTH_FAILED``."""
        if code == AUTH_TIMEOUT:
            self._auth_timeouts += 1
            return self._auth_timeouts >= MAX_AUTH_TIMEOUTS
        return 4500 <= code <= 4999

    def next(self, now: float, advice: float | None) -> float:
        """Count an attempt and return the seconds to wait before it. ``advice`` is the server's, in seconds, if it gave any."""
        if self._connected_at is not None and now - self._connected_at >= self._settings.stable_after:
            self._backoff.reset()
        self._connected_at = None
        delay = self._backoff.next()
        self.advised = advice is not None
        if advice is not None:
            delay = max(self._settings.backoff_floor, min(advice, self._settings.advice_cap))
        return delay


def advice(reason: str) -> tuple[float | None, bool]:
    """Parse a close reason ``{"retry_after_ms": N, "elsewhere": true}``. Returns the seconds to wait, or None if it has none,
    and whether to reconnect with another ``client_id``.
    """
    try:
        said = msgspec.json.decode(reason)
    except msgspec.DecodeError:
        return None, False
    if not isinstance(said, dict):
        return None, False
    wait: Any = said.get("retry_after_ms")
    timed = isinstance(wait, int | float) and not isinstance(wait, bool) and wait >= 0
    return wait / 1000 if timed else None, said.get("elsewhere") is True
