"""What the first process shares between its workers."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify import topics
from notify.brokers.memory import MemoryBroker, MemorySettings
from notify.control import memory as control
from notify.core.dispatcher import end_of_turn
from notify.errors import Unavailable
from notify.identity import Presence
from notify.interfaces import Gathered, ISignals
from notify.messages import OVERHEAD, Followed, Message, Position, parse_event
from notify.registries import memory as registry
from notify.testing import (
    FakeConnection,
    Recorder,
    chat_payload,
    event_payload,
    make_context,
    notification_payload,
)
from notify.topics import Topic
from notify.wire.frames import Made
from notify.workers import control as workers_control
from notify.workers.broker import PIECE, LinkedBroker, LinkedSignals, SharedBroker
from notify.workers.control import PATIENCE, LinkedControl, SharedControl
from notify.workers.frames import Delivered
from notify.workers.registry import LinkedRegistry, SharedRegistry
from tests.workers.joined import Joined

TOPIC, OTHER = topics.chat(1, 10), topics.chat(1, 11)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock: Any = Clock()
        self.links = [Joined(self.clock), Joined(self.clock)]

    def turns(self) -> None:
        for _ in range(10):
            self.clock.advance(0)

    def result(self, asked: Deferred[Any]) -> Any:
        self.turns()
        return self.successResultOf(asked)


class Signals(Case):
    """Signals through the first process's broker, which all workers share."""

    def setUp(self) -> None:
        super().setUp()
        self.memory: Any = MemoryBroker(MemorySettings(), make_context(self.clock))
        self.shared = SharedBroker(self.memory, end_of_turn(self.clock))
        self.memory.hear(self.shared.heard)
        self.memory.start(self.shared.deliver, self.shared.lost)
        self.heard: list[list[bytes]] = [[], []]
        self.workers = []
        for joined, heard in zip(self.links, self.heard, strict=True):
            self.shared.serve(joined.head)
            worker = LinkedSignals(joined.worker)
            worker.hear(lambda topic, payload, heard=heard: heard.append(payload))
            worker.start(lambda message: None, lambda topic: None)
            worker.listen(TOPIC)
            self.workers.append(worker)
        self.turns()

    def said(self, payload: bytes) -> list[list[bytes]]:
        self.assertTrue(self.memory.signal(TOPIC, payload))
        self.turns()
        found = [list(heard) for heard in self.heard]
        for heard in self.heard:
            heard.clear()
        return found

    def test_the_broker_is_listened_to_until_no_worker_does(self) -> None:
        self.assertEqual(self.said(b"1"), [[b"1"], [b"1"]])
        self.workers[0].unlisten(TOPIC)
        self.turns()
        self.assertEqual((self.said(b"2"), self.memory._listened), ([[], [b"2"]], {TOPIC}))
        self.links[1].head.gone()
        self.shared.forget(self.links[1].head)
        self.assertEqual(self.memory._listened, set())

    def test_a_worker_that_takes_nothing_is_told_none_and_nothing_waits_for_it(self) -> None:
        self.links[0].head.hold()
        waiting = self.links[0].head._waiting
        self.assertEqual(self.said(b"1"), [[], [b"1"]])
        self.assertEqual(self.links[0].head._waiting, waiting)
        self.links[0].head.go_on()
        self.assertEqual(self.said(b"2"), [[b"2"], [b"2"]])

    def test_nor_does_a_worker_send_to_a_first_process_that_takes_nothing_or_is_gone(self) -> None:
        worker, link = self.workers[0], self.links[0].worker
        link.hold()
        self.assertFalse(worker.signal(TOPIC, b"1"))
        link.go_on()
        self.assertTrue(worker.signal(TOPIC, b"2"))
        self.turns()
        self.assertEqual(self.heard, [[b"2"], [b"2"]])
        link.gone()
        self.assertFalse(worker.signal(TOPIC, b"3"))

    def test_where_the_broker_carries_none_workers_have_none(self) -> None:
        class Silent:
            """A custom broker that carries no signals."""

        silent: Any = Silent()
        shared = SharedBroker(silent, end_of_turn(self.clock))
        shared.serve(self.links[0].head)
        shared.heard(TOPIC, b"1")
        shared.forget(self.links[0].head)
        self.assertFalse(ISignals.implementedBy(LinkedBroker))
        self.assertTrue(ISignals.implementedBy(LinkedSignals))


class Broker(Case):
    def setUp(self) -> None:
        super().setUp()
        self.memory: Any = MemoryBroker(MemorySettings(), make_context(self.clock))
        self.shared = SharedBroker(self.memory, end_of_turn(self.clock))
        self.followed: list[tuple[str, Topic]] = []
        self.memory.start(self.shared.deliver, self.shared.lost)
        self.workers, self.recorders = [], []
        for joined in self.links:
            self.shared.serve(joined.head)
            worker, recorder = LinkedBroker(joined.worker), Recorder()
            worker.start(recorder.deliver, recorder.lost)
            self.workers.append(worker)
            self.recorders.append(recorder)
        for name in ("follow", "unfollow"):
            self.watch(name)

    def watch(self, name: str) -> None:
        """Record each call of a method of the broker."""
        call = getattr(self.memory, name)

        def noted(topic: Topic, *rest: Any) -> Any:
            self.followed.append((name, topic))
            return call(topic, *rest)

        setattr(self.memory, name, noted)

    def publish(self, number: int) -> None:
        self.memory.publish(TOPIC, chat_payload(TOPIC, number))
        self.turns()

    def got(self) -> list[list[int]]:
        return [[m.event.message_id for m in recorder.messages] for recorder in self.recorders]

    def test_a_topic_is_followed_once_and_given_to_each_that_wants_it(self) -> None:
        one, other = self.workers
        self.publish(1)
        self.assertEqual(self.result(one.follow(TOPIC)).position.seq, 1)
        self.publish(2)
        # The answer comes from messages delivered meanwhile; the broker is not asked again.
        second = self.result(other.follow(TOPIC))
        self.assertEqual((second.position.seq, second.event.message_id), (2, 2))
        self.publish(3)
        self.assertEqual(self.got(), [[2, 3], [3]])
        one.unfollow(TOPIC)
        self.publish(4)
        self.assertEqual(self.got(), [[2, 3], [3, 4]])
        other.unfollow(TOPIC)
        self.turns()
        self.assertEqual(self.followed, [("follow", TOPIC), ("unfollow", TOPIC)])

    def test_a_worker_that_is_gone_follows_nothing(self) -> None:
        one, other = self.workers
        self.result(one.follow(TOPIC))
        self.result(other.follow(TOPIC))
        self.result(one.follow(OTHER))
        self.links[0].end("killed")
        self.shared.forget(self.links[0].head)
        self.assertEqual(self.followed[2:], [("unfollow", OTHER)])
        self.publish(1)
        self.assertEqual(self.got(), [[], [1]])
        self.assertFalse(one.status().ready)
        self.failureResultOf(one.replay(TOPIC, None, 1, 1), Unavailable)

    def test_who_asks_while_the_broker_has_not_answered_waits_with_the_first(self) -> None:
        answer: Deferred[Followed] = Deferred()
        self.memory.follow = lambda topic: answer
        asked = [worker.follow(TOPIC) for worker in self.workers]
        self.turns()
        self.links[0].end("killed")
        self.failureResultOf(asked[0], Unavailable)
        self.shared.forget(self.links[0].head)
        answer.callback(Followed(Position("e", 5)))
        self.assertEqual(self.result(asked[1]).position, Position("e", 5))

    def test_when_all_who_asked_are_gone_it_is_followed_no_more(self) -> None:
        answer: Deferred[Followed] = Deferred()
        self.memory.follow = lambda topic: answer
        self.workers[0].follow(TOPIC).addErrback(lambda _: None)
        self.turns()
        self.links[0].end("killed")
        self.shared.forget(self.links[0].head)
        answer.callback(Followed(Position("e", 5)))
        self.assertEqual(self.followed, [("unfollow", TOPIC)])

    def test_a_follow_that_fails_fails_for_all_and_can_be_tried_again(self) -> None:
        self.memory.follow = lambda topic: fail(Unavailable("away"))
        asked = [worker.follow(TOPIC) for worker in self.workers]
        self.turns()
        for one in asked:
            self.failureResultOf(one, Unavailable)
        self.memory.follow = lambda topic: succeed(Followed(Position("e", 5)))
        self.assertEqual(self.result(self.workers[0].follow(TOPIC)).position.seq, 5)

    def test_what_has_lost_its_continuity_is_told_to_those_who_follow_it(self) -> None:
        self.result(self.workers[0].follow(TOPIC))
        self.shared.lost(TOPIC)
        self.shared.lost(OTHER)
        self.turns()
        self.assertEqual([r.lost_topics for r in self.recorders], [[TOPIC], []])
        self.publish(1)
        self.assertEqual(self.got(), [[], []])

    def test_one_that_does_not_read_costs_the_others_no_message(self) -> None:
        for worker in self.workers:
            self.result(worker.follow(TOPIC))
        stopped = self.links[0]
        stopped.given_up = lambda: self.shared.forget(stopped.head)
        stopped.head.hold()
        number = 0
        while not stopped.ended:
            number += 1
            self.publish(number)
        self.publish(number + 1)
        self.assertEqual(self.got(), [[], list(range(1, number + 2))])

    def large(self) -> None:
        """Give the topic a history of which a few reads fill a link."""
        for number in range(1, 6):
            payload = replace(parse_event(TOPIC, chat_payload(TOPIC, number)), content="x" * 40_000)
            self.memory.publish(TOPIC, msgspec.json.encode(payload))

    def reads(self, worker: LinkedBroker) -> list[Deferred[Any]]:
        """Replays and pages that a worker asks for in one turn: more than may be queued for it."""
        replays = [worker.replay(TOPIC, None, 10, 2**20) for _ in range(10)]
        return [*replays, *(worker.earlier(TOPIC, None, 10, 2**20) for _ in range(10))]

    def test_a_worker_that_asks_for_much_history_at_once_gets_all_of_it(self) -> None:
        self.large()
        asked = self.reads(self.workers[0])
        for _ in range(3):
            self.turns()
        self.assertEqual(self.links[0].ended, [])
        for one in asked:
            numbers = [message.position.seq for message in self.successResultOf(one).messages]
            self.assertEqual(numbers, [1, 2, 3, 4, 5])

    def test_history_is_not_read_for_a_worker_that_takes_nothing_now_and_never_for_who_no_longer_waits(
        self,
    ) -> None:
        self.large()
        for name in ("replay", "earlier"):
            self.watch(name)
        self.links[0].head.hold()
        *asked, given_up = self.reads(self.workers[0])
        self.turns()
        self.assertEqual(self.followed, [])
        given_up.cancel()
        self.failureResultOf(given_up, CancelledError)
        self.turns()
        self.links[0].head.go_on()
        for _ in range(3):
            self.turns()
        for one in asked:
            self.successResultOf(one)
        self.assertEqual(len(self.followed), len(asked))

    def together(self) -> list[list[tuple[list[int], Made | None]]]:
        """What each worker is given from now on: messages that came together, and their frames."""
        given: list[list[tuple[list[int], Made | None]]] = [[], []]
        for worker, its in zip(self.workers, given, strict=True):
            worker.deliver_together(
                lambda topic, messages, made, its=its: its.append(([m.position.seq for m in messages], made))
            )
        return given

    def test_the_messages_of_a_turn_come_together_with_frames_that_were_made_once(self) -> None:
        given = self.together()
        self.publish(1)
        for worker in self.workers:
            self.result(worker.follow(TOPIC))
        for payload in chat_payload(TOPIC, 2), chat_payload(TOPIC, 3):
            self.memory.publish(TOPIC, payload)
        self.turns()
        self.publish(4)
        kept = self.memory._histories[TOPIC].kept
        expected = [
            ([2, 3], Made.of([kept[1], kept[2]], 1)),
            ([4], Made.of([kept[3]], 3)),
        ]
        self.assertEqual(given, [expected, expected])

    def test_the_messages_of_a_turn_come_in_pieces_if_they_are_many(self) -> None:
        given, other = self.together(), topics.chat(1, 8)
        for worker in self.workers:
            self.result(worker.follow(TOPIC))
            self.result(worker.follow(other))
        said: list[int] = []
        deliver = self.links[0].worker._heard[Delivered]

        def delivered(one: Delivered) -> None:
            said.append(len(one.batches))
            deliver(one)

        self.links[0].worker.hear(Delivered, delivered)
        for number in range(1, 301):
            self.memory.publish(TOPIC, chat_payload(TOPIC, number))
        for number in range(1, 4):
            self.memory.publish(other, chat_payload(other, number))
        large = replace(parse_event(TOPIC, chat_payload(TOPIC, 301)), content="x" * PIECE)
        self.memory.publish(TOPIC, msgspec.json.encode(large))
        self.turns()
        kept = self.memory._histories[TOPIC].kept
        pieces = [[m for m in kept if m.position.seq in numbers] for numbers, _ in given[0][:-1]]
        self.assertEqual([m for piece in pieces for m in piece], list(kept))
        self.assertEqual(len(pieces), 4)
        self.assertTrue(all(sum(m.size + OVERHEAD for m in piece) <= PIECE for piece in pieces[:-1]))
        prev = 0
        for piece, (_, made) in zip(pieces, given[0], strict=False):
            self.assertEqual(made, Made.of(piece, prev))
            prev = piece[-1].position.seq
        self.assertEqual(given[0][-1][0], [301, 302, 303])
        self.assertEqual(given[0], given[1])
        self.assertEqual(said, [1, 1, 1, 1, 1])

    def test_a_worker_that_is_the_only_one_makes_its_frames_itself(self) -> None:
        given = self.together()
        self.result(self.workers[0].follow(TOPIC))
        self.publish(1)
        self.assertEqual(given, [[([1], None)], []])

    def test_events_among_the_messages_come_without_frames_and_later_frames_are_linked_over_them(
        self,
    ) -> None:
        given = self.together()
        for worker in self.workers:
            self.result(worker.follow(TOPIC))
        self.memory.publish(TOPIC, chat_payload(TOPIC, 1))
        self.memory.publish(TOPIC, event_payload(TOPIC, refers_to=1))
        self.turns()
        self.publish(2)
        kept = self.memory._histories[TOPIC].kept
        self.assertEqual(given[0], [([1, 2], None), ([3], Made.of([kept[2]], 1))])
        self.assertEqual(given[0], given[1])

    def test_every_kind_of_message_arrives_as_it_was(self) -> None:
        mine = topics.user(1, 7)
        for worker in self.workers:
            self.result(worker.follow(TOPIC))
            self.result(worker.follow(mine))
        for payload in chat_payload(TOPIC, 1), event_payload(TOPIC, refers_to=1), event_payload(TOPIC):
            self.memory.publish(TOPIC, payload, trace="a trace")
            self.turns()
        self.memory.publish(mine, notification_payload(mine))
        self.turns()
        stored = [*self.memory._histories[TOPIC].kept, *self.memory._histories[mine].kept]
        for recorder in self.recorders:
            for message, original in zip(recorder.messages, stored, strict=True):
                fields = Message.__struct_fields__
                self.assertEqual(*([getattr(one, name) for name in fields] for one in (message, original)))

    def test_a_worker_that_follows_within_a_turn_gets_the_messages_of_this_turn_once(self) -> None:
        given = self.together()
        self.result(self.workers[0].follow(TOPIC))
        self.memory.publish(TOPIC, chat_payload(TOPIC, 1))
        asked = self.links[1].worker
        asked._write = self.links[1].head.received  # the question arrives within the turn
        following = self.workers[1].follow(TOPIC)
        asked.flush()
        self.memory.publish(TOPIC, chat_payload(TOPIC, 2))
        newest = self.result(following).position.seq
        [[(first, _)], [(second, _)]] = given
        self.assertEqual((newest, first, second), (0, [1, 2], [1, 2]))

    def test_a_gap_is_told_after_the_messages_before_it(self) -> None:
        self.result(self.workers[0].follow(TOPIC))
        self.memory.publish(TOPIC, chat_payload(TOPIC, 1))
        self.shared.lost(TOPIC)
        self.turns()
        self.assertEqual((self.got()[0], self.recorders[0].lost_topics), ([1], [TOPIC]))

    def test_what_was_under_way_when_it_was_unfollowed_is_not_delivered(self) -> None:
        one = self.workers[0]
        self.result(one.follow(TOPIC))
        self.memory.publish(TOPIC, chat_payload(TOPIC, 1))
        one.unfollow(TOPIC)
        again = one.follow(TOPIC)
        self.assertEqual(self.result(again).position.seq, 1)
        self.publish(2)
        self.assertEqual(self.got()[0], [2])


class Registry(Case):
    def setUp(self) -> None:
        super().setUp()
        self.shared = SharedRegistry(self.local())
        self.changes: list[list[Topic]] = [[], [], []]
        self.shared.start(self.changes[2].append)
        self.workers = []
        for joined, changes in zip(self.links, self.changes, strict=False):
            self.shared.serve(joined.head)
            worker = LinkedRegistry(self.local(), joined.worker, end_of_turn(self.clock))
            worker.start(changes.append)
            self.workers.append(worker)

    def local(self) -> Any:
        return registry.MemoryRegistry(registry.MemorySettings(), make_context(self.clock))

    def present(self) -> list[Presence]:
        self.turns()
        found = [self.result(one.presence(TOPIC)) for one in (self.shared, *self.workers)]
        self.assertEqual(found, [found[0]] * 3)
        return list(found[0])

    def test_who_is_present_is_who_is_with_any_worker(self) -> None:
        a, b, c = (FakeConnection(user, id=f"c{n}") for n, user in enumerate((7, 5, 7)))
        self.workers[0].join(a, TOPIC)
        self.workers[0].join(a, TOPIC)
        self.workers[0].join(b, TOPIC)
        self.workers[1].join(c, TOPIC)
        self.assertEqual(self.present(), [Presence(5, 1), Presence(7, 2)])
        self.workers[0].leave(a, TOPIC)
        self.workers[0].leave(a, TOPIC)
        self.assertEqual(self.present(), [Presence(5, 1), Presence(7, 1)])
        self.workers[0].forget(b)
        self.assertEqual(self.present(), [Presence(7, 1)])

    def test_a_worker_that_asks_often_at_once_who_is_in_a_large_chat_gets_every_answer(self) -> None:
        for user in range(5000):
            self.workers[1].join(FakeConnection(10**9 + user), TOPIC)
        self.turns()
        asked = [self.workers[0].presence(TOPIC) for _ in range(50)]  # more than may be queued for it
        for _ in range(3):
            self.turns()
        self.assertEqual(self.links[0].ended, [])
        self.assertEqual([len(self.successResultOf(one)) for one in asked], [5000] * 50)

    def test_with_a_worker_go_all_who_were_there_with_it(self) -> None:
        for worker, user in zip(self.workers, (1, 2), strict=True):
            worker.join(FakeConnection(user), TOPIC)
        self.shared.watch(TOPIC)
        self.turns()
        self.changes[2].clear()
        self.links[0].end("killed")
        self.shared.drop(self.links[0].head)
        self.assertEqual(self.result(self.shared.presence(TOPIC)), [Presence(2, 1)])
        self.assertEqual(self.changes[2], [TOPIC])

    def test_a_change_is_told_to_all_who_watch_and_to_nobody_else(self) -> None:
        self.workers[0].watch(TOPIC)
        self.shared.watch(OTHER)
        self.turns()
        self.workers[1].join(FakeConnection(1), TOPIC)
        self.workers[1].join(FakeConnection(1), OTHER)
        self.turns()
        self.assertEqual(self.changes, [[TOPIC], [], [OTHER]])
        self.workers[0].unwatch(TOPIC)
        self.shared.unwatch(OTHER)
        self.turns()
        self.workers[1].join(FakeConnection(2, id="c2"), TOPIC)
        self.turns()
        self.assertEqual(self.changes, [[TOPIC], [], [OTHER]])

    def test_a_user_has_no_more_connections_than_he_may_over_all_workers(self) -> None:
        mine = topics.user(1, 7)
        joined: list[FakeConnection] = []

        def let_in(worker: LinkedRegistry, name: str) -> Any:
            def over(room: bool) -> bool:
                if room:
                    joined.append(FakeConnection(7, id=name))
                    worker.join(joined[-1], mine)
                return room

            return worker.room(mine, 3).addCallback(over)

        # Several at once, through both workers.
        asked = [let_in(self.workers[number % 2], str(number)) for number in range(6)]
        self.turns()
        self.assertEqual(sorted(map(self.successResultOf, asked)), [False] * 3 + [True] * 3)
        self.assertEqual(self.result(self.shared.presence(mine)), [Presence(7, 3)])
        # One that leaves makes room for another, even while others ask.
        gone = next(one for one in joined if one in self.workers[0].members(mine))
        refused = let_in(self.workers[0], "too early")
        self.workers[0].forget(gone)
        self.assertFalse(self.result(refused))
        self.assertTrue(self.result(let_in(self.workers[1], "in time")))
        self.assertFalse(self.result(let_in(self.workers[0], "too late")))

    def test_a_place_is_free_in_the_turn_in_which_one_leaves(self) -> None:
        mine, one = topics.user(1, 7), FakeConnection(7)
        self.workers[0].room(mine, 1).addCallback(lambda _: self.workers[0].join(one, mine))
        self.turns()
        self.assertFalse(self.result(self.workers[0].room(mine, 1)))
        self.turns()
        self.workers[0].forget(one)
        self.assertTrue(self.result(self.workers[0].room(mine, 1)))

    def test_a_place_that_is_not_taken_is_free_again(self) -> None:
        mine = topics.user(1, 7)
        self.assertTrue(self.result(self.workers[0].room(mine, 1)))
        self.turns()
        self.assertTrue(self.result(self.workers[1].room(mine, 1)))


class Control(Case):
    def setUp(self) -> None:
        super().setUp()
        self.now = self.clock.seconds
        context = replace(make_context(self.clock, node="n"), now=self.now)
        own = control.MemoryControl(control.MemorySettings(), context)
        self.shared = SharedControl(own, self.clock.callLater, self.now)
        self.shared.start(lambda command, argument: succeed(b'"n"'))
        self.workers = []
        for number, joined in enumerate(self.links, 1):
            name = f"n-w{number}"
            self.shared.serve(joined.head, name)
            worker = LinkedControl(joined.worker, name)
            worker.start(lambda command, argument, name=name: self.do(name, command))
            self.workers.append(worker)

    def do(self, name: str, command: str) -> Deferred[bytes]:
        if command == "sleep" and name == "n-w2":
            return Deferred()
        return succeed(f'"{name}"'.encode())

    def test_all_are_asked_whoever_asks(self) -> None:
        everyone = Gathered([("n", b'"n"'), ("n-w1", b'"n-w1"'), ("n-w2", b'"n-w2"')], [])
        for one in (self.shared, *self.workers):
            self.assertEqual(self.result(one.ask("it", b"null")), everyone)

    def test_one_can_be_meant_by_its_name(self) -> None:
        for name in ("n", "n-w1", "n-w2"):
            answer = self.result(self.workers[0].ask("it", b"null", name))
            self.assertEqual(answer, Gathered([(name, f'"{name}"'.encode())], []))

    def test_who_does_not_answer_in_time_is_named(self) -> None:
        asked = self.shared.ask("sleep", b"null")
        self.turns()
        self.assertNoResult(asked)
        self.clock.advance(PATIENCE)
        self.assertEqual(self.successResultOf(asked).missing, ["n-w2"])
        self.assertEqual(self.clock.getDelayedCalls()[1:], [])

    def test_one_that_dies_meanwhile_is_named_at_once_and_then_known_no_more(self) -> None:
        asked = self.shared.ask("sleep", b"null")
        self.turns()
        self.links[1].end("killed")
        self.shared.drop(self.links[1].head)
        self.assertEqual(self.successResultOf(asked).missing, ["n-w2"])
        self.assertEqual(self.result(self.shared.ask("it", b"null")).missing, [])

    def watch(self) -> list[dict[str, bytes]]:
        """Record what each process hears: the first process, then the workers."""
        heard: list[dict[str, bytes]] = [{}, {}, {}]
        for one, records in zip((self.shared, *self.workers), heard, strict=True):
            self.result(one.watch(records.__setitem__))
        return heard

    def keep(self, by: Any, key: str, record: bytes, seconds: float = 60) -> Any:
        return self.result(by.keep(key, lambda there: (there or b"") + record, self.now() + seconds))

    def test_what_one_keeps_all_hear(self) -> None:
        heard = self.watch()
        self.assertFalse(self.keep(self.workers[0], "a", b"1"))
        self.assertFalse(self.keep(self.shared, "b", b"2"))
        self.assertFalse(self.keep(self.workers[1], "a", b"3"))
        self.turns()
        self.assertEqual(heard, [{"a": b"13", "b": b"2"}] * 3)

    def test_one_that_is_started_later_hears_all_of_it_before_anything_else(self) -> None:
        self.patch(workers_control, "PAGE", 3)
        self.result(self.shared.watch(lambda key, record: None))
        for number in range(7):
            self.keep(self.shared, f"k{number}", b"%d" % number)
        heard: list[tuple[str, bytes]] = []
        watching = self.workers[0].watch(lambda *record: heard.append(record))
        self.clock.advance(0)
        # A record stored while the others are being sent is not lost among them, whichever arrives first.
        self.keep(self.shared, "k6", b"!")
        self.keep(self.shared, "new", b"n")
        self.result(watching)
        self.assertEqual(
            dict(heard), {**{f"k{number}": b"%d" % number for number in range(6)}, "k6": b"6!", "new": b"n"}
        )

    def test_two_that_keep_something_under_one_key_at_once_both_have_their_say(self) -> None:
        heard = self.watch()
        asked = [
            one.keep("a", lambda there, own=own: (there or b"") + own, self.now() + 60)
            for one, own in zip(self.workers, (b"1", b"2"), strict=True)
        ]
        self.turns()
        self.assertEqual(list(map(self.result, asked)), [False, False])
        self.assertEqual(sorted(heard[0]["a"]), sorted(b"12"))
        self.assertEqual(heard, [heard[0]] * 3)

    def test_where_others_are_always_faster_it_is_given_up(self) -> None:
        self.watch()
        others = iter(range(100))

        def merge(there: bytes | None) -> bytes:
            self.shared.keep("a", lambda _: b"%d" % next(others), self.now() + 60)
            return b"mine"

        asked = self.workers[0].keep("a", merge, self.now() + 60)
        for _ in range(10):
            self.turns()
        self.failureResultOf(asked, Unavailable)

    def test_what_has_ended_is_told_to_nobody(self) -> None:
        self.result(self.shared.watch(lambda key, record: None))
        self.keep(self.shared, "short", b"1", 1)
        self.clock.advance(2)
        self.keep(self.shared, "long", b"2")
        heard: dict[str, bytes] = {}
        self.result(self.workers[0].watch(heard.__setitem__))
        self.assertEqual(heard, {"long": b"2"})

    def test_one_that_is_gone_is_told_nothing(self) -> None:
        heard = self.watch()
        self.links[0].end("killed")
        self.shared.drop(self.links[0].head)
        self.failureResultOf(self.workers[0].keep("a", lambda there: b"1", self.now() + 60), Unavailable)
        self.keep(self.workers[1], "a", b"1")
        self.assertEqual(heard, [{"a": b"1"}, {}, {"a": b"1"}])
