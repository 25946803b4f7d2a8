"""Whatever bytes arrive, in whatever pieces: only complete, valid answers go back, and nothing breaks."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from notify.testing import chat_payload
from notify.topics import chat
from tests.support.http import AUTH, Client, Node, parse_responses, request_bytes

TOPIC = chat(1, 10)
BODY = json.dumps({"subject": TOPIC.subject, "payload": json.loads(chat_payload(TOPIC))}).encode()
JSON = {**AUTH, "Content-Type": "application/json"}

REQUESTS = (
    request_bytes("GET", "/health/live"),
    request_bytes("POST", "/v1/publish", BODY, JSON),
    request_bytes("POST", "/v1/publish", None, {**JSON, "Transfer-Encoding": "chunked"})
    + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    request_bytes("GET", f"/v1/history?subject={TOPIC.subject}&limit=1", None, AUTH),
    request_bytes("POST", "/none", b"x" * 100),
    request_bytes("GET", "/metrics", None, {"Expect": "100-continue"}),
)
TOKENS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b":",
    b";",
    b"0",
    b"-",
    b"\xff",
    b"HTTP/1.1",
    b"chunked",
    b"\r\n\r\n",
    b"%",
)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """Valid requests one after another, with pieces removed, repeated or inserted."""
    data = b"".join(draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = at + draw(st.integers(0, 30))
        piece = draw(
            st.one_of(
                st.just(b""), st.sampled_from(TOKENS), st.just(data[at:end] * 2), st.binary(max_size=20)
            )
        )
        data = data[:at] + piece + data[end:]
    return data


class FuzzTest(SynchronousTestCase):
    def talk(self, data: bytes, size: int) -> None:
        node = Node()
        client = Client(node.site)
        for start in range(0, len(data), size):
            client.send(data[start : start + size])
        responses = parse_responses(client.transport.value())
        for response in responses:
            self.assertIn(response.status, (100, 200, 207, 400, 401, 404, 405, 408, 410, 413, 415, 422, 431))
            if response.status >= 400:
                self.assertTrue(response.code)
        node.clock.advance(100)
        node.clock.advance(100)
        client.lose()
        self.assertEqual(node.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])
        self.successResultOf(node.site.settled())

    @settings(max_examples=150, derandomize=True)
    @given(spoilt(), st.sampled_from((1, 7, 64, 100_000)))
    def test_spoilt_requests(self, data: bytes, size: int) -> None:
        self.talk(data, size)

    @settings(max_examples=80, derandomize=True)
    @given(st.binary(max_size=400), st.sampled_from((1, 100_000)))
    def test_any_bytes(self, data: bytes, size: int) -> None:
        self.talk(data, size)
