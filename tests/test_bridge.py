"""From coroutines to Deferreds."""

import asyncio
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import TestCase

from notify.bridge import as_deferred


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
