"""Shared by several test modules: a hub built from fakes with a clock, and a broker whose answers can be held back."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from notify.brokers.memory import MemoryBroker, MemorySettings, _History
from notify.config import Limits
from notify.core.dispatcher import Dispatcher
from notify.core.hub import Hub
from notify.core.live import InForce, Live
from notify.core.presence import PresenceWatch
from notify.core.session import Session
from notify.core.signals import Signals
from notify.core.timers import Wheel
from notify.errors import Unauthorized, Unavailable
from notify.identity import Identity, Peer
from notify.interfaces import IAuthenticator
from notify.observe.metrics import Metrics
from notify.registries.memory import MemoryRegistry
from notify.registries.memory import MemorySettings as RegistrySettings
from notify.testing import FakeConnection, make_context
from notify.topics import Topic

NOW = 1_700_000_000.0


@implementer(IAuthenticator)
class TableAuthenticator:
    """Knows a table of tokens. ``held`` delays its answers; ``forbidden`` are chats that nobody may see."""

    def __init__(self) -> None:
        self.tokens: dict[str, Identity] = {}
        self.forbidden: set[int] = set()
        self.away = False
        self.held: list[Callable[[], None]] | None = None
        self.asked: list[Topic] = []

    def start(self) -> Deferred[None]:
        return succeed(None)

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def authenticate(self, token: str, peer: Peer) -> Deferred[Identity]:
        if self.away:
            return fail(Unavailable("away"))
        identity = self.tokens.get(token)
        answer = fail(Unauthorized("unknown token")) if identity is None else succeed(identity)
        return self._answer(answer)

    def authorize(self, identity: Identity, topic: Topic) -> Deferred[bool]:
        self.asked.append(topic)
        if self.away:
            return fail(Unavailable("away"))
        return self._answer(succeed(topic.id not in self.forbidden))

    def release(self) -> None:
        held, self.held = self.held or [], None
        for go in held:
            go()

    def _answer(self, answer: Deferred[Any]) -> Deferred[Any]:
        if self.held is None:
            return answer
        waiting: Deferred[Any] = Deferred()
        self.held.append(lambda: answer.chainDeferred(waiting))
        return waiting


class SlowBroker(MemoryBroker):
    """A memory broker that can be unavailable, and whose follows, replays and deliveries can be held back.

    ``early``: a held replay is read when it is requested, not when it is released.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.away = False
        self.early = False
        self.held: list[Callable[[], None]] | None = None
        self.undelivered: list[Any] | None = None
        self.follows = 0
        self.replays = 0
        self.pages = 0

    def start(self, deliver: Any, lost: Any) -> Deferred[None]:
        self.now_deliver = deliver

        def maybe(message: Any) -> None:
            if self.undelivered is None:
                deliver(message)
            else:
                self.undelivered.append(message)

        return super().start(maybe, lost)

    def catch_up(self) -> None:
        waiting, self.undelivered = self.undelivered or [], None
        for message in waiting:
            self.now_deliver(message)

    def poison(self, topic: Topic) -> None:
        """Add a number to the topic's sequence that has no valid message, as when something else wrote to the store."""
        self._seq += 1
        history = self._histories.setdefault(topic, _History(self._lost_everywhere))
        history.newest = self._seq

    def release(self) -> None:
        held, self.held = self.held or [], None
        for go in held:
            go()

    def follow(self, topic: Topic) -> Any:
        self.follows += 1
        return (
            fail(Unavailable("away")) if self.away else self._answer(lambda: MemoryBroker.follow(self, topic))
        )

    def unfollow(self, topic: Topic) -> None:
        # Also drop held deliveries: after unfollow, the topic's messages must not be delivered until it is followed
        # again.
        if self.undelivered:
            self.undelivered = [message for message in self.undelivered if message.topic != topic]
        super().unfollow(topic)

    def replay(self, topic: Topic, after: Any, limit: int, size: int, whole: bool = False) -> Any:
        self.replays += 1
        if self.away:
            return fail(Unavailable("away"))
        return self._answer(lambda: MemoryBroker.replay(self, topic, after, limit, size, whole), self.early)

    def newest(self, topic: Topic) -> Any:
        return (
            fail(Unavailable("away")) if self.away else self._answer(lambda: MemoryBroker.newest(self, topic))
        )

    def earlier(self, topic: Topic, before: Any, limit: int, size: int) -> Any:
        self.pages += 1
        if self.away:
            return fail(Unavailable("away"))
        return self._answer(lambda: MemoryBroker.earlier(self, topic, before, limit, size), self.early)

    def _answer(self, ask: Callable[[], Deferred[Any]], early: bool = False) -> Deferred[Any]:
        if self.held is None:
            return ask()
        waiting: Deferred[Any] = Deferred()
        if early:
            answer = ask()
            self.held.append(lambda: answer.chainDeferred(waiting))
        else:
            self.held.append(lambda: ask().chainDeferred(waiting))
        return waiting


class World:
    """A server without sockets: everything but transport and HTTP, on a clock that the test advances."""

    def __init__(self, limits: Limits | None = None, **memory: Any) -> None:
        self.clock = Clock()
        context = make_context(self.clock)
        self.metrics: Metrics = context.metrics
        self.broker = SlowBroker(MemorySettings(**memory), context)
        self.registry = MemoryRegistry(RegistrySettings(), context)
        self.authenticator = TableAuthenticator()
        self.live = Live(InForce(self.authenticator, limits or Limits()))
        self.wheel = Wheel(self.clock)
        self.dispatcher = Dispatcher(
            self.broker,
            self.registry,
            self.metrics,
            self.live,
            self._soon,
            self.wheel.after,
            self.clock.seconds,
        )
        presence = PresenceWatch(self.registry, self.wheel.after)
        self.signals = Signals(self.broker, self.metrics, self.live, self._soon, self.clock.seconds)
        self.broker.hear(self.signals.heard)
        self.hub = Hub(
            self.live,
            self.dispatcher,
            self.registry,
            presence,
            self.signals,
            self.metrics,
            self.wheel,
            lambda: NOW + self.clock.seconds(),
            Random(1),
        )
        self.broker.start(self.dispatcher.deliver, self.dispatcher.lost)
        self.registry.start(presence.changed)
        self.wheel.start()

    def _soon(self, call: Callable[[], None]) -> None:
        self.clock.callLater(0, call)

    def reload(self, **changes: Any) -> None:
        """Change fields of ``InForce``, as a reload does."""
        self.live.now = replace(self.live.now, **changes)

    def turn(self) -> None:
        """End a reactor turn."""
        self.clock.advance(0)

    def publish(self, topic: Topic, payload: bytes) -> int:
        """Publish; return the seq."""
        seqs: list[int] = []
        self.broker.publish(topic, payload).addCallback(lambda position: seqs.append(position.seq))
        return seqs[0]

    def connect(self) -> Client:
        """A client that is connected, but not authenticated."""
        return Client(self)

    def client(
        self, user_id: int = 1, workspace_id: int = 1, expires_in: float | None = None, **auth: Any
    ) -> Client:
        """A client that is authenticated; its auth_result has been read."""
        client = self.connect()
        expires_at = None if expires_in is None else NOW + self.clock.seconds() + expires_in
        token = f"token-{workspace_id}-{user_id}-{expires_at}"
        self.authenticator.tokens[token] = Identity(user_id, workspace_id, expires_at)
        client.send(type="auth", token=token, **auth)
        client.result = client.connection.take()
        return client

    def sample(self, name: str, **labels: str) -> float:
        """The value of a metric, 0 if it does not exist."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


class Client:
    """The client's end of a session, without a socket."""

    result: list[Any]

    def __init__(self, world: World) -> None:
        import msgspec

        self._encode = msgspec.json.encode
        self.connection = FakeConnection(id=f"c{len(world.hub.connections)}-{id(self)}")
        self.session = Session(self.connection, world.hub)
        close = self.connection.close

        def closes(code: int, reason: str = "") -> None:
            close(code, reason)
            self.session.closed()

        self.connection.close = closes  # type: ignore[method-assign]
        self.session.opened()

    def send(self, **frame: Any) -> None:
        self.raw(self._encode(frame))

    def raw(self, payload: bytes) -> None:
        from notify.wire.frames import InvalidFrame

        try:
            frames = self.connection.encoding.decode(payload)
        except InvalidFrame as fault:
            self.session.invalid(fault)
        else:
            self.session.received(frames)

    def take(self) -> list[Any]:
        return self.connection.take()

    def ask(self, **frame: Any) -> Any:
        """Send a frame; return the one frame that answers it."""
        self.connection.take()
        self.send(**frame)
        [answer] = self.connection.take()
        return answer

    def leave(self) -> None:
        self.session.closed()

    @property
    def closed(self) -> tuple[int, str] | None:
        return self.connection.closed
