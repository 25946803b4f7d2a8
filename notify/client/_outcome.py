"""The outcome of publishing a message, and the exception for a message that was not stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus

from msgspec import Struct

from notify.client.actions import Position

#: status codes after which a retry of the same message with the same key may be stored
RETRIED = frozenset(
    (
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    )
)
#: those of them after which the message may already be stored
OPEN = frozenset((HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT))
#: status codes that reject the message itself. Any earlier attempt was rejected as well, even if its answer was lost
OF_ITSELF = frozenset(
    (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    )
)


class PublishFailed(Exception):  # noqa: N818
    """The message was not published, or is not known to be.

    ``nothing_stored`` is true if nothing of the message can have been stored: it was refused, or never sent. Otherwise the message
    may or may not be stored, and ``code`` is usually ``unknown``: retry it under the same key. ``status`` is the HTTP status of the
    server's last answer, or None if there was none. Besides the server's codes, ``code`` may be ``unknown``, ``unreachable`` (never
    sent), ``busy`` (too many messages are waiting), ``closed``, ``failed`` (an invalid answer), ``key_reused`` (the key belongs to
    another message), or ``unsent`` (its turn did not come, see ``publish_each``).

    For a list, ``positions`` has the position of each message that was accepted, and ``None`` for the others and for those
    that were never sent. ``errors`` has the error of each of the others that was sent.
    """

    def __init__(
        self,
        code: str,
        message: str,
        status: int | None = None,
        positions: Sequence[Position | None] = (),
        *,
        nothing_stored: bool = False,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.text, self.status = code, message, status
        self.nothing_stored = nothing_stored
        self.positions: list[Position | None] = list(positions)
        self.errors: list[PublishFailed | None] = []

    @property
    def refused(self) -> bool:
        """Whether the message itself was refused (400, 413, 422), so that a retry cannot succeed. For a list: its worst error."""
        return self.status in OF_ITSELF and self.code != "failed"


class Fault(Struct, frozen=True):
    """Why a message was not stored, or is not known to be stored."""

    code: str = ""
    message: str = ""


class Outcome(Struct, frozen=True):
    """The outcome of one attempt: status 200 and the position, or another status and its error. 0: the answer was invalid."""

    status: int | None
    epoch: str = ""
    seq: int = 0
    error: Fault | None = None

    @property
    def passing(self) -> bool:
        """Whether a retry may have another outcome."""
        return self.status is None or self.status in RETRIED


class Item:
    """One message in flight. ``body`` is its JSON without a key, ``key`` its idempotency key.

    ``digest`` identifies the message that a key given by the caller belongs to. ``first``: the key was not used before.
    """

    __slots__ = ("body", "digest", "doubt", "first", "key", "outcome")

    def __init__(self, body: bytes, key: str, digest: tuple[bytes, bytes] | None = None) -> None:
        self.body, self.key, self.digest = body, key, digest
        self.first = True
        #: the last outcome received
        self.outcome: Outcome | None = None
        #: an attempt had no answer, so the message may be stored
        self.doubt = False

    def keyed(self, more: str = "") -> bytes:
        """The JSON with its key, preceded by ``more``."""
        return b'{%b"key":%b,%b' % (more.encode(), json.dumps(self.key).encode(), self.body[1:])

    @property
    def settled(self) -> bool:
        """Whether a retry would change nothing."""
        return self.outcome is not None and not self.outcome.passing

    def tell(self, outcome: Outcome) -> None:
        """Record the outcome of an attempt."""
        self.outcome = outcome
        self.doubt = self.doubt or not outcome.status or outcome.status in OPEN

    @property
    def position(self) -> Position | None:
        """The position, if the message is known to be stored."""
        one = self.outcome
        return Position(one.epoch, one.seq) if one is not None and one.status == HTTPStatus.OK else None

    def failure(self, last: PublishFailed | None) -> PublishFailed | None:
        """The exception for this message, or None. ``last`` is how the last attempt ended if it gave no outcome for this message."""
        one, told = self.outcome, ""
        if one is not None and one.status == HTTPStatus.OK:
            return None
        if one is not None and one.status is not None:
            fault = one.error or Fault("failed", f"the server answered with {one.status}")
            if not self.doubt or one.status in OPEN or not one.passing:
                sure = one.status in OF_ITSELF or not self.doubt
                return PublishFailed(fault.code, fault.message, one.status or None, nothing_stored=sure)
            told = f"; at last the server said {fault.code}"
        if self.doubt:
            text = last.text if last is not None and last.code == "unknown" else "no answer from the server"
            return PublishFailed("unknown", text + told)
        reason = last or PublishFailed("unreachable", "there was no time left to send it")
        return PublishFailed(reason.code, reason.text, reason.status, nothing_stored=True)
