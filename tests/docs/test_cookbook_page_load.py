"""docs/cookbook/page-load.md: a message that is sent while the page loads is lost only with the naive order."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from notify.client import Publisher
from tests.support.browser import Browser
from tests.support.process import Server, token, wait_for
from tests.support.recipes import COOKBOOK, Program, Site, addresses, answer, recipe


class PageLoad(SynchronousTestCase):
    """A backend with a database: a message is committed there, and then published."""

    def setUp(self) -> None:
        self.path = str(Path(self.mktemp()).resolve())
        self.database = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        self.addCleanup(self.database.close)
        self.database.execute("CREATE TABLE messages (id INTEGER, chat INTEGER, author INTEGER, text TEXT)")
        self.next = 1

    def begin(self, server: Server) -> None:
        url, key = addresses(server)["NOTIFY_API_URL"], addresses(server)["NOTIFY_API_KEY"]
        self.publisher = Publisher(url, key)
        self.addCleanup(self.publisher.close)

    def say(self, text: str) -> None:
        id, self.next = self.next, self.next + 1
        self.database.execute("INSERT INTO messages VALUES (?, 7, 6, ?)", (id, text))
        self.publisher.chat(1, 7, 6, text, message_id=id)

    def state(self) -> list[dict[str, Any]]:
        rows = self.database.execute("SELECT id, text FROM messages WHERE chat = 7 ORDER BY id").fetchall()
        return [{"message_id": id, "content": text} for id, text in rows]

    def shows(self, browser: Browser, *lines: str) -> None:
        script = "return [...document.querySelectorAll('li')].map((one) => one.textContent)"
        browser.until(f"{lines}", lambda: browser.run(script) == list(lines))

    def present(self, server: Server, users: int) -> None:
        path = "/v1/presence?workspace_id=1&chat_id=7"
        wait_for("somebody is in the chat", lambda: len(server.http("GET", path)[1]["users"]) == users)

    def test_in_a_page_the_naive_order_loses_a_message_and_the_recipe_does_not(self) -> None:
        site = Site(self)
        between: list[str] = []

        def messages(_: object) -> tuple[int, str, bytes]:
            # Somebody sends a message while the answer is on its way.
            made = answer(self.state())
            for text in between:
                self.say(text)
            between.clear()
            return made

        site.answers["/api/chats/7/messages"] = messages
        with Browser() as browser, Server(f'[listen]\nallowed_origins = ["{site.origin}"]\n') as server:
            self.begin(server)
            self.say("before")

            between.append("meanwhile")
            browser.go(site.page("/naive", "page_load_naive.js", server, "<ol></ol>"))
            self.present(server, 1)
            self.say("after")
            self.shows(browser, "before", "after")

            site.user = 2
            between.append("meanwhile, again")
            browser.go(site.page("/page", "page_load.js", server, "<ol></ol>"))
            self.shows(browser, "before", "meanwhile", "after", "meanwhile, again")
            self.say("and on")
            self.shows(browser, "before", "meanwhile", "after", "meanwhile, again", "and on")

    def test_ids_beyond_what_a_number_of_javascript_holds_are_told_apart_and_known_again(self) -> None:
        site = Site(self)
        self.next = 2**53
        with Browser() as browser, Server(f'[listen]\nallowed_origins = ["{site.origin}"]\n') as server:

            def messages(_: object) -> tuple[int, str, bytes]:
                # The position is from before these messages, so they come, too.
                self.say("one")
                self.say("two")
                return answer([{**one, "message_id": str(one["message_id"])} for one in self.state()])

            site.answers["/api/chats/7/messages"] = messages
            self.begin(server)
            browser.go(site.page("/page", "page_load.js", server, "<ol></ol>"))
            self.shows(browser, "one", "two")
            self.say("three")
            self.shows(browser, "one", "two", "three")

            rendered = recipe(self, "rendered", DATABASE=self.path, **addresses(server))
            position = rendered.newest(7)
            self.say("four")
            html = rendered.render(7).replace(
                f'data-seq="{rendered.newest(7)["seq"]}"', f'data-seq="{position["seq"]}"'
            )
            site.answers["/chat"] = lambda _: (200, "text/html", html.encode())
            browser.go(f"{site.origin}/chat")
            self.present(server, 1)
            self.say("five")
            self.shows(browser, "one", "two", "three", "four", "five")

    def test_a_page_whose_backend_fails_loads_again_and_misses_nothing(self) -> None:
        site = Site(self)
        failing = [answer({}, 503)]

        def messages(_: object) -> tuple[int, str, bytes]:
            if failing:
                self.say("while the backend fails")
                return failing.pop()
            return answer(self.state())

        site.answers["/api/chats/7/messages"] = messages
        with Browser() as browser, Server(f'[listen]\nallowed_origins = ["{site.origin}"]\n') as server:
            self.begin(server)
            browser.go(site.page("/page", "page_load.js", server, "<ol></ol>"))
            self.shows(browser, "while the backend fails")
            self.assertEqual([one.path for one in site.asked].count("/api/chats/7/messages"), 2)

    def test_a_program_shows_what_was_and_what_comes_once_each(self) -> None:
        with Server('[drain]\nduration = "0s"\n') as server:
            self.begin(server)
            self.say("before")
            environ = {**addresses(server), "NOTIFY_TOKEN": token(), "DATABASE": self.path}
            with Program(COOKBOOK / "page_load.py", **environ) as program:
                self.assertEqual(program.line(), "1 loaded")
                self.say("after")
                self.assertEqual(program.line(), "before after")
                # The server's history is gone, as after an outage that is longer than the history.
                server.restart()
                self.assertEqual(program.line(), "2 loaded")
                self.say("and on")
                self.assertEqual(program.line(), "before after and on")

    def test_a_page_that_the_server_renders_begins_at_its_position(self) -> None:
        site = Site(self)
        with Browser() as browser, Server(f'[listen]\nallowed_origins = ["{site.origin}"]\n') as server:
            self.begin(server)
            rendered = recipe(self, "rendered", DATABASE=self.path, **addresses(server))
            self.say("before <script>alert(1)</script>")
            html = rendered.render(7)
            # Somebody sends a message while the page is on its way or in a cache, and its script does not run yet.
            self.say("meanwhile")
            site.answers["/chat"] = lambda _: (200, "text/html", html.encode())
            browser.go(f"{site.origin}/chat")
            self.shows(browser, "before <script>alert(1)</script>", "meanwhile")
            # A message may be in the state and also come again.
            position = rendered.newest(7)
            self.say("in both")
            with_it = rendered.render(7).replace(
                f'data-seq="{rendered.newest(7)["seq"]}"', f'data-seq="{position["seq"]}"'
            )
            site.answers["/chat"] = lambda _: (200, "text/html", with_it.encode())
            browser.go(f"{site.origin}/chat")
            self.shows(browser, "before <script>alert(1)</script>", "meanwhile", "in both")
            self.present(server, 1)
            self.say("the end")
            self.shows(browser, "before <script>alert(1)</script>", "meanwhile", "in both", "the end")
