"""What became of a message that was to be published, and what is raised where it is not stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus

from msgspec import Struct

from notify.client.actions import Position

#: statuses after which the same message, with the same key, may be stored
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
#: those of them that leave it open whether it is stored
OPEN = frozenset((HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT))
#: what a message is refused with for what it is: an earlier try was refused, too, whatever became of its answer
OF_ITSELF = frozenset(
    (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    )
)


class PublishFailed(Exception):  # noqa: N818
    """Not published, or not known to be.

    ``nothing_stored`` is true where it is certain that nothing of the message is stored: it was refused, or never sent.
    Otherwise it may be stored or not, and ``code`` is mostly ``unknown``: repeat it under the same key. ``status`` is that
    of the server's last word; None: there was none. Codes of our own: ``unknown``, ``unreachable`` (never sent),
    ``busy`` (too much waits already), ``closed``, ``failed`` (an answer that is none), ``key_reused`` (for another message),
    ``unsent`` (its turn did not come, see ``publish_each``).

    ``positions`` is what became of a list: the position of each message that was accepted, ``None`` for the others
    and for those that were never sent. ``errors`` says of each of the others that was sent what is wrong with it.
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
        """Whether the message was refused for what it is (400, 413, 422): a repeat of it will be, too. Of a list: its worst error."""
        return self.status in OF_ITSELF and self.code != "failed"


class Fault(Struct, frozen=True):
    """Why a message was not stored, or is not known to be."""

    code: str = ""
    message: str = ""


class Outcome(Struct, frozen=True):
    """What became of a message: status 200 and its position, or another and why; 0: an answer that is none."""

    status: int | None
    epoch: str = ""
    seq: int = 0
    error: Fault | None = None

    @property
    def passing(self) -> bool:
        """Whether a repeat may get another."""
        return self.status is None or self.status in RETRIED


class Item:
    """One message on its way: ``body`` is its JSON without a key, ``key`` its idempotency key.

    ``digest`` tells what the key is used for, where it is the caller's own; ``first``: it was not used before.
    """

    __slots__ = ("body", "digest", "doubt", "first", "key", "outcome")

    def __init__(self, body: bytes, key: str, digest: tuple[bytes, bytes] | None = None) -> None:
        self.body, self.key, self.digest = body, key, digest
        self.first = True
        #: the last that was told of it
        self.outcome: Outcome | None = None
        #: a try of which nobody knows whether it stored it
        self.doubt = False

    def keyed(self, more: str = "") -> bytes:
        """The JSON with its key, and ``more`` in front of that."""
        return b'{%b"key":%b,%b' % (more.encode(), json.dumps(self.key).encode(), self.body[1:])

    @property
    def settled(self) -> bool:
        """Whether a repeat would change nothing."""
        return self.outcome is not None and not self.outcome.passing

    def tell(self, outcome: Outcome) -> None:
        """Take what a try came to."""
        self.outcome = outcome
        self.doubt = self.doubt or not outcome.status or outcome.status in OPEN

    @property
    def position(self) -> Position | None:
        """Where it is stored, if that is known."""
        one = self.outcome
        return Position(one.epoch, one.seq) if one is not None and one.status == HTTPStatus.OK else None

    def failure(self, last: PublishFailed | None) -> PublishFailed | None:
        """What is to be raised for it; ``last``: what the last try ended with, where that told nothing of it."""
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
