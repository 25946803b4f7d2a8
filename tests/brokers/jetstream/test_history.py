"""Which history a stream holds, as several nodes see it; without NATS."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.jetstream.history import History, Memory, Record, place
from notify.brokers.jetstream.stream import Mark, StreamState, nanoseconds
from notify.errors import Unavailable
from notify.nats.asking import Reply
from notify.nats.jetstream import ApiError, JetStream
from notify.observe.metrics import Metrics


class FakeStore:
    """The history's record in the stream of dead letters. Records in ``faster`` get there before the next one stored."""

    name = "MESSAGES"
    message: Any = JetStream.message

    class plan:  # noqa: N801
        history_subject = "dead.MESSAGES.history"

    def __init__(self) -> None:
        self.data, self.seq = b"", 0
        #: when the messages of the stream were stored, by their numbers
        self.stamps: dict[int, int] = {}
        self.ids: dict[int, str] = {}
        self.faster: list[Record] = []
        self.states: list[StreamState] = []

    async def info(self) -> StreamState:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    async def mark(self, seq: int) -> Mark:
        return Mark(seq, self.stamps.get(seq, 0), self.ids.get(seq))

    async def api(self, call: str, body: Any) -> Any:
        if not self.seq:
            raise ApiError(404, 10037, "no message found")
        return {"message": {"seq": self.seq, "data": base64.b64encode(self.data).decode()}}

    def request(self, subject: str, data: bytes, timeout: Any, fields: dict[str, str]) -> Deferred[Reply]:
        if self.faster:
            self.put(self.faster.pop())
        if fields["Nats-Expected-Last-Subject-Sequence"] != str(self.seq):
            return succeed(
                Reply(b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence"}}', b"")
            )
        self.data, self.seq = data, self.seq + 1
        return succeed(Reply(b'{"seq":%d}' % self.seq, b""))

    def put(self, record: Record) -> None:
        self.data, self.seq = msgspec.json.encode(record), self.seq + 1


class Threads:
    """A reactor that runs a thread's call at once."""

    def callInThread(self, call: Any, *arguments: Any) -> None:
        call(*arguments)


def state(last: int, created: str = "2026") -> StreamState:
    return StreamState(created, 1, last, 0, "live.")


class Recognising(SynchronousTestCase):
    def setUp(self) -> None:
        self.store: Any = FakeStore()
        self.nodes = 0

    def node(self, path: Path | None = None) -> History:
        self.nodes += 1
        memory = Memory(path, Threads())
        return History(self.store, self.store, "MESSAGES_DEAD", Random(self.nodes), memory, Metrics())

    def recognise(self, node: History, last: int, seen: int = 0, created: str = "2026") -> str:
        return self.epoch(node, state(last, created), [Mark(seen)])

    def epoch(self, node: History, at: StreamState, marks: Any = (), **more: bool) -> str:
        self.store.states = [at]
        _, record = self.successResultOf(Deferred.fromCoroutine(node.recognise(marks, **more)))
        return str(record.epoch)

    def current(self, node: History, last: int, seen: int = 0, created: str = "2026") -> bool:
        return self.successResultOf(Deferred.fromCoroutine(node.current(state(last, created), [Mark(seen)])))

    def test_all_nodes_agree_and_a_new_process_does_too(self) -> None:
        one, two = self.node(), self.node()
        epoch = self.recognise(one, 5)
        self.assertEqual(self.recognise(two, 9), epoch)
        self.assertTrue(self.current(one, 12))
        self.assertEqual(self.recognise(self.node(), 12), epoch)

    def test_a_stream_that_was_made_anew_is_another(self) -> None:
        one = self.node()
        epoch = self.recognise(one, 5)
        self.assertFalse(self.current(one, 50, created="2027"))
        self.assertNotEqual(self.recognise(one, 50, created="2027"), epoch)

    def test_a_stream_that_has_gone_back_is_another_whoever_has_seen_more(self) -> None:
        path = Path(self.mktemp())
        path.mkdir()
        seen_here, seen_there, remembered = self.node(), self.node(), self.node(path / "h.json")
        epoch = self.recognise(seen_here, 100)
        for node in (seen_there, remembered):
            self.assertEqual(self.recognise(node, 120), epoch)
        before = self.store.data, self.store.seq
        for last, seen, node in (
            (100, 110, seen_here),  # seen live, but not compared yet
            (110, 0, seen_there),
            (119, 0, self.node(path / "h.json")),  # a new process, with the file of the old one
            (119, 0, self.node()),  # a new node, with nothing but the record beside the stream
        ):
            self.store.data, self.store.seq = before
            if node is not seen_here and node.record is not None:
                # The record beside the stream has gone back as well.
                self.store.put(Record("2026", epoch, 1, 50))
            self.assertNotEqual(self.recognise(node, last, seen), epoch)

    def test_what_was_heard_and_not_compared_yet_is_in_the_file(self) -> None:
        path = Path(self.mktemp())
        node = self.node(path)
        epoch = self.recognise(node, 100)
        node.remember([Mark(110, 7)])
        node.remember([Mark(90)])
        self.store.put(Record("2026", epoch, 1, 100))
        self.assertNotEqual(self.recognise(self.node(path), 105), epoch)

    def test_one_that_went_back_and_has_grown_past_its_old_end_is_another(self) -> None:
        one, two = self.node(), self.node()
        before = msgspec.structs.replace(state(100), stamp=1000)
        epoch = self.epoch(one, before)
        self.epoch(two, before)
        later = msgspec.structs.replace(state(150), stamp=3000)
        self.store.stamps = {100: 1000, 120: 1200}
        marks = [Mark(120), Mark(120, 1200)]
        self.assertTrue(self.successResultOf(Deferred.fromCoroutine(one.current(later, marks))))
        self.store.stamps[120] = 1201
        self.assertFalse(self.successResultOf(Deferred.fromCoroutine(one.current(later, marks))))
        self.store.stamps = {100: 1001, 150: 3001}
        self.assertFalse(self.successResultOf(Deferred.fromCoroutine(two.current(later))))
        new = self.epoch(two, later)
        self.assertNotEqual(new, epoch)
        # What a node has seen of the old history says nothing about the new one.
        self.assertEqual(self.epoch(one, later, marks, reused=True), new)

    def test_what_a_node_had_stored_and_nobody_heard_is_known_by_its_id(self) -> None:
        one, two = self.node(), self.node()
        epoch = self.epoch(one, state(100))
        mark = Mark(101, 0, "mine")
        for there, known in (("mine", True), ("another's", False), ("", False), (None, True)):
            self.store.ids = {101: there}
            current = one.current(state(120), [mark])
            self.assertEqual(self.successResultOf(Deferred.fromCoroutine(current)), known, there)
            self.store.put(Record("2026", epoch, 1, 100))
            one.record = two.record = Record("2026", epoch, 1, 100)

    def test_the_highest_number_and_what_is_known_of_another_are_both_remembered(self) -> None:
        path = Path(self.mktemp())
        node = self.node(path)
        epoch = self.recognise(node, 100)
        node.remember([Mark(105, 1050), Mark(110), Mark(104, 0, "mine")])
        node.remember([Mark(107), Mark(110)])
        for last, stamps, known in ((109, {}, False), (120, {105: 1051}, False), (120, {105: 1050}, True)):
            self.store.put(Record("2026", epoch, 1, 100))
            self.store.stamps = stamps
            told = path.read_bytes()
            self.assertEqual(self.recognise(self.node(path), last) == epoch, known, (last, stamps))
            path.write_bytes(told)

    def test_the_id_is_in_the_file_too(self) -> None:
        path = Path(self.mktemp())
        node = self.node(path)
        epoch = self.recognise(node, 100)
        node.remember([Mark(101, 0, "mine"), Mark(101)])
        self.store.ids = {101: "another's"}
        self.store.put(Record("2026", epoch, 1, 100))
        self.assertNotEqual(self.recognise(self.node(path), 120), epoch)

    def test_when_it_was_stored_says_more_than_the_id_of_a_message_that_may_be_repeated(self) -> None:
        path = Path(self.mktemp())
        node = self.node(path)
        self.recognise(node, 100)
        node.remember([Mark(101, 0, "mine"), Mark(101)])
        for _ in range(2):
            node.remember([Mark(101, 1010, "mine"), Mark(101)])
            self.assertEqual(msgspec.json.decode(path.read_bytes(), type=Record).stamp, 1010)
            node.remember([Mark(101, 0, "mine"), Mark(101)])

    def test_the_message_with_the_last_number_is_looked_at_without_a_question(self) -> None:
        one = self.node()
        at = msgspec.structs.replace(state(100), stamp=1000)
        self.epoch(one, at)
        self.assertTrue(self.successResultOf(Deferred.fromCoroutine(one.current(at))))
        other = msgspec.structs.replace(at, stamp=1001)
        self.assertFalse(self.successResultOf(Deferred.fromCoroutine(one.current(other))))

    def test_a_number_that_was_given_again_is_proof(self) -> None:
        one = self.node()
        epoch = self.recognise(one, 100)
        self.assertNotEqual(self.epoch(one, state(200), reused=True), epoch)

    def test_what_another_node_has_seen_meanwhile_is_no_proof(self) -> None:
        one = self.node()
        epoch = self.recognise(one, 100)
        self.store.states = [state(110)]
        stored = one.stored

        async def overtaken() -> Any:
            answer = await stored()
            self.store.put(Record("2026", epoch, 1, 150))
            self.store.states = [state(155)]
            return answer

        self.patch(one, "stored", overtaken)
        _, record = self.successResultOf(Deferred.fromCoroutine(one.recognise([Mark(105)])))
        self.assertEqual(record.epoch, epoch)

    def test_times_of_nats(self) -> None:
        self.assertEqual(nanoseconds("2026-11-24T22:45:19.24345222Z"), 1795560319243452220)
        self.assertEqual(nanoseconds("2026-11-24T22:45:19Z"), 1795560319000000000)
        for rubbish in ("", "0001-01-01T00:00:00Z", "yesterday", "2026-11-24T22:45:19.xZ"):
            self.assertEqual(nanoseconds(rubbish), 0)

    def test_those_who_were_not_there_find_the_new_epoch(self) -> None:
        one, two = self.node(), self.node()
        epoch = self.recognise(one, 100)
        self.assertEqual(self.recognise(two, 100), epoch)
        new = self.recognise(one, 105, seen=110)
        self.assertNotEqual(new, epoch)
        self.assertFalse(self.current(two, 106))
        self.assertEqual(self.recognise(two, 106), new)
        self.assertTrue(self.current(two, 106))

    def test_a_record_that_is_gone_is_written_again(self) -> None:
        one = self.node()
        epoch = self.recognise(one, 5)
        self.store.data, self.store.seq = b"", 0
        self.assertFalse(self.current(one, 6))
        self.assertEqual(self.recognise(one, 6), epoch)
        self.assertEqual(self.recognise(self.node(), 6), epoch)
        # The record has gone back, or a node that slept wrote it.
        self.store.put(Record("2026", "an older one", 0, 1))
        self.assertFalse(self.current(one, 6))
        self.assertEqual(self.recognise(one, 6), epoch)

    def test_two_that_contradict_each_other_are_both_given_up(self) -> None:
        one = self.node()
        epoch = self.recognise(one, 5)
        self.store.put(Record("2026", "other", 1, 3))
        self.assertNotIn(self.recognise(one, 6), (epoch, "other"))

    def test_another_node_that_is_faster_decides(self) -> None:
        one = self.node()
        self.store.faster = [Record("2026", "theirs", 1, 3)]
        self.assertEqual(self.recognise(one, 5), "theirs")
        self.store.faster = [Record("2026", "theirs", 1, n) for n in range(20)]
        self.store.states = [state(50, "2027")]
        self.failureResultOf(Deferred.fromCoroutine(self.node().recognise()), Unavailable)

    def test_an_operator_begins_a_new_epoch_by_a_record_of_a_later_generation(self) -> None:
        one = self.node()
        self.recognise(one, 5)
        self.store.put(Record("2026", "new", 2, 5))
        self.assertFalse(self.current(one, 6))
        self.assertEqual(self.recognise(one, 6), "new")

    def test_rubbish_in_either_place_is_no_record(self) -> None:
        path = Path(self.mktemp())
        path.write_bytes(b"{")
        one = self.node(path)
        self.store.data, self.store.seq = b"[]", 7
        self.assertEqual(self.recognise(self.node(), 5), self.recognise(one, 5))
        self.assertEqual(msgspec.json.decode(path.read_bytes(), type=Record), one.record)

    def test_the_file_is_where_it_is_configured_or_where_systemd_says(self) -> None:
        self.patch(os, "environ", {"STATE_DIRECTORY": "/var/lib/notify/a:/other"})
        self.assertEqual(place("", "M"), Path("/var/lib/notify/a/history-M.json"))
        self.assertEqual(place("/state", "M"), Path("/state/history-M.json"))
        self.patch(os, "environ", {})
        self.assertIsNone(place("", "M"))

    def test_a_directory_that_cannot_be_written_is_told_and_stops_nothing(self) -> None:
        one = self.node(Path("/nonexistent/history-M.json"))
        self.recognise(one, 5)
        self.assertTrue(self.current(one, 6))


class Disk(SynchronousTestCase):
    def test_what_is_written_is_on_the_disk_and_its_name_is_too(self) -> None:
        path = Path(self.mktemp()).resolve() / "history-M.json"
        path.parent.mkdir()
        synced: list[tuple[str, bool]] = []

        def fsync(fd: int) -> None:
            there = path.exists() and msgspec.json.decode(path.read_bytes(), type=Record).seen == 7
            synced.append((os.readlink(f"/proc/self/fd/{fd}"), there))

        self.patch(os, "fsync", fsync)
        Memory(path, Threads()).keep(Record("2026", "e1", seen=7))
        self.assertEqual(synced, [(str(path.with_suffix(".new")), False), (str(path.parent), True)])


class Slow:
    """A reactor whose threads wait until the test lets them run."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def callInThread(self, call: Any, *arguments: Any) -> None:
        self.calls.append(lambda: call(*arguments))


class SlowDisk(SynchronousTestCase):
    def test_one_write_at_a_time_and_the_newest_at_last(self) -> None:
        path, threads = Path(self.mktemp()), Slow()
        memory = Memory(path, threads)
        records = [Record("2026", "e1", seen=n) for n in range(4)]
        memory.keep(records[0])
        memory.keep(records[1])
        self.assertEqual(len(threads.calls), 1)
        inside: list[bytes] = []
        others: list[Thread] = []

        def slow(fd: int) -> None:
            if not others:
                memory.keep(records[2])
                memory.keep(records[3])
                others.extend(Thread(target=call) for call in threads.calls[1:])
                for other in others:
                    other.start()
                    other.join(0.05)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                inside.append(path.with_suffix(".new").read_bytes())

        self.patch(os, "fsync", slow)
        threads.calls[0]()
        for other in others:
            other.join()
        self.assertEqual([msgspec.json.decode(data, type=Record).seen for data in inside], [1, 3])
        self.assertEqual(Memory(path, threads).record, records[3])
