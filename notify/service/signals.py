"""Unix signals: SIGTERM and SIGINT shut the server down, SIGHUP reloads its configuration."""

from __future__ import annotations

import signal
from collections.abc import Callable

from twisted.logger import Logger

from notify.service.lifecycle import Lifecycle

log = Logger()


class Signals:
    """Handles the signals. ``hurry`` shortens a drain in progress; ``reload`` starts a reload."""

    def __init__(
        self, lifecycle: Lifecycle, hurry: Callable[[], object], reload: Callable[[], object]
    ) -> None:
        self._lifecycle = lifecycle
        self._hurry = hurry
        self._reload = reload
        self._terminated = False

    def install(self, call_from_signal: Callable[[Callable[[], object]], object]) -> None:
        """Install the handlers of all three. ``call_from_signal`` passes a call to the reactor's thread."""
        for number, call in (
            (signal.SIGTERM, self.terminate),
            (signal.SIGINT, self.terminate),
            (signal.SIGHUP, self.hang_up),
        ):
            signal.signal(number, lambda *_, call=call: call_from_signal(call))

    def terminate(self) -> None:
        """SIGTERM or SIGINT: drain; a second one: hurry. The first one does not hurry a drain that the API began."""
        if self._terminated:
            log.warn("told to stop again: closing all remaining clients immediately")
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
