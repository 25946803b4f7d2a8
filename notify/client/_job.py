"""A job: messages that are published together, in one frame of a stream or by one request, and their outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, cast

import msgspec

from notify.client._outcome import OPEN, RETRIED, Fault, Item, Outcome, PublishFailed
from notify.client._post import Request, Response
from notify.client.actions import Position

_NO_ANSWER = Outcome(0, error=Fault("failed", "the server's answer cannot be understood"))


class Job:
    """Messages that are sent together until each is settled, within ``timeout`` seconds and ``tries`` attempts (None: no limit).

    ``path`` is the path of a request that carries all of them. ``key`` is the idempotency key of that request, unless the messages
    have ``own_keys``. ``many`` says that the server answers with a list. ``apart`` says that a message whose key belongs to another
    message does not hold up the rest. ``body`` is given if the request's body is not composed of the messages; then it cannot go over a stream.
    """

    def __init__(
        self,
        items: Sequence[Item],
        path: str,
        key: str | None,
        timeout: float,
        tries: int | None,
        *,
        many: bool = False,
        own_keys: bool = False,
        apart: bool = False,
        body: bytes | None = None,
    ) -> None:
        self.items, self.key, self.timeout, self.tries = items, key, timeout, tries
        self.many, self.own_keys, self.stream = many, own_keys, body is None
        self.apart = apart
        self._path, self._body = path, body
        self.size = sum(len(item.body) for item in items) if body is None else len(body)
        #: called when the job is over
        self.done: Callable[[], None] = lambda: None
        self.over = False
        self.attempt = 0
        #: the last failure that concerned the whole attempt rather than single messages, and the wait that the server asks for
        self.last: PublishFailed | None = None
        self.deadline = 0.0
        #: cancel the job's timers
        self.expiring: Callable[[], None] = lambda: None
        self.retrying: Callable[[], None] = lambda: None

    def left(self) -> list[Item]:
        """The messages that are not settled."""
        return [item for item in self.items if not item.settled]

    # --- by a request ---------------------------------------------------------------------------------------

    def request(self, headers: Sequence[tuple[str, str]]) -> Request:
        """Build the request. If one key covers the whole list, send all of it: the key keeps stored messages from being stored twice."""
        bodies = [item.keyed() if self.own_keys else item.body for item in self._asked()]
        body = self._body or (b"[" + b",".join(bodies) + b"]" if self.many else bodies[0])
        key = () if self.own_keys or self.key is None else (("Idempotency-Key", self.key),)
        return Request(self._path, (*headers, *key), body)

    def answered(self, response: Response) -> None:
        """Record the response to a request."""
        status, value = response.status, _json(response.body)
        if status in RETRIED:
            self.unanswered(_refusal(value, status), status in OPEN)
        elif status // 100 == 2:
            asked = self._asked()
            told = self._outcomes(value, status, len(asked))
            for item, outcome in zip(asked, told or [_NO_ANSWER] * len(asked), strict=True):
                item.tell(outcome)
        else:
            failed = _refusal(value, status)
            for item in self.left():
                item.tell(Outcome(status, error=Fault(failed.code, failed.text)))

    def _asked(self) -> Sequence[Item]:
        return self.left() if self.own_keys else self.items

    def _outcomes(self, value: Any, status: int, count: int) -> list[Outcome] | None:
        """Parse the response. None if it makes no sense."""
        if self.key is None:  # a signal may arrive twice: it is not stored and has no position
            return [Outcome(HTTPStatus.OK)] * count
        try:
            results = value["results"] if self.many else [{"status": status, **value}]
            told = msgspec.convert(results, list[Outcome])
        except (msgspec.ValidationError, KeyError, TypeError):
            return None
        stored = all(one.status != HTTPStatus.OK or (one.epoch and one.seq) for one in told)
        return told if stored and len(told) == count else None

    # --- outcomes -------------------------------------------------------------------------------------------

    def unanswered(self, failed: PublishFailed, doubt: bool) -> None:
        """An attempt ended without an outcome for the unsettled messages. With ``doubt`` it may have stored them."""
        self.last = failed
        for item in self.left():
            item.doubt = item.doubt or doubt

    @property
    def settled(self) -> bool:
        """Whether a retry would change nothing."""
        return all(item.settled for item in self.items)

    def outcomes(self) -> list[Position | PublishFailed]:
        """The known outcome of each message."""
        return [item.failure(self.last) or cast(Position, item.position) for item in self.items]

    def result(self) -> list[Position]:
        """Return the positions. Raises :class:`PublishFailed` with the known outcome of each message."""
        errors = [item.failure(self.last) for item in self.items]
        failed = [error for error in errors if error is not None]
        if not failed:
            return [item.position for item in self.items if item.position is not None]
        # Raise a failure that may concern all messages in preference to one about a single message.
        worst = next((one for one in failed if one.status is None or one.status in RETRIED), failed[0])
        positions = [item.position for item in self.items] if self.many else []
        sure = all(one.nothing_stored for one in failed) and not any(positions)
        raised = PublishFailed(worst.code, worst.text, worst.status, positions, nothing_stored=sure)
        raised.errors = errors if self.many else []
        raise raised


def _json(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _refusal(value: Any, status: int) -> PublishFailed:
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return PublishFailed("failed", f"the server answered with HTTP {status}", status)
    return PublishFailed(str(error.get("code")), str(error.get("message")), status)
