"""Telling clients who is in a chat: at once in small chats, and in crowds without overloading the server."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Limits
from notify.core import presence
from notify.errors import Unavailable
from tests.support.world import Client, World


class Watching(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(Limits(frames_per_second=0))

    def watcher(self, user_id: int) -> Client:
        client = self.world.client(user_id)
        client.send(type="subscribe", chat_id=1, watch_presence=True)
        return client

    def pass_time(self, seconds: float = 0.75) -> None:
        self.world.clock.pump([0.25] * int(seconds * 4))

    def told(self, client: Client) -> list[list[int]]:
        return [[user["user_id"] for user in frame["users"]] for frame in client.take()]

    def test_everyone_hears_of_a_change_once(self) -> None:
        one, two = self.watcher(1), self.watcher(2)
        self.pass_time()
        self.assertEqual((self.told(one), self.told(two)), ([[1, 2]], [[1, 2]]))
        two.send(type="unsubscribe", chat_id=1)
        self.pass_time()
        self.assertEqual((self.told(one), self.told(two)), ([[1]], []))

    def test_who_asks_again_is_told_alone(self) -> None:
        one, two = self.watcher(1), self.watcher(2)
        self.pass_time()
        one.take(), two.take()
        for _ in range(20):
            two.send(type="subscribe", chat_id=1, watch_presence=True)
        self.pass_time()
        self.assertEqual((self.told(one), self.told(two)), ([], [[1, 2]]))

    def test_in_a_crowd_changes_are_told_as_seldom_as_they_are_dear_and_none_is_missed(self) -> None:
        self.patch(presence, "RATE", 500)
        crowd = [self.watcher(n) for n in range(20)]
        self.pass_time()
        first = sum(len(frame) for client in crowd for frame in client.connection.frames)
        for client in crowd:
            client.take()
        seconds = 0
        while not (told := self.told(crowd[0])):
            guest = self.world.client(100)
            guest.send(type="subscribe", chat_id=1)
            self.pass_time(1)
            guest.leave()
            seconds += 1
        self.assertGreaterEqual(seconds, first // 500 - 2)
        self.assertEqual(len(told), 1)
        # A newcomer does not have to wait for the crowd's turn, and the last state reaches all.
        late = self.watcher(50)
        self.pass_time(1)
        self.assertIn(50, self.told(late)[0])
        late.leave()
        self.pass_time(2 * seconds)
        self.assertEqual((told + self.told(crowd[0]))[-1], list(range(20)))
        self.assertEqual(crowd[5].connection.frames, crowd[7].connection.frames)

    def test_a_newcomer_who_saw_more_than_the_crowd_is_told_when_it_is_over(self) -> None:
        self.patch(presence, "RATE", 500)
        crowd = [self.watcher(n) for n in range(20)]
        self.pass_time()
        guest, late = self.world.client(100), self.world.client(99)
        guest.send(type="subscribe", chat_id=1)
        crowd[3].send(type="subscribe", chat_id=1, watch_presence=True)
        self.pass_time()
        self.assertIn(100, self.told(crowd[3])[-1])
        guest.leave()
        late.leave()
        self.pass_time(120)
        self.assertEqual(self.told(crowd[3])[-1], list(range(20)))

    def test_a_registry_that_fails_is_asked_again(self) -> None:
        one = self.watcher(1)
        real = self.world.registry.presence

        def away(topic: Any) -> Deferred[Any]:
            return fail(Unavailable("away"))

        self.patch(self.world.registry, "presence", away)
        self.pass_time(2)
        self.assertEqual(self.told(one), [])
        self.patch(self.world.registry, "presence", real)
        self.pass_time()
        self.assertEqual(self.told(one), [[1]])

    def test_nothing_is_left_of_who_has_gone(self) -> None:
        clients = [self.watcher(n) for n in range(3)]
        clients[0].send(type="subscribe", chat_id=1)
        clients[1].send(type="unsubscribe", chat_id=1)
        for client in clients:
            client.leave()
        self.pass_time()
        self.assertEqual(self.world.hub.presence._watchers, {})
        self.assertEqual(self.world.registry._watched, {})
