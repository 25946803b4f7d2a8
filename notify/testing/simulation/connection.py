"""A node's connection to the model of NATS, with the same methods as :class:`notify.nats.connection.Connection`.

Requests and their outcomes use the real code."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from random import Random
from typing import Any

from twisted.internet.defer import Deferred

from notify.nats import headers
from notify.nats.asking import Asking
from notify.nats.connection import Hooks, Subscription
from notify.testing.simulation.clock import Host
from notify.testing.simulation.jetstream import Cluster
from notify.testing.simulation.network import Conditions
from notify.testing.simulation.stream import matches

_BACKOFF = (0.05, 2.0)


class SimulatedConnection(Asking):
    """See the module docstring. ``settings.servers`` are names of the cluster's servers."""

    def __init__(
        self, cluster: Cluster, conditions: Conditions, settings: Any, host: Host, random: Random, name: str
    ) -> None:
        super().__init__(host, settings.request_timeout)
        self._cluster, self._conditions = cluster, conditions
        self._host, self._random = host, random
        self.node = host.name
        self._servers = random.sample(cluster.names, len(cluster.names))
        self._rank = random.random()
        self._up = False
        self._stopping = False
        self._life = 0
        self._delay = _BACKOFF[0]
        self._subscriptions: dict[Subscription, None] = {}
        self._exact: dict[str, dict[Subscription, None]] = {}
        self._patterns: dict[Subscription, None] = {}
        self._there = self._back = self._far = 0.0
        #: the network lets nothing through
        self.cut_off = False
        self.inbox_prefix = ""
        self.hooks = Hooks(lambda: None, lambda _: None, lambda _: None, lambda: None)
        self.server = ""
        self.gathering = nullcontext()

    # --- like the real connection ---------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether there is a client that is not known to be dead."""
        return self._up

    @property
    def waiting(self) -> int:
        """The number of replies that are waited for."""
        return len(self._replies)

    @property
    def unsent(self) -> int:
        """Always 0: the network accepts everything."""
        return 0

    @property
    def max_payload(self) -> int:
        """The maximum size in bytes, headers and payload together, that the server accepts."""
        return self._cluster.max_payload

    @property
    def version(self) -> str:
        """The server's version."""
        return self._cluster.version

    def start(self) -> Deferred[None]:
        """Connect, and stay connected."""
        self._attempt_in(0.0)
        return Deferred()

    async def stop(self) -> None:
        """Disconnect, and do not reconnect."""
        self._stopping = True
        self._end("stopped")

    def abandon(self, reason: str) -> None:
        """Leave this server for another."""
        if self._up:
            self._host.callLater(0, self._abandoned, self._life, reason)

    def _abandoned(self, life: int, reason: str) -> None:
        if self._life == life:
            self._end(reason)

    def publish(
        self, subject: str, payload: bytes, reply: str = "", fields: dict[str, str] | None = None
    ) -> None:
        """Send one message."""
        headers.check_size(payload, fields, self.max_payload)
        if not self._up:
            return
        self._up_the_wire(self._cluster.received, self, subject, reply, payload, dict(fields or {}))

    def subscribe(self, subject: str, handler: Any) -> Subscription:
        """Subscribe to a subject."""
        subscription = Subscription(subject, handler)
        self._subscriptions[subscription] = None
        if self._up:
            self._up_the_wire(self._establish, subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription."""
        self._subscriptions.pop(subscription, None)
        if self._up:
            self._up_the_wire(self._withdraw, subscription)

    def inbox(self) -> str:
        """Return a subject that is unique to this node."""
        return f"_INBOX_notify.{self._random.getrandbits(64):016x}.own"

    def post(
        self,
        subject: str,
        payload: bytes,
        inbox: str,
        fields: dict[str, str] | None,
        failed: Callable[[Exception], None],
    ) -> None:
        """See :class:`~notify.nats.asking.Asking`."""
        self.publish(subject, payload, inbox, fields)

    # --- the client -----------------------------------------------------------------------------------------

    def _attempt_in(self, seconds: float) -> None:
        self._host.callLater(seconds, self._attempt)

    def _attempt(self) -> None:
        if self._stopping or self._up:
            return
        server = self._servers[0]
        self._servers.append(self._servers.pop(0))
        if self.cut_off or not self._cluster.reachable(server):
            self._attempt_in(self._delay * self._random.uniform(0.5, 1.0))
            self._delay = min(2 * self._delay, _BACKOFF[1])
            return
        self._delay = _BACKOFF[0]
        self._host.callLater(2 * self._conditions.delay, self._connected, server)

    def _connected(self, server: str) -> None:
        if self._stopping:
            return
        self._life += 1
        self.inbox_prefix = f"_INBOX_notify.{self._random.getrandbits(64):016x}."
        self._inbox = self.inbox_prefix.encode()
        self.server = server
        self._up = True
        self._exact, self._patterns, self._replies = {}, {}, {}
        self._cluster.attach(self)
        for subscription in list(self._subscriptions):
            self._up_the_wire(self._establish, subscription)
        self.hooks.up()

    def ended(self, reason: str) -> None:
        """The server or the network has closed the connection."""
        self._cluster.clock.call(self._host, self._rank, 0, self._abandoned, (self._life, reason))

    def _end(self, reason: str) -> None:
        if not self._up:
            return
        self._up = False
        self._life += 1
        self._cluster.detach(self)
        self.lose()
        if not self._stopping:
            self.hooks.down(reason)
            self._attempt_in(0.0)

    def _up_the_wire(self, call: Callable[..., None], *args: Any) -> None:
        clock = self._cluster.clock
        self._there = max(self._there, clock.later(self._latency("up", clock.now)))
        clock.call(
            self._cluster.host, self._rank, self._there - clock.now, self._at_server, (self._life, call, args)
        )

    def _at_server(self, life: int, call: Callable[..., None], args: Any) -> None:
        if life == self._life and not self.cut_off:
            call(*args)

    def _latency(self, *about: object) -> float:
        jitter = self._conditions.jitter
        return self._conditions.delay + (
            round(self._cluster.draw.unit(self.node, *about) * jitter, 3) if jitter else 0.0
        )

    def _establish(self, subscription: Subscription) -> None:
        if "*" in subscription.subject or ">" in subscription.subject:
            self._patterns[subscription] = None
        else:
            self._exact.setdefault(subscription.subject, {})[subscription] = None

    def _withdraw(self, subscription: Subscription) -> None:
        self._patterns.pop(subscription, None)
        same = self._exact.get(subscription.subject)
        if same is not None:
            same.pop(subscription, None)
            if not same:
                del self._exact[subscription.subject]

    def interested(self, subject: str) -> list[Any]:
        """The matching subscriptions, or the requests that wait for a reply."""
        if subject.startswith(self.inbox_prefix):
            waits = self._replies.get(subject[len(self.inbox_prefix) :].encode())
            return [] if waits is None else [waits]
        found = list(self._exact.get(subject, ()))
        found += [one for one in self._patterns if matches(one.subject, subject)]
        return found

    def hand_over(
        self, subject: str, reply: str, data: bytes, block: bytes, delay: float = 0.0, far: bool = False
    ) -> None:
        """Deliver a message to the node's current subscriptions. ``far``: it comes through another server."""
        self.hand_over_as(subject, subject, reply, data, block, delay, far)

    def hand_over_as(
        self,
        subject: str,
        to: str,
        reply: str,
        data: bytes,
        block: bytes,
        delay: float = 0.0,
        far: bool = False,
    ) -> None:
        """The same for a subscription to ``to``: messages from a consumer keep their own subject."""
        clock = self._cluster.clock
        at = clock.later(self._latency("down", clock.now) + delay)
        if far:
            # Messages from other servers stay in order among themselves, but are overtaken by those of this server.
            route = self._conditions.delay * (1 + 4 * self._cluster.draw.unit(self.node, "far", clock.now))
            at = self._far = max(self._far, clock.later(at - clock.now + route))
        elif not delay:
            at = self._back = max(self._back, at)
        handlers = None if to.startswith(self.inbox_prefix) else [one.handler for one in self.interested(to)]
        clock.call(
            self._host,
            self._rank,
            at - clock.now,
            self._at_node,
            (self._life, handlers, to, subject.encode(), reply, data, block),
        )

    def _at_node(
        self, life: int, handlers: Any, to: str, subject: bytes, reply: str, data: bytes, block: bytes
    ) -> None:
        if life != self._life or self.cut_off or not self._up:
            return
        if handlers is None:
            self.answered(to[len(self.inbox_prefix) :].encode(), data, block)
            return
        for one in handlers:
            one(subject, reply, data, block)
