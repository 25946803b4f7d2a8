"""This process's own entries in the bucket: written until they are acknowledged, and held against what is there.

Each renewal of the lease names the number of the renewal before, and gets one above all that were acknowledged. Where
that does not come true, the bucket is not as it was left: emptied, made anew, put back to an older state, or the
lease has run out and others may have removed the entries. Then all is written again, and what is older is removed.

What is lost or changed entry by entry no renewal shows. For that the entries are read and compared, some each time:
a node's reading is bounded, however many chats it has.
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

SETTLE = 0.05  # seconds for which changes of one topic are gathered
COMPARED = 512  # topics in one comparison, so that a usual answer is below NATS's bound of 1,024
_AT_ONCE = 64  # entries on their way at once
_COMPLAIN_EVERY = 30.0  # seconds between log lines about what is not stored
_RETRY = 0.5  # seconds until what was not stored is tried again


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
    """See the module. ``present`` and ``topics`` say what should be in the bucket; ``work`` runs a coroutine."""

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
        self._lease = 0  # the number of the last renewal
        self._older = 0  # entries with lower numbers are to be removed, once all these are written:
        self._rewriting: set[Topic] = set()
        self._dirty: dict[Topic, None] = {}
        self._written: dict[Topic, int] = {}  # how many parts of an entry may be there
        self._cut: set[Topic] = set()
        self._compared: list[Topic] = []  # what this round of comparisons has still to see
        self._writing = False
        self._complained = -_COMPLAIN_EVERY

    def touch(self, topic: Topic) -> None:
        """Who is in a topic has changed."""
        self._dirty[topic] = None
        self._write_soon()

    def up(self) -> None:
        """The lease is there: begin to write."""
        self._ready = True
        self._write_soon()

    def down(self) -> None:
        """The connection is lost, and all that is on its way with it."""
        self._ready = False
        self._lease = 0
        self._compared = []

    async def renew(self) -> None:
        """Extend the lease, and write everything again where the bucket is not as it was left."""
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
        """Find entries that the bucket lacks, has otherwise, or has for nothing; some of them each time."""
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
        """Write or remove the entry for a topic; whether it has been stored."""
        older = self._older
        bodies, left_out = split(self._present(topic), self._bucket.room)
        self._tell_cut(topic, left_out)
        had = self._written.get(topic, 0)
        if bodies or had:
            # Before it is acknowledged: a message that was given up may be stored all the same.
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
        if older == self._older:  # else some of it may be older than what counts since
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
