"""Sockets that one process accepts and another one serves; in these tests one process plays both."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from notify.config import Limits
from notify.core.dispatcher import end_of_turn
from notify.transport.admission import Admission, TurnedAway
from notify.transport.handover import Acceptor, Adopting, Decided, Doorman, Receiver, pair
from notify.wire.addresses import parse_networks
from tests.workers.joined import Joined


def the_reactor() -> Any:
    from twisted.internet import reactor

    return reactor


class Greeter(Protocol):
    """Writes which side serves a socket, or why it is refused; its visit leaves when the connection ends."""

    visit: Any = None

    def connectionMade(self) -> None:
        transport: Any = self.transport
        try:
            self.visit = self.factory.decided.enter(transport.getPeer().host)
        except TurnedAway as why:
            transport.write(why.reason.encode())
            transport.loseConnection()
            return
        self.factory.served.append(self)
        transport.write(self.factory.name)

    def connectionLost(self, reason: object = None) -> None:
        if self.visit is not None:
            self.visit.leave()
            self.factory.served.remove(self)


class Side(Factory):
    """One side, identified by its name."""

    protocol = Greeter
    noisy = False

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.decided = Decided()
        self.served: list[Greeter] = []


class Handover(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.reactor = the_reactor()
        self.limits = Limits(max_connections=0)
        self.trusted: tuple[Any, ...] = ()
        self.refused: list[str] = []
        self.admission = Admission(
            lambda: self.limits,
            lambda: self.trusted,
            lambda: 100_000,
            self.reactor.seconds,
            lambda count: None,
            self.refused.append,
        )
        self.own = Side(b"own")
        adopting = Adopting(self.own, self.reactor)
        self.silent: set[Any] = set()
        self.doorman = Doorman(
            self.admission, lambda: adopting, self.own.decided, lambda link: link in self.silent
        )
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.setblocking(False)
        self.acceptor = Acceptor(self.reactor, self.listening, self.doorman)
        self.acceptor.start()
        self.sides: list[Side] = []
        self.joined: list[Joined] = []
        self.desks: list[socket.socket] = []
        self.receivers: list[Receiver] = []
        self.clients: list[socket.socket] = []

    async def tearDown(self) -> None:
        self.acceptor.stop()
        for client in self.clients:
            client.close()
        await self.until(lambda: not any(side.served for side in (*self.sides, self.own)))
        for receiver in self.receivers:
            receiver.stop()
        for one in (self.listening, *self.desks):
            one.close()
        await self.wait(0.05)

    def wait(self, seconds: float) -> Deferred[None]:
        return deferLater(self.reactor, seconds, lambda: None)

    async def until(self, condition: Any) -> None:
        while not condition():
            await self.wait(0.005)

    def worker(self, start: bool = True) -> Side:
        side, joined = Side(b"%d" % len(self.sides)), Joined(self.reactor)
        ours, theirs = pair()
        port = Adopting(side, self.reactor)
        receiver = Receiver(
            self.reactor, theirs, port, side.decided, joined.worker, end_of_turn(self.reactor)
        )
        if start:
            receiver.start()
        self.doorman.serve(joined.head, ours)
        self.sides.append(side)
        self.joined.append(joined)
        self.desks += [ours, theirs]
        self.receivers.append(receiver)
        return side

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.listening.getsockname())
        client.setblocking(False)
        self.clients.append(client)
        return client

    async def greeted(self, client: socket.socket) -> bytes:
        while True:
            try:
                return client.recv(100)
            except BlockingIOError:
                await self.wait(0.005)

    async def test_each_goes_to_the_one_that_has_the_fewest(self) -> None:
        self.worker(), self.worker()
        names = [await self.greeted(self.connect()) for _ in range(10)]
        self.assertEqual(sorted(names), [b"0"] * 5 + [b"1"] * 5)
        for client, name in list(zip(self.clients, names, strict=True)):
            if name == b"1":
                client.close()
        await self.until(lambda: list(self.doorman.loads().values()) == [5, 0])
        names = [await self.greeted(self.connect()) for _ in range(5)]
        self.assertEqual(names, [b"1"] * 5)
        self.assertEqual((self.admission.sockets, self.own.served), (10, []))

    async def test_one_that_is_silent_is_last(self) -> None:
        self.worker(), self.worker()
        self.silent = {self.joined[0].head}
        self.assertEqual([await self.greeted(self.connect()) for _ in range(4)], [b"1"] * 4)
        self.silent = {one.head for one in self.joined}
        self.assertEqual([await self.greeted(self.connect()) for _ in range(4)], [b"0"] * 4)

    async def test_those_who_leave_at_once_do_not_all_go_to_the_same(self) -> None:
        self.worker(), self.worker()
        names = []
        for _ in range(6):
            client = self.connect()
            names.append(await self.greeted(client))
            client.close()
            await self.until(lambda: list(self.doorman.loads().values()) == [0, 0])
        self.assertEqual(names, [b"0", b"1"] * 3)

    async def test_without_a_worker_they_are_served_where_they_were_accepted(self) -> None:
        self.assertEqual(await self.greeted(self.connect()), b"own")
        self.worker()
        self.assertEqual(await self.greeted(self.connect()), b"0")
        self.doorman.drop(self.joined[0].head)
        self.assertEqual(self.admission.sockets, 1)
        self.assertEqual(await self.greeted(self.connect()), b"own")

    async def test_limits_hold_over_all(self) -> None:
        self.worker(), self.worker()
        self.limits = Limits(max_connections=4)
        names = [await self.greeted(self.connect()) for _ in range(6)]
        self.assertEqual(sorted(names), [b"0", b"0", b"1", b"1", b"full", b"full"])
        self.clients[0].close()
        await self.until(lambda: self.admission.sockets == 3)
        self.assertIn(await self.greeted(self.connect()), (b"0", b"1"))
        self.assertEqual(self.refused, ["full", "full"])

    async def test_what_becomes_of_a_socket_is_known_where_it_is_counted(self) -> None:
        side = self.worker()
        self.limits = Limits(max_connections=0, max_arriving=2)
        for _ in range(2):
            await self.greeted(self.connect())
        self.assertEqual(await self.greeted(self.connect()), b"arriving")
        for one in side.served:
            one.visit.opened()
            one.visit.opened()
            one.visit.arrived()
        await self.until(lambda: self.admission.arriving == 0)
        self.assertEqual(await self.greeted(self.connect()), b"0")
        self.assertEqual(self.admission.sockets, 3)

    async def test_an_address_that_a_proxy_tells_counts_over_all(self) -> None:
        self.trusted = parse_networks(("127.0.0.1",))
        self.limits = Limits(max_connections=0, max_connections_per_address=3)
        self.worker(), self.worker()
        for _ in range(4):
            await self.greeted(self.connect())
        visits = [one.visit for side in self.sides for one in side.served]
        self.assertIsNone(visits[0].identify("127.0.0.1"))
        results = []
        for visit in visits:
            asked = visit.identify("9.9.9.9")
            results.append(await asked.addErrback(lambda failure: failure.value.reason))
        self.assertEqual(results, [None, None, None, "address_connections"])
        visits[0].leave()
        await self.until(lambda: self.admission.sockets == 3)
        self.assertIsNone(await visits[3].identify("9.9.9.9"))

    async def test_where_no_worker_takes_any_who_connects_waits(self) -> None:
        side = self.worker(start=False)
        taken: list[int] = []
        desk = self.doorman._desks[self.joined[0].head]
        desk.hand_over = lambda sock, handed: False  # type: ignore[method-assign]
        client = self.connect()
        await self.wait(0.1)
        self.assertEqual((self.admission.sockets, side.served, taken), (1, [], []))
        del desk.hand_over
        self.receivers[0].start()
        self.assertEqual(await self.greeted(client), b"0")
        self.assertEqual(await self.greeted(self.connect()), b"0")
        self.assertEqual(self.admission.sockets, 2)

    async def test_one_that_waits_is_given_up_with_the_port(self) -> None:
        self.worker(start=False)
        desk = self.doorman._desks[self.joined[0].head]
        desk.hand_over = lambda sock, handed: False  # type: ignore[method-assign]
        client = self.connect()
        await self.until(lambda: self.admission.sockets == 1)
        self.acceptor.stop()
        self.assertEqual(self.admission.sockets, 0)
        self.assertEqual(await self.greeted(client), b"")

    def test_what_is_decided_is_decided(self) -> Deferred[None]:
        decided = Decided()
        decided.verdict = TurnedAway("full")
        self.assertRaises(TurnedAway, decided.enter, "")
        return succeed(None)
