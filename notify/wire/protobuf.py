"""``notify.v1.protobuf``: binary frames of proto/notify.proto, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from msgspec import UNSET

from notify.wire.frames import (
    Auth,
    AuthResult,
    ChatMessageFrame,
    ClientFrame,
    Encoding,
    Error,
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
    Since,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from notify.wire.proto import notify_pb2 as pb

#: messages in one client frame
MAX_MESSAGES = 1000
#: characters of a request's id, and of an epoch
MAX_TEXT = 64


class ProtobufEncoding(Encoding):
    """See :class:`~notify.wire.frames.Encoding`. A body is a whole ``ServerFrame``, and bodies in a row are one, too."""

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


def _since(body: Any, id: RequestId | None) -> Since | None:
    if not body.HasField("since"):
        return None
    if len(body.since.epoch) > MAX_TEXT:
        raise InvalidFrame(f"an epoch has up to {MAX_TEXT} characters", id)
    return Since(body.since.epoch, body.since.seq)


_READERS: dict[str, Callable[[Any, RequestId | None], ClientFrame]] = {
    "auth": lambda body, request: Auth(body.token, _since(body, request), request),
    "refresh": lambda body, request: Refresh(body.token, request),
    "subscribe": lambda body, request: Subscribe(
        body.chat_id, _since(body, request), body.watch_presence, request
    ),
    "unsubscribe": lambda body, request: Unsubscribe(body.chat_id, request),
    "presence": lambda body, request: PresenceQuery(body.chat_id, request),
    "ping": lambda _, request: Ping(request),
}


# --- server to client ---------------------------------------------------------------------------------------


def _set_id(message: Any, id: object) -> None:
    if isinstance(id, int):
        message.id = id
    elif isinstance(id, str):
        message.id_text = id


def _auth_result(message: Any, frame: AuthResult) -> None:
    _set_id(message, frame.id)
    body = message.auth_result
    body.success = frame.success
    for name in ("user_id", "connection_id", "expires_at", "ping_interval", "epoch", "seq", "recovered"):
        value = getattr(frame, name)
        if value is not None and value is not UNSET:
            setattr(body, name, value)


def _chat_message(message: Any, frame: ChatMessageFrame) -> None:
    message.chat_message.MergeFrom(
        pb.ChatMessage(
            chat_id=frame.chat_id,
            message_id=frame.message_id,
            sender_id=frame.sender_id,
            content=frame.content,
            timestamp=frame.timestamp,
            epoch=frame.epoch,
            seq=frame.seq,
            prev=frame.prev,
        )
    )


def _notification(message: Any, frame: NotificationFrame) -> None:
    message.notification.MergeFrom(
        pb.Notification(
            notification_id=frame.notification_id,
            user_id=frame.user_id,
            kind=frame.kind,
            data=bytes(frame.data),
            timestamp=frame.timestamp,
            epoch=frame.epoch,
            seq=frame.seq,
            prev=frame.prev,
        )
    )


def _subscribed(message: Any, frame: Subscribed) -> None:
    _set_id(message, frame.id)
    message.subscribed.MergeFrom(
        pb.Subscribed(chat_id=frame.chat_id, epoch=frame.epoch, seq=frame.seq, recovered=frame.recovered)
    )
    message.subscribed.SetInParent()


def _ok(message: Any, frame: Ok) -> None:
    _set_id(message, frame.id)
    message.ok.SetInParent()
    if isinstance(frame.expires_at, int):
        message.ok.expires_at = frame.expires_at


def _pong(message: Any, frame: Pong) -> None:
    _set_id(message, frame.id)
    message.pong.SetInParent()


def _presence(message: Any, frame: PresenceList) -> None:
    _set_id(message, frame.id)
    message.presence.SetInParent()
    message.presence.chat_id = frame.chat_id
    for user in frame.users:
        message.presence.users.add(user_id=user.user_id, connections=user.connections)


def _error(message: Any, frame: Error) -> None:
    _set_id(message, frame.id)
    message.error.MergeFrom(pb.Error(code=frame.code, message=frame.message, retry=frame.retry is True))
    if frame.chat_id is not UNSET:
        message.error.chat_id = frame.chat_id


_WRITERS: dict[type, Callable[[Any, Any], None]] = {
    AuthResult: _auth_result,
    ChatMessageFrame: _chat_message,
    NotificationFrame: _notification,
    Subscribed: _subscribed,
    Ok: _ok,
    Pong: _pong,
    PresenceList: _presence,
    Error: _error,
}
