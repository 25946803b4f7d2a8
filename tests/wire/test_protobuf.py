import tempfile
from importlib import resources
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw
from twisted.trial.unittest import TestCase

from notify.identity import Presence
from notify.ids import INT64_MAX, INT64_MIN
from notify.messages import ChatEvent, ChatMessage, Message, Notification, Position
from notify.topics import chat, user
from notify.wire import frames
from notify.wire.frames import JSON, InvalidFrame, Since
from notify.wire.proto import notify_pb2 as pb
from notify.wire.protobuf import MAX_MESSAGES, ProtobufEncoding

PROTO = Path(__file__).parent.parent.parent / "proto"

encoding = ProtobufEncoding()
int64 = st.integers(INT64_MIN, INT64_MAX)
text = st.text(st.characters(exclude_categories=["Cs"]))


def decode(*messages: pb.ClientMessage) -> list[frames.ClientFrame]:
    return encoding.decode(pb.ClientFrame(messages=messages).SerializeToString())


def encode(frame: frames.ServerFrame) -> pb.ServerMessage:
    (message,) = pb.ServerFrame.FromString(encoding.encode(frame)).messages
    return message


class GeneratedCodeTests(TestCase):
    def test_is_what_the_proto_file_says(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "set"
            include = resources.files("grpc_tools") / "_proto"
            status = protoc.main(
                [
                    "",
                    f"-I{PROTO}",
                    f"-I{include}",
                    f"--descriptor_set_out={target}",
                    str(PROTO / "notify.proto"),
                ]
            )
            self.assertEqual(status, 0)
            (wanted,) = FileDescriptorSet.FromString(target.read_bytes()).file
        pending = list(wanted.message_type)
        while pending:  # generated code does not keep the names for JSON
            message = pending.pop()
            pending += message.nested_type
            for field in message.field:
                field.ClearField("json_name")
        found = FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
        self.assertEqual(found, wanted, "run: make proto")


class ClientFrameTests(TestCase):
    def test_each_message_is_read(self) -> None:
        since = pb.Since(epoch="e", seq=7)
        found = decode(
            pb.ClientMessage(auth=pb.Auth(token="t", since=since), id=1),
            pb.ClientMessage(refresh=pb.Refresh(token="u"), id_text="two"),
            pb.ClientMessage(subscribe=pb.Subscribe(chat_id=3, since=since, watch_presence=True)),
            pb.ClientMessage(unsubscribe=pb.Unsubscribe(chat_id=-4)),
            pb.ClientMessage(presence=pb.PresenceQuery(chat_id=5), id=0),
            pb.ClientMessage(history=pb.HistoryQuery(chat_id=6, before=since, limit=7), id=8),
            pb.ClientMessage(history=pb.HistoryQuery(chat_id_text="a", after=since)),
            pb.ClientMessage(ping=pb.Ping()),
        )
        self.assertEqual(
            found,
            [
                frames.Auth("t", Since("e", 7), 1),
                frames.Refresh("u", "two"),
                frames.Subscribe(3, Since("e", 7), True, None),
                frames.Unsubscribe(-4),
                frames.PresenceQuery(5, 0),
                frames.HistoryQuery(6, Since("e", 7), None, 7, 8),
                frames.HistoryQuery("a", None, Since("e", 7)),
                frames.Ping(),
            ],
        )

    def test_no_since_is_not_an_empty_one(self) -> None:
        (without, empty) = decode(
            pb.ClientMessage(subscribe=pb.Subscribe(chat_id=1)),
            pb.ClientMessage(subscribe=pb.Subscribe(chat_id=1, since=pb.Since())),
        )
        self.assertIsNone(without.since)
        self.assertEqual(empty.since, Since("", 0))

    def test_a_page_that_makes_no_sense_is_refused_with_its_id(self) -> None:
        since = pb.Since(epoch="e", seq=1)
        for wrong in (
            pb.HistoryQuery(before=since, after=since),
            pb.HistoryQuery(limit=0),
            pb.HistoryQuery(limit=101),
            pb.HistoryQuery(limit=-1),
            pb.HistoryQuery(before=pb.Since(epoch="x" * 65)),
            pb.HistoryQuery(chat_id=1, chat_id_text="a"),
        ):
            fault = self.assertRaises(InvalidFrame, decode, pb.ClientMessage(history=wrong, id=7))
            self.assertEqual(fault.id, 7, wrong)
        [without] = decode(pb.ClientMessage(history=pb.HistoryQuery(chat_id=1)))
        self.assertEqual(without, JSON.decode(b'{"type":"history","chat_id":1}')[0])

    def test_an_unknown_message_is_refused_with_its_id(self) -> None:
        fault = self.assertRaises(InvalidFrame, decode, pb.ClientMessage(id=9))
        self.assertEqual((str(fault), fault.id), ("unknown message type", 9))

    def test_bytes_that_are_no_frame_are_refused_without_being_quoted(self) -> None:
        fault = self.assertRaises(InvalidFrame, encoding.decode, b"\xff\xff secret")
        self.assertNotIn("secret", str(fault))

    def test_text_that_is_not_utf8_is_refused(self) -> None:
        good = pb.ClientFrame(messages=[pb.ClientMessage(auth=pb.Auth(token="toooken"))]).SerializeToString()
        self.assertRaises(InvalidFrame, encoding.decode, good.replace(b"toooken", b"to\xff\xfeken"))

    def test_long_ids_and_epochs_are_refused(self) -> None:
        self.assertRaises(InvalidFrame, decode, pb.ClientMessage(ping=pb.Ping(), id_text="x" * 65))
        since = pb.Since(epoch="x" * 65)
        fault = self.assertRaises(
            InvalidFrame, decode, pb.ClientMessage(subscribe=pb.Subscribe(since=since), id=5)
        )
        self.assertEqual(fault.id, 5)

    def test_the_messages_of_one_frame_are_bounded(self) -> None:
        ping = pb.ClientMessage(ping=pb.Ping())
        self.assertEqual(len(decode(*[ping] * MAX_MESSAGES)), MAX_MESSAGES)
        self.assertRaises(InvalidFrame, decode, *[ping] * (MAX_MESSAGES + 1))

    def test_a_chats_id_may_be_text_which_stands_alone(self) -> None:
        found = decode(
            pb.ClientMessage(subscribe=pb.Subscribe(chat_id_text="a-1")),
            pb.ClientMessage(unsubscribe=pb.Unsubscribe(chat_id_text="b_2")),
            pb.ClientMessage(presence=pb.PresenceQuery(chat_id_text="c")),
        )
        self.assertEqual(
            found, [frames.Subscribe("a-1"), frames.Unsubscribe("b_2"), frames.PresenceQuery("c")]
        )
        for wrong in (
            pb.Subscribe(chat_id_text="5"),
            pb.Subscribe(chat_id_text="a.b"),
            pb.Subscribe(chat_id_text="x" * 65),
            pb.Subscribe(chat_id=1, chat_id_text="a"),
        ):
            fault = self.assertRaises(InvalidFrame, decode, pb.ClientMessage(subscribe=wrong, id=7))
            self.assertEqual(fault.id, 7)

    def test_features_are_read_and_bounded(self) -> None:
        [auth] = decode(pb.ClientMessage(auth=pb.Auth(token="t", features=["events", "x"])))
        self.assertEqual(auth, frames.Auth("t", features=("events", "x")))
        for wrong in (["x" * 65], ["x"] * 65):
            self.assertRaises(InvalidFrame, decode, pb.ClientMessage(auth=pb.Auth(token="t", features=wrong)))

    @given(st.binary(max_size=200))
    def test_any_bytes_are_frames_or_refused(self, payload: bytes) -> None:
        try:
            found = encoding.decode(payload)
        except InvalidFrame:
            return
        self.assertIsInstance(found, list)


class ServerFrameTests(TestCase):
    @given(int64, int64, int64, text, int64, int64)
    def test_a_chat_message_arrives_as_it_was(
        self, chat_id: int, message_id: int, sender: int, content: str, when: int, seq: int
    ) -> None:
        event = ChatMessage(message_id, chat_id, 1, sender, content, when)
        message = Message(chat(1, chat_id), Position("e", seq), event)
        got = encode(frames.message_frame(message, 5)).chat_message
        self.assertEqual(
            (
                got.chat_id,
                got.message_id,
                got.sender_id,
                got.content,
                got.timestamp,
                got.epoch,
                got.seq,
                got.prev,
            ),
            (chat_id, message_id, sender, content, when, "e", seq, 5),
        )

    def test_a_notification_arrives_as_it_was(self) -> None:
        event = Notification(1, 2, 3, "kind", Raw(b'{"a":[1]}'), 4)
        got = encode(frames.message_frame(Message(user(2, 3), Position("e", 6), event), 5)).notification
        self.assertEqual(
            (
                got.notification_id,
                got.user_id,
                got.kind,
                got.data,
                got.timestamp,
                got.epoch,
                got.seq,
                got.prev,
            ),
            (1, 3, "kind", b'{"a":[1]}', 4, "e", 6, 5),
        )

    def test_text_ids_are_in_fields_of_their_own(self) -> None:
        event = ChatMessage("m-1", "c-1", 1, "u-1", "x", 4)
        got = encode(frames.message_frame(Message(chat(1, "c-1"), Position("e", 6), event), 5)).chat_message
        self.assertEqual((got.message_id_text, got.chat_id_text, got.sender_id_text), ("m-1", "c-1", "u-1"))
        self.assertEqual((got.message_id, got.chat_id, got.sender_id), (0, 0, 0))
        note = Notification("n-1", 2, "u-1", "kind", Raw(b"null"), 4)
        told = encode(frames.message_frame(Message(user(2, "u-1"), Position("e", 6), note), 5)).notification
        self.assertEqual((told.notification_id_text, told.user_id_text), ("n-1", "u-1"))
        self.assertEqual(encode(frames.Subscribed("c-1", "e", 1, True)).subscribed.chat_id_text, "c-1")
        listed = encode(frames.PresenceList("c-1", [Presence(1, 1), Presence("u-1", 2)])).presence
        self.assertEqual([(one.user_id, one.user_id_text) for one in listed.users], [(1, ""), (0, "u-1")])
        error = encode(frames.Error("forbidden", "no", chat_id="c-1")).error
        self.assertEqual((error.chat_id_text, error.HasField("chat_id")), ("c-1", False))
        result = encode(frames.AuthResult(True, "u-1", "c", features=("events",))).auth_result
        self.assertEqual((result.user_id_text, list(result.features)), ("u-1", ["events"]))

    def test_an_event_arrives_as_it_was(self) -> None:
        for refers_to, number, text in ((7, 7, ""), ("m-7", 0, "m-7"), (UNSET, 0, ""), (0, 0, "")):
            event = ChatEvent(1, 2, 3, "u-1", "edited", Raw(b'{"a":[1]}'), 4, refers_to)
            got = encode(frames.message_frame(Message(chat(3, 2), Position("e", 6), event), 5)).chat_event
            self.assertEqual(
                (got.message_id, got.chat_id, got.sender_id_text, got.kind, got.data, got.timestamp),
                (1, 2, "u-1", "edited", b'{"a":[1]}', 4),
            )
            self.assertEqual((got.epoch, got.seq, got.prev), ("e", 6, 5))
            self.assertEqual((got.refers_to, got.refers_to_text), (number, text))
            self.assertEqual(got.HasField("refers_to"), isinstance(refers_to, int))

    def test_auth_results(self) -> None:
        refused = encode(frames.AuthResult(False, None, id="x"))
        self.assertEqual(refused.id_text, "x")
        self.assertFalse(refused.auth_result.success)
        self.assertFalse(refused.auth_result.HasField("user_id"))
        plain = encode(frames.AuthResult(True, 0, "c", None, 25)).auth_result
        self.assertTrue(plain.HasField("user_id"))
        self.assertFalse(plain.HasField("expires_at"))
        self.assertFalse(plain.HasField("recovered"))
        resumed = encode(frames.AuthResult(True, 7, "c", 99, 25, "e", 0, False)).auth_result
        self.assertEqual((resumed.expires_at, resumed.epoch, resumed.seq), (99, "e", 0))
        self.assertTrue(resumed.HasField("recovered"))

    def test_answers(self) -> None:
        subscribed = encode(frames.Subscribed(0, "", 0, False, 3))
        self.assertEqual((subscribed.WhichOneof("body"), subscribed.id), ("subscribed", 3))
        self.assertEqual(encode(frames.Ok(4)).WhichOneof("body"), "ok")
        self.assertEqual(encode(frames.Pong(UNSET)).WhichOneof("request"), None)
        self.assertEqual(encode(frames.Pong(0)).WhichOneof("request"), "id")
        listed = encode(frames.PresenceList(1, [Presence(2, 3)])).presence
        self.assertEqual([(one.user_id, one.connections) for one in listed.users], [(2, 3)])
        self.assertEqual(encode(frames.PresenceList(0, [])).WhichOneof("body"), "presence")
        error = encode(frames.Error("forbidden", "no", 6, True))
        self.assertEqual(
            (error.id, error.error.code, error.error.message, error.error.retry), (6, "forbidden", "no", True)
        )

    def test_a_page_of_history_has_messages_as_they_come_live(self) -> None:
        messages = [
            Message(chat(1, 10), Position("e", 7), ChatMessage(1, 10, 1, 2, "hi", 3)),
            Message(chat(1, 10), Position("e", 8), ChatEvent("m-2", 10, 1, 2, "edited", Raw(b"[1]"), 4, 1)),
        ]
        inner = [frames.message_frame(one, one.position.seq - 1) for one in messages]
        found = encode(frames.HistoryPage(10, inner, True, "e", 8, 7, "x"))
        self.assertEqual((found.WhichOneof("body"), found.id_text), ("history", "x"))
        page = found.history
        self.assertEqual((page.chat_id, page.more, page.epoch, page.seq, page.start), (10, True, "e", 8, 7))
        self.assertEqual(list(page.messages), [encode(one) for one in inner])
        empty = encode(frames.HistoryPage("a", [], False, "e", 0)).history
        self.assertEqual((empty.chat_id_text, empty.HasField("start"), len(empty.messages)), ("a", False, 0))

    def test_bodies_join_to_one_binary_frame(self) -> None:
        large = frames.Error("internal", "x" * 300)
        packed = encoding.pack([encoding.encode(frames.Pong(1)), encoding.encode(large)])
        self.assertEqual(packed[0], 0x82)
        messages = pb.ServerFrame.FromString(packed[4:]).messages
        self.assertEqual([one.WhichOneof("body") for one in messages], ["pong", "error"])
