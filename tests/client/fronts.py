"""Publishers for threads, for asyncio and for Twisted, so that all run the same tests; and a server that they share."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread, deferToThreadPool
from twisted.python.threadpool import ThreadPool

from notify.client import AsyncioPublisher, Publisher, PublishFailed, TwistedPublisher
from tests.support.certificates import Authority
from tests.support.process import KEY, Server
from tests.support.proxy import Proxy

#: the seconds between two faults, and how many there are: on a busy machine nothing gets through between two
HARM, HARMS = 0.05, 30
#: how much longer than its time anything may take on a busy machine (seconds); a call that hangs takes more
MOMENT = 5.0


@cache
def shared_server() -> Server:
    """One server for all tests; each test has chats of its own."""
    server = Server("[broker.memory]\nhistory_size = 100000\n")
    server.start()
    atexit.register(server.__exit__, None, None, None)
    return server


class Scripted:
    """An HTTP server that gives the answers that it is told, in order, and records the requests."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.asked: list[tuple[str, str | None, Any]] = []  # path, Idempotency-Key, body
        left, asked = list(answers), self.asked

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append((self.path, self.headers["Idempotency-Key"], body))
                status, value = left.pop(0)
                text = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/behind/a/prefix"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Base:
    """What tests of a publisher use, whatever kind it is; a front is mixed in."""

    timeout = 120
    server: Server
    #: whether a publish can be cancelled
    cancels = True

    def setUp(self: Any) -> None:
        self.server = shared_server()
        self.elsewhere()
        self.direct = f"http://127.0.0.1:{self.server.internal}"

    # --- what a front provides ---

    def new(self, url: str, key: str, tls: Authority | None = None, **options: Any) -> Any:
        """Make a publisher."""
        raise NotImplementedError

    def run_(self, call: Any, *arguments: Any, **named: Any) -> Deferred[Any]:
        """Call one of the publisher's methods."""
        raise NotImplementedError

    # --- what tests use ---

    def elsewhere(self) -> None:
        """From now on, publish to a new, empty chat."""
        self.chat = f"c-{uuid4()}"
        self.subject = f"workspace.1.chat.{self.chat}.messages"

    def make(self: Any, url: str | None = None, key: str = KEY, **options: Any) -> Any:
        publisher = self.new(url or self.direct, key, **{"random": lambda: 0.05, **options})
        self.addCleanup(lambda: self.run_(publisher.close, timeout=0.1))
        return publisher

    def through(self: Any) -> tuple[Proxy, str]:
        proxy = Proxy(self.server.internal)
        self.addCleanup(proxy.stop)
        return proxy, f"http://127.0.0.1:{proxy.port}"

    def message(self, content: object, **more: Any) -> tuple[str, Any]:
        payload = {"message_id": 1, "chat_id": self.chat, "workspace_id": 1, "sender_id": 3, "timestamp": 2}
        return self.subject, {**payload, "content": str(content), **more}

    def one(self, publisher: Any, content: object = "x", **named: Any) -> Deferred[Any]:
        return self.run_(publisher.publish, *self.message(content), **named)

    async def failing(self: Any, deferred: Deferred[Any]) -> PublishFailed:
        error: PublishFailed = await self.assertFailure(deferred, PublishFailed)
        return error

    async def kept(self) -> list[str]:
        """The contents of the chat's history."""
        found: list[str] = []
        since = ""
        while True:
            path = f"/v1/history?subject={self.subject}&limit=1000{since}"
            _, page = await deferToThread(self.server.http, "GET", path)
            found += [one["payload"]["content"] for one in page["messages"]]
            since = f"&since={page['next']}"
            if page["complete"]:
                return found

    async def streams(self) -> float:
        return await deferToThread(self.server.metric, "notify_publish_streams")

    def harming(self: Any, publisher: Any, stream: bool, *ways: Callable[[], Any]) -> Callable[[], None]:
        """Break a publisher's connections repeatedly, in the given ways by turns, until the returned function is called."""
        harms = iter(range(HARMS))

        def harm() -> None:
            number = next(harms, None)
            if number is None:
                looping.stop()
                return
            if stream:  # a cut handshake would keep it from asking for a stream for a minute
                publisher._desk.stream_from = 0.0
            ways[number % len(ways)]()

        def stop() -> None:
            if looping.running:
                looping.stop()

        looping = LoopingCall(harm)
        looping.start(HARM, now=False)
        self.addCleanup(stop)
        return stop

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self.server.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.server.signal(signal.SIGCONT)

    def scripted(self: Any, *answers: tuple[int, Any], **options: Any) -> tuple[Scripted, Any]:
        server = Scripted(*answers)
        self.addCleanup(server.stop)
        return server, self.make(server.url, **options)


class OfThreads(Base):
    """Publishers for code that blocks."""

    cancels = False

    def setUp(self: Any) -> None:
        super().setUp()
        pool = ThreadPool(0, 50)
        pool.start()
        self.addCleanup(pool.stop)
        self.pool = pool

    def new(self, url: str, key: str, tls: Authority | None = None, **options: Any) -> Publisher:
        context = None if tls is None else ssl.create_default_context(cafile=str(tls.certificate))
        return Publisher(url, key, tls=context, **options)

    def run_(self: Any, call: Callable[..., Any], *arguments: Any, **named: Any) -> Deferred[Any]:
        return deferToThreadPool(reactor, self.pool, call, *arguments, **named)  # type: ignore[arg-type]


class OfAsyncio(Base):
    """Publishers on asyncio."""

    def new(self, url: str, key: str, tls: Authority | None = None, **options: Any) -> AsyncioPublisher:
        context = None if tls is None else ssl.create_default_context(cafile=str(tls.certificate))
        return AsyncioPublisher(url, key, tls=context, **options)

    def run_(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Deferred[Any]:
        return Deferred.fromFuture(asyncio.ensure_future(call(*arguments, **named)))


class OfTwisted(Base):
    """Publishers on Twisted."""

    def new(self, url: str, key: str, tls: Authority | None = None, **options: Any) -> TwistedPublisher:
        if tls is not None:
            host, _, port = url.partition("://")[2].rpartition(":")
            root = trustRootFromCertificates([Certificate.loadPEM(tls.certificate.read_bytes())])
            options["endpoint"] = wrapClientTLS(
                optionsForClientTLS(host, root), HostnameEndpoint(reactor, host, int(port))
            )
        return TwistedPublisher(url, key, **options)

    def run_(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Deferred[Any]:
        return ensureDeferred(call(*arguments, **named))
