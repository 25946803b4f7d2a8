"""Request bodies, whole or in pieces of any size: what is accepted, where a body ends, and what is refused."""

import contextlib

import h11
import httptools
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from notify.http.body import MAX_LINE, WRAPPING, Body, Chunked, Exceeded, Sized
from notify.wire.head import MAX_HEAD, Malformed


def feed(body: Body, data: bytes, size: int = 10**6) -> bytes:
    """Feed data in pieces, as a connection does; return what comes after the body."""
    held = b""
    for start in range(0, len(data), size):
        held += data[start : start + size]
        at = body.feed(held, 0) if not body.whole else 0
        held = held[at:]
    return held


class SizedTest(SynchronousTestCase):
    def test_ends_with_its_length(self) -> None:
        for size in (1, 2, 100):
            body = Sized(5, True)
            self.assertEqual(feed(body, b"abcdeGET", size), b"GET")
            self.assertEqual((body.whole, body.content()), (True, b"abcde"))

    def test_no_body_is_whole(self) -> None:
        self.assertTrue(Sized(0, True).whole)

    def test_nothing_is_kept_of_what_nobody_will_read(self) -> None:
        body = Sized(5, False)
        self.assertEqual(feed(body, b"abcdeGET", 2), b"GET")
        self.assertEqual((body.whole, body.content()), (True, b""))


class ChunkedTest(SynchronousTestCase):
    def test_chunks_are_joined_and_extensions_and_trailers_read_over(self) -> None:
        data = b'3;a=b ; c="d"\r\nabc\r\n00A ;x\r\n\r\n23456789\r\n0;last\r\nX: y\r\nEmpty:\r\n\r\nGET'
        for size in range(1, len(data) + 1):
            body = Chunked(100)
            self.assertEqual(feed(body, data, size), b"GET")
            self.assertEqual((body.whole, body.content()), (True, b"abc\r\n23456789"))

    def test_what_two_readers_could_read_in_two_ways_is_refused(self) -> None:
        for data in (
            b"\r\n",
            b" 5\r\nabcde\r\n",
            b"5 \r\nabcde\r\n",
            b"0x5\r\nabcde\r\n",
            b"+5\r\nabcde\r\n",
            b"-5\r\nabcde\r\n",
            b"5_0\r\n",
            b"g\r\n",
            b"5,5\r\n",
            b"5\x00\r\n",
            b"5;a\nb\r\nabcde\r\n",
            b"5;a\rb\r\nabcde\r\n",
            b"5;a\x00\r\nabcde\r\n",
            b"5\r\nabcde0\r\n\r\n",
            b"5\r\nabcde\n0\r\n\r\n",
            b"5\r\nabcde\r0\r\n\r\n",
            b"5\r\nabcdef\r\n",
            b"0" * 17 + b"\r\n",
            b"0\r\nno colon\r\n\r\n",
            b"0\r\n folded: x\r\n\r\n",
            b"0\r\nX : y\r\n\r\n",
            b"0\r\nX: a\nY: b\r\n\r\n",
            b"0\r\nX: a\rb\r\n\r\n",
            b"1" * (MAX_LINE + 1),
            b"5;" + b"x" * MAX_LINE,
            b"0\r\nX: " + b"a" * MAX_HEAD,
        ):
            for size in (1, 7, 10**6):
                self.assertRaises(Malformed, feed, Chunked(100), data + b" " * 10, size)

    def test_a_bare_lf_ends_no_line(self) -> None:
        body = Chunked(100)
        self.assertEqual(feed(body, b"5\nabcde\n0\n\n"), b"5\nabcde\n0\n\n")
        self.assertFalse(body.whole)

    def test_a_chunk_that_would_be_too_large_is_refused_by_its_size_alone(self) -> None:
        for size in (b"65", b"ffffffff", b"f" * 16, b"8000000000000000", b"000000000000065"):
            self.assertRaises(Exceeded, feed, Chunked(100), size + b"\r\n")
        self.assertRaises(Exceeded, feed, Chunked(100), b"64\r\n" + b"x" * 100 + b"\r\n1\r\n")

    def test_what_is_about_the_chunks_is_bounded_too(self) -> None:
        body, fed = Chunked(100), 0
        with self.assertRaises(Exceeded):
            for _ in range(100):
                feed(body, b"1;" + b"x" * 1000 + b"\r\na\r\n")
                fed += 1000
        self.assertLess(fed, WRAPPING + 2000)

    def test_trailers_are_bounded(self) -> None:
        body, fed = Chunked(100), 0
        feed(body, b"0\r\n")
        with self.assertRaises(Exceeded):
            for _ in range(100):
                feed(body, b"X: " + b"a" * 1000 + b"\r\n")
                fed += 1000
        self.assertLess(fed, WRAPPING + 2000)

    @settings(max_examples=100, derandomize=True)
    @given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.integers(1, 50))
    def test_any_content_comes_out_as_it_went_in(self, chunks: list[bytes], size: int) -> None:
        data = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        body = Chunked(1000)
        self.assertEqual(feed(body, data + b"rest", size), b"rest")
        self.assertEqual((body.whole, body.content()), (True, b"".join(chunks)))


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = (b"5\r\nabcde\r\n", b"1;a=b\r\nf\r\n", b"00B\r\nGET / HTTP/1\r\n", b"0\r\n", b"X: y\r\n", b"\r\n")
PIECES = (
    b"",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b";",
    b"0",
    b"1",
    b"f",
    b"\0",
    b"\xff",
    b'"',
    b"\r\n\r\n",
    b"-",
)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A chunked body with pieces removed or inserted."""
    data = b"".join(draw(st.lists(st.sampled_from(CHUNKS[:3]), max_size=3)))
    data += b"0\r\n" + draw(st.sampled_from((b"", b"X: y\r\n"))) + b"\r\n"
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        end = at + draw(st.sampled_from((0, 0, 1, 2)))
        data = data[:at] + draw(st.sampled_from(PIECES)) + data[end:]
    return data


class Llhttp:
    """Parses the first request with llhttp, byte by byte."""

    def __init__(self, data: bytes) -> None:
        self.body = b""
        self.whole = False
        self.seen = 0
        parser = httptools.HttpRequestParser(self)
        for number in range(len(data)):
            parser.feed_data(data[number : number + 1])
            self.seen += 1
            if self.whole:
                break

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole = True


class DifferentialTest(SynchronousTestCase):
    """Every body accepted here ends at the same byte, and has the same content, for llhttp and for h11."""

    def test_what_is_taken_is_taken_alike(self) -> None:
        alike = dict.fromkeys(("llhttp", "h11"), 0)

        @settings(max_examples=600, derandomize=True)
        @given(spoilt())
        def play(data: bytes) -> None:
            ours = Chunked(100)
            try:
                rest = feed(ours, data)
            except (Malformed, Exceeded):
                return
            if not ours.whole:
                return
            # It is no disagreement if the other parser refuses what we accept.
            with contextlib.suppress(httptools.HttpParserError):
                theirs = Llhttp(HEAD + data)
                self.assertEqual((theirs.body, theirs.whole), (ours.content(), True))
                self.assertEqual(theirs.seen, len(HEAD + data) - len(rest))
                alike["llhttp"] += 1
            with contextlib.suppress(h11.RemoteProtocolError):
                connection = h11.Connection(h11.SERVER)
                connection.receive_data(HEAD + data)
                connection.next_event()
                got = b""
                while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                    assert isinstance(event, h11.Data), event
                    got += event.data
                self.assertEqual((got, connection.trailing_data[0]), (ours.content(), rest))
                alike["h11"] += 1

        play()
        self.assertGreater(min(alike.values()), 50, alike)
