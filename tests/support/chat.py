"""The example application in examples/chat: its command as a separate process, its API, and its page in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.browser import Browser
from tests.support.ports import free_port
from tests.support.process import wait_for
from tests.support.programs import ROOT

RUN = ROOT / "examples" / "chat" / "run.py"


class Chat:
    """``make chat`` with its own ports and folder; use it in a ``with``. Blocks: use a thread."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="notify-chat-"))
        self.data, self.said_file = self.folder / "data", self.folder / "said"
        self.page, self.public, self.internal = free_port(), free_port(), free_port()
        self.url, self.api = f"http://127.0.0.1:{self.page}", f"http://127.0.0.1:{self.internal}"

    def __enter__(self) -> Chat:
        self.start()
        try:
            wait_for("it is ready", lambda: "Ctrl-C" in self.said() or self.process.poll() is not None)
            if self.process.poll() is not None:
                raise AssertionError(f"it ended:\n{self.said()}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start(self) -> None:
        """Run the command, without waiting until it is ready."""
        with self.said_file.open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, str(RUN), str(self.page), str(self.public), str(self.internal)],
                stdout=said,
                stderr=said,
                env={**os.environ, "CHAT_DATA": str(self.data)},
                start_new_session=True,
            )

    def again(self) -> tuple[int, str]:
        """Run the same command again in the same folder, and stop it once it is ready; return its status and output."""
        self.said_file.rename(self.folder / "said before")
        before = self.process
        try:
            self.start()
            wait_for("it is ready", lambda: "Ctrl-C" in self.said() or self.process.poll() is not None)
            self.process.send_signal(signal.SIGINT)
            return self.process.wait(60), self.said()
        finally:
            self.process = before
            (self.folder / "said before").rename(self.said_file)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        if kind is not None:
            sys.stderr.write(self.said())
            for log in self.data.glob("*.log"):
                sys.stderr.write(f"--- {log.name}\n{log.read_text()}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def said(self) -> str:
        """Everything that the command has printed."""
        return self.said_file.read_text()

    def pid(self, name: str) -> int:
        """The current process id of ``backend``, ``notify`` or ``worker``."""
        pids = re.findall(rf"\b{name} (?:was killed: it is started again as )?(\d+)", self.said())
        return int(pids[-1])

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill one of the three processes, and wait until another is started in its place."""
        before = self.pid(name)
        os.kill(before, number)
        wait_for(f"another {name}", lambda: self.pid(name) != before)

    def answers(self) -> bool:
        """Whether the backend answers."""
        try:
            urllib.request.urlopen(self.url, timeout=10).close()
        except OSError:
            return False
        return True

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows that a query of the database returns."""
        with closing(sqlite3.connect(self.data / "chat.sqlite", timeout=10, isolation_level=None)) as db:
            return db.execute(sql, values).fetchall()

    def history(self, chat_id: int) -> list[dict[str, Any]]:
        """The history of a chat in notify."""
        key = (self.data / "backend-key").read_text()
        url = f"{self.api}/v1/history?limit=1000&subject=workspace.1.chat.{chat_id}.messages"
        asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return [message["payload"] for message in json.load(answer)["messages"]]


class Person:
    """A user of the backend, without a browser."""

    def __init__(self, url: str, name: str = "") -> None:
        self.url, self.cookie = url, ""
        if name:
            status, _ = self.ask("POST", "session", {"name": name})
            assert status == 204

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Send a request; return the status, and the JSON or text of the answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Cookie": self.cookie, **headers}
        request = urllib.request.Request(f"{self.url}/api/{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                status, text, self.headers = answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            status, text, self.headers = error.code, error.read().decode(), error.headers
        if "Set-Cookie" in self.headers:
            self.cookie = self.headers["Set-Cookie"].partition(";")[0]
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def say(self, chat_id: int, text: str, key: str = "") -> int:
        """Post a message; return its id."""
        status, message = self.ask(
            "POST", f"chats/{chat_id}/messages", {"key": key or str(uuid.uuid4()), "text": text}
        )
        assert status == 201, message
        return int(message["message_id"])


class Page:
    """The page in a browser, as its user sees it."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url

    def sign_in(self, name: str) -> Page:
        """Open the page and sign in."""
        self.browser.go(self.url)
        self.wait("the form", lambda: self.seen("#sign-in"))
        self.browser.type("#name", name + "\n")
        return self.connected()

    def connected(self) -> Page:
        """Wait until the page is connected."""
        return self.wait("connected", lambda: self.browser.text("#state") == "Connected")

    def open(self, title: str) -> Page:
        """Open a chat."""
        [chat] = [item for item in self.chats() if item[0].startswith(title)]
        self.browser.run("document.querySelector(`[data-chat='${arguments[0]}']`).click()", chat[1])
        self.wait(title, lambda: self.browser.text("#title") == title and self.seen("#chat"))
        return self.wait("who is here", lambda: not self.browser.text("#present").endswith(" 0 here"))

    def chats(self) -> list[tuple[str, str]]:
        """The chats in the list: text and id of each."""
        script = "return [...document.querySelectorAll('[data-chat]')].map((one) => [one.textContent, one.dataset.chat])"
        return [(text, id) for text, id in self.browser.run(script)]

    def badge(self, title: str) -> str:
        """The number of unread messages, or an empty string."""
        script = """return [...document.querySelectorAll('[data-chat]')].filter((one) => one.textContent.startsWith(arguments[0]))
            .map((one) => one.querySelector('.badge')?.textContent.replace(' unread', '') ?? '')[0]"""
        return str(self.browser.run(script, title))

    def say(self, *texts: str) -> None:
        """Type and send texts."""
        for text in texts:
            self.browser.type("#text", text + "\n")

    def messages(self) -> list[str]:
        """The contents of the messages that the chat shows."""
        script = "return [...document.querySelectorAll('#messages .content')].map((one) => one.textContent)"
        return list(self.browser.run(script))

    def shows(self, *texts: str, last: bool = False) -> Page:
        """Wait until exactly these messages are shown; with ``last``, until these are the last ones."""
        return self.wait(
            f"messages {texts}", lambda: tuple(self.messages()[-len(texts) if last else 0 :]) == texts
        )

    def act(self, text: str, action: str) -> None:
        """Click ``edit`` or ``delete`` on the message with this text."""
        script = """[...document.querySelectorAll('#messages li')].find((one) => one.querySelector('.content').textContent ===
            arguments[0]).querySelector(arguments[1]).click()"""
        self.browser.run(script, text, f".{action}")

    def seen(self, css: str) -> bool:
        """Whether the element is visible."""
        return bool(
            self.browser.run("return document.querySelector(arguments[0])?.offsetParent != null", css)
        )

    def wait(self, what: str, condition: Callable[[], Any], timeout: float = 60) -> Page:
        """Wait until the condition holds; an error shows the page."""
        try:
            self.browser.until(what, condition, timeout)
        except AssertionError as error:
            shown = self.browser.run("return document.body.innerText")
            raise AssertionError(f"{error}\n{shown}\n{self.browser.console()}") from None
        return self
