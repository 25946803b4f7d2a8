"""What the process is told from outside: SIGTERM and SIGINT to leave, SIGHUP to read its configuration again."""

from __future__ import annotations

import signal
from collections.abc import Callable

from twisted.logger import Logger

from notify.service.lifecycle import Lifecycle

log = Logger()


class Signals:
    """``hurry`` shortens a drain that runs; ``reload`` begins a reload."""

    def __init__(
        self, lifecycle: Lifecycle, hurry: Callable[[], object], reload: Callable[[], object]
    ) -> None:
        self._lifecycle = lifecycle
        self._hurry = hurry
        self._reload = reload
        self._terminated = False

    def install(self, call_from_signal: Callable[[Callable[[], object]], object]) -> None:
        """Take over the three signals. ``call_from_signal`` hands a call to the reactor's thread."""
        for number, call in (
            (signal.SIGTERM, self.terminate),
            (signal.SIGINT, self.terminate),
            (signal.SIGHUP, self.hang_up),
        ):
            signal.signal(number, lambda *_, call=call: call_from_signal(call))

    def terminate(self) -> None:
        """SIGTERM or SIGINT: leave. Another one: hurry. A drain that the API began is not hurried by the first."""
        if self._terminated:
            log.warn("told to stop again: sending away at once whoever is left")
            self._hurry()
        self._terminated = True
        self._lifecycle.drain()

    def hang_up(self) -> None:
        """SIGHUP: reload."""
        if self._lifecycle.leaving:
            log.warn("not reloading: the server is stopping")
            return
        self._lifecycle.reloading()
        self._reload()
