"""Reads of the history from replicas that are stale, silent or short of something."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream.reader import Newest, Reader, Stored
from notify.brokers.jetstream.stream import StreamState
from notify.errors import HistoryLost, Unavailable
from notify.nats.connection import Reply
from notify.nats.jetstream import ApiError
from notify.topics import chat

SUBJECT = chat(1, 10).subject


class FakeStreams:
    """The leader, who knows everything."""

    def __init__(self) -> None:
        self.stored: list[int] = []
        self.state = StreamState("e1", 1, 100, True, "live.x.")
        self.away = False

    async def info(self) -> StreamState:
        return self.state

    async def api(self, call: str, body: dict[str, Any]) -> Any:
        if self.away:
            raise Unavailable("the leader is away")
        wanted = [n for n in self.stored if n >= body.get("seq", 0)]
        if not wanted:
            raise ApiError(404, 10037, "no message found")
        seq = wanted[-1] if "last_by_subj" in body else wanted[0]
        return {"message": {"seq": seq, "data": b64encode(b"from the leader").decode()}}


class FakeReplica:
    """Answers direct gets from a script: what it has, or an error, one for each request; the last goes on."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.asked: list[dict[str, Any]] = []

    def gather(self, subject: str, payload: bytes) -> Deferred[list[Reply]]:
        request = msgspec.json.decode(payload)
        self.asked.append(request)
        have = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(have, Exception):
            return fail(have)
        if isinstance(have, bytes):
            return succeed([Reply(b"", have)])
        if "multi_last" in request:
            found = {SUBJECT: max(have)} if have else {}
            replies = [self.message(n, 0, s) for s, n in found.items() if n >= request["seq"]]
            end = b"NATS/1.0 204 EOB\r\nNats-UpTo-Sequence: %d\r\n\r\n" % max(have, default=0)
            return succeed([*replies, Reply(b"", end if have else b"NATS/1.0 404 No Results\r\n\r\n")])
        wanted = [n for n in have if n >= request["seq"]]
        page, rest = wanted[: request["batch"]], wanted[request["batch"] :]
        replies, last = [], 0
        for n in page:
            replies.append(self.message(n, last))
            last = n
        end = b"NATS/1.0 204 EOB\r\nNats-Num-Pending: %d\r\nNats-Last-Sequence: %d\r\n\r\n" % (
            len(rest),
            last,
        )
        return succeed([*replies, Reply(b"", end if page else b"NATS/1.0 404 Message Not Found\r\n\r\n")])

    @staticmethod
    def message(n: int, last: int, subject: str = SUBJECT) -> Reply:
        block = (
            f"NATS/1.0\r\nNats-Subject: {subject}\r\nNats-Sequence: {n}\r\nNats-Last-Sequence: {last}\r\n\r\n"
        )
        return Reply(b"from a replica", block.encode())


class Reading(SynchronousTestCase):
    def setUp(self) -> None:
        self.streams, self.clock = FakeStreams(), Clock()

    def reader(self, *script: Any) -> Reader:
        self.replica = FakeReplica(*script)
        streams: Any = self.streams
        reader = Reader(self.replica, streams, "MESSAGES", self.clock, 4, lambda topic, stored, reason: None)
        reader.epoch = "e1"
        return reader

    def get(self, coroutine: Any) -> Any:
        answer = Deferred.fromCoroutine(coroutine)
        self.clock.pump([0.1] * 20)
        return self.successResultOf(answer)

    def error(self, coroutine: Any, kind: type[Exception]) -> None:
        answer = Deferred.fromCoroutine(coroutine)
        self.clock.pump([0.1] * 20)
        self.failureResultOf(answer, kind)

    def seqs(self, stored: list[Stored]) -> list[int]:
        return [one.seq for one in stored]

    def test_all_that_came_after_a_message_that_is_still_there(self) -> None:
        reader = self.reader([2, 5, 9])
        self.streams.state = msgspec.structs.replace(self.streams.state, first_seq=2, whole=False)
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 2))), [5, 9])

    def test_a_long_history_comes_in_pages(self) -> None:
        reader = self.reader(list(range(1, 1001)))
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 1))), list(range(2, 1001)))
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 1, limit=300))), list(range(2, 302)))
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, None, limit=2))), [1, 2])

    def test_a_message_that_is_gone_is_no_matter_while_the_stream_has_every_number_after_it(self) -> None:
        reader = self.reader([5, 9])
        self.streams.state = msgspec.structs.replace(self.streams.state, first_seq=4)
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 3))), [5, 9])
        self.error(reader.after(SUBJECT, 2), HistoryLost)
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 2, checked=3))), [5, 9])

    def test_holes_in_the_stream_prove_nothing(self) -> None:
        reader = self.reader([5, 9])
        self.streams.state = msgspec.structs.replace(self.streams.state, whole=False)
        self.error(reader.after(SUBJECT, 3), HistoryLost)

    def test_a_stream_made_anew_proves_nothing(self) -> None:
        reader = self.reader([5, 9])
        self.streams.state = msgspec.structs.replace(self.streams.state, epoch="e2")
        self.error(reader.after(SUBJECT, 0), HistoryLost)

    def test_a_replica_that_is_behind_is_asked_again(self) -> None:
        reader = self.reader([1, 2], [1, 2], [1, 2, 3])
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 1, at_least=3))), [2, 3])

    def test_in_the_end_the_leader_is_asked(self) -> None:
        for script in ([[1, 2]], [Unavailable("no answer")], [b"NATS/1.0 408 Request Timeout\r\n\r\n"]):
            reader = self.reader(*script)
            self.streams.stored = [1, 2, 3]
            got = self.get(reader.after(SUBJECT, 1, at_least=3))
            self.assertEqual(self.seqs(got), [2, 3])
            self.assertEqual(got[-1].data, b"from the leader")

    def test_what_even_the_leader_does_not_have_is_lost(self) -> None:
        reader = self.reader([1, 2])
        self.streams.stored = [1, 2]
        self.error(reader.after(SUBJECT, 1, at_least=3), HistoryLost)

    def test_with_nobody_to_ask_it_is_unavailable(self) -> None:
        reader = self.reader(Unavailable("no answer"))
        self.streams.away = True
        self.error(reader.after(SUBJECT, 1), Unavailable)
        self.error(reader.newest([SUBJECT]), Unavailable)

    def test_an_answer_with_a_hole_in_it_is_no_answer(self) -> None:
        reader = self.reader([1, 2, 3])
        gather = self.replica.gather
        broken = [True]

        def with_a_hole(subject: str, payload: bytes) -> Deferred[list[Reply]]:
            answer = gather(subject, payload)
            if broken.pop() if broken else False:
                answer.addCallback(lambda replies: [replies[0], *replies[2:]])
            return answer

        self.replica.gather = with_a_hole  # type: ignore[method-assign]
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 1))), [2, 3])
        self.assertEqual(len(self.replica.asked), 2)

    def test_newest_positions_reach_as_far_as_is_asked(self) -> None:
        reader = self.reader([1, 2], [1, 2, 7])
        self.assertEqual(
            self.get(reader.newest([SUBJECT, "other"], at_least=5)),
            Newest({SUBJECT: 7}, 7, {SUBJECT: b"from a replica"}),
        )

    def test_a_replica_that_stays_behind_is_passed_over(self) -> None:
        reader = self.reader([1, 2])
        self.streams.stored = [1, 2, 7]
        self.assertEqual(self.get(reader.newest([SUBJECT], at_least=5)).found, {SUBJECT: 7})

    def test_without_any_replica_the_leader_knows(self) -> None:
        reader = self.reader(Unavailable("nobody answers"))
        self.streams.stored = [1, 2, 7]
        self.assertEqual(self.get(reader.newest([SUBJECT])).found, {SUBJECT: 7})

    def test_a_subject_that_surely_has_messages_is_asked_along(self) -> None:
        reader = self.reader([1, 2])
        self.get(reader.newest([SUBJECT]))
        self.assertEqual(self.get(reader.newest(["silent"])), Newest({}, 2))
        self.assertEqual(self.replica.asked[-1]["multi_last"], ["silent", SUBJECT])
