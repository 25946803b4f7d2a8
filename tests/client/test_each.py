"""Messages with a key each, by publishers for threads, asyncio and Twisted: the result of each, and their order."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from twisted.trial.unittest import TestCase

from notify.client import Position, PublishFailed
from tests.client import fronts
from tests.client.fronts import MOMENT


class Behaviour(fronts.Base):
    """Tests that each subclass runs with its own kind of publisher."""

    def keyed(self, n: Any, chat: str | None = None, **more: Any) -> tuple[str, str, Any]:
        subject, payload = self.message(n)
        payload |= more
        if chat is not None:
            subject, payload["chat_id"] = f"workspace.1.chat.{chat}.messages", chat
        return f"key-{n}", subject, payload

    async def test_each_is_told_of_and_those_refused_hold_nobody_up(self: Any) -> None:
        deep: Any = []
        for _ in range(499):  # 500 nested lists, and the payload around them
            deep = [deep]
        messages = [
            self.keyed(0),
            self.keyed(1, chat_id="other"),
            ("key-2", "workspace.1", {}),
            self.keyed(3, content="x" * 70_000),
            ("a b", *self.message(4)),
            ("key-5", self.subject, ["no object"]),
            self.keyed(6, content=float("nan")),
            self.keyed(7, data=deep),
            ("key-8", "\ud800", {}),
            self.keyed(9, content="\ud800"),
            self.keyed(10, content="é\u0000🙂"),
        ]
        for stream in (True, False):
            found = await self.run_(self.make(stream=stream).publish_each, messages)
            told = [one.status if isinstance(one, PublishFailed) else 200 for one in found]
            self.assertEqual(told[:9], [200, 422, 422, 413, 400, 400, 400, 400, 400])
            self.assertIn(told[9], (400, 422))
            self.assertEqual(told[10], 200)
            refused = [one for one in found if isinstance(one, PublishFailed)]
            self.assertEqual({(one.refused, one.nothing_stored) for one in refused}, {(True, True)})
        self.assertEqual(await self.kept(), ["0", "é\u0000🙂"])

    async def test_each_may_be_repeated_and_is_stored_once_in_order(self: Any) -> None:
        other = f"c-{uuid4()}"
        messages = [self.keyed(n, self.chat if n % 3 else other) for n in range(90)]
        first = await self.run_(self.make().publish_each, messages[:50])
        for stream in (True, False):
            found = await self.run_(self.make(stream=stream).publish_each, messages)
            self.assertEqual(found[:50], first)
        self.assertEqual(await self.kept(), [str(n) for n in range(90) if n % 3])
        self.subject = self.subject.replace(self.chat, other)
        self.assertEqual(await self.kept(), [str(n) for n in range(0, 90, 3)])

    async def test_many_subjects_go_together(self: Any) -> None:
        messages = [self.keyed(n, f"c-{uuid4()}") for n in range(1201)]
        found = await self.run_(self.make(stream=False, timeout=60).publish_each, messages)
        self.assertEqual({type(one) for one in found}, {Position})
        self.assertEqual(await self.run_(self.make().publish_each, []), [])

    async def test_none_overtakes_one_before_it_of_its_subject_that_is_not_stored(self: Any) -> None:
        def stored(seq: int) -> Any:
            return {"status": 200, "epoch": "e", "seq": seq}

        later = {"status": 503, "error": {"code": "unavailable", "message": "m"}}
        wrong = {"status": 422, "error": {"code": "invalid_message", "message": "m"}}
        server, publisher = self.scripted(
            (207, {"results": [later, stored(1), wrong]}),  # a0, b0, c0; a0 is tried again
            (207, {"results": [later]}),  # a0
            (200, {"results": [stored(2), stored(3)]}),  # b1, c1
            tries=2,
        )
        messages = [(name, name[0], {"n": name}) for name in ("a0", "b0", "a1", "c0", "b1", "c1", "a2")]
        found = await self.run_(publisher.publish_each, messages)
        asked = [[one["key"] for one in body] for _, _, body in server.asked]
        self.assertEqual(asked, [["a0", "b0", "c0"], ["a0"], ["b1", "c1"]])
        self.assertEqual({key for _, key, _ in server.asked}, {None})
        told = [one.code if isinstance(one, PublishFailed) else one.seq for one in found]
        self.assertEqual(told, ["unavailable", 1, "unsent", "invalid_message", 2, 3, "unsent"])
        again = [one.nothing_stored and not one.refused for one in (found[0], found[2], found[6])]
        self.assertEqual(again, [True, True, True])

    async def test_a_refusal_of_somebody_elses_is_none_of_a_message(self: Any) -> None:
        _, publisher = self.scripted((413, "<html>"))
        [found] = await self.run_(publisher.publish_each, [("k", "a", {})])
        self.assertEqual((found.status, found.code, found.refused), (413, "failed", False))

    async def test_a_key_of_another_message_holds_nobody_up(self: Any) -> None:
        for stream in (True, False):
            self.elsewhere()
            publisher = self.make(stream=stream)
            other = f"c-{uuid4()}"
            await self.one(publisher, "first", key="key-2")
            messages = [self.keyed(1, other), self.keyed(2), self.keyed(3)]
            found = await self.run_(publisher.publish_each, messages)
            told = [one.code if isinstance(one, PublishFailed) else 200 for one in found]
            self.assertEqual(told, [200, "key_reused", "unsent"])
            [alone] = await self.run_(publisher.publish_each, [self.keyed(2)])
            self.assertEqual((alone.code, alone.refused), ("key_reused", False))
            self.assertEqual(await self.kept(), ["first"])

    async def test_each_is_over_in_its_time(self: Any) -> None:
        for stream in (True, False):
            publisher = self.make(stream=stream)
            await self.one(publisher, "before")
            messages = [self.keyed(n, self.chat if n % 2 else f"c-{uuid4()}") for n in range(600)]
            with self.stopped():
                started = time.monotonic()
                found = await self.run_(publisher.publish_each, messages, timeout=0.5)
                self.assertLess(time.monotonic() - started, 0.5 + MOMENT)
            self.assertEqual({one.refused for one in found}, {False})
            self.assertEqual({one.code for one in found[2:]} - {"unknown", "unreachable", "unsent"}, set())

    async def test_each_cut_again_and_again_is_stored_once_in_order(self: Any) -> None:
        for stream in (True, False):
            self.elsewhere()
            proxy, url = self.through()
            publisher = self.make(url, stream=stream, try_timeout=2)
            left = [self.keyed(n) for n in range(200)]
            stop = self.harming(publisher, stream, proxy.cut, proxy.silence)
            while left:
                found = await self.run_(publisher.publish_each, left, timeout=0.3)
                left = [one for one, what in zip(left, found, strict=True) if isinstance(what, PublishFailed)]
            stop()
            self.assertEqual(await self.kept(), [str(n) for n in range(200)])


class OfThreads(Behaviour, fronts.OfThreads, TestCase):
    pass


class OfAsyncio(Behaviour, fronts.OfAsyncio, TestCase):
    pass


class OfTwisted(Behaviour, fronts.OfTwisted, TestCase):
    pass
