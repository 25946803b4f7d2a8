"""One end of the link between the first process and a worker: questions, answers, one-way messages; without I/O.

All messages of one turn of the reactor are sent together. What is queued for an end that does not read is bounded:
past the bound, that end is given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify import errors, messages
from notify.workers.frames import Answered, Asked, Call, Cancel, Fault, Frame, Nothing, Reply, Splitter, pack

log = Logger()

#: bytes that may be queued for the other end
MOST_WAITING = 64 * 2**20

#: an end for which this part of the bound is queued is behind: no further large answers are made for it
_LITTLE = 256

#: rounds of end-of-batch calls after a batch, each caused by the one before; then others have their turn
_ROUNDS = 2

#: the exceptions that are passed from one end to the other
FAULTS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        errors.HistoryLost,
        errors.StartError,
        errors.TooLarge,
        errors.Unavailable,
        errors.Unknown,
        errors.Unsupported,
        messages.Poison,
    )
}

GONE = "the other process is gone"


class Link:
    """One end of a link.

    ``write`` sends bytes, and ``soon`` calls a function at the end of the reactor's turn. ``end`` is called once,
    with a reason, when this end gives up the other one; it must then close the connection between them.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        soon: Callable[[Callable[[], None]], object],
        end: Callable[[str], object],
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self.alive = True
        #: bytes for which the other end has made room after there was none: while this rises, it reads
        self.taken = 0
        self._write = write
        self._soon = soon
        self._end = end
        self._most_waiting = most_waiting
        self._splitter = Splitter()
        self._asked: dict[int, Deferred[Any]] = {}
        self._answering: dict[int, Deferred[Any]] = {}
        self._number = 0
        self._out: list[bytes] = []
        self._waiting = 0
        self._writers: deque[Deferred[None]] = deque()
        self._due = self._held = self._receiving = False
        self._calls_due: list[Callable[[], None]] = []
        self._calls: dict[type[Struct], Callable[[Any], object]] = {}
        self._heard: dict[type[Struct], Callable[[Any], object]] = {}

    # --- set-up ---------------------------------------------------------------------------------------------

    def answer(self, kind: type[Struct], call: Callable[[Any], object]) -> None:
        """Answer questions of this kind with ``call``, which returns an ``Answered``, None, or a Deferred of one."""
        self._calls[kind] = call

    def refuse(self, kind: type[Struct]) -> None:
        """Stop answering questions of this kind."""
        self._calls.pop(kind, None)

    def hear(self, kind: type[Struct], call: Callable[[Any], object]) -> None:
        """Pass one-way messages of this kind to ``call``, which must not raise."""
        self._heard[kind] = call

    # --- to the other end -----------------------------------------------------------------------------------

    def ask(self, asked: Asked) -> Deferred[Any]:
        """Ask a question; fires with the ``Answered``.

        Errback with what was raised there, or :class:`~notify.errors.Unavailable` if the other end is gone.
        """
        if not self.alive:
            return fail(errors.Unavailable(GONE))
        self._number += 1
        number = self._number
        answer: Deferred[Any] = Deferred(lambda _: self._cancel(number))
        self._asked[number] = answer
        self.say(Call(number, asked))
        return answer

    def say(self, frame: Frame) -> None:
        """Send a one-way message at the end of this turn."""
        self.send(pack(frame))

    def send(self, packed: bytes, now: bool = False) -> None:
        """The same for a packed message, which may go to several links; ``now``: immediately, since the turn has ended."""
        if not self.alive:
            return
        self._out.append(packed)
        self._waiting += len(packed)
        if self._waiting > self._most_waiting:
            self.gone()
            self._soon(self._is_stuck)
        elif now:
            self.flush()
        elif not self._due and not self._held:
            self._due = True
            self._soon(self._flush)

    def flush(self) -> None:
        """Send immediately what would be sent at the end of the turn."""
        if self._out and not self._held and self.alive:
            out, self._out, self._waiting = self._out, [], 0
            self._write(b"".join(out))

    def writable(self) -> Deferred[None]:
        """Fires once little is queued for the other end, so that a large answer may be made for it; in order of the calls.

        Without this, the answers to many questions that arrive together would exceed the bound on what is queued.
        """
        writer: Deferred[None] = Deferred()
        self._writers.append(writer)
        if not self._held:
            self._admit()
        return writer

    def _admit(self, part: int = _LITTLE) -> None:
        while self._writers and not self._much(part):
            self._writers.popleft().callback(None)

    def _much(self, part: int = _LITTLE) -> bool:
        return self._waiting >= self._most_waiting // part

    @property
    def behind(self) -> bool:
        """Whether the other end takes nothing now, and much is queued for it."""
        return self._held and self._much()

    @property
    def held(self) -> bool:
        """Whether the other end takes nothing now, so that messages are queued."""
        return self._held

    def hold(self) -> None:
        """The other end takes nothing now."""
        self._held = True

    def go_on(self) -> None:
        """The other end takes bytes again."""
        self._held = False
        self.flush()
        # Even if it is held again: while more is sent than it takes, it always is, and nobody would get a large answer.
        # Half as much as is little, so that it is not behind for that alone.
        self._admit(2 * _LITTLE)

    def give_up(self, reason: str) -> None:
        """Give up the other end."""
        if self.alive:
            self.gone()
            self._end(reason)

    def _is_stuck(self) -> None:
        # Not immediately: the caller may be about to send to other links as well, and must not lose one meanwhile.
        self._end("it does not read what it is told")

    def _flush(self) -> None:
        self._due = False
        self.flush()
        if not self._held:
            self._admit()

    def _cancel(self, number: int) -> None:
        if self._asked.pop(number, None) is not None:
            self.say(Cancel(number))

    # --- from the other end ---------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes arrived."""
        try:
            frames = self._splitter.feed(data)
        except ValueError:  # msgspec's DecodeError is one as well
            self.give_up("what it says cannot be understood")
            return
        self._receiving = True
        try:
            for frame in frames:
                if self.alive:
                    self._take(frame)
            # These calls may cause more of them: messages are handed out, then counted.
            for _ in range(_ROUNDS):
                calls, self._calls_due = self._calls_due, []
                for call in calls:
                    self._run(call)
        finally:
            self._receiving = False
            calls, self._calls_due = self._calls_due, []
            for call in calls:
                self._soon(call)

    @staticmethod
    def _run(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            log.failure("what was to be done at the end of a turn failed")

    def at_end(self, call: Callable[[], None]) -> None:
        """Call this after all that arrived together is processed, or at the end of this turn if nothing is being
        processed.

        What arrived together was sent in one turn of the other end, so it belongs together. A turn of the reactor
        costs as much as some messages.
        """
        if self._receiving:
            self._calls_due.append(call)
        else:
            self._soon(call)

    def gone(self) -> None:
        """The other end is gone: fail what was asked, and cancel what it asked. A second call does nothing."""
        if not self.alive:
            return
        self.alive = False
        self._out, self._waiting = [], 0
        asked, self._asked = self._asked, {}
        answering, self._answering = self._answering, {}
        for one in answering.values():
            one.cancel()
        for one in asked.values():
            one.errback(errors.Unavailable(GONE))

    def _take(self, frame: Frame) -> None:
        heard = self._heard.get(type(frame))
        if heard is not None:  # first, because most are messages
            heard(frame)
        elif isinstance(frame, Call):
            self._answer(frame)
        elif isinstance(frame, Reply):
            if (asked := self._asked.pop(frame.number, None)) is not None:
                asked.callback(frame.answered)
        elif isinstance(frame, Fault):
            if (asked := self._asked.pop(frame.number, None)) is not None:
                asked.errback(FAULTS.get(frame.name, errors.Unavailable)(frame.text))
        elif isinstance(frame, Cancel):
            if (answering := self._answering.pop(frame.number, None)) is not None:
                answering.cancel()
        else:
            raise KeyError(type(frame))  # a bug: no handler for that kind

    def _answer(self, call: Call) -> None:
        number, do = call.number, self._calls.get(type(call.asked))
        if do is None:
            self.say(Fault(number, "Unavailable", "the other process does not do this now"))
            return
        answering = self._answering[number] = maybeDeferred(do, call.asked)
        answering.addCallbacks(self._done, self._failed, (number,), {}, (number,))

    def _done(self, answered: Answered | None, number: int) -> None:
        self._answering.pop(number, None)
        self.say(Reply(number, Nothing() if answered is None else answered))

    def _failed(self, failure: Failure, number: int) -> None:
        self._answering.pop(number, None)
        if isinstance(failure.value, CancelledError):
            return
        name = type(failure.value).__name__
        if FAULTS.get(name) is type(failure.value):
            self.say(Fault(number, name, str(failure.value)))
        else:
            log.failure("what another process asked for failed", failure)
            self.say(Fault(number, "Unavailable", "it failed in the other process, whose log says how"))
