"""What ``notify doctor`` finds, and what it asks of plugins.

A plugin's class may offer ``async def diagnose(settings, question) -> list[Finding]`` as a static method; it runs on
asyncio, apart from any server, and changes nothing.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Level = Literal["ok", "note", "warning", "fault"]


class Finding(Struct, frozen=True):
    """One thing that was looked at: what is so, and how to mend it where it is not well.

    ``note``: cannot be told from here, or worth knowing. ``warning``: works, and will hurt one day. ``fault``: does not
    work.
    """

    level: Level
    check: str
    text: str
    mend: str = ""


class Question(Struct, frozen=True):
    """What a deployment is measured by. ``resume_window``: how long (seconds) a client may be away and miss nothing."""

    resume_window: float
    #: messages that one resumption may replay
    replay: int


def span(seconds: float) -> str:
    """A duration in words that a person reads at once."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
