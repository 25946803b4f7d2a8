"""``POST /v1/publish?atomic=true``: a list that is all or nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from notify.config import Limits, Tracing
from notify.core.live import ApiKey
from notify.errors import AtFault, TooLarge, Unavailable, Unknown, Unsupported
from notify.http.publish import Publisher
from notify.interfaces import IAtomic
from notify.messages import Draft, Position
from notify.observe.metrics import Metrics
from notify.observe.tracing import make
from notify.testing import chat_payload
from notify.topics import chat
from tests.http.test_keys import limited
from tests.support.http import AUTH, Client, FakeBroker, Node, Response, request_bytes

TOPIC, OTHER = chat(1, 10), chat(2, 11)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def message(number: int = 1, topic: Any = TOPIC, **changes: Any) -> dict[str, Any]:
    return {"subject": topic.subject, "payload": {**json.loads(chat_payload(topic, number)), **changes}}


@implementer(IAtomic)
class AtomicBroker(FakeBroker):
    """Records the lists that it was given."""

    def __init__(self, answer: Any) -> None:
        super().__init__(answer)
        self.lists: list[list[Draft]] = []

    def publish_all(self, drafts: list[Draft]) -> Any:
        self.lists.append(drafts)
        return self._answer()


class AtomicTest(TestCase):
    def setUp(self) -> None:
        self.node = Node()

    def publish(
        self, body: Any, query: str = "atomic=true", node: Node | None = None, **headers: str
    ) -> Response:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return (node or self.node).call("POST", f"/v1/publish?{query}", body, fields)

    def kept(self, topic: Any = TOPIC) -> list[Any]:
        found = self.successResultOf(self.node.broker.replay(topic, None, 2000, 10**6)).messages
        return [(one.event.message_id, one.position.seq) for one in found]

    def counted(self, result: str) -> float | None:
        return self.node.metrics.registry.get_sample_value("notify_published_total", {"result": result})

    def test_a_list_is_answered_with_the_position_of_each(self) -> None:
        response = self.publish([message(1), message(2, OTHER), message(3)])
        self.assertEqual((response.status, response.json["accepted"]), (200, 3))
        results = response.json["results"]
        self.assertEqual([one["subject"] for one in results], [TOPIC.subject, OTHER.subject, TOPIC.subject])
        self.assertEqual(self.kept(), [(1, results[0]["seq"]), (3, results[2]["seq"])])
        self.assertEqual(self.counted("ok"), 3)

    def test_one_that_is_refused_is_named_and_nothing_is_stored(self) -> None:
        large = "x" * Limits().max_frame
        for wrong, status, code in (
            (message(2, chat_id=5), 422, "invalid_message"),
            ({"subject": "no", "payload": {}}, 422, "unknown_subject"),
            (message(2, content=large), 413, "too_large"),
        ):
            response = self.publish([message(1), wrong, message(3)])
            self.assertEqual((response.status, response.code), (status, code))
            self.assertEqual(response.json["error"]["index"], 1)
            self.assertIn("at $[1]; nothing of the list was published", response.json["error"]["message"])
        self.assertEqual(self.kept(), [])
        self.assertEqual((self.counted("ok"), self.counted("poison")), (0, 3))

    def test_a_key_that_is_not_for_one_of_its_workspaces_stores_nothing(self) -> None:
        node = limited(workspaces=frozenset({2}))
        response = self.publish([message(1, OTHER), message(2)], node=node)
        self.assertEqual((response.status, response.code), (403, "forbidden"))
        self.assertEqual(response.json["error"]["index"], 1)
        self.assertEqual(self.successResultOf(node.broker.replay(OTHER, None, 9, 10**6)).messages, [])

    def test_a_list_that_is_repeated_has_its_first_positions(self) -> None:
        both = [message(1), message(2)]
        first = self.publish(both, Idempotency_Key="k")
        # The same messages may also come in a list that is not atomic, or (below) as part of another list.
        self.assertEqual(self.publish(both, "atomic=false", Idempotency_Key="k").json, first.json)
        again = self.publish([*both, message(3)], Idempotency_Key="k")
        self.assertEqual(again.json["results"][:2], first.json["results"])
        self.assertEqual(
            self.publish([{**message(3), "key": "k:2"}]).json["results"], again.json["results"][2:]
        )
        self.assertEqual([id for id, _ in self.kept()], [1, 2, 3])

    def test_what_goes_to_the_broker_has_key_and_trace(self) -> None:
        broker = AtomicBroker(lambda: succeed([Position("e", 1), Position("e", 2)]))
        body = [message(1), {**message(2), "key": "own"}]
        self.publish(body, node=Node(broker=broker), Idempotency_Key="k", traceparent=TRACE)
        ((first, second),) = broker.lists
        self.assertEqual((first.topic, json.loads(first.payload)), (TOPIC, message(1)["payload"]))
        self.assertEqual([one.idempotency_key for one in (first, second)], ["k:0", "own"])
        self.assertEqual({one.trace for one in (first, second)}, {TRACE})
        self.assertEqual(broker.published, [])

    def test_says_what_the_broker_says(self) -> None:
        for error, status, code in (
            (Unavailable(), 503, "unavailable"),
            (Unknown(), 504, "unknown"),
            (Unsupported("needs NATS 2.12"), 501, "unsupported"),
            (TooLarge("too long"), 413, "too_large"),
            (AtFault(1, TooLarge("over max_msg_size")), 413, "too_large"),
        ):
            response = self.publish(
                [message(), message()], node=Node(broker=AtomicBroker(lambda error=error: fail(error)))
            )
            self.assertEqual((response.status, response.code), (status, code))
            self.assertNotIn("accepted", response.json)
            self.assertEqual(response["Retry-After"], "1" if status == 503 else None)

    def test_a_broker_that_stores_no_list_as_one_is_not_asked_to(self) -> None:
        broker = FakeBroker(lambda: succeed(Position("e", 1)))
        response = self.publish([message(), message()], node=Node(broker=broker))
        self.assertEqual((response.status, response.code), (501, "unsupported"))
        self.assertEqual(broker.published, [])

    def test_a_broker_that_never_answers_is_an_unknown_outcome(self) -> None:
        node = Node(broker=AtomicBroker(Deferred))
        client = Client(node.site)
        fields = {**AUTH, "Content-Type": "application/json"}
        client.send(
            request_bytes("POST", "/v1/publish?atomic=true", json.dumps([message()]).encode(), fields)
        )
        self.assertEqual(client.received(), [])
        node.clock.advance(31)
        (response,) = client.received()
        self.assertEqual((response.status, response.code), (504, "unknown"))
        self.successResultOf(node.site.settled())

    def test_a_failing_broker_is_a_fault_of_ours_without_its_words(self) -> None:
        response = self.publish(
            [message()], node=Node(broker=AtomicBroker(lambda: fail(RuntimeError("sesame"))))
        )
        self.assertEqual((response.status, response.code), (500, "internal"))
        self.assertNotIn(b"sesame", response.body)
        self.flushLoggedErrors(RuntimeError)

    def test_one_message_is_all_or_nothing_as_it_is(self) -> None:
        broker = FakeBroker(lambda: succeed(Position("e", 1)))
        self.assertEqual(self.publish(message(), node=Node(broker=broker)).status, 200)
        self.assertEqual(len(broker.published), 1)

    def test_what_is_asked_for_is_not_guessed(self) -> None:
        for query in ("atomic=yes", "atomic=", "atomic=true&atomic=true", "atomc=true", "atomic=TRUE"):
            response = self.publish([message()], query)
            self.assertEqual((response.status, response.code), (400, "bad_request"), query)
        self.assertEqual(self.kept(), [])
        self.assertEqual(self.publish([message(1), message(2, chat_id=5)], "atomic=false").status, 207)

    def test_a_list_has_its_bounds(self) -> None:
        self.assertEqual(self.publish([]).status, 400)
        self.assertEqual(self.publish([message()] * 1001).status, 413)
        self.assertEqual(self.publish([message(n) for n in range(1000)]).status, 200)


class WatchedTest(TestCase):
    """Tracing and events of a list: each message has those that it would have if it had been published alone."""

    def publish(self, answer: Any, *numbers: int) -> None:
        self.spans, self.seen = InMemorySpanExporter(), list[Any]()
        self.tracer = make(Tracing(endpoint="http://127.0.0.1:1"), "n1", self.spans)
        self.addCleanup(self.tracer.stop)
        witness = SimpleNamespace(published=lambda *told: self.seen.append((told[0], *told[2:])))
        self.broker = AtomicBroker(answer)
        publisher = Publisher(self.broker, Metrics(), 2000, self.tracer, lambda: cast(Any, witness))
        request = SimpleNamespace(
            body=json.dumps([message(n) for n in numbers]).encode(),
            key=ApiKey(b"", "backend"),
            trace=TRACE,
            parameters=lambda required, optional: {"atomic": "true"},
            text_header=lambda *about: None,
        )
        publisher(cast(Any, request)).addErrback(lambda failure: None)
        cast(Any, self.tracer)._provider.force_flush()
        self.finished = self.spans.get_finished_spans()

    def test_each_message_has_spans_of_its_own_that_end_as_it_ended(self) -> None:
        self.publish(lambda: succeed([Position("e", 5), Position("e", 6)]), 1, 2)
        names = [span.name for span in self.finished]
        self.assertEqual(sorted(names), ["broker.publish"] * 2 + ["publish"] * 2)
        self.assertEqual({f"{span.context.trace_id:032x}" for span in self.finished}, {TRACE[3:35]})
        self.assertEqual(
            [span.attributes["notify.seq"] for span in self.finished if span.name == "publish"], [5, 6]
        )
        travelling = [one.trace[36:52] for one in self.broker.lists[0]]
        inner = [f"{span.context.span_id:016x}" for span in self.finished if span.name == "broker.publish"]
        self.assertEqual(travelling, inner)
        self.assertEqual(self.seen, [(TOPIC, "ok", "", "e", 5), (TOPIC, "ok", "", "e", 6)])

    def test_a_list_that_is_refused_is_seen_as_refused_in_each(self) -> None:
        self.publish(lambda: fail(Unavailable("sesame")), 1, 2)
        self.assertEqual({span.status.description for span in self.finished}, {"Unavailable"})
        self.assertEqual([one[1] for one in self.seen], ["unavailable"] * 2)
        self.assertNotIn("sesame", str([span.to_json() for span in self.finished]))
