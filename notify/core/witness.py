"""Collects what a node sees of one user's clients, or of one chat, while somebody traces them.

Sessions, dispatcher and listeners report to the witness only while a trace runs; otherwise their reference to it is
None (:mod:`notify.core.traces`). A trace keeps events until the next question. They contain no message content and no
token, and nothing of another workspace unless the caller may see it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from notify import ids, topics
from notify.core.live import Live
from notify.errors import Unavailable
from notify.identity import Identity, Peer
from notify.ids import Id
from notify.interfaces import IConnection, IExplainer, IRegistry
from notify.messages import Message
from notify.topics import Topic
from notify.wire import addresses
from notify.wire.frames import ClientFrame, Error, InvalidFrame, ServerFrame, Subscribed

#: events a second that a trace keeps of each kind (the burst is twice that), so that a flood of messages cannot hide
#: a close
RATE, RATE_ASIDE = 50, 10
#: events kept for the next question, and how many of them are reserved for what is not traffic
MOST_WAITING, RESERVED = 500, 100
#: events that come with each message
TRAFFIC = frozenset(("frame", "message", "publish"))
#: existing connections that are reported when a trace starts, and chats of each
MOST_THERE, MOST_CHATS = 50, 50
#: connections without a user that a trace remembers
MOST_KNOWN = 200
#: characters of a stranger's text, and of a reason
MOST_TEXT, MOST_REASON = 100, 300

#: the meaning of the close codes that a server sends (docs/protocol.md, Close codes)
CODES = {
    1001: "going away",
    1002: "a fault of framing",
    1006: "gone without a closing handshake",
    1007: "text that is not UTF-8",
    1009: "a frame over limits.max_frame",
    1012: "sent away to reconnect: a drain, or an operator",
    1013: "try again later: over a limit, or a part is away",
    4000: "server error",
    4001: "slow client: its queue passed limits.send_queue",
    4002: "the token expired",
    4003: "no pong",
    4004: "history lost: it must resume",
    4500: "authentication failed",
    4501: "it did not authenticate in time",
    4502: "too many invalid messages",
    4503: "disconnected by the operator",
    4504: "over the rate of frames",
}


class TraceOrder(Struct, frozen=True):
    """What is traced: a user's clients, or a chat.

    ``trace`` is its id. ``everywhere``: the caller may see all workspaces, and clients without a user yet; ``peer``
    limits the latter to one address, and is empty for all. ``after`` maps each ``life`` to the number up to which its
    events were told already. ``end``: the trace is no longer wanted.
    """

    trace: str
    workspace_id: Id
    user_id: Id | None = None
    chat_id: Id | None = None
    everywhere: bool = False
    peer: str = ""
    after: dict[str, int] = {}
    end: bool = False

    @property
    def topic(self) -> Topic | None:
        """The chat's topic; None: it is about a user."""
        return None if self.chat_id is None else topics.chat(self.workspace_id, self.chat_id)


class Seen(Struct, frozen=True, omit_defaults=True):
    """One event, at ``at``: Unix time in seconds. ``what`` determines which fields are present.

    A node reports:

    - ``watching``: it starts; ``connections`` of the user, or members of the chat, are there.
    - ``connection``: one of those.
    - ``connect``, ``auth``, ``refresh``, ``subscribe``, ``unsubscribe``, ``turned_away``, ``frame``, ``close``.
    - ``publish``: over HTTP.
    - ``message``: a message came to the node, and ``connections`` of the user, or of anybody in the chat, were there
      for it.

    The process that asks all nodes adds:

    - ``missing``: a node does not answer, so its events are not included; ``back``: it does again.
    - ``alone``: no other node is reachable.
    - ``busy``: a node has too many traces.
    - ``left_out``: a node dropped ``count`` events, which were too many.
    - ``end``.

    ``outcome`` is ``ok`` or what went wrong, ``reason`` why. ``claimed``: a refused token names this user and
    workspace, unverified. ``way`` is ``in`` or ``out``. ``size`` is in bytes, of a frame's or message's payload.
    """

    at: float
    what: str
    node: str = ""
    workspace_id: Id | None = None
    user_id: Id | None = None
    chat_id: Id | None = None
    connection_id: str = ""
    peer: str = ""
    origin: str = ""
    claimed: bool = False
    outcome: str = ""
    reason: str = ""
    way: str = ""
    type: str = ""
    size: int | None = None
    epoch: str = ""
    seq: int | None = None
    code: int | None = None
    subject: str = ""
    connections: int | None = None
    count: int | None = None
    chats: list[Id] | None = None
    queued: int | None = None
    since: float | None = None


class Collected(Struct, frozen=True):
    """What a node has seen since the last question. ``left_out`` is how many events were dropped as too many.

    ``last`` is the number of the newest event, which the next question repeats for this ``life`` of the trace.
    ``busy``: the node cannot take another trace.
    """

    life: str = ""
    last: int = 0
    events: list[Seen] = []
    left_out: int = 0
    busy: bool = False


class Budget:
    """A rate of events a second, with a burst of twice as many."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: float, now: float) -> None:
        self._rate, self._left, self._at = rate, 2.0 * rate, now

    def spend(self, now: float) -> bool:
        """Whether one more event is within the rate."""
        self._left = min(2.0 * self._rate, self._left + max(0.0, now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Trace:
    """The events of one trace that have not been told yet.

    ``life`` distinguishes it from an ended trace of the same id. Times are the reactor's.
    """

    def __init__(self, order: TraceOrder, life: str, now: float) -> None:
        self.order = order
        self.life = life
        self.asked = now
        self._peer = addresses.parse(order.peer)
        #: whom connections without a user are said to belong to, and whether that is unverified
        self.known: dict[str, tuple[Id, Id, bool]] = {}
        self._last = self._told = 0  # numbers: of the newest event, and of the newest that was told
        self._waiting: deque[tuple[int, Seen]] = deque()
        self._left_out = 0
        self._life, self._traffic, self._aside = Budget(RATE, now), Budget(RATE, now), Budget(RATE_ASIDE, now)

    def see(self, now: float, seen: Seen, aside: bool = False) -> None:
        """Keep an event, if the bounds allow. ``aside``: it only may concern the traced user or chat."""
        life = not aside and seen.what not in TRAFFIC
        budget = self._life if life else self._aside if aside else self._traffic
        most = MOST_WAITING if life else MOST_WAITING - RESERVED
        if len(self._waiting) >= most or not budget.spend(now):
            self._left_out += 1
            return
        self._last += 1
        self._waiting.append((self._last, seen))

    def tell(self, node: str, after: int) -> Collected:
        """All events after the given number. ``left_out`` counts from then on."""
        while self._waiting and self._waiting[0][0] <= after:
            self._waiting.popleft()
        left_out, self._left_out = self._left_out, 0
        events = [replace(seen, node=node) for _, seen in self._waiting]
        return Collected(self.life, self._last, events, left_out)

    # --- what it is about -----------------------------------------------------------------------------------

    def user(self, workspace_id: Id, user_id: Id) -> bool | None:
        """True: the traced user; False: one of the same id in another workspace that may be shown; None: neither."""
        order = self.order
        if order.user_id is None or user_id != order.user_id:
            return None
        if workspace_id == order.workspace_id:
            return True
        return False if order.everywhere else None

    def nobody(self, peer: str) -> bool:
        """Whether a client without a user, at this address, may be shown."""
        order = self.order
        if order.peer:
            return order.everywhere and addresses.parse(peer) == self._peer
        return order.everywhere and order.user_id is not None

    def client(self, connection: IConnection) -> bool:
        """Whether this is a connection of the traced user."""
        identity = connection.identity
        return identity is not None and bool(self.user(identity.workspace_id, identity.user_id))

    def elsewhere(self, connection: IConnection) -> bool:
        """Whether it belongs to a user of the same id in another workspace, and may be shown."""
        identity = connection.identity
        return identity is not None and self.user(identity.workspace_id, identity.user_id) is False

    def chat(self, workspace_id: Id, chat_id: Id) -> bool:
        """Whether this is the traced chat."""
        return topics.chat(workspace_id, chat_id) == self.order.topic

    def remember(self, connection_id: str, workspace_id: Id, user_id: Id, claimed: bool) -> None:
        """A refused connection claims to be of this user; its end will be reported as well."""
        if len(self.known) < MOST_KNOWN:
            self.known[connection_id] = workspace_id, user_id, claimed


class Witness:
    """What sessions, dispatcher and listeners report to while there are ``traces``, by their ids.

    ``now`` returns the Unix time, ``seconds`` the reactor's.
    """

    def __init__(
        self, live: Live, registry: IRegistry, now: Callable[[], float], seconds: Callable[[], float]
    ) -> None:
        self.traces: dict[str, Trace] = {}
        self._live, self._registry = live, registry
        self._now, self._seconds = now, seconds

    def there(self, trace: Trace, connections: Iterable[IConnection]) -> None:
        """A trace starts, and these connections exist: of its user, in its chat, or of the same user id elsewhere."""
        order = trace.order
        there = list(connections)
        here = len([one for one in there if order.user_id is None or trace.client(one)])
        self._keep(trace, "watching", user_id=order.user_id, chat_id=order.chat_id, connections=here)
        for one in there[:MOST_THERE]:
            chats = [topic.id for topic in self._registry.topics(one) if topic.kind == "chat"]
            self._keep(
                trace,
                "connection",
                **who(one),
                since=one.opened,
                type=one.encoding.subprotocol,
                count=len(chats),
                chats=sorted(chats, key=ids.order)[:MOST_CHATS],
                queued=one.queued,
            )

    def _keep(self, trace: Trace, what: str, aside: bool = False, **about: Any) -> None:
        about.setdefault("at", self._now())
        about.setdefault("workspace_id", trace.order.workspace_id)
        trace.see(self._seconds(), Seen(what=what, **about), aside)

    # --- connecting -----------------------------------------------------------------------------------------

    def turned_away(
        self, peer: str, reason: str, outcome: str, origin: str = "", connection: str = ""
    ) -> None:
        """A client was turned away before its user was known."""
        for trace in self.traces.values():
            if trace.nobody(peer):
                about = {"peer": peer, "origin": _text(origin), "outcome": outcome, "reason": reason}
                self._keep(trace, "turned_away", True, workspace_id=None, connection_id=connection, **about)

    def auth(
        self,
        connection: IConnection,
        outcome: str,
        reason: str = "",
        token: str = "",
        identity: Identity | None = None,
        what: str = "auth",
    ) -> None:
        """A client has presented a token, or none in time. ``token`` is a refused one; it is asked whom it names."""
        known = connection.identity or identity
        user = None if known is None else (known.workspace_id, known.user_id)
        claimed = user is None and bool(token)
        if claimed:
            user = self._claims(token)
        about: dict[str, Any] = {"outcome": outcome, "reason": reason[:MOST_REASON]}
        for trace in self.traces.values():
            mine = None if user is None else trace.user(*user)
            if user is None:
                if trace.nobody(connection.peer.host):
                    self._keep(trace, what, True, **{**who(connection), "workspace_id": None}, **about)
                continue
            if mine is None:
                continue
            if connection.identity is None:
                trace.remember(connection.id, *user, claimed)
            aside = claimed or not mine  # bad tokens naming this user must not hide its events
            more = who(connection) | {"workspace_id": user[0], "user_id": user[1], "claimed": claimed}
            if what == "auth":
                origin, kind = _text(connection.peer.origin), connection.encoding.subprotocol
                self._keep(trace, "connect", aside, at=connection.opened, origin=origin, type=kind, **more)
            self._keep(trace, what, aside, **more, **about)

    def _claims(self, token: str) -> tuple[Id, Id] | None:
        explainer: IExplainer | None = IExplainer(self._live.now.authenticator, None)
        return None if explainer is None else explainer.claims(token)

    # --- an open connection ---------------------------------------------------------------------------------

    def heard(self, connection: IConnection, frames: Sequence[ClientFrame], size: int) -> None:
        """A client sent a message that holds these frames."""
        chat = getattr(frames[0], "chat_id", None) if frames else None
        kind = _tag(frames[0]) if frames else "nothing"
        self._frame(
            connection, "in", kind, size, chat_id=chat, count=len(frames) if len(frames) > 1 else None
        )

    def misheard(self, connection: IConnection, fault: InvalidFrame, size: int) -> None:
        """A client sent an invalid frame."""
        self._frame(connection, "in", "invalid", size, reason=str(fault)[:MOST_REASON])

    def sent(self, connection: IConnection, frame: ServerFrame, size: int, replayed: int) -> None:
        """A client is sent a frame of ``size`` bytes, and ``replayed`` messages that it had missed."""
        about: dict[str, Any] = {"count": replayed or None}
        if isinstance(frame, Error):
            about |= {"outcome": frame.code, "reason": frame.message}
        for name in ("chat_id", "epoch", "seq"):
            value = getattr(frame, name, None)
            if value is not None and value is not msgspec.UNSET:
                about[name] = value
        if isinstance(frame, Subscribed):
            about["outcome"] = "recovered" if frame.recovered else ""
        self._frame(connection, "out", _tag(frame), size, **about)

    def _frame(self, connection: IConnection, way: str, kind: str, size: int, **about: Any) -> None:
        for trace in self.traces.values():
            if trace.client(connection):
                self._keep(trace, "frame", **who(connection), way=way, type=kind, size=size, **about)

    def subscription(
        self, connection: IConnection, what: str, chat_id: Id, outcome: str, reason: str = ""
    ) -> None:
        """A client asked for a chat, or left it. ``what`` is ``subscribe`` or ``unsubscribe``."""
        identity = connection.identity
        if identity is None:
            return
        reason = reason[:MOST_REASON]
        for trace in self.traces.values():
            if trace.client(connection) or trace.chat(identity.workspace_id, chat_id):
                self._keep(trace, what, **who(connection), chat_id=chat_id, outcome=outcome, reason=reason)

    def why_not(self, identity: Identity, topic: Topic) -> str:
        """Why the authenticator refused."""
        explainer: IExplainer | None = IExplainer(self._live.now.authenticator, None)
        return "the authenticator said no" if explainer is None else explainer.why_not(identity, topic)

    def left(self, connection: IConnection, chats: Collection[Id]) -> None:
        """A client that was in these chats is gone."""
        identity = connection.identity
        for trace in self.traces.values():
            topic = trace.order.topic
            if identity is None or topic is None or topic.id not in chats:
                continue
            if topic.workspace_id == identity.workspace_id:
                self._keep(trace, "unsubscribe", **who(connection), chat_id=topic.id, outcome="gone")

    def closed(self, connection: IConnection, code: int, by_server: bool) -> None:
        """A connection is gone."""
        identity = connection.identity
        reason = CODES.get(code, "") if by_server or code == 1006 else "the client closed it"
        for trace in self.traces.values():
            named = trace.known.pop(connection.id, None)
            about: dict[str, Any] = who(connection)
            if identity is not None:
                mine = trace.user(identity.workspace_id, identity.user_id)
            elif named is not None:
                mine = trace.user(*named[:2])
                about |= {"workspace_id": named[0], "user_id": named[1], "claimed": named[2]}
            else:
                mine = None
            if mine is not None:
                aside = not mine or about.get("claimed", False)
                self._keep(trace, "close", aside, **about, code=code, reason=reason)

    # --- messages -------------------------------------------------------------------------------------------

    def delivered(self, topic: Topic, messages: Sequence[Message], members: Collection[IConnection]) -> None:
        """Messages came for the connections of this node that are in a topic, or are joining it."""
        for trace in self.traces.values():
            concern = self._concern(trace, topic, members)
            if concern is None:
                continue
            aside, got = concern
            for message in messages:
                position = message.position
                self._keep(
                    trace, "message", aside, workspace_id=topic.workspace_id, subject=topic.subject,
                    size=message.size, epoch=position.epoch, seq=position.seq, connections=got,
                )  # fmt: skip

    def _concern(
        self, trace: Trace, topic: Topic, members: Collection[IConnection]
    ) -> tuple[bool, int] | None:
        """Whether a topic only may concern a trace, and how many connections it concerns; None: it does not concern it."""
        order = trace.order
        if order.user_id is None:
            return (False, len(members)) if topic == order.topic else None
        if topic.kind == "user":
            mine = trace.user(topic.workspace_id, topic.id)
            return None if mine is None else (not mine, len(members))
        if topic.workspace_id != order.workspace_id:
            return None
        clients = self._registry.members(topics.user(order.workspace_id, order.user_id))
        inside = self._registry.members(topic)
        got = sum(one in inside for one in clients)
        return (not got, got) if clients else None

    def published(
        self, topic: Topic, size: int, outcome: str, reason: str = "", epoch: str = "", seq: int | None = None
    ) -> None:
        """A message was published to this node over HTTP. ``outcome`` is ``ok`` or the code of the refusal."""
        for trace in self.traces.values():
            order = trace.order
            if outcome == "forbidden" and not order.everywhere:
                continue  # a tenant must not learn who tried
            if order.user_id is None:
                aside = False if topic == order.topic else None
            elif topic.kind == "user":
                mine = trace.user(topic.workspace_id, topic.id)
                aside = None if mine is None else not mine
            else:
                aside = True if topic.workspace_id == order.workspace_id else None
            if aside is not None:
                self._keep(
                    trace, "publish", aside, workspace_id=topic.workspace_id, subject=topic.subject, size=size,
                    outcome=outcome, reason=reason[:MOST_REASON], epoch=epoch, seq=seq,
                )  # fmt: skip


def who(connection: IConnection) -> dict[str, Any]:
    """A connection, and its user once it has presented a valid token: fields of :class:`Seen`."""
    identity: Identity | None = connection.identity
    peer: Peer = connection.peer
    about: dict[str, Any] = {"connection_id": connection.id, "peer": peer.host}
    if identity is not None:
        about |= {"workspace_id": identity.workspace_id, "user_id": identity.user_id}
    return about


def _tag(frame: Any) -> str:
    return str(type(frame).__struct_config__.tag)


def _text(text: str) -> str:
    """A stranger's text, made safe to show."""
    return text[:MOST_TEXT]


def reason_of(error: BaseException | None) -> str:
    """What may be shown of why something failed. The text of an internal error is for the log only."""
    return str(error) if isinstance(error, Unavailable) else "it failed here: see the log"
