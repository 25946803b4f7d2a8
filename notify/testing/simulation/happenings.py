"""The unusual events of a simulated life: what clients do, what goes wrong, and how it is healed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from notify.messages import ChatMessage
from notify.testing.simulation.backend import Backend
from notify.testing.simulation.client import SimulatedClient
from notify.testing.simulation.jetstream import Faults
from notify.testing.simulation.node import Node
from notify.testing.simulation.oracle import FORGED
from notify.testing.simulation.plan import Step
from notify.testing.simulation.world import STREAM, World
from notify.topics import Topic


class Happenings:
    """See the module docstring. ``until(at)`` advances the time."""

    def __init__(self, world: World, backend: Backend, until: Callable[[float], None]) -> None:
        self._world, self._backend, self._until = world, backend, until
        self._steps = {
            "publish": backend.publish, "faults": self._faults, "server down": self._server_down,
            "server isolated": self._server_isolated, "no leader": self._no_leader, "nats cut": self._nats_cut,
            "replica behind": self._replica, "replica frozen": self._replica, "replica with holes": self._replica,
            "go back": self._go_back, "leader behind": self._leader_behind, "forged": self._forged, "recreate": self._recreate, "purge": self._purge, "delete": self._delete,
            "kill": self._kill, "pause": self._pause, "restart": self._restart, "reload": self._reload, "shed": self._shed,
            "clock": self._clock_step, "cut": self._cut, "silent": self._silent, "slow": self._slow,
            "half-closed": self._half_closed, "resubscribe": self._resubscribe, "come again": self._come_again,
            "unsubscribe": self._unsubscribe, "storm": self._storm, "ask": self._ask,
        }  # fmt: skip

    def step(self, step: Step) -> None:
        """Carry out a step."""
        self._world.say("world", str(step))
        self._world.mark(f"step: {step.what}")
        self._steps[step.what](step)

    # --- what clients do ------------------------------------------------------------------------------------

    def _one(self, step: Step) -> SimulatedClient:
        return self._world.clients[int(step.about["client"])]

    def _cut(self, step: Step) -> None:
        client = self._one(step)
        if client.socket is not None:
            client.socket.cut(step.about["told"])

    def _silent(self, step: Step) -> None:
        socket = self._one(step).socket
        if socket is not None:
            up = step.about["up"]
            socket.silence(up, not up)
            self._world.later(step.about["seconds"], socket.silence, False, False)

    def _slow(self, step: Step) -> None:
        socket = self._one(step).socket
        if socket is not None:
            socket.read(False)
            self._world.later(step.about["seconds"], socket.read, True)

    def _half_closed(self, step: Step) -> None:
        socket = self._one(step).socket
        if socket is not None:
            socket.outgoing.end()

    def _come_again(self, step: Step) -> None:
        self._one(step).come_again()

    def _ask(self, step: Step) -> None:
        client = self._one(step)
        for chat, topic in client.machine.topics.chats.items():
            client.ask(chat)
            client.browse(chat, limit=3)
            if topic.position is not None and topic.position.epoch:
                place = {"epoch": topic.position.epoch, "seq": topic.position.seq}
                client.browse(chat, before=place)
                client.browse(chat, after=place, limit=100)

    def _unsubscribe(self, step: Step) -> None:
        client, chat = self._one(step), step.about["chat"]
        if chat in client.machine.topics.chats:
            client.tell(partial(client.machine.unsubscribe, chat))
            self._world.oracle.forget(client, chat)
            self._world.later(step.about["seconds"], self._subscribe, client, chat)

    def _subscribe(self, client: SimulatedClient, chat: int) -> None:
        client.tell(lambda now: client.machine.subscribe(chat, now, None, client.who.watches))

    def _resubscribe(self, step: Step) -> None:
        """All members of a chat subscribe again from their positions while messages arrive."""
        about = step.about
        chat = about["chat"]
        mine = [client for client in self._world.clients if chat in client.machine.topics.chats]
        workspace = mine[0].who.workspace if mine else 1
        for index in range(about["burst"]):
            self._world.later(
                index * 0.001, self._backend.send, [(Topic(workspace, "chat", chat), 0.0, 10, 0.0)], "nats", 0
            )
        for turn in range(about["times"]):
            for client in mine:
                self._world.later(
                    0.003 + turn * 0.005 + self._world.random.random() * about["spread"],
                    self._again,
                    client,
                    chat,
                )

    def _again(self, client: SimulatedClient, chat: int) -> None:
        client.tell(partial(client.machine.pause, chat))
        client.tell(partial(client.machine.resume, chat))

    def _storm(self, step: Step) -> None:
        """All members of a chat lose their connections at once."""
        for client in self._world.clients:
            if step.about["chat"] in client.machine.topics.chats and client.socket is not None:
                client.socket.cut()
        for index in range(step.about["burst"]):
            self._world.later(0.02 + index * 0.01, self._backend.send,
                        [(Topic(1, "chat", step.about["chat"]), 0.0, 10, 0.0)], "nats", 0)  # fmt: skip

    # --- what goes wrong ------------------------------------------------------------------------------------

    def _faults(self, step: Step) -> None:
        about = {key: value for key, value in step.about.items() if key != "seconds"}
        self._world.cluster.faults = Faults(**about)
        self._world.later(step.about["seconds"], setattr, self._world.cluster, "faults", Faults())
        self._backend.lists(step)

    def _server(self, step: Step) -> str:
        return self._world.cluster.names[int(step.about["server"])]

    def _server_down(self, step: Step) -> None:
        name = self._server(step)
        self._world.cluster.down.add(name)
        for client in list(self._world.cluster.clients.values()):
            if client.server == name:
                client.ended("the server is gone")
        self._world.cluster.elect()
        self._world.later(step.about["seconds"], self._server_back, name)

    def _server_isolated(self, step: Step) -> None:
        self._world.cluster.isolated.add(self._server(step))
        self._world.cluster.elect()
        self._world.later(step.about["seconds"], self._server_back, self._server(step))

    def _server_back(self, name: str) -> None:
        self._world.cluster.down.discard(name)
        self._world.cluster.isolated.discard(name)
        self._world.cluster.elect()

    def _no_leader(self, step: Step) -> None:
        self._world.cluster.leaderless = True
        self._world.later(step.about["seconds"], setattr, self._world.cluster, "leaderless", False)

    def _nats_cut(self, step: Step) -> None:
        for connection in self._world.connections[step.about["node"]]:
            connection.cut_off = True
            connection.ended("cut")
        self._world.later(step.about["seconds"], self._nats_back, step.about["node"])

    def _nats_back(self, number: int) -> None:
        for connection in self._world.connections[number]:
            connection.cut_off = False

    def _replica(self, step: Step) -> None:
        stream = self._world.cluster.streams.get(STREAM)
        replica = stream.replicas.get(self._server(step)) if stream is not None else None
        if stream is None or replica is None or stream.leader == self._server(step):
            return
        if step.what == "replica behind":
            replica.lag = step.about["by"]
            self._world.later(step.about["seconds"], setattr, replica, "lag", 0.0)
        elif step.what == "replica frozen":
            replica.frozen = max((one.order for one in stream.messages.values()), default=0)
            self._world.later(step.about["seconds"], setattr, replica, "frozen", None)
        else:
            self._world.oracle.lossy = "a replica has holes"
            replica.holes.update(list(stream.messages)[-step.about["count"] :])
            self._world.later(step.about["seconds"], replica.holes.clear)

    def _go_back(self, step: Step) -> None:
        """The servers lose power, and with it what they have not written to disk."""
        stream = self._world.cluster.streams.get(STREAM)
        if stream is None:
            return
        self._world.oracle.lossy = "the stream went back"
        self._world.oracle.went_back = True
        for name in self._world.cluster.names:
            self._world.cluster.down.add(name)
        for client in list(self._world.cluster.clients.values()):
            client.ended("the server is gone")
        stream.go_back(step.about["count"])
        for name in self._world.cluster.names:
            self._world.later(step.about["seconds"], self._server_back, name)

    def _leader_behind(self, step: Step) -> None:
        """A replica without the newest messages becomes the leader: they are gone, although no connection ends."""
        stream = self._world.cluster.streams.get(STREAM)
        if stream is not None and len(stream.replicas) > 1:
            self._world.oracle.lossy = "the stream went back"
            self._world.oracle.went_back = True
            stream.go_back(step.about["count"])
            other = next(name for name in stream.replicas if name != stream.leader)
            self._world.cluster.lead(stream, other)

    def _forged(self, step: Step) -> None:
        """Somebody publishes to the subjects on which the stream republishes, where NATS does not forbid that.

        A forged message that looks like the next one cannot be told from it, but its number must not block what follows.
        """
        stream = self._world.cluster.streams.get(STREAM)
        republish = stream.config.get("republish") if stream is not None else None
        if stream is None or not republish:
            return
        topic = Topic(step.about["workspace"], "chat", step.about["chat"])
        last = stream.last_of(topic.subject)
        fields = {"Nats-Sequence": str(step.about["seq"]), "Nats-Last-Sequence": str(last)}
        self._world.oracle.lossy = "a message was forged"
        payload = ChatMessage(FORGED, topic.id, topic.workspace_id, 1, "forged", 0)
        subject = republish["dest"].removesuffix(">") + topic.subject
        self._world.cluster.received(None, subject, "", msgspec.json.encode(payload), fields)

    def _recreate(self, step: Step) -> None:
        self._world.oracle.lossy = "the stream was made anew"
        self._world.oracle.went_back = True
        self._world.cluster.received(None, f"$JS.API.STREAM.DELETE.{STREAM}", "", b"", {})

    def _subject(self, step: Step) -> str:
        chat = step.about["chat"]
        return Topic(step.about["workspace"], "chat", chat).subject if chat else ""

    def _purge(self, step: Step) -> None:
        self._world.oracle.lossy = "an operator purged the stream"
        body = msgspec.json.encode({"filter": self._subject(step), "keep": step.about["keep"]})
        self._world.cluster.received(None, f"$JS.API.STREAM.PURGE.{STREAM}", "", body, {})

    def _delete(self, step: Step) -> None:
        stream = self._world.cluster.streams.get(STREAM)
        numbers = list(stream.messages) if stream is not None else []
        if numbers:
            self._world.oracle.lossy = "an operator deleted a message"
            seq = numbers[-1 - step.about["keep"] % len(numbers)]
            self._world.cluster.received(
                None, f"$JS.API.STREAM.MSG.DELETE.{STREAM}", "", b'{"seq":%d}' % seq, {}
            )

    def _process(self, step: Step) -> Node:
        return self._world.nodes[int(step.about["node"])]

    def _ends(self) -> None:
        if self._world.plan.broker != "jetstream":
            self._world.oracle.lossy = "the process with the history has ended"

    def _kill(self, step: Step) -> None:
        node = self._process(step)
        if node.alive:
            self._ends()
            self._gone_process(node)
            self._world.later(step.about["seconds"], self._start, node)

    def _gone_process(self, node: Node) -> None:
        for transport in node.kill():
            transport.outgoing.end()
        for connection in self._world.connections[node.number]:
            self._world.cluster.detach(connection)
        self._world.connections[node.number].clear()

    def _start(self, node: Node) -> None:
        if not node.alive:
            self._world.connections[node.number].clear()
            node.start()

    def _pause(self, step: Step) -> None:
        node = self._process(step)
        node.host.pause(True)
        self._world.later(step.about["seconds"], node.host.pause, False)

    def _restart(self, step: Step) -> None:
        node = self._process(step)
        if node.alive and not node.leaving and not node.host.paused:
            self._ends()
            node.leave(lambda: self._world.later(step.about["seconds"], self._start, node))

    def _reload(self, step: Step) -> None:
        node = self._process(step)
        if not node.host.paused:
            node.reload(step.number)

    def _shed(self, step: Step) -> None:
        """A share of a node's clients is sent elsewhere, and reconnects."""
        self._backend.shed(step.about["node"], step.about["share"])

    def _clock_step(self, step: Step) -> None:
        self._process(step).ahead += step.about["by"]

    # --- healing --------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """End all faults."""
        self._world.say("world", "everything is healed")
        cluster = self._world.cluster
        cluster.faults, cluster.leaderless = Faults(), False
        cluster.down.clear()
        cluster.isolated.clear()
        for stream in cluster.streams.values():
            for replica in stream.replicas.values():
                replica.lag, replica.frozen = 0.0, None
                replica.holes.clear()
        cluster.elect()
        for node in self._world.nodes:
            self._nats_back(node.number)
            if node.host.paused:
                node.host.pause(False)
            if not node.alive:
                self._start(node)
        for client in self._world.clients:
            socket = client.socket
            if socket is not None:
                self._world.hands.callLater(0, socket.silence, False, False)
                self._world.hands.callLater(0, socket.read, True)
        # Steps that were drawn near the end may still be in progress.
        self._until(self._world.clock.now + 8.0)
        for node in self._world.nodes:
            self._start(node)
        self._until(self._world.clock.now + 2.0)
