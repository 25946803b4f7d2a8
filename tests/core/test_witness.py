"""What a trace shows about clients, and what it does not."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from notify.config import Limits
from notify.core import witness
from notify.core.traces import LEASE, MOST_OF_TENANTS, MOST_TRACES, Traces
from notify.core.witness import Collected, Seen, Trace, TraceOrder
from notify.identity import Identity
from notify.interfaces import IAuthenticator, IExplainer
from notify.testing import FakeConnection, chat_payload, notification_payload
from notify.topics import Topic, chat, user
from tests.support.world import TableAuthenticator, World


@implementer(IAuthenticator, IExplainer)
class Explainer(TableAuthenticator):
    """Reads refused tokens of the form ``workspace/user``; others name nobody."""

    def claims(self, token: str) -> tuple[Any, Any] | None:
        workspace, _, user_id = token.partition("/")
        return (int(workspace), int(user_id)) if user_id else None

    def why_not(self, identity: Identity, topic: Topic) -> str:
        return f"not chat {topic.id}"


class Case(SynchronousTestCase):
    limits = Limits()

    def setUp(self) -> None:
        self.world = World(self.limits)
        self.world.authenticator = Explainer()
        self.world.reload(authenticator=self.world.authenticator)
        self.traces = Traces(self.world.hub, "node-1")
        self.after: dict[str, int] = {}

    def order(self, **fields: Any) -> TraceOrder:
        fields = {"workspace_id": 1, "user_id": 7, "everywhere": True, **fields}
        return TraceOrder(fields.pop("trace", "t"), **fields)

    def collect(self, **fields: Any) -> Collected:
        """A node's answer, encoded and decoded as between nodes."""
        data = msgspec.json.encode(self.traces.collect(self.order(after=self.after, **fields)))
        collected = msgspec.json.decode(data, type=Collected)
        self.after = {collected.life: collected.last}
        return collected

    def seen(self, *kinds: str, **fields: Any) -> list[Seen]:
        """The events since the last call: those of these kinds, or all."""
        return [one for one in self.collect(**fields).events if not kinds or one.what in kinds]

    def told(self, *kinds: str, **fields: Any) -> list[tuple[str, str, str]]:
        return [(one.what, one.outcome, one.reason) for one in self.seen(*kinds, **fields)]


class Idle(Case):
    def test_nobody_is_told_anything_while_nobody_traces(self) -> None:
        hub = self.world.hub
        self.assertEqual((hub.witness, hub.dispatcher.witness), (None, None))
        self.collect()
        self.assertIsNotNone(hub.witness)
        self.assertIs(hub.witness, hub.dispatcher.witness)
        self.assertEqual(self.collect(end=True), Collected())
        self.assertEqual((hub.witness, hub.dispatcher.witness), (None, None))

    def test_a_trace_that_nobody_asks_for_any_more_ends(self) -> None:
        self.collect()
        for _ in range(4):
            self.world.clock.pump([LEASE / 8] * 4)
            self.collect()
        self.assertIsNotNone(self.world.hub.witness)
        self.world.clock.pump([LEASE / 8] * 16)
        self.assertIsNone(self.world.hub.witness)
        # The next request makes a new trace, which starts from the beginning.
        [one] = self.seen()
        self.assertEqual((one.what, one.connections), ("watching", 0))

    def test_so_many_at_once_and_no_more(self) -> None:
        for number in range(MOST_TRACES):
            self.assertFalse(self.collect(trace=str(number)).busy)
        self.assertTrue(self.collect(trace="one more").busy)
        self.assertFalse(self.collect(trace="0").busy)
        self.collect(trace="0", end=True)
        self.assertFalse(self.collect(trace="one more").busy)

    def test_tenants_leave_the_operator_room(self) -> None:
        for number in range(MOST_OF_TENANTS):
            self.assertFalse(self.collect(trace=str(number), everywhere=False).busy)
        self.assertTrue(self.collect(trace="one more", everywhere=False).busy)
        for number in range(MOST_OF_TENANTS, MOST_TRACES):
            self.assertFalse(self.collect(trace=str(number)).busy)
        self.assertFalse(self.collect(trace="0", everywhere=False).busy)
        self.collect(trace="0", everywhere=False, end=True)
        self.assertFalse(self.collect(trace="one more", everywhere=False).busy)


class Told(Case):
    def test_what_was_not_acknowledged_is_told_again(self) -> None:
        first = self.traces.collect(self.order())
        again = self.traces.collect(self.order())
        self.assertEqual((first.events, first.last), (again.events, again.last))
        self.assertEqual(self.traces.collect(self.order(after={first.life: first.last})).events, [])

    def test_more_than_it_may_keep_is_counted(self) -> None:
        trace = Trace(self.order(), "life", 0.0)
        for _ in range(3 * witness.RATE):
            trace.see(0.0, Seen(1.0, "frame"))
        for _ in range(3 * witness.RATE_ASIDE):
            trace.see(0.0, Seen(1.0, "publish"), True)
        told = trace.tell("n", 0)
        self.assertEqual(len(told.events), 2 * (witness.RATE + witness.RATE_ASIDE))
        self.assertEqual(told.left_out, witness.RATE + witness.RATE_ASIDE)
        trace.see(1.0, Seen(1.0, "frame"))
        told = trace.tell("n", told.last)
        self.assertEqual((len(told.events), told.left_out), (1, 0))

    def test_messages_without_end_hide_no_close(self) -> None:
        trace = Trace(self.order(), "life", 0.0)
        for second in range(60):
            for _ in range(10 * witness.RATE):
                trace.see(float(second), Seen(1.0, "message"))
                trace.see(float(second), Seen(1.0, "turned_away"), True)
            trace.see(float(second), Seen(1.0, "close"))
        told = trace.tell("n", 0)
        self.assertEqual(sum(one.what == "close" for one in told.events), 60)
        self.assertEqual(len(told.events) - 60 + told.left_out, 60 * 20 * witness.RATE)

    def test_what_nobody_takes_is_bounded_and_less_than_nats_takes(self) -> None:
        trace = Trace(self.order(), "life", 0.0)
        text = "\N{GRINNING FACE}"
        big = Seen(
            1.5, "auth", workspace_id="w" * 64, user_id="u" * 64, connection_id="c" * 32, peer="p" * 45,
            origin=text * witness.MOST_TEXT, reason="r" * witness.MOST_REASON,
        )  # fmt: skip
        for second in range(100):
            for _ in range(witness.RATE):
                trace.see(float(second), big)
        told = trace.tell("n" * 64, 0)
        self.assertEqual(len(told.events), witness.MOST_WAITING)
        self.assertEqual(told.left_out, 100 * witness.RATE - witness.MOST_WAITING)
        self.assertLess(len(msgspec.json.encode(told)), 1_000_000)

    def test_who_is_there_already_and_is_subscribed_to_nothing(self) -> None:
        self.world.client(7)
        client = self.world.client(7)
        for chat_id in (3, 2):
            client.send(type="subscribe", chat_id=chat_id)
        client.connection.queued = 5
        self.world.client(8)
        self.world.client(7, workspace_id=2)
        start, *there = self.seen()
        self.assertEqual((start.what, start.connections, start.node), ("watching", 2, "node-1"))
        self.assertEqual([(one.workspace_id, one.chats or [], one.queued) for one in there],
                         [(1, [], 0), (1, [2, 3], 5), (2, [], 0)])  # fmt: skip
        self.assertEqual({one.node for one in there}, {"node-1"})


class WhyNothing(Case):
    """Why does this user get nothing?"""

    def setUp(self) -> None:
        super().setUp()
        self.collect()

    def test_a_good_token(self) -> None:
        client = self.world.client(7)
        connect, auth, frame = self.seen()
        self.assertEqual(
            (connect.what, connect.peer, connect.type), ("connect", "127.0.0.1", "notify.v1.json")
        )
        self.assertEqual((auth.what, auth.outcome, auth.user_id), ("auth", "ok", 7))
        self.assertEqual((frame.way, frame.type, frame.size), ("out", "auth_result", len(json.dumps(
            client.result[0], separators=(",", ":")))))  # fmt: skip
        self.assertFalse(connect.claimed or auth.claimed)

    def test_a_wrong_token_by_whom_it_names(self) -> None:
        client = self.world.connect()
        client.send(type="auth", token="1/7")
        connect, auth = self.seen()
        self.assertEqual((connect.what, connect.claimed), ("connect", True))
        self.assertEqual((auth.outcome, auth.reason, auth.claimed), ("refused", "unknown token", True))
        self.assertEqual((auth.workspace_id, auth.user_id), (1, 7))
        self.assertNotIn("1/7", repr((connect, auth)))
        witness = self.world.hub.witness
        assert witness is not None
        witness.closed(client.connection, 4500, True)
        [close] = self.seen()
        self.assertEqual((close.code, close.reason, close.claimed), (4500, "authentication failed", True))

    def test_one_that_names_another_is_no_business_of_this_trace(self) -> None:
        for token in ("1/8", "2/8"):
            self.world.connect().send(type="auth", token=token)
        self.assertEqual(self.seen(), [])

    def test_bad_tokens_that_name_somebody_hide_nothing_that_is_theirs(self) -> None:
        for _ in range(200):
            self.world.connect().send(type="auth", token="1/7")
        self.world.client(7)
        collected = self.collect()
        self.assertEqual(
            [one.what for one in collected.events if not one.claimed], ["connect", "auth", "frame"]
        )
        self.assertGreater(collected.left_out, 100)

    def test_one_that_names_nobody_is_somebodys(self) -> None:
        self.world.connect().send(type="auth", token="opaque")
        [auth] = self.seen()
        self.assertEqual((auth.outcome, auth.user_id, auth.peer), ("refused", None, "127.0.0.1"))

    def test_no_token_and_no_answer(self) -> None:
        self.world.connect()
        self.world.authenticator.away = True
        self.world.connect().send(type="auth", token="1/7")
        self.assertEqual(self.told("auth"), [("auth", "unavailable", "away")])
        self.world.clock.pump([1.0] * 20)
        self.assertEqual([one.outcome for one in self.seen("auth")], ["timeout"])

    def test_not_a_member(self) -> None:
        self.world.authenticator.forbidden.add(3)
        client = self.world.client(7)
        self.collect()
        client.send(type="subscribe", chat_id=3)
        self.world.authenticator.away = True
        client.send(type="subscribe", chat_id=4)
        self.assertEqual(
            self.told(),
            [
                ("subscribe", "forbidden", "not chat 3"),
                ("frame", "forbidden", "no such chat, or not yours to see"),
                ("subscribe", "unavailable", "away"),
                ("frame", "unavailable", "not possible right now"),
            ],
        )

    def test_put_out_by_an_operator(self) -> None:
        client = self.world.client(7)
        client.send(type="subscribe", chat_id=3)
        self.collect()
        client.session.bar(3)
        one, frame = self.seen()
        self.assertEqual((one.what, one.chat_id, one.outcome), ("unsubscribe", 3, "forbidden"))
        self.assertEqual((frame.type, frame.chat_id), ("error", 3))

    def test_in_another_workspace_than_they_publish_to(self) -> None:
        self.world.client(7, workspace_id=2)
        connect, auth = self.seen()
        self.assertEqual((connect.workspace_id, auth.workspace_id, auth.outcome), (2, 2, "ok"))
        topic = user(1, 7)
        witness = self.world.hub.witness
        assert witness is not None
        witness.published(topic, 10, "ok", "", "e", 4)
        [publish] = self.seen()
        self.assertEqual((publish.subject, publish.size, publish.seq), (topic.subject, 10, 4))

    def test_messages_and_how_many_of_the_users_connections_got_them(self) -> None:
        first, second = self.world.client(7), self.world.client(7)
        other = self.world.client(8)
        for client in (first, other):
            client.send(type="subscribe", chat_id=3)
        other.send(type="subscribe", chat_id=4)
        self.collect()
        payload = notification_payload(user(1, 7))
        self.world.publish(user(1, 7), payload)
        self.world.publish(user(1, 8), notification_payload(user(1, 8)))
        for chat_id in (3, 4):
            self.world.publish(chat(1, chat_id), chat_payload(chat(1, chat_id), content="secret"))
        self.world.turn()
        told = self.seen()
        self.assertEqual([(one.subject.partition(".")[2], one.connections) for one in told],
                         [("1.user.7.notifications", 2), ("1.chat.3.messages", 1), ("1.chat.4.messages", 0)])  # fmt: skip
        self.assertEqual((told[0].seq, told[0].what), (1, "message"))
        self.assertNotIn("secret", repr(told))
        second.leave()

    def test_what_was_missed_is_counted_in_its_answer(self) -> None:
        for _ in range(3):
            self.world.publish(chat(1, 3), chat_payload(chat(1, 3)))
        client = self.world.client(7)
        epoch = client.ask(type="subscribe", chat_id=3, id=1)["epoch"]
        self.collect()
        client.send(type="subscribe", chat_id=3, since={"epoch": epoch, "seq": 1})
        subscribe, frame = self.seen()
        self.assertEqual((subscribe.what, subscribe.outcome, subscribe.chat_id), ("subscribe", "ok", 3))
        self.assertEqual(
            (frame.type, frame.outcome, frame.count, frame.seq), ("subscribed", "recovered", 2, 3)
        )

    def test_a_slow_client_and_one_that_left(self) -> None:
        slow, left = self.world.client(7), self.world.client(7)
        self.collect()
        witness = self.world.hub.witness
        assert witness is not None
        witness.closed(slow.connection, 4001, True)
        witness.closed(left.connection, 1000, False)
        witness.closed(self.world.client(8).connection, 4001, True)
        first, second = self.seen()
        self.assertEqual(
            (first.code, first.reason), (4001, "slow client: its queue passed limits.send_queue")
        )
        self.assertEqual((second.code, second.reason), (1000, "the client closed it"))

    def test_a_new_token(self) -> None:
        client = self.world.client(7)
        self.world.authenticator.tokens["mine"] = Identity(7, 1)
        self.world.authenticator.tokens["another's"] = Identity(8, 2)
        self.collect()
        client.send(type="refresh", token="mine", id=1)
        client.send(type="refresh", token="another's")
        told = self.seen("refresh")
        self.assertEqual([one.outcome for one in told], ["ok", "refused"])
        self.assertEqual({(one.workspace_id, one.user_id) for one in told}, {(1, 7)})


class Full(Case):
    limits = Limits(max_arriving=1, max_connections_per_user=1)

    def test_limits(self) -> None:
        self.collect()
        self.world.client(7)
        self.collect()
        self.world.client(7)
        [_, one] = self.seen()
        self.assertEqual((one.outcome, one.reason), ("refused", "limits.max_connections_per_user is reached"))
        witness = self.world.hub.witness
        assert witness is not None
        witness.closed(FakeConnection(id=one.connection_id), 1013, True)
        [close] = self.seen()
        self.assertEqual((close.user_id, close.claimed), (7, False))
        self.world.connect()
        self.world.connect()
        [one] = self.seen()
        self.assertEqual((one.what, one.outcome, one.peer), ("turned_away", "1013", "127.0.0.1"))


class Chats(Case):
    def test_a_chat(self) -> None:
        fields: dict[str, Any] = {"user_id": None, "chat_id": 3}
        inside = self.world.client(7)
        inside.send(type="subscribe", chat_id=3)
        start, there = self.seen(**fields)
        self.assertEqual((start.connections, start.chat_id, there.user_id), (1, 3, 7))
        self.world.authenticator.forbidden.add(4)
        client = self.world.client(8)
        client.send(type="subscribe", chat_id=4)
        client.send(type="subscribe", chat_id=3)
        inside.leave()
        self.world.publish(chat(1, 3), chat_payload(chat(1, 3)))
        self.world.publish(user(1, 8), notification_payload(user(1, 8)))
        self.world.client(7, workspace_id=2).send(type="subscribe", chat_id=3)
        self.world.connect().send(type="auth", token="opaque")
        self.world.turn()
        told = self.seen(**fields)
        self.assertEqual([(one.what, one.user_id, one.outcome, one.connections) for one in told],
                         [("subscribe", 8, "ok", None), ("unsubscribe", 7, "gone", None),
                          ("message", None, "", 1)])  # fmt: skip


class Tenants(Case):
    """The trace is for workspace 1 only."""

    def setUp(self) -> None:
        super().setUp()
        self.world.client(7, workspace_id=2)
        [start] = self.seen(everywhere=False)
        self.assertEqual(start.connections, 0)

    def test_nothing_of_another_workspace_and_nothing_of_nobody(self) -> None:
        for token in ("2/7", "opaque"):
            self.world.connect().send(type="auth", token=token)
        self.world.client(7, workspace_id=2).send(type="subscribe", chat_id=3)
        self.world.publish(user(2, 7), notification_payload(user(2, 7)))
        self.world.turn()
        witness = self.world.hub.witness
        assert witness is not None
        witness.turned_away("192.0.2.1", "full", "limit")
        witness.published(user(2, 7), 1, "ok")
        # Nor does it show the name of another tenant's API key that was tried here.
        witness.published(user(1, 7), 1, "forbidden", "the API key 'x' is for some workspaces only")
        self.assertEqual(self.seen(everywhere=False), [])

    def test_its_own_is_told_also_as_it_is_claimed(self) -> None:
        self.world.connect().send(type="auth", token="1/7")
        self.world.client(7)
        told = self.seen("auth", everywhere=False)
        self.assertEqual([(one.outcome, one.claimed) for one in told], [("refused", True), ("ok", False)])


class Peers(Case):
    def test_an_address_is_one_however_it_is_written(self) -> None:
        self.collect(peer="2001:db8:0::1")
        witness = self.world.hub.witness
        assert witness is not None
        for peer in ("2001:DB8::1", "2001:db8::2", ""):
            witness.turned_away(peer, "full", "limit")
        self.assertEqual([one.peer for one in self.seen(peer="2001:db8:0::1")], ["2001:DB8::1"])

    def test_of_those_who_are_nobodys_only_one_address(self) -> None:
        self.collect(peer="192.0.2.1")
        witness = self.world.hub.witness
        assert witness is not None
        for peer in ("192.0.2.1", "192.0.2.2"):
            witness.turned_away(peer, "no page of ours", "403", "https://evil.example" + "/" * 200)
        self.world.client(7)
        turned, *others = self.seen(peer="192.0.2.1")
        self.assertEqual((turned.peer, len(turned.origin)), ("192.0.2.1", 100))
        self.assertEqual(len(others), 3)
