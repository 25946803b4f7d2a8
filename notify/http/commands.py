"""The API's commands to nodes: disconnect users, end a subscription, shed clients, reload, drain."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from notify.core.steering import (
    Count,
    DisconnectOrder,
    Done,
    Nothing,
    Shedding,
    ShedOrder,
    UnsubscribeOrder,
)
from notify.http.answers import Answer, Refused, answer, bad_request
from notify.http.cluster import Cluster, Reached, Told
from notify.http.keys import permit
from notify.http.request import Request
from notify.observe import logging

#: who gave which command: never sampled, and not suppressed by a higher level
audit = Logger(logging.AUDIT)

#: the most bytes in the body of a command
MAX_COMMAND = 4096

T = TypeVar("T")


class Disconnect(DisconnectOrder, frozen=True, forbid_unknown_fields=True):
    """The user to disconnect; with ``reconnect``, the clients come back by themselves, in a moment."""


class Disconnected(Struct, frozen=True):
    """The number of connections that were told to close, on all nodes."""

    closed: int
    reached: Reached


class Unsubscribe(UnsubscribeOrder, frozen=True, forbid_unknown_fields=True):
    """The user and the chat whose subscriptions to end."""


class Unsubscribed(Struct, frozen=True):
    """The number of subscriptions that were ended, on all nodes."""

    ended: int
    reached: Reached


class WhichNode(Struct, frozen=True, forbid_unknown_fields=True):
    """The node to command; without a name, the node that receives the request."""

    node: Annotated[str, Meta(max_length=64)] = ""


class ShedRequest(ShedOrder, frozen=True, forbid_unknown_fields=True):
    """The share of a node's clients to move to other nodes: above 0, at most 1."""

    node: Annotated[str, Meta(min_length=1, max_length=64)]


class Shed(Struct, frozen=True):
    """The node moves this many clients, chosen at random, to other nodes over this many seconds."""

    node: str
    clients: int
    seconds: float


class Reloading(Struct, frozen=True):
    """The node reloads its configuration; ``GET /v1/nodes`` shows the result."""

    node: str
    reloading: bool = True


class Draining(Struct, frozen=True):
    """The node is shutting down."""

    node: str
    draining: bool = True


def read(request: Request, kind: type[T], what: str) -> T:
    """The body of a command, as this type; ``what`` describes it for errors. Raises :class:`Refused`, 400."""
    try:
        return msgspec.json.decode(request.body, type=kind)
    except msgspec.ValidationError:
        raise bad_request(f"the body must be an object of {what}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise bad_request("the body is not valid JSON in UTF-8") from None


def by(request: Request) -> dict[str, str]:
    """The caller's identity, for the log line of a command."""
    return {"key": request.key.name, "peer": request.peer, "request": request.request_id}


class Disconnector:
    """``POST /v1/disconnect``: closes a user's connections on all nodes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __call__(self, request: Request) -> Deferred[Answer]:
        """Closes with 4503, after which a client does not reconnect by itself, or with 1012, after which it does."""
        whom = read(
            request, Disconnect, "two ids, workspace_id and user_id, and optionally reconnect, a boolean"
        )
        permit(request.key, whom.workspace_id)
        audit.info(
            "API key {key} from {peer}, request {request}: disconnect user {user} of workspace {workspace}",
            **by(request),
            user=whom.user_id,
            workspace=whom.workspace_id,
        )
        told = self._cluster.ask("disconnect", whom, Count)
        return told.addCallback(lambda told: answer(Disconnected(_sum(told), told.reached)))


class Unsubscriber:
    """``POST /v1/unsubscribe``: ends a user's subscriptions to a chat on all nodes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __call__(self, request: Request) -> Deferred[Answer]:
        """The clients get ``forbidden`` for the chat. If one subscribes again, the authenticator is asked again."""
        what = read(request, Unsubscribe, "three ids, workspace_id, user_id and chat_id")
        permit(request.key, what.workspace_id)
        audit.info(
            "API key {key} from {peer}, request {request}: end the subscriptions of user {user} of workspace {workspace} to chat {chat}",
            **by(request),
            user=what.user_id,
            workspace=what.workspace_id,
            chat=what.chat_id,
        )
        told = self._cluster.ask("unsubscribe", what, Count)
        return told.addCallback(lambda told: answer(Unsubscribed(_sum(told), told.reached)))


def _sum(told: Told[Count]) -> int:
    return sum(one.count for _, one in told.answers)


class Shedder:
    """``POST /v1/shed``: moves a share of a node's clients to other nodes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __call__(self, request: Request) -> Deferred[Answer]:
        """Answers as soon as shedding has begun. Refused while another runs, and by a node that is not serving."""
        permit(request.key, None)
        what = read(request, ShedRequest, "the name of a node, and share, a number above 0 and at most 1")
        audit.info(
            "API key {key} from {peer}, request {request}: send {share} of the clients of {node} away",
            **by(request),
            share=what.share,
            node=ascii(what.node)[1:-1],
        )
        told = self._cluster.ask("shed", ShedOrder(what.share), Shedding, what.node)
        return told.addCallback(self._answer, what.node)

    @staticmethod
    def _answer(told: Told[Shedding], node: str) -> Answer:
        shedding = _one(told)
        if shedding.refused:
            raise Refused(HTTPStatus.CONFLICT, shedding.refused, _REFUSED.get(shedding.refused, "not now"))
        return answer(Shed(node, shedding.clients, shedding.seconds), HTTPStatus.ACCEPTED)


_REFUSED = {
    "already_shedding": "the node is already sending clients away: try again when it has finished",
    "not_serving": "the node is starting or leaving, so it has no clients to choose from: try again later, or choose another node",
}


class Order:
    """``POST /v1/drain`` and ``POST /v1/reload``: starts one of these on this node (``here``) or another."""

    def __init__(self, cluster: Cluster, here: str, command: str, begun: type[Draining | Reloading]) -> None:
        self._cluster, self._here, self._command, self._begun = cluster, here, command, begun

    def __call__(self, request: Request) -> Deferred[Answer]:
        """Answers as soon as it has started. Has no effect if it is already running."""
        permit(request.key, None)
        which = read(request, WhichNode, "the name of a node, or nothing") if request.body else WhichNode()
        node = which.node or self._here
        audit.info(
            "API key {key} from {peer}, request {request}: {command} {node}",
            **by(request),
            command=self._command,
            # A client chose this name, so it must not be able to forge a log line.
            node=ascii(node)[1:-1],
        )
        told = self._cluster.ask(self._command, Nothing(), Done, node)
        return told.addCallback(self._answer, node)

    def _answer(self, told: Told[Done], node: str) -> Answer:
        _one(told)
        return answer(self._begun(node), HTTPStatus.ACCEPTED)


def _one(told: Told[T]) -> T:
    """The answer of the node that was named."""
    if told.answers:
        return told.answers[0][1]
    if told.reached.missing:
        raise Refused(
            HTTPStatus.GATEWAY_TIMEOUT,
            "timeout",
            "the node is known but does not answer, so it is not known what it did: check it with /v1/nodes",
        )
    raise Refused(HTTPStatus.NOT_FOUND, "no_such_node", _unknown(told.reached))


def _unknown(reached: Reached) -> str:
    return "there is no node with this name" + (
        f", as far as this node knows: {reached.detail}" if reached.detail else ""
    )
