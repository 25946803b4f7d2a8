"""What happens when. Drawn from a seed alone, so that every peer lives through the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

#: seconds that a link is cut, and that a killed server is away
OUTAGE = 2.0
#: an instant cut resets every connection at once; in a silent one both sides write into the void until it ends
INSTANT, SILENT = "instant", "silent"
RESTART, KILL = "restart", "kill"


@dataclass(frozen=True)
class Fault:
    """One fault: ``at`` seconds after the first message; ``turn`` says which of several servers it meets."""

    at: float
    kind: str
    turn: int = 0


def _calm(seconds: float) -> float:
    """How long nothing happens before the end, so that everyone can come back."""
    return min(12.0, seconds / 3)


def _cuts(seconds: float, random: Random) -> list[Fault]:
    faults: list[Fault] = []
    at = min(3.0, seconds / 8)
    while at + OUTAGE < seconds - _calm(seconds):
        faults.append(Fault(at, (INSTANT, SILENT)[len(faults) % 2]))
        at += OUTAGE + random.uniform(3.0, 6.0)
    return faults


def _turns(kind: str) -> Callable[[float, Random], list[Fault]]:
    def three(seconds: float, random: Random) -> list[Fault]:
        span = (seconds - _calm(seconds)) / 3
        return [Fault((turn + random.uniform(0.2, 0.5)) * span, kind, turn) for turn in range(3)]

    return three


#: name -> title, and what draws it
SCHEDULES: dict[str, tuple[str, Callable[[float, Random], list[Fault]]]] = {
    "cuts": (f"every link cut for {OUTAGE:g} s, again and again", _cuts),
    "restart": ("the servers restarted in turn, gracefully", _turns(RESTART)),
    "kill": (f"the servers killed in turn, and started again after {OUTAGE:g} s", _turns(KILL)),
}


def draw(name: str, seconds: float, seed: int) -> list[Fault]:
    """The faults of a schedule over ``seconds`` of traffic, in order."""
    return SCHEDULES[name][1](seconds, Random(seed))
