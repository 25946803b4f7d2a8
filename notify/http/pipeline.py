"""``GET /v1/stream``: publishing over a WebSocket, with many messages in flight and no request for each.

The client sends a message, or a list of messages, in each text frame. It gets one answer for each message, by its
``id``, as soon as the outcome is known. Messages go to the broker in the order in which they came, and those of a
list together. What is bounded: the number of connections; for each connection, the messages and bytes in flight, past
which nothing is read; how long a message may take; and how long a client may leave its answers unread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from prometheus_client import Gauge
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProtocol, IReactorTime

from notify.core.live import ApiKey
from notify.http.answers import ErrorDetail, Refused, Upgrade, bad_request, encode
from notify.http.keys import forbidden
from notify.http.publish import IDEMPOTENCY_KEY, MAX_LIST, Publication, Result
from notify.http.request import Request
from notify.observe import tracing
from notify.observe.logging import Narrator

log = Narrator("notify.http.pipeline")

PATH = "/v1/stream"

#: concurrent connections; each belongs to a backend, which keeps it open
MOST_STREAMS = 200
#: messages, and bytes of messages, of one connection in flight; past that, nothing is read from it
MOST_MESSAGES, MOST_BYTES = 1000, 4 * 2**20
#: messages that are begun in a row before others have their turn
AT_ONCE = 500
#: seconds that a message may be in flight
ANSWER_TIMEOUT = 30.0
#: seconds without a byte from a client before it is pinged, and then until the connection ends as idle
PING_INTERVAL, PING_TIMEOUT = 25.0, 20.0
#: seconds that a client may leave its answers unread
PATIENCE = 60.0
#: seconds between two checks of these times
LOOK = 1.0

IDLE, NOT_TEXT, WRONG, FORBIDDEN, LEAVING = 1001, 1003, 1007, 1008, 1012


class StreamMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """One message from a publisher: ``id`` is returned with its outcome, ``key`` is its idempotency key, ``trace`` a traceparent."""

    id: int | Annotated[str, Meta(max_length=64)]
    subject: str
    payload: Raw
    key: str | None = None
    trace: str = ""


class StreamOutcome(Struct, frozen=True):
    """The outcome of one message: status 200 and its position, or the status and error of a POST."""

    id: int | str
    status: int
    epoch: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    error: ErrorDetail | UnsetType = UNSET


class _Named(Struct, frozen=True):
    """The ``id`` of a message that is otherwise invalid."""

    id: int | Annotated[str, Meta(max_length=64)]


_decode = msgspec.json.Decoder(StreamMessage).decode
_decode_list = msgspec.json.Decoder(list[Raw]).decode
_named = msgspec.json.Decoder(_Named).decode


class Socket(Protocol):
    """The WebSocket that a pipeline uses (``transport/texts.py``)."""

    def client(self) -> str:
        """The client's address."""

    def send(self, texts: Sequence[bytes]) -> None:
        """Send messages."""

    def ask(self) -> None:
        """Send a ping."""

    def silence(self, silent: bool) -> None:
        """Stop reading, or resume."""

    def end(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""

    def cut_off(self) -> None:
        """Drop the connection."""


class Sockets(Protocol):
    """Makes WebSockets."""

    def answer(self, head: bytes, path: str) -> tuple[HTTPStatus, bytes]:
        """Judge an opening handshake: 101 and the whole response, or the status that refuses it."""

    def make(self, talker: Any) -> IProtocol:
        """A WebSocket whose messages go to a :class:`Pipeline` once it has a transport."""


class Publishes(Protocol):
    """Publishes messages (:class:`~notify.http.publish.Publisher`)."""

    #: a context for messages that are published together
    at_once: Callable[[], AbstractContextManager[None]]

    def result(self, one: Publication, key: str | None, by: ApiKey, trace: str) -> Deferred[Result]:
        """The outcome of one message. Never fails; may be cancelled."""


class Streams:
    """All connections.

    ``stands(key)`` tells whether an API key is still valid, with the same rights. ``gauge`` shows the number of
    connections. ``hung_up(reason, peer)`` is told of each connection that is cut off.
    """

    def __init__(
        self,
        publisher: Publishes,
        sockets: Sockets,
        stands: Callable[[ApiKey], bool],
        reactor: IReactorTime,
        gauge: Gauge,
        hung_up: Callable[[str, str], None],
    ) -> None:
        self.publisher, self.stands, self.reactor = publisher, stands, reactor
        self.hung_up = hung_up
        self._sockets, self._gauge = sockets, gauge
        self._open: dict[Pipeline, None] = {}
        self._leaving = False
        self._gone: list[Deferred[None]] = []
        self._later: Any = None

    def __call__(self, request: Request) -> Upgrade:
        """Raises :class:`~notify.http.answers.Refused`."""
        if b"origin" in request.fields:
            raise forbidden("this path is for programs, and web pages may not open it: send no Origin header")
        request.parameters([])
        if self._leaving:
            raise _unavailable(
                "unavailable", "the server is leaving: open a stream on another server, or try again later"
            )
        if len(self._open) >= MOST_STREAMS:
            raise _unavailable(
                "too_many_streams", "too many streams are open: use POST /v1/publish, or try again later"
            )
        status, head = self._sockets.answer(request.head, PATH)
        if not head:
            raise _no_handshake(status)
        return Upgrade(head, self._sockets.make(Pipeline(self, request.key)))

    def entered(self, pipeline: Pipeline) -> None:
        """A connection has opened."""
        self._open[pipeline] = None
        log.debug("{peer} opened a stream with API key {key}", peer=pipeline.client(), key=pipeline.key.name)
        self._gauge.set(len(self._open))
        if self._leaving:
            pipeline.leave()
        if self._later is None:
            self._later = self.reactor.callLater(LOOK, self._look)

    def left(self, pipeline: Pipeline) -> None:
        """A connection is gone."""
        self._open.pop(pipeline, None)
        log.debug("a stream of API key {key} is over", key=pipeline.key.name)
        self._gauge.set(len(self._open))
        if not self._open:
            if self._later is not None:
                self._later.cancel()
                self._later = None
            gone, self._gone = self._gone, []
            for one in gone:
                one.callback(None)

    def close(self) -> Deferred[None]:
        """Open no more connections. Fires once the open ones have answered the messages in flight, and are gone."""
        self._leaving = True
        for pipeline in list(self._open):
            pipeline.leave()
        if not self._open:
            return succeed(None)
        gone: Deferred[None] = Deferred()
        self._gone.append(gone)
        return gone

    def _look(self) -> None:
        self._later = self.reactor.callLater(LOOK, self._look)
        now = self.reactor.seconds()
        for pipeline in list(self._open):
            pipeline.look(now)


class Pipeline:
    """One connection. It stays open for as long as its API key is valid."""

    def __init__(self, streams: Streams, key: ApiKey) -> None:
        self._streams, self.key = streams, key
        self._socket: Any = None
        #: messages in flight, the oldest first: the pending answer, its start, and its bytes
        self._working: dict[int, tuple[Deferred[Any], float, int]] = {}
        self._bytes = self._number = 0
        #: frames that have arrived and are not begun yet; None: one that is not text
        self._waiting: deque[bytes | None] = deque()
        self._answers: list[bytes] = []
        self._due: Any = None
        self._beginning = self._pinged = self._over = False
        self._blocked_at: float | None = None
        self._heard_at = 0.0
        #: once the connection must end: the close code and reason, whether they were sent, and the refusal for
        #: messages that come before the close; without a refusal they are not answered
        self._ending: tuple[int, str] | None = None
        self._instead: Refused | None = None
        self._ended = False

    def client(self) -> str:
        """The client's address."""
        address: str = self._socket.client()
        return address

    # --- from the WebSocket ---------------------------------------------------------------------------------

    def opened(self, socket: Socket) -> None:
        """The connection has opened."""
        self._socket = socket
        self._heard_at = self._streams.reactor.seconds()
        self._streams.entered(self)

    def text(self, payload: bytes) -> None:
        """A text frame arrived."""
        if self._ending is None or self._instead is not None:
            self._waiting.append(payload)

    def other(self) -> None:
        """A frame arrived that is not text."""
        if self._ending is None:
            self._waiting.append(None)

    def read(self) -> None:
        """Everything that arrived together has been passed on."""
        self._heard_at, self._pinged = self._streams.reactor.seconds(), False
        if self._due is None:
            self._go_on()

    def blocked(self) -> None:
        """The client does not take what was sent."""
        if self._blocked_at is None:
            self._blocked_at = self._streams.reactor.seconds()
            self._measure()

    def unblocked(self) -> None:
        """The client has taken everything."""
        if self._blocked_at is not None:
            self._blocked_at, self._heard_at = None, self._streams.reactor.seconds()
            self._soon()

    def closing(self) -> None:
        """Nothing more is sent except answers that are ready."""
        if self._ending is None:
            # The other side closes after its last messages, or a frame is invalid and valid ones came before it.
            self._begin_some()
            self._ending = 1000, ""
        self._flush()
        self._ended = True
        self._waiting.clear()

    def closed(self) -> None:
        """The client is gone: no answer is needed any more."""
        self._over = self._ended = True
        self._waiting.clear()
        self._answers.clear()
        due, self._due = self._due, None
        if due is not None and due.active():
            due.cancel()
        working, self._working = self._working, {}
        for one, _, _ in working.values():
            one.cancel()
        self._streams.left(self)

    # --- messages -------------------------------------------------------------------------------------------

    def _full(self) -> bool:
        return (
            self._blocked_at is not None or len(self._working) >= MOST_MESSAGES or self._bytes >= MOST_BYTES
        )

    def _go_on(self) -> None:
        """Begin what waits, within the bounds; then send the answers that are ready, and pause or resume reading."""
        self._due = None
        if self._over:
            return
        self._begin_some()
        self._flush()
        self._measure()
        if self._waiting and not self._full():
            self._soon()
        self._end_if_done()

    def _begin_some(self) -> None:
        if self._waiting and not self._streams.stands(self.key):
            self._end_for_key()
        self._beginning = True
        begun = 0
        with self._streams.publisher.at_once():
            while self._waiting and (self._ending or (begun < AT_ONCE and not self._full())):
                begun += self._begin(self._waiting.popleft())
        self._beginning = False

    def _begin(self, payload: bytes | None) -> int:
        """Begin the messages of one frame; returns how many there were."""
        if payload is None:
            self.end(NOT_TEXT, "messages must be text frames")
            return 1
        if not payload.lstrip().startswith(b"["):
            self._begin_one(payload)
            return 1
        try:
            parts = _decode_list(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            parts = []
        if not 0 < len(parts) <= MAX_LIST:
            self.end(WRONG, f"a list must have 1 to {MAX_LIST} messages")
            return 1
        for part in parts:
            if self._ending is not None and self._instead is None:
                break
            self._begin_one(bytes(part))
        return len(parts)

    def _begin_one(self, payload: bytes) -> None:
        try:
            message = _decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._malformed(payload, error)
            return
        if message.key is not None and not IDEMPOTENCY_KEY.fullmatch(message.key):
            self._refuse(message.id, bad_request("the key must be 1 to 128 visible ASCII characters"))
            return
        if self._instead is not None:
            self._refuse(message.id, self._instead)
            return
        number, size = self._number, len(payload)
        self._number += 1
        trace = tracing.valid(message.trace) if message.trace else ""
        one = Publication(message.subject, message.payload)
        working: Deferred[Any] = self._streams.publisher.result(one, message.key, self.key, trace)
        self._working[number] = working, self._streams.reactor.seconds(), size
        self._bytes += size
        working.addCallback(self._told, message.id, number)

    def _malformed(self, payload: bytes, error: Exception) -> None:
        try:
            name = _named(payload).id
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.end(WRONG, "a message must be a JSON object with an id")
            return
        text = "it has an unknown field" if "unknown field" in str(error) else str(error).replace("`", "'")
        if not isinstance(error, msgspec.ValidationError):
            text = "it is not valid JSON in UTF-8"
        self._refuse(name, bad_request(f"this is not a valid message: {text}"))

    def _refuse(self, name: int | str, refused: Refused) -> None:
        self._answers.append(encode(StreamOutcome(name, refused.status, error=refused.detail)))

    def _told(self, result: Result, name: int | str, number: int) -> None:
        found = self._working.pop(number, None)
        if found is None:
            return
        self._bytes -= found[2]
        self._answers.append(
            encode(StreamOutcome(name, result.status, result.epoch, result.seq, result.error))
        )
        if not self._beginning:
            self._soon()

    def _soon(self) -> None:
        if self._due is None and not self._over:
            self._due = self._streams.reactor.callLater(0, self._go_on)

    def _flush(self) -> None:
        if self._answers and not self._ended:
            answers, self._answers = self._answers, []
            self._socket.send(answers)

    def _measure(self) -> None:
        """Pause or resume reading from the client; while paused, the kernel keeps what it sends."""
        if not self._ended and not self._over:
            self._socket.silence(bool(self._waiting) or self._full())

    # --- the end --------------------------------------------------------------------------------------------

    def end(self, code: int, reason: str, instead: Refused | None = None) -> None:
        """Begin nothing more, answer what is in flight, and close.

        What has arrived and is not begun is refused with ``instead``, or not answered.
        """
        if self._ending is None:
            self._ending, self._instead = (code, reason), instead
            if instead is None:
                self._waiting.clear()
            self._soon()

    def _end_for_key(self) -> None:
        reason = "the API key is no longer valid, or no longer valid for this"
        self.end(FORBIDDEN, reason, Refused(HTTPStatus.UNAUTHORIZED, "unauthorized", reason))

    def leave(self) -> None:
        """The server is stopping."""
        reason = "the server is leaving"
        self.end(
            LEAVING, reason, _unavailable("unavailable", f"{reason} and nothing was done: try again later")
        )

    def _end_if_done(self) -> None:
        if self._ending is not None and not self._ended and not self._working:
            self._ended = True
            self._socket.end(*self._ending)

    def look(self, now: float) -> None:
        """Check the time limits."""
        if self._ended:
            return
        if not self._streams.stands(self.key):
            self._end_for_key()
        for number in [
            number for number, (_, since, _) in self._working.items() if now - since >= ANSWER_TIMEOUT
        ]:
            if (late := self._working.get(number)) is not None:
                late[0].cancel()
        if self._blocked_at is not None:
            if now - self._blocked_at >= PATIENCE:
                self._streams.hung_up("unread", self._socket.client())
                self._socket.cut_off()
        elif self._waiting or self._full():
            self._heard_at = now  # nothing is read from it now
        elif not self._pinged and now - self._heard_at >= PING_INTERVAL:
            self._pinged = True
            self._socket.ask()
        elif self._pinged and now - self._heard_at >= PING_INTERVAL + PING_TIMEOUT:
            self.end(IDLE, "idle")


def _unavailable(code: str, message: str) -> Refused:
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, code, message, {b"Retry-After": b"1"})


def _no_handshake(status: HTTPStatus) -> Refused:
    """The refusal of a request that opens no WebSocket (RFC 6455, section 4.2.2; RFC 9110, section 15.5.22)."""
    if status == HTTPStatus.UPGRADE_REQUIRED:
        return Refused(
            status,
            "upgrade_required",
            "this path accepts only the opening handshake of a WebSocket (RFC 6455, version 13)",
            {b"Upgrade": b"websocket", b"Sec-WebSocket-Version": b"13", b"Connection": b"Upgrade"},
        )
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return Refused(status, "method_not_allowed", "this path accepts only GET", {b"Allow": b"GET"})
    return bad_request("this is not a valid opening handshake of a WebSocket (RFC 6455)")
