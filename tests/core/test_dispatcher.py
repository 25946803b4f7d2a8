"""The dispatcher: order, no gaps and no duplicates, whatever comes while a connection is subscribing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.core import dispatcher
from notify.core.dispatcher import TOGETHER, end_of_turn
from notify.core.feed import Joined, Outgoing
from notify.messages import ChatEvent, Message, Position
from notify.observe.tracing import PassingSpan
from notify.testing import chat_payload, event_payload
from notify.topics import chat
from notify.wire.frames import TEXT, Made, websocket_frame
from tests.support.member import TOPIC, Member
from tests.support.world import World

OTHER = chat(1, 11)


class EndOfTurn(SynchronousTestCase):
    """Calls at the end of a turn."""

    def test_all_of_a_turn_is_one_call_in_order_and_one_that_fails_stops_no_other(self) -> None:
        clock, done = Clock(), []
        soon = end_of_turn(clock)

        def fails() -> None:
            raise ValueError

        soon(lambda: done.append(1))
        soon(fails)
        soon(lambda: (done.append(2), soon(lambda: done.append(4))))  # type: ignore[func-returns-value, arg-type, return-value]
        soon(lambda: done.append(3))
        [call] = clock.getDelayedCalls()
        clock.calls.remove(call)
        call.func()
        self.assertEqual((done, len(clock.getDelayedCalls())), ([1, 2, 3], 1))
        clock.advance(0)
        self.assertEqual(done, [1, 2, 3, 4])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


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

    def test_a_topic_is_followed_for_its_first_member_until_some_time_after_its_last_left(self) -> None:
        a, b = Member(self.world, "a").subscribe(), Member(self.world, "b").subscribe()
        self.assertEqual(self.world.broker.follows, 1)
        self.world.dispatcher.leave(a.connection, TOPIC)
        self.publish(1)
        self.world.dispatcher.forget(b.connection)
        self.world.turn()
        self.publish(1)
        self.world.turn()
        self.assertEqual((a.seqs(), b.seqs()), ([], []))
        self.world.clock.advance(61)
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
        self.assertEqual(set(self.world.registry.members(TOPIC)), set())
        self.world.clock.advance(61)
        self.assertEqual(self.world.broker._followed, set())
        self.assertEqual(self.world.dispatcher._recents.count, 0)

    def test_who_comes_while_another_topic_is_written_misses_nothing_and_gets_nothing_twice(self) -> None:
        here, there = (
            Member(self.world, "here").subscribe(),
            Member(self.world, "there").subscribe(topic=OTHER),
        )
        self.world.publish(OTHER, chat_payload(OTHER, 1))
        self.world.turn()
        there.connection.take()
        start = Position(self.world.broker._epoch, 0)
        late, back = Member(self.world, "late"), Member(self.world, "back")
        write = here.connection.write

        def writing(frame: bytes) -> None:
            write(frame)
            # By now, the message in OTHER is encoded but not written.
            late.subscribe(topic=OTHER)
            back.subscribe(start, topic=OTHER)

        here.connection.write = writing  # type: ignore[method-assign]
        self.publish(1)
        self.world.publish(OTHER, chat_payload(OTHER, 2))
        self.world.turn()
        here.connection.write = write  # type: ignore[method-assign]
        self.world.publish(OTHER, chat_payload(OTHER, 3))
        self.world.turn()
        for member, expected in ((there, [2, 3]), (late, [3]), (back, [1, 2, 3])):
            frames = member.connection.take()
            self.assertEqual([frame["message_id"] for frame in frames], expected)
            for before, frame in pairwise(frames):
                self.assertEqual(frame["prev"], before["seq"])

    def test_what_comes_for_a_topic_between_its_encoding_and_its_writing_is_behind_what_is_encoded(
        self,
    ) -> None:
        here, there = (
            Member(self.world, "here").subscribe(),
            Member(self.world, "there").subscribe(topic=OTHER),
        )
        late = Member(self.world, "late")
        write = here.connection.write

        def writing(frame: bytes) -> None:
            write(frame)
            # The first message in OTHER is encoded by now, and not written.
            self.world.publish(OTHER, chat_payload(OTHER, 2))
            late.subscribe(topic=OTHER)

        here.connection.write = writing  # type: ignore[method-assign]
        self.publish(1)
        self.world.publish(OTHER, chat_payload(OTHER, 1))
        self.world.turn()
        here.connection.write = write  # type: ignore[method-assign]
        self.world.publish(OTHER, chat_payload(OTHER, 3))
        self.world.turn()
        for member, expected in ((there, [1, 2, 3]), (late, [3])):
            frames = member.connection.take()
            self.assertEqual([frame["message_id"] for frame in frames], expected)
            for before, frame in pairwise(frames):
                self.assertEqual(frame["prev"], before["seq"])

    def test_what_comes_for_a_topic_while_it_is_written_reaches_its_members_afterwards(self) -> None:
        first, second, late = (Member(self.world, name) for name in ("first", "second", "late"))
        first.subscribe()
        second.subscribe()
        write = first.connection.write

        def writing(frame: bytes) -> None:
            first.connection.write = write  # type: ignore[method-assign]
            write(frame)
            self.world.publish(TOPIC, chat_payload(TOPIC, 2))
            late.subscribe()

        first.connection.write = writing  # type: ignore[method-assign]
        self.world.publish(TOPIC, chat_payload(TOPIC, 1))
        self.world.turn()
        self.world.turn()
        for member, expected in ((first, [1, 2]), (second, [1, 2]), (late, [2])):
            frames = member.connection.take()
            self.assertEqual([frame["message_id"] for frame in frames], expected)
            self.assertEqual([frame["prev"] for frame in frames], [frame["seq"] - 1 for frame in frames])
        self.assertEqual(self.world.sample("notify_delivered_total"), 5)

    def test_what_comes_while_a_member_that_is_ahead_is_written_to_is_behind_the_rest(self) -> None:
        here, ahead, late = (Member(self.world, name) for name in ("here", "ahead", "late"))
        here.subscribe()
        self.world.broker.undelivered = []
        self.publish(2)
        ahead.subscribe(Position(self.world.broker._epoch, 2))
        self.publish(1)
        write = ahead.connection.write

        def writing(frame: bytes) -> None:
            ahead.connection.write = write  # type: ignore[method-assign]
            write(frame)
            self.publish(1)
            late.subscribe()

        ahead.connection.write = writing  # type: ignore[method-assign]
        self.world.broker.catch_up()
        self.world.turn()
        self.world.turn()
        for member, expected in ((here, [1, 2, 3, 4]), (ahead, [3, 4]), (late, [4])):
            frames = member.connection.take()
            self.assertEqual([frame["seq"] for frame in frames], expected)
            self.assertEqual([frame["prev"] for frame in frames], [seq - 1 for seq in expected])

    def test_a_turn_of_many_topics_reaches_all_whose_delivery_does_not_fail(self) -> None:
        topics = [chat(1, 100 + n) for n in range(2 * TOGETHER + 1)]
        members = [Member(self.world, str(n)).subscribe(topic=topic) for n, topic in enumerate(topics)]

        def write(frame: bytes) -> None:
            raise RuntimeError

        broken = (0, TOGETHER - 1, TOGETHER, 2 * TOGETHER)
        for n in broken:
            members[n].connection.write = write  # type: ignore[method-assign]
        for topic in topics:
            self.world.publish(topic, chat_payload(topic, 1))
        self.world.turn()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), len(broken))
        for n, member in enumerate(members):
            got = [frame["message_id"] for frame in member.connection.take()]
            self.assertEqual(
                (got, member.connection.closed), ([], (4004, "history lost")) if n in broken else ([1], None)
            )

    def test_a_topic_whose_delivery_fails_is_resumed_and_others_get_theirs(self) -> None:
        broken, beside = Member(self.world, "broken").subscribe(), Member(self.world, "beside").subscribe()
        elsewhere = Member(self.world, "elsewhere").subscribe(topic=OTHER)

        def write(frame: bytes) -> None:
            raise RuntimeError

        broken.connection.write = write  # type: ignore[method-assign]
        self.publish(1)
        self.world.publish(OTHER, chat_payload(OTHER, 7))
        self.world.turn()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual([frame["message_id"] for frame in elsewhere.connection.take()], [7])
        self.assertEqual(broken.connection.closed, (4004, "history lost"))
        self.assertEqual(beside.connection.closed, (4004, "history lost"))
        for member in (broken, beside):
            self.world.dispatcher.forget(member.connection)
        again = Member(self.world, "again").subscribe()
        self.assertEqual(self.world.broker._followed, {TOPIC, OTHER})
        self.publish(1)
        self.world.turn()
        self.assertEqual(again.seqs()[-1], 3)

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


class Recorded(PassingSpan):
    """A span that records how it ended."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ended: list[str] = []

    def fail(self, reason: str) -> None:
        self.ended.append(reason)

    def end(self) -> None:
        self.ended.append("end")


class Traced(SynchronousTestCase):
    """A span ends, whatever becomes of its message."""

    def setUp(self) -> None:
        self.world = World()
        self.spans: list[Recorded] = []
        self.world.dispatcher.tracer = self  # type: ignore[assignment]
        self.here = Member(self.world, "here").subscribe()
        self.there = Member(self.world, "there").subscribe(topic=OTHER)

    def span(self, name: str, parent: str = "", attributes: Any = None, *, root: bool = False) -> Recorded:
        self.spans.append(Recorded(name))
        return self.spans[-1]

    def stop(self) -> None:
        pass

    def ended(self) -> list[list[str]]:
        """How the spans of a message in each topic ended."""
        for topic in (TOPIC, OTHER):
            self.world.broker.publish(topic, chat_payload(topic, 1), None, f"00-{1:032x}-{1:016x}-01")
        self.world.turn()
        return [span.ended for span in self.spans]

    def test_once_it_is_written(self) -> None:
        self.assertEqual(self.ended(), [["end"], ["end"]])

    def test_if_its_topic_is_dropped_before_it_is_written(self) -> None:
        self.here.connection.write = lambda frame: self.world.dispatcher.lost(OTHER)  # type: ignore[method-assign]
        self.assertEqual(self.ended(), [["end"], ["the topic is no longer followed", "end"]])
        self.assertEqual(self.there.connection.frames, [])

    def test_if_its_topic_is_dropped_while_it_is_written(self) -> None:
        self.here.connection.write = lambda frame: self.world.dispatcher.lost(TOPIC)  # type: ignore[method-assign]
        self.assertEqual(self.ended(), [["end"], ["end"]])

    def test_if_it_cannot_be_written(self) -> None:
        def write(frame: bytes) -> None:
            raise RuntimeError

        self.here.connection.write = write  # type: ignore[method-assign]
        self.assertEqual(self.ended(), [["RuntimeError", "end"], ["end"]])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_if_it_cannot_be_encoded(self) -> None:
        self.patch(dispatcher, "Outgoing", Unencodable)
        self.assertEqual(self.ended(), [["the topic is no longer followed", "end"]] * 2)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)


class Unencodable(Outgoing):
    """Messages that no encoding takes."""

    def __missing__(self, encoding: Any) -> bytes:
        raise RuntimeError


class Ahead:
    """Delivers messages together with frames that were made ahead, as another process does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.held: list[Message] = []
        self.prev = 0
        world.broker.start(self.held.append, world.dispatcher.lost)

    def deliver(self) -> Made | None:
        """Deliver what was published since the last call; returns its frames."""
        messages, self.held[:] = [*self.held], []
        made = Made.of(messages, self.prev) if messages else None
        for message in messages:
            if not isinstance(message.event, ChatEvent):
                self.prev = message.position.seq
        if messages:
            self.world.dispatcher.deliver_together(TOPIC, messages, made)
        return made


class MadeAhead(SynchronousTestCase):
    """Messages that come together with their frames."""

    def setUp(self) -> None:
        self.world = World()
        self.ahead = Ahead(self.world)

    def deliver(self, *payloads: bytes) -> Any:
        for payload in payloads:
            self.world.publish(TOPIC, payload)
        return self.ahead.deliver()

    def test_the_frame_is_written_as_it_is_and_all_of_a_turn_at_once(self) -> None:
        member = Member(self.world, "a").subscribe()
        with_events = Member(self.world, "b", events=True).subscribe()
        for number in 1, 2:
            self.world.publish(TOPIC, chat_payload(TOPIC, number))
            frame = websocket_frame(b'{"seq":"made %d"}' % number, TEXT)
            made = Made(number - 1, number, frame)
            self.world.dispatcher.deliver_together(TOPIC, [self.ahead.held.pop()], made)
        self.world.turn()
        for one in member, with_events:
            self.assertEqual(one.seqs(), ["made 1", "made 2"])
        self.assertEqual(self.world.sample("notify_delivered_total"), 4)

    def test_a_frame_that_is_linked_otherwise_is_not_written(self) -> None:
        member = Member(self.world, "a").subscribe()
        self.ahead.prev = 5
        self.deliver(chat_payload(TOPIC, 1))
        self.world.turn()
        self.deliver(chat_payload(TOPIC, 2))
        self.world.turn()
        self.assertEqual([(f["prev"], f["seq"]) for f in member.connection.take()], [(0, 1), (1, 2)])

    def test_a_message_that_comes_alone_in_the_same_turn_is_not_left_out(self) -> None:
        member = Member(self.world, "a").subscribe()
        self.deliver(chat_payload(TOPIC, 1))
        self.world.publish(TOPIC, chat_payload(TOPIC, 2))
        self.world.dispatcher.deliver(self.ahead.held.pop())
        self.world.publish(TOPIC, chat_payload(TOPIC, 3))
        self.ahead.deliver()
        self.world.turn()
        self.assertEqual(member.seqs(), [1, 2, 3])

    def test_what_nobody_here_wants_is_dropped(self) -> None:
        self.deliver(chat_payload(TOPIC, 1))
        self.world.turn()
        self.assertEqual(self.world.sample("notify_received_total"), 0)

    @given(
        st.lists(
            st.one_of(
                st.sampled_from(("message", "event", "deliver", "turn")),
                st.tuples(
                    st.sampled_from(("notify.v1.json", "notify.v1.json.batch", "notify.v1.protobuf")),
                    st.booleans(),
                    st.none() | st.integers(0, 4),
                ),
            ),
            max_size=40,
        )
    )
    @settings(deadline=None, max_examples=200)
    def test_every_client_is_sent_what_it_is_sent_without_it(self, steps: list[Any]) -> None:
        worlds = World(), World()
        ahead = Ahead(worlds[1])
        members: list[list[Member]] = [[], []]

        def turn() -> None:
            ahead.deliver()
            for world in worlds:
                world.turn()

        for number, step in enumerate([*steps, "turn"]):
            if step == "turn":
                turn()
            elif step == "deliver":
                ahead.deliver()
            elif isinstance(step, str):
                payload = (chat_payload if step == "message" else event_payload)(TOPIC, number + 1)
                for world in worlds:
                    world.publish(TOPIC, payload)
            else:
                turn()
                for world, there in zip(worlds, members, strict=True):
                    name, events, since = step
                    member = Member(world, str(number), name, events)
                    at = None if since is None else Position(world.broker._epoch, since)
                    there.append(member.subscribe(at))
        for one, other in zip(*members, strict=True):
            self.assertEqual(b"".join(one.connection.frames), b"".join(other.connection.frames))


class Kinds(SynchronousTestCase):
    """Events go to those who asked for them; ``prev`` is what this kind of receiver was sent before."""

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

    @settings(max_examples=300)
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
            # docs/client.md, rule 11: a client knows what it was sent, and what the answer said.
            replayed = [f for f in frames if f["seq"] <= member.joined.position.seq]
            known = start
            for f in frames:
                self.assertTrue(f["prev"] <= known, (f, known))
                self.assertIn(
                    f["prev"], {0, start, *(seq for seq, kind in enumerate(kinds) if kind in wanted)}
                )
                known = f["seq"] if f in replayed else max(f["seq"], member.joined.position.seq)


class AnyOrder(SynchronousTestCase):
    """Whatever happens in whatever order, every member gets every message after its position once, in order."""

    @settings(max_examples=200)
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
