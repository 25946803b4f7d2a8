"""Revocation of access: the authenticator is asked again about live subscriptions, and its old answers are dropped.

A subscription was allowed once. The authenticator is asked about it again when the client presents a new token, and
at the authenticator's own interval (:class:`~notify.interfaces.IReviewer`). A no ends the subscription with
``forbidden``. Without an answer it goes on for a bounded time, and then ends with ``unavailable``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from notify import topics
from notify.core import chats
from notify.core.client import OPEN, Client
from notify.core.hub import Hub
from notify.core.revocations import Revocation
from notify.core.timers import Timer
from notify.errors import Unavailable
from notify.identity import Identity
from notify.ids import Id
from notify.interfaces import IAuthenticator, IReviewer
from notify.topics import Topic

log = Logger()

TOKEN_EXPIRED = 4002
DISCONNECTED_BY_OPERATOR = 4503
RECONNECT = 1012

#: the reason of a close for a token that was valid and has been revoked
REVOKED = "token revoked"

#: the fewest seconds between two reviews of one client, however often it presents a token
LEAST = 5.0

#: the earliest review, as a fraction of the authenticator's interval; clients are spread over the rest of it
EARLIEST = 0.75


def disconnect(hub: Hub, workspace_id: Id, user_id: Id, reconnect: bool = False) -> int:
    """Close a user's connections on this node with 4503, after which a client does not reconnect by itself.

    ``reconnect``: with 1012 instead, after which it reconnects in a moment. In either case the authenticator is asked
    about the user again. Returns the number of connections.
    """
    forget(hub, workspace_id, user_id)
    connections = list(hub.registry.members(topics.user(workspace_id, user_id)))
    for connection in connections:
        if reconnect:
            connection.close(RECONNECT, hub.retry_after())
        else:
            connection.close(DISCONNECTED_BY_OPERATOR)
    return len(connections)


def unsubscribe(hub: Hub, workspace_id: Id, user_id: Id, chat_id: Id) -> int:
    """End a user's subscriptions to a chat on this node, including those in progress.

    If the user subscribes again, the authenticator is asked again. Returns the number of subscriptions.
    """
    forget(hub, workspace_id, user_id)
    members = list(hub.registry.members(topics.user(workspace_id, user_id)))
    subscribers = [hub.subscribers[one] for one in members if one in hub.subscribers]
    return sum(subscriber.bar(chat_id) for subscriber in subscribers)


def revoke(hub: Hub, revocation: Revocation) -> int:
    """Refuse a user's tokens on this node from now on, and close the connections that use one with 4002.

    A client that has presented such a token and has no answer yet is not admitted either. Returns the number of
    connections.
    """
    workspace_id, user_id = revocation.workspace_id, revocation.user_id
    forget(hub, workspace_id, user_id)
    hub.revocations.add(revocation)
    members = hub.registry.members(topics.user(workspace_id, user_id))
    refused = [one for one in members if one.identity is not None and hub.revocations.refuses(one.identity)]
    for connection in refused:
        connection.close(TOKEN_EXPIRED, REVOKED)
    return len(refused)


def forget(hub: Hub, workspace_id: Id, user_id: Id) -> None:
    """Forget the authenticator's answers about this user, so that it is asked again."""
    hub.waiting.pop(topics.user(workspace_id, user_id), None)
    reviewer: IReviewer | None = IReviewer(hub.live.now.authenticator, None)
    if reviewer is not None:
        reviewer.forget(workspace_id, user_id)


def renew(hub: Hub) -> None:
    """Another authenticator is in force and may want to be asked sooner: apply its interval to every client."""
    for client in tuple(hub.subscribers.values()):
        client.renew()


def rechecks(authenticator: IAuthenticator) -> bool:
    """Whether subscriptions are reviewed at an interval."""
    return IReviewer.providedBy(authenticator) and bool(cast(IReviewer, authenticator).recheck)


@implementer(IReviewer)
class _OneByOne:
    """An authenticator that is not a reviewer: it remembers nothing, and is asked again chat by chat."""

    recheck = 0.0
    grace = 600.0

    def __init__(self, authenticator: IAuthenticator) -> None:
        self._authenticator = authenticator

    def review(self, identity: Identity, topics: Collection[Topic]) -> Deferred[Mapping[Topic, bool]]:
        """See :class:`~notify.interfaces.IReviewer`."""
        return Deferred.fromCoroutine(self._review(identity, topics))

    async def _review(self, identity: Identity, topics: Collection[Topic]) -> Mapping[Topic, bool]:
        told = {}
        for topic in topics:
            try:
                told[topic] = await self._authenticator.authorize(identity, topic) is True
            except Unavailable:
                pass
            except Exception:
                log.failure("a subscription cannot be reviewed")
        return told

    def forget(self, workspace_id: Id, user_id: Id) -> None:
        """See :class:`~notify.interfaces.IReviewer`."""


def _reviewer(authenticator: IAuthenticator) -> IReviewer:
    reviewer: IReviewer = IReviewer(authenticator, None) or _OneByOne(authenticator)
    return reviewer


class Review:
    """Reviews the chats of one client. It is idle, with a timer if one is needed, or a question is in flight."""

    __slots__ = ("_again", "_asked", "_asking", "_client", "_due", "_ended", "_timer", "_unknown")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._timer: Timer | None = None
        self._due = 0.0  # when the timer fires
        self._asked: Deferred[Any] | None = None
        self._asking: set[Id] | None = None  # what the question in flight is about
        self._again = False  # another question follows it
        self._ended = float("-inf")
        self._unknown: dict[Id, float] | None = None  # chats without an answer, and since when

    def settled(self, chat_id: Id) -> None:
        """The client has just joined or left the chat: an answer in flight is older than that."""
        if self._asking is not None:
            self._asking.discard(chat_id)
        elif self._timer is None:
            self._plan()
        if self._unknown is not None:
            self._unknown.pop(chat_id, None)

    def now(self) -> None:
        """Ask again as soon as possible, because the client has presented a new token."""
        if self._asking is not None:
            self._again = True
            return
        self._wait(self._ended + LEAST - self._client.hub.wheel.seconds())

    def renew(self) -> None:
        """Another authenticator is in force.

        A planned review is never postponed by this, since reloads may follow each other.
        """
        if self._asking is None and self._client.chats:
            self._plan()

    def stop(self) -> None:
        """The client is gone."""
        self._client.hub.wheel.cancel(self._timer)
        if self._asked is not None:
            self._asked.cancel()

    def _plan(self) -> None:
        hub = self._client.hub
        reviewer, now, waits = _reviewer(hub.live.now.authenticator), hub.wheel.seconds(), []
        if self._timer is not None:
            waits.append(self._due - now)
        if reviewer.recheck:
            waits.append(reviewer.recheck * (EARLIEST + (1 - EARLIEST) * hub.random.random()))
        if self._unknown:
            waits.append(reviewer.grace / 10 * (0.5 + hub.random.random()))
            waits.append(max(min(self._unknown.values()) + reviewer.grace - now, 0.0))
        if waits:
            self._wait(min(waits))

    def _wait(self, seconds: float) -> None:
        wheel = self._client.hub.wheel
        wheel.cancel(self._timer)
        self._timer, self._due = None, wheel.seconds() + seconds
        if seconds <= 0:
            self._ask()
        else:
            self._timer = wheel.after(seconds, self._ask)

    def _ask(self) -> None:
        client, self._timer = self._client, None
        identity = client.connection.identity
        if client.state != OPEN or identity is None or not client.chats:
            return
        self._asking = set(client.chats)
        authenticator = client.hub.live.now.authenticator
        about = {chat_id: topics.chat(identity.workspace_id, chat_id) for chat_id in self._asking}
        asked: Deferred[Any] = maybeDeferred(_reviewer(authenticator).review, identity, about.values())
        asked.addErrback(self._failed).addCallback(self._judge, about, authenticator)
        self._asked = None if asked.called else asked
        asked.addErrback(self._failed).addCallback(self._done)

    def _judge(self, told: Mapping[Topic, bool], about: Mapping[Id, Topic], by: IAuthenticator) -> None:
        client, now, grace = self._client, self._client.hub.wheel.seconds(), _reviewer(by).grace
        if client.state != OPEN:
            return
        superseded = by is not client.hub.live.now.authenticator
        unknown, self._unknown = self._unknown or {}, None
        for chat_id in (self._asking or set()) & client.chats:
            allowed = told.get(about[chat_id])
            if allowed is False:
                chats.end(client, chat_id, "forbidden", "not yours to see any more: unsubscribed")
            elif allowed is None:
                # A missing answer from an authenticator that has been stopped means nothing: ask its successor.
                self._again = self._again or superseded
                since = unknown.get(chat_id, float("inf") if superseded else now)
                if now - since >= grace:
                    text = "it cannot be told whether you may still see it: unsubscribed"
                    chats.end(client, chat_id, "unavailable", text, retry=True)
                elif since <= now:
                    self._unknown = {**(self._unknown or {}), chat_id: since}

    def _failed(self, failure: Failure) -> Mapping[Topic, bool]:
        """A reviewer must not fail; if it does, it has told nothing."""
        if self._client.state == OPEN:
            log.failure(
                "the chats of {connection} cannot be reviewed", failure, connection=self._client.connection.id
            )
        return {}

    def _done(self, _: object) -> None:
        self._asking = self._asked = None
        self._ended = self._client.hub.wheel.seconds()
        again, self._again = self._again, False
        if self._client.state != OPEN:
            return
        if again:
            self._wait(LEAST)
        else:
            self._plan()
