"""What one client may spend: frames at a rate, and the messages and users that its frames ask for.

Pure: the caller passes the time, in seconds. A clock that was set back neither earns nor costs anything.
"""

from __future__ import annotations

from notify.config import Limits

#: messages read and users listed for one client: burst, and average a second. Frames past that wait
ITEMS_AT_ONCE = 1000
ITEMS_PER_SECOND = 5000


class Allowance:
    """A token bucket for frames, and a leaky bucket for items. Limits may change from call to call."""

    __slots__ = ("_at", "_frames", "_owed")

    def __init__(self, limits: Limits, now: float) -> None:
        self._at = now
        self._frames: float = limits.frames_burst
        self._owed = 0.0

    def spend(self, limits: Limits, now: float, frames: int = 1) -> bool:
        """Spend frames. Returns whether all of them are within ``frames_per_second`` and ``frames_burst``."""
        elapsed = now - self._at
        if elapsed < 0.0:
            elapsed = 0.0
        self._at = now
        if self._owed:
            self._owed = max(0.0, self._owed - elapsed * ITEMS_PER_SECOND)
        rate, burst = limits.frames_per_second, limits.frames_burst
        if rate == 0:
            return True
        left = self._frames + elapsed * rate
        if left > burst:
            left = burst
        self._frames = left = left - frames
        return left >= 0

    def flooded(self, limits: Limits) -> bool:
        """Whether the client keeps sending although it has overdrawn its allowance by a whole burst."""
        return self._frames < -limits.frames_burst

    def owe(self, items: int) -> float:
        """Charge for the messages or users that a small frame cost. Returns the seconds that the next frames must wait."""
        self._owed += items
        return max(0.0, (self._owed - ITEMS_AT_ONCE) / ITEMS_PER_SECOND)
