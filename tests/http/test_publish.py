import json

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import TestCase

from notify.config import Limits
from notify.errors import TooLarge, Unavailable, Unknown
from notify.messages import Position
from notify.testing import chat_payload, notification_payload
from notify.topics import chat, user
from tests.support.http import AUTH, Client, FakeBroker, GatheringBroker, Node, request_bytes

TOPIC = chat(1, 10)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

CONTENT = {"sender_id": 1, "content": "x", "timestamp": 1}


def message(number: int = 1, topic=TOPIC, **changes) -> dict:
    make = chat_payload if topic.kind == "chat" else notification_payload
    return {"subject": topic.subject, "payload": {**json.loads(make(topic, number)), **changes}}


class PublishTest(TestCase):
    def setUp(self) -> None:
        self.node = Node()

    def history(self, topic=TOPIC) -> list:
        return self.successResultOf(self.node.broker.replay(topic, None, 1000, 10**6)).messages

    def test_answers_the_position_of_one_message(self) -> None:
        response = self.node.publish(message())
        self.assertEqual(response.status, 200)
        (kept,) = self.history()
        self.assertEqual(
            response.json,
            {"subject": TOPIC.subject, "epoch": kept.position.epoch, "seq": kept.position.seq},
        )

    def test_publishes_notifications(self) -> None:
        self.assertEqual(self.node.publish(message(topic=user(1, 7), data={"deep": [1, None]})).status, 200)
        self.assertEqual(
            bytes(self.history(user(1, 7))[0].event.data).replace(b" ", b""), b'{"deep":[1,null]}'
        )

    def test_publishes_a_list_in_order(self) -> None:
        response = self.node.publish([message(n) for n in range(1, 6)])
        self.assertEqual(response.status, 200)
        self.assertEqual(response.json["accepted"], 5)
        kept = self.history()
        self.assertEqual([m.event.message_id for m in kept], [1, 2, 3, 4, 5])
        self.assertEqual([r["seq"] for r in response.json["results"]], [m.position.seq for m in kept])
        self.assertEqual({r["status"] for r in response.json["results"]}, {200})

    def test_a_list_is_given_to_the_broker_at_once(self) -> None:
        broker = GatheringBroker(lambda: succeed(Position("e", 1)))
        node = Node(broker=broker)
        self.assertEqual(node.publish([message(n) for n in range(1, 6)]).status, 200)
        self.assertEqual((broker.gathered, len(broker.published)), ([5], 5))

    def test_the_messages_of_a_list_stand_each_for_itself(self) -> None:
        response = self.node.publish(
            [message(1), {"subject": "x", "payload": {}}, message(3, chat_id=11), message(4)]
        )
        self.assertEqual(response.status, 207)
        self.assertEqual(response.json["accepted"], 2)
        results = response.json["results"]
        self.assertEqual([r["status"] for r in results], [200, 422, 422, 200])
        self.assertEqual(
            [r.get("error", {}).get("code") for r in results],
            [None, "unknown_subject", "invalid_message", None],
        )
        self.assertEqual([m.event.message_id for m in self.history()], [1, 4])

    def test_a_list_of_another_form_is_refused_as_a_whole(self) -> None:
        for wrong in (
            [message(), 1],
            [message(), {"subject": 1, "payload": {}}],
            [message(), [message()]],
            [],
        ):
            response = self.node.publish(wrong)
            self.assertEqual((response.status, response.code), (400, "bad_request"))
        self.assertEqual(self.history(), [])

    def test_a_list_is_bounded(self) -> None:
        response = self.node.publish([message()] * 1001)
        self.assertEqual((response.status, response.code), (413, "too_large"))
        self.assertEqual(self.node.publish([message()] * 1000).status, 200)

    def test_a_repeated_key_publishes_nothing_and_gives_the_first_answer(self) -> None:
        first = self.node.publish(message(), Idempotency_Key="k1")
        again = self.node.publish(message(), Idempotency_Key="k1")
        other = self.node.publish(message(), Idempotency_Key="k2")
        self.assertEqual(first.json, again.json)
        self.assertNotEqual(first.json, other.json)
        self.assertEqual(len(self.history()), 2)

    def test_a_key_of_a_list_counts_for_each_of_its_messages(self) -> None:
        first = self.node.publish([message(1), message(2)], Idempotency_Key="k")
        again = self.node.publish([message(1), message(2), message(3)], Idempotency_Key="k")
        self.assertEqual(again.json["results"][:2], first.json["results"])
        self.assertEqual([m.event.message_id for m in self.history()], [1, 2, 3])

    def test_a_message_may_have_a_key_of_its_own(self) -> None:
        first = self.node.publish(message(1) | {"key": "a"}, Idempotency_Key="k")
        again = self.node.publish([message(1) | {"key": "a"}, message(2)], Idempotency_Key="k")
        self.assertEqual(again.json["results"][0]["seq"], first.json["seq"])
        self.assertEqual([m.event.message_id for m in self.history()], [1, 2])
        for wrong in ("", "k" * 129, "a b", "k\u00e9", "k\n", 5, None):
            for body in (message() | {"key": wrong}, [message(), message() | {"key": wrong}]):
                self.assertEqual(self.node.publish(body).code, "bad_request")
        self.assertEqual(len(self.history()), 2)

    def test_a_message_of_a_list_may_be_repeated_alone_under_the_key_that_the_list_gave_it(self) -> None:
        first = self.node.publish([message(1), message(2)], Idempotency_Key="k")
        again = self.node.publish(message(2), Idempotency_Key="k:1")
        self.assertEqual(again.json["seq"], first.json["results"][1]["seq"])
        listed = [message(1) | {"key": "k:0"}, message(2), message(3) | {"key": "k:2"}]
        seqs = [one["seq"] for one in self.node.publish(listed, Idempotency_Key="k").json["results"]]
        self.assertEqual(seqs[:2], [one["seq"] for one in first.json["results"]])
        self.assertEqual([m.event.message_id for m in self.history()], [1, 2, 3])

    def test_a_list_is_refused_that_gives_a_message_the_own_key_of_another(self) -> None:
        # One of the two would be taken for a repeat of the other, and be lost.
        for query in ("", "?atomic=true"):
            listed = [message(1), message(2), message(3) | {"key": "k:1"}]
            response = self.node.call("POST", f"/v1/publish{query}", listed, {"Idempotency-Key": "k"})
            self.assertEqual((response.status, response.code), (400, "bad_request"))
            self.assertIn("k:1", response.json["error"]["message"])
            self.assertEqual(self.history(), [])
        elsewhere = message(3, topic=chat(1, 11)) | {"key": "k:1"}
        self.assertEqual(
            self.node.publish([message(1), message(2), elsewhere], Idempotency_Key="k").status, 200
        )
        self.assertEqual(
            self.node.publish([message(1), message(3) | {"key": "k:7"}], Idempotency_Key="k").status, 200
        )

    def test_a_key_is_bounded_and_given_once(self) -> None:
        for wrong in ("k" * 129, "a b", "k\u00e9"):
            self.assertEqual(self.node.publish(message(), Idempotency_Key=wrong).code, "bad_request")
        client = Client(self.node.site)
        body = json.dumps(message()).encode()
        raw = request_bytes("POST", "/v1/publish", body, {**AUTH, "Content-Type": "application/json"})
        client.send(raw.replace(b"Host:", b"Idempotency-Key: a\r\nIdempotency-Key: b\r\nHost:"))
        self.assertEqual(client.received()[0].code, "bad_request")
        self.assertEqual(self.history(), [])

    def test_poison_is_refused_without_quoting_it(self) -> None:
        for changes in ({"content": 5}, {"message_id": "sesame!"}, {"chat_id": 11}, {"timestamp": 2**63}):
            response = self.node.publish(message(**changes))
            self.assertEqual((response.status, response.code), (422, "invalid_message"))
            self.assertNotIn(b"sesame", response.body)
        for payload in (1, None, "text", [], True):
            response = self.node.publish({"subject": TOPIC.subject, "payload": payload})
            self.assertEqual((response.status, response.code), (422, "invalid_message"))
        self.assertEqual(self.history(), [])

    def test_unknown_subjects_are_refused(self) -> None:
        for subject in (
            "",
            "workspace.1.chat.10",
            "workspace.01.chat.10.messages",
            "workspace.*.chat.1.messages",
            "é",
        ):
            response = self.node.publish({"subject": subject, "payload": {}})
            self.assertEqual((response.status, response.code), (422, "unknown_subject"))

    def test_a_body_that_is_not_what_it_should_be_is_refused_without_quoting_it(self) -> None:
        for body in (
            b"",
            b"{",
            b"sesame",
            b'{"sesame":1}',
            b'"sesame"',
            b'{"subject":"\xff","payload":{}}',
            b"[" * 5000,
            b'{"subject":"a","payload":{},"sesame":1}',
            b"NaN",
            b'{"subject":"a","payload":NaN}',
        ):
            response = self.node.call("POST", "/v1/publish", body=body)
            self.assertEqual((response.status, response.code), (400, "bad_request"), body)
            self.assertNotIn(b"sesame", response.body)

    def test_a_payload_is_bounded(self) -> None:
        node = Node(limits=Limits(max_frame=300))
        self.assertEqual(node.publish(message(content="x" * 300)).code, "too_large")
        self.assertEqual(
            node.publish([message(), message(content="x" * 300)]).json["results"][1]["status"], 413
        )
        self.assertEqual(node.publish(message(content="x" * 100)).status, 200)

    def test_says_what_the_broker_says(self) -> None:
        for error, status, code in (
            (Unavailable("x"), 503, "unavailable"),
            (Unknown("x"), 504, "unknown"),
            (TooLarge("x"), 413, "too_large"),
        ):
            node = Node(broker=FakeBroker(lambda error=error: fail(error)))
            response = node.publish(message())
            self.assertEqual((response.status, response.code), (status, code))
            self.assertEqual(response["Retry-After"], "1" if status == 503 else None)
            listed = node.publish([message()])
            self.assertEqual(listed.status, 207)
            self.assertEqual(listed.json["results"][0]["status"], status)

    def test_the_answer_waits_until_the_broker_has_accepted(self) -> None:
        accepted: Deferred[Position] = Deferred()
        node = Node(broker=FakeBroker(lambda: accepted))
        client = Client(node.site)
        body = json.dumps(message()).encode()
        client.send(request_bytes("POST", "/v1/publish", body, {**AUTH, "Content-Type": "application/json"}))
        self.assertEqual(client.received(), [])
        settled = node.site.settled()
        self.assertNoResult(settled)
        accepted.callback(Position("e", 5))
        self.assertEqual(client.received()[0].json["seq"], 5)
        self.successResultOf(settled)

    def test_messages_wait_for_processes_that_are_behind_in_whatever_form_they_come(self) -> None:
        for path, body in (
            ("/v1/publish", message()),
            ("/v1/publish", [message(1), message(2)]),
            ("/v1/publish?atomic=true", [message(1), message(2)]),
            ("/v1/broadcast", {"subjects": [TOPIC.subject], "payload": {**CONTENT, "message_id": 1}}),
        ):
            waiting: list[Deferred[None]] = []
            asked: list[tuple[object, int]] = []

            def pace(workspace, size, waiting=waiting, asked=asked):
                asked.append((workspace, size))
                waiting.append(Deferred())
                return waiting[-1]

            node = Node(pace=pace)
            client = Client(node.site)
            raw = json.dumps(body).encode()
            client.send(request_bytes("POST", path, raw, {**AUTH, "Content-Type": "application/json"}))
            self.assertEqual(client.received(), [])
            self.assertEqual(node.broker.status().detail, "0 messages, 0 bytes in memory")
            for one in waiting:
                one.callback(None)
            self.assertEqual(client.received()[0].status, 200)
            kept = self.successResultOf(node.broker.replay(TOPIC, None, 10, 10**6)).messages
            self.assertEqual([m.event.message_id for m in kept], list(range(1, len(kept) + 1)))
            self.assertEqual({workspace for workspace, _ in asked}, {1})
            self.assertEqual(sum(size for _, size in asked), sum(m.size for m in kept))

    def test_what_still_waits_when_nobody_is_waited_for_any_more_is_not_published(self) -> None:
        def give_up(wait):
            wait.errback(Unavailable("behind"))

        for body, status in (message(), 503), ([message(1), message(2)], 207):
            waits = iter([None, Deferred(give_up)] if status == 207 else [Deferred(give_up)])
            node = Node(pace=lambda workspace, size, waits=waits: next(waits))
            client = Client(node.site)
            raw = json.dumps(body).encode()
            client.send(
                request_bytes("POST", "/v1/publish", raw, {**AUTH, "Content-Type": "application/json"})
            )
            node.clock.advance(31)
            (response,) = client.received()
            self.assertEqual(response.status, status)
            self.assertIn(f"{int(status == 207)} messages", node.broker.status().detail)
        self.assertEqual([r["status"] for r in response.json["results"]], [200, 503])

    def test_a_broker_that_never_answers_is_an_unknown_outcome(self) -> None:
        pending: list[Deferred[Position]] = []
        node = Node(broker=FakeBroker(lambda: pending.append(Deferred()) or pending[-1]))
        for body, status in ((message(), 504), ([message(), message()], 207)):
            client = Client(node.site)
            raw = json.dumps(body).encode()
            client.send(
                request_bytes("POST", "/v1/publish", raw, {**AUTH, "Content-Type": "application/json"})
            )
            if isinstance(body, list):
                pending[-2].callback(Position("e", 5))
            node.clock.advance(31)
            (response,) = client.received()
            self.assertEqual(response.status, status)
        self.assertEqual([r["status"] for r in response.json["results"]], [200, 504])
        self.successResultOf(node.site.settled())

    def test_a_client_that_goes_away_is_not_waited_for(self) -> None:
        cancelled = []
        node = Node(broker=FakeBroker(lambda: Deferred(cancelled.append)))
        client = Client(node.site)
        body = json.dumps([message(), message()]).encode()
        client.send(request_bytes("POST", "/v1/publish", body, {**AUTH, "Content-Type": "application/json"}))
        client.lose()
        self.assertEqual(len(cancelled), 2)
        self.successResultOf(node.site.settled())
        self.assertEqual(node.clock.getDelayedCalls(), [])

    def test_hands_the_trace_on_when_it_is_valid(self) -> None:
        node = Node(broker=FakeBroker(lambda: succeed(Position("e", 1))))
        node.publish(message(), traceparent=TRACE, Idempotency_Key="k")
        self.assertEqual(node.broker.published[0][2:], ("k", TRACE))
        self.assertEqual(node.broker.published[0][0], TOPIC)
        for wrong in (
            TRACE.upper(),
            "ff" + TRACE[2:],
            TRACE + "-x",
            TRACE.replace("b7ad6b7169203331", "0" * 16),
            "x",
        ):
            node.publish(message(), traceparent=wrong)
            self.assertEqual(node.broker.published[-1][2:], (None, ""))

    def test_only_json_is_taken(self) -> None:
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json; charset=latin-1",
            "application/jsonx",
            "",
        ):
            response = self.node.call("POST", "/v1/publish", message(), {"Content-Type": kind})
            self.assertEqual((response.status, response.code), (415, "unsupported_media_type"), kind)
        compressed = self.node.call("POST", "/v1/publish", message(), {"Content-Encoding": "gzip"})
        self.assertEqual(compressed.status, 415)
        for kind in ("application/json", "Application/JSON", 'application/json; charset="UTF-8"'):
            self.assertEqual(
                self.node.call("POST", "/v1/publish", message(), {"Content-Type": kind}).status, 200
            )

    def test_counts_what_became_of_the_messages(self) -> None:
        self.node.publish([message(), message(chat_id=5), {"subject": "no", "payload": {}}])
        sample = self.node.metrics.registry.get_sample_value
        self.assertEqual(sample("notify_published_total", {"result": "ok"}), 1)
        self.assertEqual(sample("notify_published_total", {"result": "poison"}), 2)

    def test_a_failing_broker_is_a_fault_of_ours_without_its_words(self) -> None:
        node = Node(broker=FakeBroker(lambda: fail(RuntimeError("sesame"))))
        alone, listed = node.publish(message()), node.publish([message()])
        self.assertEqual((alone.status, alone.code), (500, "internal"))
        self.assertEqual(listed.json["results"][0]["status"], 500)
        self.assertNotIn(b"sesame", alone.body + listed.body)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
