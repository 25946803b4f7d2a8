"""What was published beside what each client got: delivered, doubled, out of order, told, silently lost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

#: in a client's log: here the library said that messages may be missing
TOLD = 0


@dataclass(frozen=True)
class Counts:
    """The verdict on all clients of one run."""

    #: messages that the server acknowledged to the publisher
    published: int = 0
    #: those, once for each client of their room; of these as many were delivered, or lost in one of two ways
    due: int = 0
    delivered: int = 0
    #: lost, and at that place the library said that something may be missing
    told: int = 0
    #: lost, and nobody said so
    silent: int = 0
    #: handed over a second time, and after a later one; of all that came, acknowledged or not
    doubled: int = 0
    disordered: int = 0
    #: messages of rooms that the client had not asked for, or that nobody published
    foreign: int = 0
    #: how often it was said that something may be missing, and how often clients had to connect again
    notices: int = 0
    reconnects: int = 0
    #: clients without the newest message in the end: they have not come back
    away: int = 0
    #: seconds that all faults together took, until the servers listened again
    lasted: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """One client's."""

    missing: frozenset[int]
    told: frozenset[int]
    doubled: int
    disordered: int


def judge(log: Iterable[int], due: frozenset[int]) -> Verdict:
    """Compare what one client saw, numbers from 1 and ``TOLD`` in the order in which they came, with what was due.

    What is missing counts as told where it lies between the highest number before a notice and the next new higher
    number behind it: that is where the program, told then, would have looked.
    """
    seen: set[int] = set()
    spans: list[tuple[int, float]] = []
    highest = doubled = disordered = 0
    since: int | None = None
    for number in log:
        if number == TOLD:
            since = highest if since is None else since
        elif number in seen:
            doubled += 1
        else:
            seen.add(number)
            if number < highest:
                disordered += 1
                continue
            if since is not None:
                spans.append((since, number))
                since = None
            highest = number
    if since is not None:
        spans.append((since, math.inf))
    missing = due - seen
    told = frozenset(number for number in missing if any(low < number < high for low, high in spans))
    return Verdict(missing, told, doubled, disordered)


class Ledger:
    """Fills while a run goes on. ``rooms`` says which room each client asked for."""

    def __init__(self, rooms: dict[str, int]) -> None:
        self.rooms = rooms
        self.ready: set[str] = set()
        self._tried: dict[int, set[int]] = defaultdict(set)
        self._acknowledged: dict[int, set[int]] = defaultdict(set)
        self._logs: dict[str, list[int]] = defaultdict(list)
        self._last: dict[str, int] = {}
        self._foreign = self._notices = self._reconnects = 0

    def number(self, room: int) -> int:
        """The next message's number: every number is tried once, whether or not it is acknowledged."""
        number = len(self._tried[room]) + 1
        self._tried[room].add(number)
        return number

    def acknowledged(self, room: int, number: int) -> None:
        self._acknowledged[room].add(number)

    def received(self, client: str, room: int, number: int) -> None:
        if room != self.rooms[client] or number not in self._tried[room]:
            self._foreign += 1
            return
        self._logs[client].append(number)
        self._last[client] = max(number, self._last.get(client, 0))

    def told(self, client: str) -> None:
        self._notices += 1
        self._logs[client].append(TOLD)

    def connected(self, client: str) -> None:
        """Subscribed, for the first time or again."""
        if client in self.ready:
            self._reconnects += 1
        self.ready.add(client)

    def away(self) -> int:
        """How many clients have not got the newest acknowledged message of their room, nor a later one."""
        newest = {room: max(numbers) for room, numbers in self._acknowledged.items()}
        return sum(self._last.get(client, 0) < newest.get(room, 0) for client, room in self.rooms.items())

    def counts(self) -> Counts:
        due = {room: frozenset(numbers) for room, numbers in self._acknowledged.items()}
        verdicts = {
            client: judge(self._logs[client], due.get(room, frozenset()))
            for client, room in self.rooms.items()
        }
        expected = sum(len(due.get(room, ())) for room in self.rooms.values())
        missing = sum(len(verdict.missing) for verdict in verdicts.values())
        told = sum(len(verdict.told) for verdict in verdicts.values())
        return Counts(
            published=sum(map(len, due.values())),
            due=expected,
            delivered=expected - missing,
            told=told,
            silent=missing - told,
            doubled=sum(verdict.doubled for verdict in verdicts.values()),
            disordered=sum(verdict.disordered for verdict in verdicts.values()),
            foreign=self._foreign,
            notices=self._notices,
            reconnects=self._reconnects,
            away=self.away(),
        )
