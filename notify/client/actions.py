"""What the client's state machine asks its front to do, and its settings. Values only.

docs/client.md describes each; the conformance scenarios spell them as JSON, ``do`` being the tag.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from msgspec import Struct

Frame: TypeAlias = dict[str, Any]

#: of a chat, a user or a message: a 64-bit integer, or text like a UUID (docs/protocol.md, Ids)
Id: TypeAlias = int | str


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a client behaves. Times are in seconds."""

    #: a retry waits a random time between the floor and min(cap, base * 2 ** tries)
    backoff_floor: float = 0.1
    backoff_base: float = 2.0
    backoff_cap: float = 30.0
    #: a connection that lived this long starts the backoff over
    stable_after: float = 10.0
    #: the most that a server's `retry_after_ms` can make the client wait
    advice_cap: float = 300.0
    #: how long the token callback, the opening of a connection, and each answer may take
    token_timeout: float = 30.0
    connect_timeout: float = 10.0
    answer_timeout: float = 10.0
    #: silence after which a ping is sent, where the server does not name its own; and the wait for any answer
    ping_interval: float = 25.0
    pong_timeout: float = 10.0
    #: a token is replaced up to twice this long before it expires, or up to half its life before
    refresh_margin: float = 60.0
    #: commands (presence, ping) waiting at once, and how long each may take
    command_timeout: float = 10.0
    max_commands: int = 1000
    #: subscribe frames without an answer at once; and all frames, kept below the server's default limits
    window: int = 16
    burst: int = 900
    rate: float = 45.0
    #: messages that are asked for at once of a chat's history, 1 to 100
    page: int = 100
    #: what the client can take beyond what everyone gets: ``events``, ``signals``; ``history`` it asks for by itself
    features: tuple[str, ...] = ()


class Position(Struct, frozen=True):
    """A place in the history of a chat or of the user's notifications."""

    epoch: str
    seq: int


class Action(Struct, frozen=True, tag_field="do", omit_defaults=True):
    """The base of all actions."""


class FetchToken(Action, frozen=True, tag="token"):
    """Call the token callback, and answer with ``token`` or ``token_failed`` and this ``n``."""

    n: int


class Open(Action, frozen=True, tag="open"):
    """Open a connection; answer with ``opened``, or ``closed`` where it cannot be.

    ``elsewhere``: under another ``client_id`` than before, and from now on.
    """

    elsewhere: bool = False


class Send(Action, frozen=True, tag="send"):
    """Send one frame."""

    frame: Frame


class Close(Action, frozen=True, tag="close"):
    """Close the connection, or give up opening it. Nothing more of it reaches the machine."""

    code: int
    reason: str = ""


class StateChanged(Action, frozen=True, tag="state"):
    """The connection's state. ``delay`` with ``waiting``; ``code`` and ``reason`` tell why it ended."""

    state: str
    delay: float | None = None
    code: int | None = None
    reason: str = ""
    user_id: Id | None = None
    connection_id: str | None = None


class SubscriptionChanged(Action, frozen=True, tag="subscription"):
    """A subscription's state; ``chat`` None: the notifications. ``position`` is where it goes on from."""

    chat: Id | None
    state: str
    position: Position | None = None
    delay: float | None = None
    code: str = ""
    message: str = ""


class Deliver(Action, frozen=True, tag="message"):
    """Hand a message over; ``chat`` None: a notification."""

    chat: Id | None
    frame: Frame


class GapFound(Action, frozen=True, tag="gap"):
    """Messages are missing before one with this ``prev``; they are being fetched."""

    chat: Id | None
    last: int
    prev: int


class Lost(Action, frozen=True, tag="lost"):
    """What lies between these positions cannot be had from here: reload it from the backend."""

    chat: Id | None
    before: Position
    after: Position


class PresenceChanged(Action, frozen=True, tag="presence"):
    """Who is in a watched chat."""

    chat: Id
    users: list[Frame]


class Signalled(Action, frozen=True, tag="signal"):
    """What a member of a chat signals now; it has no position."""

    chat: Id
    user: Id
    kind: str
    data: Any


class Done(Action, frozen=True, tag="done"):
    """Command ``n`` succeeded; ``took`` is seconds from its sending.

    ``users`` are those of ``presence``; the rest is of ``history``: ``start`` and ``position`` are where the
    page begins and ends, where the server says so.
    """

    n: int
    took: float
    users: list[Frame] | None = None
    messages: list[Frame] | None = None
    more: bool | None = None
    start: Position | None = None
    position: Position | None = None


class Failed(Action, frozen=True, tag="failed"):
    """Command ``n`` did not: ``timeout``, ``closed``, ``busy``, ``unsupported``, or the server's error code."""

    n: int
    code: str
    message: str = ""


class ErrorReceived(Action, frozen=True, tag="error"):
    """The server refused something that no command waits for."""

    code: str
    message: str
