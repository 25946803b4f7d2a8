"""A chat's history, page by page: from a followed topic's tail if that holds it, otherwise from the broker.

A page is a contiguous part of the stored history. A client that does not receive a chat's events gets pages without
them. If that leaves a page short, more of the history is read, within bounds; a page may therefore be short although
there is more.

Pages give way to live messages, and one tenant's pages to another's. Each client may ask for one page at a time. The
number of concurrent reads and the number of messages sent in one turn of the reactor are bounded; further requests
wait, and tenants take turns.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from notify.core.feed import Feed
from notify.core.live import Live
from notify.errors import HistoryLost, Unsupported
from notify.ids import Id
from notify.interfaces import IBroker, IConnection, pages_of
from notify.messages import ChatEvent, ChatMessage, Earlier, Message, Position, Replayed
from notify.observe.metrics import Metrics
from notify.topics import Topic
from notify.wire.frames import ChatEventFrame, ChatMessageFrame, HistoryPage, message_frame

#: bytes of payloads in a page, unless one message is larger; at most half of what may be queued for a client
PAGE_BYTES = 256 * 1024
#: the least cost of a page in messages, since even an empty one has to be read
A_PAGE = 50
#: reads of the history for a page that events leave short, and the messages that they may look at
READS, LOOKED_AT = 4, 1000
#: pages that are read concurrently, and messages of pages in one turn of the reactor
AT_ONCE, A_TURN = 64, 2000


class Wanted(Struct, frozen=True):
    """A request for a page: before a position, after one, or the newest. Never both."""

    before: Position | None
    after: Position | None
    limit: int


class Page(Struct, frozen=True):
    """Messages of a chat, oldest first: all stored ones, for this kind of receiver, in a range of its history.

    The page covers everything from ``start`` up to and including ``seq``; ``start`` None: nothing is stored.
    ``more``: there are older messages or, if the page after a position was asked for, newer ones. ``prev`` is the
    last message of the chat before the page that this kind of receiver gets; 0: unknown. ``read`` is the number of
    messages that the page costs.
    """

    messages: list[Message]
    more: bool
    epoch: str
    seq: int
    start: int | None
    prev: int
    read: int


def page_frame(page: Page, chat_id: Id, events: bool, id: Any) -> HistoryPage:
    """The answer to a client with the feature ``events``, or without it."""
    frames: list[ChatMessageFrame | ChatEventFrame] = []
    prev = page.prev
    for message in page.messages:
        if shown(message, events):
            frame = message_frame(message, prev)
            if isinstance(frame, ChatMessageFrame | ChatEventFrame):
                frames.append(frame)
                prev = frame.seq
    if page.start is None:
        return HistoryPage(chat_id, frames, page.more, page.epoch, page.seq, id=id)
    return HistoryPage(chat_id, frames, page.more, page.epoch, page.seq, page.start, id)


def shown(message: Message, events: bool) -> bool:
    """Whether a message is sent to clients with the feature ``events``, or without it."""
    return isinstance(message.event, ChatMessage) or (events and isinstance(message.event, ChatEvent))


async def newest(broker: IBroker, topic: Topic, limit: int, size: int) -> Earlier:
    """A topic's last messages. ``last`` is a position to go on from even if there are none. Raises as ``IPages`` does."""
    pages = pages_of(broker)
    page = await pages.earlier(topic, None, limit, size)
    if page.last:
        return page
    # Ask for the position first, so that a topic found empty has lost nothing that arrived after the position.
    at = await pages.newest(topic)
    page = await pages.earlier(topic, None, limit, size)
    return page if page.last else Earlier([], False, at.epoch, 0, at.seq)


class _Asked:
    """A request that waits for a page. ``forgotten``: nobody waits for it any more."""

    __slots__ = ("events", "forgotten", "mine", "running", "topic", "wanted")

    def __init__(self, topic: Topic, wanted: Wanted, events: bool, mine: Deferred[Page]) -> None:
        self.topic = topic
        self.wanted = wanted
        self.events = events
        self.mine = mine
        self.running: Deferred[None] | None = None
        self.forgotten = False


class Pages:
    """The pages of all clients; see the module.

    ``soon`` calls a function at the end of the reactor's turn. ``recent`` returns a followed topic, with all that was
    delivered of it, and None for other topics.
    """

    def __init__(
        self,
        broker: IBroker,
        metrics: Metrics,
        live: Live,
        soon: Callable[[Callable[[], None]], object],
        recent: Callable[[Topic], Feed | None],
    ) -> None:
        self._broker = broker
        self._metrics = metrics
        self._live = live
        self._soon = soon
        self._recent = recent
        self._asked: dict[IConnection, _Asked] = {}
        #: the waiting requests by workspace, in the order of whose turn it is
        self._lines: dict[Id, OrderedDict[_Asked, None]] = {}
        self._turns: deque[Id] = deque()
        self._busy = 0
        self._left = A_TURN
        self._resting = self._running = False

    def ask(self, connection: IConnection, topic: Topic, wanted: Wanted) -> Deferred[Page]:
        """A page for a connection that has no other request in flight.

        Errback :class:`~notify.errors.HistoryLost`: the page cannot be given; :class:`~notify.errors.Unsupported`: no
        such page ever can; :class:`~notify.errors.Unavailable`. Nothing fires once the connection is forgotten.
        """
        mine: Deferred[Page] = Deferred()
        asked = self._asked[connection] = _Asked(topic, wanted, connection.encoding.events, mine)
        mine.addBoth(self._answered, connection)
        line = self._lines.get(topic.workspace_id)
        if line is None:
            line = self._lines[topic.workspace_id] = OrderedDict()
            self._turns.append(topic.workspace_id)
        line[asked] = None
        self._run()
        return mine

    def forget(self, connection: IConnection) -> None:
        """A connection is gone: abandon its request."""
        asked = self._asked.pop(connection, None)
        if asked is not None:
            asked.forgotten = True
            line = self._lines.get(asked.topic.workspace_id)
            if asked.running is not None:
                asked.running.cancel()
            elif line is not None and line.pop(asked, self) is None and not line:
                del self._lines[asked.topic.workspace_id]
                self._turns.remove(asked.topic.workspace_id)

    def _answered(self, outcome: Any, connection: IConnection) -> Any:
        self._asked.pop(connection, None)
        return outcome

    # --- scheduling -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Start pages as long as the bounds allow.

        This is a loop because a client may ask again as soon as it is answered; calls would nest.
        """
        if self._running:
            return
        self._running = True
        while self._turns and self._busy < AT_ONCE and self._left > 0:
            workspace = self._turns.popleft()
            line = self._lines[workspace]
            asked, _ = line.popitem(last=False)
            if line:
                self._turns.append(workspace)
            else:
                del self._lines[workspace]
            self._busy += 1
            asked.running = Deferred.fromCoroutine(self._page(asked)).addBoth(self._done, asked)
        self._running = False
        if self._left < A_TURN and not self._resting:
            self._resting = True
            self._soon(self._next_turn)

    def _next_turn(self) -> None:
        self._resting, self._left = False, A_TURN
        self._run()

    def _done(self, outcome: Any, asked: _Asked) -> None:
        self._busy -= 1
        failed = isinstance(outcome, Failure)
        self._left -= A_PAGE if failed else outcome.read
        if not asked.forgotten:
            if failed:
                lost = outcome.check(HistoryLost, Unsupported)
                self._metrics.pages.labels("lost" if lost else "unavailable").inc()
            asked.mine.callback(outcome)  # a Failure makes it an errback
        self._run()

    # --- one page -------------------------------------------------------------------------------------------

    async def _page(self, asked: _Asked) -> Page:
        size = min(PAGE_BYTES, max(1, self._live.now.limits.send_queue // 2))
        wanted = asked.wanted
        page = _Part(wanted.limit, size, asked.events)
        if wanted.after is not None:
            return await self._after(asked.topic, wanted.after, page)
        return await self._before(asked.topic, wanted.before, page)

    async def _before(self, topic: Topic, before: Position | None, page: _Part) -> Page:
        place, from_memory = before, True
        epoch, seq, start, more = "", 0, None, True
        while page.wants and more:
            part = self._out_of_tail(topic, place, page.limit)
            if part is None:
                from_memory = False
                part = await self._read(topic, place, page)
            if place is before:
                epoch, seq = part.epoch, part.last or max(0, (before.seq if before else 0) - 1)
            whole, reached = page.take(part.messages[::-1])
            start = (part.first if whole else reached) or start
            more = part.more or not whole
            place = Position(part.epoch, start or 0)
        self._count(from_memory)
        return Page(page.messages[::-1], more, epoch, seq, start, 0, max(A_PAGE, page.looked))

    async def _read(self, topic: Topic, before: Position | None, page: _Part) -> Earlier:
        if before is None:
            return await newest(self._broker, topic, page.limit, page.room)
        return await pages_of(self._broker).earlier(topic, before, page.limit, page.room)

    def _out_of_tail(self, topic: Topic, before: Position | None, limit: int) -> Earlier | None:
        """A page from this node's memory; None: there is not enough of it."""
        feed = self._recent(topic)
        if feed is None or (before is not None and before.epoch != feed.epoch):
            return None
        older = feed.tail.before(before.seq if before is not None else None, limit + 1)
        if len(older) <= limit:
            return None  # what came before it may be stored as well
        messages = older[1:]
        last = messages[-1].position.seq if before is not None else feed.last
        return Earlier(messages, True, feed.epoch, messages[0].position.seq, last)

    async def _after(self, topic: Topic, after: Position, page: _Part) -> Page:
        place, from_memory, more = after, True, True
        start: int | None = None
        while page.wants and more:
            feed = self._recent(topic)
            newer = feed.since(place.seq) if feed is not None and place.epoch == feed.epoch else None
            if newer is None:
                from_memory = False
                part = await self._broker.replay(topic, place, page.limit, page.room)
            else:
                part = Replayed(newer[: page.limit], len(newer) > page.limit)
            whole, reached = page.take(part.messages)
            if start is None and reached:
                start = part.messages[0].position.seq
            more = part.more or not whole
            if whole and part.reached is not None:
                reached = part.reached.seq
            place = Position(place.epoch, reached or place.seq)
        self._count(from_memory)
        return Page(page.messages, more, after.epoch, place.seq, start, after.seq, max(A_PAGE, page.looked))

    def _count(self, from_memory: bool) -> None:
        self._metrics.pages.labels("memory" if from_memory else "read").inc()


class _Part:
    """The messages of a page under construction, in the order in which they are found."""

    __slots__ = ("events", "limit", "looked", "messages", "reads", "room")

    def __init__(self, limit: int, size: int, events: bool) -> None:
        self.limit = limit
        self.events = events
        self.messages: list[Message] = []
        self.room = size  # bytes
        self.looked = self.reads = 0

    @property
    def wants(self) -> bool:
        """Whether the page is short, and worth another read."""
        short = len(self.messages) < self.limit and self.room > 0
        return short and self.reads < READS and self.looked < LOOKED_AT

    def take(self, messages: list[Message]) -> tuple[bool, int]:
        """Add these messages, which follow on those it has.

        Returns whether all of them fitted, and the number of the last one that was looked at; 0: none was.
        """
        self.reads += 1
        seq = 0
        for message in messages:
            if shown(message, self.events):
                if len(self.messages) == self.limit or (self.messages and message.size > self.room):
                    self.room = 0
                    return False, seq
                self.messages.append(message)
                self.room -= message.size
            seq = message.position.seq
            self.looked += 1
        return True, seq
