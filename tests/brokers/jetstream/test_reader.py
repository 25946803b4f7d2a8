"""Reads of the history from replicas that are stale, silent, or lack something."""

from __future__ import annotations

import gc
import weakref
from base64 import b64encode
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream import reader as reader_module
from notify.brokers.jetstream.audit import Audit
from notify.brokers.jetstream.holes import Holes
from notify.brokers.jetstream.reader import Reader
from notify.brokers.jetstream.stored import Newest, Page
from notify.brokers.jetstream.stream import StreamState
from notify.errors import HistoryLost, Unavailable
from notify.nats.asking import Reply
from notify.nats.jetstream import ApiError, JetStream
from notify.observe.metrics import Metrics
from notify.testing import chat_payload
from notify.topics import chat

SUBJECT = chat(1, 10).subject


class FakeStreams:
    """The leader, which knows everything."""

    name = "MESSAGES"
    message: Any = JetStream.message

    def __init__(self) -> None:
        self.stored: list[int] = []
        self.state = StreamState("1", 1, 100, 0, "live.x.")
        self.holes: list[int] = []
        self.names: dict[int, int] = {}
        self.away = False
        self.subject = SUBJECT
        self.data = b"from the leader"

    async def deleted(self) -> list[int]:
        return self.holes

    async def info(self) -> StreamState:
        return self.state

    async def api(self, call: str, body: dict[str, Any]) -> Any:
        if self.away:
            raise Unavailable("the leader is away")
        wanted = [n for n in self.stored if n >= body.get("seq", 0)]
        if not wanted:
            raise ApiError(404, 10037, "no message found")
        seq = wanted[-1] if "last_by_subj" in body else wanted[0]
        block = f"NATS/1.0\r\nNotify-After: e1.{self.names.get(seq, 0)}\r\n\r\n".encode()
        data = b64encode(self.data).decode()
        hdrs = b64encode(block).decode()
        return {"message": {"subject": self.subject, "seq": seq, "data": data, "hdrs": hdrs}}


class FakeReplica:
    """Answers direct gets from a script, an entry for each request: the numbers that it has, or an error.

    The last entry answers all further requests. ``unreadable`` are numbers that it counts but cannot read.
    """

    max_payload = 2**20

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.unreadable: set[int] = set()
        #: by a message's number, the number that it names as the message before it
        self.names: dict[int, int] = {}
        self.asked: list[dict[str, Any]] = []

    def gather(self, subject: str, payload: bytes, limit: int = 0) -> Deferred[list[Reply]]:
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
            last = max(have, default=0) if replies else 0
            end = b"NATS/1.0 204 EOB\r\nNats-Last-Sequence: %d\r\nNats-UpTo-Sequence: %d\r\n\r\n" % (
                last,
                max(have, default=0),
            )
            return succeed([*replies, Reply(b"", end if have else b"NATS/1.0 404 No Results\r\n\r\n")])
        counted = [n for n in have if n >= request["seq"]]
        wanted = [n for n in counted if n not in self.unreadable]
        page, pending = wanted[: request["batch"]], len(counted)
        replies, last = [], 0
        for n in page:
            pending -= 1
            replies.append(self.message(n, last, pending=pending))
            last = n
        end = b"NATS/1.0 204 EOB\r\nNats-Num-Pending: %d\r\nNats-Last-Sequence: %d\r\n\r\n" % (pending, last)
        return succeed([*replies, Reply(b"", end if page else b"NATS/1.0 404 Message Not Found\r\n\r\n")])

    def message(self, n: int, last: int, subject: str = SUBJECT, pending: int = 0) -> Reply:
        name = f"Notify-After: e1.{self.names[n]}\r\n" if n in self.names else ""
        block = (
            f"NATS/1.0\r\n{name}Nats-Subject: {subject}\r\nNats-Sequence: {n}\r\n"
            f"Nats-Num-Pending: {pending}\r\nNats-Last-Sequence: {last}\r\n\r\n"
        )
        return Reply(b"from a replica", block.encode())


class ReadingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.streams, self.clock = FakeStreams(), Clock()

    def reader(self, *script: Any, trusted: bool = True) -> Reader:
        self.replica = FakeReplica(*script)
        streams: Any = self.streams
        self.audit = Audit(self.replica, streams, self.clock, Metrics())
        if trusted:
            self.audit._good = 24
        self.poison: list[int] = []
        replica: Any = self.replica
        reader = Reader(
            replica,
            streams,
            self.audit,
            self.clock,
            4,
            lambda topic, stored, reason: self.poison.append(stored.seq),
        )
        reader.epoch, reader.created = "e1", "1"
        return reader

    def hole(self, *numbers: int) -> None:
        self.streams.holes = list(numbers)
        self.streams.state = msgspec.structs.replace(self.streams.state, missing=len(numbers))
        self.audit.holes = Holes(numbers)

    def get(self, coroutine: Any) -> Any:
        answer = Deferred.fromCoroutine(coroutine)
        self.clock.pump([0.1] * 20)
        return self.successResultOf(answer)

    def error(self, coroutine: Any, kind: type[Exception]) -> None:
        answer = Deferred.fromCoroutine(coroutine)
        self.clock.pump([0.1] * 20)
        self.failureResultOf(answer, kind)

    def seqs(self, page: Page) -> list[int]:
        return [one.seq for one in page.stored]


class Reading(ReadingCase):
    def test_all_that_came_after_a_message_that_is_still_there(self) -> None:
        reader = self.reader([2, 5, 9])
        self.streams.state = msgspec.structs.replace(self.streams.state, first_seq=2)
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 2))), [5, 9])

    def test_a_long_history_comes_in_pages(self) -> None:
        reader = self.reader(list(range(1, 1001)))
        page = self.get(reader.after(SUBJECT, 1))
        self.assertEqual((self.seqs(page), page.pending), (list(range(2, 514)), 487))
        page = self.get(reader.after(SUBJECT, 513, promised=page.promised))
        self.assertEqual((self.seqs(page), page.pending), (list(range(514, 1001)), 0))
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, None, limit=2))), [1, 2, 3])

    def test_a_message_that_is_gone_is_no_matter_while_the_stream_begins_before_it(self) -> None:
        reader = self.reader([5, 9])
        self.streams.state = msgspec.structs.replace(self.streams.state, first_seq=4)
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 3))), [5, 9])
        self.error(reader.after(SUBJECT, 2), HistoryLost)
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 2, checked=3))), [5, 9])

    def test_a_number_that_is_missing_matters_where_it_is_in_between(self) -> None:
        for last in (3, 5):  # that message is gone, or still there
            reader = self.reader([5, 9])
            self.hole(2, 4, 10)
            if last == 3:
                self.error(reader.after(SUBJECT, last), HistoryLost)
                self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, last, checked=4))), [5, 9])
                self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, last, successor=5))), [5, 9])
            else:
                self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, last))), [9])
                self.hole(2, 7)
                self.error(reader.after(SUBJECT, last), HistoryLost)

    def test_a_stream_made_anew_proves_nothing(self) -> None:
        reader = self.reader([5, 9])
        self.streams.state = msgspec.structs.replace(self.streams.state, created="2")
        self.error(reader.after(SUBJECT, 0), HistoryLost)

    def test_a_message_that_a_copy_counts_and_cannot_read_is_asked_of_others(self) -> None:
        for unreadable in (2, 3, 4):
            reader = self.reader([1, 2, 3, 4])
            self.replica.unreadable = {unreadable}
            self.streams.stored = [1, 2, 3, 4]
            self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 1))), [2, 3, 4])
            # Three copies, and one that tells which messages to ask the leader for.
            self.assertEqual(len(self.replica.asked), 4)
            # The leader cannot read it either, but does not say so.
            self.streams.stored.remove(unreadable)
            self.error(reader.after(SUBJECT, 1), HistoryLost)

    def test_what_one_page_promised_the_next_must_bring(self) -> None:
        reader = self.reader(list(range(1, 601)))
        self.replica.unreadable = {100}
        self.streams.stored = [n for n in range(1, 601) if n != 100]
        page = self.get(reader.after(SUBJECT, 1))
        self.assertEqual((len(page.stored), page.promised), (512, 87))  # number 100 is counted, but missing
        self.error(reader.after(SUBJECT, page.stored[-1].seq, promised=page.promised), HistoryLost)

    def test_a_message_that_another_names_is_missed_wherever_it_is_missing(self) -> None:
        for lacks, expected in ((3, [2, 3, 4, 6]), (6, [2, 3, 4, 6])):
            reader = self.reader([n for n in (1, 2, 3, 4, 6) if n != lacks], [1, 2, 3, 4, 6])
            self.replica.names = {2: 1, 3: 2, 4: 3, 6: 4}
            self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 1, at_least=6))), expected)
            self.assertEqual(len(self.replica.asked), 2)
        # No copy has number 3 any more, nor has the leader.
        reader = self.reader([1, 2, 4])
        self.replica.names = self.streams.names = {4: 3}
        self.streams.stored = [1, 2, 4]
        self.error(reader.after(SUBJECT, 1), HistoryLost)
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 3, checked=3))), [4])
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 2, successor=4))), [4])
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, None))), [1, 2, 4])
        reader.epoch = "e2"
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 1))), [2, 4])

    def test_an_answer_that_does_not_get_on_is_a_failed_attempt(self) -> None:
        reader = self.reader([1, 2])
        self.replica.unreadable = {2}
        self.streams.stored = [1, 2]
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 1))), [2])
        self.streams.away = True
        self.error(reader.after(SUBJECT, 1), Unavailable)

    def test_the_leader_says_where_the_end_is(self) -> None:
        reader = self.reader([1, 2, 3], trusted=False)
        self.streams.stored = [1, 2, 3]
        page = self.get(reader.after(SUBJECT, 1, limit=2))
        self.assertEqual((self.seqs(page), page.pending), ([2, 3], 0))
        page = self.get(reader.after(SUBJECT, 1, limit=1))
        self.assertEqual((self.seqs(page), page.pending), ([2], 1))

    def test_it_does_so_also_where_the_copy_that_counts_is_behind(self) -> None:
        for have in ([1, 2], [1], []):
            reader = self.reader(have, trusted=False)
            self.streams.stored = [1, 2, 3]
            page = self.get(reader.after(SUBJECT, 1, limit=2))
            self.assertEqual((self.seqs(page), page.pending), ([2, 3], 0))
            page = self.get(reader.after(SUBJECT, 1, limit=1))
            self.assertEqual((self.seqs(page), page.pending), ([2], 1))

    def test_while_the_copies_are_not_trusted_the_leader_is_asked(self) -> None:
        reader = self.reader([1, 3], trusted=False)
        self.streams.stored = [1, 2, 3]
        page = self.get(reader.after(SUBJECT, 1))
        self.assertEqual(self.seqs(page), [2, 3])
        self.assertEqual({one.data for one in page.stored}, {b"from the leader"})
        self.assertEqual(self.get(reader.newest([SUBJECT])).found, {SUBJECT: 3})

    def test_the_bound_in_bytes_leaves_room_for_two_of_the_largest(self) -> None:
        reader = self.reader([1, 2])
        self.replica.max_payload = 8 * 2**20
        self.get(reader.after(SUBJECT, 1, size=1000))
        self.assertGreater(self.replica.asked[-1]["max_bytes"], 2 * 8 * 2**20)
        self.replica.max_payload = 1000
        self.get(reader.after(SUBJECT, 1, size=10_000))
        self.assertEqual(self.replica.asked[-1]["max_bytes"], 10_000)

    def test_a_replica_that_is_behind_is_asked_again(self) -> None:
        reader = self.reader([1, 2], [1, 2], [1, 2, 3])
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 1, at_least=3))), [2, 3])

    def test_in_the_end_the_leader_is_asked(self) -> None:
        for script in ([[1, 2]], [Unavailable("no answer")], [b"NATS/1.0 408 Request Timeout\r\n\r\n"]):
            reader = self.reader(*script)
            self.streams.stored = [1, 2, 3]
            got = self.get(reader.after(SUBJECT, 1, at_least=3))
            self.assertEqual(self.seqs(got), [2, 3])
            self.assertEqual(got.stored[-1].data, b"from the leader")

    def test_what_even_the_leader_does_not_have_is_lost(self) -> None:
        reader = self.reader([1, 2])
        self.streams.stored = [1, 2]
        self.error(reader.after(SUBJECT, 1, at_least=3), HistoryLost)

    def test_a_leader_that_was_just_elected_may_be_behind(self) -> None:
        reader = self.reader([1, 2])
        self.streams.stored = [1, 2]
        self.audit.unsettle()
        self.error(reader.after(SUBJECT, 1, at_least=3), Unavailable)
        self.clock.advance(10)
        self.error(reader.after(SUBJECT, 1, at_least=3), HistoryLost)

    def test_a_read_that_failed_keeps_nothing(self) -> None:
        # Without the garbage collector, because a server runs it only once in ten minutes.
        gc.disable()
        self.addCleanup(gc.enable)
        reader = self.reader([1, 2])
        self.streams.stored = [1, 2]
        gone = weakref.ref(reader)
        self.error(reader.after(SUBJECT, 1, at_least=3), HistoryLost)
        del reader
        self.assertIsNone(gone())

    def test_with_nobody_to_ask_it_is_unavailable(self) -> None:
        reader = self.reader(Unavailable("no answer"))
        self.streams.away = True
        self.error(reader.after(SUBJECT, 1), Unavailable)
        self.error(reader.newest([SUBJECT]), Unavailable)

    def test_an_answer_with_a_hole_in_it_is_no_answer(self) -> None:
        reader = self.reader([1, 2, 3])
        gather = self.replica.gather
        broken = [True]

        def with_a_hole(subject: str, payload: bytes, limit: int = 0) -> Deferred[list[Reply]]:
            answer = gather(subject, payload)
            if broken.pop() if broken else False:
                answer.addCallback(lambda replies: [replies[0], *replies[2:]])
            return answer

        self.replica.gather = with_a_hole  # type: ignore[method-assign]
        self.assertEqual(self.seqs(self.get(reader.after(SUBJECT, 1))), [2, 3])
        self.assertEqual(len(self.replica.asked), 2)

    def test_newest_positions_reach_as_far_as_is_asked(self) -> None:
        reader = self.reader([1, 2], [1, 2, 7])
        newest = self.get(reader.newest([SUBJECT, "other"], at_least=5))
        self.assertEqual(newest[:3], ({SUBJECT: 7}, 7, {SUBJECT: b"from a replica"}))
        self.assertEqual(newest.seen[0], 7)

    def test_a_replica_that_stays_behind_is_passed_over(self) -> None:
        reader = self.reader([1, 2])
        self.streams.stored = [1, 2, 7]
        self.assertEqual(self.get(reader.newest([SUBJECT], at_least=5)).found, {SUBJECT: 7})

    def test_a_leader_that_is_elected_meanwhile_may_not_know_yet(self) -> None:
        for after in (
            StreamState("1", 1, 90, 0, "live.x."),
            StreamState("1", 1, 100, 0, "live.x.", cluster="n2"),
        ):
            reader = self.reader([], trusted=False)
            self.streams.stored = [1, 2]
            states = iter([self.streams.state, after, after, after])

            async def info(states: Any = states) -> StreamState:
                return next(states)

            self.streams.info = info  # type: ignore[method-assign]
            self.error(reader.newest([SUBJECT]), Unavailable)
            self.assertEqual(self.get(reader.newest([SUBJECT])).found, {SUBJECT: 2})

    def test_without_any_replica_the_leader_knows(self) -> None:
        reader = self.reader(Unavailable("nobody answers"))
        self.streams.stored = [1, 2, 7]
        self.assertEqual(self.get(reader.newest([SUBJECT])).found, {SUBJECT: 7})

    def test_few_whole_messages_are_asked_of_the_leader_at_once(self) -> None:
        reader = self.reader(Unavailable("nobody answers"))
        asked: list[Deferred[Any]] = []

        async def api(call: str, body: dict[str, Any]) -> Any:
            asked.append(Deferred())
            return await asked[-1]

        self.streams.api = api  # type: ignore[method-assign]
        newest = Deferred.fromCoroutine(reader.newest([chat(1, n).subject for n in range(100)]))
        self.clock.pump([0.1] * 5)
        for n in range(100):
            self.assertLessEqual(len(asked) - n, 16)
            asked[n].callback({"message": {"seq": n + 1}})
        self.assertEqual(len(self.successResultOf(newest).found), 100)

    def test_one_answer_that_does_not_come_ends_the_questions(self) -> None:
        reader, self.streams.away = self.reader([], trusted=False), True
        asked: list[str] = []
        answer = self.streams.api

        async def api(call: str, body: dict[str, Any]) -> Any:
            asked.append(call)
            return await answer(call, body)

        self.streams.api = api  # type: ignore[method-assign]
        newest = Deferred.fromCoroutine(reader.newest([chat(1, n).subject for n in range(100)]))
        self.failureResultOf(newest, Unavailable)
        self.assertLessEqual(len(asked), 16)

    def test_what_has_nothing_newer_is_not_fetched_from_the_leader(self) -> None:
        reader = self.reader([], trusted=False)
        self.streams.stored = [1, 2, 7]
        calls: list[dict[str, Any]] = []
        answer = self.streams.api

        async def api(call: str, body: dict[str, Any]) -> Any:
            calls.append(body)
            return await answer(call, body)

        self.streams.api = api  # type: ignore[method-assign]
        self.assertEqual(self.get(reader.newest([SUBJECT], since=8)).found, {})
        self.assertEqual(calls, [{"seq": 8, "next_by_subj": SUBJECT}])
        self.assertEqual(self.get(reader.newest([SUBJECT], since=2)).found, {SUBJECT: 7})

    def test_the_payloads_that_come_along_have_a_bound(self) -> None:
        self.patch(reader_module, "_NEWEST_BYTES", 20)
        reader = self.reader([])
        subjects = [chat(1, n).subject for n in range(3)]
        replies = [self.replica.message(n + 1, n, subject) for n, subject in enumerate(subjects)]
        end = Reply(b"", b"NATS/1.0 204 EOB\r\nNats-Last-Sequence: 3\r\nNats-UpTo-Sequence: 9\r\n\r\n")
        self.replica.gather = lambda *_, **__: succeed([*replies, end])  # type: ignore[method-assign]
        newest = self.get(reader.newest(subjects))
        self.assertEqual(newest.found, dict(zip(subjects, [1, 2, 3], strict=True)))
        self.assertEqual(list(newest.payloads), subjects[:1])

    def test_an_answer_of_which_a_part_was_lost_is_asked_for_again(self) -> None:
        """Otherwise a topic in the lost part would seem to have no message, and would begin anew."""
        reader = self.reader([])
        subjects = [chat(1, n).subject for n in range(3)]
        whole = [self.replica.message(n + 1, n, subject) for n, subject in enumerate(subjects)]
        end = Reply(b"", b"NATS/1.0 204 EOB\r\nNats-Last-Sequence: 3\r\nNats-UpTo-Sequence: 9\r\n\r\n")
        for lost in range(3):
            answers = [[*whole[:lost], *whole[lost + 1 :], end], [*whole, end]]
            self.replica.gather = lambda *_, answers=answers, **__: succeed(answers.pop(0))  # type: ignore[method-assign]
            newest = self.get(reader.newest(subjects))
            self.assertEqual((newest.found, answers), (dict(zip(subjects, [1, 2, 3], strict=True)), []))
            self.assertEqual(newest.seen, (3, whole[2].block))

    def test_a_subject_that_surely_has_messages_is_asked_along(self) -> None:
        reader = self.reader([1, 2])
        self.get(reader.newest([SUBJECT]))
        newest = self.get(reader.newest(["silent"]))
        # ``seen`` comes from the subject that was asked along.
        self.assertEqual((newest.found, newest.up_to, newest.seen[0]), ({}, 2, 2))
        self.assertEqual(self.replica.asked[-1]["multi_last"], ["silent", SUBJECT])

    def test_where_all_have_aged_out_another_says_how_far_that_reaches(self) -> None:
        reader = self.reader([])
        self.streams.stored, self.streams.subject = [100], "busy"

        def gather(subject: str, payload: bytes, limit: int = 0) -> Deferred[list[Reply]]:
            known = "busy" in msgspec.json.decode(payload)["multi_last"]
            end = b"204 EOB\r\nNats-UpTo-Sequence: 100" if known else b"404 No Results"
            return succeed([Reply(b"", b"NATS/1.0 %s\r\n\r\n" % end)])

        self.replica.gather = gather  # type: ignore[method-assign]
        self.assertEqual(self.get(reader.newest([SUBJECT], since=51, at_least=60)), Newest({}, 100))
        self.streams.state = StreamState("1", 101, 100, 0, "live.x.")
        self.assertEqual(self.get(self.reader([]).newest([SUBJECT], at_least=60)), Newest({}, 100))

    def test_an_answer_that_is_too_long_is_asked_for_in_parts(self) -> None:
        reader = self.reader([])
        subjects = [chat(1, n).subject for n in range(3)]
        answers = [["0 1", "1 2"], ["2 7"]]

        def gather(subject: str, payload: bytes, limit: int = 0) -> Deferred[list[Reply]]:
            self.replica.asked.append(msgspec.json.decode(payload))
            got = [one.split() for one in answers.pop(0)]
            replies, last = [], 0
            for i, n in got:
                replies.append(self.replica.message(int(n), last, chat(1, int(i)).subject))
                last = int(n)
            end = b"NATS/1.0 204 EOB\r\nNats-Num-Pending: %d\r\nNats-Last-Sequence: %d\r\nNats-UpTo-Sequence: 9\r\n\r\n"
            return succeed([*replies, Reply(b"", end % (len(answers), last))])

        self.replica.gather = gather  # type: ignore[method-assign]
        self.assertEqual(self.get(reader.newest(subjects)).found, dict(zip(subjects, [1, 2, 7], strict=True)))
        self.assertEqual(self.replica.asked[1]["multi_last"], [subjects[2], subjects[0]])


class Replaying(ReadingCase):
    """The answers of a broker's ``replay``."""

    def replay(
        self, reader: Reader, seq: int | None, limit: int = 100, size: int = 10**6, **more: Any
    ) -> Any:
        options: dict[str, Any] = {"whole": False, "newest": lambda: None} | more
        return reader.replay(chat(1, 10), seq, limit, size, **options)

    def answer(self, *arguments: Any, **more: Any) -> tuple[list[int], bool]:
        answer = self.replay(*arguments, **more)
        self.clock.pump([0.1] * 20)
        replayed = self.successResultOf(answer)
        return [message.position.seq for message in replayed.messages], replayed.more

    def lost(self, *arguments: Any, **more: Any) -> None:
        answer = self.replay(*arguments, **more)
        self.clock.pump([0.1] * 20)
        self.failureResultOf(answer, HistoryLost)

    def history(self, *have: int, **more: Any) -> Reader:
        self.streams.stored = list(have)
        reader = self.reader(list(have), **more)
        message = self.replica.message

        def whole(n: int, *rest: Any, **options: Any) -> Reply:
            return message(n, *rest, **options)._replace(data=chat_payload(chat(1, 10), n))

        self.replica.message = whole  # type: ignore[method-assign]
        return reader

    def test_it_reaches_to_the_newest_or_says_that_there_are_more(self) -> None:
        reader = self.history(1, 2, 3, 4)
        self.assertEqual(self.answer(reader, 1), ([2, 3, 4], False))
        self.assertEqual(self.answer(reader, 1, 3), ([2, 3, 4], False))
        self.assertEqual(self.answer(reader, 1, 2), ([2, 3], True))
        self.assertEqual(self.answer(reader, None, 2), ([1, 2], True))
        self.assertEqual(self.answer(reader, 4), ([], False))

    def test_it_is_bounded_in_bytes_and_gives_one_at_least(self) -> None:
        reader, one = self.history(1, 2, 3, 4), len(chat_payload(chat(1, 10), 1))
        self.assertEqual(self.answer(reader, 1, 100, 2 * one), ([2, 3], True))
        self.assertEqual(self.answer(reader, 1, 100, 1), ([2], True))

    def test_who_wants_all_or_nothing_costs_no_more_than_the_first_page(self) -> None:
        reader = self.history(*range(1, 2000))
        self.assertEqual(self.answer(reader, 1, 1000, whole=True), ([], True))
        self.assertEqual(len(self.replica.asked), 1)
        one = len(chat_payload(chat(1, 10), 1))
        self.assertEqual(self.answer(reader, 1900, 1000, 5 * one, whole=True), ([], True))
        self.assertEqual(self.answer(reader, 1990, 9, whole=True), (list(range(1991, 2000)), False))

    def test_poison_counts_for_those_who_want_all_and_leads_nobody_else_astray(self) -> None:
        reader = self.history(*range(1, 50))
        message = self.replica.message

        def poisoned(n: int, *rest: Any, **options: Any) -> Reply:
            return message(n, *rest, **options)._replace(
                data=b"rubbish" if n < 40 else chat_payload(chat(1, 10), n)
            )

        self.replica.message = poisoned  # type: ignore[method-assign]
        self.assertEqual(self.answer(reader, 1, 20, whole=True), ([], True))
        self.assertEqual(self.answer(reader, 1, 3), ([40, 41, 42], True))
        self.assertEqual(self.poison[:3], [2, 3, 4])

    def test_poison_without_end_is_read_past_in_parts(self) -> None:
        self.patch(reader_module, "POISON", 10)
        self.patch(reader_module, "PAGE", 8)
        reader = self.history(*range(1, 50))
        message = self.replica.message

        def poisoned(n: int, *rest: Any, **options: Any) -> Reply:
            data = b"rubbish" if n != 45 else chat_payload(chat(1, 10), n)
            return message(n, *rest, **options)._replace(data=data)

        self.replica.message = poisoned  # type: ignore[method-assign]
        place, rounds, found = 1, 0, []
        while True:
            answer = reader.replay(chat(1, 10), place, 3, 10**6, False, lambda: 49)
            self.clock.pump([0.1] * 20)
            replayed = self.successResultOf(answer)
            rounds += 1
            found += [one.position.seq for one in replayed.messages]
            if not replayed.more:
                break
            self.assertGreater(replayed.reached.seq, max([place, *found]))
            place = replayed.reached.seq
        self.assertEqual(found, [45])
        self.assertGreater(rounds, 2)

    def test_what_is_newest_is_asked_when_the_read_begins(self) -> None:
        reader = self.history(1, 2, 3)
        known = [3]
        self.assertEqual(self.answer(reader, 1, newest=lambda: known[0]), ([2, 3], False))
        known[0] = 9
        self.lost(reader, 1, newest=lambda: known[0])  # no copy has number 9

    def test_a_position_whose_message_is_gone_is_whole_where_nothing_can_have_come_after_it(self) -> None:
        reader = self.history(2, 5)
        self.assertEqual(self.answer(reader, 50), ([], False))
        self.lost(reader, 101)
        self.streams.state = msgspec.structs.replace(self.streams.state, first_seq=60)
        self.assertEqual(self.answer(reader, 59), ([], False))
        self.lost(reader, 58)
        self.hole(70)
        self.lost(reader, 65)
        self.assertEqual(self.answer(reader, 70), ([], False))

    def test_a_replay_over_a_number_that_is_missing_is_lost_wherever_it_is(self) -> None:
        for hole in (3, 8):
            reader = self.history(1, 2, 5)
            self.hole(hole)
            self.lost(reader, 1)
            self.assertEqual(self.answer(reader, None), ([1, 2, 5], False))
        self.hole(1)
        self.assertEqual(self.answer(reader, 2), ([5], False))
