"""Which connections are admitted; with a clock that is only a number, and without sockets."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Limits
from notify.transport.admission import (
    FEW,
    QUIET,
    REASONS,
    RESERVE,
    Admission,
    TurnedAway,
    Visit,
    most,
    reserve,
)
from notify.wire.addresses import parse_networks

FREE = Limits(max_connections=0, max_arriving=0)


class Door:
    """An admission with limits, time and other inputs that the test sets."""

    def __init__(self, trusted: tuple[str, ...] = (), **limits: Any) -> None:
        self.limits = replace(FREE, **limits)
        self.trusted = parse_networks(trusted)
        self.files = 10_000
        self.now = 1000.0
        self.sockets = 0
        self.refused: list[str] = []
        self.admission = Admission(
            lambda: self.limits,
            lambda: self.trusted,
            lambda: self.files,
            lambda: self.now,
            lambda count: setattr(self, "sockets", count),
            self.refused.append,
        )

    def enter(self, peer: str = "9.9.9.9", descriptor: int = 10) -> Visit | str:
        """A visit, or the reason why it is refused."""
        try:
            return self.admission.enter(peer, descriptor)
        except TurnedAway as why:
            return why.reason

    def crowd(self, count: int, peer: str = "9.9.9.9") -> list[Visit]:
        """Let this many connections in."""
        visits = []
        for _ in range(count):
            visit = self.enter(peer)
            assert isinstance(visit, Visit), visit
            visits.append(visit)
        return visits


def identify(visit: Visit, address: str) -> str:
    """Why a visit is refused for its address; empty if it is not."""
    try:
        visit.identify(address)
    except TurnedAway as why:
        return why.reason
    return ""


class All(SynchronousTestCase):
    def test_a_socket_counts_from_its_accept_to_its_end(self) -> None:
        door = Door(max_connections=3)
        shaking, opened, arrived = door.crowd(3)
        opened.opened()
        arrived.opened()
        arrived.arrived()
        self.assertEqual(door.sockets, 3)
        for visit in (shaking, opened, arrived):
            self.assertEqual(door.enter(), "full")
            visit.leave()
            visit.leave()
            [_] = door.crowd(1)
        self.assertEqual((door.sockets, door.refused), (3, ["full"] * 3))

    def test_those_in_the_handshake_are_no_more_than_may_arrive(self) -> None:
        door = Door(max_arriving=2)
        first, second = door.crowd(2)
        self.assertEqual(door.enter(), "arriving")
        first.opened()
        first.opened()
        door.crowd(1)
        self.assertEqual(door.enter(), "arriving")
        second.leave()
        first.leave()
        door.crowd(1)
        self.assertEqual((door.enter(), door.admission.arriving), ("arriving", 2))

    def test_auto_is_what_files_allow_less_a_reserve(self) -> None:
        for files, connections in ((524_288, 524_088), (1024, 824), (400, 300)):
            self.assertEqual(most(Limits(), files), connections)
        self.assertEqual(most(Limits(max_connections=0), 1024), 0)
        self.assertEqual(most(Limits(max_connections=5000), 1024), 5000)
        door = Door(max_connections="auto")
        door.files = 12
        door.crowd(9)
        self.assertEqual(door.enter(), "full")

    def test_the_last_files_are_for_others_however_many_connections_may_be(self) -> None:
        for limits in (FREE, Limits(max_connections=10**6)):
            door = Door(max_connections=limits.max_connections)
            door.files = 1024
            self.assertIsInstance(door.enter("9.9.9.9", 1024 - RESERVE // 2 - 1), Visit)
            self.assertEqual(door.enter("9.9.9.9", 1024 - RESERVE // 2), "files")
            door.files = 2048  # as prlimit does
            self.assertIsInstance(door.enter("9.9.9.9", 1024 - RESERVE // 2), Visit)
        self.assertEqual(reserve(64), 16)

    def test_limits_that_are_replaced_hold_at_once(self) -> None:
        door = Door()
        door.crowd(5)
        door.limits = replace(FREE, max_connections=5)
        self.assertEqual(door.enter(), "full")

    def test_a_reason_is_said_once_and_again_after_a_quiet_time(self) -> None:
        door = Door(max_connections=1)
        door.crowd(1)
        said = []
        for seconds in (0.0, 1.0, QUIET - 1, QUIET + 1, 0.0):
            door.now += seconds
            with capturedLogs() as logs:
                door.enter()
            said.append(len(logs))
        self.assertEqual(said, [1, 0, 0, 1, 0])
        self.assertEqual(door.refused, ["full"] * 5)


class Addresses(SynchronousTestCase):
    def refused(self, door: Door, *peers: str) -> list[str]:
        """Why each new connection is refused, or an empty string; admitted ones leave, but have used up their rate."""
        found = []
        for peer in peers:
            visit = door.enter(peer)
            found.append(visit if isinstance(visit, str) else "")
            if isinstance(visit, Visit):
                visit.leave()
        return found

    def test_connections_of_one_address(self) -> None:
        door = Door(max_connections_per_address=2)
        visit, _ = door.crowd(2)
        self.assertEqual(self.refused(door, "9.9.9.9", "9.9.9.8"), ["address_connections", ""])
        visit.leave()
        self.assertEqual(self.refused(door, "9.9.9.9"), [""])

    def test_arrivals_of_one_address_count_from_the_accept_to_a_good_token(self) -> None:
        door = Door(max_arriving_per_address=2)
        first, second = door.crowd(2)
        first.opened()
        self.assertEqual(self.refused(door, "9.9.9.9", "9.9.9.8"), ["address_arriving", ""])
        first.arrived()
        first.arrived()
        [third] = door.crowd(1)
        self.assertEqual(self.refused(door, "9.9.9.9"), ["address_arriving"])
        for visit in (first, second, third):
            visit.leave()
        door.crowd(2)
        self.assertEqual(self.refused(door, "9.9.9.9"), ["address_arriving"])

    def test_handshakes_of_one_address_have_a_rate_and_a_burst(self) -> None:
        door = Door(handshakes_per_second=10, handshakes_burst=20)
        self.assertEqual(self.refused(door, *["9.9.9.9"] * 22), [""] * 20 + ["address_handshakes"] * 2)
        self.assertEqual(self.refused(door, "9.9.9.8"), [""])
        door.now += 0.5
        self.assertEqual(self.refused(door, *["9.9.9.9"] * 6), [""] * 5 + ["address_handshakes"])
        door.now -= 3600  # a clock that goes back gains no permits and loses none
        self.assertEqual(self.refused(door, "9.9.9.9"), ["address_handshakes"])
        door.now += 0.5
        self.assertEqual(self.refused(door, *["9.9.9.9"] * 6), [""] * 5 + ["address_handshakes"])
        door.now += 3600
        self.assertEqual(self.refused(door, *["9.9.9.9"] * 21), [""] * 20 + ["address_handshakes"])

    def test_nought_is_no_limit(self) -> None:
        door = Door(max_connections_per_address=0, max_arriving_per_address=0, handshakes_per_second=0)
        door.crowd(5000)
        self.assertEqual(door.refused, [])

    def test_ipv6_counts_by_the_64_and_ipv4_in_ipv6_as_ipv4(self) -> None:
        door = Door(max_connections_per_address=1)
        door.crowd(1, "2620:fe::1")
        door.crowd(1, "9.9.9.9")
        self.assertEqual(
            self.refused(door, "2620:fe::2", "2620:fe:0:1::1", "::ffff:9.9.9.9", "::ffff:9.9.9.8"),
            ["address_connections", "", "address_connections", ""],
        )

    def test_inside_there_is_no_limit_for_an_address(self) -> None:
        door = Door(max_connections_per_address=1, max_arriving_per_address=1, handshakes_burst=1)
        for peer in ("127.0.0.1", "::1", "10.0.0.1", "fd00::1", "::ffff:192.168.0.1", ""):
            for visit in door.crowd(50, peer):
                self.assertEqual(identify(visit, peer), "")
                visit.arrived()
                visit.leave()
        self.assertEqual((door.refused, door.sockets), ([], 0))

    def test_a_trusted_proxy_is_not_limited_and_those_behind_it_are(self) -> None:
        for proxy in ("10.0.0.1", "8.8.8.8"):
            door = Door((proxy,), max_connections_per_address=2)
            first, second, third, other, itself = door.crowd(5, proxy)
            self.assertEqual([identify(one, "9.9.9.9") for one in (first, second)], ["", ""])
            self.assertEqual(identify(third, "9.9.9.9"), "address_connections")
            self.assertEqual(identify(other, "9.9.9.8"), "")
            self.assertEqual(identify(itself, proxy), "")
            # A direct connection from the same address counts with those.
            self.assertEqual(self.refused(door, "9.9.9.9"), ["address_connections"])
            third.leave()
            first.leave()
            self.assertEqual(identify(itself, "9.9.9.9"), "")
            self.assertEqual(door.sockets, 3)

    def test_arrivals_behind_a_proxy_count_from_the_handshake(self) -> None:
        door = Door(("10.0.0.1",), max_arriving_per_address=1)
        first, second = door.crowd(2, "10.0.0.1")
        self.assertEqual(identify(first, "9.9.9.9"), "")
        self.assertEqual(identify(second, "9.9.9.9"), "address_arriving")
        first.arrived()
        self.assertEqual(identify(second, "9.9.9.9"), "")

    def test_who_came_straight_is_counted_once(self) -> None:
        door = Door(max_connections_per_address=1)
        [visit] = door.crowd(1)
        self.assertEqual(identify(visit, "9.9.9.9"), "")

    def test_addresses_are_forgotten_once_nothing_is_to_be_known_of_them(self) -> None:
        door = Door(handshakes_per_second=10, handshakes_burst=20)
        [stays] = door.crowd(1, "9.9.9.9")
        for number in range(10 * FEW):
            door.now += 0.01
            [visit] = door.crowd(1, f"8.8.{number >> 8}.{number & 255}")
            visit.leave()
        self.assertLessEqual(len(door.admission._addresses), 2 * FEW)
        stays.arrived()
        stays.leave()
        self.assertEqual(door.sockets, 0)

    def test_every_reason_has_a_sentence_that_names_the_limit(self) -> None:
        door = Door(max_connections_per_address=1)
        door.crowd(1)
        with capturedLogs() as logs:
            self.refused(door, "9.9.9.9")
        self.assertIn(
            "9.9.9.9 is over limits.max_connections_per_address", logs[0]["log_format"].format(**logs[0])
        )
        for reason, sentence in REASONS.items():
            self.assertEqual(reason.startswith("address_"), "{address}" in sentence)
