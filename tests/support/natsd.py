"""Real nats-servers for tests, one or a cluster, each a separate process that tests can kill, pause and restart."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from tests.support.ports import free_port
from tests.support.programs import program


def pause(seconds: float) -> Deferred[None]:
    """Let the reactor run for this many seconds."""
    return deferLater(reactor, seconds, lambda: None)


async def until(condition: Any, timeout: float = 20.0, what: str = "") -> float:
    """Wait for a condition; return the seconds it took. Raises ``AssertionError`` after ``timeout`` seconds."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout:
            raise AssertionError(f"not within {timeout} s: {what or condition}")
        await pause(0.02)
    return time.monotonic() - start


class Greeter(Protocol):
    """Announces itself as a nats-server of some version, and answers pings: enough for a login."""

    version = "2.10.7"

    def connectionMade(self) -> None:
        info = f'{{"server_id":"x","version":"{self.version}","headers":true,"max_payload":1048576,"jetstream":true}}'
        self.transport.write(f"INFO {info}\r\n".encode())

    def dataReceived(self, data: bytes) -> None:
        if b"PING" in data:
            self.transport.write(b"PONG\r\n")


def listening(case: TestCase, protocol: type[Greeter]) -> str:
    """Serve a :class:`Greeter` until the test is over; return its address as ``host:port``."""
    factory = Factory.forProtocol(protocol)
    factory.noisy = False
    port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")
    case.addCleanup(port.stopListening)
    return f"127.0.0.1:{port.getHost().port}"


class NatsServer:
    """One nats-server with JetStream. ``extra`` is additional configuration, in the server's own format."""

    def __init__(
        self,
        name: str = "n1",
        extra: str = "",
        routes: tuple[int, ...] = (),
        route_urls: tuple[str, ...] = (),
        cluster_port: int = 0,
        host: str = "127.0.0.1",
        prefix: tuple[str, ...] = (),
        accounts: str = "",
    ) -> None:
        self.name = name
        self.host = host
        self.port = free_port() if host == "127.0.0.1" else 4222
        self.monitor = free_port() if host == "127.0.0.1" else 8222
        self.prefix = prefix
        #: additional command-line arguments
        self.arguments: tuple[str, ...] = ()
        self.directory = Path(tempfile.mkdtemp(prefix=f"nats-{name}-"))
        self.process: subprocess.Popen[bytes] | None = None
        cluster = ""
        if cluster_port:
            route_urls = route_urls or tuple(f"nats-route://{host}:{port}" for port in routes)
            urls = ", ".join(f'"{url}"' for url in route_urls)
            cluster = f"cluster {{ name: test, listen: {host}:{cluster_port}, routes: [{urls}] }}"
        self.config = self.directory / "nats.conf"
        self.write(
            f"""
            server_name: {name}
            listen: {host}:{self.port}
            http: {host}:{self.monitor}
            jetstream {{ store_dir: "{self.directory}/js", max_mem: 256MB, max_file: 1GB }}
            {cluster}
            {accounts}
            {extra}
            """
        )

    def write(self, text: str) -> None:
        """Write the configuration file."""
        self.config.write_text(text)

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"nats://{self.host}:{self.port}"

    def start(self) -> NatsServer:
        """Start the process, without waiting until it listens."""
        log = open(self.directory / "log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*self.prefix, program("nats-server"), "-c", str(self.config), *self.arguments],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        log.close()
        return self

    async def up(self, timeout: float = 20.0) -> NatsServer:
        """Wait until the server accepts connections."""
        await until(self.listens, timeout, f"nats-server {self.name}: {self.log()[-500:]}")
        return self

    def listens(self) -> bool:
        """Whether the server accepts connections."""
        try:
            socket.create_connection((self.host, self.port), 0.2).close()
        except OSError:
            return False
        return True

    def log(self) -> str:
        """Everything that it has logged."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def send(self, number: int) -> None:
        """Send the process a signal."""
        if self.process is not None:
            self.process.send_signal(number)

    def pause(self) -> None:
        """Stop the process with SIGSTOP; connections stay open. When this returns, none of its threads runs."""
        self.send(signal.SIGSTOP)
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task")
        deadline = time.monotonic() + 20
        while any(") T " not in (task / "stat").read_text() for task in tasks.iterdir()):
            assert time.monotonic() < deadline, "it does not stop"
            time.sleep(0.001)

    def resume(self) -> None:
        """Let the process continue."""
        self.send(signal.SIGCONT)

    def reload(self, text: str | None = None) -> None:
        """Make the server read its configuration again, ``text`` if given."""
        if text is not None:
            self.write(text)
        self.send(signal.SIGHUP)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the process, by default with SIGKILL."""
        if self.process is not None:
            self.process.send_signal(number)
            if number in (signal.SIGKILL, signal.SIGTERM):
                self.process.send_signal(signal.SIGCONT)
            self.process.wait(10)
            self.process = None

    def remove(self) -> None:
        """End the process and delete its files."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class Cluster:
    """A cluster of ``size`` servers."""

    def __init__(self, extra: str = "", size: int = 3) -> None:
        ports = tuple(free_port() for _ in range(size))
        self.servers = [
            NatsServer(f"n{index}", extra, ports, cluster_port=port)
            for index, port in enumerate(ports, start=1)
        ]

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses for clients."""
        return tuple(server.url for server in self.servers)

    async def up(self) -> Cluster:
        """Start all servers and wait until the cluster can create streams."""
        for server in self.servers:
            server.start()
        for server in self.servers:
            await server.up()
        return self

    def named(self, name: str) -> NatsServer:
        """The server with this name."""
        return next(server for server in self.servers if server.name == name)

    def remove(self) -> None:
        """End all servers and delete their files."""
        for server in self.servers:
            server.remove()


async def api(broker: Any, call: str, body: dict[str, Any] | None = None) -> Any:
    """Call the JetStream API through a broker's own connection."""
    return await broker._streams.api(call, body)


def pretty(value: Any) -> str:
    """JSON for messages of failed assertions."""
    return json.dumps(value, indent=1, default=str)
