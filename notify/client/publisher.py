"""Publishes from code that blocks, in any number of threads: over a stream, or by HTTP requests."""

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
    """Publishes through the HTTP API at ``url`` (``http://127.0.0.1:8081``), by connections that are kept open; use it in a ``with``.

    Each message carries an idempotency key, and its repeats carry the same: a message is stored once, however
    often it had to be sent. ``timeout`` is how many seconds a publish may take altogether, whatever the server does, and
    whoever else publishes; a call may have its own. Within it a message is tried again, with backoff and full jitter
    between tries, as often as there is time for, or at most ``tries`` times; a try of which nothing is heard for
    ``try_timeout`` seconds is given up. What is raised says whether the message may be stored (:class:`PublishFailed`).

    Threads may share it, and do not wait for each other. With ``stream`` messages go over one WebSocket
    (``/v1/stream``), which costs the server less than a request for each; where none can be opened, as at an older
    server or through some proxies, they go by requests for a minute, at most ``connections`` at a time.
    A process that is forked has connections of its own. ``duplicate_window`` is for how many seconds a key of the caller's is known to belong
    to its message (the last 10,000 of them): as long as the server remembers it, which is two minutes unless it is configured otherwise.
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
        """Close for good: what other threads publish is waited for, at most ``timeout`` seconds; each has its own end, too."""
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
        """Publish one chat message; ``message_id`` is random and ``timestamp`` now where they are not given."""
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
        """Publish what happened in a chat beside its messages, as an edit or a reaction, for clients with the feature ``events``.

        ``data`` is any JSON value; ``refers_to`` is the ``message_id`` of the message that it is about.
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
        """Publish one message; gives its position once the broker has accepted it. Raises :class:`PublishFailed`.

        ``key`` is the idempotency key, where the caller has one that outlives this call. Under one that this publisher has used for the
        subject within ``duplicate_window`` another payload is refused (``key_reused``): the server would not store it, and not say so.
        """
        return self._one((subject, payload), key, timeout)

    def publish_many(
        self, messages: Iterable[Message], *, key: str | None = None, timeout: float | None = None
    ) -> list[Position]:
        """Publish any number of ``(subject, payload)`` in order, some hundreds at a time, each time within ``timeout``.

        Gives their positions. Raises :class:`PublishFailed` with those of the messages that were accepted; of those
        that were sent together with the one that failed every message was tried, behind them none.

        ``key`` makes the list idempotent as a whole: each message's key is ``KEY:INDEX``. After a crash repeat it from its beginning,
        with the same messages in the same order, within the server's ``duplicate_window``: each is stored once.
        """
        tally = Tally(key)
        for batch in batches(messages):
            tally.add(self._do(self._job_of_many(batch, key, len(tally.positions), timeout)))
        return tally.positions

    def publish_all(
        self, messages: Iterable[Message], *, key: str | None = None, timeout: float | None = None
    ) -> list[Position]:
        """Publish up to 1000 ``(subject, payload)`` as one, in order: all of them are stored, or none is. Gives their positions.

        Raises :class:`PublishFailed` where they are not, or not known to be: then with ``nothing_stored`` false, and a repeat under the same key finds or stores all.
        A server whose broker cannot do that refuses it (status 501). ``key`` as in :meth:`publish_many`; what is there of the list is not stored again.
        """
        job = self._job_of_all(messages, key, timeout)
        return self._do(job).result() if job.items else []

    def publish_each(
        self, messages: Iterable[Keyed], *, timeout: float | None = None
    ) -> list[Position | PublishFailed]:
        """Publish messages with a key each, ``(key, subject, payload)``, and say of each what became of it, in their order.

        What is not stored is given, not raised: a :class:`PublishFailed`, whose ``refused`` says that a repeat would change nothing. The messages
        of a subject keep their order whatever fails: one is sent when the one before it is stored, or refused. Where neither is known
        those behind it are not sent (``unsent``). Repeat what is left, in its order, under the same keys, before anything newer of these
        subjects. ``timeout`` is for all together. What is no key or no JSON is refused, too, and holds up nothing.
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
        """Publish one payload to up to 1000 subjects of a workspace, without the ids in it that are a subject's own.

        Gives the position in each, in their order. Raises ``PublishFailed`` as :meth:`publish_many` does; what is wrong with one subject or
        with the payload is wrong with all. ``key`` makes it idempotent as a whole, whatever the order of the subjects of a repeat.
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
        """Signal something to the chat's members in a user's name, as that they type; ``data`` is any JSON value.

        It is kept nowhere and may come twice or never, so it is tried for at most 5 seconds unless ``timeout`` is given.
        Raises ``PublishFailed`` where it is not known to be sent.
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


#: those of this process, for its children
_PUBLISHERS: weakref.WeakSet[Publisher] = weakref.WeakSet()


def _forked() -> None:
    for publisher in list(_PUBLISHERS):
        publisher._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
