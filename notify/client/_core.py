"""The public methods that the Twisted and the asyncio client share, and their streams."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

import msgspec

from notify.client import actions as do
from notify.client._runner import Runner, TokenSource
from notify.client._saver import Saver
from notify.client._stream import Chat, OnEvent, OnLoad, OnLost, Stream, Waiter, wait
from notify.client.actions import Id, Position, Settings
from notify.client.values import (
    ChatEvent,
    ChatMessage,
    ClientClosed,
    Loss,
    Notification,
    Page,
    Presence,
    Refused,
    Signal,
    State,
    Store,
    identifier,
)

log = logging.getLogger("notify.client")

T = TypeVar("T", bound="Core")


class Options(TypedDict, total=False):
    """The keyword arguments of :class:`Core`, described in its docstring."""

    store: Store | None
    client_id: str | None
    settings: Settings | None
    queue: int
    on_lost: OnLost | None
    on_state: Callable[[State], None] | None
    on_presence: Callable[[Id, list[Presence]], None] | None
    on_signal: Callable[[Signal], None] | None
    on_action: Callable[[do.Action], None] | None
    random: Callable[[], float]


class Core(Runner):
    """A client that keeps its place in the history. Concrete classes: ``AsyncioClient`` and ``TwistedClient``.

    ``token`` is a token, or a callable (also asynchronous) that returns one. It is called before the first connection, ahead of
    each expiry, and when the server says that the token has expired; if it returns ``None``, the client signs out.
    ``store`` keeps positions across restarts. ``client_id`` replaces the random id: 1 to 64 of ``A-Z a-z 0-9 _ -``. Proxies hash
    it, and the client appends a suffix when the server sends it to another node. ``queue`` is the maximum number of messages that
    wait for the reader of a stream.
    ``on_lost`` is used for the notifications, and for each chat that sets neither its own ``on_lost`` nor ``load``.
    ``on_signal`` receives each :class:`Signal` as it arrives; it requires ``Settings(features=("signals",))``.
    ``on_state`` receives each :class:`State`. ``on_action`` receives every action of the machine, for diagnostics.
    """

    def __init__(
        self,
        url: str,
        token: TokenSource,
        *,
        store: Store | None = None,
        client_id: str | None = None,
        settings: Settings | None = None,
        queue: int = 256,
        on_lost: OnLost | None = None,
        on_state: Callable[[State], None] | None = None,
        on_presence: Callable[[Id, list[Presence]], None] | None = None,
        on_signal: Callable[[Signal], None] | None = None,
        on_action: Callable[[do.Action], None] | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        if queue < 1:
            raise ValueError("queue: at least one message")
        super().__init__(url, token, client_id, settings, random, on_action)
        self.queue = queue
        self._on_lost, self._on_state, self._on_presence = on_lost, on_state, on_presence
        if on_signal is not None:
            self._needs("signals", "on_signal")
        self._on_signal = on_signal
        self._saver = Saver(store, self._later)
        stored = self._saver.load(None)
        self.machine.topics.notifications.position = stored
        #: the user's notifications from the moment of connecting, or from after the stored position
        self.notifications: Stream[Notification] = Stream(self, None, on_lost, stored)
        self._chats: dict[Id, list[Chat]] = {}
        self._held: dict[Id | None, set[Stream[Any]]] = {}  # streams whose queue is full, by chat
        self._starting: list[Waiter] = []
        self._starters = 0
        self._reason = ""  # why the last attempt failed

    # --- for applications -----------------------------------------------------------------------------------

    async def start(self, timeout: float | None = None) -> None:
        """Connect, and wait until connected, for at most ``timeout`` seconds if it is given.

        Raises ``TimeoutError`` with the reason of the last failed attempt; the client keeps trying until it is closed. Raises
        ``ClientClosed`` if the client ends instead. Each failed attempt is reported to ``on_state``; without that callback it is
        logged while this method waits.
        """
        if self.state.name == "closed":
            raise RuntimeError("a closed client stays closed: make a new one")
        deadline = None if timeout is None else self._now() + timeout
        self._starters += 1
        try:
            self._event(self.machine.start)
            while self.state.name != "connected":
                if self.state.name == "closed":
                    raise ClientClosed(self.state.code, self.state.reason)
                waiter = self._waiter()
                self._starting.append(waiter)
                await wait(
                    self, waiter, deadline, lambda: f"not connected within {timeout} s: {self._standing()}"
                )
        finally:
            self._starters -= 1

    async def close(self) -> None:
        """Close for good: end the streams, close the socket and save the positions. Raises what the store raises."""
        for stream in self._streams():
            stream._handled()
        await self._shut()

    async def __aenter__(self: T) -> T:
        try:
            await self.start()
        except BaseException:
            self._event(self.machine.stop)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # A message whose handler raised was not handled. Its position is not saved, so it will be delivered again.
        await (self._shut() if kind is not None else self.close())

    def chat(
        self,
        chat_id: Id,
        *,
        since: Position | None = None,
        watch_presence: bool = False,
        on_lost: OnLost | None = None,
        on_event: OnEvent | None = None,
        load: OnLoad | None = None,
    ) -> Chat:
        """Subscribe to a chat, now or once connected, and return the stream to read it from.

        The stream begins after ``since``, else after the stored position, else with new messages. ``on_event``
        requires ``Settings(features=("events",))``.

        ``load`` loads the state of the chat as of the given position or later. It is called and awaited while the reader waits:
        before the first message, with the chat's newest position, from where the messages continue; and again wherever messages
        are lost. It therefore replaces ``on_lost``, ``since`` and a stored position.

        A further call for the same chat returns another stream, which continues from the subscription's current position; so it takes
        neither ``since`` nor ``watch_presence``. Every stream gets every message. The slowest one sets the pace, and its position
        is the one that is stored. If the client is closed, the returned stream has already ended.
        """
        if load is not None and (on_lost is not None or since is not None):
            raise ValueError(
                "load: it begins at the newest position, and is called on a loss: no since, no on_lost"
            )
        chat_id = identifier(chat_id)
        if on_event is not None:
            self._needs("events", "on_event")
        if self.state.name == "closed":
            chat = Chat(self, chat_id, None, since)
            chat._finish("closed", self._end())
            return chat
        readers = self._chats.get(chat_id)
        if readers is not None and (since is not None or watch_presence):
            raise ValueError(
                f"chat {chat_id} is subscribed to already: name since and watch_presence the first time"
            )
        if readers is None and since is None and load is None:
            since = self._saver.load(chat_id)
        chat = Chat(self, chat_id, on_lost or self._on_lost, since)
        chat.on_event, chat.load = on_event, load
        if readers is None:
            self._chats[chat_id] = [chat]
            self._event(lambda now: self.machine.subscribe(chat_id, now, since, watch_presence))
        else:
            readers.append(chat)
            topic = self.machine.topics.get(chat_id)
            if topic is not None and topic.position is not None:
                chat._begin(topic.position)
                chat._changed(readers[0].state, topic.position)
            self._carry_out()
        return chat

    async def presence(self, chat_id: Id) -> list[Presence]:
        """Return the users in a chat, on all nodes. Raises ``Refused``."""
        done = await self._ask({"type": "presence", "chat_id": identifier(chat_id)})
        return msgspec.convert(done.users or [], list[Presence])

    def signal(self, chat_id: Id, kind: str, data: Any = None) -> bool:
        """Send a short-lived signal to the other members of a chat, such as that the user is typing. Repeat it while the state lasts.

        A signal is sent immediately or not at all, and is not stored. Returns whether it was sent: it is not if the chat is not live, if the
        server has no signals, or if the client's rate limit is reached. ``kind`` has 1 to 64 characters; ``data`` is any JSON value, by default
        up to 1 KiB. Raises ``TypeError`` or ``ValueError`` for invalid arguments, except for the size, whose limit only the server knows.
        """
        self._needs("signals", "signal")
        if not 1 <= len(kind) <= 64:
            raise ValueError("kind: 1 to 64 characters")
        msgspec.json.encode((kind, data))  # raises here rather than when the frame is sent
        sent = self.machine.signal(identifier(chat_id), kind, data, self._now())
        self._carry_out()
        return sent

    async def history(
        self, chat_id: Id, before: Position | None = None, after: Position | None = None, limit: int = 50
    ) -> Page:
        """Return a page of up to ``limit`` (1 to 100) messages of a chat: the newest ones, or those next to a position.

        Raises ``Refused``: ``history_unavailable`` if the server no longer has the messages at that position, ``unsupported`` if
        the server does not give clients history.
        """
        if before is not None and after is not None:
            raise ValueError("a page is before a position or after one")
        if not 1 <= limit <= 100:
            raise ValueError("limit: 1 to 100 messages")
        frame: do.Frame = {"type": "history", "chat_id": identifier(chat_id), "limit": limit}
        if before is not None:
            frame["before"] = msgspec.to_builtins(before)
        if after is not None:
            frame["after"] = msgspec.to_builtins(after)
        done = await self._ask(frame)
        messages = [message for message in map(_read, done.messages or ()) if message is not None]
        start = done.start or (messages[0].position if messages else None)
        position = done.position or (messages[-1].position if messages else after)
        return Page(messages, bool(done.more), start, position)

    async def position(self, chat_id: Id) -> Position:
        """Return the newest position of a chat. Raises ``Refused`` as :meth:`history` does."""
        done = await self._ask({"type": "history", "chat_id": identifier(chat_id), "limit": 1})
        if done.position is None:
            raise Refused("internal", "the server did not say which position is the newest")
        return done.position

    async def ping(self) -> float:
        """Return the round-trip time in seconds. Raises ``Refused``."""
        return (await self._ask({"type": "ping"})).took

    async def refresh(self) -> None:
        """Fetch a token now and use it. Call this when its claims have changed, for example after the user was invited to a chat.

        Returns once the server has accepted the token; without a connection, once the next one is authenticated. Raises ``Refused``.
        """
        await self._command(self.machine.refresh)

    def online(self) -> None:
        """Report that the network is back: the client reconnects immediately."""
        self._event(self.machine.online)

    def _needs(self, feature: str, what: str) -> None:
        if feature not in self.machine.settings.features:
            raise ValueError(f'{what}: the client must ask for {feature}: Settings(features=("{feature}",))')

    # --- actions of the machine -----------------------------------------------------------------------------

    def _told(self, action: do.Action) -> None:
        match action:
            case do.Deliver(chat, frame):
                self._deliver(chat, frame)
            case do.StateChanged():
                self._state_changed()
            case do.SubscriptionChanged(chat, state, position, _, code, message):
                readers = self._readers(chat)
                if state == "refused" and chat is not None:
                    self._chats.pop(chat, None)
                    self._held.pop(chat, None)
                    for stream in readers:
                        stream._finish("refused", Refused(code, message))
                else:
                    for stream in readers:
                        stream._changed(state, position)
            case do.Lost(chat, before, after):
                for stream in self._readers(chat):
                    stream._put(Loss(chat, before, after))
            case do.PresenceChanged(chat, users):
                self._tell(self._on_presence, chat, [Presence(**user) for user in users])
            case do.Signalled(chat, user, kind, data):
                self._tell(self._on_signal, Signal(chat, user, kind, data))

    def _deliver(self, chat: Id | None, frame: do.Frame) -> None:
        readers = self._readers(chat)
        message = _read(frame) if readers else None
        if message is not None:
            for stream in readers:
                stream._put(message)

    def _state_changed(self) -> None:
        if self.state.name == "waiting":
            self._reason = self.state.reason or f"the connection was closed with {self.state.code}"
            if self._starters and self._on_state is None:
                log.warning(
                    "not connected: %s; trying again in %.1f s", self._reason, self.state.delay or 0.0
                )
        elif self.state.name == "connected":
            self._reason = ""
        elif self.state.name == "closed":
            for stream in self._streams():
                stream._finish("closed", self._end())
        if self.state.name in ("connected", "closed"):
            waiters, self._starting = self._starting, []
            self._fire(*waiters)
            self._settled()
        self._tell(self._on_state, self.state)

    def _standing(self) -> str:
        waits = self._fetching is not None and self.state.name == "connecting"
        reasons = [self._reason] * bool(self._reason) + ["the token function has not answered"] * waits
        return ", ".join((f"the client is {self.state.name}", *reasons))

    # --- streams --------------------------------------------------------------------------------------------

    def _readers(self, chat: Id | None) -> list[Stream[Any]]:
        return [self.notifications] if chat is None else list(self._chats.get(chat, ()))

    def _streams(self) -> list[Stream[Any]]:
        return [self.notifications, *(stream for readers in self._chats.values() for stream in readers)]

    def _pause(self, stream: Stream[Any]) -> None:
        self._hold(stream)
        self._event(self.machine.pause, stream._key)

    def _hold(self, stream: Stream[Any]) -> None:
        self._held.setdefault(stream._key, set()).add(stream)

    def _resume(self, stream: Stream[Any]) -> None:
        held = self._held.get(stream._key, set())
        held.discard(stream)
        if not held:
            self._held.pop(stream._key, None)
            self._event(self.machine.resume, stream._key)

    def _unsubscribe(self, stream: Chat) -> None:
        readers = self._chats.get(stream.id, [])
        if stream not in readers:
            return
        stream._handled()
        readers.remove(stream)
        stream._queue.clear()
        stream._finish("closed", None)
        if not readers:
            del self._chats[stream.id]
            self._held.pop(stream.id, None)
            self._event(self.machine.unsubscribe, stream.id)
        elif stream in self._held.get(stream.id, ()):
            self._resume(stream)

    def _keep(self, stream: Stream[Any]) -> None:
        """Store the position of the slowest reader. A position in an earlier epoch counts as behind."""
        topic = self.machine.topics.get(stream._key)
        epoch = None if topic is None or topic.position is None else topic.position.epoch
        places = [one.position for one in self._readers(stream._key) if one.position is not None]
        if places:
            slowest = min(places, key=lambda place: (place.epoch == epoch, place.seq))
            self._saver.changed(stream._key, slowest)

    async def _shut(self) -> None:
        self._event(self.machine.stop)
        await self._stopped()
        self._saver.close()


_KINDS: dict[Any, Any] = {
    "chat_message": ChatMessage,
    "chat_event": ChatEvent,
    "notification": Notification,
}


def _read(frame: do.Frame) -> Any:
    """Convert a message for the application. Returns None, and logs, if it violates the protocol."""
    position = {"epoch": frame["epoch"], "seq": frame["seq"]}
    try:
        return msgspec.convert({**frame, "position": position}, _KINDS[frame["type"]])
    except (LookupError, TypeError, msgspec.ValidationError):
        log.error("a message that is not of the protocol was passed over, at position %s", position)
        return None
