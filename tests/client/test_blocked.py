"""A page in a real Chromium behind a proxy that lets no WebSocket through: its client misses nothing over cuts."""

from __future__ import annotations

import socket
from collections.abc import Callable
from threading import Lock, Thread
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify.client import Publisher
from tests.support.browser import Browser
from tests.support.pages import serve_pages
from tests.support.programs import ROOT
from tests.support.running import API_KEY, LocalServer, token

CUTS = 5
REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
PAGE = b"""<!doctype html>
<title>Behind a proxy</title>
<script type="module">
  import { NotifyClient } from "/client/notify-client.js";

  window.got = [];
  window.lost = 0;
  const parameters = new URLSearchParams(location.search);
  const client = new NotifyClient(parameters.get("url"), { token: parameters.get("token"), settings: { backoff_base: 0.5 } });
  await client.start();
  const chat = client.chat(7, { onLost: () => void (window.lost += 1) });
  await chat.ready();
  window.ready = true;
  for await (const message of chat) window.got.push(message.content);
</script>
"""


class Blocking:
    """A proxy that passes connections on, except those whose first request asks for a WebSocket."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.refused = self.passed = 0
        self._open: set[socket.socket] = set()
        self._lock = Lock()
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Cut all open connections."""
        with self._lock:
            for one in self._open:
                _end(one)

    def stop(self) -> None:
        """Stop the proxy."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            Thread(target=self._pass, args=(near,), daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (data := near.recv(65536)):
            head += data
        if b"upgrade: websocket" in head.lower():
            self.refused += 1
            near.sendall(REFUSED)
            near.close()
            return
        self.passed += 1
        far = socket.create_connection(("127.0.0.1", self._target))
        with self._lock:
            self._open |= {near, far}
        far.sendall(head)
        back = Thread(target=_pump, args=(far, near), daemon=True)
        back.start()
        _pump(near, far)
        back.join()
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    for one in (source, sink):
        _end(one)


def _end(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:  # it has already ended
        pass


class Blocked(TestCase):
    timeout = 120

    async def test_nothing_is_missed_over_cuts(self) -> None:
        origin = serve_pages(self, ROOT / "notify" / "web", PAGE)
        server = await LocalServer(LISTEN__ALLOWED_ORIGINS=origin).start(self)
        proxy = Blocking(server.service.public.port.getHost().port)
        self.addCleanup(lambda: deferToThread(proxy.stop))
        page = f"{origin}/page?url=ws://127.0.0.1:{proxy.port}/ws&token={token(5)}"
        await deferToThread(self.visit, page, proxy, server.api)

    def visit(self, page: str, proxy: Blocking, api: str) -> None:
        with Publisher(api, API_KEY) as publisher, Browser() as browser:
            sent: list[str] = []

            def publish() -> None:
                sent.append(str(len(sent)))
                publisher.chat(1, 7, 3, sent[-1])

            def read(what: str) -> Callable[[], Any]:
                return lambda: browser.run(f"return window.{what}")

            browser.go(page)
            browser.until("ready", read("ready"))
            self.assertGreater(proxy.refused, 0)
            for _ in range(CUTS):
                publish()
                browser.until("what was sent has come", lambda: len(read("got")()) == len(sent))
                proxy.cut()
                publish()
                publish()
                browser.until("what was sent meanwhile has come", lambda: len(read("got")()) == len(sent))
            self.assertEqual(read("got")(), sent)
            self.assertEqual(read("lost")(), 0)
            self.assertGreater(proxy.passed, CUTS)
