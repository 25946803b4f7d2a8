"""The proxy of ``notify chaos`` in front of one server of a test."""

from __future__ import annotations

from twisted.internet import reactor

from notify.chaos import proxy


class Proxy(proxy.Proxy):
    """Listens on its own port, and forwards to ``target``."""

    def __init__(self, target: int, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(reactor, [(host, target)], port)

    @property
    def url(self) -> str:
        """The address for NATS clients."""
        return f"nats://127.0.0.1:{self.port}"
