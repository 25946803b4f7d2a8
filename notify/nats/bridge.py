"""Bridges asyncio and Twisted: a coroutine that awaits asyncio objects becomes a Deferred, and vice versa.

Only this module handles asyncio's cancellation. It never lets ``asyncio.CancelledError`` out, because that is a BaseException
which Twisted's error handling would not catch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults

T = TypeVar("T")


def as_deferred(coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
    """Run a coroutine as a task of the reactor's asyncio loop. Fires with its result.

    Cancelling the Deferred cancels the task, and errbacks Twisted's ``CancelledError`` at once. A task that was cancelled from
    within errbacks it as well. Needs the asyncio reactor.
    """
    # Not get_running_loop: no loop is running yet while services start.
    task = asyncio.ensure_future(coroutine, loop=asyncio.get_event_loop())

    def cancel(_: Deferred[T]) -> None:
        task.cancel()

    deferred: Deferred[T] = Deferred(cancel)

    def done(task: asyncio.Task[T]) -> None:
        error = CancelledError() if task.cancelled() else task.exception()
        if deferred.called:  # it was cancelled: nobody waits for the outcome
            return
        if error is not None:
            deferred.errback(error)
        else:
            deferred.callback(task.result())

    task.add_done_callback(done)
    return deferred


async def gather(coroutines: Iterable[Coroutine[Deferred[Any], Any, T]]) -> list[T]:
    """Run coroutines that await Deferreds concurrently, and return their results. Raises what the first one to fail raised."""
    try:
        return await gatherResults([Deferred.fromCoroutine(one) for one in coroutines], consumeErrors=True)
    except FirstError as first:
        first.subFailure.raiseException()
        raise


def run_alone(coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
    """Run a coroutine on a new event loop, for programs without a reactor. Raises ``TimeoutError`` after ``seconds``."""
    # Not asyncio.run, which would remove the loop that the reactor has set for this thread.
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(asyncio.wait_for(coroutine, seconds))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
