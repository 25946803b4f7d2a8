"""Pages of history that change while clients read them: messages are published and deleted, and a node is killed.

The test records what was accepted and what was deleted; at the end, it checks every page against that record.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import nats
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from websockets.exceptions import WebSocketException

from tests.support.natsd import NatsServer
from tests.support.process import Server
from tests.whole.test_history import JETSTREAM, SUBJECT, Client

CHATS = (10, 11)


class Page(NamedTuple):
    """A request and its answer: ``after`` a position, or backwards if None; in both cases up to ``end``, inclusive."""

    chat_id: int
    events: bool
    after: int | None
    end: int
    answer: dict[str, Any]

    @property
    def numbers(self) -> list[int]:
        return [one["seq"] for one in self.answer["messages"]]


class History:
    """Publishes and deletes, and records what must exist. ``over`` is set after the last publish."""

    def __init__(self, servers: list[Server], url: str, seed: int) -> None:
        self.servers = servers
        self.url = url
        self.random = Random(seed)
        self.over = threading.Event()
        #: by chat: the accepted seqs, and whether each is an event
        self.accepted: dict[int, dict[int, bool]] = {chat_id: {} for chat_id in CHATS}
        self.deleted: set[int] = set()
        self.purged = 0

    def change(self, rounds: int) -> None:
        """Publish lists of messages and events; delete after each fourth, and kill a node halfway through."""
        try:
            for number in range(rounds):
                self.publish(number)
                if number % 4 == 3:
                    asyncio.run(self.delete())
                if number == rounds // 2:
                    self.servers[1].process.kill()
                    self.servers[1].process.wait()
                    self.servers[1].start()
        finally:
            self.over.set()

    def publish(self, number: int) -> None:
        items = []
        for place in range(10):
            chat_id, event = self.random.choice(CHATS), self.random.random() < 0.4
            payload = {
                "message_id": 100 * number + place + 1,
                "chat_id": chat_id,
                "workspace_id": 1,
                "sender_id": 2,
            }
            payload |= {"timestamp": 1} | ({"kind": "edited", "data": 1} if event else {"content": "x" * 100})
            items.append({"subject": SUBJECT.format(chat_id), "payload": payload})
        status, answer = self.servers[0].http("POST", "/v1/publish", items)
        assert status == 200, answer
        for item, result in zip(items, answer["results"], strict=True):
            self.accepted[item["payload"]["chat_id"]][result["seq"]] = "kind" in item["payload"]

    async def delete(self) -> None:
        """Delete one message, or all before one."""
        seq = self.random.choice(sorted(self.accepted[self.random.choice(CHATS)]))
        client = await nats.connect(self.url)
        if self.random.random() < 0.7:
            self.deleted.add(seq)
            call, body = "STREAM.MSG.DELETE.MESSAGES", {"seq": seq, "no_erase": True}
        else:
            seq = min(seq, max(self.purged, max(self.accepted[CHATS[0]]) - 150))
            self.purged = max(self.purged, seq)
            call, body = "STREAM.PURGE.MESSAGES", {"seq": seq}
        await client.request(f"$JS.API.{call}", json.dumps(body).encode(), timeout=10)
        await client.close()

    def between(self, page: Page, low: int) -> set[int]:
        """The seqs accepted in the page's chat after ``low`` and up to its end, for this kind of reader."""
        accepted = self.accepted[page.chat_id].items()
        return {seq for seq, event in accepted if low < seq <= page.end and (page.events or not event)}

    def kept(self, page: Page, low: int) -> set[int]:
        """The same without those that were deleted at any time."""
        return {seq for seq in self.between(page, low) if seq >= self.purged} - self.deleted


class Reader:
    """Reads each chat backwards from its newest page and then forwards, again and again until ``over``."""

    def __init__(self, history: History, subprotocol: str, events: bool) -> None:
        self.history = history
        self.subprotocol = subprotocol
        self.events = events
        self.random = Random(subprotocol)
        self.pages: list[Page] = []
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.history.over.is_set():
                try:
                    client = Client(
                        self.random.choice(self.history.servers), self.subprotocol, *["events"] * self.events
                    )
                except (OSError, WebSocketException):
                    continue  # that node is down
                try:
                    for chat_id in CHATS:
                        self.through(client, chat_id)
                except (OSError, WebSocketException):
                    pass
                finally:
                    client.close()
        except BaseException as error:
            self.failed = error

    def through(self, client: Client, chat_id: int) -> None:
        start = None
        for page in self.back(client, chat_id):
            self.pages.append(page)
            start = page.answer.get("start", start)
        if start is not None:
            self.pages += self.forward(client, chat_id, page.answer["epoch"], start)

    def back(self, client: Client, chat_id: int) -> Iterator[Page]:
        before: dict[str, Any] = {}
        while True:
            answer = client.ask(
                type="history", chat_id=chat_id, limit=self.random.choice((1, 7, 50)), **before
            )
            if answer["type"] == "error":
                assert answer["code"] in ("unavailable", "history_unavailable"), answer
                return
            end = before["before"]["seq"] - 1 if before else answer["seq"]
            yield Page(chat_id, self.events, None, end, answer)
            if not answer["more"]:
                return
            assert not before or answer["start"] < before["before"]["seq"], answer
            before = {"before": {"epoch": answer["epoch"], "seq": answer["start"]}}

    def forward(self, client: Client, chat_id: int, epoch: str, seq: int) -> Iterator[Page]:
        more = True
        while more:
            answer = client.ask(
                type="history",
                chat_id=chat_id,
                limit=self.random.choice((1, 7, 50)),
                after={"epoch": epoch, "seq": seq},
            )
            if answer["type"] == "error":
                assert answer["code"] in ("unavailable", "history_unavailable"), answer
                return
            yield Page(chat_id, self.events, seq, answer["seq"], answer)
            more, seq = answer["more"], answer["seq"]


class Changing(TestCase):
    timeout = 120

    async def test_no_page_has_a_hole_or_a_repeat(self) -> None:
        server = NatsServer().start()
        self.addCleanup(server.remove)
        await server.up()
        await deferToThread(self.changing, server.url)

    def changing(self, url: str) -> None:
        node = '[server]\nnode = "{}"\n' + JETSTREAM.format(url)
        # Keep little in memory, so that most pages are read from NATS.
        node += '[limits]\nrecent_bytes = "2KiB"\nframes_per_second = 0\n'
        with Server(node.format("a")) as one, Server(node.format("b")) as other:
            history = History([one, other], url, seed=1)
            readers = [
                Reader(history, subprotocol, events)
                for subprotocol in ("notify.v1.json", "notify.v1.protobuf")
                for events in (False, True)
            ]
            threads = [threading.Thread(target=reader.run) for reader in readers]
            for thread in threads:
                thread.start()
            history.change(60)
            for thread in threads:
                thread.join()
        for reader in readers:
            if reader.failed is not None:
                raise reader.failed
            self.assertGreater(len(reader.pages), 10)
            for page in reader.pages:
                self.check(history, page)

    def check(self, history: History, page: Page) -> None:
        numbers = page.numbers
        self.assertEqual(numbers, sorted(set(numbers)))
        self.assertLessEqual(set(numbers), history.between(page, -1))
        if page.after is None:
            low = page.answer["start"] - 1 if page.answer["more"] else -1
            self.assertEqual(history.kept(page, low) - set(numbers), set(), page)
        else:
            # As with a resumption, nothing is missing, not even deleted messages; otherwise the page is refused.
            self.assertEqual(history.between(page, page.after), set(numbers), page)
