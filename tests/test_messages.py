"""Which payloads are accepted: the same ones wherever they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from notify.messages import MOST_LEVELS, Poison, check_data, parse_event
from notify.topics import Topic, chat, user

ROOM, MINE = chat(1, 10), user(1, 7)


def nested(levels: int, inner: bytes = b"", opens: bytes = b"[", closes: bytes = b"]") -> bytes:
    return opens * levels + inner + closes * levels


def event(data: bytes) -> bytes:
    return (
        b'{"message_id":1,"chat_id":10,"workspace_id":1,"sender_id":1,"kind":"k","timestamp":1,"data":%b}'
        % data
    )


def message(unknown: bytes) -> bytes:
    return (
        b'{"message_id":1,"chat_id":10,"workspace_id":1,"sender_id":1,"content":"c","timestamp":1,"more":%b}'
        % unknown
    )


def notification(data: bytes) -> bytes:
    return b'{"notification_id":1,"user_id":7,"workspace_id":1,"kind":"k","timestamp":1,"data":%b}' % data


def below(calls: int, call: Callable[[], Any]) -> Any:
    """Call ``call`` from this many frames deeper in the stack."""
    return call() if not calls else below(calls - 1, call)


class Levels(SynchronousTestCase):
    """How many nested levels Python can read depends on the caller's stack: every caller must accept the same payloads."""

    def taken(self, topic: Topic, payload: bytes) -> list[bool]:
        """Whether the payload is accepted: when called directly, and from 30 and 300 frames deeper."""

        def takes() -> bool:
            try:
                parse_event(topic, payload)
            except Poison:
                return False
            return True

        return [below(calls, takes) for calls in (0, 30, 300)]

    def test_as_many_as_are_promised_are_read_from_anywhere(self) -> None:
        for topic, made in ((ROOM, event), (ROOM, message), (MINE, notification)):
            for most in (
                nested(MOST_LEVELS - 1),
                nested(MOST_LEVELS - 1, b"1"),
                nested(MOST_LEVELS - 1, b"1", b'{"a":', b"}"),
            ):
                self.assertEqual(self.taken(topic, made(most)), [True] * 3)

    def test_one_more_is_read_from_nowhere(self) -> None:
        for topic, made in ((ROOM, event), (ROOM, message), (MINE, notification)):
            for levels in (MOST_LEVELS, MOST_LEVELS + 100, 900, 950, 1000, 30_000):
                self.assertEqual(self.taken(topic, made(nested(levels))), [False] * 3, levels)
            self.assertEqual(self.taken(topic, made(nested(MOST_LEVELS, b"1", b'{"a":', b"}"))), [False] * 3)
        with self.assertRaises(Poison) as raised:
            parse_event(ROOM, event(nested(MOST_LEVELS)))
        self.assertIn(f"more than {MOST_LEVELS} levels", str(raised.exception))

    def test_what_is_no_level_does_not_count(self) -> None:
        for wide in (
            b"[" + b",".join([b"[{}]"] * MOST_LEVELS) + b"]",
            b'"' + b"[{" * MOST_LEVELS + b'"',
            b'["\\"' + b"[" * MOST_LEVELS + b'\\\\",{"' + b"{" * MOST_LEVELS + b'":1}]',
        ):
            self.assertEqual(self.taken(ROOM, event(wide)), [True] * 3)

    def test_a_signal_has_no_more(self) -> None:
        self.assertIsNone(check_data(Raw(nested(MOST_LEVELS)), 10_000))
        for calls in (0, 300):
            with self.assertRaises(Poison):
                below(calls, lambda: check_data(Raw(nested(MOST_LEVELS + 1)), 10_000))
