"""The backends of a simulated world: they publish over HTTP to a node, or directly to NATS."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from notify.messages import ChatEvent, ChatMessage, Notification
from notify.testing.simulation.network import Conditions, connect
from notify.testing.simulation.node import INTERNAL
from notify.testing.simulation.oracle import Entry
from notify.testing.simulation.plan import Step
from notify.testing.simulation.tokens import KEY
from notify.testing.simulation.world import World
from notify.topics import Topic

#: a topic, the share of events among its messages, the size of each message, and the share of poison
Kind = tuple[Topic, float, int, float]


class Backend:
    """See the module docstring."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._numbers = 0

    def publish(self, step: Step) -> None:
        """Publish the messages of a step, as a list or one by one."""
        about = step.about
        topic = Topic(about["workspace"], about["kind"], about["id"])
        one = (topic, about["events"], about["size"], about["poison"])
        if not about["gap"]:
            self.send([one] * about["count"], about["way"], about["node"])
            return
        for index in range(about["count"]):
            self._world.later(index * about["gap"], self.send, [one], about["way"], about["node"])

    def send(self, several: list[Kind], way: str, node: int) -> None:
        """Publish. ``way`` is ``nats``; anything else means the API of the node with this number."""
        if way == "nats" and self._world.plan.broker == "jetstream":
            for one in several:
                entry, payload = self._message(*one)
                self._world.cluster.received(None, entry.topic.subject, "", payload, {})
        else:
            self.post(
                [(t, e, s, 0.0) for t, e, s, _ in several], node % len(self._world.nodes), lambda ok: None
            )

    def lists(self, step: Step) -> None:
        """Publish all-or-nothing lists to all chats of a workspace while something goes wrong."""
        plan, random = self._world.plan, Random(f"lists {self._world.plan.seed} {step.number}")
        chats = sorted({(one.workspace, chat) for one in plan.clients for chat in one.chats})
        if not self._world.cluster.atomic or not chats or random.random() < 0.3:
            return
        for _ in range(4):
            workspace = random.choice(chats)[0]
            poison = random.choice((0.0, 0.0, 0.1))
            several = [
                (Topic(of, "chat", chat), 0.0, 10, poison) for of, chat in chats if of == workspace
            ] * 2
            at, node = random.uniform(0, step.about["seconds"]), random.randrange(len(self._world.nodes))
            self._world.later(round(at, 3), self._send_as_one, several, node, random)

    def _send_as_one(self, several: list[Kind], number: int, random: Random) -> None:
        self._post([self._message(*one, random) for one in several], number, lambda ok: None, as_one=True)

    def _message(
        self, topic: Topic, events: float, size: int, poison: float, random: Random | None = None
    ) -> tuple[Entry, bytes]:
        random = random or self._world.random
        self._numbers += 1
        self._world.published += 1
        number = self._numbers
        event = topic.kind == "chat" and random.random() < events
        valid = random.random() >= poison
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
        entry = self._world.oracle.entries[number] = Entry(number, topic, event, valid, len(encoded))
        return entry, encoded

    def post(self, several: list[Kind], number: int, answered: Callable[[bool], None]) -> None:
        """Send ``POST /v1/publish`` to a node; several messages are sometimes sent atomically."""
        made = [self._message(*one) for one in several]
        self._post(made, number, answered, as_one=len(made) > 1 and self._as_one(made[0][0].number))

    def _post(
        self, made: list[tuple[Entry, bytes]], number: int, answered: Callable[[bool], None], as_one: bool
    ) -> None:
        if as_one:
            self._world.oracle.as_one(tuple(entry.number for entry, _ in made))
        parts = [{"subject": entry.topic.subject, "payload": msgspec.Raw(payload)} for entry, payload in made]
        body = msgspec.json.encode(parts if len(parts) > 1 else parts[0])
        self._request(
            number,
            "publish?atomic=true" if as_one else "publish",
            body,
            lambda head, body: self._answered(head, body, made, as_one),
            answered,
        )

    def _as_one(self, number: int) -> bool:
        world = self._world
        share = {"memory": 0.5, "jetstream": 0.5 if world.cluster.atomic else 0.1}.get(world.plan.broker, 0.0)
        return Random(f"as_one {world.plan.seed} {number}").random() < share

    def shed(self, number: int, share: float) -> None:
        """Send ``POST /v1/shed`` to a node, for itself."""
        body = msgspec.json.encode({"node": self._world.nodes[number].name, "share": share})
        self._request(number, "shed", body, self._shed, lambda _: None)

    def _shed(self, head: str, body: bytes) -> bool:
        status = int(head.split()[1])
        self._world.mark(f"shed answered with {status}")
        # The node leaves, or is about to.
        if status not in (202, 409):
            self._world.oracle.wrong("refused", f"shed was answered with {status} {body.decode()[:200]}")
        return status == 202

    def _request(
        self,
        number: int,
        what: str,
        body: bytes,
        judge: Callable[[str, bytes], bool],
        answered: Callable[[bool], None],
    ) -> None:
        """Send a ``POST`` to a node. ``judge`` is called with the head and body of the answer; ``answered`` with its result, or False."""
        node = self._world.nodes[number]
        request = (
            f"POST /v1/{what} HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {KEY}\r\n"
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
                finish(judge(head.decode(), rest[:size]))

        socket = None
        if node.alive and INTERNAL in node.host.ports:
            random = Random(self._world.random.getrandbits(64))
            socket = connect(
                self._world.clock,
                self._world.hands,
                node.host,
                INTERNAL,
                random,
                Conditions(),
                data,
                lambda: finish(False),
            )
        if socket is None:
            self._world.later(0.01, finish, False)
        else:
            socket.write(request)
            self._world.later(30.0, finish, False)

    def _answered(self, head: str, body: bytes, made: list[Any], as_one: bool) -> bool:
        status = int(head.split()[1])
        answer = msgspec.json.decode(body)
        self._world.mark(f"publish answered with {status}")
        results = answer.get("results", [{"status": status, **answer}])
        if status not in (200, 207) and "results" not in answer:
            self._world.say("api", f"{status} {body.decode()[:200]}")
            if as_one and status not in (504, 502):
                self._world.mark("a list was refused as one")
                self._world.oracle.as_one(tuple(entry.number for entry, _ in made), refused=True)
            right = {413, 503, 504, 502}
            if as_one:
                right |= {422} if not all(entry.valid for entry, _ in made) else set()
                right |= (
                    {501} if self._world.plan.broker != "memory" and not self._world.cluster.atomic else set()
                )
            if status not in right:
                self._world.oracle.wrong(
                    "refused", f"publish was answered with {status} {body.decode()[:200]}"
                )
            return False
        if as_one:
            self._world.mark("a list was stored as one")
        before = dict.fromkeys((entry.topic for entry, _ in made), (-2, 0))
        for (entry, _), result in zip(made, results, strict=True):
            if result["status"] == 200:
                self._world.say("api", f"message {entry.number} at {result['epoch']}:{result['seq']}")
                self._world.oracle.accepted(entry.number, result["epoch"], result["seq"])
                if entry.key is not None:
                    if entry.key <= before[entry.topic] and not self._world.oracle.lossy:
                        self._world.oracle.wrong(
                            "out of order", f"a list was stored as {before[entry.topic]}, {entry.key}"
                        )
                    before[entry.topic] = entry.key
        return all(result["status"] == 200 for result in results)
