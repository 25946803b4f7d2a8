"""What a connection refuses, tolerates and keeps secret; with servers that misbehave."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from random import Random
from typing import Any

import nats.errors
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from notify.config import Duration
from notify.errors import StartError, TooLarge, Unavailable
from notify.nats import headers
from notify.nats.client import RawClient
from notify.nats.connection import Connection, Hooks
from notify.nats.dial import redacted, refuse_unfit
from notify.nats.settings import NATSSettings
from tests.support.natsd import Greeter, NatsServer, listening, pause, until
from tests.support.proxy import Proxy


class _OldServer(Greeter):
    lost = 0

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        type(self).lost += 1


class _Dropping(Greeter):
    """Accepts every login, and closes the connection."""

    version = "2.12.8"
    greeted = 0

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if b"PING" in data:
            type(self).greeted += 1
            self.transport.loseConnection()


class Connecting(TestCase):
    timeout = 30

    def connection(self, *servers: str, clock: Any = reactor, **settings: Any) -> Connection:
        options: dict[str, Any] = {"servers": servers, "connect_timeout": Duration(1)}
        made = Connection(NATSSettings(**(options | settings)), clock, Random(1), "test")
        self.ups = 0
        self.downs: list[str] = []
        self.denials: list[str] = []

        def up() -> None:
            self.ups += 1

        made.hooks = Hooks(up, self.downs.append, self.denials.append, lambda: None)
        self.addCleanup(lambda: Deferred.fromCoroutine(made.stop()))
        return made

    async def server(self, extra: str = "") -> NatsServer:
        server = NatsServer(extra=extra).start()
        self.addCleanup(server.remove)
        return await server.up()

    async def test_an_old_server_is_refused_by_name_and_number(self) -> None:
        _OldServer.lost = 0
        url = f"nats://someone:secret@{listening(self, _OldServer)}"
        error = await self.assertFailure(self.connection(url).start(), StartError)
        self.assertIn("nats-server 2.10.7", str(error))
        self.assertIn("2.11", str(error))
        self.assertNotIn("secret", str(error))
        await until(lambda: _OldServer.lost == 1, 10)

    def test_versions(self) -> None:
        for good in ("2.11.0", "2.11.11", "2.12.2", "2.12.10", "2.14.0-beta.3", "3.0.0"):
            refuse_unfit(good, "nats://x")
        for bad in (
            "2.9.25",
            "2.10.99",
            "1.4.1",
            "",
            "nonsense",
            "2.12.0",
            "2.12.1",
            "2.12.1-beta.3",
            "2.12.0+x",
        ):
            self.assertRaises(StartError, refuse_unfit, bad, "nats://x")

    async def test_a_server_that_hangs_is_refused_with_what_to_install(self) -> None:
        class Hanging(Greeter):
            version = "2.12.1"

        url = f"nats://{listening(self, Hanging)}"
        error = await self.assertFailure(self.connection(url).start(), StartError)
        self.assertIn("nats-server 2.12.1, which hangs", str(error))
        self.assertIn("install 2.12.8 or newer", str(error))

    def test_an_address_is_shown_without_what_lets_one_in(self) -> None:
        self.assertEqual(redacted("tls://user:secret@host:4222"), "tls://host:4222")
        self.assertEqual(redacted("token@host"), "nats://host")

    async def test_files_that_are_of_no_use_end_the_start(self) -> None:
        folder = self.mktemp()
        os.mkdir(folder)
        path = f"{folder}/file"
        with open(path, "w") as file:
            file.write("SUNOTASEED")
        for key, named in (("nkey_seed_file", "seed of an nkey"), ("tls_ca", "TLS files cannot be used")):
            started = self.connection("tls://127.0.0.1:1", **{key: path}).start()
            self.assertIn(named, str(await self.assertFailure(started, StartError)))
        for key in ("nkey_seed_file", "credentials_file", "tls_ca"):
            started = self.connection("tls://127.0.0.1:1", **{key: f"{folder}/missing"}).start()
            error = await self.assertFailure(started, StartError)
            self.assertIn("No such file", str(error))

    async def test_waits_for_a_server_that_is_not_there_yet(self) -> None:
        server = NatsServer()
        self.addCleanup(server.remove)
        connection = self.connection(server.url)
        connection.start()
        await self.assertFailure(connection.request("x", b""), Unavailable)
        server.start()
        await until(lambda: self.ups == 1, 10)

    async def test_another_server_is_tried_when_one_is_gone(self) -> None:
        gone, there = NatsServer(), await self.server()
        self.addCleanup(gone.remove)
        connection = self.connection(gone.url, there.url)
        connection.start()
        await until(lambda: self.ups == 1, 10)
        self.assertIn(str(there.port), connection.server)

    async def test_requests_end_with_the_connection_and_subscriptions_outlive_it(self) -> None:
        server = await self.server()
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        connection = self.connection(proxy.url)
        heard: list[bytes] = []
        connection.subscribe("greeting", lambda subject, reply, data, block: heard.append(data))
        quiet = connection.subscribe("silence", lambda subject, reply, data, block: None)
        connection.start()
        await until(lambda: self.ups == 1, 10)
        asked = connection.request("silence", b"", 60)
        connection.unsubscribe(quiet)
        proxy.cut()
        await self.assertFailure(asked, Unavailable)
        await until(lambda: self.ups == 2, 10)
        connection.publish("greeting", b"hello")
        await until(lambda: heard, 10)
        self.assertEqual((heard, len(self.downs)), ([b"hello"], 1))

    async def test_every_way_in_which_a_client_ends_is_followed_by_a_new_one(self) -> None:
        server = await self.server()
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        connection = self.connection(proxy.url)
        connection.start()
        await until(lambda: self.ups == 1, 10)
        for number, words in enumerate(
            (
                b"-ERR 'Something Entirely New'\r\n",
                b"-ERR 'Stale Connection'\r\n",
                b"-ERR 'User Authentication Revoked'\r\n",
                b"-ERR 'Authorization Violation'\r\n",
                b"HMSG nonsense\r\n",
                b'INFO {"ldm": true}\r\n',
                b"INFO not json\r\n",
            ),
            start=2,
        ):
            proxy.say(words)
            await until(lambda number=number: self.ups == number, 10, words.decode())
        self.assertEqual(len(self.downs), 7)
        self.assertIn("something entirely new", self.downs[0])

    async def test_what_is_too_large_ends_no_connection(self) -> None:
        connection = self.connection((await self.server("max_payload: 64KB")).url)
        self.assertEqual(connection.max_payload, 0)
        connection.subscribe("echo", lambda subject, reply, data, block: connection.publish(reply, data[:3]))
        connection.start()
        await until(lambda: self.ups == 1, 10)
        most = connection.max_payload
        self.assertEqual(most, 65536)
        room = most - headers.size(b"", {"A": "b"})
        self.assertEqual((await connection.request("echo", b"x" * room, fields={"A": "b"})).data, b"xxx")
        self.assertRaises(TooLarge, connection.publish, "echo", b"x" * (room + 1), "", {"A": "b"})
        for asked in (connection.request, connection.gather):
            error = await self.assertFailure(asked("echo", b"x" * (most + 1)), TooLarge)
            self.assertIn("65536", str(error))
        self.assertEqual((await connection.request("echo", b"x" * most)).data, b"xxx")
        self.assertEqual((self.ups, self.downs), (1, []))

    async def test_the_fault_of_one_message_is_its_own(self) -> None:
        connection = self.connection((await self.server()).url)
        connection.subscribe("echo", lambda subject, reply, data, block: connection.publish(reply, data))
        connection.start()
        await until(lambda: self.ups == 1, 10)
        await self.assertFailure(connection.request("", b"", 60), Unavailable)
        for wrong in ("", "a b", "a\r\n", "\t"):
            self.assertRaises(ValueError, connection.publish, wrong, b"")
        self.assertEqual((await connection.request("echo", b"x")).data, b"x")
        self.assertEqual((self.ups, self.downs), (1, []))
        self.assertEqual(len(self.flushLoggedErrors(nats.errors.Error)), 1)

    async def test_a_publisher_cannot_choose_who_gets_its_message_or_end_the_connection(self) -> None:
        """A server passes on subjects with a vertical tab, and bytes that are no text, as their publisher wrote them."""
        server = await self.server()
        connection = self.connection(server.url)
        came: list[tuple[Any, ...]] = []
        others: list[tuple[Any, ...]] = []
        subscription = connection.subscribe("a.>", lambda *message: came.append(message))
        connection.subscribe("b", lambda *message: others.append(message))
        connection.start()
        await until(lambda: self.ups == 1, 10)
        await connection.request("$SYS.REQ.USER.INFO", b"")  # the subscriptions are there
        assert subscription.live is not None
        numbers = [b"%d" % one.live._id for one in connection._subscriptions]
        payload = b"".join(b"MSG b %b 6\r\nforged\r\n" % number for number in numbers)
        stranger = socket.create_connection(("127.0.0.1", server.port))
        self.addCleanup(stranger.close)
        stranger.sendall(b'CONNECT {"verbose":false}\r\n')
        for number in (b"x", *numbers):
            stranger.sendall(b"PUB a.\xff\x0b%b r\x0b\xff %d\r\n%b\r\n" % (number, len(payload), payload))
        stranger.sendall(b"PUB a.last r\xff 0\r\n\r\n")
        await until(lambda: bool(came) and came[-1][0] == b"a.last", 10)
        self.assertEqual(
            [message[:3] for message in came[:2]],
            [(b"a.\xff\x0b" + number, "", payload) for number in (b"x", numbers[0])],
        )
        self.assertEqual((len(came), others, self.ups, self.downs), (len(numbers) + 2, [], 1, []))
        connection.publish(came[-1][1], b"")  # a reply goes nowhere, and harms nobody
        await connection.request("$SYS.REQ.USER.INFO", b"")
        self.assertEqual(self.downs, [])

    async def test_order_is_kept_while_the_server_reads_late(self) -> None:
        server = await self.server()
        listener, connection = self.connection(server.url), self.connection(server.url)
        came: list[int] = []
        listener.subscribe("n", lambda subject, reply, data, block: came.append(int(data[:8])))
        listener.start()
        connection.start()
        await until(lambda: self.ups == 2, 10)
        await listener.request("$SYS.REQ.USER.INFO", b"")  # the subscription is there
        sent, waited = 0, False
        for stopped in (True, False, True):
            if stopped:
                server.pause()
            for turn in range(40):
                for _ in range(25):
                    connection.publish("n", b"%08d" % sent + b"x" * 12_000)
                    sent += 1
                with connection.gathering:
                    for _ in range(5):
                        connection.publish("n", b"%08d" % sent + b"x" * 12_000, "", {"A": str(turn)})
                        sent += 1
                waited |= connection.unsent > 0
                await pause(0)
            if stopped:
                server.resume()
        await until(lambda: len(came) >= sent, 20)
        self.assertEqual(came, list(range(sent)))
        self.assertTrue(waited)  # both ways were taken

    async def test_a_server_that_reads_nothing_is_dead_however_much_waits(self) -> None:
        server = await self.server()
        connection = self.connection(server.url, canary_interval=Duration(1))
        connection.start()
        await until(lambda: self.ups == 1, 10)
        server.pause()
        self.addCleanup(server.resume)
        data = b"x" * 20_000
        while not connection.unsent:
            connection.publish("n", data)
        for _ in range(10):
            connection.publish("n", data)
        await until(lambda: not connection.unsent, 10)  # they wait in nats-py
        for number in range(3000):
            connection.subscribe(f"a.{number}", lambda *message: None)
        await until(lambda: bool(self.downs), 20)
        self.assertEqual(self.downs, ["stale connection"])

    async def test_a_message_does_not_overtake_a_request_or_a_subscription(self) -> None:
        connection = self.connection((await self.server()).url)
        came: list[bytes] = []
        connection.subscribe("a.*", lambda subject, reply, data, block: came.append(data))
        connection.start()
        await until(lambda: self.ups == 1, 10)
        await pause(0)
        asked = [connection.request("a.1", b"1"), connection.request("a.2", b"2")]
        connection.publish("a.3", b"3")
        connection.subscribe("b", lambda subject, reply, data, block: came.append(data))
        connection.publish("b", b"4")
        await until(lambda: len(came) == 4, 10)
        self.assertEqual(came, [b"1", b"2", b"3", b"4"])
        for one in asked:
            one.addErrback(lambda _: None)
            one.cancel()

    async def test_a_smaller_limit_is_learnt_with_the_next_connection_at_the_latest(self) -> None:
        server = await self.server("max_payload: 64KB")
        connection = self.connection(server.url)
        connection.start()
        await until(lambda: self.ups == 1, 10)
        server.reload(server.config.read_text().replace("64KB", "32KB"))
        await until(lambda: "Reloaded: max_payload" in server.log(), 10)
        for _ in range(2):
            try:
                connection.publish("a", b"x" * 40_000)
            except TooLarge:
                break
            await until(lambda: self.ups == 2, 10)
        else:
            self.fail("the limit was not learnt")
        self.assertEqual(connection.max_payload, 32768)

    async def test_an_error_of_its_owner_is_followed_by_a_new_client(self) -> None:
        connection = self.connection((await self.server()).url)
        up = connection.hooks.up

        def wrong() -> None:
            connection.hooks.up = up
            raise RuntimeError("wrong")

        connection.hooks.up = wrong
        connection.start()
        await until(lambda: self.ups == 1, 10)
        self.assertEqual((len(self.downs), connection.connected), (1, True))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_nothing_is_kept_of_a_client_that_could_not_send(self) -> None:
        server = await self.server()
        connection = self.connection(server.url)
        connection.start()
        await until(lambda: self.ups == 1, 10)
        server.pause()
        self.addCleanup(server.resume)
        payload = b"x" * 500_000
        before = sys.getrefcount(payload)
        while connection.unsent < 20:
            with connection.gathering:
                connection.publish("n", payload, "", {"A": "b"})
            await pause(0)
        self.assertGreater(sys.getrefcount(payload) - before, 10)  # no copies
        connection.abandon("it reads nothing")
        await until(lambda: bool(self.downs), 10)
        self.assertEqual((connection.unsent, sys.getrefcount(payload)), (0, before))
        server.resume()
        await until(lambda: self.ups == 2, 10)
        await until(lambda: sum("_pump" in repr(task) for task in asyncio.all_tasks()) == 1, 10)

    async def test_a_server_that_hangs_up_at_once_is_tried_again_ever_more_slowly(self) -> None:
        _Dropping.greeted = 0
        clock = Clock()
        connection = self.connection(f"nats://{listening(self, _Dropping)}", clock=clock)
        connection.start()
        for count in range(1, 11):
            await until(lambda: clock.getDelayedCalls(), 10)
            self.assertEqual(_Dropping.greeted, count)
            clock.advance(clock.getDelayedCalls()[0].getTime() - clock.seconds())
        self.assertGreater(clock.seconds(), 6)
        self.assertLess(clock.seconds(), 16)

    async def test_a_client_that_lived_is_followed_by_the_next_at_once(self) -> None:
        server = await self.server()
        proxy = Proxy(server.port)
        self.addCleanup(proxy.stop)
        clock = Clock()
        connection = self.connection(proxy.url, clock=clock)
        connection.start()
        for number in range(1, 4):
            await until(lambda number=number: self.ups == number, 10)
            clock.advance(10)
            proxy.cut()
        await until(lambda: self.ups == 4, 10)

    async def test_stopping_cuts_a_client_that_is_still_being_closed(self) -> None:
        connection = self.connection((await self.server()).url)
        connection.start()
        await until(lambda: self.ups == 1, 10)
        client = connection._client
        assert client is not None
        closing, severed = asyncio.Event(), asyncio.Event()

        async def never() -> None:
            closing.set()
            await asyncio.Event().wait()

        self.patch(client, "close", never)
        self.patch(client, "sever", severed.set)
        connection.abandon("it is of no use")
        await until(closing.is_set, 10)
        await connection.stop()
        await until(severed.is_set, 0.5)
        await RawClient.close(client)

    async def test_nobody_there_is_known_at_once(self) -> None:
        connection = self.connection((await self.server()).url)
        connection.start()
        await until(lambda: self.ups == 1, 10)
        error = await self.assertFailure(connection.request("nobody.listens", b"", 60), Unavailable)
        self.assertIn("nobody", str(error))

    async def answering(self, *blocks: bytes) -> Connection:
        """A connection to a server where somebody answers each request on ``ask`` with these header blocks."""

        def answer(subject: bytes, reply: str, data: bytes, block: bytes) -> None:
            frames = [
                b"HMSG %s 1 %d %d\r\n%s\r\n" % (reply.encode(), len(one), len(one) + 5, one + b"hello")
                for one in blocks
            ]
            asker.say(b"".join(frames))

        asker = Proxy((await self.server()).port)
        self.addCleanup(asker.stop)
        connection = self.connection(asker.url)
        connection.subscribe("ask", answer)
        connection.start()
        await until(lambda: self.ups == 1, 10)
        return connection

    async def test_a_message_of_a_stream_never_ends_a_batch(self) -> None:
        stored = b"NATS/1.0 %s x\r\nNats-Sequence: 4\r\n\r\n"
        end = b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n"
        connection = await self.answering(stored % b"204", stored % b"503", end)
        replies = await connection.gather("ask", b"")
        self.assertEqual([reply.block for reply in replies], [stored % b"204", stored % b"503", end])

    async def test_an_answer_is_gone_with_those_who_asked(self) -> None:
        # without the garbage collector, which runs in a server once in ten minutes
        gc.disable()
        self.addCleanup(gc.enable)
        connection = await self.answering(
            b"NATS/1.0\r\nNats-Sequence: 4\r\n\r\n", b"NATS/1.0 204 EOB\r\n\r\n"
        )
        first, _ = await connection.gather("ask", b"")
        await pause(0)
        self.assertEqual([one for one in gc.get_referrers(first) if isinstance(one, list)], [])

    async def test_a_batch_of_more_than_its_limit_is_given_up(self) -> None:
        stored = b"NATS/1.0\r\nNats-Sequence: 4\r\n\r\n"
        end = b"NATS/1.0 204 EOB\r\n\r\n"
        connection = await self.answering(*[stored] * 100, end)
        size = 100 * (len(stored) + 5) + len(end) + 5
        self.assertEqual(len(await connection.gather("ask", b"", limit=size)), 101)
        error = await self.assertFailure(connection.gather("ask", b"", limit=size - 1), Unavailable)
        self.assertIn(f"more than {size - 1} bytes", str(error))
        self.assertEqual((connection._replies, self.downs), ({}, []))

    async def test_a_missing_permission_is_told(self) -> None:
        users = (
            'authorization { users: [{user: a, password: b, permissions: {publish: ["_INBOX_notify.>"]}}] }'
        )
        server = await self.server(users)
        connection = self.connection(server.url, user="a", password="b")
        connection.start()
        await until(lambda: self.ups == 1, 10)
        connection.publish("forbidden.fruit", b"")
        await until(lambda: self.denials, 10)
        self.assertIn('publish to "forbidden.fruit"', self.denials[0])

    async def test_a_wrong_password_is_tried_on_and_never_shown(self) -> None:
        server = await self.server("authorization { user: a, password: right }")
        connection = self.connection(server.url, user="a", password="wr0ng-secret")
        lines: list[str] = []
        observer = lambda event: lines.append(formatEvent(event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        connection.start()
        await until(lambda: any("authorization" in line.lower() for line in lines), 10)
        self.assertNotIn("wr0ng", "".join(lines))
        self.assertEqual(self.ups, 0)
        server.reload(server.config.read_text().replace("right", "wr0ng-secret"))
        await until(lambda: self.ups == 1, 10)
