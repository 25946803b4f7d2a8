"""The write-through TCP transport: what the kernel takes at once never waits for a turn of the reactor."""

from __future__ import annotations

from typing import Any

from twisted.internet import tcp


class WriteThroughServer(tcp.Server):
    """A server connection whose ``write`` tries the socket first while nothing is buffered.

    What the socket does not take, and everything behind it, goes the ordinary way; so order is kept. An error
    is left for the ordinary way to find and report. A streaming producer is paused as soon as one byte is
    buffered, and resumed when none is, so that it can go past ``write`` meanwhile: :meth:`direct`.
    """

    def write(self, data: bytes) -> None:
        """Send or buffer ``data``; like ``ITransport.write`` it never blocks and never raises for the socket."""
        if (
            data
            and self.connected
            and not self._tempDataBuffer
            and len(self.dataBuffer) == self.offset
            and not self._writeDisconnected
            and not self.disconnecting
            and not self.TLS
        ):
            try:
                sent = self.socket.send(data)
            except OSError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        super().write(data)  # type: ignore[no-untyped-call]

    def direct(self) -> Any:
        """The socket's own ``send``, for a producer that is not paused; None where the bytes are not the socket's."""
        return None if self.TLS else self.socket.send

    def _isSendBufferFull(self) -> bool:
        return bool(self._tempDataBuffer) or len(self.dataBuffer) > self.offset


def write_through(port: Any) -> None:
    """Make a listening port's connections write through, where they are plain TCP."""
    if getattr(port, "transport", None) is tcp.Server:
        port.transport = WriteThroughServer
