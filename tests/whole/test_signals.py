"""Signals between real processes: two nodes on NATS, a server with workers, and clients that abuse signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from notify.client import Publisher, Settings, Signal, TwistedClient
from notify.wire.protobuf import pb
from tests.support import running
from tests.support.eventstream import EventClient
from tests.support.natsd import NatsServer
from tests.support.process import Client, Server, token, wait_for

ON_NATS = """[server]
node = "{name}"
[broker]
plugin = "jetstream"
[broker.jetstream]
servers = ["{nats}"]
"""
FEATURES = ["events", "signals"]


@contextmanager
def member(
    server: Server, user_id: int, chat_id: int = 10, workspace_id: int = 1, features: Any = FEATURES
) -> Iterator[Client]:
    """A client of the server that is subscribed to a chat."""
    with connect(f"ws://127.0.0.1:{server.public}/ws", close_timeout=1) as link:
        client = Client(link)
        client.send(type="auth", token=token(user_id, workspace_id), features=features)
        granted = client.receive()
        assert granted["features"] == features, granted
        client.send(type="subscribe", chat_id=chat_id, id=1)
        assert client.receive()["type"] == "subscribed"
        yield client


def typing(chat_id: int = 10, data: Any = None, **more: Any) -> dict[str, Any]:
    """A client's signal frame."""
    return {"type": "signal", "chat_id": chat_id, "kind": "typing", "data": data, **more}


def hears(client: Client, say: Callable[[], object], seconds: float = 20) -> Any:
    """Repeat a signal until the client hears one, and return that; signals are lost while nobody listens yet."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        say()
        try:
            return client.receive(0.3)
        except TimeoutError:
            pass
    raise AssertionError("nothing was heard")


def quiet(client: Client) -> list[str]:
    """The types of the frames that a client still receives before the answer to its ping."""
    client.send(type="ping", id="last")
    found: list[str] = []
    while (frame := client.receive()).get("id") != "last":
        found.append(frame["type"])
    return found


class Case(TestCase):
    timeout = 180

    def thread(self, work: Callable[[], None]) -> Deferred[None]:
        return deferToThread(work)


class TwoNodes(Case):
    def test_members_on_other_nodes_are_told_and_nobody_else(self) -> Deferred[None]:
        return self.thread(self.two_nodes)

    def two_nodes(self) -> None:
        with ExitStack() as stack:
            nats = NatsServer().start()
            stack.callback(nats.remove)
            wait_for("NATS listens", nats.listens)
            a, b = [
                stack.enter_context(Server(ON_NATS.format(name=name, nats=nats.url)))
                for name in ("node-a", "node-b")
            ]
            here, there = stack.enter_context(member(a, 1)), stack.enter_context(member(b, 2))
            device = stack.enter_context(member(b, 1))
            without = stack.enter_context(member(b, 3, features=["events"]))
            elsewhere = stack.enter_context(member(b, 4, chat_id=11))
            stranger = stack.enter_context(member(b, 2, workspace_id=2))
            heard = hears(there, lambda: here.send(**typing(data={"n": 1})))
            self.assertEqual(
                heard,
                {"type": "signal", "chat_id": 10, "user_id": 1, "kind": "typing", "data": {"n": 1}},
            )
            # A signal of a backend, through the other node; then a message, which has no gap before it.
            signal = {"workspace_id": 1, "chat_id": 10, "user_id": 9, "kind": "bot", "data": [1]}
            status, answer = a.http("POST", "/v1/signal", signal)
            self.assertEqual((status, answer), (202, {"workspace_id": 1, "chat_id": 10, "sent": True}))
            while (frame := there.receive())["kind"] != "bot":
                pass
            self.assertEqual((frame["user_id"], frame["data"]), (9, [1]))
            self.assertEqual(device.receive()["user_id"], 9)
            self.assertEqual(a.publish(10, "hello")[0], 200)
            for client in (there, device, without):
                message = client.receive()
                self.assertEqual((message["type"], message["prev"]), ("chat_message", 0))
            for client in (device, without, elsewhere, stranger):
                self.assertEqual(quiet(client), [])
            self.assertEqual([here.receive()["type"] for _ in range(2)], ["signal", "chat_message"])
            self.binary(b, here)
            self.past_the_api(nats, there)
            self.assertGreaterEqual(a.metric("notify_signals_sent_total"), 2)
            self.assertGreaterEqual(b.metric("notify_signals_received_total"), 4)

    def past_the_api(self, nats: NatsServer, reader: Client) -> None:
        """A NATS client bypasses the API: it publishes invalid signals, signals of other chats, and a valid one."""
        good = {"workspace_id": 1, "chat_id": 10, "user_id": 77, "kind": "last", "data": None}
        payloads = [b"", b"rubbish", b"[" * 100_000, *(json.dumps({**good, **wrong}).encode() for wrong in (
            {"chat_id": 11}, {"workspace_id": 2}, {"kind": ""}, {"data": "x" * 2000}, {},
        ))]  # fmt: skip
        with socket.create_connection((nats.host, nats.port), 10) as client:
            client.sendall(b'CONNECT {"verbose":false}\r\n')
            for payload in payloads:
                client.sendall(b"PUB workspace.1.chat.10.signals %d\r\n%s\r\n" % (len(payload), payload))
            client.sendall(b"PING\r\n")
            while b"PONG" not in client.recv(65536):
                pass
        heard: list[int] = []
        while 77 not in heard:
            heard.append(reader.receive()["user_id"])
        self.assertEqual(set(heard) - {1, 5}, {77})

    def binary(self, server: Server, other: Client) -> None:
        """A client with the binary encoding on one node, heard by a client on the other."""
        subprotocol = Subprotocol("notify.v1.protobuf")
        address = f"ws://127.0.0.1:{server.public}/ws"
        with connect(address, subprotocols=[subprotocol], close_timeout=1) as link:
            frame = pb.ClientFrame()
            frame.messages.add(auth=pb.Auth(token=token(5), features=["signals"]))
            frame.messages.add(id=1, subscribe=pb.Subscribe(chat_id=10))
            frame.messages.add(id=2, signal=pb.SignalRequest(chat_id=10, kind="cursor", data=b'{"x":1.5}'))
            link.send(frame.SerializeToString())
            answers: list[str] = []
            while "ok" not in answers:
                data = link.recv(10)
                assert isinstance(data, bytes)
                answers += [one.WhichOneof("body") for one in pb.ServerFrame.FromString(data).messages]
            self.assertEqual(answers, ["auth_result", "subscribed", "ok"])
            self.assertEqual(
                other.receive(),
                {"type": "signal", "chat_id": 10, "user_id": 5, "kind": "cursor", "data": {"x": 1.5}},
            )
            other.send(**typing())
            data = link.recv(10)
            assert isinstance(data, bytes)
            [message] = pb.ServerFrame.FromString(data).messages
            self.assertEqual((message.signal.user_id, message.signal.kind), (1, "typing"))


class Workers(Case):
    def test_workers_of_one_server_hear_each_other(self) -> Deferred[None]:
        return self.thread(self.workers)

    def workers(self) -> None:
        with Server("[server]\nnode = 'n'\nworkers = 2\n") as server, ExitStack() as stack:
            clients = [stack.enter_context(member(server, user)) for user in (1, 2, 3, 4)]
            lines = server.http("GET", "/metrics")[1].splitlines()
            served = [line for line in lines if line.startswith("notify_worker_connections{")]
            self.assertEqual([line.split()[-1] for line in served], ["2.0", "2.0"])
            first, *others = clients
            first.send(**typing(id=7))
            self.assertEqual(first.receive(), {"type": "ok", "id": 7})
            for other in others:
                self.assertEqual(other.receive()["user_id"], 1)
            signal = {"workspace_id": 1, "chat_id": 10, "user_id": 2, "kind": "bot", "data": None}
            self.assertEqual(server.http("POST", "/v1/signal", signal)[0], 202)
            for client in (first, *others[1:]):
                self.assertEqual(client.receive()["kind"], "bot")
            for client in clients:
                self.assertEqual(quiet(client), [])
            server.publish(10, "hello")
            self.assertEqual([client.receive()["type"] for client in clients], ["chat_message"] * 4)

    def test_they_go_on_when_a_worker_was_killed(self) -> Deferred[None]:
        return self.thread(self.killed)

    def killed(self) -> None:
        with Server("[server]\nnode = 'n'\nworkers = 2\n") as server, ExitStack() as stack:
            clients = [stack.enter_context(member(server, user)) for user in (1, 2)]
            processes = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
            first, *_ = processes.read_text().split()
            os.kill(int(first), signal.SIGKILL)
            alive = []
            for client in clients:
                try:
                    alive += [client] * (quiet(client) == [])
                except ConnectionClosed:
                    pass
            [stayed] = alive

            def both_serve() -> bool:
                workers = server.http("GET", "/health")[1]["workers"]
                return first not in processes.read_text().split() and all(workers.values())

            wait_for("both workers serve", both_serve)
            for user in (3, 4):
                other = stack.enter_context(member(server, user))
                self.assertEqual(hears(other, lambda: stayed.send(**typing()))["kind"], "typing")
                while hears(stayed, lambda other=other: other.send(**typing()))["user_id"] != user:
                    pass  # a signal of the previous user


class Streams(Case):
    def test_an_event_stream_hears_them_where_it_asks_for_the_feature(self) -> Deferred[None]:
        return self.thread(self.streams)

    def streams(self) -> None:
        with Server() as server:
            hearing, plain = [
                EventClient(server.public, f"chat=10{features}", token(user)).begun()
                for user, features in ((1, "&features=signals"), (2, ""))
            ]
            for stream in (hearing, plain):
                stream.until("subscribed")
            said = {"workspace_id": 1, "chat_id": 10, "user_id": 9, "kind": "\n\nevent: close", "data": None}
            self.assertEqual(server.http("POST", "/v1/signal", said)[0], 202)
            self.assertEqual(server.publish(10, "hello")[0], 200)
            signal, message = hearing.until("chat_message")
            self.assertEqual((signal.name, signal.data["kind"]), ("signal", said["kind"]))
            # A signal has no position.
            self.assertNotEqual(signal.id, message.id)
            self.assertEqual(message.data["prev"], 0)
            self.assertEqual([event.name for event in plain.until("chat_message")], ["chat_message"])
            for stream in (hearing, plain):
                stream.close()


class Abuse(Case):
    def test_who_floods_harms_nobody(self) -> Deferred[None]:
        return self.thread(self.floods)

    def floods(self) -> None:
        limits = "[limits]\nsignals_per_second = 10\nsignals_burst = 20\nframes_per_second = 0\n"
        with Server(limits) as server, ExitStack() as stack:
            reader = stack.enter_context(member(server, 1))
            floods = [stack.enter_context(member(server, 2)) for _ in range(3)]
            over, refused = threading.Event(), threading.Semaphore(0)

            def flood(client: Client) -> None:
                frame = json.dumps(typing(data="x" * 1000, id=1))
                while not over.is_set():
                    client.socket.send(frame)
                    while (answer := client.receive()).get("id") != 1:
                        pass
                    if answer.get("code") == "rate_limited":
                        refused.release()

            threads = [threading.Thread(target=flood, args=(client,)) for client in floods]
            for thread in threads:
                thread.start()
            began, seqs, signals = time.monotonic(), [0], 0
            try:
                for number in range(1, 51):
                    # Before each message, each flooding client has been refused again.
                    for _ in floods:
                        self.assertTrue(refused.acquire(timeout=20))
                    self.assertEqual(server.publish(10, "hello", number)[0], 200)
                    while (frame := reader.receive())["type"] != "chat_message":
                        self.assertEqual(frame["type"], "signal")
                        signals += 1
                    self.assertEqual(frame["prev"], seqs[-1])
                    seqs.append(frame["seq"])
            finally:
                over.set()
                for thread in threads:
                    thread.join()
            seconds = time.monotonic() - began + 1
            self.assertGreater(signals, 0)
            self.assertLess(signals, 3 * (20 + 10 * seconds))

    def test_what_is_no_ones_to_send_reaches_nobody(self) -> Deferred[None]:
        return self.thread(self.hostile)

    def hostile(self) -> None:
        with Server("[limits]\nsignals_per_second = 0\nmax_invalid = 1000\n") as server, ExitStack() as stack:
            reader = stack.enter_context(member(server, 1))
            stranger = stack.enter_context(member(server, 2, chat_id=11))
            elsewhere = stack.enter_context(member(server, 3, workspace_id=2))
            deep = '{"type":"signal","chat_id":11,"kind":"k","data":' + "[" * 20_000 + "]" * 20_000 + "}"
            wide = '{"type":"signal","chat_id":11,"kind":"k","data":"' + "x" * 60_000 + '"}'
            nul = '{"type":"signal","chat_id":11,"kind":"k","data":"\\ud800"}'
            for client, frame, code in (
                (stranger, json.dumps(typing()), "forbidden"),
                (stranger, json.dumps(typing(chat_id=2**63 - 1)), "forbidden"),
                (stranger, deep, "invalid_message"),
                (stranger, wide, "invalid_message"),
                (stranger, nul, "invalid_message"),
                (elsewhere, json.dumps(typing(id=1)), ""),
                (elsewhere, json.dumps({**typing(id=1), "workspace_id": 1, "user_id": 1}), ""),
            ):
                client.socket.send(frame)
                self.assertEqual(client.receive().get("code", ""), code, frame[:80])
            self.assertEqual(quiet(reader), [])
            log = server.log()
            self.assertNotIn("typing", log)
            self.assertNotIn("Traceback", log)

    def test_who_does_not_read_is_neither_closed_for_signals_nor_holds_them_up(self) -> Deferred[None]:
        return self.thread(self.slow)

    def slow(self) -> None:
        limits = "[limits]\nsignals_per_second = 0\nframes_per_second = 0\nsend_queue = '64KiB'\nsignals_fan_out = 0\n"
        with Server(limits) as server, ExitStack() as stack:
            sender, reader = [stack.enter_context(member(server, user)) for user in (1, 2)]
            # It reads nothing, so its buffers are full after some of these.
            slow = stack.enter_context(member(server, 3))
            slow.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            frame, heard = json.dumps(typing(data="x" * 1000)), threading.Event()

            def read() -> None:
                while reader.receive(60)["kind"] != "last":
                    pass
                heard.set()

            thread = threading.Thread(target=read, daemon=True)
            thread.start()

            def left_out() -> bool:
                for _ in range(500):
                    sender.socket.send(frame)
                return 'notify_signals_dropped_total{reason="slow"}' in server.http("GET", "/metrics")[1]

            wait_for("somebody is left out", left_out, 20)
            # Send more than may be queued for it; the others must receive these signals.
            for _ in range(20):
                left_out()

            def is_heard() -> bool:
                sender.send(**{**typing(), "kind": "last"})
                return heard.wait(0.2)

            wait_for("the others hear on", is_heard)
            thread.join()
            metrics = server.http("GET", "/metrics")[1]
            self.assertIn('notify_signals_dropped_total{reason="slow"}', metrics)
            self.assertIn("notify_slow_clients_total 0.0", metrics)
            self.assertIn("notify_connections 3.0", metrics)


class Libraries(TestCase):
    """The client library at both ends, and a backend."""

    timeout = 60

    async def test_members_hear_each_other_and_the_backend_and_nobody_else_does(self) -> None:
        server = await running.LocalServer().start(self)
        heard: dict[int, list[Signal]] = {5: [], 6: [], 7: []}
        clients = {}
        for user, chat in ((5, 10), (6, 10), (7, 11)):
            clients[user] = client = TwistedClient(
                server.ws,
                running.token(user),
                settings=Settings(features=("signals",)),
                on_signal=heard[user].append,
            )
            self.addCleanup(client.close)
            await client.start()
            await client.chat(chat).ready()
        self.assertTrue(clients[5].signal(10, "typing", {"on": True}))
        self.assertFalse(clients[5].signal(11, "typing"))

        def publish() -> None:
            with Publisher(server.api, running.API_KEY) as publisher:
                publisher.signal(1, 10, 5, "away")

        await deferToThread(publish)
        while len(heard[6]) < 2:
            await clients[6].ping()
        await clients[5].ping()
        await clients[7].ping()
        self.assertEqual(heard[6], [Signal(10, 5, "typing", {"on": True}), Signal(10, 5, "away", None)])
        self.assertEqual((heard[5], heard[7]), ([], []))
