"""The contract of every broker that carries signals (:class:`notify.interfaces.ISignals`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from notify.interfaces import IBroker, ISignals
from notify.testing.contracts.ids import IntegerIds
from notify.testing.recorder import Recorder
from notify.topics import Topic

if TYPE_CHECKING:
    from twisted.trial.unittest import TestCase as Suite
else:
    Suite = object


class Ear:
    """Records the signals that one node receives, so that a test can wait for them."""

    def __init__(self, broker: Any) -> None:
        self.broker = broker
        self.recorder = Recorder()
        self.signals: list[tuple[Topic, bytes]] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def heard(self, topic: Topic, payload: bytes) -> None:
        """Record a signal."""
        self.signals.append((topic, payload))
        ready = [done for count, done in self._waiting if count <= len(self.signals)]
        self._waiting = [(count, done) for count, done in self._waiting if count > len(self.signals)]
        for done in ready:
            done.callback(None)

    def wait(self, count: int) -> Deferred[None]:
        """Fires once ``count`` signals were received in total. The test's own timeout limits the wait."""
        done: Deferred[None] = Deferred()
        self._waiting.append((count, done))
        if count <= len(self.signals):
            self._waiting.pop()
            done.callback(None)
        return done

    def of(self, topic: Topic) -> list[bytes]:
        """The signals received for a topic."""
        return [payload for one, payload in self.signals if one == topic]


class SignalsContract(IntegerIds, Suite):
    """Subclass this together with a ``TestCase``, and say how to create brokers that reach each other, and how to wait until they listen."""

    async def make_brokers(self) -> list[IBroker]:
        """Return new brokers of one deployment, not started: two, or one if there can be no more. Clean up with ``addCleanup``."""
        raise NotImplementedError

    async def settle(self) -> None:
        """Wait until all previous calls (listen, unlisten) have taken effect everywhere."""

    async def started(self) -> list[Ear]:
        """Running brokers, the same one twice if there is only one, and the recorder of each."""
        ears = [Ear(broker) for broker in await self.make_brokers()]
        for ear in ears:
            ear.broker.hear(ear.heard)
            await ear.broker.start(ear.recorder.deliver, ear.recorder.lost)
            self.addCleanup(ear.broker.stop)
        return [ears[0], ears[-1]]

    async def test_provides_the_interface(self) -> None:
        for ear in await self.started():
            self.assertTrue(verifyObject(ISignals, ear.broker))

    async def test_every_node_that_listens_hears_each_signal_once_and_in_order(self) -> None:
        one, other = await self.started()
        topic, sent = self.chat(1, 10), [b"%d" % number for number in range(50)]
        for ear in {one, other}:
            ear.broker.listen(topic)
        await self.settle()
        for payload in sent:
            self.assertIs(one.broker.signal(topic, payload), True)
        for ear in (one, other):
            await ear.wait(50)
        await self.settle()
        for ear in (one, other):
            self.assertEqual(ear.signals, [(topic, payload) for payload in sent])

    async def test_what_nobody_here_listens_to_is_not_heard(self) -> None:
        one, other = await self.started()
        mine, others = self.chat(1, 10), (self.chat(1, 11), self.chat(2, 10), self.chat(2, 11))
        other.broker.listen(mine)
        await self.settle()
        for topic in others:
            one.broker.signal(topic, b"no")
        one.broker.signal(mine, b"yes")
        await other.wait(1)
        await self.settle()
        self.assertEqual(other.signals, [(mine, b"yes")])

    async def test_unlisten_ends_it_and_listen_begins_it_again(self) -> None:
        one, other = await self.started()
        topic, marker = self.chat(1, 10), self.chat(1, 99)
        for each in (topic, marker):
            other.broker.listen(each)
        await self.settle()
        other.broker.unlisten(topic)
        other.broker.unlisten(self.chat(5, 5))
        await self.settle()
        one.broker.signal(topic, b"missed")
        one.broker.signal(marker, b"marker")
        await other.wait(1)
        other.broker.unlisten(marker)
        other.broker.listen(topic)
        await self.settle()
        one.broker.signal(marker, b"missed")
        one.broker.signal(topic, b"heard")
        await other.wait(2)
        await self.settle()
        self.assertEqual(other.signals, [(marker, b"marker"), (topic, b"heard")])

    async def test_a_signal_is_no_message(self) -> None:
        one, other = await self.started()
        topic = self.chat(1, 10)
        other.broker.listen(topic)
        position = (await other.broker.follow(topic)).position
        await self.settle()
        one.broker.signal(topic, b"{}")
        await other.wait(1)
        await self.settle()
        self.assertEqual(other.recorder.messages, [])
        self.assertEqual((await other.broker.replay(topic, None, 10, 2**20)).messages, [])
        other.broker.unfollow(topic)
        self.assertEqual((await other.broker.follow(topic)).position, position)

    async def test_after_stop_it_is_lost(self) -> None:
        one, _ = await self.started()
        topic = self.chat(1, 10)
        one.broker.listen(topic)
        await self.settle()
        await one.broker.stop()
        self.assertIs(one.broker.signal(topic, b"no"), False)
        one.broker.unlisten(topic)
        self.assertEqual(one.signals, [])
