"""Ids: each has exactly one spelling, which is the same everywhere."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from twisted.trial.unittest import SynchronousTestCase

from notify import ids
from notify.ids import INT64_MAX, INT64_MIN, Id, order, parse, valid
from notify.topics import Topic, chat, user

integers = st.integers(INT64_MIN, INT64_MAX)
texts = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True).filter(
    lambda text: not re.fullmatch("-?[0-9]+", text, re.ASCII)
)
any_id = st.one_of(integers, texts)
anything = st.one_of(st.text(max_size=70), st.from_regex(r"-?[0-9]{1,20}", fullmatch=True), texts)


class Holder(Struct):
    id: Id


def decoded(value: Any) -> Any:
    """The id after encoding to JSON and decoding; None if decoding refuses it."""
    try:
        return msgspec.json.decode(msgspec.json.encode({"id": value}), type=Holder).id
    except msgspec.ValidationError:
        return None


class Spelling(SynchronousTestCase):
    def test_what_is_an_id_and_what_is_none(self) -> None:
        for text, id in (
            ("0", 0), ("-1", -1), (str(INT64_MAX), INT64_MAX), (str(INT64_MIN), INT64_MIN), ("a", "a"), ("-", "-"),
            ("--1", "--1"), ("1-", "1-"), ("1_000", "1_000"), ("0x10", "0x10"), ("01JD9Z5V8M2Q4W6X7Y8Z9A0B1C",) * 2,
            ("6f1c9a52-2c5e-4b43-9d7e-0f6c4a8d1b2e",) * 2, ("x" * 64,) * 2, ("null", "null"),
        ):  # fmt: skip
            self.assertEqual(parse(text), id)
            self.assertTrue(valid(id))
        for text in (
            "", "-0", "00", "01", "-01", "+1", str(INT64_MAX + 1), str(INT64_MIN - 1), "1" * 64, "1.0", "a.b", "a b",
            "a\n", "1\n", "é", "٣", "*", ">", "x" * 65, "a/b", "$",
        ):  # fmt: skip
            self.assertRaises(ValueError, parse, text)
            self.assertFalse(valid(text), text)
            self.assertIsNone(decoded(text), text)
        for value in (True, False, None, 1.0, [], {}, INT64_MAX + 1):
            self.assertFalse(valid(value))
            self.assertIsNone(decoded(value))

    @given(any_id)
    def test_every_id_is_read_back_from_text_and_from_json(self, id: Id) -> None:
        self.assertEqual(parse(str(id)), id)
        self.assertEqual(decoded(id), id)

    @given(any_id, any_id, st.booleans())
    def test_every_topic_has_one_subject(self, workspace: Id, id: Id, is_chat: bool) -> None:
        topic = chat(workspace, id) if is_chat else user(workspace, id)
        self.assertEqual(Topic.from_subject(topic.subject), topic)

    @given(anything)
    def test_text_is_an_id_everywhere_or_nowhere(self, text: str) -> None:
        try:
            id = parse(text)
        except ValueError:
            self.assertIsNone(decoded(text))
            self.assertRaises(ValueError, Topic.from_subject, f"workspace.{text}.chat.1.messages")
        else:
            self.assertEqual(str(id), text)
            self.assertEqual(decoded(text), id if isinstance(id, str) else None)
            self.assertEqual(Topic.from_subject(f"workspace.{text}.chat.{text}.messages"), chat(id, id))

    @given(st.lists(any_id))
    def test_integers_come_before_text(self, some: list[Id]) -> None:
        numbers = sorted(id for id in some if isinstance(id, int))
        words = sorted(id for id in some if isinstance(id, str))
        self.assertEqual(sorted(some, key=order), [*numbers, *words])

    def test_the_pattern_of_the_descriptions_is_the_rule(self) -> None:
        for text in ("5", "-5", "a", "a-1", "", "a.", "x" * 65, "-"):
            matches = re.search(ids.TEXT_PATTERN, text) is not None
            self.assertEqual(matches, valid(text), text)
