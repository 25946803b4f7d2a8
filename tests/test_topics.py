"""Subjects, and the payloads that may be published on them."""

from __future__ import annotations

import contextlib
import gc
import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from notify.ids import INT64_MAX, INT64_MIN
from notify.messages import ChatMessage, Notification, Poison, parse_event
from notify.testing import chat_payload, notification_payload
from notify.topics import Topic, chat, user

ids = st.integers(INT64_MIN, INT64_MAX)


class Subjects(SynchronousTestCase):
    def test_names(self) -> None:
        self.assertEqual(chat(1, -2).subject, "workspace.1.chat.-2.messages")
        self.assertEqual(user(1, 2).subject, "workspace.1.user.2.notifications")

    @given(ids, ids, st.sampled_from(["chat", "user"]))
    def test_every_topic_has_one_subject(self, workspace: int, id: int, kind: str) -> None:
        topic = Topic(workspace, kind, id)  # type: ignore[arg-type]
        self.assertEqual(Topic.from_subject(topic.subject), topic)

    def test_anything_else_is_refused(self) -> None:
        for subject in (
            "", "workspace", "workspace.1.chat.2", "workspace.1.chat.2.notifications", "workspace.1.user.2.messages",
            "workspace.01.chat.2.messages", "workspace.+1.chat.2.messages", "workspace.-0.chat.2.messages",
            "workspace.1.chat.*.messages", "workspace.>", "workspace.1.chat.2.messages.", "workspace.1.chat.2.messages\n",
            "workspace.9223372036854775808.chat.2.messages", "workspace.1.chat.\u0661.messages", "workspace. 1.chat.2.messages",
        ):  # fmt: skip
            self.assertRaises(ValueError, Topic.from_subject, subject)


class Payloads(SynchronousTestCase):
    def test_what_is_valid(self) -> None:
        self.assertIsInstance(parse_event(chat(1, 2), chat_payload(chat(1, 2))), ChatMessage)
        self.assertIsInstance(
            parse_event(user(1, 2), notification_payload(user(1, 2), data="x")), Notification
        )

    def test_what_is_poison_says_why_without_its_content(self) -> None:
        good = chat_payload(chat(1, 2), content="s3cret")
        note = notification_payload(user(1, 2), data=["s3cret"])
        for topic, payload in (
            (chat(1, 2), b""),
            (chat(1, 2), b"s3cret"),
            (chat(1, 2), good[:-1]),
            (chat(1, 3), good),
            (chat(2, 2), good),
            (user(1, 2), good),
            (chat(1, 2), good.replace(b'"message_id":1', b'"message_id":"s3cret!"')),
            (chat(1, 2), good.replace(b'"message_id":1', b'"message_id":9223372036854775808')),
            (chat(1, 2), good.replace(b'"message_id":1', b'"message_id":true')),
            (chat(1, 2), good.replace(b"s3cret", b"\xff")),
            (chat(1, 2), good.replace(b"s3cret", b"\\ud800")),
            (user(1, 3), note),
            (user(1, 2), note.replace(b'["s3cret"]', b"NaN")),
            (user(1, 2), note.replace(b'["s3cret"]', b'"\xff"')),
            (user(1, 2), note.replace(b'["s3cret"]', b"[" * 60000 + b"]" * 60000)),
            (user(1, 2), note.replace(b'["s3cret"]', b"1e999")),
        ):
            poison = self.assertRaises(Poison, parse_event, topic, payload)
            self.assertNotIn("s3cret", str(poison))

    def test_poison_is_gone_once_it_was_refused(self) -> None:
        # Without the garbage collector, because a server runs it only once in ten minutes.
        gc.disable()
        self.addCleanup(gc.enable)
        for text in ("x", '"\\ud800"', '{"message_id": true}'):
            payload = (text + " " * 1000).encode()
            references = sys.getrefcount(payload)
            with contextlib.suppress(Poison):
                parse_event(chat(1, 2), payload)
            self.assertEqual(sys.getrefcount(payload), references)

    @given(st.binary(max_size=300))
    def test_no_bytes_raise_anything_but_poison(self, payload: bytes) -> None:
        for topic in (chat(1, 2), user(1, 2)):
            self.assertRaises(Poison, parse_event, topic, payload)
