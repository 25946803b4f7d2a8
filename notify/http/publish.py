"""``POST /v1/publish``: one message, a list in order, or a list that is all or nothing.

The results of publishing are also used for messages that arrive over a stream.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus
from typing import Any, TypeVar, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.python.failure import Failure

from notify.core.live import ApiKey
from notify.core.witness import Witness
from notify.errors import AtFault, Unknown
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
from notify.http.keys import permit
from notify.http.request import Request
from notify.ids import Id
from notify.interfaces import IBroker, ITogether, atomic_of
from notify.messages import Draft, Position
from notify.observe.logging import Narrator
from notify.observe.metrics import Metrics
from notify.observe.tracing import NO_TRACER, Span, Tracer
from notify.topics import Topic

_log = Narrator("notify.http.publish")

T = TypeVar("T")

#: a plain int: looking up the enum's value would run Python code each time
_OK = HTTPStatus.OK.value

#: messages in one request
MAX_LIST = 1000

IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,128}", re.ASCII)


class Publication(Struct, frozen=True, forbid_unknown_fields=True):
    """One message to publish; the payload goes to the broker as the bytes that came.

    ``key`` is an idempotency key of its own, in place of the one that the request's gives it.
    """

    subject: str
    payload: Raw
    key: str | UnsetType = UNSET


class Published(Struct, frozen=True):
    """The message is accepted, at this position of its subject."""

    subject: str
    epoch: str
    seq: int


class Result(Struct, frozen=True):
    """One message of a list: status 200 and its position, or the status and error that it would have got as a single message."""

    status: int
    subject: str | UnsetType = UNSET
    epoch: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    error: ErrorDetail | UnsetType = UNSET


class PublishedList(Struct, frozen=True):
    """The outcome of each message of a list, in its order; ``accepted`` counts those with status 200."""

    accepted: int
    results: list[Result]


_decode = msgspec.json.Decoder(Publication | list[Publication]).decode


class Publisher:
    """Publishes through a broker.

    ``max_payload`` is in bytes. ``witness()`` is told of each message while somebody traces. ``pace(workspace, size)`` is
    called before a message or an atomic list is published, which waits for what it returns. Each message starts its
    own trace, or is part of the caller's: a span ``publish``, and in it ``broker.publish``, which ends when the
    broker has accepted the message. The context of the inner span travels with the message.
    """

    def __init__(
        self,
        broker: IBroker,
        metrics: Metrics,
        max_payload: int,
        tracer: Tracer = NO_TRACER,
        witness: Callable[[], Witness | None] = lambda: None,
        pace: Callable[[Id, int], Deferred[None] | None] = lambda workspace, size: None,
    ) -> None:
        self._pace = pace
        self._broker, self._metrics, self._max_payload = broker, metrics, max_payload
        self._tracer = tracer
        self._witness = witness
        self._ok = metrics.published.labels("ok")
        #: a context for what is published at once
        self.at_once: Callable[[], AbstractContextManager[None]] = nullcontext
        if ITogether.providedBy(broker):
            self.at_once = cast(ITogether, broker).together

    def __call__(self, request: Request) -> Answer | Deferred[Answer]:
        """Publish the messages in the request.

        A list that violates the interface description is refused as a whole. Otherwise each message is accepted or
        refused on its own, all are handed to the broker in order, and the status is 200 if all were accepted, else
        207. With ``atomic=true``, either all are accepted, or none is and the answer says why.
        """
        atomic = request.parameters((), ("atomic",)).get("atomic", "false")
        if atomic not in ("true", "false"):
            raise bad_request("the query parameter 'atomic' must be true or false")
        key = request.text_header("Idempotency-Key", IDEMPOTENCY_KEY, "1 to 128 visible ASCII characters")
        try:
            body = _decode(request.body)
        except msgspec.ValidationError as error:
            raise bad_request(
                f"the body is not a valid message or list of messages: {unquoted(error, Publication)}"
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise bad_request("the body is not valid JSON in UTF-8") from None
        for one in body if isinstance(body, list) else (body,):
            if one.key is not UNSET and not IDEMPOTENCY_KEY.fullmatch(one.key):
                raise bad_request("a message's key must be 1 to 128 visible ASCII characters")
        if isinstance(body, Publication):
            return self._publish(body, body.key or key, request)
        if not body:
            raise bad_request("the list is empty")
        if len(body) > MAX_LIST:
            raise too_large(f"a list may have at most {MAX_LIST} messages")
        keys = _keys(body, key)
        return (self._as_one if atomic == "true" else self.together)(body, keys, request)

    def result(self, one: Publication, key: str | None, by: ApiKey, trace: str) -> Deferred[Result]:
        """Publish one message for the owner of this API key. ``trace`` is a traceparent, or empty.

        Never fails. If it is cancelled, the message may or may not be stored, and the result says so.
        """
        working: Deferred[Any] = self._start(one, key, by, trace)
        return working.addCallbacks(self._stored, self._not_stored, callbackArgs=(one.subject,))

    def together(
        self, body: list[Publication], keys: Sequence[str | None], request: Request
    ) -> Answer | Deferred[Answer]:
        """Publish messages in order, each under its key; the answer has the result of each."""
        by, trace = request.key, request.trace
        results: list[Result | None] = []
        late: dict[int, Deferred[Result]] = {}
        with self.at_once():
            for place, (one, key) in enumerate(zip(body, keys, strict=True)):
                working: Deferred[Any] = self._start(one, key, by, trace)
                if (position := _fired(working)) is not None:
                    results.append(self._stored(position, one.subject))
                else:
                    results.append(None)
                    late[place] = working.addCallbacks(
                        self._stored, self._not_stored, callbackArgs=(one.subject,)
                    )
        return _when_all(results, late) if late else _collect(results)

    def _as_one(
        self, body: list[Publication], keys: Sequence[str | None], request: Request
    ) -> Deferred[Answer]:
        """Publish messages in order, each under its key, all or nothing.

        If all are stored, the answer has their positions.
        """

        def told(outcome: list[Position] | Failure) -> list[Position] | Failure:
            for place, one in enumerate(body):
                self._told(outcome if isinstance(outcome, Failure) else outcome[place], one)
            return outcome

        def stored(positions: list[Position]) -> Answer:
            return _collect([self._stored(at, one.subject) for at, one in zip(positions, body, strict=True)])

        working: Deferred[Any] = maybeDeferred(self._hand_over_all, body, keys, request)
        return working.addBoth(told).addCallbacks(stored, self._count_failure)

    def _hand_over_all(
        self, body: list[Publication], keys: Sequence[str | None], request: Request
    ) -> Deferred[list[Position]]:
        atomic, read = atomic_of(self._broker), list[tuple[Topic, bytes]]()
        for place, one in enumerate(body):
            try:
                read.append(self._read(one, request.key))
            except Refused as refused:
                raise AtFault(place, refused) from None
        traces, ended = self._spans([topic for topic, _ in read], request.trace)
        drafts = [Draft(*each, key, trace) for each, key, trace in zip(read, keys, traces, strict=True)]
        size = sum(len(draft.payload) for draft in drafts)
        working = maybeDeferred(self._paced, drafts[0].topic, size, lambda: atomic.publish_all(drafts))
        return working.addBoth(ended)

    def _spans(self, topics: list[Topic], trace: str) -> tuple[list[str], Callable[[Any], Any]]:
        """Begin the spans of messages that are published atomically.

        Returns what travels with each message, and a callback that ends the spans of each with its outcome.
        """
        if self._tracer is NO_TRACER:
            return [trace] * len(topics), lambda outcome: outcome
        outer = [self._tracer.span("publish", trace, root=True) for _ in topics]
        inner = [self._tracer.span("broker.publish", span.traceparent) for span in outer]
        for span, topic in zip(outer, topics, strict=True):
            span.set("notify.subject", topic.subject)

        def ended(outcome: list[Position] | Failure) -> list[Position] | Failure:
            for place, spans in enumerate(zip(inner, outer, strict=True)):
                for span in spans:
                    _ended(outcome if isinstance(outcome, Failure) else outcome[place], span)
            return outcome

        return [span.traceparent for span in inner], ended

    def _publish(self, one: Publication, key: str | None, request: Request) -> Answer | Deferred[Answer]:
        working: Deferred[Any] = self._start(one, key, request.key, request.trace)
        if (position := _fired(working)) is not None:
            return self._accepted(position, one.subject)
        return working.addCallbacks(self._accepted, self._count_failure, callbackArgs=(one.subject,))

    def _told(self, outcome: Position | Failure, one: Publication) -> Position | Failure:
        """Report the outcome of a message to the traces."""
        witness = self._witness()
        if witness is not None and (topic := _topic(one.subject)) is not None:
            size = len(bytes(one.payload))
            if isinstance(outcome, Position):
                witness.published(topic, size, "ok", "", outcome.epoch, outcome.seq)
            else:
                refused = _refusal(outcome)
                code, text = ("failed", "") if refused is None else (refused.code, refused.message)
                witness.published(topic, size, code, text)
        return outcome

    def _start(self, one: Publication, key: str | None, by: ApiKey, trace: str) -> Deferred[Position]:
        working = self._begin(one, key, by, trace)
        # A trace that begins in the meantime misses little.
        return working if self._witness() is None else working.addBoth(self._told, one)

    def _paced(self, topic: Topic, size: int, publish: Callable[[], Deferred[T]]) -> Deferred[T]:
        wait = self._pace(topic.workspace_id, size)
        return publish() if wait is None else wait.addCallback(lambda _: publish())

    def _begin(self, one: Publication, key: str | None, by: ApiKey, trace: str) -> Deferred[Position]:
        if self._tracer is NO_TRACER:  # spans that go nowhere would cost as much as the rest
            try:
                topic, payload = self._read(one, by)
                wait = self._pace(topic.workspace_id, len(payload))
                if wait is None:  # nearly always: not worth a function for each message, as in _paced
                    return self._broker.publish(topic, payload, key, trace)
                return wait.addCallback(lambda _: self._broker.publish(topic, payload, key, trace))
            except Exception:
                return fail()
        span = self._tracer.span("publish", trace, root=True)
        return maybeDeferred(self._hand_over, one, key, by, span).addBoth(_ended, span)

    def _read(self, one: Publication, by: ApiKey) -> tuple[Topic, bytes]:
        topic = topic_of(one.subject)
        permit(by, topic.workspace_id)
        payload = bytes(one.payload)
        if len(payload) > self._max_payload:
            raise too_large(f"a payload may have at most {self._max_payload} bytes")
        return topic, payload

    def _hand_over(self, one: Publication, key: str | None, by: ApiKey, span: Span) -> Deferred[Position]:
        topic, payload = self._read(one, by)
        span.set("notify.subject", topic.subject)

        def publish() -> Deferred[Position]:
            inner = self._tracer.span("broker.publish", span.traceparent)
            return maybeDeferred(self._broker.publish, topic, payload, key, inner.traceparent).addBoth(
                _ended, inner
            )

        return self._paced(topic, len(payload), publish)

    def _accepted(self, position: Position, subject: str) -> Answer:
        self._count(position, subject)
        return answer(Published(subject, position.epoch, position.seq))

    def _stored(self, position: Position, subject: str) -> Result:
        self._count(position, subject)
        return Result(_OK, subject, position.epoch, position.seq)

    def _count(self, position: Position, subject: str) -> None:
        self._ok.inc()
        _log.debug("published {seq} to {subject}", seq=position.seq, subject=subject)

    def _count_failure(self, failure: Failure) -> Failure:
        refused = _refusal(failure)
        code = refused.code if refused else "failed"
        self._metrics.published.labels(
            code if code in ("unavailable", "unknown", "failed", "forbidden") else "poison"
        ).inc()
        return failure

    def _not_stored(self, failure: Failure) -> Result:
        refused = _refusal(self._count_failure(failure))
        if refused is None:
            _log.failure("Failed to publish", failure=failure)
            refused = internal_error()
        return Result(refused.status, error=refused.detail)


def _keys(body: Sequence[Publication], key: str | None) -> list[str | None]:
    """The idempotency key of each message of a list: its own, or ``KEY:INDEX``; None: it has none.

    Raises :class:`Refused` if the list gives a message a key that is another one's own: one of the two would be lost as
    a repeat. (A publisher may use keys of this form: it repeats a message of a list alone under the key that the list
    gave it, so the server must not derive keys that nobody can send.)
    """
    if key is None:
        return [one.key or None for one in body]
    own = {(one.subject, one.key) for one in body if one.key}
    keys = [one.key or f"{key}:{index}" for index, one in enumerate(body)]
    if own:
        for index, (one, its) in enumerate(zip(body, keys, strict=True)):
            if not one.key and (one.subject, its) in own:
                raise bad_request(
                    f"the Idempotency-Key gives $[{index}] a key that another message of its subject has as its own, {its}"
                )
    return list(keys)


def _fired(working: Deferred[Any]) -> Position | None:
    """The position if it is known already, as with the memory broker: callbacks would cost as much as the message."""
    return working.result if working.called and isinstance(working.result, Position) else None


def _topic(subject: str) -> Topic | None:
    try:
        return Topic.from_subject(subject)
    except ValueError:
        return None


def _ended(outcome: T, span: Span) -> T:
    """End a span with its outcome.

    For a failure only its type is recorded, because its text may quote the caller's data.
    """
    if isinstance(outcome, Failure):
        span.fail(outcome.type.__name__ if outcome.type else "failed")
    elif isinstance(outcome, Position):
        span.set("notify.seq", outcome.seq)
    span.end()
    return outcome


def _when_all(results: list[Result | None], late: dict[int, Deferred[Result]]) -> Deferred[Answer]:
    """The answer once all results are there: those of ``late`` go to their places. Cancelling it cancels what is under way.

    Every request of several messages comes by here, and this takes fewer calls than a ``DeferredList``.
    """
    missing = len(late)

    def came(result: Result, place: int) -> None:
        nonlocal missing
        results[place] = result
        missing -= 1
        if not missing:
            finished.callback(_collect(results))

    def cancel(_: object) -> None:
        for one in late.values():
            one.cancel()

    finished: Deferred[Answer] = Deferred(cancel)
    for place, one in late.items():
        one.addCallback(came, place)
    return finished


def _collect(results: list[Result | None]) -> Answer:
    complete = [one for one in results if one is not None]
    accepted = [one.status for one in complete].count(_OK)
    status = HTTPStatus.OK if accepted == len(complete) else HTTPStatus.MULTI_STATUS
    return answer(PublishedList(accepted, complete), status)


def _refusal(failure: Failure) -> Refused | None:
    error = failure.value
    # Cancelled: the client went away, or the answer did not come within the server's timeout.
    return refusal(Unknown() if error is None or isinstance(error, CancelledError) else error)


def unquoted(error: msgspec.ValidationError, wanted: type[Struct]) -> str:
    """msgspec's error for a body that is not a ``wanted``, without the field name, the only thing that it quotes."""
    text = str(error)
    if "unknown field" in text:
        _, _, path = text.partition(" - at ")
        *names, last = [f"'{name}'" for name in wanted.__struct_fields__]
        return f"a field other than {', '.join(names)} and {last}" + (f" at {path}" if path else "")
    return text.replace("`", "'")
