"""A publisher for blocking code in any number of threads. It publishes over a WebSocket stream or by HTTP requests."""

from __future__ import annotations

import os
import random
import ssl
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from notify.client._blocking import Loop
from notify.client._each import Keyed
from notify.client._face import Face, Tally
from notify.client._job import Job
from notify.client._messages import Message, batches, chat_event, chat_message, notification
from notify.client._outcome import PublishFailed
from notify.client._publishing import Desk, Options
from notify.client.actions import Id, Position

__all__ = ["PublishFailed", "Publisher"]


class Publisher(Face):
    """Publishes through the HTTP API at ``url`` (``http://127.0.0.1:8081``) over connections that stay open. Use it in a ``with`` statement.

    Each message carries an idempotency key, and every retry of it carries the same key, so a message is stored once however
    often it was sent. ``timeout`` is the total time in seconds that a publish may take, whatever the server does and however
    many other threads publish; a call may set its own. Within that time a message is retried with exponential backoff and
    full jitter, as often as time allows or until ``tries`` attempts were made. An attempt that gets no answer within
    ``try_timeout`` seconds is given up. :class:`PublishFailed` says whether the message may have been stored.

    Threads may share a publisher and do not wait for each other. With ``stream`` messages go over one WebSocket
    (``/v1/stream``), which costs the server less than one request per message. Where the WebSocket cannot be opened, as with
    an older server or behind some proxies, messages go by HTTP request for the next minute, over at most ``connections``
    connections at a time. A forked process opens its own connections.

    ``duplicate_window`` is the time in seconds for which the publisher remembers which message each of the caller's keys
    belongs to (the last 10,000 keys). Set it to the time for which the server remembers keys: two minutes unless it is configured otherwise.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout: float = 30.0,
        try_timeout: float = 10.0,
        tries: int | None = None,
        stream: bool = True,
        connections: int = 8,
        duplicate_window: float = 120.0,
        tls: ssl.SSLContext | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(
            url, api_key, Options(timeout, try_timeout, tries, stream, connections, duplicate_window)
        )
        self._tls = (tls or ssl.create_default_context()) if self._address.secure else None
        self._random = random
        self._begin()
        _PUBLISHERS.add(self)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self, timeout: float | None = None) -> None:
        """Close for good. Waits at most ``timeout`` seconds for what other threads are publishing; their own timeouts still apply."""
        self._loop.outside()
        gone = threading.Event()
        self._loop.run(lambda: self._desk.close(timeout, gone.set), gone.is_set)
        with self._loop.lock:
            self._loop.shut()

    def chat(
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
        return self._one(message, key, timeout, made)

    def event(
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
        return self._one(message, key, timeout, made)

    def notify(
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
        return self._one(message, key, timeout, made)

    def publish(
        self,
        subject: str,
        payload: Mapping[str, Any],
        *,
        key: str | None = None,
        timeout: float | None = None,
    ) -> Position:
        """Publish one message and return its position once the broker has accepted it. Raises :class:`PublishFailed`.

        ``key`` is the idempotency key, for callers that have one which outlives this call. If this publisher has used the key for the
        subject within ``duplicate_window``, a different payload is refused (``key_reused``): the server would silently drop it as a duplicate.
        """
        return self._one((subject, payload), key, timeout)

    def publish_many(
        self, messages: Iterable[Message], *, key: str | None = None, timeout: float | None = None
    ) -> list[Position]:
        """Publish any number of ``(subject, payload)`` pairs in order, in batches of some hundreds; ``timeout`` applies to each batch.

        Returns their positions. Raises :class:`PublishFailed` with the positions of the messages that were accepted. Every message
        in the batch with the failed message was tried; no later batch was.

        ``key`` makes the whole list idempotent: the key of each message is ``KEY:INDEX``; use that for no other message. After a crash,
        repeat the list from its start, with the same messages in the same order, within the server's ``duplicate_window``: each message is
        stored once.
        """
        tally = Tally(key)
        for batch in batches(messages):
            tally.add(self._do(self._job_of_many(batch, key, len(tally.positions), timeout)))
        return tally.positions

    def publish_all(
        self, messages: Iterable[Message], *, key: str | None = None, timeout: float | None = None
    ) -> list[Position]:
        """Publish up to 1000 ``(subject, payload)`` pairs atomically and in order: either all are stored or none. Returns their positions.

        Raises :class:`PublishFailed` if the messages were not stored, or if the outcome is unknown. In the latter case ``nothing_stored``
        is false, and a retry under the same key either finds the list stored or stores it.
        A server whose broker does not support this refuses the list (status 501). ``key`` works as in :meth:`publish_many`; messages
        of the list that are already stored are not stored again.
        """
        job = self._job_of_all(messages, key, timeout)
        return self._do(job).result() if job.items else []

    def publish_each(
        self, messages: Iterable[Keyed], *, timeout: float | None = None
    ) -> list[Position | PublishFailed]:
        """Publish ``(key, subject, payload)`` messages, each with its own key, and return the outcome of each, in order.

        A message that was not stored yields a :class:`PublishFailed` in its place instead of raising it; ``refused`` says that a retry cannot
        succeed. Messages of one subject keep their order whatever fails: each is sent once the one before it is stored or refused. If that
        outcome is unknown, the later messages of the subject are not sent (``unsent``). Retry the remaining messages in order, under the same
        keys, before you publish anything newer to these subjects. ``timeout`` is for the whole call. A message with an invalid key or with a
        payload that is not JSON is also refused, and does not delay the others.
        """
        each = self._each(messages, self._loop._now, timeout)
        while items := each.next():
            each.add(self._do(self._job_of_each(items, each.left)))
        return each.outcomes

    def broadcast(
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
        return self._do(job).result() if job.items else []

    def signal(
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
        self._do(job).result()

    def _one(
        self, message: Message, key: str | None, timeout: float | None, made: Collection[str] = ()
    ) -> Position:
        [position] = self._do(self._job_of_one(message, key, timeout, made)).result()
        return position

    def _do(self, job: Job) -> Job:
        self._loop.outside()
        if self._desk.closed:
            with self._loop.lock:
                self._desk.submit(job)  # which refuses it
            return job
        try:
            self._loop.run(lambda: self._desk.submit(job), lambda: job.over)
        except BaseException:  # interrupted
            with self._loop.lock:
                self._desk.abandon(job)
            raise
        return job

    def _begin(self) -> None:
        self._loop = Loop(self._address, self._tls, lambda: self._desk.reset())
        self._desk = Desk(self._loop, self._address, self._api_key, self._options, self._random)

    def _forked(self) -> None:
        self._loop.shut()
        self._begin()


#: the publishers of this process, which a forked child resets
_PUBLISHERS: weakref.WeakSet[Publisher] = weakref.WeakSet()


def _forked() -> None:
    for publisher in list(_PUBLISHERS):
        publisher._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
