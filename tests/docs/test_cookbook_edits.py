"""docs/cookbook/edits.md: each kind of event, in order with the messages, and on a state that already contains it."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from notify.client import Publisher
from tests.support.browser import Browser
from tests.support.process import KEY, Server, wait_for
from tests.support.recipes import Site, answer, recipe


def message(id: int, text: str, version: int = 0, **reactions: int) -> dict[str, Any]:
    listed = [{"user": 6, "emoji": emoji, "on": True, "version": n} for emoji, n in reactions.items()]
    return {"id": id, "text": text, "version": version, "reactions": listed}


#: a script that collects all lines that are ever shown
WATCH = """<script>
  window.seen = new Set();
  const look = () => { for (const one of document.querySelectorAll("li")) window.seen.add(one.textContent); };
  new MutationObserver(look).observe(document.body, { childList: true, subtree: true });
</script>"""


class Edits(SynchronousTestCase):
    def setUp(self) -> None:
        self.site = Site(self)
        self.backend = recipe(self, "edits")
        self.state: dict[str, Any] = {"messages": [], "deleted": [], "members": []}
        self.meanwhile: list[Any] = []
        self.site.answers["/api/chats/7"] = self.load

    def load(self, _: object) -> tuple[int, str, bytes]:
        for happens in self.meanwhile:
            happens()
        self.meanwhile.clear()
        return answer(self.state)

    def run_page(self, visit: Any) -> None:
        with (
            Browser() as browser,
            Server(f'[listen]\nallowed_origins = ["{self.site.origin}"]\n') as server,
            Publisher(f"http://127.0.0.1:{server.internal}", KEY) as publisher,
        ):
            url = self.site.page("/page", "edits_page.js", server, f"<p></p><ol></ol>{WATCH}")
            visit(browser, server, publisher, url)

    def shows(self, browser: Browser, members: str, *lines: str) -> None:
        script = """return [document.querySelector('p').textContent,
            ...[...document.querySelectorAll('li')].map((one) => one.textContent)]"""
        browser.until(f"{members}: {lines}", lambda: browser.run(script) == [members, *lines])

    def test_each_kind_of_event_changes_what_is_shown(self) -> None:
        def visit(browser: Browser, server: Server, publisher: Publisher, url: str) -> None:
            self.state["messages"] = [message(11, "one")]
            self.state["members"] = [{"user": 1, "joined": True, "version": 1}]
            browser.go(url)
            self.shows(browser, "1", "one")
            publisher.chat(1, 7, 6, "two", message_id=12)
            self.backend.edited(publisher, 7, 6, 11, "one, edited", 1)
            self.backend.edited(publisher, 7, 6, 12, "two, edited", 1)
            self.shows(browser, "1", "one, edited", "two, edited")
            self.backend.reacted(publisher, 7, 6, 11, "👍", True, 1)
            self.shows(browser, "1", "one, edited 👍", "two, edited")
            self.backend.reacted(publisher, 7, 6, 11, "👍", False, 2)
            self.backend.reacted(publisher, 7, 6, 12, "🎉", True, 1)
            self.shows(browser, "1", "one, edited", "two, edited 🎉")
            self.backend.deleted(publisher, 7, 6, 12)
            self.backend.member(publisher, 7, 1, 9, True, 1)
            self.shows(browser, "1 9", "one, edited")
            self.backend.member(publisher, 7, 1, 9, False, 2)
            self.shows(browser, "1", "one, edited")

        self.run_page(visit)

    def test_what_the_state_has_already_changes_nothing_and_what_it_has_not_comes(self) -> None:
        def visit(browser: Browser, server: Server, publisher: Publisher, url: str) -> None:
            def happens() -> None:
                publisher.chat(1, 7, 6, "one", message_id=11)
                publisher.chat(1, 7, 6, "two", message_id=12)
                self.backend.edited(publisher, 7, 6, 11, "one, edited", 1)
                self.backend.edited(publisher, 7, 6, 11, "one, edited twice", 2)
                self.backend.reacted(publisher, 7, 6, 11, "👍", True, 1)
                self.backend.reacted(publisher, 7, 6, 11, "👍", False, 2)
                self.backend.deleted(publisher, 7, 6, 12)
                self.backend.member(publisher, 7, 1, 9, True, 1)
                self.backend.member(publisher, 7, 1, 9, False, 2)
                # The state is from after all this.
                self.state["messages"] = [message(11, "one, edited twice", 2, **{"🎉": 1})]
                taken_back = {"user": 6, "emoji": "👍", "on": False, "version": 2}
                self.state["messages"][0]["reactions"].append(taken_back)
                self.state["deleted"] = [12]
                self.state["members"] = [{"user": 9, "joined": False, "version": 2}]

            self.meanwhile.append(happens)
            browser.go(url)
            self.shows(browser, "", "one, edited twice 🎉")
            publisher.chat(1, 7, 6, "three", message_id=13)
            self.shows(browser, "", "one, edited twice 🎉", "three")
            # Meanwhile, the page never showed an older state.
            self.assertEqual(browser.run("return [...window.seen]"), ["one, edited twice 🎉", "three"])

        self.run_page(visit)

    def test_an_edit_that_comes_late_or_twice_does_not_win(self) -> None:
        def visit(browser: Browser, server: Server, publisher: Publisher, url: str) -> None:
            self.state["messages"] = [message(11, "one")]
            browser.go(url)
            self.shows(browser, "", "one")
            self.backend.edited(publisher, 7, 6, 11, "the newest", 3)
            self.backend.edited(publisher, 7, 6, 11, "committed before it", 2)
            publisher.event(1, 7, 6, "kind of next year", {"version": 9}, refers_to=11)
            publisher.chat(1, 7, 6, "behind them", message_id=12)
            self.shows(browser, "", "the newest", "behind them")
            self.assertEqual(browser.console(), [])

        self.run_page(visit)

    def test_ids_that_are_text_and_any_emoji_make_keys_that_the_server_takes_and_none_is_another_s(
        self,
    ) -> None:
        with Server() as server, Publisher(f"http://127.0.0.1:{server.internal}", KEY) as publisher:
            one, other, kiss = "m" * 64, "u" * 64, "👩🏿\u200d❤️\u200d💋\u200d👩🏾"
            self.backend.edited(publisher, "c" * 64, other, one, "new", 1)
            self.backend.deleted(publisher, "c" * 64, other, one)
            self.backend.reacted(publisher, "c" * 64, other, one, kiss, True, 1)
            self.backend.member(publisher, "c" * 64, other, other, True, 1)
            self.backend.reacted(publisher, 7, "b-c", "a", kiss, True, 1)
            self.backend.reacted(publisher, 7, "c", "a-b", kiss, True, 1)
            for chat, count in (("c" * 64, 4), ("7", 2)):
                stored = server.http("GET", f"/v1/history?subject=workspace.1.chat.{chat}.messages")[1]
                self.assertEqual(len(stored["messages"]), count)

    def test_publishing_it_again_stores_nothing(self) -> None:
        with Server() as server, Publisher(f"http://127.0.0.1:{server.internal}", KEY) as publisher:

            def stored() -> list[Any]:
                path = "/v1/history?subject=workspace.1.chat.7.messages"
                return server.http("GET", path)[1]["messages"]

            def publish() -> None:
                self.backend.edited(publisher, 7, 6, 11, "one, edited", 1)
                self.backend.reacted(publisher, 7, 6, 11, "👍", True, 1)
                self.backend.reacted(publisher, 7, 6, 11, "👍🏽", True, 1)
                self.backend.deleted(publisher, 7, 6, 12)
                self.backend.member(publisher, 7, 1, 9, True, 1)

            publish()
            wait_for("five are stored", lambda: len(stored()) == 5)
            publish()
            with Publisher(f"http://127.0.0.1:{server.internal}", KEY) as other:
                self.backend.deleted(other, 7, 6, 12)
            self.assertEqual(len(stored()), 5)
