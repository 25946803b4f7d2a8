"""The API's queries to all nodes at once: which nodes there are, who is connected, and the activity of chats."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec
from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from notify import ids
from notify.core.steering import (
    MOST,
    ConnectionItem,
    ConnectionQuery,
    ConnectionsFound,
    NodeItem,
    Nothing,
    TopicQuery,
    TopicsFound,
)
from notify.http.answers import Answer, answer
from notify.http.keys import permit
from notify.http.reads import identifier
from notify.http.request import Request
from notify.ids import Id
from notify.interfaces import Gathered, IControl

log = Logger()

T = TypeVar("T")


class Reached(Struct, frozen=True):
    """How many nodes answered, and which known nodes did not; ``detail`` says why others cannot be reached."""

    answered: int
    missing: list[str]
    detail: str


class Nodes(Struct, frozen=True):
    """The nodes that answered, by name."""

    nodes: list[NodeItem]
    reached: Reached


class Connections(Struct, frozen=True):
    """A user's connections on all nodes, oldest first; at most 1000 are listed, ``count`` is the total."""

    count: int
    connections: list[ConnectionItem]
    reached: Reached


class TopicSummary(Struct, frozen=True):
    """One chat that has members: how many connections on which node, and messages a second, measured over a second."""

    chat_id: Id
    members: int
    rate: float
    nodes: dict[str, int]


class Topics(Struct, frozen=True):
    """Chats of a workspace that have members, busiest first; at most 1000 are listed for each node.

    ``complete`` is false if a node has more.
    """

    topics: list[TopicSummary]
    complete: bool
    reached: Reached


class Told(Struct, Generic[T]):
    """The answers of nodes, by name, and how many could be reached."""

    answers: list[tuple[str, T]]
    reached: Reached


class Cluster:
    """The control as handlers use it: with values instead of JSON."""

    def __init__(self, control: IControl) -> None:
        self._control = control

    def ask(self, command: str, argument: Struct, kind: type[T], node: str = "") -> Deferred[Told[T]]:
        """Run a command on all nodes, or on the named one; the answers are of type ``kind``. Never fails."""
        asked: Deferred[Gathered] = self._control.ask(command, msgspec.json.encode(argument), node)
        return asked.addCallback(self._read, command, kind)

    @staticmethod
    def _read(gathered: Gathered, command: str, kind: type[T]) -> Told[T]:
        answers, missing = [], list(gathered.missing)
        for node, data in gathered.answers:
            try:
                answers.append((node, msgspec.json.decode(data, type=kind)))
            except (msgspec.DecodeError, UnicodeDecodeError):
                log.warn("the answer of {node} to {command} cannot be read", node=node, command=command)
                missing.append(node)
        return Told(answers, Reached(len(answers), missing, gathered.detail))


class NodeReader:
    """``GET /v1/nodes``."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __call__(self, request: Request) -> Deferred[Answer]:
        """Takes a second, because rates are measured."""
        request.parameters([])
        permit(request.key, None)
        asked = self._cluster.ask("nodes", Nothing(), NodeItem)
        return asked.addCallback(lambda told: answer(Nodes([item for _, item in told.answers], told.reached)))


class ConnectionReader:
    """``GET /v1/connections``: a user's connections, in one workspace or in all those that the key is for."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __call__(self, request: Request) -> Deferred[Answer]:
        """List the connections on all nodes."""
        parameters = request.parameters(["user_id"], ["workspace_id"])
        user_id = identifier(parameters, "user_id")
        within = None if request.key.workspaces is None else tuple(request.key.workspaces)
        if "workspace_id" in parameters:
            workspace_id = identifier(parameters, "workspace_id")
            permit(request.key, workspace_id)
            within = (workspace_id,)
        asked = self._cluster.ask("connections", ConnectionQuery(user_id, within), ConnectionsFound)
        return asked.addCallback(self._answer)

    @staticmethod
    def _answer(told: Told[ConnectionsFound]) -> Answer:
        found = [one for _, each in told.answers for one in each.connections]
        found.sort(key=lambda one: (one.opened, one.connection_id))
        return answer(Connections(sum(each.count for _, each in told.answers), found[:MOST], told.reached))


class TopicReader:
    """``GET /v1/topics``: the chats of a workspace."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __call__(self, request: Request) -> Deferred[Answer]:
        """Takes a second, because rates are measured."""
        workspace_id = identifier(request.parameters(["workspace_id"]), "workspace_id")
        permit(request.key, workspace_id)
        return self._cluster.ask("topics", TopicQuery(workspace_id), TopicsFound).addCallback(self._answer)

    @staticmethod
    def _answer(told: Told[TopicsFound]) -> Answer:
        nodes: dict[Id, dict[str, int]] = {}
        rates: dict[Id, float] = {}
        for node, found in told.answers:
            for item in found.topics:
                members = nodes.setdefault(item.chat_id, {})
                members[node] = members.get(node, 0) + item.members
                rates[item.chat_id] = max(item.rate, rates.get(item.chat_id, 0.0))
        items = [
            TopicSummary(chat_id, sum(members.values()), rates[chat_id], members)
            for chat_id, members in nodes.items()
        ]
        items.sort(key=lambda item: (-item.rate, -item.members, ids.order(item.chat_id)))
        complete = all(found.count == len(found.topics) for _, found in told.answers)
        return answer(Topics(items, complete, told.reached))
