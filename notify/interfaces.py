"""The contracts between notify and its plugins, and between its own modules.

Calls go one way: the composition root hands each part what it may call, and nobody looks anything up. All
methods run in the reactor thread. A Deferred that a contract names may be cancelled by its caller, who then
has no interest in the answer.

Contract suites that run against any implementation: ``notify.testing.contracts``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import cast

from msgspec import Struct
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from notify.errors import Unsupported
from notify.identity import Identity, Peer, Presence
from notify.ids import Id
from notify.messages import Draft, Earlier, Followed, Message, Position, Replayed
from notify.topics import Topic


class BrokerStatus(Struct, frozen=True):
    """Whether messages can be published and followed now; ``detail`` describes the state in words, for operators."""

    ready: bool
    detail: str


class Gathered(Struct, frozen=True):
    """What nodes answered: pairs of a node's name and its answer, sorted, two of one name included.

    ``missing`` names those known to be there that did not answer, or could not do it. ``detail`` says in words why this
    node cannot reach others now; empty: it can.
    """

    answers: list[tuple[str, bytes]]
    missing: list[str]
    detail: str = ""


class IPlugin(Interface):
    """What a file in ``notify/plugins/`` offers: a name, and where the implementation is.

    Nothing is imported before the configuration names the plugin. ``factory`` leads to a class with an
    attribute ``Settings`` (a ``msgspec.Struct`` with ``forbid_unknown_fields``, whose defaults are the
    defaults of the configuration table), that is called ``Class(settings, context)`` with a
    :class:`notify.components.Context` and provides the interface of its kind. It raises
    :class:`~notify.errors.StartError` where its settings contradict each other or the machine. The class
    may offer ``cautions(settings)``, a static method that gives a list of sentences about what works and is dangerous, for
    ``notify check-config`` and ``doctor``; ``diagnose`` for ``notify doctor`` (notify/findings.py); a broker's also ``new_epoch(settings)`` for
    ``notify new-epoch``, which gives the epoch's name and raises ``Unavailable``; no reactor runs. A broker may name the control
    that goes with it in an attribute ``control``. What knows of its own process alone says so by an attribute ``alone`` that is true: where a
    server has several, the first has it and serves the others; of what is not, each process has its own, as a node does.
    """

    kind = Attribute("'auth', 'broker', 'registry' or 'control': the configuration table that may name it")
    name = Attribute("str: the value of `plugin` in that table, and the name of its own table under it")
    factory = Attribute("str: 'package.module:Class'")


class IAuthenticator(Interface):
    """Decides who a token's bearer is, and which topics that user may subscribe to."""

    def start() -> Deferred[None]:
        """Get ready, for example fetch keys. Errback :class:`~notify.errors.StartError`: the process ends."""

    def authenticate(token: str, peer: Peer) -> Deferred[Identity]:
        """Whose token is this? ``token`` is untrusted, of up to the frame limit.

        Errback :class:`~notify.errors.Unauthorized`: the token is no good.
        Errback :class:`~notify.errors.Unavailable`: it cannot be told now.
        """

    def authorize(identity: Identity, topic: Topic) -> Deferred[bool]:
        """May this user receive this chat?

        Asked for chats of the user's own workspace only: tenancy is the session's rule, not a plugin's.
        Errback :class:`~notify.errors.Unavailable`: it cannot be told now; the client is told to retry.
        """

    def stop() -> Deferred[None]:
        """Release what :meth:`start` took."""


class IReviewer(Interface):
    """What an authenticator may provide besides, whose answers change while a token is good or that remembers them.

    One that does not is asked by ``authorize`` again, chat by chat, when a client shows a new token.
    """

    recheck = Attribute(
        "float: a live subscription is asked about again this often (seconds); 0: at a new token only"
    )
    grace = Attribute(
        "float: it goes on for so long (seconds) from when no answer came, and ends with 'unavailable'"
    )

    def review(identity: Identity, topics: Collection[Topic]) -> Deferred[Mapping[Topic, bool]]:
        """Which of these chats may the user still receive? Nothing that was remembered is good enough.

        Chats that are missing in the answer cannot be told of now. Never fails, but may be cancelled.
        """

    def forget(workspace_id: Id, user_id: Id) -> None:
        """Remember nothing that was said of this user until now, questions that are under way included."""


class IExplainer(Interface):
    """What an authenticator may provide besides that can say more of a refusal to whoever traces a user."""

    def claims(token: str) -> tuple[Id, Id] | None:
        """The workspace and the user that a token names, which was refused: nobody has verified it. None: nobody can tell."""

    def why_not(identity: Identity, topic: Topic) -> str:
        """Why :meth:`IAuthenticator.authorize` says no to this: text for an operator. It asks nobody."""


class ISuccessor(Interface):
    """What an authenticator may provide besides that goes on with what the one before it has found out."""

    def take_over(before: object) -> None:
        """A reload puts it in the place of ``before``, which still runs. Called before :meth:`IAuthenticator.start`."""


class IBroker(Interface):
    """Accepts messages, keeps their history, and delivers those of the topics that this node follows."""

    def start(deliver: Callable[[Message], None], lost: Callable[[Topic], None]) -> Deferred[None]:
        """Connect. Fires once the broker can be used, however long it takes to come up.

        Only valid messages are ever delivered or replayed: a broker skips, counts and keeps poison
        (:func:`notify.messages.parse_event`).

        Errback :class:`~notify.errors.StartError` where waiting would not help (too old, wrong settings).
        Afterwards the broker mends what breaks by itself. It calls ``deliver`` for each message of a followed
        topic, and ``lost`` when it can no longer tell that a followed topic has no gap: the topic then counts
        as unfollowed. Neither callable raises or blocks.
        """

    def publish(
        topic: Topic, payload: bytes, idempotency_key: str | None = None, trace: str = ""
    ) -> Deferred[Position]:
        """Store one message; fires with its position once it is accepted. ``trace`` is a W3C traceparent.

        A key that was used for this topic within the broker's window stores nothing and gives the first answer.
        Messages published in order by one caller, without waiting, keep that order.
        Errback :class:`~notify.messages.Poison`: the payload is not valid for the topic; nothing was stored.
        Errback :class:`~notify.errors.TooLarge`: no message of this size can be stored, now or later.
        Errback :class:`~notify.errors.Unavailable`: not stored. :class:`~notify.errors.Unknown`: cannot be told.
        """

    def follow(topic: Topic) -> Deferred[Followed]:
        """Deliver this topic from now on; fires with its newest position, and the event there.

        Where it has no message that is any position at which nothing of it has come: 0, or better one from which
        :meth:`replay` can tell later that nothing has gone.

        Every message after that position is delivered once and in order, none of them before the Deferred has
        fired, however often the broker went away meanwhile; or ``lost`` is called.
        Errback :class:`~notify.errors.Unavailable`: the topic is not followed. Not called for a topic that is
        followed already, or about to be.
        """

    def unfollow(topic: Topic) -> None:
        """Deliver this topic no more, from now on. Harmless for a topic that is not followed.

        Not called before the Deferred of its :meth:`follow` has fired.
        """

    def replay(
        topic: Topic, after: Position | None, limit: int, size: int, whole: bool = False
    ) -> Deferred[Replayed]:
        """Give the first messages after a position, oldest first, without a gap.

        At most ``limit`` (1 or more) of them, and at most ``size`` bytes of payloads, but at least one message.
        ``None`` is before the oldest message that is kept, and never lost. The topic need not be followed.

        ``more``: there are others behind them. Without it they reach to what was newest, or delivered, when called,
        or further. Where much lies between that is no message, fewer may come though there are more, even none: then
        ``reached`` says from where to go on. ``whole``: a part is of no use to the caller; where not all fit, the broker may answer at once
        with no messages and ``more``.

        Cancelling the Deferred gives the read up.
        Errback :class:`~notify.errors.HistoryLost`: a message after it is gone, or the position is newer than the
        newest or of another epoch. :class:`~notify.errors.Unavailable`: try again later.
        """

    def status() -> BrokerStatus:
        """How the broker is, from what is known without asking it."""

    def stop() -> Deferred[None]:
        """Finish publishes under way, then disconnect; nothing is delivered afterwards."""


class ITogether(Interface):
    """What a broker may provide besides :class:`IBroker` that can send at once what is published at once."""

    def together() -> AbstractContextManager[None]:
        """What is published before the context ends may wait for its end, to go out together.

        For a moment: nobody waits for an answer, or for anything else, in it. Contexts may nest. Nothing else changes for those that
        publish: each message has an outcome of its own, and the order is kept.
        """


class IAtomic(Interface):
    """What a broker may provide besides :class:`IBroker` that can store several messages as one.

    Without it a list that asks to be all or nothing is answered 501.
    """

    def publish_all(drafts: Sequence[Draft]) -> Deferred[list[Position]]:
        """Store all of these messages (one or more, of any topics), or none; fires with their positions, in their order.

        Those of a topic keep their order, among each other and with what is published before and afterwards. Under a key
        that was used for its topic within the broker's window a message is there already, and has the first answer; of a list of which
        a part is there the rest is stored as one. What was accepted is delivered and read as if it had been published one by one.

        Errback :class:`~notify.errors.AtFault`: one of them is refused. :class:`~notify.errors.TooLarge`: they are more than can be
        stored as one. :class:`~notify.errors.Unsupported`: as it is set up, the broker cannot. Of these,
        and of :class:`~notify.errors.Unavailable`, nothing was stored. :class:`~notify.errors.Unknown`: all, or nothing; it cannot be told.
        """


def atomic_of(broker: IBroker) -> IAtomic:
    """A broker that provides :class:`IAtomic` besides. Raises :class:`~notify.errors.Unsupported` for another."""
    if not IAtomic.providedBy(broker):
        raise Unsupported("the broker's plugin stores no list as one: nothing was stored")
    return cast(IAtomic, broker)


class IPages(Interface):
    """What a broker may provide besides :class:`IBroker`: where a topic stands now, and its history from the newest on.

    Without it ``GET /v1/position`` answers 501, and clients can ask for what came after a position alone.
    """

    def newest(topic: Topic) -> Deferred[Position]:
        """The topic's newest position, whether anybody follows it or not.

        What was accepted through this node before the call is not after it. It is such a position as
        :meth:`IBroker.follow` gives, also where the topic has no message: one that :meth:`IBroker.replay` goes on from.
        Errback :class:`~notify.errors.Unavailable`: it cannot be told now.
        """

    def earlier(topic: Topic, before: Position | None, limit: int, size: int) -> Deferred[Earlier]:
        """Give the last messages before a position, oldest first; None: the newest ones.

        At most ``limit`` (1 or more) of them, and at most ``size`` bytes of payloads, but at least one where there is one. Fewer,
        or none, may come though ``more`` are there: whoever wants those goes on before ``first``, which is
        lower each time. What is kept between ``first`` and ``last`` is whole; what was deleted or has expired is not there,
        and nothing tells of it. A position before which nothing is kept, or that is newer than the newest, is none of its faults.

        Cancelling the Deferred gives the read up.
        Errback :class:`~notify.errors.HistoryLost`: the position is of another epoch, or a message that is kept cannot be
        read. :class:`~notify.errors.Unavailable`: try again later.
        """


def pages_of(broker: IBroker) -> IPages:
    """A broker that provides :class:`IPages` besides. Raises :class:`~notify.errors.Unsupported` for another."""
    if not IPages.providedBy(broker):
        raise Unsupported("the broker's plugin tells no positions, and reads no history backwards")
    return cast(IPages, broker)


class ISignals(Interface):
    """What a broker may provide besides that carries signals between nodes: what is told once, and kept nowhere.

    Where it does not, clients and backends do without. Nothing here waits, fails, or is in the way of a message.
    """

    def hear(heard: Callable[[Topic, bytes], None]) -> None:
        """Call ``heard(topic, payload)`` with what comes for topics that are listened to. Called once, before :meth:`IBroker.start`.

        The payload is what :meth:`signal` was given on some node, this one included; or what anybody sent who can reach the
        broker: ``heard`` judges it. It neither raises nor blocks.
        """

    def listen(topic: Topic) -> None:
        """Somebody here hears the signals of this chat from now on, as soon as that can be. Calls do not nest."""

    def unlisten(topic: Topic) -> None:
        """Nobody does any more. Harmless for a topic that is not listened to."""

    def signal(topic: Topic, payload: bytes) -> bool:
        """Send it, once, to every node that listens. Those of one node that get there keep their order.

        False: it is lost, for this node reaches nobody now or the broker does not take it. True is no promise.
        """


class IRegistry(Interface):
    """Knows which connections of this node are in which topic, and who is present over all nodes.

    ``join``, ``leave``, ``forget`` and ``members`` are the hot path: synchronous, local, and correct at once.
    """

    def start(changed: Callable[[Topic], None]) -> Deferred[None]:
        """Get ready. Calls ``changed`` when the presence of a watched topic may have changed, on any node."""

    def join(connection: IConnection, topic: Topic) -> bool:
        """Add an authenticated connection; True: it is the topic's first here. Harmless when it is in already."""

    def leave(connection: IConnection, topic: Topic) -> bool:
        """Remove a connection; True: it was the topic's last here. False also when it was not in."""

    def forget(connection: IConnection) -> list[Topic]:
        """Remove a connection from all its topics; gives those that have no member here any more."""

    def members(topic: Topic) -> Collection[IConnection]:
        """The connections of this node in a topic. Valid until the next call that changes it; not to be changed."""

    def topics(connection: IConnection) -> Collection[Topic]:
        """The topics that a connection is in. Valid and unchangeable like :meth:`members`."""

    def presence(topic: Topic) -> Deferred[list[Presence]]:
        """Who is in a chat on any node, sorted by user. Errback :class:`~notify.errors.Unavailable`.

        Of a user's own topic, which nobody can ask for, other nodes need not know.
        """

    def watch(topic: Topic) -> None:
        """Call ``changed`` for this topic from now on. Calls do not nest."""

    def unwatch(topic: Topic) -> None:
        """No more of that."""

    def stop() -> Deferred[None]:
        """Withdraw this node's presence."""


class IPlaces(Interface):
    """What a registry may provide besides that knows of a user's connections in other processes, too."""

    def room(topic: Topic, most: int) -> Deferred[bool]:
        """May the user whose own topic this is have one connection more, and no more than ``most`` altogether?

        Yes is good for a connection that joins before the callbacks of the Deferred return. Errback
        :class:`~notify.errors.Unavailable`.
        """


class IControl(Interface):
    """Has all nodes do something at the word of one of them, and keeps what holds for nodes that come later, too.

    What may be asked, and what is kept: :mod:`notify.core.steering`.
    """

    def start(do: Callable[[str, bytes], Deferred[bytes]]) -> Deferred[None]:
        """Get ready, which must not depend on others: a node that reaches nobody steers itself.

        ``do(command, argument)`` is called on each node that is asked, and gives that node's answer; both are JSON
        documents. It may fail, and the node is then among those that did not answer.
        Errback :class:`~notify.errors.StartError` where the settings are wrong.
        """

    def ask(command: str, argument: bytes, node: str = "") -> Deferred[Gathered]:
        """Have all nodes do it, this one included, or the one of this name, and gather what they answer.

        Fires in a bounded time and never fails: what this node itself answers is there also while it reaches no other.
        Nobody does the same request twice. The name of a node that nobody knows gives no answers, and nobody missing.
        """

    def keep(key: str, merge: Callable[[bytes | None], bytes], until: float) -> Deferred[bool]:
        """Keep a record under a key until ``until`` (Unix time in seconds, at most 366 days away), for all nodes.

        ``key`` is up to 512 letters, digits, ``_``, ``-`` and ``.`` between them. ``merge(record)`` is given what is kept there
        now, None where that is nothing, and gives the record, of up to 2 KiB; it may be called several times. Fires once it is
        kept: True, and it outlives this process; False, and nothing does here. Before :meth:`watch` has fired it may fail.
        Errback :class:`~notify.errors.Unavailable`: it is not kept, or nobody can tell. The same call may be repeated.
        """

    def watch(heard: Callable[[str, bytes], None]) -> Deferred[None]:
        """Call ``heard(key, record)`` with every record that is kept, and from then on with each that any node keeps.

        Fires once it was called with all that were there, however long it takes; nobody may be let in before. Where some may
        have been missed, as while others could not be reached, it is called with those in time; what it has heard before it may
        hear again. ``heard`` neither raises nor blocks. Called once, after :meth:`start`.
        Errback :class:`~notify.errors.StartError` where waiting would not help.
        """

    def stop() -> Deferred[None]:
        """Let the others know that this node leaves, and release what :meth:`start` took."""


class ICurrent(Interface):
    """What a control may offer besides: to say when it knows all that others have kept, also after it was cut off from them."""

    def current() -> Deferred[None]:
        """Fires once ``heard`` of :meth:`IControl.watch` was called with all that was kept before this call, however long it takes."""


class IPatient(Interface):
    """What a broker may offer besides: to let something else come first when it is there again after it was cut off."""

    def after(first: Callable[[], Deferred[None]]) -> None:
        """Before what came meanwhile is delivered, call ``first`` and wait for it, for some seconds at most. Called before ``start``."""


class IConnection(Interface):
    """One client's connection, as session, dispatcher and registry see it. Hashable by identity."""

    id = Attribute("str: unique over all nodes; what a client knows as connection_id")
    peer = Attribute("Peer: where it comes from")
    identity = Attribute("Identity | None: who it is, once authenticated")
    encoding = Attribute(
        "Encoding: how its server frames are made; one object serves all connections alike. The session "
        "replaces it once, when it grants features"
    )
    opened = Attribute("float: Unix time in seconds at which it was accepted")
    queued = Attribute("int: bytes that wait because the client has not taken what came before")
    blocked = Attribute("bool: the client has not taken all that came before: what is written now waits")
    heard = Attribute("float: when the client was heard last, by the reactor's clock; it answers pings")

    def write(frame: bytes) -> None:
        """Send bytes that ``encoding.pack`` made. Never blocks or raises; drops them once the connection closes.

        A connection whose queue passes the bound is closed with 4001.
        """

    def throttle(on: bool) -> None:
        """Stop reading from the client, or go on."""

    def close(code: int, reason: str = "") -> None:
        """Start the closing handshake (docs/protocol.md, Close codes). Harmless when closed already."""
