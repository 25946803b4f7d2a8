"""A real Chromium keeps a page that its user leaves, to show it again later: meanwhile the user counts as away."""

from __future__ import annotations

from urllib.parse import urlencode

from twisted.trial.unittest import SynchronousTestCase

from notify.client import Publisher
from tests.support.browser import Browser
from tests.support.pages import serve_pages
from tests.support.process import KEY, Server, token, wait_for
from tests.support.programs import ROOT

PAGE = b"""<!doctype html>
<title>A page</title>
<script type="module">
  import { NotifyClient } from "/client/notify-client.js";

  window.got = [];
  window.shown = [];
  addEventListener("pageshow", ({ persisted }) => window.shown.push(persisted));
  const query = new URLSearchParams(location.search);
  const client = new NotifyClient(query.get("url"), { token: query.get("token") });
  client.start();
  for await (const message of client.chat(7)) window.got.push(message.content);
</script>
"""


class BackAndForward(SynchronousTestCase):
    def test_who_has_left_the_page_is_away_and_misses_nothing_when_it_is_shown_again(self) -> None:
        origin = serve_pages(self, ROOT / "notify" / "web", PAGE)
        with (
            Browser() as browser,
            Server(f'[listen]\nallowed_origins = ["{origin}"]\n') as server,
            Publisher(f"http://127.0.0.1:{server.internal}", KEY) as publisher,
        ):

            def members() -> int:
                return len(server.http("GET", "/v1/presence?workspace_id=1&chat_id=7")[1]["users"])

            def got(*texts: str) -> None:
                browser.until(f"{texts}", lambda: browser.run("return window.got") == list(texts))

            query = urlencode({"url": f"ws://127.0.0.1:{server.public}/ws", "token": token(5)})
            browser.go(f"{origin}/page?{query}")
            wait_for("the user is there", members)
            publisher.chat(1, 7, 6, "one")
            got("one")
            browser.go(f"{origin}/demo.css")
            wait_for("the user is away", lambda: members() == 0, 15)
            publisher.chat(1, 7, 6, "two")
            browser.run("history.back()")
            browser.until("the very page", lambda: browser.run("return window.shown?.includes(true)"))
            got("one", "two")
            publisher.chat(1, 7, 6, "three")
            got("one", "two", "three")
