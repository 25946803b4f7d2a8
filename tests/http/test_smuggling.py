"""Requests that a proxy in front could read differently: they are refused, and nothing that follows them is read.

``tests/wire/test_head.py`` and ``tests/http/test_body.py`` test in detail what is refused. These tests check that
no part of such a request is carried out, whole or cut anywhere, and that the connection ends.
"""

import json

from twisted.trial.unittest import TestCase

from notify.testing import chat_payload
from notify.topics import chat
from tests.support.http import AUTH, Client, Node, request_bytes

TOPIC = chat(1, 10)
BODY = json.dumps({"subject": TOPIC.subject, "payload": json.loads(chat_payload(TOPIC))}).encode()
JSON = {**AUTH, "Content-Type": "application/json"}

#: would publish if it were taken as a separate request
HIDDEN = request_bytes("POST", "/v1/publish", BODY, JSON)


def outer(lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    top = request_bytes("POST", "/v1/disconnect", None, JSON).replace(b"HTTP/1.1", b"HTTP/" + version)
    return top.removesuffix(b"\r\n") + lines + b"\r\n\r\n" + body


ATTACKS = {
    "two codings": outer(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "two codings, the last one unknown": outer(
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x", b"0\r\n\r\n"
    ),
    "identity": outer(b"Transfer-Encoding: identity"),
    "identity, then chunked": outer(
        b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"
    ),
    "identity and a length": outer(b"Transfer-Encoding: identity\r\nContent-Length: 2", b"{}"),
    "chunks and a length": outer(b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"0\r\n\r\n"),
    "a length and chunks": outer(b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "a coding that nobody has": outer(b"Transfer-Encoding: cow", b"0\r\n\r\n"),
    "a list of codings": outer(b"Transfer-Encoding: gzip, chunked", b"0\r\n\r\n"),
    "a coding behind a space": outer(b"Transfer-Encoding : chunked", b"0\r\n\r\n"),
    "a folded coding": outer(b"Transfer-Encoding:\r\n chunked", b"0\r\n\r\n"),
    "a folded line": outer(b"X: a\r\n b"),
    "a coding in HTTP/1.0": outer(b"Transfer-Encoding: chunked", b"0\r\n\r\n", b"1.0"),
    "two lengths": outer(b"Content-Length: 2\r\nContent-Length: 0", b"{}"),
    "a list of lengths": outer(b"Content-Length: 2, 2", b"{}"),
    "a length with a sign": outer(b"Content-Length: +2", b"{}"),
    "a bare LF in the headers": outer(b"X: a\nContent-Length: 2", b"{}"),
    "a bare CR in the headers": outer(b"X: a\rContent-Length: 2", b"{}"),
    "NUL in a header": outer(b"X: a\x00\r\nContent-Length: 0"),
    "two hosts": outer(b"Host: other.test"),
    "a header without a colon": outer(b"Content-Length 0"),
    "a bare LF behind a chunk's size": outer(b"Transfer-Encoding: chunked", b"2\n{}\r\n0\r\n\r\n"),
    "a bare LF in an extension": outer(b"Transfer-Encoding: chunked", b"2;a\nb\r\n{}\r\n0\r\n\r\n"),
    "a chunk that is longer than it says": outer(b"Transfer-Encoding: chunked", b"1\r\n{}\r\n0\r\n\r\n"),
    "a chunk's size with a sign": outer(b"Transfer-Encoding: chunked", b"+2\r\n{}\r\n0\r\n\r\n"),
    "a chunk's size that overflows": outer(
        b"Transfer-Encoding: chunked", b"10000000000000002\r\n{}\r\n0\r\n\r\n"
    ),
    "a chunk's size in another base": outer(b"Transfer-Encoding: chunked", b"0x2\r\n{}\r\n0\r\n\r\n"),
    "a trailer that is none": outer(b"Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\nno colon\r\n\r\n"),
}


class SmugglingTest(TestCase):
    def setUp(self) -> None:
        self.node = Node()

    def published(self) -> int:
        return len(self.successResultOf(self.node.broker.replay(TOPIC, None, 100, 10**6)).messages)

    def send(self, data: bytes, size: int) -> Client:
        client = Client(self.node.site)
        for start in range(0, len(data), size):
            client.send(data[start : start + size])
        return client

    def test_what_can_be_read_in_two_ways_is_refused_and_ends_the_connection(self) -> None:
        for what, attack in ATTACKS.items():
            for size in (1, 13, 10**6):
                client = self.send(attack + HIDDEN, size)
                responses = client.received()
                self.assertEqual([(r.status, r.code) for r in responses], [(400, "bad_request")], what)
                self.assertEqual(responses[0]["Connection"], "close", what)
                client.send(HIDDEN)
                self.assertEqual(client.received(), [], what)
                self.assertTrue(client.transport.half_closed, what)
        self.assertEqual(self.published(), 0)

    def test_a_chunk_too_large_for_memory_is_refused_by_its_size_alone(self) -> None:
        for digits in (b"7fffffff", b"ffffffffffffffff"):
            client = self.send(outer(b"Transfer-Encoding: chunked", digits + b"\r\n") + HIDDEN, 10**6)
            self.assertEqual([r.code for r in client.received()], ["too_large"])
        self.assertEqual(self.published(), 0)

    def test_what_lies_in_a_body_is_no_request(self) -> None:
        """Chunk extensions and trailers are not requests, either."""
        body = b"%x;ext=%s\r\n%s\r\n0\r\nContent-Length: 99\r\nTransfer-Encoding: identity\r\n\r\n"
        chunked = body % (len(HIDDEN), b'"1"', HIDDEN)
        for attack in (
            outer(b"Content-Length: %d" % len(HIDDEN), HIDDEN),
            outer(b"Transfer-Encoding: chunked", chunked),
            request_bytes("POST", "/none", HIDDEN),
        ):
            for size in (1, 13, 10**6):
                client = self.send(attack + request_bytes("GET", "/health/live"), size)
                self.assertIn([r.status for r in client.received()], ([400, 200], [404, 200]))
        self.assertEqual(self.published(), 0)

    def test_the_hidden_request_would_have_been_done_by_itself(self) -> None:
        self.assertEqual([r.status for r in self.send(HIDDEN, 13).received()], [200])
        self.assertEqual(self.published(), 1)

    def test_a_bare_lf_never_ends_the_headers(self) -> None:
        client = self.send(b"GET /health/live HTTP/1.1\nHost: x\n\n" + HIDDEN, 10**6)
        self.assertEqual([r.status for r in client.received()], [400])
        self.assertEqual(self.published(), 0)

    def test_hosts_are_hosts(self) -> None:
        for host in (b"a b", b"a/b", b"user@a", b"a:b", b"[::1", b"<a>", b"a\xff"):
            client = self.send(b"GET /health/live HTTP/1.1\r\nHost: " + host + b"\r\n\r\n" + HIDDEN, 10**6)
            self.assertEqual([r.status for r in client.received()], [400], host)
        self.assertEqual(self.published(), 0)
