"""The clients of a trial: each reads its chats and its notifications with our client library, and records what it receives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.python.failure import Failure

from notify.chaos.ledger import Held, Ledger, Told
from notify.chaos.target import Seat
from notify.client import Loss, Settings, State, Stream, TwistedClient
from notify.topics import Topic, chat, user


class _Tapped(TwistedClient):
    """A client that exposes all frames from the server, before the library ignores those that are not for it."""

    def __init__(self, tap: Callable[[str], None], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._tap = tap

    def _text(self, text: str) -> None:
        self._tap(text)
        super()._text(text)


class HeldClient:
    """One client. ``clock`` is the ledger's."""

    def __init__(
        self, seat: Seat, settings: Settings, ledger: Ledger, reactor: Any, clock: Callable[[], float]
    ) -> None:
        self.name = seat.name
        self._seat, self._ledger, self._clock = seat, ledger, clock
        self._connected = False
        self._streams: list[tuple[Held, Stream[Any]]] = []
        self._reading: list[Deferred[None]] = []
        self._subjects: set[str] = set()
        self._client = _Tapped(
            self._seen, seat.url, seat.token, reactor=reactor, settings=settings, on_state=self._state
        )

    async def start(self) -> None:
        """Connect and subscribe. Raises ``ClientClosed`` or ``Refused``."""
        await self._client.start()
        workspace, user_id = self._seat.workspace, self._client.state.user_id
        if user_id is not None:  # the server's id of the user, known once connected
            self._read(user(workspace, user_id), self._client.notifications)
        for chat_id in self._seat.chats:
            self._read(chat(workspace, chat_id), self._client.chat(chat_id))
        for _, stream in self._streams:
            await stream.ready()

    def settle(self) -> bool:
        """Record which topics the client believes to be complete. Returns whether all are."""
        for held, stream in self._streams:
            held.whole = self._client.state.name == "connected" and stream.state == "live"
        return all(held.whole for held, _ in self._streams)

    async def stop(self) -> None:
        """Disconnect for good."""
        await self._client.close()
        await gatherResults(self._reading, consumeErrors=True)

    def _read(self, topic: Topic, stream: Stream[Any]) -> None:
        held = self._ledger.hold(self.name, topic)
        self._subjects.add(topic.subject)
        self._streams.append((held, stream))

        def lost(loss: Loss) -> None:
            held.told.append(Told(loss, self._clock()))

        async def read() -> None:
            async for message in stream:
                text = message.content if topic.kind == "chat" else message.data
                self._ledger.receive(held, text, self._clock())

        stream.on_lost = lost
        self._reading.append(Deferred.fromCoroutine(read()).addErrback(self._ended))

    def _ended(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self._ledger.ended.setdefault(self.name, str(failure.value))

    def _state(self, state: State) -> None:
        if (state.name == "connected") == self._connected:
            return
        self._connected = not self._connected
        if self._connected:
            self._ledger.came.append((self._clock(), self.name))
        else:
            self._ledger.left.append((self._clock(), self.name, state.code or 0))

    def _seen(self, text: str) -> None:
        """Look for messages that this client must not receive."""
        try:
            frames = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        for frame in frames if isinstance(frames, list) else (frames,):
            if isinstance(frame, dict):
                read = self._ledger.read(frame.get("content", frame.get("data")))
                if read is not None and read[0] not in self._subjects:
                    self._ledger.intrude(self.name, *read, self._clock())
