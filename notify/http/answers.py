"""What a handler may return: an answer, whole or streamed, or another protocol; or raise: a refusal.

Every error body is the same JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, Struct, UnsetType, field
from twisted.internet.interfaces import IProtocol

from notify.errors import AtFault, HistoryLost, TooLarge, Unavailable, Unknown, Unsupported
from notify.messages import Poison
from notify.topics import Topic
from notify.wire.head import MAX_HEAD

#: where the interface description has its types
REF = "#/components/schemas/{name}"

#: the most header lines of a request
MAX_LINES = 64

encode = msgspec.json.Encoder().encode


class ErrorDetail(Struct, frozen=True):
    """``code`` is for programs and does not change; ``message`` is for people.

    ``index`` is the place, from 0, of the message for which an atomic list was refused.
    """

    code: str
    message: str
    index: int | UnsetType = UNSET


class ErrorAnswer(Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class Answer(Struct, frozen=True):
    """A whole answer: status, body and its own headers."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: Mapping[bytes, bytes] = field(default_factory=dict)


class Sink(Protocol):
    """What a streamed answer is written to."""

    def write(self, data: bytes) -> None:
        """Send ``data`` after what was written before. Does nothing once the client is gone."""

    def finish(self) -> None:
        """The answer is complete. Does nothing if the client is gone."""


class Stream(Struct, frozen=True):
    """An answer whose body is written as it is produced, in chunks.

    ``begin(sink)`` is called when the client may be written to. It returns a push producer (Twisted's
    ``IPushProducer``), which is paused while the client has not taken what was written, resumed when it has, and
    stopped when it is gone. A producer that goes on writing while paused fills the server's memory. A client that
    takes nothing for as long as a connection may be idle is cut off. ``begin`` is not called for HEAD. A stream does
    not delay the server's stop.
    """

    begin: Callable[[Sink], Any]
    status: int = HTTPStatus.OK
    content_type: bytes = b"application/json"
    headers: Mapping[bytes, bytes] = field(default_factory=dict)


class Upgrade(Struct, frozen=True):
    """From now on, the connection belongs to ``protocol`` (RFC 9110, section 7.8).

    ``head`` is the whole answer, 101 and its headers, which the handler made from ``request.head``. Whatever the
    client sent after its request is the protocol's first data.
    """

    head: bytes
    protocol: IProtocol


def answer(value: object, status: int = HTTPStatus.OK) -> Answer:
    """An answer whose body is ``value`` as JSON."""
    return Answer(status, encode(value))


class Refused(Exception):  # noqa: N818
    """The request is answered with an error. The text says what is wrong, without quoting what was sent."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: Mapping[bytes, bytes] | None = None,
        index: int | UnsetType = UNSET,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = int(status), code, message
        self.headers = headers or {}
        self.index = index

    @property
    def detail(self) -> ErrorDetail:
        """The error as it appears in a body."""
        return ErrorDetail(self.code, self.message, self.index)

    def answer(self) -> Answer:
        """The error as an answer."""
        return Answer(self.status, encode(ErrorAnswer(self.detail)), headers=self.headers)


def bad_request(message: str) -> Refused:
    """400: the request does not conform to the interface description."""
    return Refused(HTTPStatus.BAD_REQUEST, "bad_request", message)


def too_large(message: str) -> Refused:
    """413: more than the server accepts at once."""
    return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", message)


def headers_too_large() -> Refused:
    """431: the headers are too large."""
    return Refused(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "headers_too_large",
        f"the request line and headers together may have at most {MAX_HEAD} bytes and {MAX_LINES} headers",
    )


def slow() -> Refused:
    """408: the request did not arrive in time."""
    return Refused(
        HTTPStatus.REQUEST_TIMEOUT, "timeout", "the whole request did not arrive in time; send it again"
    )


def too_many_ahead() -> Refused:
    """429: a client that does not wait for answers."""
    return Refused(
        HTTPStatus.TOO_MANY_REQUESTS,
        "too_many_requests",
        "too many requests are waiting for answers: wait for an answer before you send the next request",
    )


#: 504: a handler that only queries took too long
TIMEOUT = Refused(HTTPStatus.GATEWAY_TIMEOUT, "timeout", "no answer came in time; try again later")


def topic_of(subject: str) -> Topic:
    """The topic of a subject. Raises :class:`Refused`, 422, if it is not a subject of notify's."""
    try:
        return Topic.from_subject(subject)
    except ValueError as error:
        text = f"the subject is {error}" if str(error).startswith("not ") else str(error)
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "unknown_subject", text) from None


def internal_error() -> Refused:
    """500: a fault of the server. The log has the details, under the request's id."""
    return Refused(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal",
        "the server failed to answer; its log gives the reason under this answer's X-Request-Id",
    )


def refusal(error: BaseException) -> Refused | None:
    """The refusal that an error stands for; None: an unexpected one, a fault of the server."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, AtFault) and (of_one := refusal(error.reason)) is not None:
        text = f"{of_one.message}, at $[{error.index}]; nothing of the list was published"
        return Refused(of_one.status, of_one.code, text, of_one.headers, error.index)
    if isinstance(error, Poison):
        return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_message", str(error))
    if isinstance(error, TooLarge):
        return too_large(str(error))
    if isinstance(error, Unavailable):
        return Refused(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "unavailable",
            "the broker is unavailable and nothing was done; try again later",
            {b"Retry-After": b"1"},
        )
    if isinstance(error, Unknown):
        return Refused(
            HTTPStatus.GATEWAY_TIMEOUT,
            "unknown",
            "the broker did not answer in time, so the message may or may not be stored; "
            "repeat the request with the same Idempotency-Key",
        )
    if isinstance(error, Unsupported):
        return Refused(HTTPStatus.NOT_IMPLEMENTED, "unsupported", str(error))
    if isinstance(error, HistoryLost):
        return Refused(
            HTTPStatus.GONE,
            "history_lost",
            "the messages after that position cannot be returned without a gap: "
            "it is too old, newer than the newest message, or of another epoch; "
            "load the current state, and continue from a newer position",
        )
    return None
