"""Tracing: one trace from publish to socket, sent to a collector that only listens; and none without the package."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from unittest.mock import patch

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from twisted.trial.unittest import TestCase

from notify.config import ConfigError, Tracing
from notify.observe.tracing import NoTracer, make, valid

CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class ContextTests(TestCase):
    def test_only_what_the_standard_allows_is_a_context(self) -> None:
        self.assertEqual(valid(CONTEXT), CONTEXT)
        for wrong in (
            "",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            CONTEXT.upper(),
            "ff" + CONTEXT[2:],
            CONTEXT + "-x",
            CONTEXT + "\n",
        ):
            self.assertEqual(valid(wrong), "", wrong)


class WithoutTests(TestCase):
    def test_contexts_are_passed_on(self) -> None:
        tracer = make(Tracing(), "n1")
        with tracer.span("publish", CONTEXT, {"a": 1}, root=True) as span:
            span.set("b", 2)
            span.fail("nothing")
            self.assertEqual(span.traceparent, CONTEXT)
        tracer.stop()

    def test_nonsense_is_not_passed_on(self) -> None:
        self.assertEqual(NoTracer().span("publish", "x" * 55, root=True).traceparent, "")
        self.assertEqual(NoTracer().span("publish", root=True).traceparent, "")

    def test_an_endpoint_without_the_package_is_an_error_that_says_what_to_do(self) -> None:
        with patch.dict(sys.modules, {"opentelemetry.sdk.trace": None}):
            error = self.assertRaises(ConfigError, make, Tracing(endpoint="http://127.0.0.1:1"), "n1")
        self.assertIn("pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http", str(error))


class WithTests(TestCase):
    def make(self, sample: float = 1.0) -> None:
        self.spans = InMemorySpanExporter()
        self.tracer = make(Tracing(endpoint="http://127.0.0.1:1", sample=sample), "n1", self.spans)
        self.addCleanup(self.tracer.stop)

    def finished(self) -> dict[str, object]:
        self.tracer._provider.force_flush()  # type: ignore[attr-defined]
        return {span.name: span for span in self.spans.get_finished_spans()}

    def test_spans_of_one_publish_are_one_trace_each_the_child_of_the_one_before(self) -> None:
        self.make()
        with self.tracer.span("publish", CONTEXT, root=True) as publish:
            pass
        with self.tracer.span("deliver", publish.traceparent, {"notify.members": 3}) as deliver:
            deliver.set("notify.kind", "chat")
        spans = self.finished()
        self.assertEqual({s.context.trace_id for s in spans.values()}, {0x0AF7651916CD43DD8448EB211C80319C})
        self.assertEqual(spans["publish"].parent.span_id, 0xB7AD6B7169203331)
        self.assertEqual(spans["deliver"].parent.span_id, spans["publish"].context.span_id)
        self.assertEqual(dict(spans["deliver"].attributes), {"notify.members": 3, "notify.kind": "chat"})

    def test_what_its_caller_did_not_sample_is_not_recorded_but_passed_on(self) -> None:
        self.make()
        span = self.tracer.span("publish", UNSAMPLED, root=True)
        span.end()
        self.assertTrue(span.traceparent.endswith("-00"))
        self.assertEqual(span.traceparent[:36], UNSAMPLED[:36])
        self.assertEqual(self.finished(), {})

    def test_only_a_root_begins_a_trace(self) -> None:
        self.make()
        self.assertEqual(self.tracer.span("deliver").traceparent, "")
        self.tracer.span("publish", root=True).end()
        self.assertEqual(list(self.finished()), ["publish"])

    def test_the_sample_decides_where_the_caller_did_not(self) -> None:
        self.make(sample=0.0)
        self.tracer.span("publish", root=True).end()
        self.tracer.span("asked for", CONTEXT, root=True).end()
        self.assertEqual(list(self.finished()), ["asked for"])

    def test_an_exception_is_noted_by_its_type_and_never_by_its_text(self) -> None:
        self.make()
        with self.assertRaises(ValueError), self.tracer.span("publish", root=True):
            raise ValueError("the content")
        span = self.finished()["publish"]
        self.assertEqual(span.status.description, "ValueError")
        self.assertNotIn("the content", span.to_json())

    def test_spans_reach_a_collector_over_http(self) -> None:
        got: list[ExportTraceServiceRequest] = []

        class Collector(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                got.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Collector) as server:
            thread = Thread(target=server.handle_request)
            thread.start()
            tracer = make(Tracing(endpoint=f"http://127.0.0.1:{server.server_port}/v1/traces"), "n1")
            tracer.span("publish", root=True).end()
            tracer.stop()
            thread.join(10)
        (request,) = got
        (resource,) = request.resource_spans
        attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
        self.assertEqual(attributes["service.name"], "notify")
        self.assertEqual(attributes["service.instance.id"], "n1")
        self.assertEqual(resource.scope_spans[0].spans[0].name, "publish")
