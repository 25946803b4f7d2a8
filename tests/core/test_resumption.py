"""Resumptions: from memory if possible, and otherwise by one read of the history for all."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from notify.config import Duration, Limits, Size
from notify.core import dispatcher
from notify.core.feed import Joined
from notify.errors import Unavailable
from notify.messages import Position
from notify.testing import chat_payload, event_payload
from notify.topics import chat
from tests.support.member import TOPIC, Member
from tests.support.world import World


class Resumption(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.epoch = self.world.broker._epoch

    def publish(self, count: int = 1) -> list[int]:
        return [self.world.publish(TOPIC, chat_payload(TOPIC, n)) for n in range(count)]

    def since(self, seq: int) -> Position:
        return Position(self.epoch, seq)

    def test_gives_what_came_after_the_position_then_goes_on_live(self) -> None:
        self.publish(3)
        member = Member(self.world, "a").subscribe(self.since(1))
        self.assertEqual((member.joined.recovered, member.joined.position.seq), (True, 3))
        self.publish(1)
        self.world.turn()
        frames = member.connection.take()
        self.assertEqual([(f["prev"], f["seq"]) for f in frames], [(1, 2), (2, 3), (3, 4)])

    def test_from_the_newest_position_the_broker_is_not_asked(self) -> None:
        self.publish(3)
        member = Member(self.world, "a").subscribe(self.since(3))
        self.assertEqual((member.joined.recovered, self.world.broker.replays), (True, 0))
        self.assertEqual(self.world.sample("notify_replays_total", outcome="recovered"), 1)

    def test_is_not_recovered_from_another_epoch_or_out_of_what_is_kept(self) -> None:
        self.publish(3)
        Member(self.world, "other").subscribe()
        for since in (Position("another", 3), self.since(4), self.since(-1), self.since(2**63 - 1)):
            member = Member(self.world, repr(since)).subscribe(since)
            self.assertEqual(member.joined, Joined(self.since(3), False, []))
        self.assertEqual(self.world.sample("notify_replays_total", outcome="lost"), 4)

    def test_from_before_the_first_message_only_where_none_has_gone(self) -> None:
        world = World(Limits(linger=Duration(0)), history_age=10)
        start = Position(world.broker._epoch, 0)

        def recovered() -> bool:
            member = Member(world, "a").subscribe(start)
            world.dispatcher.forget(member.connection)
            return member.joined.recovered

        self.assertTrue(recovered())
        world.publish(TOPIC, chat_payload(TOPIC))
        self.assertTrue(recovered())
        world.clock.advance(11)
        self.assertFalse(recovered())
        world.publish(chat(1, 99), chat_payload(chat(1, 99)))
        self.assertEqual(world.broker._histories.keys(), {chat(1, 99)})
        self.assertFalse(recovered())

    def test_from_before_the_first_message_is_asked_for_once(self) -> None:
        start = self.since(0)
        for name in "abc":
            self.assertTrue(Member(self.world, name).subscribe(start).joined.recovered)
        self.publish(2)
        self.assertEqual(Member(self.world, "d").subscribe(start).seqs(), [1, 2])
        self.assertEqual(self.world.broker.replays, 1)

    def test_of_more_than_the_limit_is_not_recovered(self) -> None:
        self.world.reload(limits=Limits(replay=2))
        self.publish(3)
        self.assertTrue(Member(self.world, "a").subscribe(self.since(1)).joined.recovered)
        long = Member(self.world, "b").subscribe(self.since(0))
        self.assertEqual(long.joined, Joined(self.since(3), False, [], 3))
        self.assertEqual(self.world.sample("notify_replays_total", outcome="too_long"), 1)

    def test_of_more_bytes_than_the_send_queue_holds_is_not_recovered(self) -> None:
        self.world.reload(limits=Limits(send_queue=Size(300)))
        self.publish(3)
        self.assertTrue(Member(self.world, "a").subscribe(self.since(2)).joined.recovered)
        self.assertFalse(Member(self.world, "b").subscribe(self.since(0)).joined.recovered)

    def test_of_more_bytes_than_that_is_not_even_encoded(self) -> None:
        Member(self.world, "other").subscribe()
        self.publish(3)
        self.world.turn()
        self.world.reload(limits=Limits(send_queue=Size(150)))
        self.patch(dispatcher, "linked", lambda *_: self.fail("encoded"))
        long = Member(self.world, "a").subscribe(self.since(1))
        self.assertFalse(long.joined.recovered)

    def test_messages_published_while_it_runs_arrive_once_and_in_order(self) -> None:
        self.publish(2)
        Member(self.world, "other").subscribe()
        self.world.broker.held = []
        member = Member(self.world, "a").subscribe(self.since(0))
        self.publish(2)
        self.world.turn()
        self.publish(1)
        self.assertIsNone(member.joined)
        self.world.broker.release()
        self.publish(1)
        self.world.turn()
        frames = member.connection.take()
        self.assertEqual([(f["prev"], f["seq"]) for f in frames], [(n - 1, n) for n in range(1, 7)])

    def test_a_history_ahead_of_its_deliveries_doubles_nothing(self) -> None:
        other = Member(self.world, "other").subscribe()
        self.publish(1)
        self.world.turn()
        self.world.broker.undelivered = []
        self.publish(2)
        member = Member(self.world, "a").subscribe(self.since(0))
        self.assertEqual((member.joined.recovered, member.joined.position.seq), (True, 1))
        self.world.broker.catch_up()
        self.publish(1)
        self.world.turn()
        self.publish(1)
        self.world.turn()
        self.assertEqual(member.seqs(), [1, 2, 3, 4, 5])
        self.assertEqual(other.seqs(), [1, 2, 3, 4, 5])

    def test_a_member_may_resume_again_to_fill_a_gap(self) -> None:
        member = Member(self.world, "a").subscribe()
        self.publish(2)
        self.world.turn()
        self.assertEqual(member.seqs(), [1, 2])
        member.subscribe(self.since(1))
        self.publish(1)
        self.world.turn()
        self.assertEqual(member.seqs(), [2, 3])

    def test_a_broker_that_is_away_makes_no_member(self) -> None:
        self.world.broker.away = True
        member = Member(self.world, "a").subscribe()
        self.assertIsInstance(member.failed, Unavailable)
        self.world.broker.away = False
        self.publish(1)
        other = Member(self.world, "b").subscribe()
        self.publish(1)
        self.world.broker.away = True
        resuming = Member(self.world, "c").subscribe(self.since(0))
        self.assertIsInstance(resuming.failed, Unavailable)
        self.world.turn()
        self.assertEqual((member.seqs(), other.seqs(), resuming.seqs()), ([], [2], []))
        self.assertEqual(set(self.world.registry.members(TOPIC)), {other.connection})
        self.assertEqual(self.world.sample("notify_topics"), 1)

    def test_connections_that_come_while_the_topic_starts_share_one_follow(self) -> None:
        self.world.broker.held = []
        members = [Member(self.world, str(n)).subscribe() for n in range(3)]
        gone = members.pop()
        self.world.dispatcher.forget(gone.connection)
        self.world.broker.release()
        self.publish(1)
        self.world.turn()
        self.assertEqual([m.seqs() for m in members], [[1], [1]])
        self.assertEqual((gone.joined, gone.seqs(), self.world.broker.follows), (None, [], 1))

    def test_a_topic_that_everyone_left_while_it_started_is_unfollowed(self) -> None:
        self.world.broker.held = []
        member = Member(self.world, "a").subscribe()
        self.world.dispatcher.forget(member.connection)
        self.world.broker.release()
        self.world.clock.advance(61)
        self.assertEqual(self.world.broker._followed, set())
        self.assertEqual(self.world.sample("notify_topics"), 0)

    def test_who_leaves_while_a_replay_runs_gets_nothing(self) -> None:
        self.publish(1)
        self.world.broker.held = []
        member = Member(self.world, "a").subscribe(self.since(0))
        held, self.world.broker.held = self.world.broker.held, []
        held[0]()
        self.world.dispatcher.leave(member.connection, TOPIC)
        self.world.broker.release()
        self.assertEqual((member.joined, member.seqs()), (None, []))


class Memory(SynchronousTestCase):
    """What was delivered while the topic was followed is not read again."""

    def setUp(self) -> None:
        self.world = World()
        self.epoch = self.world.broker._epoch
        self.fill(5)
        self.other = Member(self.world, "other").subscribe()

    def fill(self, count: int) -> None:
        for n in range(count):
            self.world.publish(TOPIC, chat_payload(TOPIC, n))
        self.world.turn()

    def resume(self, seq: int, id: str = "a") -> Member:
        return Member(self.world, id).subscribe(Position(self.epoch, seq))

    def test_a_resumption_from_where_it_was_followed_on_is_answered_out_of_memory(self) -> None:
        self.fill(4)
        for seq in range(5, 10):
            self.assertEqual(self.resume(seq, f"at {seq}").seqs(), list(range(seq + 1, 10)))
        self.assertEqual(self.world.broker.replays, 0)
        self.assertEqual(self.world.sample("notify_replays_from_memory_total"), 5)
        self.assertEqual(self.world.sample("notify_replay_reads_total"), 0)

    def test_what_was_read_for_one_is_there_for_the_next(self) -> None:
        self.assertEqual(self.resume(2, "first").seqs(), [3, 4, 5])
        self.assertEqual(self.resume(2, "second").seqs(), [3, 4, 5])
        self.assertEqual(self.resume(4, "third").seqs(), [5])
        self.assertEqual(self.world.broker.replays, 1)
        self.assertEqual(self.world.sample("notify_replay_reads_total"), 1)
        self.assertEqual(self.world.sample("notify_replays_from_memory_total"), 2)
        self.assertEqual(self.world.sample("notify_replays_total", outcome="recovered"), 3)

    def test_more_than_one_resumption_may_get_is_not_kept(self) -> None:
        self.world.reload(limits=Limits(replay=3))
        self.fill(10)
        self.assertEqual(self.world.dispatcher._recents.count, 3)
        self.assertEqual(self.resume(12, "a").seqs(), [13, 14, 15])
        self.assertFalse(self.resume(11, "b").joined.recovered)
        self.assertEqual(
            (self.world.broker.replays, self.world.sample("notify_replays_total", outcome="too_long")), (0, 1)
        )

    def test_what_has_gone_for_lack_of_room_is_read_again(self) -> None:
        self.fill(3)
        self.world.reload(limits=Limits(recent_messages=2))
        self.fill(1)
        self.assertEqual((self.resume(7, "a").seqs(), self.world.broker.replays), ([8, 9], 0))
        self.assertEqual((self.resume(6, "b").seqs(), self.world.broker.replays), ([7, 8, 9], 1))

    def test_a_second_of_the_same_position_gets_what_came_in_between(self) -> None:
        self.world.broker.held, self.world.broker.early = [], True
        first = self.resume(3, "first")
        self.fill(1)
        second = self.resume(3, "second")
        self.world.broker.release()
        for member in (first, second):
            self.assertEqual((member.joined.position.seq, member.seqs()), (6, [4, 5, 6]))
        self.assertEqual(self.world.broker.replays, 1)

    def test_what_is_read_is_overtaken_and_read_again_and_in_the_end_refused(self) -> None:
        self.world.reload(limits=Limits(recent_messages=1))
        for rounds, expected in ((2, [4, 5, 6, 7, 8, 9]), (3, None)):
            self.world.broker.early = True
            self.world.broker.held = []
            member = self.resume(self.newest() - 2, f"{rounds} rounds")
            for _ in range(rounds):
                self.fill(2)
                held, self.world.broker.held = self.world.broker.held, []
                for go in held:
                    go()
            self.world.broker.release()
            if expected is None:
                self.assertIsInstance(member.failed, Unavailable)
            else:
                self.assertEqual(member.seqs(), expected)
        self.assertEqual(self.world.sample("notify_replays_total", outcome="unavailable"), 1)

    def newest(self) -> int:
        return self.world.broker._seq


class Ahead(SynchronousTestCase):
    """Clients that have seen more, on another node, than was delivered here."""

    def setUp(self) -> None:
        self.world = World()
        self.epoch = self.world.broker._epoch
        self.other = Member(self.world, "other").subscribe()
        self.world.publish(TOPIC, chat_payload(TOPIC))
        self.world.turn()
        self.world.broker.undelivered = []
        for n in range(4):
            self.world.publish(TOPIC, chat_payload(TOPIC, n) if n != 2 else event_payload(TOPIC))

    def resume(self, seq: int, events: bool = False) -> Member:
        return Member(self.world, f"at {seq}", events=events).subscribe(Position(self.epoch, seq))

    def links(self, member: Member) -> list[tuple[int, int]]:
        return [(frame["prev"], frame["seq"]) for frame in member.connection.take()]

    def test_is_recovered_and_sent_what_comes_behind_its_position(self) -> None:
        members = [self.resume(3), self.resume(4), self.resume(4, events=True), self.resume(5)]
        self.assertEqual([m.joined.position.seq for m in members], [3, 4, 4, 5])
        self.assertTrue(all(m.joined.recovered for m in members))
        self.world.broker.catch_up()
        self.world.publish(TOPIC, chat_payload(TOPIC))
        self.world.turn()
        self.assertEqual(
            [self.links(m) for m in members], [[(3, 5), (5, 6)], [(3, 5), (5, 6)], [(4, 5), (5, 6)], [(5, 6)]]
        )
        self.assertEqual(self.other.seqs(), [1, 2, 3, 5, 6])
        self.assertEqual(self.world.dispatcher._feeds[TOPIC].ahead, {})

    def test_those_who_wait_share_a_question_and_what_it_showed_is_known(self) -> None:
        self.world.broker.held = []
        members = [self.resume(seq) for seq in (3, 2, 5, 4)]
        self.world.broker.release()
        self.assertTrue(all(m.joined.recovered for m in members))
        self.assertEqual(self.world.broker.replays, 2)
        self.assertTrue(self.resume(4).joined.recovered)
        self.assertEqual(self.world.broker.replays, 2)

    def test_is_not_recovered_from_a_position_that_there_is_not(self) -> None:
        member = self.resume(6)
        self.assertEqual(member.joined, Joined(Position(self.epoch, 1), False, []))
        self.world.broker.catch_up()
        self.world.turn()
        self.assertEqual(member.seqs(), [2, 3, 5])

    def test_what_is_published_after_another_was_refused_is_asked_for(self) -> None:
        self.world.broker.held, self.world.broker.early = [], True
        liar = self.resume(6)
        self.world.publish(TOPIC, chat_payload(TOPIC))
        honest = self.resume(6)
        self.world.broker.release()
        self.assertEqual((liar.joined.recovered, honest.joined.recovered), (False, True))

    def test_goes_on_from_there_when_it_subscribes_again(self) -> None:
        member = self.resume(4)
        member.subscribe()
        self.assertEqual(member.joined, Joined(Position(self.epoch, 4), False, []))
        self.world.broker.catch_up()
        self.world.turn()
        self.assertEqual(self.links(member), [(3, 5)])
