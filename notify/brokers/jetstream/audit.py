"""Checks for missing messages inside the stream, and for copies that have fewer messages than their leader.

A replica can lose messages from its middle (a damaged block, a restored backup) and continue as if nothing had happened. Any
copy may answer a read, and the answer does not say which. So the numbers are compared continuously: the leader says which
numbers it has, and a batched read of everything, limited to one message, says how many messages the answering copy has. If a
copy has fewer, or if the cluster has changed and not all copies are likely to have been sampled since, reads of the history go
to the leader.

Neither shows a message that a copy counts but cannot read. The reader finds those (:mod:`reader`).
"""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.task import deferLater
from twisted.logger import Logger

from notify.brokers.jetstream.holes import Holes
from notify.brokers.jetstream.stream import Streams, StreamState
from notify.errors import Unavailable
from notify.nats import headers
from notify.observe.metrics import Metrics

_MOST = 1_000_000  # holes known individually, 8 bytes each; purging a chat leaves one per message
_ENOUGH = 24  # good samples in a row that are likely to have covered all of up to five copies
_USUAL = 3  # samples per comparison
_SETTLE = 30.0  # seconds after a change of the cluster in which some copies may not answer yet
_CHANGING = 10.0  # seconds after it in which a new leader may still have to catch up with another copy
_PAUSE = 0.05  # seconds between a sample that was short and the next


class Audit:
    """See the module docstring. ``holes`` are the numbers that the leader lacked at the last check."""

    log = Logger()

    def __init__(self, connection: Any, streams: Streams, reactor: Any, metrics: Metrics) -> None:
        self._connection = connection
        self._streams = streams
        self._direct = f"$JS.API.DIRECT.GET.{streams.name}"
        self._reactor = reactor
        self._metrics = metrics
        self._known = 0  # the number of holes that the leader had
        self._good = 0  # good samples in a row
        self._changed = -_SETTLE
        self._enough = _ENOUGH
        self._cluster = ""
        self.holes = Holes()
        #: what is wrong with a copy; empty if nothing is known to be wrong
        self.problem = ""

    @property
    def trusted(self) -> bool:
        """Whether any copy may be read from."""
        return self._good >= self._enough

    @property
    def changing(self) -> bool:
        """Whether the cluster has changed so recently that its leader may still be behind."""
        return bool(self._enough and self._reactor.seconds() - self._changed < _CHANGING)

    def unsettle(self) -> None:
        """A server has joined or left: its copy may have changed, and may not answer yet."""
        self._good = 0
        self._changed = self._reactor.seconds()

    def forget(self) -> None:
        """The stream holds another history."""
        self._known, self._good, self.holes = 0, 0, Holes()
        self._metrics.history_holes.set(0)

    async def learn(self, state: StreamState) -> None:
        """Update ``holes`` from the leader. Raises ``Unavailable``."""
        if state.cluster != self._cluster:
            if self._cluster:
                self.unsettle()
            self._cluster = state.cluster
        if state.missing == 0:
            if self._known:
                self._known, self.holes = 0, Holes()
                self._metrics.history_holes.set(0)
            return
        if state.missing > _MOST:
            self.holes = Holes(up_to=state.last_seq)
        elif state.missing != self.holes.count(state.first_seq, state.last_seq):
            self.holes = Holes(await self._streams.deleted())
        if state.missing > self._known:
            self.log.warn(
                "{count} numbers are missing inside the stream {name}: deleted, or lost by NATS",
                count=state.missing,
                name=self._streams.name,
            )
        self._known = state.missing
        self._metrics.history_holes.set(state.missing)

    async def compare(self, state: StreamState) -> None:
        """Compare the copies that answer with the leader. Raises ``Unavailable``."""
        await self.learn(state)
        # A single copy is the leader.
        self._enough = _ENOUGH if state.copies > 1 else 0
        if state.lagging:
            self.unsettle()
        usual = _USUAL if state.copies > 1 else 1
        for _ in range(max(usual, self._enough - self._good) if self._settled() else usual):
            short = await self._short()
            if short:
                # A copy may briefly be behind, which is not a fault.
                await deferLater(self._reactor, _PAUSE, lambda: None)
                short = await self._short()
            if short:
                self._complain(short, state.lagging)
                self._good = 0
                return
            self._good += self._settled()
        self.problem = "a copy of the stream is behind its leader, or away" if state.lagging else ""

    def _settled(self) -> bool:
        return bool(self._reactor.seconds() - self._changed >= _SETTLE)

    def _complain(self, short: int, lagging: bool) -> None:
        before, self.problem = self.problem, "a copy of the stream is behind its leader"
        if not lagging:
            self.problem = f"a copy of the stream lacks messages that its leader has: {short} or more"
            if not before.startswith("a copy of the stream lacks"):
                self._metrics.audit_failures.inc()
        if before != self.problem:
            self.log.error(
                "{problem}; history is read from the leader, message by message", problem=self.problem
            )

    async def _short(self) -> int:
        """The number of messages that the copy which answers lacks at least."""
        state = await self._streams.info()
        await self.learn(state)
        first, last = state.first_seq, state.last_seq
        if first > last or state.missing > _MOST:
            return 0
        at, have = await self._count(first)
        if at != first:
            # The oldest messages may have expired meanwhile: check whether they have at the leader as well.
            first = (await self._streams.info()).first_seq
            if first > last:
                return 0
            if not at or at > first:
                return at - first if at else 1
        return max(0, last - first + 1 - self.holes.count(first, last) - have)

    async def _count(self, start: int) -> tuple[int, int]:
        """From the copy that answers: its first message from a number on, and how many messages it has from there."""
        request = {"batch": 1, "seq": start, "next_by_subj": ">"}
        *replies, end = await self._connection.gather(self._direct, msgspec.json.encode(request))
        if replies:
            block = replies[0].block
            return headers.number(block, headers.SEQUENCE), 1 + headers.number(block, headers.NUM_PENDING)
        if headers.status(end.block) != 404:
            raise Unavailable(f"the stream cannot be counted: {headers.description(end.block)}")
        return 0, 0
