"""What all publishers share, without a socket: with a fake clock, and a network that the test plays."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, RejectConnection, Request, TextMessage

from notify.client._face import SIGNAL
from notify.client._job import Job
from notify.client._keys import MOST_KEYS, Keys, digest
from notify.client._messages import encode
from notify.client._outcome import Item, PublishFailed
from notify.client._publishing import CLOSING, HANDSHAKE, MOST, WITHOUT_STREAM, Desk, End, Options
from notify.client._wire import Address
from notify.client.actions import Position


class Network:
    """A front whose connections wait for the test."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.dialled: list[Line] = []

    def _now(self) -> float:
        return self.clock.seconds()

    def _later(self, delay: float, call: Callable[[], None]) -> Callable[[], None]:
        timer = self.clock.callLater(max(0.0, delay), call)
        return lambda: timer.cancel() if timer.active() else None

    def _dial(self, end: End) -> None:
        self.dialled.append(Line(self, end))


class Line:
    """One connection, seen from the server's end."""

    def __init__(self, network: Network, end: End) -> None:
        self.network, self.end = network, end
        self.got = b""
        self.closed = False
        self.socket: WSConnection | None = None
        end.cancel = self.abort

    # --- a socket, as the publisher uses it ---

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.got += data

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        self.lose("closed")

    # --- what the server does ---

    def lose(self, reason: str) -> None:
        if not self.closed:
            self.closed = True
            self.network._later(0, lambda: self.end.lost(reason))
            self.network.clock.advance(0)

    def accept(self) -> None:
        self.end.connected(self)

    def shake(self, answer: Any = None) -> None:
        """Open the stream, or refuse it with ``answer``."""
        self.accept()
        self.socket = WSConnection(ConnectionType.SERVER)
        self.texts()
        self.end.data(self.socket.send(AcceptConnection() if answer is None else answer))

    def texts(self) -> list[Any]:
        """What was received over the stream: messages and lists of messages."""
        assert self.socket is not None
        got, self.got = self.got, b""
        self.socket.receive_data(got)
        found: list[Any] = []
        for event in self.socket.events():
            if isinstance(event, TextMessage):
                found.append(json.loads(event.data))
            else:
                assert isinstance(event, Request | CloseConnection), event
        return found

    def say(self, *answers: Any) -> None:
        assert self.socket is not None
        for answer in answers:
            self.end.data(self.socket.send(TextMessage(json.dumps(answer))))

    def store(self, number: int, seq: int) -> None:
        self.say({"id": number, "status": 200, "epoch": "e", "seq": seq})

    def request(self) -> tuple[dict[str, str], Any]:
        """The headers and the body of the request that was received."""
        head, _, body = self.got.partition(b"\r\n\r\n")
        self.got = b""
        lines = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:])
        return {"line": lines[0], **{name.lower(): value for name, value in fields.items()}}, json.loads(body)

    def answer(self, status: int, value: Any, *headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        head = "\r\n".join([f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers])
        self.end.data(head.encode() + b"\r\n\r\n" + body)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = Network()
        self.desk = self.make()

    def make(self, **options: Any) -> Desk:
        settings = {
            "timeout": 30.0,
            "try_timeout": 10.0,
            "tries": None,
            "stream": True,
            "connections": 2,
            "duplicate_window": 120.0,
        }
        address = Address(False, "h", 80, "/v1/stream")
        return Desk(self.network, address, "key", Options(**{**settings, **options}), lambda: 0.5)

    def publish(self, count: int = 1, *, timeout: float = 30.0, tries: int | None = None, **how: Any) -> Job:
        items = [Item(b'{"subject":"s","payload":{"n":%d}}' % n, f"k:{n}") for n in range(count)]
        job = Job(items, "/v1/publish", "k", timeout, tries, many=count > 1, **how)
        self.desk.submit(job)
        return job

    def advance(self, seconds: float) -> None:
        self.network.clock.advance(seconds)

    @property
    def lines(self) -> list[Line]:
        return self.network.dialled

    def failed(self, job: Job) -> PublishFailed:
        self.assertTrue(job.over)
        return self.assertRaises(PublishFailed, job.result)

    def unreached(self, job: Job) -> None:
        error = self.failed(job)
        self.assertEqual((error.code, error.status, error.nothing_stored), ("unreachable", None, True))

    def unknown(self, job: Job) -> None:
        error = self.failed(job)
        self.assertEqual((error.code, error.status, error.nothing_stored), ("unknown", None, False))


class Streaming(Case):
    def test_all_that_waits_goes_over_one_stream_and_answers_come_in_any_order(self) -> None:
        first, second = self.publish(), self.publish(2)
        [line] = self.lines
        self.assertEqual(line.got, b"")
        line.shake()
        one, two = line.texts()
        self.assertEqual(one, {"id": 1, "key": "k:0", "subject": "s", "payload": {"n": 0}})
        self.assertEqual([part["id"] for part in two], [2, 3])
        line.store(3, 13)
        line.store(2, 12)
        self.assertFalse(first.over)
        self.assertEqual(second.result(), [Position("e", 12), Position("e", 13)])
        line.store(1, 11)
        self.assertEqual(first.result(), [Position("e", 11)])
        self.assertEqual(self.network.clock.getDelayedCalls()[1:], [])  # apart from the check of the stream

    def test_a_stream_that_is_lost_is_opened_again_and_the_same_keys_are_sent(self) -> None:
        job = self.publish(2)
        self.lines[0].shake()
        self.lines[0].store(1, 1)
        self.lines[0].lose("reset")
        self.assertEqual(len(self.lines), 1)
        self.advance(0.1)  # half of 200 ms
        self.lines[1].shake()
        self.assertEqual([one["key"] for one in self.lines[1].texts()], ["k:1"])
        self.lines[1].store(1, 2)
        self.assertEqual(job.result(), [Position("e", 1), Position("e", 2)])

    def test_waits_double_and_are_bounded_and_there_are_as_many_tries_as_time(self) -> None:
        job = self.publish(timeout=30)
        times = []
        while not job.over:
            if self.lines and not self.lines[-1].closed:
                times.append(self.network._now())
                self.lines[-1].lose("refused")
            self.advance(0.001)
        waits = [round(b - a, 1) for a, b in pairwise(times)]
        self.assertEqual(waits[:7], [0.1, 0.2, 0.4, 0.8, 1.6, 2.5, 2.5])
        self.assertGreater(times[-1], 29)
        self.assertLess(self.network._now(), 30.01)
        self.unreached(job)

    def test_tries_bound_it_too(self) -> None:
        job = self.publish(tries=2)
        for line in range(2):
            self.lines[line].lose("refused")
            self.advance(1)
        self.assertEqual(len(self.lines), 2)
        self.unreached(job)
        self.assertIn("refused", self.failed(job).text)

    def test_who_is_somebody_else_is_not_tried_again(self) -> None:
        job = self.publish()
        self.lines[0].lose("certificate verify failed: self-signed")
        self.unreached(job)

    def test_silence_gives_a_stream_up_and_answers_put_that_off(self) -> None:
        job = self.publish(2, timeout=60)
        self.lines[0].shake()
        self.advance(9)
        self.lines[0].store(1, 1)
        self.advance(9)
        self.assertFalse(self.lines[0].closed)
        self.advance(1.1)
        self.assertTrue(self.lines[0].closed)
        self.assertFalse(job.over)
        self.advance(0.2)
        self.lines[1].shake()
        self.lines[1].store(1, 2)
        self.assertEqual([one.seq for one in job.result()], [1, 2])

    def test_nothing_is_sent_that_the_server_would_not_read(self) -> None:
        jobs = [self.publish(400) for _ in range(3)]
        self.lines[0].shake()
        self.assertEqual([len(text) for text in self.lines[0].texts()], [400, 400])
        for number in range(1, 401):
            self.lines[0].store(number, number)
        self.assertTrue(jobs[0].over)
        self.assertEqual([len(text) for text in self.lines[0].texts()], [400])

    def test_what_is_too_much_is_refused_at_once(self) -> None:
        for _ in range(MOST // 500):
            self.publish(500)
        job = self.publish()
        error = self.failed(job)
        self.assertEqual((error.code, error.nothing_stored), ("busy", True))

    def test_a_refused_handshake_means_requests_for_a_minute(self) -> None:
        for answer in (RejectConnection(status_code=404), CloseConnection(code=1000)):
            self.setUp()
            job = self.publish()
            if isinstance(answer, RejectConnection):
                self.lines[0].shake(answer)
            else:
                self.lines[0].accept()
                self.lines[0].lose("closed")
            self.assertEqual(len(self.lines), 2)
            self.lines[1].accept()
            self.lines[1].answer(200, {"epoch": "e", "seq": 1})
            self.assertEqual(job.result(), [Position("e", 1)])
            self.advance(WITHOUT_STREAM - 1)
            self.publish()
            self.assertEqual(len(self.lines), 2)
            self.lines[1].answer(200, {"epoch": "e", "seq": 2})
            self.advance(2)
            self.publish()
            self.assertEqual(len(self.lines), 3)
            self.lines[2].shake()

    def test_a_handshake_that_hangs_means_requests_too(self) -> None:
        self.publish()
        self.lines[0].accept()
        self.advance(HANDSHAKE + 0.1)
        self.lines[1].accept()
        self.assertEqual(self.lines[1].request()[0]["line"], "POST /v1/publish HTTP/1.1")

    def test_an_answer_that_is_none_ends_the_stream(self) -> None:
        self.publish()
        self.lines[0].shake()
        self.lines[0].say(["what?"])
        self.assertTrue(self.lines[0].closed)
        self.advance(0.2)
        self.assertEqual(len(self.lines), 2)


class Honest(Case):
    """What is reported of a message whose time is over, or that was refused."""

    def test_never_connected_never_sent_never_stored(self) -> None:
        job = self.publish(timeout=3)
        self.advance(3)
        self.unreached(job)
        self.assertIn("no connection in time", self.failed(job).text)

    def test_connected_and_not_opened_is_never_sent(self) -> None:
        job = self.publish(timeout=3)
        self.lines[0].accept()
        self.advance(3)
        self.unreached(job)
        self.assertIn("no stream in time", self.failed(job).text)

    def test_sent_and_not_answered_is_unknown_and_whoever_comes_next_has_another_stream(self) -> None:
        job = self.publish(timeout=3)
        self.lines[0].shake()
        self.advance(3)
        self.unknown(job)
        self.publish()
        self.assertEqual(len(self.lines), 2)

    def test_the_impatient_cut_nobody_off(self) -> None:
        patient, hasty = self.publish(), self.publish(timeout=1)
        self.lines[0].shake()
        self.advance(1)
        self.unknown(hasty)
        self.lines[0].store(2, 1)  # nobody waits for this any more
        self.lines[0].store(1, 2)
        self.assertEqual([one.seq for one in patient.result()], [2])

    def test_time_that_was_waited_behind_others_counts(self) -> None:
        for _ in range(2):
            self.publish(500)
        job = self.publish(timeout=4)
        self.lines[0].shake()
        self.advance(4)
        error = self.failed(job)
        self.assertEqual((error.code, error.nothing_stored), ("busy", True))

    def test_a_refusal_behind_a_doubt_takes_the_doubt_away_only_where_it_can(self) -> None:
        for status, code, told, nothing in (
            (422, "invalid_message", 422, True),
            (503, "unknown", None, False),
            (401, "unauthorized", 401, False),
        ):
            self.setUp()
            job = self.publish(tries=2)
            self.lines[0].shake()
            self.lines[0].lose("reset")
            self.advance(0.2)
            self.lines[1].shake()
            name = {422: "invalid_message", 503: "unavailable", 401: "unauthorized"}[status]
            self.lines[1].say({"id": 1, "status": status, "error": {"code": name, "message": "m"}})
            error = self.failed(job)
            self.assertEqual((error.code, error.status, error.nothing_stored), (code, told, nothing))

    def test_each_of_a_list_has_its_own_doubt(self) -> None:
        job = self.publish(3, tries=1)
        self.lines[0].shake()
        self.lines[0].say({"id": 1, "status": 503, "error": {"code": "unavailable", "message": "m"}})
        self.lines[0].store(2, 2)
        self.lines[0].lose("reset")
        error = self.failed(job)
        self.assertEqual(error.positions, [None, Position("e", 2), None])
        told = [one and (one.code, one.nothing_stored) for one in error.errors]
        self.assertEqual(told, [("unavailable", True), None, ("unknown", False)])
        self.assertFalse(error.nothing_stored)

    def test_an_abandoned_one_is_sent_no_more(self) -> None:
        job = self.publish()
        self.desk.abandon(job)
        self.lines[0].shake()
        self.assertEqual(self.lines[0].texts(), [])
        self.assertTrue(job.over)


class Requests(Case):
    def setUp(self) -> None:
        super().setUp()
        self.desk = self.make(stream=False)

    def test_a_pool_of_connections_that_are_kept(self) -> None:
        jobs = [self.publish() for _ in range(3)]
        self.assertEqual(len(self.lines), 2)
        for line in self.lines:
            line.accept()
        fields, body = self.lines[0].request()
        self.assertEqual(
            (fields["host"], fields["authorization"], fields["idempotency-key"]), ("h", "Bearer key", "k")
        )
        self.assertEqual(body, {"subject": "s", "payload": {"n": 0}})
        self.lines[0].answer(200, {"epoch": "e", "seq": 1})
        self.assertTrue(jobs[0].over)
        self.assertEqual(self.lines[0].request()[1], {"subject": "s", "payload": {"n": 0}})
        self.assertEqual(len(self.lines), 2)

    def test_a_signal_is_not_waited_for_as_long_as_a_message(self) -> None:
        job = Job([Item(b"", "")], "/v1/signal", None, SIGNAL, None, body=b"{}")
        self.desk.submit(job)
        self.advance(SIGNAL)
        self.unreached(job)

    def test_one_that_the_server_closes_is_replaced(self) -> None:
        self.publish()
        self.lines[0].accept()
        self.lines[0].answer(200, {"epoch": "e", "seq": 1}, "Connection: close")
        self.assertTrue(self.lines[0].closed)
        self.publish()
        self.lines[1].accept()
        self.lines[1].answer(200, {"epoch": "e", "seq": 2})
        self.lines[1].lose("idle")
        self.publish()
        self.assertEqual(len(self.lines), 3)

    def test_the_server_says_how_long_to_wait(self) -> None:
        job = self.publish()
        self.lines[0].accept()
        self.lines[0].answer(503, {"error": {"code": "unavailable", "message": "m"}}, "Retry-After: 3")
        self.lines[0].request()
        self.advance(2.9)
        self.assertEqual(self.lines[0].got, b"")
        self.advance(0.1)
        self.assertNotEqual(self.lines[0].got, b"")
        self.lines[0].answer(503, {"error": {"code": "unavailable", "message": "m"}}, "Retry-After: 30")
        error = self.failed(job)  # there is no time to wait that long
        self.assertEqual((error.code, error.status, error.nothing_stored), ("unavailable", 503, True))

    def test_a_server_that_asks_for_no_wait_at_all_is_not_asked_all_the_time(self) -> None:
        job = self.publish(timeout=2)
        self.lines[0].accept()
        asked = 0
        while not job.over:
            if self.lines[0].got:
                asked += 1
                self.lines[0].request()
                self.lines[0].answer(503, {}, "Retry-After: 0")
            self.advance(0.05)
        self.assertLess(asked, 22)

    def test_a_try_without_an_answer_is_given_up_however_slowly_it_comes(self) -> None:
        job = self.publish(timeout=15)
        self.lines[0].accept()
        for letter in b"HTTP/1.1 200 OK\r\n":
            self.lines[0].end.data(bytes([letter]))
            self.advance(1)
            if self.lines[0].closed:
                break
        self.assertLess(self.network._now(), 11.5)
        self.advance(0.2)
        self.assertEqual(len(self.lines), 2)
        self.advance(15)
        self.unknown(job)

    def test_what_is_no_http_and_what_is_too_long_is_no_answer(self) -> None:
        for text in (
            b"220 smtp ready\r\n\r\n",
            b"HTTP/1.1 200 X\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 2**24 + b"x",
        ):
            self.setUp()
            job = self.publish(tries=1)
            self.lines[0].accept()
            self.lines[0].end.data(text)
            self.assertTrue(self.lines[0].closed)
            self.unknown(job)

    def test_an_answer_may_end_with_its_connection(self) -> None:
        job = self.publish()
        self.lines[0].accept()
        self.lines[0].end.data(b'HTTP/1.1 200 X\r\n\r\n{"epoch":"e","seq":4}')
        self.lines[0].lose("closed")
        self.assertEqual(job.result(), [Position("e", 4)])

    def test_an_answer_of_somebody_else_stores_nothing_for_sure(self) -> None:
        for value in ({}, b"<html>", {"epoch": "", "seq": 0}, [1]):
            self.setUp()
            job = self.publish()
            self.lines[0].accept()
            self.lines[0].answer(200, value)
            error = self.failed(job)
            self.assertEqual((error.code, error.nothing_stored), ("failed", False), value)


class OwnKeys(Case):
    """Keys that the caller chooses, each for one message."""

    def keyed(self, key: str, content: object, subject: str = "s", **how: Any) -> Job:
        body = encode(subject, {"content": content})
        job = Job([Item(body, key, digest(body))], "/v1/publish", key, 30.0, 1, **how)
        self.desk.submit(job)
        return job

    def stored(self, *key: Any) -> None:
        """Publish a message over a stream, and answer that it is stored."""
        job = self.keyed(*key)
        if len(self.lines) == 1 and self.lines[0].socket is None:
            self.lines[0].shake()
        [text] = self.lines[0].texts()
        self.lines[0].store(text["id"], 1)
        self.assertEqual(len(job.result()), 1)

    def reused(self, job: Job) -> None:
        error = self.failed(job)
        self.assertEqual((error.code, error.status, error.nothing_stored), ("key_reused", None, True))

    def test_another_message_under_the_same_key_is_refused_and_not_sent(self) -> None:
        self.stored("k", 1)
        self.reused(self.keyed("k", 2))
        self.assertEqual(self.lines[0].texts(), [])
        self.stored("k", 1)
        self.stored("k", 2, "another subject")
        self.reused(self.keyed("k", 3))

    def test_a_key_is_free_again_when_the_server_has_forgotten_it(self) -> None:
        self.stored("k", 1)
        self.advance(119)
        self.stored("k", 1)  # this extends nothing: the server counts from the first one
        self.advance(1.1)
        self.stored("k", 2)

    def test_while_it_is_under_way_or_in_doubt_it_is_taken(self) -> None:
        job = self.keyed("k", 1)
        self.lines[0].shake()
        self.reused(self.keyed("k", 2))
        self.lines[0].lose("reset")
        self.unknown(job)
        self.reused(self.keyed("k", 2))

    def test_where_nothing_was_stored_it_is_free(self) -> None:
        job = self.keyed("k", 1)
        self.lines[0].shake()
        [text] = self.lines[0].texts()
        self.lines[0].say(
            {"id": text["id"], "status": 422, "error": {"code": "invalid_message", "message": "m"}}
        )
        self.failed(job)
        self.stored("k", 2)
        # A repeat that fails changes nothing: the first one is stored.
        job = self.keyed("k", 2)
        [text] = self.lines[0].texts()
        self.lines[0].say({"id": text["id"], "status": 503, "error": {"code": "unavailable", "message": "m"}})
        self.failed(job)
        self.reused(self.keyed("k", 3))

    def test_of_a_list_none_is_sent_where_one_has_another_ones_key(self) -> None:
        self.stored("b:1", "one")
        bodies = [encode("s", {"content": content}) for content in ("zero", "another", "two")]
        items = [Item(body, f"b:{n}", digest(body)) for n, body in enumerate(bodies)]
        job = Job(items, "/v1/publish", "b", 30.0, None, many=True, own_keys=True)
        self.desk.submit(job)
        error = self.failed(job)
        self.assertEqual(error.positions, [None] * 3)
        self.assertEqual([one is not None and one.code for one in error.errors], ["key_reused"] * 3)
        self.assertIn("this one", error.errors[1].text if error.errors[1] else "")
        self.assertEqual(self.lines[0].texts(), [])
        self.stored("b:0", "something else")  # the message with this key was never sent

    def test_a_key_that_a_list_gave_to_one_of_its_messages_is_taken(self) -> None:
        bodies = [encode("s", {"content": content}) for content in ("zero", "one")]
        items = [Item(body, f"b:{n}", digest(body)) for n, body in enumerate(bodies)]
        job = Job(items, "/v1/publish", "b", 30.0, None, many=True, own_keys=True)
        self.desk.submit(job)
        self.lines[0].shake()
        for number, text in enumerate(self.lines[0].texts()[0], start=1):
            self.lines[0].store(text["id"], number)
        self.assertEqual(len(job.result()), 2)
        self.reused(self.keyed("b:1", "another"))
        self.stored("b:1", "one")

    def test_by_a_request_each_has_its_own(self) -> None:
        self.desk = self.make(stream=False)
        bodies = [encode("s", {"content": content}) for content in range(2)]
        items = [Item(body, f"b:{n}", digest(body)) for n, body in enumerate(bodies, 500)]
        self.desk.submit(Job(items, "/v1/publish", "b", 30.0, None, many=True, own_keys=True))
        self.lines[0].accept()
        fields, body = self.lines[0].request()
        self.assertNotIn("idempotency-key", fields)
        self.assertEqual([one["key"] for one in body], ["b:500", "b:501"])

    def test_memory_is_bounded(self) -> None:
        keys = Keys(120)
        for n in range(MOST_KEYS + 500):
            self.assertIsNone(keys.owner(b"s", str(n), 1.0))
            keys.use(b"s", str(n), b"m", 1.0)
        self.assertLessEqual(len(keys._used), MOST_KEYS + 1)
        self.assertEqual(keys.owner(b"s", str(MOST_KEYS + 499), 1.0), b"m")
        self.assertIsNone(keys.owner(b"s", "0", 1.0))

    def test_the_order_of_fields_and_what_is_made_anew_are_no_other_message(self) -> None:
        one = digest(encode("s", {"a": 1, "b": {"c": "é", "d": 2}, "timestamp": 5}), ["timestamp"])
        other = digest(encode("s", {"b": {"d": 2, "c": "é"}, "timestamp": 6, "a": 1}), ["timestamp"])
        self.assertEqual(one, other)
        self.assertNotEqual(one, digest(encode("s", {"a": 1, "b": {"c": "é", "d": 2}, "timestamp": 5})))


class Closing(Case):
    def setUp(self) -> None:
        super().setUp()
        self.gone: list[bool] = []

    def close(self, patience: float | None = None) -> None:
        self.desk.close(patience, lambda: self.gone.append(True))

    def test_what_is_under_way_is_waited_for_and_nothing_is_left(self) -> None:
        job = self.publish()
        self.lines[0].shake()
        self.close()
        self.assertEqual((self.failed(self.publish()).code, self.gone), ("closed", []))
        self.lines[0].store(1, 1)
        self.assertEqual(len(job.result()), 1)
        self.assertEqual((self.lines[0].closed, self.gone), (True, [True]))
        self.assertEqual(self.network.clock.getDelayedCalls(), [])

    def test_it_waits_for_no_longer_than_it_is_told(self) -> None:
        job = self.publish()
        self.lines[0].shake()
        self.close(2)
        self.advance(2)
        self.unknown(job)
        self.assertEqual(self.gone, [True])
        self.assertEqual(self.network.clock.getDelayedCalls(), [])

    def test_an_end_that_does_not_close_is_cut_off(self) -> None:
        self.publish()
        self.lines[0].shake()
        self.lines[0].store(1, 1)
        self.patch(self.lines[0], "close", lambda: None)
        self.close()
        self.advance(CLOSING - 0.1)
        self.assertEqual(self.gone, [])
        self.advance(0.1)
        self.assertEqual(self.gone, [True])

    def test_without_a_connection_it_is_over_at_once(self) -> None:
        self.close()
        self.assertEqual(self.gone, [True])
