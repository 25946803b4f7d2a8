"""Many clients come back at once, each from a position of its own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from notify.config import Limits
from notify.errors import Unavailable
from notify.messages import Position
from notify.testing import chat_payload
from notify.topics import chat
from tests.support.member import TOPIC, Member
from tests.support.world import World


class Storm(SynchronousTestCase):
    """However many come back at once, a topic is read once for all, and a few times more to find out who is too late."""

    def setUp(self) -> None:
        self.world = World(history_size=100)
        self.epoch = self.world.broker._epoch
        for n in range(200):
            self.world.publish(TOPIC, chat_payload(TOPIC, n))
        self.world.broker.held = []

    def resume(self, seq: int) -> Member:
        return Member(self.world, f"at {seq}").subscribe(Position(self.epoch, seq))

    def settle(self) -> int:
        """Let the broker answer; return how often it was asked."""
        while self.world.broker.held:
            self.world.broker.release()
            self.world.broker.held = []
        return self.world.broker.replays

    def test_distinct_positions_cost_one_read(self) -> None:
        members = {seq: self.resume(seq) for seq in (150, 120, 199, *range(151, 190))}
        self.assertEqual(self.settle(), 1)
        for seq, member in members.items():
            self.assertEqual(member.seqs(), list(range(seq + 1, 201)))

    def test_who_comes_while_it_is_read_shares_it_unless_it_wants_more(self) -> None:
        Member(self.world, "other").subscribe()
        self.world.broker.release()
        self.world.broker.held = []
        members = [self.resume(seq) for seq in (150, 160, 150, 140, 130)]
        self.assertEqual(len(self.world.broker.held), 1)
        self.assertEqual(self.settle(), 2)
        self.assertEqual([len(member.seqs()) for member in members], [50, 40, 50, 60, 70])

    def test_older_and_older_ones_after_each_other_are_read_once_in_most_topics(self) -> None:
        for chat_id in range(100, 120):
            for n in range(50):
                self.world.publish(chat(1, chat_id), chat_payload(chat(1, chat_id), n))
        newest = {chat_id: 200 + 50 * (chat_id - 99) for chat_id in range(100, 120)}
        self.world.broker.held = None
        for chat_id, last in newest.items():
            for distance in range(10, 40, 3):
                member = Member(self.world, f"{chat_id} {distance}")
                member.subscribe(Position(self.epoch, last - distance), chat(1, chat_id))
                self.assertEqual(len(member.seqs()), distance)
        self.assertEqual(self.world.broker.replays, 20)

    def test_those_too_far_back_are_found_by_bisection(self) -> None:
        positions = list(range(0, 200, 2))
        members = {seq: self.resume(seq) for seq in positions}
        self.assertLessEqual(self.settle(), 10)
        for seq, member in members.items():
            self.assertEqual(member.joined.recovered, seq >= 100, seq)
            self.assertEqual(member.seqs(), list(range(seq + 1, 201)) if seq >= 100 else [])
        self.assertEqual(self.world.sample("notify_replays_total", outcome="lost"), 50)

    def test_those_that_missed_too_much_too(self) -> None:
        self.world.reload(limits=Limits(replay=30))
        members = {seq: self.resume(seq) for seq in range(100, 200)}
        self.assertLessEqual(self.settle(), 10)
        self.assertEqual(
            [seq for seq, member in members.items() if member.joined.recovered], list(range(170, 200))
        )
        self.assertEqual(self.world.sample("notify_replays_total", outcome="too_long"), 70)

    def test_one_that_is_too_late_is_not_asked_for_again_for_a_while(self) -> None:
        for seq in (50, 40, 50, 7):
            member = self.resume(seq)
            # Two reads: one that began further back than the client asked, and one from the client's very position.
            self.assertEqual(self.settle(), 2)
            self.assertFalse(member.joined.recovered)
        self.world.clock.advance(61)
        self.resume(50)
        self.assertEqual(self.settle(), 3)

    def test_a_read_that_nobody_waits_for_is_given_up(self) -> None:
        Member(self.world, "other").subscribe()
        self.world.broker.release()
        self.world.broker.held = []
        one, two = self.resume(150), self.resume(160)
        read = self.world.dispatcher._feeds[TOPIC].reading.running
        self.world.dispatcher.leave(one.connection, TOPIC)
        self.assertFalse(read.called)
        self.world.dispatcher.forget(two.connection)
        self.assertTrue(read.called)
        self.settle()
        self.assertEqual((one.joined, one.failed, two.joined, two.failed), (None,) * 4)
        back = self.resume(150)
        self.settle()
        self.assertEqual(len(back.seqs()), 50)

    def test_a_topic_that_is_lost_gives_its_read_up(self) -> None:
        Member(self.world, "other").subscribe()
        self.world.broker.release()
        self.world.broker.held = []
        member = self.resume(150)
        read = self.world.dispatcher._feeds[TOPIC].reading.running
        self.world.broker.unfollow(TOPIC)
        self.world.dispatcher.lost(TOPIC)
        self.assertEqual((read.called, member.connection.closed), (True, (4004, "history lost")))
        self.settle()
        self.assertIsNone(member.joined)


class Pipelined(SynchronousTestCase):
    """Each of many clients sends its next frame before it has the last answer, and the broker answers at once."""

    def setUp(self) -> None:
        self.world = World(history_size=100)
        for n in range(150):
            self.world.publish(TOPIC, chat_payload(TOPIC, n))
        Member(self.world, "other").subscribe()
        self.clients = [self.world.client(user_id=n) for n in range(300)]
        self.world.broker.held = []
        for client in self.clients:
            for id, seq in enumerate((145, 110, 60)):
                since = {"epoch": self.world.broker._epoch, "seq": seq}
                client.send(type="subscribe", chat_id=TOPIC.id, since=since, id=id)

    def test_a_read_that_fails_is_told_to_each_and_the_topic_can_be_read_later(self) -> None:
        self.world.broker.held = None
        self.world.broker.away = True
        self.world.dispatcher._feeds[TOPIC].reading.running.errback(Unavailable("away"))
        for client in self.clients:
            self.assertEqual([frame["code"] for frame in client.take()], ["unavailable"] * 3)
        self.world.broker.away = False
        self.assertEqual(
            len(Member(self.world, "late").subscribe(Position(self.world.broker._epoch, 120)).seqs()), 30
        )

    def test_a_read_that_succeeds_serves_each(self) -> None:
        self.world.broker.release()
        while self.world.dispatcher._feeds[TOPIC].waiting:
            self.world.turn()
        for client in self.clients:
            frames = client.take()
            self.assertEqual([frame["id"] for frame in frames if frame["type"] == "subscribed"], [0, 1, 2])
            self.assertEqual(len(frames), 3 + 5 + 40 + 90)


class Turns(SynchronousTestCase):
    def test_those_who_wait_for_much_are_answered_over_several_turns_and_miss_nothing(self) -> None:
        world, due = World(), list[Callable[[], None]]()
        world.dispatcher._soon = due.append
        for n in range(102):
            world.publish(TOPIC, chat_payload(TOPIC, n))
        world.broker.held = []
        since = Position(world.broker._epoch, 1)
        members = [Member(world, f"{n}").subscribe(since) for n in range(150)]
        while world.broker.held:
            world.broker.release()
        answered = []
        while due:
            answered.append(sum(member.joined is not None for member in members))
            if len(answered) == 2:
                world.dispatcher.forget(members.pop().connection)
                members.append(Member(world, "late").subscribe(since))
            world.publish(TOPIC, chat_payload(TOPIC))
            turn, due[:] = due[:], []
            for call in turn:
                call()
            if answered[-1] == 150:
                break
        self.assertEqual(answered[-1], 150)
        self.assertTrue(all(0 < now - before <= 51 for before, now in pairwise([0, *answered])), answered)
        for member in members:
            self.assertEqual(member.seqs(), list(range(2, 103 + len(answered))))
        self.assertEqual(world.broker.replays, 1)
