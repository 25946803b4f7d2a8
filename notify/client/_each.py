"""Publishes messages with one key each. Only one message per subject is in flight, so that none overtakes an earlier one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from notify.client._job import Job
from notify.client._keys import digest
from notify.client._messages import encode
from notify.client._outcome import Item, PublishFailed
from notify.client._publishing import BATCH, BATCH_BYTES, MOMENT
from notify.client.actions import Position

#: an idempotency key, a subject and its payload
Keyed: TypeAlias = tuple[str, str, Mapping[str, Any]]


class Each:
    """The messages that remain to be sent, by subject, and the outcome of each message.

    ``checked(key)`` raises :class:`PublishFailed` for an invalid key. ``now()`` and ``timeout`` are in seconds; the timeout is for all messages.
    """

    def __init__(
        self,
        messages: Iterable[Keyed],
        checked: Callable[[str], str],
        now: Callable[[], float],
        timeout: float,
    ) -> None:
        self._now, self._until = now, now() + timeout
        #: in the order of the messages given
        self.outcomes: list[Position | PublishFailed] = []
        #: for each subject the messages still to be sent, in order, each with its index into the outcomes
        self._waiting: dict[str, deque[tuple[int, Item]]] = {}
        self._sent: list[tuple[str, int]] = []
        for place, (key, subject, payload) in enumerate(messages):
            self.outcomes.append(_unsent("there was no time left to send it"))
            try:
                body = _body(subject, payload)
                item = Item(body, checked(key), digest(body))
            except PublishFailed as refused:
                self.outcomes[place] = refused
            else:
                self._waiting.setdefault(subject, deque()).append((place, item))

    @property
    def left(self) -> float:
        """The time left, in seconds."""
        return self._until - self._now()

    def next(self) -> list[Item]:
        """Return what to send now: the next message of each subject, as many as fit one request. Empty when done or out of time."""
        self._sent, items, size = [], list[Item](), 0
        if self.left < MOMENT:
            return items
        for subject, waiting in self._waiting.items():
            place, item = waiting[0]
            size += len(item.body)
            if len(items) == BATCH or (items and size > BATCH_BYTES):
                break
            self._sent.append((subject, place))
            items.append(item)
        return items

    def add(self, job: Job) -> None:
        """Record the outcomes of the messages that were sent."""
        for (subject, place), outcome in zip(self._sent, job.outcomes(), strict=True):
            self.outcomes[place] = outcome
            # Move the subject to the end, so that subjects take turns.
            waiting = self._waiting.pop(subject)
            waiting.popleft()
            if isinstance(outcome, PublishFailed) and not outcome.refused:
                for behind, _ in waiting:
                    self.outcomes[behind] = _unsent("one before it of its subject is not stored")
            elif waiting:
                self._waiting[subject] = waiting


def _unsent(text: str) -> PublishFailed:
    return PublishFailed("unsent", text, nothing_stored=True)


def _body(subject: Any, payload: Any) -> bytes:
    """Return the message as JSON. Raises :class:`PublishFailed` if the server could not parse it, which would fail the whole request."""
    try:
        if not isinstance(subject, str) or not isinstance(payload, Mapping):
            raise TypeError("a subject is text, and a payload an object")
        body = encode(subject, payload)
    except (TypeError, ValueError) as error:
        text = f"the message cannot be written as JSON: {error}"
        raise PublishFailed("bad_request", text, 400, nothing_stored=True) from None
    return body
