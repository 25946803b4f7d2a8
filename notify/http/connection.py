"""One client connection of an HTTP/1.1 server: a state machine between a transport and the handlers of a site.

What is bounded:

- Requests: one at a time, and one in each turn of the reactor, so that a client that pipelines many gives way to all
  others between two of them.
- The bytes read ahead.
- The time in which a request must be complete, however steadily it trickles in.
- The answers queued for a client that does not read: meanwhile nothing is read from it, and none of its further
  requests is looked at.

A refused client gets the reason, even while it is still sending.
"""

from __future__ import annotations

import enum
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol as BaseProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.errors import Unknown
from notify.http.answers import (
    TIMEOUT,
    Answer,
    Refused,
    Stream,
    Upgrade,
    bad_request,
    headers_too_large,
    internal_error,
    refusal,
    slow,
    too_many_ahead,
)
from notify.http.body import Body, Chunked, Exceeded, Sized
from notify.http.deadline import Deadline
from notify.http.request import NO_SUCH_PATH, Given, Request, Rules
from notify.http.stream import Streaming
from notify.wire import head as heads
from notify.wire.head import END, MAX_HEAD, Malformed, TooLong

#: bytes of a refused body that are read and discarded so that the connection can be kept
SMALL_BODY = 64 * 1024
#: seconds for a whole request, from its first byte
REQUEST_TIMEOUT = 20.0
#: seconds in which a refused client may read the answer, while what it still sends is discarded
LINGER = 2.0
#: bytes discarded in that time; any more are not read
LINGER_BYTES = 8 * 2**20

MALFORMED = bad_request("this is not a valid HTTP/1.1 request")

_CHUNKED = b"Transfer-Encoding: chunked\r\n"


def _sized(answer: Answer) -> bytes:
    return b"Content-Length: %d\r\n" % len(answer.body)


class Server(Rules, Protocol):
    """What a connection needs of its site."""

    reactor: Any
    #: seconds that a handler may take
    answer_timeout: float
    #: consecutive requests that had already arrived when the previous one was answered
    most_ahead: float

    def patience(self) -> float:
        """Seconds that a connection may be idle, or may not read its answer."""

    def soon(self, connection: Connection) -> None:
        """Have :meth:`Connection.go_on` called in the next turn of the reactor."""

    def begun(self) -> None:
        """A handler has started."""

    def ended(self) -> None:
        """A handler's request has been answered, or its client is gone."""

    def top(self, answer: Answer | Stream, framing: bytes, request_id: str, close: bool) -> bytes:
        """The status line and headers of an answer. ``framing`` is the header line that tells where it ends, or empty."""

    def note(
        self, connection: Connection, name: str, status: int, request_id: str, request: Request | None
    ) -> None:
        """An answer was given."""

    def hung_up(self, reason: str, peer: str) -> None:
        """A client was cut off for its behaviour."""

    def log_failure(self, request: Request, failure: Failure) -> None:
        """A handler failed because of a fault in the server."""


class Elsewhere(Protocol):
    """Serves some requests of a connection in place of the site, and takes the connection over for them."""

    def wants(self, head: bytes) -> bool:
        """Whether the request with this complete head is not for the site."""

    def takes(self, data: bytes) -> None:
        """Take over the transport, with that request and what follows it. All earlier requests have been answered."""


class _State(enum.Enum):
    HEAD = "a request is to come, or comes"
    BODY = "its headers are here"
    ANSWER = "it is being answered"
    OVER = "nothing is read any more but what is thrown away"


@implementer(IPushProducer)
class Connection(BaseProtocol):
    """One client connection. To its transport, it is the producer of everything written."""

    transport: Any
    #: asked about each request
    elsewhere: Elsewhere | None = None

    def __init__(self, site: Server) -> None:
        self._site = site
        self._state = _State.HEAD
        #: bytes received; those from ``_at`` on are not parsed yet
        self._data = b""
        self._at = 0
        self._request: Request | None = None
        self._body: Body | None = None
        self._working: Deferred[Any] | None = None
        self._stream: Streaming | None = None
        self._ahead = 0
        self._begun = self._due = self._blocked = self._paused = self._timed_out = False
        self._deadline = Deadline(site.reactor, self._shortest, self._late)
        self._hang_up: Any = None
        self._peer = ""
        self._thrown_away = 0

    # --- from the transport ---------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """A client has connected."""
        self.transport.registerProducer(self, True)
        self._deadline.within(self._site.patience())

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._state is _State.OVER:
            self._thrown_away += len(data)
            if self._thrown_away > LINGER_BYTES:
                self._read_no_more()
            return
        self._data = data if self._at == len(self._data) else self._data[self._at :] + data
        self._at = 0
        if self._due or self._blocked or self._state is _State.ANSWER:
            self._measure()
            return
        self._read()
        if not self._begun and (self._state is _State.BODY or (self._state is _State.HEAD and self._data)):
            self._begin()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone: no answer is needed any more."""
        self._state = _State.OVER
        self._forget()
        self._deadline.stop()
        if self._hang_up is not None and self._hang_up.active():
            self._hang_up.cancel()
        working, self._working = self._working, None
        stream, self._stream = self._stream, None
        if working is not None:
            working.cancel()
        if stream is not None:
            stream.stop()

    def pauseProducing(self) -> None:
        """The client does not take what was written."""
        if not self._blocked:
            self._blocked = True
            self._deadline.within(self._site.patience())
            self._measure()
            if self._stream is not None:
                self._stream.pause()

    def resumeProducing(self) -> None:
        """The client has taken everything."""
        self._blocked = False
        if self._state is _State.ANSWER:
            self._deadline.lift()
        else:
            self._deadline.within(self._site.patience())
        if self._stream is not None:
            self._stream.resume()
        elif self._state is not _State.ANSWER and self._at < len(self._data):
            self._in_turn()
        self._measure()

    def stopProducing(self) -> None:
        """The transport is gone, and reports this itself."""

    # --- a request ------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """It is this connection's turn again."""
        self._due = False
        if not self._blocked and self._state in (_State.HEAD, _State.BODY):
            if not self._begun:
                self._begin()
            self._read()
            self._measure()

    def _read(self) -> None:
        try:
            if self._state is _State.HEAD:
                self._read_head()
            if self._state is _State.BODY:
                self._read_body()
        except Malformed:
            self._refuse(MALFORMED)
        except TooLong:
            self._refuse(headers_too_large())

    def _read_head(self) -> None:
        data, at = self._data, self._at
        if data.startswith(b"\r\n", at):
            at += 2  # some clients send it after a body (RFC 9112, section 2.2)
        end = heads.find_end(data, at)
        if end < 0:
            return
        self._at = end + len(END)
        if self.elsewhere is not None and self.elsewhere.wants(data[at : self._at]):
            self._let_go()
            self.connectionLost()
            self.elsewhere.takes(data[at:])
            return
        self._request = request = Request(self._site, data[at:end], self._site.reactor.seconds(), self.peer)
        length, refused = request.length, request.refused
        if length != 0:
            waits = request.waits
            if refused and (waits or length is None or length > SMALL_BODY):
                self._refuse(refused)
                return
            if waits and self._at == len(data):
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._body = Chunked(request.max_body) if length is None else Sized(length, not refused)
        self._state = _State.BODY

    def _read_body(self) -> None:
        body, request = self._body, self._request
        assert body is not None  # noqa: S101 - what the state says
        assert request is not None  # noqa: S101
        if not body.whole:
            try:
                self._at = body.feed(self._data, self._at)
            except Exceeded:
                self._refuse(request.oversized())
                return
            if self._at == len(self._data):
                self._data, self._at = b"", 0
        if body.whole:
            request.body = body.content()
            self._body = None
            self._handle(request)

    def _handle(self, request: Request) -> None:
        self._state = _State.ANSWER
        self._deadline.lift()
        if request.refused is not None:
            self._respond(request.refused.answer(), request)
            return
        assert request.route is not None  # noqa: S101 - not refused means routed
        site, method = self._site, request.method
        site.begun()
        try:
            given: Any = request.route.methods[b"GET" if method == b"HEAD" else method](request)
        except Exception:
            # Not in a variable of this frame, which the traceback holds: both would wait for the garbage collector.
            self._settle(Failure(), request)  # type: ignore[no-untyped-call]
            return
        if not isinstance(given, Deferred):
            self._settle(given, request)
            return
        self._working = given
        given.addBoth(self._settle, request)
        if self._working is not None:
            self._deadline.within(site.answer_timeout)

    # --- its answer -----------------------------------------------------------------------------------------

    def _failed(self, failure: Failure, request: Request) -> Answer:
        error = failure.value
        if self._timed_out and isinstance(error, CancelledError):
            refused: Refused | None = refusal(Unknown()) if request.method == b"POST" else TIMEOUT
        else:
            refused = refusal(error) if error else None
        if refused is None:
            if self._state is _State.ANSWER:
                self._site.log_failure(request, failure)
            refused = internal_error()
        return refused.answer()

    def _settle(self, given: Given | Failure, request: Request) -> None:
        self._working = None
        try:
            if isinstance(given, Failure):
                given = self._failed(given, request)
            if self._state is _State.ANSWER and self._request is request:
                self._respond(given, request)
        except Exception:
            self._site.log_failure(request, Failure())  # type: ignore[no-untyped-call]
            self._abort()
        finally:
            self._timed_out = False
            self._site.ended()

    def _respond(self, given: Given, request: Request) -> None:
        if isinstance(given, Answer):
            body = b"" if request.method == b"HEAD" else given.body
            close = not request.lives_on
            top = self._site.top(given, _sized(given), request.request_id, close)
            self._site.note(self, request.name, given.status, request.request_id, request)
            self.transport.write(top + body)
            self._answered(close)
        elif isinstance(given, Stream):
            self._flow(given, request)
        elif isinstance(given, Upgrade):
            self._hand_over(given, request)
        else:
            raise TypeError("a handler gives an Answer, a Stream or an Upgrade")

    def _flow(self, given: Stream, request: Request) -> None:
        chunks = request.version == b"HTTP/1.1"
        close = not request.lives_on
        self._deadline.lift()
        self.transport.write(self._site.top(given, _CHUNKED if chunks else b"", request.request_id, close))
        self._site.note(self, request.name, given.status, request.request_id, request)
        if request.method == b"HEAD":
            self._answered(close)
            return
        self._stream = stream = Streaming(self.transport, chunks, lambda: self._streamed(close))
        stream.start(given.begin(stream), self._blocked)

    def _streamed(self, close: bool) -> None:
        self._stream = None
        if self._state is _State.ANSWER:
            self._answered(close)
            self._measure()

    def _hand_over(self, given: Upgrade, request: Request) -> None:
        transport, rest = self.transport, self._data[self._at :]
        self._site.note(self, request.name, 101, request.request_id, request)
        self._let_go()
        transport.write(given.head)
        # A TLS transport calls its wrappedProtocol, a plain one its protocol.
        name = "wrappedProtocol" if hasattr(transport, "wrappedProtocol") else "protocol"
        setattr(transport, name, given.protocol)
        self.connectionLost()
        given.protocol.makeConnection(transport)
        if rest:
            given.protocol.dataReceived(rest)

    def _answered(self, close: bool) -> None:
        """Get ready for the next request, or close."""
        self._request = None
        if close:
            self._close(self._site.patience())
            return
        self._state, self._begun = _State.HEAD, False
        if self._at == len(self._data):
            self._data, self._at, self._ahead = b"", 0, 0
            if not self._blocked:
                self._deadline.within(self._site.patience())
            return
        self._ahead += 1
        if self._ahead > self._site.most_ahead:
            self._site.hung_up("ahead", self.peer)
            self._refuse(too_many_ahead(), deaf=True)
        elif not self._blocked:
            self._in_turn()

    def _begin(self) -> None:
        """A request has begun, and must be complete in time."""
        self._begun = True
        self._deadline.within(min(REQUEST_TIMEOUT, self._site.patience()))

    def _in_turn(self) -> None:
        if not self._due:
            self._due = True
            self._site.soon(self)

    # --- deadlines ------------------------------------------------------------------------------------------

    def _shortest(self) -> float:
        return min(REQUEST_TIMEOUT, self._site.patience(), self._site.answer_timeout)

    def _late(self) -> None:
        """The deadline has passed."""
        if self._blocked:
            self._site.hung_up("unread", self.peer)
            self._abort()
        elif self._working is not None:
            self._timed_out = True
            self._working.cancel()
        elif self._state is _State.HEAD and self._at == len(self._data):
            self._close(LINGER)
        elif self._state is not _State.OVER:
            self._site.hung_up("slow", self.peer)
            self._refuse(slow())

    # --- reading, and the end -------------------------------------------------------------------------------

    def _measure(self) -> None:
        """Pause reading while enough is waiting to be handled or the client takes nothing; otherwise resume."""
        if self._state is _State.OVER:
            return
        waiting = len(self._data) - self._at
        busy = self._due or self._state is _State.ANSWER
        paused = self._blocked or (busy and waiting >= MAX_HEAD)
        if paused != self._paused:
            self._paused = paused
            (self.transport.pauseProducing if paused else self.transport.resumeProducing)()

    @property
    def peer(self) -> str:
        """The client's address."""
        if not self._peer:
            self._peer = str(getattr(self.transport.getPeer(), "host", "-"))
        return self._peer

    def _forget(self) -> None:
        self._data, self._at = b"", 0
        self._request = self._body = None
        self._deadline.lift()

    def _let_go(self) -> None:
        """The transport belongs to another protocol, or nothing more will be produced for it."""
        self._state = _State.OVER
        self._blocked = False
        self.transport.unregisterProducer()
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()

    def _read_no_more(self) -> None:
        if not self._paused:
            self._paused = True
            self.transport.pauseProducing()

    def _close(self, linger: float) -> None:
        """Close once the client has taken everything; cut it off after ``linger`` seconds if it has not."""
        self._let_go()
        self._forget()
        self._hang_up = self._site.reactor.callLater(linger, self.transport.abortConnection)
        self.transport.loseConnection()

    def _abort(self) -> None:
        if self._state is not _State.OVER:
            self._let_go()
            self._forget()
        self.transport.abortConnection()

    def _refuse(self, refused: Refused, deaf: bool = False) -> None:
        """Answer with an error immediately, and hang up once the client has had time to read it.

        ``deaf``: do not even read what it sends meanwhile.
        """
        request, site, transport = self._request, self._site, self.transport
        name = request.name if request else NO_SUCH_PATH
        request_id = request.request_id if request else site.new_id()
        answer = refused.answer()
        site.note(self, name, answer.status, request_id, request)
        self._let_go()
        self._forget()
        transport.write(site.top(answer, _sized(answer), request_id, close=True) + answer.body)
        self._hang_up = site.reactor.callLater(LINGER, transport.abortConnection)
        half_close = getattr(transport, "loseWriteConnection", None)
        if half_close is None or ISSLTransport.providedBy(transport):
            transport.loseConnection()
        else:
            # After a full close, the kernel would answer bytes still in flight with a reset, and the client's kernel
            # might discard the answer (RFC 9112, section 9.6).
            half_close()
        if deaf:
            self._read_no_more()
