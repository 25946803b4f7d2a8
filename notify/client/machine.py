"""The client's state machine: events in, actions out. No socket, no clock, no randomness of its own.

The behaviour is docs/client.md. Every method that tells the machine of an event takes ``now``, seconds of any
steady clock, and appends to :attr:`Machine.actions`; the front carries those out and empties the list. After each
call :meth:`Machine.deadline` says when :meth:`Machine.tick` is due. The tests' scenarios drive this class and its
JavaScript twin alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from notify.client._parts import Command, Credentials, Pace, Request, Topic, advice, positioned
from notify.client.actions import (
    Action,
    Close,
    Deliver,
    Done,
    ErrorReceived,
    Failed,
    FetchToken,
    Frame,
    GapFound,
    Lost,
    Open,
    Position,
    PresenceChanged,
    Send,
    Settings,
    StateChanged,
    SubscriptionChanged,
)

#: what the client itself closes a connection with
CLOSE_DONE, CLOSE_GAP, CLOSE_DEAD = 1000, 3000, 3001
TOKEN_EXPIRED, AUTH_FAILED, AUTH_TIMEOUT = 4002, 4500, 4501
#: authentication time-outs in a row after which the client ends
MAX_AUTH_TIMEOUTS = 3
#: error codes that are retried where the server does not say
RETRIED = frozenset(("unavailable", "history_unavailable", "rate_limited", "internal"))

NOWHERE = {"epoch": "", "seq": 0}


class Machine:
    """One client. ``random`` gives numbers in [0, 1), ``unix`` the Unix time in seconds.

    States: ``idle``, ``connecting``, ``authenticating``, ``connected``, ``waiting``, ``closed``.
    """

    def __init__(self, settings: Settings, random: Callable[[], float], unix: Callable[[], float]) -> None:
        self.settings = settings
        self.state = "idle"
        self.actions: list[Action] = []
        self.topics: dict[int | None, Topic] = {None: Topic(None)}
        self._random = random
        self._tries = self._auth_timeouts = self._refresh_tries = 0
        self._wake: float | None = None  # when the present state ends by itself
        self._advised = False
        self._connected_at = 0.0
        self._ids = self._tokens = 0
        self._credentials = Credentials(settings, random, unix)
        self._fetching: float | None = None  # the token callback's deadline
        # of the present connection
        self._requests: dict[int, Request] = {}
        self._queue: dict[int, None] = {}  # chats to subscribe to, in order
        self._unanswered = 0
        self._pace = Pace(settings)
        self._heard = 0.0
        self._pong_due: float | None = None
        self._interval = settings.ping_interval
        self._commands: dict[int, Command] = {}
        self._retries: dict[int, float] = {}

    # --- what the user does ---------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Connect, and stay connected. Does nothing but when idle or closed."""
        if self.state in ("idle", "closed"):
            self._tries = self._auth_timeouts = 0
            self._attempt(now)

    def stop(self, now: float) -> None:
        """Close for good; commands still waiting fail."""
        if self.state != "closed":
            self._leave(CLOSE_DONE, "")
            self._end(CLOSE_DONE, "")

    def subscribe(self, chat: int, now: float, since: Position | None = None, watch: bool = False) -> None:
        """Want this chat's messages from now on, or those after ``since``. No effect where it is wanted already."""
        if chat in self.topics:
            return
        self.topics[chat] = Topic(chat, since, watch)
        self._do(SubscriptionChanged(chat, "subscribing"))
        self._want(chat, now)

    def unsubscribe(self, chat: int, now: float) -> None:
        """Want it no more."""
        topic = self.topics.pop(chat, None)
        if topic is not None:
            self._withdraw(topic, chat, now)

    def pause(self, chat: int | None, now: float) -> None:
        """The reader is behind: take no more of this topic until :meth:`resume`."""
        topic = self.topics.get(chat)
        if topic is None or topic.paused:
            return
        topic.paused = True
        if chat is not None:
            self._withdraw(topic, chat, now)
        self._do(SubscriptionChanged(chat, "paused"))

    def resume(self, chat: int | None, now: float) -> None:
        """The reader has caught up: go on from the last message that was handed over."""
        topic = self.topics.get(chat)
        if topic is None or not topic.paused:
            return
        topic.paused = False
        self._do(SubscriptionChanged(chat, "subscribing"))
        if chat is not None:
            self._want(chat, now)
        elif topic.behind:
            self._reconnect(CLOSE_GAP, "resync", now)
        elif topic.live:
            self._do(SubscriptionChanged(None, "live", topic.position))

    def request(self, n: int, frame: Frame, now: float) -> None:
        """Ask the server something (``presence`` or ``ping``), now or once connected. Answer: ``Done`` or ``Failed``."""
        if self.state in ("idle", "closed"):
            self._do(Failed(n, "closed"))
        elif len(self._commands) >= self.settings.max_commands:
            self._do(Failed(n, "busy"))
        else:
            self._commands[n] = Command(frame, now + self.settings.command_timeout)
            if self.state == "connected":
                self._command(n, now)

    # --- what happens ---------------------------------------------------------------------------------------

    def token(self, n: int, value: str | None, now: float, expires_at: float | None = None) -> None:
        """The token callback's answer; None: there is none, the user has signed out.

        ``expires_at`` is Unix time, where the callback knows it.
        """
        if n != self._tokens or self._fetching is None:
            return None
        if value is None:
            self._leave(CLOSE_DONE, "")
            return self._end(None, "no token")
        self._fetching = None
        if self.state == "connected":
            id = self._ask("refresh", 0, now)
            self._credentials.offer(value, now, expires_at)
            self._send({"type": "refresh", "token": value, "id": id}, now)
        else:
            self._credentials.adopt(value, now, expires_at)
            self._open(now)
        return None

    def token_failed(self, n: int, reason: str, now: float) -> None:
        """The token callback failed; it is called again later."""
        if n != self._tokens or self._fetching is None:
            return
        self._fetching = None
        if self.state == "connected":
            self._refresh_later(now)
        else:
            self._wait(None, f"no token: {reason}", now)

    def opened(self, now: float) -> None:
        """The connection is open."""
        if self.state != "connecting" or self._fetching is not None:
            return
        self._heard = now
        self._pace.start(now)
        self._wake = now + self.settings.answer_timeout
        self._enter("authenticating")
        position = self.topics[None].position
        since = NOWHERE if position is None else msgspec.to_builtins(position)
        self._send({"type": "auth", "token": self._credentials.value, "since": since}, now)

    def received(self, frame: Frame, now: float) -> None:
        """The server sent one frame (decoded JSON). What is not understood is ignored."""
        if self.state not in ("authenticating", "connected") or not isinstance(frame, dict):
            return
        self._heard, self._pong_due = now, None
        kind = frame.get("type")
        chat = frame.get("chat_id")
        if kind == "chat_message" and positioned(frame) and isinstance(chat, int):
            self._message(chat, frame, now)
        elif kind == "notification" and positioned(frame):
            self._message(None, frame, now)
        elif kind == "auth_result":
            self._authenticated(frame, now)
        elif kind == "error":
            self._refused(frame, now)
        elif kind == "presence" and "id" not in frame:
            if isinstance(chat, int) and chat in self.topics:
                self._do(PresenceChanged(chat, frame.get("users", [])))
        elif kind in ("subscribed", "ok", "pong", "presence"):
            self._answered(frame, now)

    def closed(self, code: int, reason: str, now: float) -> None:
        """The connection is gone, or could not be opened; 1006 where no close frame came."""
        if not self._has_connection():
            return
        if code in (TOKEN_EXPIRED, AUTH_TIMEOUT):
            self._credentials.drop()
        if code == AUTH_TIMEOUT:
            self._auth_timeouts += 1
        if code == AUTH_FAILED:
            self._rejected(reason, now)
        elif 4500 <= code <= 4999 and not (code == AUTH_TIMEOUT and self._auth_timeouts < MAX_AUTH_TIMEOUTS):
            self._end(code, reason)
        else:
            self._wait(code, reason, now, advice(reason))

    def online(self, now: float) -> None:
        """The network came back: try at once, or see whether the connection survived."""
        if self.state == "waiting" and not self._advised:
            self._attempt(now)
        elif self.state == "connected" and self._pong_due is None:
            self._ping(now)

    def deadline(self) -> float | None:
        """When :meth:`tick` is due next; None: nothing is waited for."""
        due = [at for at in (self._wake, self._fetching) if at is not None]
        due += [command.deadline for command in self._commands.values()]
        if self.state == "connected":
            due.append(self._heard + self._interval if self._pong_due is None else self._pong_due)
            due += self._retries.values()
            if self._credentials.refresh_at is not None:
                due.append(self._credentials.refresh_at)
            if self._requests:
                due.append(next(iter(self._requests.values())).sent + self.settings.answer_timeout)
            if self._queue and self._unanswered < self.settings.window:
                due.append(self._pace.next())
        return min(due, default=None)

    def tick(self, now: float) -> None:
        """Time has passed. Harmless when nothing is due."""
        for n in [n for n, command in self._commands.items() if command.deadline <= now]:
            del self._commands[n]
            self._do(Failed(n, "timeout"))
        if self._fetching is not None and self._fetching <= now:
            self.token_failed(self._tokens, "the callback took too long", now)
        elif self._wake is not None and self._wake <= now:
            if self.state == "waiting":
                self._attempt(now)
            else:
                self._reconnect(CLOSE_DEAD, "no answer", now)
        elif self.state == "connected":
            self._tick_connected(now)

    # --- the connection -------------------------------------------------------------------------------------

    def _tick_connected(self, now: float) -> None:
        oldest = next(iter(self._requests.values()), None)
        if self._pong_due is not None and self._pong_due <= now:
            return self._reconnect(CLOSE_DEAD, "no pong", now)
        if oldest is not None and oldest.sent + self.settings.answer_timeout <= now:
            return self._reconnect(CLOSE_DEAD, "no answer", now)
        if self._pong_due is None and self._heard + self._interval <= now:
            self._ping(now)
        if self._credentials.refresh_at is not None and self._credentials.refresh_at <= now:
            self._credentials.refresh_at = None
            self._fetch(now)
        for chat in [chat for chat, at in self._retries.items() if at <= now]:
            del self._retries[chat]
            self._want(chat, now)
        self._pump(now)
        return None

    def _attempt(self, now: float) -> None:
        self._wake = None
        self._enter("connecting")
        if self._credentials.usable(now):
            self._open(now)
        else:
            self._fetch(now)

    def _open(self, now: float) -> None:
        self._wake = now + self.settings.connect_timeout
        self._do(Open())

    def _authenticated(self, frame: Frame, now: float) -> None:
        if self.state != "authenticating":
            return None
        if frame.get("success") is not True:
            self._leave(CLOSE_DONE, "")
            return self._rejected("", now)
        self._wake = None
        self._auth_timeouts = self._refresh_tries = 0
        self._connected_at = now
        self._interval = float(frame.get("ping_interval") or self.settings.ping_interval)
        self._credentials.confirmed(now, frame.get("expires_at"))
        self._enter("connected", user_id=frame.get("user_id"), connection_id=frame.get("connection_id"))
        if "epoch" in frame:
            self._settle(self.topics[None], frame)
        for n in self._commands:
            self._command(n, now)
        for chat in self.topics:
            if chat is not None:
                self._want(chat, now)
        return None

    def _rejected(self, reason: str, now: float) -> None:
        """A token that once was good may have aged: a new one is a change. A new one that is refused ends it."""
        if self._credentials.accepted and not self._credentials.replacing:
            self._credentials.drop()
            self._wait(AUTH_FAILED, reason, now)
        else:
            self._end(AUTH_FAILED, reason)

    def _reconnect(self, code: int, reason: str, now: float) -> None:
        self._leave(code, reason)
        self._wait(None, reason, now)

    def _wait(self, code: int | None, reason: str, now: float, advice: float | None = None) -> None:
        if self.state == "connected" and now - self._connected_at >= self.settings.stable_after:
            self._tries = 0
        self._forget()
        delay = self._delay(self._tries)
        self._advised = advice is not None
        if advice is not None:
            delay = max(self.settings.backoff_floor, min(advice, self.settings.advice_cap))
        self._tries += 1
        self._wake = now + delay
        self._enter("waiting", delay=delay, code=code, reason=reason)

    def _delay(self, tries: int) -> float:
        """Full jitter: anywhere between the floor and a window that doubles with each try."""
        floor = self.settings.backoff_floor
        window = min(self.settings.backoff_cap, self.settings.backoff_base * 2.0 ** min(tries, 30))
        return floor + self._random() * max(0.0, window - floor)

    def _end(self, code: int | None, reason: str) -> None:
        self._forget()
        self._credentials.drop()
        self._wake = None
        commands, self._commands = self._commands, {}
        self._enter("closed", code=code, reason=reason)
        for n in commands:
            self._do(Failed(n, "closed"))

    def _leave(self, code: int, reason: str) -> None:
        if self._has_connection():
            self._do(Close(code, reason))

    def _has_connection(self) -> bool:
        """Whether there is one, or one is being opened."""
        return self.state in ("authenticating", "connected") or (
            self.state == "connecting" and self._fetching is None
        )

    def _forget(self) -> None:
        """Drop what belonged to the connection; topics and commands outlive it."""
        self._requests.clear()
        self._queue.clear()
        self._retries.clear()
        self._unanswered = 0
        self._pong_due = self._fetching = None
        self._credentials.disconnected()
        for topic in self.topics.values():
            topic.live, topic.request, topic.tries = False, None, 0
        for command in self._commands.values():
            command.request = None

    def _ping(self, now: float) -> None:
        self._pong_due = now + self.settings.pong_timeout
        self._send({"type": "ping"}, now)

    # --- the token ------------------------------------------------------------------------------------------

    def _fetch(self, now: float) -> None:
        self._tokens += 1
        self._fetching = now + self.settings.token_timeout
        self._do(FetchToken(self._tokens))

    def _refresh_later(self, now: float) -> None:
        self._credentials.not_replaced(now + self._delay(self._refresh_tries))
        self._refresh_tries += 1

    def _refreshed(self, frame: Frame, now: float) -> None:
        self._refresh_tries = 0
        self._credentials.replaced(now, frame.get("expires_at"))

    # --- topics ---------------------------------------------------------------------------------------------

    def _want(self, chat: int, now: float) -> None:
        topic = self.topics.get(chat)
        if self.state == "connected" and topic is not None and not topic.paused:
            self._queue[chat] = None
            self._pump(now)

    def _withdraw(self, topic: Topic, chat: int, now: float) -> None:
        self._queue.pop(chat, None)
        self._retries.pop(chat, None)
        if self.state == "connected" and (topic.live or topic.request is not None):
            self._send({"type": "unsubscribe", "chat_id": chat}, now)
        topic.live, topic.request = False, None

    def _pump(self, now: float) -> None:
        """Subscribe to what is wanted, as far as the window and the server's rate limit allow."""
        while self._queue and self._unanswered < self.settings.window and self._pace.allows(now):
            chat = next(iter(self._queue))
            del self._queue[chat]
            topic = self.topics[chat]
            topic.live, topic.request = False, self._ask("subscribe", chat, now)
            self._unanswered += 1
            frame: Frame = {"type": "subscribe", "chat_id": chat, "id": topic.request}
            if topic.position is not None:
                frame["since"] = msgspec.to_builtins(topic.position)
            if topic.watch:
                frame["watch_presence"] = True
            self._send(frame, now)

    def _settle(self, topic: Topic, answer: Frame) -> None:
        """The server has answered from where a topic goes on."""
        newest = Position(answer["epoch"], answer["seq"])
        if topic.position is None:
            topic.position = newest
        elif not answer.get("recovered"):
            self._do(Lost(topic.chat, topic.position, newest))
            topic.position = newest
        topic.live, topic.behind, topic.request = True, False, None
        if not topic.paused:
            self._do(SubscriptionChanged(topic.chat, "live", topic.position))

    def _message(self, chat: int | None, frame: Frame, now: float) -> None:
        topic = self.topics.get(chat)
        if topic is None or not topic.live or topic.position is None:
            return
        if topic.paused:
            topic.behind = True
            return
        match topic.judge(frame):
            case "gap":
                self._do(GapFound(chat, topic.position.seq, frame["prev"]))
                self._fill(topic, now)
            case "next":
                topic.advance(frame)
                self._do(Deliver(chat, frame))

    def _fill(self, topic: Topic, now: float) -> None:
        """Ask again from the last position. What comes meanwhile is ignored: the answer includes it."""
        topic.live = False
        if topic.chat is None:
            self._reconnect(CLOSE_GAP, "gap", now)
        elif topic.progress:
            topic.progress = False
            self._want(topic.chat, now)
        else:
            self._retry(topic, topic.chat, now)

    def _retry(self, topic: Topic, chat: int, now: float) -> float:
        delay = self._delay(topic.tries)
        topic.tries += 1
        self._retries[chat] = now + delay
        return delay

    # --- requests and answers -------------------------------------------------------------------------------

    def _command(self, n: int, now: float) -> None:
        command = self._commands[n]
        command.request, command.sent = self._ask("command", n, now), now
        self._send({**command.frame, "id": command.request}, now)

    def _ask(self, kind: str, key: int, now: float) -> int:
        self._ids += 1
        self._requests[self._ids] = Request(kind, key, now)
        return self._ids

    def _take(self, frame: Frame, now: float) -> Request | None:
        id = frame.get("id")
        request = self._requests.pop(id, None) if isinstance(id, int) else None
        if request is not None and request.kind == "subscribe":
            self._unanswered -= 1
        return request

    def _answered(self, frame: Frame, now: float) -> None:
        request = self._take(frame, now)
        if request is None:
            return
        if request.kind == "subscribe":
            topic = self.topics.get(request.key)
            if topic is not None and topic.request == frame["id"] and "epoch" in frame:
                self._settle(topic, frame)
            self._pump(now)
        elif request.kind == "command":
            command = self._commands.pop(request.key, None)
            if command is not None:
                self._do(Done(request.key, now - command.sent, frame.get("users")))
        else:
            self._refreshed(frame, now)

    def _refused(self, frame: Frame, now: float) -> None:
        code, message = str(frame.get("code", "")), str(frame.get("message", ""))
        again = frame.get("retry", code in RETRIED)
        request = self._take(frame, now)
        if request is None:
            chat = frame.get("chat_id")
            if isinstance(chat, int) and not again and chat in self.topics:
                del self.topics[chat]
                self._do(SubscriptionChanged(chat, "refused", code=code, message=message))
            else:
                self._do(ErrorReceived(code, message))
        elif request.kind == "refresh":
            self._do(ErrorReceived(code, message))
            self._refresh_later(now)
        elif request.kind == "command":
            if self._commands.pop(request.key, None) is not None:
                self._do(Failed(request.key, code, message))
        else:
            topic = self.topics.get(request.key)
            if topic is not None and topic.request == frame["id"]:
                topic.request = None
                delay = self._retry(topic, request.key, now) if again else None
                if not again:
                    del self.topics[request.key]
                state = "waiting" if again else "refused"
                self._do(SubscriptionChanged(request.key, state, delay=delay, code=code, message=message))
            self._pump(now)

    def _send(self, frame: Frame, now: float) -> None:
        self._pace.spend(now)
        self._do(Send(frame))

    def _enter(self, state: str, **details: Any) -> None:
        self.state = state
        self._do(StateChanged(state, **details))

    def _do(self, action: Action) -> None:
        self.actions.append(action)
