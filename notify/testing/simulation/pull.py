"""A model of a durable pull consumer, as used by ``delivery = "consumer"``."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from notify.testing.simulation.clock import Call, Clock, Draw, Host
from notify.testing.simulation.stream import NANO, Stored, Stream, matches, stamp


class Server(Protocol):
    """What a consumer needs of its cluster."""

    clock: Clock
    host: Host
    draw: Draw

    def reaches(self, client: Any) -> bool:
        """Whether messages reach a client."""

    def tell(
        self, subject: str, data: bytes, block: bytes = b"", reply: str = "", delay: float = 0.0
    ) -> None:
        """Send a message to all subscribed clients."""


class _Request:
    def __init__(
        self, client: Any, reply: str, left: int, until: float, heartbeat: float, now: float
    ) -> None:
        self.client, self.reply, self.left, self.until = client, reply, left, until
        self.heartbeat, self.said = heartbeat, now


class Pull:
    """See the module docstring. Pull requests take turns, whoever made them: one that was served goes to the end of the queue."""

    def __init__(self, server: Server, stream: Stream, name: str, config: dict[str, Any]) -> None:
        self._server, self._stream, self.name, self.config = server, stream, name, config
        self._clock = server.clock
        self.created = stamp(self._clock.now)
        start = {"all": stream.first_seq or 1, "by_start_sequence": config.get("opt_start_seq", 1)}
        self._next = start.get(config.get("deliver_policy", "all"), stream.last_seq + 1)
        self._generation = stream.generation
        self.delivered = 0
        self._ack_wait = config.get("ack_wait", 30 * NANO) / NANO
        self._waiting: list[_Request] = []
        #: by number in the stream: when it is redelivered, and how often it was delivered
        self._pending: dict[int, tuple[float, int]] = {}
        self._again: list[int] = []
        self._timer: Call | None = None
        self._ended = False

    def info(self) -> dict[str, Any]:
        """Its description, as in the API."""
        return {
            "stream_name": self._stream.name,
            "name": self.name,
            "created": self.created,
            "config": self.config,
            "delivered": {"consumer_seq": self.delivered, "stream_seq": self._next - 1},
            "ack_floor": {"consumer_seq": 0, "stream_seq": 0},
            "num_ack_pending": len(self._pending),
            "num_redelivered": 0,
            "num_waiting": len(self._waiting),
            "num_pending": 0,
        }

    def asked(self, client: Any, reply: str, body: dict[str, Any]) -> None:
        """A client requests messages."""
        now = self._clock.now
        expires, heartbeat = body.get("expires", 0) / NANO, body.get("idle_heartbeat", 0) / NANO
        self._waiting.append(_Request(client, reply, body.get("batch", 1), now + expires, heartbeat, now))
        self.pump()
        self._watch()

    def acknowledged(self, seq: int, data: bytes) -> None:
        """A client has handled a message."""
        self._pending.pop(seq, None)

    def left(self, client: Any) -> None:
        """A client has disconnected."""
        self._waiting = [one for one in self._waiting if one.client is not client]

    def end(self, words: str) -> None:
        """The consumer no longer exists."""
        self._ended = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for one in self._waiting:
            self._status(one, f"409 {words}")
        self._waiting = []

    def pump(self) -> None:
        """Send available messages to the waiting requests."""
        if self._generation != self._stream.generation:
            self._generation = self._stream.generation
            self._next = min(self._next, self._stream.last_seq + 1)
        while self._waiting and not self._ended:
            request = self._waiting[0]
            if not self._server.reaches(request.client) or not request.client.interested(request.reply):
                del self._waiting[0]
                continue
            one = self._choose()
            if one is None:
                return
            self._deliver(request, one)

    def _choose(self) -> Stored | None:
        messages = self._stream.messages
        while self._again:
            seq = self._again.pop(0)
            if seq in messages and seq in self._pending:
                return messages[seq]
        patterns = self.config.get("filter_subjects") or [self.config.get("filter_subject") or ">"]
        while self._next <= self._stream.last_seq:
            one = messages.get(self._next)
            self._next += 1
            if one is not None and any(matches(pattern, one.subject) for pattern in patterns):
                return one
        return None

    def _deliver(self, request: _Request, one: Stored) -> None:
        self.delivered += 1
        times = self._pending.get(one.seq, (0.0, 0))[1] + 1
        self._pending[one.seq] = (self._clock.now + self._ack_wait, times)
        left = self._stream.last_seq - self._next + 1
        ack = f"$JS.ACK.{self._stream.name}.{self.name}.{times}.{one.seq}.{self.delivered}.{round(one.at * NANO)}.{left}"
        request.left -= 1
        request.said = self._clock.now
        self._waiting.remove(request)
        if request.left:
            self._waiting.append(request)
        self._watch()
        request.client.hand_over_as(one.subject, request.reply, ack, one.data, one.block)

    def _watch(self) -> None:
        if self._ended or (self._timer is not None and self._timer.active()):
            return
        if self._waiting or self._pending:
            self._timer = self._clock.call(self._server.host, self._server.host.rank, 0.5, self._look)

    def _look(self) -> None:
        now = self._clock.now
        for one in list(self._waiting):
            if now >= one.until:
                self._waiting.remove(one)
                self._status(
                    one, f"408 Request Timeout\r\nNats-Pending-Messages: {one.left}\r\nNats-Pending-Bytes: 0"
                )
            elif one.heartbeat and now - one.said >= one.heartbeat:
                one.said = now
                self._status(one, f"100 Idle Heartbeat\r\nNats-Last-Consumer: {self.delivered}")
        most = self.config.get("max_deliver", -1)
        for seq, (at, times) in list(self._pending.items()):
            if now >= at:
                if 0 < most <= times:
                    del self._pending[seq]
                    self._server.tell(
                        f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{self._stream.name}.{self.name}",
                        msgspec.json.encode({"stream_seq": seq, "deliveries": times}),
                    )
                elif seq not in self._again:
                    self._pending[seq] = (now + self._ack_wait, times)
                    self._again.append(seq)
        self.pump()
        self._watch()

    def _status(self, request: _Request, words: str) -> None:
        request.client.hand_over(request.reply, "", b"", f"NATS/1.0 {words}\r\n\r\n".encode())
