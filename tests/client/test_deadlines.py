"""A publish ends in its time whatever the server does, and threads do not wait for each other; with real sockets."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from websockets.sync.server import serve

from notify.client import Position, Publisher, PublishFailed
from tests.support.process import KEY, Server, wait_for
from tests.support.programs import ROOT, run

SUBJECT = "workspace.1.chat.7.messages"
#: the time of a publish, and how much longer it may take on a busy machine (seconds)
TIME, MOMENT = 0.8, 5.0


def payload(number: int) -> dict[str, Any]:
    return {
        "message_id": number,
        "chat_id": 7,
        "workspace_id": 1,
        "sender_id": 3,
        "timestamp": 2,
        "content": str(number),
    }


def in_threads(count: int, call: Callable[[int], Any]) -> list[Any]:
    """Call in ``count`` threads at once; return each call's value or exception, with the seconds that it took."""
    found: list[Any] = [None] * count

    def work(number: int) -> None:
        started = time.monotonic()
        try:
            value: Any = call(number)
        except PublishFailed as error:
            value = error
        found[number] = value, time.monotonic() - started

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


class Deadline(SynchronousTestCase):
    """Servers that do not work, in one way or another."""

    def setUp(self) -> None:
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)

    def listen(self, backlog: int | None = None) -> socket.socket:
        one = self.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=backlog))
        one.settimeout(10)
        return one

    def fails(self, url: str, **options: Any) -> PublishFailed:
        """Assert that a publish fails in time, with the publisher's timeout and with its own; return the error."""
        errors = []
        for timeout in (None, TIME / 2):
            publisher = Publisher(url, "key", **{"timeout": TIME, **options})
            started = time.monotonic()
            error = self.assertRaises(PublishFailed, publisher.publish, SUBJECT, payload(1), timeout=timeout)
            took = time.monotonic() - started
            self.assertLess(took, (timeout or TIME) + MOMENT)
            self.assertGreater(took, (timeout or TIME) / 2)
            publisher.close()
            errors.append((error.code, error.nothing_stored))
        self.assertEqual(errors[0], errors[1])
        return error

    def url(self, one: socket.socket, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{one.getsockname()[1]}"

    def test_a_black_hole(self) -> None:
        full = self.listen(0)
        for _ in range(3):
            other = self.stack.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        error = self.fails(self.url(full))
        self.assertEqual((error.code, error.nothing_stored), ("unreachable", True))
        self.assertIn("no connection in time", str(error))

    def test_a_tls_handshake_that_hangs(self) -> None:
        error = self.fails(self.url(self.listen(), "https"))
        self.assertEqual((error.code, error.nothing_stored), ("unreachable", True))

    def test_a_resolver_that_hangs(self) -> None:
        answered, real = threading.Event(), socket.getaddrinfo
        self.addCleanup(answered.set)

        def hang(host: str, port: int, *rest: Any, flags: int = 0, **more: Any) -> Any:
            if not flags & socket.AI_NUMERICHOST:
                answered.wait(20)
            return real(host, port, *rest, flags=flags, **more)

        self.patch(socket, "getaddrinfo", hang)
        error = self.fails("http://localhost:1")
        self.assertEqual((error.code, error.nothing_stored), ("unreachable", True))

    def test_a_handshake_of_a_stream_that_hangs(self) -> None:
        error = self.fails(self.url(self.listen()))
        self.assertEqual((error.code, error.nothing_stored), ("unreachable", True))

    def test_a_request_that_is_not_answered(self) -> None:
        error = self.fails(self.url(self.listen()), stream=False)
        self.assertEqual((error.code, error.nothing_stored), ("unknown", False))

    def test_an_answer_that_comes_in_drops(self) -> None:
        server, ended = self.listen(), threading.Event()

        def drip() -> None:
            for _ in range(2):
                with server.accept()[0] as one:
                    try:
                        while not ended.wait(0.03):
                            one.sendall(b"H" if one.recv(65536) else b"T")
                            for letter in b"TP/1.1 200 OK\r\nX-Long: " + b"x" * 10_000:
                                one.sendall(bytes([letter]))
                                time.sleep(0.01)
                    except OSError:
                        pass

        thread = threading.Thread(target=drip)
        thread.start()
        error = self.fails(self.url(server), stream=False)
        ended.set()
        thread.join()
        self.assertEqual((error.code, error.nothing_stored), ("unknown", False))

    def test_nobody_there(self) -> None:
        nobody = self.stack.enter_context(socket.socket())
        nobody.bind(("127.0.0.1", 0))
        error = self.fails(self.url(nobody))
        self.assertEqual((error.code, error.nothing_stored), ("unreachable", True))
        self.assertIn("refused", str(error))


class Stopped(TestCase):
    """A server process that is stopped, and continues later."""

    timeout = 120

    async def test_five_threads_are_told_in_time_and_what_they_repeat_is_stored_once(self) -> None:
        await deferToThread(self.stopped)

    def stopped(self) -> None:
        with (
            Server() as server,
            Publisher(f"http://127.0.0.1:{server.internal}", KEY, timeout=TIME) as publisher,
        ):
            first = publisher.publish(SUBJECT, payload(9))

            def publish(number: int) -> Position:
                return publisher.publish(SUBJECT, payload(number), key=f"k-{number}")

            server.signal(signal.SIGSTOP)
            try:
                for error, took in in_threads(5, publish):
                    self.assertIsInstance(error, PublishFailed)
                    self.assertEqual(
                        (error.code, error.status, error.nothing_stored), ("unknown", None, False)
                    )
                    self.assertLess(took, TIME + MOMENT)
                # The new stream is not even opened, so nothing is sent.
                [(error, took)] = in_threads(1, lambda _: publish(5))
                self.assertTrue(error.nothing_stored, error)
                self.assertLess(took, TIME + MOMENT)
            finally:
                server.signal(signal.SIGCONT)
            wait_for("it goes on", server.ready)
            seqs = {position.seq for position, _ in in_threads(5, publish)}
            _, page = server.http("GET", f"/v1/history?subject={SUBJECT}")
            self.assertEqual({one["seq"] for one in page["messages"]}, {first.seq, *seqs})
            self.assertEqual(len(seqs), 5)


class Together(SynchronousTestCase):
    """A server that does not answer before it has received a message from each of five threads."""

    def setUp(self) -> None:
        self.together = threading.Barrier(5)
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)

    def test_over_a_stream_they_are_under_way_at_a_time(self) -> None:
        def answer(socket: Any) -> None:
            got: list[Any] = []
            for text in socket:
                got.append(text)
                if len(got) == 5:
                    for number in range(5, 0, -1):
                        socket.send(f'{{"id": {number}, "status": 200, "epoch": "e", "seq": {number}}}')

        server = self.stack.enter_context(serve(answer, "127.0.0.1", 0))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        self.publish(server.socket.getsockname()[1], stream=True)

    def test_by_requests_each_has_a_connection(self) -> None:
        server = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def answer(one: socket.socket) -> None:
            with one:
                while b"}}" not in one.recv(65536):
                    pass
                seq = self.together.wait(20) + 1
                body = f'{{"epoch": "e", "seq": {seq}}}'
                one.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
                one.recv(1)

        def accept() -> None:
            for _ in range(5):
                thread = threading.Thread(target=answer, args=server.accept()[:1])
                thread.start()
                self.addCleanup(thread.join)

        accepting = threading.Thread(target=accept)
        accepting.start()
        self.publish(server.getsockname()[1], stream=False)
        accepting.join()

    def publish(self, port: int, stream: bool) -> None:
        with Publisher(f"http://127.0.0.1:{port}", "key", stream=stream, timeout=10, tries=1) as publisher:
            found = in_threads(5, lambda number: publisher.publish(SUBJECT, payload(number)))
        self.assertEqual(
            sorted((one.seq if isinstance(one, Position) else one) for one, _ in found), [1, 2, 3, 4, 5]
        )


FORKED = """
import os, sys
from notify.client import Publisher
publisher = Publisher(sys.argv[1], sys.argv[2])
payload = dict(message_id=1, chat_id=7, workspace_id=1, sender_id=3, timestamp=2, content="x")
print(publisher.publish("workspace.1.chat.7.messages", payload).seq, flush=True)
child = os.fork()
if child:
    os.waitpid(child, 0)
print(publisher.publish("workspace.1.chat.7.messages", payload).seq, flush=True)
publisher.close()
"""

INTERRUPTED = """
import signal, sys, threading
from notify.client import Publisher

class Interrupted(BaseException):
    pass

def interrupt(*_):
    raise Interrupted

publisher = Publisher(sys.argv[1], "key", timeout=20)
signal.signal(signal.SIGALRM, interrupt)
other = threading.Timer(0.3, lambda: print(publisher.publish("s", {"n": 2}, key="other").seq, flush=True))
other.start()
signal.setitimer(signal.ITIMER_REAL, 1)
try:
    publisher.publish("s", {"n": 1}, key="mine")
except Interrupted:
    print("interrupted", flush=True)
other.join()
publisher.close()
"""


HANDLING = """
import signal, socket, sys
from notify.client import Publisher, PublishFailed

def handle(*_):
    for call in (publisher.close, lambda: publisher.publish("s", {})):
        try:
            call()
        except RuntimeError:
            print("refused", flush=True)

silent = socket.create_server(("127.0.0.1", 0))
publisher = Publisher(f"http://127.0.0.1:{silent.getsockname()[1]}", "key", timeout=2, try_timeout=1)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.5)
try:
    publisher.publish("s", {})
except PublishFailed as error:
    print(error.code, flush=True)
publisher.close()
print("closed", flush=True)
"""

CRASHING = """
import sys
from notify.client import Publisher

def messages():
    for n in range(4000):
        if n == 1700:
            print("on its way", flush=True)
        payload = dict(message_id=n, chat_id=7, workspace_id=1, sender_id=3, timestamp=2, content=str(n))
        yield "workspace.1.chat.7.messages", payload

with Publisher(sys.argv[1], sys.argv[2]) as publisher:
    print(len(publisher.publish_many(messages(), key="batch-42")), flush=True)
"""


class Processes(TestCase):
    timeout = 60

    async def test_a_list_under_a_key_is_whole_after_a_crash_and_has_nothing_twice(self) -> None:
        def crash() -> None:
            with Server("[broker.memory]\nhistory_size = 100000\n") as server:
                command = [sys.executable, "-c", CRASHING, f"http://127.0.0.1:{server.internal}", KEY]
                with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as first:
                    assert first.stdout is not None
                    self.assertEqual(first.stdout.readline(), b"on its way\n")
                    first.kill()
                self.assertEqual(first.returncode, -signal.SIGKILL)
                self.assertIn("4000", run(*command, cwd=ROOT))
                kept: list[str] = []
                since = ""
                while len(kept) < 4000:
                    _, page = server.http("GET", f"/v1/history?subject={SUBJECT}&limit=1000{since}")
                    kept += [one["payload"]["content"] for one in page["messages"]]
                    since = f"&since={page['next']}"
                self.assertTrue(page["complete"])
            self.assertEqual(kept, [str(n) for n in range(4000)])

        await deferToThread(crash)

    async def test_a_child_has_connections_of_its_own(self) -> None:
        def fork() -> None:
            with Server() as server:
                url = f"http://127.0.0.1:{server.internal}"
                said = run(sys.executable, "-c", FORKED, url, KEY, environ={"PYTHONPATH": str(ROOT)})
            self.assertEqual(said.split(), ["1", "2", "3"])

        await deferToThread(fork)

    async def test_a_signal_handler_in_the_middle_of_a_publish_is_refused_and_hangs_nothing(self) -> None:
        said = await deferToThread(
            subprocess.run,
            [sys.executable, "-c", HANDLING],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=15,
        )
        self.assertEqual(said.stdout.split(), ["refused", "refused", "unknown", "closed"], said.stderr)

    async def test_an_interrupted_thread_leaves_the_others_theirs(self) -> None:
        keys: list[str] = []

        def answer(socket: Any) -> None:
            for text in socket:
                message = json.loads(text)
                keys.append(message["key"])
                if len(keys) > 2:  # each once, and then the remaining one over another stream
                    socket.send(json.dumps({"id": message["id"], "status": 200, "epoch": "e", "seq": 5}))

        with serve(answer, "127.0.0.1", 0) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            url = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
            try:
                said = await deferToThread(run, sys.executable, "-c", INTERRUPTED, url)
            finally:
                server.shutdown()
                thread.join()
        self.assertEqual(said.split(), ["interrupted", "5"])
        self.assertEqual(keys, ["mine", "other", "other"])
