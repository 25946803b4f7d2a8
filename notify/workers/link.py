"""One end of what joins the first process and a worker: questions with their answers, and what needs none; without I/O.

What is said in one turn of the reactor goes out in one piece. What waits for an end that does not read is bounded: past
the bound that end is given up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify import errors, messages
from notify.workers.frames import Answered, Asked, Call, Cancel, Fault, Frame, Nothing, Reply, Splitter, pack

log = Logger()

#: bytes that may wait for the other end
MOST_WAITING = 64 * 2**20

#: how often what is to be done at the end of what came together may lead to more that is; then others have their turn
_ROUNDS = 2

#: what may be raised at one end and is raised again at the other
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
    """See above.

    ``write`` sends bytes, ``soon`` calls a function at the end of the reactor's turn; ``end`` is called once, with a reason,
    when this end gives the other one up, which is to close what joins them.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        soon: Callable[[Callable[[], None]], object],
        end: Callable[[str], object],
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self.alive = True
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
        self._due = self._held = self._receiving = False
        self._calls_due: list[Callable[[], None]] = []
        self._calls: dict[type[Struct], Callable[[Any], object]] = {}
        self._heard: dict[type[Struct], Callable[[Any], object]] = {}

    # --- what this end does ---------------------------------------------------------------------------------

    def answer(self, kind: type[Struct], call: Callable[[Any], object]) -> None:
        """Questions of this kind are answered so: ``call`` gives an ``Answered``, None, or a Deferred of one."""
        self._calls[kind] = call

    def refuse(self, kind: type[Struct]) -> None:
        """Questions of this kind are answered no more."""
        self._calls.pop(kind, None)

    def hear(self, kind: type[Struct], call: Callable[[Any], object]) -> None:
        """What needs no answer and is of this kind is told to ``call``, which does not raise."""
        self._heard[kind] = call

    # --- to the other end -----------------------------------------------------------------------------------

    def ask(self, asked: Asked) -> Deferred[Any]:
        """Ask; fires with the ``Answered``. Errback what was raised, :class:`~notify.errors.Unavailable` when it is gone."""
        if not self.alive:
            return fail(errors.Unavailable(GONE))
        self._number += 1
        number = self._number
        answer: Deferred[Any] = Deferred(lambda _: self._cancel(number))
        self._asked[number] = answer
        self.say(Call(number, asked))
        return answer

    def say(self, frame: Frame) -> None:
        """Say it at the end of this turn."""
        self.send(pack(frame))

    def send(self, packed: bytes) -> None:
        """The same, for what is said to several."""
        if not self.alive:
            return
        self._out.append(packed)
        self._waiting += len(packed)
        if self._waiting > self._most_waiting:
            self.gone()
            self._soon(self._is_stuck)
        elif not self._due and not self._held:
            self._due = True
            self._soon(self._flush)

    def flush(self) -> None:
        """Say at once what was to be said at the end of the turn."""
        if self._out and not self._held and self.alive:
            out, self._out, self._waiting = self._out, [], 0
            self._write(b"".join(out))

    @property
    def held(self) -> bool:
        """Whether the other end takes nothing for now, so that what is said waits."""
        return self._held

    def hold(self) -> None:
        """The other end takes nothing for now."""
        self._held = True

    def go_on(self) -> None:
        """It does again."""
        self._held = False
        self.flush()

    def give_up(self, reason: str) -> None:
        """The other end is of no use any more."""
        if self.alive:
            self.gone()
            self._end(reason)

    def _is_stuck(self) -> None:
        # Not at once: who said it was about to say it to others, too, and must not lose one of them meanwhile.
        self._end("it does not read what it is told")

    def _flush(self) -> None:
        self._due = False
        self.flush()

    def _cancel(self, number: int) -> None:
        if self._asked.pop(number, None) is not None:
            self.say(Cancel(number))

    # --- from the other end ---------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes came."""
        try:
            frames = self._splitter.feed(data)
        except ValueError:  # of msgspec, too: DecodeError is one
            self.give_up("what it says cannot be understood")
            return
        self._receiving = True
        try:
            for frame in frames:
                if self.alive:
                    self._take(frame)
            # What that leads to may lead to some more: messages are handed out, then counted.
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
        """Call this once all is taken that has come together; where nothing is being taken, at the end of this turn.

        What came together was said in one turn of the other end's, so it is what belongs together; and a turn of the reactor
        costs as much as some messages.
        """
        if self._receiving:
            self._calls_due.append(call)
        else:
            self._soon(call)

    def gone(self) -> None:
        """The other end is gone: what was asked has no answer, and what it asked needs none. Harmless when it was."""
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
        if heard is not None:  # first, for messages are the most of it
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
            raise KeyError(type(frame))  # a fault of ours: nobody here hears that

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
