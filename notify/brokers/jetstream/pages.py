"""History from the newest on: pages that end before a position, out of a stream that is read forward only.

A batched read begins at a number and goes on; nothing reads from the end. But each message of its answer says how many
of the subject come behind it. So a number is looked for from which on about as many messages come as are wanted: a read
of one message from a number tells how many there are from there on, and the next guess goes by how dense they are between
what was found to be too early and too late. Every second guess halves what lies in between, so that no arrangement of
messages takes many. Counts are hints, of any copy; what is found is read and proven like every other history
(:class:`~notify.brokers.jetstream.reader.Reader`).

A page takes these requests, one after the other: the subject's newest number, its first message (also where there is said to be none:
an index that is wrong for a moment would hide all of them), for a page before a position
the count there; none for a subject with few messages, and else 1 to 3 as a rule, ``GUESSES`` at most but for a subject
whose newest message is hard to find (64 more: halves of all numbers); the messages, ``PAGE`` a request and no more than
twice as many as are wanted and some, larger ones looked for anew up to ``NARROWER`` times; the stream's state; and for the
newest page the subject's newest number once more, where something that is newer was deleted. Pages have a
queue of their own, a part of the reads of those who come back wide: however many are asked for, those do not wait for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred

from notify.brokers.jetstream.fair import FairQueue
from notify.brokers.jetstream.reader import PAGE, PAGE_BYTES, Reader
from notify.brokers.jetstream.stored import Stored
from notify.errors import Unavailable
from notify.messages import Earlier
from notify.topics import Topic

#: guesses after which a page may have fewer messages than are wanted
GUESSES = 24
#: so many more than twice the messages that are wanted are few enough to be read
SOME = 16
#: how often a page whose messages are large is looked for anew, among the newer ones of them
NARROWER = 3
#: messages that may be looked at for one page: there are never so many, unless the history changes meanwhile
MOST = 10_000

#: pages that may wait
_QUEUE = 100_000
#: bytes that may be read for a page: so many times its own
_BYTES = 4


class Looks(Protocol):
    """The part of a reader that :func:`find` uses."""

    async def look(self, subject: str, start: int) -> tuple[int, int]: ...  # noqa: D102


async def find(
    reader: Looks, subject: str, low: tuple[int, int], high: tuple[int, int], want: int, most: int
) -> tuple[int, int]:
    """A number from which on a subject has ``want`` to ``most`` messages, beside those that ``high`` counts.

    ``low`` and ``high`` are numbers, and how many messages there are from each on: too many, and too few. The
    latter counts those that are not wanted, too. Where it takes too long it is one with fewer, of at least one. Gives it with the count from there on, those included. Raises ``Unavailable``.
    """
    (early, many), (late, few) = low, high
    beyond = few
    guesses = 0
    while late - early > 1:
        if guesses >= GUESSES and few > beyond:
            return late, few
        span, middle = late - early, (want + most) // 2
        if guesses % 2 == 0 and many > few and guesses < GUESSES:
            back = span * max(1, beyond + middle - few) // (many - few)
        else:
            back = span // 2
        guess = late - min(max(back, 1), span - 1)
        guesses += 1
        count, first = await reader.look(subject, guess)
        if count - beyond < want:
            late, few = guess, max(count, beyond)
            continue
        # Between the guess and the first message from there on is nothing: it is as good a number as that.
        early, many = (first if first < late else guess), count
        if count - beyond <= most:
            break
    return early, many


class Pages:
    """See the module. ``reads`` is how many reads there may be at once for those who come back."""

    def __init__(self, reader: Reader, reads: int) -> None:
        self._reader = reader
        self._queue: FairQueue[Earlier] = FairQueue(max(1, reads // 4), _QUEUE)

    def earlier(
        self, topic: Topic, before: int | None, limit: int, size: int, known: Callable[[], int | None]
    ) -> Deferred[Earlier]:
        """See :meth:`notify.interfaces.IPages.earlier`. ``known()``: the topic's newest number as far as it was heard here."""
        work = lambda: Deferred.fromCoroutine(self._earlier(topic, before, limit, size, known))  # noqa: E731
        return self._queue.do(topic.workspace_id, work)

    def stop(self) -> None:
        """Give up all of them."""
        self._queue.stop()

    async def _earlier(
        self, topic: Topic, before: int | None, limit: int, size: int, known: Callable[[], int | None]
    ) -> Earlier:
        reader, epoch, subject = self._reader, self._reader.epoch, topic.subject
        heard = known() or 0
        reach = await reader.leader.newest(subject)
        if reach < heard and reader.changing:
            raise Unavailable("the leader has just changed, and may be behind what was heard")
        if not reach and (await reader.look(subject, 1))[0]:
            # The first one may have come in between.
            reach = await reader.leader.newest(subject)
            if not reach:
                raise Unavailable("the leader has no message, and a copy has some: one of them is behind")
        upper = reach if before is None else min(reach, before - 1)
        stored, start, older = list[Stored](), 0, False
        if upper > 0:
            stored, start, older = await self._read(subject, upper, reach, limit, size)
        await reader.prove_same()
        last = stored[-1].seq if stored else upper
        if last and before is None:
            last = await self._behind_holes(subject, last)
        if reader.epoch != epoch:
            raise Unavailable("the history was made anew")
        messages = [message for one in stored if (message := reader.parse(topic, one)) is not None]
        if not stored and not older:
            return Earlier([], False, epoch)
        return Earlier(messages, older, epoch, stored[0].seq if stored else start, last)

    async def _behind_holes(self, subject: str, last: int) -> int:
        """Where to go on from behind a subject's newest message, ``last``: past the numbers that are missing after it.

        From the message itself nobody can, for it cannot be told whose the missing ones were.
        """
        hole = self._reader.holes.newest(last)
        if not hole:
            return last
        newest = await self._reader.newest([subject], at_least=hole)
        # What came meanwhile is not in the page.
        return newest.begin(subject, self._reader.holes) if newest.found.get(subject) == last else last

    async def _read(
        self, subject: str, upper: int, reach: int, limit: int, size: int
    ) -> tuple[list[Stored], int, bool]:
        """A subject's last messages up to a number, of which ``reach`` is the newest; from where they were looked for, and
        whether older ones are kept.
        """
        reader = self._reader
        many, first = await reader.look(subject, 1)
        beyond = 0 if upper >= reach else (await reader.look(subject, upper + 1))[0]
        want, most = limit, 2 * limit + SOME
        start, oldest = 1, first
        if many - beyond > most:
            start, many = await find(reader, subject, (first, many), (upper + 1, beyond), want, most)
        left = many - beyond  # to be read: the server looks no further than one behind them
        page: deque[Stored] = deque()
        taken = looked = promised = narrowed = 0
        seen = 0  # bytes, since the place that was found last
        dropped, place = False, start
        while True:
            read = await reader.after(
                subject,
                None,
                at_least=reach,
                promised=promised,
                limit=min(left if left > 1 else most, PAGE),  # 1: at least, as the leader counts
                size=min(_BYTES * size, PAGE_BYTES),
                start=place,
            )
            promised = read.promised
            for one in read.stored:
                if one.seq > upper:
                    break
                page.append(one)
                looked += 1
                taken += len(one.data)
                seen += len(one.data)
                while len(page) > limit or (taken > size and len(page) > 1):
                    taken -= len(page.popleft().data)
                    dropped = True
            if not read.pending or read.stored[-1].seq >= upper:
                break
            if looked > MOST:
                raise Unavailable("the history changes faster than it is read")
            place = read.stored[-1].seq + 1
            left = read.pending - beyond
            if seen > _BYTES * size and narrowed < NARROWER:
                # They are large: what is still to come is more than a page of such.
                want = max(1, size * max(1, looked) // max(1, seen))
                if left > 2 * want + SOME:
                    narrowed += 1
                    found, many = await find(
                        reader, subject, (place, read.pending), (upper + 1, beyond), want, 2 * want + SOME
                    )
                    left = many - beyond
                    if found > place:
                        page.clear()
                        taken = promised = 0
                        dropped, place = True, found
                    seen = looked = 0
        return list(page), start, dropped or 0 < oldest < start
