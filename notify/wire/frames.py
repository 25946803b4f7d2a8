"""Client frames in, server frames out: pure values and bytes, one encoding for each subprotocol.

The wire contract is docs/protocol.md, section 1. A client frame that violates it raises :class:`InvalidFrame`.
Unknown fields are ignored, so that newer clients can talk to older servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Annotated, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from notify import ids
from notify.identity import Presence
from notify.ids import Id, Int64
from notify.messages import ChatEvent, ChatMessage, Epoch, Message, SignalKind

RequestId: TypeAlias = Int64 | Annotated[str, Meta(max_length=64)]


#: feature names that a client may list; more than a few are a mistake
Features: TypeAlias = Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=64)]

#: messages in one page of a chat's history
PageLimit: TypeAlias = Annotated[int, Meta(ge=1, le=100)]

#: events of a chat that are not chat messages: edits, deletions, reactions, membership changes
EVENTS = "events"

#: the server answers `history`
HISTORY = "history"

#: transient notices between the members of a chat that are not stored: who is typing, where a cursor is
SIGNALS = "signals"

#: the features that a client can ask for by name, and those of them that change what the server sends unasked
FEATURES = frozenset((EVENTS, HISTORY, SIGNALS))
ENCODED = frozenset((EVENTS, SIGNALS))


class InvalidFrame(ValueError):  # noqa: N818
    """A client frame that violates the protocol. ``id`` is that of the frame, if it could be read."""

    def __init__(self, reason: str, id: RequestId | None = None) -> None:
        super().__init__(reason)
        self.id = id


# --- client to server ---------------------------------------------------------------------------------------


class Since(Struct, frozen=True):
    """A position as a client sends it: any epoch, any 64-bit number. An unknown position is not recovered."""

    epoch: Epoch
    seq: Int64


class Auth(Struct, frozen=True, tag="auth"):
    """Authenticate; with ``since``, replay this user's notifications after it.

    ``features`` names what the client supports beyond the basic protocol; unknown names are ignored.
    """

    token: str
    since: Since | None = None
    id: RequestId | None = None
    features: Features | None = None


class Refresh(Struct, frozen=True, tag="refresh"):
    """A new token for the same user and workspace."""

    token: str
    id: RequestId | None = None


class Subscribe(Struct, frozen=True, tag="subscribe"):
    """Receive this chat's messages from now on; with ``since``, first those after that position."""

    chat_id: Id
    since: Since | None = None
    watch_presence: bool = False
    id: RequestId | None = None


class Unsubscribe(Struct, frozen=True, tag="unsubscribe"):
    """Receive no more messages of this chat."""

    chat_id: Id
    id: RequestId | None = None


class PresenceQuery(Struct, frozen=True, tag="presence"):
    """Ask who is in this chat."""

    chat_id: Id
    id: RequestId | None = None


class HistoryQuery(Struct, frozen=True, tag="history"):
    """Ask for this chat's history: its newest messages, or those before or after a position."""

    chat_id: Id
    before: Since | None = None
    after: Since | None = None
    limit: PageLimit = 50
    id: RequestId | None = None

    def __post_init__(self) -> None:
        """Raises ``ValueError`` if both positions are given."""
        if self.before is not None and self.after is not None:
            raise ValueError("a page is before a position or after one")


class Signal(Struct, frozen=True, tag="signal"):
    """Send a signal once to the chat's other members; it is stored nowhere. With the feature ``signals`` only.

    ``data`` is any JSON value, kept as the bytes that arrived: only where it ends has been checked.
    """

    chat_id: Id
    kind: SignalKind
    data: Raw
    id: RequestId | None = None


class Ping(Struct, frozen=True, tag="ping"):
    """Answered by a pong."""

    id: RequestId | None = None


ClientFrame: TypeAlias = (
    Auth | Refresh | Subscribe | Unsubscribe | PresenceQuery | HistoryQuery | Signal | Ping
)

# --- server to client ---------------------------------------------------------------------------------------


class AuthResult(Struct, frozen=True, tag="auth_result"):
    """Answers ``auth``. All but the first two fields are present only on success; ``epoch``, ``seq`` and ``recovered``
    only with ``since``; and ``features``, the granted ones, only if the client asked for some.
    """

    success: bool
    user_id: Id | None
    connection_id: str | UnsetType = UNSET
    expires_at: int | UnsetType | None = UNSET
    ping_interval: int | UnsetType = UNSET
    epoch: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    recovered: bool | UnsetType = UNSET
    features: tuple[str, ...] | UnsetType = UNSET
    id: RequestId | UnsetType = UNSET


class Subscribed(Struct, frozen=True, tag="subscribed"):
    """Answers ``subscribe``: the chat's newest position, and whether all messages after ``since`` follow."""

    chat_id: Id
    epoch: str
    seq: int
    recovered: bool
    id: RequestId | UnsetType = UNSET


class Ok(Struct, frozen=True, tag="ok"):
    """Answers ``unsubscribe``, ``signal`` and ``refresh`` frames that carry an ``id``; ``refresh`` with the new ``expires_at``."""

    id: RequestId
    expires_at: int | UnsetType | None = UNSET


class Pong(Struct, frozen=True, tag="pong"):
    """Answers ``ping``."""

    id: RequestId | UnsetType = UNSET


class PresenceList(Struct, frozen=True, tag="presence"):
    """Who is connected and subscribed to a chat, on any node."""

    chat_id: Id
    users: list[Presence]
    id: RequestId | UnsetType = UNSET


class Error(Struct, frozen=True, tag="error"):
    """A request was refused. ``retry`` is present where trying again later may help.

    ``chat_id`` without an ``id``: the subscription to this chat has ended.
    """

    code: str
    message: str
    id: RequestId | UnsetType = UNSET
    retry: bool | UnsetType = UNSET
    chat_id: Id | UnsetType = UNSET


class ChatMessageFrame(Struct, frozen=True, tag="chat_message"):
    """A chat message and its position."""

    chat_id: Id
    message_id: Id
    sender_id: Id
    content: str
    timestamp: int
    epoch: str
    seq: int
    prev: int


class ChatEventFrame(Struct, frozen=True, tag="chat_event"):
    """A change in a chat other than a message, and its position; with the feature ``events`` only."""

    chat_id: Id
    message_id: Id
    sender_id: Id
    kind: str
    data: Raw
    timestamp: int
    epoch: str
    seq: int
    prev: int
    refers_to: Id | UnsetType = UNSET


class NotificationFrame(Struct, frozen=True, tag="notification"):
    """A user notification and its position."""

    notification_id: Id
    user_id: Id
    kind: str
    data: Raw
    timestamp: int
    epoch: str
    seq: int
    prev: int


class HistoryPage(Struct, frozen=True, tag="history"):
    """Answers ``history``: one page of the chat's history, oldest first, and whether there is more in the requested direction.

    ``start`` and ``seq`` are where the page begins and ends: continue before ``start``, or after ``seq``. ``start`` is absent if nothing is kept.
    """

    chat_id: Id
    messages: list[ChatMessageFrame | ChatEventFrame]
    more: bool
    epoch: str
    seq: int
    start: int | UnsetType = UNSET
    id: RequestId | UnsetType = UNSET


class SignalFrame(Struct, frozen=True, tag="signal"):
    """A signal from a member of a chat, or from the backend in a user's name; with the feature ``signals`` only. It has no position."""

    chat_id: Id
    user_id: Id
    kind: str
    data: Raw


ServerFrame: TypeAlias = (
    AuthResult
    | Subscribed
    | Ok
    | Pong
    | PresenceList
    | HistoryPage
    | Error
    | ChatMessageFrame
    | ChatEventFrame
    | NotificationFrame
    | SignalFrame
)

MessageFrame: TypeAlias = ChatMessageFrame | ChatEventFrame | NotificationFrame


def message_frame(message: Message, prev: int) -> MessageFrame:
    """The server frame of a message.

    ``prev`` is the ``seq`` of the message before it that its receivers got in this topic.
    """
    event, position = message.event, message.position
    if isinstance(event, ChatMessage):
        return ChatMessageFrame(
            event.chat_id,
            event.message_id,
            event.sender_id,
            event.content,
            event.timestamp,
            position.epoch,
            position.seq,
            prev,
        )
    if isinstance(event, ChatEvent):
        return ChatEventFrame(
            event.chat_id,
            event.message_id,
            event.sender_id,
            event.kind,
            event.data,
            event.timestamp,
            position.epoch,
            position.seq,
            prev,
            UNSET if event.refers_to is None else event.refers_to,
        )
    return NotificationFrame(
        event.notification_id,
        event.user_id,
        event.kind,
        event.data,
        event.timestamp,
        position.epoch,
        position.seq,
        prev,
    )


# --- encodings ----------------------------------------------------------------------------------------------

TEXT, BINARY = 0x1, 0x2


def websocket_frame(payload: bytes, opcode: int, rsv: int = 0) -> bytes:
    """One whole unmasked server frame (RFC 6455, section 5.2). ``rsv`` is 0x40 for a compressed one."""
    first, length = 0x80 | rsv | opcode, len(payload)
    if length < 126:
        return bytes((first, length)) + payload
    if length < 65536:
        return bytes((first, 126)) + length.to_bytes(2, "big") + payload
    return bytes((first, 127)) + length.to_bytes(8, "big") + payload


class Encoding:
    """How the frames of one kind of connection are read and made.

    One instance serves every connection with the same negotiated options, so that a message is encoded once for all.
    """

    #: the WebSocket subprotocol that selects it; None: selected if the client offered none
    subprotocol: str
    #: whether frames are binary; frames of the other kind are invalid
    binary = False
    #: the features granted to its connections; other sets of features have their own instance
    features: frozenset[str] = frozenset()
    #: whether a chat's events, and its signals, are sent to its connections
    events = signals = False

    def featured(self, features: frozenset[str]) -> Encoding:
        """The same encoding for connections with these features. See :func:`notify.wire.encodings.featured`."""
        other = copy(self)
        other.features, other.events, other.signals = features, EVENTS in features, SIGNALS in features
        return other

    def decode(self, payload: bytes) -> list[ClientFrame]:
        """The frames in one WebSocket message. Raises :class:`InvalidFrame`."""
        raise NotImplementedError

    def encode(self, frame: ServerFrame) -> bytes:
        """The body of one frame. Bodies are the input of :meth:`pack`."""
        raise NotImplementedError

    def payloads(self, bodies: Sequence[bytes]) -> Sequence[bytes]:
        """The payloads of the WebSocket messages that carry these bodies in order."""
        raise NotImplementedError

    def pack(self, bodies: Sequence[bytes]) -> bytes:
        """WebSocket frames with headers that carry these bodies in order: the argument of ``IConnection.write``."""
        opcode = BINARY if self.binary else TEXT
        payloads = self.payloads(bodies)
        if len(payloads) == 1:  # nearly always
            return websocket_frame(payloads[0], opcode)
        return b"".join([websocket_frame(payload, opcode) for payload in payloads])

    def frame(self, frame: ServerFrame) -> bytes:
        """One frame, ready to write."""
        return self.pack((self.encode(frame),))


class _AnyFrame(Struct):
    id: RequestId | None = None


_one = msgspec.json.Decoder(ClientFrame)
_one_or_many = msgspec.json.Decoder(ClientFrame | list[ClientFrame])
_any = msgspec.json.Decoder(_AnyFrame)
_encode = msgspec.json.Encoder().encode


def _invalid(payload: bytes, error: Exception) -> InvalidFrame:
    """Say what is wrong without quoting the frame, and name its id if that can be read."""
    try:
        id = _any.decode(payload).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        id = None
    if isinstance(error, msgspec.ValidationError):
        # msgspec quotes an unknown tag, which is the client's text.
        reason = "unknown message type" if str(error).startswith("Invalid value") else ids.explained(error)
    elif isinstance(error, RecursionError):
        reason = "nested too deeply"
    else:
        reason = "not valid JSON"
    return InvalidFrame(reason, id)


class JSONEncoding(Encoding):
    """``notify.v1.json``: one JSON object per text frame."""

    subprotocol = "notify.v1.json"

    def decode(self, payload: bytes) -> list[ClientFrame]:
        """See :meth:`Encoding.decode`."""
        try:
            return [_one.decode(payload)]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _invalid(payload, error) from None

    def encode(self, frame: ServerFrame) -> bytes:
        """See :meth:`Encoding.encode`."""
        return _encode(frame)

    def payloads(self, bodies: Sequence[bytes]) -> Sequence[bytes]:
        """See :meth:`Encoding.payloads`."""
        return bodies


class BatchEncoding(JSONEncoding):
    """``notify.v1.json.batch``: a JSON array of objects per text frame. A client may send an object or an array."""

    subprotocol = "notify.v1.json.batch"

    def decode(self, payload: bytes) -> list[ClientFrame]:
        """See :meth:`Encoding.decode`."""
        try:
            decoded = _one_or_many.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _invalid(payload, error) from None
        return decoded if isinstance(decoded, list) else [decoded]

    def payloads(self, bodies: Sequence[bytes]) -> Sequence[bytes]:
        """See :meth:`Encoding.payloads`."""
        return (b"[" + b",".join(bodies) + b"]",)


JSON = JSONEncoding()


class Made(Struct, frozen=True, array_like=True, gc=False):
    """Messages of a topic as plain JSON, ready to write: ``frame`` is what :meth:`JSONEncoding.pack` makes of them.

    The first follows number ``prev``, and ``last`` is the number of the last. They are the same for all kinds of
    receiver that were sent ``prev`` before: no chat event is among them.
    """

    prev: int
    last: int
    frame: bytes

    @classmethod
    def of(cls, messages: Sequence[Message], prev: int) -> Made | None:
        """Encode these messages, one or more; None: not all kinds of receiver are sent all of them."""
        frames, first = [], prev
        for message in messages:
            if isinstance(message.event, ChatEvent):
                return None
            frames.append(websocket_frame(_encode(message_frame(message, prev)), TEXT))
            prev = message.position.seq
        return cls(first, prev, b"".join(frames))

    def fits(self, encoding: Encoding, prev: int) -> bool:
        """Whether this is the frame for receivers with this encoding that were sent ``prev`` before."""
        return type(encoding) is JSONEncoding and self.prev == prev

    def then(self, later: Made) -> Made | None:
        """Both together; None: ``later`` does not follow this."""
        return Made(self.prev, later.last, self.frame + later.frame) if later.prev == self.last else None
