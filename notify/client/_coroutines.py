"""A publisher's methods as coroutines, whatever runs them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from notify.client._each import Keyed
from notify.client._face import Face, Tally
from notify.client._job import Job
from notify.client._messages import Batcher, Message, chat_event, chat_message, notification
from notify.client._outcome import PublishFailed
from notify.client._publishing import Desk, End, Options
from notify.client._stream import Waiter
from notify.client.actions import Id, Position

T = TypeVar("T", bound="CoroutinePublisher")


class CoroutinePublisher(Face):
    """See :class:`~notify.client.publisher.Publisher`, whose methods these are, to be awaited, by any number of tasks at a time.

    A task that is cancelled sends nothing more; what it had sent may be stored. At most 10,000 messages or 64 MiB wait at a time:
    another is refused at once (``busy``), so await, or use :meth:`publish_many`, which takes from its source no more than it sends.
    Use it in an ``async with``.
    """

    def __init__(self, url: str, api_key: str, options: Options, random: Callable[[], float]) -> None:
        super().__init__(url, api_key, options)
        self._desk = Desk(self, self._address, api_key, self._options, random)

    async def __aenter__(self: T) -> T:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self, timeout: float | None = None) -> None:
        """Close for good: what other tasks publish is waited for, at most ``timeout`` seconds; each has its own end, too.

        Where this is cancelled, nothing is waited for.
        """
        waiter = self._waiter()
        self._desk.close(timeout, lambda: waiter.fire(None))
        try:
            await waiter
        except BaseException:
            self._desk.close(0.0, lambda: None)
            raise

    async def chat(
        self,
        workspace_id: Id,
        chat_id: Id,
        sender_id: Id,
        content: str,
        *,
        message_id: Id | None = None,
        timestamp: int | None = None,
        key: str | None = None,
        timeout: float | None = None,
    ) -> Position:
        """Publish one chat message; ``message_id`` is random and ``timestamp`` now where they are not given."""
        message, made = chat_message(workspace_id, chat_id, sender_id, content, message_id, timestamp)
        return await self._one(message, key, timeout, made)

    async def event(
        self,
        workspace_id: Id,
        chat_id: Id,
        sender_id: Id,
        kind: str,
        data: Any = None,
        *,
        refers_to: Id | None = None,
        message_id: Id | None = None,
        timestamp: int | None = None,
        key: str | None = None,
        timeout: float | None = None,
    ) -> Position:
        """Publish what happened in a chat beside its messages, as an edit or a reaction, for clients with the feature ``events``.

        ``data`` is any JSON value; ``refers_to`` is the ``message_id`` of the message that it is about.
        """
        message, made = chat_event(
            workspace_id, chat_id, sender_id, kind, data, refers_to, message_id, timestamp
        )
        return await self._one(message, key, timeout, made)

    async def notify(
        self,
        workspace_id: Id,
        user_id: Id,
        kind: str,
        data: Any,
        *,
        notification_id: Id | None = None,
        timestamp: int | None = None,
        key: str | None = None,
        timeout: float | None = None,
    ) -> Position:
        """Publish one notification; ``data`` is any JSON value."""
        message, made = notification(workspace_id, user_id, kind, data, notification_id, timestamp)
        return await self._one(message, key, timeout, made)

    async def publish(
        self,
        subject: str,
        payload: Mapping[str, Any],
        *,
        key: str | None = None,
        timeout: float | None = None,
    ) -> Position:
        """Publish one message; gives its position once the broker has accepted it. Raises ``PublishFailed``.

        ``key`` is the idempotency key, where the caller has one that outlives this call. Under one that this publisher has used for the
        subject within ``duplicate_window`` another payload is refused (``key_reused``): the server would not store it, and not say so.
        """
        return await self._one((subject, payload), key, timeout)

    async def publish_many(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        key: str | None = None,
        timeout: float | None = None,
    ) -> list[Position]:
        """Publish any number of ``(subject, payload)`` in order, some hundreds at a time, each time within ``timeout``.

        Gives their positions. Raises ``PublishFailed`` with those of the messages that were accepted; of those
        that were sent together with the one that failed every message was tried, behind them none.

        ``key`` makes the list idempotent as a whole: each message's key is ``KEY:INDEX``. After a crash repeat it from its beginning,
        with the same messages in the same order, within the server's ``duplicate_window``: each is stored once.
        """
        tally, batcher = Tally(key), Batcher()
        async for subject, payload in _each(messages):
            if batch := batcher.add(subject, payload):
                tally.add(await self._do(self._job_of_many(batch, key, len(tally.positions), timeout)))
        if batch := batcher.rest():
            tally.add(await self._do(self._job_of_many(batch, key, len(tally.positions), timeout)))
        return tally.positions

    async def publish_all(
        self, messages: Iterable[Message], *, key: str | None = None, timeout: float | None = None
    ) -> list[Position]:
        """Publish up to 1000 ``(subject, payload)`` as one, in order: all of them are stored, or none is. Gives their positions.

        Raises ``PublishFailed`` where they are not, or not known to be: then with ``nothing_stored`` false, and a repeat under the same key finds or stores all.
        A server whose broker cannot do that refuses it (status 501). ``key`` as in :meth:`publish_many`; what is there of the list is not stored again.
        """
        job = self._job_of_all(messages, key, timeout)
        return (await self._do(job)).result() if job.items else []

    async def publish_each(
        self, messages: Iterable[Keyed], *, timeout: float | None = None
    ) -> list[Position | PublishFailed]:
        """Publish messages with a key each, ``(key, subject, payload)``, and say of each what became of it, in their order.

        What is not stored is given, not raised: a ``PublishFailed``, whose ``refused`` says that a repeat would change nothing. The messages
        of a subject keep their order whatever fails: one is sent when the one before it is stored, or refused. Where neither is known
        those behind it are not sent (``unsent``). Repeat what is left, in its order, under the same keys, before anything newer of these
        subjects. ``timeout`` is for all together. What is no key or no JSON is refused, too, and holds up nothing.
        """
        each = self._each(messages, self._now, timeout)
        while items := each.next():
            each.add(await self._do(self._job_of_each(items, each.left)))
        return each.outcomes

    async def broadcast(
        self,
        subjects: Iterable[str],
        payload: Mapping[str, Any],
        *,
        key: str | None = None,
        timeout: float | None = None,
    ) -> list[Position]:
        """Publish one payload to up to 1000 subjects of a workspace, without the ids in it that are a subject's own.

        Gives the position in each, in their order. Raises ``PublishFailed`` as :meth:`publish_many` does; what is wrong with one subject or
        with the payload is wrong with all. ``key`` makes it idempotent as a whole, whatever the order of the subjects of a repeat.
        """
        job = self._job_of_broadcast(list(subjects), payload, key, timeout)
        return (await self._do(job)).result() if job.items else []

    async def signal(
        self,
        workspace_id: Id,
        chat_id: Id,
        user_id: Id,
        kind: str,
        data: Any = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Signal something to the chat's members in a user's name, as that they type; ``data`` is any JSON value.

        It is kept nowhere and may come twice or never, so it is tried for at most 5 seconds unless ``timeout`` is given.
        Raises ``PublishFailed`` where it is not known to be sent.
        """
        job = self._job_of_signal(workspace_id, chat_id, user_id, kind, data, timeout)
        (await self._do(job)).result()

    async def _one(
        self, message: Message, key: str | None, timeout: float | None, made: Collection[str] = ()
    ) -> Position:
        [position] = (await self._do(self._job_of_one(message, key, timeout, made))).result()
        return position

    async def _do(self, job: Job) -> Job:
        waiter = self._waiter()
        job.done = lambda: waiter.fire(None)
        self._desk.submit(job)
        try:
            await waiter
        except BaseException:  # cancelled
            self._desk.abandon(job)
            raise
        return job

    # --- what runs it provides, as a Front ------------------------------------------------------------------

    @abstractmethod
    def _now(self) -> float: ...

    @abstractmethod
    def _later(self, delay: float, call: Callable[[], None]) -> Callable[[], None]: ...

    @abstractmethod
    def _dial(self, end: End) -> None: ...

    @abstractmethod
    def _waiter(self) -> Waiter: ...


async def _each(messages: Iterable[Message] | AsyncIterable[Message]) -> AsyncIterator[Message]:
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            yield message
    else:
        for message in messages:
            yield message
