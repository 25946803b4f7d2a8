"""Presence on all nodes, in a NATS key-value bucket. The members of this node stay local and synchronous.

A bucket is a stream ``KV_{bucket}``. Each process has a unique name, its incarnation::

    $KV.{bucket}.node.{incarnation}                            its lease: expires (per-key TTL) unless renewed
    $KV.{bucket}.at.{incarnation}.{workspace}.chat.{id}        who is there: [[user, connections], ...]
    $KV.{bucket}.at.{incarnation}.{workspace}.chat.{id}.{n}    further parts, n from 1, if they do not fit one message

An entry counts while the lease of its incarnation is valid. A dead node's entries are therefore gone with its lease, all at once,
whoever removes them later. A presence request is one batched read of the leases and of the topic's entries. Users'
notifications have no entries: nobody can ask who is there.

Nodes learn of changes from plain messages when a node writes an entry, and from the silence of a node that has died. Both may be
missed, so watched topics are also compared every ``reconcile`` seconds, and so are a node's own entries
(:mod:`notify.registries.jetstream_own`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from notify import components
from notify.components import Context
from notify.config import Duration, Settings
from notify.errors import StartError, Unavailable
from notify.identity import Presence, by_user
from notify.ids import Id
from notify.interfaces import IRegistry
from notify.nats.connection import Connection, Hooks, Subscription
from notify.nats.jetstream import JetStream
from notify.nats.settings import Name, NATSSettings
from notify.registries.jetstream_bucket import Bucket
from notify.registries.jetstream_own import SETTLE, OwnEntries
from notify.registries.memory import MemoryRegistry
from notify.registries.memory import MemorySettings as LocalSettings
from notify.topics import Topic

_COMPARED = 64  # watched topics per comparison at most
_ENTRIES = 512  # expected entries per answer at most: NATS returns up to 1,024, or none
_SWEEP = 3600.0  # seconds between searches for entries of nodes that no node remembers
_PATIENCE = 5  # consecutive failures with one server before another is tried
_OPERATOR = 5.0  # seconds between attempts while only an operator can help


class KVSettings(Settings, frozen=True):
    """``[registry.jetstream_kv]``. The settings for reaching NATS are in ``[broker.jetstream]``."""

    bucket: Name = "PRESENCE"
    #: a node that is silent for this long counts as gone, with all its clients
    lease: Duration = Duration(15)
    #: how often watched topics and this node's own entries are compared with the bucket
    reconcile: Duration = Duration(10)
    #: false: the operator manages the bucket; it is checked, but never changed
    manage_bucket: bool = True


@implementer(IRegistry)
class JetStreamRegistry(MemoryRegistry):
    """See :class:`~notify.interfaces.IRegistry` and the module docstring."""

    Settings = KVSettings  # type: ignore[assignment]
    log = Logger()

    def __init__(self, settings: KVSettings, context: Context) -> None:
        super().__init__(LocalSettings(), context)
        if settings.lease < 1 or settings.reconcile < 0.1:
            raise StartError(
                "[registry.jetstream_kv] lease must be at least 1s, and reconcile at least 100ms."
            )
        nats: NATSSettings
        _, nats = components.find("broker", context.config, "jetstream")
        nats.check()
        self._kv = settings
        self._reactor = context.reactor
        self._metrics = context.metrics
        self._random = context.random
        name = f"notify presence {context.node}"
        connect = context.connect or Connection
        self._connection = connect(nats, context.reactor, context.random, name)
        self._connection.hooks = Hooks(self._up, self._down, self._denied, lambda: None)
        self._incarnation = f"{context.random.getrandbits(64):016x}"
        self._bucket = Bucket(
            self._connection,
            JetStream(
                self._connection, nats.request_timeout, manage=settings.manage_bucket, key="manage_bucket"
            ),
            settings.bucket,
            nats.replicas,
            settings.lease,
            self._incarnation,
        )
        self._own = OwnEntries(self._bucket, self.present, self._chats, self._work, context.reactor)
        self._ready = False
        self._stopped = False
        self._refused = ""
        self._started: Deferred[None] | None = None
        self._working: set[Deferred[None]] = set()
        self._listening: dict[Topic, Subscription] = {}
        self._told: dict[Topic, int] = {}
        self._news: dict[Topic, None] = {}
        self._telling: Any = None
        #: when each other incarnation was last heard of
        self._heard: dict[str, float] = {}

    # ------------------------------------------------------------------ IRegistry

    def start(self, changed: Callable[[Topic], None]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IRegistry`."""
        self._changed = changed
        self._started = Deferred()
        self._connection.subscribe(self._bucket.leases, self._lease_heard)
        self._connection.start().addErrback(self._failed)
        return self._started

    def presence(self, topic: Topic) -> Deferred[list[Presence]]:
        """See :class:`~notify.interfaces.IRegistry`."""
        if not self._ready:
            return fail(Unavailable("presence cannot be read: NATS is away"))
        return Deferred.fromCoroutine(self._presence(topic))

    def watch(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.IRegistry`."""
        super().watch(topic)
        if topic not in self._listening:

            def heard(subject: bytes, reply: str, data: bytes, block: bytes) -> None:
                self._tell_soon(topic)

            self._listening[topic] = self._connection.subscribe(self._bucket.entries(topic), heard)

    def unwatch(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.IRegistry`."""
        super().unwatch(topic)
        self._told.pop(topic, None)
        if subscription := self._listening.pop(topic, None):
            self._connection.unsubscribe(subscription)

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return Deferred.fromCoroutine(self._stop())

    def _touch(self, topic: Topic) -> None:
        super()._touch(topic)
        if topic.kind == "chat":
            self._own.touch(topic)

    def _chats(self) -> list[Topic]:
        return [topic for topic in self._members if topic.kind == "chat"]

    async def _presence(self, topic: Topic) -> list[Presence]:
        users: Counter[Id] = Counter()
        for entry in (await self._bucket.read([topic])).get(topic, {}).values():
            users.update(entry)
        for one in self.present(topic):
            users[one.user_id] += one.connections
        return by_user(Presence(user, connections) for user, connections in users.items() if connections > 0)

    # ------------------------------------------------------------------ learning of changes

    def _tell_soon(self, *topics: Topic) -> None:
        # A change is heard shortly before it is stored.
        self._news.update(dict.fromkeys(topics))
        if self._telling is None and self._news and not self._stopped:
            self._telling = self._reactor.callLater(SETTLE, self._tell)

    def _tell(self) -> None:
        self._telling = None
        news, self._news = self._news, {}
        for topic in news:
            if topic in self._watched:
                self._changed(topic)

    def _lease_heard(self, subject: bytes, reply: str, data: bytes, block: bytes) -> None:
        incarnation = subject.rpartition(b".")[2].decode("utf-8", "replace")
        if incarnation == self._incarnation:
            return
        if b"KV-Operation" in block:
            if self._heard.pop(incarnation, None) is not None:
                self._tell_soon(*self._watched)
        else:
            self._heard[incarnation] = self._reactor.seconds()

    async def _compare(self) -> None:
        """Find changes that were missed."""
        watched = list(self._watched)
        step = max(1, min(_COMPARED, _ENTRIES // (1 + len(self._heard))))
        for start in range(0, len(watched), step):
            chunk = watched[start : start + step]
            entries = await self._bucket.read(chunk)
            for topic in chunk:
                now = hash(frozenset((w, frozenset(e.items())) for w, e in entries.get(topic, {}).items()))
                if topic in self._watched:
                    before = self._told.get(topic)
                    self._told[topic] = now
                    if before is not None and before != now:
                        self._changed(topic)

    async def _renew(self) -> None:
        try:
            await self._own.renew()
        except Unavailable:
            # The bucket may have been deleted. NATS does not report that, because other nodes listen on the same subjects.
            await self._bucket.ensure()
            await self._own.renew()

    # ------------------------------------------------------------------ entries of dead nodes

    async def _purge(self, incarnation: str) -> bool:
        """Remove the entries of a node if it is gone. Returns whether it is."""
        # A node may come back just after it was found dead: its new entries have numbers above this one.
        last = await self._bucket.last_sequence()
        if await self._bucket.lives(incarnation):
            return False
        if removed := await self._bucket.remove(incarnation, last + 1):
            self._metrics.presence_orphans.inc(removed)
            self.log.info("removed {count} presence entries of a node that is gone", count=removed)
        return True

    async def _bury(self) -> None:
        """Check the nodes that have not been heard of for longer than a lease, and purge the dead ones."""
        late = self._reactor.seconds() - self._kv.lease - 1
        for incarnation in [one for one, heard in self._heard.items() if heard < late]:
            if not await self._purge(incarnation):
                self._heard[incarnation] = self._reactor.seconds()
            elif self._heard.get(incarnation, late) < late:
                del self._heard[incarnation]
                self._tell_soon(*self._watched)

    async def _sweep(self) -> None:
        """Search the bucket for entries of nodes that no running node remembers."""
        for incarnation in await self._bucket.incarnations() - {self._incarnation}:
            if incarnation not in self._heard:
                await self._purge(incarnation)

    # ------------------------------------------------------------------ coming up and going down

    def _up(self) -> None:
        self._work(self._live())

    async def _live(self) -> None:
        """Run for as long as one connection lasts."""
        pause, failures = 0.1, 0
        while True:
            self._refused = ""
            try:
                await self._bucket.ensure()
                await self._own.renew()
                if self._refused:
                    raise StartError(self._missing())
            except (Unavailable, StartError) as error:
                problem: Exception = StartError(self._missing()) if self._refused else error
                if isinstance(problem, StartError) and self._started is not None and not self._started.called:
                    self._started.errback(problem)
                    return
                self.log.warn("presence is not to be had yet: {reason}", reason=str(problem))
                await deferLater(self._reactor, _OPERATOR if self._refused else pause, lambda: None)
                pause = min(2 * pause, 2.0)
                failures += 1
                if failures >= _PATIENCE or self._refused:
                    # The server has dropped a refused subscription, which is not requested again on this connection. And a server
                    # that is cut off from its cluster accepts connections, but never becomes usable.
                    self._reactor.callLater(0, self._connection.abandon, str(problem))
                    return
                continue
            break
        self._ready = True
        self._own.up()
        self._tell_soon(*self._watched)
        if self._started is not None and not self._started.called:
            self._started.callback(None)
        # A failed renewal is retried before the lease expires.
        self._work(self._every(self._kv.lease / 3, self._renew, self._kv.lease / 10))
        self._work(self._every(min(self._kv.lease / 3, 1.0), self._bury))
        self._work(self._every(self._kv.reconcile, self._compare))
        self._work(self._every(self._kv.reconcile, self._own.compare))
        self._work(self._every(_SWEEP, self._sweep))

    async def _every(
        self,
        seconds: float,
        what: Callable[[], Coroutine[Deferred[Any], Any, None]],
        after_failure: float = 0.0,
    ) -> None:
        failures = 0
        while self._ready:
            wait = seconds
            try:
                await what()
                failures = 0
            except (Unavailable, StartError) as error:
                failures += 1
                wait = after_failure or seconds
                self.log.debug("presence: {reason}", reason=str(error))
                if failures >= _PATIENCE:
                    self._reactor.callLater(0, self._connection.abandon, str(error))
                    return
            await deferLater(self._reactor, wait * self._random.uniform(0.9, 1.0), lambda: None)

    def _work(self, coroutine: Coroutine[Deferred[Any], Any, None]) -> None:
        work = Deferred.fromCoroutine(coroutine)
        self._working.add(work)

        def done(outcome: Any) -> None:
            self._working.discard(work)
            error = getattr(outcome, "value", None)
            if error is not None and not isinstance(error, CancelledError):
                self.log.failure("presence failed", outcome)

        work.addBoth(done)

    def _missing(self) -> str:
        return f"NATS does not permit what presence needs: {self._refused}; grant it (docs/jetstream.md, Permissions)."

    def _denied(self, words: str) -> None:
        self._refused = words
        if self._ready:
            self._connection.abandon(words)

    def _down(self, reason: str) -> None:
        self._ready = False
        self._own.down()
        for work in list(self._working):
            work.cancel()

    def _failed(self, failure: Any) -> None:
        if self._started is not None and not self._started.called:
            self._started.errback(failure)
        elif not isinstance(failure.value, CancelledError):
            self.log.failure("presence failed", failure)

    async def _stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        was_ready = self._ready
        self._down("stopped")
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        if was_ready and self._connection.connected:
            try:
                await self._bucket.withdraw()
            except Unavailable as error:
                self.log.info(
                    "presence was not withdrawn, and ends with its lease: {reason}", reason=str(error)
                )
        await self._connection.stop()
        if self._started is not None and not self._started.called:
            self._started.errback(Unavailable("stopped before it was ready"))
