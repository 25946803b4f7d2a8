"""An internal or public site with the memory broker, driven without a socket."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from notify.brokers.memory import MemoryBroker, MemorySettings
from notify.config import Limits
from notify.control.memory import MemoryControl
from notify.control.memory import MemorySettings as ControlSettings
from notify.core.dispatcher import Dispatcher
from notify.core.hub import Hub
from notify.core.live import InForce, Live
from notify.core.presence import PresenceWatch
from notify.core.signals import Signals
from notify.core.steering import Steering
from notify.core.timers import Wheel
from notify.http import ApiKeys, internal_site, most_body, unlimited
from notify.http.revoke import Revoker
from notify.interfaces import BrokerStatus, ISignals, ITogether
from notify.observe.health import Health
from notify.registries.memory import MemoryRegistry
from notify.registries.memory import MemorySettings as RegistrySettings
from notify.testing import make_context
from notify.transport.texts import TextFactory
from tests.support.world import TableAuthenticator

KEY = "a-key-for-tests-only"
AUTH = {"Authorization": f"Bearer {KEY}"}


def temporary_folder(test: Any) -> Path:
    """A folder that is deleted after the test."""
    folder = Path(tempfile.mkdtemp())
    test.addCleanup(shutil.rmtree, folder)
    return folder


class Response:
    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def __getitem__(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) < 2, (name, values)
        return values[0] if values else None

    @property
    def json(self) -> Any:
        assert self["Content-Type"] == "application/json", self.headers
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code in an error body; checks the whole shape of the body."""
        assert set(self.json) == {"error"}, self.json
        assert set(self.json["error"]) - {"index"} == {"code", "message"}, self.json
        assert self.json["error"]["message"], self.json
        return self.json["error"]["code"]


def parse_responses(data: bytes, head: bool = False) -> list[Response]:
    """All the responses in a server's output; each must have a length."""
    responses = []
    while data:
        top, _, data = data.partition(b"\r\n\r\n")
        first, *lines = top.decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version.startswith("HTTP/1."), first
        if status == "100":
            responses.append(Response(100, [], b""))
            continue
        headers = [tuple(line.split(": ", 1)) for line in lines]
        response = Response(int(status), headers, b"")
        length = 0 if head else int(response["Content-Length"])
        assert len(data) >= length, (first, len(data), length)
        response.body, data = data[:length], data[length:]
        responses.append(response)
    return responses


class Transport(StringTransport):
    """Can also be closed in one direction, like a TCP connection."""

    half_closed = False

    def loseWriteConnection(self) -> None:
        self.half_closed = True


class Client:
    """One connection to a site."""

    def __init__(self, site: Any) -> None:
        self.site = site
        self.channel = site.buildProtocol(None)
        self.transport = Transport()
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        self.channel.dataReceived(data)

    def received(self, head: bool = False) -> list[Response]:
        """The responses since the last call, also those to requests that were sent ahead."""
        while any(
            call.getTime() <= self.site.reactor.seconds() for call in self.site.reactor.getDelayedCalls()
        ):
            self.site.reactor.advance(0)
        data = self.transport.value()
        self.transport.clear()
        return parse_responses(data, head)

    def lose(self) -> None:
        from twisted.internet.error import ConnectionLost
        from twisted.python.failure import Failure

        self.channel.connectionLost(Failure(ConnectionLost()))


def request_bytes(
    method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> bytes:
    lines = {"Host": "notify.test", **(headers or {})}
    if body is not None:
        lines.setdefault("Content-Length", str(len(body)))
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} HTTP/1.1\r\n{text}\r\n".encode("latin-1") + (body or b"")


class Node:
    """The parts of a node around its internal site."""

    def __init__(
        self,
        keys: tuple[str, ...] = (KEY,),
        limits: Limits | None = None,
        broker: Any = None,
        reactor: Any = None,
        drains: bool = True,
        control: Any = None,
        pace: Any = lambda workspace, size: None,
    ) -> None:
        self._drains = drains
        self.context = make_context(reactor)
        self.clock: Clock = self.context.reactor
        self.metrics = self.context.metrics
        self.broker = broker or MemoryBroker(MemorySettings(), self.context)
        self.registry = MemoryRegistry(RegistrySettings(), self.context)
        live = Live(InForce(TableAuthenticator(), limits or Limits()))
        # On a real reactor the node is used by tests that send many requests, so the wheel turns faster.
        self.wheel = wheel = Wheel(self.clock, 0.25 if reactor is None else 0.01)
        dispatcher = Dispatcher(
            self.broker, self.registry, self.metrics, live, lambda call: self.clock.callLater(0, call), wheel.after,
            self.clock.seconds,
        )  # fmt: skip
        presence = PresenceWatch(self.registry, wheel.after)
        self.signals = Signals(
            ISignals(self.broker, None), self.metrics, live, lambda call: self.clock.callLater(0, call), self.clock.seconds
        )  # fmt: skip
        if self.signals.carried:
            self.broker.hear(self.signals.heard)
        self.hub = Hub(
            live, dispatcher, self.registry, presence, self.signals, self.metrics, wheel, self.context.now, Random(1)
        )  # fmt: skip
        self.drains = self.reloads = 0
        self.health = Health(self.broker.status, ["public", "internal"])
        self.control = MemoryControl(ControlSettings(), self.context)
        self.steering = Steering(
            self.hub,
            self.context.node,
            broker=self.broker.status,
            stage=lambda: "serving",
            reloads=lambda: (None, ""),
            reload=self.reload,
            drain=self.drain,
        )
        self.control.start(self.steering.do)
        self.control.watch(self.steering.heard)
        self.site = internal_site(
            reactor=self.context.reactor,
            broker=self.broker,
            registry=self.registry,
            control=control or self.control,
            node=self.context.node,
            health=self.health,
            keys=ApiKeys(lambda: unlimited(keys), self.metrics.keys_refused, self.clock.seconds),
            limits=limits or Limits(),
            metrics=self.metrics,
            sockets=TextFactory(wheel, self.clock, most_body(limits or Limits())),
            signals=self.signals,
            revoker=Revoker(control or self.control, self.hub),
            witness=lambda: self.hub.witness,
            pace=pace,
        )
        self.broker.start(lambda message: None, lambda topic: None)

    def reload(self) -> None:
        self.reloads += 1

    def drain(self) -> None:
        self.drains += 1
        if self._drains:
            self.health.drain()

    def up(self) -> None:
        self.health.started()
        self.health.listening("public")
        self.health.listening("internal")

    def call(
        self,
        method: str,
        target: str,
        json_body: Any = None,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        auth: bool = True,
    ) -> Response:
        """Send one request on a new connection."""
        all_headers = {**(AUTH if auth else {}), **(headers or {})}
        if json_body is not None:
            body = json.dumps(json_body).encode()
        if body is not None:
            all_headers.setdefault("Content-Type", "application/json")
        client = Client(self.site)
        client.send(request_bytes(method, target, body, all_headers))
        responses = client.received(head=method == "HEAD")
        if not responses and isinstance(self.clock, Clock):  # some answers are measured over a second
            self.wheel.start()
            self.clock.pump([0.25] * 8)
            self.wheel.stop()
            responses = client.received(head=method == "HEAD")
        (response,) = responses
        return response

    def publish(self, json_body: Any, **headers: str) -> Response:
        return self.call(
            "POST", "/v1/publish", json_body, {k.replace("_", "-"): v for k, v in headers.items()}
        )


class FakeBroker:
    """Answers a publish or a replay as the test says, and records what it was given."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer
        self.published: list[tuple[Any, ...]] = []
        self.ready = BrokerStatus(True, "fine")

    def start(self, deliver: Any, lost: Any) -> Deferred[None]:
        return succeed(None)

    def status(self) -> BrokerStatus:
        return self.ready

    def publish(self, *arguments: Any) -> Any:
        self.published.append(arguments)
        return self._answer()

    def replay(self, *arguments: Any) -> Any:
        return self._answer()


@implementer(ITogether)
class GatheringBroker(FakeBroker):
    """Also records how many messages it was given in each ``together`` context."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        super().__init__(answer)
        self.gathered: list[int] = []

    @contextmanager
    def together(self) -> Iterator[None]:
        before = len(self.published)
        yield
        self.gathered.append(len(self.published) - before)
