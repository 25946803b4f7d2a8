"""The JetStream broker against real servers: the contract of all brokers, with each kind of delivery."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from notify.brokers.jetstream import JetStreamBroker
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.config import Duration
from notify.interfaces import IBroker
from notify.testing import make_context
from notify.testing.contracts import BrokerContract, TextIds
from notify.topics import Topic
from tests.support.natsd import NatsServer


def make(server: NatsServer | None, node: str = "node-1", seed: int = 1, **settings: Any) -> JetStreamBroker:
    servers = () if server is None else (server.url,)
    defaults: dict[str, Any] = {"servers": servers, "canary_interval": Duration(0.5)}
    return JetStreamBroker(
        JetStreamSettings(**(defaults | settings)), make_context(reactor, node=node, seed=seed)
    )


class _Contract(BrokerContract):
    timeout = 30
    delivery = "republish"

    async def make_broker(self) -> IBroker:
        server = NatsServer().start()
        self.addCleanup(server.remove)
        await server.up()
        # A contract says nothing of silent servers, and this one may be slow on a busy machine.
        return make(server, delivery=self.delivery, request_timeout=Duration(10))

    async def lose_history(self, broker: IBroker, topic: Topic) -> None:
        await broker._streams.api("STREAM.PURGE.MESSAGES", {"filter": topic.subject})


class RepublishContract(_Contract, TestCase):
    pass


class RepublishWithTextIds(TextIds, RepublishContract):
    pass


class ConsumerContract(_Contract, TestCase):
    delivery = "consumer"


class ConsumerWithTextIds(TextIds, ConsumerContract):
    pass
