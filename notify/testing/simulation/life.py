"""Plays a plan: builds its world, lets happen what was drawn, heals everything, and has the oracle judge.

outcome = play(draw(7))
outcome.violation     # None where nothing was wrong
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from hashlib import blake2b
from random import Random
from typing import Any

import msgspec
from msgspec import Struct
from twisted.logger import LogLevel, globalLogPublisher

from notify.config import Api, Config, Drain, Duration, Limits, PluginTable, Server, Size
from notify.messages import ChatEvent, ChatMessage, Notification
from notify.testing.simulation.client import SimulatedClient
from notify.testing.simulation.clock import Clock, Draw, Host
from notify.testing.simulation.connection import SimulatedConnection
from notify.testing.simulation.jetstream import Cluster, Faults
from notify.testing.simulation.network import Conditions, Socket, connect
from notify.testing.simulation.node import INTERNAL, PUBLIC, Node
from notify.testing.simulation.oracle import Entry, Key, Oracle, Violation
from notify.testing.simulation.plan import Plan, Step
from notify.testing.simulation.stream import Stored, Stream
from notify.topics import Topic

START = 1_700_000_000.0
STREAM = "MESSAGES"
KEY = "k" * 32
#: seconds of the world in which all must be whole once everything is healed
BOUND = 60.0
#: calls that a quiet node may have to come, and those of a stopped one
MOST_CALLS = 60
_SLICE = 0.25


class Outcome(Struct):
    """How a life went. ``digest`` is of every byte that a client was sent, and when."""

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
        self.plan = plan
        self.clock = Clock(START)
        self.random = Random(f"life {plan.seed}")
        self.draw = Draw(f"life {plan.seed}")
        self.trace: list[str] = []
        self._traced = traced
        self.marks: Counter[str] = Counter()
        self._hands = Host(self.clock, "world", self.random.random())
        self.cluster = Cluster(self.clock, self.draw, plan.servers)
        self.cluster.mark, self.cluster.say = self.mark, self.say
        self.cluster.stored, self.cluster.gone = self._stored, self._gone
        self.connections: dict[int, list[SimulatedConnection]] = {}
        limits = _limits(plan.limits)
        self.oracle = Oracle(
            limits.replay, limits.send_queue, self._newest if plan.broker == "jetstream" else None
        )
        self.oracle.marks = self.marks
        if plan.settings["max_messages"] and plan.broker != "jetstream_none":
            self.oracle.lossy = "the history is bounded"
        self._numbers = 0
        self._published = self._handed = 0
        self._failed_publishes = 0
        self._digests: dict[str, Any] = {}
        self.nodes = [self._node(number, name) for number, name in enumerate(plan.nodes)]
        self.clients: list[SimulatedClient] = []
        self._sockets: list[Any] = []
        self._steps = {
            "publish": self._publish, "faults": self._faults, "server down": self._server_down,
            "server isolated": self._server_isolated, "no leader": self._no_leader, "nats cut": self._nats_cut,
            "replica behind": self._replica, "replica frozen": self._replica, "replica with holes": self._replica,
            "go back": self._go_back, "recreate": self._recreate, "purge": self._purge, "delete": self._delete,
            "kill": self._kill, "pause": self._pause, "restart": self._restart, "reload": self._reload,
            "clock": self._clock_step, "cut": self._cut, "silent": self._silent, "slow": self._slow,
            "half-closed": self._half_closed, "resubscribe": self._resubscribe, "come again": self._come_again,
            "unsubscribe": self._unsubscribe, "storm": self._storm, "ask": self._ask,
        }  # fmt: skip

    # --- building -------------------------------------------------------------------------------------------

    def _node(self, number: int, name: str) -> Node:
        plan = self.plan
        broker = {
            "servers": list(self.cluster.names),
            "stream": STREAM,
            "request_timeout": "1s",
            "canary_interval": "1s",
            **{k: v for k, v in plan.settings.items() if k not in _DURATIONS},
            **{k: f"{v}s" for k, v in plan.settings.items() if k in _DURATIONS},
        }
        config = Config(
            server=Server(node=name),
            auth=PluginTable("jwt", {"jwt": {"secret": KEY}}),
            broker=PluginTable(
                plan.broker,
                {"jetstream": broker}
                if plan.broker == "jetstream" or plan.registry == "jetstream_kv"
                else {},
            ),
            registry=PluginTable(
                plan.registry,
                {"jetstream_kv": {"lease": "3s", "reconcile": "2s"}}
                if plan.registry == "jetstream_kv"
                else {},
            ),
            api=Api(keys=(KEY,)),
            limits=_limits(plan.limits),
            drain=Drain(Duration(0), Duration(1)),
        )
        made = self.connections[number] = []

        def to_nats(settings: Any, host: Any, random: Random, what: str) -> SimulatedConnection:
            connection = SimulatedConnection(self.cluster, plan.inside, settings, host, random, what)
            made.append(connection)
            return connection

        return Node(self.clock, config, Random(self.random.getrandbits(64)), to_nats, number)

    def _client(self, number: int) -> SimulatedClient:
        who = self.plan.clients[number]
        token = _token(who.user, who.workspace)
        client = SimulatedClient(
            self.clock,
            who,
            Random(self.random.getrandbits(64)),
            self,
            self._dial,
            token,
        )
        self._digests[who.name] = blake2b(digest_size=16)
        return client

    def _dial(self, client: SimulatedClient) -> Socket | None:
        """Through a balancer: to a node that takes connections."""
        there = [node for node in self.nodes if node.alive and PUBLIC in node.host.ports and not node.leaving]
        if not there:
            return None
        node = there[int(client.random.random() * len(there))]
        socket: list[Socket] = []
        made = connect(
            self.clock,
            client.host,
            node.host,
            PUBLIC,
            client.random,
            Conditions(
                self.plan.outside.delay, self.plan.outside.jitter, self.plan.outside.pieces, client.who.window
            ),
            lambda data: client.received(socket[0], data),
            lambda: client.lost(socket[0]),
        )
        if made is not None:
            socket.append(made)
            self.say(client.who.name, f"connects to {node.host.name}")
        return made

    # --- the whole ------------------------------------------------------------------------------------------

    def play(self) -> Outcome:
        """From the first to the last moment."""
        observer: Any = self._logged
        globalLogPublisher.addObserver(observer)
        try:
            self._play()
        except Violation as violation:
            self.oracle.violation = self.oracle.violation or violation
        finally:
            globalLogPublisher.removeObserver(observer)
        digest = blake2b(digest_size=16)
        for name in sorted(self._digests):
            digest.update(self._digests[name].digest())
        return Outcome(
            self.plan, self.oracle.violation, digest.hexdigest(), self.marks, self.trace, self._published,
            self._handed, self.clock.now - START,
        )  # fmt: skip

    def _play(self) -> None:
        self._until(START + 0.4)
        for number in range(len(self.plan.clients)):
            self.clients.append(self._client(number))
            self._hands.callLater(self.random.random() * 0.3, self.clients[-1].start)
        for step in self.plan.steps:
            self._hands.callLater(step.at, self._step, step)
        self._until(START + 0.4 + self.plan.seconds)
        self._heal()
        self._settle("after healing")
        self._probe()
        self._settle("after one more message for everyone")
        self._presence()
        self._bounds()
        self._end()

    def _until(self, at: float) -> None:
        while self.clock.now < at:
            self.clock.run(min(at, round(self.clock.now + _SLICE, 6)))
            self._look()
            if self.oracle.violation is not None:
                raise self.oracle.violation

    def _look(self) -> None:
        """What must hold at any moment."""
        for node in self.nodes:
            if node.alive:
                queues = node.service.public.factory.websocket.queues
                most = max((one.queued for one in queues.waiting), default=0)
                if most > self.plan.limits["send_queue"]:
                    self.oracle.wrong("bounds", f"{most} bytes wait for one client of {node.host.name}")

    def _step(self, step: Step) -> None:
        self.say("world", str(step))
        self.mark(f"step: {step.what}")
        self._steps[step.what](step)

    def _later(self, seconds: float, call: Callable[..., object], *args: object) -> None:
        self._hands.callLater(seconds, call, *args)

    def _settle(self, when: str) -> None:
        end = self.clock.now + BOUND
        while True:
            self._until(self.clock.now + 0.5)
            problem = next(self.oracle.unfinished(self.clients), None)
            if problem is None:
                return
            if self.clock.now >= end:
                self.oracle.wrong(problem[0], f"{problem[1]}, {BOUND:.0f} s {when}")

    def _probe(self) -> None:
        """One more message to everybody, which has to be accepted."""
        topics = {Topic(c.who.workspace, "chat", chat): None for c in self.clients for chat in c.who.chats}
        topics |= {Topic(c.who.workspace, "user", c.who.user): None for c in self.clients}
        waiting = dict.fromkeys(topics)
        for index, topic in enumerate(topics):

            def answered(ok: bool, topic: Topic = topic, index: int = index) -> None:
                if ok:
                    waiting.pop(topic, None)
                else:
                    self._later(0.5, self._post, [(topic, 0.0, 10, 0.0)], index % len(self.nodes), answered)

            self._post([(topic, 0.0, 10, 0.0)], index % len(self.nodes), answered)
        end = self.clock.now + BOUND
        while waiting:
            self._until(self.clock.now + 0.5)
            if self.clock.now > end:
                self.oracle.wrong("not accepted", f"{next(iter(waiting))}: nothing can be published")

    def _presence(self) -> None:
        # A connection whose end the server was not told of lives on until two pings were not answered.
        limits = self.plan.limits
        end = self.clock.now + BOUND / 2 + 2 * limits["ping_interval"] + limits["ping_timeout"]
        while True:
            wrong = self._wrong_presence()
            if not wrong:
                return
            if self.clock.now > end:
                self.oracle.wrong("presence", wrong)
            self._until(self.clock.now + 1.0)

    def _wrong_presence(self) -> str:
        expected: dict[Topic, Counter[int]] = {}
        for client in self.clients:
            for chat in client.machine.topics.chats:
                topic = Topic(client.who.workspace, "chat", chat)
                expected.setdefault(topic, Counter())[client.who.user] += 1
        asked = [
            (client, chat, client.ask(chat))
            for client in self.clients
            for chat in client.machine.topics.chats
        ]
        self._until(self.clock.now + 0.5)
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
        """Nothing is left over of what was."""
        for node in self.nodes:
            websocket = node.service.public.factory.websocket
            hub = websocket.hub
            mine = [
                client for client in self.clients if client.socket is not None
                and client.socket.transport._host is node.host
            ]  # fmt: skip
            if len(hub.connections) != len(mine):
                self.oracle.wrong(
                    "left over", f"{node.name} has {len(hub.connections)} connections of {len(mine)}"
                )
            if websocket.queues.total:
                self.oracle.wrong("left over", f"{websocket.queues.total} bytes in queues of {node.name}")
            for feed in hub.dispatcher._feeds.values():
                if feed.catching_up or feed.pending or not hub.registry.members(feed.topic):
                    self.oracle.wrong(
                        "left over", f"{node.name} still keeps something of {feed.topic.subject}"
                    )
            if node.host.calls > MOST_CALLS:
                self.oracle.wrong("left over", f"{node.host.calls} timers of {node.name}")
        if self.oracle.violation is not None:
            raise self.oracle.violation

    def _end(self) -> None:
        """All leave, and nothing more is to come on any host."""
        for client in self.clients:
            client.tell(client.machine.stop)
        for node in self.nodes:
            node.leave(lambda: None)
        end = self.clock.now + 15.0
        while any(node.alive for node in self.nodes) and self.clock.now < end:
            self._until(self.clock.now + 0.5)
        self._until(self.clock.now + 3.0)
        for node in self.nodes:
            if node.alive:
                self.oracle.wrong("does not end", node.host.name)
            elif node.host.calls:
                calls = [c._call for *_, c in self.clock._due if c.host is node.host and c.active()]
                self.oracle.wrong(
                    "left over", f"{node.host.calls} timers of {node.host.name}, which has ended: {calls}"
                )

    # --- what is told ---------------------------------------------------------------------------------------

    def mark(self, what: str) -> None:
        """Something rare has happened."""
        self.marks[what] += 1

    def say(self, who: str, *words: str) -> None:
        """A line of the trace."""
        if self._traced:
            self.trace.append(f"{self.clock.now - START:9.4f} {who:>8} {' '.join(words)}")

    def _logged(self, event: dict[str, Any]) -> None:
        if event.get("log_level") is LogLevel.critical or "log_failure" in event:
            failure = event.get("log_failure")
            words = failure.getTraceback() if failure is not None else event.get("log_format", "")
            self.oracle.wrong("failed", f"{event.get('log_format')}: {words}")
        elif self._traced and event.get("log_level") in (LogLevel.warn, LogLevel.error):
            try:
                self.say("log", str(event["log_format"]).format(**event))
            except (KeyError, AttributeError, IndexError):
                self.say("log", str(event.get("log_format")))

    def connected(self, client: SimulatedClient) -> None:
        """See :class:`~notify.testing.simulation.client.Watcher`."""
        self.oracle.connected(client)

    def sent(self, client: SimulatedClient, frame: dict[str, Any]) -> None:
        """See :class:`~notify.testing.simulation.client.Watcher`."""
        if self._traced:
            self.say(client.who.name, "->", str({k: v for k, v in frame.items() if k != "token"}))
        self.oracle.sent(client, frame)

    def frame(self, client: SimulatedClient, frame: dict[str, Any]) -> None:
        """See :class:`~notify.testing.simulation.client.Watcher`."""
        if self._traced:
            self.say(client.who.name, "<-", str(frame)[:300])
        self.oracle.frame(client, frame)

    def payload(self, client: SimulatedClient, payload: bytes) -> None:
        """See :class:`~notify.testing.simulation.client.Watcher`."""
        self._digests[client.who.name].update(b"%.6f" % self.clock.now + payload)

    def action(self, client: SimulatedClient, action: Any) -> None:
        """See :class:`~notify.testing.simulation.client.Watcher`."""
        name = type(action).__name__
        if name == "Deliver":
            self._handed += 1
        elif self._traced and name not in ("Send", "Deliver", "FetchToken"):
            self.say(client.who.name, "  ", str(action))
        self.oracle.action(client, action)

    def closed(self, client: SimulatedClient, code: int, reason: str) -> None:
        """See :class:`~notify.testing.simulation.client.Watcher`."""
        self.say(client.who.name, f"closed with {code} {reason}")
        self.oracle.closed(client, code, reason)

    def _stored(self, stream: Stream, one: Stored) -> None:
        if stream.name == STREAM:
            number = _number(one.data)
            self.say("stream", f"{stream.generation}:{one.seq} {one.subject} message {number}")
            if number in self.oracle.entries:
                self.oracle.keep(number, (stream.generation, one.seq))

    def _gone(self, one: Stored, why: str) -> None:
        number = _number(one.data) if one.subject.startswith("workspace.") else None
        if number in self.oracle.entries:
            self.oracle.removed(number, why)

    def _newest(self) -> Key:
        stream = self.cluster.streams.get(STREAM)
        return (stream.generation, stream.last_seq) if stream is not None else (-1, 0)

    # --- publishing -----------------------------------------------------------------------------------------

    def _publish(self, step: Step) -> None:
        about = step.about
        topic = Topic(about["workspace"], about["kind"], about["id"])
        one = (topic, about["events"], about["size"], about["poison"])
        if not about["gap"]:
            self._send([one] * about["count"], about["way"], about["node"])
            return
        for index in range(about["count"]):
            self._later(index * about["gap"], self._send, [one], about["way"], about["node"])

    def _send(self, several: list[Any], way: str, node: int) -> None:
        if way == "nats" and self.plan.broker == "jetstream":
            for one in several:
                entry, payload = self._message(*one)
                self.cluster.received(None, entry.topic.subject, "", payload, {})
        else:
            self._post([(t, e, s, 0.0) for t, e, s, _ in several], node % len(self.nodes), lambda ok: None)

    def _message(self, topic: Topic, events: float, size: int, poison: float) -> tuple[Entry, bytes]:
        self._numbers += 1
        self._published += 1
        number = self._numbers
        event = topic.kind == "chat" and self.random.random() < events
        valid = self.random.random() >= poison
        workspace: int = topic.workspace_id if valid else 99  # type: ignore[assignment]
        data = msgspec.Raw(b'"%s"' % (b"x" * size))
        payload: Any
        if topic.kind == "user":
            payload = Notification(number, workspace, topic.id, "k", data, number)
        elif event:
            payload = ChatEvent(number, topic.id, workspace, 1, "k", data, number)
        else:
            payload = ChatMessage(number, topic.id, workspace, 1, "x" * size, number)
        encoded = msgspec.json.encode(payload)
        entry = self.oracle.entries[number] = Entry(number, topic, event, valid, len(encoded))
        return entry, encoded

    def _post(self, several: list[Any], number: int, answered: Callable[[bool], None]) -> None:
        """``POST /v1/publish`` at a node."""
        node = self.nodes[number]
        made = [self._message(*one) for one in several]
        parts = [{"subject": entry.topic.subject, "payload": msgspec.Raw(payload)} for entry, payload in made]
        body = msgspec.json.encode(parts if len(parts) > 1 else parts[0])
        request = (
            f"POST /v1/publish HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        came = bytearray()
        done = False

        def finish(ok: bool) -> None:
            nonlocal done
            if not done:
                done = True
                if socket is not None:
                    socket.close()
                answered(ok)

        def data(piece: bytes) -> None:
            came.extend(piece)
            head, end, rest = bytes(came).partition(b"\r\n\r\n")
            if not end:
                return
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            if len(rest) >= size and not done:
                finish(self._answered(head, rest[:size], made))

        socket = None
        if node.alive and INTERNAL in node.host.ports:
            random = Random(self.random.getrandbits(64))
            socket = connect(
                self.clock,
                self._hands,
                node.host,
                INTERNAL,
                random,
                Conditions(),
                data,
                lambda: finish(False),
            )
        if socket is None:
            self._later(0.01, finish, False)
        else:
            socket.write(request)
            self._later(30.0, finish, False)

    def _answered(self, head: bytes, body: bytes, made: list[Any]) -> bool:
        status = int(head.split()[1])
        answer = msgspec.json.decode(body)
        self.mark(f"publish answered with {status}")
        results = answer.get("results", [{"status": status, **answer}])
        if status not in (200, 207) and "results" not in answer:
            self.say("api", f"{status} {body.decode()[:200]}")
            if status not in (503, 504, 502):
                self.oracle.wrong("refused", f"publish was answered with {status} {body.decode()[:200]}")
            return False
        before: Key = (-2, 0)
        for (entry, _), result in zip(made, results, strict=True):
            if result["status"] == 200:
                self.say("api", f"message {entry.number} at {result['epoch']}:{result['seq']}")
                self.oracle.accepted(entry.number, result["epoch"], result["seq"])
                if entry.key is not None:
                    if entry.key <= before and not self.oracle.lossy:
                        self.oracle.wrong("out of order", f"a list was stored as {before}, {entry.key}")
                    before = entry.key
        return all(result["status"] == 200 for result in results)

    # --- what clients do ------------------------------------------------------------------------------------

    def _one(self, step: Step) -> SimulatedClient:
        return self.clients[int(step.about["client"])]

    def _cut(self, step: Step) -> None:
        client = self._one(step)
        if client.socket is not None:
            client.socket.cut(step.about["told"])

    def _silent(self, step: Step) -> None:
        socket = self._one(step).socket
        if socket is not None:
            up = step.about["up"]
            socket.silence(up, not up)
            self._later(step.about["seconds"], socket.silence, False, False)

    def _slow(self, step: Step) -> None:
        socket = self._one(step).socket
        if socket is not None:
            socket.read(False)
            self._later(step.about["seconds"], socket.read, True)

    def _half_closed(self, step: Step) -> None:
        socket = self._one(step).socket
        if socket is not None:
            socket.outgoing.end()

    def _come_again(self, step: Step) -> None:
        self._one(step).come_again()

    def _ask(self, step: Step) -> None:
        client = self._one(step)
        for chat in client.machine.topics.chats:
            client.ask(chat)

    def _unsubscribe(self, step: Step) -> None:
        client, chat = self._one(step), step.about["chat"]
        if chat in client.machine.topics.chats:
            client.tell(partial(client.machine.unsubscribe, chat))
            self.oracle.forget(client, chat)
            self._later(step.about["seconds"], self._subscribe, client, chat)

    def _subscribe(self, client: SimulatedClient, chat: int) -> None:
        client.tell(lambda now: client.machine.subscribe(chat, now, None, client.who.watches))

    def _resubscribe(self, step: Step) -> None:
        """Everybody in a chat asks for it again from where they are, while messages come."""
        about = step.about
        chat = about["chat"]
        mine = [client for client in self.clients if chat in client.machine.topics.chats]
        workspace = mine[0].who.workspace if mine else 1
        for index in range(about["burst"]):
            self._later(
                index * 0.001, self._send, [(Topic(workspace, "chat", chat), 0.0, 10, 0.0)], "nats", 0
            )
        for turn in range(about["times"]):
            for client in mine:
                self._later(
                    0.003 + turn * 0.005 + self.random.random() * about["spread"], self._again, client, chat
                )

    def _again(self, client: SimulatedClient, chat: int) -> None:
        client.tell(partial(client.machine.pause, chat))
        client.tell(partial(client.machine.resume, chat))

    def _storm(self, step: Step) -> None:
        """All who are in a chat lose their connections at once."""
        for client in self.clients:
            if step.about["chat"] in client.machine.topics.chats and client.socket is not None:
                client.socket.cut()
        for index in range(step.about["burst"]):
            self._later(0.02 + index * 0.01, self._send,
                        [(Topic(1, "chat", step.about["chat"]), 0.0, 10, 0.0)], "nats", 0)  # fmt: skip

    # --- what goes wrong ------------------------------------------------------------------------------------

    def _faults(self, step: Step) -> None:
        about = {key: value for key, value in step.about.items() if key != "seconds"}
        self.cluster.faults = Faults(**about)
        self._later(step.about["seconds"], setattr, self.cluster, "faults", Faults())

    def _server(self, step: Step) -> str:
        return self.cluster.names[int(step.about["server"])]

    def _server_down(self, step: Step) -> None:
        name = self._server(step)
        self.cluster.down.add(name)
        for client in list(self.cluster.clients.values()):
            if client.server == name:
                client.ended("the server is gone")
        self.cluster.elect()
        self._later(step.about["seconds"], self._server_back, name)

    def _server_isolated(self, step: Step) -> None:
        self.cluster.isolated.add(self._server(step))
        self.cluster.elect()
        self._later(step.about["seconds"], self._server_back, self._server(step))

    def _server_back(self, name: str) -> None:
        self.cluster.down.discard(name)
        self.cluster.isolated.discard(name)
        self.cluster.elect()

    def _no_leader(self, step: Step) -> None:
        self.cluster.leaderless = True
        self._later(step.about["seconds"], setattr, self.cluster, "leaderless", False)

    def _nats_cut(self, step: Step) -> None:
        for connection in self.connections[step.about["node"]]:
            connection.cut_off = True
            connection.ended("cut")
        self._later(step.about["seconds"], self._nats_back, step.about["node"])

    def _nats_back(self, number: int) -> None:
        for connection in self.connections[number]:
            connection.cut_off = False

    def _replica(self, step: Step) -> None:
        stream = self.cluster.streams.get(STREAM)
        replica = stream.replicas.get(self._server(step)) if stream is not None else None
        if stream is None or replica is None or stream.leader == self._server(step):
            return
        if step.what == "replica behind":
            replica.lag = step.about["by"]
            self._later(step.about["seconds"], setattr, replica, "lag", 0.0)
        elif step.what == "replica frozen":
            replica.frozen = max((one.order for one in stream.messages.values()), default=0)
            self._later(step.about["seconds"], setattr, replica, "frozen", None)
        else:
            self.oracle.lossy = "a replica has holes"
            replica.holes.update(list(stream.messages)[-step.about["count"] :])
            self._later(step.about["seconds"], replica.holes.clear)

    def _go_back(self, step: Step) -> None:
        """The servers lost their power, and what they had not written to their disks."""
        stream = self.cluster.streams.get(STREAM)
        if stream is None:
            return
        self.oracle.lossy = "the stream went back"
        for name in self.cluster.names:
            self.cluster.down.add(name)
        for client in list(self.cluster.clients.values()):
            client.ended("the server is gone")
        stream.go_back(step.about["count"])
        for name in self.cluster.names:
            self._later(step.about["seconds"], self._server_back, name)

    def _recreate(self, step: Step) -> None:
        self.oracle.lossy = "the stream was made anew"
        self.cluster.received(None, f"$JS.API.STREAM.DELETE.{STREAM}", "", b"", {})

    def _subject(self, step: Step) -> str:
        chat = step.about["chat"]
        return Topic(step.about["workspace"], "chat", chat).subject if chat else ""

    def _purge(self, step: Step) -> None:
        self.oracle.lossy = "an operator purged the stream"
        body = msgspec.json.encode({"filter": self._subject(step), "keep": step.about["keep"]})
        self.cluster.received(None, f"$JS.API.STREAM.PURGE.{STREAM}", "", body, {})

    def _delete(self, step: Step) -> None:
        stream = self.cluster.streams.get(STREAM)
        numbers = list(stream.messages) if stream is not None else []
        if numbers:
            self.oracle.lossy = "an operator deleted a message"
            seq = numbers[-1 - step.about["keep"] % len(numbers)]
            self.cluster.received(None, f"$JS.API.STREAM.MSG.DELETE.{STREAM}", "", b'{"seq":%d}' % seq, {})

    def _process(self, step: Step) -> Node:
        return self.nodes[int(step.about["node"])]

    def _ends(self) -> None:
        if self.plan.broker != "jetstream":
            self.oracle.lossy = "the process with the history has ended"

    def _kill(self, step: Step) -> None:
        node = self._process(step)
        if node.alive:
            self._ends()
            self._gone_process(node)
            self._later(step.about["seconds"], self._start, node)

    def _gone_process(self, node: Node) -> None:
        for transport in node.kill():
            transport.outgoing.end()
        for connection in self.connections[node.number]:
            self.cluster.detach(connection)
        self.connections[node.number].clear()

    def _start(self, node: Node) -> None:
        if not node.alive:
            self.connections[node.number].clear()
            node.start()

    def _pause(self, step: Step) -> None:
        node = self._process(step)
        node.host.pause(True)
        self._later(step.about["seconds"], node.host.pause, False)

    def _restart(self, step: Step) -> None:
        node = self._process(step)
        if node.alive and not node.leaving and not node.host.paused:
            self._ends()
            node.leave(lambda: self._later(step.about["seconds"], self._start, node))

    def _reload(self, step: Step) -> None:
        node = self._process(step)
        if not node.host.paused:
            node.reload(step.number)

    def _clock_step(self, step: Step) -> None:
        self._process(step).ahead += step.about["by"]

    # --- healing --------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        self.say("world", "everything is healed")
        cluster = self.cluster
        cluster.faults, cluster.leaderless = Faults(), False
        cluster.down.clear()
        cluster.isolated.clear()
        for stream in cluster.streams.values():
            for replica in stream.replicas.values():
                replica.lag, replica.frozen = 0.0, None
                replica.holes.clear()
        cluster.elect()
        for node in self.nodes:
            self._nats_back(node.number)
            if node.host.paused:
                node.host.pause(False)
            if not node.alive:
                self._start(node)
        for client in self.clients:
            socket = client.socket
            if socket is not None:
                self._hands.callLater(0, socket.silence, False, False)
                self._hands.callLater(0, socket.read, True)
        # What was drawn near the end may still be under way.
        self._until(self.clock.now + 8.0)
        for node in self.nodes:
            self._start(node)
        self._until(self.clock.now + 2.0)


_DURATIONS = ("check_interval", "ack_wait", "publish_patience")


def _limits(drawn: dict[str, Any]) -> Limits:
    return Limits(
        send_queue=Size(drawn["send_queue"]),
        replay=drawn["replay"],
        ping_interval=Duration(drawn["ping_interval"]),
        ping_timeout=Duration(drawn["ping_timeout"]),
    )


def _number(payload: bytes) -> int:
    try:
        found = msgspec.json.decode(payload)
        return int(found.get("message_id") or found.get("notification_id"))
    except (msgspec.DecodeError, TypeError, AttributeError):
        return 0


@cache
def _token(user: int, workspace: int) -> str:
    """As ``notify token`` makes them (RFC 7515, HS256)."""
    claims = {"id": user, "workspace_id": workspace, "iat": int(START), "exp": int(START) + 86400}
    parts = [msgspec.json.encode(part) for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    signed = b".".join(urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = urlsafe_b64encode(hmac.digest(KEY.encode(), signed, "sha256")).rstrip(b"=")
    return (signed + b"." + signature).decode()


def play(plan: Plan, traced: bool = False) -> Outcome:
    """Play a plan."""
    return Life(plan, traced).play()
