"""The page of examples/chat in real Chromiums: two users, and everything that can go wrong between them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.browser import Browser
from tests.support.chat import Chat, Page, Person
from tests.support.process import wait_for
from tests.support.programs import ROOT

PICTURES = ROOT / "artifacts"
LAUNCH, LUNCH, PAPERS = 1, 2, 3

HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'

#: holds back the answers to requests whose path contains `part`, in `held`
HOLD = """const [part] = arguments, real = window.fetch;
    window.held = [];
    window.fetch = (path, options) => {
      const answer = real(path, options);
      if (!path.includes(part)) return answer;
      return answer.then((one) => new Promise((resolve) => window.held.push(() => resolve(one))));
    };"""


class ExamplePage(TestCase):
    timeout = 240
    #: messages that the console may show in a test that causes failures
    noise: tuple[str, ...] = ()

    def visit(self, visit: Callable[[Chat, list[Browser]], None], browsers: int = 2) -> Deferred[None]:
        def run() -> None:
            with ExitStack() as stack:
                chat = stack.enter_context(Chat())
                windows = [stack.enter_context(Browser()) for _ in range(browsers)]
                visit(chat, windows)
                for window in windows:
                    for told in window.console():
                        self.assertTrue(any(text in told["message"] for text in self.noise), told)
                    self.assertIsNone(window.run("return window.hit ?? null"))

        return deferToThread(run)

    def both(self, chat: Chat, windows: list[Browser], title: str = "Launch") -> tuple[Page, Page]:
        """Ada and Grace in a chat. This machine's two names are two sites, as if they were two machines."""
        ada = Page(windows[0], chat.url).sign_in("Ada").open(title)
        grace = Page(windows[1], f"http://localhost:{chat.page}").sign_in("Grace").open(title)
        return ada, grace


class Conversation(ExamplePage):
    #: refused requests appear in the console, and so does marking a chat as read after having been removed from it
    noise = (
        "422 (Unprocessable",
        "/read - Failed to load resource: the server responded with a status of 404",
    )

    def test_messages_typing_edits_deletions_and_presence(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            ada, grace = self.both(chat, windows)
            ada.wait("both are here", lambda: ada.browser.text("#present") == "3 members, 2 here")
            ada.say("one", "two")
            grace.shows("one", "two")
            grace.browser.type("#text", "thr")
            ada.wait("typing", lambda: ada.browser.text("#typing") == "Grace is typing…")
            self.assertEqual(grace.browser.text("#typing"), "")
            grace.browser.type("#text", "ee\n")
            ada.shows("one", "two", "three")
            ada.wait("it is said", lambda: ada.browser.text("#typing") == "")
            grace.browser.type("#text", "and")
            ada.wait("typing again", lambda: ada.browser.text("#typing") == "Grace is typing…")
            ada.wait("it grows old", lambda: ada.browser.text("#typing") == "")
            ada.act("one", "edit")
            ada.wait(
                "its text", lambda: ada.browser.run("return document.querySelector('#text').value") == "one"
            )
            ada.say(" and a half")
            grace.shows("one and a half", "two", "three")
            self.assertEqual(grace.browser.text("#messages .edited"), " · edited")
            ada.act("two", "delete")
            for page in (ada, grace):
                page.shows("one and a half", "This message was deleted.", "three")
            # A reloaded page shows the same.
            grace.browser.go(grace.url)
            grace.connected().open("Launch").shows("one and a half", "This message was deleted.", "three")
            windows[0].go("about:blank")
            grace.wait("she is alone", lambda: grace.browser.text("#present") == "3 members, 1 here")

        return self.visit(visit)

    def test_unread_messages_are_counted_until_they_are_read_in_any_window(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            ada, grace = self.both(chat, windows, "Lunch")
            there = Person(chat.url, "Radia")
            for text in ("one", "two", "three"):
                there.say(LAUNCH, text)
            for page in (ada, grace):
                page.wait("three", lambda page=page: page.badge("Launch") == "3")  # type: ignore[misc]
                self.assertEqual(page.browser.run("return document.title"), "(3) Chat")
            other = Page(windows[1], grace.url)
            first, second = windows[1].here(), windows[1].tab()
            windows[1].go(grace.url)
            other.connected().wait("as many", lambda: other.badge("Launch") == "3")
            other.open("Launch").shows("one", "two", "three")
            other.wait("none", lambda: other.badge("Launch") == "")
            windows[1].switch(first)
            grace.wait("none here either", lambda: grace.badge("Launch") == "")
            self.assertEqual(ada.badge("Launch"), "3", "hers are hers")
            # Both windows of a user receive new messages.
            ada.say("lunch?")
            grace.shows("lunch?")
            windows[1].switch(second)
            other.shows("one", "two", "three")
            other.open("Lunch").shows("lunch?")
            ada.open("Launch").wait("none", lambda: ada.badge("Launch") == "")
            self.assertEqual(ada.browser.run("return document.title"), "Chat")

        return self.visit(visit)

    def test_who_is_removed_hears_no_more_until_added_again(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            ada, grace = self.both(chat, windows)
            ada.browser.click("summary")
            ada.browser.click("[aria-label='Remove Grace']")
            grace.wait("told", lambda: "any more" in grace.browser.text("#nothing"))
            grace.wait("one chat less", lambda: len(grace.chats()) == 1)
            ada.wait("two members", lambda: ada.browser.text("#present") == "2 members, 1 here")
            ada.say("without her")
            ada.shows("without her")
            ada.browser.type("#add input", "nobody\n")
            ada.wait("no such name", lambda: ada.browser.text("#notice") == "nobody is called nobody")
            ada.browser.run("document.querySelector('#add input').value = ''")
            ada.browser.type("#add input", "grace\n")
            grace.wait("back on the list", lambda: len(grace.chats()) == 2)
            grace.open("Launch").shows("without her")
            self.assertEqual(grace.badge("Launch"), "")
            ada.say("with her")
            grace.shows("without her", "with her")
            grace.browser.click("summary")
            grace.browser.click("#leave")
            grace.wait("gone", lambda: len(grace.chats()) == 1)
            ada.wait("two members", lambda: ada.browser.text("#present") == "2 members, 1 here")

        return self.visit(visit)

    def test_one_window_signs_out_and_the_other_one_is(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            [window] = windows
            page = Page(window, chat.url).sign_in("Ada").open("Launch")
            first = window.here()
            window.tab()
            window.go(chat.url)
            page.connected()
            window.click("#sign-out")
            page.wait("the form", lambda: page.seen("#sign-in"))
            window.switch(first)
            page.wait("the form here, too", lambda: page.seen("#sign-in"))
            self.assertFalse(page.seen("#app"))
            # Another user sees nothing of the previous one.
            page.sign_in("Grace")
            self.assertEqual([text.partition(" ")[0][:5] for text, _ in page.chats()], ["Launc", "Lunch"])

        return self.visit(visit, browsers=1)

    def test_text_is_text_and_never_html(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            [window] = windows
            mallory, ada = HOSTILE[:40], Person(chat.url, "Ada")
            stranger = Person(chat.url, mallory)
            self.assertEqual(ada.ask("POST", f"chats/{LAUNCH}/members", {"name": mallory})[0], 204)
            chat.rows("UPDATE chats SET title = ? WHERE id = ?", HOSTILE, LUNCH)
            page = Page(window, chat.url).sign_in("Ada").open("Launch")
            stranger.say(LAUNCH, HOSTILE)
            page.shows(HOSTILE)
            page.browser.click("summary")
            self.assertIn(mallory, window.text("#members"))
            self.assertIn(mallory, window.text("#messages .sender"))
            self.assertIn(HOSTILE, "".join(text for text, _ in page.chats()))
            page.open(HOSTILE)
            self.assertEqual(window.run("return document.querySelectorAll('main img, aside img').length"), 0)
            # The content security policy: the page itself could not insert HTML, either.
            blocked = """try { document.body.innerHTML = arguments[0]; return "taken" } catch (error) { return error.name }"""
            self.assertEqual(window.run(blocked, HOSTILE), "TypeError")
            self.assertIn("TrustedHTML", str(window.console()))

        return self.visit(visit, browsers=1)

    def test_hundreds_of_messages_are_loaded_as_one_scrolls_up(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            [window] = windows
            radia, texts = Person(chat.url, "Radia"), [f"message {number}" for number in range(500)]
            for text in texts[:250]:
                radia.say(LAUNCH, text)
            page = Page(window, chat.url).sign_in("Ada").open("Launch").shows(*texts[200:250])
            for text in texts[250:]:
                radia.say(LAUNCH, text)
            page.shows(*texts[200:])
            at_end = """const log = document.querySelector('#log'); return log.scrollHeight - log.scrollTop - log.clientHeight"""
            self.assertLess(window.run(at_end), 2)
            place = "return document.querySelector(`[data-id='${arguments[0]}']`).getBoundingClientRect().top"
            while len(page.messages()) < 500:
                before, first = len(page.messages()), 500 - len(page.messages()) + 1
                window.run(
                    "const log = document.querySelector('#log'); log.scrollTop = 1; log.dataset.at = 1"
                )
                top = window.run(place, first)
                page.wait("more", lambda before=before: len(page.messages()) > before)  # type: ignore[misc]
                self.assertLess(abs(window.run(place, first) - top), 60, "what is read stays where it is")
            self.assertEqual(page.messages(), texts)
            self.assertFalse(page.seen("#earlier"))

        return self.visit(visit, browsers=1)

    def test_what_is_edited_and_deleted_while_earlier_messages_are_fetched_is_shown_so(
        self,
    ) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            [window] = windows
            radia = Person(chat.url, "Radia")
            ids = [radia.say(LAUNCH, f"message {number}") for number in range(120)]
            page = Page(window, chat.url).sign_in("Ada")
            window.run(HOLD, "before=")
            page.open("Launch")
            window.run("document.querySelector('#log').scrollTop = 0")
            page.wait("the question", lambda: window.run("return window.held.length") == 1)
            # The backend has already answered, so these changes are not in its answer. Message 0 is on neither
            # page.
            for number in (0, 40, 50):
                radia.ask("PUT", f"chats/{LAUNCH}/messages/{ids[number]}", {"text": f"edited {number}"})
            radia.ask("DELETE", f"chats/{LAUNCH}/messages/{ids[30]}")
            radia.say(LAUNCH, "behind all that")
            page.shows("behind all that", last=True)
            self.assertEqual(len(page.messages()), 51)
            window.run("window.held.splice(0).forEach((go) => go())")
            page.wait("more", lambda: len(page.messages()) == 101)
            shown = page.messages()
            wanted = ["This message was deleted.", "edited 40", "edited 50"]
            self.assertEqual([shown[number - 20] for number in (30, 40, 50)], wanted)
            window.run("document.querySelector('#log').scrollTop = 0")
            page.wait("the question", lambda: window.run("return window.held.length") == 1)
            window.run("window.held.splice(0).forEach((go) => go())")
            page.wait("all", lambda: len(page.messages()) == 121)
            self.assertEqual(page.messages()[:2], ["edited 0", "message 1"])

        return self.visit(visit, browsers=1)

    def test_one_goes_away_and_comes_back_to_the_page(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            [window] = windows
            radia = Person(chat.url, "Radia")
            radia.say(LAUNCH, "before")
            page = Page(window, chat.url).sign_in("Ada").open("Launch").shows("before")
            for number in (1, 2):
                window.go("about:blank")
                radia.say(LAUNCH, f"meanwhile {number}")
                window.back()
                page.connected().shows(f"meanwhile {number}", last=True)
            radia.say(LAUNCH, "after")
            page.shows("before", "meanwhile 1", "meanwhile 2", "after")

        return self.visit(visit, browsers=1)


class Trouble(ExamplePage):
    noise = ("Failed to load resource", "WebSocket connection to", "net::ERR")

    def test_the_worker_dies(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            ada, grace = self.both(chat, windows)
            ada.say("before")
            grace.shows("before")
            os.kill(chat.pid("worker"), signal.SIGSTOP)
            ada.say("meanwhile", "and more")
            ada.shows("before", "meanwhile", "and more")
            chat.kill("worker")
            grace.shows("before", "meanwhile", "and more")
            ada.say("after")
            grace.shows("before", "meanwhile", "and more", "after")
            self.assertEqual(len(chat.history(LAUNCH)), 4)

        return self.visit(visit)

    def test_notify_dies_and_is_away(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            ada, grace = self.both(chat, windows)
            ada.say("before")
            grace.shows("before")
            for number, how in enumerate((signal.SIGKILL, signal.SIGTERM)):
                chat.kill("notify", how)
                ada.say(f"while it is away {number}")
                ada.shows(f"while it is away {number}", last=True)
                grace.shows(f"while it is away {number}", last=True)
                grace.say(f"and back {number}")
                ada.shows(f"and back {number}", last=True)
            everything = (
                "before",
                *(f"{what} {n}" for n in (0, 1) for what in ("while it is away", "and back")),
            )
            for page in (ada, grace):
                page.connected().shows(*everything)
            # A page opened while notify is away shows the stored messages, and later the new ones.
            os.kill(chat.pid("notify"), signal.SIGSTOP)
            windows[1].go(grace.url)
            script = "return [...document.querySelectorAll('[data-chat]')].map((one) => one.dataset.chat)"
            grace.wait("the list", lambda: windows[1].run(script) == ["1", "2"])
            windows[1].run("document.querySelector('[data-chat]').click()")
            grace.shows(*everything)
            ada.say("into the dark")
            os.kill(chat.pid("notify"), signal.SIGCONT)
            for page in (ada, grace):
                page.connected().shows(*everything, "into the dark")

        return self.visit(visit)

    def test_the_backend_dies_and_is_away(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            ada, grace = self.both(chat, windows)
            ada.say("before")
            grace.shows("before")
            chat.kill("backend")
            ada.say("one", "two")
            for page in (ada, grace):
                page.shows("before", "one", "two")
            ada.wait("all is sent", lambda: not ada.seen(".pending"))
            # All three at once, as when a machine restarts.
            for name in ("backend", "notify", "worker"):
                os.kill(chat.pid(name), signal.SIGKILL)
            ada.say("three")
            wait_for("all are back", lambda: chat.said().count("started again") == 4)
            for page in (ada, grace):
                page.connected().shows("before", "one", "two", "three")
            grace.say("four")
            ada.shows("before", "one", "two", "three", "four")

        return self.visit(visit)

    def test_a_load_that_is_refused_for_now_is_tried_again(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            [window] = windows
            page = Page(window, chat.url).sign_in("Ada").open("Launch")
            page.say("before")
            page.shows("before")
            # The answer of a proxy that limits the rate of requests.
            window.run(
                """const real = window.fetch; window.refused = 0;
                window.fetch = (path, options) => path.endsWith("chats/1") && (window.refused += 1) === 1
                  ? Promise.resolve(new Response("{}", { status: 429 })) : real(path, options);"""
            )
            chat.kill("notify")
            page.wait("refused, and let in", lambda: window.run("return window.refused") >= 2)
            page.connected().say("after")
            there = Person(chat.url, "Radia")
            there.say(LAUNCH, "and on")
            page.shows("before", "after", "and on")
            # New messages come through notify, not by loading again and again. (The last load may still go on at the first of them.)
            said = ["before", "after", "and on"]
            for number in range(3):
                loads = window.run("return window.refused")
                said.append(f"and on {number}")
                there.say(LAUNCH, said[-1])
                page.shows(*said)
                if window.run("return window.refused") == loads:
                    return
            self.fail("each message made the page load everything")

        return self.visit(visit, browsers=1)

    def test_an_edit_that_does_not_reach_the_backend_is_in_the_composer_again(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            [window] = windows
            page = Page(window, chat.url).sign_in("Ada").open("Launch")
            page.say("as it was")
            page.shows("as it was").wait("it is sent", lambda: not page.seen(".pending"))
            page.act("as it was", "edit")
            os.kill(chat.pid("backend"), signal.SIGSTOP)
            page.say(", and more")
            chat.kill("backend")
            text = "return document.querySelector('#text').value"
            page.wait("the text", lambda: window.run(text) == "as it was, and more")
            self.assertEqual(window.text("#notice"), "The server does not answer: try again.")
            page.shows("as it was")
            wait_for("it is back", chat.answers)
            page.say("")
            page.shows("as it was, and more")
            self.assertEqual(window.run(text), "")

        return self.visit(visit, browsers=1)


class Looks(ExamplePage):
    def test_a_phone_and_the_dark(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            [window] = windows
            window.phone()
            grace = Person(chat.url, "Grace")
            grace.say(LAUNCH, "Is it readable on a phone, with a long word? " + "W" * 80)
            page = Page(window, chat.url).sign_in("Ada")
            self.assertFalse(page.seen("#chat"))
            page.open("Launch")
            self.assertFalse(page.seen("#chats"))
            page.say("It is.")
            page.wait("both", lambda: len(page.messages()) == 2)
            wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            small = """return [...document.querySelectorAll('button, input, textarea')].filter((one) => one.offsetParent !== null
                && one.getBoundingClientRect().height < 39.5).map((one) => one.textContent)"""
            self.assertEqual((window.run(wide), window.run(small)), (0, []))
            window.screenshot(PICTURES / "chat-phone.png")
            ground = "return getComputedStyle(document.body).backgroundColor"
            light = window.run(ground)
            window.scheme("dark")
            self.assertNotEqual(window.run(ground), light)
            window.screenshot(PICTURES / "chat-phone-dark.png")
            window.click("summary")
            self.assertEqual(window.run(wide), 0)
            window.screenshot(PICTURES / "chat-phone-members.png")
            self.assertFalse(page.seen("#offline"))
            os.kill(chat.pid("notify"), signal.SIGSTOP)
            try:
                window.run("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
                page.wait("offline, in words", lambda: page.seen("#offline"))
                self.assertRegex(window.text("#offline"), r"^(Offline, next try in \d+ s|Connecting…)$")
            finally:
                os.kill(chat.pid("notify"), signal.SIGCONT)
            page.wait("back", lambda: not page.seen("#offline"))
            window.click("#back")
            self.assertTrue(page.seen("#chats"))
            self.assertEqual((window.run(wide), window.run(small)), (0, []))
            window.screenshot(PICTURES / "chat-phone-list.png")

        return self.visit(visit, browsers=1)

    def test_by_the_keyboard_alone(self) -> Deferred[None]:
        def visit(chat: Chat, windows: list[Browser]) -> None:
            [window] = windows
            page = Page(window, chat.url).sign_in("Ada").open("Launch")
            page.say("one")
            page.shows("one").wait("it is sent", lambda: not page.seen(".pending"))
            seen = ["sign-out"]
            window.run("document.querySelector('#sign-out').focus()")
            while seen[-1] != "send":
                self.assertLess(len(seen), 20, seen)
                window.press("\ue004")  # Tab
                seen.append(
                    window.run("return document.activeElement.id || document.activeElement.textContent")
                )
            for what in ("LaunchGrace, Radia", "log", "Edit", "Delete", "text", "send"):
                self.assertIn(what, seen)
            named = """return [...document.querySelectorAll('button, input, textarea, summary')].filter((one) =>
                !(one.textContent.trim() || one.ariaLabel || one.labels?.length)).map((one) => one.outerHTML)"""
            self.assertEqual(window.run(named), [])

        return self.visit(visit, browsers=1)
