"""Order from broker to socket: clients in many chats, slow ones, and ones that reconnect, over the real write side."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from notify.core.session import Session
from notify.identity import Identity, Peer
from notify.testing import chat_payload
from notify.topics import chat
from notify.transport.connection import Connection, SendQueues
from notify.wire.frames import JSON
from tests.support.world import World
from tests.transport.test_connection import Transport, Wire

CHATS = 4


class Reader:
    """A user in several chats who reads now and then, and on reconnecting resumes each chat at its last message."""

    def __init__(self, world: World, queues: SendQueues, chats: list[int], number: int) -> None:
        self.world = world
        self.queues = queues
        self.number = number
        self.seen: dict[int, list[int]] = {chat_id: [] for chat_id in chats}
        self.since: dict[int, dict[str, Any] | None] = dict.fromkeys(chats)
        self.starts: dict[int, int] = {}
        self.connect()

    def connect(self) -> None:
        world = self.world
        self.transport = Transport(10**6)
        self.wire = Wire(self.transport, lambda: self.session.closed())
        self.connection = Connection(
            f"{self.number}", Peer(""), JSON, 0.0, self.wire, self.transport, self.queues, self.transport
        )
        self.transport.registerProducer(self.connection, True)
        world.authenticator.tokens["token"] = Identity(1, 1)
        self.session = Session(self.connection, world.hub)
        self.session.opened()
        frames = [json.dumps({"type": "auth", "token": "token"})]
        for chat_id, since in self.since.items():
            frames.append(
                json.dumps({"type": "subscribe", "chat_id": chat_id, "since": since, "id": chat_id})
            )
        self.connection.hold()
        for frame in frames:
            self.session.received(JSON.decode(frame.encode()))
        self.connection.release()

    def read(self) -> None:
        """Read whole frames from the wire, as a client does."""
        data, self.transport.wire = self.transport.wire, b""
        while len(data) >= 2:
            length, at = data[1] & 127, 2
            if length == 126:
                length, at = int.from_bytes(data[2:4], "big"), 4
            if len(data) < at + length:
                break
            self.take(json.loads(data[at : at + length]))
            data = data[at + length :]
        self.transport.wire = data

    def take(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "subscribed":
            position = {"epoch": frame["epoch"], "seq": frame["seq"]}
            if self.since[frame["chat_id"]] is None:
                self.starts[frame["chat_id"]] = frame["seq"]
                self.since[frame["chat_id"]] = position
            else:
                assert frame["recovered"], frame
        elif frame["type"] == "chat_message":
            self.seen[frame["chat_id"]].append(frame["seq"])
            self.since[frame["chat_id"]] = {"epoch": frame["epoch"], "seq": frame["seq"]}

    def drop(self) -> None:
        """The connection breaks: what was not read is lost, and the reader resumes."""
        self.transport.wire = b""
        self.connection.stopProducing()
        self.session.closed()
        self.connect()


class OrderTests(SynchronousTestCase):
    @settings(max_examples=150)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(
                    [
                        "publish",
                        "publish",
                        "publish",
                        "turn",
                        "read",
                        "drop",
                        "block",
                        "drain",
                        "lag",
                        "catch up",
                        "hold",
                        "release",
                    ]
                ),
                st.integers(0, 11),
            ),
            max_size=80,
        )
    )
    # A topic that is followed again while earlier messages are still on their way.
    @example([("publish", 1), ("read", 1), ("lag", 0), ("hold", 0), ("publish", 3), ("drop", 1), ("drop", 2)])
    def test_every_chat_of_everyone_is_whole_and_in_order(self, steps: list[tuple[str, int]]) -> None:
        world = World()
        queues = SendQueues(lambda: 10**6, lambda: 10**7, lambda: None)
        readers = [Reader(world, queues, [n, (n + 1) % CHATS, (n + 2) % CHATS], n) for n in range(3)]
        published: dict[int, list[int]] = {number: [] for number in range(CHATS)}
        for step, number in steps:
            reader, topic = readers[number % 3], chat(1, number % CHATS)
            match step:
                case "publish":
                    published[topic.id].append(world.publish(topic, chat_payload(topic)))
                case "turn":
                    world.turn()
                case "read":
                    reader.read()
                case "drop":
                    reader.drop()
                case "block":
                    reader.transport.room = number
                case "drain":
                    reader.transport.drain(number * 40)
                case "lag":
                    world.broker.undelivered = world.broker.undelivered or []
                case "catch up":
                    world.broker.catch_up()
                case "hold":
                    world.broker.held = world.broker.held or []
                case "release":
                    world.broker.release()
        world.broker.release()
        world.broker.catch_up()
        world.turn()
        for reader in readers:
            while reader.transport.buffer or reader.connection.queued:
                reader.transport.drain(10**6)
            reader.read()
            for chat_id, seen in reader.seen.items():
                wanted = [seq for seq in published[chat_id] if seq > reader.starts[chat_id]]
                self.assertEqual(seen, wanted)
