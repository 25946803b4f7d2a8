"""A complete notify in a simulated world: what ``notify.tap`` builds from a configuration, on its own host."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from msgspec import structs

from notify import tap
from notify.config import Config
from notify.testing.simulation import network
from notify.testing.simulation.clock import Clock, Host

PUBLIC, INTERNAL = 8080, 8081


class Node:
    """The place of one node, whose processes come and go. ``connect`` creates connections to NATS, or is None if there is no NATS."""

    def __init__(
        self,
        clock: Clock,
        config: Config,
        random: Random,
        connect: Callable[..., Any] | None,
        number: int,
    ) -> None:
        self.name, self.number = config.server.node, number
        self._clock, self._config, self._random, self._connect = clock, config, random, connect
        self._rank = random.random()
        #: how far its clock is ahead of the world's, in seconds
        self.ahead = 0.0
        self.host: Host
        self.service: Any = None
        self.leaving = False
        self.start()

    @property
    def alive(self) -> bool:
        """Whether a process is running."""
        return self.service is not None

    def start(self) -> None:
        """Start a process."""
        self.host = Host(self._clock, f"{self.name}#{self.number}", self._rank)
        self.host.listen = network.listen
        self.host.on_stop = self._stop
        self.leaving = False
        world = tap.World(
            Random(self._random.getrandbits(64)),
            lambda: self._clock.now + self.ahead,
            self._connect,
            alone=False,
        )
        self.service = tap.build(self._config, self.host, read=lambda: self._config, world=world)
        self.service.privilegedStartService()
        self.service.startService()

    def kill(self) -> list[network.Transport]:
        """Kill the process. Returns the connections that it had."""
        ports = list(self.host.ports.values())
        self.host.kill()
        self.service = None
        return [
            transport for port in ports for transport in sorted(port.connections, key=lambda one: one.number)
        ]

    def leave(self, done: Callable[[], None]) -> None:
        """Let the process drain and exit."""
        self.leaving = True
        service = self.service

        def ended(_: object) -> None:
            if self.service is service:
                self.service = None
                done()

        service.stopService().addBoth(ended)

    def _stop(self) -> None:
        """The process wants to exit by itself: it could not start, or was told to by its API."""
        if self.service is not None and not self.leaving:
            self.leave(lambda: None)

    def reload(self, change: int) -> None:
        """Reload a configuration with a change that has no effect here."""
        self._config = structs.replace(
            self._config, limits=structs.replace(self._config.limits, max_invalid=10 + change)
        )
        if self.service is not None:
            self.service.reloader.reload()
