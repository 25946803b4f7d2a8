"""The built-in set: a cluster of three NATS servers and three nodes of notify, on 127.0.0.1 only."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from notify.auth.tokens import issue
from notify.chaos.processes import HOST, Server, answers, free_ports, listens
from notify.chaos.proxy import Proxy
from notify.chaos.target import Seat, TrialFailed
from notify.client import Settings

NODES = SERVERS = 3
WORKSPACES, CHATS, CHATS_EACH = 2, 4, 2
#: lifetime of a client's token in seconds
_TOKEN = 3600.0

#: the command that runs a node: the installed notify, wherever its scripts are
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")

_NATS = """\
server_name: {name}
listen: "{host}:{port}"
jetstream {{ store_dir: "{folder}", max_memory_store: 64MB, max_file_store: 1GB }}
cluster {{ name: chaos, listen: "{host}:{cluster}", routes: [{routes}], no_advertise: true }}
"""

_NODE = """\
[server]
node = "{name}"
[listen]
public = "tcp:{public}:interface={host}"
internal = "tcp:{internal}:interface={host}"
[auth.jwt]
secret = "{secret}"
[api]
keys = ["{key}"]
[limits]
ping_interval = "2s"
ping_timeout = "2s"
[drain]
duration = "1s"
[broker]
plugin = "jetstream"
[broker.jetstream]
servers = ["nats://{host}:{nats}"]
request_timeout = "1s"
replicas = {replicas}
canary_interval = "500ms"
[registry]
plugin = "jetstream_kv"
[registry.jetstream_kv]
lease = "3s"
"""

#: the actions on each kind of object
ACTIONS = {
    "connections": ("cut", "silence", "stall", "release"),
    "servers": ("kill", "pause", "resume", "drain", "restart", "start"),
}
NAMES = {
    **{f"node-{number}": "servers" for number in range(1, NODES + 1)},
    **{f"nats-{number}": "servers" for number in range(1, SERVERS + 1)},
    "nodes": "servers",
    "nats": "servers",
    "clients": "connections",
    **{f"link-{number}": "connections" for number in range(1, NODES + 1)},
    "links": "connections",
}


def check(command: str) -> None:
    """Raises ``ValueError`` for a command that is not a fault of the built-in set."""
    verb, _, name = command.partition(" ")
    if verb not in ACTIONS.get(NAMES.get(name, ""), ()):
        wholes = [
            f"{', '.join(verbs)} of {', '.join(name for name, other in NAMES.items() if other == kind)}"
            for kind, verbs in ACTIONS.items()
        ]
        raise ValueError(f"'{command}' is nothing that can be done to the built-in set: {'; '.join(wholes)}")


class LocalSet:
    """A :class:`~notify.chaos.target.Target` that starts its own servers. ``twistd`` is the command that runs a node.

    Clients connect to the nodes in turn through a proxy, and each node connects to the NATS servers through its own proxy, so that
    these connections can be broken as well. ``logs``: a directory that keeps the servers' logs. Raises :class:`TrialFailed` if there
    is no nats-server.
    """

    # Dead connections are detected within seconds, so that a short run shows them.
    settings = Settings(pong_timeout=2.0, answer_timeout=4.0, connect_timeout=4.0, backoff_cap=4.0)

    def __init__(
        self,
        reactor: Any,
        nats_server: str = "nats-server",
        *,
        logs: Path | None = None,
        twistd: Sequence[str] = TWISTD,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        found = shutil.which(nats_server)
        if found is None:
            raise TrialFailed(
                f"The built-in set needs nats-server, and there is no {nats_server}: install it "
                "(https://nats.io/download), or say where it is with --nats-server PATH."
            )
        self.name = f"The built-in set: {SERVERS} NATS servers and {NODES} nodes on {HOST}"
        self.api_key = secrets.token_hex(16)
        self.apis: list[str] = []
        self._reactor, self._twistd = reactor, tuple(twistd)
        self._nats_server = str(Path(found).absolute())
        self._secret = secrets.token_hex(32)
        # Settings in the environment for another notify are not for these nodes.
        self._environ = {name: value for name, value in environ.items() if not name.startswith("NOTIFY_")}
        self._logs = logs
        self._folder: Path | None = None
        self._servers: dict[str, Server] = {}
        #: the proxy before the nodes, ``clients``, and the proxy of each node before the NATS servers, ``link-1`` and so on
        self._proxies: dict[str, Proxy] = {}

    def seats(self, count: int) -> list[Seat]:
        """The clients, once the set is started. Each is another user, and reads two chats; both workspaces have the same chat numbers."""
        return [
            Seat(
                name=f"client-{index}",
                url=f"ws://{HOST}:{self._proxies['clients'].port}/ws?client_id=chaos-{index}",
                token=partial(self._token, index),
                workspace=_workspace(index),
                chats=tuple(sorted((index // WORKSPACES + step) % CHATS + 1 for step in range(CHATS_EACH))),
            )
            for index in range(1, count + 1)
        ]

    def _token(self, user: int) -> str:
        return issue(self._secret, user, _workspace(user), _TOKEN, time.time())

    # ------------------------------------------------------------------ start and stop

    async def start(self) -> None:
        """Start the cluster, then the nodes. Raises :class:`TrialFailed`."""
        folder = self._folder = Path(tempfile.mkdtemp(prefix="notify-chaos-"))
        ports = free_ports(2 * SERVERS + 2 * NODES)
        nats, ports = ports[: 2 * SERVERS], ports[2 * SERVERS :]
        for index in range(SERVERS):
            self._add_nats(folder, index, nats)
        await self._ready("nats")
        for index in range(NODES):
            # Each node begins with another server.
            targets = [(HOST, nats[(index + step) % SERVERS]) for step in range(SERVERS)]
            link = self._proxies[f"link-{index + 1}"] = Proxy(self._reactor, targets)
            self._add_node(folder, index, ports[2 * index], ports[2 * index + 1], link.port)
        self.apis = [f"http://{HOST}:{port}" for port in ports[1::2]]
        self._proxies["clients"] = Proxy(self._reactor, [(HOST, port) for port in ports[0::2]])
        await self._ready("nodes")

    def _add_nats(self, folder: Path, index: int, ports: Sequence[int]) -> None:
        name, clusters = f"nats-{index + 1}", ports[SERVERS:]
        config = folder / f"{name}.conf"
        config.write_text(
            _NATS.format(
                name=name,
                host=HOST,
                port=ports[index],
                folder=folder / name,
                cluster=clusters[index],
                routes=", ".join(f'"nats-route://{HOST}:{port}"' for port in clusters),
            )
        )
        self._add(folder, name, [self._nats_server, "-c", str(config)], partial(listens, ports[index]))

    def _add_node(self, folder: Path, index: int, public: int, internal: int, nats: int) -> None:
        name = f"node-{index + 1}"
        config = folder / f"{name}.toml"
        config.touch(0o600)
        config.write_text(
            _NODE.format(
                name=name,
                host=HOST,
                public=public,
                internal=internal,
                secret=self._secret,
                key=self.api_key,
                nats=nats,
                replicas=SERVERS,
            )
        )
        command = [*self._twistd, "--nodaemon", "--pidfile=", "notify", "--config", str(config)]
        self._add(folder, name, command, partial(answers, internal, "/health/ready"))

    def _add(self, folder: Path, name: str, command: Sequence[str], ready: Callable[[], bool]) -> None:
        log = (self._logs or folder) / f"{name}.log"
        server = Server(name, command, folder, log, self._environ, ready)
        self._servers[name] = server
        server.start()

    async def stop(self, undo: Sequence[str]) -> None:
        """End every server, and remove all their files except the requested logs."""
        for proxy in self._proxies.values():
            await proxy.stop()
        for server in self._servers.values():
            await deferToThread(server.end)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # ------------------------------------------------------------------ faults

    def _named(self, name: str) -> list[Server]:
        """The server of that name, or all ``nodes`` or all of ``nats``."""
        kind = {"nodes": "node-", "nats": "nats-"}.get(name)
        return [one for key, one in self._servers.items() if key == name or (kind and key.startswith(kind))]

    def _between(self, name: str) -> list[Proxy]:
        """The proxies of that name, or all ``links``."""
        links = name == "links"
        return [
            one for key, one in self._proxies.items() if key == name or (links and key.startswith("link-"))
        ]

    async def _ready(self, name: str) -> None:
        for server in self._named(name):
            await deferToThread(server.wait_ready)

    async def act(self, command: str) -> None:
        """Carry out one of :data:`ACTIONS`, on several objects one after the other. Raises :class:`TrialFailed`."""
        verb, _, name = command.partition(" ")
        for proxy in self._between(name):
            _BREAKS[verb](proxy)
        for server in self._named(name):
            await deferToThread(_ACTS[verb], server)


_BREAKS: dict[str, Callable[[Proxy], object]] = {
    "cut": Proxy.cut,
    "silence": Proxy.silence,
    "stall": Proxy.stall,
    "release": lambda proxy: proxy.stall(False),
}


def _start(server: Server) -> None:
    server.start()
    server.wait_ready()


def _restart(server: Server) -> None:
    server.leave()
    _start(server)


_ACTS: dict[str, Callable[[Server], None]] = {
    "kill": Server.kill,
    "pause": lambda server: server.send(signal.SIGSTOP),
    "resume": lambda server: server.send(signal.SIGCONT),
    "drain": Server.leave,
    "restart": _restart,
    "start": _start,
}


def _workspace(index: int) -> int:
    return index % WORKSPACES + 1
