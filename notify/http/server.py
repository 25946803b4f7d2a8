"""A hardened HTTP/1.1 server: exact paths, bounded requests, deadlines, every error as JSON.

A request is judged once its headers are complete, before any of its body is accepted; a body is bounded however it is
sent. No answer is HTML, names a software version or shows a traceback. What a connection may do:
:mod:`notify.http.connection`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from math import inf
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.http.answers import Answer, Stream
from notify.http.connection import Connection
from notify.http.keys import ApiKeys
from notify.http.request import Request, Route
from notify.observe.metrics import Metrics

__all__ = ["Route", "Site"]

_log = Logger()

#: the methods that log lines name; any other was made up by the client, or is a body that it framed wrong
_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))

#: for request ids, which are not secret
_random = Random()  # noqa: S311

_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Site(Factory):
    """Serves ``routes`` by exact path.

    - ``keys`` guard the secure routes and every path under ``/v1``. None: ``/v1`` is not special, and nobody may use
      a secure route.
    - ``timeout()`` is how long a connection may be idle, and ``answer_timeout`` how long a handler may take, in
      seconds.
    - ``new_id`` makes request ids.
    - ``most_ahead``: a client is cut off if, more often than this in a row, its next request had arrived before the
      previous one was answered.
    - ``logs()`` tells whether anybody reads the log lines of answers, which cost as much as the answers.
    - ``wind_up()`` ends what goes on after answers, and fires when it has ended.
    """

    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        routes: Mapping[bytes, Route],
        keys: ApiKeys | None,
        metrics: Metrics,
        timeout: Callable[[], float] = lambda: 60.0,
        answer_timeout: float = 30.0,
        new_id: Callable[[], str] = lambda: f"{_random.getrandbits(64):016x}",
        most_ahead: float = inf,
        logs: Callable[[], bool] = lambda: True,
        wind_up: Callable[[], Deferred[None]] = lambda: succeed(None),
    ) -> None:
        self.reactor: Any = reactor
        self.routes, self.keys, self.metrics = routes, keys, metrics
        self.patience = timeout
        self.answer_timeout = answer_timeout
        self.new_id = new_id
        self.most_ahead = most_ahead
        self._logs = logs
        self._wind_up = wind_up
        self._under_way = 0
        self._waiting: list[Deferred[None]] = []
        self._due: list[Connection] = []
        self._counts: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._second, self._date = 0, b""

    def buildProtocol(self, addr: Any) -> Connection:
        """A client connects."""
        return Connection(self)

    def soon(self, connection: Connection) -> None:
        """Let a connection continue in the next turn of the reactor."""
        if not self._due:
            self.reactor.callLater(0, self._turn)
        self._due.append(connection)

    def _turn(self) -> None:
        due, self._due = self._due, []
        for connection in due:
            connection.go_on()

    def begun(self) -> None:
        """A handler has started."""
        self._under_way += 1

    def ended(self) -> None:
        """A handler's request has been answered, or its client is gone."""
        self._under_way -= 1
        if not self._under_way:
            waiting, self._waiting = self._waiting, []
            for finished in waiting:
                finished.callback(None)

    def settled(self) -> Deferred[None]:
        """Fires once every request in flight is answered, and nothing goes on after the answers; for a clean stop."""
        return self._wind_up().addCallback(lambda _: self._answered())

    def _answered(self) -> Deferred[None]:
        finished: Deferred[None] = Deferred()
        if self._under_way:
            self._waiting.append(finished)
        else:
            finished.callback(None)
        return finished

    def top(self, answer: Answer | Stream, framing: bytes, request_id: str, close: bool) -> bytes:
        """The status line and headers of an answer. ``framing`` is the header line that tells where it ends, or empty."""
        now = int(time.time())
        if now != self._second:
            self._second, self._date = now, formatdate(now, usegmt=True).encode("ascii")
        own = answer.headers
        return (
            b"%bDate: %b\r\nContent-Type: %b\r\n%b%bX-Content-Type-Options: nosniff\r\nX-Request-Id: %b\r\n%b%b\r\n"
            % (
                _STATUS[answer.status],
                self._date,
                answer.content_type,
                framing,
                b"" if b"Cache-Control" in own else b"Cache-Control: no-store\r\n",
                request_id.encode("ascii"),
                b"".join([b"%b: %b\r\n" % each for each in own.items()]) if own else b"",
                b"Connection: close\r\n" if close else b"",
            )
        )

    def note(
        self, connection: Connection, name: str, status: int, request_id: str, request: Request | None
    ) -> None:
        """Count and log an answer. The line has no query, header or body, and no path that a client made up."""
        seconds = self.reactor.seconds() - request.received if request else 0.0
        counts = self._counts.get((name, status))
        if counts is None:
            metrics = self.metrics
            counts = metrics.http_requests.labels(name, str(status)), metrics.http_seconds.labels(name)
            self._counts[name, status] = counts
        counts[0].inc()
        counts[1].observe(seconds)
        if not self._logs():
            return
        _log.debug(
            "{method} {path} {status} in {seconds:.4f} s, request {request_id}",
            method=request.method.decode("ascii")
            if request and request.route and request.method in _METHODS
            else "-",
            path=name,
            status=int(status),
            seconds=seconds,
            request_id=request_id,
            peer=connection.peer,
        )

    def hung_up(self, reason: str, peer: str) -> None:
        """A client was cut off for its behaviour."""
        self.metrics.http_hangups.labels(reason).inc()
        _log.info("Hung up on {peer}: {why}", peer=peer, why=_WHY[reason])

    def log_failure(self, request: Request, failure: Failure) -> None:
        """A handler failed because of a fault in the server."""
        _log.failure(
            "Failed to answer {path}, request {request_id}",
            failure=failure,
            path=request.name,
            request_id=request.request_id,
        )


_WHY = {
    "ahead": "it sends requests without waiting for the answers",
    "slow": "its whole request did not arrive in time",
    "unread": "it does not read its answers",
}
