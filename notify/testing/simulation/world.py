"""The world of a simulated life: nodes, clients, a NATS cluster, and the trace of everything said there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from twisted.logger import LogLevel

from notify.config import Api, Config, Drain, Duration, Limits, PluginTable, Server, Size
from notify.testing.simulation.client import SimulatedClient
from notify.testing.simulation.clock import Clock, Draw, Host
from notify.testing.simulation.connection import SimulatedConnection
from notify.testing.simulation.jetstream import Cluster
from notify.testing.simulation.network import Conditions, Socket, connect
from notify.testing.simulation.node import PUBLIC, Node
from notify.testing.simulation.oracle import Key, Oracle
from notify.testing.simulation.plan import Plan
from notify.testing.simulation.stream import Stored, Stream
from notify.testing.simulation.tokens import KEY, START

#: bytes in flight to a client that accepts batches
_WIDE = 65_536
#: the stream with the history
STREAM = "MESSAGES"


class World:
    """See the module docstring. ``traced``: keep a readable trace."""

    def __init__(self, plan: Plan, traced: bool = False) -> None:
        self.plan = plan
        self.clock = Clock(START)
        self.random = Random(f"life {plan.seed}")
        self.draw = Draw(f"life {plan.seed}")
        self.trace: list[str] = []
        self._traced = traced
        self.marks: Counter[str] = Counter()
        #: the host on which the world's own actions run
        self.hands = Host(self.clock, "world", self.random.random())
        self.cluster = Cluster(self.clock, self.draw, plan.servers)
        # From a separate random source, like `linger`.
        self.cluster.atomic = Random(f"batches {plan.seed}").random() < 0.7
        self.cluster.max_payload = plan.max_payload
        self.cluster.mark, self.cluster.say = self.mark, self.say
        self.cluster.stored, self.cluster.gone = self._stored, self._gone
        #: the connections of each node's process
        self.connections: dict[int, list[SimulatedConnection]] = {}
        limits = _limits(plan.limits)
        place = self._place if plan.broker == "jetstream" else None
        self.oracle = Oracle(limits.replay, limits.send_queue, place)
        self.oracle.marks = self.marks
        if plan.settings["max_messages"] and plan.broker == "jetstream":
            self.oracle.lossy = "the history is bounded"
        # In memory if possible, because what is written there is synced.
        shared = Path("/dev/shm")  # noqa: S108 - below it, a folder with a name of its own
        self.disks = TemporaryDirectory("", "notify-life-", shared if shared.is_dir() else None)
        self.published = self.handed_over = 0
        self._digests: dict[str, Any] = {}
        self.nodes = [self._node(number, name) for number, name in enumerate(plan.nodes)]
        self.clients: list[SimulatedClient] = []

    def later(self, seconds: float, call: Callable[..., object], *args: object) -> None:
        """Schedule a call in ``seconds``."""
        self.hands.callLater(seconds, call, *args)

    def digest(self) -> str:
        """The digest of every byte that a client was sent, and when."""
        digest = blake2b(digest_size=16)
        for name in sorted(self._digests):
            digest.update(self._digests[name].digest())
        return digest.hexdigest()

    # --- building -------------------------------------------------------------------------------------------

    def _node(self, number: int, name: str) -> Node:
        plan = self.plan
        broker = {
            "servers": list(self.cluster.names),
            "stream": STREAM,
            "state_directory": self._disk(number),
            "request_timeout": "1s",
            "canary_interval": "1s",
            **{k: v for k, v in plan.settings.items() if k not in _DURATIONS},
            **{k: f"{v}s" for k, v in plan.settings.items() if k in _DURATIONS},
        }
        tables: dict[str, dict[str, Any]] = {
            "jetstream": broker,
            "jetstream_kv": {"lease": "3s", "reconcile": "2s"},
            **plan.plugins.tables,
        }

        def plugin(name: str, *others: str) -> PluginTable:
            return PluginTable(name, {one: tables[one] for one in (name, *others) if one in tables})

        config = Config(
            server=Server(node=name),
            auth=plugin(plan.plugins.auth),
            # The settings for reaching NATS are in the broker's table, whichever plugin needs them.
            broker=plugin(plan.broker, *(("jetstream",) if plan.registry == "jetstream_kv" else ())),
            registry=plugin(plan.registry),
            # Nobody controls the nodes: heartbeats would only cost time.
            control=PluginTable("memory"),
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

    def _disk(self, number: int) -> str:
        """The directory that outlives a node's processes."""
        if self.plan.broker != "jetstream":
            return ""
        directory = Path(self.disks.name, str(number))
        directory.mkdir(exist_ok=True)
        return str(directory)

    def client(self, number: int) -> SimulatedClient:
        """A client of the plan, not started."""
        who = self.plan.clients[number]
        token = self.plan.plugins.token(who.user, who.workspace)
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
        """Connect through a load balancer to a node that accepts connections."""
        there = [node for node in self.nodes if node.alive and PUBLIC in node.host.ports and not node.leaving]
        if not there:
            return None
        node = there[int(client.random.random() * len(there))]
        # A client that accepts batches gets a whole resume in one frame, followed by the pong. On a slow link that takes longer
        # than the client waits, every time.
        window = max(client.who.window, _WIDE) if client.who.batch else client.who.window
        socket: list[Socket] = []
        made = connect(
            self.clock,
            client.host,
            node.host,
            PUBLIC,
            client.random,
            Conditions(self.plan.outside.delay, self.plan.outside.jitter, self.plan.outside.pieces, window),
            lambda data: client.received(socket[0], data),
            lambda: client.lost(socket[0]),
        )
        if made is not None:
            socket.append(made)
            self.say(client.who.name, f"connects to {node.host.name}")
        return made

    # --- what is reported -----------------------------------------------------------------------------------

    def mark(self, what: str) -> None:
        """Something rare has happened."""
        self.marks[what] += 1

    def say(self, who: str, *words: str) -> None:
        """Add a line to the trace."""
        if self._traced:
            self.trace.append(f"{self.clock.now - START:9.4f} {who:>8} {' '.join(words)}")

    def logged(self, event: dict[str, Any]) -> None:
        """Something was logged: a traceback is always a fault."""
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
            self.handed_over += 1
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

    def _place(self, seq: int) -> Key:
        stream = self.cluster.streams.get(STREAM)
        if stream is None:
            return -1, 0
        seq = min(seq, stream.last_seq)
        return stream.history_of(seq), seq


_DURATIONS = ("check_interval", "ack_wait", "publish_patience")


def _limits(drawn: dict[str, Any]) -> Limits:
    return Limits(
        send_queue=Size(drawn["send_queue"]),
        replay=drawn["replay"],
        ping_interval=Duration(drawn["ping_interval"]),
        ping_timeout=Duration(drawn["ping_timeout"]),
        linger=Duration(drawn["linger"]),
    )


def _number(payload: bytes) -> int:
    try:
        found = msgspec.json.decode(payload)
        return int(found.get("message_id") or found.get("notification_id"))
    except (msgspec.DecodeError, TypeError, AttributeError):
        return 0
