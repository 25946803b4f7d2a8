"""Plays a plan: carries out its steps, heals everything, and lets the oracle judge.

outcome = play(draw(7))
outcome.violation     # None if nothing was wrong
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from msgspec import Struct
from twisted.logger import globalLogPublisher

from notify.testing.simulation.backend import Backend
from notify.testing.simulation.happenings import Happenings
from notify.testing.simulation.marks import metered
from notify.testing.simulation.oracle import Violation
from notify.testing.simulation.plan import Plan
from notify.testing.simulation.tokens import START
from notify.testing.simulation.world import World
from notify.topics import Topic

#: simulated seconds within which everything must recover after healing
BOUND = 60.0
#: scheduled calls that an idle node may have, and a stopped one
MOST_CALLS = 60
#: replies from NATS that an idle node may wait for
MOST_WAITING = 8
#: connections to NATS that one process may have made
MOST_CONNECTS = 60
_SLICE = 0.25


class Outcome(Struct):
    """The result of a life. ``digest`` covers every byte that a client was sent, and when."""

    plan: Plan
    violation: Violation | None
    digest: str
    marks: Counter[str]
    trace: list[str]
    published: int
    handed_over: int
    seconds: float


class Life:
    """One life. ``traced``: keep a readable trace."""

    def __init__(self, plan: Plan, traced: bool = False) -> None:
        self._world = World(plan, traced)
        self._backend = Backend(self._world)
        self._happenings = Happenings(self._world, self._backend, self._until)

    def play(self) -> Outcome:
        """Play the whole life."""
        observer: Any = self._world.logged
        globalLogPublisher.addObserver(observer)
        try:
            self._play()
        except Violation as violation:
            self._world.oracle.violation = self._world.oracle.violation or violation
        finally:
            globalLogPublisher.removeObserver(observer)
            self._world.disks.cleanup()
        world = self._world
        return Outcome(
            self._world.plan, world.oracle.violation, world.digest(), world.marks, world.trace, world.published,
            world.handed_over, world.clock.now - START,
        )  # fmt: skip

    def _play(self) -> None:
        self._until(START + 0.4)
        for number in range(len(self._world.plan.clients)):
            self._world.clients.append(self._world.client(number))
            self._world.hands.callLater(self._world.random.random() * 0.3, self._world.clients[-1].start)
        for step in self._world.plan.steps:
            self._world.hands.callLater(step.at, self._happenings.step, step)
        self._until(START + 0.4 + self._world.plan.seconds)
        self._happenings.heal()
        self._settle("after healing")
        self._probe()
        self._settle("after one more message for everyone")
        self._presence()
        self._bounds()
        self._end()

    def _until(self, at: float) -> None:
        while self._world.clock.now < at:
            self._world.clock.run(min(at, round(self._world.clock.now + _SLICE, 6)))
            self._look()
            if self._world.oracle.violation is not None:
                raise self._world.oracle.violation

    def _look(self) -> None:
        """Check what must hold at any moment."""
        for node in self._world.nodes:
            if node.alive:
                queues = node.service.public.factory.websocket.queues
                most = max((one.queued for one in queues.waiting), default=0)
                if most > self._world.plan.limits["send_queue"]:
                    self._world.oracle.wrong(
                        "bounds", f"{most} bytes wait for one client of {node.host.name}"
                    )

    def _settle(self, when: str) -> None:
        end = self._world.clock.now + BOUND
        while True:
            self._until(self._world.clock.now + 0.5)
            problem = next(self._world.oracle.unfinished(self._world.clients), None)
            if problem is None:
                return
            if self._world.clock.now >= end:
                self._world.oracle.wrong(problem[0], f"{problem[1]}, {BOUND:.0f} s {when}")

    def _probe(self) -> None:
        """Publish one more message to everybody, which must be accepted."""
        topics = {
            Topic(c.who.workspace, "chat", chat): None for c in self._world.clients for chat in c.who.chats
        }
        topics |= {Topic(c.who.workspace, "user", c.who.user): None for c in self._world.clients}
        waiting = dict.fromkeys(topics)
        for index, topic in enumerate(topics):

            def answered(ok: bool, topic: Topic = topic, index: int = index) -> None:
                if ok:
                    waiting.pop(topic, None)
                else:
                    self._world.later(
                        0.5,
                        self._backend.post,
                        [(topic, 0.0, 10, 0.0)],
                        index % len(self._world.nodes),
                        answered,
                    )

            self._backend.post([(topic, 0.0, 10, 0.0)], index % len(self._world.nodes), answered)
        end = self._world.clock.now + BOUND
        while waiting:
            self._until(self._world.clock.now + 0.5)
            if self._world.clock.now > end:
                self._world.oracle.wrong("not accepted", f"{next(iter(waiting))}: nothing can be published")

    def _presence(self) -> None:
        end = self._world.clock.now + self._silence
        while True:
            wrong = self._wrong_presence()
            if not wrong:
                return
            if self._world.clock.now > end:
                self._world.oracle.wrong("presence", wrong)
            self._until(self._world.clock.now + 1.0)

    def _wrong_presence(self) -> str:
        expected: dict[Topic, Counter[int]] = {}
        for client in self._world.clients:
            for chat in client.machine.topics.chats:
                topic = Topic(client.who.workspace, "chat", chat)
                expected.setdefault(topic, Counter())[client.who.user] += 1
        asked = [
            (client, chat, client.ask(chat))
            for client in self._world.clients
            for chat in client.machine.topics.chats
        ]
        self._until(self._world.clock.now + 0.5)
        for client, chat, number in asked:
            users = client.answers.pop(number)
            if users is None:
                return f"{client.who.name} was not answered who is in chat {chat}"
            found = {one["user_id"]: one["connections"] for one in users}
            right = dict(expected[Topic(client.who.workspace, "chat", chat)])
            if found != right:
                return f"{client.who.name} was told of {found} in chat {chat}, where {right} are"
        return ""

    def _bounds(self) -> None:
        """Check that nothing is left over once the server has detected all dead connections."""
        end = self._world.clock.now + self._silence
        while (left := next(self._left_over(), None)) is not None:
            if self._world.clock.now > end:
                self._world.oracle.wrong(*left)
            self._until(self._world.clock.now + 1.0)
        for node in self._world.nodes:
            self._world.marks.update(metered(node.service.public.factory.websocket.hub.metrics))

    @property
    def _silence(self) -> float:
        """How long a connection lives on if the server was not told of its end: until two pings were not answered."""
        limits = self._world.plan.limits
        return float(BOUND / 2 + 2 * limits["ping_interval"] + limits["ping_timeout"])

    def _left_over(self) -> Iterator[tuple[str, str]]:
        world = self._world
        for node in world.nodes:
            websocket = node.service.public.factory.websocket
            hub, name = websocket.hub, node.name
            mine = [
                client
                for client in world.clients
                if client.socket is not None and client.socket.transport._host is node.host
            ]
            if len(hub.connections) != len(mine):
                yield "left over", f"{name} has {len(hub.connections)} connections of {len(mine)}"
            if websocket.queues.total:
                yield "left over", f"{websocket.queues.total} bytes in queues of {name}"
            for feed in hub.dispatcher._feeds.values():
                # A topic without members stays for a while.
                if feed.waiting or feed.pending or feed.reading or feed.starting:
                    yield "left over", f"{name} still keeps something of {feed.topic.subject}"
            status = hub.dispatcher._broker.status()
            if not status.ready:
                yield "not ready", f"the broker of {name}: {status.detail}"
            for connection in world.connections[node.number]:
                if connection.waiting > MOST_WAITING:
                    yield "left over", f"{connection.waiting} replies that {name} waits for"
            connects = hub.metrics.broker_connects.collect()[0].samples[0].value
            if connects > MOST_CONNECTS:
                yield "bounds", f"{name} connected to NATS {connects:.0f} times"
            if node.host.calls > MOST_CALLS:
                yield "left over", f"{node.host.calls} timers of {name}"

    def _end(self) -> None:
        """All clients leave; after that no host may have anything scheduled."""
        for client in self._world.clients:
            client.tell(client.machine.stop)
        for node in self._world.nodes:
            node.leave(lambda: None)
        end = self._world.clock.now + 15.0
        while any(node.alive for node in self._world.nodes) and self._world.clock.now < end:
            self._until(self._world.clock.now + 0.5)
        self._until(self._world.clock.now + 3.0)
        for node in self._world.nodes:
            if node.alive:
                self._world.oracle.wrong("does not end", node.host.name)
            elif node.host.calls:
                calls = [c._call for *_, c in self._world.clock._due if c.host is node.host and c.active()]
                self._world.oracle.wrong(
                    "left over", f"{node.host.calls} timers of {node.host.name}, which has ended: {calls}"
                )


def play(plan: Plan, traced: bool = False) -> Outcome:
    """Play a plan."""
    return Life(plan, traced).play()
