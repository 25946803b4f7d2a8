"""The load generator answers a server's own pings wherever they appear."""

from __future__ import annotations

import shutil
import socket
import threading

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.load import Clients
from tests.support.programs import need


def frame(text: bytes) -> bytes:
    return bytes((0x81, len(text))) + text


class Pings(SynchronousTestCase):
    def setUp(self) -> None:
        need(shutil.which("cc"), "cc is missing: apt-get install build-essential")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(20)
        self.addCleanup(self.listener.close)

    def answers(self, *frames: bytes, reply: str) -> list[bytes]:
        """What a client sends when it receives these frames and then ``end``; without its answer to ``end``."""
        clients = Clients(self.listener.getsockname()[1], ["/\t<end\t>bye"], reply=reply)
        self.addCleanup(clients.close)
        opener = threading.Thread(target=clients.open)
        opener.start()
        self.addCleanup(opener.join, 20)
        server, _ = self.listener.accept()
        self.addCleanup(server.close)
        server.settimeout(20)
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += server.recv(1)
        server.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        server.sendall(b"".join(map(frame, (*frames, b"end"))))
        said, data = [], b""
        while not said or said[-1] != b"bye":
            data += server.recv(4096)
            while len(data) >= 2 and len(data) >= (size := 6 + (data[1] & 127)):
                mask, masked, data = data[2:6], data[6:size], data[size:]
                said.append(bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked)))
        return said[:-1]

    def test_a_ping_by_itself(self) -> None:
        self.assertEqual(self.answers(b"{}", b"{}", reply="{}=pong"), [b"pong", b"pong"])

    def test_one_among_messages_in_a_frame(self) -> None:
        pushes = b'{"push":1}', b'{"push":1}\n{}', b'{}\n{"push":2}', b'{"push":1}\n{}\n{"push":{}}'
        self.assertEqual(self.answers(*pushes, reply="{}=pong"), [b"pong"] * 3)

    def test_what_has_it_elsewhere_is_none(self) -> None:
        self.assertEqual(self.answers(b'{"a":{}}\n [{}]', b"{", reply="{}=pong"), [])

    def test_with_line_ends_of_its_own(self) -> None:
        self.assertEqual(
            self.answers(b"MSG 1 2\r\nhi\r\nPING\r\n", reply="PING\\r\\n=PONG\\r\\n"), [b"PONG\r\n"]
        )
