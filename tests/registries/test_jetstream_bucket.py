"""Requests to a bucket, and incomplete answers; a fake connection plays the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from notify.errors import Unavailable
from notify.identity import Presence, by_user
from notify.nats.asking import Reply
from notify.registries import jetstream_bucket
from notify.registries.jetstream_bucket import PARTS, Bucket, split
from notify.topics import Topic, chat

EMPTY = Reply(b"", b"NATS/1.0 404 No Results\r\n\r\n")
MISSING = Reply(b"", b"NATS/1.0 404 Message Not Found\r\n\r\n")
TOO_MANY = Reply(b"", b"NATS/1.0 413 Too Many Results\r\n\r\n")


def end(pending: int = 0) -> Reply:
    return Reply(b"", b"NATS/1.0 204 EOB\r\nNats-Num-Pending: %d\r\n\r\n" % pending)


def message(subject: str, number: int, data: bytes, more: str = "") -> Reply:
    head = f"NATS/1.0\r\n{more}Nats-Subject: {subject}\r\nNats-Sequence: {number}\r\n\r\n"
    return Reply(data, head.encode())


class Server:
    """Answers direct gets as nats-server does: the last message of each subject, or none if over ``most`` subjects."""

    max_payload = 0

    def __init__(self, most: int = 1024, page: int = 10**6, miscounts: bool = False) -> None:
        self.most, self.page, self.miscounts = most, page, miscounts
        self.stored: dict[str, tuple[int, bytes]] = {}
        self.asked: list[dict[str, Any]] = []
        self.spoil: Callable[[list[Reply]], list[Reply]] = lambda replies: replies

    def store(self, subject: str, data: bytes = b"") -> None:
        self.stored[f"$KV.P.{subject}"] = len(self.stored) + 1, data

    def gather(self, subject: str, payload: bytes, timeout: float | None = None) -> Deferred[list[Reply]]:
        assert not self.max_payload or len(payload) <= self.max_payload
        asked = msgspec.json.decode(payload)
        self.asked.append(asked)
        filters = [one.split(".") for one in asked["multi_last"]]
        hits = sorted(
            (number, one, data)
            for one, (number, data) in self.stored.items()
            if any(matches(pattern, one.split(".")) for pattern in filters)
        )
        if len(hits) > self.most:
            return succeed([TOO_MANY])
        if not hits:
            return succeed([EMPTY])
        left = [hit for hit in hits if hit[0] >= asked["seq"]]
        page = [message(one, number, data) for number, one, data in left[: self.page]]
        pending = len(left) - len(page)
        return succeed(self.spoil([*page, end(max(0, pending - self.miscounts))]))


def matches(pattern: list[str], subject: list[str]) -> bool:
    if pattern[-1] == ">":
        pattern, subject = pattern[:-1], subject[: len(pattern) - 1] if len(subject) >= len(pattern) else []
    return len(pattern) == len(subject) and all(p in ("*", s) for p, s in zip(pattern, subject, strict=True))


class Reading(SynchronousTestCase):
    def bucket(self, server: Server) -> Bucket:
        connection: Any = server
        jetstream: Any = None
        return Bucket(connection, jetstream, "P", 1, 15, "me")

    def filled(self, server: Server, nodes: int, topics: list[Topic]) -> dict[Topic, Any]:
        for node in range(nodes):
            server.store(f"node.n{node}")
            for topic in topics:
                server.store(f"at.n{node}.1.chat.{topic.id}", b"[[%d,1]]" % node)
        return {topic: {f"n{node}": {node: 1} for node in range(nodes)} for topic in topics}

    def read(self, server: Server, topics: list[Topic]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(self.bucket(server).read(topics)))

    def test_more_than_an_answer_holds_is_read_in_halves(self) -> None:
        server = Server()
        topics = [chat(1, number) for number in range(64)]
        expected = self.filled(server, 40, topics)
        self.assertEqual(self.read(server, topics), expected)
        self.assertGreater(len(server.asked), 2)

    def test_the_parts_of_one_chat_over_many_nodes_are_read_in_halves(self) -> None:
        server = Server()
        for node in range(40):
            server.store(f"node.n{node}")
            for part in range(PARTS):
                server.store(
                    f"at.n{node}.1.chat.10" + (f".{part}" if part else ""), b"[[%d,1]]" % (node * 100 + part)
                )
        (entries,) = self.read(server, [chat(1, 10)]).values()
        self.assertEqual({len(entry) for entry in entries.values()}, {PARTS})
        self.assertEqual(len(entries), 40)

    def test_more_nodes_than_an_answer_holds_are_an_error_and_no_half_truth(self) -> None:
        server = Server(most=10)
        self.filled(server, 11, [chat(1, 10)])
        failed = self.failureResultOf(
            Deferred.fromCoroutine(self.bucket(server).read([chat(1, 10)])), Unavailable
        )
        self.assertIn("nodes", str(failed.value))

    def test_an_answer_that_says_that_more_is_pending_is_asked_for_the_rest(self) -> None:
        server = Server(page=7)
        topics = [chat(1, number) for number in range(5)]
        expected = self.filled(server, 4, topics)
        self.assertEqual(self.read(server, topics), expected)
        self.assertEqual([one["seq"] for one in server.asked], [0, 8, 15, 22])

    def test_an_answer_of_a_server_that_does_not_count_the_last_one_is_whole_too(self) -> None:
        # nats-server 2.11.0 reports 0 pending messages if it cut the answer just before the last one.
        self.patch(jetstream_bucket, "_ANSWER", 40)
        server = Server(page=4, miscounts=True)
        expected = self.filled(server, 1, [chat(1, number) for number in range(4)])
        self.assertEqual(self.read(server, list(expected)), expected)

    def test_an_answer_that_breaks_off_is_read_again(self) -> None:
        server = Server()
        expected = self.filled(server, 4, [chat(1, 10)])
        server.spoil = lambda replies: [*replies[:2], MISSING] if len(server.asked) < 3 else replies
        self.assertEqual(self.read(server, [chat(1, 10)]), expected)
        server.spoil = lambda replies: [*replies[:2], MISSING]
        failed = self.failureResultOf(
            Deferred.fromCoroutine(self.bucket(server).read([chat(1, 10)])), Unavailable
        )
        self.assertIn("Message Not Found", str(failed.value))

    def test_an_answer_that_gives_nothing_of_what_is_pending_is_an_error(self) -> None:
        server = Server()
        self.filled(server, 4, [chat(1, 10)])
        server.spoil = lambda replies: [end(8)]
        self.failureResultOf(Deferred.fromCoroutine(self.bucket(server).read([chat(1, 10)])), Unavailable)

    def test_a_question_is_never_larger_than_the_server_takes(self) -> None:
        server = Server()
        server.max_payload = 1024
        topics = [chat("w" * 64, f"{number:064}x"[1:]) for number in range(20)]
        server.store("node.n")
        for topic in topics:
            server.store(f"at.n.{topic.workspace_id}.chat.{topic.id}", b"[[1,1]]")
        self.assertEqual(self.read(server, topics), {topic: {"n": {1: 1}} for topic in topics})

    def test_a_user_who_moves_between_parts_is_counted_once(self) -> None:
        server = Server()
        server.store("node.n")
        server.store("at.n.1.chat.10", b"[[1,2],[2,1]]")
        server.store("at.n.1.chat.10.1", b"[[2,1],[3,1]]")
        self.assertEqual(self.read(server, [chat(1, 10)]), {chat(1, 10): {"n": {1: 2, 2: 1, 3: 1}}})


class Splitting(SynchronousTestCase):
    def present(self, count: int) -> list[Presence]:
        return by_user(Presence(f"user-{number:04}", 1) for number in range(count))

    def test_nobody_is_nothing_and_few_are_one_part(self) -> None:
        self.assertEqual(split([], 100), ([], 0))
        self.assertEqual(split([Presence(1, 2), Presence("a", 1)], 100), ([b'[[1,2],["a",1]]'], 0))

    def test_parts_fit_and_have_everybody_once(self) -> None:
        for count in (1, 20, 21, 100, 1000):
            bodies, left_out = split(self.present(count), 400)
            users = [user for body in bodies for user, _ in msgspec.json.decode(body)]
            self.assertEqual(sorted(users), [one.user_id for one in self.present(count)])
            self.assertLessEqual(max(map(len, bodies)), 400)
            self.assertEqual(left_out, 0)
            self.assertEqual(len(bodies) & (len(bodies) - 1), 0)

    def test_one_user_changes_one_part(self) -> None:
        before, _ = split(self.present(200), 600)
        after, _ = split(self.present(201), 600)
        self.assertEqual(len(before), len(after))
        self.assertEqual(sum(one != other for one, other in zip(before, after, strict=True)), 1)

    def test_what_all_parts_cannot_hold_is_counted(self) -> None:
        bodies, left_out = split(self.present(5000), 400)
        self.assertEqual(len(bodies), PARTS)
        self.assertLessEqual(max(map(len, bodies)), 400)
        self.assertEqual(sum(len(msgspec.json.decode(body)) for body in bodies), 5000 - left_out)
        self.assertGreater(left_out, 3000)
