"""Messages with a key each: one of a subject at a time, so that none overtakes another that is not stored yet."""

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
    """What is still to be sent, subject by subject, and what became of each message.

    ``checked(key)`` raises :class:`PublishFailed` for what is no key; ``now()`` is in seconds, and so is ``timeout``, of all together.
    """

    def __init__(
        self,
        messages: Iterable[Keyed],
        checked: Callable[[str], str],
        now: Callable[[], float],
        timeout: float,
    ) -> None:
        self._now, self._until = now, now() + timeout
        #: in the order of the messages
        self.outcomes: list[Position | PublishFailed] = []
        #: of each subject what is to be sent, in order, with its place among the outcomes
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
        """Seconds."""
        return self._until - self._now()

    def next(self) -> list[Item]:
        """What is sent now: the next one of each subject, as many as go together. Empty: that was all, or the time is over."""
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
        """Take what became of what was sent."""
        for (subject, place), outcome in zip(self._sent, job.outcomes(), strict=True):
            self.outcomes[place] = outcome
            # To the end of the line: subjects take turns.
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
    """The message as JSON. Raises :class:`PublishFailed` where the server could not read it, and nothing that comes with it."""
    try:
        if not isinstance(subject, str) or not isinstance(payload, Mapping):
            raise TypeError("a subject is text, and a payload an object")
        body = encode(subject, payload)
    except (TypeError, ValueError) as error:
        text = f"the message cannot be written as JSON: {error}"
        raise PublishFailed("bad_request", text, 400, nothing_stored=True) from None
    return body
