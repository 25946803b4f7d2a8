"""The splitter finds the messages that nats-py's parser finds, however the bytes are cut, and passes on the rest in order."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from nats.protocol.parser import Parser
from twisted.internet.defer import ensureDeferred
from twisted.trial.unittest import SynchronousTestCase

from notify.nats.splitter import Splitter

MESSAGES = (
    b"MSG a.b 1 5\r\nhello\r\n",
    b"MSG a.b 1 reply.to 0\r\n\r\n",
    b"HMSG a.b 12 reply.to 22 27\r\nNATS/1.0\r\nA: b\r\n\r\n\r\n\r\nMSG a\r\n",
    b"HMSG a 7 12 12\r\nNATS/1.0\r\n\r\n\r\n",
)
LINES = (b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'x y'\r\n", b'INFO {"a": "MSG a 1 1"}\r\n')


class Recorder:
    """A splitter's callbacks. Messages of subscription 12 are not taken."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.splitter = Splitter(self.message, self.heard.append)

    def message(self, number: int, subject: bytes, reply: bytes, data: bytes, block: bytes) -> bool:
        if number != 12:
            self.heard.append((number, subject, reply, data, block))
        return number != 12


class TheirClient:
    """What nats-py's parser calls."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def _process_msg(self, *message: Any) -> None:
        number, subject, reply, data, block = message
        self.heard.append((number, bytes(subject), bytes(reply), bytes(data), bytes(block or b"")))

    async def _process_ping(self) -> None: ...

    async def _process_pong(self) -> None: ...

    async def _process_err(self, words: str) -> None: ...

    async def _process_info(self, info: Any) -> None: ...


def cut(data: bytes, random: Random) -> list[bytes]:
    """The data in pieces of random sizes."""
    pieces = []
    while data:
        size = random.randrange(1, 12)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


class Splitting(SynchronousTestCase):
    @given(
        parts=st.lists(st.sampled_from(MESSAGES + LINES)),
        random=st.randoms(use_true_random=False),
    )
    def test_it_finds_the_messages_that_nats_py_finds(self, parts: list[bytes], random: Random) -> None:
        theirs, ours = TheirClient(), Recorder()
        parser = Parser(theirs)
        for piece in cut(b"".join(parts), random):
            ours.splitter.feed(piece)
            self.successResultOf(ensureDeferred(parser.parse(piece)))
        # what is not taken goes to nats-py whole
        rest = TheirClient()
        passed = b"".join(each for each in ours.heard if isinstance(each, bytes))
        self.successResultOf(ensureDeferred(Parser(rest).parse(passed)))
        taken = [each for each in ours.heard if not isinstance(each, bytes)]
        self.assertEqual(taken, [each for each in theirs.heard if each[0] != 12])
        self.assertEqual(rest.heard, [each for each in theirs.heard if each[0] == 12])
        self.assertEqual(
            [each for each in ours.heard if isinstance(each, bytes)],
            [each for each in parts if each not in MESSAGES or each == MESSAGES[2]],
        )

    def test_a_line_that_cannot_be_read_and_all_after_it_are_passed_on(self) -> None:
        for line in (
            b"MSG\r\n",
            b"MSG a 1\r\n",
            b"MSG a x 1\r\n",
            b"MSG a 1 -1\r\n",
            b"MSG a  1 1\r\n",
            b"HMSG a 1 5 2\r\n",
            b"HMSG a 1 x 2\r\n",
        ):
            recorder = Recorder()
            recorder.splitter.feed(MESSAGES[0] + line + MESSAGES[0])
            recorder.splitter.feed(MESSAGES[1])
            heard = [(1, b"a.b", b"", b"hello", b""), line + MESSAGES[0], MESSAGES[1]]
            self.assertEqual(recorder.heard, heard, line)

    def test_other_lines_are_passed_on(self) -> None:
        for line in (b"\r\n", b"nonsense\r\n", b" MSG a 1 1\r\n", b"MSGS a 1 1\r\n"):
            recorder = Recorder()
            recorder.splitter.feed(line + MESSAGES[0])
            self.assertEqual(recorder.heard, [line, (1, b"a.b", b"", b"hello", b"")], line)

    def test_white_space_in_a_subject_separates_nothing(self) -> None:
        # A server passes on a subject with a vertical tab or a form feed as its publisher wrote it.
        for space in (b"\x0b", b"\x0c"):
            recorder = Recorder()
            payload = b"MSG forged 3 1\r\nx"
            subject, reply = b"a" + space + b"3", b"r" + space + b"4"
            recorder.splitter.feed(b"MSG %b 7 %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload))
            self.assertEqual(recorder.heard, [(7, subject, reply, payload, b"")])

    def test_a_large_message_in_many_pieces_is_put_together_once(self) -> None:
        recorder, payload = Recorder(), bytes(range(256)) * 4096
        data = b"MSG a 1 %d\r\n%b\r\nPING\r\n" % (len(payload), payload)
        for start in range(0, len(data), 1000):
            recorder.splitter.feed(data[start : start + 1000])
        self.assertEqual(recorder.heard, [(1, b"a", b"", payload, b""), b"PING\r\n"])

    def test_a_line_without_an_end_is_not_kept_for_ever(self) -> None:
        recorder = Recorder()
        recorder.splitter.feed(b"INFO " + b"x" * (2**20 - 5))
        self.assertRaises(ValueError, recorder.splitter.feed, b"x" * 100)
