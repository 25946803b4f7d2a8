"""A server of several processes: to its clients, publishers and operators it looks like a single one."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from websockets.sync.client import connect

from notify.client import AsyncioClient
from notify.client.publisher import Publisher
from tests.support.certificates import Authority, trust_in_threads
from tests.support.natsd import NatsServer
from tests.support.process import KEY, TWISTD, Client, Server, token, wait_for
from tests.transport.test_websocket_attack import HANDSHAKE

TWO = "[server]\nnode = 'n'\nworkers = 2\n"


#: socket activation as systemd does it: the socket is descriptor 3, and LISTEN_PID is the process's own id
ACTIVATE = """import os, socket, sys
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES="ws", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def workers(server: Server) -> list[int]:
    """The process ids of the workers."""
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def samples(server: Server, name: str) -> dict[str, float]:
    """The values of one metric, by label text."""
    lines = server.http("GET", "/metrics")[1].splitlines()
    found = [line.rpartition(" ") for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    return {name_.partition("{")[2].rstrip("}"): float(value) for name_, _, value in found}


def answered(server: Server) -> bytes:
    """The first bytes of the answer to a handshake."""
    with socket.create_connection(("127.0.0.1", server.public), 10) as client:
        client.sendall(b"\r\n".join([*HANDSHAKE, b"", b""]))
        return client.recv(4096)[:12]


class Case(TestCase):
    timeout = 180

    def thread(self, work: Callable[[], None]) -> Deferred[None]:
        return deferToThread(work)


class Together(Case):
    """With the memory broker, and no other program."""

    def test_clients_of_all_workers_are_in_one_chat(self) -> Deferred[None]:
        return self.thread(self.together)

    def together(self) -> None:
        with Server(f"{TWO}[limits]\nmax_connections_per_user = 2\nmax_connections = 7\n") as server:
            users = [1, 2, 3, 3, 4, 5]
            clients = [server.client(user, (5,)) for user in users]
            here = [client.__enter__() for client in clients]
            self.assertEqual(samples(server, "notify_worker_connections"), {'worker="1"': 3, 'worker="2"': 3})
            self.assertEqual(samples(server, "notify_worker_up"), {'worker="1"': 1, 'worker="2"': 1})
            self.in_order(server, here)
            self.limits(server)
            self.asked(server)
            self.steered(server, here)
            for client in clients:
                client.__exit__(None, None, None)
            wait_for("nobody is counted any more", lambda: server.metric("notify_sockets") == 0)
            self.assertEqual(server.http("GET", "/v1/presence?workspace_id=1&chat_id=5")[1]["users"], [])

    def in_order(self, server: Server, here: list[Client]) -> None:
        subject = "workspace.1.chat.5.messages"
        items = [
            {
                "subject": subject,
                "payload": {
                    "message_id": number, "chat_id": 5, "workspace_id": 1, "sender_id": 1, "content": "x",
                    "timestamp": 1,
                },
            }
            for number in range(1, 101)
        ]  # fmt: skip
        self.assertEqual(server.http("POST", "/v1/publish", items[:50])[0], 200)
        self.assertEqual(server.http("POST", "/v1/publish?atomic=true", items[50:])[0], 200)
        for client in here:
            self.assertEqual([client.receive()["message_id"] for _ in items], list(range(1, 101)))
        self.assertEqual(server.metric("notify_delivered_total"), 600)
        self.assertEqual(sum(samples(server, "notify_worker_delivered_total").values()), 600)
        self.assertEqual(server.metric("notify_delivery_seconds_count"), 200)

    def limits(self, server: Server) -> None:
        # This user may have one connection on each worker, or both on one.
        with connect(f"ws://127.0.0.1:{server.public}/ws", close_timeout=1) as third:
            client = Client(third)
            client.send(type="auth", token=token(3))
            self.assertEqual(client.closed()[0], 1013)
        wait_for("it is gone", lambda: server.metric("notify_sockets") == 6)
        with server.client(9):
            self.assertEqual(answered(server), b"HTTP/1.1 503")
        self.assertEqual(samples(server, "notify_connections_refused_total"), {'reason="full"': 1})
        wait_for("it is gone", lambda: server.metric("notify_sockets") == 6)

    def asked(self, server: Server) -> None:
        _, present = server.http("GET", "/v1/presence?workspace_id=1&chat_id=5")
        counts = [(one["user_id"], one["connections"]) for one in present["users"]]
        self.assertEqual(counts, [(1, 1), (2, 1), (3, 2), (4, 1), (5, 1)])
        _, found = server.http("GET", "/v1/connections?workspace_id=1&user_id=3")
        self.assertEqual(found["count"], 2)
        self.assertLessEqual({one["node"] for one in found["connections"]}, {"n-w1", "n-w2"})
        _, topics = server.http("GET", "/v1/topics?workspace_id=1")
        self.assertEqual([(one["chat_id"], one["members"]) for one in topics["topics"]], [(5, 6)])
        _, nodes = server.http("GET", "/v1/nodes")
        self.assertEqual(
            [(one["node"], one["connections"]) for one in nodes["nodes"]],
            [("n", 0), ("n-w1", 3), ("n-w2", 3)],
        )
        self.assertEqual(server.http("GET", "/health")[1]["workers"], {"n-w1": True, "n-w2": True})

    def steered(self, server: Server, here: list[Client]) -> None:
        ended = server.http("POST", "/v1/unsubscribe", {"workspace_id": 1, "user_id": 3, "chat_id": 5})[1]
        self.assertEqual((ended["ended"], ended["reached"]["answered"]), (2, 3))
        for client in here[2:4]:
            self.assertEqual(client.receive()["code"], "forbidden")
        sent_away = server.http("POST", "/v1/disconnect", {"workspace_id": 1, "user_id": 3})[1]
        self.assertEqual(sent_away["closed"], 2)
        for client in here[2:4]:
            self.assertEqual(client.closed()[0], 4503)

    def test_presence_that_is_watched_is_told_of_over_all_workers(self) -> Deferred[None]:
        return self.thread(self.watched)

    def watched(self) -> None:
        with Server(TWO) as server, server.client(1) as watcher:
            watcher.send(type="subscribe", chat_id=5, watch_presence=True)

            def until(users: list[int]) -> None:
                while True:
                    frame = watcher.receive()
                    if [one["user_id"] for one in frame.get("users", ())] == users:
                        return

            until([1])
            with server.client(2, (5,)), server.client(3, (5,)):
                until([1, 2, 3])
            until([1])


class Life(Case):
    """What ends with a process, and what continues."""

    def test_a_worker_that_is_killed_costs_its_own_clients_a_resumption_and_nobody_a_message(
        self,
    ) -> Deferred[None]:
        return self.thread(self.killed)

    def killed(self) -> None:
        with Server(TWO) as server:
            got: dict[int, list[int]] = {user: [] for user in range(1, 9)}
            lost: list[Any] = []
            connects: dict[int, int] = dict.fromkeys(got, 0)
            ready, failed = threading.Barrier(2), []
            last = 400

            async def follow(user: int, here: asyncio.Semaphore) -> None:
                def state(state: Any) -> None:
                    connects[user] += state.name == "connected"

                url = f"ws://127.0.0.1:{server.public}/ws"
                async with AsyncioClient(url, token(user), on_state=state) as client:
                    chat = client.chat(5, on_lost=lost.append)
                    await chat.ready()
                    here.release()
                    while not got[user] or got[user][-1] != last:
                        got[user].append(int((await chat.__anext__()).message_id))

            async def everyone() -> None:
                here = asyncio.Semaphore(0)
                following = [asyncio.ensure_future(follow(user, here)) for user in got]
                for _ in got:
                    await here.acquire()
                ready.wait()
                await asyncio.wait_for(asyncio.gather(*following), 60)

            def clients() -> None:
                try:
                    asyncio.run(everyone())
                except BaseException as error:
                    failed.append(error)

            thread = threading.Thread(target=clients)
            thread.start()
            ready.wait(60)
            before = workers(server)
            publisher = Publisher(f"http://127.0.0.1:{server.internal}", KEY)
            for number in range(1, last + 1):
                if number == 100:
                    os.kill(before[0], signal.SIGKILL)
                payload = {
                    "message_id": number, "chat_id": 5, "workspace_id": 1, "sender_id": 1, "content": "x",
                    "timestamp": 1,
                }  # fmt: skip
                publisher.publish("workspace.1.chat.5.messages", payload)
                time.sleep(0.005)
            thread.join(60)
            self.assertEqual((failed, lost), ([], []))
            for messages in got.values():
                self.assertEqual(messages, list(range(1, last + 1)))
            self.assertEqual(sorted(connects.values()), [1] * 4 + [2] * 4)
            wait_for("it was started anew", lambda: server.http("GET", "/health")[1]["workers"]["n-w1"])
            after = workers(server)
            self.assertEqual(len(after), 2)
            self.assertIn(before[1], after)
            self.assertNotIn(before[0], after)
            server.logged("n-w1 serves again")
            with server.client(1, (7,)) as one, server.client(2, (7,)) as other:
                server.publish(7, "after")
                self.assertEqual((one.receive()["content"], other.receive()["content"]), ("after", "after"))

    def test_workers_that_are_slower_than_a_publisher_hold_it_up_and_are_not_given_up(self) -> Deferred[None]:
        return self.thread(self.slower)

    def slower(self) -> None:
        with Server(f"{TWO}[limits]\nsend_queue = '256MiB'\nsend_queues = '1GiB'\n") as server:
            pids, over = workers(server), threading.Event()

            def slow_down() -> None:
                while not over.is_set():
                    for pid in pids:
                        os.kill(pid, signal.SIGSTOP)
                    time.sleep(0.1)
                    for pid in pids:
                        os.kill(pid, signal.SIGCONT)
                    time.sleep(0.02)

            with server.client(1, (5,)) as one, server.client(2, (5,)) as other:
                slowing = threading.Thread(target=slow_down)
                slowing.start()
                try:
                    for first in range(1, 1501, 20):  # twice what may be queued for a worker
                        items = [
                            {
                                "subject": "workspace.1.chat.5.messages",
                                "payload": {
                                    "message_id": number, "chat_id": 5, "workspace_id": 1, "sender_id": 1,
                                    "content": "x" * 40_000, "timestamp": 1,
                                },
                            }
                            for number in range(first, first + 20)
                        ]  # fmt: skip
                        self.assertEqual(server.http("POST", "/v1/publish", items)[0], 200)
                finally:
                    over.set()
                    slowing.join()
                for client in one, other:
                    self.assertEqual(
                        [client.receive()["message_id"] for _ in range(1500)], list(range(1, 1501))
                    )
            self.assertEqual(workers(server), pids)

    def test_when_the_first_process_is_killed_the_workers_end(self) -> Deferred[None]:
        return self.thread(self.orphaned)

    def orphaned(self) -> None:
        with Server(TWO) as server:
            pids = workers(server)
            self.assertEqual(len(pids), 2)
            server.process.kill()
            server.process.wait()
            for pid in pids:
                wait_for("it has ended", lambda pid=pid: not Path(f"/proc/{pid}").exists())

    def test_without_any_worker_clients_are_told_to_come_back_and_the_server_that_it_is_not_ready(
        self,
    ) -> Deferred[None]:
        return self.thread(self.alone)

    def alone(self) -> None:
        with Server(TWO) as server:
            for _ in range(3):  # each restart takes longer
                for pid in workers(server):
                    os.kill(pid, signal.SIGKILL)
                wait_for("they have ended", lambda: server.http("GET", "/health")[0] == 503)
                status, health = server.http("GET", "/health")
                if status == 503:
                    self.assertEqual(health["status"], "not listening")
                    self.assertEqual(set(health["workers"].values()), {False})
                    self.assertEqual(answered(server), b"HTTP/1.1 503")
                wait_for("they serve again", server.ready)
            with server.client(1, (7,)) as client:
                server.publish(7, "after")
                self.assertEqual(client.receive()["content"], "after")

    def test_a_reload_is_for_all_workers_or_it_is_told_which_did_not(self) -> Deferred[None]:
        return self.thread(self.reloaded)

    def reloaded(self) -> None:
        with Server(TWO) as server:
            server.configure(f"{TWO}[listen]\nallowed_origins = ['https://a.example']\n")
            server.signal(signal.SIGHUP)
            server.logged("reloaded; changed: listen.allowed_origins")
            for _ in range(4):
                with self.assertRaisesRegex(Exception, "403"):
                    connect(f"ws://127.0.0.1:{server.public}/ws", origin="https://b.example")  # type: ignore[arg-type]
                with connect(f"ws://127.0.0.1:{server.public}/ws", origin="https://a.example"):  # type: ignore[arg-type]
                    pass
            # A reload through the API, addressed to one of the workers, does the same.
            self.assertEqual(server.http("POST", "/v1/reload", {"node": "n-w2"})[0], 202)
            wait_for(
                "again",
                lambda: samples(server, "notify_reloads_total") == {'result="ok"': 2, 'result="failed"': 0},
            )
            # A worker that is started later gets the settings in force.
            os.kill(workers(server)[0], signal.SIGKILL)
            server.logged("serves again")
            for _ in range(4):
                with self.assertRaisesRegex(Exception, "403"):
                    connect(f"ws://127.0.0.1:{server.public}/ws", origin="https://b.example")  # type: ignore[arg-type]

    def test_it_leaves_as_one_and_within_its_time(self) -> Deferred[None]:
        return self.thread(self.left)

    def left(self) -> None:
        with Server(f"{TWO}[drain]\nduration = '2s'\n") as server:
            clients = [server.client(user) for user in range(1, 7)]
            here = [client.__enter__() for client in clients]
            pids = workers(server)
            began = time.monotonic()
            server.signal(signal.SIGTERM)
            for client in here:
                code, advice = client.closed()
                self.assertEqual(code, 1012)
                self.assertLess(advice["retry_after_ms"], 2000)
            self.assertEqual(server.process.wait(20), 0)
            self.assertLess(time.monotonic() - began, 8)
            for pid in pids:
                self.assertFalse(Path(f"/proc/{pid}").exists())
            self.assertIn("of 6 clients left", server.log())
            for client in clients:
                client.__exit__(None, None, None)

    def test_what_a_worker_cannot_run_with_is_told_as_ever(self) -> Deferred[None]:
        return self.thread(self.refused)

    def refused(self) -> None:
        server = Server(TWO)
        server.file.write_text(
            server.file.read_text().replace(f"tcp:{server.public}:interface=127.0.0.1", "unix:s")
        )
        with self.assertRaisesRegex(AssertionError, "is no TCP port, which"):
            server.start()


class Encrypted(Case):
    def test_tls_is_spoken_by_the_workers(self) -> Deferred[None]:
        return self.thread(self.encrypted)

    def encrypted(self) -> None:
        server = Server(TWO)
        authority = Authority(server.folder)
        key, certificate = authority.issue(x509.DNSName("localhost"))
        text = server.file.read_text()
        server.file.write_text(
            text.replace(
                f"tcp:{server.public}:interface=127.0.0.1",
                f"ssl:{server.public}:privateKey={key}:certKey={certificate}:interface=127.0.0.1",
            )
        )
        context = trust_in_threads(authority.certificate)
        url = f"wss://localhost:{server.public}/ws"
        with server, ExitStack() as stack:
            for number in range(1, 5):
                client = Client(stack.enter_context(connect(url, ssl=context, close_timeout=1)))
                client.send(type="auth", token=token(number))
                self.assertTrue(client.receive()["success"])
            self.assertEqual(samples(server, "notify_worker_connections"), {'worker="1"': 2, 'worker="2"': 2})


class Handed(Case):
    """The service manager owns the port, and the clients are behind a proxy."""

    def test_a_socket_that_was_handed_over_and_addresses_that_a_proxy_tells(self) -> Deferred[None]:
        return self.thread(self.behind)

    def behind(self) -> None:
        server = Server(
            f"{TWO}[limits]\nmax_connections_per_address = 3\n",
            argv=[sys.executable, "-c", ACTIVATE, "PORT", str(TWISTD), "--nodaemon", "--pidfile="],
        )
        server.argv[3] = str(server.public)
        text = re.sub(r"public = .*", 'public = "systemd:domain=INET:name=ws"', server.file.read_text())
        server.file.write_text(text.replace("[listen]", '[listen]\ntrusted_proxies = ["127.0.0.1"]'))
        url = f"ws://127.0.0.1:{server.public}/ws"
        with server, ExitStack() as stack:

            def come(address: str) -> None:
                headers = {"X-Forwarded-For": address}
                stack.enter_context(connect(url, additional_headers=headers, close_timeout=1))

            for _ in range(3):
                come("9.9.9.9")
            with self.assertRaisesRegex(Exception, "429"):
                come("9.9.9.9")
            wait_for("it is gone", lambda: server.metric("notify_sockets") == 3)
            come("8.8.8.8")
            self.assertEqual(samples(server, "notify_worker_connections"), {'worker="1"': 2, 'worker="2"': 2})


class JetStream(Case):
    """Each worker is a node, behind one internal port."""

    async def setUp(self) -> None:
        self.nats = NatsServer().start()
        self.addCleanup(self.nats.remove)
        await self.nats.up()

    def test_two_workers_are_two_nodes(self) -> Deferred[None]:
        return self.thread(self.two)

    def two(self) -> None:
        config = (
            f"{TWO}[broker]\nplugin = 'jetstream'\n[broker.jetstream]\nservers = ['{self.nats.url}']\n"
            "[registry]\nplugin = 'jetstream_kv'\n[limits]\nmax_connections_per_user = 1\n"
        )
        server = Server(config)
        server.environ["STATE_DIRECTORY"] = str(server.folder)
        with server, server.client(1, (5,)) as one, server.client(2, (5,)) as other:
            server.publish(5, "x")
            self.assertEqual((one.receive()["content"], other.receive()["content"]), ("x", "x"))
            wait_for("all nodes know each other", lambda: server.metric("notify_nodes") == 3)
            _, nodes = server.http("GET", "/v1/nodes")
            self.assertEqual(
                [(one["node"], one["connections"]) for one in nodes["nodes"]],
                [("n", 0), ("n-w1", 1), ("n-w2", 1)],
            )
            _, present = server.http("GET", "/v1/presence?workspace_id=1&chat_id=5")
            self.assertEqual([user["user_id"] for user in present["users"]], [1, 2])
            for _ in range(2):  # one for each worker
                with connect(f"ws://127.0.0.1:{server.public}/ws", close_timeout=1) as second:
                    client = Client(second)
                    client.send(type="auth", token=token(1))
                    self.assertEqual(client.closed()[0], 1013)
            gone = server.http("POST", "/v1/disconnect", {"workspace_id": 1, "user_id": 2})[1]
            self.assertEqual((gone["closed"], gone["reached"]["answered"]), (1, 3))
            self.assertEqual(other.closed()[0], 4503)
            # A drain requested of one worker applies to the whole server.
            self.assertEqual(server.http("POST", "/v1/drain", {"node": "n-w1"})[0], 202)
            self.assertEqual(one.closed(60)[0], 1012)
            self.assertEqual(server.process.wait(60), 0)
            # Each process stores the history state that it has seen itself.
            kept = {path.name for path in server.folder.glob("history-*.json")}
            self.assertEqual(kept, {f"history-MESSAGES{part}.json" for part in ("", "-w1", "-w2")})
