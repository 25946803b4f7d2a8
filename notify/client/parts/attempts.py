"""Whether the client comes back after a connection, and when: docs/client.md, rules 1 to 5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from notify.client.actions import Settings
from notify.client.parts.backoff import Backoff

#: close codes of the server that the client does something about (docs/protocol.md)
TOKEN_EXPIRED, AUTH_FAILED, AUTH_TIMEOUT = 4002, 4500, 4501
#: authentication time-outs in a row after which the client ends
MAX_AUTH_TIMEOUTS = 3


class Attempts:
    """The tries to have a connection since the last stable one."""

    def __init__(self, settings: Settings, random: Callable[[], float]) -> None:
        #: the server has named the time of the next try
        self.advised = False
        self._settings = settings
        self._backoff = Backoff(settings, random)
        self._connected_at: float | None = None
        self._auth_timeouts = 0

    def start(self) -> None:
        """Begin anew."""
        self._backoff.reset()
        self._connected_at, self._auth_timeouts = None, 0

    def connected(self, now: float) -> None:
        """A try has succeeded."""
        self._connected_at, self._auth_timeouts = now, 0

    def final(self, code: int) -> bool:
        """Whether the server's close with this code ends the client. ``AUTH_FAILED`` is the caller's to judge."""
        if code == AUTH_TIMEOUT:
            self._auth_timeouts += 1
            return self._auth_timeouts >= MAX_AUTH_TIMEOUTS
        return 4500 <= code <= 4999

    def next(self, now: float, advice: float | None) -> float:
        """The seconds to wait before the next try, which is counted; ``advice`` is the server's."""
        if self._connected_at is not None and now - self._connected_at >= self._settings.stable_after:
            self._backoff.reset()
        self._connected_at = None
        delay = self._backoff.next()
        self.advised = advice is not None
        if advice is not None:
            delay = max(self._settings.backoff_floor, min(advice, self._settings.advice_cap))
        return delay


def advice(reason: str) -> tuple[float | None, bool]:
    """A close reason's advice, ``{"retry_after_ms": N, "elsewhere": true}``: seconds, None where it names none; and whether
    to come back by another ``client_id``.
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
