"""The frames about chats: ``subscribe``, ``unsubscribe``, ``presence`` and ``history`` (docs/protocol.md, section 1)."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from notify import topics
from notify.core.client import CLOSED, Client, given, position
from notify.core.feed import Joined
from notify.core.pages import A_PAGE, Page, Wanted, page_frame
from notify.core.witness import reason_of
from notify.errors import HistoryLost, Unsupported
from notify.identity import Identity, Presence
from notify.ids import Id
from notify.observe.logging import clients
from notify.topics import Topic
from notify.wire.frames import (
    HistoryQuery,
    Ok,
    PresenceList,
    PresenceQuery,
    Subscribe,
    Subscribed,
    Unsubscribe,
)

#: the same text whether a chat does not exist or belongs to others
NO_SUCH_CHAT = "no such chat, or not yours to see"


def subscribe(client: Client, frame: Subscribe) -> Deferred[Any] | None:
    """Subscribe a client to a chat, and send it what it missed. After any error, it is not subscribed."""
    limit = client.hub.live.now.limits.max_subscriptions
    if frame.chat_id not in client.chats and 0 < limit <= len(client.chats):
        client.error("too_many_subscriptions", f"at most {limit} chats a connection", frame.id)
        _tell("has as many chats as it may, and does not get", client, frame.chat_id)
        return None
    topic = _topic(client, frame.chat_id)
    client.joining = frame.chat_id
    client.hub.subscribers[client.connection] = client
    joining = _authorized(client, topic).addCallback(_join, client, frame, topic)
    return joining.addErrback(_not_joined, client, topic)


def _join(allowed: bool, client: Client, frame: Subscribe, topic: Topic) -> Deferred[None] | None:
    if client.state == CLOSED:
        return None
    if not allowed or client.joining is None:
        _forbid(client, frame, topic, barred=allowed)
        return None
    # While it joins, possibly again, it is sent no signals of this chat.
    client.hub.signals.leave(client.connection, topic)
    joining = client.hub.dispatcher.subscribe(client.connection, topic, position(frame.since))
    return joining.addCallback(_joined, client, frame, topic)


def _forbid(client: Client, frame: Subscribe, topic: Topic, barred: bool = True) -> None:
    client.joining = None
    witness = client.hub.witness
    if witness is not None:
        reason = "an operator ended it" if barred else witness.why_not(_identity(client), topic)
        witness.subscription(client.connection, "subscribe", topic.id, "forbidden", reason)
    _leave(client, topic)
    client.error("forbidden", NO_SUCH_CHAT, frame.id)
    _tell("may not have", client, frame.chat_id)


def _joined(joined: Joined, client: Client, frame: Subscribe, topic: Topic) -> None:
    if client.state == CLOSED:
        return
    if client.joining is None:
        _forbid(client, frame, topic)
        return
    hub, client.joining = client.hub, None
    if frame.chat_id not in client.chats:
        client.chats.add(frame.chat_id)
        hub.metrics.subscriptions.inc()
    client.settled(frame.chat_id)
    _report(client, "subscribe", topic.id, "ok")
    if frame.id is not None or frame.since is not None:
        at = joined.position
        answer = Subscribed(frame.chat_id, at.epoch, at.seq, joined.recovered, given(frame.id))
        client.send(answer, joined.bodies)
    hub.signals.join(client.connection, topic)
    client.owe(joined.read)
    _tell("is in", client, frame.chat_id)
    if frame.watch_presence:
        hub.presence.watch(client.connection, topic)
    else:
        hub.presence.unwatch(client.connection, topic)


def _not_joined(failure: Failure, client: Client, topic: Topic) -> Failure:
    client.joining = None
    # Even if it was subscribed before: an error always means that it is not subscribed.
    if client.state != CLOSED:
        _report(client, "subscribe", topic.id, "unavailable", reason_of(failure.value))
        _leave(client, topic)
    return failure


def unsubscribe(client: Client, frame: Unsubscribe) -> None:
    """Unsubscribe a client from a chat."""
    _report(client, "unsubscribe", frame.chat_id, "ok")
    _leave(client, _topic(client, frame.chat_id))
    if frame.id is not None:
        client.send(Ok(frame.id))


def presence(client: Client, frame: PresenceQuery) -> Deferred[Any]:
    """Tell a client once who is in a chat."""
    topic = _topic(client, frame.chat_id)
    return _authorized(client, topic).addCallback(_ask_presence, client, frame, topic)


def _ask_presence(allowed: bool, client: Client, frame: PresenceQuery, topic: Topic) -> Deferred[None] | None:
    if client.state == CLOSED:
        return None
    if not allowed:
        client.error("forbidden", NO_SUCH_CHAT, frame.id)
        _tell("may not see who is in", client, frame.chat_id)
        return None
    asked: Deferred[list[Presence]] = client.hub.registry.presence(topic)
    return asked.addCallback(_tell_presence, client, frame)


def _tell_presence(users: list[Presence], client: Client, frame: PresenceQuery) -> None:
    client.send(PresenceList(frame.chat_id, users, given(frame.id)))
    client.owe(len(users))


def history(client: Client, frame: HistoryQuery) -> Deferred[Any]:
    """Send a client a page of a chat's history, whether it is subscribed or not."""
    topic = _topic(client, frame.chat_id)
    # As with a subscription, an operator may end it meanwhile.
    client.joining = frame.chat_id
    client.hub.subscribers[client.connection] = client
    asking = _authorized(client, topic).addCallback(_read_page, client, frame, topic)
    return asking.addErrback(_no_page, client, frame)


def _read_page(allowed: bool, client: Client, frame: HistoryQuery, topic: Topic) -> Deferred[None] | None:
    if client.state == CLOSED:
        return None
    if not allowed or client.joining is None:
        _refuse_page(client, frame)
        return None
    wanted = Wanted(position(frame.before), position(frame.after), frame.limit)
    asked = client.hub.dispatcher.pages.ask(client.connection, topic, wanted)
    return asked.addCallback(_send_page, client, frame)


def _send_page(page: Page, client: Client, frame: HistoryQuery) -> None:
    if client.state == CLOSED:
        return
    if client.joining is None:
        _refuse_page(client, frame)
        return
    client.joining = None
    client.send(page_frame(page, frame.chat_id, client.connection.encoding.events, given(frame.id)))
    client.owe(page.read)


def _refuse_page(client: Client, frame: HistoryQuery) -> None:
    client.joining = None
    client.error("forbidden", NO_SUCH_CHAT, frame.id)
    _tell("may not read", client, frame.chat_id)


def _no_page(failure: Failure, client: Client, frame: HistoryQuery) -> Failure | None:
    client.joining = None
    if client.state != CLOSED and isinstance(failure.value, HistoryLost | Unsupported):
        client.error("history_unavailable", "this part of the chat's history cannot be given", frame.id)
        client.owe(A_PAGE)
        return None
    return failure


def keep(client: Client, chats: Set[Id]) -> None:
    """A new token is limited to these chats: end the client's other subscriptions, and tell it."""
    for chat_id in client.chats - chats:
        end(client, chat_id, "forbidden", "the new token does not name this chat: unsubscribed")


def end(client: Client, chat_id: Id, code: str, message: str, retry: bool = False) -> None:
    """End a subscription that the client did not ask to end, and tell it. ``retry``: it may ask again later."""
    client.hub.metrics.ended.labels(code).inc()
    _tell(f"is put out ({code}) of", client, chat_id)
    _report(client, "unsubscribe", chat_id, code, message)
    _leave(client, _topic(client, chat_id))
    client.error(code, message, None, retry, chat_id)


def _tell(what: str, client: Client, chat_id: Id) -> None:
    clients.debug(
        "{connection} of user {user} {what} chat {chat}",
        connection=client.connection.id,
        user=_identity(client).user_id,
        workspace=_identity(client).workspace_id,
        what=what,
        chat=chat_id,
    )


def _report(client: Client, what: str, chat_id: Id, outcome: str, reason: str = "") -> None:
    """Report to the traces: see :meth:`~notify.core.witness.Witness.subscription`."""
    witness = client.hub.witness
    if witness is not None:
        witness.subscription(client.connection, what, chat_id, outcome, reason)


def bar(client: Client, chat_id: Id) -> bool:
    """See :class:`~notify.core.hub.Subscriber`."""
    asks, there = client.joining == chat_id, chat_id in client.chats
    if asks:
        client.joining = None
    if there:
        end(client, chat_id, "forbidden", "an operator ended it: unsubscribed")
    return asks or there


def forget(client: Client) -> None:
    """A client is gone."""
    hub = client.hub
    for chat_id in client.chats:
        topic = _topic(client, chat_id)
        hub.presence.unwatch(client.connection, topic)
        hub.signals.leave(client.connection, topic)
    hub.signals.forget(client.connection)
    hub.metrics.subscriptions.dec(len(client.chats))
    if hub.witness is not None:
        hub.witness.left(client.connection, client.chats)
    client.chats.clear()
    hub.dispatcher.forget(client.connection)


def _leave(client: Client, topic: Topic) -> None:
    hub = client.hub
    hub.dispatcher.leave(client.connection, topic)
    hub.presence.unwatch(client.connection, topic)
    hub.signals.leave(client.connection, topic)
    if topic.id in client.chats:
        client.chats.remove(topic.id)
        hub.metrics.subscriptions.dec()
        client.settled(topic.id)


def _authorized(client: Client, topic: Topic) -> Deferred[bool]:
    asked: Deferred[bool] = client.hub.live.now.authenticator.authorize(_identity(client), topic)
    return asked.addCallback(lambda allowed: allowed is True)


def _topic(client: Client, chat_id: Id) -> Topic:
    return topics.chat(_identity(client).workspace_id, chat_id)


def _identity(client: Client) -> Identity:
    identity: Identity | None = client.connection.identity
    if identity is None:
        raise RuntimeError("only an authenticated client gets here")
    return identity
