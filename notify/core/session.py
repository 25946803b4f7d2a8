"""One client's state machine: frames and events in, frames and closes out. No socket and no reactor in here.

    new --auth--> authenticating --ok--> open --(close, expiry, too many faults)--> closed
                        |
                        +--refused--> closed (4500)

Frames are processed strictly in order: while one waits for an answer, those behind it wait too. The wire
contract is docs/protocol.md, section 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from msgspec import UNSET
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify import topics
from notify.core.dispatcher import Joined
from notify.core.hub import Hub
from notify.core.timers import Timer
from notify.errors import Unauthorized, Unavailable
from notify.identity import Identity, Presence
from notify.interfaces import IConnection
from notify.messages import Position
from notify.topics import Topic
from notify.wire.frames import (
    Auth,
    AuthResult,
    ClientFrame,
    Error,
    InvalidFrame,
    Ok,
    Ping,
    Pong,
    PresenceList,
    PresenceQuery,
    Refresh,
    RequestId,
    ServerFrame,
    Since,
    Subscribe,
    Subscribed,
    Unsubscribe,
)

log = Logger()

NEW, AUTHENTICATING, OPEN, CLOSED = "new", "authenticating", "open", "closed"

#: frames that may wait in a session before its client is no longer read from
BACKLOG = 64

#: messages read and users listed for one client: at once, and on average. Frames that ask for more wait
ITEMS_AT_ONCE = 1000
ITEMS_PER_SECOND = 5000
#: seconds between looks at whether a client has taken what it asked for
REST = 0.25

#: an error a client is not told about: its own text goes to the log alone
INTERNAL = "something went wrong here; try again"


class Session:
    """The protocol of one connection. The transport calls ``opened``, then ``received`` and ``invalid``, then ``closed``."""

    __slots__ = (
        "_allowance",
        "_allowed_at",
        "_arrived",
        "_backlog",
        "_busy",
        "_chats",
        "_expiry",
        "_hub",
        "_invalid",
        "_owed",
        "_rest",
        "_throttled",
        "_timeout",
        "_working",
        "connection",
        "state",
    )

    def __init__(self, connection: IConnection, hub: Hub) -> None:
        self.connection = connection
        self.state = NEW
        self._hub = hub
        self._busy = False  # a frame waits for its answer
        self._working = False  # _work is on the stack
        self._arrived = False  # it was open once
        self._throttled = False
        self._backlog: deque[ClientFrame | InvalidFrame] | None = None  # for a turn, or while one waits
        self._chats: set[int] = set()
        self._invalid = 0
        self._allowance = float(hub.limits.frames_burst)
        self._allowed_at = hub.now()
        self._owed = 0.0  # items that the client's frames cost lately
        self._rest: Timer | None = None  # frames wait until those are worked off
        self._timeout: Timer | None = None
        self._expiry: Timer | None = None

    @property
    def identified(self) -> bool:
        """Whether the client has shown a good token."""
        return self.state == OPEN

    # --- from the transport ---------------------------------------------------------------------------------

    def opened(self) -> None:
        """The handshake is done."""
        hub = self._hub
        hub.sessions[self] = None
        hub.metrics.connections.inc()
        hub.metrics.accepted.inc()
        hub.arriving += 1
        if 0 < hub.limits.max_connections < len(hub.sessions) or 0 < hub.limits.max_arriving < hub.arriving:
            self._close(1013, hub.retry_after())
            return
        self._timeout = hub.wheel.after(hub.limits.auth_timeout, self._timed_out)

    def received(self, frames: list[ClientFrame]) -> None:
        """Frames came, in this order."""
        if self.state == CLOSED or (not frames and not self.spend()):
            return
        if self._backlog is None:
            self._backlog = deque(frames)
        else:
            self._backlog.extend(frames)
        self._work()

    def invalid(self, fault: InvalidFrame) -> None:
        """Something came that is no frame; it is answered in its turn."""
        if self.state == CLOSED:
            return
        if self._backlog is None:
            self._backlog = deque()
        self._backlog.append(fault)
        self._work()

    def spend(self) -> bool:
        """Whether one more frame is within the rate; called for those, too, that are not the session's own.

        Who goes on far over it is closed.
        """
        limits, now = self._hub.limits, self._hub.now()
        elapsed, self._allowed_at = max(0.0, now - self._allowed_at), now
        self._owed = max(0.0, self._owed - elapsed * ITEMS_PER_SECOND)
        if limits.frames_per_second == 0:
            return True
        earned = elapsed * limits.frames_per_second
        self._allowance = min(float(limits.frames_burst), self._allowance + earned) - 1
        if self._allowance < -limits.frames_burst and self.state != CLOSED:
            self._close(4504, "rate limit exceeded")
        return self._allowance >= 0

    def closed(self) -> None:
        """The connection is gone. Harmless when called again."""
        hub = self._hub
        if self not in hub.sessions:
            return
        del hub.sessions[self]
        if not self._arrived:
            hub.arriving -= 1
        hub.metrics.connections.dec()
        self._end()
        for chat_id in self._chats:
            hub.presence.unwatch(self.connection, self._topic(chat_id))
        hub.metrics.subscriptions.dec(len(self._chats))
        self._chats.clear()
        hub.dispatcher.forget(self.connection)

    # --- in order -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if self._working:
            return
        self._working = True
        while self._backlog and not self._busy and self._rest is None and self.state != CLOSED:
            frame = self._backlog.popleft()
            if isinstance(frame, InvalidFrame):
                self._refuse_invalid(frame)
            elif self._within_rate(frame):
                self._handle(frame)
        self._working = False
        if not self._backlog:
            self._backlog = None
        if self._throttled != (self._backlog is not None and len(self._backlog) > BACKLOG):
            self._throttled = not self._throttled
            self.connection.throttle(self._throttled)

    def _handle(self, frame: ClientFrame) -> None:
        if self.state != OPEN and type(frame) in _OPEN_ONLY:
            self._error("unauthorized", "authenticate first", frame.id)
            return
        done: Deferred[Any] | None = _HANDLERS[type(frame)](self, frame)
        if done is not None:
            self._busy = True
            done.addErrback(self._failed, frame.id)
            done.addBoth(self._go_on)

    def _go_on(self, _: object) -> None:
        self._busy = False
        self._work()

    def _failed(self, failure: Failure, id: RequestId | None) -> None:
        if self.state == CLOSED:
            return
        if isinstance(failure.value, Unavailable):
            self._error("unavailable", "not possible right now", id, retry=True)
        else:
            log.failure("a request of {connection} failed", failure, connection=self.connection.id)
            self._error("internal", INTERNAL, id, retry=True)

    def _within_rate(self, frame: ClientFrame) -> bool:
        if self.spend():
            return True
        if self.state != CLOSED:
            most = self._hub.limits.frames_per_second
            self._error("rate_limited", f"more than {most} frames a second", frame.id, retry=True)
        return False

    def _owe(self, items: int) -> None:
        """A small frame cost so many messages or users: past the bound the next frames wait."""
        self._owed += items
        if self._owed > ITEMS_AT_ONCE and self._rest is None and self.state != CLOSED:
            self._rest = self._hub.wheel.after((self._owed - ITEMS_AT_ONCE) / ITEMS_PER_SECOND, self._rested)

    def _rested(self) -> None:
        self._rest = None
        if self.connection.queued:
            # It has not even taken what it asked for before.
            self._rest = self._hub.wheel.after(REST, self._rested)
        else:
            self._work()

    def _refuse_invalid(self, fault: InvalidFrame) -> None:
        self._invalid += 1
        self._error("invalid_message", str(fault), fault.id)
        if self._invalid >= self._hub.limits.max_invalid:
            self._close(4502, "too many invalid messages")

    # --- auth -----------------------------------------------------------------------------------------------

    def _auth(self, frame: Auth) -> Deferred[Any] | None:
        if self.state != NEW:
            self._error("already_authenticated", "use refresh for a new token", frame.id)
            return None
        self.state = AUTHENTICATING
        asked = self._hub.authenticator.authenticate(frame.token, self.connection.peer)
        asked.addCallbacks(self._admit, self._refuse, (frame,), {}, (frame,))
        asked.addErrback(self._cannot_admit, frame)
        return asked

    def _admit(self, identity: Identity, frame: Auth) -> Deferred[None] | None:
        hub, connection = self._hub, self.connection
        if self.state == CLOSED:
            return None
        if identity.expires_at is not None and identity.expires_at <= hub.now():
            self._deny(frame)
            return None
        mine = topics.user(identity.workspace_id, identity.user_id)
        if 0 < hub.limits.max_connections_per_user <= len(hub.registry.members(mine)):
            self._close(1013, hub.retry_after())
            return None
        connection.identity = identity
        joining = hub.dispatcher.subscribe(connection, mine, _position(frame.since))
        return joining.addCallback(self._admitted, identity, frame)

    def _admitted(self, joined: Joined, identity: Identity, frame: Auth) -> None:
        hub = self._hub
        if self.state == CLOSED:
            return
        self.state = OPEN
        self._arrived = True
        hub.arriving -= 1
        hub.metrics.auth.labels("ok").inc()
        hub.wheel.cancel(self._timeout)
        self._timeout = None
        self._expire_at(identity)
        asked = frame.since is not None
        result = AuthResult(
            success=True,
            user_id=identity.user_id,
            connection_id=self.connection.id,
            expires_at=_expiry(identity),
            ping_interval=int(hub.limits.ping_interval),
            epoch=joined.position.epoch if asked else UNSET,
            seq=joined.position.seq if asked else UNSET,
            recovered=joined.recovered if asked else UNSET,
            id=_given(frame.id),
        )
        self._send(result, joined.bodies)
        self._owe(joined.read)

    def _refuse(self, failure: Failure, frame: Auth) -> None:
        if not isinstance(failure.value, Unauthorized):
            failure.raiseException()
        if self.state != CLOSED:
            log.info(
                "{connection} from {peer} is refused: {reason}",
                connection=self.connection.id,
                peer=self.connection.peer.host,
                reason=str(failure.value),
            )
            self._deny(frame)

    def _deny(self, frame: Auth) -> None:
        self._hub.metrics.auth.labels("refused").inc()
        self._send(AuthResult(success=False, user_id=None, id=_given(frame.id)))
        self._close(4500, "authentication failed")

    def _cannot_admit(self, failure: Failure, frame: Auth) -> None:
        """Nothing is known against the client: it may come back, to another node perhaps."""
        if self.state == CLOSED:
            return
        self._hub.metrics.auth.labels("unavailable").inc()
        self._failed(failure, frame.id)
        self._close(1013, self._hub.retry_after())

    def _timed_out(self) -> None:
        if self.state == NEW:
            self._hub.metrics.auth.labels("timeout").inc()
            self._close(4501, "authentication timeout")
        elif self.state == AUTHENTICATING:
            self._hub.metrics.auth.labels("unavailable").inc()
            self._close(1013, self._hub.retry_after())

    def _refresh(self, frame: Refresh) -> Deferred[Any]:
        asked = self._hub.authenticator.authenticate(frame.token, self.connection.peer)
        asked.addCallbacks(self._refreshed, self._not_refreshed, (frame,))
        return asked

    def _refreshed(self, identity: Identity, frame: Refresh) -> None:
        current = self.connection.identity
        if self.state == CLOSED:
            return
        expired = identity.expires_at is not None and identity.expires_at <= self._hub.now()
        if current is None or expired or not current.same_user(identity):
            self._close(4500, "authentication failed")
            return
        self.connection.identity = identity
        self._expire_at(identity)
        if frame.id is not None:
            self._send(Ok(frame.id, _expiry(identity)))
        if identity.chats is not None:
            for chat_id in self._chats - identity.chats:
                self._leave(chat_id)
                self._error(
                    "forbidden", "the new token does not name this chat: unsubscribed", None, chat_id=chat_id
                )

    def _not_refreshed(self, failure: Failure) -> None:
        if not isinstance(failure.value, Unauthorized):
            failure.raiseException()
        if self.state != CLOSED:
            self._close(4500, "authentication failed")

    def _expire_at(self, identity: Identity) -> None:
        wheel = self._hub.wheel
        wheel.cancel(self._expiry)
        self._expiry = None
        if identity.expires_at is not None:
            self._expiry = wheel.after(max(0.0, identity.expires_at - self._hub.now()), self._expired)

    def _expired(self) -> None:
        self._close(4002, "token expired")

    # --- chats ----------------------------------------------------------------------------------------------

    def _topic(self, chat_id: int) -> Topic:
        return topics.chat(self._identity.workspace_id, chat_id)

    @property
    def _identity(self) -> Identity:
        identity: Identity | None = self.connection.identity
        if identity is None:
            raise RuntimeError("only an authenticated session gets here")
        return identity

    def _subscribe(self, frame: Subscribe) -> Deferred[Any] | None:
        limit = self._hub.limits.max_subscriptions
        if frame.chat_id not in self._chats and 0 < limit <= len(self._chats):
            self._error("too_many_subscriptions", f"at most {limit} chats a connection", frame.id)
            return None
        joining = self._authorized(frame.chat_id).addCallback(self._join, frame)
        return joining.addErrback(self._not_joined, frame)

    def _authorized(self, chat_id: int) -> Deferred[bool]:
        identity = self._identity
        asked: Deferred[bool] = self._hub.authenticator.authorize(identity, self._topic(chat_id))
        return asked.addCallback(lambda allowed: allowed is True)

    def _join(self, allowed: bool, frame: Subscribe) -> Deferred[None] | None:
        if self.state == CLOSED:
            return None
        if not allowed:
            self._leave(frame.chat_id)
            self._error("forbidden", "no such chat, or not yours to see", frame.id)
            return None
        topic, resume = self._topic(frame.chat_id), _position(frame.since)
        return self._hub.dispatcher.subscribe(self.connection, topic, resume).addCallback(
            self._joined, frame, topic
        )

    def _joined(self, joined: Joined, frame: Subscribe, topic: Topic) -> None:
        if self.state == CLOSED:
            return
        if frame.chat_id not in self._chats:
            self._chats.add(frame.chat_id)
            self._hub.metrics.subscriptions.inc()
        if frame.id is not None or frame.since is not None:
            position = joined.position
            answer = Subscribed(
                frame.chat_id, position.epoch, position.seq, joined.recovered, _given(frame.id)
            )
            self._send(answer, joined.bodies)
        self._owe(joined.read)
        if frame.watch_presence:
            self._hub.presence.watch(self.connection, topic)
        else:
            self._hub.presence.unwatch(self.connection, topic)

    def _not_joined(self, failure: Failure, frame: Subscribe) -> Failure:
        # Also where it was subscribed before: an error always means that it is not.
        if self.state != CLOSED:
            self._leave(frame.chat_id)
        return failure

    def _unsubscribe(self, frame: Unsubscribe) -> None:
        self._leave(frame.chat_id)
        if frame.id is not None:
            self._send(Ok(frame.id))

    def _leave(self, chat_id: int) -> None:
        topic = self._topic(chat_id)
        self._hub.dispatcher.leave(self.connection, topic)
        self._hub.presence.unwatch(self.connection, topic)
        if chat_id in self._chats:
            self._chats.remove(chat_id)
            self._hub.metrics.subscriptions.dec()

    def _presence(self, frame: PresenceQuery) -> Deferred[Any]:
        return self._authorized(frame.chat_id).addCallback(self._ask_presence, frame)

    def _ask_presence(self, allowed: bool, frame: PresenceQuery) -> Deferred[None] | None:
        if self.state == CLOSED:
            return None
        if not allowed:
            self._error("forbidden", "no such chat, or not yours to see", frame.id)
            return None
        asked: Deferred[list[Presence]] = self._hub.registry.presence(self._topic(frame.chat_id))
        return asked.addCallback(self._tell_presence, frame)

    def _tell_presence(self, users: list[Presence], frame: PresenceQuery) -> None:
        self._send(PresenceList(frame.chat_id, users, _given(frame.id)))
        self._owe(len(users))

    def _ping(self, frame: Ping) -> None:
        self._send(Pong(_given(frame.id)))

    # --- out ------------------------------------------------------------------------------------------------

    def _send(self, frame: ServerFrame, bodies: list[bytes] | None = None) -> None:
        encoding = self.connection.encoding
        self.connection.write(encoding.pack([encoding.encode(frame), *(bodies or ())]))

    def _error(
        self, code: str, message: str, id: RequestId | None, retry: bool = False, chat_id: int | None = None
    ) -> None:
        self._hub.metrics.errors.labels(code).inc()
        self._send(Error(code, message, _given(id), retry or UNSET, _given(chat_id)))

    def _close(self, code: int, reason: str) -> None:
        self._end()
        self.connection.close(code, reason)

    def _end(self) -> None:
        self.state = CLOSED
        self._backlog = None
        self._hub.wheel.cancel(self._timeout)
        self._hub.wheel.cancel(self._expiry)
        self._hub.wheel.cancel(self._rest)


def _position(since: Since | None) -> Position | None:
    return None if since is None else Position(since.epoch, since.seq)


def _expiry(identity: Identity) -> int | None:
    return None if identity.expires_at is None else int(identity.expires_at)


def _given(value: Any) -> Any:
    return UNSET if value is None else value


_HANDLERS: dict[type, Callable[[Session, Any], Deferred[Any] | None]] = {
    Auth: Session._auth,
    Refresh: Session._refresh,
    Subscribe: Session._subscribe,
    Unsubscribe: Session._unsubscribe,
    PresenceQuery: Session._presence,
    Ping: Session._ping,
}

_OPEN_ONLY = (Refresh, Subscribe, Unsubscribe, PresenceQuery)
