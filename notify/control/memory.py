"""The control of one process alone: whatever is asked, this node does."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.components import Context
from notify.config import Settings
from notify.control.rounds import failed
from notify.interfaces import Gathered, IControl


class MemorySettings(Settings, frozen=True):
    """``[control.memory]`` has no keys."""


@implementer(IControl)
class MemoryControl:
    """See :class:`~notify.interfaces.IControl`."""

    Settings = MemorySettings
    log = Logger()

    def __init__(self, settings: MemorySettings, context: Context) -> None:
        self._node = context.node
        context.metrics.nodes.set(1)
        self._do: Callable[[str, bytes], Deferred[bytes]] | None = None

    def start(self, do: Callable[[str, bytes], Deferred[bytes]]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
        self._do = do
        return succeed(None)

    def ask(self, command: str, argument: bytes, node: str = "") -> Deferred[Gathered]:
        """See :class:`~notify.interfaces.IControl`."""
        if node not in ("", self._node):
            return succeed(Gathered([], []))
        if self._do is None:
            return succeed(Gathered([], [self._node]))
        gathered: Deferred[Gathered] = Deferred()
        done: Deferred[bytes] = maybeDeferred(self._do, command, argument)
        told = done.addCallbacks(self._done, self._failed, errbackArgs=(command,))
        # Whoever asked may have no interest any more: what is done is done all the same.
        told.addCallback(gathered.callback)
        return gathered

    def _done(self, answer: bytes) -> Gathered:
        return Gathered([(self._node, answer)], [])

    def _failed(self, failure: Failure, command: str) -> Gathered:
        failed(self.log, failure, command)
        return Gathered([], [self._node])

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IControl`."""
        self._do = None
        return succeed(None)
