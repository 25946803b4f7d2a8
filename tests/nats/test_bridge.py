"""Turning coroutines into Deferreds."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from notify.nats.bridge import as_deferred, gather, run_alone


class AsDeferred(TestCase):
    async def test_gives_what_the_coroutine_returns(self) -> None:
        async def work() -> int:
            await asyncio.sleep(0)
            return 7

        self.assertEqual(await as_deferred(work()), 7)

    async def test_errbacks_what_the_coroutine_raises(self) -> None:
        async def work() -> None:
            raise ZeroDivisionError

        await self.assertFailure(as_deferred(work()), ZeroDivisionError)

    async def test_cancelling_ends_the_task_and_is_twisteds_cancellation(self) -> None:
        seen: list[Any] = []
        started, ended = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            except BaseException as error:
                seen.append(type(error))
                raise
            finally:
                ended.set()

        deferred = as_deferred(work())
        await as_deferred(started.wait())
        deferred.cancel()
        await self.assertFailure(deferred, CancelledError)
        await as_deferred(ended.wait())
        self.assertEqual(seen, [asyncio.CancelledError])

    async def test_a_task_that_is_cancelled_from_within_is_twisteds_cancellation_too(self) -> None:
        async def work() -> None:
            raise asyncio.CancelledError

        await self.assertFailure(as_deferred(work()), CancelledError)

    async def test_gathered_coroutines_give_all_results_or_raise_the_first_error(self) -> None:
        async def give(value: object) -> object:
            if isinstance(value, Exception):
                raise value
            return value

        self.assertEqual(await gather(give(n) for n in (1, 2)), [1, 2])
        with self.assertRaises(KeyError):
            await gather(give(n) for n in (1, KeyError("x"), ValueError("y")))

    def test_cancelling_what_is_gathered_cancels_each_and_logs_nothing(self) -> None:
        waiting: list[Deferred[None]] = [Deferred(), Deferred()]

        async def wait(one: Deferred[None]) -> None:
            await one

        gathered = Deferred.fromCoroutine(gather(wait(one) for one in waiting))
        gathered.cancel()
        self.failureResultOf(gathered, CancelledError)
        self.assertEqual([one.called for one in waiting], [True, True])

    def test_running_alone_leaves_the_loop_of_the_thread_in_place(self) -> None:
        async def answer() -> int:
            return 42

        def run() -> tuple[int, bool]:
            mine = asyncio.new_event_loop()
            asyncio.set_event_loop(mine)
            found = run_alone(answer(), 5)
            kept = asyncio.get_event_loop() is mine
            mine.close()
            return found, kept

        with ThreadPoolExecutor(1) as pool:
            self.assertEqual(pool.submit(run).result(), (42, True))
