"""The synchronous publisher against an HTTP server in a thread."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify.client import Position, Publisher, PublishFailed, TwistedClient
from tests.support.running import API_KEY, LocalServer, token

SUBJECT = "workspace.1.chat.7.messages"


class FakeApi:
    """Answers ``POST /v1/publish`` as the real one does, after the failures that it was told to begin with."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []  # Authorization, Idempotency-Key, body
        self.stored: dict[str, int] = {}
        self.failures: list[tuple[int, dict[str, str]] | str] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

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
    def setUp(self) -> None:
        self.api, self.slept = FakeApi(), []
        self.addCleanup(self.api.stop)
        self.publisher = self.make()

    def make(self, **options: Any) -> Publisher:
        options = {"sleep": self.slept.append, "random": lambda: 0.5, "timeout": 5, **options}
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
        self.api.failures = ["store and drop", (503, {}), "not JSON", (504, {"Retry-After": "3"})]
        self.assertEqual(self.publisher.publish(SUBJECT, {}), Position("e", 1))
        self.assertEqual(len(self.keys()), 5)
        self.assertEqual(len(set(self.keys())), 1)
        self.assertEqual(self.slept, [0.1, 0.2, 0.4, 3.0])

    def test_two_messages_have_two_keys_but_a_callers_own_is_kept(self) -> None:
        for key in (None, None, "mine"):
            self.publisher.publish(SUBJECT, {}, key=key)
        self.assertEqual(len(set(self.keys())), 3)
        self.assertEqual(self.keys()[2], "mine")

    def test_tries_are_bounded(self) -> None:
        self.api.failures = ["drop"] * 10
        error = self.assertRaises(PublishFailed, self.make(tries=3).publish, SUBJECT, {})
        self.assertEqual((error.code, error.status), ("unknown", None))
        self.assertEqual((len(self.keys()), len(self.slept)), (3, 2))

    def test_what_cannot_succeed_is_not_repeated(self) -> None:
        self.api.failures = [(401, {})]
        error = self.assertRaises(PublishFailed, self.publisher.publish, SUBJECT, {})
        self.assertEqual((error.code, error.status, self.slept), ("c", 401, []))

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
        self.assertRaises(ValueError, Publisher, "http://h", "key", tries=0)


class WholeServer(TestCase):
    """Against the real one."""

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
