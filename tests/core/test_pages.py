"""A chat's history, page by page: what a page contains, what it may cost, and who may have it."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from notify.brokers.memory import MemoryBroker
from notify.config import Limits, Size
from notify.core import pages
from notify.errors import HistoryLost, Unsupported
from notify.messages import Position, Replayed
from notify.testing import chat_payload, event_payload
from notify.topics import Topic, chat
from tests.support.world import Client, World

ROOM, OTHER = chat(1, 10), chat(1, 11)


class Case(SynchronousTestCase):
    limits: Limits | None = None
    memory: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        self.world = World(self.limits, **self.memory)
        self.client = self.world.client(1)
        self.epoch = self.world.broker._epoch

    def talk(self, kinds: str, topic: Topic = ROOM, content: str = "hello") -> list[int]:
        """Publish one message for each ``m`` and one event for each ``e``; return their numbers."""
        seqs = []
        for kind in kinds:
            n = self.world.broker._seq + 1
            body = chat_payload(topic, n, content) if kind == "m" else event_payload(topic, n, "edited", None)
            seqs.append(self.world.publish(topic, body))
        self.world.turn()
        return seqs

    def at(self, seq: int) -> dict[str, Any]:
        return {"epoch": self.epoch, "seq": seq}

    def page(self, client: Client | None = None, **frame: Any) -> Any:
        client = client or self.client
        client.take()
        client.send(**({"type": "history", "chat_id": 10} | frame))
        self.world.turn()
        [answer] = [one for one in client.take() if one["type"] in ("history", "error")]
        return answer

    def seqs(self, page: Any) -> list[int]:
        self.assertEqual(page["type"], "history", page)
        return [one["seq"] for one in page["messages"]]


class Pages(Case):
    def test_the_newest_page_is_oldest_first_and_says_where_to_go_on_in_both_directions(self) -> None:
        sent = self.talk("mmmmm")
        page = self.page(limit=2, id="a")
        self.assertEqual(self.seqs(page), sent[-2:])
        del page["messages"]
        self.assertEqual(
            page,
            {
                "type": "history", "chat_id": 10, "more": True, "epoch": self.epoch, "seq": sent[-1],
                "start": sent[-2], "id": "a",
            },
        )  # fmt: skip
        older = self.page(limit=2, before=self.at(page["start"]))
        self.assertEqual((self.seqs(older), older["more"]), (sent[1:3], True))
        oldest = self.page(limit=2, before=self.at(older["start"]))
        self.assertEqual((self.seqs(oldest), oldest["more"]), (sent[:1], False))
        newer = self.page(limit=2, after=self.at(oldest["seq"]))
        self.assertEqual((self.seqs(newer), newer["more"], newer["seq"]), (sent[1:3], True, sent[2]))
        newest = self.page(limit=2, after=self.at(newer["seq"]))
        self.assertEqual((self.seqs(newest), newest["more"]), (sent[3:], False))

    def test_messages_are_those_that_come_live(self) -> None:
        reader = self.world.client(2, features=["events", "history"])
        reader.ask(type="subscribe", chat_id=10, id=1)
        self.talk("mem")
        live = reader.take()
        self.assertEqual(len(live), 3)
        page = self.page(reader)
        self.assertEqual(page["messages"][1:], live[1:])
        self.assertEqual(page["messages"][0], live[0] | {"prev": 0})

    def test_without_the_feature_there_are_no_events_and_prev_leaves_them_out(self) -> None:
        sent = self.talk("memem")
        page = self.page()
        self.assertEqual([(one["seq"], one["prev"]) for one in page["messages"]],
                         [(sent[0], 0), (sent[2], sent[0]), (sent[4], sent[2])])  # fmt: skip
        after = self.page(after=self.at(sent[1]))
        self.assertEqual([(one["seq"], one["prev"]) for one in after["messages"]],
                         [(sent[2], sent[1]), (sent[4], sent[2])])  # fmt: skip

    def test_an_empty_chat_can_be_subscribed_from_what_its_page_says(self) -> None:
        self.talk("mm", OTHER)
        page = self.page()
        self.assertEqual((page["messages"], page["more"], "start" in page), ([], False, False))
        missed = self.talk("m")
        since = {"epoch": page["epoch"], "seq": page["seq"]}
        self.client.take()
        self.client.send(type="subscribe", chat_id=10, since=since)
        answer, *replayed = self.client.take()
        self.assertTrue(answer["recovered"])
        self.assertEqual([one["seq"] for one in replayed], missed)

    def test_nothing_is_missed_between_the_newest_page_and_what_comes_live(self) -> None:
        self.talk("mm")
        for follows in (False, True):
            if follows:
                self.world.client(3).ask(type="subscribe", chat_id=10, id=1)
            page = self.page(limit=1)
            missed = self.talk("mem")
            self.client.take()
            self.client.send(type="subscribe", chat_id=10, since=self.at(page["seq"]))
            answer, *replayed = self.client.take()
            self.assertTrue(answer["recovered"])
            self.assertEqual([one["seq"] for one in replayed], [missed[0], missed[2]])
            self.client.send(type="unsubscribe", chat_id=10)

    def test_after_the_newest_is_an_empty_page_and_after_what_is_not_kept_an_error(self) -> None:
        sent = self.talk("mmm")
        page = self.page(after=self.at(sent[-1]))
        self.assertEqual((page["messages"], page["more"], page["seq"]), ([], False, sent[-1]))
        for since in ({"epoch": "x", "seq": 1}, {"epoch": "", "seq": 0}, self.at(99), self.at(-1)):
            answer = self.page(after=since, id=3)
            self.assertEqual(
                (answer["code"], answer["id"], "retry" in answer), ("history_unavailable", 3, False)
            )

    def test_before_a_position_of_another_epoch_is_an_error_and_before_the_first_an_empty_page(self) -> None:
        sent = self.talk("mm")
        self.assertEqual(self.page(before={"epoch": "x", "seq": 5})["code"], "history_unavailable")
        for seq in (sent[0], 0, -5):
            page = self.page(before=self.at(seq))
            self.assertEqual((page["messages"], page["more"]), ([], False))
        self.assertEqual(self.seqs(self.page(before=self.at(2**63 - 1))), sent)

    def test_a_page_is_bounded_in_bytes_but_never_without_a_message(self) -> None:
        self.patch(pages, "PAGE_BYTES", 3000)
        sent = self.talk("mmmmm", content="x" * 1000)
        self.assertEqual(self.seqs(self.page()), sent[-2:])
        self.assertTrue(self.page()["more"])
        self.assertEqual(self.seqs(self.page(after=self.at(sent[0]))), sent[1:3])
        big = self.talk("m", content="x" * 5000)
        self.assertEqual(self.seqs(self.page()), big)
        self.assertEqual(self.seqs(self.page(after=self.at(sent[-1]))), big)

    def test_a_page_is_no_more_than_half_of_what_may_wait_for_a_client(self) -> None:
        self.world.reload(limits=replace(self.world.live.now.limits, send_queue=Size(4000)))
        sent = self.talk("mmm", content="x" * 1200)
        self.assertEqual(self.seqs(self.page()), sent[-1:])


class OutOfMemory(Case):
    """Pages of a chat that is followed here come from the node's memory, as far as that is enough."""

    def setUp(self) -> None:
        super().setUp()
        self.old = self.talk("mmm")
        self.member = self.world.client(2, features=["events"])
        self.member.ask(type="subscribe", chat_id=10, id=1)
        self.sent = self.talk("mmmmm")

    def test_newest_pages_and_those_before_and_after_cost_no_read(self) -> None:
        self.assertEqual(self.seqs(self.page(limit=4)), self.sent[-4:])
        self.assertEqual(self.seqs(self.page(limit=2, before=self.at(self.sent[3]))), self.sent[1:3])
        self.assertEqual(self.seqs(self.page(limit=2, after=self.at(self.sent[1]))), self.sent[2:4])
        self.assertEqual(self.seqs(self.page(after=self.at(self.sent[-1]))), [])
        self.assertEqual((self.world.broker.pages, self.world.broker.replays), (0, 0))
        self.assertEqual(self.world.sample("notify_pages_total", outcome="memory"), 4)

    def test_what_memory_does_not_have_is_read(self) -> None:
        page = self.page(limit=5)  # a read finds out whether there are more
        self.assertEqual((self.seqs(page), page["more"]), (self.sent, True))
        self.assertEqual(self.seqs(self.page(limit=100)), self.old + self.sent)
        self.assertEqual(
            self.seqs(self.page(limit=2, before=self.at(self.sent[1]))), [self.old[-1], self.sent[0]]
        )
        self.assertEqual(self.world.broker.pages, 3)
        self.assertEqual(self.seqs(self.page(after=self.at(self.old[0]))), self.old[1:] + self.sent)
        self.assertEqual(self.world.broker.replays, 1)
        self.assertEqual(self.world.sample("notify_pages_total", outcome="read"), 4)

    def test_what_was_delivered_in_this_turn_is_in_the_page(self) -> None:
        new = self.world.publish(ROOM, chat_payload(ROOM, 77))
        self.client.send(type="history", chat_id=10, limit=2)
        [page] = self.client.take()
        self.assertEqual(self.seqs(page), [self.sent[-1], new])

    def test_another_epoch_is_not_read_from_memory(self) -> None:
        for name in ("before", "after"):
            answer = self.page(**{name: {"epoch": "x", "seq": self.sent[-1]}})
            self.assertEqual(answer["code"], "history_unavailable")


class Events(Case):
    """A page that is short because of events is continued with a few more reads, and no further."""

    def test_a_page_is_filled_up_with_messages_from_further_back(self) -> None:
        sent = self.talk("mmm" + "e" * 100)
        page = self.page(limit=50)
        self.assertEqual((self.seqs(page), page["more"]), (sent[:3], False))
        page = self.page(limit=50, after=self.at(sent[0]))
        self.assertEqual((self.seqs(page), page["more"], page["seq"]), (sent[1:3], False, sent[-1]))

    def test_where_there_are_nothing_but_events_the_page_is_short_and_says_where_to_go_on(self) -> None:
        sent = self.talk("m" + "e" * 300 + "m")
        page = self.page(limit=10)
        self.assertEqual((self.seqs(page), page["more"]), ([sent[-1]], True))
        self.assertEqual(self.world.broker.pages, pages.READS)
        seen, rounds = self.seqs(page), 0
        while page["more"]:
            page = self.page(limit=10, before=self.at(page["start"]))
            seen, rounds = self.seqs(page) + seen, rounds + 1
        self.assertEqual(seen, [sent[0], sent[-1]])
        self.assertLess(rounds, 20)
        page, seen = self.page(limit=10, after=self.at(sent[0])), []
        while page["more"]:
            page = self.page(limit=10, after=self.at(page["seq"]))
        self.assertEqual(self.seqs(page), [sent[-1]])

    def test_a_broker_that_reads_past_much_that_is_no_message_says_how_far_it_came(self) -> None:
        sent = self.talk("mm")
        replay, asked = self.world.broker.replay, []

        def slow(topic: Topic, after: Position, *rest: Any) -> Any:
            asked.append(after.seq)
            if after.seq < sent[0] + 9:
                return succeed(Replayed([], True, Position(self.epoch, after.seq + 3)))
            return replay(topic, Position(self.epoch, sent[0]), *rest)

        self.patch(self.world.broker, "replay", slow)
        page = self.page(after=self.at(sent[0]))
        self.assertEqual((self.seqs(page), page["more"]), (sent[1:], False))
        self.assertEqual(asked, [sent[0] + n for n in (0, 3, 6, 9)])
        asked.clear()
        self.patch(pages, "READS", 2)
        page = self.page(after=self.at(sent[0]))
        self.assertEqual((self.seqs(page), page["more"], page["seq"]), ([], True, sent[0] + 6))


class Model(SynchronousTestCase):
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.text("me", max_size=40),
        st.integers(1, 100),
        st.booleans(),
        st.booleans(),
        st.integers(0, 40),
        st.integers(200, 2000),
    )
    def test_pages_together_are_the_history_in_either_direction(
        self, kinds: str, limit: int, events: bool, follows: bool, early: int, size: int
    ) -> None:
        self.patch(pages, "PAGE_BYTES", size)
        world = World()
        reader = world.client(1, features=["events"] if events else [])
        if follows:
            world.client(2).ask(type="subscribe", chat_id=10, id=1)
        expected = []
        for n, kind in enumerate(kinds):
            if n == early and not follows:
                world.client(2).ask(type="subscribe", chat_id=10, id=1)
            payload = chat_payload(ROOM, n) if kind == "m" else event_payload(ROOM, n, "edited", None)
            seq = world.publish(ROOM, payload)
            world.publish(OTHER, chat_payload(OTHER, n))
            if events or kind == "m":
                expected.append(seq)
        world.turn()

        def ask(**frame: Any) -> Any:
            reader.take()
            reader.send(type="history", chat_id=10, limit=limit, **frame)
            while not reader.connection.frames:
                world.clock.advance(0.1)
            [page] = reader.take()
            assert page["type"] == "history", page
            assert len(page["messages"]) <= limit
            links = [(one["prev"], one["seq"]) for one in page["messages"]]
            assert all(prev == before for (prev, _), (_, before) in zip(links[1:], links, strict=False)), (
                links
            )
            return page

        page = ask()
        newest = {"epoch": page["epoch"], "seq": page["seq"]}
        backwards = [one["seq"] for one in page["messages"]]
        while page["more"]:
            place = page["start"]
            page = ask(before={"epoch": page["epoch"], "seq": place})
            assert page["start"] < place
            backwards = [one["seq"] for one in page["messages"]] + backwards
        self.assertEqual(backwards, expected)
        forwards, place = [], {"epoch": newest["epoch"], "seq": 0}
        while True:
            page = ask(after=place)
            forwards += [one["seq"] for one in page["messages"]]
            assert page["seq"] > place["seq"] or not page["more"]
            place = {"epoch": page["epoch"], "seq": page["seq"]}
            if not page["more"]:
                break
        self.assertEqual(forwards, expected)
        self.assertEqual(place["seq"], newest["seq"])


class Authority(Case):
    def test_a_chat_that_may_not_be_seen_and_one_that_is_not_there_get_the_answer_of_subscribe(self) -> None:
        self.talk("m")
        self.world.authenticator.forbidden = {10, 404}
        answers = []
        for chat_id in (10, 404):
            page = self.client.ask(type="history", chat_id=chat_id, id=1)
            self.assertEqual(page, self.client.ask(type="subscribe", chat_id=chat_id, id=1))
            answers.append(page)
        self.assertEqual(answers[0], answers[1])
        self.assertEqual(answers[0]["code"], "forbidden")
        self.assertEqual(self.world.broker.pages, 0)

    def test_another_tenants_chat_of_the_same_id_is_another_chat(self) -> None:
        self.talk("m")
        stranger = self.world.client(1, workspace_id=2)
        self.assertEqual(self.page(stranger)["messages"], [])

    def test_before_auth_it_is_refused_and_afterwards_no_subscription_is_needed_nor_made(self) -> None:
        nobody = self.world.connect()
        self.assertEqual(nobody.ask(type="history", chat_id=10, id=1)["code"], "unauthorized")
        [sent] = self.talk("m")
        self.assertEqual(self.seqs(self.page()), [sent])
        self.talk("m")
        self.assertEqual(self.client.take(), [])
        self.assertEqual(self.world.dispatcher.counts().keys() & {ROOM}, set())

    def test_an_operator_who_ends_it_meanwhile_ends_the_page(self) -> None:
        self.talk("m")
        self.world.broker.held = []
        self.client.send(type="history", chat_id=10, id=1)
        self.assertEqual(self.client.take(), [])
        self.assertTrue(self.client.session.bar(10))
        self.world.broker.release()
        [answer] = self.client.take()
        self.assertEqual((answer["code"], answer["id"]), ("forbidden", 1))
        self.assertEqual(self.page()["type"], "history")

    def test_an_operator_who_ends_it_while_it_is_asked_for_ends_the_page(self) -> None:
        self.world.authenticator.held = []
        self.client.send(type="history", chat_id=10, id=1)
        self.client.session.bar(10)
        self.world.authenticator.release()
        [answer] = self.client.take()
        self.assertEqual((answer["code"], self.world.broker.pages), ("forbidden", 0))


class Faults(Case):
    def test_a_broker_that_is_away_is_told_and_may_be_asked_again(self) -> None:
        self.world.broker.away = True
        for frame in ({}, {"before": self.at(3)}, {"after": self.at(0)}):
            answer = self.page(id=4, **frame)
            self.assertEqual((answer["code"], answer["retry"], answer["id"]), ("unavailable", True, 4))
        self.assertEqual(self.world.sample("notify_pages_total", outcome="unavailable"), 3)
        self.world.broker.away = False
        self.assertEqual(self.page()["type"], "history")

    def test_a_broker_that_cannot_read_backwards_says_so_and_reads_forward(self) -> None:
        sent = self.talk("mm")
        self.patch(pages, "pages_of", lambda broker: (_ for _ in ()).throw(Unsupported("no")))
        self.assertEqual(self.page()["code"], "history_unavailable")
        self.assertEqual(self.seqs(self.page(after=self.at(sent[0]))), sent[1:])

    def test_history_that_is_lost_is_told_and_counted(self) -> None:
        self.world.broker.earlier = lambda *_: fail(HistoryLost("x"))
        self.assertEqual(self.page()["code"], "history_unavailable")
        self.assertEqual(self.world.sample("notify_pages_total", outcome="lost"), 1)

    def test_a_fault_of_ours_is_an_internal_error_and_the_next_page_comes(self) -> None:
        self.world.broker.earlier = lambda *_: fail(RuntimeError("odd"))
        self.assertEqual(self.page()["code"], "internal")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        del self.world.broker.earlier
        self.assertEqual(self.page()["type"], "history")

    def test_a_client_that_goes_gives_its_read_up(self) -> None:
        self.world.broker.held = []
        cancelled: list[Any] = []
        read = MemoryBroker.earlier

        def earlier(*arguments: Any) -> Any:
            return Deferred(cancelled.append)

        self.patch(self.world.broker, "earlier", earlier)
        self.client.send(type="history", chat_id=10)
        self.client.leave()
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(self.client.take(), [])
        self.patch(self.world.broker, "earlier", lambda *a: read(self.world.broker, *a))
        self.world.broker.held = None
        self.assertEqual(self.page(self.world.client(5))["type"], "history")

    def test_frames_that_make_no_sense_are_invalid(self) -> None:
        for wrong in (
            {"before": self.at(1), "after": self.at(1)},
            {"limit": 0},
            {"limit": 101},
            {"limit": 10**18},
            {"limit": -1},
            {"limit": "5"},
            {"before": 5},
            {"before": {"epoch": "x" * 65, "seq": 1}},
            {"after": {"epoch": "x", "seq": 2**63}},
            {"chat_id": "5"},
            {"chat_id": None},
        ):
            self.client = self.world.client(1)
            self.assertEqual(self.page(id=9, **wrong)["code"], "invalid_message", wrong)
        for chat_id in ("room-a", -5, 2**63 - 1):
            self.assertEqual(self.page(chat_id=chat_id)["messages"], [])


class Cost(Case):
    limits = Limits(frames_burst=10_000, frames_per_second=10_000)

    def ask_often(self, count: int, client: Client | None = None) -> None:
        for _ in range(count):
            (client or self.client).send(type="history", chat_id=10)

    def answers(self, client: Client | None = None) -> int:
        return sum(one["type"] == "history" for one in (client or self.client).take())

    def test_pages_count_as_their_messages_and_as_some_at_least(self) -> None:
        for content, at_once in (("", 21), ("m" * 100, 11)):  # a page counts as 50, and as 100, of 1,000
            self.talk(content)
            client = self.world.client(7)
            for _ in range(60):
                client.send(type="history", chat_id=10, limit=100)
            self.assertEqual(self.answers(client), at_once)
            self.world.clock.advance(1)
            self.world.clock.advance(1)
            self.assertGreater(self.answers(client), 10)

    def test_pages_that_fail_cost_as_much(self) -> None:
        for _ in range(60):
            self.client.send(type="history", chat_id=10, before={"epoch": "x", "seq": 1})
        self.assertEqual(len(self.client.take()), 21)

    def turns(self) -> list[Any]:
        """The calls for the next turn, from now on: the test makes the turns one by one."""
        later: list[Any] = []
        self.patch(self.world.dispatcher.pages, "_soon", later.append)
        return later

    def test_a_turn_gives_so_many_messages_and_others_wait_for_the_next(self) -> None:
        self.talk("m" * 100)
        clients = [self.world.client(n) for n in range(100)]
        later = self.turns()
        for client in clients:
            client.send(type="history", chat_id=10, limit=100)
        given = [sum(map(self.answers, clients))]
        while later:
            later.pop()()
            self.assertLess(len(later), 2)
            given.append(sum(map(self.answers, clients)))
        self.assertEqual(given, [pages.A_TURN // 100] * 5 + [0])

    def test_tenants_take_turns(self) -> None:
        topic = chat(2, 10)
        self.talk("m" * 100)
        self.talk("m" * 100, topic)
        crowd = [self.world.client(n) for n in range(400)]
        other = self.world.client(1, workspace_id=2)
        later = self.turns()
        for client in crowd:
            client.send(type="history", chat_id=10, limit=100)
        other.send(type="history", chat_id=10, limit=100)
        self.assertEqual(self.answers(other), 0)
        later.pop()()
        self.assertEqual(self.answers(other), 1)
        self.assertEqual(sum(map(self.answers, crowd)), 2 * pages.A_TURN // 100 - 1)

    def test_so_many_are_read_at_once_and_who_waits_and_goes_is_not_read_for(self) -> None:
        clients = [self.world.client(n) for n in range(pages.AT_ONCE + 10)]
        self.world.broker.held = []
        for client in clients:
            client.send(type="history", chat_id=10)
        for _ in range(5):
            self.world.turn()
        self.assertEqual(self.world.broker.pages, pages.AT_ONCE)
        for client in clients[-10:-1]:
            client.leave()
        self.world.broker.release()
        for _ in range(5):
            self.world.turn()
        self.assertEqual(sum(map(self.answers, clients)), pages.AT_ONCE + 1)

    def test_nobody_who_has_gone_is_remembered(self) -> None:
        clients = [self.world.client(n, workspace_id=1 + n % 2) for n in range(pages.AT_ONCE + 10)]
        self.world.broker.held = []
        for client in clients:
            client.send(type="history", chat_id=10)
        for client in clients[::-1]:
            client.leave()
        asked = self.world.dispatcher.pages
        self.assertEqual((asked._lines, list(asked._turns), asked._asked, asked._busy), ({}, [], {}, 0))
        self.world.broker.release()
