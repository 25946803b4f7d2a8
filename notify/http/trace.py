"""``GET /v1/trace``: follows what happens with one user's clients, or in one chat, on all nodes.

The answer is a stream of server-sent events (WHATWG HTML, section 9.2). Each node keeps what it sees until it is
asked, so all nodes are asked several times a second. Each event is sent once; those of one round are sorted by time.
A client that does not keep up delays the next question; meanwhile the nodes keep what they can and count the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from secrets import token_hex
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from notify.core.live import ApiKey
from notify.core.witness import Collected, Seen, TraceOrder
from notify.http.answers import Refused, Sink, Stream, bad_request, encode
from notify.http.cluster import Cluster, Told
from notify.http.keys import forbidden, permit
from notify.http.reads import identifier, integer
from notify.http.request import Request
from notify.observe import logging
from notify.wire import addresses

#: the longest duration of a trace in seconds, and the default
LONGEST, USUAL = 600, 60
#: concurrent traces through one node, and how many of them may be by keys limited to some workspaces, so that tenants
#: leave some for the operator
MOST, MOST_OF_TENANTS = 4, 2
#: seconds between two questions to the nodes
MOMENT = 0.3
#: seconds without an event after which a comment keeps the connection alive
SILENCE = 5.0

audit = Logger(logging.AUDIT)


class TraceReader:
    """Starts traces, of which a few may run at once.

    ``stands(key)`` tells whether an API key is still valid, with the same rights. ``reactor`` is the clock; ``now``
    returns Unix time.
    """

    def __init__(
        self,
        cluster: Cluster,
        stands: Callable[[ApiKey], bool],
        reactor: IReactorTime,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._cluster, self._stands, self._reactor, self._now = cluster, stands, reactor, now
        self._running = self._of_tenants = 0

    def __call__(self, request: Request) -> Stream:
        """Raises :class:`~notify.http.answers.Refused`."""
        order, seconds = self._read(request)
        tenant = not order.everywhere
        if self._running >= MOST or (tenant and self._of_tenants >= MOST_OF_TENANTS):
            raise Refused(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too_many_traces",
                "too many traces are running through this node: end one, or ask another node",
                {b"Retry-After": b"%d" % USUAL},
            )
        audit.info(
            "API key {key} from {peer}, request {request}: trace {what} {id} of workspace {workspace} for {seconds} s",
            key=request.key.name,
            peer=request.peer,
            request=request.request_id,
            what="chat" if order.user_id is None else "user",
            id=order.chat_id if order.user_id is None else order.user_id,
            workspace=order.workspace_id,
            seconds=seconds,
        )

        def begin(sink: Sink) -> Following:
            self._running += 1
            self._of_tenants += tenant
            following = Following(
                self._cluster,
                lambda: self._stands(request.key),
                self._reactor,
                self._now,
                order,
                seconds,
                sink,
                lambda: self._ended(tenant),
            )
            following.go_on()
            return following

        return Stream(begin, content_type=b"text/event-stream")

    def _ended(self, tenant: bool) -> None:
        self._running -= 1
        self._of_tenants -= tenant

    @staticmethod
    def _read(request: Request) -> tuple[TraceOrder, int]:
        parameters = request.parameters(["workspace_id"], ["user_id", "chat_id", "peer", "seconds"])
        workspace_id, key = identifier(parameters, "workspace_id"), request.key
        permit(key, workspace_id)
        if ("user_id" in parameters) == ("chat_id" in parameters):
            raise bad_request("exactly one of the query parameters 'user_id' and 'chat_id' is required")
        user_id, chat_id = (
            identifier(parameters, name) if name in parameters else None for name in ("user_id", "chat_id")
        )
        seconds = integer(parameters, "seconds", 1, LONGEST, USUAL)
        everywhere, peer = key.workspaces is None, parameters.get("peer", "")
        if peer:
            if not everywhere:
                raise forbidden(
                    f"the API key '{key.name}' is for some workspaces only, and addresses belong to none of them; leave out 'peer'"
                )
            if addresses.parse(peer) is None:
                raise bad_request("the query parameter 'peer' must be an IP address")
        return TraceOrder(token_hex(8), workspace_id, user_id, chat_id, everywhere, peer), seconds


class _Reached(Struct, frozen=True):
    """The nodes that did not answer, and why others cannot be reached."""

    missing: tuple[str, ...] = ()
    detail: str = ""


@implementer(IPushProducer)
class Following:
    """One trace in progress: asks all nodes, writes what is new, waits a moment, and repeats while ``allowed()``."""

    def __init__(
        self,
        cluster: Cluster,
        allowed: Callable[[], bool],
        reactor: IReactorTime,
        now: Callable[[], float],
        order: TraceOrder,
        seconds: float,
        sink: Sink,
        ended: Callable[[], None],
    ) -> None:
        self._cluster, self._reactor, self._now, self._order = cluster, reactor, now, order
        self._allowed, self._sink, self._ended = allowed, sink, ended
        self._ends = reactor.seconds() + seconds
        self._wrote = reactor.seconds()
        self._after: dict[str, int] = {}
        self._reached = _Reached()
        self._busy: frozenset[str] = frozenset()
        self._asking = self._paused = self._over = False
        self._later: Any = None

    def go_on(self) -> None:
        """Ask the nodes, unless a question is in flight or the client takes nothing."""
        self._later = None
        if self._asking or self._paused or self._over:
            return
        self._asking = True
        asked = self._cluster.ask("trace", replace(self._order, after=self._after), Collected)
        asked.addCallback(self._heard)

    def _heard(self, told: Told[Collected]) -> None:
        self._asking = False
        if self._over:
            return
        if not self._allowed():
            self._end("its API key is no longer valid, or no longer valid for this")
            return
        events = self._news(told)
        if events:
            self._write(b"".join(b"data: %b\n\n" % encode(event) for event in events))
        elif self._reactor.seconds() - self._wrote >= SILENCE:
            self._write(b": nothing happens\n\n")
        if self._reactor.seconds() >= self._ends:
            self._end("its time is over")
        elif not self._paused:
            self._later = self._reactor.callLater(MOMENT, self.go_on)

    def _news(self, told: Told[Collected]) -> list[Seen]:
        seen = [event for _, collected in told.answers for event in collected.events]
        seen.sort(key=lambda event: event.at)
        now, events, after = self._now(), list(seen), {}
        for node, collected in told.answers:
            if collected.busy:
                if node not in self._busy:
                    events.append(Seen(now, "busy", node=node, reason="it already has too many traces"))
            else:
                after[collected.life] = collected.last
            if collected.left_out:
                events.append(Seen(now, "left_out", node=node, count=collected.left_out))
        self._busy = frozenset(node for node, collected in told.answers if collected.busy)
        # A missing node continues from where it was.
        self._after = {**(self._after if told.reached.missing else {}), **after}
        reached = _Reached(tuple(told.reached.missing), told.reached.detail)
        if reached != self._reached:
            events += [
                Seen(now, "missing", node=node, reason="it does not answer, so its events are missing")
                for node in reached.missing
                if node not in self._reached.missing
            ]
            answered = {node for node, _ in told.answers}
            events += [Seen(now, "back", node=node) for node in self._reached.missing if node in answered]
            if reached.detail and reached.detail != self._reached.detail:
                events.append(Seen(now, "alone", reason=reached.detail))
            self._reached = reached
        return events

    def _end(self, reason: str) -> None:
        self._write(b"data: %b\n\n" % encode(Seen(self._now(), "end", reason=reason)))
        self._stop()
        self._sink.finish()

    def _write(self, data: bytes) -> None:
        self._wrote = self._reactor.seconds()
        self._sink.write(data)

    def _stop(self) -> None:
        if self._over:
            return
        self._over = True
        if self._later is not None and self._later.active():
            self._later.cancel()
        self._ended()
        # Nodes that do not receive this end the trace by themselves.
        farewell: Deferred[Any] = self._cluster.ask("trace", replace(self._order, end=True), Collected)
        farewell.addErrback(lambda _: None)

    def pauseProducing(self) -> None:
        """The client does not take what was written."""
        self._paused = True
        if self._later is not None and self._later.active():
            self._later.cancel()
        self._later = None

    def resumeProducing(self) -> None:
        """The client has taken everything."""
        self._paused = False
        self.go_on()

    def stopProducing(self) -> None:
        """The client is gone."""
        self._stop()
