"""The demo page in a real Chromium, against a real ``twistd notify --dev``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread, deferToThread
from twisted.trial.unittest import TestCase

from tests.support.browser import Browser
from tests.support.ports import free_port
from tests.support.programs import ROOT
from tests.support.running import Twistd

PICTURES = ROOT / "artifacts"

#: a script by which user 3 types, with this data
TYPIST = """const [data] = arguments;
    import("/client/notify-client.js").then(async ({ NotifyClient }) => {
      const token = (await (await fetch("/demo/token?user=3")).json()).token;
      const client = new NotifyClient(`ws://${location.host}/ws`, { token, settings: { features: ["signals"] } });
      await client.start();
      await client.chat(1).ready();
      client.signal(1, "typing", data);
    });"""


class Page:
    """The page as a visitor sees and uses it."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url

    def open(self, query: str = "") -> None:
        self.browser.go(self.url + query)
        for user in (1, 2):
            self.wait(user, "connected", lambda user=user: self.field(user, "state") == "connected")
            self.wait(user, "live", lambda user=user: self.field(user, "position").isdigit())

    def field(self, user: int, name: str) -> str:
        return self.browser.text(f"[data-user='{user}'] [data-field='{name}']")

    def messages(self, user: int) -> list[str]:
        script = """return [...document.querySelectorAll(`[data-user='${arguments[0]}'] .messages li[data-seq]`)]
            .map((item) => item.firstChild.textContent)"""
        return list(self.browser.run(script, user))

    def notes(self, user: int) -> str:
        script = """return [...document.querySelectorAll(`[data-user='${arguments[0]}'] .messages .note`)]
            .map((item) => item.textContent).join("\\n")"""
        return str(self.browser.run(script, user))

    def say(self, user: int, *texts: str) -> None:
        for text in texts:
            self.browser.type(f"[data-user='{user}'] .composer input", text + "\n")

    def press(self, user: int, action: str) -> None:
        self.browser.click(f"[data-user='{user}'] [data-action='{action}']")

    def pick(self, user: int, number: int) -> None:
        """Click on a message; the first one has number 1."""
        self.browser.click(f"[data-user='{user}'] .messages li[data-seq]:nth-child({number} of li[data-seq])")

    def ids(self, user: int) -> list[int]:
        """The ids of the messages shown, from the server."""
        script = """const [user, done] = arguments;
            import("/client/notify-client.js").then(async ({ NotifyClient }) => {
              const token = (await (await fetch(`/demo/token?user=${user}`)).json()).token;
              const client = new NotifyClient(`ws://${location.host}/ws`, { token });
              await client.start();
              const { messages } = await client.history(1);
              await client.close();
              done(messages.map(({ message_id }) => message_id));
            });"""
        return list(self.browser.wait(script, user))

    def post(self, path: str, **what: Any) -> None:
        """Send a request to the server directly, as anyone can, whether or not the page would."""
        script = """const [path, body, done] = arguments;
            const headers = { "Content-Type": "application/json" };
            fetch(`/demo/${path}`, { method: "POST", headers, body }).then(({ status }) => done(status));"""
        status = self.browser.wait(script, path, json.dumps({"chat_id": 1, **what}))
        if status != 200:
            raise AssertionError(status)

    def wait(self, user: int, what: str, condition: Callable[[], Any], timeout: float = 30) -> None:
        try:
            self.browser.until(f"user {user}: {what}", condition, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.notes(user)}\n{self.browser.console()}") from None


class DemoPage(TestCase):
    timeout = 180

    async def _visit(self, visit: Callable[[Page], None], **size: int) -> None:
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        server = Twistd(
            *("-n", "--pidfile=", "notify", "--dev"),
            cwd=folder,
            NOTIFY_LISTEN__PUBLIC="tcp:0:interface=127.0.0.1",
            NOTIFY_LISTEN__INTERNAL="tcp:0:interface=127.0.0.1",
        )
        self.addCleanup(server.kill)
        url = (await server.says(r"demo page\s+(http://127\.0\.0\.1:\d+/)"))[1]
        await self._in_browser(visit, url, size)

    def _in_browser(self, visit: Callable[[Page], None], url: str, size: dict[str, int]) -> Deferred[None]:
        def browse() -> None:
            with Browser(**size) as browser:
                visit(Page(browser, url))
                wrong = [one for one in browser.console() if one["level"] in ("SEVERE", "WARNING")]
                self.assertEqual(wrong, [])

        return deferToThread(browse)

    async def test_messages_flow_and_a_cut_is_resumed_without_a_gap(self) -> None:
        def visit(page: Page) -> None:
            page.open()
            page.say(1, "one")
            page.say(2, "two")
            for user in (1, 2):
                page.wait(user, "both messages", lambda user=user: page.messages(user) == ["one", "two"])
            page.press(1, "cut")
            page.wait(1, "away", lambda: page.field(1, "state") != "connected")
            page.say(2, "three", "four", "five")
            everything = ["one", "two", "three", "four", "five"]
            page.wait(2, "all five", lambda: page.messages(2) == everything)
            page.wait(1, "all five", lambda: page.messages(1) == everything)
            page.wait(1, "connected", lambda: page.field(1, "state") == "connected")
            self.assertEqual(page.field(1, "resumes"), "1")
            self.assertEqual((page.field(1, "gaps"), page.field(1, "lost")), ("0", "0"))
            self.assertIn("from position", page.notes(1))
            self.assertEqual(page.field(1, "position"), page.field(2, "position"))
            self.assertRegex(page.field(2, "latency"), r"^[\d.]+ms$")
            page.wait(1, "two people", lambda: page.field(1, "presence") == "AdaGrace")
            page.wait(2, "two people", lambda: page.field(2, "presence") == "AdaGrace")
            page.browser.screenshot(PICTURES / "demo.png")

        await self._visit(visit)

    async def test_a_paused_reader_catches_up_in_order(self) -> None:
        def visit(page: Page) -> None:
            page.open()
            page.press(2, "pause")
            page.browser.click("#burst")
            page.wait(1, "50 messages", lambda: len(page.messages(1)) == 50)
            page.wait(2, "pausing", lambda: "the rest there" in page.field(2, "state"))
            self.assertEqual(page.messages(2), [])
            page.browser.screenshot(PICTURES / "demo-paused.png")
            page.press(2, "pause")
            page.wait(2, "50 messages", lambda: len(page.messages(2)) == 50)
            self.assertEqual(page.messages(2), [f"{number} of 50" for number in range(1, 51)])
            self.assertEqual((page.field(2, "gaps"), page.field(2, "lost")), ("0", "0"))

        await self._visit(visit)

    async def test_a_token_that_expires_is_replaced_and_nothing_is_missed(self) -> None:
        def visit(page: Page) -> None:
            page.open()
            page.press(1, "expire")
            page.wait(1, "4002", lambda: "token expired (4002)" in page.notes(1), 40)
            page.say(2, "meanwhile")
            page.wait(1, "the message", lambda: page.messages(1) == ["meanwhile"])
            page.wait(1, "connected", lambda: page.field(1, "state") == "connected")
            self.assertEqual((page.field(1, "resumes"), page.field(1, "lost")), ("1", "0"))
            page.wait(1, "a new token", lambda: int(re.sub(r"\D", "", page.field(1, "token"))) > 5)

        await self._visit(visit)

    async def test_two_tabs_see_each_other_and_a_reload_resumes(self) -> None:
        def visit(page: Page) -> None:
            page.open()
            first = page.browser.here()
            page.wait(1, "two people", lambda: page.field(1, "presence") == "AdaGrace")
            second = page.browser.tab()
            page.open()
            for user in (1, 2):
                page.wait(
                    user,
                    "twice",
                    lambda user=user: page.field(user, "presence") == "Ada \u00d72Grace \u00d72",
                )
            page.say(2, "from the second tab")
            page.browser.switch(first)
            page.wait(1, "twice", lambda: page.field(1, "presence") == "Ada \u00d72Grace \u00d72")
            page.wait(1, "the message", lambda: page.messages(1) == ["from the second tab"])
            page.browser.go("about:blank")
            page.browser.switch(second)
            page.wait(1, "once", lambda: page.field(1, "presence") == "AdaGrace")
            page.say(1, "while you were away")
            page.wait(2, "both", lambda: len(page.messages(2)) == 2)
            page.browser.switch(first)
            page.open()
            both = ["from the second tab", "while you were away"]
            page.wait(1, "what there is", lambda: page.messages(1) == both)

        await self._visit(visit)

    async def test_it_begins_with_a_page_of_history_and_older_ones_come_when_scrolled_up(self) -> None:
        def visit(page: Page) -> None:
            page.open()
            page.browser.click("#burst")
            page.say(1, "the last")
            everything = [*(f"{number} of 50" for number in range(1, 51)), "the last"]
            page.wait(2, "everything", lambda: page.messages(2) == everything)
            page.open()
            page.wait(2, "the newest page", lambda: page.messages(2) == everything[-30:])
            up = """const list = document.querySelector("[data-user='2'] .messages"), shown = list.children[0];
                list.scrollTop = 0; list.dispatchEvent(new Event("scroll")); window.shown = shown"""
            place = "return window.shown.getBoundingClientRect().top"
            page.browser.run(up)
            top = page.browser.run(place)
            page.wait(2, "everything", lambda: page.messages(2) == everything)
            self.assertApproximates(page.browser.run(place), top, 1)
            page.say(2, "and on")
            page.wait(1, "what comes", lambda: page.messages(1) == [*everything[-30:], "and on"])

        await self._visit(visit)

    async def test_what_it_has_let_go_of_comes_back_when_scrolled_up(self) -> None:
        def visit(page: Page) -> None:
            page.open()
            for burst in range(1, 8):
                page.browser.click("#burst")
                page.wait(1, "a burst", lambda burst=burst: page.field(1, "position") == str(50 * burst))
            everything = [f"{number} of 50" for number in range(1, 51)] * 7
            self.assertEqual(page.messages(1), everything[-300:])

            def up() -> bool:
                page.browser.run("document.querySelector(`[data-user='1'] .messages`).scrollTop = 0")
                return page.messages(1) == everything

            page.wait(1, "everything", up)

        await self._visit(visit)

    async def test_after_a_restart_of_the_server_it_is_loaded_anew_and_says_so(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        listen = f"tcp:{free_port()}:interface=127.0.0.1"

        async def start() -> tuple[Twistd, str]:
            server = Twistd(
                *("-n", "--pidfile=", "notify", "--dev"),
                cwd=folder,
                NOTIFY_LISTEN__PUBLIC=listen,
                NOTIFY_LISTEN__INTERNAL="tcp:0:interface=127.0.0.1",
            )
            self.addCleanup(server.kill)
            return server, (await server.says(r"demo page\s+(http://127\.0\.0\.1:\d+/)"))[1]

        first, url = await start()

        def again() -> None:
            blockingCallFromThread(reactor, first.kill)
            blockingCallFromThread(reactor, lambda: Deferred.fromCoroutine(start()))

        def browse() -> None:
            with Browser() as browser:
                page = Page(browser, url)
                page.open()
                page.say(1, "before")
                page.wait(2, "it", lambda: page.messages(2) == ["before"])
                again()
                page.wait(2, "the loss", lambda: "is of another history" in page.notes(2))
                self.assertEqual((page.messages(2), page.field(2, "lost")), ([], "1"))
                page.wait(1, "connected", lambda: page.field(1, "state") == "connected")
                page.wait(1, "the loss", lambda: "is of another history" in page.notes(1))
                page.say(1, "after")
                page.wait(2, "it", lambda: page.messages(2) == ["after"])

        await deferToThread(browse)

    async def test_it_says_who_types_until_they_send_or_stop(self) -> None:
        def visit(page: Page) -> None:
            page.open()
            for how in ("sent", "stopped"):
                page.browser.type("[data-user='2'] .composer input", how)
                page.wait(1, "typing", lambda: page.field(1, "typing") == "Grace is typing…")
                self.assertEqual(page.field(2, "typing"), "")
                if how == "sent":
                    page.say(2, "")
                    page.wait(1, "the message", lambda: page.messages(1) == ["sent"])
                page.wait(1, "no more", lambda: page.field(1, "typing") == "")
            self.assertEqual(page.messages(1), ["sent"])

        await self._visit(visit)

    async def test_messages_are_edited_and_deleted_by_those_who_wrote_them(self) -> None:
        def visit(page: Page) -> None:
            page.open()
            page.say(1, "one", "two", "three")
            page.wait(1, "all", lambda: page.messages(1) == ["one", "two", "three"])
            page.pick(1, 1)
            page.browser.type("[data-user='1'] .composer input", ", edited\n")
            page.pick(1, 2)
            page.press(1, "remove")
            changed = ["one, edited", "deleted", "three"]
            # With the keyboard: pick the newest message that is not deleted, and leave it again.
            page.browser.type("[data-user='1'] .composer input", "\ue013 four\ue00c")
            page.browser.type("[data-user='1'] .composer input", "\ue013, too\n")
            changed[2] = "three, too"
            # A deleted message cannot be picked.
            page.wait(1, "changed", lambda: page.messages(1) == changed)
            page.pick(1, 2)
            page.say(1, "four")
            changed.append("four")
            for user in (1, 2):
                page.wait(user, "changed", lambda user=user: page.messages(user) == changed)
            # Nobody can change other users' messages or deleted ones, not even by a direct request.
            page.post("change", sender_id=2, refers_to=page.ids(2)[2], content="not by its author")
            page.post("change", sender_id=1, refers_to=page.ids(2)[1], content="and none comes back")
            page.say(2, "five")
            changed.append("five")
            for _ in range(2):
                for user in (1, 2):
                    page.wait(user, "the same", lambda user=user: page.messages(user) == changed)
                page.open()  # the messages now come from the history

        await self._visit(visit)

    async def test_what_is_said_is_shown_as_text_whatever_it_is(self) -> None:
        def visit(page: Page) -> None:
            page.open()
            markup = "<img src=x onerror='window.ran = 1'><script>window.ran = 1</script>"
            page.say(1, markup)
            page.post("publish", sender_id="own--x", content=markup)
            page.wait(2, "both", lambda: page.messages(2) == [markup, markup])
            page.pick(1, 1)
            page.browser.type("[data-user='1'] .composer input", " again\n")
            page.wait(2, "edited", lambda: page.messages(2) == [f"{markup} again", markup])
            page.browser.run(TYPIST, f"<b>{markup}</b>")
            page.wait(2, "a stranger", lambda: page.field(2, "typing") == "user 3 is typing…")
            page.wait(2, "a stranger", lambda: page.field(2, "presence") == "AdaGraceuser 3")
            page.open()
            page.wait(2, "from the history", lambda: page.messages(2) == [f"{markup} again", markup])
            made = "return [window.ran ?? 0, document.querySelectorAll('main :is(img, script, b b)').length]"
            self.assertEqual(page.browser.run(made), [0, 0])

        await self._visit(visit)

    async def test_a_chat_s_id_may_be_text_and_what_is_none_is_said(self) -> None:
        def visit(page: Page) -> None:
            page.open("?chat=550e8400-e29b-41d4-a716-446655440000")
            page.say(1, "one")
            page.wait(2, "the message", lambda: page.messages(2) == ["one"])
            page.browser.type("[data-user='1'] .composer input", "two")
            page.wait(2, "typing", lambda: page.field(2, "typing") == "Ada is typing…")
            for wrong in ("1.5", "a b", "9007199254740992", "<b>", "-0"):
                page.browser.go(f"{page.url}?chat={quote(wrong)}")
                words = f"No chat has the id “{wrong}”"
                page.browser.until(words, lambda words=words: words in page.browser.text("#banner"))
            page.open("?chat=")

        await self._visit(visit)

    async def test_it_works_on_a_phone_and_in_the_dark(self) -> None:
        def visit(page: Page) -> None:
            page.browser.phone()
            page.open()
            page.browser.click("#talk")
            page.wait(2, "some talk", lambda: len(page.messages(2)) >= 6)
            page.press(1, "cut")
            page.wait(1, "a resume", lambda: page.field(1, "resumes") == "1")
            wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            self.assertEqual(page.browser.run(wide), 0)
            small = """return [...document.querySelectorAll('button, input')]
                .filter((one) => one.offsetParent !== null && one.getBoundingClientRect().height < 40).map((one) => one.textContent)"""
            self.assertEqual(page.browser.run(small), [])
            page.browser.screenshot(PICTURES / "demo-phone.png", whole=True)
            page.browser.scheme("dark")
            page.browser.screenshot(PICTURES / "demo-phone-dark.png", whole=True)

        await self._visit(visit)
