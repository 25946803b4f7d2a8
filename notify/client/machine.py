"""The client's state machine: events in, actions out. It uses no socket, no clock and no source of randomness itself.

docs/client.md specifies the behaviour. Every method that reports an event takes ``now``, the seconds of any monotonic
clock, and appends to :attr:`Machine.actions`; the front end carries those out and empties the list. After each call
:meth:`Machine.deadline` says when :meth:`Machine.tick` is due. The test scenarios run against both this class and its
JavaScript counterpart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from notify.client.actions import (
    Action,
    Close,
    ErrorReceived,
    Failed,
    Frame,
    Id,
    Open,
    Position,
    Settings,
    StateChanged,
)
from notify.client.parts.attempts import AUTH_FAILED, AUTH_TIMEOUT, TOKEN_EXPIRED, Attempts, advice
from notify.client.parts.commands import Commands
from notify.client.parts.credentials import Credentials
from notify.client.parts.heartbeat import Heartbeat
from notify.client.parts.requests import HISTORY, Refusal, Requests, positioned
from notify.client.parts.topics import KINDS, Topics

#: the close codes that the client itself uses
CLOSE_DONE, CLOSE_GAP, CLOSE_DEAD = 1000, 3000, 3001


class Machine:
    """One client. ``random`` returns numbers in [0, 1), ``unix`` the Unix time in seconds.

    States: ``idle``, ``connecting``, ``authenticating``, ``connected``, ``waiting``, ``closed``. The machine keeps
    the state of the connection and passes events on to the modules in ``parts`` that they concern.
    """

    def __init__(self, settings: Settings, random: Callable[[], float], unix: Callable[[], float]) -> None:
        self.settings = settings
        self.state = "idle"
        self.actions: list[Action] = []
        self._wake: float | None = None  # when the present state times out
        self._open = False  # a connection is open, or is being opened
        self._elsewhere = False  # the next connection needs a new client_id
        self._attempts = Attempts(settings, random)
        self._requests = Requests(settings, self._do)
        self._heartbeat = Heartbeat(settings, self._requests)
        self._credentials = Credentials(settings, random, unix, self._requests, self._do)
        self._commands = Commands(settings, self._requests, self._do)
        self.topics = Topics(settings, random, self._requests, self._do)

    # --- what the application does --------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Connect, and stay connected. Has no effect unless the machine is idle or closed."""
        if self.state in ("idle", "closed"):
            self._attempts.start()
            self._attempt(now)

    def stop(self, now: float) -> None:
        """Close for good. Commands that still wait fail."""
        if self.state != "closed":
            self._leave(CLOSE_DONE, "")
            self._end(CLOSE_DONE, "")

    def subscribe(self, chat: Id, now: float, since: Position | None = None, watch: bool = False) -> None:
        """Subscribe to this chat from now on, or from after ``since``. Has no effect if the chat is already subscribed to."""
        self.topics.subscribe(chat, now, since, watch)

    def unsubscribe(self, chat: Id, now: float) -> None:
        """Unsubscribe from this chat."""
        self.topics.unsubscribe(chat, now)

    def pause(self, chat: Id | None, now: float) -> None:
        """The reader is behind: deliver no more of this topic until :meth:`resume`."""
        self.topics.pause(chat, now)

    def resume(self, chat: Id | None, now: float) -> None:
        """The reader has caught up: continue after the last message that was handed over.

        Also required after a page of history, because the machine then pauses the chat itself (docs/client.md, rule 27).
        """
        if self.topics.resume(chat, now):
            self._reconnect(CLOSE_GAP, "resync", now)

    def request(self, n: int, frame: Frame, now: float) -> None:
        """Send a command (``presence``, ``history`` or ``ping``) now or once connected. The outcome is ``Done`` or ``Failed``."""
        if self.state in ("idle", "closed"):
            self._do(Failed(n, "closed"))
        else:
            self._commands.add(n, frame, now)

    def signal(self, chat: Id, kind: str, data: Any, now: float) -> bool:
        """Send a signal to the other members of a live chat. Returns whether it was sent; if not, it is lost."""
        return self.topics.signal(chat, kind, data, now)

    def refresh(self, n: int, now: float) -> None:
        """Fetch a new token and use it. The outcome is ``Done`` once the server has accepted it, or ``Failed``."""
        if self.state in ("idle", "closed"):
            self._do(Failed(n, "closed"))
        else:
            self._credentials.renew(n, now, self.state)

    # --- what happens to the client -------------------------------------------------------------------------

    def token(self, n: int, value: str | None, now: float, expires_at: float | None = None) -> None:
        """The token callback returned ``value``. None means that there is no token because the user has signed out.

        ``expires_at`` is in Unix seconds, if the callback knows it.
        """
        if not self._credentials.fetched(n):
            return
        if value is None:
            self._leave(CLOSE_DONE, "")
            self._end(None, "no token")
        elif self.state == "connected":
            self._credentials.offer(value, now, expires_at)
        else:
            self._credentials.adopt(value, now, expires_at)
            self._dial(now)

    def token_failed(self, n: int, reason: str, now: float) -> None:
        """The token callback failed; the machine will ask for it again later."""
        if not self._credentials.fetched(n):
            return
        if self.state == "connected":
            self._credentials.not_replaced(now, "no_token", reason)
        else:
            self._wait(None, f"no token: {reason}", now)

    def opened(self, now: float) -> None:
        """The connection is open."""
        if self.state == "connecting" and self._open:
            self._wake = now + self.settings.answer_timeout
            self._enter("authenticating")
            auth: Frame = {"type": "auth", "token": self._credentials.value, "since": self.topics.since()}
            auth["features"] = list(dict.fromkeys((*self.settings.features, HISTORY)))
            self._requests.pace.start(now)
            self._requests.send(auth, now)

    def received(self, frame: Frame, now: float) -> None:
        """The server sent a frame (decoded JSON). Unknown frames are ignored."""
        if self.state not in ("authenticating", "connected") or not isinstance(frame, dict):
            return
        self._heartbeat.heard(now)
        kind = frame.get("type")
        chat = frame.get("chat_id")
        if kind in KINDS and isinstance(chat, int | str) and positioned(frame):
            self.topics.message(chat, frame, now)
        elif kind == "notification" and positioned(frame):
            if self.topics.message(None, frame, now):
                self._reconnect(CLOSE_GAP, "gap", now)
        elif kind == "auth_result":
            self._authenticated(frame, now)
        elif kind == "error":
            refusal = Refusal.of(frame)
            if not self._requests.refused(frame, refusal, now) and not self.topics.withdrawn(
                chat, refusal, now
            ):
                self._do(ErrorReceived(refusal.code, refusal.message))
        elif kind == "presence" and "id" not in frame:
            self.topics.presence(chat, frame.get("users", []))
        elif kind == "signal":
            self.topics.signalled(chat, frame)
        elif kind in ("subscribed", "ok", "pong", "presence", "history"):
            self._requests.answered(frame, now)

    def closed(self, code: int, reason: str, now: float) -> None:
        """The connection ended or could not be opened. ``code`` is 1006 if no close frame arrived."""
        if not self._open:
            return
        if code in (TOKEN_EXPIRED, AUTH_TIMEOUT):
            self._credentials.drop()
        if code == AUTH_FAILED:
            self._rejected(reason, now)
        elif self._attempts.final(code):
            self._end(code, reason)
        else:
            wait, elsewhere = advice(reason)
            self._elsewhere = self._elsewhere or elsewhere
            self._wait(code, reason, now, wait)

    def online(self, now: float) -> None:
        """The network is back: connect now, or check whether the connection survived."""
        if self.state == "waiting" and not self._attempts.advised:
            self._attempt(now)
        elif self.state == "connected":
            self._heartbeat.probe(now)

    def deadline(self) -> float | None:
        """The time at which :meth:`tick` is next due, or None if the machine waits for nothing."""
        due = (
            self._wake,
            self._credentials.fetch_due,
            self._credentials.refresh_at,
            self._commands.due(),
            self._requests.due(),
            self._heartbeat.due,
            self.topics.due(),
        )
        return min((at for at in due if at is not None), default=None)

    def tick(self, now: float) -> None:
        """Act on the time that has passed. Harmless if nothing is due."""
        self._commands.tick(now)
        if _past(self._credentials.fetch_due, now):
            self.token_failed(self._credentials.fetch_number, "the callback took too long", now)
        elif _past(self._wake, now):
            if self.state == "waiting":
                self._attempt(now)
            else:
                self._reconnect(CLOSE_DEAD, "no answer", now)
        elif self.state == "connected":
            self._tick_connected(now)

    # --- the connection -------------------------------------------------------------------------------------

    def _attempt(self, now: float) -> None:
        self._wake = None
        self._enter("connecting")
        if self._credentials.usable(now):
            self._dial(now)
        else:
            self._credentials.fetch(now)

    def _dial(self, now: float) -> None:
        self._wake = now + self.settings.connect_timeout
        self._open = True
        self._do(Open(self._elsewhere))
        self._elsewhere = False

    def _authenticated(self, frame: Frame, now: float) -> None:
        if self.state != "authenticating":
            return
        if frame.get("success") is not True:
            self._leave(CLOSE_DONE, "")
            self._rejected("", now)
            return
        self._wake = None
        self._attempts.connected(now)
        self._heartbeat.start(now, frame.get("ping_interval"))
        self._credentials.confirmed(now, frame.get("expires_at"))
        self._requests.grant(frame.get("features"))
        self._enter("connected", user_id=frame.get("user_id"), connection_id=frame.get("connection_id"))
        self.topics.authenticated(frame, now)
        self._commands.connected(now)
        self.topics.connected(now)

    def _tick_connected(self, now: float) -> None:
        if self._heartbeat.dead(now):
            self._reconnect(CLOSE_DEAD, "no pong", now)
        elif _past(self._requests.due(), now):
            self._reconnect(CLOSE_DEAD, "no answer", now)
        else:
            if self._heartbeat.silent(now):
                self._heartbeat.probe(now)
            if _past(self._credentials.refresh_at, now):
                self._credentials.fetch(now)
            self.topics.tick(now)

    def _rejected(self, reason: str, now: float) -> None:
        """Ask for a new token if this one was accepted before, as it may have expired. A new token that is rejected closes the client."""
        if self._credentials.aged:
            self._credentials.drop()
            self._wait(AUTH_FAILED, reason, now)
        else:
            self._end(AUTH_FAILED, reason)

    def _reconnect(self, code: int, reason: str, now: float) -> None:
        self._leave(code, reason)
        self._wait(None, reason, now)

    def _wait(self, code: int | None, reason: str, now: float, advice: float | None = None) -> None:
        self._forget()
        delay = self._attempts.next(now, advice)
        self._wake = now + delay
        self._enter("waiting", delay=delay, code=code, reason=reason)

    def _end(self, code: int | None, reason: str) -> None:
        self._forget()
        self._credentials.drop()
        self._wake = None
        self._enter("closed", code=code, reason=reason)
        self._commands.close()
        self._credentials.close()

    def _leave(self, code: int, reason: str) -> None:
        if self._open:
            self._do(Close(code, reason))

    def _forget(self) -> None:
        """Drop the state of the connection. Topics and commands outlive it."""
        self._open = False
        self._requests.forget()
        self._heartbeat.stop()
        self._credentials.disconnected()
        self.topics.disconnected()

    def _enter(self, state: str, **details: Any) -> None:
        self.state = state
        self._do(StateChanged(state, **details))

    def _do(self, action: Action) -> None:
        self.actions.append(action)


def _past(due: float | None, now: float) -> bool:
    return due is not None and due <= now
