"""Publishers that send many requests ahead and invalid ones in between, and that disconnect in the middle.

The messages that were answered are exactly there, and as many are counted as are stored.
"""

from __future__ import annotations

import json
import socket
from random import Random
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.natsd import NatsServer
from tests.support.process import KEY, Server, wait_for
from tests.whole.test_attack import reset
from tests.whole.test_history import JETSTREAM, SUBJECT

CHATS = (1, 2, 3)
CONNECTIONS, AHEAD = 16, 20
WRONG: tuple[Any, ...] = ([], {"subject": SUBJECT.format(1), "payload": {}}, {"subject": "rubbish"}, 1)


def request(body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/publish HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


class Ledger:
    """Records what was sent over which connection, and what was answered."""

    def __init__(self, server: Server) -> None:
        self.server, self.random = server, Random(7)
        #: by number of the message: the connection that it was sent over; its chat and seq, once it was answered
        self.sent: dict[int, int] = {}
        self.accepted: dict[int, tuple[int, int]] = {}

    def message(self, connection: int) -> dict[str, Any]:
        chat_id, number = self.random.choice(CHATS), len(self.sent)
        self.sent[number] = connection
        payload = {"message_id": number, "chat_id": chat_id, "workspace_id": 1}
        return {
            "subject": SUBJECT.format(chat_id),
            "payload": payload | {"sender_id": 1, "content": "x", "timestamp": 1},
        }

    def publish(self, connection: int) -> None:
        """Send many requests at once; every other connection ends before all of them are sent."""
        bodies: list[Any] = []
        for _ in range(AHEAD):
            kind, many = self.random.random(), range(self.random.randint(2, 20))
            if kind < 0.5:
                bodies.append(self.message(connection))
            elif kind < 0.8:
                bodies.append([self.message(connection) for _ in many])
            else:
                bodies.append(self.random.choice(WRONG))
        data = b"".join(map(request, bodies))
        with socket.create_connection(("127.0.0.1", self.server.internal), timeout=30) as client:
            if connection % 2:
                client.sendall(data[: self.random.randrange(len(data))])
                if self.random.random() < 0.5:
                    reset(client)
                return
            client.sendall(data)
            with client.makefile("rb") as answers:
                for body in bodies:
                    self.answered(body, answers)

    def answered(self, body: Any, answers: Any) -> None:
        status, size = int(answers.readline().split()[1]), 0
        while (line := answers.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        answer = json.loads(answers.read(size))
        if body in WRONG:
            assert status in (400, 422), (status, answer)
            return
        assert status == 200, (status, answer)
        messages = body if isinstance(body, list) else [body]
        for one, result in zip(messages, answer.get("results", [answer]), strict=True):
            payload = one["payload"]
            self.accepted[payload["message_id"]] = payload["chat_id"], result["seq"]

    def stored(self) -> dict[int, tuple[int, int]]:
        """The chat and seq of each stored message, by its number; chat by chat, in order."""
        found: dict[int, tuple[int, int]] = {}
        for chat_id in CHATS:
            since = ""
            while True:
                path = f"/v1/history?subject={SUBJECT.format(chat_id)}&limit=1000{since}"
                status, page = self.server.http("GET", path)
                assert status == 200, page
                for one in page["messages"]:
                    number = one["payload"]["message_id"]
                    assert number not in found, f"{number} is there twice"
                    found[number] = chat_id, one["seq"]
                if page["complete"]:
                    break
                since = f"&since={page['next']}"
        return found

    def counted(self) -> float:
        """The number of messages that were stored, or may have been, in the server's metrics."""
        total = 0.0
        for result in ("ok", "unknown"):
            try:
                total += self.server.metric(f'notify_published_total{{result="{result}"}}')
            except AssertionError:
                pass  # no publish had this result
        return total


class Publishers(TestCase):
    timeout = 120

    def attack(self, extra: str) -> None:
        with Server(extra) as server:
            ledger = Ledger(server)
            for connection in range(CONNECTIONS):
                ledger.publish(connection)
            # Nobody waits for the publishers that disconnected, so their last messages may still be under way.
            wait_for("as many are counted as stored", lambda: ledger.counted() == len(ledger.stored()))
            stored = ledger.stored()
            self.assertEqual({number: stored.get(number) for number in ledger.accepted}, ledger.accepted)
            self.assertLess(stored.keys(), ledger.sent.keys())
            for connection in range(CONNECTIONS):
                for chat_id in CHATS:
                    order = [
                        number
                        for number, (where, _) in stored.items()
                        if where == chat_id and ledger.sent[number] == connection
                    ]
                    self.assertEqual(order, sorted(order))
            self.assertNotIn("Traceback", server.log())

    async def test_what_was_answered_is_there_in_order_and_counted(self) -> None:
        await deferToThread(self.attack, "[broker.memory]\nhistory_size = 100000\n")

    async def test_with_workers(self) -> None:
        await deferToThread(self.attack, "[server]\nworkers = 2\n[broker.memory]\nhistory_size = 100000\n")

    async def test_in_jetstream(self) -> None:
        nats = NatsServer().start()
        self.addCleanup(nats.remove)
        await nats.up()
        await deferToThread(self.attack, JETSTREAM.format(nats.url))
