from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClientFrame(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ClientMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ClientMessage, _Mapping]]] = ...) -> None: ...

class ClientMessage(_message.Message):
    __slots__ = ("id", "id_text", "auth", "refresh", "subscribe", "unsubscribe", "presence", "ping", "history", "signal")
    ID_FIELD_NUMBER: _ClassVar[int]
    ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    AUTH_FIELD_NUMBER: _ClassVar[int]
    REFRESH_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBE_FIELD_NUMBER: _ClassVar[int]
    UNSUBSCRIBE_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    id: int
    id_text: str
    auth: Auth
    refresh: Refresh
    subscribe: Subscribe
    unsubscribe: Unsubscribe
    presence: PresenceQuery
    ping: Ping
    history: HistoryQuery
    signal: SignalRequest
    def __init__(self, id: _Optional[int] = ..., id_text: _Optional[str] = ..., auth: _Optional[_Union[Auth, _Mapping]] = ..., refresh: _Optional[_Union[Refresh, _Mapping]] = ..., subscribe: _Optional[_Union[Subscribe, _Mapping]] = ..., unsubscribe: _Optional[_Union[Unsubscribe, _Mapping]] = ..., presence: _Optional[_Union[PresenceQuery, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., history: _Optional[_Union[HistoryQuery, _Mapping]] = ..., signal: _Optional[_Union[SignalRequest, _Mapping]] = ...) -> None: ...

class Since(_message.Message):
    __slots__ = ("epoch", "seq")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    seq: int
    def __init__(self, epoch: _Optional[str] = ..., seq: _Optional[int] = ...) -> None: ...

class Auth(_message.Message):
    __slots__ = ("token", "since", "features")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    token: str
    since: Since
    features: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, token: _Optional[str] = ..., since: _Optional[_Union[Since, _Mapping]] = ..., features: _Optional[_Iterable[str]] = ...) -> None: ...

class Refresh(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: str
    def __init__(self, token: _Optional[str] = ...) -> None: ...

class Subscribe(_message.Message):
    __slots__ = ("chat_id", "since", "watch_presence", "chat_id_text")
    CHAT_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    WATCH_PRESENCE_FIELD_NUMBER: _ClassVar[int]
    CHAT_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    chat_id: int
    since: Since
    watch_presence: bool
    chat_id_text: str
    def __init__(self, chat_id: _Optional[int] = ..., since: _Optional[_Union[Since, _Mapping]] = ..., watch_presence: bool = ..., chat_id_text: _Optional[str] = ...) -> None: ...

class Unsubscribe(_message.Message):
    __slots__ = ("chat_id", "chat_id_text")
    CHAT_ID_FIELD_NUMBER: _ClassVar[int]
    CHAT_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    chat_id: int
    chat_id_text: str
    def __init__(self, chat_id: _Optional[int] = ..., chat_id_text: _Optional[str] = ...) -> None: ...

class PresenceQuery(_message.Message):
    __slots__ = ("chat_id", "chat_id_text")
    CHAT_ID_FIELD_NUMBER: _ClassVar[int]
    CHAT_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    chat_id: int
    chat_id_text: str
    def __init__(self, chat_id: _Optional[int] = ..., chat_id_text: _Optional[str] = ...) -> None: ...

class HistoryQuery(_message.Message):
    __slots__ = ("chat_id", "chat_id_text", "before", "after", "limit")
    CHAT_ID_FIELD_NUMBER: _ClassVar[int]
    CHAT_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    chat_id: int
    chat_id_text: str
    before: Since
    after: Since
    limit: int
    def __init__(self, chat_id: _Optional[int] = ..., chat_id_text: _Optional[str] = ..., before: _Optional[_Union[Since, _Mapping]] = ..., after: _Optional[_Union[Since, _Mapping]] = ..., limit: _Optional[int] = ...) -> None: ...

class SignalRequest(_message.Message):
    __slots__ = ("chat_id", "kind", "data", "chat_id_text")
    CHAT_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CHAT_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    chat_id: int
    kind: str
    data: bytes
    chat_id_text: str
    def __init__(self, chat_id: _Optional[int] = ..., kind: _Optional[str] = ..., data: _Optional[bytes] = ..., chat_id_text: _Optional[str] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerFrame(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ServerMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ServerMessage, _Mapping]]] = ...) -> None: ...

class ServerMessage(_message.Message):
    __slots__ = ("id", "id_text", "auth_result", "chat_message", "notification", "subscribed", "ok", "pong", "presence", "error", "chat_event", "history", "signal")
    ID_FIELD_NUMBER: _ClassVar[int]
    ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    AUTH_RESULT_FIELD_NUMBER: _ClassVar[int]
    CHAT_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NOTIFICATION_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBED_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CHAT_EVENT_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    id: int
    id_text: str
    auth_result: AuthResult
    chat_message: ChatMessage
    notification: Notification
    subscribed: Subscribed
    ok: Ok
    pong: Pong
    presence: Presence
    error: Error
    chat_event: ChatEvent
    history: HistoryPage
    signal: Signal
    def __init__(self, id: _Optional[int] = ..., id_text: _Optional[str] = ..., auth_result: _Optional[_Union[AuthResult, _Mapping]] = ..., chat_message: _Optional[_Union[ChatMessage, _Mapping]] = ..., notification: _Optional[_Union[Notification, _Mapping]] = ..., subscribed: _Optional[_Union[Subscribed, _Mapping]] = ..., ok: _Optional[_Union[Ok, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., presence: _Optional[_Union[Presence, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., chat_event: _Optional[_Union[ChatEvent, _Mapping]] = ..., history: _Optional[_Union[HistoryPage, _Mapping]] = ..., signal: _Optional[_Union[Signal, _Mapping]] = ...) -> None: ...

class AuthResult(_message.Message):
    __slots__ = ("success", "user_id", "connection_id", "expires_at", "ping_interval", "epoch", "seq", "recovered", "user_id_text", "features")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    PING_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    RECOVERED_FIELD_NUMBER: _ClassVar[int]
    USER_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    success: bool
    user_id: int
    connection_id: str
    expires_at: int
    ping_interval: int
    epoch: str
    seq: int
    recovered: bool
    user_id_text: str
    features: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, success: bool = ..., user_id: _Optional[int] = ..., connection_id: _Optional[str] = ..., expires_at: _Optional[int] = ..., ping_interval: _Optional[int] = ..., epoch: _Optional[str] = ..., seq: _Optional[int] = ..., recovered: bool = ..., user_id_text: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("chat_id", "message_id", "sender_id", "content", "timestamp", "epoch", "seq", "prev", "chat_id_text", "message_id_text", "sender_id_text")
    CHAT_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PREV_FIELD_NUMBER: _ClassVar[int]
    CHAT_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    SENDER_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    chat_id: int
    message_id: int
    sender_id: int
    content: str
    timestamp: int
    epoch: str
    seq: int
    prev: int
    chat_id_text: str
    message_id_text: str
    sender_id_text: str
    def __init__(self, chat_id: _Optional[int] = ..., message_id: _Optional[int] = ..., sender_id: _Optional[int] = ..., content: _Optional[str] = ..., timestamp: _Optional[int] = ..., epoch: _Optional[str] = ..., seq: _Optional[int] = ..., prev: _Optional[int] = ..., chat_id_text: _Optional[str] = ..., message_id_text: _Optional[str] = ..., sender_id_text: _Optional[str] = ...) -> None: ...

class ChatEvent(_message.Message):
    __slots__ = ("chat_id", "message_id", "sender_id", "kind", "data", "timestamp", "epoch", "seq", "prev", "refers_to", "chat_id_text", "message_id_text", "sender_id_text", "refers_to_text")
    CHAT_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PREV_FIELD_NUMBER: _ClassVar[int]
    REFERS_TO_FIELD_NUMBER: _ClassVar[int]
    CHAT_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    SENDER_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    REFERS_TO_TEXT_FIELD_NUMBER: _ClassVar[int]
    chat_id: int
    message_id: int
    sender_id: int
    kind: str
    data: bytes
    timestamp: int
    epoch: str
    seq: int
    prev: int
    refers_to: int
    chat_id_text: str
    message_id_text: str
    sender_id_text: str
    refers_to_text: str
    def __init__(self, chat_id: _Optional[int] = ..., message_id: _Optional[int] = ..., sender_id: _Optional[int] = ..., kind: _Optional[str] = ..., data: _Optional[bytes] = ..., timestamp: _Optional[int] = ..., epoch: _Optional[str] = ..., seq: _Optional[int] = ..., prev: _Optional[int] = ..., refers_to: _Optional[int] = ..., chat_id_text: _Optional[str] = ..., message_id_text: _Optional[str] = ..., sender_id_text: _Optional[str] = ..., refers_to_text: _Optional[str] = ...) -> None: ...

class Notification(_message.Message):
    __slots__ = ("notification_id", "user_id", "kind", "data", "timestamp", "epoch", "seq", "prev", "notification_id_text", "user_id_text")
    NOTIFICATION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PREV_FIELD_NUMBER: _ClassVar[int]
    NOTIFICATION_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    USER_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    notification_id: int
    user_id: int
    kind: str
    data: bytes
    timestamp: int
    epoch: str
    seq: int
    prev: int
    notification_id_text: str
    user_id_text: str
    def __init__(self, notification_id: _Optional[int] = ..., user_id: _Optional[int] = ..., kind: _Optional[str] = ..., data: _Optional[bytes] = ..., timestamp: _Optional[int] = ..., epoch: _Optional[str] = ..., seq: _Optional[int] = ..., prev: _Optional[int] = ..., notification_id_text: _Optional[str] = ..., user_id_text: _Optional[str] = ...) -> None: ...

class Signal(_message.Message):
    __slots__ = ("chat_id", "user_id", "kind", "data", "chat_id_text", "user_id_text")
    CHAT_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CHAT_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    USER_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    chat_id: int
    user_id: int
    kind: str
    data: bytes
    chat_id_text: str
    user_id_text: str
    def __init__(self, chat_id: _Optional[int] = ..., user_id: _Optional[int] = ..., kind: _Optional[str] = ..., data: _Optional[bytes] = ..., chat_id_text: _Optional[str] = ..., user_id_text: _Optional[str] = ...) -> None: ...

class Subscribed(_message.Message):
    __slots__ = ("chat_id", "epoch", "seq", "recovered", "chat_id_text")
    CHAT_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    RECOVERED_FIELD_NUMBER: _ClassVar[int]
    CHAT_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    chat_id: int
    epoch: str
    seq: int
    recovered: bool
    chat_id_text: str
    def __init__(self, chat_id: _Optional[int] = ..., epoch: _Optional[str] = ..., seq: _Optional[int] = ..., recovered: bool = ..., chat_id_text: _Optional[str] = ...) -> None: ...

class Ok(_message.Message):
    __slots__ = ("expires_at",)
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    expires_at: int
    def __init__(self, expires_at: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Presence(_message.Message):
    __slots__ = ("chat_id", "users", "chat_id_text")
    class User(_message.Message):
        __slots__ = ("user_id", "connections", "user_id_text")
        USER_ID_FIELD_NUMBER: _ClassVar[int]
        CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
        USER_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
        user_id: int
        connections: int
        user_id_text: str
        def __init__(self, user_id: _Optional[int] = ..., connections: _Optional[int] = ..., user_id_text: _Optional[str] = ...) -> None: ...
    CHAT_ID_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    CHAT_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    chat_id: int
    users: _containers.RepeatedCompositeFieldContainer[Presence.User]
    chat_id_text: str
    def __init__(self, chat_id: _Optional[int] = ..., users: _Optional[_Iterable[_Union[Presence.User, _Mapping]]] = ..., chat_id_text: _Optional[str] = ...) -> None: ...

class HistoryPage(_message.Message):
    __slots__ = ("chat_id", "chat_id_text", "messages", "more", "epoch", "seq", "start")
    CHAT_ID_FIELD_NUMBER: _ClassVar[int]
    CHAT_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    chat_id: int
    chat_id_text: str
    messages: _containers.RepeatedCompositeFieldContainer[ServerMessage]
    more: bool
    epoch: str
    seq: int
    start: int
    def __init__(self, chat_id: _Optional[int] = ..., chat_id_text: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[ServerMessage, _Mapping]]] = ..., more: bool = ..., epoch: _Optional[str] = ..., seq: _Optional[int] = ..., start: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "retry", "chat_id", "chat_id_text")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    CHAT_ID_FIELD_NUMBER: _ClassVar[int]
    CHAT_ID_TEXT_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    retry: bool
    chat_id: int
    chat_id_text: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., retry: bool = ..., chat_id: _Optional[int] = ..., chat_id_text: _Optional[str] = ...) -> None: ...
