"""``POST /v1/broadcast``: one payload to many topics of a workspace."""

import json
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import TestCase

from notify.config import Limits
from notify.errors import Unavailable, Unknown
from notify.http import broadcast
from notify.messages import Position
from notify.topics import chat, user
from tests.http.test_keys import limited
from tests.support.http import FakeBroker, Node

CHATS = [chat(1, 10), chat(1, "b-1"), chat(1, -3)]
PAYLOAD = {"message_id": 5, "sender_id": 1, "content": "maintenance at noon", "timestamp": 1}
EVENT = {"message_id": 6, "sender_id": 1, "kind": "closed", "data": {"a": [1, 2.50]}, "timestamp": 1}
NOTICE = {"notification_id": 7, "kind": "news", "data": None, "timestamp": 1}


class Case(TestCase):
    def setUp(self) -> None:
        self.node = Node()

    def send(
        self, subjects: Any, payload: Any = PAYLOAD, key: str | None = None, node: Node | None = None
    ) -> Any:
        subjects = [getattr(one, "subject", one) for one in subjects]
        body = {"subjects": subjects, "payload": payload}
        headers = {} if key is None else {"Idempotency-Key": key}
        return (node or self.node).call("POST", "/v1/broadcast", body, headers)

    def kept(self, topic: Any) -> list[Any]:
        return self.successResultOf(self.node.broker.replay(topic, None, 100, 10**6)).messages

    def assert_nothing(self) -> None:
        self.assertEqual([self.kept(topic) for topic in CHATS], [[], [], []])


class Broadcasts(Case):
    def test_each_topic_gets_the_payload_with_its_own_ids_and_the_answer_is_that_of_a_list(self) -> None:
        response = self.send(CHATS)
        self.assertEqual((response.status, response.json["accepted"]), (200, 3))
        for topic, result in zip(CHATS, response.json["results"], strict=True):
            [message] = self.kept(topic)
            event = message.event
            self.assertEqual(
                (event.chat_id, event.workspace_id, event.content), (topic.id, 1, PAYLOAD["content"])
            )
            at = message.position
            expected = {"status": 200, "subject": topic.subject, "epoch": at.epoch, "seq": at.seq}
            self.assertEqual(result, expected)
        seqs = [result["seq"] for result in response.json["results"]]
        self.assertEqual(seqs, sorted(seqs))

    def test_events_and_notifications_are_broadcast_too_and_what_is_in_them_stays_as_it_came(self) -> None:
        text = json.dumps({"subjects": [CHATS[0].subject], "payload": EVENT}).replace("2.5", "2.50")
        response = self.node.call("POST", "/v1/broadcast", body=text.encode())
        self.assertEqual(response.status, 200)
        self.assertEqual(bytes(self.kept(CHATS[0])[0].event.data).replace(b" ", b""), b'{"a":[1,2.50]}')
        users = [user(1, 7), user(1, "u-1")]
        self.assertEqual(self.send(users, NOTICE).status, 200)
        self.assertEqual([self.kept(one)[0].event.user_id for one in users], [7, "u-1"])

    def test_ids_may_be_named_where_they_are_those_of_every_subject(self) -> None:
        self.assertEqual(self.send(CHATS, PAYLOAD | {"workspace_id": 1}).json["accepted"], 3)
        self.assertEqual(self.send(CHATS[:1], PAYLOAD | {"workspace_id": 1, "chat_id": 10}).status, 200)
        self.assertEqual(self.send(CHATS[1:2], PAYLOAD | {"chat_id": "b-1"}).status, 200)

    def test_ids_that_differ_refuse_all_of_it(self) -> None:
        for named in (
            {"workspace_id": 2},
            {"workspace_id": "1"},
            {"workspace_id": None},
            {"chat_id": 10},
            {"chat_id": [10]},
            {"chat_id": True},
        ):
            response = self.send(CHATS, PAYLOAD | named)
            self.assertEqual((response.status, response.code), (422, "invalid_message"), named)
        self.assert_nothing()

    def test_a_payload_that_is_not_valid_refuses_all_of_it_and_is_not_quoted(self) -> None:
        for payload in (
            {},
            {"content": "secret"},
            NOTICE,
            PAYLOAD | {"message_id": 1.5},
            PAYLOAD | {"content": 5},
        ):
            response = self.send(CHATS, payload)
            self.assertEqual((response.status, response.code), (422, "invalid_message"), payload)
            self.assertNotIn("secret", response.json["error"]["message"])
        # A payload that is valid for only some kinds of subject is refused for the others, and therefore for all.
        self.assertEqual(self.send([*CHATS, user(1, 7)]).status, 422)
        self.assert_nothing()
        self.assertEqual(self.send([*CHATS, user(1, 7)], PAYLOAD | NOTICE).json["accepted"], 4)

    def test_bodies_of_another_form_are_refused(self) -> None:
        subject = CHATS[0].subject
        for body in (
            {},
            [],
            {"subjects": [], "payload": PAYLOAD},
            {"subjects": subject, "payload": PAYLOAD},
            {"subjects": [subject]},
            {"subjects": [subject], "payload": [PAYLOAD]},
            {"subjects": [subject], "payload": None},
            {"subjects": [subject], "payload": PAYLOAD, "secret": 1},
            {"subjects": [subject, subject], "payload": PAYLOAD},
            {"subjects": [subject, chat(2, 10).subject], "payload": PAYLOAD},
            {"subjects": [subject, 5], "payload": PAYLOAD},
        ):
            response = self.node.call("POST", "/v1/broadcast", body)
            self.assertEqual((response.status, response.code), (400, "bad_request"), body)
            self.assertNotIn("secret", response.json["error"]["message"])
        for raw in (b"", b"{", b'{"subjects": ["\xff"]}', b"[" * 5000):
            self.assertEqual(self.node.call("POST", "/v1/broadcast", body=raw).status, 400, raw[:20])
        response = self.send([CHATS[0], "workspace.1"])
        self.assertEqual((response.status, response.code), (422, "unknown_subject"))
        self.assert_nothing()

    def test_it_cannot_be_asked_to_be_all_or_nothing(self) -> None:
        body = {"subjects": [one.subject for one in CHATS], "payload": PAYLOAD}
        response = self.node.call("POST", "/v1/broadcast?atomic=true", body)
        self.assertEqual((response.status, response.code), (400, "bad_request"))
        self.assertEqual([self.kept(one) for one in CHATS], [[]] * len(CHATS))

    def test_it_is_bounded_as_a_list_is(self) -> None:
        self.patch(broadcast, "MAX_LIST", 3)
        self.assertEqual(self.send(CHATS).status, 200)
        response = self.send([*CHATS, chat(1, 4)])
        self.assertEqual((response.status, response.code), (413, "too_large"))
        node = Node(limits=Limits(max_frame=4096))
        self.assertEqual(self.send(CHATS, PAYLOAD | {"content": "x" * 5000}, node=node).code, "too_large")
        self.patch(broadcast, "MAX_LIST", 1000)
        many = [chat(1, n) for n in range(1000)]
        response = self.send(many, PAYLOAD | {"content": "x" * 5000})
        self.assertEqual((response.status, response.code), (413, "too_large"))
        self.assertEqual(self.kept(many[0]), [])
        self.assertEqual(self.send(many).json["accepted"], 1000)

    def test_a_repeat_with_the_same_key_publishes_nothing_whatever_the_order(self) -> None:
        first = self.send(CHATS, key="k").json
        again = self.send(CHATS[::-1], key="k").json
        self.assertEqual(again["results"][::-1], first["results"])
        self.assertEqual([len(self.kept(topic)) for topic in CHATS], [1, 1, 1])
        self.assertEqual(self.send(CHATS, key="k2").status, 200)
        self.assertEqual([len(self.kept(topic)) for topic in CHATS], [2, 2, 2])
        self.assertEqual(self.send(CHATS, key="k" * 129).status, 400)

    def test_a_repeat_that_adds_a_topic_publishes_to_that_alone(self) -> None:
        self.send(CHATS[:2], key="k")
        self.assertEqual(self.send(CHATS, key="k").json["accepted"], 3)
        self.assertEqual([len(self.kept(topic)) for topic in CHATS], [1, 1, 1])

    def test_its_key_is_not_that_of_a_message_or_of_a_list(self) -> None:
        self.send(CHATS, key="k")
        one = {"subject": CHATS[0].subject, "payload": PAYLOAD | {"chat_id": 10, "workspace_id": 1}}
        for body in (one, [one]):
            self.node.call("POST", "/v1/publish", body, {"Idempotency-Key": "k"})
        self.assertEqual(len(self.kept(CHATS[0])), 3)

    def test_a_key_of_another_workspace_refuses_all_of_it(self) -> None:
        node = limited(workspaces=frozenset({2}))
        response = self.send(CHATS, node=node)
        self.assertEqual((response.status, response.code), (403, "forbidden"))
        self.assertEqual(self.send([chat(2, 1)], node=node).status, 200)

    def test_each_topic_is_told_what_became_of_its_own(self) -> None:
        answers = iter([
            succeed(Position("e", 1)), fail(Unavailable("x")), fail(Unknown("x")), fail(RuntimeError("x")),
        ])  # fmt: skip
        broker = FakeBroker(lambda: next(answers))
        response = self.send([*CHATS, chat(1, 4)], key="k", node=Node(broker=broker))
        self.assertEqual((response.status, response.json["accepted"]), (207, 1))
        self.assertEqual([one["status"] for one in response.json["results"]], [200, 503, 504, 500])
        self.assertEqual({arguments[2] for arguments in broker.published}, {"k:*"})
        self.assertEqual([arguments[0] for arguments in broker.published], [*CHATS, chat(1, 4)])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_one_that_is_never_answered_may_be_stored_or_not(self) -> None:
        from tests.support.http import AUTH, Client, request_bytes

        node = Node(broker=FakeBroker(Deferred))
        client = Client(node.site)
        body = json.dumps({"subjects": [one.subject for one in CHATS], "payload": PAYLOAD}).encode()
        headers = AUTH | {"Content-Type": "application/json"}
        client.send(request_bytes("POST", "/v1/broadcast", body, headers))
        node.clock.advance(31)
        [response] = client.received()
        self.assertEqual([one["status"] for one in response.json["results"]], [504] * 3)
