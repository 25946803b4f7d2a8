"""Publish streams: the pure part with a clock that the test advances, then real sockets."""

from __future__ import annotations

import json
import socket as sockets
import time
from base64 import b64encode
from contextlib import ExitStack
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from notify.core.live import ApiKey
from notify.errors import TooLarge, Unavailable, Unknown
from notify.http import pipeline
from notify.http.answers import Refused
from notify.http.pipeline import MOST_BYTES, MOST_MESSAGES, Pipeline, Streams
from notify.http.publish import Publisher
from notify.messages import Poison, Position
from notify.observe.metrics import Metrics
from notify.testing import chat_payload
from notify.topics import chat
from tests.support.http import AUTH, Client, FakeBroker, GatheringBroker, Node, request_bytes
from tests.support.running import API_KEY, LocalServer, RawClient

TOPIC = chat(1, 10)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": b64encode(bytes(16)).decode(),
}


def message(name: int | str = 1, **more: Any) -> dict[str, Any]:
    return {"id": name, "subject": TOPIC.subject, "payload": json.loads(chat_payload(TOPIC)), **more}


def masked(text: bytes) -> bytes:
    """A frame of 126 bytes or more, with a mask of zeros."""
    return b"\x81\xfe" + len(text).to_bytes(2, "big") + bytes(4) + text


class FakeSocket:
    """Records what a pipeline does to its WebSocket."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.writes = self.pings = 0
        self.silent = self.dropped = False
        self.close: tuple[int, str] | None = None
        self.talker: Any = None

    def client(self) -> str:
        return "192.0.2.1"

    def send(self, texts: Any) -> None:
        assert self.close is None, "nothing goes out behind a Close"
        self.writes += 1
        self.sent += [json.loads(text) for text in texts]

    def ask(self) -> None:
        self.pings += 1

    def silence(self, silent: bool) -> None:
        self.silent = silent

    def end(self, code: int, reason: str) -> None:
        self.talker.closing()
        self.close = (code, reason)

    def cut_off(self) -> None:
        self.dropped = True
        self.talker.closed()


class World(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.metrics = Clock(), Metrics()
        self.under_way: list[Deferred[Any]] = []
        self.broker = FakeBroker(self.answer)
        self.good, self.hung_up, self.witness = True, [], None
        self.key = ApiKey(b"", "backend")
        self.streams = Streams(
            Publisher(self.broker, self.metrics, 2000, witness=lambda: self.witness),
            None,  # type: ignore[arg-type]
            lambda key: self.good,
            self.clock,
            self.metrics.publish_streams,
            lambda reason, peer: self.hung_up.append((reason, peer)),
        )
        self.pipeline, self.socket = self.opened()

    def opened(self) -> tuple[Pipeline, FakeSocket]:
        line, socket = Pipeline(self.streams, self.key), FakeSocket()
        socket.talker = line
        line.opened(socket)
        return line, socket

    def answer(self) -> Deferred[Any]:
        self.under_way.append(Deferred())
        return self.under_way[-1]

    def send(self, *messages: Any) -> None:
        """Receive these messages at once."""
        for one in messages:
            self.pipeline.text(one if isinstance(one, bytes) else json.dumps(one).encode())
        self.pipeline.read()

    def turn(self) -> None:
        while any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
            self.clock.advance(0)

    def seconds(self, count: int) -> None:
        for _ in range(count):
            self.clock.advance(1)

    def names(self) -> list[Any]:
        return [one["id"] for one in self.socket.sent]

    def codes(self) -> dict[Any, tuple[int, str]]:
        return {one["id"]: (one["status"], one.get("error", {}).get("code", "")) for one in self.socket.sent}

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


class Outcomes(World):
    def test_a_message_is_answered_by_its_id_with_its_position(self) -> None:
        self.send(message(7, key="order-1", trace=TRACE))
        self.assertEqual(self.socket.sent, [])
        [(topic, payload, key, trace)] = self.broker.published
        self.assertEqual((topic, key, trace), (TOPIC, "order-1", TRACE))
        self.assertEqual(json.loads(payload), json.loads(chat_payload(TOPIC)))
        self.under_way[0].callback(Position("e", 3))
        self.turn()
        self.assertEqual(self.socket.sent, [{"id": 7, "status": 200, "epoch": "e", "seq": 3}])
        self.assertEqual(self.sample("notify_published_total", result="ok"), 1)

    def test_each_outcome_is_told_as_a_post_tells_it(self) -> None:
        for error, told, counted in (
            (Poison("payload is wrong"), (422, "invalid_message"), "poison"),
            (TooLarge("too large"), (413, "too_large"), "poison"),
            (Unavailable("away"), (503, "unavailable"), "unavailable"),
            (Unknown("silence"), (504, "unknown"), "unknown"),
        ):
            before = self.sample("notify_published_total", result=counted) or 0
            self.send(message(told[1]))
            self.under_way[-1].errback(error)
            self.turn()
            self.assertEqual(self.codes()[told[1]], told)
            self.assertEqual(self.sample("notify_published_total", result=counted), before + 1)

    def test_a_fault_of_the_server_is_told_and_logged(self) -> None:
        self.send(message(1))
        self.under_way[0].errback(ZeroDivisionError("sesame"))
        self.turn()
        self.assertEqual(self.codes(), {1: (500, "internal")})
        self.assertNotIn("sesame", json.dumps(self.socket.sent))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_what_takes_too_long_is_not_known_to_be_stored(self) -> None:
        self.send(message("slow"))
        self.seconds(20)
        self.send(message("later"))
        self.assertEqual(self.socket.sent, [])
        self.seconds(12)
        self.turn()
        self.assertEqual(self.codes(), {"slow": (504, "unknown")})
        self.under_way[1].callback(Position("e", 1))
        self.turn()
        self.assertEqual(self.codes()["later"], (200, ""))

    def test_messages_reach_the_broker_in_order_and_answers_come_as_they_are_known(self) -> None:
        self.send(*(message(n, key=f"k{n}") for n in range(5)))
        self.send(message(5, key="k5"))
        self.assertEqual([one[2] for one in self.broker.published], [f"k{n}" for n in range(6)])
        for index in (3, 0, 5):
            self.under_way[index].callback(Position("e", index))
        self.turn()
        self.assertEqual(self.names(), [3, 0, 5])
        self.assertEqual(self.socket.writes, 1)

    def test_a_scope_or_workspace_that_is_not_the_keys_is_told_for_each_message(self) -> None:
        self.key = ApiKey(b"", "tenant", workspaces=frozenset([2]))
        self.pipeline, self.socket = self.opened()
        self.send(message(1), message(2, subject="workspace.2.chat.10.messages"))
        self.under_way[0].callback(Position("e", 1))
        self.turn()
        self.assertEqual(self.codes(), {1: (403, "forbidden"), 2: (200, "")})

    def test_what_is_no_message_is_told_by_its_id_and_disturbs_nothing_else(self) -> None:
        self.send(
            message(0),
            {"id": 1},
            {"id": 2, "subject": 5, "payload": {}},
            message(3, sesame=1),
            message(4, key="a b"),
            message(5, key="k" * 129),
            message(6, subject="sesame"),
            message(7, trace=1),
            message(8, payload="x" * 3000),
            message(9),
        )
        for one in self.under_way:
            one.callback(Position("e", 1))
        self.turn()
        bad = (400, "bad_request")
        self.assertEqual(self.codes(), {
            0: (200, ""), 1: bad, 2: bad, 3: bad, 4: bad, 5: bad, 6: (422, "unknown_subject"), 7: bad,
            8: (413, "too_large"), 9: (200, ""),
        })  # fmt: skip
        self.assertNotIn("sesame", json.dumps(self.socket.sent))
        self.assertIsNone(self.socket.close)

    def test_what_names_no_id_ends_the_stream_behind_what_came_before(self) -> None:
        for wrong in (
            b"",
            b"{",
            b"[]",
            b"5",
            b'{"id": null}',
            b'{"id": 1.5}',
            b'{"id": "' + b"x" * 65 + b'"}',
            b"\xff",
            b"[" * 9999,
        ):
            self.pipeline, self.socket = self.opened()
            self.under_way.clear()
            self.send(message(1), wrong, message(2))
            self.turn()
            self.assertIsNone(self.socket.close, wrong)
            self.under_way[0].callback(Position("e", 1))
            self.turn()
            self.assertEqual(self.codes(), {1: (200, "")})
            self.assertEqual(self.socket.close and self.socket.close[0], 1007, wrong)
            self.assertEqual(len(self.under_way), 1)

    def test_a_list_is_begun_as_a_whole_and_each_of_its_messages_answered(self) -> None:
        self.send(
            [message(n) for n in range(3)] + [{"id": 3}, message(4)],
            b" [" + json.dumps(message(5)).encode() + b"]",
        )
        self.assertEqual(len(self.under_way), 5)
        for one in self.under_way:
            one.callback(Position("e", 1))
        self.turn()
        good = dict.fromkeys([0, 1, 2, 4, 5], (200, ""))
        self.assertEqual(self.codes(), {**good, 3: (400, "bad_request")})

    def test_also_where_it_is_more_than_may_be_under_way(self) -> None:
        self.send([message(n) for n in range(999)], [message(n) for n in range(999, 1999)], message(1999))
        self.turn()
        self.assertEqual(len(self.under_way), 1999)
        self.assertTrue(self.socket.silent)

    def test_what_comes_at_once_is_given_to_the_broker_at_once(self) -> None:
        broker = GatheringBroker(self.answer)
        self.streams.publisher = Publisher(broker, self.metrics, 2000)  # type: ignore[arg-type]
        self.send(message(1), [message(2), message(3)], message(4))
        self.turn()
        self.assertEqual((broker.gathered, len(broker.published)), ([4], 4))

    def test_a_list_that_is_none_ends_the_stream(self) -> None:
        for wrong in ([], [1], [[message(1)]], [message(1)] * 1001):
            self.pipeline, self.socket = self.opened()
            self.send(wrong)
            self.turn()
            self.assertEqual((self.socket.sent, self.socket.close and self.socket.close[0]), ([], 1007))

    def test_messages_are_text(self) -> None:
        self.pipeline.text(json.dumps(message(1)).encode())
        self.pipeline.other()
        self.pipeline.text(json.dumps(message(2)).encode())
        self.pipeline.read()
        self.under_way[0].callback(Position("e", 1))
        self.turn()
        self.assertEqual((self.names(), self.socket.close), ([1], (1003, "messages must be text frames")))

    def test_whoever_traces_is_told(self) -> None:
        seen: list[Any] = []

        class Witness:
            def published(self, *told: Any) -> None:
                seen.append(told[2:])

        self.witness = Witness()
        self.send(message(1), message(2))
        self.under_way[0].callback(Position("e", 7))
        self.under_way[1].errback(Unavailable("away"))
        self.assertEqual([one[0] for one in seen], ["ok", "unavailable"])
        self.assertEqual(seen[0][2:], ("e", 7))

    def test_a_parent_that_is_not_valid_counts_as_none(self) -> None:
        self.send(message(1, trace="00-1-2-3"))
        self.assertEqual(self.broker.published[0][3], "")


class Bounds(World):
    def test_no_more_is_read_than_may_be_under_way(self) -> None:
        self.send(*(message(n) for n in range(MOST_MESSAGES + 3)))
        self.turn()
        self.assertEqual(len(self.under_way), MOST_MESSAGES)
        self.assertTrue(self.socket.silent)
        for index in (0, 1):
            self.under_way[index].callback(Position("e", index))
        self.turn()
        self.assertEqual(len(self.under_way), MOST_MESSAGES + 2)
        self.assertTrue(self.socket.silent)
        for index in range(2, 6):
            self.under_way[index].callback(Position("e", index))
        self.turn()
        self.assertEqual(len(self.under_way), MOST_MESSAGES + 3)
        self.assertFalse(self.socket.silent)

    def test_nor_bytes(self) -> None:
        large = message(1, payload={"x": "x" * (MOST_BYTES // 3)})
        self.streams.publisher = Publisher(self.broker, self.metrics, MOST_BYTES)
        self.send(*[large] * 6)
        self.assertEqual(len(self.under_way), 3)
        self.assertTrue(self.socket.silent)
        self.under_way[0].callback(Position("e", 1))
        self.turn()
        self.assertEqual(len(self.under_way), 4)

    def test_others_have_their_turn_among_many_messages(self) -> None:
        self.streams.publisher = Publisher(FakeBroker(lambda: succeed(Position("e", 1))), self.metrics, 2000)  # type: ignore[arg-type]
        self.send(*(message(n) for n in range(1200)))
        self.assertEqual(len(self.names()), pipeline.AT_ONCE)
        self.assertTrue(self.socket.silent)
        self.turn()
        self.assertEqual(self.names(), list(range(1200)))
        self.assertFalse(self.socket.silent)

    def test_who_does_not_take_answers_is_not_read_from_and_cut_off_in_time(self) -> None:
        self.send(message(1))
        self.pipeline.blocked()
        self.assertTrue(self.socket.silent)
        self.pipeline.text(json.dumps(message(2)).encode())
        self.pipeline.read()
        self.assertEqual(len(self.under_way), 1)
        self.seconds(50)
        self.pipeline.unblocked()
        self.turn()
        self.assertEqual(len(self.under_way), 2)
        self.assertFalse(self.socket.silent)
        self.pipeline.blocked()
        self.seconds(59)
        self.assertFalse(self.socket.dropped)
        self.seconds(2)
        self.assertTrue(self.socket.dropped)
        self.assertEqual(self.hung_up, [("unread", "192.0.2.1")])

    def test_an_idle_client_is_pinged_and_one_that_does_not_answer_ends(self) -> None:
        self.seconds(26)
        self.assertEqual(self.socket.pings, 1)
        self.pipeline.read()  # the pong
        self.seconds(24)
        self.assertEqual(self.socket.pings, 1)
        self.seconds(20)
        self.assertEqual((self.socket.pings, self.socket.close), (2, None))
        self.seconds(2)
        self.assertEqual(self.socket.close, (1001, "idle"))

    def test_who_is_not_read_from_is_not_taken_for_idle(self) -> None:
        self.send(*(message(n) for n in range(MOST_MESSAGES)))
        self.turn()
        self.patch(pipeline, "ANSWER_TIMEOUT", 1000)
        self.seconds(100)
        self.assertEqual((self.socket.pings, self.socket.close), (0, None))

    def test_streams_are_bounded_and_counted(self) -> None:
        for _ in range(pipeline.MOST_STREAMS - 1):
            self.opened()
        self.assertEqual(self.sample("notify_publish_streams"), pipeline.MOST_STREAMS)

        class Asked:
            fields: dict[bytes, list[bytes]] = {}  # noqa: RUF012

            def parameters(self, _: Any) -> None:
                pass

        refused = self.assertRaises(Refused, self.streams, Asked())
        self.assertEqual((refused.status, refused.code), (503, "too_many_streams"))
        self.pipeline.closed()
        self.assertEqual(self.sample("notify_publish_streams"), pipeline.MOST_STREAMS - 1)


class Ends(World):
    def test_a_key_that_is_good_no_more_ends_it_behind_what_is_under_way(self) -> None:
        self.send(message(1))
        self.good = False
        self.send(message(2))
        self.turn()
        self.assertEqual((self.codes(), self.socket.close), ({2: (401, "unauthorized")}, None))
        self.under_way[0].callback(Position("e", 1))
        self.turn()
        self.assertEqual(self.codes()[1], (200, ""))
        self.assertEqual(
            self.socket.close, (1008, "the API key is no longer valid, or no longer valid for this")
        )
        self.assertEqual(len(self.broker.published), 1)

    def test_also_where_nothing_is_sent(self) -> None:
        self.good = False
        self.seconds(2)
        self.assertEqual(
            self.socket.close, (1008, "the API key is no longer valid, or no longer valid for this")
        )

    def test_a_server_that_leaves_answers_what_is_under_way_and_refuses_the_rest(self) -> None:
        self.send(message(1))
        left = self.streams.close()
        self.send(message(2))
        self.turn()
        self.assertEqual((self.codes(), self.socket.close), ({2: (503, "unavailable")}, None))
        self.under_way[0].callback(Position("e", 1))
        self.turn()
        self.assertEqual(self.codes()[1], (200, ""))
        self.assertEqual(self.socket.close, (1012, "the server is leaving"))
        self.assertNoResult(left)
        self.pipeline.closed()
        self.successResultOf(left)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_opens_none_any_more(self) -> None:
        self.successResultOf(
            Streams(None, None, None, self.clock, self.metrics.publish_streams, None).close()
        )  # type: ignore[arg-type]
        left = self.streams.close()
        line, socket = self.opened()
        self.turn()
        self.assertEqual(socket.close, (1012, "the server is leaving"))
        line.closed()
        self.pipeline.closed()
        self.successResultOf(left)

    def test_a_client_that_is_gone_waits_for_nothing(self) -> None:
        self.send(message(1))
        self.pipeline.closed()
        self.assertTrue(self.under_way[0].called)
        self.assertEqual(self.sample("notify_published_total", result="unknown"), 1)
        self.turn()
        self.assertEqual((self.socket.sent, self.clock.getDelayedCalls()), ([], []))

    def test_last_messages_that_come_with_a_close_are_published(self) -> None:
        self.pipeline.text(json.dumps(message(1)).encode())
        self.pipeline.closing()
        self.assertEqual(len(self.broker.published), 1)
        self.under_way[0].callback(Position("e", 1))
        self.turn()
        self.assertEqual(self.socket.sent, [])


class Judged(SynchronousTestCase):
    """The opening handshake, answered like any other request."""

    def setUp(self) -> None:
        self.node = Node()

    def ask(self, method: str = "GET", target: str = "/v1/stream", **headers: str | None) -> Any:
        given = {**AUTH, **HANDSHAKE, **{name.replace("_", "-"): value for name, value in headers.items()}}
        client = Client(self.node.site)
        client.send(
            request_bytes(method, target, None, {name: v for name, v in given.items() if v is not None})
        )
        if client.transport.value().startswith(b"HTTP/1.1 101"):
            return client
        (response,) = client.received(head=method == "HEAD")
        return response

    def test_no_page_opens_one(self) -> None:
        for origin in ("https://chat.example", "null", "http://notify.test"):
            response = self.ask(Origin=origin)
            self.assertEqual((response.status, response.code), (403, "forbidden"))

    def test_keys_are_judged_and_wrong_ones_counted_as_those_of_a_post(self) -> None:
        for key, status in ((None, 401), ("Bearer wrong", 401)):
            response = self.ask(Authorization=key)
            self.assertEqual((response.status, response.code), (status, "unauthorized"))
        sample = self.node.metrics.registry.get_sample_value
        for reason in ("missing", "unknown"):
            self.assertEqual(sample("notify_api_keys_refused_total", {"reason": reason}), 1)
        for _ in range(20):
            response = self.ask(Authorization="Bearer wrong-too")
        self.assertEqual((response.status, response.code), (429, "too_many_wrong_keys"))

    def test_a_key_needs_the_scope(self) -> None:
        key = ApiKey(
            self.node.site.keys.check(AUTH["Authorization"].encode()).digest, "dashboard", frozenset(["read"])
        )
        self.patch(self.node.site.keys, "_in_force", lambda: (key,))
        response = self.ask()
        self.assertEqual((response.status, response.code), (403, "forbidden"))

    def test_what_is_no_handshake_is_told(self) -> None:
        for headers, status, code in (
            ({"Upgrade": None, "Connection": None}, 426, "upgrade_required"),
            ({"Sec_WebSocket_Version": "12"}, 426, "upgrade_required"),
            ({"Sec_WebSocket_Key": "short"}, 400, "bad_request"),
            ({"Connection": "keep-alive"}, 400, "bad_request"),
            ({"Sec_WebSocket_Extensions": ";"}, 400, "bad_request"),
        ):
            response = self.ask(**headers)  # type: ignore[arg-type]
            self.assertEqual((response.status, response.code), (status, code), headers)
            if status == 426:
                self.assertEqual(
                    (response["Upgrade"], response["Sec-WebSocket-Version"]), ("websocket", "13")
                )
        self.assertEqual(self.ask("POST").status, 405)
        self.assertEqual(self.ask("HEAD").status, 405)
        self.assertEqual(self.ask(target="/v1/stream?key=x").status, 400)

    def test_neither_subprotocol_nor_extension_is_agreed_on(self) -> None:
        client = self.ask(
            Sec_WebSocket_Protocol="notify.v1.json", Sec_WebSocket_Extensions="permessage-deflate"
        )
        head = client.transport.value().decode().lower()
        self.assertIn("sec-websocket-accept", head)
        self.assertNotIn("sec-websocket-protocol", head)
        self.assertNotIn("sec-websocket-extensions", head)

    def test_a_node_that_leaves_opens_none(self) -> None:
        client = self.ask()
        left = self.node.site.settled()
        response = self.ask()
        self.assertEqual((response.status, response.code), (503, "unavailable"))
        self.assertNoResult(left)
        client.transport.protocol.connectionLost(Failure(ConnectionLost()))
        self.successResultOf(left)


class Sockets(TestCase):
    """A whole server, with clients that behave well or badly."""

    timeout = 60

    async def setUp(self) -> None:
        self.server = await LocalServer().start(self)
        self.url = self.server.api.replace("http", "ws") + "/v1/stream"

    def connect(self, **headers: str) -> ClientConnection:
        given = {"Authorization": f"Bearer {API_KEY}", **headers}
        return connect(self.url, additional_headers=given, compression=None, max_queue=None)

    def raw(self) -> RawClient:
        return RawClient(self.url, Authorization=f"Bearer {API_KEY}")

    async def opened(self) -> ClientConnection:
        """A connection opened in a thread, because nothing in the reactor's thread may wait for the server."""
        stack = ExitStack()
        self.addCleanup(deferToThread, stack.close)
        return await deferToThread(lambda: stack.enter_context(self.connect()))

    @property
    def stored(self) -> float:
        registry = self.server.hub.metrics.registry
        return registry.get_sample_value("notify_published_total", {"result": "ok"}) or 0

    async def test_pipelined_messages_are_stored_in_order(self) -> None:
        def talk() -> list[Any]:
            with self.connect() as stream:
                for n in range(3000):
                    stream.send(json.dumps(message(n)))
                return [json.loads(stream.recv(timeout=20)) for _ in range(3000)]

        told = await deferToThread(talk)
        self.assertEqual([one["id"] for one in told], list(range(3000)))
        self.assertEqual([one["seq"] for one in told], list(range(1, 3001)))
        self.assertEqual({one["status"] for one in told}, {200})

    async def test_a_page_and_a_wrong_key_open_nothing(self) -> None:
        for headers, status in (
            ({"Origin": "http://127.0.0.1"}, 403),
            ({"Authorization": "Bearer wrong"}, 401),
        ):
            error = await self.assertFailure(deferToThread(self.connect, **headers), InvalidStatus)
            self.assertEqual(error.response.status_code, status)

    async def test_a_message_in_fragments_and_pings_between_them(self) -> None:
        def talk() -> Any:
            with self.connect() as stream:
                text = json.dumps(message(1))
                stream.send(iter([text[:10], text[10:50], text[50:]]))
                stream.ping().wait(10)
                return json.loads(stream.recv(timeout=20))

        self.assertEqual((await deferToThread(talk))["status"], 200)

    async def test_a_large_payload_is_refused_and_a_message_beyond_all_bounds_ends_it(self) -> None:
        def talk() -> tuple[Any, int]:
            with self.connect() as stream:
                stream.send(json.dumps(message(1, payload={"content": "x" * 1_000_000})))
                told = json.loads(stream.recv(timeout=20))
                try:
                    stream.send(json.dumps(message(2, payload={"content": "x" * 5_000_000})))
                    stream.recv(timeout=20)
                except ConnectionClosed as closed:
                    return told, closed.rcvd.code if closed.rcvd else 0
            return told, 0

        told, code = await deferToThread(talk)
        self.assertEqual((told["status"], told["error"]["code"]), (413, "too_large"))
        self.assertEqual(code, 1009)

    async def test_what_breaks_the_protocol_ends_that_connection_alone(self) -> None:
        text = json.dumps(message(1)).encode()
        other = await self.opened()
        for frame, code in (
            ({"payload": text, "opcode": 2}, 1003),
            ({"payload": text, "mask": False}, 1002),
            ({"payload": text, "rsv": 0x40}, 1002),
            ({"payload": b"\xff\xfe"}, 1007),
            ({"payload": b"no JSON"}, 1007),
            ({"payload": text, "opcode": 0}, 1002),
        ):

            def talk(frame: Any = frame) -> tuple[Any, int]:
                client = self.raw()
                client.send(json.dumps(message("before")).encode())
                client.send(**frame)
                opcode, first = client.receive()
                self.assertEqual(opcode, 1)
                closed = client.close_code()
                client.close()
                return json.loads(first)["status"], closed

            self.assertEqual(await deferToThread(talk), (200, code), frame)
            other.send(json.dumps(message(1)))
            told = json.loads(await deferToThread(other.recv, 20))
            self.assertEqual(told["status"], 200)

    async def test_ten_thousand_messages_ahead_of_any_answer_hold_up_nobody_and_are_all_answered(
        self,
    ) -> None:
        frames = [masked(json.dumps(message(n)).encode()) for n in range(10_000)]
        client = await deferToThread(self.raw)
        client.socket.settimeout(50)
        sending = deferToThread(client.socket.sendall, b"".join(frames))
        other = await self.opened()
        other.send(json.dumps(message(1)))
        self.assertEqual(json.loads(await deferToThread(other.recv, 20))["status"], 200)

        def read() -> list[Any]:
            told = [json.loads(client.receive()[1]) for _ in frames]
            client.close()
            return told

        told = await deferToThread(read)
        await sending
        self.assertEqual([one["id"] for one in told], list(range(10_000)))
        self.assertEqual({one["status"] for one in told}, {200})

    async def test_a_message_that_trickles_in_holds_up_nobody(self) -> None:
        def trickle() -> int:
            text = json.dumps(message(1)).encode()
            client = self.raw()
            frame = masked(text)
            for at in range(len(frame)):
                client.socket.sendall(frame[at : at + 1])
            told = json.loads(client.receive()[1])["status"]
            client.close()
            return int(told)

        self.assertEqual(await deferToThread(trickle), 200)

    async def test_clients_that_go_in_the_middle_leave_nothing(self) -> None:
        gauge = self.server.hub.metrics.publish_streams

        def rush() -> None:
            for _ in range(20):
                client = self.raw()
                for n in range(20):
                    client.send(json.dumps(message(n)).encode())
                client.socket.setsockopt(
                    sockets.SOL_SOCKET, sockets.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0))
                )
                client.close()

        await deferToThread(rush)
        until = time.monotonic() + 20
        while gauge._value.get() and time.monotonic() < until:
            await deferToThread(time.sleep, 0.05)
        self.assertEqual(gauge._value.get(), 0)

    async def test_a_server_that_stops_says_so_and_has_answered_what_it_took(self) -> None:
        def talk(stream: ClientConnection) -> tuple[list[Any], int]:
            told = []
            try:
                for n in range(100_000):
                    stream.send(json.dumps(message(n)))
                    told.append(json.loads(stream.recv(timeout=20)))
            except ConnectionClosed as closed:
                return told, closed.rcvd.code if closed.rcvd else 0
            return told, 0

        stream = await self.opened()
        talking = deferToThread(talk, stream)
        while self.stored < 20:
            await deferToThread(time.sleep, 0.01)
        metrics = self.server.hub.metrics
        await self.server.service.stopService()
        told, code = await talking
        self.assertEqual(code, 1012)
        stored = metrics.registry.get_sample_value("notify_published_total", {"result": "ok"})
        self.assertEqual(len([one for one in told if one["status"] == 200]), stored)
        self.assertLessEqual({one["status"] for one in told}, {200, 503})
        self.server.service.stopService = lambda: None  # type: ignore[method-assign]
