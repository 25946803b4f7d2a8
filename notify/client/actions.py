"""The actions that the client's state machine asks its front end to carry out, and its settings. Pure values.

docs/client.md describes each action. The conformance scenarios spell them as JSON with the tag ``do``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from msgspec import Struct

Frame: TypeAlias = dict[str, Any]

#: the id of a chat, user or message: a 64-bit integer, or text such as a UUID (docs/protocol.md, Ids)
Id: TypeAlias = int | str


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a client. All times are in seconds."""

    #: before a retry the client waits for a random time between the floor and min(cap, base * 2 ** tries)
    backoff_floor: float = 0.1
    backoff_base: float = 2.0
    backoff_cap: float = 30.0
    #: the backoff starts over after a connection that lasted this long
    stable_after: float = 10.0
    #: upper bound on the wait that a server's `retry_after_ms` can ask for
    advice_cap: float = 300.0
    #: timeouts for the token callback, for opening a connection, and for each answer
    token_timeout: float = 30.0
    connect_timeout: float = 10.0
    answer_timeout: float = 10.0
    #: a ping is sent after this much silence, unless the server names its own interval; then the timeout for any answer
    ping_interval: float = 25.0
    pong_timeout: float = 10.0
    #: a token is replaced one to two times this long before it expires, but at most half of its remaining life before
    refresh_margin: float = 60.0
    #: the timeout of a command (presence, history, ping), and how many may wait at once
    command_timeout: float = 10.0
    max_commands: int = 1000
    #: how many subscribe frames may be unanswered; then the rate limit for all frames, below the server's default limits
    window: int = 16
    burst: int = 900
    rate: float = 45.0
    #: messages per request for a chat's history, 1 to 100
    page: int = 100
    #: optional features to ask the server for: ``events``, ``signals``; the client adds ``history`` itself
    features: tuple[str, ...] = ()


class Position(Struct, frozen=True):
    """A position in the history of a chat or of the user's notifications."""

    epoch: str
    seq: int


class Action(Struct, frozen=True, tag_field="do", omit_defaults=True):
    """The base class of all actions."""


class FetchToken(Action, frozen=True, tag="token"):
    """Call the token callback. Answer with the event ``token`` or ``token_failed`` and this ``n``."""

    n: int


class Open(Action, frozen=True, tag="open"):
    """Open a connection. Answer with the event ``opened``, or with ``closed`` if that fails.

    ``elsewhere``: use a new ``client_id`` from now on.
    """

    elsewhere: bool = False


class Send(Action, frozen=True, tag="send"):
    """Send one frame."""

    frame: Frame


class Close(Action, frozen=True, tag="close"):
    """Close the connection, or stop opening it. The machine must receive nothing more from it."""

    code: int
    reason: str = ""


class StateChanged(Action, frozen=True, tag="state"):
    """The connection's state has changed. ``delay`` is set in ``waiting``; ``code`` and ``reason`` say why the connection ended."""

    state: str
    delay: float | None = None
    code: int | None = None
    reason: str = ""
    user_id: Id | None = None
    connection_id: str | None = None


class SubscriptionChanged(Action, frozen=True, tag="subscription"):
    """A subscription's state has changed. ``chat`` is None for the notifications; ``position`` is where it continues from."""

    chat: Id | None
    state: str
    position: Position | None = None
    delay: float | None = None
    code: str = ""
    message: str = ""


class Deliver(Action, frozen=True, tag="message"):
    """Hand a message to the application. ``chat`` is None for a notification."""

    chat: Id | None
    frame: Frame


class GapFound(Action, frozen=True, tag="gap"):
    """Messages are missing before the message with this ``prev``. The client is fetching them."""

    chat: Id | None
    last: int
    prev: int


class Lost(Action, frozen=True, tag="lost"):
    """The messages between these positions are no longer available from the server: reload them from the backend."""

    chat: Id | None
    before: Position
    after: Position


class PresenceChanged(Action, frozen=True, tag="presence"):
    """The users who are present in a watched chat have changed."""

    chat: Id
    users: list[Frame]


class Signalled(Action, frozen=True, tag="signal"):
    """A member of a chat sent a signal. Signals have no position."""

    chat: Id
    user: Id
    kind: str
    data: Any


class Done(Action, frozen=True, tag="done"):
    """Command ``n`` succeeded; ``took`` is the time in seconds since it was sent.

    ``users`` is the answer to ``presence``. The other fields answer ``history``: ``start`` and ``position`` are where the
    page begins and ends, if the server says so.
    """

    n: int
    took: float
    users: list[Frame] | None = None
    messages: list[Frame] | None = None
    more: bool | None = None
    start: Position | None = None
    position: Position | None = None


class Failed(Action, frozen=True, tag="failed"):
    """Command ``n`` failed: ``timeout``, ``closed``, ``busy``, ``unsupported``, or the server's error code."""

    n: int
    code: str
    message: str = ""


class ErrorReceived(Action, frozen=True, tag="error"):
    """The server sent an error that belongs to no waiting command."""

    code: str
    message: str
