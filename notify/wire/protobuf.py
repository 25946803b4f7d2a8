"""``notify.v1.protobuf``: binary frames of proto/notify.proto, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from msgspec import UNSET, Raw

from notify import ids
from notify.ids import Id
from notify.wire.frames import (
    Auth,
    AuthResult,
    ChatEventFrame,
    ChatMessageFrame,
    ClientFrame,
    Encoding,
    Error,
    HistoryPage,
    HistoryQuery,
    InvalidFrame,
    NotificationFrame,
    Ok,
    Ping,
    Pong,
    PresenceList,
    PresenceQuery,
    Refresh,
    RequestId,
    ServerFrame,
    Signal,
    SignalFrame,
    Since,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from notify.wire.proto import notify_pb2 as pb

#: the most messages in one client frame
MAX_MESSAGES = 1000
#: the most characters of a request's id, an epoch, a feature's name, and a signal's kind
MAX_TEXT = 64
#: the most messages in one page of a chat's history
MAX_PAGE = 100
#: the most features that a client may list
MAX_FEATURES = 64


class ProtobufEncoding(Encoding):
    """See :class:`~notify.wire.frames.Encoding`. A body is a whole ``ServerFrame``, and so is a sequence of bodies."""

    subprotocol = "notify.v1.protobuf"
    binary = True

    def decode(self, payload: bytes) -> list[ClientFrame]:
        """See :meth:`Encoding.decode`."""
        try:
            messages = pb.ClientFrame.FromString(payload).messages
        except DecodeError:
            raise InvalidFrame("not a valid ClientFrame") from None
        if len(messages) > MAX_MESSAGES:
            raise InvalidFrame(f"more than {MAX_MESSAGES} messages in one frame")
        return [_client_frame(message) for message in messages]

    def encode(self, frame: ServerFrame) -> bytes:
        """See :meth:`Encoding.encode`."""
        message = pb.ServerMessage()
        _WRITERS[type(frame)](message, frame)
        body = message.SerializeToString()
        return b"\n" + _varint(len(body)) + body  # field 1 of a ServerFrame, of length type

    def payloads(self, bodies: Sequence[bytes]) -> Sequence[bytes]:
        """See :meth:`Encoding.payloads`."""
        return (b"".join(bodies),)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


# --- client to server ---------------------------------------------------------------------------------------


def _client_frame(message: Any) -> ClientFrame:
    id: RequestId | None = None
    which = message.WhichOneof("request")
    if which is not None:
        id = getattr(message, which)
        if isinstance(id, str) and len(id) > MAX_TEXT:
            raise InvalidFrame(f"an id has up to {MAX_TEXT} characters")
    kind = message.WhichOneof("body")
    if kind is None:
        raise InvalidFrame("unknown message type", id)
    return _READERS[kind](getattr(message, kind), id)


def _since(body: Any, id: RequestId | None, name: str = "since") -> Since | None:
    if not body.HasField(name):
        return None
    since = getattr(body, name)
    if len(since.epoch) > MAX_TEXT:
        raise InvalidFrame(f"an epoch has up to {MAX_TEXT} characters", id)
    return Since(since.epoch, since.seq)


def _history(body: Any, id: RequestId | None) -> HistoryQuery:
    before, after = _since(body, id, "before"), _since(body, id, "after")
    limit = body.limit if body.HasField("limit") else 50
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidFrame(f"a page has 1 to {MAX_PAGE} messages", id)
    try:
        return HistoryQuery(_chat(body, id), before, after, limit, id)
    except InvalidFrame:
        raise
    except ValueError as error:
        raise InvalidFrame(str(error), id) from None


def _features(body: Any, id: RequestId | None) -> tuple[str, ...] | None:
    if len(body.features) > MAX_FEATURES or any(len(one) > MAX_TEXT for one in body.features):
        raise InvalidFrame(f"up to {MAX_FEATURES} features of up to {MAX_TEXT} characters", id)
    return tuple(body.features) or None


def _chat(body: Any, id: RequestId | None) -> Id:
    """The integer id, or the text id in the field beside it."""
    text: str = body.chat_id_text
    if not text:
        number: int = body.chat_id
        return number
    if body.chat_id or not ids.valid(text):
        raise InvalidFrame("chat_id_text stands alone, and is text that does not look like an integer", id)
    return text


def _signal(body: Any, id: RequestId | None) -> Signal:
    if not 0 < len(body.kind) <= MAX_TEXT:
        raise InvalidFrame(f"the kind of a signal has 1 to {MAX_TEXT} characters", id)
    return Signal(_chat(body, id), body.kind, Raw(body.data), id)


_READERS: dict[str, Callable[[Any, RequestId | None], ClientFrame]] = {
    "auth": lambda body, request: Auth(body.token, _since(body, request), request, _features(body, request)),
    "refresh": lambda body, request: Refresh(body.token, request),
    "subscribe": lambda body, request: Subscribe(
        _chat(body, request), _since(body, request), body.watch_presence, request
    ),
    "unsubscribe": lambda body, request: Unsubscribe(_chat(body, request), request),
    "presence": lambda body, request: PresenceQuery(_chat(body, request), request),
    "history": _history,
    "signal": _signal,
    "ping": lambda _, request: Ping(request),
}


# --- server to client ---------------------------------------------------------------------------------------


def _set_id(message: Any, id: object) -> None:
    if isinstance(id, int):
        message.id = id
    elif isinstance(id, str):
        message.id_text = id


def _put(body: Any, frame: Any, *names: str) -> None:
    """Copy these fields if they are present; a text id goes into the ``..._text`` field."""
    for name in names:
        value = getattr(frame, name)
        if value is not None and value is not UNSET:
            setattr(body, f"{name}_text" if name in _IDS and isinstance(value, str) else name, value)


_IDS = frozenset(
    ("user_id", "chat_id", "message_id", "sender_id", "notification_id", "refers_to")
)  # fields that may be text
_PLACE = ("timestamp", "epoch", "seq", "prev")


def _auth_result(message: Any, frame: AuthResult) -> None:
    _set_id(message, frame.id)
    body = message.auth_result
    _put(body, frame, "success", "user_id", "connection_id", "expires_at", "ping_interval", "epoch", "seq")
    _put(body, frame, "recovered")
    if frame.features is not UNSET:
        body.features.extend(frame.features)


def _chat_message(message: Any, frame: ChatMessageFrame) -> None:
    _put(message.chat_message, frame, "chat_id", "message_id", "sender_id", "content", *_PLACE)


def _chat_event(message: Any, frame: ChatEventFrame) -> None:
    body = message.chat_event
    _put(body, frame, "chat_id", "message_id", "sender_id", "kind", "refers_to", *_PLACE)
    body.data = bytes(frame.data)


def _notification(message: Any, frame: NotificationFrame) -> None:
    body = message.notification
    _put(body, frame, "notification_id", "user_id", "kind", *_PLACE)
    body.data = bytes(frame.data)


def _signalled(message: Any, frame: SignalFrame) -> None:
    _put(message.signal, frame, "chat_id", "user_id", "kind")
    message.signal.data = bytes(frame.data)


def _subscribed(message: Any, frame: Subscribed) -> None:
    _set_id(message, frame.id)
    message.subscribed.SetInParent()
    _put(message.subscribed, frame, "chat_id", "epoch", "seq", "recovered")


def _ok(message: Any, frame: Ok) -> None:
    _set_id(message, frame.id)
    message.ok.SetInParent()
    _put(message.ok, frame, "expires_at")


def _pong(message: Any, frame: Pong) -> None:
    _set_id(message, frame.id)
    message.pong.SetInParent()


def _presence(message: Any, frame: PresenceList) -> None:
    _set_id(message, frame.id)
    message.presence.SetInParent()
    _put(message.presence, frame, "chat_id")
    for user in frame.users:
        _put(message.presence.users.add(), user, "user_id", "connections")


def _page(message: Any, frame: HistoryPage) -> None:
    _set_id(message, frame.id)
    message.history.SetInParent()
    _put(message.history, frame, "chat_id", "more", "epoch", "seq", "start")
    for one in frame.messages:
        _WRITERS[type(one)](message.history.messages.add(), one)


def _error(message: Any, frame: Error) -> None:
    _set_id(message, frame.id)
    message.error.SetInParent()
    _put(message.error, frame, "code", "message", "retry", "chat_id")


_WRITERS: dict[type, Callable[[Any, Any], None]] = {
    AuthResult: _auth_result,
    ChatMessageFrame: _chat_message,
    ChatEventFrame: _chat_event,
    NotificationFrame: _notification,
    SignalFrame: _signalled,
    Subscribed: _subscribed,
    Ok: _ok,
    Pong: _pong,
    PresenceList: _presence,
    HistoryPage: _page,
    Error: _error,
}
