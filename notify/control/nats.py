"""The control over NATS: each node is an instance of one service, and all instances answer every request.

    control.{stream}.do.{command}    a request, as JSON: {"argument": ..., "from": id, "node": name}; all but argument may be left out
    control.{stream}.beat            each node's heartbeat: {"id": ..., "node": name, "state": "here"}
    control.{stream}.kept.{key}      records for nodes that start later as well (:mod:`notify.control.kept`)

It uses core NATS, because requests are for the nodes that are running now. Nodes know of each other by heartbeats, so a node that
does not answer can be named. The instances are also those of a service for ``nats micro`` (:mod:`notify.control.micro`).

Anyone who may publish to these subjects controls the server, so no backend may (etc/nats/users.conf). If this node may not, or
NATS is unreachable, it carries out commands itself and says that it reached no other node; but it accepts no clients before it
has read the records. A request must have an argument. Otherwise a backend could make NATS itself publish a request here, by
naming the subject as the reply subject for the acknowledgement of a stored message.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from msgspec import Raw, Struct, field
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from notify import __version__, components
from notify.components import Context
from notify.config import Duration, Settings
from notify.control.kept import KeptStream
from notify.control.micro import Endpoint, Service
from notify.control.rounds import Round, failed
from notify.errors import StartError, TooLarge, Unavailable
from notify.interfaces import Gathered, IControl, ICurrent
from notify.nats.connection import Connection, Hooks
from notify.nats.jetstream import JetStream
from notify.nats.settings import NATSSettings

#: seconds between two heartbeats of a node
BEAT = 2.0
#: heartbeats after which a silent node is taken for an earlier process of another with the same name
_SUPERSEDED = 2.5
#: seconds after a connection is established in which nodes may still be heard for the first time
SETTLE = 0.5
#: seconds until a connection on which something was not permitted is re-established, in case it is permitted by then
_OPERATOR = 30.0
#: seconds between checks for records that were missed; ``_AGAIN``: between attempts while there is no answer
CHECK = 5.0
_AGAIN = (0.1, 2.0)  # the first, the longest
#: timeout in seconds for the last heartbeat, ``leaving``
_FAREWELL = 0.5

_ABOUT = "A node of notify. Whoever may ask it may send its clients away."


class NATSControlSettings(Settings, frozen=True):
    """``[control.nats]``. The settings for reaching NATS are in ``[broker.jetstream]``."""

    #: a node that has not answered within this time is reported as missing
    patience: Duration = Duration(3)
    #: a node that was silent for this long is forgotten, and no longer reported
    remember: Duration = Duration(60)


class Beat(Struct, frozen=True):
    """``state`` is ``here``, ``new`` (asks the others for a heartbeat) or ``leaving``."""

    id: str
    node: str
    state: str = "here"


class Request(Struct, frozen=True, omit_defaults=True):
    """See the module docstring. The sender carries out the command without receiving its own request."""

    argument: Raw
    sender: str = field(default="", name="from")
    node: str = ""


class Reply(Struct, frozen=True, omit_defaults=True):
    """A node's answer, or that it failed."""

    id: str
    node: str
    answer: Raw = Raw(b"null")
    failed: bool = False


class Known(Struct):
    """Another node. Times are the reactor's: of its first heartbeat, of its last, and since when it has been silent."""

    node: str
    first: float
    last: float
    heard: float


_beat = msgspec.json.Decoder(Beat).decode
_request = msgspec.json.Decoder(Request).decode
_reply = msgspec.json.Decoder(Reply).decode
_encode = msgspec.json.Encoder().encode


@implementer(IControl, ICurrent)
class NATSControl:
    """See :class:`~notify.interfaces.IControl` and the module docstring."""

    Settings = NATSControlSettings
    log = Logger()

    def __init__(self, settings: NATSControlSettings, context: Context) -> None:
        nats: NATSSettings
        _, nats = components.find("broker", context.config, "jetstream")
        nats.check()
        if settings.patience < 0.1 or settings.remember < 2 * BEAT:
            raise StartError(
                f"[control.nats] patience must be at least 100ms, and remember at least {2 * BEAT:.0f}s."
            )
        self._settings = settings
        self._reactor = context.reactor
        self._metrics = context.metrics
        self._node = context.node
        self._id = f"{context.random.getrandbits(64):016x}"
        stream = getattr(nats, "stream", "MESSAGES")
        prefix = f"control.{stream}"
        self._asking, self._beating = f"{prefix}.do.", f"{prefix}.beat"
        self._endpoint = Endpoint("steer", f"{self._asking}*")
        self._service = Service(
            "notify", self._id, __version__, _ABOUT, {"node": self._node}, [self._endpoint], context.now()
        )
        connect = context.connect or Connection
        self._connection = connect(nats, context.reactor, context.random, f"notify control {context.node}")
        self._connection.hooks = Hooks(self._up, self._down, self._denied, lambda: None)
        manage = getattr(nats, "manage_stream", True)
        jetstream = JetStream(self._connection, nats.request_timeout, manage=manage)
        self._kept = KeptStream(
            self._connection,
            jetstream,
            stream,
            nats.replicas,
            context.now,
            lambda *record: self._heard(*record),
        )
        self._heard: Callable[[str, bytes], None] = lambda key, record: None
        self._watched: Deferred[None] | None = None
        self._following: Deferred[None] | None = None
        #: callers that wait for all records stored before their call
        self._waiting: list[Deferred[None]] = []
        self._ensured = False
        self._do: Callable[[str, bytes], Deferred[bytes]] | None = None
        self._known: dict[str, Known] = {}
        self._rounds: dict[Round, None] = {}
        self._refused = ""
        self._settled = 0.0
        self._farewell: Deferred[None] | None = None
        self._retry: Any = None
        self._heart = LoopingCall(self._pulse)
        self._heart.clock = context.reactor

    # ------------------------------------------------------------------ IControl

    def start(self, do: Callable[[str, bytes], Deferred[bytes]]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
        self._do = do
        self._metrics.nodes.set(1)
        self._connection.subscribe(f"{self._asking}*", self._requested)
        self._connection.subscribe(self._beating, self._beaten)
        for subject, verb in self._service.subjects().items():
            self._connection.subscribe(subject, partial(self._inquired, verb))
        self._connection.start().addErrback(self._hopeless)
        self._heart.start(BEAT, now=False)
        return succeed(None)

    def ask(self, command: str, argument: bytes, node: str = "") -> Deferred[Gathered]:
        """See :class:`~notify.interfaces.IControl`."""
        waiting = {id: known.node for id, known in self._known.items() if node in ("", known.node)}
        mine = node in ("", self._node)
        if mine:
            waiting[self._id] = self._node
        gathered: Deferred[Gathered] = Deferred()
        one = Round(waiting, gathered.callback)
        self._rounds[one] = None
        one.closing.append(lambda: self._rounds.pop(one))
        late = self._reactor.callLater(self._settings.patience, one.finish)
        one.closing.append(lambda: late.active() and late.cancel())
        if mine:
            self._perform(command, argument).addCallback(partial(one.heard, self._id, self._node))
        if self._reaches:
            self._spread(one, command, _encode(Request(Raw(argument), self._id, node)))
        else:
            one.only(self._id, self._detail)
        return gathered

    def keep(self, key: str, merge: Callable[[bytes | None], bytes], until: float) -> Deferred[bool]:
        """See :class:`~notify.interfaces.IControl`."""
        if self._do is None:
            return fail(Unavailable("this node does not run"))
        return Deferred.fromCoroutine(self._kept.keep(key, merge, until)).addCallback(lambda _: True)

    def watch(self, heard: Callable[[str, bytes], None]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
        self._heard = heard
        self._watched = Deferred()
        # Subscribe before reading, so that no record is missed. A record received this way may not have been stored in the end.
        self._connection.subscribe(self._kept.subjects, self._record_heard)
        if self._connection.connected:
            self._follow()
        return self._watched

    def current(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.ICurrent`."""
        waiting: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        if self._watched is not None and self._connection.connected:
            self._follow()  # a read in flight may have started before this call
        return waiting

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._heart.running:
            self._heart.stop()
        if self._reaches:
            # Receiving it here shows that the others have it.
            farewell = self._farewell = Deferred()
            self._beat("leaving")
            late = self._reactor.callLater(_FAREWELL, farewell.callback, None)
            await farewell
            if late.active():
                late.cancel()
        self._do = None
        for one in list(self._rounds):
            one.finish("this node stops")
        self._cancel_retry()
        self._unfollow()
        await self._connection.stop()

    # ------------------------------------------------------------------ asking others

    @property
    def _reaches(self) -> bool:
        return self._connection.connected and not self._refused

    @property
    def _detail(self) -> str:
        if self._refused:
            return f"this node steers itself alone: {self._refused}"
        return "this node reaches no other: NATS is away"

    def _spread(self, one: Round, command: str, request: bytes) -> None:
        token, inbox = self._connection.expect(lambda reply: self._replied(one, reply.data))
        one.closing.append(lambda: self._connection.forget(token))
        try:
            self._connection.publish(self._asking + command, request, inbox)
        except TooLarge as error:
            one.only(self._id, str(error))
            return
        unsettled = self._settled - self._reactor.seconds()
        if unsettled > 0:
            settle = self._reactor.callLater(unsettled, one.settle)
            one.closing.append(lambda: settle.active() and settle.cancel())
        else:
            one.settle()

    def _replied(self, one: Round, data: bytes) -> None:
        if not data:  # NATS says that nobody is subscribed, not even this node
            return
        try:
            reply = _reply(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.log.warn("what a node answers cannot be read: is it another version?")
        else:
            one.heard(reply.id, reply.node, None if reply.failed else bytes(reply.answer))

    # ------------------------------------------------------------------ being asked

    def _perform(self, command: str, argument: bytes) -> Deferred[bytes | None]:
        """Carry out the command on this node. Never fails; None: it could not be done."""
        begun = self._reactor.seconds()

        def done(answer: bytes) -> bytes:
            self._endpoint.served(int((self._reactor.seconds() - begun) * 1e9))
            return answer

        def undone(failure: Failure) -> None:
            self._endpoint.served(int((self._reactor.seconds() - begun) * 1e9), f"{command!a} failed")
            failed(self.log, failure, command)

        do = self._do
        if do is None:
            return succeed(None)
        return maybeDeferred(do, command, argument).addCallbacks(done, undone)

    def _requested(self, subject: bytes, reply: str, data: bytes, block: bytes) -> None:
        if self._do is None:
            return  # it has said farewell, and is not missed unless it answers that it could not do it
        try:
            request = _request(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.log.warn("a request to all nodes cannot be read: is its sender another version?")
            return
        if request.sender == self._id or request.node not in ("", self._node):
            return
        command = subject.decode("utf-8", "replace").removeprefix(self._asking)
        done = self._perform(command, bytes(request.argument))
        if reply:
            done.addCallback(self._answer, command, reply)

    def _answer(self, answer: bytes | None, command: str, reply: str) -> None:
        sorry = Reply(self._id, self._node, failed=True)
        mine = sorry if answer is None else Reply(self._id, self._node, Raw(answer))
        try:
            self._connection.publish(reply, _encode(mine))
        except TooLarge:
            self.log.warn("the answer to {command} is larger than NATS takes", command=command)
            self._connection.publish(reply, _encode(sorry))

    def _inquired(self, verb: str, subject: bytes, reply: str, data: bytes, block: bytes) -> None:
        if reply:
            self._connection.publish(reply, self._service.answer(verb))

    # ------------------------------------------------------------------ which nodes are there

    def _beat(self, state: str = "here") -> None:
        self._connection.publish(self._beating, _encode(Beat(self._id, self._node, state)))

    def _pulse(self) -> None:
        if not self._reaches:
            return
        self._beat()
        now = self._reactor.seconds()
        for id, known in list(self._known.items()):
            if now - known.heard > self._settings.remember:
                self._forget(id)

    def _beaten(self, subject: bytes, reply: str, data: bytes, block: bytes) -> None:
        try:
            beat = _beat(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if beat.id == self._id:
            if beat.state == "leaving" and self._farewell is not None and not self._farewell.called:
                self._farewell.callback(None)
        elif beat.state == "leaving":
            self._forget(beat.id)
            for one in list(self._rounds):
                one.left(beat.id)
        else:
            now = self._reactor.seconds()
            before = self._known.get(beat.id)
            first = now if before is None else before.first
            self._known[beat.id] = Known(beat.node, first, now, now)
            for id, known in list(self._known.items()):
                # A node heard after the other had appeared is not its earlier process: two nodes share a name, and this one is missing.
                earlier = known.node == beat.node and known.last < first
                if earlier and now - known.heard > _SUPERSEDED * BEAT:
                    self._forget(id)
            self._metrics.nodes.set(1 + len(self._known))
            if beat.state == "new" and self._do is not None:
                self._beat()

    def _forget(self, id: str) -> None:
        self._known.pop(id, None)
        self._metrics.nodes.set(1 + len(self._known))

    # ------------------------------------------------------------------ what is kept

    def _record_heard(self, subject: bytes, reply: str, data: bytes, block: bytes) -> None:
        self._heard(self._kept.key(subject), data)

    def _follow(self, wait: float = 0.0) -> None:
        """In ``wait`` seconds, and repeatedly after that, read the records stored since the last read."""
        self._unfollow()
        self._following = Deferred.fromCoroutine(self._catch_up(wait))
        self._following.addCallbacks(self._caught_up, self._no_longer_followed)

    def _unfollow(self) -> None:
        if self._following is not None:
            self._following.cancel()
            self._following = None

    async def _catch_up(self, wait: float) -> None:
        pause, told = _AGAIN[0], False
        while True:
            if wait:
                await deferLater(self._reactor, wait, lambda: None)
            try:
                if not self._ensured:
                    await self._kept.ensure()
                    self._ensured = True
                await self._kept.catch_up()
            except (Unavailable, StartError) as error:
                self._ensured = False
                if isinstance(error, StartError) and self._give_up(error):
                    return
                if not told:
                    self.log.warn("what is kept for all nodes cannot be read: {reason}", reason=str(error))
                told, wait, pause = True, pause, min(2 * pause, _AGAIN[1])
            else:
                if told:
                    self.log.info("what is kept for all nodes is read again")
                return

    def _caught_up(self, _: object) -> None:
        waiting, self._waiting = self._waiting, []
        if self._do is not None:
            self._follow(CHECK)
        if self._watched is not None and not self._watched.called:
            self._watched.callback(None)
        for one in waiting:  # last, as one of the callers may ask again
            one.callback(None)

    def _give_up(self, error: StartError) -> bool:
        """Fail the start if it waits for the records. Returns whether it did."""
        if self._watched is None or self._watched.called:
            return False
        self._watched.errback(error)
        return True

    def _no_longer_followed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self.log.failure("what is kept for all nodes cannot be followed", failure)

    # ------------------------------------------------------------------ the connection

    def _up(self) -> None:
        self._refused = ""
        self._cancel_retry()
        now = self._reactor.seconds()
        self._settled = now + SETTLE
        for known in self._known.values():
            known.heard = now  # no node could be heard meanwhile
        if self._do is not None:
            self._beat("new")
        if self._watched is not None:
            self._follow()

    def _down(self, reason: str) -> None:
        self._unfollow()
        self._ensured = False
        for one in list(self._rounds):
            one.only(self._id, self._detail)

    def _denied(self, words: str) -> None:
        if "$srv" in words.lower():
            return  # this only hides the node from nats micro
        if self._kept.concerns(words):
            # A node that cannot know the revoked tokens must not accept clients.
            self._give_up(
                StartError(
                    f"NATS does not permit what is kept for all nodes: {words}; grant it (docs/jetstream.md, Permissions)."
                )
            )
            return
        self._alone(f"NATS does not permit it ({words}): docs/operations/cluster.md, Permissions")
        if self._retry is None:
            self._retry = self._reactor.callLater(_OPERATOR, self._try_again)

    def _hopeless(self, failure: Failure) -> None:
        self._alone(failure.getErrorMessage())

    def _alone(self, reason: str) -> None:
        if not self._refused:
            self.log.error("no other node can be told what to do, nor tell this one: {reason}", reason=reason)
        self._refused = reason
        for one in list(self._rounds):
            one.only(self._id, self._detail)

    def _try_again(self) -> None:
        self._retry = None
        self._connection.abandon("perhaps it is permitted by now")

    def _cancel_retry(self) -> None:
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        self._retry = None
