"""The admin page: how it is served, and what it does in a real Chromium."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from notify.core.steering import (
    BrokerItem,
    ConnectionItem,
    ConnectionsFound,
    Count,
    NodeItem,
    TopicItem,
    TopicsFound,
)
from notify.core.witness import Collected, Seen
from notify.http import public_site
from notify.http.admin import FILES, HEADERS
from notify.http.files import WEB
from notify.interfaces import Gathered, IControl
from tests.support.browser import Browser
from tests.support.http import KEY, Node
from tests.support.programs import ROOT

PICTURES = ROOT / "artifacts"

#: visible as markup, or run, if the page inserted it as HTML
HOSTILE = "<img src=x onerror='window.pwned=1'><b>bold</b>"
BIG = 2**53 + 1


class Served(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node()

    def test_the_page_and_its_files_need_no_key_and_say_nothing(self) -> None:
        kinds = {
            "": "text/html",
            "/admin.css": "text/css",
            "/admin.js": "text/javascript",
            "/int64.js": "text/javascript",
        }
        self.assertEqual({path.decode() for path in FILES}, set(kinds))
        for path, kind in kinds.items():
            response = self.node.call("GET", f"/admin{path}", auth=False)
            self.assertEqual((response.status, response["Content-Type"]), (200, f"{kind}; charset=utf-8"))
            for name, value in HEADERS.items():
                self.assertEqual(response[name.decode()], value.decode())

    def test_not_by_a_strangers_name_and_in_no_frame(self) -> None:
        for path in FILES:
            response = self.node.call(
                "GET", f"/admin{path.decode()}", headers={"Host": "evil.example"}, auth=False
            )
            self.assertEqual((response.status, response.code), (403, "forbidden"))
        policy = self.node.call("GET", "/admin")["Content-Security-Policy"] or ""
        rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
        self.assertEqual((rules["default-src"], rules["frame-ancestors"]), ("'none'", "'none'"))
        for what in ("script-src", "style-src", "connect-src"):
            self.assertEqual(rules[what], "'self'")

    def test_it_is_not_on_the_public_listener(self) -> None:
        node = self.node
        site = public_site(
            reactor=node.clock, health=node.health, metrics=node.metrics, timeout=lambda: 60.0, demo=WEB
        )
        self.assertIn(b"/index.html", site.routes)
        self.assertEqual([path for path in site.routes if b"admin" in path], [])

    def test_nothing_in_it_makes_markup_or_keeps_anything(self) -> None:
        script = (WEB / "admin/admin.js").read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "setAttribute(\"on",
                     "localStorage", "sessionStorage", "indexedDB", "cookie", "location", "history."):  # fmt: skip
            self.assertNotIn(word, script)
        page = (WEB / "admin/index.html").read_text()
        self.assertEqual(re.findall(r"\son\w+=|style=|<style|javascript:", page), [])
        self.assertEqual(len(re.findall("<script", page)), 1)
        self.assertNotIn("http", page.replace("http-equiv", ""))


@implementer(IControl)
class Nodes:
    """A control with two nodes; one does not answer. All that strangers can choose is hostile, which ids cannot be."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.traced = 0

    def start(self, do: Any) -> Deferred[None]:
        return succeed(None)

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def ask(self, command: str, argument: bytes, node: str = "") -> Deferred[Gathered]:
        asked = msgspec.json.decode(argument)
        if command in ("disconnect", "unsubscribe"):
            self.told.append((command, asked))
        if command == "trace":
            self.told.append(("end" if asked["end"] else "trace", asked))
        answer = getattr(self, command)(asked)
        return succeed(Gathered([(HOSTILE, msgspec.json.encode(answer))], [f"lost{HOSTILE}"], ""))

    def nodes(self, _: Any) -> NodeItem:
        return NodeItem(
            HOSTILE, HOSTILE, 7201.0, 12, 5, 1.5, 200.0, "serving", BrokerItem(False, HOSTILE), None, HOSTILE
        )

    def topics(self, _: Any) -> TopicsFound:
        return TopicsFound(2, [TopicItem(BIG, 3, 12.5), TopicItem("chat-x", 1, 0.0)])

    def connections(self, asked: Any) -> ConnectionsFound:
        one = ConnectionItem(HOSTILE, 1, 7, HOSTILE, HOSTILE, 1.0, None, 3, HOSTILE, [BIG, "chat-x"], 77)
        return ConnectionsFound(1, [one])

    def disconnect(self, _: Any) -> Count:
        return Count(1)

    def unsubscribe(self, _: Any) -> Count:
        return Count(2)

    def trace(self, asked: Any) -> Collected:
        if asked["after"]:
            return Collected("life", 3)
        text = {"node": HOSTILE, "peer": HOSTILE}
        return Collected(
            "life",
            3,
            [
                Seen(1.0, "watching", HOSTILE, 1, 7, connections=1),
                Seen(2.0, "turned_away", **text, origin=HOSTILE, outcome="403", reason=HOSTILE),
                Seen(3.0, "auth", **text, workspace_id=1, user_id="u", claimed=True, outcome="refused", reason=HOSTILE),
                Seen(4.0, "auth", **text, workspace_id=2, user_id=7, outcome="ok"),
                Seen(5.0, "close", **text, workspace_id=1, user_id=7, code=4001, reason="slow client"),
            ],
        )  # fmt: skip


class Page:
    """The page as an operator sees and uses it."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        browser.go(url)

    def until(self, what: str, condition: Callable[[], Any]) -> None:
        self.browser.until(what, condition)

    def enter(self, key: str = KEY) -> None:
        self.browser.type("#enter input", key + "\n")

    def cells(self, table: str) -> list[list[str]]:
        script = """return [...document.getElementById(arguments[0]).rows].map((row) =>
            [...row.cells].map((cell) => cell.textContent))"""
        found: list[list[str]] = self.browser.run(script, table)
        return found

    def shown(self, table: str, rows: int) -> list[list[str]]:
        self.until(f"{rows} rows of {table}", lambda: len(self.cells(table)) > rows)
        return self.cells(table)[1:]

    def fill(self, form: str, **values: str) -> None:
        for name, value in values.items():
            self.browser.run(
                "document.getElementById(arguments[0]).elements[arguments[1]].value = arguments[2]",
                form,
                name,
                value,
            )
        self.browser.click(f"#{form} button")

    def answer(self, value: str) -> None:
        self.until("a question", lambda: self.browser.run("return document.getElementById('sure').open"))
        self.browser.click(f"#sure button[value='{value}']")

    def hidden(self, css: str) -> bool:
        return bool(self.browser.run("return document.querySelector(arguments[0]).hidden", css))


class Browsed(TestCase):
    timeout = 180

    def browse(
        self, visit: Callable[[Page], None], expected: tuple[str, ...] = (), **size: int
    ) -> Deferred[None]:
        from twisted.internet import reactor

        self.control = Nodes()
        node = Node(reactor=reactor, control=self.control)
        port: Any = reactor.listenTCP(0, node.site, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        url = f"http://127.0.0.1:{port.getHost().port}/admin"

        def run() -> None:
            with Browser(**size) as browser:
                visit(Page(browser, url))
                wrong = [one for one in browser.console() if one["level"] in ("SEVERE", "WARNING")]
                unexpected = [one for one in wrong if not any(text in one["message"] for text in expected)]
                self.assertEqual(unexpected, [])
                self.assertIsNone(browser.run("return window.pwned ?? null"))
                self.assertEqual(browser.run("return document.querySelectorAll('img, b, iframe').length"), 0)
                self.assertEqual(
                    browser.run("return location.pathname + location.search + location.hash"), "/admin"
                )
                kept = "return [localStorage.length, sessionStorage.length, document.cookie].join()"
                self.assertEqual(browser.run(kept), "0,0,")
                self.assertNotIn(KEY, browser.run("return document.documentElement.outerHTML"))
                self.assertEqual(browser.run("return document.querySelector('#enter input').value"), "")

        return deferToThread(run)

    def see_all(self, page: Page) -> None:
        page.enter()
        [node] = page.shown("nodes", 1)
        self.assertEqual((node[0], node[2], node[8]), (HOSTILE, "2 h", f"NOT READY: {HOSTILE}"))
        page.fill("topics-form", workspace="1")
        first, second = page.shown("topics", 2)
        self.assertEqual((first[0], first[3], second[0]), (str(BIG), f"{HOSTILE}: 3", "chat-x"))
        page.fill("connections-form", workspace="1", user="7")
        [one] = page.shown("connections", 1)
        self.assertEqual((one[1], one[3]), (HOSTILE, HOSTILE))
        self.assertIn(" and 1 more", one[-1])
        page.fill("trace-form", workspace="1", id="7")
        page.shown("trace", 6)

    def test_what_strangers_chose_is_text(self) -> Deferred[None]:
        def visit(page: Page) -> None:
            self.see_all(page)
            rows = page.cells("trace")[1:]
            self.assertRegex(rows[0][0], r"^[0-9]{2}:[0-9]{2}:[0-9]{2}\.000$")
            told = [row[2] for row in rows]
            self.assertIn(f"somebody, from {HOSTILE}, origin {HOSTILE}, 403, {HOSTILE}", told)
            self.assertIn(
                f"says it is user u of workspace 1: NOT VERIFIED, from {HOSTILE}, refused, {HOSTILE}",
                told,
            )
            self.assertIn(f"user 7 of ANOTHER workspace, 2, from {HOSTILE}, ok", told)
            for part in ("nodes", "topics", "connections"):
                self.assertEqual(
                    page.browser.text(f"#{part}-said"), f"1 node answered; NO ANSWER from lost{HOSTILE}."
                )
            self.assertIn(f"lost{HOSTILE}", [row[3] for row in rows if row[1] == "missing"])
            page.browser.click("#stop")
            page.until("its end", lambda: page.browser.text("#trace-said") == "It was stopped.")
            page.until("the nodes know", lambda: self.control.told[-1][0] == "end")
            page.browser.scheme("light")
            page.browser.screenshot(PICTURES / "admin.png", whole=True)
            page.browser.scheme("dark")
            page.browser.screenshot(PICTURES / "admin-dark.png", whole=True)

        return self.browse(visit, width=1280, height=1400)

    def test_it_asks_before_it_does(self) -> Deferred[None]:
        def visit(page: Page) -> None:
            page.enter()
            page.shown("nodes", 1)
            page.fill("connections-form", workspace="1", user="7")
            page.shown("connections", 1)
            told = self.control.told
            page.browser.click("#disconnect")
            page.answer("no")
            page.browser.click("#connections td button")
            page.answer("no")
            self.assertEqual(told, [])
            page.browser.click("#connections td button")
            self.assertIn(f"of chat {BIG}?", page.browser.text("#question"))
            page.answer("yes")
            page.until("it is done", lambda: page.browser.text("#connections-said").startswith("2 ended"))
            self.assertEqual(told, [("unsubscribe", {"workspace_id": 1, "user_id": 7, "chat_id": BIG})])
            page.browser.click("#disconnect")
            page.browser.click("#again")
            page.browser.screenshot(PICTURES / "admin-sure.png")
            page.answer("yes")
            page.until("it is done", lambda: page.browser.text("#connections-said").startswith("1 closed"))
            self.assertEqual(told[1], ("disconnect", {"workspace_id": 1, "user_id": 7, "reconnect": True}))

        return self.browse(visit)

    def test_a_wrong_key_shows_nothing_and_a_forgotten_one_neither(self) -> Deferred[None]:
        def visit(page: Page) -> None:
            page.enter("x" * 20)
            page.until("trouble", lambda: not page.hidden("#trouble"))
            self.assertEqual(page.browser.text("#trouble"), "this server does not know this API key")
            self.assertTrue(page.hidden("#main"))
            page.enter()
            page.shown("nodes", 1)
            self.assertTrue(page.hidden("#trouble"))
            page.browser.click("#forget")
            self.assertTrue(page.hidden("#main"))
            self.assertEqual(page.cells("nodes"), [])

        return self.browse(visit, expected=("401 (Unauthorized)",))

    def test_on_a_phone(self) -> Deferred[None]:
        def visit(page: Page) -> None:
            page.browser.phone()
            self.see_all(page)
            wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            self.assertEqual(page.browser.run(wide), 0)
            small = """return [...document.querySelectorAll('button, input, select')].filter((one) =>
                one.checkVisibility() && one.getBoundingClientRect().height < 32).map((one) => one.outerHTML)"""
            self.assertEqual(page.browser.run(small), [])
            unnamed = """return [...document.querySelectorAll('input, select')].filter((one) => !one.labels.length).length
                + [...document.querySelectorAll('th')].filter((one) => one.scope !== 'col').length"""
            self.assertEqual(page.browser.run(unnamed), 0)
            page.browser.scheme("light")
            page.browser.screenshot(PICTURES / "admin-phone.png", whole=True)
            page.browser.scheme("dark")
            page.browser.screenshot(PICTURES / "admin-phone-dark.png", whole=True)

        return self.browse(visit)
