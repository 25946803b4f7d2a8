"""The head of an HTTP request: how it is read, and that heads which two readers could read differently are refused."""

import contextlib
from typing import Any

import h11
import httptools
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from notify.wire import head as heads
from notify.wire.head import MAX_HEAD, Head, Malformed, TooLong


def head(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join((first, *lines))


def length(*lines: bytes, first: bytes = b"POST / HTTP/1.1") -> int | None:
    return heads.length(heads.read(head(*lines, first=first)))


class ReadTest(SynchronousTestCase):
    def test_reads_the_request_line_and_every_field(self) -> None:
        self.assertEqual(
            heads.read(
                head(b"Host:x", b"X-Two: a", b"x-tWO:\t b c \t", b"Empty:", first=b"BREW /a?b HTTP/1.0")
            ),
            Head(
                b"BREW",
                b"/a?b",
                b"HTTP/1.0",
                {b"host": [b"x"], b"x-two": [b"a", b"b c"], b"empty": [b""]},
            ),
        )

    def test_bytes_that_are_not_ascii_may_stand_in_values(self) -> None:
        self.assertEqual(heads.read(head(b"X: \xc3\xa4\xff")).fields, {b"x": [b"\xc3\xa4\xff"]})

    def test_request_lines_that_are_none(self) -> None:
        for first in (
            b"",
            b"GET",
            b"GET /",
            b"GET  / HTTP/1.1",
            b"GET / HTTP/1.1 ",
            b" GET / HTTP/1.1",
            b"GET\t/ HTTP/1.1",
            b"GET /a b HTTP/1.1",
            b"GET /\x7f HTTP/1.1",
            b"GET /\xc3\xa4 HTTP/1.1",
            b"G@T / HTTP/1.1",
        ):
            self.assertRaises(Malformed, heads.read, head(b"Host: x", first=first))

    def test_lines_that_are_no_fields(self) -> None:
        for line in (
            b"no colon",
            b": no name",
            b"Host : x",
            b" folded: x",
            b"\tfolded",
            b"a b: x",
            b"a\xe4: x",
            b"a(b): x",
            b"",
            b"X: a\x00b",
            b"X: a\x0bb",
            b"X: a\x7fb",
        ):
            self.assertRaises(Malformed, heads.read, head(b"Host: x", line, b"Y: z"))

    def test_a_bare_cr_or_lf_ends_nothing(self) -> None:
        for bare in (b"\n", b"\r", b"\r\r\n", b"\n\r\n", b"\n\r"):
            for data in (
                b"GET / HTTP/1.1" + bare + b"Host: x\r\nX: y",
                b"GET / HTTP/1.1\r\nHost: x" + bare + b"X: y",
                b"GET / HTTP/1.1\r\nHost: x\r\nX: y" + bare,
            ):
                self.assertRaises(Malformed, heads.read, data)

    def test_the_end_is_found_once_it_is_here(self) -> None:
        data = head(b"Host: x")
        self.assertEqual(heads.find_end(data + b"\r\n\r"), -1)
        self.assertEqual(heads.find_end(b"ab" + data + b"\r\n\r\nGET", 2), len(data) + 2)

    def test_a_head_is_bounded_whether_it_ends_or_not(self) -> None:
        self.assertEqual(heads.find_end(b"x" * MAX_HEAD + b"\r\n\r\n"), MAX_HEAD)
        self.assertEqual(heads.find_end(b"x" * (MAX_HEAD + 3)), -1)
        self.assertRaises(TooLong, heads.find_end, b"x" * (MAX_HEAD + 4))
        self.assertRaises(TooLong, heads.find_end, b"x" * (MAX_HEAD + 1) + b"\r\n\r\n")


class LengthTest(SynchronousTestCase):
    def test_a_body_has_a_length_or_comes_in_chunks_or_is_none(self) -> None:
        self.assertEqual(length(), 0)
        self.assertEqual(length(b"Content-Length: 017"), 17)
        self.assertIsNone(length(b"Transfer-Encoding: Chunked"))

    def test_what_two_readers_could_read_in_two_ways_is_refused(self) -> None:
        for lines in (
            [b"Content-Length: 5", b"Content-Length: 5"],
            [b"Content-Length: 5", b"content-length: 6"],
            [b"Content-Length: 5, 5"],
            [b"Content-Length: +5"],
            [b"Content-Length: -5"],
            [b"Content-Length: 0x5"],
            [b"Content-Length: 5 5"],
            [b"Content-Length: 5_0"],
            [b"Content-Length: \xb25"],
            [b"Content-Length:"],
            [b"Content-Length: " + b"1" * 19],
            [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
            [b"Content-Length: 0", b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
            [b"Transfer-Encoding: identity"],
            [b"Transfer-Encoding: identity", b"Content-Length: 5"],
            [b"Transfer-Encoding: identity, chunked"],
            [b"Transfer-Encoding: chunked, identity"],
            [b"Transfer-Encoding: chunked, chunked"],
            [b"Transfer-Encoding: gzip, chunked"],
            [b"Transfer-Encoding: xchunked"],
            [b"Transfer-Encoding: chunked;q=1"],
            [b"Transfer-Encoding: \x0bchunked"],
            [b'Transfer-Encoding: "chunked"'],
            [b"Transfer-Encoding:"],
        ):
            self.assertRaises(Malformed, length, *lines)

    def test_http_1_0_knows_no_chunks(self) -> None:
        self.assertRaises(Malformed, length, b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0")


class HostTest(SynchronousTestCase):
    def host(self, *lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
        return heads.host(heads.read(head(*lines, first=first)))

    def test_a_name_or_an_address_with_a_port_or_without(self) -> None:
        for host in (b"", b"x", b"x.test:80", b"x:", b"127.0.0.1:1", b"[::1]", b"[::1]:8081", b"a_b"):
            self.assertEqual(self.host(b"Host: " + host), host)

    def test_http_1_0_needs_none(self) -> None:
        self.assertEqual(self.host(first=b"GET / HTTP/1.0"), b"")

    def test_what_is_none_or_several_is_refused(self) -> None:
        for lines in (
            [],
            [b"Host: a", b"Host: b"],
            [b"Host: a", b"host: a"],
            [b"Host: a b"],
            [b"Host: a/b"],
            [b"Host: user@a"],
            [b"Host: a:b"],
            [b"Host: a:1:2"],
            [b"Host: a?b"],
            [b"Host: a#b"],
            [b"Host: [::1"],
            [b"Host: <a>"],
            [b"Host: \xc3\xa4"],
        ):
            self.assertRaises(Malformed, self.host, *lines)


class ListsTest(SynchronousTestCase):
    def test_an_option_is_found_in_whatever_line_and_case(self) -> None:
        fields = heads.read(head(b"Connection: keep-alive ,CLOSE", b"Connection: x")).fields
        for option in (b"close", b"keep-alive", b"x"):
            self.assertTrue(heads.lists(fields, b"connection", option))
        for option in (b"clos", b"", b"keep"):
            self.assertFalse(heads.lists(fields, b"connection", option))
        self.assertFalse(heads.lists(fields, b"expect", b"close"))


FRAMES = (
    b"X-Nothing: z",
    b"Content-Length: 5",
    b"content-length: 06",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding:CHUNKED ",
    b"Transfer-Encoding: identity",
)
LINES = (b"X: y", b"Connection: close", b"X-Empty:", *FRAMES)
PIECES = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b"\xff",
    b"chunked",
    b"5",
    b"\r\n ",
    b"~",
    b"\r\nY: ",
)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A head with pieces removed or inserted."""
    method = draw(st.sampled_from((b"POST", b"OPTIONS")))
    more = draw(st.lists(st.sampled_from(LINES), max_size=2))
    data = head(b"Host: x", draw(st.sampled_from(FRAMES)), *more, first=method + b" /a HTTP/1.1")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        end = at + draw(st.sampled_from((0, 0, 1, 3)))
        data = data[:at] + draw(st.sampled_from((b"", *PIECES))) + data[end:]
    return data


class Llhttp:
    """How llhttp, Node's parser, reads a request."""

    def __init__(self, data: bytes) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.bodies: list[bytes] = []
        self.messages = 0
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.method = parser.get_method()

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.bodies.append(body)

    def on_message_complete(self) -> None:
        self.messages += 1


#: size of the largest body that the other parsers are given
LONGEST = 100_000


class DifferentialTest(SynchronousTestCase):
    """llhttp and h11 read every accepted head as we do: a proxy in front of us sees what we see."""

    def test_what_is_taken_is_taken_alike(self) -> None:
        self.alike = dict.fromkeys(("llhttp", "h11"), 0)

        @settings(max_examples=800, derandomize=True)
        @given(spoilt())
        def play(data: bytes) -> None:
            try:
                ours = heads.read(data)
                size = heads.length(ours)
                heads.host(ours)
            except (Malformed, TooLong):
                return
            if size is not None and size > LONGEST:
                return
            body = b"5\r\nabcde\r\n0\r\n\r\n" if size is None else b"x" * size
            whole = data + b"\r\n\r\n" + body
            content = b"abcde" if size is None else body
            # It is no disagreement if another parser refuses what we accept: llhttp knows only some methods.
            with contextlib.suppress(httptools.HttpParserError):
                self.compare_to_llhttp(ours, whole, content)
            with contextlib.suppress(h11.RemoteProtocolError):
                self.compare_to_h11(ours, whole, content)

        play()
        self.assertGreater(min(self.alike.values()), 100, self.alike)

    def compare_to_llhttp(self, ours: Head, whole: bytes, content: bytes) -> None:
        theirs = Llhttp(whole)
        fields = sorted((name, value) for name, values in ours.fields.items() for value in values)
        self.assertEqual((theirs.method, theirs.url), (ours.method, ours.target))
        self.assertEqual(sorted(theirs.fields), fields)
        self.assertEqual((b"".join(theirs.bodies), theirs.messages), (content, 1))
        self.alike["llhttp"] += 1

    def compare_to_h11(self, ours: Head, whole: bytes, content: bytes) -> None:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(whole)
        request: Any = connection.next_event()
        self.assertEqual((request.method, request.target), (ours.method, ours.target))
        # h11 converts some values to lower case.
        fields = [(name, value.lower()) for name, values in ours.fields.items() for value in values]
        self.assertEqual(sorted((name, value.lower()) for name, value in request.headers), sorted(fields))
        got = b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            got += event.data
        self.assertEqual(got, content)
        self.alike["h11"] += 1
