"""Brokers, registries and controls that a worker uses over its link meet the contracts of all others."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import TestCase

from notify.brokers.memory import MemoryBroker, MemorySettings
from notify.control import memory as control
from notify.core.dispatcher import end_of_turn
from notify.interfaces import Gathered, IBroker, IControl, IRegistry
from notify.registries import memory as registry
from notify.testing import make_context
from notify.testing.contracts import (
    BrokerContract,
    ControlContract,
    RegistryContract,
    SignalsContract,
    TextIds,
)
from notify.topics import Topic
from notify.workers.broker import LinkedBroker, LinkedSignals, SharedBroker
from notify.workers.control import LinkedControl, SharedControl
from notify.workers.registry import CountedRegistry, LinkedRegistry, SharedRegistry
from tests.workers.joined import Joined


def the_reactor() -> Any:
    from twisted.internet import reactor

    return reactor


class BrokerOverALink(BrokerContract, TestCase):
    async def make_broker(self) -> IBroker:
        self.memory = MemoryBroker(MemorySettings(), make_context())
        joined, shared = Joined(the_reactor()), SharedBroker(self.memory, end_of_turn(the_reactor()))
        await self.memory.start(shared.deliver, shared.lost)
        shared.serve(joined.head)
        return LinkedBroker(joined.worker)

    async def lose_history(self, broker: IBroker, topic: Topic) -> None:
        while self.memory._log:
            self.memory._drop_oldest()


class BrokerOverALinkWithTextIds(TextIds, BrokerOverALink):
    pass


class SignalsOverLinks(SignalsContract, TestCase):
    """Signals between two workers of one server."""

    async def make_brokers(self) -> list[IBroker]:
        memory = MemoryBroker(MemorySettings(), make_context())
        shared = SharedBroker(memory, end_of_turn(the_reactor()))
        memory.hear(shared.heard)
        await memory.start(shared.deliver, shared.lost)
        self.brokers: list[IBroker] = []
        for _ in range(2):
            joined = Joined(the_reactor())
            shared.serve(joined.head)
            self.brokers.append(LinkedSignals(joined.worker))
        return self.brokers

    async def settle(self) -> None:
        for broker in (*self.brokers, *self.brokers):
            # The answer to this arrives after everything that was sent before.
            if broker.status().ready:
                await broker.replay(self.chat(9, 9), None, 1, 1)


class SignalsOverLinksWithTextIds(TextIds, SignalsOverLinks):
    pass


class RegistryOverALink(RegistryContract, TestCase):
    async def make_registry(self) -> IRegistry:
        joined = Joined(the_reactor())
        local = [registry.MemoryRegistry(registry.MemorySettings(), make_context()) for _ in range(2)]
        SharedRegistry(local[0]).serve(joined.head)
        return LinkedRegistry(local[1], joined.worker, end_of_turn(the_reactor()))


class RegistryOverALinkWithTextIds(TextIds, RegistryOverALink):
    pass


class CountedOverALink(RegistryContract, TestCase):
    """Counting does not change what a registry does that knows other nodes by itself."""

    async def make_registry(self) -> IRegistry:
        joined = Joined(the_reactor())
        local = [registry.MemoryRegistry(registry.MemorySettings(), make_context()) for _ in range(2)]
        SharedRegistry(local[0]).serve(joined.head)
        return CountedRegistry(local[1], joined.worker, end_of_turn(the_reactor()))


class _Silent(control.MemoryControl):
    """The control of a first process that does not answer itself, so that the only answering node is a worker."""

    def ask(self, command: str, argument: bytes, node: str = "") -> Deferred[Gathered]:
        return succeed(Gathered([], []))


class ControlOverALink(ControlContract, TestCase):
    async def make_control(self, node: str) -> IControl:
        joined = Joined(the_reactor())
        self.addCleanup(joined.end, "the test is over")
        silent = _Silent(control.MemorySettings(), make_context(node="first"))
        shared = SharedControl(silent, the_reactor().callLater, time.time)
        await shared.start(lambda command, argument: succeed(b"null"))
        await shared.watch(lambda key, record: None)
        shared.serve(joined.head, node)
        return LinkedControl(joined.worker, node)


class SharedControlWithoutWorkers(ControlContract, TestCase):
    async def make_control(self, node: str) -> IControl:
        own = control.MemoryControl(control.MemorySettings(), make_context(node=node))
        return SharedControl(own, the_reactor().callLater, time.time)
