"""The dispatcher: order, no gap and no double, whatever comes while a connection is on its way in."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Limits, Size
from notify.core.dispatcher import Joined
from notify.errors import Unavailable
from notify.messages import Position
from notify.testing import FakeConnection, chat_payload, event_payload
from notify.topics import chat
from notify.wire.encodings import encoding, featured
from tests.support.world import World

TOPIC = chat(1, 10)


class Member:
    """A connection that writes the answer to its subscription, as a session does."""

    def __init__(self, world: World, id: str, name: str = "notify.v1.json", events: bool = False) -> None:
        self.world = world
        made = featured(encoding(name), frozenset(("events",) if events else ()))
        self.connection = FakeConnection(1, id=id, encoding=made)
        self.joined: Joined | None = None
        self.failed: Any = None

    def subscribe(self, since: Position | None = None) -> Member:
        joining: Deferred[Joined] = self.world.dispatcher.subscribe(self.connection, TOPIC, since)
        joining.addCallbacks(self._join, lambda failure: setattr(self, "failed", failure.value))
        return self

    def _join(self, joined: Joined) -> None:
        self.joined = joined
        if joined.bodies:
            self.connection.write(self.connection.encoding.pack(joined.bodies))

    def seqs(self) -> list[int]:
        return [frame["seq"] for frame in self.connection.take()]


class Fanout(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()

    def publish(self, count: int = 1) -> list[int]:
        return [self.world.publish(TOPIC, chat_payload(TOPIC, n)) for n in range(count)]

    def test_members_get_each_message_once_linked_by_prev(self) -> None:
        a, b = Member(self.world, "a").subscribe(), Member(self.world, "b").subscribe()
        one, two = self.publish(2)
        self.world.turn()
        [three] = self.publish()
        self.world.turn()
        for member in (a, b):
            frames = member.connection.take()
            self.assertEqual([(f["prev"], f["seq"]) for f in frames], [(0, one), (one, two), (two, three)])

    def test_the_messages_of_a_turn_are_written_at_once(self) -> None:
        member = Member(self.world, "a", "notify.v1.json.batch").subscribe()
        self.publish(3)
        self.assertEqual(member.connection.frames, [])
        self.world.turn()
        [frame] = member.connection.take()
        self.assertEqual([message["seq"] for message in frame], [1, 2, 3])

    def test_members_of_each_encoding_get_their_own(self) -> None:
        plain = Member(self.world, "a").subscribe()
        batch = Member(self.world, "b", "notify.v1.json.batch").subscribe()
        self.publish(1)
        self.world.turn()
        [message] = plain.connection.take()
        self.assertEqual(batch.connection.take(), [[message]])

    def test_a_topic_is_followed_for_its_first_member_until_its_last_left(self) -> None:
        a, b = Member(self.world, "a").subscribe(), Member(self.world, "b").subscribe()
        self.assertEqual(self.world.broker.follows, 1)
        self.world.dispatcher.leave(a.connection, TOPIC)
        self.publish(1)
        self.world.dispatcher.forget(b.connection)
        self.world.turn()
        self.publish(1)
        self.world.turn()
        self.assertEqual((a.seqs(), b.seqs()), ([], []))
        self.assertEqual(self.world.broker._followed, set())
        self.assertEqual(self.world.sample("notify_topics"), 0)

    def test_a_new_member_gets_nothing_of_the_turn_before_it_came(self) -> None:
        Member(self.world, "a").subscribe()
        [one] = self.publish()
        late = Member(self.world, "b").subscribe()
        self.assertEqual(late.joined, Joined(Position(self.world.broker._epoch, one), False, []))
        [two] = self.publish()
        self.world.turn()
        [frame] = late.connection.take()
        self.assertEqual((frame["prev"], frame["seq"]), (one, two))

    def test_a_member_that_is_closed_while_it_is_written_to_disturbs_nobody(self) -> None:
        members = [Member(self.world, str(n)).subscribe() for n in range(3)]
        for member in members:
            leaving = member.connection

            def write(frame: bytes, leaving: Any = leaving) -> None:
                self.world.dispatcher.forget(leaving)

            leaving.write = write  # type: ignore[method-assign]
        self.publish(1)
        self.world.turn()
        self.assertEqual(self.world.broker._followed, set())

    def test_lost_continuity_closes_the_members_with_4004(self) -> None:
        member = Member(self.world, "a").subscribe()
        self.publish(1)
        self.world.dispatcher.lost(TOPIC)
        self.world.turn()
        self.assertEqual(member.connection.closed, (4004, "history lost"))
        self.assertEqual(member.seqs(), [])
        again = Member(self.world, "b").subscribe()
        self.publish(1)
        self.world.turn()
        self.assertEqual(again.seqs(), [2])

    def test_delivery_is_counted_and_timed(self) -> None:
        Member(self.world, "a").subscribe()
        Member(self.world, "b").subscribe()
        self.publish(2)
        self.world.clock.advance(0.02)
        self.assertEqual(self.world.sample("notify_delivered_total"), 4)
        self.assertEqual(self.world.sample("notify_received_total"), 2)
        self.assertEqual(self.world.sample("notify_delivery_seconds_count"), 2)


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

    def test_messages_published_while_it_runs_arrive_once_and_in_order(self) -> None:
        Member(self.world, "other").subscribe()
        self.publish(2)
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
        self.assertEqual((member.joined.recovered, member.joined.position.seq), (True, 3))
        self.world.broker.catch_up()
        self.publish(1)
        self.world.turn()
        self.publish(1)
        self.world.turn()
        self.assertEqual(member.seqs(), [1, 2, 3, 4, 5])
        self.assertEqual(other.seqs(), [1, 2, 3, 4, 5])

    def test_a_resumption_that_was_too_large_leaves_nothing_of_it_in_prev(self) -> None:
        Member(self.world, "other").subscribe()
        self.publish(1)
        self.world.turn()
        self.world.broker.undelivered = []
        self.publish(1)
        member = Member(self.world, "a").subscribe(self.since(0))
        self.assertEqual((member.joined.recovered, member.joined.position.seq), (True, 2))
        member.connection.take()
        self.publish(3)
        self.world.reload(limits=Limits(send_queue=Size(300)))
        member.subscribe(self.since(0))
        self.assertEqual((member.joined.recovered, member.joined.position.seq), (False, 2))
        self.world.broker.catch_up()
        self.world.turn()
        self.assertEqual([(f["prev"], f["seq"]) for f in member.connection.take()], [(2, 3), (3, 4), (4, 5)])

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
        other = Member(self.world, "b").subscribe()
        self.publish(1)
        self.world.broker.away = True
        resuming = Member(self.world, "c").subscribe(self.since(0))
        self.assertIsInstance(resuming.failed, Unavailable)
        self.world.turn()
        self.assertEqual((member.seqs(), other.seqs(), resuming.seqs()), ([], [1], []))
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


class Kinds(SynchronousTestCase):
    """Events are for those who asked; ``prev`` is what this kind of receiver was sent before."""

    def setUp(self) -> None:
        self.world = World()

    def message(self) -> int:
        return self.world.publish(TOPIC, chat_payload(TOPIC))

    def event(self) -> int:
        return self.world.publish(TOPIC, event_payload(TOPIC, refers_to=1))

    def links(self, member: Member) -> list[tuple[str, int, int]]:
        return [(f["type"][5:], f["prev"], f["seq"]) for f in member.connection.take()]

    def test_each_kind_has_a_chain_of_its_own(self) -> None:
        plain, all = Member(self.world, "a").subscribe(), Member(self.world, "b", events=True).subscribe()
        self.message()
        self.event()
        self.world.turn()
        self.event()
        self.world.turn()
        self.message()
        self.world.turn()
        self.assertEqual(self.links(plain), [("message", 0, 1), ("message", 1, 4)])
        self.assertEqual(
            self.links(all), [("message", 0, 1), ("event", 1, 2), ("event", 2, 3), ("message", 3, 4)]
        )
        self.world.clock.advance(0)
        self.assertEqual(self.world.sample("notify_delivered_total"), 2 + 4)

    def test_a_turn_of_events_alone_writes_nothing_to_others(self) -> None:
        for name in ("notify.v1.json", "notify.v1.json.batch", "notify.v1.protobuf"):
            member = Member(self.world, name, name).subscribe()
            self.event()
            self.world.turn()
            self.assertEqual(member.connection.frames, [], name)

    def test_what_was_newest_at_the_follow_is_somebodys_prev_only_if_it_was_for_them(self) -> None:
        self.message()
        self.event()
        plain, all = Member(self.world, "a").subscribe(), Member(self.world, "b", events=True).subscribe()
        self.assertEqual((plain.joined.position.seq, all.joined.position.seq), (2, 2))
        self.message()
        self.world.turn()
        self.assertEqual(self.links(plain), [("message", 0, 3)])
        self.assertEqual(self.links(all), [("message", 2, 3)])

    def test_poison_that_is_newest_at_the_follow_is_nobodys_prev(self) -> None:
        self.message()
        self.world.broker.poison(TOPIC)
        member = Member(self.world, "a").subscribe(Position(self.world.broker._epoch, 1))
        self.assertEqual((member.joined.recovered, member.joined.position.seq), (True, 2))
        self.message()
        self.world.turn()
        self.assertEqual(self.links(member), [("message", 0, 3)])

    def test_a_replay_brings_what_is_for_the_receiver_and_goes_on_from_there(self) -> None:
        self.message()
        self.event()
        self.message()
        self.event()
        since = Position(self.world.broker._epoch, 1)
        plain = Member(self.world, "a").subscribe(since)
        all = Member(self.world, "b", events=True).subscribe(since)
        self.assertEqual((plain.joined.position.seq, all.joined.position.seq), (4, 4))
        self.message()
        self.world.turn()
        self.assertEqual(self.links(plain), [("message", 1, 3), ("message", 0, 5)])
        self.assertEqual(
            self.links(all), [("event", 1, 2), ("message", 2, 3), ("event", 3, 4), ("message", 4, 5)]
        )

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(
            st.sampled_from(
                [
                    "publish",
                    "event",
                    "poison",
                    "turn",
                    "join",
                    "resume",
                    "leave",
                    "hold",
                    "release",
                    "lag",
                    "catch up",
                ]
            ),
            max_size=60,
        ),
        st.randoms(use_true_random=False),
    )
    def test_no_gap_for_any_kind_whatever_the_order(self, steps: list[str], random: Any) -> None:
        world = World()
        members: list[tuple[Member, int]] = []
        kinds: list[str] = [""]
        left: set[Member] = set()
        for number, step in enumerate(steps):
            broker = world.broker
            match step:
                case "publish":
                    world.publish(TOPIC, chat_payload(TOPIC))
                    kinds.append("chat_message")
                case "event":
                    world.publish(TOPIC, event_payload(TOPIC))
                    kinds.append("chat_event")
                case "poison":
                    broker.poison(TOPIC)
                    kinds.append("")
                case "turn":
                    world.turn()
                case "join":
                    member = Member(world, f"m{number}", events=random.random() < 0.5)
                    members.append((member.subscribe(), -1))
                case "resume":
                    since = random.randint(0, len(kinds) - 1)
                    member = Member(world, f"m{number}", events=random.random() < 0.5)
                    members.append((member.subscribe(Position(broker._epoch, since)), since))
                case "leave" if members:
                    member, _ = random.choice(members)
                    world.dispatcher.leave(member.connection, TOPIC)
                    left.add(member)
                case "hold":
                    broker.held = broker.held if broker.held is not None else []
                case "release":
                    broker.release()
                case "lag":
                    broker.undelivered = broker.undelivered if broker.undelivered is not None else []
                case "catch up":
                    broker.catch_up()
        world.broker.release()
        world.broker.catch_up()
        world.publish(TOPIC, chat_payload(TOPIC))
        kinds.append("chat_message")
        world.turn()
        for member, since in members:
            if member in left:
                continue
            wanted = {"chat_message", "chat_event"} if member.connection.encoding.events else {"chat_message"}
            start = since if since >= 0 else member.joined.position.seq
            frames = member.connection.take()
            self.assertEqual(
                [(f["seq"], f["type"]) for f in frames],
                [(seq, kind) for seq, kind in enumerate(kinds) if seq > start and kind in wanted],
            )
            # docs/client.md, rule 11: what a client knows is what it was sent, and what the answer said.
            replayed = [f for f in frames if f["seq"] <= member.joined.position.seq]
            known = start
            for f in frames:
                self.assertTrue(f["prev"] <= known, (f, known))
                self.assertIn(
                    f["prev"], {0, start, *(seq for seq, kind in enumerate(kinds) if kind in wanted)}
                )
                known = f["seq"] if f in replayed else max(f["seq"], member.joined.position.seq)


class AnyOrder(SynchronousTestCase):
    """Whatever happens in whatever order, every member sees every message after its position once, in order."""

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.sampled_from(["publish", "turn", "join", "resume", "hold", "release", "lag", "catch up"]),
            max_size=60,
        ),
        st.randoms(use_true_random=False),
    )
    def test_no_gap_and_no_double(self, steps: list[str], random: Any) -> None:
        world = World()
        members: list[tuple[Member, int]] = []
        Member(world, "first").subscribe()
        newest = 0
        for number, step in enumerate(steps):
            broker = world.broker
            match step:
                case "publish":
                    newest = world.publish(TOPIC, chat_payload(TOPIC))
                case "turn":
                    world.turn()
                case "join":
                    members.append((Member(world, f"m{number}").subscribe(), -1))
                case "resume":
                    since = random.randint(0, newest)
                    members.append(
                        (Member(world, f"m{number}").subscribe(Position(broker._epoch, since)), since)
                    )
                case "hold":
                    broker.held = broker.held if broker.held is not None else []
                case "release":
                    broker.release()
                case "lag":
                    broker.undelivered = broker.undelivered if broker.undelivered is not None else []
                case "catch up":
                    broker.catch_up()
        world.broker.release()
        world.broker.catch_up()
        newest = world.publish(TOPIC, chat_payload(TOPIC))
        world.turn()
        for member, since in members:
            start = since if since >= 0 else member.joined.position.seq
            frames = member.connection.take()
            self.assertEqual([f["seq"] for f in frames], list(range(start + 1, newest + 1)))
            self.assertEqual([f["prev"] for f in frames], list(range(start, newest)))
