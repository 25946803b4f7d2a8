"""The React hooks, in a page of React in a real Chromium, under StrictMode, which mounts everything twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from twisted.trial.unittest import SynchronousTestCase

from notify.client import Publisher
from tests.support.browser import Browser
from tests.support.pages import serve_pages
from tests.support.process import KEY, Server, token
from tests.support.programs import ROOT, node_modules, run

PAGE = (
    '<!doctype html><title>React</title><div id="root"></div><script type="module" src="bundle.js"></script>'
)


class Hooks(SynchronousTestCase):
    def setUp(self) -> None:
        modules = node_modules("react-dom")
        self.folder = Path(self.mktemp()).resolve()
        (self.folder / "node_modules").mkdir(parents=True)
        for one in ("react", "react-dom", "scheduler"):
            (self.folder / "node_modules" / one).symlink_to(modules / one)
        # A copy: a link would be followed, and React would be looked for beside the client's source.
        shutil.copytree(
            ROOT / "notify" / "web" / "client",
            self.folder / "node_modules" / "notify-client",
            ignore=shutil.ignore_patterns("dist", "node_modules"),
        )
        shutil.copy(ROOT / "tests" / "js" / "package" / "react.mjs", self.folder)
        (self.folder / "page.html").write_text(PAGE)
        bundle = ("react.mjs", "--bundle", "--format=esm", "--outfile=bundle.js", "--log-level=warning")
        run(modules / ".bin" / "esbuild", *bundle, cwd=self.folder)
        self.origin = serve_pages(self, self.folder)

    def test_a_page_shows_what_was_what_comes_what_changes_and_who_types(self) -> None:
        page = self.origin
        with (
            Browser() as browser,
            Server(f'[listen]\nallowed_origins = ["{page}"]\n') as server,
            Publisher(f"http://127.0.0.1:{server.internal}", KEY) as publisher,
        ):

            def shows(heading: str, *lines: str, typing: str = "") -> None:
                def now() -> Any:
                    return browser.run(
                        "return [document.querySelector('h1')?.textContent, document.querySelector('em')?.textContent,"
                        " [...document.querySelectorAll('li')].map((one) => one.textContent)]"
                    )

                browser.until(f"{heading} {lines} {typing}", lambda: now() == [heading, typing, list(lines)])

            address = {"url": f"ws://127.0.0.1:{server.public}/ws", "token": token(5)}
            browser.go(f"{page}/page.html?{urlencode(address)}")
            shows("ready 7", "from the backend")
            browser.until("connected", lambda: browser.text("p") == "connected")
            publisher.chat(1, 7, 6, "one", message_id=11)
            shows("ready 7", "from the backend", "one")
            publisher.event(1, 7, 6, "edited", "one, edited", refers_to=11)
            shows("ready 7", "from the backend", "one, edited")
            publisher.chat(1, 7, 6, "from the backend, again", message_id=1)
            publisher.chat(1, 7, 6, "two", message_id=12)
            publisher.chat(1, 7, 6, "three", message_id=13)
            shows("ready 7", "one, edited", "two", "three")

            publisher.signal(1, 7, 6, "typing", True)
            shows("ready 7", "one, edited", "two", "three", typing="6")
            shows("ready 7", "one, edited", "two", "three")

            browser.run("choose(8)")
            shows("ready 8", "from the backend")
            publisher.chat(1, 7, 6, "elsewhere")
            publisher.chat(1, 8, 6, "here", message_id=21)
            shows("ready 8", "from the backend", "here")
            browser.run("window.away = true; choose(9)")
            shows("the backend is away")
            publisher.chat(1, 9, 6, "meanwhile", message_id=31)
            browser.until("it was asked again", lambda: browser.run("return window.loads.length") > 6)
            browser.run("window.away = false")
            shows("ready 9", "from the backend", "meanwhile")
            browser.run("choose(null)")
            browser.until(
                "nothing is left", lambda: browser.run("return document.querySelector('h1') === null")
            )
            browser.until(
                "nobody is in the chat",
                lambda: server.http("GET", "/v1/presence?workspace_id=1&chat_id=9")[1]["users"] == [],
            )
