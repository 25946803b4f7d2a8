"""Server-sent events (WHATWG HTML, section 9.2): the frames of a client as events, and the positions that go with each as its ``id``.

A message is encoded once for all streams alike, as everywhere. What is each stream's own, the ``id`` line, is put to it where the
bytes go out: :class:`Composer`. So what :meth:`EventStreamEncoding.pack` makes is not yet what a client gets.
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

#: chats that one stream may have
MOST_CHATS = 32

#: in place of a chat's id: the user's notifications. No id has this character
MINE = b"*"

#: characters of an epoch
_MOST_EPOCH = 64
_SEQ = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)

# How a body begins: what the composer has to know of it. A message's position; the answer to a question for a topic, with the
# topic's position and whether what was missed follows; an error about a chat; nothing.
_MESSAGE, _ANSWER, _ERROR, _OTHER = b"M", b"A", b"E", b"-"

_encode = msgspec.json.Encoder().encode
_LINES = bytes.maketrans(b"\r\n", b"  ")


class Lost(Struct, frozen=True, tag="lost"):
    """What came after the position that a client had in a chat cannot be given; without ``chat_id``: in its notifications.

    It goes on from this position.
    """

    chat_id: Id | UnsetType
    epoch: str
    seq: int


class Close(Struct, frozen=True, tag="close", omit_defaults=True):
    """The last event: a close code of docs/protocol.md, and what goes with it."""

    code: int
    reason: str = ""
    retry_after_ms: int | UnsetType = UNSET
    elsewhere: bool | UnsetType = UNSET


class Advice(Struct, frozen=True):
    """What a close reason may carry."""

    retry_after_ms: int | UnsetType = UNSET
    elsewhere: bool | UnsetType = UNSET


_advice = msgspec.json.Decoder(Advice)

#: an event that a client does not see: that the connection lives
HEARTBEAT = b"-\n: alive\n\n"


def farewell(code: int, reason: str) -> tuple[Close, bytes]:
    """The last event of a stream, as a value and as it is written. ``reason`` is that of a WebSocket's Close."""
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
    """``event-stream``: one event a frame, named after its type, its data the JSON of ``notify.v1.json``.

    A stream asks for each chat once and by its id, which is the ``id`` of the question. So an answer's ``id`` is left out, and is
    the ``chat_id`` of an error.
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
        # A publisher's own JSON may have lines, which can only stand between its tokens.
        return b"%b\nevent: %b\ndata: %b" % (about, str(name).encode(), _encode(frame).translate(_LINES))

    def payloads(self, bodies: Sequence[bytes]) -> Sequence[bytes]:
        """See :meth:`Encoding.payloads`."""
        return bodies

    def pack(self, bodies: Sequence[bytes]) -> bytes:
        """What a :class:`Composer` takes."""
        return b"\n\n".join((*bodies, b""))


EVENT_STREAM = EventStreamEncoding()


def _place(kind: bytes, key: bytes, seq: int, epoch: str, recovered: bool = False) -> bytes:
    end = b" %d" % recovered if kind == _ANSWER else b""
    return b"%b %b %d %b%b" % (kind, key, seq, quote(epoch, safe="").encode(), end)


class Positions:
    """How far a stream is in each of its topics, as its events' ``id`` says it.

    The form is ``EPOCH:TOPIC=SEQ,TOPIC=SEQ;EPOCH:TOPIC=SEQ``, with a topic's id, or ``*`` for the user's notifications, each once; an
    epoch is percent-encoded. With one epoch, as all topics of both built-in brokers have, it is 4 KiB at most, and mostly
    some ten bytes a chat.
    """

    __slots__ = ("_at", "_epochs")

    def __init__(self) -> None:
        self._at: dict[bytes, tuple[bytes, bytes]] = {}
        self._epochs: dict[bytes, dict[bytes, bytes]] = {}

    @classmethod
    def of(cls, positions: Mapping[Id | None, Since]) -> Positions:
        """Those of these chats; None: of the notifications."""
        made = cls()
        for chat_id, since in positions.items():
            key = MINE if chat_id is None else _key(chat_id)
            made.move(key, b"%d" % since.seq, quote(since.epoch, safe="").encode())
        return made

    def move(self, key: bytes, seq: bytes, epoch: bytes) -> None:
        """A topic's position is this from now on."""
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
        """The same, unless it is further already."""
        before = self._at.get(key)
        if before is None or before[0] != epoch or int(before[1]) < int(seq):
            self.move(key, seq, epoch)

    def __contains__(self, key: bytes) -> bool:
        return key in self._at

    def __bytes__(self) -> bytes:
        return b";".join([b"%b:%b" % (epoch, b",".join(one.values())) for epoch, one in self._epochs.items()])


def parse(text: str) -> dict[Id | None, Since]:
    """The positions that an ``id`` holds, by chat; None: of the notifications. Raises ``ValueError`` for what is none of ours."""
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
    """Makes of packed frames what one client gets: each event with its ``id``, and ``lost`` where a position led nowhere.

    ``positions`` are those that the client came with.
    """

    __slots__ = ("_positions",)

    def __init__(self, positions: Positions) -> None:
        self._positions = positions

    def compose(self, frames: bytes) -> bytes:
        """What goes out for one or several packed frames."""
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
                    # What was missed follows: a client that is cut off in between has not come so far.
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
    """What the first frames of a stream say of it: ``joined``, a topic's key, or the ``code`` that a chat was refused with."""

    key: bytes
    code: str = ""


def answers(frames: bytes) -> Iterable[Began]:
    """What packed frames answer to what a stream asked for."""
    for part in frames.split(b"\n\n"):
        kind, *about = part.partition(b"\n")[0].split(b" ")
        if kind == _ANSWER:
            yield Began(about[0])
        elif kind == _ERROR:
            yield Began(about[0], about[1].decode())
