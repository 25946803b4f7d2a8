"""Event streams of a real server, over real sockets: they keep the promises that WebSocket clients get."""

from __future__ import annotations

import re
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify.auth.tokens import issue
from tests.support.browser import Browser
from tests.support.certificates import Authority
from tests.support.eventstream import Event, EventClient, Reader
from tests.support.haproxy import HAProxy
from tests.support.natsd import NatsServer
from tests.support.nginx import Nginx
from tests.support.process import SECRET, Server, token, wait_for
from tests.support.programs import program
from tests.support.running import LocalServer
from tests.support.running import token as local_token

CHATS = (5, 6)
QUERY = "&".join(f"chat={chat_id}" for chat_id in CHATS)


class Case(TestCase):
    timeout = 120

    def thread(self, work: Callable[[], None]) -> Deferred[None]:
        return deferToThread(work)


class Publishing(threading.Thread):
    """Publishes messages numbered from 1 to both chats, until it is stopped."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.over = threading.Event()
        self.sent = dict.fromkeys(CHATS, 0)
        self.failed = ""

    def run(self) -> None:
        while not self.over.is_set():
            items = []
            for chat_id in CHATS:
                self.sent[chat_id] += 1
                payload = {
                    "message_id": self.sent[chat_id], "chat_id": chat_id, "workspace_id": 1, "sender_id": 1,
                    "content": "x" * 200, "timestamp": 1,
                }  # fmt: skip
                items.append({"subject": f"workspace.1.chat.{chat_id}.messages", "payload": payload})
            status, answer = self.server.http("POST", "/v1/publish", items)
            if status != 200:
                self.failed = str(answer)
                return

    def stop(self) -> dict[int, int]:
        """Stop publishing; return the number of messages in each chat."""
        self.over.set()
        self.join()
        if self.failed:
            raise AssertionError(self.failed)
        return self.sent


def read_over_cuts(port: int, cuts: int, seed: int) -> tuple[list[Event], EventClient]:
    """Reconnect after each cut with the id that the client then had; return all events, and the last client."""
    random, events, last = Random(seed), list[Event](), None
    client = EventClient(port, QUERY, token(), last).begun()
    for _ in range(cuts):
        left = random.randrange(3_000, 40_000)
        while left > 0:
            count = client.pull(left)
            if not count:
                raise AssertionError("the server hung up")
            left -= count
        events += client.taken()
        client.close()
        client = EventClient(port, QUERY, token(), client.reader.id).begun()
    return events, client


class Whole(Case):
    def resumed(self, server: Server, seed: int) -> None:
        publishing = Publishing(server)
        # The first position is known before the first message is published.
        with closing(EventClient(server.public, QUERY, token()).begun()) as first:
            start = [first.next() for _ in range(3)][-1]
        assert start is not None
        publishing.start()
        try:
            events, client = read_over_cuts(server.public, 5, seed)
        finally:
            sent = publishing.stop()
        with closing(client):
            for chat_id in CHATS:
                self.assertGreater(sent[chat_id], 20)

            def newest() -> dict[int, int]:
                return {
                    one.data["chat_id"]: one.data["message_id"]
                    for one in events
                    if one.name == "chat_message"
                }

            while newest() != sent:
                event = client.next()
                assert event is not None
                events.append(event)
        self.assertEqual([one for one in events if one.name in ("lost", "error", "close")], [])
        for chat_id in CHATS:
            came = [
                one.data for one in events if one.name == "chat_message" and one.data["chat_id"] == chat_id
            ]
            numbers = [one["message_id"] for one in came]
            self.assertEqual(numbers, list(range(numbers[0], sent[chat_id] + 1)), seed)
            self.assertEqual([one["prev"] for one in came][1:], [one["seq"] for one in came][:-1])

    def test_nothing_is_missed_over_five_cuts_and_nothing_comes_twice(self) -> Deferred[None]:
        return self.thread(self.over_cuts)

    def over_cuts(self) -> None:
        with Server() as server:
            for seed in (1, 2):
                self.resumed(server, seed)

    def test_the_same_with_workers_who_count_them_together(self) -> Deferred[None]:
        return self.thread(self.with_workers)

    def with_workers(self) -> None:
        with Server("[server]\nnode = 'n'\nworkers = 2\n[limits]\nmax_connections_per_user = 9\n") as server:
            self.resumed(server, 3)
            wait_for("all are gone", lambda: server.metric("notify_connections") == 0)
            streams = [EventClient(server.public, "chat=5", token()).begun() for _ in range(9)]
            for stream in streams:
                stream.until("subscribed")
            self.assertEqual(server.metric("notify_event_streams"), 9)
            _, present = server.http("GET", "/v1/presence?workspace_id=1&chat_id=5")
            self.assertEqual(present["users"], [{"user_id": 1, "connections": 9}])
            _, found = server.http("GET", "/v1/connections?workspace_id=1&user_id=1")
            self.assertEqual({one["encoding"] for one in found["connections"]}, {"event-stream"})
            self.assertEqual({one["node"] for one in found["connections"]}, {"n-w1", "n-w2"})
            tenth = EventClient(server.public, "chat=5", token())
            self.assertEqual(tenth.answer()[0], 503)
            self.assertEqual(tenth.body()["error"]["close"], 1013)
            server.http("POST", "/v1/unsubscribe", {"workspace_id": 1, "user_id": 1, "chat_id": 5})
            server.http("POST", "/v1/disconnect", {"workspace_id": 1, "user_id": 1})
            for stream in streams:
                *_, error, close = stream.until("close")
                self.assertEqual((error.data["code"], error.data["chat_id"]), ("forbidden", 5))
                self.assertEqual(close.data["code"], 4503)
                self.assertIsNone(stream.next())

    def test_a_drain_a_restart_and_a_history_that_is_gone(self) -> Deferred[None]:
        return self.thread(self.restarted)

    def restarted(self) -> None:
        with Server('[drain]\nduration = "1s"\n') as server:
            stream = EventClient(server.public, "chat=5", token()).begun()
            stream.until("subscribed")
            server.publish(5, "before")
            [before] = stream.until("chat_message")
            server.signal(signal.SIGTERM)
            close = stream.until("close")[-1]
            self.assertEqual(close.data["code"], 1012)
            self.assertEqual(stream.reader.retry, close.data["retry_after_ms"])
            self.assertIsNone(stream.next())
            self.assertEqual(server.process.wait(20), 0)
            server.start()
            again = EventClient(server.public, "chat=5", token(), before.id).begun()
            lost = [
                event.data
                for event in again.until("subscribed") + again.until("lost")
                if event.name == "lost"
            ]
            self.assertEqual([one.get("chat_id") for one in lost], [None, 5])
            server.publish(5, "after")
            [after] = again.until("chat_message")
            self.assertEqual(after.data["content"], "after")

    def test_a_token_that_expires(self) -> Deferred[None]:
        return self.thread(self.expired)

    def expired(self) -> None:
        with Server() as server:
            began = time.time()
            stream = EventClient(server.public, "chat=5", issue(SECRET, 1, 1, 5, began)).begun()
            first = stream.next()
            assert first is not None
            self.assertLess(first.data["expires_at"], began + 6)
            self.assertEqual(stream.until("close")[-1].data["code"], 4002)
            self.assertGreaterEqual(time.time(), first.data["expires_at"])
            late = EventClient(server.public, "chat=5", issue(SECRET, 1, 1, 5, began))
            self.assertEqual(late.answer()[0], 401)
            self.assertEqual(late.body()["error"]["close"], 4500)

    def test_who_does_not_read_is_closed_and_comes_back_without_a_gap(self) -> Deferred[None]:
        return self.thread(self.slow)

    def slow(self) -> None:
        with Server('[limits]\nsend_queue = "64KiB"\n') as server:
            stream = EventClient(server.public, "chat=5", token(), receive_buffer=4096).begun()
            stream.until("subscribed")
            number = 0
            while server.metric("notify_slow_clients_total") == 0:
                number += 1
                server.publish(5, "x" * 30_000, number)
                self.assertLess(number, 500)
            came = []
            while (event := stream.next()) is not None:
                came.append(event)
            wait_for("it is gone", lambda: server.metric("notify_event_streams") == 0)
            numbers = [one.data["message_id"] for one in came if one.name == "chat_message"]
            self.assertLess(len(numbers), number)
            again = EventClient(server.public, "chat=5", token(), stream.reader.id).begun()
            answer = again.until("subscribed")[-1]
            # The client misses more than may be queued for one client: it is told so, or gets all of it.
            if answer.data["recovered"]:
                while numbers[-1] < number:
                    numbers += [one.data["message_id"] for one in again.until("chat_message")]
                self.assertEqual(numbers, list(range(1, number + 1)))
            else:
                self.assertEqual(again.until("lost")[-1].data["chat_id"], 5)

    def test_who_takes_nothing_any_more_is_given_up_by_the_kernel(self) -> Deferred[None]:
        return self.thread(self.given_up)

    def given_up(self) -> None:
        with Server('[limits]\nping_interval = "1s"\nping_timeout = "1s"\nsend_queue = "64MiB"\n') as server:
            stream = EventClient(server.public, "chat=5", token(), receive_buffer=4096).begun()
            stream.until("subscribed")
            lives = EventClient(server.public, "chat=6", token()).begun()
            lives.until("subscribed")
            for number in range(200):
                server.publish(5, "x" * 50_000, number)
            wait_for("it is given up", lambda: server.metric("notify_event_streams") == 1, 30)
            self.assertEqual(server.metric("notify_slow_clients_total"), 0)
            while lives.reader.comments < 4:
                self.assertTrue(lives.pull())
            stream.close()

    def test_hostile_requests(self) -> Deferred[None]:
        return self.thread(self.hostile)

    def hostile(self) -> None:
        good = token()
        with Server() as server:
            many = "&".join(f"chat={n}" for n in range(33))
            asked: list[tuple[int, dict[str, Any]]] = [
                (400, {"query": many}),
                (400, {"query": "chat=5", "last": "5"}),
                (400, {"query": "chat=5", "last": "e:" + ",".join(f"{n}=1" for n in range(300))}),
                (400, {"query": f"chat=5&token={good}"}),
                (431, {"query": "chat=" + "5" * 17_000}),
                (401, {"token": None}),
                (401, {"token": "a.b.c"}),
                (401, {"token": good[:-3] + "abc"}),
                (403, {"Origin": "https://evil.example"}),
                (405, {"method": "POST", "Content_Length": "0"}),
                (405, {"method": "HEAD"}),
                (400, {"Content_Length": "5"}),
                (404, {"method": "BREW"}),
            ]
            for status, how in asked:
                with closing(EventClient(server.public, **({"token": good} | how))) as client:
                    self.assertEqual(client.answer()[0], status, how)
            self.assertEqual(server.metric("notify_event_streams"), 0)
            with closing(EventClient(server.public, many.rpartition("&")[0], good).begun()) as client:
                self.assertEqual(len([client.until("subscribed") for _ in range(32)]), 32)
            self.assertNotIn(good[-20:], server.log())
            # At this path, a WebSocket handshake is an ordinary request for a stream, not a handshake.
            with closing(
                EventClient(server.public, "chat=5", good, Upgrade="websocket", Connection="Upgrade")
            ) as client:
                self.assertEqual(client.answer()[0], 200)

    def test_pages(self) -> Deferred[None]:
        return self.thread(self.pages)

    def pages(self) -> None:
        page = "https://chat.example"
        with Server(f'[listen]\nallowed_origins = ["{page}"]\n') as server:
            asks = {"Origin": page, "Access_Control_Request_Method": "GET",
                    "Access_Control_Request_Headers": "authorization,last-event-id"}  # fmt: skip
            with closing(EventClient(server.public, "chat=5", method="OPTIONS", **asks)) as client:
                status, headers = client.answer()
            self.assertEqual((status, headers["access-control-allow-origin"]), (204, page))
            with closing(EventClient(server.public, "chat=5", token(), Origin=page).begun()) as client:
                self.assertEqual(client.headers["access-control-allow-origin"], page)
                self.assertEqual(client.headers["cache-control"], "no-store")
                self.assertEqual(client.headers["x-accel-buffering"], "no")
                client.until("subscribed")

    def test_where_it_is_switched_off_there_is_nothing(self) -> Deferred[None]:
        return self.thread(self.switched_off)

    def switched_off(self) -> None:
        with (
            Server("[listen]\nevents = false\n") as server,
            closing(EventClient(server.public, "chat=5", token())) as client,
        ):
            self.assertEqual(client.answer()[0], 404)
            with server.client(1, (5,)):
                pass


class Programs(Case):
    def test_curl_is_a_client(self) -> Deferred[None]:
        return self.thread(self.by_curl)

    def by_curl(self) -> None:
        curl = program("curl")
        with Server() as server:
            command = [curl, "-sN", f"http://127.0.0.1:{server.public}/events?{QUERY}"]
            for version in ("--http1.1", "--http1.0"):
                process = subprocess.Popen(
                    [*command, version, "-H", f"Authorization: Bearer {token()}"], stdout=subprocess.PIPE
                )
                assert process.stdout is not None
                reader, events = Reader(), list[Event]()
                while len(events) < 3:
                    events += reader.feed(process.stdout.readline())
                server.publish(6, "for curl")
                while len(events) < 4:
                    events += reader.feed(process.stdout.readline())
                self.assertEqual(events[3].data["content"], "for curl")
                process.terminate()
                process.wait(10)
                process.stdout.close()

    def passed_on(self, server: Server, proxy: Any) -> None:
        """Events pass at once, even after silence longer than a request's timeout; the client id reaches the server."""
        stream = EventClient(proxy.port, f"{QUERY}&client_id=me", token()).begun()
        stream.until("subscribed")
        stream.until("subscribed")
        while stream.reader.comments < 3:
            self.assertTrue(stream.pull())
        # A buffering proxy would hold it back until it has some KiB.
        server.publish(5, "through a proxy")
        [event] = stream.until("chat_message")
        stream.close()
        server.publish(5, "meanwhile")
        again = EventClient(proxy.port, f"{QUERY}&client_id=me", token(), event.id).begun()
        self.assertEqual(again.until("chat_message")[-1].data["content"], "meanwhile")
        _, found = server.http("GET", "/v1/connections?workspace_id=1&user_id=1")
        self.assertEqual({one["client_id"] for one in found["connections"]}, {"me"})
        again.close()
        wait_for("it is gone behind the proxy, too", lambda: server.metric("notify_event_streams") == 0)
        wait_for("it is logged", lambda: b"/events" in proxy.log())
        self.assertNotIn(b"client_id=me", proxy.log())
        with closing(EventClient(proxy.port, QUERY)) as refused:
            self.assertEqual(refused.answer()[0], 401)

    async def behind(self, make: Callable[[list[int]], Any]) -> None:
        server = Server('[limits]\nping_interval = "1500ms"\n')
        await deferToThread(server.__enter__)
        try:
            proxy = make([server.public] * 3)
            try:
                await proxy.start()
                await deferToThread(self.passed_on, server, proxy)
            finally:
                proxy.remove()
        finally:
            await deferToThread(server.__exit__, None, None, None)

    async def test_behind_nginx(self) -> None:
        program("nginx")
        await self.behind(Nginx)

    async def test_behind_haproxy(self) -> None:
        program("haproxy")
        await self.behind(
            # The timeout for tunnels must apply: heartbeats are further apart than these request timeouts, as with
            # another ping_interval.
            lambda ports: HAProxy(
                ports,
                ("timeout client 30s", "timeout client 1s"),
                ("timeout server 30s", "timeout server 1s"),
            )
        )


READ = """
const [url, headers, wanted, done] = arguments;
(async () => {
  const response = await fetch(url, { headers });
  if (!response.ok) return { status: response.status, error: (await response.json()).error.code };
  let text = "";
  for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
    text += piece;
    if (text.split("event: ").length > wanted) break;
  }
  return { status: response.status, text };
})().then(done, (error) => done({ failed: error.name }));
"""


class InABrowser(Case):
    """A page of another origin that the configuration allows, and one that it does not allow."""

    timeout = 180

    def test_a_page_reads_a_stream_and_the_status_of_a_refusal(self) -> Deferred[None]:
        program("chromium")
        program("chromedriver")
        return self.thread(self.page)

    def page(self) -> None:
        site = ThreadingHTTPServer(("127.0.0.1", 0), Empty)
        serving = threading.Thread(target=site.serve_forever)
        serving.start()
        origin = f"http://127.0.0.1:{site.server_port}"
        try:
            with Server(f'[listen]\nallowed_origins = ["{origin}"]\n') as server, Browser() as browser:
                url = f"http://127.0.0.1:{server.public}/events?chat=5"
                good = {"Authorization": f"Bearer {token()}"}
                browser.go(f"{origin}/")
                found = browser.wait(READ, url, good, 2)
                came = Reader().feed(found["text"].encode())
                self.assertEqual([event.name for event in came], ["auth_result", "subscribed"])
                server.publish(5, "meanwhile")
                found = browser.wait(READ, url, {**good, "Last-Event-ID": came[-1].id}, 3)
                self.assertEqual(Reader().feed(found["text"].encode())[-1].data["content"], "meanwhile")
                refused = browser.wait(READ, url, {"Authorization": "Bearer no"}, 1)
                self.assertEqual(refused, {"status": 401, "error": "unauthorized"})
                # Another name of the same machine is another origin.
                browser.go(f"http://localhost:{site.server_port}/")
                self.assertEqual(browser.wait(READ, url, good, 1), {"failed": "TypeError"})
        finally:
            site.shutdown()
            serving.join()
            site.server_close()


class Empty(BaseHTTPRequestHandler):
    """An empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Suppress the log."""


class OtherNode(Case):
    async def test_any_node_resumes_what_another_began(self) -> None:
        nats = NatsServer().start()
        self.addCleanup(nats.remove)
        await nats.up()
        await self.thread(lambda: self.moved(nats))

    def moved(self, nats: NatsServer) -> None:
        nodes = "".join(
            f"[{table}]\n{keys}\n"
            for table, keys in (
                ("broker", "plugin = 'jetstream'"),
                ("broker.jetstream", f"servers = ['{nats.url}']"),
                ("registry", "plugin = 'jetstream_kv'"),
            )
        )
        with Server(nodes) as one, Server(nodes) as other:
            stream = EventClient(one.public, QUERY, token()).begun()
            stream.until("subscribed")
            stream.until("subscribed")
            seen = []
            for round in range(4):
                here, there = (one, other) if round % 2 == 0 else (other, one)
                for number in range(5):
                    there.publish(CHATS[number % 2], "x", 10 * round + number)
                seen += [stream.until("chat_message")[-1].data["message_id"] for _ in range(5)]
                stream.close()
                here.publish(5, "missed", 10 * round + 5)
                stream = EventClient(there.public, QUERY, token(), stream.reader.id).begun()
                came = stream.until("chat_message")
                self.assertNotIn("lost", [event.name for event in came])
                seen.append(came[-1].data["message_id"])
            self.assertEqual(sorted(seen), [10 * round + number for round in range(4) for number in range(6)])
            stream.close()


class Encrypted(TestCase):
    timeout = 60

    async def test_under_tls(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        authority = Authority(folder)
        key, certificate = authority.issue(x509.DNSName("localhost"))
        listen = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
        server = await LocalServer(LISTEN__PUBLIC=listen).start(self)
        trust = ssl.create_default_context(cafile=str(authority.certificate))
        port = int(re.findall(r":(\d+)", server.public)[-1])
        reading = deferToThread(self.read, port, trust)
        while not server.hub.metrics.registry.get_sample_value("notify_subscriptions"):
            await deferToThread(time.sleep, 0.02)
        for number in range(20):
            await server.publish(7, str(number) * 20_000)
        self.assertEqual(await reading, [str(number) * 20_000 for number in range(20)])

    @staticmethod
    def read(port: int, trust: ssl.SSLContext) -> list[str]:
        import socket

        with (
            socket.create_connection(("127.0.0.1", port), 10) as plain,
            trust.wrap_socket(plain, server_hostname="localhost") as link,
        ):
            head = f"GET /events?chat=7 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {local_token()}\r\n\r\n"
            link.sendall(head.encode())
            reader, data, found = Reader(), b"", list[str]()
            while b"\r\n\r\n" not in data:
                data += link.recv(65536)
            data = data.partition(b"\r\n\r\n")[2]
            while len(found) < 20:
                found += [one.data["content"] for one in reader.feed(data) if one.name == "chat_message"]
                data = link.recv(65536) if len(found) < 20 else b""
            return found
