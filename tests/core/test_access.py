"""Access that ends: which subscriptions are checked again and when, and what happens to them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from notify.config import Duration, Limits
from notify.core import access
from notify.identity import Identity
from notify.ids import Id
from notify.interfaces import IAuthenticator, IReviewer
from notify.testing import chat_payload
from notify.topics import Topic, chat
from tests.support.world import NOW, TableAuthenticator, World


@implementer(IAuthenticator, IReviewer)
class Reviewer(TableAuthenticator):
    """Is asked again every 100 s; says nothing about chats in ``unknown``. A list in ``answers`` holds reviews back."""

    recheck = 100.0
    grace = 60.0

    def __init__(self) -> None:
        super().__init__()
        self.reviews: list[set[Id]] = []
        self.unknown: set[Id] = set()
        self.answers: list[Any] | None = None
        self.forgotten: list[tuple[Id, Id]] = []
        self.given_up = 0

    def review(self, identity: Identity, topics: Collection[Topic]) -> Deferred[Mapping[Topic, bool]]:
        self.reviews.append({topic.id for topic in topics})
        told = {topic: topic.id not in self.forbidden for topic in topics if topic.id not in self.unknown}
        if self.answers is None:
            return succeed(told)

        def give_up(_: object) -> None:
            self.given_up += 1

        waiting: Deferred[Mapping[Topic, bool]] = Deferred(give_up)
        self.answers.append(lambda: waiting.callback(told))
        return waiting

    def forget(self, workspace_id: Id, user_id: Id) -> None:
        self.forgotten.append((workspace_id, user_id))


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(Limits(reauthenticate=Duration(0)))
        self.reviewer = self.world.authenticator = Reviewer()
        self.world.reload(authenticator=self.reviewer)
        self.client = self.world.client()
        for chat_id in (1, 2):
            self.client.send(type="subscribe", chat_id=chat_id)

    def pass_by(self, seconds: float) -> None:
        self.world.clock.pump([0.25] * int(seconds * 4))

    def heard(self) -> list[Id]:
        """The chats whose messages still reach the client."""
        for chat_id in (1, 2):
            self.world.publish(chat(1, chat_id), chat_payload(chat(1, chat_id)))
        self.world.turn()
        return [frame["chat_id"] for frame in self.client.take() if frame["type"] == "chat_message"]


class Recheck(Case):
    def test_a_subscription_is_asked_about_again_within_the_time_and_several_in_one_question(self) -> None:
        self.pass_by(74)
        self.assertEqual(self.reviewer.reviews, [])
        self.pass_by(27)
        self.assertEqual(self.reviewer.reviews, [{1, 2}])
        self.pass_by(101)
        self.assertEqual(len(self.reviewer.reviews), 2)
        self.assertEqual(self.heard(), [1, 2])

    def test_clients_that_came_at_once_are_not_all_asked_about_at_once(self) -> None:
        for user_id in range(2, 22):
            self.world.client(user_id=user_id).send(type="subscribe", chat_id=1)
        self.pass_by(74)
        counts = []
        for _ in range(6):
            before = len(self.reviewer.reviews)
            self.pass_by(5)
            counts.append(len(self.reviewer.reviews) - before)
        self.assertEqual(sum(counts), 21)
        self.assertLess(max(counts), 12)

    def test_a_no_ends_the_subscription_and_the_client_is_told_which(self) -> None:
        self.reviewer.forbidden = {2}
        self.pass_by(101)
        [error] = self.client.take()
        self.assertEqual((error["type"], error["code"], error["chat_id"]), ("error", "forbidden", 2))
        self.assertNotIn("retry", error)
        self.assertNotIn("id", error)
        self.assertEqual(self.heard(), [1])
        self.assertEqual(self.world.sample("notify_subscriptions"), 1)
        self.assertEqual(self.world.sample("notify_subscriptions_ended_total", code="forbidden"), 1)

    def test_without_an_answer_it_goes_on_for_the_grace_and_ends_with_unavailable(self) -> None:
        self.reviewer.unknown = {2}
        self.pass_by(101)
        self.assertEqual(self.client.take(), [])
        self.pass_by(30)
        self.assertEqual(self.heard(), [1, 2])
        self.pass_by(45)
        [error] = self.client.take()
        self.assertEqual((error["code"], error["chat_id"], error["retry"]), ("unavailable", 2, True))
        self.assertEqual(self.heard(), [1])
        self.assertEqual(self.client.ask(type="subscribe", chat_id=2, id=1)["type"], "subscribed")

    def test_who_was_not_answered_once_is_asked_about_within_the_same_time_and_the_grace_is_no_longer(
        self,
    ) -> None:
        self.reviewer.grace = 10_000.0
        self.reviewer.unknown = {2}
        self.pass_by(101)
        self.reviewer.unknown, self.reviewer.forbidden = set(), {2}
        self.pass_by(101)
        self.assertEqual(self.heard(), [1])
        self.reviewer.grace, self.reviewer.recheck = 120.0, 1000.0
        self.reviewer.unknown = {1}
        self.pass_by(101)
        self.pass_by(121)
        self.assertEqual(self.heard(), [])

    def test_an_answer_in_time_ends_the_grace(self) -> None:
        self.reviewer.unknown = {1, 2}
        self.pass_by(101)
        self.pass_by(30)
        self.reviewer.unknown = set()
        self.pass_by(12)
        asked = len(self.reviewer.reviews)
        self.pass_by(60)
        self.assertEqual(len(self.reviewer.reviews), asked)
        self.reviewer.unknown = {1, 2}
        self.pass_by(50)
        self.assertEqual(self.heard(), [1, 2])

    def test_a_reviewer_that_fails_tells_of_nothing(self) -> None:
        for fails in (lambda *_: fail(RuntimeError("ours")), lambda *_: 1 / 0):
            self.setUp()
            self.reviewer.review = fails  # type: ignore[method-assign]
            self.pass_by(101)
            self.assertEqual(self.heard(), [1, 2])
            self.pass_by(75)
            self.assertEqual({frame["code"] for frame in self.client.take()}, {"unavailable"})
            self.assertEqual(self.heard(), [])
            self.assertGreater(len(self.flushLoggedErrors(RuntimeError, ZeroDivisionError)), 1)

    def test_what_was_joined_or_left_meanwhile_is_no_business_of_an_older_answer(self) -> None:
        self.reviewer.answers = []
        self.reviewer.forbidden = {1, 2}
        self.pass_by(101)
        self.reviewer.forbidden = set()
        self.client.send(type="unsubscribe", chat_id=1)
        self.client.send(type="subscribe", chat_id=1)
        self.client.take()
        [answer] = self.reviewer.answers
        answer()
        self.assertEqual([frame["chat_id"] for frame in self.client.take()], [2])
        self.assertEqual(self.heard(), [1])

    def test_who_is_gone_is_not_asked_about(self) -> None:
        self.reviewer.answers = []
        self.pass_by(101)
        self.reviewer.grace = 0.0
        self.client.leave()
        self.assertEqual((self.reviewer.given_up, self.client.take()), (1, []))
        self.assertEqual(self.world.sample("notify_subscriptions"), 0)
        self.pass_by(200)
        self.assertEqual(len(self.reviewer.reviews), 1)

    def test_who_is_in_no_chat_is_not_asked_about_until_in_one_again(self) -> None:
        for chat_id in (1, 2):
            self.client.send(type="unsubscribe", chat_id=chat_id)
        self.pass_by(201)
        self.assertEqual(self.reviewer.reviews, [])
        self.client.send(type="subscribe", chat_id=3)
        self.pass_by(101)
        self.assertEqual(self.reviewer.reviews, [{3}])


class AfterAReload(Case):
    """A reload puts another authenticator in force, as SIGHUP does."""

    def put(self, authenticator: IAuthenticator) -> None:
        self.world.reload(authenticator=authenticator)
        access.renew(self.world.hub)

    def test_who_was_there_before_is_asked_about_within_the_new_time(self) -> None:
        for before in (TableAuthenticator(), self.reviewer):
            world = self.world = World(Limits(reauthenticate=Duration(0)))
            world.authenticator = before
            world.reload(authenticator=before)
            self.client = world.client()
            for chat_id in (1, 2):
                self.client.send(type="subscribe", chat_id=chat_id)
            sooner = Reviewer()
            sooner.recheck, sooner.forbidden = 8.0, {2}
            self.put(sooner)
            self.pass_by(9)
            self.assertEqual([frame["chat_id"] for frame in self.client.take()], [2])
            self.assertEqual(self.heard(), [1])

    def test_reloads_one_after_the_other_put_nothing_off(self) -> None:
        for _ in range(4):
            self.pass_by(26)
            self.put(self.reviewer)
        self.assertEqual(len(self.reviewer.reviews), 1)

    def test_who_is_gone_or_in_no_chat_is_not_asked_about(self) -> None:
        self.client.send(type="unsubscribe", chat_id=1)
        self.client.send(type="unsubscribe", chat_id=2)
        other = self.world.client(user_id=2)
        other.send(type="subscribe", chat_id=1)
        other.leave()
        self.assertEqual(len(self.world.hub.subscribers), 1)
        self.put(self.reviewer)
        self.pass_by(101)
        self.assertEqual(self.reviewer.reviews, [])

    def test_no_answer_of_one_that_was_stopped_takes_nothing_away_and_its_successor_is_asked_soon(
        self,
    ) -> None:
        self.reviewer.grace, self.reviewer.unknown, self.reviewer.answers = 0.0, {1, 2}, []
        self.pass_by(101)
        successor = Reviewer()
        successor.forbidden = {2}
        self.put(successor)
        for answer in self.reviewer.answers:
            answer()
        self.assertEqual(self.heard(), [1, 2])
        self.pass_by(access.LEAST + 1)
        self.assertEqual(self.heard(), [1])


class AtRefresh(Case):
    def refresh(self, **identity: Any) -> None:
        self.reviewer.tokens["new"] = Identity(1, 1, **identity)
        self.client.send(type="refresh", token="new", id="r")

    def test_every_subscription_is_asked_about_again_at_once(self) -> None:
        self.reviewer.forbidden = {1}
        self.refresh()
        answer, error = self.client.take()
        self.assertEqual((answer["type"], error["code"], error["chat_id"]), ("ok", "forbidden", 1))
        self.assertEqual(self.heard(), [2])

    def test_who_shows_tokens_all_the_time_is_asked_about_with_measure(self) -> None:
        for _ in range(20):
            self.refresh()
        self.assertEqual(len(self.reviewer.reviews), 1)
        self.reviewer.forbidden = {1}
        self.pass_by(5.5)
        self.assertEqual(len(self.reviewer.reviews), 2)
        self.assertEqual(self.heard(), [2])

    def test_a_token_shown_during_a_review_brings_another_one(self) -> None:
        self.reviewer.answers = []
        self.refresh()
        self.refresh()
        [answer] = self.reviewer.answers
        answer()
        self.pass_by(5.5)
        self.assertEqual(len(self.reviewer.reviews), 2)

    def test_an_authenticator_that_is_no_reviewer_is_asked_chat_by_chat(self) -> None:
        plain = self.world.authenticator = TableAuthenticator()
        self.world.reload(authenticator=plain)
        plain.tokens["new"] = Identity(1, 1)
        plain.forbidden = {2}
        self.client.send(type="refresh", token="new")
        self.assertEqual(sorted(topic.id for topic in plain.asked), [1, 2])
        [error] = self.client.take()
        self.assertEqual((error["code"], error["chat_id"]), ("forbidden", 2))

    def test_one_that_fails_or_is_away_takes_nothing_away_at_once(self) -> None:
        plain = self.world.authenticator = TableAuthenticator()
        self.world.reload(authenticator=plain)
        plain.tokens["new"] = Identity(1, 1)
        plain.authorize = lambda identity, topic: fail(RuntimeError("secret detail"))  # type: ignore[method-assign]
        self.client.send(type="refresh", token="new")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
        self.assertEqual(self.heard(), [1, 2])
        del plain.authorize
        self.pass_by(120)
        self.assertEqual(len(plain.asked), 2)


class Disconnect(Case):
    def test_closes_the_user_here_and_what_was_said_of_him_is_forgotten(self) -> None:
        other = self.world.client(user_id=2)
        closed = access.disconnect(self.world.hub, 1, 1)
        self.assertEqual((closed, self.client.closed), (1, (4503, "")))
        self.assertIsNone(other.closed)
        self.assertEqual(self.reviewer.forgotten, [(1, 1)])
        access.forget(self.world.hub, 3, "a")
        self.assertEqual(self.reviewer.forgotten[1:], [(3, "a")])

    def test_it_can_be_for_a_moment(self) -> None:
        self.assertEqual(access.disconnect(self.world.hub, 1, 1, reconnect=True), 1)
        code, reason = self.client.closed or (0, "")
        self.assertEqual(code, 1012)
        self.assertTrue(500 <= json.loads(reason)["retry_after_ms"] <= 5500, reason)
        self.assertEqual(self.reviewer.forgotten, [(1, 1)])

    def test_an_authenticator_that_remembers_nothing_needs_not_forget(self) -> None:
        self.world.reload(authenticator=TableAuthenticator())
        self.assertEqual(access.disconnect(self.world.hub, 1, 1), 1)


class LongestLife(SynchronousTestCase):
    def test_a_token_that_never_ends_has_to_be_shown_again(self) -> None:
        world = World(Limits(reauthenticate=Duration(1000)))
        client = world.client()
        expires = client.result[0]["expires_at"]
        self.assertTrue(NOW + 900 <= expires <= NOW + 1000)
        self.assertEqual(client.connection.identity.expires_at // 1, expires)
        world.authenticator.tokens["same"] = Identity(1, 1)
        world.clock.advance(800)
        answer = client.ask(type="refresh", token="same", id=1)
        self.assertGreaterEqual(answer["expires_at"], NOW + 1700)
        world.clock.advance(899)
        self.assertIsNone(client.closed)
        world.clock.advance(102)
        self.assertEqual(client.closed, (4002, "token expired"))

    def test_a_token_that_ends_before_is_good_until_then(self) -> None:
        world = World(Limits(reauthenticate=Duration(1000)))
        self.assertEqual(world.client(expires_in=500).result[0]["expires_at"], NOW + 500)

    def test_by_default_it_is_a_day(self) -> None:
        result = World().client(expires_in=30 * 86400).result[0]
        self.assertTrue(NOW + 0.9 * 86400 <= result["expires_at"] <= NOW + 86400)


class Unsubscribe(Case):
    """An operator ends a subscription."""

    def forbidden(self) -> list[Any]:
        return [frame for frame in self.client.take() if frame["type"] == "error"]

    def test_ends_the_subscription_tells_the_client_and_forgets_what_was_said(self) -> None:
        other = self.world.client(user_id=2)
        other.send(type="subscribe", chat_id=1)
        self.client.take()
        self.assertEqual(access.unsubscribe(self.world.hub, 1, 1, 1), 1)
        [error] = self.forbidden()
        self.assertEqual((error["code"], error["chat_id"]), ("forbidden", 1))
        self.assertEqual(self.reviewer.forgotten, [(1, 1)])
        self.assertEqual(self.heard(), [2])
        self.assertIn("chat_message", [frame["type"] for frame in other.take()])
        self.assertEqual(access.unsubscribe(self.world.hub, 1, 1, 1), 0)

    def test_all_connections_of_that_user_of_that_workspace_are_meant(self) -> None:
        second, elsewhere = self.world.client(), self.world.client(workspace_id=2)
        for client in (second, elsewhere):
            client.send(type="subscribe", chat_id=1)
        self.assertEqual(access.unsubscribe(self.world.hub, 1, 1, 1), 2)
        self.assertEqual(second.session.chats, set())
        self.assertEqual(elsewhere.session.chats, {1})

    def test_who_is_allowed_still_may_come_back(self) -> None:
        access.unsubscribe(self.world.hub, 1, 1, 1)
        self.client.take()
        self.assertEqual(self.client.ask(type="subscribe", chat_id=1, id=5)["type"], "subscribed")
        self.assertEqual(self.heard(), [1, 2])

    def test_who_is_not_stays_out(self) -> None:
        access.unsubscribe(self.world.hub, 1, 1, 1)
        self.reviewer.forbidden.add(1)
        self.assertEqual(self.client.ask(type="subscribe", chat_id=1)["code"], "forbidden")
        self.assertEqual(self.heard(), [2])

    def test_a_question_that_is_under_way_lets_nobody_in(self) -> None:
        self.reviewer.held = []
        self.client.send(type="subscribe", chat_id=3, id=7)
        self.assertEqual(access.unsubscribe(self.world.hub, 1, 1, 3), 1)
        for answer in self.reviewer.held:
            answer()
        [error] = self.forbidden()
        self.assertEqual((error["code"], error["id"]), ("forbidden", 7))
        self.assertEqual(self.client.session.chats, {1, 2})
        # The client's next request is answered as usual.
        self.reviewer.held = None
        self.assertEqual(self.client.ask(type="subscribe", chat_id=3, id=8)["type"], "subscribed")

    def test_nor_does_a_topic_that_is_about_to_be_followed(self) -> None:
        self.world.broker.held = []
        self.client.send(type="subscribe", chat_id=3, id=7)
        self.assertEqual(access.unsubscribe(self.world.hub, 1, 1, 3), 1)
        for answer in self.world.broker.held:
            answer()
        [error] = self.forbidden()
        self.assertEqual((error["code"], error["id"]), ("forbidden", 7))
        self.assertEqual(list(self.world.registry.members(chat(1, 3))), [])
        self.assertEqual(self.heard(), [1, 2])

    def test_one_that_is_there_and_asks_for_a_replay_is_out_for_good(self) -> None:
        self.reviewer.held = []
        self.client.send(type="subscribe", chat_id=1, id=7)
        self.client.take()
        self.assertEqual(access.unsubscribe(self.world.hub, 1, 1, 1), 1)
        for answer in self.reviewer.held:
            answer()
        self.assertEqual([error.get("id") for error in self.forbidden()], [None, 7])
        self.assertEqual(self.heard(), [2])
        self.assertEqual(self.world.sample("notify_subscriptions"), 1)

    def test_a_client_that_left_is_nobody(self) -> None:
        self.client.leave()
        self.assertEqual(access.unsubscribe(self.world.hub, 1, 1, 1), 0)
        self.assertEqual(self.world.hub.subscribers, {})
