"""What a handler gives back: an answer, or a refusal that is raised. Every error body is the same JSON."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from msgspec import Struct, field

from notify.errors import HistoryLost, TooLarge, Unavailable, Unknown
from notify.messages import Poison
from notify.topics import Topic

#: where the interface description keeps its types
REF = "#/components/schemas/{name}"

encode = msgspec.json.Encoder().encode


class ErrorDetail(Struct, frozen=True):
    """``code`` is for programs and does not change; ``message`` is for people."""

    code: str
    message: str


class ErrorAnswer(Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class Answer(Struct, frozen=True):
    """A whole answer: status, body and the headers that are its own."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: Mapping[bytes, bytes] = field(default_factory=dict)


def answer(value: object, status: int = HTTPStatus.OK) -> Answer:
    """An answer whose body is ``value`` as JSON."""
    return Answer(status, encode(value))


class Refused(Exception):  # noqa: N818
    """The request is answered with an error; the text says what is wrong without quoting what was sent."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[bytes, bytes] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = int(status), code, message
        self.headers = headers or {}

    @property
    def detail(self) -> ErrorDetail:
        """The error as it stands in a body."""
        return ErrorDetail(self.code, self.message)

    def answer(self) -> Answer:
        """The error as an answer."""
        return Answer(self.status, encode(ErrorAnswer(self.detail)), headers=self.headers)


def bad_request(message: str) -> Refused:
    """400: the request is not of the form that the interface description names."""
    return Refused(HTTPStatus.BAD_REQUEST, "bad_request", message)


def too_large(message: str) -> Refused:
    """413: more than the server takes at once."""
    return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", message)


def topic_of(subject: str) -> Topic:
    """The topic of a subject. Raises :class:`Refused`, 422, for one that is not ours."""
    try:
        return Topic.from_subject(subject)
    except ValueError as error:
        text = f"the subject is {error}" if str(error).startswith("not ") else str(error)
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "unknown_subject", text) from None


def internal_error() -> Refused:
    """500: our fault. What happened is in the log, under the request's id."""
    return Refused(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal",
        "the server failed to answer; its log has the reason under this answer's X-Request-Id",
    )


def refusal(error: BaseException) -> Refused | None:
    """The refusal that an error of ours stands for; None: not one of ours, a fault of the server."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Poison):
        return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_message", str(error))
    if isinstance(error, TooLarge):
        return too_large(str(error))
    if isinstance(error, Unavailable):
        return Refused(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "unavailable",
            "the broker is away and nothing was done; try again later",
            {b"Retry-After": b"1"},
        )
    if isinstance(error, Unknown):
        return Refused(
            HTTPStatus.GATEWAY_TIMEOUT,
            "unknown",
            "the broker did not answer in time, so the message may be stored or not; "
            "repeat the request with the same Idempotency-Key",
        )
    if isinstance(error, HistoryLost):
        return Refused(
            HTTPStatus.GONE,
            "history_lost",
            "the messages after that position cannot be given without a gap: "
            "it is too old, newer than the newest, or of another epoch",
        )
    return None
