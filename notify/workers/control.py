"""Steering over the workers of one machine: the first process has all of them do what it is asked, and gathers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed
from zope.interface import implementer

from notify.interfaces import Gathered, IControl
from notify.workers.frames import Answers, Ask, Do, Document
from notify.workers.link import Link

#: seconds after which a worker that has not answered is named as missing
PATIENCE = 3.0


@implementer(IControl)
class SharedControl:
    """The first process's end, and its control: ``own`` is that of this process alone. ``later`` is ``callLater``."""

    def __init__(self, own: IControl, later: Callable[..., Any]) -> None:
        self._own = own
        self._later = later
        self._workers: dict[Link, str] = {}

    def serve(self, link: Link, node: str) -> None:
        """The worker of this name may be asked, and ask, from now on."""
        self._workers[link] = node
        link.answer(Ask, self._asked)

    def drop(self, link: Link) -> None:
        """A worker is gone."""
        self._workers.pop(link, None)

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


@implementer(IControl)
class LinkedControl:
    """The worker's end. See :class:`~notify.interfaces.IControl`."""

    def __init__(self, link: Link, node: str) -> None:
        self._link = link
        self._node = node

    def start(self, do: Callable[[str, bytes], Deferred[bytes]]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
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
        # Whoever asked may have no interest any more: what is done is done all the same.
        asked.addCallback(gathered.callback)
        return gathered

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
        self._link.refuse(Do)
        return succeed(None)
