"""A reader that is slower than its chat, with the client library and a whole server: it gets every message."""

from __future__ import annotations

import json
from typing import Any

import treq
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from notify.client import TwistedClient
from notify.testing import chat_payload, event_payload
from notify.topics import chat
from tests.support.running import API_KEY, LocalServer, token

TOPIC = chat(1, 7)
COUNT = 1500


async def publish(server: LocalServer, payloads: list[bytes]) -> None:
    """Publish all payloads, in lists."""
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    for start in range(0, len(payloads), 250):
        items = [
            {"subject": TOPIC.subject, "payload": json.loads(payload)}
            for payload in payloads[start : start + 250]
        ]
        answer = await treq.post(
            f"{server.api}/v1/publish", json.dumps(items).encode(), headers=headers, persistent=False
        )
        await answer.content()
        if answer.code != 200:
            raise AssertionError(answer.code)


class SlowReader(TestCase):
    timeout = 120

    async def read(self, server: LocalServer, payloads: list[bytes], cut: bool) -> tuple[list[Any], int]:
        """The ids that a slow reader has read, and the largest number of messages that waited for it."""
        client = TwistedClient(server.ws, token(5), queue=32)
        self.addCleanup(client.close)
        await client.start()
        stream = client.chat(TOPIC.id)  # reading raises if something is lost
        await stream.ready()
        publishing = ensureDeferred(publish(server, payloads))
        publishing.addErrback(
            lambda failure: stream._finish("closed", failure.value)
        )  # nothing more will come
        read, most = list[Any](), 0
        async for message in stream:
            read.append(message.message_id)
            most = max(most, stream.waiting)
            if len(read) == COUNT:
                break
            if cut and len(read) == COUNT // 2:
                for connection in list(server.hub.connections):
                    connection.close(4001, "slow consumer")
            await deferLater(reactor, 0.001)
        await publishing
        return read, most

    async def serve(self) -> LocalServer:
        # One resumption is much shorter than the reader's backlog, and so is the queue of one client.
        settings = {
            "LIMITS__REPLAY": "200",
            "LIMITS__SEND_QUEUE": "256KiB",
            "BROKER__MEMORY__HISTORY_SIZE": "10000",
        }
        return await LocalServer(**settings).start(self)

    async def test_misses_nothing_and_keeps_little(self) -> None:
        read, most = await self.read(
            await self.serve(), [chat_payload(TOPIC, n) for n in range(COUNT)], cut=False
        )
        self.assertEqual(read, list(range(COUNT)))
        self.assertLess(most, 500)

    async def test_misses_nothing_over_a_cut_and_behind_events_that_are_not_for_it(self) -> None:
        payloads = [
            payload
            for n in range(COUNT)
            for payload in (chat_payload(TOPIC, n), event_payload(TOPIC, COUNT + n, "edited", None))
        ]
        read, _ = await self.read(await self.serve(), payloads, cut=True)
        self.assertEqual(read, list(range(COUNT)))
