"""``POST /v1/publish``: one message, or a list in order."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.errors import Unknown
from notify.http.answers import (
    Answer,
    ErrorDetail,
    Refused,
    answer,
    bad_request,
    internal_error,
    refusal,
    too_large,
    topic_of,
)
from notify.http.request import Request
from notify.interfaces import IBroker
from notify.messages import Position
from notify.metrics import Metrics
from notify.tracing import NO_TRACER, Span, Tracer

_log = Logger()

T = TypeVar("T")

#: messages in one request
MAX_LIST = 1000

IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,128}", re.ASCII)


class Publication(Struct, frozen=True, forbid_unknown_fields=True):
    """One message to publish; the payload goes to the broker as the bytes that came."""

    subject: str
    payload: Raw


class Published(Struct, frozen=True):
    """The message is accepted, at this position of its subject."""

    subject: str
    epoch: str
    seq: int


class Result(Struct, frozen=True):
    """One message of a list: status 200 and its position, or the status and error that it would have got alone."""

    status: int
    subject: str | UnsetType = UNSET
    epoch: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    error: ErrorDetail | UnsetType = UNSET


class PublishedList(Struct, frozen=True):
    """What became of each message of a list, in its order; ``accepted`` counts those with status 200."""

    accepted: int
    results: list[Result]


_decode = msgspec.json.Decoder(Publication | list[Publication]).decode


class Publisher:
    """Publishes through a broker. ``max_payload`` is in bytes.

    Each message is a trace of its own, or a part of the caller's: a span ``publish``, and in it ``broker.publish``
    until the broker has accepted it, whose context travels with the message.
    """

    def __init__(
        self, broker: IBroker, metrics: Metrics, max_payload: int, tracer: Tracer = NO_TRACER
    ) -> None:
        self._broker, self._metrics, self._max_payload = broker, metrics, max_payload
        self._tracer = tracer

    def __call__(self, request: Request) -> Deferred[Answer]:
        """Publish what the request carries.

        A list of another form than the interface description's is refused as a whole. Else each message stands for
        itself, all are handed to the broker in order, and the answer has 200 when all were accepted, 207 when not.
        """
        key = request.text_header("Idempotency-Key", IDEMPOTENCY_KEY, "1 to 128 visible ASCII characters")
        try:
            body = _decode(request.body)
        except msgspec.ValidationError as error:
            raise bad_request(
                f"the body is not a message or a list of messages: {_unquoted(error)}"
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise bad_request("the body is not valid JSON in UTF-8") from None
        if isinstance(body, Publication):
            return self._publish(body, key, request.trace).addCallback(answer)
        if not body:
            raise bad_request("the list is empty")
        if len(body) > MAX_LIST:
            raise too_large(f"a list may have at most {MAX_LIST} messages")
        under_way = [
            self._publish(one, None if key is None else f"{key}:{index}", request.trace)
            for index, one in enumerate(body)
        ]
        together = DeferredList(
            [working.addCallbacks(_accepted, self._not_accepted) for working in under_way]
        )
        return together.addCallback(_collect)

    def _publish(self, one: Publication, key: str | None, trace: str) -> Deferred[Published]:
        span = self._tracer.span("publish", trace, root=True)
        working = maybeDeferred(self._hand_over, one, key, span)
        working.addBoth(_ended, span)
        return working.addCallbacks(self._count, self._count_failure, callbackArgs=(one.subject,))

    def _hand_over(self, one: Publication, key: str | None, span: Span) -> Deferred[Position]:
        topic = topic_of(one.subject)
        payload = bytes(one.payload)
        if len(payload) > self._max_payload:
            raise too_large(f"a payload may have at most {self._max_payload} bytes")
        span.set("notify.subject", topic.subject)
        inner = self._tracer.span("broker.publish", span.traceparent)
        return maybeDeferred(self._broker.publish, topic, payload, key, inner.traceparent).addBoth(
            _ended, inner
        )

    def _count(self, position: Position, subject: str) -> Published:
        self._metrics.published.labels("ok").inc()
        return Published(subject, position.epoch, position.seq)

    def _count_failure(self, failure: Failure) -> Failure:
        refused = _refusal(failure)
        code = refused.code if refused else "failed"
        self._metrics.published.labels(
            code if code in ("unavailable", "unknown", "failed") else "poison"
        ).inc()
        return failure

    def _not_accepted(self, failure: Failure) -> Result:
        refused = _refusal(failure)
        if refused is None:
            _log.failure("Failed to publish", failure=failure)
            refused = internal_error()
        return Result(refused.status, error=refused.detail)


def _ended(outcome: T, span: Span) -> T:
    """End a span as its work ended; a failure by its type alone, since its text may quote what a caller sent."""
    if isinstance(outcome, Failure):
        span.fail(outcome.type.__name__ if outcome.type else "failed")
    elif isinstance(outcome, Position):
        span.set("notify.seq", outcome.seq)
    span.end()
    return outcome


def _accepted(published: Published) -> Result:
    return Result(HTTPStatus.OK, published.subject, published.epoch, published.seq)


def _collect(outcomes: list[tuple[bool, Result]]) -> Answer:
    results = [result for _, result in outcomes]
    accepted = sum(result.status == HTTPStatus.OK for result in results)
    status = HTTPStatus.OK if accepted == len(results) else HTTPStatus.MULTI_STATUS
    return answer(PublishedList(accepted, results), status)


def _refusal(failure: Failure) -> Refused | None:
    error = failure.value
    # Given up on: the client went away, or no answer came within the server's own patience.
    return refusal(Unknown() if error is None or isinstance(error, CancelledError) else error)


def _unquoted(error: msgspec.ValidationError) -> str:
    """What msgspec says, without the one thing that it quotes: a field's name."""
    text = str(error)
    if "unknown field" in text:
        _, _, path = text.partition(" - at ")
        return "a field other than 'subject' and 'payload'" + (f" at {path}" if path else "")
    return text.replace("`", "'")
