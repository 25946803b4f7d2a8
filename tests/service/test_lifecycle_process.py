"""A whole server process: what it tells systemd, drain, reload, and what its log never contains."""

from __future__ import annotations

import json
import os
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from signal import SIGHUP, SIGTERM
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify import __version__
from notify.transport import fanout
from tests.support.natsd import NatsServer
from tests.support.process import KEY, SECRET, TWISTD, Server, service_manager, token, wait_for


def in_thread(test: Callable[..., None]) -> Callable[..., Deferred[None]]:
    @wraps(test)
    def run(self: Any) -> Deferred[None]:
        return deferToThread(test, self)

    return run


class SystemdTests(TestCase):
    timeout = 60

    @in_thread
    def test_it_tells_systemd_when_it_is_ready_that_it_is_alive_and_how_it_leaves(self) -> None:
        with service_manager() as (manager, environ), Server(environ=environ) as server:
            heard = [manager.recv(4096).decode() for _ in range(5)]
            self.assertEqual(heard[0], "STATUS=Starting: waiting for the broker.")
            self.assertEqual(heard[1], "READY=1\nSTATUS=Serving 0 clients.")
            self.assertEqual(heard[2:4], ["WATCHDOG=1", "STATUS=Serving 0 clients."])
            with server.client():
                wait_for("the status counts", lambda: manager.recv(4096) == b"STATUS=Serving 1 client.")
            server.signal(SIGHUP)
            wait_for("reloading", lambda: manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC="))
            wait_for("ready again", lambda: manager.recv(4096).startswith(b"READY=1"))
            server.signal(SIGTERM)
            wait_for("stopping", lambda: manager.recv(4096).startswith(b"STOPPING=1"))
            wait_for("drained", lambda: manager.recv(4096) == b"STATUS=Drained.")
            self.assertEqual(server.process.wait(10), 0)


class DrainTests(TestCase):
    timeout = 60

    @in_thread
    def test_clients_are_sent_away_in_steps_each_with_its_own_slot(self) -> None:
        with Server('[drain]\ndelay = "3s"\nduration = "2s"\n') as server, ExitStack() as stack:
            clients = [stack.enter_context(server.client(number)) for number in range(1, 25)]
            closes: list[tuple[float, int, int]] = []

            def watch(client: Any) -> None:
                code, advice = client.closed(20)
                closes.append((time.monotonic(), code, advice["retry_after_ms"]))

            watching = [threading.Thread(target=watch, args=(client,)) for client in clients]
            for thread in watching:
                thread.start()
            began = time.monotonic()
            server.signal(SIGTERM)
            wait_for("it is not ready", lambda: not server.ready(), 2)
            with server.client(99) as late:
                self.assertEqual(server.metric("notify_draining"), 1)
                self.assertEqual(late.closed()[0], 1012)
            for thread in watching:
                thread.join(20)
            self.assertEqual(server.process.wait(10), 0)
            self.assertEqual({code for _, code, _ in closes}, {1012})
            self.assertEqual(len(closes), 24)
            first, last = min(closes)[0] - began, max(closes)[0] - began
            self.assertGreaterEqual(first, 2.9)
            self.assertGreater(last - first, 1.0)
            self.assertLess(last, 10)
            self.assertLess(max(slot for _, _, slot in closes), 500)
            self.assertIn("Draining: not ready, 24 clients, still accepting;", server.log())
            self.assertIn("Drained.", server.log())

    @in_thread
    def test_a_client_that_reads_late_still_finds_its_close_frame(self) -> None:
        with (
            Server('[drain]\nduration = "0s"\n') as server,
            socket.create_connection(("127.0.0.1", server.public)) as raw,
        ):
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            upgrade = "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            raw.sendall(f"GET /ws HTTP/1.1\r\n{upgrade}{key}\r\n".encode())
            self.assertIn(b"101 Switching Protocols", raw.recv(1000))
            server.signal(SIGTERM)
            server.logged("1 of 1 clients left")
            # The delay is part of the test: the server must be patient for this long.
            time.sleep(0.9)
            frame = raw.recv(1000)
            self.assertEqual((frame[0], int.from_bytes(frame[2:4], "big")), (0x88, 1012))

    @in_thread
    def test_after_the_delay_nobody_is_accepted(self) -> None:
        with Server('[drain]\nduration = "30s"\n') as server, ExitStack() as stack:
            for number in range(1, 21):
                stack.enter_context(server.client(number))

            def refused() -> bool:
                try:
                    with socket.create_connection(("127.0.0.1", server.public), 1):
                        return False
                except ConnectionRefusedError:
                    return True

            self.assertFalse(refused())
            server.signal(SIGTERM)
            wait_for("connections are refused", refused)
            self.assertIsNone(server.process.poll())

    @in_thread
    def test_a_second_sigterm_hurries(self) -> None:
        with Server('[drain]\ndelay = "30s"\nduration = "60s"\n') as server, ExitStack() as stack:
            clients = [stack.enter_context(server.client(number)) for number in range(1, 11)]
            server.signal(SIGTERM)
            server.logged("still accepting")
            server.signal(SIGTERM)
            closes = [client.closed() for client in clients]
            self.assertEqual({code for code, _ in closes}, {1012})
            self.assertEqual(len({advice["retry_after_ms"] for _, advice in closes}), 10)
            self.assertEqual(server.process.wait(10), 0)

    @in_thread
    def test_the_api_begins_a_drain_that_a_first_sigterm_does_not_hurry(self) -> None:
        with Server('[drain]\ndelay = "2s"\n') as server:
            began = time.monotonic()
            self.assertEqual(server.http("POST", "/v1/drain")[0], 202)
            self.assertEqual(server.http("POST", "/v1/drain")[0], 202)
            wait_for("it is not ready", lambda: not server.ready(), 1)
            server.signal(SIGTERM)
            self.assertEqual(server.process.wait(10), 0)
            self.assertGreater(time.monotonic() - began, 1.9)


class PublishUnderWayTests(TestCase):
    timeout = 60

    async def setUp(self) -> None:
        self.nats = NatsServer().start()
        self.addCleanup(self.nats.remove)
        await self.nats.up()

    @in_thread
    def test_a_drain_waits_for_a_publish_that_the_broker_has_not_answered(self) -> None:
        config = f'[broker]\nplugin = "jetstream"\n[broker.jetstream]\nservers = ["{self.nats.url}"]\n'
        with Server(config + '[drain]\ndelay = "2s"\nduration = "0s"\n') as server:
            self.nats.pause()
            answers: list[tuple[int, Any]] = []
            publishing = threading.Thread(target=lambda: answers.append(server.publish(1, "under way")))
            publishing.start()
            server.signal(SIGTERM)
            server.logged("finishing publishes")
            self.assertIsNone(server.process.poll())
            self.nats.resume()
            publishing.join(20)
            self.assertEqual([status for status, _ in answers], [200])
            self.assertEqual(server.process.wait(20), 0)


class ReloadTests(TestCase):
    timeout = 60

    @in_thread
    def test_what_can_change_live_does_and_what_cannot_is_named(self) -> None:
        with Server() as server, server.client(chats=(1,)) as client:
            server.configure(
                '[limits]\nmax_subscriptions = 1\nmax_frame = "32KiB"\n[log]\nlevel = "debug"\n[drain]\nduration = "1s"\n'
            )
            text = (
                server.file.read_text()
                .replace(KEY, "another-key-0123456789")
                .replace(f"tcp:{server.public}", "tcp:1")
            )
            server.file.write_text(text)
            server.signal(SIGHUP)
            server.logged("reloaded; changed: api.keys, limits.max_subscriptions, drain.duration, log.level")
            server.logged("only a restart applies it: listen.public, limits.max_frame")
            self.assertNotIn("another-key", server.log())
            self.assertEqual(server.publish(1, "x")[0], 401)
            self.assertEqual(server.publish(1, "x", key="another-key-0123456789")[0], 200)
            self.assertEqual(client.receive()["content"], "x")
            client.send(type="subscribe", chat_id=2)
            self.assertEqual(client.receive()["code"], "too_many_subscriptions")
            with server.client(2):
                pass

    @in_thread
    def test_a_bad_file_changes_nothing_and_says_why(self) -> None:
        with Server() as server:
            for bad, why in (
                ("[limits]\nmax_subscriptions = 1\nmax_frames = 3\n", "unknown key 'limits.max_frames'"),
                (
                    '[limits]\nmax_subscriptions = 1\n[api]\nkeys_file = "/nowhere"\n',
                    "/nowhere cannot be read",
                ),
                ('[limits]\nmax_subscriptions = 1\n[auth.jwt]\nalgorithms = ["none"]\n', "algorithms"),
                ('[limits]\nmax_subscriptions = 1\n[broker]\nplugin = "abacus"\n', "abacus"),
            ):
                before = server.log().count("not reloaded")
                server.configure(bad)
                server.signal(SIGHUP)
                wait_for(why, lambda b=before: server.log().count("not reloaded") > b)  # type: ignore[misc]
                self.assertIn(why, server.log())
            server.file.unlink()
            server.signal(SIGHUP)
            server.logged("cannot be read")
            with server.client(chats=(1, 2)) as client:
                self.assertEqual(server.publish(2, "still here")[0], 200)
                self.assertEqual(client.receive()["content"], "still here")

    @in_thread
    def test_keys_of_tokens_are_read_again(self) -> None:
        with tempfile.NamedTemporaryFile("w") as secret:
            secret.write("another-secret-0123456789-0123456789")
            secret.flush()
            with Server() as server:
                text = server.file.read_text().replace(
                    f'secret = "{SECRET}"', f'secret_file = "{secret.name}"'
                )
                server.file.write_text(text)
                server.signal(SIGHUP)
                server.logged("reloaded; changed: auth.jwt.secret, auth.jwt.secret_file")
                self.assertRaises(AssertionError, server.client().__enter__)


class LogTests(TestCase):
    timeout = 60

    @in_thread
    def test_a_log_in_json_at_its_most_talkative_tells_no_token_no_key_and_no_content(self) -> None:
        with Server('[log]\nlevel = "debug"\nformat = "json"\nburst = 0\n') as server:
            mine = token(1)
            with server.client(chats=(1,)) as client:
                client.send(type="refresh", token=mine)
                client.send(type="nonsense", content="the-content")
                client.send(type="auth", token="the-bad-token")
                server.publish(1, "the-content")
                server.http("POST", "/v1/publish", {"subject": "x", "payload": "the-content"})
                server.http("GET", f"/v1/nowhere?token={mine}")
                wait_for("the message", lambda: client.receive().get("content") == "the-content")
            with socket.create_connection(("127.0.0.1", server.public)) as raw:
                raw.sendall(
                    f"GET /ws?token={mine} HTTP/1.1\r\nHost: x\r\nAuthorization: {mine}\r\n\r\n".encode()
                )
                raw.recv(1000)
            server.signal(SIGTERM)
            self.assertEqual(server.process.wait(10), 0)
            text = server.log()
            lines = [json.loads(line) for line in text.splitlines()]
            self.assertGreater(len(lines), 5)
            self.assertTrue(all(line["time"] and line["level"] and "part" in line for line in lines))
            self.assertTrue(any("request_id" in line for line in lines))
            told = [line["message"].partition(" ")[2] for line in lines if line["part"] == "clients"]
            for what in (
                "from 127.0.0.1 is open",
                "is user 1 of workspace 1",
                "of user 1 is in chat 1",
                "of user 1 closed with 1000",
            ):
                self.assertIn(what, told)
            self.assertIn("published 1 to workspace.1.chat.1.messages", [line["message"] for line in lines])
            for secret in (mine, "the-content", "the-bad-token", KEY, SECRET):
                self.assertNotIn(secret, text)

    @in_thread
    def test_priorities_are_for_the_journal_alone(self) -> None:
        with Server() as server:
            self.assertNotRegex(server.log(), r"(?m)^<\d>")
        environ = {"JOURNAL_STREAM": "set below"}
        server = Server(environ=environ)
        server.log_file.touch()
        about = os.stat(server.log_file)
        server.environ["JOURNAL_STREAM"] = f"{about.st_dev}:{about.st_ino}"
        with server:
            self.assertRegex(server.log(), r"(?m)^<6>service.service: notify .* is ready")


class StartTests(TestCase):
    timeout = 120

    @in_thread
    def test_a_start_that_takes_long_says_on_the_public_port_that_it_is_not_ready(self) -> None:
        nats = NatsServer()
        self.addCleanup(nats.remove)
        config = f'[server]\nnode = "late"\n[broker]\nplugin = "jetstream"\n[broker.jetstream]\nservers = ["{nats.url}"]\n'
        with ExitStack() as stack:
            server = Server(config)
            stack.push(server.__exit__)
            starting = threading.Thread(target=server.start)
            starting.start()
            stack.callback(starting.join)
            stack.callback(lambda: nats.process or nats.start())  # otherwise it would wait for NATS forever
            wait_for("it is asked", lambda: _asked(server.public, "/health"), 60)
            self.assertEqual(_asked(server.public, "/health"), 503)
            upgrade = "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            upgrade += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            with socket.create_connection(("127.0.0.1", server.public), 10) as client:
                client.sendall(upgrade.encode())
                answer = client.recv(4096).decode()
            self.assertTrue(answer.startswith("HTTP/1.1 503 "), answer)
            self.assertIn("Retry-After: ", answer)
            # A reload during the start does not make the server accept clients.
            server.signal(SIGHUP)
            server.logged("reloaded; changed")
            self.assertEqual(_asked(server.public, "/health"), 503)
            self.assertEqual(server.http("GET", "/health")[1]["status"], "starting")
            found = server.http("GET", "/v1/nodes")[1]
            self.assertEqual([(one["node"], one["stage"]) for one in found["nodes"]], [("late", "starting")])
            nats.start()
            starting.join()
            self.assertEqual(_asked(server.public, "/health"), 200)
            with server.client() as client:
                client.send(type="ping", id=1)
                self.assertEqual(client.receive()["type"], "pong")
            server.logged(f"notify {__version__} as late is ready: public tcp:")
            server.logged(f", fan-out in {fanout.name(fanout.choose())}")

    @in_thread
    def test_while_it_starts_it_can_be_told_to_leave(self) -> None:
        config = '[broker]\nplugin = "jetstream"\n[broker.jetstream]\nservers = ["nats://127.0.0.1:1"]\n'
        with ExitStack() as stack:
            server = Server(config)
            stack.push(server.__exit__)
            failed: list[str] = []

            def start() -> None:
                try:
                    server.start()
                except AssertionError as error:
                    failed.append(str(error))

            starting = threading.Thread(target=start)
            starting.start()
            wait_for("it answers", lambda: _asked(server.internal, "/health/live"), 60)
            self.assertEqual(server.http("POST", "/v1/drain")[0], 202)
            starting.join()
            self.assertEqual(server.process.wait(20), 0)
            self.assertIn("the server ended", failed[0])

    @in_thread
    def test_it_may_have_as_many_files_open_as_the_system_lets_it(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        low = min(hard, 1024) if hard != resource.RLIM_INFINITY else 1024
        argv = [
            "/bin/sh",
            "-c",
            f'ulimit -S -n {low} && exec "$@"',
            "sh",
            str(TWISTD),
            "--nodaemon",
            "--pidfile=",
        ]
        with Server(argv=argv) as server:
            soft, allowed = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
            self.assertEqual(soft, allowed)


def _asked(port: int, path: str) -> int:
    """The status of the public port's answer; 0 if none came within a second."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as client:
            client.settimeout(1)
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = client.recv(4096)
    except OSError:
        return 0
    return int(answer.split()[1]) if answer else 0
