"""Shares the first process's broker among its workers: one history, and each message sent once to each worker.

The messages of one turn go to a worker together, in pieces, with the frames that most clients are sent, which are made once for
all workers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from msgspec import Raw
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.errors import Unavailable
from notify.interfaces import BrokerStatus, IBroker, IPages, ISignals, pages_of
from notify.messages import OVERHEAD, ChatEvent, Earlier, Followed, Message, Position, Replayed
from notify.topics import Topic
from notify.wire.frames import Made
from notify.workers import frames
from notify.workers.frames import (
    At,
    Before,
    Delivered,
    Follow,
    From,
    History,
    Listen,
    Lost,
    Newest,
    Part,
    Publish,
    Replay,
    Signalled,
    Unfollow,
)
from notify.workers.link import GONE, Link

#: bytes of messages that go to a worker in one piece, each with half a KiB more than its payload; a longer one goes alone.
#: A worker delivers a piece in one turn, however many clients are to get it
PIECE = 2**16


class _Followed:
    """A topic that workers follow. ``asked`` while the broker has not answered yet."""

    __slots__ = ("asked", "links", "newest", "pending", "prev")

    def __init__(self) -> None:
        self.links: dict[Link, None] = {}
        self.newest: Followed | Message | None = None  # what the workers were sent last
        self.pending: list[Message] = []  # delivered in this turn
        self.prev = 0  # the last message that is no chat event; 0: unknown, or none
        self.asked: list[tuple[Link, Deferred[From]]] = []

    def sent(self, newest: Followed | Message) -> None:
        """This is the newest that the workers have."""
        self.newest, event = newest, newest.event
        if event is not None and not isinstance(event, ChatEvent):
            self.prev = newest.position.seq

    def take(self) -> Iterator[tuple[Raw, int]]:
        """Pack what is pending, which the workers are sent now, in pieces; each with its size."""
        pending, self.pending = self.pending, []
        begin = size = 0
        for end, message in enumerate(pending):
            if size and size + message.size + OVERHEAD > PIECE:
                yield self._pack(pending[begin:end]), size
                begin, size = end, 0
            size += message.size + OVERHEAD
        yield self._pack(pending[begin:]), size

    def _pack(self, messages: list[Message]) -> Raw:
        # For one worker alone, it would be made here instead of there, and this process has the most to do.
        made = Made.of(messages, self.prev) if len(self.links) > 1 else None
        for message in messages[-1:] if made is not None else messages:
            self.sent(message)
        return frames.pack_batch(messages, made)


class SharedBroker:
    """The first process's end. ``broker`` follows a topic once, however many workers want it.

    ``soon`` calls a function at the end of the reactor's turn.

    :meth:`deliver` and :meth:`lost` are the callables that the broker is started with; :meth:`heard` receives its
    signals, if it carries any.
    """

    def __init__(self, broker: IBroker, soon: Callable[[Callable[[], None]], object]) -> None:
        self._broker = broker
        self._soon = soon
        self._due: list[_Followed] = []
        self._carrier: ISignals | None = ISignals(broker, None)
        self._topics: dict[Topic, _Followed] = {}
        self._listening: dict[Topic, dict[Link, None]] = {}

    def serve(self, link: Link) -> None:
        """Answer this worker's questions from now on."""
        link.answer(Follow, lambda asked: self._follow(link, asked.topic))
        link.answer(Replay, lambda asked: self._replay(link, asked))
        link.answer(Newest, self._newest)
        link.answer(Before, lambda asked: self._before(link, asked))
        link.answer(Publish, self._publish)
        link.hear(Unfollow, lambda said: self._unfollow(link, said.topic))
        carrier = self._carrier
        if carrier is not None:
            link.hear(Listen, lambda said: self._listen(carrier, link, said))
            link.hear(Signalled, lambda said: carrier.signal(said.topic, said.payload))

    def forget(self, link: Link) -> None:
        """A worker is gone."""
        for topic in list(self._topics):
            self._unfollow(link, topic)
        if self._carrier is not None:
            for topic in list(self._listening):
                self._listen(self._carrier, link, Listen(topic, False))

    def heard(self, topic: Topic, payload: bytes) -> None:
        """A signal arrived. It is not sent to workers whose link is blocked."""
        links = self._listening.get(topic)
        if links:
            packed = frames.pack(Signalled(topic, payload))
            for link in links:
                if not link.held:
                    link.send(packed)

    def _listen(self, carrier: ISignals, link: Link, said: Listen) -> None:
        links = self._listening.get(said.topic)
        if said.on:
            if links is None:
                links = self._listening[said.topic] = {}
                carrier.listen(said.topic)
            links[link] = None
        elif links is not None:
            links.pop(link, None)
            if not links:
                del self._listening[said.topic]
                carrier.unlisten(said.topic)

    def deliver(self, message: Message) -> None:
        """A followed topic has a message."""
        followed = self._topics.get(message.topic)
        if followed is None:
            return
        if not self._due:
            self._soon(self._flush)
        if not followed.pending:
            self._due.append(followed)
        followed.pending.append(message)

    def _flush(self) -> None:
        """Send each worker what was delivered in this turn."""
        due, self._due = self._due, []
        batches: defaultdict[Link, list[tuple[Raw, int]]] = defaultdict(list)
        for followed in due:
            for piece in followed.take():
                for link in followed.links:
                    batches[link].append(piece)
        for link, its in batches.items():
            link.send(_delivered(its), now=True)

    def lost(self, topic: Topic) -> None:
        """A followed topic has a gap, and the broker no longer follows it."""
        self._flush()
        followed = self._topics.pop(topic, None)
        if followed is not None:
            for link in followed.links:
                link.say(Lost(topic))

    def _follow(self, link: Link, topic: Topic) -> From | Deferred[From]:
        followed = self._topics.get(topic)
        if followed is not None and followed.newest is not None:
            followed.links[link] = None
            return From.of(followed.newest)
        answer: Deferred[From] = Deferred()
        if followed is not None:
            followed.asked.append((link, answer))
            return answer
        followed = self._topics[topic] = _Followed()
        followed.asked.append((link, answer))
        self._broker.follow(topic).addCallbacks(
            self._follows, self._does_not_follow, (topic, followed), {}, (topic, followed)
        )
        return answer

    def _follows(self, newest: Followed, topic: Topic, followed: _Followed) -> None:
        followed.sent(newest)
        asked, followed.asked = followed.asked, []
        for link, answer in asked:
            if link.alive:
                followed.links[link] = None
                answer.callback(From.of(newest))
        if not followed.links:
            self._drop(topic)

    def _does_not_follow(self, failure: Failure, topic: Topic, followed: _Followed) -> None:
        self._topics.pop(topic, None)
        for link, answer in followed.asked:
            if link.alive:
                answer.errback(failure)

    def _unfollow(self, link: Link, topic: Topic) -> None:
        followed = self._topics.get(topic)
        if followed is None or link not in followed.links:
            return
        del followed.links[link]
        if not followed.links:
            self._drop(topic)

    def _drop(self, topic: Topic) -> None:
        del self._topics[topic]
        self._broker.unfollow(topic)

    def _replay(self, link: Link, asked: Replay) -> Deferred[History]:
        def read(_: None) -> Deferred[Replayed]:
            return self._broker.replay(asked.topic, asked.after, asked.limit, asked.size, asked.whole)

        return link.writable().addCallback(read).addCallback(History.of)

    def _newest(self, asked: Newest) -> Deferred[At]:
        return pages_of(self._broker).newest(asked.topic).addCallback(_at)

    def _before(self, link: Link, asked: Before) -> Deferred[Part]:
        def read(_: None) -> Deferred[Earlier]:
            return pages_of(self._broker).earlier(asked.topic, asked.before, asked.limit, asked.size)

        return link.writable().addCallback(read).addCallback(Part.of)

    def _publish(self, asked: Publish) -> Deferred[At]:
        published = self._broker.publish(asked.topic, asked.payload, asked.key, asked.trace)
        return published.addCallback(_at)


def _delivered(packed: Sequence[tuple[Raw, int]]) -> bytes:
    """Pack batches of these sizes, as few messages to the worker as there are pieces."""
    pieces: list[bytes] = []
    together: list[Raw] = []
    left = PIECE
    for batch, size in packed:
        if together and size > left:
            pieces.append(frames.pack_delivered(together))
            together, left = [], PIECE
        together.append(batch)
        left -= size
    pieces.append(frames.pack_delivered(together))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _at(position: Position) -> At:
    return At(position.epoch, position.seq)


@implementer(IBroker, IPages)
class LinkedBroker:
    """The worker's end. See :class:`~notify.interfaces.IBroker`. What the first process's broker cannot do fails here."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._followed: set[Topic] = set()
        self._deliver: Callable[[Message], None] | None = None
        self._together: Callable[[Topic, list[Message], Made | None], None] = self._one_by_one
        self._lost: Callable[[Topic], None] | None = None

    def start(self, deliver: Callable[[Message], None], lost: Callable[[Topic], None]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IBroker`."""
        self._deliver, self._lost = deliver, lost
        self._link.hear(Delivered, self._delivered)
        self._link.hear(Lost, self._is_lost)
        return succeed(None)

    def deliver_together(self, call: Callable[[Topic, list[Message], Made | None], None]) -> None:
        """Call this for messages of one topic that come together, with their frames, instead of ``deliver`` for each."""
        self._together = call

    def publish(
        self, topic: Topic, payload: bytes, idempotency_key: str | None = None, trace: str = ""
    ) -> Deferred[Position]:
        """See :class:`~notify.interfaces.IBroker`."""
        if self._deliver is None:
            return fail(Unavailable("the broker is not running"))
        asked = self._link.ask(Publish(topic, payload, idempotency_key, trace))
        return asked.addCallback(lambda at: Position(at.epoch, at.seq))

    def follow(self, topic: Topic) -> Deferred[Followed]:
        """See :class:`~notify.interfaces.IBroker`."""
        if self._deliver is None:
            return fail(Unavailable("the broker is not running"))

        def follows(answer: From) -> Followed:
            self._followed.add(topic)
            return answer.followed(topic)

        return self._link.ask(Follow(topic)).addCallback(follows)

    def unfollow(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.IBroker`."""
        if topic in self._followed:
            self._followed.discard(topic)
            self._link.say(Unfollow(topic))

    def replay(
        self, topic: Topic, after: Position | None, limit: int, size: int, whole: bool = False
    ) -> Deferred[Replayed]:
        """See :class:`~notify.interfaces.IBroker`."""
        if self._deliver is None:
            return fail(Unavailable("the broker is not running"))
        return self._link.ask(Replay(topic, after, limit, size, whole)).addCallback(History.replayed)

    def newest(self, topic: Topic) -> Deferred[Position]:
        """See :class:`~notify.interfaces.IPages`."""
        if self._deliver is None:
            return fail(Unavailable("the broker is not running"))
        return self._link.ask(Newest(topic)).addCallback(lambda at: Position(at.epoch, at.seq))

    def earlier(self, topic: Topic, before: Position | None, limit: int, size: int) -> Deferred[Earlier]:
        """See :class:`~notify.interfaces.IPages`."""
        if self._deliver is None:
            return fail(Unavailable("the broker is not running"))
        return self._link.ask(Before(topic, before, limit, size)).addCallback(Part.earlier)

    def status(self) -> BrokerStatus:
        """See :class:`~notify.interfaces.IBroker`."""
        if self._deliver is None:
            return BrokerStatus(False, "not running")
        return BrokerStatus(self._link.alive, "in the first process" if self._link.alive else GONE)

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IBroker`."""
        self._deliver = None
        return succeed(None)

    def _delivered(self, said: Delivered) -> None:
        if self._deliver is None:
            return
        followed, together = self._followed, self._together
        for batch in said.batches:
            messages = batch.messages()
            topic = messages[0].topic
            if topic in followed:
                together(topic, messages, batch.made)

    def _one_by_one(self, topic: Topic, messages: list[Message], made: Made | None) -> None:
        for message in messages:
            if self._deliver is not None:
                self._deliver(message)

    def _is_lost(self, said: Lost) -> None:
        if self._lost is not None and said.topic in self._followed:
            self._followed.discard(said.topic)
            self._lost(said.topic)


@implementer(ISignals)
class LinkedSignals(LinkedBroker):
    """The worker's end if the broker carries signals. See :class:`~notify.interfaces.ISignals`."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._listened: set[Topic] = set()

    def hear(self, heard: Callable[[Topic, bytes], None]) -> None:
        """See :class:`~notify.interfaces.ISignals`."""

        def signalled(said: Signalled) -> None:
            if said.topic in self._listened:
                heard(said.topic, said.payload)

        self._link.hear(Signalled, signalled)

    def listen(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.ISignals`."""
        self._listened.add(topic)
        self._link.say(Listen(topic, True))

    def unlisten(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.ISignals`."""
        if topic in self._listened:
            self._listened.discard(topic)
            self._link.say(Listen(topic, False))

    def signal(self, topic: Topic, payload: bytes) -> bool:
        """See :class:`~notify.interfaces.ISignals`."""
        if self._deliver is None or not self._link.alive or self._link.held:
            return False
        self._link.say(Signalled(topic, payload))
        return True
