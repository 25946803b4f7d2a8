"""The installed service as seen from outside: by a backend, a client, a load balancer, an operator."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from notify.auth.tokens import issue
from notify.client import AsyncioClient
from notify.client.publisher import Publisher
from tests.package.machine import TOP, Machine
from tests.support.process import Client


def _queries(panels: Any) -> Iterator[str]:
    """All queries that a dashboard sends to Prometheus."""
    if isinstance(panels, dict):
        if isinstance(panels.get("expr"), str):
            yield panels["expr"]
        panels = list(panels.values())
    if isinstance(panels, list):
        for part in panels:
            yield from _queries(part)


class Installed:
    """The installed service, on the machine's loopback."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.secret = machine.read("/etc/notify/jwt.secret").strip()
        self.key = machine.read("/etc/notify/api.keys").strip()

    def token(self, user_id: int = 1) -> str:
        return issue(self.secret, user_id, 1, 3600, time.time())

    def fans_out_in(self) -> str:
        """The language of the fan-out, as the metrics report it."""
        with urllib.request.urlopen("http://127.0.0.1:8081/metrics", timeout=10) as answer:
            return re.findall(r'notify_build_info{.*fan_out="(\w+)"', answer.read().decode())[0]

    def unknown_metrics(self) -> set[str]:
        """Metrics in the shipped alerts and dashboard that the server does not have when run by its unit."""
        with urllib.request.urlopen("http://127.0.0.1:8081/metrics", timeout=10) as answer:
            text = answer.read().decode()
        has = set(re.findall(r"(?m)^# TYPE (\S+) ", text))
        has |= {f"{name}_{part}" for name in has for part in ("bucket", "sum", "count")}
        # If the unit hides what a process metric is read from, the metric is declared but has no value.
        has -= {name for name in has if name.startswith("process_") and f"\n{name} " not in text}
        rules = (TOP / "etc" / "prometheus" / "notify.rules.yaml").read_text()
        panels = json.loads((TOP / "etc" / "grafana" / "notify.json").read_text())
        asked = re.findall(
            r"\b(?:notify|process|python)_[a-z_]+\b(?=[{\[ )])", rules + " ".join(_queries(panels))
        )
        return set(asked) - has

    def health(self, port: int = 8081) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, http.client.HTTPException):
            return 0

    def get(self, path: str) -> int:
        """The status of the internal listener's answer to a request with the API key."""
        headers = {"Authorization": f"Bearer {self.key}"}
        asked = urllib.request.Request(f"http://127.0.0.1:8081{path}", headers=headers)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            answer.read()
            return int(answer.status)

    def refusal(self) -> int:
        """The HTTP status with which a WebSocket is refused; 0 if it is accepted."""
        try:
            with connect("ws://127.0.0.1:8080/ws", close_timeout=1):
                return 0
        except InvalidStatus as error:
            return error.response.status_code

    @contextmanager
    def client(self, user_id: int = 1, chat_id: int = 1) -> Iterator[Client]:
        with connect("ws://127.0.0.1:8080/ws", close_timeout=1) as connection:
            client = Client(connection)
            client.send(type="auth", token=self.token(user_id))
            assert client.receive()["success"]
            client.send(type="subscribe", chat_id=chat_id, id=1)
            assert client.receive()["type"] == "subscribed"
            yield client

    def publish(self, content: str, chat_id: int = 1) -> None:
        with Publisher("http://127.0.0.1:8081", self.key) as publisher:
            publisher.chat(1, chat_id, 1, content)

    def message_arrives(self) -> None:
        with self.client() as client:
            self.publish("hello")
            assert client.receive()["content"] == "hello"

    def configure(self, text: str) -> None:
        self.machine.write("/etc/notify/notify.toml", text)


class Follower(threading.Thread):
    """A client that stays in a chat whatever happens, while messages are published to it all the time."""

    def __init__(self, installed: Installed, chat_id: int) -> None:
        super().__init__()
        self.installed = installed
        self.chat_id = chat_id
        self.sent: list[str] = []
        self.got: list[str] = []
        self.lost: list[Any] = []
        self.states: list[str] = []
        self.longest = 0.0
        self.over = threading.Event()
        self.here = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        publishing = threading.Thread(target=self.publish)
        try:
            asyncio.run(asyncio.wait_for(self.follow(publishing), 180))
        except BaseException as error:
            self.error = error
        finally:
            self.over.set()
            self.here.set()

    def publish(self) -> None:
        with Publisher("http://127.0.0.1:8081", self.installed.key, tries=15) as publisher:
            while not self.over.wait(0.02):
                content = str(len(self.sent))
                publisher.chat(1, self.chat_id, 1, content)
                self.sent.append(content)

    async def follow(self, publishing: threading.Thread) -> None:
        client = AsyncioClient(
            "ws://127.0.0.1:8080/ws",
            self.installed.token(7),
            on_state=lambda state: self.states.append(state.name),
        )
        async with client:
            chat = client.chat(self.chat_id, on_lost=self.lost.append)
            await chat.ready()
            publishing.start()
            self.here.set()
            at = time.monotonic()
            while publishing.is_alive() or len(self.got) < len(self.sent):
                try:
                    message = await asyncio.wait_for(chat.__anext__(), 1)
                except TimeoutError:
                    continue
                now = time.monotonic()
                self.longest, at = max(self.longest, now - at), now
                self.got.append(message.content)

    def finish(self) -> None:
        self.over.set()
        self.join(60)
        if self.error is not None:
            raise self.error
