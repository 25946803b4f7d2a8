"""Two tabs of one user in a real Chromium, with the documented store, one of them frozen: neither loses a message."""

from __future__ import annotations

import asyncio
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.browser import Browser
from tests.support.fake_server import FakeServer, from_asyncio
from tests.support.pages import serve_pages
from tests.support.programs import ROOT

PAGE = b"""<!doctype html>
<title>A tab</title>
<script type="module">
  import { LocalStorageStore, NotifyClient } from "/client/notify-client.js";

  window.got = [];
  const url = new URLSearchParams(location.search).get("url");
  const store = new LocalStorageStore("user-5");
  const client = new NotifyClient(url, { token: "T", store });
  await client.start();
  const chat = client.chat(7);
  await chat.ready();
  window.ready = true;
  for await (const message of chat) window.got.push(message.content);
</script>
"""


class Tabs(TestCase):
    timeout = 120

    def setUp(self) -> Deferred[Any]:
        self.server = FakeServer()
        self.origin = serve_pages(self, ROOT / "notify" / "web", PAGE)
        return from_asyncio(self.server.start())

    def tearDown(self) -> Deferred[Any]:
        return from_asyncio(self.server.stop())

    async def test_a_tab_does_not_move_the_position_of_another_that_is_frozen(self) -> None:
        loop = asyncio.get_event_loop()
        await deferToThread(self.visit, loop)

    def visit(self, loop: asyncio.AbstractEventLoop) -> None:
        def publish(*texts: str) -> None:
            for text in texts:
                asyncio.run_coroutine_threadsafe(self.server.publish(7, text), loop).result(10)

        page = f"{self.origin}/page?url={self.server.url}"
        with Browser() as browser:

            def opened() -> None:
                browser.go(page)
                browser.until("ready", lambda: browser.run("return window.ready"))

            def got() -> Any:
                return browser.run("return window.got")

            def stored(slot: str) -> Any:
                return browser.run("return JSON.parse(localStorage.getItem(arguments[0]))?.seq", slot)

            opened()
            first = browser.here()
            publish("a", "b")
            browser.until("the first tab read", lambda: got() == ["a", "b"])
            second = browser.tab()
            opened()
            publish("c")
            browser.until("the second tab read", lambda: got() == ["c"])
            browser.until("the first tab stored", lambda: stored("user-5:chat:7") == 30)
            browser.until("the second tab stored", lambda: stored("user-5#1:chat:7") == 30)

            browser.switch(first)
            self.assertEqual(got(), ["a", "b", "c"])
            browser.freeze()
            browser.switch(second)
            publish("d", "e", "f")
            browser.until("the second tab read on", lambda: got() == ["c", "d", "e", "f"])
            browser.until("the second tab stored", lambda: stored("user-5#1:chat:7") == 60)
            self.assertEqual(stored("user-5:chat:7"), 30)

            # The browser discards the frozen tab; its user opens the page again.
            browser.switch(first)
            browser.leave()
            browser.switch(second)
            held = "return navigator.locks.query().then(({ held }) => held.length)"
            browser.until("the browser has taken its lock away", lambda: browser.run(held) == 1)
            third = browser.tab()
            opened()
            browser.until("the tab that was opened again read on", lambda: got() == ["d", "e", "f"])

            # Both tabs are loaded again: each goes on from its own position.
            publish("g")
            for tab, slot in ((second, "user-5#1:chat:7"), (third, "user-5:chat:7")):
                browser.switch(tab)
                browser.until("read", lambda: "g" in got())
                browser.until("stored", lambda slot=slot: stored(slot) == 70)
            publish("h")
            for tab in (second, third):
                browser.switch(tab)
                browser.until("read", lambda: "h" in got())
                opened()
                publish(f"for {tab}")
                browser.until("read", lambda tab=tab: f"for {tab}" in got())
                self.assertNotIn("g", got())
