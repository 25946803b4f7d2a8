"""What one connection may do and may not: requests sent ahead, answers in pieces, answers that are not read."""

import gc
import tracemalloc
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from notify.http.answers import Answer, Sink, Stream, Upgrade, answer
from notify.http.connection import LINGER, Connection
from notify.http.request import Request
from notify.http.server import Route, Site
from notify.testing import make_context
from tests.support.http import AUTH, Client, Node, parse_responses, request_bytes

JSON = {**AUTH, "Content-Type": "application/json"}


class Producer:
    """Writes when the test makes it, and records the calls it receives."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self, sink: Sink) -> "Producer":
        self.sink = sink
        return self

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


class Echo(Protocol):
    """The protocol that an upgraded connection uses."""

    gone = False

    def connectionMade(self) -> None:
        self.transport.write(b"<open>")

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(b"<" + data + b">")

    def connectionLost(self, reason: Any = None) -> None:
        self.gone = True


class Base(TestCase):
    most_ahead = 3

    def setUp(self) -> None:
        self.context = make_context()
        self.clock = self.context.reactor
        self.producer = Producer()
        self.echo = Echo()
        self.asked: list[Request] = []
        self.waiting: list[Deferred[Answer]] = []
        get, post = b"GET", b"POST"
        self.site = Site(
            self.clock,
            {
                b"/now": Route({get: self.now, post: self.now}, max_body=100),
                b"/large": Route({get: lambda request: Answer(200, b"x" * 100_000)}),
                b"/later": Route({get: self.later, post: self.later}),
                b"/stream": Route({get: lambda request: Stream(self.producer.begin)}),
                b"/echo": Route({get: self.upgrade}),
            },
            None,
            self.context.metrics,
            timeout=lambda: 30.0,
            answer_timeout=20.0,
            most_ahead=self.most_ahead,
        )
        self.client = Client(self.site)
        self.transport = self.client.transport

    def now(self, request: Request) -> Answer:
        self.asked.append(request)
        return answer(len(self.asked))

    def later(self, request: Request) -> Deferred[Answer]:
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def upgrade(self, request: Request) -> Upgrade:
        assert request.head.startswith(b"GET /echo HTTP/1.1\r\n"), request.head
        return Upgrade(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", self.echo)

    def get(self, path: str, times: int = 1, **headers: str) -> None:
        self.client.send(request_bytes("GET", path, None, headers) * times)

    def sent(self) -> bytes:
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def content(self) -> bytes:
        return self.sent().partition(b"\r\n\r\n")[2]

    def hangups(self, reason: str) -> float:
        return self.context.metrics.http_hangups.labels(reason)._value.get()


class AheadTest(Base):
    def test_one_request_a_turn_is_answered(self) -> None:
        due: list[Connection] = []
        self.site.soon = due.append  # type: ignore[method-assign]
        self.get("/now", 3)
        for turn in (1, 2):
            self.assertEqual(len(self.asked), turn)
            due.pop().go_on()
        self.assertEqual((len(self.asked), due), (3, []))

    def test_connections_take_turns(self) -> None:
        clients = [Client(self.site) for _ in range(3)]
        for client in clients:
            client.send(request_bytes("GET", "/now") * 3)
        self.assertEqual(len(self.asked), 3)
        self.clock.advance(0)
        self.assertEqual(
            [[r.json for r in parse_responses(client.transport.value())] for client in clients],
            [[1, 4, 7], [2, 5, 8], [3, 6, 9]],
        )

    def test_who_does_not_wait_for_answers_is_told_so_counted_and_cut_off(self) -> None:
        events: list[LogEvent] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.get("/now", 50)
        responses = self.client.received()
        self.assertEqual([r.status for r in responses], [200] * 4 + [429])
        self.assertEqual((responses[-1].code, responses[-1]["Connection"]), ("too_many_requests", "close"))
        self.assertEqual(len(self.asked), 4)
        self.assertEqual(self.hangups("ahead"), 1)
        told = "Hung up on 192.168.1.1: it sends requests without waiting for the answers"
        self.assertEqual([formatEvent(event) for event in events].count(told), 1)
        self.assertTrue(self.transport.half_closed)
        self.assertEqual(self.transport.producerState, "paused")  # what it goes on sending is not even read
        self.clock.advance(LINGER)
        self.assertTrue(self.transport.disconnected)
        self.client.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_waits_now_and_then_goes_on(self) -> None:
        for _ in range(5):
            self.get("/now", 4)
            self.assertEqual([r.status for r in self.client.received()], [200] * 4)
        self.assertEqual(self.hangups("ahead"), 0)

    def test_bytes_that_come_meanwhile_are_read_when_it_is_their_turn(self) -> None:
        request = request_bytes("POST", "/now", b"x" * 10)
        self.client.send(request + request[:50])
        self.client.send(request[50:-3])
        self.assertEqual(len(self.asked), 1)
        self.clock.advance(0)
        self.client.send(request[-3:])
        self.assertEqual([r.json for r in self.client.received()], [1, 2])
        self.assertEqual([r.body for r in self.asked], [b"x" * 10] * 2)

    def test_a_request_that_was_begun_ahead_has_its_deadline_too(self) -> None:
        self.get("/now")
        self.client.send(request_bytes("GET", "/now") + b"GET")
        self.assertEqual(len(self.client.received()), 2)
        self.clock.pump([19.9])
        self.assertEqual(self.client.received(), [])
        self.clock.pump([0.1, 20])
        self.assertIn(b"408", self.sent())

    def test_nothing_more_is_done_for_one_that_is_gone(self) -> None:
        self.get("/now", 3)
        self.client.lose()
        self.clock.advance(0)
        self.assertEqual(len(self.asked), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class UnreadTest(Base):
    def test_no_further_request_is_looked_at_while_an_answer_waits(self) -> None:
        self.get("/large")
        self.client.channel.pauseProducing()
        self.assertEqual(self.transport.producerState, "paused")
        self.get("/now", 2)
        self.clock.advance(0)
        self.assertEqual(self.asked, [])
        self.client.channel.resumeProducing()
        self.assertEqual(self.transport.producerState, "producing")
        self.clock.advance(0)
        self.assertEqual(len(self.asked), 2)

    def test_who_does_not_read_is_cut_off_in_time_and_counted(self) -> None:
        self.get("/large")
        self.client.channel.pauseProducing()
        self.clock.pump([29.9])
        self.assertFalse(self.transport.disconnected)
        self.clock.pump([0.1, 20])
        self.assertTrue(self.transport.disconnected)
        self.assertEqual(self.hangups("unread"), 1)
        self.client.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_reads_in_time_is_idle_from_then_on(self) -> None:
        self.get("/large")
        self.client.channel.pauseProducing()
        self.clock.pump([29.9])
        self.client.channel.resumeProducing()
        self.sent()
        self.clock.pump([20, 9.9])
        self.assertFalse(self.transport.disconnecting)
        self.clock.pump([0.1, 20])
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.hangups("unread"), 0)


class HandlerTest(Base):
    def test_a_handler_that_takes_too_long_is_given_up(self) -> None:
        for method, code in (("GET", "timeout"), ("POST", "unknown")):
            client = Client(self.site)
            client.send(request_bytes(method, "/later"))
            self.clock.pump([19.9])
            self.assertEqual(client.received(), [])
            self.clock.pump([0.1, 20])
            (response,) = client.received()
            self.assertEqual((response.status, response.code), (504, code))
            client.lose()

    def test_a_handler_is_cancelled_when_its_client_goes(self) -> None:
        self.get("/later")
        self.assertNoResult(self.site.settled())
        self.client.lose()
        self.successResultOf(self.site.settled())
        self.assertTrue(self.waiting[0].called)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_answer_that_cannot_be_written_is_logged_and_ends_the_connection(self) -> None:
        self.get("/later")
        self.waiting[0].callback("no answer")  # type: ignore[arg-type]
        self.assertTrue(self.transport.disconnected)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.successResultOf(self.site.settled())


class MemoryTest(TestCase):
    def test_nothing_stays_of_a_body_that_was_refused(self) -> None:
        """Nor of an accepted body; and nothing waits for the garbage collector, which runs rarely."""
        node = Node()
        refused = request_bytes("POST", "/none", b"x" * 60_000)
        taken = request_bytes("POST", "/v1/publish", b"[" + b" " * 60_000, JSON)
        clients = [Client(node.site) for _ in range(21)]

        def play(client: Client) -> list[int]:
            for request in (refused, taken):
                for start in range(0, len(request), 16_384):
                    client.send(request[start : start + 16_384])
            return [r.status for r in client.received()]

        self.assertEqual(play(clients.pop()), [404, 400])  # what is created only once does not count
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        before, _ = tracemalloc.get_traced_memory()
        for client in clients:
            play(client)
        after, _ = tracemalloc.get_traced_memory()
        self.assertLess((after - before) / len(clients), 4096)


class StreamTest(Base):
    def test_an_answer_comes_in_chunks_as_it_comes_about(self) -> None:
        self.get("/stream")
        head = self.sent()
        self.assertIn(b"200 OK", head)
        self.assertIn(b"\r\nTransfer-Encoding: chunked\r\n", head)
        self.assertNotIn(b"Content-Length", head)
        self.producer.sink.write(b"hello")
        self.assertEqual(self.sent(), b"5\r\nhello\r\n")
        self.producer.sink.write(b"")  # an empty chunk would end the answer
        self.assertEqual(self.sent(), b"")
        self.producer.sink.finish()
        self.assertEqual(self.sent(), b"0\r\n\r\n")
        self.get("/now")
        self.assertEqual(self.content(), b"1")
        self.assertEqual(self.producer.told, [])

    def test_it_lasts_as_long_as_it_lasts_and_holds_up_no_stop(self) -> None:
        self.get("/stream")
        self.successResultOf(self.site.settled())
        self.clock.pump([20] * 20)
        self.assertFalse(self.transport.disconnecting)
        self.producer.sink.write(b"still there")
        self.assertIn(b"still there", self.sent())

    def test_who_writes_it_is_paused_while_the_client_does_not_read(self) -> None:
        self.get("/stream")
        self.client.channel.pauseProducing()
        self.client.channel.pauseProducing()
        self.client.channel.resumeProducing()
        self.assertEqual(self.producer.told, ["pause", "resume"])

    def test_a_client_that_takes_nothing_is_cut_off(self) -> None:
        self.get("/stream")
        self.client.channel.pauseProducing()
        self.clock.pump([20, 10, 20])
        self.assertTrue(self.transport.disconnected)
        self.assertEqual(self.hangups("unread"), 1)
        self.client.lose()
        self.assertEqual(self.producer.told, ["pause", "stop"])

    def test_who_writes_it_is_stopped_when_the_client_goes_and_may_write_on(self) -> None:
        self.get("/stream")
        self.sent()
        self.client.lose()
        self.assertEqual(self.producer.told, ["stop"])
        self.producer.sink.write(b"x")
        self.producer.sink.finish()
        self.assertEqual(self.sent(), b"")

    def test_a_request_behind_it_waits_for_its_end(self) -> None:
        self.get("/stream")
        self.get("/now")
        self.clock.advance(0)
        self.assertEqual(self.asked, [])
        self.producer.sink.finish()
        self.clock.advance(0)
        self.assertEqual(len(self.asked), 1)

    def test_for_http_1_0_it_ends_with_the_connection(self) -> None:
        self.client.send(b"GET /stream HTTP/1.0\r\n\r\n")
        head = self.sent()
        self.assertNotIn(b"Transfer-Encoding", head)
        self.assertIn(b"\r\nConnection: close\r\n", head)
        self.producer.sink.write(b"hello")
        self.producer.sink.finish()
        self.assertEqual(self.sent(), b"hello")
        self.assertTrue(self.transport.disconnecting)

    def test_head_gets_no_stream(self) -> None:
        self.client.send(request_bytes("HEAD", "/stream") + request_bytes("GET", "/now"))
        self.clock.advance(0)
        self.assertFalse(hasattr(self.producer, "sink"))
        self.assertEqual(len(self.asked), 1)

    def test_one_that_ends_at_once_is_whole(self) -> None:
        def begin(sink: Sink) -> Producer:
            sink.write(b"all")
            sink.finish()
            return self.producer

        self.producer.begin = begin  # type: ignore[method-assign]
        self.get("/stream")
        self.assertEqual(self.content(), b"3\r\nall\r\n0\r\n\r\n")
        self.client.channel.pauseProducing()
        self.assertEqual(self.producer.told, [])


class UpgradeTest(Base):
    def test_a_protocol_that_fails_at_once_ends_the_connection(self) -> None:
        def fail(transport: Any) -> None:
            raise RuntimeError("no")

        self.echo.makeConnection = fail  # type: ignore[method-assign]
        self.get("/echo")
        self.assertTrue(self.transport.disconnected)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.successResultOf(self.site.settled())

    def test_the_connection_is_the_other_protocol_s_from_then_on(self) -> None:
        self.transport.protocol = self.client.channel
        self.client.send(request_bytes("GET", "/echo", None, {"Upgrade": "echo"}) + b"first")
        self.assertEqual(self.sent(), b"HTTP/1.1 101 Switching Protocols\r\n\r\n<open><first>")
        self.assertIs(self.transport.protocol, self.echo)
        self.assertIsNone(self.transport.producer)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.successResultOf(self.site.settled())
        self.assertFalse(self.transport.disconnecting)
        self.assertFalse(self.echo.gone)
