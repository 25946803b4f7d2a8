"""The contracts between notify and its plugins, and between notify's own modules.

Calls go one way: the composition root hands each part what it may call, and no part looks up another. All methods run
in the reactor thread. The caller may cancel any Deferred that a contract names; it then has no interest in the
answer.

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
    """Whether messages can be published and followed now. ``detail`` describes the state in words, for operators."""

    ready: bool
    detail: str


class Gathered(Struct, frozen=True):
    """The answers of several nodes.

    Answers are sorted pairs of a node's name and its answer; two nodes of the same name give two pairs. ``missing``
    names the nodes known to exist that did not answer or could not do it. ``detail`` says in words why this node
    cannot reach others now; it is empty if it can.
    """

    answers: list[tuple[str, bytes]]
    missing: list[str]
    detail: str = ""


class IPlugin(Interface):
    """What a file in ``notify/plugins/`` offers: a name, and where the implementation is.

    Nothing is imported before the configuration names the plugin. ``factory`` leads to a class that is called as
    ``Class(settings, context)`` with a :class:`notify.components.Context` and provides the interface of its kind. It
    raises :class:`~notify.errors.StartError` if its settings contradict each other or do not fit the machine. Its
    attribute ``Settings`` is a ``msgspec.Struct`` with ``forbid_unknown_fields``, whose defaults are the defaults of
    the configuration table.

    The class may also have:

    - ``cautions(settings)``, a static method that returns a list of sentences about settings that work but are
      dangerous, for ``notify check-config`` and ``doctor``.
    - ``diagnose``, for ``notify doctor`` (notify/findings.py).
    - ``new_epoch(settings)``, brokers only, for ``notify new-epoch``: returns the name of the new epoch and raises
      ``Unavailable``; no reactor runs.
    - ``control``, brokers only: the name of the control plugin that belongs to the broker.
    - ``alone``, true if it knows only of its own process. In a server with several processes only the first one makes
      such a plugin, and serves the others. Any other plugin is made in every process, as it would be in every node.
    """

    kind = Attribute("'auth', 'broker', 'registry' or 'control': the configuration table that may name it")
    name = Attribute("str: the value of `plugin` in that table, and the name of its own table under it")
    factory = Attribute("str: 'package.module:Class'")


class IAuthenticator(Interface):
    """Decides whose token it is, and which topics that user may subscribe to."""

    def start() -> Deferred[None]:
        """Get ready, for example fetch keys. Errback :class:`~notify.errors.StartError`: the process ends."""

    def authenticate(token: str, peer: Peer) -> Deferred[Identity]:
        """Identify the user of a token. ``token`` is untrusted input of up to the frame limit.

        Errbacks:

        - :class:`~notify.errors.Unauthorized`: the token is not accepted.
        - :class:`~notify.errors.Unavailable`: this cannot be decided now.
        """

    def authorize(identity: Identity, topic: Topic) -> Deferred[bool]:
        """May this user receive this chat?

        Called only for chats of the user's own workspace: the session enforces tenancy, not the plugin.

        Errback :class:`~notify.errors.Unavailable`: this cannot be decided now; the client is told to retry.
        """

    def stop() -> Deferred[None]:
        """Release what :meth:`start` took."""


class IReviewer(Interface):
    """Optional, for an authenticator that remembers its answers, or whose answers change while a token is valid.

    Without it, ``authorize`` is called again for each chat when a client presents a new token.
    """

    recheck = Attribute(
        "float: how often a live subscription is reviewed, in seconds; 0: only when a new token is presented"
    )
    grace = Attribute(
        "float: how long a subscription outlives a review without an answer, in seconds; then it ends with 'unavailable'"
    )

    def review(identity: Identity, topics: Collection[Topic]) -> Deferred[Mapping[Topic, bool]]:
        """Which of these chats may the user still receive? Remembered answers must not be used.

        Chats that are missing from the answer cannot be decided now. Never fails, but may be cancelled.
        """

    def forget(workspace_id: Id, user_id: Id) -> None:
        """Forget every answer about this user, including the answers to questions that are in flight."""


class IExplainer(Interface):
    """Optional, for an authenticator that can explain a refusal to an operator who traces a user."""

    def claims(token: str) -> tuple[Id, Id] | None:
        """The workspace and the user that a refused token names, unverified. None: unknown."""

    def why_not(identity: Identity, topic: Topic) -> str:
        """Why :meth:`IAuthenticator.authorize` refuses this, as text for an operator. Must not ask anyone else."""


class ISuccessor(Interface):
    """Optional, for an authenticator that takes over its predecessor's state."""

    def take_over(before: object) -> None:
        """Called at a reload, before :meth:`IAuthenticator.start`, with the authenticator it replaces, which still runs."""


class IBroker(Interface):
    """Accepts messages, keeps their history, and delivers those of the topics that this node follows."""

    def start(deliver: Callable[[Message], None], lost: Callable[[Topic], None]) -> Deferred[None]:
        """Connect. Fires once the broker can be used, however long it takes to come up.

        Only valid messages are ever delivered or replayed: a broker skips, counts and keeps poison
        (:func:`notify.messages.parse_event`).

        Once started, the broker recovers from failures by itself. It calls ``deliver`` for each message of a followed
        topic, and ``lost`` when it can no longer guarantee that a followed topic has no gap; the topic then counts as
        unfollowed. Neither callable raises or blocks.

        Errback :class:`~notify.errors.StartError`: waiting would not help (version too old, wrong settings).
        """

    def publish(
        topic: Topic, payload: bytes, idempotency_key: str | None = None, trace: str = ""
    ) -> Deferred[Position]:
        """Store one message; fires with its position once it is accepted. ``trace`` is a W3C traceparent.

        A key that was already used for this topic within the broker's window stores nothing and returns the first
        answer. Messages that one caller publishes in order, without waiting, keep that order.

        Errbacks:

        - :class:`~notify.messages.Poison`: the payload is not valid for the topic; nothing was stored.
        - :class:`~notify.errors.TooLarge`: no message of this size can be stored, now or later.
        - :class:`~notify.errors.Unavailable`: nothing was stored.
        - :class:`~notify.errors.Unknown`: the message may or may not have been stored.
        """

    def follow(topic: Topic) -> Deferred[Followed]:
        """Deliver this topic from now on; fires with its newest position, and the event there.

        For an empty topic, fires with any position after which the topic has had no message: 0, or preferably one
        from which :meth:`replay` can tell later that nothing was lost.

        Every message after that position is delivered once and in order, and none before the Deferred has fired,
        however often the broker was unavailable in between; otherwise ``lost`` is called. Not called for a topic that
        is followed already, or whose ``follow`` has not fired yet.

        Errback :class:`~notify.errors.Unavailable`: the topic is not followed.
        """

    def unfollow(topic: Topic) -> None:
        """Stop delivering this topic, immediately. Does nothing for a topic that is not followed.

        Not called before the Deferred of its :meth:`follow` has fired.
        """

    def replay(
        topic: Topic, after: Position | None, limit: int, size: int, whole: bool = False
    ) -> Deferred[Replayed]:
        """Return the first messages after a position, oldest first, without a gap.

        Returns at most ``limit`` (1 or more) messages and at most ``size`` bytes of payloads, but at least one
        message. ``after=None`` is the position before the oldest stored message, and is never lost. The topic need
        not be followed.

        ``more``: other messages follow. Without it, the messages reach at least to the newest message, or the last
        delivered one, at the time of the call. If much of the range holds no messages, the broker may return fewer,
        or none, although there are more; ``reached`` then says where to go on. ``whole``: a part is of no use to the
        caller; if not all messages fit, the broker may immediately return no messages and ``more``.

        Cancelling the Deferred abandons the read.

        Errbacks:

        - :class:`~notify.errors.HistoryLost`: a message after the position is gone, or the position is newer than the
          newest or of another epoch.
        - :class:`~notify.errors.Unavailable`: try again later.
        """

    def status() -> BrokerStatus:
        """The broker's status, as far as it is known without asking it."""

    def stop() -> Deferred[None]:
        """Finish publishes in flight, then disconnect. Nothing is delivered afterwards."""


class ITogether(Interface):
    """Optional, for a broker that can batch messages that are published together."""

    def together() -> AbstractContextManager[None]:
        """Messages published in this context may be held back until it ends, and sent together.

        The context is short: nothing in it waits for an answer, or for anything else. Contexts may nest. Nothing else
        changes for the publishers: each message has its own outcome, and the order is kept.
        """


class IAtomic(Interface):
    """Optional, for a broker that can store several messages atomically.

    Without it, a list that must be all or nothing is answered 501.
    """

    def publish_all(drafts: Sequence[Draft]) -> Deferred[list[Position]]:
        """Store all of these messages (one or more, of any topics), or none.

        Fires with their positions, in the same order. Messages of one topic keep their order, among each other and
        with those published before and afterwards. A message whose key was already used for its topic within the
        broker's window is already stored, and gets the first answer; if that holds for a part of the list, the rest
        is stored atomically. Accepted messages are delivered and read as if they had been published one by one.

        Errbacks; except for the last, this call stored nothing:

        - :class:`~notify.errors.AtFault`: one of the messages is refused.
        - :class:`~notify.errors.TooLarge`: these are more than can be stored atomically.
        - :class:`~notify.errors.Unsupported`: the broker, as it is set up, cannot do this. It need not look for what is
          stored already.
        - :class:`~notify.errors.Unavailable`: try again later.
        - :class:`~notify.errors.Unknown`: either all are stored, or none besides those that were stored before.
        """


def atomic_of(broker: IBroker) -> IAtomic:
    """The broker as :class:`IAtomic`. Raises :class:`~notify.errors.Unsupported` if it does not provide that."""
    if not IAtomic.providedBy(broker):
        raise Unsupported("the broker's plugin stores no list as one: nothing was stored")
    return cast(IAtomic, broker)


class IPages(Interface):
    """Optional, for a broker that can tell a topic's newest position and read its history backwards.

    Without it, ``GET /v1/position`` answers 501, and clients can only ask for what came after a position.
    """

    def newest(topic: Topic) -> Deferred[Position]:
        """The topic's newest position, whether anybody follows it or not.

        It is never older than what was accepted through this node before the call. As with :meth:`IBroker.follow`, it
        is a position from which :meth:`IBroker.replay` can go on, even if the topic is empty.

        Errback :class:`~notify.errors.Unavailable`: the position cannot be determined now.
        """

    def earlier(topic: Topic, before: Position | None, limit: int, size: int) -> Deferred[Earlier]:
        """Return the last messages before a position, oldest first; ``before=None``: the newest messages.

        Returns at most ``limit`` (1 or more) messages and at most ``size`` bytes of payloads, but at least one
        message if there is one. It may return fewer messages, or none, although there are ``more``: a caller that
        wants those goes on before ``first``, which is lower each time. Every stored message between ``first`` and
        ``last`` is included; deleted and expired messages are missing without notice. It is not an error if nothing
        is stored before the position, or if the position is newer than the newest.

        Cancelling the Deferred abandons the read.

        Errbacks:

        - :class:`~notify.errors.HistoryLost`: the position is of another epoch, or a stored message cannot be read.
        - :class:`~notify.errors.Unavailable`: try again later.
        """


def pages_of(broker: IBroker) -> IPages:
    """The broker as :class:`IPages`. Raises :class:`~notify.errors.Unsupported` if it does not provide that."""
    if not IPages.providedBy(broker):
        raise Unsupported("the broker's plugin tells no positions, and reads no history backwards")
    return cast(IPages, broker)


class ISignals(Interface):
    """Optional, for a broker that carries signals between nodes. Signals are sent once and never stored.

    Without it, clients and backends have no signals. Nothing here waits, fails, or delays a message.
    """

    def hear(heard: Callable[[Topic, bytes], None]) -> None:
        """Call ``heard(topic, payload)`` for each signal of a topic that is listened to.

        Called once, before :meth:`IBroker.start`. The payload is what :meth:`signal` was given on some node,
        including this one, or what anybody with access to the broker has sent, so ``heard`` must validate it.
        ``heard`` neither raises nor blocks.
        """

    def listen(topic: Topic) -> None:
        """Receive the signals of this chat from now on, as soon as possible. Calls do not nest."""

    def unlisten(topic: Topic) -> None:
        """Stop receiving them. Does nothing for a topic that is not listened to."""

    def signal(topic: Topic, payload: bytes) -> bool:
        """Send a signal, once, to every node that listens. Signals of one node that arrive keep their order.

        False: it is lost, because this node reaches nobody now or the broker refuses it. True promises nothing.
        """


class IRegistry(Interface):
    """Knows which connections of this node are in which topic, and who is present over all nodes.

    ``join``, ``leave``, ``forget`` and ``members`` are the hot path: synchronous, local, and correct immediately.
    """

    def start(changed: Callable[[Topic], None]) -> Deferred[None]:
        """Get ready. Calls ``changed`` when the presence of a watched topic may have changed, on any node."""

    def join(connection: IConnection, topic: Topic) -> bool:
        """Add an authenticated connection. True: it is the topic's first on this node. Does nothing if it is already in."""

    def leave(connection: IConnection, topic: Topic) -> bool:
        """Remove a connection. True: it was the topic's last on this node. False also if it was not in the topic."""

    def forget(connection: IConnection) -> list[Topic]:
        """Remove a connection from all its topics; returns the topics that now have no member on this node."""

    def members(topic: Topic) -> Collection[IConnection]:
        """The connections of this node in a topic.

        Valid until the next call that changes it; callers must not modify it.
        """

    def topics(connection: IConnection) -> Collection[Topic]:
        """The topics that a connection is in. The same rules hold as for :meth:`members`."""

    def presence(topic: Topic) -> Deferred[list[Presence]]:
        """Who is in a chat on any node, sorted by user. Errback :class:`~notify.errors.Unavailable`.

        A user's own topic, whose presence clients cannot ask for, need not be known to other nodes.
        """

    def watch(topic: Topic) -> None:
        """Call ``changed`` for this topic from now on. Calls do not nest."""

    def unwatch(topic: Topic) -> None:
        """Stop calling ``changed`` for this topic."""

    def stop() -> Deferred[None]:
        """Withdraw this node's presence."""


class IPlaces(Interface):
    """Optional, for a registry that also knows of a user's connections in other processes."""

    def room(topic: Topic, most: int) -> Deferred[bool]:
        """May the user of this topic open one more connection, without exceeding ``most`` in total?

        ``topic`` is the user's own. A true answer holds for a connection that joins before the callbacks of the
        Deferred return.

        Errback :class:`~notify.errors.Unavailable`: this cannot be decided now.
        """


class IControl(Interface):
    """Sends one node's commands to all nodes, and keeps records that also apply to nodes that start later.

    The commands and the records: :mod:`notify.core.steering`.
    """

    def start(do: Callable[[str, bytes], Deferred[bytes]]) -> Deferred[None]:
        """Get ready. This must not depend on other nodes: a node that reaches no other still steers itself.

        ``do(command, argument)`` is called on each node that is asked, and returns that node's answer; both are JSON
        documents. If it fails, the node counts as one that did not answer.

        Errback :class:`~notify.errors.StartError`: the settings are wrong.
        """

    def ask(command: str, argument: bytes, node: str = "") -> Deferred[Gathered]:
        """Run a command on all nodes, including this one, or on the named node, and gather the answers.

        Fires in a bounded time and never fails: this node's own answer is included even while it reaches no other. No
        node runs the same request twice. An unknown node name gives no answers and no missing nodes.
        """

    def keep(key: str, merge: Callable[[bytes | None], bytes], until: float) -> Deferred[bool]:
        """Keep a record under a key until ``until`` (Unix time in seconds, at most 366 days away), for all nodes.

        ``key`` is up to 512 letters, digits, ``_``, ``-``, and ``.`` between them. ``merge(record)`` is given the
        record that is stored there now, or None, and returns the new one, of up to 2 KiB; it may be called several
        times. Fires once the record is kept. True: it outlives this process; False: nothing does in this setup. It
        may fail before :meth:`watch` has fired.

        Errback :class:`~notify.errors.Unavailable`: it was not kept, or this is unknown. The same call may be repeated.
        """

    def watch(heard: Callable[[str, bytes], None]) -> Deferred[None]:
        """Call ``heard(key, record)`` for every kept record, and from then on for each one that any node keeps.

        Fires once ``heard`` was called with all records that existed, however long it takes; no client may be
        admitted before. If some may have been missed, for example while other nodes were unreachable, ``heard`` is
        called with those later, and possibly with records it already has. ``heard`` neither raises nor blocks. Called
        once, after :meth:`start`.

        Errback :class:`~notify.errors.StartError`: waiting would not help.
        """

    def stop() -> Deferred[None]:
        """Tell the other nodes that this one leaves, and release what :meth:`start` took."""


class ICurrent(Interface):
    """Optional, for a control that can tell when it knows all records of other nodes, for example after a disconnect."""

    def current() -> Deferred[None]:
        """Fires once ``heard`` of :meth:`IControl.watch` has had every record kept before this call, however late."""


class IPatient(Interface):
    """Optional, for a broker that can let another task finish first when it reconnects."""

    def after(first: Callable[[], Deferred[None]]) -> None:
        """Set a task to run after each reconnect, before the messages missed meanwhile are delivered.

        The broker calls ``first`` and waits for its Deferred, at most for some seconds. Called before ``start``.
        """


class IConnection(Interface):
    """One client's connection, as session, dispatcher and registry see it. Hashable by identity."""

    id = Attribute("str: unique across all nodes; clients see it as connection_id")
    peer = Attribute("Peer: where the client connects from")
    identity = Attribute("Identity | None: the user, once authenticated")
    encoding = Attribute(
        "Encoding: encodes the frames sent to it. All connections that negotiated alike share one object. The session "
        "replaces it once, when it grants features"
    )
    opened = Attribute("float: Unix time in seconds at which the connection was accepted")
    queued = Attribute("int: bytes queued because the client has not yet read what was sent earlier")
    blocked = Attribute(
        "bool: the client has not read everything sent earlier, so that new frames are queued"
    )
    heard = Attribute(
        "float: when the client last sent anything, in the reactor's time; clients answer pings"
    )

    def write(frame: bytes) -> None:
        """Send bytes that ``encoding.pack`` made. Never blocks or raises; drops them once the connection closes.

        A connection whose queue exceeds the bound is closed with 4001.
        """

    def throttle(on: bool) -> None:
        """Stop reading from the client (``on`` true), or resume."""

    def close(code: int, reason: str = "") -> None:
        """Start the closing handshake (docs/protocol.md, Close codes). Does nothing if the connection is already closed."""
