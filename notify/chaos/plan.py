"""The schedule of faults: given by the operator, or drawn from a seed. Without I/O.

A fault is text, so that faults drawn from a seed can be repeated, given by hand, and changed::

    at=5s kill node-2 / undo=8s start node-2
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import TypeAlias

from msgspec import Struct

from notify.config import Duration

#: faults in one run
MOST = 100

#: called with the start, the end, a node and a NATS server
_Kind: TypeAlias = Callable[[float, float, str, str], "Fault"]

#: seconds until a server of the built-in set notices by itself that it receives nothing
_SILENT = 5.0

_FAULT = re.compile(
    r"at=(?P<at>\S+)\s+(?P<do>.+?)(?:\s+/\s+undo=(?P<undo_at>\S+)\s+(?P<undo>.+))?", re.DOTALL
)


class Fault(Struct, frozen=True):
    """A command and its time, in seconds from the start of the load, and optionally the command that undoes it."""

    at: float
    do: str
    undo_at: float | None = None
    undo: str = ""

    def __str__(self) -> str:
        undo = "" if self.undo_at is None else f" / undo={self.undo_at:g}s {self.undo}"
        return f"at={self.at:g}s {self.do}{undo}"


def parse(text: str) -> Fault:
    """Parse one fault. Raises ``ValueError``."""
    match = _FAULT.fullmatch(text.strip())
    if match is None:
        raise ValueError("a fault is written 'at=TIME COMMAND', or 'at=TIME COMMAND / undo=TIME COMMAND'")
    at = float(Duration.parse(match["at"]))
    if match["undo_at"] is None:
        return Fault(at, match["do"])
    undo_at = float(Duration.parse(match["undo_at"]))
    if undo_at <= at:
        raise ValueError("a fault is undone after it was done: both times count from the beginning")
    return Fault(at, match["do"], undo_at, match["undo"])


def draw(seed: int, seconds: float, nodes: int = 3, servers: int = 3) -> list[Fault]:
    """The faults of a seed for the built-in set, one after the other, within ``seconds``.

    Sometimes clients' connections are broken while something else is also broken. Between two faults there is time to catch
    up. The last fault is undone early enough for its effects to be seen.
    """
    random = Random(seed)  # noqa: S311 - to be repeated, not to be secret
    faults: list[Fault] = []
    at = random.uniform(1.0, 2.0)
    kinds: list[_Kind] = []
    while at + 2.0 < seconds and len(faults) < MOST - 1:
        # Each kind is used once before any is repeated.
        kinds = kinds or random.sample(_KINDS, len(_KINDS))
        kind = kinds.pop()
        node, server = f"node-{random.randint(1, nodes)}", f"nats-{random.randint(1, servers)}"
        end = at + (_SILENT if kind in (_silence, _silence_link) else random.uniform(1.0, 4.0))
        end = min(end, seconds - 0.5)
        faults.append(kind(round(at, 1), round(end, 1), node, server))
        if kind not in (_cut, _silence, _silence_link) and random.random() < 0.25:
            faults.append(_cut(round((at + end) / 2, 1), round(end, 1), node, server))
        at = end + random.uniform(1.0, 3.0)
    return faults


def _kill_node(at: float, end: float, node: str, server: str) -> Fault:
    return Fault(at, f"kill {node}", end, f"start {node}")


def _pause_node(at: float, end: float, node: str, server: str) -> Fault:
    return Fault(at, f"pause {node}", end, f"resume {node}")


def _drain_node(at: float, end: float, node: str, server: str) -> Fault:
    return Fault(at, f"drain {node}", end, f"start {node}")


def _restart_nodes(at: float, end: float, node: str, server: str) -> Fault:
    return Fault(at, "restart nodes")


def _kill_server(at: float, end: float, node: str, server: str) -> Fault:
    return Fault(at, f"kill {server}", end, f"start {server}")


def _pause_server(at: float, end: float, node: str, server: str) -> Fault:
    return Fault(at, f"pause {server}", end, f"resume {server}")


def _restart_server(at: float, end: float, node: str, server: str) -> Fault:
    return Fault(at, f"restart {server}")


def _cut(at: float, end: float, node: str, server: str) -> Fault:
    return Fault(at, "cut clients")


def _silence(at: float, end: float, node: str, server: str) -> Fault:
    return Fault(at, "silence clients")


def _stall(at: float, end: float, node: str, server: str) -> Fault:
    return Fault(at, "stall clients", end, "release clients")


def _cut_link(at: float, end: float, node: str, server: str) -> Fault:
    return Fault(at, f"cut {node.replace('node', 'link')}")


def _silence_link(at: float, end: float, node: str, server: str) -> Fault:
    return Fault(at, f"silence {node.replace('node', 'link')}")


_KINDS: list[_Kind] = [
    _kill_node,
    _pause_node,
    _drain_node,
    _restart_nodes,
    _kill_server,
    _pause_server,
    _restart_server,
    _cut,
    _silence,
    _stall,
    _cut_link,
    _silence_link,
]
