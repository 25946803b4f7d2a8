"""Pages of history from the newest message backwards, out of a stream that can only be read forwards.

A batched read starts at a number and goes forwards; no read starts from the end. But each message of its answer says how many
messages of the subject follow it. So a page searches for a number from which about as many messages follow as are wanted. A read
limited to one message tells how many follow from a number on. The next guess interpolates between the numbers found to be too
early and too late; every second guess halves the interval, so that no distribution of messages takes many guesses. The counts
are hints, from any copy. The page itself is read and proven complete like all history
(:class:`~notify.brokers.jetstream.reader.Reader`).

A page takes these requests, one after the other:

- the subject's newest number;
- its first message, even if there is said to be none, because an index that is briefly wrong would hide all messages;
- for a page before a position, the count there;
- the guesses: none for a subject with few messages, else usually 1 to 3, at most ``GUESSES``, plus 64 (halving all numbers) for a
  subject whose newest message is hard to find;
- the messages, ``PAGE`` per request and in total no more than twice as many as are wanted and some; if they are large, the search is
  repeated up to ``NARROWER`` times;
- the stream's state;
- for the newest page, the subject's newest number again, if something newer was deleted.

Pages have their own queue, as wide as a part of the reads for resuming clients. However many pages are requested, resuming clients
do not wait for them.
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
#: a range with at most this many more than twice the wanted messages is read without a further guess
SOME = 16
#: how often the search is repeated among newer messages if messages are large
NARROWER = 3
#: messages that may be read for one page: reached only if the history changes meanwhile
MOST = 10_000

#: pages that may wait
_QUEUE = 100_000
#: bytes that may be read for a page, as a multiple of its size
_BYTES = 4


class Looks(Protocol):
    """The part of a reader that :func:`find` uses."""

    async def look(self, subject: str, start: int) -> tuple[int, int]: ...  # noqa: D102


async def find(
    reader: Looks, subject: str, low: tuple[int, int], high: tuple[int, int], want: int, most: int
) -> tuple[int, int]:
    """Find a number from which on a subject has ``want`` to ``most`` messages, not counting those that ``high`` counts.

    ``low`` and ``high`` are pairs of a number and the count of messages from there on: too many, and too few. The count of ``high`` is
    that of messages which are not wanted. If the search takes too long, the range has fewer messages than wanted, but at least one.
    Returns the number, and the count from there on including the unwanted ones. Raises ``Unavailable``.
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
        # There is nothing between the guess and the first message after it, so that message's number is as good.
        early, many = (first if first < late else guess), count
        if count - beyond <= most:
            break
    return early, many


class Pages:
    """See the module docstring. ``reads`` is the number of concurrent reads for resuming clients."""

    def __init__(self, reader: Reader, reads: int) -> None:
        self._reader = reader
        self._queue: FairQueue[Earlier] = FairQueue(max(1, reads // 4), _QUEUE)

    def earlier(
        self, topic: Topic, before: int | None, limit: int, size: int, known: Callable[[], int | None]
    ) -> Deferred[Earlier]:
        """See :meth:`notify.interfaces.IPages.earlier`. ``known()`` is the topic's newest number received by this node."""
        work = lambda: Deferred.fromCoroutine(self._earlier(topic, before, limit, size, known))  # noqa: E731
        return self._queue.do(topic.workspace_id, work)

    def stop(self) -> None:
        """Give up all pages."""
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
            # The subject's first message may have arrived in between.
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
        """The position to continue from after a subject's newest message ``last``: behind the holes that follow it.

        A client cannot continue from the message itself, because the missing numbers may have been of its subject.
        """
        hole = self._reader.holes.newest(last)
        if not hole:
            return last
        newest = await self._reader.newest([subject], at_least=hole)
        # Messages that arrived meanwhile are not in the page.
        return newest.begin(subject, self._reader.holes) if newest.found.get(subject) == last else last

    async def _read(
        self, subject: str, upper: int, reach: int, limit: int, size: int
    ) -> tuple[list[Stored], int, bool]:
        """Read a subject's last messages up to a number; ``reach`` is its newest number. Also returns where the search began, and
        whether older messages are stored.
        """
        reader = self._reader
        many, first = await reader.look(subject, 1)
        beyond = 0 if upper >= reach else (await reader.look(subject, upper + 1))[0]
        want, most = limit, 2 * limit + SOME
        start, oldest = 1, first
        if many - beyond > most:
            start, many = await find(reader, subject, (first, many), (upper + 1, beyond), want, most)
        left = many - beyond  # to be read; the server looks at one message beyond them at most
        page: deque[Stored] = deque()
        taken = looked = promised = narrowed = 0
        seen = 0  # bytes, since the last search
        dropped, place = False, start
        while True:
            read = await reader.after(
                subject,
                None,
                at_least=reach,
                promised=promised,
                limit=min(left if left > 1 else most, PAGE),  # 1: there is at least one, as the leader counts
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
                # The messages are large: those still to come are more than a page of such messages.
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
