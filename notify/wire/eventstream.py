"""Server-sent events (WHATWG HTML, section 9.2): frames as events, whose ``id`` carries the client's positions.

As everywhere, a message is encoded once for all streams. The ``id`` line differs between streams, so a
:class:`Composer` adds it when the bytes are written. What :meth:`EventStreamEncoding.pack` returns is therefore not
yet what a client receives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, unquote

import msgspec
from msgspec import UNSET, Struct, UnsetType

from notify import ids
from notify.ids import INT64_MAX, Id
from notify.wire.frames import (
    AuthResult,
    ChatEventFrame,
    ChatMessageFrame,
    Encoding,
    Error,
    NotificationFrame,
    PresenceList,
    ServerFrame,
    Since,
    Subscribed,
)

#: the most chats in one stream
MOST_CHATS = 32

#: stands for the user's notifications in place of a chat's id; no id contains this character
MINE = b"*"

#: the most characters of an epoch
_MOST_EPOCH = 64
_SEQ = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)

# The start of a body tells the composer what it must know: a message and its position; the answer to a question about
# a topic, with the topic's position and whether missed messages follow; an error about a chat; or nothing.
_MESSAGE, _ANSWER, _ERROR, _OTHER = b"M", b"A", b"E", b"-"

_encode = msgspec.json.Encoder().encode
_LINES = bytes.maketrans(b"\r\n", b"  ")


class Lost(Struct, frozen=True, tag="lost"):
    """The messages after a client's position in a chat cannot be given; without ``chat_id``: its notifications.

    The stream goes on from this position.
    """

    chat_id: Id | UnsetType
    epoch: str
    seq: int


class Close(Struct, frozen=True, tag="close", omit_defaults=True):
    """The last event: a close code of docs/protocol.md, and its details."""

    code: int
    reason: str = ""
    retry_after_ms: int | UnsetType = UNSET
    elsewhere: bool | UnsetType = UNSET


class Advice(Struct, frozen=True):
    """The contents of a close reason."""

    retry_after_ms: int | UnsetType = UNSET
    elsewhere: bool | UnsetType = UNSET


_advice = msgspec.json.Decoder(Advice)

#: an event that the client does not see, which keeps the connection alive
HEARTBEAT = b"-\n: alive\n\n"


def farewell(code: int, reason: str) -> tuple[Close, bytes]:
    """The last event of a stream, as a value and as bytes. ``reason`` is the reason of a WebSocket's Close."""
    advice, text = Advice(), reason
    if reason[:1] == "{":
        try:
            advice, text = _advice.decode(reason), ""
        except msgspec.DecodeError:
            pass
    close = Close(code, text, advice.retry_after_ms, advice.elsewhere)
    wait = b"" if close.retry_after_ms is UNSET else b"retry: %d\n" % close.retry_after_ms
    return close, b"event: close\n%bdata: %b\n\n" % (wait, _encode(close).translate(_LINES))


def _key(chat_id: Id) -> bytes:
    return str(chat_id).encode()


class EventStreamEncoding(Encoding):
    """``event-stream``: one event per frame, named after its type; its data is the JSON of ``notify.v1.json``.

    A stream asks for each chat once, with the chat's id as the ``id`` of the question. The ``id`` of an answer is
    therefore left out, and becomes the ``chat_id`` of an error.
    """

    subprotocol = "event-stream"

    def encode(self, frame: ServerFrame) -> bytes:
        """See :meth:`Encoding.encode`."""
        about = _OTHER
        match frame:
            case ChatMessageFrame() | ChatEventFrame():
                about = _place(_MESSAGE, _key(frame.chat_id), frame.seq, frame.epoch)
            case NotificationFrame():
                about = _place(_MESSAGE, MINE, frame.seq, frame.epoch)
            case Subscribed():
                about = _place(_ANSWER, _key(frame.chat_id), frame.seq, frame.epoch, frame.recovered)
                frame = Subscribed(frame.chat_id, frame.epoch, frame.seq, frame.recovered)
            case AuthResult(seq=int(seq), epoch=str(epoch), recovered=recovered):
                about = _place(_ANSWER, MINE, seq, epoch, recovered is True)
            case PresenceList():
                frame = PresenceList(frame.chat_id, frame.users)
            case Error():
                chat_id = frame.chat_id if frame.id is UNSET else frame.id
                if chat_id is not UNSET:
                    about = b"%b %b %b" % (_ERROR, _key(chat_id), frame.code.encode())
                frame = Error(frame.code, frame.message, UNSET, frame.retry, chat_id)
        name = type(frame).__struct_config__.tag
        # A publisher's own JSON may contain line breaks, which valid JSON has only between tokens.
        return b"%b\nevent: %b\ndata: %b" % (about, str(name).encode(), _encode(frame).translate(_LINES))

    def payloads(self, bodies: Sequence[bytes]) -> Sequence[bytes]:
        """See :meth:`Encoding.payloads`."""
        return bodies

    def pack(self, bodies: Sequence[bytes]) -> bytes:
        """Input for a :class:`Composer`."""
        return b"\n\n".join((*bodies, b""))


EVENT_STREAM = EventStreamEncoding()


def _place(kind: bytes, key: bytes, seq: int, epoch: str, recovered: bool = False) -> bytes:
    end = b" %d" % recovered if kind == _ANSWER else b""
    return b"%b %b %d %b%b" % (kind, key, seq, quote(epoch, safe="").encode(), end)


class Positions:
    """How far a stream is in each of its topics, as the ``id`` of its events says it.

    The form is ``EPOCH:TOPIC=SEQ,TOPIC=SEQ;EPOCH:TOPIC=SEQ``. Each topic occurs once, as its chat's id or as ``*``
    for the user's notifications; an epoch is percent-encoded. With one epoch, as both built-in brokers have for all
    topics, it is at most 4 KiB, and usually some ten bytes a chat.
    """

    __slots__ = ("_at", "_epochs")

    def __init__(self) -> None:
        self._at: dict[bytes, tuple[bytes, bytes]] = {}
        self._epochs: dict[bytes, dict[bytes, bytes]] = {}

    @classmethod
    def of(cls, positions: Mapping[Id | None, Since]) -> Positions:
        """The positions in these chats; None: in the notifications."""
        made = cls()
        for chat_id, since in positions.items():
            key = MINE if chat_id is None else _key(chat_id)
            made.move(key, b"%d" % since.seq, quote(since.epoch, safe="").encode())
        return made

    def move(self, key: bytes, seq: bytes, epoch: bytes) -> None:
        """Set a topic's position."""
        before = self._at.get(key)
        if before is not None and before[0] != epoch:
            kept = self._epochs[before[0]]
            del kept[key]
            if not kept:
                del self._epochs[before[0]]
        self._at[key] = epoch, seq
        topics = self._epochs.get(epoch)
        if topics is None:
            topics = self._epochs[epoch] = {}
        topics[key] = b"%b=%b" % (key, seq)

    def reach(self, key: bytes, seq: bytes, epoch: bytes) -> None:
        """Set a topic's position, unless it is further already."""
        before = self._at.get(key)
        if before is None or before[0] != epoch or int(before[1]) < int(seq):
            self.move(key, seq, epoch)

    def __contains__(self, key: bytes) -> bool:
        return key in self._at

    def __bytes__(self) -> bytes:
        return b";".join([b"%b:%b" % (epoch, b",".join(one.values())) for epoch, one in self._epochs.items()])


def parse(text: str) -> dict[Id | None, Since]:
    """The positions in an ``id``, by chat; None: the notifications. Raises ``ValueError`` if the server did not make it."""
    found: dict[Id | None, Since] = {}
    for group in text.split(";"):
        encoded, colon, rest = group.partition(":")
        epoch = unquote(encoded, errors="strict")
        if not colon or len(epoch) > _MOST_EPOCH or quote(epoch, safe="") != encoded:
            raise ValueError("not a position's epoch")
        for each in rest.split(","):
            name, _, number = each.partition("=")
            topic = None if name == MINE.decode() else ids.parse(name)
            if not _SEQ.fullmatch(number) or int(number) > INT64_MAX:
                raise ValueError("not a position's number")
            if topic in found or len(found) > MOST_CHATS:
                raise ValueError("a topic twice, or too many of them")
            found[topic] = Since(epoch, int(number))
    return found


class Composer:
    """Turns packed frames into what one client receives.

    It adds the ``id`` of each event, and a ``lost`` event where a position could not be resumed from. ``positions``
    are those that the client brought.
    """

    __slots__ = ("_positions",)

    def __init__(self, positions: Positions) -> None:
        self._positions = positions

    def compose(self, frames: bytes) -> bytes:
        """The bytes to send for one or several packed frames."""
        positions, out, behind = self._positions, [], []
        parts = frames.split(b"\n\n")
        parts.pop()
        last = len(parts) - 1
        for number, part in enumerate(parts):
            head, _, event = part.partition(b"\n")
            out.append(event)
            kind = head[:1]
            if kind == _MESSAGE:
                _, key, seq, epoch = head.split(b" ")
                positions.move(key, seq, epoch)
            elif kind == _ANSWER:
                _, key, seq, epoch, recovered = head.split(b" ")
                if recovered == b"1":
                    # Missed messages follow: a client that is cut off before them has not reached this position.
                    behind.append((key, seq, epoch))
                else:
                    if key in positions:
                        out.append(b"\n\nevent: lost\ndata: " + _lost(key, seq, epoch))
                    positions.move(key, seq, epoch)
            moved = kind in (_MESSAGE, _ANSWER)
            if number == last and behind:
                moved = True
                for each in behind:
                    positions.reach(*each)
            out.append(b"\nid: %b\n\n" % bytes(positions) if moved else b"\n\n")
        return b"".join(out)


def _lost(key: bytes, seq: bytes, epoch: bytes) -> bytes:
    chat_id = UNSET if key == MINE else ids.parse(key.decode())
    return _encode(Lost(chat_id, unquote(epoch.decode()), int(seq)))


class Began(Struct, frozen=True):
    """What the first frames of a stream say: the key of a ``joined`` topic, or the ``code`` that refused a chat."""

    key: bytes
    code: str = ""


def answers(frames: bytes) -> Iterable[Began]:
    """The answers in packed frames to what a stream asked for."""
    for part in frames.split(b"\n\n"):
        kind, *about = part.partition(b"\n")[0].split(b" ")
        if kind == _ANSWER:
            yield Began(about[0])
        elif kind == _ERROR:
            yield Began(about[0], about[1].decode())
