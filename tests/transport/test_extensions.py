"""Extensions that clients offer, and which are accepted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from notify.transport.extensions import Offer, accept_deflate, parse_offers

AGREED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


class Grammar(SynchronousTestCase):
    def test_offers_are_read_by_the_grammar(self) -> None:
        for header, offers in (
            ("", ()),
            (" , ,\t", ()),
            ("a", (Offer("a", ()),)),
            ("a,b", (Offer("a", ()), Offer("b", ()))),
            (", a ,, b,", (Offer("a", ()), Offer("b", ()))),
            ("A; B=C", (Offer("a", (("b", "C"),)),)),
            ("a;b;c=1", (Offer("a", (("b", None), ("c", "1"))),)),
            ("a \t; b = 1 ;\tc", (Offer("a", (("b", "1"), ("c", None))),)),
            ('a; b="1"', (Offer("a", (("b", "1"),)),)),
            ('a; b="\\1\\0"; c, d', (Offer("a", (("b", "10"), ("c", None))), Offer("d", ()))),
            ("a; b; b", (Offer("a", (("b", None), ("b", None))),)),
        ):
            self.assertEqual(parse_offers(header), offers, header)

    def test_what_is_not_of_the_grammar_is_none(self) -> None:
        for header in (
            ";",
            "a;",
            "a; ;b",
            "=",
            "a=1",
            "a; b=",
            "a; b==1",
            "a; b=1=2",
            "a; =1",
            "a b",
            "a; b c",
            'a; b="',
            'a; b="1',
            'a; b="1\\"',
            'a; b=""',
            'a; b="1,2"',
            'a; b="1 2"',
            'a; b="1"2',
            "a; b=1, ;",
            "a/b",
            "\ufffd",
        ):
            self.assertIsNone(parse_offers(header), header)

    @given(st.text('ab=;," \\\t', max_size=20))
    def test_whatever_comes_is_read_or_refused(self, header: str) -> None:
        offers = parse_offers(header)
        if offers is not None:
            again = ", ".join(
                "; ".join([name, *(one if value is None else f"{one}={value}" for one, value in parameters)])
                for name, parameters in offers
            )
            self.assertEqual(parse_offers(again), offers)


class Deflate(SynchronousTestCase):
    def agreed(self, header: str) -> tuple[int, str] | None:
        offers = parse_offers(header)
        assert offers is not None, header
        found = accept_deflate(offers)
        return found and tuple(found)

    def test_an_offer_is_answered_with_what_is_kept(self) -> None:
        for parameters, bits, more in (
            ("", 15, ""),
            ("; client_max_window_bits", 15, ""),
            ("; client_max_window_bits=8", 15, ""),
            ("; client_max_window_bits=15", 15, ""),
            ("; client_no_context_takeover", 15, ""),
            ("; server_no_context_takeover", 15, ""),
            ("; server_max_window_bits=9", 9, "; server_max_window_bits=9"),
            ("; server_max_window_bits=15", 15, "; server_max_window_bits=15"),
            ('; server_max_window_bits="10"', 10, "; server_max_window_bits=10"),
            ("; Server_Max_Window_Bits=10; client_max_window_bits", 10, "; server_max_window_bits=10"),
        ):
            self.assertEqual(
                self.agreed("permessage-deflate" + parameters), (bits, AGREED + more), parameters
            )

    def test_an_offer_that_cannot_be_kept_is_declined_and_the_next_tried(self) -> None:
        for parameters in (
            "unknown",
            "server_no_context_takeover=1",
            "client_no_context_takeover=true",
            "server_no_context_takeover; server_no_context_takeover",
            "client_max_window_bits; client_max_window_bits=10",
            "client_max_window_bits=7",
            "client_max_window_bits=16",
            "client_max_window_bits=010",
            "client_max_window_bits=x",
            "server_max_window_bits",
            "server_max_window_bits=7",
            "server_max_window_bits=8",  # legal, but zlib has no raw stream with this window
            "server_max_window_bits=16",
            "server_max_window_bits=09",
            "server_max_window_bits=+9",
            "server_max_window_bits=9; unknown=1",
        ):
            self.assertIsNone(self.agreed(f"permessage-deflate; {parameters}"), parameters)
            self.assertEqual(
                self.agreed(f"permessage-deflate; {parameters}, permessage-deflate"), (15, AGREED), parameters
            )

    def test_other_extensions_are_declined(self) -> None:
        self.assertIsNone(self.agreed("permessage-bzip2, x-webkit-deflate-frame; a=1"))
        self.assertIsNone(self.agreed(""))
        self.assertEqual(self.agreed("x-unknown, permessage-deflate"), (15, AGREED))

    def test_the_first_that_can_be_kept_is_taken(self) -> None:
        offer = "permessage-deflate; server_max_window_bits={}"
        self.assertEqual(
            self.agreed(", ".join(offer.format(bits) for bits in (8, 11, 12))),
            (11, f"{AGREED}; server_max_window_bits=11"),
        )
