"""Revoked tokens: the table, and what happens to a client with such a token."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Duration, Limits
from notify.core import access, revocations
from notify.core.revocations import SWEEP, Revocation, Revocations, read
from notify.core.steering import Steering
from notify.errors import Unavailable
from notify.identity import Identity
from notify.ids import Id
from notify.interfaces import BrokerStatus
from notify.topics import user
from tests.support.world import NOW, Client, World

DAY = 86400.0


class Table(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 1000.0
        self.counts: list[float] = []
        self.table = Revocations(lambda: self.now, self.counts.append)

    def revoke(self, before: float, until: float = 2000.0, user_id: Id = 7, workspace_id: Id = 1) -> None:
        self.table.add(Revocation(workspace_id, user_id, before, until))

    def refused(self, issued_at: float | None, user_id: Id = 7, workspace_id: Id = 1) -> bool:
        return bool(self.table.refuses(Identity(user_id, workspace_id, None, None, (), issued_at)))

    def test_what_was_issued_before_is_refused_and_what_came_after_is_not(self) -> None:
        self.assertFalse(self.refused(999.0))
        self.revoke(1000.0)
        self.assertEqual([self.refused(at) for at in (0.0, 999.0, 999.999)], [True] * 3)
        self.assertEqual([self.refused(at) for at in (1000.0, 1001.0)], [False] * 2)

    def test_of_whole_seconds_the_second_of_the_revocation_is_refused_too(self) -> None:
        self.revoke(1000.2)
        self.assertEqual([self.refused(at) for at in (1000.0, 1001.0)], [True, False])

    def test_a_token_that_does_not_say_when_is_refused_while_it_stands(self) -> None:
        self.assertFalse(self.refused(None))
        self.revoke(1000.0)
        self.assertTrue(self.refused(None))
        self.now = 2000.0
        self.assertFalse(self.refused(None))

    def test_it_is_about_one_user_of_one_workspace(self) -> None:
        self.revoke(1000.0)
        for user_id, workspace_id in ((8, 1), (7, 2), ("7x", 1), (7, "a")):
            self.assertFalse(self.refused(1.0, user_id, workspace_id))

    def test_two_of_one_user_hold_both_in_whichever_order(self) -> None:
        for first, second in (((900.0, 2000.0), (500.0, 3000.0)), ((500.0, 3000.0), (900.0, 2000.0))):
            self.table = Revocations(lambda: self.now)
            self.revoke(*first)
            self.revoke(*second)
            self.assertEqual([self.refused(at) for at in (899.0, 900.0)], [True, False])
            self.now = 2999.0
            self.assertTrue(self.refused(899.0))
            self.now = 1000.0

    def test_what_has_ended_is_forgotten(self) -> None:
        for number in range(5):
            self.revoke(1000.0, 2000.0, number)
        self.revoke(1000.0, 9000.0, 7)
        self.now = 2001.0 + SWEEP
        self.revoke(self.now, self.now + 1, 8)
        self.assertEqual((len(self.table), self.counts[-1]), (2, 2))
        self.revoke(1.0, self.now, 9)  # this one had ended before it came
        self.assertEqual(len(self.table), 2)

    def test_a_clock_that_is_set_back_keeps_all(self) -> None:
        self.revoke(1000.0)
        self.now = -10 * SWEEP
        self.revoke(1.0, 2000.0, 8)
        self.assertTrue(self.refused(999.0))

    def test_there_is_room_for_so_many_and_for_half_of_them_of_one_workspace(self) -> None:
        self.patch(revocations, "MOST", 6)
        self.patch(revocations, "MOST_OF_ONE", 3)
        for number in range(3):
            self.revoke(1000.0, 2000.0, number)

        def room(user_id: Id, workspace_id: Id) -> bool:
            return self.table.has_room(Revocation(workspace_id, user_id, 1000.0, 2000.0))

        self.assertEqual([room(9, 1), room(9, 2), room(0, 1)], [False, True, True])
        for number in range(3):
            self.revoke(1000.0, 2500.0, number, 2)
        self.assertEqual([room(9, 3), room(0, 1)], [False, True])
        # A revocation that is kept for all nodes is accepted in any case.
        self.revoke(1000.0, 2000.0, 9, 3)
        self.assertTrue(self.refused(1.0, 9, 3))
        self.now = 2000.0
        self.assertEqual([room(9, 3), room(9, 1)], [True, True])

    def test_records_of_it_join_what_is_kept(self) -> None:
        one = Revocation(1, "u", 5.0, 50.0)
        record = one.over(msgspec.json.encode(Revocation(1, "u", 9.0, 20.0)))
        self.assertEqual(read("revoked.1.u", record), Revocation(1, "u", 9.0, 50.0))
        self.assertEqual(read(one.key, one.over(None)), one)

    def test_what_is_no_record_is_none(self) -> None:
        one = Revocation(1, "u", 5.0, 50.0)
        good = msgspec.json.encode(one)
        for wrong in (b"", b"{", b"\xff", b'{"stream":"M","seq":1}', good[:-1] + b',"seq":1}', b"[" * 5000):
            self.assertIsNone(read(one.key, wrong))
            self.assertEqual(read(one.key, one.over(wrong)), one)
        self.assertIsNone(read("revoked.1.v", good))


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()

    def token(self, issued_at: float | None = NOW - 10, user_id: Id = 1, name: str = "") -> str:
        token = name or f"token-{user_id}-{issued_at}"
        self.world.authenticator.tokens[token] = Identity(user_id, 1, NOW + DAY, None, (), issued_at)
        return token

    def client(self, issued_at: float | None = NOW - 10, user_id: Id = 1) -> Client:
        client = self.world.connect()
        client.send(type="auth", token=self.token(issued_at, user_id))
        client.result = client.take()
        return client

    def revoke(self, before: float = NOW, user_id: Id = 1, stands: float = 30 * DAY) -> int:
        return access.revoke(self.world.hub, Revocation(1, user_id, before, NOW + stands))


class Revoked(Case):
    closed = (4002, "token revoked")

    def test_live_connections_of_older_tokens_are_closed_and_no_others(self) -> None:
        old, unsaid, new, other = self.client(), self.client(None), self.client(NOW), self.client(user_id=2)
        self.assertEqual(self.revoke(), 2)
        self.assertEqual([one.closed for one in (old, unsaid)], [self.closed] * 2)
        self.assertEqual([one.closed for one in (new, other)], [None] * 2)
        self.assertEqual(self.revoke(), 0)

    def test_an_older_token_lets_in_no_more_and_the_client_is_told_to_come_with_another(self) -> None:
        self.revoke()
        with capturedLogs() as events:
            client = self.client()
        self.assertEqual((client.closed, client.result), (self.closed, []))
        self.assertEqual(self.world.sample("notify_auth_total", result="revoked"), 1)
        [line] = [text for text in map(formatEvent, events) if text and "refused" in text]
        self.assertIn("user 1 of workspace 1: the token is refused: it was issued before", line)
        self.assertNotIn("token-1", line)
        self.assertTrue(self.client(NOW).result[0]["success"])
        self.assertEqual(self.world.sample("notify_revocations"), 1)

    def test_who_is_just_authenticating_does_not_get_in(self) -> None:
        self.world.authenticator.held = []
        client = self.client()
        self.assertEqual(self.revoke(), 0)
        self.world.authenticator.release()
        self.assertEqual((client.closed, client.take()), (self.closed, []))
        self.assertEqual(len(self.world.registry.members(user(1, 1))), 0)

    def test_nor_does_who_has_authenticated_and_is_not_told_yet(self) -> None:
        self.world.broker.held = []
        client = self.client()
        self.revoke()
        self.world.broker.release()
        self.assertEqual((client.closed, client.take()), (self.closed, []))
        self.assertEqual(len(self.world.registry.members(user(1, 1))), 0)

    def test_a_refresh_with_an_older_token_closes(self) -> None:
        client = self.client(NOW)
        self.revoke()
        client.send(type="refresh", token=self.token(NOW - 1))
        self.assertEqual(client.closed, self.closed)

    def test_a_refresh_that_is_under_way_does_not_save_the_connection_but_a_done_one_does(self) -> None:
        under_way, done = self.client(), self.client()
        done.send(type="refresh", token=self.token(NOW + 1))
        self.world.authenticator.held = []
        under_way.send(type="refresh", token=self.token(NOW - 1))
        self.assertEqual(self.revoke(), 1)
        self.world.authenticator.release()
        self.assertEqual((under_way.closed, done.closed), (self.closed, None))

    def test_a_refresh_with_an_older_token_that_is_under_way_closes(self) -> None:
        client = self.client(NOW)
        self.world.authenticator.held = []
        client.send(type="refresh", token=self.token(NOW - 1))
        self.assertEqual(self.revoke(), 0)
        self.world.authenticator.release()
        self.assertEqual(client.closed, self.closed)

    def test_a_subscription_under_way_ends_with_the_connection(self) -> None:
        client = self.client()
        self.world.authenticator.held = []
        client.send(type="subscribe", chat_id=10, id=1)
        self.revoke()
        self.world.authenticator.release()
        self.assertEqual((client.closed, client.take()), (self.closed, []))

    def test_what_the_authenticator_remembered_is_forgotten(self) -> None:
        forgotten: list[Any] = []
        self.patch(access, "forget", lambda live, *about: forgotten.append(about))
        self.revoke(user_id=5)
        self.assertEqual(forgotten, [(1, 5)])


class Age(Case):
    def test_a_token_ends_when_a_revocation_of_it_would(self) -> None:
        self.world.reload(limits=Limits(token_age=Duration(3600), reauthenticate=Duration(0)))
        client = self.client(NOW - 3590)
        self.assertEqual(client.result[0]["expires_at"], int(NOW + 10))
        self.world.clock.pump([0.25] * 44)
        self.assertEqual(client.closed, (4002, "token expired"))
        self.assertEqual(self.client(NOW - 3590).closed, (4500, "authentication failed"))
        refreshed = self.client(NOW)
        refreshed.send(type="refresh", token=self.token(NOW - 3595))
        self.assertEqual(refreshed.closed, (4500, "authentication failed"))

    def test_one_that_does_not_say_when_it_was_issued_has_only_its_own_end(self) -> None:
        self.world.reload(limits=Limits(token_age=Duration(3600), reauthenticate=Duration(0)))
        self.assertEqual(self.client(None).result[0]["expires_at"], int(NOW + DAY))


class Steered(Case):
    def setUp(self) -> None:
        super().setUp()
        reloads: Any = lambda: (None, "")  # noqa: E731
        nothing: Any = lambda: None  # noqa: E731
        self.steering = Steering(
            self.world.hub, "n", lambda: BrokerStatus(True, ""), lambda: "serving", reloads, nothing, nothing
        )

    def test_a_node_is_told_and_says_how_many_it_closed(self) -> None:
        client = self.client()
        order = msgspec.json.encode(Revocation(1, 1, NOW, NOW + DAY))
        self.assertEqual(self.successResultOf(self.steering.do("revoke", order)), b'{"count":1}')
        self.assertEqual(client.closed, Revoked.closed)

    def test_one_that_has_no_room_says_that_it_did_not(self) -> None:
        self.patch(revocations, "MOST", 0)
        order = msgspec.json.encode(Revocation(1, 1, NOW, NOW + DAY))
        self.failureResultOf(self.steering.do("revoke", order), Unavailable)

    def test_what_is_kept_holds_here_too_and_anything_else_does_nothing(self) -> None:
        client, one = self.client(), Revocation(1, 1, NOW, NOW + DAY)
        for key, record in (
            ("revoked.1.1", b"{}"),
            ("other.1.1", one.over(None)),
            ("revoked.1.2", one.over(None)),
        ):
            self.steering.heard(key, record)
        self.assertIsNone(client.closed)
        self.steering.heard("revoked.1.1", one.over(None))
        self.assertEqual(client.closed, Revoked.closed)
