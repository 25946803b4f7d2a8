"""Identifies the history that the stream holds. Each history has its own epoch; marks prove that the stream has not gone back.

A recreated stream has another creation time. A stream that lost its newest messages (a power loss, a restored backup) keeps its
creation time and gives their numbers to other messages: clients that have seen the lost ones would wait for ever. So the highest
number ever seen, and when it was stored, are recorded in two places, each of which may be lost with the stream: in the stream of
dead letters, and in a file of each node. If the stream no longer reaches that number, or has another message there, a new epoch
begins and every client is told.

The record in the stream of dead letters decides for all nodes. A node that replaces it names the record it replaces.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any

import msgspec
from msgspec import Struct
from twisted.logger import Logger

from notify.brokers.jetstream.stream import Mark, Streams, StreamState
from notify.errors import Unavailable
from notify.nats.jetstream import STREAM_NOT_FOUND, ApiError
from notify.observe.metrics import Metrics
from notify.state import directory, write

_WRONG_LAST_SEQUENCE = (10071, 10164)
_ATTEMPTS = 5


class Record(Struct, frozen=True):
    """One history: the creation time of its stream, its epoch, and the highest number that was seen.

    ``stamp`` and ``id`` are as in a :class:`~notify.brokers.jetstream.stream.Mark`. They belong to the message with the number ``known``,
    the highest number of which more than the number was seen; if ``known`` is 0, to the one with the number ``seen``. Of two records of
    one stream the one with the higher ``generation`` is the later.
    """

    created: str
    epoch: str
    generation: int = 1
    seen: int = 0
    stamp: int = 0
    id: str | None = None
    known: int = 0

    @property
    def marks(self) -> list[Mark]:
        """The messages that were seen."""
        return [Mark(self.known or self.seen, self.stamp, self.id), Mark(self.seen)]

    def reaching(self, marks: Iterable[Mark]) -> Record:
        """The same history, with these messages also seen."""
        everything = [*self.marks, *marks]
        told = [mark for mark in everything if mark.stamp or mark.id is not None]
        known = max(told, key=_proof, default=Mark(0))
        seen = max(mark.seq for mark in everything)
        return msgspec.structs.replace(self, seen=seen, stamp=known.stamp, id=known.id, known=known.seq)


def _proof(mark: Mark) -> tuple[int, bool]:
    """Sort key of marks: the higher number proves more; of one number, the mark with a known time, as a repeated message has the same id."""
    return mark.seq, mark.stamp > 0


class Memory:
    """A node's own record, in a file that outlives it. With ``path`` None it is lost with the process."""

    log = Logger()

    def __init__(self, path: Path | None, reactor: Any) -> None:
        self._path = path
        self._reactor = reactor
        self._writing = Lock()
        self._due = False  # a thread is about to write
        self.record: Record | None = None
        if path is not None:
            try:
                self.record = msgspec.json.decode(path.read_bytes(), type=Record)
            except FileNotFoundError:
                pass
            except (OSError, msgspec.DecodeError) as error:
                self.log.warn("{path} cannot be used: {error}", path=str(path), error=str(error))

    @property
    def lasts(self) -> bool:
        """Whether the record outlives the process."""
        return self._path is not None

    def keep(self, record: Record) -> None:
        """Remember a record, and write it to the file soon."""
        if record != self.record:
            self.record = record
            if self._path is not None and not self._due:
                self._due = True
                self._reactor.callInThread(self._write, self._path)

    def _write(self, path: Path) -> None:
        """Runs in a thread, one at a time. Writes the newest record by then: a disk may be slower than messages arrive."""
        with self._writing:
            self._due = False
            try:
                write(path, msgspec.json.encode(self.record))
            except OSError as error:
                self.log.warn("{path} cannot be written: {error}", path=str(path), error=str(error))


def place(configured: str, stream: str, part: str = "") -> Path | None:
    """The path of a node's record, in the configured directory or the one that systemd provides ($STATE_DIRECTORY).

    ``part`` names one of several processes that share the directory.
    """
    folder = directory(configured)
    return folder / f"history-{stream}{part and '-'}{part}.json" if folder else None


class History:
    """See the module docstring. ``record`` is the one that this node uses; None: none yet."""

    log = Logger()

    def __init__(
        self,
        streams: Streams,
        connection: Any,
        dead_letter_stream: str,
        random: Random,
        memory: Memory,
        metrics: Metrics,
    ) -> None:
        self._streams = streams
        self._connection = connection
        self._stored_in = dead_letter_stream
        self._subject = streams.plan.history_subject
        self._random = random
        self._memory = memory
        self._metrics = metrics
        self.record: Record | None = memory.record

    async def recognise(
        self, marks: Sequence[Mark] = (), *, reused: bool = False
    ) -> tuple[StreamState, Record]:
        """Return the stream's state and the record of the history that it holds; a new record if the history is unknown.

        ``marks`` are what this node has seen. ``reused``: the stream has given a number that was seen to another message.
        Raises ``Unavailable``.
        """
        for _ in range(_ATTEMPTS):
            # Read the record first: what another node records later may be more than the stream's state shows.
            stored, at = await self.stored()
            state = await self._streams.info()
            record = await self._judge(state, stored, marks, reused)
            if await self._keep(record, stored, at):
                return state, record
        raise Unavailable("it cannot be agreed upon which history the stream holds")

    async def _judge(
        self, state: StreamState, stored: Record | None, marks: Sequence[Mark], reused: bool
    ) -> Record:
        mine = self.record
        known = [one for one in (stored, mine) if one is not None and one.created == state.created]
        latest = max((one.generation for one in known), default=0)
        current = [one for one in known if one.generation == latest]
        if not current:
            return self._new(state, latest)
        seen = [mark for one in current for mark in one.marks]
        if mine in current:
            # What this node has seen says nothing about a later history.
            seen += marks
        else:
            reused = False
        if len({one.epoch for one in current}) == 1 and not reused and not await self._lacks(state, seen):
            return current[0].reaching([Mark(state.last_seq, state.stamp)])
        self.log.error(
            "the stream {name} has gone back: number {seen} was seen, and {last} is its last; a new epoch begins",
            name=self._streams.name,
            seen=max(mark.seq for mark in seen),
            last=state.last_seq,
        )
        return self._new(state, latest)

    async def _lacks(self, state: StreamState, marks: Sequence[Mark]) -> bool:
        """Whether the stream lacks a message that was seen, or has another in its place."""
        for mark in marks:
            if mark.seq > state.last_seq:
                return True
            there = Mark(mark.seq)
            if mark.stamp and mark.seq == state.last_seq and state.stamp:
                there = Mark(mark.seq, state.stamp)
            elif (mark.stamp or mark.id is not None) and mark.seq >= state.first_seq:
                there = await self._streams.mark(mark.seq)
            if mark.differs(there):
                return True
        return False

    async def renew(self, state: StreamState) -> Record:
        """Start a new epoch, whatever is known of the stream. Raises ``Unavailable``."""
        for _ in range(_ATTEMPTS):
            stored, at = await self.stored()
            record = self._new(state, 0 if stored is None else stored.generation)
            if await self._store(record, at):
                return record
        raise Unavailable("the record of the history is being changed by others")

    def _new(self, state: StreamState, generation: int) -> Record:
        epoch = f"{self._random.getrandbits(64):016x}"
        return Record(state.created, epoch, generation + 1, state.last_seq, state.stamp)

    async def went_back(self, state: StreamState, marks: Sequence[Mark] = ()) -> bool:
        """Whether the stream that this node knows lacks messages that were seen. ``marks`` must be from before ``state`` was read."""
        mine = self.record
        if mine is None or mine.created != state.created:
            return False
        return await self._lacks(state, [*mine.marks, *marks])

    async def current(self, state: StreamState, marks: Sequence[Mark] = ()) -> bool:
        """Whether the stream holds the history that this node uses. If so, records how far it reaches. Raises ``Unavailable``."""
        mine = self.record
        if mine is None or mine.created != state.created or await self.went_back(state, marks):
            return False
        stored, at = await self.stored()
        if stored is None or (stored.created, stored.epoch) != (mine.created, mine.epoch):
            return False
        return await self._keep(mine.reaching([Mark(state.last_seq, state.stamp)]), stored, at)

    def remember(self, marks: Sequence[Mark]) -> None:
        """Record these marks in this node's own record, at once."""
        record = self._memory.record
        if record is not None:
            self._memory.keep(record.reaching(marks))

    async def _keep(self, record: Record, stored: Record | None, at: int) -> bool:
        """Use a record, and make all nodes use it. False: another node was faster, perhaps with another record."""
        same = stored is not None and (record.epoch, record.created) == (stored.epoch, stored.created)
        newer = stored is None or not same or stored.seen < record.seen
        if newer and not await self._store(record, at) and not same:
            return False
        self._adopt(record)
        return True

    def _adopt(self, record: Record) -> None:
        if self.record is not None and self.record.epoch != record.epoch:
            self._metrics.history_epochs.inc()
        self.record = record
        self._memory.keep(record)

    async def stored(self) -> tuple[Record | None, int]:
        """The record shared by all nodes and its number in the stream of dead letters; None and 0 if there is none."""
        try:
            message = await self._streams.message(self._stored_in, {"last_by_subj": self._subject})
        except ApiError as error:
            if error.number == STREAM_NOT_FOUND:
                return None, 0
            raise Unavailable(f"the record of the history cannot be read: {error}") from None
        if message is None:
            return None, 0
        try:
            record = msgspec.json.decode(b64decode(message.get("data", "")), type=Record)
        except msgspec.DecodeError:
            record = None
        return record, int(message["seq"])

    async def _store(self, record: Record, at: int) -> bool:
        """Replace the record with number ``at``. False: another node was faster."""
        fields = {"Nats-Expected-Last-Subject-Sequence": str(at)}
        reply = await self._connection.request(self._subject, msgspec.json.encode(record), None, fields)
        try:
            error = msgspec.json.decode(reply.data).get("error")
        except (msgspec.DecodeError, AttributeError):
            error = {"description": "nobody stores it"}
        if not error:
            return True
        if error.get("err_code") in _WRONG_LAST_SEQUENCE:
            return False
        raise Unavailable(f"the record of the history cannot be stored: {error.get('description')}")
