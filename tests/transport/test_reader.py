"""The reader of client frames, without a connection."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from notify.transport import reader
from notify.transport.reader import (
    BEHIND_CLOSE,
    BINARY,
    CROWD,
    OTHER,
    PING,
    PONG,
    SMALL,
    TEXT,
    UNFINISHED,
    Reader,
    read_frame,
    unmask,
)
from tests.transport.test_websocket_attack import frame

MOST = 70_000


class Seen:
    """A sink that records what it is given."""

    def __init__(self, enough: int = -1) -> None:
        self.ending = self.deaf = False
        self.crowds: list[int] = []
        self.events: list[tuple[str, bytes]] = []
        self.pieces: list[bytes] = []
        self._enough = enough

    def message(self, payload: bytes, binary: bool) -> None:
        self._note("binary" if binary else "text", payload)

    def ping(self, payload: bytes) -> None:
        self._note("ping", payload)

    def pong(self, count: int) -> None:
        self.crowds.append(count)
        for _ in range(count):
            self._note("pong", b"")

    def part(self) -> None:
        self._note("part", b"")

    def other(self, data: bytes) -> None:
        self.pieces.append(data)
        if self.events and self.events[-1][0] == "other":
            self.events[-1] = ("other", self.events[-1][1] + data)
        else:
            self._note("other", data)

    def closed(self, answered: bool) -> None:
        self.deaf = True
        self.events.append(("closed" if answered else "overrun", b""))

    def _note(self, kind: str, payload: bytes) -> None:
        if not self.ending:
            self.events.append((kind, payload))
            self.ending = self.deaf = len(self.events) == self._enough


def read_all(*segments: bytes, enough: int = -1) -> Seen:
    seen, one = Seen(enough), Reader()
    for segment in segments:
        one.feed(segment, MOST, seen)
    return seen


#: frames that clients send, by name
KINDS: dict[str, Callable[[bytes], bytes]] = {
    "text": lambda payload: frame(payload),
    "binary": lambda payload: frame(payload, 2),
    "pong": lambda payload: frame(payload[:125], 10),
    "ping": lambda payload: frame(payload[:125], 9),
    "begin": lambda payload: frame(payload, fin=False),
    "part": lambda payload: frame(payload, 0, fin=False),
    "end": lambda payload: frame(payload, 0),
    "compressed": lambda payload: frame(payload, rsv=0x40),
    "unmasked": lambda payload: frame(payload, mask=None),
    "long form": lambda payload: frame(payload[:100], size=2),
    "longest form": lambda payload: frame(payload, size=8),
    "reserved": lambda payload: frame(payload, 3),
}

STREAMS = st.lists(
    st.tuples(
        st.sampled_from(sorted(KINDS)),
        st.sampled_from([0, 1, 5, 124, 125, 126, 127, 300, SMALL - 1, SMALL]),
    ),
    min_size=1,
    max_size=8,
)


class Frames(SynchronousTestCase):
    def test_each_frame_is_told_for_what_it_is(self) -> None:
        for data, what in (
            (frame(b"{}"), TEXT),
            (frame(b""), TEXT),
            (frame(b"x" * 125), TEXT),
            (frame(b"x" * 126), TEXT),
            (frame(b"x" * 65535), TEXT),
            (frame(b"{}", 2), BINARY),
            (frame(b"", 10), PONG),
            (frame(b"x" * 125, 10), PONG),
            (frame(b"x" * 126, 10), OTHER),
            (frame(b"", 9), PING),
            (frame(b"x" * 125, 9), PING),
            (frame(b"x" * 126, 9), OTHER),
            (frame(b"x", 9, mask=None), OTHER),
            (frame(b"x", 9, rsv=0x40), OTHER),
            (frame(b"x" * 65536), OTHER),
            (frame(b"{}", size=2), OTHER),
            (frame(b"{}", size=8), OTHER),
            (frame(b"{}", mask=None), OTHER),
            (frame(b"", mask=None), OTHER),
            (frame(b"{}", fin=False), OTHER),
            (frame(b"{}", 0), OTHER),
            (frame(b"{}", rsv=0x40), OTHER),
            (frame(b"{}", rsv=0x20), OTHER),
            (frame(b"", 8), OTHER),
            (frame(b"", 9, fin=False), OTHER),
            (frame(b"", 10, fin=False), OTHER),
            (frame(b"", 11), OTHER),
        ):
            found, payload, stop = read_frame(b"123" + data + b"\x81", 3, MOST)
            self.assertEqual((found, stop), (what, 3 + len(data)), data[:16])
            if what in (TEXT, BINARY, PING):
                self.assertIn(payload, (b"", b"{}", b"x" * len(payload)))

    def test_a_message_over_the_bound_is_not_plain(self) -> None:
        self.assertEqual(read_frame(frame(b"x" * 10), 0, 10)[0], TEXT)
        self.assertEqual(read_frame(frame(b"x" * 11), 0, 10)[0], OTHER)

    def test_an_unfinished_frame_is_plain_only_if_it_is_small(self) -> None:
        for data, what in (
            (b"", UNFINISHED),
            (frame(b"{}")[:1], UNFINISHED),
            (frame(b"{}")[:-1], UNFINISHED),
            (frame(b"x" * SMALL)[:-1], UNFINISHED),
            (frame(b"x" * (SMALL + 1))[:-1], OTHER),
            (frame(b"x" * 125, 10)[:-1], UNFINISHED),
            (frame(b"", 9)[:-1], UNFINISHED),
            (frame(b"x" * 125, 9)[:-1], UNFINISHED),
            (frame(b"x" * 126, 9)[:-1], OTHER),
            (frame(b"x" * 70_000)[:13], UNFINISHED),
            (frame(b"x" * 70_000)[:14], OTHER),
        ):
            self.assertEqual(read_frame(data, 0, MOST)[0], what, data[:16])

    @given(st.binary(min_size=4, max_size=4), st.binary(max_size=300))
    def test_unmasking_is_that_of_the_rfc(self, key: bytes, payload: bytes) -> None:
        plain = bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))
        self.assertEqual(unmask(key, payload), plain)


class Streams(SynchronousTestCase):
    @given(STREAMS, st.lists(st.integers(1, 500), max_size=30), st.integers(-1, 6))
    def test_a_stream_is_read_alike_however_it_is_cut(
        self, kinds: list[tuple[str, int]], cuts: list[int], enough: int
    ) -> None:
        data = b"".join(KINDS[kind](b"a" * size) for kind, size in kinds)
        segments, rest = [], data
        for cut in cuts:
            segments.append(rest[:cut])
            rest = rest[cut:]
        whole, other = read_all(data, enough=enough), read_all(*segments, rest, enough=enough)
        if enough < 0:
            self.assertEqual(other.events, whole.events)
            self.assertEqual(b"".join(other.pieces), b"".join(whole.pieces))
        else:
            self.assertEqual([kind for kind, _ in other.events], [kind for kind, _ in whole.events])

    @given(STREAMS)
    def test_every_frame_goes_where_it_belongs_and_alone(self, kinds: list[tuple[str, int]]) -> None:
        data, plain, alone, fragmented = b"", [], [], False
        for kind, size in kinds:
            payload = b"a" * size
            one = KINDS[kind](payload)
            data += one
            if kind == "pong":
                plain.append(("pong", b""))
            elif kind == "ping":
                plain.append(("ping", payload[:125]))
            elif kind in ("text", "binary") and not fragmented and len(payload) < 65536:
                plain.append((kind, payload))
            else:
                alone.append(one)
            if kind not in ("pong", "ping", "reserved"):
                fragmented = kind in ("begin", "part")
        seen = read_all(data)
        self.assertEqual([one for one in seen.events if one[0] in ("ping", "pong", "text", "binary")], plain)
        self.assertEqual(seen.pieces, alone)
        parts = sum(kind in ("part", "end") for kind, _ in kinds)
        self.assertEqual(sum(kind == "part" for kind, _ in seen.events), parts)

    def test_plain_frames_between_the_parts_of_a_message_are_none_but_pings_and_pongs(self) -> None:
        between = frame(b"", 10) + frame(b"", 9) + frame(b"{}")
        seen = read_all(frame(b"{", fin=False) + between + frame(b"}", 0) + frame(b"{}"))
        self.assertEqual(
            [kind for kind, _ in seen.events], ["other", "pong", "ping", "other", "part", "other", "text"]
        )

    def test_the_plain_way_is_taken_again_behind_a_cut(self) -> None:
        large = frame(b"x" * 60_000)
        seen = read_all(large[:10_000], large[10_000:] + frame(b"{}"))
        self.assertEqual(seen.pieces, [large[:10_000], large[10_000:]])
        self.assertEqual(seen.events[1:], [("text", b"{}")])

    def test_nothing_is_read_once_the_sink_is_deaf(self) -> None:
        seen = read_all(frame(b"1") + frame(b"2") + frame(b"3"), enough=2)
        self.assertEqual(seen.events, [("text", b"1"), ("text", b"2")])

    def test_what_is_held_is_small(self) -> None:
        one = Reader()
        seen = Seen()
        one.feed(frame(b"x" * SMALL)[:-1], MOST, seen)
        self.assertEqual(len(one._held), SMALL + 7)
        for start in (
            frame(b"x" * 60_000)[:50_000],
            b"\x89\xff" + (2**40).to_bytes(8, "big") + b"\0" * 40_000,
        ):
            one = Reader()
            one.feed(start, MOST, seen)
            self.assertEqual(one._held, b"")


class Ending(SynchronousTestCase):
    """Our Close was sent: everything is dropped until the client's Close arrives, or until too much has arrived."""

    def setUp(self) -> None:
        self.seen, self.reader = Seen(), Reader()
        self.feed(frame(b"{}"))
        self.seen.ending = True
        self.seen.events.clear()

    def feed(self, data: bytes) -> None:
        self.reader.feed(data, MOST, self.seen)

    @given(
        st.lists(st.sampled_from([one for name, one in sorted(KINDS.items())]), max_size=6),
        st.integers(1, 300),
    )
    def test_the_clients_close_is_found_behind_anything_however_it_is_cut(
        self, kinds: list[Callable[[bytes], bytes]], step: int
    ) -> None:
        self.setUp()
        data = b"".join(kind(b"\x88\x80" * 60) for kind in kinds) + frame(b"\x03\xe8", 8) + frame(b"{}")
        for at in range(0, len(data), step):
            if not self.seen.deaf:
                self.feed(data[at : at + step])
        self.assertEqual((self.seen.events, self.seen.pieces), ([("closed", b"")], []))

    def test_the_rest_of_a_frame_that_began_before_is_dropped(self) -> None:
        for large in (frame(b"x" * 60_000), frame(b"x" * 60_000, fin=False)):
            seen, one = Seen(), Reader()
            one.feed(large[:10_000], MOST, seen)
            seen.ending = True
            for piece in (large[10_000:20_000], large[20_000:] + frame(b"{}"), frame(b"", 8)):
                one.feed(piece, MOST, seen)
            self.assertEqual(seen.pieces, [large[:10_000]])
            self.assertEqual([kind for kind, _ in seen.events], ["other", "closed"])

    def test_who_goes_on_and_on_is_looked_at_no_more(self) -> None:
        for flood in (frame(b"", 10) * 100, frame(b"", 9) * 100, frame(b"x" * 60_000)[:-1], frame(b"")[:5]):
            self.setUp()
            for _ in range(BEHIND_CLOSE + 1):
                if not self.seen.deaf:
                    self.feed(flood)
            self.assertEqual(self.seen.events, [("overrun", b"")], flood[:6])
            self.assertEqual(self.reader._held, b"")

    def test_what_a_client_sends_before_it_sees_our_close_is_within_that(self) -> None:
        self.feed(frame(b"{}") * (BEHIND_CLOSE - 2))
        self.feed(frame(b"", 8))
        self.assertEqual(self.seen.events, [("closed", b"")])


class Work(SynchronousTestCase):
    """The cost of reading: how many frames are looked at, and how many bytes are passed on."""

    def work(self, *segments: bytes) -> tuple[int, int, int]:
        with patch.object(reader, "read_frame", wraps=read_frame) as looks:
            seen = read_all(*segments)
        return looks.call_count, len(seen.pieces), sum(map(len, seen.pieces))

    def test_a_crowd_that_begins_inside_a_frame_costs_what_it_costs_otherwise(self) -> None:
        for kind in ("text", "pong", "ping", "begin", "compressed"):
            crowd = KINDS[kind](b"ab") * 8000
            looks, pieces, handed = self.work(crowd)
            for cut in range(1, 9):
                again = self.work(crowd[:cut], crowd[cut:])
                self.assertLessEqual(again[0], looks + 1, (kind, cut))
                self.assertLessEqual(again[1], pieces + 1, (kind, cut))
                self.assertEqual(again[2], handed, (kind, cut))

    def test_pongs_are_told_of_together_and_not_all_at_once(self) -> None:
        seen = read_all(frame(b"", 10) * 250 + frame(b"ab", 10) * 5 + frame(b"{}") + frame(b"", 10))
        self.assertEqual(seen.crowds, [1 + CROWD, 1 + CROWD, 250 - 2 * CROWD - 2 + 5, 1])
        self.assertEqual(sum(kind == "pong" for kind, _ in seen.events), 256)
