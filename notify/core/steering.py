"""What a node does when it is asked over the control (:class:`~notify.interfaces.IControl`), and what it answers.

Arguments and answers are JSON and travel between nodes of different versions: fields are added, never removed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from twisted.internet.defer import Deferred, maybeDeferred

from notify import __version__, ids, topics
from notify.core import access, revocations
from notify.core.hub import Hub
from notify.core.revocations import Revocation
from notify.core.shed import Shed
from notify.core.traces import Traces
from notify.core.witness import TraceOrder
from notify.errors import Unavailable
from notify.ids import Id
from notify.interfaces import BrokerStatus, IConnection
from notify.topics import Topic

#: the most connections, or topics, that one node lists
MOST = 1000

#: the most chats that one node lists in total: this many of the longest ids, with ``MOST`` connections, still fit
#: into a NATS message
MOST_CHATS = 5000

#: the most characters of User-Agents that one node lists in total, each of up to three bytes
MOST_AGENTS = 50_000

#: seconds over which rates are measured
LOOK = 1.0


class Nothing(Struct, frozen=True):
    """No argument."""


class ConnectionQuery(Struct, frozen=True):
    """Whose connections; ``workspaces`` None: those of all workspaces."""

    user_id: Id
    workspaces: tuple[Id, ...] | None = None


class TopicQuery(Struct, frozen=True):
    """The workspace whose chats are listed."""

    workspace_id: Id


class DisconnectOrder(Struct, frozen=True):
    """Whom to disconnect. ``reconnect``: the clients reconnect by themselves after a moment."""

    workspace_id: Id
    user_id: Id
    reconnect: bool = False


class UnsubscribeOrder(Struct, frozen=True):
    """Which subscriptions to end."""

    workspace_id: Id
    user_id: Id
    chat_id: Id


class ShedOrder(Struct, frozen=True):
    """The share of a node's clients to move to other nodes."""

    share: Annotated[float, Meta(gt=0, le=1)]


class BrokerItem(Struct, frozen=True):
    """The state of a node's broker; ``detail`` describes it in words."""

    ready: bool
    detail: str


class NodeItem(Struct, frozen=True):
    """One node.

    ``uptime`` is in seconds; ``published`` (to the node) and ``delivered`` (to its clients) are messages a second, measured over
    a second. ``stage`` is ``starting``, ``serving``, or how far the shutdown has come: ``announced``, ``closing``, ``finishing``.
    ``reloaded`` is the Unix time in seconds of the last reload, null before the first; ``reload_failed`` says why the last one failed.
    """

    node: str
    version: str
    uptime: float
    connections: int
    topics: int
    published: float
    delivered: float
    stage: str
    broker: BrokerItem
    reloaded: float | None = None
    reload_failed: str = ""


class ConnectionItem(Struct, frozen=True):
    """One authenticated connection.

    ``opened`` and ``expires_at`` are Unix time in seconds; ``queued`` is the number of bytes that the client has not taken;
    ``silent`` is the number of seconds since the server last heard from the client, which answers pings. ``chats`` are its
    subscriptions, ``subscriptions`` their number; if a node has many to list, ``chats`` has only the first of them. ``client_id``
    and ``client``, its User-Agent, are chosen by the client, and may be empty.
    """

    connection_id: str
    workspace_id: Id
    user_id: Id
    peer: str
    encoding: str
    opened: float
    expires_at: float | None
    subscriptions: int
    node: str = ""
    chats: list[Id] = []
    queued: int = 0
    silent: float = 0.0
    client_id: str = ""
    client: str = ""


class ConnectionsFound(Struct, frozen=True):
    """A node's connections. ``count`` counts all of them; at most 1000 are listed."""

    count: int
    connections: list[ConnectionItem]


class TopicItem(Struct, frozen=True):
    """A chat as one node sees it: its members there, and messages a second, equal on all nodes with members."""

    chat_id: Id
    members: int
    rate: float


class TopicsFound(Struct, frozen=True):
    """A node's chats, the busiest first. ``count`` counts all of them; at most 1000 are listed."""

    count: int
    topics: list[TopicItem]


class Count(Struct, frozen=True):
    """The number of connections, or subscriptions, that were affected."""

    count: int


class Shedding(Struct, frozen=True):
    """The number of clients to move, and the seconds it takes; or why none move: ``not_serving``, ``already_shedding``."""

    clients: int = 0
    seconds: float = 0.0
    refused: str = ""


class Done(Struct, frozen=True):
    """The command has been started."""


class Steering:
    """Executes the commands that this node receives.

    ``broker`` returns the broker's status, ``stage`` that of the drain, ``reloads`` the Unix time of the last reload
    and why it failed. ``reload`` and ``drain`` start a reload or a drain, and return immediately. ``shed`` is for a
    process whose clients are in other processes: it moves a share of them to other nodes, and returns a
    :class:`Shedding` or a Deferred of one.
    """

    def __init__(
        self,
        hub: Hub,
        node: str,
        broker: Callable[[], BrokerStatus],
        stage: Callable[[], str],
        reloads: Callable[[], tuple[float | None, str]],
        reload: Callable[[], object],
        drain: Callable[[], object],
        shed: Callable[[ShedOrder], object] | None = None,
    ) -> None:
        self._hub = hub
        self._node = node
        self._broker = broker
        self._stage = stage
        self._reloads = reloads
        self._reload = reload
        self._drain = drain
        self._shed = Shed(hub)
        self._send_away = shed or self._send_own_away
        self._begun = hub.wheel.seconds()
        self._commands: dict[str, tuple[type, Callable[[Any], object]]] = {
            "nodes": (Nothing, self._node_item),
            "connections": (ConnectionQuery, self._connections),
            "topics": (TopicQuery, self._topics),
            "trace": (TraceOrder, Traces(hub, node).collect),
            "disconnect": (DisconnectOrder, self._disconnect),
            "unsubscribe": (UnsubscribeOrder, self._unsubscribe),
            "revoke": (Revocation, self._revoke),
            "shed": (ShedOrder, self._begin_to_shed),
            "reload": (Nothing, self._reload_soon),
            "drain": (Nothing, self._drain_soon),
        }

    def do(self, command: str, argument: bytes) -> Deferred[bytes]:
        """Execute a command, and answer. Errback :class:`~notify.errors.Unavailable`: this version does not know it."""
        return maybeDeferred(self._do, command, argument).addCallback(msgspec.json.encode)

    def _do(self, command: str, argument: bytes) -> object:
        if command not in self._commands:
            raise Unavailable("this version does not know the command")
        kind, do = self._commands[command]
        try:
            decoded: Any = msgspec.json.decode(argument, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Unavailable("this version does not know what is wanted") from None
        return do(decoded)

    # --- queries --------------------------------------------------------------------------------------------

    def _over_a_look(
        self, read: Callable[[], Any], tell: Callable[[Any, Any, float], object]
    ) -> Deferred[object]:
        """Read some counters twice, with a pause in between, and report the difference."""
        wheel, before = self._hub.wheel, read()
        at, answer = wheel.seconds(), Deferred[object]()
        wheel.after(LOOK, lambda: answer.callback(tell(before, read(), wheel.seconds() - at)))
        return answer

    def _node_item(self, _: Nothing) -> Deferred[object]:
        registry = self._hub.metrics.registry

        def read() -> tuple[float, float]:
            published = registry.get_sample_value("notify_published_total", {"result": "ok"})
            return published or 0.0, registry.get_sample_value("notify_delivered_total") or 0.0

        def tell(before: tuple[float, float], after: tuple[float, float], seconds: float) -> NodeItem:
            hub, broker, (reloaded, reload_failed) = self._hub, self._broker(), self._reloads()
            published, delivered = (round((b - a) / seconds, 1) for a, b in zip(before, after, strict=True))
            return NodeItem(
                node=self._node,
                version=__version__,
                uptime=round(hub.wheel.seconds() - self._begun, 1),
                connections=len(hub.connections),
                topics=len(hub.dispatcher.counts()),
                published=published,
                delivered=delivered,
                stage=self._stage(),
                broker=BrokerItem(broker.ready, broker.detail),
                reloaded=reloaded,
                reload_failed=reload_failed,
            )

        return self._over_a_look(read, tell)

    def _connections(self, query: ConnectionQuery) -> ConnectionsFound:
        registry = self._hub.registry
        found: list[IConnection]
        if query.workspaces is None:
            # A scan of all connections: only an operator asks this. With a workspace it is one lookup in a table.
            found = [
                one
                for one in self._hub.connections
                if one.identity is not None and one.identity.user_id == query.user_id
            ]
        else:
            found = [
                one
                for workspace_id in query.workspaces
                for one in registry.members(topics.user(workspace_id, query.user_id))
            ]
        found.sort(key=lambda one: (one.opened, one.id))
        listed = found[:MOST]
        # A client chooses its chats, their ids and its own name. None of this must make the node unable to answer.
        chats = min(MOST, MOST_CHATS // max(1, len(listed)))
        agent = MOST_AGENTS // max(1, len(listed))
        return ConnectionsFound(len(found), [self._connection_item(one, chats, agent) for one in listed])

    def _connection_item(self, connection: IConnection, most: int, agent: int) -> ConnectionItem:
        identity = connection.identity
        chats = [topic.id for topic in self._hub.registry.topics(connection) if topic.kind == "chat"]
        return ConnectionItem(
            connection_id=connection.id,
            workspace_id=identity.workspace_id,
            user_id=identity.user_id,
            peer=connection.peer.host,
            encoding=connection.encoding.subprotocol,
            opened=connection.opened,
            expires_at=identity.expires_at,
            subscriptions=len(chats),
            node=self._node,
            chats=sorted(chats, key=ids.order)[:most],
            queued=connection.queued,
            silent=round(self._hub.wheel.seconds() - connection.heard, 1),
            client_id=connection.peer.client_id,
            client=connection.peer.agent[:agent],
        )

    def _topics(self, query: TopicQuery) -> Deferred[object]:
        hub = self._hub

        def read() -> dict[Topic, int]:
            return {
                topic: count
                for topic, count in hub.dispatcher.counts().items()
                if topic.kind == "chat" and topic.workspace_id == query.workspace_id
            }

        def tell(before: dict[Topic, int], after: dict[Topic, int], seconds: float) -> TopicsFound:
            items = [
                TopicItem(topic.id, members, round(max(0, count - before.get(topic, 0)) / seconds, 1))
                for topic, count in after.items()
                if (members := len(hub.registry.members(topic)))
            ]
            items.sort(key=lambda item: (-item.rate, -item.members, ids.order(item.chat_id)))
            return TopicsFound(len(items), items[:MOST])

        return self._over_a_look(read, tell)

    # --- commands -------------------------------------------------------------------------------------------

    def _disconnect(self, whom: DisconnectOrder) -> Count:
        return Count(access.disconnect(self._hub, whom.workspace_id, whom.user_id, whom.reconnect))

    def _unsubscribe(self, what: UnsubscribeOrder) -> Count:
        return Count(access.unsubscribe(self._hub, what.workspace_id, what.user_id, what.chat_id))

    def _revoke(self, what: Revocation) -> Count:
        if not self._hub.revocations.has_room(what):
            raise Unavailable("too many users' tokens are revoked")
        return Count(access.revoke(self._hub, what))

    def heard(self, key: str, record: bytes) -> None:
        """A record kept for all nodes: see :meth:`notify.interfaces.IControl.watch`."""
        revocation = revocations.read(key, record)
        if revocation is not None:
            access.revoke(self._hub, revocation)

    def _begin_to_shed(self, order: ShedOrder) -> object:
        if self._stage() != "serving":
            return Shedding(refused="not_serving")
        return self._send_away(order)

    def _send_own_away(self, order: ShedOrder) -> Shedding:
        if self._shed.running:
            return Shedding(refused="already_shedding")
        clients, seconds = self._shed.begin(order.share)
        return Shedding(clients, round(seconds, 1))

    def _reload_soon(self, _: Nothing) -> Done:
        self._reload()
        return Done()

    def _drain_soon(self, _: Nothing) -> Done:
        self._drain()
        return Done()
