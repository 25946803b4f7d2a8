"""One trace from an HTTP publish through the broker to the sockets of every node, as a collector receives it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.natsd import NatsServer
from tests.support.process import Server, wait_for

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP/HTTP collector: its address, and the spans it has received, each with the name of its node."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    spans.extend((about["service.instance.id"], span) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
        finally:
            server.shutdown()
            thread.join()


class TracingTests(TestCase):
    timeout = 60

    async def setUp(self) -> None:
        self.nats = NatsServer().start()
        self.addCleanup(self.nats.remove)
        await self.nats.up()

    def test_publish_broker_and_both_nodes_are_one_trace(self) -> Deferred[None]:
        return deferToThread(self.one_trace)

    def one_trace(self) -> None:
        with collector() as (endpoint, spans), ExitStack() as stack:
            nodes = [
                stack.enter_context(
                    Server(
                        f'[server]\nnode = "{name}"\n[tracing]\nendpoint = "{endpoint}"\n[broker]\nplugin = "jetstream"\n'
                        f'[broker.jetstream]\nservers = ["{self.nats.url}"]\n',
                        environ={"OTEL_BSP_SCHEDULE_DELAY": "100"},
                    )
                )
                for name in ("one", "two")
            ]
            clients = [stack.enter_context(node.client(chats=(1,))) for node in nodes]
            status, _ = nodes[0].publish(1, "the content", traceparent=f"00-{TRACE}-{CALLER}-01")
            self.assertEqual(status, 200)
            for client in clients:
                self.assertEqual(client.receive()["content"], "the content")
            wait_for("all spans", lambda: len(spans) >= 4)
            self.assertEqual({span.trace_id.hex() for _, span in spans}, {TRACE})
            by_name = {(node, span.name): span for node, span in spans}
            self.assertEqual(
                set(by_name),
                {("one", "publish"), ("one", "broker.publish"), ("one", "deliver"), ("two", "deliver")},
            )
            publish, broker = by_name["one", "publish"], by_name["one", "broker.publish"]
            self.assertEqual(publish.parent_span_id.hex(), CALLER)
            self.assertEqual(broker.parent_span_id, publish.span_id)
            for node in ("one", "two"):
                deliver = by_name[node, "deliver"]
                self.assertEqual(deliver.parent_span_id, broker.span_id)
                about = {a.key: a.value.int_value or a.value.string_value for a in deliver.attributes}
                self.assertEqual(about["notify.subject"], "workspace.1.chat.1.messages")
                self.assertEqual(about["notify.members"], 1)
            self.assertNotIn("the content", str(spans))

    def test_what_the_broker_refuses_is_a_failed_span_that_quotes_nothing(self) -> Deferred[None]:
        return deferToThread(self.refused)

    def refused(self) -> None:
        with collector() as (endpoint, spans), Server(f'[tracing]\nendpoint = "{endpoint}"\n') as server:
            body = {"subject": "workspace.1.chat.1.messages", "payload": {"content": "the content"}}
            self.assertEqual(server.http("POST", "/v1/publish", body)[0], 422)
            server.process.terminate()
            server.process.wait(20)
            self.assertEqual({span.name for _, span in spans}, {"publish", "broker.publish"})
            self.assertEqual({span.status.message for _, span in spans}, {"Poison"})
            self.assertNotIn("the content", str(spans))
