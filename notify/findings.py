"""What ``notify doctor`` reports, and how plugins contribute to it.

A plugin's class may offer ``async def diagnose(settings, question) -> list[Finding]`` as a static method. It runs on
asyncio, outside any server, and must not change anything.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Level = Literal["ok", "note", "warning", "fault"]


class Finding(Struct, frozen=True):
    """The result of one check: what was found and, where something is wrong, how to fix it.

    ``note``: worth knowing, or cannot be checked from here. ``warning``: works, but will cause trouble one day.
    ``fault``: does not work.
    """

    level: Level
    check: str
    text: str
    mend: str = ""


class Question(Struct, frozen=True):
    """The requirements that a deployment is checked against.

    ``resume_window``: how long, in seconds, a client may be away without missing a message.
    """

    resume_window: float
    #: messages that one resume may replay
    replay: int


def span(seconds: float) -> str:
    """A duration in words that are easy to read."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
