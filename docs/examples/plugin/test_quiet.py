"""The contract that every broker keeps, run on this one, and what is its own."""

from notify_quiet import QuietBroker, QuietSettings
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from notify.errors import Unavailable
from notify.testing import make_context
from notify.testing.contracts import BrokerContract
from notify.testing.simulation import Plugins, simulate
from notify.topics import chat


def make(hour):
    clock = Clock()
    clock.advance(hour * 3600)
    return QuietBroker(QuietSettings(), make_context(clock)), clock


class QuietBrokerContract(BrokerContract, TestCase):
    async def make_broker(self):
        broker, self.clock = make(hour=12)
        return broker

    async def lose_history(self, broker, topic):
        self.clock.advance(8 * 86400)


class QuietHours(TestCase):
    async def test_nothing_is_followed_at_night(self):
        broker, _ = make(hour=23)
        await broker.start(lambda message: None, lambda topic: None)
        await self.assertFailure(broker.follow(chat(1, 1)), Unavailable)


class QuietBrokerLives(TestCase):
    def test_each_message_once_in_order_or_told(self):
        simulate(Plugins(broker="quiet", tables={"quiet": {"from_hour": 2}}), seeds=range(5))
