"""docs/cookbook/typing.md: typing is throttled and ends by itself or by sending; a pointer's newest place is sent."""

from __future__ import annotations

import json
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from websockets.sync.client import connect

from notify.client import Publisher
from tests.support.browser import Browser
from tests.support.process import KEY, Client, Server, token
from tests.support.recipes import Site

BODY = "<p></p><form hidden><input><button>Send</button></form>"


class Typing(SynchronousTestCase):
    def setUp(self) -> None:
        self.site = Site(self)

    def visit(self, visit: Any) -> None:
        with (
            Browser() as browser,
            Server(f'[listen]\nallowed_origins = ["{self.site.origin}"]\n') as server,
            Publisher(f"http://127.0.0.1:{server.internal}", KEY) as publisher,
            connect(f"ws://127.0.0.1:{server.public}/ws", close_timeout=1) as socket,
        ):
            # User 2, who hears what the page of user 1 says.
            other = Client(socket)
            other.send(type="auth", token=token(2), features=["signals"])
            self.assertEqual(other.receive()["features"], ["signals"])
            other.send(type="subscribe", chat_id=7, id=1)
            self.assertEqual(other.receive()["type"], "subscribed")
            browser.go(self.site.page("/page", "typing_page.js", server, BODY))
            browser.until("live", lambda: browser.run("return !document.querySelector('form').hidden"))
            visit(browser, publisher, other)

    def test_it_is_said_at_once_then_seldom_and_ends_at_sending(self) -> None:
        def visit(browser: Browser, publisher: Publisher, other: Client) -> None:
            self.site.answers["/api/chats/7/messages"] = lambda asked: self.say(publisher, asked)
            began = time.monotonic()
            for _ in range(12):
                browser.type("input", "word ")
            browser.type("input", "\n")
            took = time.monotonic() - began
            heard = []
            while (frame := other.receive())["type"] == "signal":
                heard.append((frame["kind"], frame["user_id"], frame["data"]))
            self.assertEqual(frame["content"], "word " * 12)
            self.assertEqual(heard[-1], ("typing", 1, False))
            self.assertEqual(set(heard[:-1]), {("typing", 1, True)})
            # 60 key strokes: one signal at once, and one more for each 3 seconds that they took.
            self.assertLessEqual(len(heard) - 1, 1 + took / 3)

        self.visit(visit)

    def say(self, publisher: Publisher, asked: Any) -> tuple[int, str, bytes]:
        publisher.chat(1, 7, 1, json.loads(asked.body)["text"])
        return 204, "text/plain", b""

    def test_what_others_say_ends_with_their_message_or_by_itself(self) -> None:
        def visit(browser: Browser, publisher: Publisher, other: Client) -> None:
            def shows(text: str) -> None:
                browser.until(f"{text!r}", lambda: browser.text("p") == text)

            other.send(type="signal", chat_id=7, kind="typing", data=True)
            shows("2")
            publisher.signal(1, 7, 3, "typing", True)
            shows("2, 3")
            publisher.chat(1, 7, 3, "here it is")
            shows("2")
            publisher.signal(1, 7, 3, "pointer", [0, 0])
            other.send(type="signal", chat_id=7, kind="typing", data=False)
            shows("")
            other.send(type="signal", chat_id=7, kind="typing", data=True)
            shows("2")
            began = time.monotonic()
            shows("")  # as if its client were gone
            self.assertGreater(time.monotonic() - began, 3)
            for user in (2, 3, 4, 5):
                publisher.signal(1, 7, user, "typing", True)
            shows("several people")

        self.visit(visit)

    def test_a_chat_s_id_may_come_out_of_the_page_as_text(self) -> None:
        def visit(browser: Browser, publisher: Publisher, other: Client) -> None:
            hear = """const [chat, done] = arguments, client = { on: (_, listener) => (client.tell = listener) };
                import("/docs/examples/cookbook/typing.js").then(({ hearTyping }) => {
                  const heard = [];
                  hearTyping(client, chat, (users) => heard.push(users.join()));
                  for (const chat_id of [8, 2n ** 60n, 7]) client.tell({ chat_id, user_id: chat_id, kind: "typing", data: true });
                  done(heard);
                });"""
            self.assertEqual(browser.wait(hear, "7"), ["7"])
            self.assertEqual(browser.wait(hear, 7), ["7"])
            self.assertEqual(browser.wait(hear, str(2**60)), [str(2**60)])

        self.visit(visit)

    def test_a_pointer_is_said_at_a_rate_and_its_last_place_is_said(self) -> None:
        def visit(browser: Browser, publisher: Publisher, other: Client) -> None:
            move = """const [done] = arguments; let x = 0; const began = performance.now();
                const timer = setInterval(() => {
                  x += 1;
                  document.body.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: 10, bubbles: true }));
                  if (x === 100) { clearInterval(timer); done((performance.now() - began) / 1000); }
                }, 10);"""
            took = browser.wait(move)
            last = browser.run(
                "const { left, width } = document.body.getBoundingClientRect();"
                "return Number(((100 - left) / width).toFixed(3))"
            )
            heard = []
            while not heard or heard[-1][0] != last:
                frame = other.receive()
                self.assertEqual((frame["type"], frame["kind"]), ("signal", "pointer"))
                heard.append(frame["data"])
            self.assertEqual(sorted(heard), heard)
            self.assertLessEqual(len(heard), 2 + took * 5)

        self.visit(visit)

    def test_one_who_says_more_than_the_server_allows_is_not_heard_and_not_cut_off(self) -> None:
        def visit(browser: Browser, publisher: Publisher, other: Client) -> None:
            for number in range(60):
                other.send(type="signal", chat_id=7, kind="typing", data=number % 2 == 0, id=number)
            answers = [other.receive() for _ in range(60)]
            codes = [one.get("code", one["type"]) for one in answers]
            self.assertEqual(set(codes), {"ok", "rate_limited"})
            self.assertGreaterEqual(codes.count("ok"), 30)
            other.send(type="ping")
            self.assertEqual(other.receive()["type"], "pong")

        self.visit(visit)
