"""The short way for messages, and the long one that nats-py would take: the same messages come by both."""

from __future__ import annotations

from typing import Any

from nats.aio.client import Client
from twisted.internet.defer import succeed
from twisted.trial.unittest import TestCase

from notify.nats import headers
from notify.nats.bridge import as_deferred
from notify.nats.client import RawClient
from tests.support.natsd import NatsServer, until


class LongClient(RawClient):
    """As if nats-py no longer called what the short way steps into."""

    _process_msg = Client._process_msg


class Ways(TestCase):
    timeout = 30

    async def came(self, kind: type[RawClient], server: NatsServer) -> list[tuple[Any, ...]]:
        heard: list[tuple[bytes, str, bytes, bytes]] = []
        client = kind()
        await as_deferred(client.connect(server.url, allow_reconnect=False))
        self.addCleanup(lambda: as_deferred(client.close()) if client.is_connected else succeed(None))
        await as_deferred(client.subscribe_raw("a.>", lambda *message: heard.append(message)))
        await as_deferred(client.publish("a.plain", b"one"))
        fields = {"Nats-Sequence": "7", "Nats-Last-Sequence": "5", "traceparent": "00-" + "a" * 52}
        await as_deferred(client.publish("a.fields", b"two", "reply.to", fields))
        await as_deferred(client.publish("nobody.listens", b"", "a.status"))
        await until(lambda: len(heard) == 3, 10)
        return [
            (
                subject,
                reply,
                data,
                headers.number(block, headers.SEQUENCE),
                headers.number(block, headers.LAST_SEQUENCE),
                headers.trace(block),
                headers.status(block),
            )
            for subject, reply, data, block in heard
        ]

    async def test_both_give_the_same(self) -> None:
        server = NatsServer().start()
        self.addCleanup(server.remove)
        await server.up()
        short = await self.came(RawClient, server)
        self.assertEqual(await self.came(LongClient, server), short)
        self.assertEqual(short[0], (b"a.plain", "", b"one", 0, 0, "", 0))
        self.assertEqual(short[1], (b"a.fields", "reply.to", b"two", 7, 5, "00-" + "a" * 52, 0))
        self.assertEqual((short[2][0], short[2][6]), (b"a.status", 503))
