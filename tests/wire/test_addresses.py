"""The addresses that clients come from."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

from twisted.trial.unittest import SynchronousTestCase

from notify.wire import addresses
from notify.wire.addresses import block, client_address, is_inside, parse, parse_networks


class Addresses(SynchronousTestCase):
    def test_an_address_is_the_same_however_it_is_written(self) -> None:
        for text, address in (
            ("9.9.9.9", "9.9.9.9"),
            ("::ffff:9.9.9.9", "9.9.9.9"),
            ("::FFFF:909:909", "9.9.9.9"),
            ("2620:FE:0::FE", "2620:fe::fe"),
            ("fe80::1%eth0", "fe80::1"),
            ("::ffff:9.9.9.9%1", "9.9.9.9"),
            ("2620:fe::fe%<script>alert(1)", "2620:fe::fe"),
        ):
            self.assertEqual(str(parse(text)), address)

    def test_what_is_no_address_is_none(self) -> None:
        for text in (
            "",
            "localhost",
            "9.9.9.9:80",
            "[::1]",
            "9.9.9.9%eth0",
            "09.9.9.9",
            "%<script>",
            " 9.9.9.9",
        ):
            self.assertIsNone(parse(text), text)

    def test_ipv6_counts_by_the_64(self) -> None:
        self.assertEqual(block(ip_address("2001:db8:1:2::1")), block(ip_address("2001:db8:1:2:ffff::")))
        self.assertNotEqual(block(ip_address("2001:db8:1:2::1")), block(ip_address("2001:db8:1:3::1")))
        self.assertNotEqual(block(ip_address("9.9.9.9")), block(ip_address("9.9.9.8")))

    def test_inside_is_what_the_internet_does_not_reach(self) -> None:
        for text in ("127.0.0.9", "10.1.2.3", "172.31.0.1", "192.168.0.1", "169.254.1.1", "100.64.0.1",
                     "::1", "fd00::1", "fe80::1", "::ffff:10.0.0.1"):  # fmt: skip
            self.assertTrue(is_inside(parse(text)), text)  # type: ignore[arg-type]
        for text in ("9.9.9.9", "172.32.0.1", "192.0.2.1", "100.128.0.1", "2620:fe::fe", "::ffff:9.9.9.9"):
            self.assertFalse(is_inside(parse(text)), text)  # type: ignore[arg-type]


class Proxies(SynchronousTestCase):
    def test_forwarded_addresses_are_believed_as_far_as_proxies_are_trusted(self) -> None:
        trusted = parse_networks(["10.0.0.0/8", "::1"])
        for peer, forwarded, address in (
            ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
            ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
            ("10.0.0.1", "203.0.113.9, 198.51.100.7", "198.51.100.7"),
            ("10.0.0.1", "198.51.100.7, 10.0.0.2", "198.51.100.7"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "nonsense", "10.0.0.1"),
            ("10.0.0.1", "198.51.100.7, nonsense", "10.0.0.1"),
            ("10.0.0.1", "198.51.100.7, nonsense, 10.0.0.2", "10.0.0.1"),
            ("::1", "2001:db8::7", "2001:db8::7"),
            ("", "198.51.100.7", ""),
        ):
            self.assertEqual(client_address(peer, forwarded, trusted), address, (peer, forwarded))
        self.assertEqual(client_address("10.0.0.1", "198.51.100.7", ()), "10.0.0.1")

    def test_a_proxy_is_known_on_a_listener_for_both_versions(self) -> None:
        for trusted in (["127.0.0.1"], ["::ffff:127.0.0.1"], ["::ffff:127.0.0.0/104"]):
            for peer in ("127.0.0.1", "::ffff:127.0.0.1"):
                self.assertEqual(client_address(peer, "9.9.9.9", parse_networks(trusted)), "9.9.9.9")
        self.assertEqual(
            client_address("127.0.0.1", "::ffff:9.9.9.9", parse_networks(["127.0.0.1"])), "9.9.9.9"
        )

    def test_a_scope_is_no_way_to_say_anything(self) -> None:
        trusted = parse_networks(["127.0.0.1"])
        self.assertEqual(client_address("127.0.0.1", "fe80::1%<script>", trusted), "fe80::1")
        self.assertEqual(client_address("fe80::1%eth0", "", trusted), "fe80::1")

    def test_long_texts_are_not_kept(self) -> None:
        addresses._parse_once.cache_clear()
        self.assertEqual(addresses.parse("fe80::1%" + "x" * 5000), addresses.parse("fe80::1"))
        self.assertIsNone(addresses.parse("x" * 5000))
        self.assertEqual(addresses._parse_once.cache_info().currsize, 1)

    def test_networks(self) -> None:
        self.assertEqual(
            parse_networks(["10.0.0.1/8", "2001:db8::/32", "::/0"]),
            (IPv4Network("10.0.0.0/8"), IPv6Network("2001:db8::/32"), IPv6Network("::/0")),
        )
        self.assertRaises(ValueError, parse_networks, ["proxy.example"])
