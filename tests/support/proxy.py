"""The proxy of ``notify chaos`` before one server of a test."""

from __future__ import annotations

from twisted.internet import reactor

from notify.chaos import proxy


class Proxy(proxy.Proxy):
    """Listens on a port of its own, and passes on to ``target``."""

    def __init__(self, target: int, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(reactor, [(host, target)], port)

    @property
    def url(self) -> str:
        """Where clients of NATS connect."""
        return f"nats://127.0.0.1:{self.port}"
