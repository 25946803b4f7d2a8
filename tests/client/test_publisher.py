"""The synchronous publisher against an HTTP server in a thread."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import treq
from cryptography import x509
from msgspec import structs
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify.client import Position, Publisher, PublishFailed, TwistedClient
from tests.support.certificates import Authority
from tests.support.http import temporary_folder
from tests.support.natsd import NatsServer, until
from tests.support.process import KEY, Server
from tests.support.proxy import Proxy
from tests.support.running import API_KEY, LocalServer, token

SUBJECT = "workspace.1.chat.7.messages"


class FakeApi:
    """Answers ``POST /v1/publish`` as the real server does, after the failures that the test sets."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []  # Authorization, Idempotency-Key, body
        self.stored: dict[str, int] = {}
        self.failures: list[tuple[int, dict[str, str]] | str] = []
        self.handshakes = 0
        self.no_stream = 404
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                api.handshakes += 1
                self.reply(api.no_stream, {"error": {"code": "not_found", "message": "no stream"}}, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = self.headers["Idempotency-Key"]
                api.requests.append((self.headers["Authorization"], key, body))
                failure = api.failures.pop(0) if api.failures else None
                if failure == "drop":
                    self.close_connection = True
                    return None
                if failure == "store and drop":
                    api.answer(key, body)
                    self.close_connection = True
                    return None
                if isinstance(failure, tuple):
                    return self.reply(failure[0], {"error": {"code": "c", "message": "m"}}, failure[1])
                if failure == "not JSON":
                    return self.reply(502, None, {})
                status, answer = api.answer(key, body, "half" if failure == "half" else None)
                return self.reply(status, answer, {})

            def reply(self, status: int, value: Any, headers: dict[str, str]) -> None:
                body = b"<html>" if value is None else json.dumps(value).encode()
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def answer(self, key: str, body: Any, half: str | None = None) -> tuple[int, Any]:
        if isinstance(body, dict):
            seq = self.stored.setdefault(key, len(self.stored) + 1)
            return 200, {"subject": body["subject"], "epoch": "e", "seq": seq}
        results = []
        for index, one in enumerate(body):
            if one["payload"].get("bad"):
                results.append({"status": 422, "error": {"code": "invalid_message", "message": "no"}})
            elif half and index % 2:
                results.append({"status": 503, "error": {"code": "unavailable", "message": "later"}})
            else:
                seq = self.stored.setdefault(f"{key}:{index}", len(self.stored) + 1)
                results.append({"status": 200, "subject": one["subject"], "epoch": "e", "seq": seq})
        good = all(result["status"] == 200 for result in results)
        return 200 if good else 207, {"accepted": 0, "results": results}

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Publishing(TestCase):
    """With requests, because there is no stream: as with an older server, or through some proxies."""

    def setUp(self) -> None:
        self.api = FakeApi()
        self.addCleanup(self.api.stop)
        self.publisher = self.make()

    def make(self, **options: Any) -> Publisher:
        options = {"random": lambda: 0.05, **options}
        publisher = Publisher(self.api.url, "key-1", **options)
        self.addCleanup(publisher.close)
        return publisher

    def keys(self) -> list[str]:
        return [key for _, key, _ in self.api.requests]

    def test_one_message_gives_its_position(self) -> None:
        with self.publisher as publisher:
            self.assertEqual(publisher.publish(SUBJECT, {"a": 1}), Position("e", 1))
        authorization, _, body = self.api.requests[0]
        self.assertEqual(authorization, "Bearer key-1")
        self.assertEqual(body, {"subject": SUBJECT, "payload": {"a": 1}})

    def test_messages_and_notifications_are_written_out(self) -> None:
        self.publisher.chat(1, 7, 3, "hello")
        self.publisher.notify(1, 5, "mention", {"a": [1]}, notification_id=9, timestamp=8)
        first, second = (body for _, _, body in self.api.requests)
        self.assertEqual(first["subject"], SUBJECT)
        self.assertEqual({**first["payload"], "message_id": 0, "timestamp": 0}, {
            "message_id": 0, "chat_id": 7, "workspace_id": 1, "sender_id": 3, "content": "hello", "timestamp": 0,
        })  # fmt: skip
        self.assertTrue(0 <= first["payload"]["message_id"] < 2**53)
        self.assertEqual(second, {"subject": "workspace.1.user.5.notifications", "payload": {
            "notification_id": 9, "workspace_id": 1, "user_id": 5, "kind": "mention", "data": {"a": [1]}, "timestamp": 8,
        }})  # fmt: skip

    def test_repeats_carry_the_same_key_and_store_once(self) -> None:
        self.api.failures = ["store and drop", (503, {}), "not JSON", (504, {"Retry-After": "0"})]
        self.assertEqual(self.publisher.publish(SUBJECT, {}), Position("e", 1))
        self.assertEqual(len(self.keys()), 5)
        self.assertEqual(len(set(self.keys())), 1)

    def test_two_messages_have_two_keys_but_a_callers_own_is_kept(self) -> None:
        for key in (None, None, "mine"):
            self.publisher.publish(SUBJECT, {}, key=key)
        self.assertEqual(len(set(self.keys())), 3)
        self.assertEqual(self.keys()[2], "mine")

    def test_tries_are_bounded(self) -> None:
        self.api.failures = ["drop"] * 10
        error = self.assertRaises(PublishFailed, self.make(tries=3).publish, SUBJECT, {})
        self.assertEqual((error.code, error.status, error.nothing_stored), ("unknown", None, False))
        self.assertEqual(len(self.keys()), 3)

    def test_what_cannot_succeed_is_not_repeated(self) -> None:
        self.api.failures = [(401, {})]
        error = self.assertRaises(PublishFailed, self.publisher.publish, SUBJECT, {})
        self.assertEqual((error.code, error.status, error.nothing_stored), ("c", 401, True))
        self.assertEqual(len(self.keys()), 1)

    def test_many_go_in_as_few_requests_as_allowed_and_in_order(self) -> None:
        positions = self.publisher.publish_many((SUBJECT, {"n": n}) for n in range(1203))
        self.assertEqual([position.seq for position in positions], list(range(1, 1204)))
        self.assertEqual([len(body) for _, _, body in self.api.requests], [500, 500, 203])

    def test_large_messages_make_smaller_requests(self) -> None:
        self.publisher.publish_many([(SUBJECT, {"text": "x" * 200_000})] * 5)
        self.assertEqual([len(body) for _, _, body in self.api.requests], [2, 2, 1])

    def test_a_list_that_was_accepted_in_part_is_completed(self) -> None:
        self.api.failures = ["half"]
        positions = self.publisher.publish_many([(SUBJECT, {})] * 4)
        self.assertEqual([position.seq for position in positions], [1, 3, 2, 4])
        self.assertEqual(len(set(self.keys())), 1)

    def test_a_list_names_what_was_accepted_and_what_was_not(self) -> None:
        messages = [(SUBJECT, {"bad": n == 501}) for n in range(1600)]
        error = self.assertRaises(PublishFailed, self.publisher.publish_many, messages)
        self.assertEqual((error.code, error.status), ("invalid_message", 422))
        accepted = [position is not None for position in error.positions]
        self.assertEqual(accepted, [n != 501 for n in range(1000)])

    def test_a_list_that_never_was_accepted_whole_says_what_was(self) -> None:
        self.api.failures = ["half"] * 3
        error = self.assertRaises(PublishFailed, self.make(tries=2).publish_many, [(SUBJECT, {})] * 3)
        self.assertEqual(error.code, "unavailable")
        self.assertEqual(error.positions, [Position("e", 1), None, Position("e", 2)])

    def test_addresses_and_bounds_are_checked(self) -> None:
        self.assertRaises(ValueError, Publisher, "ws://h", "key")
        for wrong in ({"tries": 0}, {"connections": 0}, {"timeout": 0}, {"try_timeout": float("inf")}):
            self.assertRaises(ValueError, Publisher, "http://h", "key", **wrong)
        self.assertRaises(ValueError, self.publisher.publish, SUBJECT, {}, timeout=-1)

    def test_where_no_stream_is_opened_one_is_asked_for_once_a_minute(self) -> None:
        for status in (404, 426, 400, 200, 502):
            self.api.no_stream, self.api.handshakes = status, 0
            publisher = self.make()
            for _ in range(3):
                publisher.publish(SUBJECT, {})
            self.assertEqual(self.api.handshakes, 1)
            publisher._desk.stream_from = 0.0
            publisher.publish(SUBJECT, {})
            self.assertEqual(self.api.handshakes, 2)

    def test_none_is_asked_for_where_none_is_wanted(self) -> None:
        self.make(stream=False).publish(SUBJECT, {})
        self.assertEqual(self.api.handshakes, 0)

    def test_an_answer_that_is_none_is_a_failure(self) -> None:
        self.patch(self.api, "answer", lambda *_: (200, {"results": [{"status": 200}]}))
        error = self.assertRaises(PublishFailed, self.publisher.publish_many, [(SUBJECT, {})] * 2)
        self.assertEqual((error.code, error.positions), ("failed", [None, None]))
        self.assertFalse(error.nothing_stored)

    def test_each_message_of_a_list_has_its_own_error(self) -> None:
        self.api.failures = ["half"] * 9
        messages = [(SUBJECT, {"bad": n == 0}) for n in range(4)]
        error = self.assertRaises(PublishFailed, self.make(tries=2).publish_many, messages)
        self.assertEqual((error.code, error.status), ("unavailable", 503))
        codes = [one and one.code for one in error.errors]
        self.assertEqual(codes, ["invalid_message", "unavailable", None, "unavailable"])


class WholeServer(TestCase):
    """Against the real server."""

    timeout = 60

    async def test_many_messages_arrive_in_order_and_a_repeat_stores_nothing(self) -> None:
        server = await LocalServer().start(self)

        def publish() -> list[Position]:
            with Publisher(server.api, API_KEY) as publisher:
                first = publisher.chat(1, 7, 3, "0", message_id=1, timestamp=2, key="once")
                again = publisher.chat(1, 7, 3, "0", message_id=1, timestamp=2, key="once")
                self.assertEqual(first, again)
                payload = {"chat_id": 7, "workspace_id": 1, "sender_id": 3, "timestamp": 2}
                numbered = ({**payload, "message_id": n, "content": str(n)} for n in range(1, 800))
                return [first, *publisher.publish_many((SUBJECT, one) for one in numbered)]

        async with TwistedClient(server.ws, token(1)) as client:
            chat = client.chat(7)
            await chat.ready()
            positions = await deferToThread(publish)
            got = [await chat.__anext__() for _ in range(800)]
            self.assertEqual([message.content for message in got], [str(n) for n in range(800)])
            self.assertEqual([message.position for message in got], positions)

    async def test_a_wrong_key_and_a_wrong_message_are_refused_at_once(self) -> None:
        server = await LocalServer().start(self)
        for key, payload, status in (("wrong", {}, 401), (API_KEY, {"chat_id": 8}, 422)):
            publisher = Publisher(server.api, key)
            self.addCleanup(publisher.close)
            publishing = deferToThread(publisher.publish, SUBJECT, payload)
            error = await self.assertFailure(publishing, PublishFailed)
            self.assertEqual(error.status, status)


class Streamed(TestCase):
    """Over a stream of the real server, through a proxy that the tests cut."""

    timeout = 120

    async def setUp(self) -> None:
        self.server = await LocalServer(BROKER__MEMORY__HISTORY_SIZE="100000").start(self)
        self.proxy = Proxy(self.server.service.internal.port.getHost().port)
        self.addCleanup(self.proxy.stop)
        self.publisher = Publisher(
            f"http://127.0.0.1:{self.proxy.port}", API_KEY, timeout=60, random=lambda: 0.01
        )
        self.addCleanup(self.publisher.close)

    def sample(self, name: str, **labels: str) -> float:
        return self.server.hub.metrics.registry.get_sample_value(name, labels) or 0

    def posts(self) -> float:
        return sum(
            self.sample("notify_http_requests_total", path="/v1/publish", status=s) for s in ("200", "207")
        )

    def message(self, number: int, **more: Any) -> tuple[str, Any]:
        payload = {"message_id": number, "chat_id": 7, "workspace_id": 1, "sender_id": 3, "timestamp": 2}
        return SUBJECT, {**payload, "content": str(number), **more}

    async def test_messages_go_by_one_stream_and_no_request(self) -> None:
        for n in range(3):
            await deferToThread(self.publisher.publish, *self.message(n))
        positions = await deferToThread(self.publisher.publish_many, map(self.message, range(3, 1300)))
        self.assertEqual([one.seq for one in positions], list(range(4, 1301)))
        self.assertEqual((self.posts(), self.sample("notify_publish_streams")), (0, 1))
        self.assertEqual(self.sample("notify_http_requests_total", path="/v1/stream", status="101"), 1)

    async def test_a_key_of_the_callers_own_stores_once(self) -> None:
        one = partial(self.publisher.publish, *self.message(1), key="mine")
        first = await deferToThread(one)
        self.assertEqual(await deferToThread(one), first)
        error = await self.assertFailure(
            deferToThread(partial(self.publisher.publish, *self.message(1), key="a b")), PublishFailed
        )
        self.assertEqual((error.code, error.status), ("bad_request", 400))

    async def test_each_of_a_list_is_told_of(self) -> None:
        messages = [self.message(0), self.message(1, chat_id=8), ("workspace.1", {}), self.message(3)]
        error = await self.assertFailure(deferToThread(self.publisher.publish_many, messages), PublishFailed)
        self.assertEqual((error.code, error.status), ("invalid_message", 422))
        self.assertEqual([one and one.seq for one in error.positions], [1, None, None, 2])
        codes = [one and one.code for one in error.errors]
        self.assertEqual(codes, [None, "invalid_message", "unknown_subject", None])

    async def test_a_message_that_is_too_large_for_a_stream_goes_by_a_request(self) -> None:
        await deferToThread(self.publisher.publish, *self.message(1))
        large = self.message(2, content="x" * 600_000)
        error = await self.assertFailure(deferToThread(self.publisher.publish, *large), PublishFailed)
        self.assertEqual((error.code, error.status), ("too_large", 413))
        self.assertEqual(self.sample("notify_publish_streams"), 1)

    async def test_a_connection_that_is_cut_again_and_again_loses_nothing_and_stores_nothing_twice(
        self,
    ) -> None:
        cutting = LoopingCall(self.proxy.cut)
        cutting.start(0.05, now=False)
        self.addCleanup(lambda: cutting.running and cutting.stop())

        def publish() -> None:
            for start in range(0, 4000, 400):
                self.publisher.publish_many(map(self.message, range(start, start + 400)))

        await deferToThread(publish)
        cutting.stop()
        kept: list[str] = []
        url = f"{self.server.api}/v1/history?subject={SUBJECT}&limit=1000"
        while True:
            answer = await treq.get(url, headers={"Authorization": f"Bearer {API_KEY}"}, persistent=False)
            page = await answer.json()
            kept += [one["payload"]["content"] for one in page["messages"]]
            url = url.partition("&since")[0] + f"&since={page['next']}"
            if page["complete"]:
                break
        self.assertEqual(kept, [str(n) for n in range(4000)])

    async def test_silence_is_not_known_to_be_stored(self) -> None:
        publisher = Publisher(f"http://127.0.0.1:{self.proxy.port}", API_KEY, timeout=0.3)
        self.addCleanup(publisher.close)
        await deferToThread(publisher.publish, *self.message(1))
        self.proxy.silence()
        error = await self.assertFailure(deferToThread(publisher.publish, *self.message(2)), PublishFailed)
        self.assertEqual((error.code, error.status, error.nothing_stored), ("unknown", None, False))

    async def test_a_key_that_is_taken_away_is_told(self) -> None:
        await deferToThread(self.publisher.publish, *self.message(1))
        live = self.server.hub.live
        live.now = structs.replace(live.now, keys=())
        error = await self.assertFailure(
            deferToThread(self.publisher.publish, *self.message(2)), PublishFailed
        )
        self.assertIn(error.status, (401, 403))

    async def test_a_stream_that_the_server_ended_meanwhile_is_opened_again(self) -> None:
        with Publisher(f"http://127.0.0.1:{self.proxy.port}", API_KEY, tries=1) as publisher:
            await deferToThread(publisher.publish, *self.message(1))
            self.proxy.cut()
            await until(lambda: not self.sample("notify_publish_streams"))
            await deferToThread(publisher.publish, *self.message(2))
        self.assertEqual(self.posts(), 0)


class Encrypted(TestCase):
    """Over a stream of a server whose internal port uses TLS."""

    timeout = 60

    async def test_messages_go_by_a_stream_under_tls_and_to_nobody_else(self) -> None:
        folder = temporary_folder(self)
        authority = Authority(folder)
        key, certificate = authority.issue(x509.DNSName("localhost"), name="tls")
        server = await LocalServer(
            LISTEN__INTERNAL=f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
        ).start(self)
        url = server.api.replace("http://127.0.0.1", "https://localhost")
        payload = {"chat_id": 7, "workspace_id": 1, "sender_id": 3, "timestamp": 2, "content": "x" * 1000}
        messages = [(SUBJECT, {**payload, "message_id": n}) for n in range(1200)]

        def publish(tls: ssl.SSLContext | None) -> list[Position]:
            with Publisher(url, API_KEY, tls=tls, tries=1) as publisher:
                publisher.publish(*messages[0])
                positions = publisher.publish_many(messages[1:])
                self.assertTrue(publisher._desk.streaming)
                return positions

        trusted = ssl.create_default_context(cafile=str(authority.certificate))
        positions = await deferToThread(publish, trusted)
        self.assertEqual([one.seq for one in positions], list(range(2, 1201)))
        error = await self.assertFailure(deferToThread(publish, None), PublishFailed)
        self.assertIn("certificate", str(error))


class Killed(TestCase):
    """A server that is killed while it publishes, and started again; its NATS stream outlives it."""

    timeout = 180

    async def test_nothing_acknowledged_is_lost_and_nothing_is_stored_twice(self) -> None:
        nats = NatsServer().start()
        await nats.up()
        self.addCleanup(nats.remove)
        text = f'[broker]\nplugin = "jetstream"\n[broker.jetstream]\nservers = ["{nats.url}"]\n'
        await deferToThread(self.publish, text)

    def publish(self, text: str) -> None:
        total, kills, middle = 3000, 3, threading.Semaphore(0)
        with Server(text) as server:

            def kill() -> None:
                for _ in range(kills):
                    middle.acquire()
                    server.process.kill()
                    server.process.wait()
                    server.start()

            def messages() -> Iterator[tuple[str, Any]]:
                payload = {"chat_id": 7, "workspace_id": 1, "sender_id": 3, "timestamp": 2}
                for n in range(total):
                    if n % (total // kills) == 499:  # the last of those that are sent together
                        middle.release()
                    yield SUBJECT, {**payload, "message_id": n, "content": str(n)}

            killer = threading.Thread(target=kill)
            killer.start()
            with Publisher(
                f"http://127.0.0.1:{server.internal}", KEY, timeout=60, try_timeout=20
            ) as publisher:
                positions = publisher.publish_many(messages())
            killer.join()
            kept: list[tuple[int, str]] = []
            since = ""
            while True:
                path = f"/v1/history?subject={SUBJECT}&limit=1000" + (f"&since={since}" if since else "")
                _, page = server.http("GET", path)
                kept += [(one["seq"], one["payload"]["content"]) for one in page["messages"]]
                since = page["next"]
                if page["complete"]:
                    break
        self.assertEqual([content for _, content in kept], [str(n) for n in range(total)])
        self.assertEqual([seq for seq, _ in kept], [one.seq for one in positions])
