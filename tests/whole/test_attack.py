"""A real server under attack: what it keeps afterwards, what it logs, and how other clients fare."""

from __future__ import annotations

import json
import os
import select
import selectors
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from cryptography import x509
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.certificates import Authority
from tests.support.process import Server, token, wait_for
from tests.transport.test_websocket_attack import HANDSHAKE, frame, head

#: part of everything that an attacker sends and that must not be logged
PLANTED = "planted-not-to-be-logged"


def say(**fields: Any) -> bytes:
    """A client's frame."""
    return frame(json.dumps(fields).encode())


def resident(pid: int) -> int:
    """Bytes of memory that a process uses."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(server: Server) -> int:
    """The number of descriptors that a server has open."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def opened(port: int, user_id: int = 1, window: int = 0) -> socket.socket:
    """An authenticated client's socket, with a receive buffer of ``window`` bytes if given."""
    client = socket.socket()
    if window:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    client.settimeout(10)
    client.connect(("127.0.0.1", port))
    client.sendall(head(*HANDSHAKE) + say(type="auth", token=token(user_id)))
    read_until(client, b"auth_result")
    return client


def read_until(client: socket.socket, text: bytes, times: int = 1) -> bytes:
    """Read until ``text`` has arrived ``times`` times, or the server has closed the connection."""
    got = b""
    while got.count(text) < times and (data := client.recv(65536)):
        got += data
    return got


def reset(client: socket.socket) -> None:
    """Make the next close of the socket a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def bystander(server: Server) -> Iterator[Callable[[], float]]:
    """Another client that pings meanwhile; yields a function that returns its longest wait in seconds."""
    over, worst = threading.Event(), [0.0]

    def run() -> None:
        with server.client(user_id=999_999) as client:
            while not over.wait(0.02):
                start = time.monotonic()
                client.send(type="ping")
                client.receive(60)
                worst[0] = max(worst[0], time.monotonic() - start)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: worst[0]
    finally:
        over.set()
        thread.join()


class Attacks(TestCase):
    timeout = 120

    def churn(self, port: int, random: Random) -> None:
        """One connection of a random kind that comes and goes."""
        kind = random.randrange(9)
        good = token(random.randrange(100))
        start = head(
            b"GET /ws?token=%s HTTP/1.1" % PLANTED.encode(), *HANDSHAKE[1:], b"Cookie: " + PLANTED.encode()
        )
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            if kind < 3:
                client.sendall((b"", b"GET /ws HT", start[:-5])[kind])
            elif kind == 3:
                client.sendall(start)
                reset(client)
            elif kind == 4:
                client.sendall(start + say(type="auth", token=f"{PLANTED}.{good}"))
                read_until(client, b"authentication failed")
            elif kind == 5:
                auth = frame(json.dumps({"type": "auth", "token": good}).encode(), fin=False)
                client.sendall(start[:30])
                client.sendall(start[30:] + auth + frame(b"", 0))
                read_until(client, b"auth_result")
            else:
                sent = start + say(type="auth", token=good)
                for n in range(3):
                    since = {"epoch": PLANTED, "seq": n}
                    chat_id = random.randrange(10**6)
                    sent += say(
                        type="subscribe", chat_id=chat_id, id=PLANTED, since=since, watch_presence=n == 1
                    )
                sent += frame(b'{"type":"%s"}' % PLANTED.encode()) + frame(PLANTED.encode())
                client.sendall(sent)
                read_until(client, b'"subscribed"', 3)
                if kind == 6:
                    client.sendall(frame(b"\x03\xe8" + PLANTED.encode(), 8))
                elif kind == 7:
                    reset(client)
                else:
                    client.sendall(frame(PLANTED.encode(), rsv=0x40))

    def storm(self) -> None:
        """Thousands of connections come and go in every possible way."""
        random = Random(1)
        with Server('[log]\nlevel = "debug"\nburst = 0\n[limits]\nlinger = 0\n') as server:

            def round_of(count: int) -> tuple[int, int]:
                for n in range(count):
                    self.churn(server.public, random)
                    if n % 50 == 0:
                        server.publish(random.randrange(100), PLANTED)
                        server.http(
                            "POST", "/v1/publish", {"subject": PLANTED, "payload": {PLANTED: PLANTED}}
                        )
                for name in ("notify_connections", "notify_subscriptions", "notify_topics"):
                    wait_for(f"{name} is 0", lambda name=name: server.metric(name) == 0)
                return resident(server.process.pid), open_files(server)

            memory, files = round_of(600)
            more_memory, more_files = round_of(1500)
            # 1 KiB left behind by each connection would be 1.5 MiB.
            self.assertLess(more_memory - memory, 1_000_000)
            self.assertLessEqual(more_files, files + 3)
            log = server.log()
            self.assertIn("closed with", log)
            self.assertNotIn(PLANTED, log)
            self.assertNotIn("Traceback", log)

    def greed(self) -> None:
        """Thousands of requests at once that are expensive to answer."""
        with Server() as server:
            for n in range(1000):
                server.publish(1, "x" * 900, n)
            with server.client(user_id=5, chats=(1,)) as client:
                client.send(type="subscribe", chat_id=1, id=2)
                epoch = client.receive()["epoch"]
            resume = say(type="subscribe", chat_id=1, since={"epoch": epoch, "seq": 1})
            recent = say(type="subscribe", chat_id=1, since={"epoch": epoch, "seq": 300})
            before = resident(server.process.pid)
            with bystander(server) as worst:
                clients = [opened(server.public, n, 4096) for n in range(10)]
                for client in clients:
                    client.sendall((resume + recent) * 300)
                reader = opened(server.public, 50)
                reader.sendall(recent * 600)
                read_until(reader, b'"recovered":true', 3)
                for client in clients:
                    client.sendall(frame(b"x" * 125, 9) * 3000)
                wait_for("the bystander was served", lambda: worst() > 0)
            self.assertLess(worst(), 5)
            self.assertLess(resident(server.process.pid) - before, 60_000_000)
            for client in [*clients, reader]:
                reset(client)
                client.close()
            wait_for("all are gone", lambda: server.metric("notify_connections") == 0)

    def browse(self) -> None:
        """Many clients read page after page of history, of a chat that is followed and of one that is not."""
        with Server() as server:
            for n in range(300):
                server.publish(1, "x" * 900, n)
                server.publish(2, "x" * 900, n)
            pages = b"".join(
                say(type="history", chat_id=chat_id, limit=limit)
                for chat_id in (1, 2)
                for limit in (100, 50, 1)
            )
            before, over, took = resident(server.process.pid), threading.Event(), list[int]()
            clients = [opened(server.public, n) for n in range(30)]

            readable = selectors.DefaultSelector()
            for client in clients:
                readable.register(client, selectors.EVENT_READ, client)

            def read() -> None:
                while not over.is_set():
                    for key, _ in readable.select(0.1):
                        took.append(len(key.data.recv(65536)))

            reader = threading.Thread(target=read)
            with bystander(server) as worst, server.client(user_id=60, chats=(1,)) as member:
                for client in clients:
                    client.sendall(pages * 100)
                reader.start()
                for n in range(50):
                    start = time.monotonic()
                    server.publish(1, "live", 1000 + n)
                    came = member.receive()
                    self.assertLess(time.monotonic() - start, 2)
                    self.assertEqual(came["message_id"], 1000 + n)
                    member.send(type="subscribe", chat_id=1, since={"epoch": came["epoch"], "seq": 1})
                    answer = member.receive()
                    self.assertTrue(answer["recovered"])
                    while member.receive()["seq"] < answer["seq"]:
                        pass
                    if n > 10 and worst() > 0:
                        break
            over.set()
            reader.join()
            self.assertGreater(sum(took), 5_000_000)
            self.assertLess(worst(), 5)
            self.assertLess(resident(server.process.pid) - before, 60_000_000)
            for client in clients:
                reset(client)
                client.close()
            wait_for("all are gone", lambda: server.metric("notify_connections") == 0)

    def stuck(self) -> None:
        """A client leaves without having read what was sent."""
        with Server('[limits]\nsend_queue = "64MiB"\n') as server:
            client = opened(server.public, 5, 4096)
            client.sendall(say(type="subscribe", chat_id=2, id=1))
            wait_for("subscribed", lambda: server.metric("notify_subscriptions") == 1)
            for n in range(200):  # more than the kernel buffers
                server.publish(2, "y" * 60_000, n)
            self.assertEqual(server.metric("notify_slow_clients_total"), 0)
            client.sendall(frame(b"\x03\xe8", 8))
            gone = select.poll()
            gone.register(client, select.POLLHUP)
            self.assertTrue(gone.poll(5000))
            client.close()

    def half_open_tls(self) -> None:
        """TLS clients that say nothing, and others that never answer the end of TLS."""
        server = Server('[limits]\nhandshake_timeout = "1s"\n')
        authority = Authority(server.folder)
        key, certificate = authority.issue(x509.DNSName("localhost"))
        text = server.file.read_text()
        plain = f"tcp:{server.public}:interface=127.0.0.1"
        server.file.write_text(text.replace(plain, f"ssl{plain[3:]}:privateKey={key}:certKey={certificate}"))
        anyone = ssl.create_default_context(cafile=str(authority.certificate))
        anyone.check_hostname = False
        with server:
            files = open_files(server)
            silent = [socket.create_connection(("127.0.0.1", server.public)) for _ in range(5)]
            leaving = anyone.wrap_socket(socket.create_connection(("127.0.0.1", server.public)))
            leaving.sendall(head(*HANDSHAKE) + frame(b"\x03\xe8", 8))
            refused = anyone.wrap_socket(socket.create_connection(("127.0.0.1", server.public)))
            refused.sendall(head(b"GET /ws HTTP/1.1", b"nonsense"))
            wait_for("all are dropped", lambda: open_files(server) <= files, 10)
            for one in (*silent, leaving, refused):
                one.close()
            self.assertNotIn("Traceback", server.log())

    def leave(self) -> None:
        """The server reads invalid files and shuts down while clients come and go."""
        over = threading.Event()
        with Server('[drain]\nduration = "1s"\n') as server:
            good = server.file.read_text()

            def churn(seed: int) -> None:
                random = Random(seed)
                while not over.is_set():
                    try:
                        self.churn(server.public, random)
                    except OSError:
                        over.wait(0.01)

            threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(4)]
            for thread in threads:
                thread.start()
            try:
                for number, text in enumerate(("[limits", "[limits]\nmax_frame = -1\n", good), 1):
                    server.file.write_text(text)
                    server.signal(signal.SIGHUP)
                    wait_for("it was read", lambda number=number: server.log().count("reloaded") == number)
                with server.client(user_id=3) as client:
                    server.signal(signal.SIGTERM)
                    self.assertEqual(client.closed()[0], 1012)
                self.assertEqual(server.process.wait(10), 0)
            finally:
                over.set()
                for thread in threads:
                    thread.join()
            self.assertNotIn("Traceback", server.log())
            self.assertNotIn("Unhandled", server.log())

    async def test_nothing_is_left_of_thousands_who_came_and_went_and_nothing_secret_is_logged(self) -> None:
        await deferToThread(self.storm)

    async def test_who_asks_for_too_much_waits_and_others_do_not(self) -> None:
        await deferToThread(self.greed)

    async def test_page_after_page_of_history_does_not_hold_up_what_is_live_nor_who_comes_back(self) -> None:
        await deferToThread(self.browse)

    async def test_who_leaves_with_a_full_window_is_dropped(self) -> None:
        await deferToThread(self.stuck)

    async def test_tls_clients_that_stay_half_open_are_dropped(self) -> None:
        await deferToThread(self.half_open_tls)

    async def test_under_a_storm_it_survives_bad_files_and_leaves_in_order(self) -> None:
        await deferToThread(self.leave)
