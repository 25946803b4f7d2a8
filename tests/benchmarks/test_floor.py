"""The floor that servers are measured against sends what it is told to, and joins lists; who listens on a port."""

from __future__ import annotations

import json
import os
import shutil
import socket

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import process
from benchmarks.others import Floor
from tests.support.programs import need

HANDSHAKE = (
    "GET {} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class FloorInC(SynchronousTestCase):
    def setUp(self) -> None:
        need(shutil.which("cc"), "cc is missing: apt-get install build-essential")
        self.floor = Floor()
        self.addCleanup(self.floor.__exit__)
        self.floor.start()

    def connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.floor.port), 20)
        self.addCleanup(made.close)
        return made

    def client(self, *chats: int) -> socket.socket:
        """Connect a client that is a member of these chats."""
        made = self.connect()
        made.sendall(HANDSHAKE.format(self.floor.plan(1, chats)).encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += made.recv(1)
        self.assertIn(b" 101 ", answer)
        # The answer to this nonce in RFC 6455.
        self.assertIn(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", answer)
        return made

    def publish(self, *messages: tuple[int, str]) -> None:
        """Publish these texts, each to its chat, as one list. Returns after the answer, which comes when all are sent."""
        publisher = self.connect()
        payloads = [{"chat_id": chat, "content": text} for chat, text in messages]
        publisher.sendall(self.floor.request(payloads))
        self.assertEqual(publisher.recv(4096), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def frames(self, data: bytes) -> list[tuple[int, str]]:
        """The chat and the text of each frame in data that was received at once."""
        found = []
        while data:
            self.assertEqual(data[0], 0x81)
            head, size = (4, int.from_bytes(data[2:4], "big")) if data[1] == 126 else (2, data[1])
            message = json.loads(data[head : head + size])
            self.assertEqual(message.pop("type"), "chat_message")
            found.append((message["chat_id"], message["content"]))
            data = data[head + size :]
        return found

    def test_each_member_and_nobody_else(self) -> None:
        ones, both, two = self.client(1), self.client(1, 2), self.client(2)
        self.publish((1, "to one"))
        self.publish((2, "to two"))
        self.assertEqual(self.frames(ones.recv(4096)), [(1, "to one")])
        self.assertEqual(self.frames(both.recv(4096)), [(1, "to one"), (2, "to two")])
        self.assertEqual(self.frames(two.recv(4096)), [(2, "to two")])

    def test_messages_with_braces_and_quotes_and_of_every_length_of_frame(self) -> None:
        member = self.client(1)
        for text in ('} { \\ " ]', "x" * 300):
            self.publish((1, text))
            self.assertEqual(self.frames(member.recv(4096)), [(1, text)])

    def test_a_list_is_joined_for_each_chat(self) -> None:
        member = self.client(1, 2)
        self.publish((1, "a"), (2, "b"), (1, "c"))
        self.assertEqual(self.frames(member.recv(4096)), [(1, "a"), (1, "c"), (2, "b")])

    def test_who_left_is_no_member(self) -> None:
        self.client(1).close()
        stays = self.client(2)  # most likely with the file descriptor of the client that left
        self.publish((1, "to nobody"), (2, "to the other"))
        self.assertEqual(self.frames(stays.recv(4096)), [(2, "to the other")])


class Listening(SynchronousTestCase):
    def test_the_process_behind_a_port(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            self.assertEqual(process.listening(port), os.getpid())
        self.assertIsNone(process.listening(port))
