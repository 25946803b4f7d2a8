import zlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from notify.wire.deflate import WINDOW_BITS, DeflateEncoding
from notify.wire.encodings import SUBPROTOCOLS, choose, deflated, encoding
from notify.wire.frames import JSON, Error, Ping


def split(data: bytes) -> list[tuple[int, bytes]]:
    """Split bytes into frames: the first byte and payload of each."""
    found = []
    while data:
        length, at = data[1], 2
        if length == 126:
            length, at = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, at = int.from_bytes(data[2:10], "big"), 10
        found.append((data[0], data[at : at + length]))
        data = data[at + length :]
    return found


def inflate(payload: bytes, bits: int = 15) -> bytes:
    return zlib.decompressobj(-bits).decompress(payload + b"\x00\x00\xff\xff")


class DeflateTests(TestCase):
    @given(st.sampled_from(SUBPROTOCOLS), st.lists(st.text(max_size=300), min_size=1, max_size=4))
    def test_what_a_client_inflates_is_what_the_plain_encoding_sends(
        self, name: str, texts: list[str]
    ) -> None:
        plain = encoding(name)
        bodies = [plain.encode(Error("internal", text)) for text in texts]
        packed = split(deflated(plain, 15, 6, 64).pack(bodies))
        wanted = split(plain.pack(bodies))
        self.assertEqual(len(packed), len(wanted))
        for (first, payload), (plain_first, plain_payload) in zip(packed, wanted, strict=True):
            self.assertEqual(first & ~0x40, plain_first)
            self.assertEqual(inflate(payload) if first & 0x40 else payload, plain_payload)

    def test_what_is_under_the_minimum_is_not_compressed(self) -> None:
        body = JSON.encode(Error("internal", "x" * 500))
        just = DeflateEncoding(JSON, 15, 6, len(body))
        above = DeflateEncoding(JSON, 15, 6, len(body) + 1)
        self.assertEqual(split(just.pack([body]))[0][0], 0xC1)
        self.assertEqual(above.pack([body]), JSON.pack([body]))

    def test_what_grows_is_not_compressed(self) -> None:
        tiny = DeflateEncoding(JSON, 15, 1, 0)
        self.assertEqual(tiny.pack([b"{}"]), JSON.pack([b"{}"]))

    def test_every_frame_inflates_by_itself(self) -> None:
        bodies = [JSON.encode(Error("internal", "again and again " * 20))] * 2
        first, second = split(DeflateEncoding(JSON, 15, 6, 0).pack(bodies))
        self.assertEqual(first, second)
        self.assertEqual(inflate(second[1]), bodies[1])

    def test_every_window_that_may_be_asked_for_is_kept_to(self) -> None:
        text = "".join(f"{number:06d}" for number in range(3000))
        body = JSON.encode(Error("internal", text + text))
        for bits in WINDOW_BITS:
            ((first, payload),) = split(DeflateEncoding(JSON, bits, 6, 0).pack([body]))
            self.assertEqual(first, 0xC1)
            self.assertEqual(inflate(payload, bits), body)

    def test_client_frames_are_read_as_by_the_plain_encoding(self) -> None:
        self.assertEqual(DeflateEncoding(JSON, 15, 6, 0).decode(b'{"type":"ping"}'), [Ping()])


class EncodingsTests(TestCase):
    def test_connections_that_negotiated_alike_share_one(self) -> None:
        self.assertIs(encoding("notify.v1.json.batch"), encoding("notify.v1.json.batch"))
        self.assertIs(deflated(JSON, 15, 6, 64), deflated(JSON, 15, 6, 64))
        self.assertIsNot(deflated(JSON, 15, 6, 64), deflated(JSON, 14, 6, 64))

    def test_the_clients_first_known_choice_counts(self) -> None:
        for name in SUBPROTOCOLS:
            chosen, found = choose(["graphql-ws", name, *SUBPROTOCOLS])
            self.assertEqual((chosen, found.subprotocol), (name, name))

    def test_without_a_known_one_it_is_json_and_none_is_named(self) -> None:
        self.assertEqual(choose([]), (None, JSON))
        self.assertEqual(choose(["graphql-ws"]), (None, JSON))

    def test_only_protobuf_is_binary(self) -> None:
        self.assertEqual([encoding(name).binary for name in SUBPROTOCOLS], [False, False, True])
