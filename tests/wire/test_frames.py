"""Frames: all encodings read and write the same values."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from notify.messages import ChatEvent, ChatMessage, Message, Notification, Position
from notify.topics import chat, user
from notify.wire.frames import (
    JSON,
    TEXT,
    Auth,
    AuthResult,
    BatchEncoding,
    Error,
    HistoryQuery,
    InvalidFrame,
    Made,
    Ping,
    Pong,
    Since,
    Subscribe,
    message_frame,
    websocket_frame,
)

BATCH = BatchEncoding()

_NAMES = st.sampled_from(["type", "id", "chat_id", "token", "since", "epoch", "seq"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text()
    | st.sampled_from(["auth", "subscribe", "ping"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=5),
)


class Reading(SynchronousTestCase):
    def test_every_field_of_a_frame(self) -> None:
        frame = b'{"type":"subscribe","chat_id":-5,"since":{"epoch":"e","seq":-1},"watch_presence":true,"id":"x","new":{}}'
        self.assertEqual(JSON.decode(frame), [Subscribe(-5, Since("e", -1), True, "x")])
        self.assertEqual(JSON.decode(b'{"type":"auth","token":"t","id":1}'), [Auth("t", None, 1)])

    def test_a_page_is_asked_for_in_one_direction_and_within_bounds(self) -> None:
        frame = b'{"type":"history","chat_id":"a","before":{"epoch":"e","seq":3},"limit":7,"id":1}'
        self.assertEqual(JSON.decode(frame), [HistoryQuery("a", Since("e", 3), None, 7, 1)])
        self.assertEqual(JSON.decode(b'{"type":"history","chat_id":1}'), [HistoryQuery(1, None, None, 50)])
        both = b'{"type":"history","chat_id":1,"before":{"epoch":"e","seq":3},"after":{"epoch":"e","seq":3},"id":4}'
        fault = self.assertRaises(InvalidFrame, JSON.decode, both)
        self.assertEqual((str(fault), fault.id), ("a page is before a position or after one", 4))
        self.assertRaises(InvalidFrame, BATCH.decode, b"[" + both + b"]")
        for limit in (b"0", b"101", b"-1", b"1e3", b"99999999999999999999", b'"5"', b"null"):
            frame = b'{"type":"history","chat_id":1,"limit":' + limit + b"}"
            self.assertRaises(InvalidFrame, JSON.decode, frame)

    def test_a_batch_may_be_one_or_many(self) -> None:
        self.assertEqual(BATCH.decode(b'{"type":"ping"}'), [Ping()])
        self.assertEqual(BATCH.decode(b'[{"type":"ping","id":1},{"type":"ping"}]'), [Ping(1), Ping()])
        self.assertEqual(BATCH.decode(b"[]"), [])
        self.assertRaises(InvalidFrame, BATCH.decode, b'[{"type":"ping"},{"type":"x"}]')
        self.assertRaises(InvalidFrame, JSON.decode, b'[{"type":"ping"}]')

    def test_the_id_of_a_bad_frame_is_found_where_it_can_be(self) -> None:
        for frame, id in (
            (b'{"type":"x","id":7}', 7),
            (b'{"type":"subscribe","id":"a"}', "a"),
            (b'{"type":"ping","id":1.5}', None),
            (b'{"type":"ping","id":"' + b"x" * 65 + b'"}', None),
            (b'{"id":7', None),
        ):
            fault = self.assertRaises(InvalidFrame, JSON.decode, frame)
            self.assertEqual(fault.id, id)

    @given(st.binary(max_size=200))
    def test_no_bytes_raise_anything_but_an_invalid_frame(self, data: bytes) -> None:
        for encoding in (JSON, BATCH):
            try:
                encoding.decode(data)
            except InvalidFrame as fault:
                self.assertLess(len(str(fault)), 200)

    @given(VALUES)
    def test_no_json_raises_anything_but_an_invalid_frame(self, value: object) -> None:
        try:
            payload = msgspec.json.encode(value)
        except msgspec.MsgspecError:
            return
        for encoding in (JSON, BATCH):
            try:
                encoding.decode(payload)
            except InvalidFrame:
                pass


class Making(SynchronousTestCase):
    def test_fields_that_do_not_apply_are_left_out(self) -> None:
        self.assertEqual(
            JSON.encode(AuthResult(False, None)), b'{"type":"auth_result","success":false,"user_id":null}'
        )
        self.assertEqual(JSON.encode(Error("c", "m")), b'{"type":"error","code":"c","message":"m"}')
        self.assertEqual(JSON.encode(Pong("i")), b'{"type":"pong","id":"i"}')

    def test_frames_made_ahead_are_what_plain_json_makes_one_by_one(self) -> None:
        event = ChatMessage(5, 10, 1, 3, "hé\n" * 100, 9)
        messages = [Message(chat(1, 10), Position("e", seq), event) for seq in (7, 9)]
        bodies = [JSON.encode(message_frame(messages[0], 6)), JSON.encode(message_frame(messages[1], 7))]
        made = Made.of(messages, 6)
        self.assertEqual(made, Made(6, 9, JSON.pack(bodies)))
        change = ChatEvent(5, 10, 1, 3, "edit", msgspec.Raw(b"{}"), 9)
        self.assertIsNone(Made.of([*messages, Message(chat(1, 10), Position("e", 10), change)], 6))

    def test_only_frames_that_follow_each_other_are_joined(self) -> None:
        first = Made(6, 9, b"a")
        self.assertEqual(first.then(Made(9, 12, b"b")), Made(6, 12, b"ab"))
        self.assertIsNone(first.then(Made(8, 12, b"b")))

    def test_a_chat_message_and_a_notification(self) -> None:
        event = ChatMessage(5, 10, 1, 3, "hé\n", 9)
        frame = message_frame(Message(chat(1, 10), Position("e", 7), event), 6)
        self.assertEqual(
            msgspec.json.decode(JSON.encode(frame)),
            {
                "type": "chat_message",
                "chat_id": 10,
                "message_id": 5,
                "sender_id": 3,
                "content": "hé\n",
                "timestamp": 9,
                "epoch": "e",
                "seq": 7,
                "prev": 6,
            },
        )
        note = Notification(5, 1, 10, "kind", msgspec.Raw(b'{"a": [1.0]}'), 9)
        frame = message_frame(Message(user(1, 10), Position("e", 7), note), 0)
        self.assertEqual(
            JSON.encode(frame),
            b'{"type":"notification","notification_id":5,"user_id":10,"kind":"kind","data":{"a": [1.0]},'
            b'"timestamp":9,"epoch":"e","seq":7,"prev":0}',
        )

    def test_packing_many_makes_a_frame_each_or_one_array(self) -> None:
        self.assertEqual(JSON.pack([b"{1}", b"{2}"]), b"\x81\x03{1}\x81\x03{2}")
        self.assertEqual(BATCH.pack([b"{1}", b"{2}"]), b"\x81\x09[{1},{2}]")

    def test_lengths_are_written_as_the_rfc_wants(self) -> None:
        for size, header in ((125, b"\x81\x7d"), (126, b"\x81\x7e\x00\x7e"), (65535, b"\x81\x7e\xff\xff"),
                             (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00")):  # fmt: skip
            self.assertEqual(websocket_frame(b"x" * size, TEXT), header + b"x" * size)
