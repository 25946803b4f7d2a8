"""Signals: transient notices between the members of a chat, such as typing, that are not stored.

A signal has no position, no history and no delivery guarantee. Whenever it would delay anything that has, it is
dropped and counted. A signal goes through the broker even if sender and receivers are on one node, so that there is
one path and one order. The signals of a chat are collected until the end of the reactor's turn, encoded once per
encoding, and written once per member, but only to members that have taken everything sent before. A signal therefore
never waits in a client's queue, and never gets a client closed.

Each chat has an allowance for its signals, because one member's signal costs as much as there are other members. The
cost is charged before a signal is looked at. The allowance may be overdrawn by one signal, so that even the largest
chat can have some.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.logger import Logger

from notify.core.dispatcher import FanOut, one_by_one
from notify.core.live import Live
from notify.ids import Id
from notify.interfaces import IConnection, ISignals
from notify.messages import Poison, Signal, parse_signal
from notify.observe.metrics import Metrics
from notify.topics import Topic
from notify.wire.frames import Encoding, SignalFrame

log = Logger()

#: bytes of one chat's signals that are collected in one turn; any more are dropped
A_TURN = 64 * 1024

_encode = msgspec.json.Encoder().encode


class Bucket:
    """A token bucket. Pure: the caller passes the time, in seconds. It starts full."""

    __slots__ = ("_at", "_left")

    def __init__(self, burst: float, now: float) -> None:
        self._at = now
        self._left = burst

    def left(self, rate: float, burst: float, now: float) -> float:
        """What is left; ``rate`` a second fills it up to ``burst``. A clock that was set back earns nothing."""
        self._left = min(burst, self._left + max(0.0, now - self._at) * rate)
        self._at = now
        return self._left

    def spend(self, much: float) -> None:
        """Spend this much, even if less is left."""
        self._left -= much


class _Chat:
    """A chat with receivers of signals on this node: its receivers, and the signals that arrived in this turn."""

    __slots__ = ("allowance", "members", "pending", "size")

    def __init__(self, allowance: Bucket) -> None:
        self.members: dict[IConnection, None] = {}
        self.allowance = allowance
        self.pending: list[Signal] = []
        self.size = 0


class _Frames(dict[Encoding, bytes]):
    """The signals of a turn, as they are written to each kind of receiver; encoded when a kind is first needed."""

    def __init__(self, signals: list[Signal]) -> None:
        super().__init__()
        self._signals = signals
        self._bodies: dict[Encoding, list[bytes]] = {}

    def __missing__(self, encoding: Encoding) -> bytes:
        frame = self[encoding] = encoding.pack(self._of(encoding))
        return frame

    def without(self, encoding: Encoding, user_id: Id) -> bytes:
        """The same without this user's own signals; empty if there are no others."""
        bodies = self._of(encoding)
        others = [body for body, one in zip(bodies, self._signals, strict=True) if one.user_id != user_id]
        return encoding.pack(others) if others else b""

    def _of(self, encoding: Encoding) -> list[bytes]:
        bodies = self._bodies.get(encoding)
        if bodies is None:
            bodies = self._bodies[encoding] = [
                encoding.encode(SignalFrame(one.chat_id, one.user_id, one.kind, one.data))
                for one in self._signals
            ]
        return bodies


class Signals:
    """Hands signals to the broker, and delivers the broker's signals to the clients that asked for them.

    ``carrier`` is the broker if it carries signals, else None. ``soon`` calls a function at the end of the reactor's
    turn; ``seconds`` is the reactor's clock; ``fan_out`` writes to the members.
    """

    def __init__(
        self,
        carrier: ISignals | None,
        metrics: Metrics,
        live: Live,
        soon: Callable[[Callable[[], None]], object],
        seconds: Callable[[], float],
        fan_out: FanOut = one_by_one,
    ) -> None:
        self._carrier = carrier
        self._metrics = metrics
        self._live = live
        self._soon = soon
        self._seconds = seconds
        self._fan_out = fan_out
        self._chats: dict[Topic, _Chat] = {}
        self._due: list[Topic] = []
        #: what each sender of signals may still send
        self._senders: dict[IConnection, Bucket] = {}

    @property
    def carried(self) -> bool:
        """Whether the broker carries signals; if not, no client is granted the feature."""
        return self._carrier is not None

    @property
    def size(self) -> int:
        """The maximum size of a signal's data, in bytes."""
        return self._live.now.limits.signal_size

    # --- receivers ------------------------------------------------------------------------------------------

    def join(self, connection: IConnection, topic: Topic) -> None:
        """A connection is in a chat, and has been told so. Does nothing if it was not granted signals."""
        if self._carrier is None or not connection.encoding.signals:
            return
        chat = self._chats.get(topic)
        if chat is None:
            bucket = Bucket(self._live.now.limits.signals_fan_out, self._seconds())
            chat = self._chats[topic] = _Chat(bucket)
            self._carrier.listen(topic)
        chat.members[connection] = None

    def leave(self, connection: IConnection, topic: Topic) -> None:
        """It has left the chat, or is joining it again. Does nothing if it was not in it."""
        chat = self._chats.get(topic)
        if chat is None or chat.members.pop(connection, self) is self or chat.members:
            return
        del self._chats[topic]
        if self._carrier is not None:
            self._carrier.unlisten(topic)

    def forget(self, connection: IConnection) -> None:
        """It is gone, and has left its chats."""
        self._senders.pop(connection, None)

    # --- sending --------------------------------------------------------------------------------------------

    def allows(self, connection: IConnection) -> bool:
        """Whether one more signal of this connection is within ``signals_per_second`` and ``signals_burst``."""
        limits, now = self._live.now.limits, self._seconds()
        rate, burst = limits.signals_per_second, limits.signals_burst
        if not rate:
            return True
        bucket = self._senders.get(connection)
        if bucket is None:
            bucket = self._senders[connection] = Bucket(burst, now)
        if bucket.left(rate, burst, now) < 1:
            self._dropped("rate")
            return False
        bucket.spend(1)
        return True

    def send(self, signal: Signal) -> bool:
        """Hand a signal with valid data to the broker. False: it is lost, because it reaches nobody now."""
        if self._carrier is None or not self._carrier.signal(signal.topic, _encode(signal)):
            self._dropped("unavailable")
            return False
        self._metrics.signals_sent.inc()
        return True

    # --- from the broker ------------------------------------------------------------------------------------

    def heard(self, topic: Topic, payload: bytes) -> None:
        """A signal came for a chat. Called by the broker. Anybody who can publish there may have sent it."""
        chat = self._chats.get(topic)
        if chat is None:
            return
        self._metrics.signals_received.inc()
        limits = self._live.now.limits
        rate = limits.signals_fan_out
        if rate and chat.allowance.left(rate, rate, self._seconds()) <= 0:
            self._dropped("crowded")
            return
        if chat.size > A_TURN:
            self._dropped("crowded")
            return
        chat.allowance.spend(len(chat.members))
        try:
            signal = parse_signal(topic, payload, limits.signal_size)
        except Poison:
            self._dropped("poison")
            return
        if not chat.pending:
            if not self._due:
                self._soon(self._flush)
            self._due.append(topic)
        chat.pending.append(signal)
        chat.size += len(payload)

    def _flush(self) -> None:
        due, self._due = self._due, []
        for topic in due:
            chat = self._chats.get(topic)
            if chat is None or not chat.pending:
                continue  # all receivers have left since
            signals, chat.pending, chat.size = chat.pending, [], 0
            try:
                self._tell(chat, signals)
            except Exception:
                log.failure("signals of {topic} could not be delivered", topic=topic.signals)

    def _tell(self, chat: _Chat, signals: list[Signal]) -> None:
        frames, senders = _Frames(signals), {one.user_id for one in signals}
        others: list[IConnection] = []
        delivered = slow = 0
        for connection in list(chat.members):
            if connection.blocked:
                slow += 1
            elif connection.identity is None or connection.identity.user_id not in senders:
                others.append(connection)
            elif own := frames.without(connection.encoding, connection.identity.user_id):
                delivered += 1
                connection.write(own)
        if others:
            delivered += len(others)
            self._fan_out(others, frames)
        self._metrics.signals_delivered.inc(delivered)
        if slow:
            self._dropped("slow", slow)

    def _dropped(self, reason: str, count: int = 1) -> None:
        self._metrics.signals_dropped.labels(reason).inc(count)
