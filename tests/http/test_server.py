import json

from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from notify.http.answers import answer
from notify.http.server import Route, Site
from notify.testing import chat_payload, make_context
from notify.topics import chat
from tests.support.http import AUTH, KEY, Client, Node, request_bytes

TOPIC = chat(1, 10)
BODY = json.dumps({"subject": TOPIC.subject, "payload": json.loads(chat_payload(TOPIC))}).encode()
JSON = {**AUTH, "Content-Type": "application/json"}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Base(TestCase):
    def setUp(self) -> None:
        self.node = Node()
        self.client = Client(self.node.site)

    def one(self):
        (response,) = self.client.received()
        return response

    def chunked(self, path: str = "/v1/publish") -> bytes:
        return request_bytes("POST", path, None, {**JSON, "Transfer-Encoding": "chunked"})

    def published(self) -> int:
        return len(self.successResultOf(self.node.broker.replay(TOPIC, None, 100, 10**6)).messages)

    def assert_hung_up(self) -> None:
        """The server ends its side, ignores what the client sends, and closes the connection later."""
        self.client.send(request_bytes("GET", "/health"))
        self.assertEqual(self.client.received(), [])
        self.assertTrue(self.client.transport.half_closed)
        self.node.clock.advance(2)
        self.assertTrue(self.client.transport.disconnected)


class KeysTest(Base):
    def test_every_path_under_v1_needs_a_key(self) -> None:
        for method, path in (
            ("GET", "/v1/history"),
            ("POST", "/v1/publish"),
            ("GET", "/v1/none"),
            ("GET", "/v1"),
        ):
            for headers in (
                {},
                {"Authorization": "Bearer wrong-key-wrong-key"},
                {"Authorization": f"Basic {KEY}"},
                {"Authorization": KEY},
                {"Authorization": f"Bearer {KEY}x"},
                {"Authorization": "Bearer "},
            ):
                response = self.node.call(method, path, headers=headers, auth=False)
                self.assertEqual((response.status, response.code), (401, "unauthorized"))
                self.assertTrue(response["WWW-Authenticate"].startswith('Bearer realm="notify"'))
                self.assertNotIn(b"wrong-key", response.body)

    def test_two_keys_in_one_request_are_refused(self) -> None:
        raw = request_bytes("GET", "/v1/presence?workspace_id=1&chat_id=1", None, AUTH)
        self.client.send(raw.replace(b"Host:", b"Authorization: Bearer x\r\nHost:"))
        self.assertEqual(self.one().status, 401)

    def test_without_keys_nobody_may_and_is_told_why(self) -> None:
        response = Node(keys=()).call("GET", "/v1/presence?workspace_id=1&chat_id=1")
        self.assertEqual((response.status, response.code), (403, "api_disabled"))
        self.assertIn("api.keys", response.json["error"]["message"])

    def test_a_site_without_keys_keeps_its_secure_routes_shut(self) -> None:
        context = make_context()
        site = Site(context.reactor, {b"/x": Route({b"GET": answer}, scope="read")}, None, context.metrics)
        client = Client(site)
        client.send(request_bytes("GET", "/x", None, AUTH))
        self.assertEqual(client.received()[0].code, "api_disabled")

    def test_a_body_without_a_key_is_not_taken(self) -> None:
        self.client.send(request_bytes("POST", "/v1/publish", None, {"Content-Length": "1000000"}))
        self.assertEqual(self.one().status, 401)
        self.assert_hung_up()


class RoutingTest(Base):
    def test_unknown_paths_are_not_found(self) -> None:
        for path in (
            "/",
            "/v2",
            "/health/",
            "/health/live/",
            "//health",
            "/HEALTH",
            "/%68ealth",
            "/health/../metrics",
            "/v1/none",
            "/ws",
            "*",
            "health",
        ):
            response = self.node.call("GET", path)
            self.assertEqual((response.status, response.code), (404, "not_found"), path)

    def test_other_methods_are_refused_with_those_that_are_allowed(self) -> None:
        for method, path, allow in (
            ("GET", "/v1/publish", "POST"),
            ("POST", "/health", "GET, HEAD"),
            ("OPTIONS", "/v1/history", "GET, HEAD"),
            ("BREW", "/metrics", "GET, HEAD"),
            ("get", "/metrics", "GET, HEAD"),
        ):
            response = self.node.call(method, path)
            self.assertEqual(
                (response.status, response.code, response["Allow"]), (405, "method_not_allowed", allow)
            )

    def test_head_is_get_without_a_body(self) -> None:
        response = self.node.call("HEAD", "/health/live")
        self.assertEqual((response.status, response["Content-Length"]), (200, "15"))

    def test_an_absolute_uri_is_taken_for_its_path(self) -> None:
        self.assertEqual(self.node.call("GET", "http://other.test/health/live").status, 200)
        self.assertEqual(self.node.call("GET", "HTTPS://other.test/health/live?x=1").status, 200)
        for target in ("http://other.test", "http://", "ftp://other.test/health/live", "http:health/live"):
            self.assertEqual(self.node.call("GET", target).status, 404, target)

    def test_no_answer_names_the_software_or_may_be_cached(self) -> None:
        for path in ("/health", "/none", "/metrics", "/v1/history"):
            response = self.node.call("GET", path, auth=False)
            self.assertEqual(response["Cache-Control"], "no-store")
            self.assertEqual(response["X-Content-Type-Options"], "nosniff")
            self.assertIsNone(response["Server"])
            self.assertFalse(
                [name for name, _ in response.headers if name.lower().startswith("access-control")]
            )

    def test_a_request_id_is_echoed_or_made(self) -> None:
        self.assertEqual(
            self.node.call("GET", "/health", headers={"X-Request-Id": "a-1"})["X-Request-Id"], "a-1"
        )
        made = {self.node.call("GET", "/health")["X-Request-Id"] for _ in range(3)}
        self.assertEqual(len(made), 3)
        for wrong in ("x" * 65, "a b", "<script>", ""):
            given = self.node.call("GET", "/health", headers={"X-Request-Id": wrong})["X-Request-Id"]
            self.assertRegex(given, "^[0-9a-f]{16}$")


class BodyTest(Base):
    def test_a_chunked_body_is_as_good_as_any(self) -> None:
        self.client.send(self.chunked() + chunk(BODY[:20]) + chunk(BODY[20:]) + chunk(b""))
        self.assertEqual(self.one().status, 200)

    def test_a_body_that_says_that_it_is_too_large_is_refused_before_it_is_read(self) -> None:
        self.client.send(request_bytes("POST", "/v1/publish", None, {**JSON, "Content-Length": str(2**40)}))
        self.assertEqual(self.one().code, "too_large")
        self.assert_hung_up()

    def test_a_chunked_body_that_grows_too_large_is_refused_at_the_bound(self) -> None:
        self.client.send(self.chunked())
        sent = 0
        while not self.client.transport.value():
            self.client.send(chunk(b"x" * 65536))
            sent += 65536
        self.assertLessEqual(sent, 4 * 2**20 + 65536)
        self.assertEqual(self.one().code, "too_large")
        self.assertEqual(self.published(), 0)
        self.assert_hung_up()

    def test_one_giant_chunk_is_refused_at_the_bound(self) -> None:
        self.client.send(self.chunked("/v1/disconnect") + b"ffffffff\r\n" + b"x" * 5000)
        self.assertEqual(self.one().code, "too_large")
        self.assert_hung_up()

    def test_chunks_that_are_mostly_wrapping_are_refused(self) -> None:
        self.client.send(self.chunked("/v1/disconnect"))
        sent = 0
        while not self.client.transport.value():
            self.client.send(b"1;" + b"e" * 1000 + b"\r\n \r\n")
            sent += 1000
        self.assertLess(sent, 100_000)
        self.assertEqual(self.one().code, "too_large")

    def test_a_refused_client_that_goes_on_is_not_read_any_more(self) -> None:
        self.client.send(request_bytes("POST", "/v1/publish", None, {**JSON, "Content-Length": str(2**40)}))
        for _ in range(8):
            self.client.send(b"x" * 2**20)
        self.assertEqual(self.client.transport.producerState, "producing")
        self.client.send(b"x")
        self.assertEqual(self.client.transport.producerState, "paused")

    def test_malformed_chunks_are_refused(self) -> None:
        for bad in (
            b"zz\r\n",
            b"-1\r\n",
            b"5\r\nabcdefgh\r\n",
            b"1" * 2000,
            b"1;" + b"x" * 2000,
            b"0\r\n" + b"a" * 70000,
        ):
            client = Client(self.node.site)
            client.send(self.chunked() + bad)
            (response,) = client.received()
            self.assertEqual((response.status, response.code), (400, "bad_request"), bad[:20])
        self.assertEqual(self.published(), 0)

    def test_a_body_where_none_belongs_is_refused(self) -> None:
        for method, path in (("GET", "/health"), ("GET", "/v1/nodes")):
            self.assertEqual(self.node.call(method, path, body=b"{}").code, "too_large")

    def test_a_connection_lives_on_after_a_small_refused_body(self) -> None:
        self.client.send(request_bytes("POST", "/none", b"x" * 1000) + request_bytes("GET", "/health/live"))
        self.assertEqual([r.status for r in self.client.received()], [404, 200])

    def test_a_client_that_waits_is_told_to_go_on_or_why_not(self) -> None:
        headers = {**JSON, "Expect": "100-continue", "Content-Length": str(len(BODY))}
        self.client.send(request_bytes("POST", "/v1/publish", None, headers))
        self.assertEqual(self.one().status, 100)
        self.client.send(BODY)
        self.assertEqual(self.one().status, 200)
        self.client.send(
            request_bytes("POST", "/v1/publish", None, {**headers, "Content-Length": "99999999"})
        )
        self.assertEqual(self.one().status, 413)

    def test_ambiguous_lengths_are_refused(self) -> None:
        for extra in (
            {"Transfer-Encoding": "chunked", "Content-Length": "5"},
            {"Content-Length": "5, 5"},
            {"Content-Length": "-5"},
            {"Content-Length": "+5"},
            {"Content-Length": "0x5"},
            {"Content-Length": "5 5"},
            {"Transfer-Encoding": "gzip, chunked"},
            {"Content-Length": ""},
            {"Transfer-Encoding": "xchunked"},
            {"content-length": "5", "Content-Length": "6"},
        ):
            client = Client(self.node.site)
            client.send(request_bytes("POST", "/v1/publish", None, {**JSON, **extra}) + b"0\r\n\r\n" + BODY)
            responses = client.received()
            self.assertEqual([(r.status, r.code) for r in responses], [(400, "bad_request")], extra)
        self.assertEqual(self.published(), 0)


class MalformedTest(Base):
    def test_what_is_not_http_gets_a_json_error(self) -> None:
        for data in (
            b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET / HTTP/1.2\r\n\r\n",
            b"GET / HTTP/0.9\r\n\r\n",
            b"GET / HTTP/1.10\r\n\r\n",
            b"GET / http/1.1\r\n\r\n",
            b"GET / RTSP/1.0\r\n\r\n",
            b"SOURCE / ICE/1.0\r\n\r\n",
            b"GET /a b HTTP/1.1\r\n\r\n",
            b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"G\xc3T / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\x00\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ):
            client = Client(self.node.site)
            client.send(data)
            (response,) = client.received()
            self.assertEqual((response.status, response.code), (400, "bad_request"), data)
            self.assertEqual(response["Connection"], "close")
            self.assertTrue(response["X-Request-Id"])

    def test_http_1_1_needs_one_host(self) -> None:
        for data in (b"GET /health HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"):
            client = Client(self.node.site)
            client.send(data)
            self.assertEqual(client.received()[0].code, "bad_request")

    def test_http_1_0_is_answered_and_closed(self) -> None:
        self.client.send(b"GET /health/live HTTP/1.0\r\n\r\n")
        self.assertEqual(self.one().status, 200)
        self.assertTrue(self.client.transport.disconnecting)

    def test_headers_are_bounded(self) -> None:
        floods = (
            b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"a" * 20000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 100 + b"\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n" + (b"X: " + b"a" * 1000 + b"\r\n") * 20 + b"\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n" + (b" " + b"a" * 1000 + b"\r\n") * 20 + b"\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20000,
        )
        for data in floods:
            client = Client(self.node.site)
            client.send(data)
            (response,) = client.received()
            self.assertEqual((response.status, response.code), (431, "headers_too_large"), data[:60])

    def test_headers_that_come_byte_by_byte_are_headers(self) -> None:
        for byte in request_bytes("GET", "/health/live"):
            self.client.send(bytes([byte]))
        self.assertEqual(self.one().status, 200)


class TimeTest(Base):
    def test_an_idle_connection_is_closed_without_a_word(self) -> None:
        self.client.send(request_bytes("GET", "/health/live"))
        self.client.received()
        self.node.clock.pump([59, 0.5])
        self.assertFalse(self.client.transport.disconnecting)
        self.node.clock.advance(1)
        self.assertEqual(self.client.received(), [])
        self.assertTrue(self.client.transport.disconnecting)
        self.node.clock.advance(2)
        self.assertTrue(self.client.transport.disconnected)

    def test_a_request_that_trickles_in_is_cut_off_in_time(self) -> None:
        self.client.send(b"POST /v1/publish HTTP/1.1\r\n")
        for second in range(20):
            self.assertEqual(self.client.transport.value(), b"", second)
            self.client.send(b"X-Slow-%d: a\r\n" % second)
            self.node.clock.advance(1)
        response = self.one()
        self.assertEqual((response.status, response.code), (408, "timeout"))
        self.assert_hung_up()

    def test_a_request_line_that_trickles_in_is_cut_off_in_time(self) -> None:
        for _ in range(60):
            self.client.send(b"G")
            self.node.clock.advance(1)
        self.assertTrue(self.client.transport.disconnecting)

    def test_a_body_that_trickles_in_is_cut_off_in_time(self) -> None:
        self.client.send(self.chunked())
        for _ in range(20):
            self.client.send(chunk(b" "))
            self.node.clock.advance(1)
        self.assertEqual(self.one().status, 408)

    def test_each_request_on_a_connection_has_its_own_deadline(self) -> None:
        for _ in range(5):
            self.node.clock.advance(50)
            self.client.send(request_bytes("GET", "/health/live")[:20])
            self.client.send(request_bytes("GET", "/health/live")[20:])
            self.assertEqual(self.one().status, 200)

    def test_many_requests_on_a_connection_share_one_timer(self) -> None:
        node, made = Node(), []
        make = node.clock.callLater
        node.clock.callLater = lambda *arguments: made.append(make(*arguments)) or made[-1]
        client = Client(node.site)
        for _ in range(200):
            client.send(request_bytes("GET", "/health/live"))
        self.assertEqual(len(client.received()), 200)
        self.assertEqual(len(made), 1)
        node.clock.pump([20.0] * 2 + [19.9])
        self.assertFalse(client.transport.disconnecting)
        node.clock.advance(0.1)
        self.assertTrue(client.transport.disconnecting)

    def test_nothing_is_left_behind_by_a_client_that_goes_away(self) -> None:
        for data in (b"", b"GET", self.chunked(), b"broken\r\n", request_bytes("GET", "/health")):
            client = Client(self.node.site)
            client.send(data)
            client.lose()
        self.client.lose()
        self.assertEqual(self.node.clock.getDelayedCalls(), [])


class PipelineTest(TestCase):
    """Requests sent ahead are answered in order, one at a time, and do not pile up."""

    def setUp(self) -> None:
        self.waiting: list[Deferred] = []
        self.context = make_context()

        def handler(request):
            self.waiting.append(Deferred())
            return self.waiting[-1]

        self.site = Site(
            self.context.reactor, {b"/slow": Route({b"GET": handler})}, None, self.context.metrics
        )
        self.client = Client(self.site)

    def test_answers_keep_the_order_of_the_requests(self) -> None:
        self.client.send(request_bytes("GET", "/slow") * 3)
        for n in range(3):
            self.assertEqual(len(self.waiting), n + 1)
            self.waiting[n].callback(answer(n))
            self.assertEqual(len(self.waiting), n + 1)  # not in the same turn
            self.context.reactor.advance(0)
        self.assertEqual([r.json for r in self.client.received()], [0, 1, 2])

    def test_a_client_that_sends_ahead_without_end_is_not_read_any_more(self) -> None:
        self.client.send(request_bytes("GET", "/slow"))
        sent = 0
        while self.client.transport.producerState == "producing":
            self.client.send(request_bytes("GET", "/slow") * 10)
            sent += 10
        self.assertLess(sent * len(request_bytes("GET", "/slow")), 20_000)
        self.assertEqual(len(self.waiting), 1)

    def test_a_handler_that_fails_gives_a_plain_error(self) -> None:
        self.client.send(request_bytes("GET", "/slow"))
        self.waiting[0].errback(RuntimeError("sesame"))
        (response,) = self.client.received()
        self.assertEqual((response.status, response.code), (500, "internal"))
        self.assertNotIn(b"sesame", response.body)
        self.assertNotIn(b"Traceback", response.body)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_settles_once_nothing_is_under_way(self) -> None:
        self.successResultOf(self.site.settled())
        self.client.send(request_bytes("GET", "/slow"))
        settled = self.site.settled()
        self.assertNoResult(settled)
        self.waiting[0].callback(answer(1))
        self.successResultOf(settled)


class LogTest(Base):
    def test_a_log_line_has_no_key_no_query_no_content_and_no_made_up_path(self) -> None:
        events: list[dict] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.node.call("GET", "/v1/history?subject=sesame", headers={"X-Request-Id": "r1"})
        self.node.call("GET", "/sesame?token=sesame", headers={"X-Request-Id": "r2"})
        self.node.call("SESAME", "/sesame", headers={"X-Request-Id": "r3"})
        self.node.call("POST", "/v1/publish", body=BODY.replace(b"hello", b"sesame"))
        self.node.call("SESAME", "/v1/publish")
        self.client.send(b"sesame\r\n\r\n")
        seen = [e for e in events if e.get("log_namespace") == "notify.http.server"]
        self.assertEqual(
            [(e["method"], e["path"], e["status"]) for e in seen],
            [
                ("GET", "/v1/history", 422),
                ("-", "no_such_path", 404),
                ("-", "no_such_path", 404),
                ("POST", "/v1/publish", 200),
                ("-", "/v1/publish", 405),
                ("-", "no_such_path", 400),
            ],
        )
        self.assertEqual([e["request_id"] for e in seen[:3]], ["r1", "r2", "r3"])
        self.assertEqual({e["log_level"].name for e in seen}, {"debug"})
        plain = repr([{k: v for k, v in e.items() if isinstance(v, str | int | float)} for e in events])
        for secret in ("sesame", "SESAME", KEY):
            self.assertNotIn(secret, plain)
