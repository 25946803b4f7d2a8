from urllib.parse import urlencode

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import TestCase

from notify.errors import HistoryLost, Unavailable
from notify.messages import Position, Replayed
from notify.testing import FakeConnection, chat_payload, notification_payload
from notify.topics import chat, user
from tests.support.http import AUTH, Client, FakeBroker, Node, request_bytes

TOPIC = chat(1, 10)


class Base(TestCase):
    def setUp(self) -> None:
        self.node = Node()

    def ask(self, path: str, **parameters):
        return self.node.call("GET", f"{path}?{urlencode(parameters)}")


class HistoryTest(Base):
    def setUp(self) -> None:
        super().setUp()
        for n in range(1, 6):
            self.successResultOf(self.node.broker.publish(TOPIC, chat_payload(TOPIC, n)))

    def ids(self, response) -> list[int]:
        self.assertEqual(response.status, 200, response.body)
        return [m["payload"]["message_id"] for m in response.json["messages"]]

    def test_without_a_position_starts_at_the_oldest_that_is_kept(self) -> None:
        response = self.ask("/v1/history", subject=TOPIC.subject)
        self.assertEqual(self.ids(response), [1, 2, 3, 4, 5])
        self.assertTrue(response.json["complete"])
        self.assertEqual(response.json["messages"][0]["payload"]["content"], "hello")

    def test_can_be_paged_through(self) -> None:
        seen, since, complete = [], {}, False
        while not complete:
            response = self.ask("/v1/history", subject=TOPIC.subject, limit=2, **since)
            seen.append(self.ids(response))
            since, complete = {"since": response.json["next"]}, response.json["complete"]
        self.assertEqual(seen, [[1, 2], [3, 4], [5]])
        nothing = self.ask("/v1/history", subject=TOPIC.subject, **since)
        self.assertEqual((self.ids(nothing), nothing.json["next"]), ([], since["since"]))

    def test_the_newest_come_first_and_older_ones_page_by_page(self) -> None:
        seen, before, complete = [], "newest", False
        while not complete:
            response = self.ask("/v1/history", subject=TOPIC.subject, limit=2, before=before)
            seen.append(self.ids(response))
            before, complete = response.json["previous"], response.json["complete"]
        self.assertEqual(seen, [[4, 5], [2, 3], [1]])
        nothing = self.ask("/v1/history", subject=TOPIC.subject, before=before)
        self.assertEqual(
            (self.ids(nothing), nothing.json["previous"], nothing.json["complete"]), ([], None, True)
        )

    def test_what_follows_a_page_of_the_newest_is_asked_for_with_next_also_where_it_is_empty(self) -> None:
        for topic in (TOPIC, chat(1, 99)):
            page = self.ask("/v1/history", subject=topic.subject, before="newest", limit=2)
            self.node.broker.publish(topic, chat_payload(topic, 77))
            following = self.ask("/v1/history", subject=topic.subject, since=page.json["next"])
            self.assertEqual(self.ids(following), [77])

    def test_a_page_backwards_is_bounded_in_bytes(self) -> None:
        big = chat(1, 11)
        for n in range(3):
            self.node.broker.publish(big, chat_payload(big, n, "x" * 2_000_000))
        first = self.ask("/v1/history", subject=big.subject, before="newest")
        self.assertEqual(self.ids(first), [1, 2])
        self.assertFalse(first.json["complete"])

    def test_before_a_position_of_another_epoch_is_gone_and_without_the_means_it_says_so(self) -> None:
        response = self.ask("/v1/history", subject=TOPIC.subject, before="another:3")
        self.assertEqual((response.status, response.code), (410, "history_lost"))
        for before in ("newest", "another:3"):
            node = Node(broker=FakeBroker(Deferred))
            response = node.call("GET", f"/v1/history?subject={TOPIC.subject}&before={before}")
            self.assertEqual((response.status, response.code), (501, "unsupported"))

    def test_where_a_broker_stopped_short_of_a_message_the_next_page_goes_on(self) -> None:
        node = Node(broker=FakeBroker(lambda: succeed(Replayed([], True, Position("e", 7)))))
        response = node.call("GET", f"/v1/history?subject={TOPIC.subject}")
        self.assertEqual((response.json["next"], response.json["complete"]), ("e:7", False))

    def test_an_empty_topic_has_no_position_to_go_on_from(self) -> None:
        response = self.ask("/v1/history", subject=chat(1, 99).subject)
        self.assertEqual(response.json["messages"], [])
        self.assertIsNone(response.json["next"])

    def test_gives_notifications_with_their_data(self) -> None:
        topic = user(1, 7)
        self.node.broker.publish(topic, notification_payload(topic, data={"a": [1, None]}))
        response = self.ask("/v1/history", subject=topic.subject)
        self.assertEqual(response.json["messages"][0]["payload"]["data"], {"a": [1, None]})

    def test_an_answer_is_bounded_in_bytes(self) -> None:
        big = chat(1, 11)
        for n in range(3):
            self.node.broker.publish(big, chat_payload(big, n, "x" * 2_000_000))
        first = self.ask("/v1/history", subject=big.subject)
        self.assertEqual(self.ids(first), [0, 1])
        self.assertFalse(first.json["complete"])
        self.assertEqual(
            self.ids(self.ask("/v1/history", subject=big.subject, since=first.json["next"])), [2]
        )

    def test_a_position_that_cannot_be_recovered_is_gone(self) -> None:
        epoch = self.ask("/v1/history", subject=TOPIC.subject).json["next"].split(":")[0]
        for since in ("another:1", f"{epoch}:1000"):
            response = self.ask("/v1/history", subject=TOPIC.subject, since=since)
            self.assertEqual((response.status, response.code), (410, "history_lost"))

    def test_wrong_parameters_are_refused(self) -> None:
        subject = TOPIC.subject
        for wrong in (
            {},
            {"subject": subject, "limit": 0},
            {"subject": subject, "limit": 1001},
            {"subject": subject, "limit": "1.0"},
            {"subject": subject, "limit": "+1"},
            {"subject": subject, "limit": ""},
            {"subject": subject, "since": ""},
            {"subject": subject, "since": "epoch"},
            {"subject": subject, "since": "epoch:-1"},
            {"subject": subject, "since": f"epoch:{2**63}"},
            {"subject": subject, "since": "e" * 65 + ":1"},
            {"subject": subject, "sinse": "epoch:1"},
            {"subject": subject, "before": ""},
            {"subject": subject, "before": "oldest"},
            {"subject": subject, "before": "epoch:-1"},
            {"subject": subject, "since": "newest"},
            {"subject": subject, "since": "epoch:1", "before": "newest"},
            {"subject": subject, "since": "epoch:1", "before": "epoch:2"},
        ):
            response = self.ask("/v1/history", **wrong)
            self.assertEqual((response.status, response.code), (400, "bad_request"), wrong)
        for query in (f"subject={subject}&subject={subject}", "subject=%ff", f"subject={subject}&=", "&&"):
            self.assertEqual(self.node.call("GET", f"/v1/history?{query}").code, "bad_request", query)
        self.assertEqual(self.ask("/v1/history", subject="workspace.1").code, "unknown_subject")

    def test_says_what_the_broker_says(self) -> None:
        for error, status in ((Unavailable("x"), 503), (HistoryLost("x"), 410)):
            node = Node(broker=FakeBroker(lambda error=error: fail(error)))
            self.assertEqual(node.call("GET", f"/v1/history?subject={TOPIC.subject}").status, status)

    def test_a_broker_that_never_answers_times_out(self) -> None:
        node = Node(broker=FakeBroker(Deferred))
        client = Client(node.site)
        client.send(request_bytes("GET", f"/v1/history?subject={TOPIC.subject}", None, AUTH))
        node.clock.advance(31)
        (response,) = client.received()
        self.assertEqual((response.status, response.code), (504, "timeout"))

    def test_a_client_that_leaves_gives_its_read_up(self) -> None:
        cancelled: list[Deferred[object]] = []
        node = Node(broker=FakeBroker(lambda: Deferred(cancelled.append)))
        client = Client(node.site)
        client.send(request_bytes("GET", f"/v1/history?subject={TOPIC.subject}", None, AUTH))
        client.lose()
        self.assertEqual(len(cancelled), 1)


class PositionTest(Base):
    def test_is_that_of_the_newest_message_and_goes_on_as_since(self) -> None:
        for n in range(3):
            sent = self.successResultOf(self.node.broker.publish(TOPIC, chat_payload(TOPIC, n)))
        response = self.ask("/v1/position", subject=TOPIC.subject)
        expected = {"subject": TOPIC.subject, "epoch": sent.epoch, "seq": sent.seq}
        self.assertEqual((response.status, response.json), (200, expected))
        self.node.broker.publish(TOPIC, chat_payload(TOPIC, 9))
        since = f"{response.json['epoch']}:{response.json['seq']}"
        newer = self.ask("/v1/history", subject=TOPIC.subject, since=since)
        self.assertEqual([m["payload"]["message_id"] for m in newer.json["messages"]], [9])

    def test_is_told_of_topics_without_messages_and_of_users_too(self) -> None:
        for topic in (chat(1, 99), user(1, 7)):
            response = self.ask("/v1/position", subject=topic.subject)
            self.assertEqual((response.status, response.json["seq"]), (200, 0))

    def test_wrong_parameters_are_refused(self) -> None:
        for wrong in ({}, {"subject": TOPIC.subject, "since": "e:1"}):
            self.assertEqual(self.ask("/v1/position", **wrong).code, "bad_request")
        self.assertEqual(self.ask("/v1/position", subject="workspace.1").code, "unknown_subject")

    def test_a_broker_that_is_away_or_cannot_tell_says_so(self) -> None:
        path = f"/v1/position?subject={TOPIC.subject}"
        self.successResultOf(self.node.broker.stop())
        response = self.node.call("GET", path)
        self.assertEqual((response.status, response.code), (503, "unavailable"))
        response = Node(broker=FakeBroker(Deferred)).call("GET", path)
        self.assertEqual((response.status, response.code), (501, "unsupported"))


class PresenceTest(Base):
    def test_names_the_users_of_one_chat_of_one_workspace(self) -> None:
        for n, (user_id, workspace_id) in enumerate([(7, 1), (7, 1), (5, 1), (9, 2)]):
            connection = FakeConnection(user_id, workspace_id, f"c{n}")
            self.node.registry.join(connection, chat(workspace_id, 10))
        response = self.ask("/v1/presence", workspace_id=1, chat_id=10)
        self.assertEqual(
            response.json,
            {
                "workspace_id": 1,
                "chat_id": 10,
                "users": [{"user_id": 5, "connections": 1}, {"user_id": 7, "connections": 2}],
            },
        )

    def test_an_empty_chat_has_nobody(self) -> None:
        self.assertEqual(self.ask("/v1/presence", workspace_id=-1, chat_id=2**63 - 1).json["users"], [])

    def test_wrong_parameters_are_refused(self) -> None:
        for wrong in (
            {},
            {"workspace_id": 1},
            {"workspace_id": 1, "chat_id": 2**63},
            {"workspace_id": 1, "chat_id": "x."},
            {"workspace_id": "-0", "chat_id": 1},
        ):
            self.assertEqual(self.ask("/v1/presence", **wrong).code, "bad_request")


#: what a node that is alone reports
REACHED = {"answered": 1, "missing": [], "detail": ""}


class ConnectionsTest(Base):
    def setUp(self) -> None:
        super().setUp()
        self.connections: list[FakeConnection] = []
        for n, (user_id, workspace_id) in enumerate([(7, 1), (7, 1), (7, 2), (8, 1)]):
            connection = FakeConnection(user_id, workspace_id, f"c{n}")
            connection.opened = 100.0 - n
            self.node.hub.enter(connection)
            self.connections.append(connection)
            self.node.registry.join(connection, user(workspace_id, user_id))
        self.node.hub.enter(FakeConnection(None))
        self.node.registry.join(self.connections[0], chat(1, 10))

    def test_lists_a_users_connections_oldest_first(self) -> None:
        response = self.ask("/v1/connections", user_id=7)
        self.assertEqual(response.json["count"], 3)
        self.assertEqual([c["connection_id"] for c in response.json["connections"]], ["c2", "c1", "c0"])

    def test_can_be_narrowed_to_a_workspace(self) -> None:
        response = self.ask("/v1/connections", user_id=7, workspace_id=1)
        self.assertEqual([c["connection_id"] for c in response.json["connections"]], ["c1", "c0"])
        self.assertEqual(
            response.json["connections"][1],
            {
                "connection_id": "c0",
                "workspace_id": 1,
                "user_id": 7,
                "peer": "127.0.0.1",
                "encoding": "notify.v1.json",
                "opened": 100.0,
                "expires_at": None,
                "subscriptions": 1,
                "node": "node-1",
                "chats": [10],
                "queued": 0,
                "silent": 0.0,
                "client_id": "",
                "client": "",
            },
        )

    def test_a_user_who_is_not_here_has_none(self) -> None:
        self.assertEqual(
            self.ask("/v1/connections", user_id=99).json, {"count": 0, "connections": [], "reached": REACHED}
        )
        self.assertEqual(self.ask("/v1/connections", user_id=8, workspace_id=2).json["count"], 0)

    def test_a_long_list_is_cut_and_counted(self) -> None:
        for n in range(1200):
            self.node.hub.enter(FakeConnection(50, 1, f"d{n}"))
        response = self.ask("/v1/connections", user_id=50)
        self.assertEqual((response.json["count"], len(response.json["connections"])), (1200, 1000))

    def test_wrong_parameters_are_refused(self) -> None:
        for wrong in (
            {},
            {"user_id": ""},
            {"user_id": "a b"},
            {"user_id": 7, "workspace_id": "é"},
            {"user_id": "07"},
        ):
            self.assertEqual(self.ask("/v1/connections", **wrong).code, "bad_request")


class CommandsTest(Base):
    def test_disconnect_closes_that_users_connections_of_that_workspace(self) -> None:
        connections = [
            FakeConnection(7, 1, "a"),
            FakeConnection(7, 1, "b"),
            FakeConnection(7, 2, "c"),
            FakeConnection(8, 1, "d"),
        ]
        for connection in connections:
            identity = connection.identity
            self.node.registry.join(connection, user(identity.workspace_id, identity.user_id))
        response = self.node.call("POST", "/v1/disconnect", {"workspace_id": 1, "user_id": 7})
        self.assertEqual(response.json, {"closed": 2, "reached": REACHED})
        self.assertEqual([c.closed and c.closed[0] for c in connections], [4503, 4503, None, None])

    def test_disconnect_refuses_another_body(self) -> None:
        for wrong in (
            {},
            {"user_id": 7},
            {"workspace_id": 1, "user_id": "7"},
            {"workspace_id": 1, "user_id": 2**63},
            {"workspace_id": 1, "user_id": 7, "chat_id": 1},
            [],
            1,
        ):
            self.assertEqual(self.node.call("POST", "/v1/disconnect", wrong).code, "bad_request")
        self.assertEqual(self.node.call("POST", "/v1/disconnect", body=b"{").code, "bad_request")

    def test_drain_begins_the_drain_and_readiness_ends(self) -> None:
        self.node.up()
        self.assertEqual(self.node.call("GET", "/health/ready").status, 200)
        response = self.node.call("POST", "/v1/drain")
        self.assertEqual((response.status, response.json), (202, {"node": "node-1", "draining": True}))
        self.assertEqual(self.node.drains, 1)
        self.assertEqual(self.node.call("GET", "/health/ready").status, 503)
        self.assertEqual(self.node.call("GET", "/health/live").status, 200)
