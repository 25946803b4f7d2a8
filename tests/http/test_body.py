"""A body, whole or cut anywhere: what is taken of it, where it ends, and what is refused."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from notify.http.body import MAX_LINE, WRAPPING, Body, Chunked, Exceeded, Sized
from notify.wire.head import MAX_HEAD, Malformed


def feed(body: Body, data: bytes, size: int = 10**6) -> bytes:
    """Feed data in pieces, as a connection does; gives what lies behind the body."""
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

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.integers(1, 50))
    def test_any_content_comes_out_as_it_went_in(self, chunks: list[bytes], size: int) -> None:
        data = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        body = Chunked(1000)
        self.assertEqual(feed(body, data + b"rest", size), b"rest")
        self.assertEqual((body.whole, body.content()), (True, b"".join(chunks)))
