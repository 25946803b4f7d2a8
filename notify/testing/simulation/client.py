"""A client of a simulated world: the real machine of ``notify.client`` over simulated TCP."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Protocol

import msgspec

from notify.client import actions as do
from notify.client.actions import Frame, Id, Settings
from notify.client.machine import Machine
from notify.testing.simulation.clock import Call, Clock, Host
from notify.testing.simulation.network import Socket
from notify.testing.simulation.plan import Someone

_HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: notify\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Protocol: {}\r\n\r\n"
)


class Watcher(Protocol):
    """Receives everything that a client receives and does."""

    def connected(self, client: SimulatedClient) -> None:
        """A connection is open."""

    def sent(self, client: SimulatedClient, frame: Frame) -> None:
        """It sent a frame."""

    def payload(self, client: SimulatedClient, payload: bytes) -> None:
        """A WebSocket frame arrived."""

    def frame(self, client: SimulatedClient, frame: Frame) -> None:
        """A frame arrived; the machine has not processed it yet."""

    def action(self, client: SimulatedClient, action: do.Action) -> None:
        """The machine requests an action."""

    def closed(self, client: SimulatedClient, code: int, reason: str) -> None:
        """A connection has ended."""


class SimulatedClient:
    """See the module docstring. ``dial`` connects to any node, ``token`` creates a token for a user of a workspace."""

    def __init__(
        self,
        clock: Clock,
        who: Someone,
        random: Random,
        watcher: Watcher,
        dial: Callable[[SimulatedClient], Socket | None],
        token: str,
    ) -> None:
        self.who = who
        self.host = Host(clock, who.name, random.random())
        self.socket: Socket | None = None
        self._clock, self.random, self._watcher, self._dial, self._token = clock, random, watcher, dial, token
        self._timer: Call | None = None
        self._in, self._upgraded = bytearray(), False
        self._busy = False
        self._asked = self._pages = 0
        #: the presence that it asked for, by number
        self.answers: dict[int, list[Frame] | None] = {}
        self.settings = Settings(
            backoff_base=0.2,
            backoff_cap=3.0,
            backoff_floor=0.02,
            stable_after=2.0,
            answer_timeout=4.0,
            connect_timeout=4.0,
            pong_timeout=3.0,
            features=("events",) if who.events else (),
        )
        self.machine = Machine(self.settings, random.random, lambda: clock.now)

    # --- what the application does --------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and subscribe to its chats."""
        for chat in self.who.chats:
            self.machine.subscribe(chat, self._clock.now, None, self.who.watches)
        self.tell(self.machine.start)

    def come_again(self) -> None:
        """The application ends and starts again with the positions that it has stored."""
        positions = {topic.chat: topic.position for topic in self.machine.topics.values()}
        self.tell(self.machine.stop)
        self.machine = Machine(self.settings, self.random.random, lambda: self._clock.now)
        self.machine.topics.notifications.position = positions.pop(None)
        for chat in self.who.chats:
            self.machine.subscribe(chat, self._clock.now, positions.get(chat), self.who.watches)
        self.tell(self.machine.start)

    def ask(self, chat: Id) -> int:
        """Ask who is present. Returns the number of the answer in ``answers``."""
        self._asked += 1
        self.answers[self._asked] = None
        self.tell(lambda now: self.machine.request(self._asked, {"type": "presence", "chat_id": chat}, now))
        return self._asked

    def browse(self, chat: Id, **place: object) -> None:
        """Ask for a page of a chat's history, without the machine. ``place`` says which page and how much."""
        if self.machine.state == "connected":
            self._pages += 1
            frame: Frame = {"type": "history", "chat_id": chat, "id": f"page-{self._pages}", **place}
            self._watcher.sent(self, frame)
            self._send(1, msgspec.json.encode(frame))

    def tell(self, call: Callable[[float], object]) -> None:
        """Report an event to the machine."""
        call(self._clock.now)
        self._carry_out()

    # --- the machine ----------------------------------------------------------------------------------------

    def _carry_out(self) -> None:
        if self._busy:
            return
        self._busy = True
        while self.machine.actions:
            todo, self.machine.actions = self.machine.actions, []
            for action in todo:
                self._watcher.action(self, action)
                self._act(action)
        self._busy = False
        due = self.machine.deadline()
        if self._timer is not None and self._timer.active():
            if due is not None and self._timer.at == round(due, 6):
                return
            self._timer.cancel()
        self._timer = None
        if due is not None:
            self._timer = self.host.callLater(due - self._clock.now + 1e-6, self._tick)

    def _tick(self) -> None:
        self.tell(self.machine.tick)

    def _act(self, action: do.Action) -> None:
        match action:
            case do.Send(frame):
                self._watcher.sent(self, frame)
                self._send(1, msgspec.json.encode(frame))
            case do.Open():
                self._open()
            case do.Close(code, reason):
                self._leave(code, reason)
            case do.FetchToken(n):
                self.machine.token(n, self._token, self._clock.now)
            case do.SubscriptionChanged(chat, "paused"):
                self.machine.resume(chat, self._clock.now)
            case do.Done(n, _, users):
                self.answers[n] = users or []

    def _open(self) -> None:
        self._in.clear()
        self._upgraded = False
        self.socket = self._dial(self)
        if self.socket is None:
            self.host.callLater(0.001, self._lost)
            return
        kind = "notify.v1.json.batch" if self.who.batch else "notify.v1.json"
        self.socket.write(_HANDSHAKE.format(kind).encode())

    def _leave(self, code: int, reason: str) -> None:
        socket, self.socket = self.socket, None
        if socket is not None:
            self._watcher.closed(self, code, "by the client")
            if self._upgraded:
                socket.write(self._framed(8, code.to_bytes(2, "big") + reason.encode()))
            socket.close()

    def _lost(self) -> None:
        """The connection ended without a close frame, or could not be opened."""
        self._ended(1006, "")

    def _ended(self, code: int, reason: str) -> None:
        socket, self.socket = self.socket, None
        if socket is not None:
            socket.close()
        self._watcher.closed(self, code, reason)
        self.tell(lambda now: self.machine.closed(code, reason, now))

    # --- the wire -------------------------------------------------------------------------------------------

    def received(self, socket: Socket, data: bytes) -> None:
        """Bytes arrived."""
        if socket is not self.socket:
            return
        self._in += data
        if not self._upgraded:
            end = self._in.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self._in.startswith(b"HTTP/1.1 101"):
                self._lost()
                return
            del self._in[: end + 4]
            self._upgraded = True
            self._watcher.connected(self)
            self.tell(self.machine.opened)
        while self.socket is socket and self._frame():
            pass

    def lost(self, socket: Socket) -> None:
        """The socket is closed."""
        if socket is self.socket:
            self._lost()

    def _frame(self) -> bool:
        data = self._in
        if len(data) < 2:
            return False
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
        if len(data) < start + size or len(data) < start:
            return False
        opcode, payload = data[0] & 15, bytes(data[start : start + size])
        del data[: start + size]
        self._watcher.payload(self, payload)
        if opcode == 1:
            frames = msgspec.json.decode(payload)
            for frame in frames if isinstance(frames, list) else [frames]:
                self._watcher.frame(self, frame)
                self.machine.received(frame, self._clock.now)
                if self.machine.actions:
                    self._carry_out()
            self._carry_out()
        elif opcode == 9:
            self._send(10, payload)
        elif opcode == 8:
            code = int.from_bytes(payload[:2], "big") if payload else 1005
            if self.socket is not None:
                self.socket.write(self._framed(8, payload))
            self._ended(code, payload[2:].decode())
        return True

    def _send(self, opcode: int, payload: bytes) -> None:
        if self.socket is not None:
            self.socket.write(self._framed(opcode, payload))

    def _framed(self, opcode: int, payload: bytes) -> bytes:
        mask, size = self.random.randbytes(4), len(payload)
        head = (
            bytes((0x80 | opcode, 0x80 | size))
            if size < 126
            else bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big")
        )
        key = (mask * (size // 4 + 1))[:size]
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
        return head + mask + masked
