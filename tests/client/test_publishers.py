"""What every publisher does, for threads, asyncio and Twisted: one suite, against a real server process."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import time
import unittest
from collections.abc import AsyncIterator
from random import Random
from typing import Any
from uuid import uuid4

from cryptography import x509
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, DeferredList, ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.protocols.portforward import ProxyFactory, ProxyServer
from twisted.trial.unittest import TestCase

from notify.client import Position, PublishFailed, TwistedPublisher
from tests.client import fronts
from tests.client.fronts import MOMENT
from tests.support.certificates import Authority
from tests.support.http import temporary_folder
from tests.support.natsd import pause, until
from tests.support.process import KEY, Server
from tests.support.running import API_KEY, LocalServer


class Deaf(ProxyServer):
    """Passes on everything except requests that open a stream."""

    def dataReceived(self, data: bytes) -> None:
        if data.startswith(b"GET "):
            self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")  # type: ignore[union-attr]
            self.transport.loseConnection()  # type: ignore[union-attr]
        else:
            super().dataReceived(data)


class Behaviour(fronts.Base):
    """Tests that each subclass runs with its own kind of publisher."""

    async def test_one_and_many_are_stored_in_order(self: Any) -> None:
        publisher = self.make()
        positions = [await self.one(publisher, 0)]
        positions += await self.run_(publisher.publish_many, map(self.message, range(1, 1300)))
        self.assertEqual(await self.kept(), [str(n) for n in range(1300)])
        self.assertEqual(positions, sorted(positions, key=lambda one: one.seq))
        self.assertEqual(len({one.epoch for one in positions}), 1)

    async def test_messages_and_notifications_are_written_out(self: Any) -> None:
        publisher = self.make()
        await self.run_(publisher.chat, 1, self.chat, 3, "hello", message_id="m-1", timestamp=8, key="k")
        user = f"u-{uuid4()}"
        await self.run_(publisher.notify, 1, user, "mention", {"a": [1]})
        _, page = await deferToThread(self.server.http, "GET", f"/v1/history?subject={self.subject}")
        self.assertEqual([one["payload"] for one in page["messages"]], [{
            "message_id": "m-1", "chat_id": self.chat, "workspace_id": 1, "sender_id": 3, "content": "hello", "timestamp": 8,
        }])  # fmt: skip
        path = f"/v1/history?subject=workspace.1.user.{user}.notifications"
        _, page = await deferToThread(self.server.http, "GET", path)
        [found] = page["messages"]
        self.assertEqual((found["payload"]["kind"], found["payload"]["data"]), ("mention", {"a": [1]}))
        self.assertTrue(0 <= found["payload"]["notification_id"] < 2**53)

    async def test_a_key_of_the_callers_own_stores_once(self: Any) -> None:
        for stream in (True, False):
            publisher = self.make(stream=stream)
            found = [await self.one(publisher, "same", key="mine") for _ in range(2)]
            self.assertEqual(found[0], found[1])
        self.assertEqual(await self.kept(), ["same"])
        error = await self.failing(self.one(publisher, key="a b"))
        self.assertEqual((error.code, error.status, error.nothing_stored), ("bad_request", 400, True))

    async def test_under_a_key_that_was_used_another_message_is_an_error(self: Any) -> None:
        publisher = self.make()
        first = await self.run_(publisher.chat, 1, self.chat, 3, "hello", key="k")
        # The publisher makes a new id and time, but it counts as the same message.
        self.assertEqual(await self.run_(publisher.chat, 1, self.chat, 3, "hello", key="k"), first)
        error = await self.failing(self.run_(publisher.chat, 1, self.chat, 3, "bye", key="k"))
        self.assertEqual((error.code, error.nothing_stored), ("key_reused", True))
        self.assertEqual(await self.kept(), ["hello"])

    async def test_a_list_under_a_key_may_be_repeated_after_a_crash_and_cut_elsewhere(self: Any) -> None:
        messages = [self.message(n) for n in range(1100)]
        for stream in (True, False):
            # The first run got this far: into the middle of messages that are sent together.
            await self.run_(self.make(stream=stream).publish_many, messages[:730], key="batch-42")
        for stream in (True, False):
            positions = await self.run_(self.make(stream=stream).publish_many, messages, key="batch-42")
        self.assertEqual(await self.kept(), [str(n) for n in range(1100)])
        self.assertEqual(sorted(one.seq for one in positions), [one.seq for one in positions])
        publisher = self.make()
        await self.run_(publisher.publish_many, messages, key="batch-42")
        messages[777] = self.message("another")
        error = await self.failing(self.run_(publisher.publish_many, messages, key="batch-42"))
        self.assertEqual(error.code, "key_reused")
        self.assertEqual([one is None for one in error.positions], [False] * 500 + [True] * 500)
        self.assertEqual(error.errors[777].code, "key_reused")
        for wrong in ("", "a b", "k" * 120):
            error = await self.failing(self.run_(publisher.publish_many, messages, key=wrong))
            self.assertEqual((error.code, error.nothing_stored), ("bad_request", True))

    async def test_what_is_refused_is_told_at_once(self: Any) -> None:
        for stream in (True, False):
            error = await self.failing(self.one(self.make(key="wrong", stream=stream)))
            self.assertEqual((error.status, error.nothing_stored), (401, True))
            publisher = self.make(stream=stream)
            messages = [
                self.message(0),
                self.message(1, chat_id="other"),
                ("workspace.1", {}),
                self.message(3),
            ]
            error = await self.failing(self.run_(publisher.publish_many, messages))
            codes = [one and one.code for one in error.errors]
            self.assertEqual(codes, [None, "invalid_message", "unknown_subject", None])
            self.assertEqual([one is None for one in error.positions], [False, True, True, False])
        self.assertEqual(await self.kept(), ["0", "3", "0", "3"])

    async def test_what_no_server_reads_is_an_error_at_once_and_harms_nothing_else(self: Any) -> None:
        publisher = self.make()
        await self.one(publisher, "before")
        deep: Any = []
        for _ in range(499):
            deep = [deep]
        others = [self.one(publisher, n) for n in range(20)]
        for wrong in ({"content": "\ud800"}, {"data": deep}):
            subject, payload = self.message("")
            for call in (
                self.run_(publisher.publish, subject, payload | wrong),
                self.run_(publisher.publish_many, [self.message("never"), (subject, payload | wrong)]),
            ):
                await self.assertFailure(call, ValueError)
        await DeferredList(others, fireOnOneErrback=True)
        self.assertEqual(sorted(await self.kept()), sorted(["before", *map(str, range(20))]))

    async def test_text_that_was_cut_in_an_emoji_is_refused_before_it_is_sent(self: Any) -> None:
        half = "no emoji: \ud83d"
        for stream in (True, False):
            publisher = self.make(stream=stream)
            for call, *arguments in (
                (publisher.publish, *self.message(half)),
                (publisher.publish_many, [self.message(1), self.message(2, sender_name=half)]),
                (publisher.broadcast, [self.subject], {"content": half}),
                (publisher.signal, 1, self.chat, 3, "typing", {half: 1}),
            ):
                await self.assertFailure(self.run_(call, *arguments), ValueError)
            await self.one(publisher, "whole: \U0001f600")
        self.assertEqual(await self.kept(), ["whole: \U0001f600"] * 2)

    async def test_many_at_once_share_one_stream(self: Any) -> None:
        before = await self.streams()
        publisher = self.make()
        await DeferredList([self.one(publisher, n) for n in range(self.at_once)], fireOnOneErrback=True)
        self.assertEqual(await self.streams(), before + 1)
        self.assertEqual(sorted(await self.kept(), key=int), [str(n) for n in range(self.at_once)])

    #: concurrent calls: more than may be in flight in a stream, except where each needs a thread
    at_once = 2500

    async def test_cut_again_and_again_loses_nothing_and_stores_nothing_twice(self: Any) -> None:
        for stream in (True, False):
            self.elsewhere()
            proxy, url = self.through()
            publisher = self.make(url, timeout=60, stream=stream, try_timeout=5)

            stop = self.harming(publisher, stream, proxy.cut)

            def numbered(name: str, count: int) -> list[Any]:
                return [self.message(f"{name}-{n}") for n in range(count)]

            names = {"a": 1500, "b": 1500}
            many = [self.run_(publisher.publish_many, numbered(name, count)) for name, count in names.items()]
            single = [self.one(publisher, f"s-{n}") for n in range(40)]
            await DeferredList([*many, *single], fireOnOneErrback=True)
            stop()
            kept = await self.kept()
            self.assertEqual(len(kept), len(set(kept)))
            for name, count in {**names, "s": 40}.items():
                mine = [one for one in kept if one.startswith(name)]
                expected = [f"{name}-{n}" for n in range(count)]
                # Concurrent calls have no order among them.
                self.assertEqual(
                    sorted(mine) if name == "s" else mine, sorted(expected) if name == "s" else expected
                )

    async def test_what_is_said_of_a_message_is_true(self: Any) -> None:
        """Callers with short timeouts, connections that are cut and silenced, a server that stops for a moment."""
        for stream in (True, False):
            self.elsewhere()
            chance = Random(7)
            proxy, url = self.through()
            publisher = self.make(url, stream=stream, try_timeout=1)

            stop = self.harming(publisher, stream, proxy.cut, proxy.cut, proxy.silence)
            late, outcomes = [], {}

            async def one(n: int, wait: float, timeout: float, publisher: Any = publisher) -> None:
                await pause(wait)
                started = time.monotonic()
                try:
                    await self.one(publisher, n, timeout=timeout)
                    outcomes[str(n)] = "stored"  # noqa: B023
                except PublishFailed as error:
                    outcomes[str(n)] = "nothing" if error.nothing_stored else "unknown"  # noqa: B023
                late.append(time.monotonic() - started - timeout)  # noqa: B023

            every = [
                ensureDeferred(one(n, chance.uniform(0, 1.5), chance.choice([0.0001, 0.02, 0.1, 0.5, 20])))
                for n in range(300)
            ]
            await pause(0.8)
            with self.stopped():
                await pause(0.2)
            await DeferredList(every, fireOnOneErrback=True)
            stop()
            self.assertLess(max(late), MOMENT)
            kept = await self.kept()
            self.assertEqual(len(kept), len(set(kept)))
            stored, nothing = (
                {n for n, outcome in outcomes.items() if outcome == which} for which in ("stored", "nothing")
            )
            self.assertEqual((stored - set(kept), nothing & set(kept)), (set(), set()))
            self.assertGreater(len(stored), 30)
            self.assertGreater(len(nothing), 3)

    async def test_a_connection_that_falls_silent_is_replaced(self: Any) -> None:
        for stream in (True, False):
            proxy, url = self.through()
            publisher = self.make(url, try_timeout=0.5, stream=stream)
            await self.one(publisher, f"before-{stream}")
            proxy.silence()
            await self.one(publisher, f"after-{stream}")
        self.assertEqual(await self.kept(), ["before-True", "after-True", "before-False", "after-False"])

    async def test_events_are_written_out(self: Any) -> None:
        publisher = self.make()
        kinds = {"edit": {"content": "better"}, "delete": None}
        for kind, data in kinds.items():
            event = {"message_id": f"e-{kind}", "timestamp": 9, "refers_to": "m-1"}
            await self.run_(publisher.event, 1, self.chat, 3, kind, data, **event)
        await self.run_(
            publisher.event, workspace_id=1, chat_id=self.chat, sender_id=3, kind="members", key="k"
        )
        _, page = await deferToThread(self.server.http, "GET", f"/v1/history?subject={self.subject}")
        found = [one["payload"] for one in page["messages"]]
        self.assertEqual(found[:2], [{
            "message_id": f"e-{kind}", "chat_id": self.chat, "workspace_id": 1, "sender_id": 3, "kind": kind, "data": data,
            "timestamp": 9, "refers_to": "m-1",
        } for kind, data in kinds.items()])  # fmt: skip
        self.assertEqual((found[2]["kind"], found[2]["data"]), ("members", None))
        self.assertNotIn("refers_to", found[2])

    async def test_a_broadcast_is_told_of_subject_by_subject_and_repeated_as_a_whole(self: Any) -> None:
        subjects = [f"workspace.1.chat.{n}.messages" for n in range(3)]
        stored = [
            {"status": 200, "subject": subject, "epoch": "e", "seq": n}
            for n, subject in enumerate(subjects, 1)
        ]
        later = {"status": 503, "error": {"code": "unavailable", "message": "m"}}
        for key in (None, "b-1"):
            server, publisher = self.scripted(
                (503, {"error": {"code": "unavailable", "message": "m"}}),
                (207, {"accepted": 2, "results": [stored[0], later, stored[2]]}),
                (200, {"accepted": 3, "results": stored}),
            )
            found = await self.run_(publisher.broadcast, subjects, {"content": "x"}, key=key)
            self.assertEqual([one.seq for one in found], [1, 2, 3])
            path, used, body = server.asked[0]
            self.assertEqual(server.asked, [(path, used, body)] * 3)
            self.assertEqual(path, "/behind/a/prefix/v1/broadcast")
            self.assertEqual(body, {"subjects": subjects, "payload": {"content": "x"}})
            self.assertTrue(used == key if key else used)
        error = await self.failing(self.run_(publisher.broadcast, subjects, {"content": "y"}, key=key))
        self.assertEqual((error.code, len(server.asked)), ("key_reused", 3))
        self.assertEqual(await self.run_(publisher.broadcast, [], {"content": "y"}), [])

    async def test_a_broadcast_that_failed_in_part_says_where(self: Any) -> None:
        refused = {"status": 403, "error": {"code": "forbidden", "message": "m"}}
        answer = {"accepted": 1, "results": [{"status": 200, "epoch": "e", "seq": 1}, refused]}
        _, publisher = self.scripted(
            (207, answer), (422, {"error": {"code": "invalid_message", "message": "m"}})
        )
        error = await self.failing(self.run_(publisher.broadcast, ["a", "b"], {}))
        self.assertEqual((error.code, error.positions), ("forbidden", [Position("e", 1), None]))
        self.assertEqual([one and one.code for one in error.errors], [None, "forbidden"])
        error = await self.failing(self.run_(publisher.broadcast, ["a", "b"], {}))
        self.assertEqual((error.code, error.status, error.nothing_stored), ("invalid_message", 422, True))

    async def test_all_of_a_list_is_stored_or_none(self: Any) -> None:
        publisher = self.make()
        texts = [f"m{n}" for n in range(5)]
        messages = [self.message(text) for text in texts]
        found = await self.run_(publisher.publish_all, messages, key="all-1")
        self.assertEqual(await self.run_(publisher.publish_all, messages, key="all-1"), found)
        self.assertEqual(sorted(one.seq for one in found), [one.seq for one in found])
        wrong = [*messages, (self.subject, {"content": "x"})]
        error = await self.failing(self.run_(publisher.publish_all, wrong))
        self.assertEqual((error.code, error.status, error.nothing_stored), ("invalid_message", 422, True))
        self.assertEqual((error.positions, len(error.errors)), ([None] * 6, 6))
        self.assertIn("at $[5]", str(error))
        # Under the same key, the messages that are there are found, and the rest is stored.
        more = [*messages, self.message("m5")]
        self.assertEqual((await self.run_(publisher.publish_all, more, key="all-1"))[:5], found)
        self.assertEqual(await self.kept(), [*texts, "m5"])
        error = await self.failing(self.run_(publisher.publish_all, messages[::-1], key="all-1"))
        self.assertEqual((error.code, error.nothing_stored), ("key_reused", True))
        self.assertEqual(await self.run_(publisher.publish_all, []), [])

    async def test_a_list_as_one_is_repeated_as_a_whole(self: Any) -> None:
        stored = [{"status": 200, "subject": "s", "epoch": "e", "seq": n} for n in (1, 2)]
        for key in (None, "b-1"):
            server, publisher = self.scripted(
                (503, {"error": {"code": "unavailable", "message": "m"}}),
                (504, {"error": {"code": "unknown", "message": "m"}}),
                (200, {"accepted": 2, "results": stored}),
                (501, {"error": {"code": "unsupported", "message": "m"}}),
            )
            found = await self.run_(publisher.publish_all, [("s", {"a": 1}), ("s", {"a": 2})], key=key)
            self.assertEqual(found, [Position("e", 1), Position("e", 2)])
            path, used, body = server.asked[0]
            self.assertEqual(server.asked, [(path, used, body)] * 3)
            self.assertEqual(path, "/behind/a/prefix/v1/publish?atomic=true")
            self.assertEqual([one["payload"] for one in body], [{"a": 1}, {"a": 2}])
            self.assertTrue(used == key if key else used)
            error = await self.failing(self.run_(publisher.publish_all, [("s", {})]))
            self.assertEqual((error.code, error.status, error.nothing_stored), ("unsupported", 501, True))

    async def test_a_signal_is_sent_without_a_key_and_tried_again(self: Any) -> None:
        server, publisher = self.scripted(
            (503, {"error": {"code": "unavailable", "message": "m"}}),
            (202, {"workspace_id": 1, "chat_id": 7, "sent": True}),
            (501, {"error": {"code": "no_signals", "message": "m"}}),
        )
        self.assertIsNone(await self.run_(publisher.signal, 1, 7, 3, "typing"))
        body = {"workspace_id": 1, "chat_id": 7, "user_id": 3, "kind": "typing", "data": None}
        self.assertEqual(server.asked, [("/behind/a/prefix/v1/signal", None, body)] * 2)
        signalling = self.run_(publisher.signal, 1, 7, 3, "cursor", {"x": 1}, timeout=1)
        self.assertEqual((await self.failing(signalling)).code, "no_signals")
        self.assertEqual(server.asked[-1][2]["data"], {"x": 1})

    async def test_where_no_stream_is_passed_on_requests_are_made(self: Any) -> None:
        factory = ProxyFactory("127.0.0.1", self.server.internal)
        factory.protocol = Deaf
        factory.noisy = False
        port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        publisher = self.make(f"http://127.0.0.1:{port.getHost().port}")
        await DeferredList([self.one(publisher, n) for n in range(20)], fireOnOneErrback=True)
        await self.run_(publisher.publish_many, map(self.message, range(20, 700)))
        self.assertEqual(sorted(await self.kept(), key=int), [str(n) for n in range(700)])

    async def test_a_message_that_is_too_large_for_a_stream_goes_by_a_request(self: Any) -> None:
        publisher = self.make()
        error = await self.failing(self.one(publisher, "x" * 600_000))
        self.assertEqual((error.code, error.status, error.nothing_stored), ("too_large", 413, True))

    async def test_a_server_that_is_stopped_is_told_of_in_time(self: Any) -> None:
        for stream in (True, False):
            publisher = self.make(stream=stream)
            await self.one(publisher, "before")
            with self.stopped():
                for _ in range(2):
                    started = time.monotonic()
                    error = await self.failing(self.one(publisher, "meanwhile", key="k", timeout=0.5))
                    self.assertLess(time.monotonic() - started, 0.5 + MOMENT)
            self.assertIn(error.code, ("unknown", "unreachable"))
            await self.one(publisher, "meanwhile", key="k")
        self.assertEqual(await self.kept(), ["before", "meanwhile", "before"])

    async def test_what_is_published_while_the_server_is_away_waits_for_it(self: Any) -> None:
        with contextlib.ExitStack() as stack:
            other = Server()
            await deferToThread(other.start)
            stack.callback(other.__exit__, None, None, None)
            publisher = self.make(f"http://127.0.0.1:{other.internal}", random=lambda: 0.1)
            first = await self.one(publisher, 1)
            other.process.kill()
            await deferToThread(other.process.wait)
            publishing = self.one(publisher, 2)
            await deferToThread(other.start)
            second = await publishing
        self.assertNotEqual(first.epoch, second.epoch)

    async def test_closing_waits_for_what_is_under_way_and_is_for_good(self: Any) -> None:
        before = await self.streams()
        publisher = self.make()
        with self.stopped():
            under_way = [self.one(publisher, n, timeout=20) for n in range(4)]
            await pause(0.2)
            closing = self.run_(publisher.close)
            await pause(0.2)
            self.assertFalse(closing.called)
        await closing
        for one in under_way:
            self.assertIsInstance(await one, Position)
        error = await self.failing(self.one(publisher))
        self.assertEqual((error.code, error.nothing_stored), ("closed", True))
        while await self.streams() > before:
            pass

    async def test_closing_waits_for_no_longer_than_it_is_told(self: Any) -> None:
        publisher = self.make()
        await self.one(publisher, 0)
        with self.stopped():
            under_way = self.one(publisher, 1)
            failing = self.failing(under_way)
            await pause(0.1)
            started = time.monotonic()
            await self.run_(publisher.close, timeout=0.3)
            self.assertLess(time.monotonic() - started, 0.5 + MOMENT)
            error = await failing
        self.assertEqual((error.code, error.nothing_stored), ("unknown", False))

    async def test_what_is_cancelled_is_sent_no_more(self: Any) -> None:
        if not self.cancels:
            return
        proxy, url = self.through()
        publisher = self.make(url)
        await self.one(publisher, "before")
        with self.stopped():
            sent = self.one(publisher, "sent")
            await pause(0.1)
            sent.cancel()
            await self.assertFailure(sent, CancelledError, asyncio.CancelledError)
            proxy.cut()
            await pause(0.1)
            waiting = self.one(publisher, "never")  # there is no stream, and none is opened now
            await pause(0.1)
            waiting.cancel()
            await self.assertFailure(waiting, CancelledError, asyncio.CancelledError)
        await self.one(publisher, "after")
        kept = await self.kept()
        self.assertEqual([one for one in kept if one != "sent"], ["before", "after"])

    async def test_under_tls_nothing_is_sent_to_anybody_else(self: Any) -> None:
        folder = temporary_folder(self)
        authority = Authority(folder)
        other = temporary_folder(self)
        key, certificate = authority.issue(x509.DNSName("localhost"), name="tls")
        server = await LocalServer(
            LISTEN__INTERNAL=f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
        ).start(self)
        url = server.api.replace("http:", "https:")
        by_name = url.replace("127.0.0.1", "localhost")
        for stream in (True, False):
            publisher = self.make(by_name, API_KEY, tls=authority, stream=stream)
            await self.run_(publisher.publish_many, [self.message("x" * 1000)] * 600)
            await self.one(publisher)
            await self.run_(publisher.close)
            for wrong, trusted in ((by_name, Authority(other)), (url, authority)):
                publisher = self.make(wrong, API_KEY, tls=trusted, stream=stream)
                error = await self.failing(self.one(publisher))
                self.assertEqual((error.code, error.nothing_stored), ("unreachable", True), str(error))


class OfThreads(Behaviour, fronts.OfThreads, TestCase):
    at_once = 40


class OfAsyncio(Behaviour, fronts.OfAsyncio, TestCase):
    @unittest.skipUnless(importlib.util.find_spec("uvloop"), "uvloop is not installed")
    async def test_on_uvloop_it_is_the_same(self) -> None:
        import uvloop

        async def publish() -> Position:
            publisher = self.new(self.direct.replace("127.0.0.1", "localhost"), KEY)
            async with publisher:
                return await publisher.publish(*self.message(1))

        def run() -> Position:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(publish())

        self.assertIsInstance(await deferToThread(run), Position)

    async def test_another_event_loop_needs_another_one(self) -> None:
        publisher = self.make()
        await self.one(publisher)
        error = await self.assertFailure(
            deferToThread(lambda: asyncio.run(publisher.publish(*self.message(1)))), RuntimeError
        )
        self.assertIn("another event loop", str(error))


class OfTwisted(Behaviour, fronts.OfTwisted, TestCase):
    pass


class Sources(TestCase):
    """What coroutines may publish from, and that no more is taken from it than is sent."""

    timeout = 60

    async def test_an_asynchronous_source_is_read_as_it_is_sent(self) -> None:
        server = await LocalServer().start(self)
        taken: list[int] = []
        sent: list[int] = []
        subject = "workspace.1.chat.7.messages"
        payload = {"chat_id": 7, "workspace_id": 1, "sender_id": 3, "timestamp": 2, "content": "x"}

        async def source() -> AsyncIterator[tuple[str, Any]]:
            for n in range(1200):
                taken.append(n)
                sent.append(
                    int(
                        server.hub.metrics.registry.get_sample_value(
                            "notify_published_total", {"result": "ok"}
                        )
                        or 0
                    )
                )
                yield subject, {**payload, "message_id": n}

        async with TwistedPublisher(server.api, API_KEY) as publisher:
            positions = await publisher.publish_many(source())
        self.assertEqual([one.seq for one in positions], list(range(1, 1201)))
        self.assertTrue(all(n - before <= 501 for n, before in zip(taken, sent, strict=True)))
        await until(lambda: server.hub.metrics.registry.get_sample_value("notify_publish_streams") == 0)
