"""What the benchmark sends to Centrifugo, compared with Centrifugo's documentation; and servers that already run."""

from __future__ import annotations

import json
import os
import socket
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.centrifugo import Centrifugo
from benchmarks.load import Unmeasurable
from benchmarks.running import UWebSockets
from benchmarks.servers import API_KEY, SECRET, token


class Protocol(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Centrifugo()
        self.addCleanup(self.server.__exit__)

    def request(self, *payloads: dict[str, Any]) -> tuple[bytes, list[bytes], Any]:
        """The request line, the headers and the body of a request that publishes these payloads."""
        head, _, body = self.server.request(list(payloads)).partition(b"\r\n\r\n")
        first, *headers = head.split(b"\r\n")
        self.assertIn(b"Content-Length: %d" % len(body), headers)
        return first, headers, json.loads(body)

    def test_a_client_connects_and_then_subscribes_to_each_chat(self) -> None:
        path, connect, connected, *subscribes, last = self.server.plan(7, [3, 5]).split("\t")
        self.assertEqual(path, "/connection/websocket")
        self.assertEqual(json.loads(connect.removeprefix(">")), {"id": 1, "connect": {"token": token(7)}})
        self.assertEqual(connected, '<"id":1,')
        self.assertEqual(
            [json.loads(step.removeprefix(">")) for step in subscribes],
            [
                {"id": 2, "subscribe": {"channel": "chat:3"}},
                {"id": 3, "subscribe": {"channel": "chat:5"}},
            ],
        )
        self.assertIn(last.removeprefix("<"), '{"id":3,"subscribe":{"recoverable":true,"epoch":"a"}}')

    def test_one_that_returns_recovers_from_where_a_publish_was_stored(self) -> None:
        answer = b'HTTP/1.1 200 OK\r\nContent-Length: 41\r\n\r\n{"result":{"offset":9,"epoch":"EkyHxRqH"}}'
        step = self.server.plan(7, [3], self.server.position(answer)).split("\t")[3]
        recover = {"channel": "chat:3", "recover": True, "epoch": "EkyHxRqH", "offset": 9}
        self.assertEqual(json.loads(step.removeprefix(">")), {"id": 2, "subscribe": recover})

    def test_one_message_is_published_and_a_list_is_a_batch(self) -> None:
        one = {"channel": "chat:1", "data": {"type": "chat_message", "chat_id": 1, "content": "a"}}
        two = {"channel": "chat:2", "data": {"type": "chat_message", "chat_id": 2, "content": "b"}}
        first, headers, body = self.request({"chat_id": 1, "content": "a"})
        self.assertEqual((first, body), (b"POST /api/publish HTTP/1.1", one))
        self.assertIn(f"X-API-Key: {API_KEY}".encode(), headers)
        first, _, body = self.request({"chat_id": 1, "content": "a"}, {"chat_id": 2, "content": "b"})
        self.assertEqual(first, b"POST /api/batch HTTP/1.1")
        self.assertEqual(body, {"commands": [{"publish": one}, {"publish": two}]})

    def test_its_configuration(self) -> None:
        config = self.server.config()
        self.assertEqual(
            config["http_server"],
            {
                "address": "127.0.0.1",
                "port": self.server.port,
                "internal_address": "127.0.0.1",
                "internal_port": str(self.server.publish_port),
            },
        )
        self.assertEqual(config["client"]["token"]["hmac_secret_key"], SECRET)
        self.assertEqual(config["http_api"]["key"], API_KEY)
        self.assertTrue(config["usage_stats"]["disabled"])
        (chats,) = config["channel"]["namespaces"]
        self.assertTrue(self.server.plan(1, [1]).split("\t")[3].count(f'"{chats["name"]}:1"'))

    def test_over_tls_publishes_come_without(self) -> None:
        self.server.tls = True
        http = self.server.config()["http_server"]
        self.assertTrue(http["tls"]["enabled"])
        self.assertTrue(http["tls_external"])
        for name in ("cert_pem", "key_pem"):
            with open(http["tls"][name]) as file:
                self.assertIn("-----BEGIN", file.read())

    def test_where_there_is_none_it_says_how_to_get_it(self) -> None:
        with patch.dict(os.environ, PATH="/nowhere"):
            error = self.assertRaises(Unmeasurable, self.server.command)
        self.assertIn("go install github.com/centrifugal/centrifugo/v6@latest", str(error))
        self.assertIn("--centrifugo ws://127.0.0.1:PORT", str(error))


class Running(SynchronousTestCase):
    """A server that somebody else has started."""

    def named(self, kind: type[Centrifugo | UWebSockets], port: int) -> Centrifugo | UWebSockets:
        self.patch(kind, "ports", (port, port + 1))
        server = kind()
        self.addCleanup(server.__exit__)
        return server

    def test_it_is_measured_by_the_process_that_listens_and_is_not_stopped(self) -> None:
        for kind in (Centrifugo, UWebSockets):
            with self.subTest(kind.name), socket.create_server(("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
                with self.named(kind, port) as server:
                    self.assertEqual(
                        (server.pid, server.port, server.publish_port), (os.getpid(), port, port + 1)
                    )

    def test_nobody_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        error = self.assertRaises(Unmeasurable, self.named(Centrifugo, port).start)
        self.assertEqual(str(error), f"nobody listens on port {port} (--centrifugo)")

    def test_it_is_not_taken_for_one_over_tls(self) -> None:
        server = self.named(Centrifugo, 1)
        server.tls = True
        self.assertRaises(Unmeasurable, server.start)

    def test_one_on_uwebsockets_is_not_started(self) -> None:
        server = UWebSockets()
        self.addCleanup(server.__exit__)
        error = self.assertRaises(Unmeasurable, server.start)
        self.assertEqual(str(error), "uWebSockets needs a server of yours: --uws ws://127.0.0.1:PORT")
