"""One client's state machine: frames and events in, frames and closes out. It uses no socket and no reactor.

    new --auth--> authenticating --ok--> open --(close, expiry, too many faults)--> closed
                        |
                        +--refused--> closed (4500)

Frames are processed strictly in order: while one waits for an answer, so do those behind it. What they ask for is
done in :mod:`notify.core.authentication` and :mod:`notify.core.chats`. The wire contract is docs/protocol.md, section
1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from msgspec import UNSET
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.core import access, authentication, chats, signalling
from notify.core.allowance import Allowance
from notify.core.client import AUTHENTICATING, CLOSED, NEW, OPEN, given
from notify.core.hub import Hub
from notify.core.timers import Timer
from notify.errors import Unavailable
from notify.ids import Id
from notify.interfaces import IConnection
from notify.observe.logging import clients
from notify.wire.frames import (
    Auth,
    ClientFrame,
    Error,
    HistoryQuery,
    InvalidFrame,
    Ping,
    Pong,
    PresenceQuery,
    Refresh,
    RequestId,
    ServerFrame,
    Signal,
    Subscribe,
    Unsubscribe,
)

log = Logger()

#: frames that may wait in a session; past that, the server stops reading from its client
BACKLOG = 64

#: seconds between checks whether a client has taken what it asked for
REST = 0.25

#: sent in place of an internal error, whose own text goes to the log only
INTERNAL = "something went wrong here; try again"


class Session:
    """The protocol of one connection, as a :class:`~notify.core.client.Client` for the code that answers its frames.

    The transport calls ``opened``, then ``received`` and ``invalid``, then ``closed``.
    """

    __slots__ = (
        "_allowance",
        "_backlog",
        "_busy",
        "_deadline",
        "_invalid",
        "_rest",
        "_review",
        "_throttled",
        "chats",
        "connection",
        "hub",
        "joining",
        "state",
    )

    def __init__(self, connection: IConnection, hub: Hub) -> None:
        self.connection = connection
        self.hub = hub
        self.state = NEW
        self.chats: set[Id] = set()
        self.joining: Id | None = None
        self._allowance = Allowance(hub.live.now.limits, hub.wheel.seconds())
        self._backlog: deque[ClientFrame | InvalidFrame] | None = None  # for a turn, or while one waits
        self._busy = False  # _work is on the stack, or a frame waits for its answer
        self._throttled = False
        self._invalid = 0
        self._rest: Timer | None = None  # frames wait until the cost of earlier ones is worked off
        self._deadline: Timer | None = None
        self._review: access.Review | None = None  # asks about its chats again

    # --- from the transport ---------------------------------------------------------------------------------

    def opened(self, arrived: Callable[[], None] | None = None) -> None:
        """The handshake is complete. ``arrived`` is called once the client has presented a valid token."""
        if self.hub.enter(self.connection, arrived):
            self.expect(self.hub.live.now.limits.auth_timeout)
        else:
            clients.debug(
                "{connection} from {peer} is sent away: too many clients are on their way in",
                connection=self.connection.id,
                peer=self.connection.peer.host,
            )
            witness = self.hub.witness
            if witness is not None:
                peer = self.connection.peer
                reason = "limits.max_arriving is reached by those who have shown no token yet"
                witness.turned_away(peer.host, reason, "1013", peer.origin, self.connection.id)
            self.close(1013, self.hub.retry_after())

    def received(self, frames: list[ClientFrame]) -> None:
        """Frames have arrived, in this order."""
        if self.state == CLOSED or (not frames and not self.spend()):
            return
        if self._backlog is None:
            self._backlog = deque(frames)
        else:
            self._backlog.extend(frames)
        self._work()

    def invalid(self, fault: InvalidFrame) -> None:
        """Something that is not a valid frame has arrived; it is answered in its turn."""
        if self.state == CLOSED:
            return
        if self._backlog is None:
            self._backlog = deque()
        self._backlog.append(fault)
        self._work()

    def spend(self, frames: int = 1) -> bool:
        """Whether this many more frames are within the rate; also called for frames that the session does not handle.

        A client that stays far over the rate is closed.
        """
        limits = self.hub.live.now.limits
        if self._allowance.spend(limits, self.hub.wheel.seconds(), frames):
            return True
        if self._allowance.flooded(limits) and self.state != CLOSED:
            self.close(4504, "rate limit exceeded")
        return False

    def closed(self) -> None:
        """The connection is gone. A second call does nothing."""
        if self.hub.leave(self.connection):
            self._end()
            chats.forget(self)

    # --- in order -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if not self._busy:
            self._busy = True
            while self._backlog and self._rest is None and self.state != CLOSED:
                frame = self._backlog.popleft()
                if isinstance(frame, InvalidFrame):
                    self.refuse(frame)
                elif not self.spend():
                    self._refuse_over_rate(frame)
                elif self._waits_for(frame):
                    break
            else:
                self._busy = False
        if not self._backlog:
            self._backlog = None
        if self._throttled != (self._backlog is not None and len(self._backlog) > BACKLOG):
            self._throttled = not self._throttled
            self.connection.throttle(self._throttled)

    def _waits_for(self, frame: ClientFrame) -> bool:
        """Have a frame answered. Returns whether the answer is still pending."""
        if self.state != OPEN and type(frame) in _OPEN_ONLY:
            self.error("unauthorized", "authenticate first", frame.id)
            return False
        answering = _ANSWERS[type(frame)](self, frame)
        if answering is None:
            return False
        answering.addErrback(self.failed, frame.id)
        if answering.called and not answering.paused:
            return False
        answering.addBoth(self._go_on)
        return True

    def _go_on(self, _: object) -> None:
        self._busy = False
        self._work()

    def _refuse_over_rate(self, frame: ClientFrame) -> None:
        if self.state != CLOSED:
            most = self.hub.live.now.limits.frames_per_second
            self.error("rate_limited", f"more than {most} frames a second", frame.id, retry=True)

    def _ping(self, frame: Ping) -> None:
        self.send(Pong(given(frame.id)))

    # --- for the code that answers frames: see Client -------------------------------------------------------

    def send(self, frame: ServerFrame, bodies: list[bytes] | None = None) -> None:
        """Send a frame, directly followed by frames that are already encoded."""
        encoding = self.connection.encoding
        body, witness = encoding.encode(frame), self.hub.witness
        if witness is not None:
            witness.sent(self.connection, frame, len(body), len(bodies or ()))
        self.connection.write(encoding.pack([body, *(bodies or ())]))

    def error(
        self, code: str, message: str, id: RequestId | None, retry: bool = False, chat_id: Id | None = None
    ) -> None:
        """Send an error (docs/protocol.md, Errors)."""
        self.hub.metrics.errors.labels(code).inc()
        self.send(Error(code, message, given(id), retry or UNSET, given(chat_id)))

    def refuse(self, fault: InvalidFrame) -> None:
        """Send the error for an invalid frame. A client that sends too many is closed."""
        self._invalid += 1
        self.error("invalid_message", str(fault), fault.id)
        if self._invalid >= self.hub.live.now.limits.max_invalid:
            self.close(4502, "too many invalid messages")

    def failed(self, failure: Failure, id: RequestId | None) -> None:
        """Send the error for a failure; a fault of the server goes to the log."""
        if self.state == CLOSED:
            return
        if isinstance(failure.value, Unavailable):
            self.error("unavailable", "not possible right now", id, retry=True)
        else:
            log.failure("a request of {connection} failed", failure, connection=self.connection.id)
            self.error("internal", INTERNAL, id, retry=True)

    def owe(self, items: int) -> None:
        """Charge for the messages or users that a small frame cost: past the bound the next frames wait."""
        seconds = self._allowance.owe(items)
        if seconds and self._rest is None and self.state != CLOSED:
            self._rest = self.hub.wheel.after(seconds, self._rested)

    def settled(self, chat_id: Id) -> None:
        """The client has just joined or left a chat. While it is in one, the authenticator is asked about it again."""
        self.hub.subscribers[self.connection] = self
        if self._review is None and access.rechecks(self.hub.live.now.authenticator):
            self._review = access.Review(self)
        if self._review is not None:
            self._review.settled(chat_id)

    def bar(self, chat_id: Id) -> bool:
        """See :class:`~notify.core.hub.Subscriber`."""
        return chats.bar(self, chat_id)

    def renew(self) -> None:
        """Another authenticator is in force."""
        if self._review is None and access.rechecks(self.hub.live.now.authenticator):
            self._review = access.Review(self)
        if self._review is not None:
            self._review.renew()

    def review(self) -> None:
        """Ask about its chats again, because it has presented a new token."""
        if self.chats:
            self._review = self._review or access.Review(self)
            self._review.now()

    def _rested(self) -> None:
        self._rest = None
        if self.connection.queued:
            # It has not even taken what it asked for before.
            self._rest = self.hub.wheel.after(REST, self._rested)
        else:
            self._work()

    # --- the end --------------------------------------------------------------------------------------------

    def expect(self, seconds: float | None) -> None:
        """Close it unless it moves on within this time: first to a valid token, then to a new one before that expires."""
        wheel = self.hub.wheel
        wheel.cancel(self._deadline)
        self._deadline = None if seconds is None else wheel.after(seconds, self._overdue)

    def _overdue(self) -> None:
        if self.state == OPEN:
            self.close(4002, "token expired")
        elif self.state == NEW:
            self.hub.metrics.auth.labels("timeout").inc()
            authentication.tell(self, "timeout", "it sent no token within limits.auth_timeout")
            self.close(4501, "authentication timeout")
        elif self.state == AUTHENTICATING:
            self.hub.metrics.auth.labels("unavailable").inc()
            authentication.tell(
                self, "unavailable", "the authenticator did not answer within limits.auth_timeout"
            )
            self.close(1013, self.hub.retry_after())

    def close(self, code: int, reason: str) -> None:
        """Close the connection."""
        self._end()
        self.connection.close(code, reason)

    def _end(self) -> None:
        self.state = CLOSED
        self._backlog = None
        self.hub.wheel.cancel(self._deadline)
        self.hub.wheel.cancel(self._rest)
        self.hub.subscribers.pop(self.connection, None)
        if self._review is not None:
            self._review.stop()
            self._review = None


_ANSWERS: dict[type, Callable[[Session, Any], Deferred[Any] | None]] = {
    Auth: authentication.auth,
    Refresh: authentication.refresh,
    Subscribe: chats.subscribe,
    Unsubscribe: chats.unsubscribe,
    PresenceQuery: chats.presence,
    HistoryQuery: chats.history,
    Signal: signalling.signal,
    Ping: Session._ping,
}

_OPEN_ONLY = (Refresh, Subscribe, Unsubscribe, PresenceQuery, HistoryQuery, Signal)
