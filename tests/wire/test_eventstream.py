"""Event streams: frames as events, with positions as their ids."""

from __future__ import annotations

import json
import string
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw
from twisted.trial.unittest import SynchronousTestCase

from notify.identity import Presence
from notify.ids import INT64_MAX, INT64_MIN, valid
from notify.wire import encodings
from notify.wire.eventstream import (
    EVENT_STREAM,
    HEARTBEAT,
    MOST_CHATS,
    Began,
    Composer,
    Positions,
    answers,
    farewell,
    parse,
)
from notify.wire.frames import (
    JSON,
    AuthResult,
    ChatEventFrame,
    ChatMessageFrame,
    Error,
    NotificationFrame,
    PresenceList,
    ServerFrame,
    Since,
    Subscribed,
)
from tests.support.eventstream import Event, Reader

ids = st.one_of(
    st.integers(INT64_MIN, INT64_MAX),
    st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=64).filter(valid),
)
seqs = st.integers(0, INT64_MAX)
epochs = st.one_of(st.sampled_from(("", "bd3d44f0ef89d3b2", "a:b;c=d,e %", "é", "*")), st.text(max_size=64))
positions = st.dictionaries(
    st.one_of(st.none(), ids), st.builds(Since, epochs, seqs), min_size=1, max_size=MOST_CHATS + 1
)


def message(chat_id: Any, seq: int, epoch: str = "e", content: str = "hi", prev: int = 0) -> ChatMessageFrame:
    return ChatMessageFrame(chat_id, 1, 2, content, 3, epoch, seq, prev)


def packed(*frames: ServerFrame) -> bytes:
    return EVENT_STREAM.pack([EVENT_STREAM.encode(frame) for frame in frames])


def events(*frames: ServerFrame, come_with: dict[Any, Since] | None = None) -> list[Event]:
    """The events of a client that came with these positions."""
    return Reader().feed(Composer(Positions.of(come_with or {})).compose(packed(*frames)))


class Ids(SynchronousTestCase):
    @given(positions)
    def test_what_is_written_is_read(self, held: dict[Any, Since]) -> None:
        text = bytes(Positions.of(held)).decode("ascii")
        self.assertEqual(parse(text), held)
        self.assertTrue(text.isprintable() and " " not in text, text)

    @given(positions, st.lists(st.tuples(ids, epochs, seqs), max_size=20))
    def test_it_is_always_the_newest_of_each_topic(self, held: dict[Any, Since], moves: list[Any]) -> None:
        kept = Positions.of(held)
        now = dict(held)
        for chat_id, epoch, seq in moves:
            if chat_id not in now and len(now) > MOST_CHATS:
                continue
            now[chat_id] = Since(epoch, seq)
            for other in Positions.of({chat_id: now[chat_id]})._at.items():
                kept.move(other[0], other[1][1], other[1][0])
        self.assertEqual(parse(bytes(kept).decode()), now)

    def test_reached_is_never_less_far(self) -> None:
        kept = Positions.of({5: Since("e", 9)})
        for seq, epoch, text in ((b"8", b"e", "e:5=9"), (b"10", b"e", "e:5=10"), (b"2", b"f", "f:5=2")):
            kept.reach(b"5", seq, epoch)
            self.assertEqual(bytes(kept).decode(), text)

    @given(st.one_of(st.text(), st.text("e:*=,;0123456789%-5A", max_size=40)))
    def test_what_is_none_is_refused_and_what_is_taken_has_one_spelling(self, text: str) -> None:
        try:
            found = parse(text)
        except ValueError:
            return
        self.assertEqual(parse(bytes(Positions.of(found)).decode()), found)
        self.assertLessEqual(len(found), MOST_CHATS + 1)

    def test_forms_that_are_refused(self) -> None:
        self.assertEqual(
            parse("e:*=0,5=44;f:abc=1"), {None: Since("e", 0), 5: Since("e", 44), "abc": Since("f", 1)}
        )
        for text in (
            *("", "e", "e:", ":", "e:5", "e:5=", "e:=5", "e:5=-1", "e:5=+1", "e:5=01", "e:05=1", "e:5=1,", "e:5=1;"),
            *(" e:5=1", "e:5=1 ", "e:5=1\n", "e:5=\u0661", "e:\u0665=1", "é:5=1", "%C3:5=1", "%c3%a9:5=1", "%65:5=1"),
            *("e:5=1,5=2", "e:5=1;f:5=2", "e:*=1,*=1", "e:**=1", "e:5=9223372036854775808", "e:5=1:6=2"),
            *("e" * 65 + ":5=1", "e:" + ",".join(f"{n}=1" for n in range(MOST_CHATS + 2)), "e:" + "a" * 65 + "=1"),
        ):  # fmt: skip
            self.assertRaises(ValueError, parse, text)

    def test_the_largest_is_small(self) -> None:
        held = {"c" * 62 + f"{n:02}": Since("e" * 64, INT64_MAX) for n in range(MOST_CHATS)}
        self.assertLess(len(bytes(Positions.of({None: Since("e" * 64, INT64_MAX), **held}))), 4096)
        usual = {n: Since("bd3d44f0ef89d3b2", 10**7 + n) for n in range(100, 100 + MOST_CHATS)}
        self.assertLess(len(bytes(Positions.of(usual))), 512)


class Frames(SynchronousTestCase):
    def test_each_frame_is_an_event_of_its_type_with_the_json_of_a_websocket(self) -> None:
        for frame in (
            AuthResult(True, 7, "c", None, 25, "e", 3, True, ("events",)),
            AuthResult(True, 7, "c", 5, 25),
            AuthResult(False, None),
            Subscribed("abc", "e", 3, True),
            PresenceList(5, [Presence(1, 2)]),
            Error("unavailable", "later", UNSET, True, 5),
            Error("rate_limited", "less"),
            message(5, 4, content="a\nb\r\u2028\0\x85'"),
            ChatEventFrame(5, 1, 2, "edit", Raw(b'{"a":1}'), 3, "e", 4, 3, 1),
            NotificationFrame(1, 7, "k", Raw(b"null"), 3, "e", 4, 3),
        ):
            [event] = events(frame)
            plain = json.loads(JSON.encode(frame))
            self.assertEqual((event.name, event.data), (plain["type"], plain))

    def test_what_answers_a_question_for_a_chat_names_the_chat_and_no_question(self) -> None:
        [answer, present, error] = events(
            Subscribed(5, "e", 3, False, 5), PresenceList(5, [], 5), Error("forbidden", "no", 5)
        )
        for event in (answer, present, error):
            self.assertEqual((event.data["chat_id"], event.data.get("id")), (5, None))

    @given(
        st.text(),
        st.recursive(st.one_of(st.none(), st.text(), st.integers()), st.lists),
        st.sampled_from("\n\r\t "),
    )
    def test_no_publisher_can_end_an_event(self, text: str, data: Any, space: str) -> None:
        raw = json.dumps({"a": data, "b": text}, ensure_ascii=False, indent=1).replace("\n", space)
        try:
            raw.encode()
            text.encode()
        except UnicodeEncodeError:
            return  # a lone surrogate cannot be JSON in UTF-8
        hostile = ChatEventFrame(5, 1, 2, text, Raw(raw.encode()), 3, "e", 4, 3)
        [event, behind] = events(hostile, message(5, 9, content=text))
        self.assertEqual((event.data["data"], event.data["kind"]), ({"a": data, "b": text}, text))
        self.assertEqual((behind.data["content"], behind.id), (text, "e:5=9"))

    def test_features_make_another_encoding_of_the_same_kind(self) -> None:
        other = encodings.featured(EVENT_STREAM, frozenset(("events",)))
        self.assertTrue(other.events)
        self.assertEqual(other.encode(message(5, 1)), EVENT_STREAM.encode(message(5, 1)))
        self.assertIs(other, encodings.featured(EVENT_STREAM, frozenset(("events",))))

    def test_a_heartbeat_is_seen_by_nobody(self) -> None:
        reader = Reader()
        composer = Composer(Positions.of({5: Since("e", 1)}))
        self.assertEqual(reader.feed(composer.compose(HEARTBEAT)), [])
        self.assertEqual((reader.comments, reader.id), (1, ""))
        self.assertEqual(
            [one.id for one in reader.feed(composer.compose(HEARTBEAT + packed(message(5, 2))))], ["e:5=2"]
        )

    def test_the_last_event_says_why_and_when_to_come_back(self) -> None:
        for code, reason, data, retry in (
            (4002, "token expired", {"code": 4002, "reason": "token expired"}, None),
            (1012, '{"retry_after_ms": 1840}', {"code": 1012, "retry_after_ms": 1840}, 1840),
            (1012, '{"retry_after_ms":0,"elsewhere":true}',
             {"code": 1012, "retry_after_ms": 0, "elsewhere": True}, 0),
            (4000, '{"no', {"code": 4000, "reason": '{"no'}, None),
            (4000, "a\nb", {"code": 4000, "reason": "a\nb"}, None),
        ):  # fmt: skip
            reader = Reader()
            [event] = reader.feed(farewell(code, reason)[1])
            self.assertEqual(
                (event.name, event.data, reader.retry), ("close", {"type": "close", **data}, retry)
            )


class Composed(SynchronousTestCase):
    def test_an_answer_is_a_position_unless_what_was_missed_follows(self) -> None:
        come = {None: Since("e", 1), 5: Since("e", 2)}
        got = events(
            AuthResult(True, 7, "c", None, 25, "e", 1, True),
            Subscribed(5, "e", 9, True),
            message(5, 4),
            message(5, 7),
            come_with=come,
        )
        self.assertEqual([one.id for one in got], ["e:*=1,5=2", "e:*=1,5=2", "e:*=1,5=4", "e:*=1,5=9"])
        self.assertEqual(
            [one.id for one in events(Subscribed(5, "e", 9, True), come_with=come)], ["e:*=1,5=9"]
        )

    def test_loss_is_told_where_a_position_led_nowhere_and_only_then(self) -> None:
        self.assertEqual([one.name for one in events(Subscribed(5, "e", 9, False))], ["subscribed"])
        come = {None: Since("old", 1), 5: Since("old", 2), "abc": Since("e", 3)}
        got = events(
            AuthResult(True, 7, "c", None, 25, "e", 4, False),
            Subscribed(5, "e", 9, False),
            message(5, 10),
            come_with=come,
        )
        self.assertEqual(
            [one.name for one in got], ["auth_result", "lost", "subscribed", "lost", "chat_message"]
        )
        self.assertEqual(got[1].data, {"type": "lost", "epoch": "e", "seq": 4})
        self.assertEqual(got[3].data, {"type": "lost", "chat_id": 5, "epoch": "e", "seq": 9})
        # A client that is cut off before it is told of the loss is told again.
        self.assertEqual([one.id for one in got][:2], ["", "old:5=2;e:abc=3,*=4"])
        self.assertEqual(
            [one.id for one in got][2:], ["old:5=2;e:abc=3,*=4", "e:abc=3,*=4,5=9", "e:abc=3,*=4,5=10"]
        )

    def test_an_error_moves_nothing(self) -> None:
        got = events(Error("unavailable", "later", 5, True), message(6, 1), come_with={5: Since("e", 2)})
        self.assertEqual([one.id for one in got], ["", "e:5=2,6=1"])

    def test_what_is_told_before_a_stream_begins(self) -> None:
        frames = packed(
            AuthResult(True, 7, "c", None, 25, "e", 4, False), Error("forbidden", "no", "abc"), Subscribed(5, "e", 1, False)
        )  # fmt: skip
        self.assertEqual(list(answers(frames)), [Began(b"*"), Began(b"abc", "forbidden"), Began(b"5")])
        self.assertEqual(list(answers(packed(AuthResult(False, None), message(5, 1)) + HEARTBEAT)), [])

    @settings(max_examples=200)
    @given(st.data())
    def test_a_client_that_is_cut_off_anywhere_comes_back_to_where_it_was(self, data: st.DataObject) -> None:
        """Its id names the last message it received in each topic: it misses nothing, and gets nothing twice."""
        chats: list[Any] = [5, -6, "abc"]
        at = {chat: data.draw(st.integers(0, 9)) for chat in chats}
        composer = Composer(Positions.of({chat: Since("e", seq) for chat, seq in at.items()}))
        stream = b""
        for _ in range(data.draw(st.integers(1, 4))):
            frames: list[ServerFrame] = []
            for chat in data.draw(st.lists(st.sampled_from(chats), min_size=1, max_size=4)):
                count = data.draw(st.integers(0, 3))
                if data.draw(st.booleans()):
                    newest = at[chat] + count + data.draw(st.integers(0, 2))
                    frames.append(Subscribed(chat, "e", newest, True))
                    frames += [message(chat, at[chat] + n + 1) for n in range(count)]
                    at[chat] = newest
                else:
                    frames += [message(chat, at[chat] + n + 1) for n in range(count)]
                    at[chat] += count
            stream += composer.compose(packed(*frames))
        reader, given_of = Reader(), dict.fromkeys(chats, 0)
        messages = [one for one in Reader().feed(stream) if one.name == "chat_message"]
        for event in reader.feed(stream[: data.draw(st.integers(0, len(stream)))]):
            if event.name == "chat_message":
                given_of[event.data["chat_id"]] = event.data["seq"]
            held = parse(event.id)
            for chat in chats:
                behind = [one.data["seq"] for one in messages if one.data["chat_id"] == chat]
                due = [seq for seq in behind if seq > given_of[chat]]
                self.assertEqual([seq for seq in behind if seq > held[chat].seq], due)


class Names(SynchronousTestCase):
    def test_no_websocket_can_ask_for_it(self) -> None:
        self.assertNotIn(EVENT_STREAM.subprotocol, encodings.SUBPROTOCOLS)
        self.assertEqual(encodings.choose([EVENT_STREAM.subprotocol]), (None, JSON))
