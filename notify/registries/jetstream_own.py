"""This process's own entries in the bucket: written until they are acknowledged, and compared with what is stored.

Each renewal of the lease names the sequence number of the previous renewal, and must get one above all acknowledged numbers. If
either fails, the bucket is not as this process left it: it was emptied, recreated or restored to an older state, or the lease has
expired and others may have removed the entries. Then all entries are written again, and older ones are removed.

A renewal does not reveal single entries that were lost or changed. For that the entries are read and compared, some at a time, so
that the reads of a node are bounded however many chats it has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from notify.errors import Unavailable
from notify.identity import Presence
from notify.nats.bridge import gather
from notify.registries.jetstream_bucket import split
from notify.topics import Topic

SETTLE = 0.05  # seconds for which changes of one topic are collected
COMPARED = 512  # topics per comparison, so that a typical answer stays below NATS's limit of 1,024
_AT_ONCE = 64  # entries in flight at once
_COMPLAIN_EVERY = 30.0  # seconds between log lines about entries that are not stored
_RETRY = 0.5  # seconds before a failed write is retried


class OwnBucket(Protocol):
    """The part of a bucket that is used here (:class:`~notify.registries.jetstream_bucket.Bucket`)."""

    newest: int

    @property
    def room(self) -> int: ...  # noqa: D102
    async def put(self, topic: Topic, bodies: list[bytes], had: int) -> None: ...  # noqa: D102
    async def renew(self, last: int = 0) -> int: ...  # noqa: D102
    async def topics(self) -> set[Topic]: ...  # noqa: D102
    async def own(self, topics: Collection[Topic]) -> dict[Topic, dict[int, bytes]]: ...  # noqa: D102
    async def remove_own(self, before: int) -> int: ...  # noqa: D102


class OwnEntries:
    """See the module docstring. ``present`` and ``topics`` say what should be in the bucket; ``work`` runs a coroutine."""

    log = Logger()

    def __init__(
        self,
        bucket: OwnBucket,
        present: Callable[[Topic], list[Presence]],
        topics: Callable[[], Iterable[Topic]],
        work: Callable[[Coroutine[Deferred[Any], Any, None]], None],
        reactor: Any,
    ) -> None:
        self._bucket = bucket
        self._present = present
        self._topics = topics
        self._work = work
        self._reactor = reactor
        self._ready = False
        self._lease = 0  # the sequence number of the last renewal
        self._older = 0  # entries with lower numbers are removed once all these are written:
        self._rewriting: set[Topic] = set()
        self._dirty: dict[Topic, None] = {}
        self._written: dict[Topic, int] = {}  # how many parts of an entry may be stored
        self._cut: set[Topic] = set()
        self._compared: list[Topic] = []  # topics still to be compared in this round
        self._writing = False
        self._complained = -_COMPLAIN_EVERY

    def touch(self, topic: Topic) -> None:
        """The users in a topic have changed."""
        self._dirty[topic] = None
        self._write_soon()

    def up(self) -> None:
        """The lease is stored: start writing."""
        self._ready = True
        self._write_soon()

    def down(self) -> None:
        """The connection is lost, with everything in flight."""
        self._ready = False
        self._lease = 0
        self._compared = []

    async def renew(self) -> None:
        """Extend the lease. Write everything again if the bucket is not as this process left it."""
        newest = self._bucket.newest
        number = await self._bucket.renew(self._lease) if self._lease else 0
        if number <= newest or not number:
            if self._lease:
                self.log.warn(
                    "the presence bucket is not as it was left: emptied, put back, or the lease ran out; "
                    "all entries of this node are written again"
                )
            number = number or await self._bucket.renew()
            self._bucket.newest = self._older = number
            self._rewriting = {*self._topics(), *self._written}
            self._dirty.update(dict.fromkeys(self._rewriting))
        self._lease = number
        self._write_soon()

    async def compare(self) -> None:
        """Find entries that are missing from the bucket, differ, or should not be there; some topics per call."""
        if self._older and not self._rewriting:
            older = self._older
            await self._bucket.remove_own(older)
            if older == self._older:
                self._older = 0
        if not self._compared:
            self._compared = list({*self._topics(), *await self._bucket.topics()})
        some = self._compared[-COMPARED:]
        found = await self._bucket.own(some)
        del self._compared[-COMPARED:]
        for topic in some:
            bodies, _ = split(self._present(topic), self._bucket.room)
            if found[topic] != dict(enumerate(bodies)):
                if found[topic]:
                    self._written[topic] = max(self._written.get(topic, 0), max(found[topic]) + 1)
                self._dirty[topic] = None
        self._write_soon()

    def _write_soon(self) -> None:
        if self._ready and self._dirty and not self._writing:
            self._writing = True
            self._work(self._write())

    async def _write(self) -> None:
        try:
            await deferLater(self._reactor, SETTLE, lambda: None)
            while self._dirty and self._ready:
                some = list(self._dirty)[:_AT_ONCE]
                for topic in some:
                    del self._dirty[topic]
                done = await gather(self._put(topic) for topic in some)
                if not all(done):
                    self._dirty.update((t, None) for t, ok in zip(some, done, strict=True) if not ok)
                    await deferLater(self._reactor, _RETRY, lambda: None)
        finally:
            self._writing = False

    async def _put(self, topic: Topic) -> bool:
        """Write or remove the entry for a topic. Returns whether it was stored."""
        older = self._older
        bodies, left_out = split(self._present(topic), self._bucket.room)
        self._tell_cut(topic, left_out)
        had = self._written.get(topic, 0)
        if bodies or had:
            # Record it before the acknowledgement: a write that was given up may be stored all the same.
            self._written[topic] = max(had, len(bodies))
            try:
                await self._bucket.put(topic, bodies, had)
            except Unavailable as error:
                self._complain(error)
                return False
            if bodies:
                self._written[topic] = len(bodies)
            else:
                del self._written[topic]
        if older == self._older:  # otherwise part of the entry may be older than the new limit
            self._rewriting.discard(topic)
        return True

    def _complain(self, error: Unavailable) -> None:
        now = self._reactor.seconds()
        if self._ready and now - self._complained >= _COMPLAIN_EVERY:
            self._complained = now
            self.log.warn("presence is not stored: {reason}; trying on", reason=str(error))

    def _tell_cut(self, topic: Topic, left_out: int) -> None:
        if not left_out:
            self._cut.discard(topic)
        elif topic not in self._cut:
            self._cut.add(topic)
            self.log.warn(
                "{topic} has more users on this node than NATS's max_payload lets it tell: other nodes do not see "
                "{count} of them (docs/jetstream.md, Presence)",
                topic=topic.subject,
                count=left_out,
            )
