"""The control over the workers of one machine: the first process sends them commands and gathers the answers.

It also holds the kept records. It sends a worker all of them before the worker admits clients, and each new one from
then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, fail, maybeDeferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.errors import Unavailable
from notify.interfaces import Gathered, IControl
from notify.workers.frames import Answers, Ask, Do, Document, Keep, Kept, Other, Records, Remember, Yes
from notify.workers.link import Link

#: seconds after which a worker that has not answered is reported as missing
PATIENCE = 3.0
#: the most seconds that a record is kept
OLDEST = 366 * 86400
#: records in one answer
PAGE = 1000
#: how often a worker tries to keep a record under a key that others write at the same time
_ATTEMPTS = 5


class _OtherError(Exception):
    """The kept record is not the one that the new record was made from."""

    def __init__(self, there: bytes | None) -> None:
        super().__init__("something else is kept under this key")
        self.there = there


@implementer(IControl)
class SharedControl:
    """The first process's end, and its control. ``own`` is the control of this process alone.

    ``later`` is ``callLater``; ``now`` returns Unix time in seconds.
    """

    def __init__(self, own: IControl, later: Callable[..., Any], now: Callable[[], float]) -> None:
        self._own = own
        self._later = later
        self._now = now
        self._workers: dict[Link, str] = {}
        self._kept: dict[str, bytes] = {}
        self._until: dict[str, float] = {}
        #: the workers that are told of kept records, and the keys that each has yet to ask for
        self._told: dict[Link, Iterator[str]] = {}

    def serve(self, link: Link, node: str) -> None:
        """Exchange questions with the worker of this name from now on."""
        self._workers[link] = node
        link.answer(Ask, self._asked)
        link.answer(Keep, self._keep)
        link.answer(Remember, lambda asked: self._remember(link, asked))

    def drop(self, link: Link) -> None:
        """A worker is gone."""
        self._workers.pop(link, None)
        self._told.pop(link, None)

    def start(self, do: Callable[[str, bytes], Deferred[bytes]]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
        return self._own.start(do)

    def ask(self, command: str, argument: bytes, node: str = "") -> Deferred[Gathered]:
        """See :class:`~notify.interfaces.IControl`."""
        links = [(link, name) for link, name in self._workers.items() if node in ("", name)]
        asked = [self._bounded(link.ask(Do(command, argument))) for link, _ in links]
        gathered: Deferred[Gathered] = Deferred()
        told: Any = DeferredList([self._own.ask(command, argument, node), *asked], consumeErrors=True)
        told.addCallback(self._gather, [name for _, name in links])
        told.addCallback(gathered.callback)
        return gathered

    def keep(self, key: str, merge: Callable[[bytes | None], bytes], until: float) -> Deferred[bool]:
        """See :class:`~notify.interfaces.IControl`."""
        now = self._now()
        for ended in [key for key, end in self._until.items() if end <= now]:
            del self._until[ended]
            self._kept.pop(ended, None)

        def merged(there: bytes | None) -> bytes:
            record = merge(there)
            self._until[key] = until
            return record

        return self._own.keep(key, merged, until)

    def watch(self, heard: Callable[[str, bytes], None]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""

        def kept(key: str, record: bytes) -> None:
            self._kept[key] = record
            self._until.setdefault(key, self._now() + OLDEST)
            for link in self._told:
                link.say(Kept(key, record))
            heard(key, record)

        return self._own.watch(kept)

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
        return self._own.stop()

    def _bounded(self, asked: Deferred[Any]) -> Deferred[Any]:
        late = self._later(PATIENCE, asked.cancel)

        def over(result: Any) -> Any:
            if late.active():
                late.cancel()
            return result

        return asked.addBoth(over)

    @staticmethod
    def _gather(results: list[tuple[bool, Any]], names: list[str]) -> Gathered:
        (_, own), *others = results
        answers, missing = list(own.answers), list(own.missing)
        for (answered, result), name in zip(others, names, strict=True):
            if answered:
                answers.append((name, result.data))
            else:
                missing.append(name)
        return Gathered(sorted(answers), sorted(missing), own.detail)

    def _asked(self, asked: Ask) -> Deferred[Answers]:
        gathered = self.ask(asked.command, asked.argument, asked.node)
        return gathered.addCallback(lambda told: Answers(told.answers, told.missing, told.detail))

    def _keep(self, asked: Keep) -> Deferred[Yes | Other]:
        def merge(there: bytes | None) -> bytes:
            if there != asked.there:
                raise _OtherError(there)
            return asked.record

        def other(failure: Failure) -> Other | Failure:
            return Other(failure.value.there) if isinstance(failure.value, _OtherError) else failure

        kept: Any = maybeDeferred(self.keep, asked.key, merge, asked.until)
        kept.addCallbacks(Yes, other)
        answered: Deferred[Yes | Other] = kept
        return answered

    def _remember(self, link: Link, asked: Remember) -> Records:
        if not asked.again:
            self._told[link] = iter(list(self._kept))
        keys = list(islice(self._told[link], PAGE))
        # Changes since then were already sent, and are included here.
        records = [(key, self._kept[key]) for key in keys if key in self._kept]
        return Records(records, len(keys) == PAGE)


@implementer(IControl)
class LinkedControl:
    """The worker's end. See :class:`~notify.interfaces.IControl`."""

    def __init__(self, link: Link, node: str) -> None:
        self._link = link
        self._node = node
        self._runs = False

    def start(self, do: Callable[[str, bytes], Deferred[bytes]]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
        self._runs = True
        self._link.answer(Do, lambda asked: do(asked.command, asked.argument).addCallback(Document))
        return succeed(None)

    def ask(self, command: str, argument: bytes, node: str = "") -> Deferred[Gathered]:
        """See :class:`~notify.interfaces.IControl`."""
        gathered: Deferred[Gathered] = Deferred()
        asked = self._link.ask(Ask(command, argument, node))
        asked.addCallbacks(
            lambda told: Gathered(told.answers, told.missing, told.detail),
            lambda _: Gathered([], [self._node] if node in ("", self._node) else []),
        )
        # The asker may have no interest in the answer any more; the command is executed all the same.
        asked.addCallback(gathered.callback)
        return gathered

    def keep(self, key: str, merge: Callable[[bytes | None], bytes], until: float) -> Deferred[bool]:
        """See :class:`~notify.interfaces.IControl`."""
        if not self._runs:
            return fail(Unavailable("this node does not run"))
        return Deferred.fromCoroutine(self._keep(key, merge, until))

    async def _keep(self, key: str, merge: Callable[[bytes | None], bytes], until: float) -> bool:
        there: bytes | None = None
        for _ in range(_ATTEMPTS):
            answer = await self._link.ask(Keep(key, there, merge(there), until))
            if isinstance(answer, Yes):
                return answer.yes
            there = answer.there
        raise Unavailable("others keep something under the same key at the same time")

    def watch(self, heard: Callable[[str, bytes], None]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
        self._link.hear(Kept, lambda said: heard(said.key, said.record))
        return Deferred.fromCoroutine(self._watch(heard))

    async def _watch(self, heard: Callable[[str, bytes], None]) -> None:
        told = await self._link.ask(Remember(False))
        while True:
            for key, record in told.records:
                heard(key, record)
            if not told.more:
                return
            told = await self._link.ask(Remember(True))

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
        self._runs = False
        self._link.refuse(Do)
        return succeed(None)
