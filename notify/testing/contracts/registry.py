"""The contract of every registry (:class:`notify.interfaces.IRegistry`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from notify.identity import Presence, by_user
from notify.interfaces import IRegistry
from notify.testing.contracts.ids import IntegerIds
from notify.testing.fakes import FakeConnection
from notify.topics import Topic

if TYPE_CHECKING:
    from twisted.trial.unittest import TestCase as Suite
else:
    Suite = object


class RegistryContract(IntegerIds, Suite):
    """Subclass this together with a ``TestCase``, and say how to create a registry."""

    async def make_registry(self) -> IRegistry:
        """Return a new registry that is not started. Clean up with ``addCleanup``."""
        raise NotImplementedError

    async def started(self) -> IRegistry:
        """A running registry, which reports its changes to ``self.changes``."""
        self.changes: list[Topic] = []
        self._waiting: list[Deferred[None]] = []
        registry = await self.make_registry()
        await registry.start(self._changed)
        self.addCleanup(registry.stop)
        return registry

    def _changed(self, topic: Topic) -> None:
        self.changes.append(topic)
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)

    async def change(self, since: int) -> None:
        """Wait until more than ``since`` changes were reported."""
        while len(self.changes) <= since:
            done: Deferred[None] = Deferred()
            self._waiting.append(done)
            await done

    async def test_provides_the_interface(self) -> None:
        self.assertTrue(verifyObject(IRegistry, await self.started()))

    async def test_says_who_is_first_and_who_is_last(self) -> None:
        registry = await self.started()
        topic, a, b = (
            self.chat(1, 10),
            FakeConnection(self.id_of(1), id="a"),
            FakeConnection(self.id_of(2), id="b"),
        )
        self.assertTrue(registry.join(a, topic))
        self.assertFalse(registry.join(b, topic))
        self.assertFalse(registry.join(b, topic))
        self.assertEqual(set(registry.members(topic)), {a, b})
        self.assertFalse(registry.leave(a, topic))
        self.assertFalse(registry.leave(a, topic))
        self.assertTrue(registry.leave(b, topic))
        self.assertEqual(list(registry.members(topic)), [])

    async def test_forgets_a_connection_in_all_its_topics(self) -> None:
        registry = await self.started()
        one, two, a, b = (
            self.chat(1, 10),
            self.chat(1, 11),
            FakeConnection(self.id_of(1), id="a"),
            FakeConnection(self.id_of(2), id="b"),
        )
        for topic in (one, two):
            registry.join(a, topic)
        registry.join(b, two)
        self.assertEqual(set(registry.topics(a)), {one, two})
        self.assertEqual(registry.forget(a), [one])
        self.assertEqual(list(registry.topics(a)), [])
        self.assertEqual(set(registry.members(two)), {b})
        self.assertEqual(registry.forget(a), [])

    async def test_keeps_topics_of_different_tenants_apart(self) -> None:
        registry = await self.started()
        a = FakeConnection(self.id_of(1), self.id_of(1), id="a")
        registry.join(a, self.chat(1, 10))
        self.assertEqual(list(registry.members(self.chat(2, 10))), [])
        self.assertEqual(await registry.presence(self.chat(2, 10)), [])

    async def test_presence_counts_the_connections_of_each_user(self) -> None:
        registry = await self.started()
        topic = self.chat(1, 10)
        for id, user in (("a", 7), ("b", 5), ("c", 7)):
            registry.join(FakeConnection(self.id_of(user), id=id), topic)
        self.assertEqual(
            await registry.presence(topic), [Presence(self.id_of(5), 1), Presence(self.id_of(7), 2)]
        )

    async def test_presence_of_a_crowd_is_whole(self) -> None:
        registry = await self.started()
        topic = self.chat(1, 10)
        users = by_user(Presence(self.id_of(number), 1) for number in range(1, 2001))
        for one in users:
            registry.join(FakeConnection(one.user_id, id=str(one.user_id)), topic)
        self.assertEqual(await registry.presence(topic), users)

    async def test_a_users_own_topic_has_members_like_a_chat(self) -> None:
        registry = await self.started()
        topic, a = self.user(1, 7), FakeConnection(self.id_of(7), self.id_of(1), id="a")
        self.assertTrue(registry.join(a, topic))
        self.assertEqual(set(registry.members(topic)), {a})
        self.assertEqual(registry.forget(a), [topic])

    async def test_tells_of_changes_in_watched_topics_only(self) -> None:
        registry = await self.started()
        watched, other, a = self.chat(1, 10), self.chat(1, 11), FakeConnection(self.id_of(1), id="a")
        registry.watch(watched)
        registry.join(a, other)
        registry.join(a, watched)
        await self.change(0)
        before = len(self.changes)
        registry.leave(a, watched)
        await self.change(before)
        self.assertEqual(set(self.changes), {watched})
        registry.unwatch(watched)
        before = len(self.changes)
        registry.join(a, watched)
        self.assertEqual(len(self.changes), before)
