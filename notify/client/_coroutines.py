"""The publisher's methods as coroutines, independent of what runs them."""

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
    """The coroutine version of :class:`~notify.client.publisher.Publisher`. Any number of tasks may use it at a time.

    A cancelled task sends nothing more, but what it has sent may be stored. At most 10,000 messages or 64 MiB wait at a time; a
    further message is refused immediately (``busy``). So await each call, or use :meth:`publish_many`, which takes messages from
    its source only as fast as it sends them. Use the publisher in an ``async with`` statement.
    """

    def __init__(self, url: str, api_key: str, options: Options, random: Callable[[], float]) -> None:
        super().__init__(url, api_key, options)
        self._desk = Desk(self, self._address, api_key, self._options, random)

    async def __aenter__(self: T) -> T:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self, timeout: float | None = None) -> None:
        """Close for good. Waits at most ``timeout`` seconds for what other tasks are publishing; their own timeouts still apply.

        If this call is cancelled, it stops waiting.
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
        """Publish one chat message. ``message_id`` defaults to a random id and ``timestamp`` to the current time."""
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
        """Publish a chat event, such as an edit or a reaction, for clients with the feature ``events``.

        ``data`` is any JSON value. ``refers_to`` is the ``message_id`` of the message that the event is about.
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
        """Publish one message and return its position once the broker has accepted it. Raises ``PublishFailed``.

        ``key`` is the idempotency key, for callers that have one which outlives this call. If this publisher has used the key for the
        subject within ``duplicate_window``, a different payload is refused (``key_reused``): the server would silently drop it as a duplicate.
        """
        return await self._one((subject, payload), key, timeout)

    async def publish_many(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        key: str | None = None,
        timeout: float | None = None,
    ) -> list[Position]:
        """Publish any number of ``(subject, payload)`` pairs in order, in batches of some hundreds; ``timeout`` applies to each batch.

        Returns their positions. Raises ``PublishFailed`` with the positions of the messages that were accepted. Every message
        in the batch with the failed message was tried; no later batch was.

        ``key`` makes the whole list idempotent: the key of each message is ``KEY:INDEX``; use that for no other message. After a crash,
        repeat the list from its start, with the same messages in the same order, within the server's ``duplicate_window``: each message is
        stored once.
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
        """Publish up to 1000 ``(subject, payload)`` pairs atomically and in order: either all are stored or none. Returns their positions.

        Raises ``PublishFailed`` if the messages were not stored, or if the outcome is unknown. In the latter case ``nothing_stored``
        is false, and a retry under the same key either finds the list stored or stores it.
        A server whose broker does not support this refuses the list (status 501). ``key`` works as in :meth:`publish_many`; messages
        of the list that are already stored are not stored again.
        """
        job = self._job_of_all(messages, key, timeout)
        return (await self._do(job)).result() if job.items else []

    async def publish_each(
        self, messages: Iterable[Keyed], *, timeout: float | None = None
    ) -> list[Position | PublishFailed]:
        """Publish ``(key, subject, payload)`` messages, each with its own key, and return the outcome of each, in order.

        A message that was not stored yields a ``PublishFailed`` in its place instead of raising it; ``refused`` says that a retry cannot
        succeed. Messages of one subject keep their order whatever fails: each is sent once the one before it is stored or refused. If that
        outcome is unknown, the later messages of the subject are not sent (``unsent``). Retry the remaining messages in order, under the same
        keys, before you publish anything newer to these subjects. ``timeout`` is for the whole call. A message with an invalid key or with a
        payload that is not JSON is also refused, and does not delay the others.
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
        """Publish one payload to up to 1000 subjects of a workspace. Leave out of it the ids that a subject itself carries.

        Returns the position in each subject, in the order given. Raises ``PublishFailed`` as :meth:`publish_many` does; one invalid subject or
        an invalid payload fails the whole call. ``key`` makes the broadcast idempotent as a whole, whatever the order of the subjects in a retry.
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
        """Send a signal, such as a typing indicator, to a chat's members in a user's name. ``data`` is any JSON value.

        A signal is not stored and may arrive twice or never, so it is tried for at most 5 seconds unless ``timeout`` is given.
        Raises ``PublishFailed`` if it is not known to have been sent.
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

    # --- the Front, which subclasses provide ----------------------------------------------------------------

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
