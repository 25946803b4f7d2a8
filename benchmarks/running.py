"""Servers that somebody else may have started: they are measured as they run, and neither started nor stopped."""

from __future__ import annotations

from benchmarks import process
from benchmarks.load import Unmeasurable
from benchmarks.servers import Server


class Running(Server):
    """A server that may run already; one that does not is started, where :meth:`command` knows how."""

    #: the ports of the clients and of the publishers of the one that runs
    ports: tuple[int, int] | None = None
    #: the option that names it
    option: str

    def start(self) -> None:
        if self.ports is None:
            super().start()
            return
        if self.tls:
            raise Unmeasurable(f"{self.name} that runs already ({self.option}) is not measured over TLS")
        self.port, self.publish_port = self.ports
        found = process.listening(self.port)
        if found is None:
            raise Unmeasurable(f"nobody listens on port {self.port} ({self.option})")
        self._pid = found

    @property
    def pid(self) -> int:
        return self._pid if self.ports else super().pid


class UWebSockets(Running):
    """A server on uWebSockets; the README has what it must speak."""

    name = "uWebSockets"
    option = "--uws"

    def command(self) -> list[str]:
        raise Unmeasurable(f"{self.name} needs a server of yours: {self.option} ws://127.0.0.1:PORT")
