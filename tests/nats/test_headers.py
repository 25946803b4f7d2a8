"""Reading header blocks."""

from typing import Any

from nats.errors import ConnectionClosedError
from twisted.trial.unittest import TestCase

from notify.errors import TooLarge
from notify.nats import headers
from notify.nats.client import RawClient, command

BLOCK = (
    b"NATS/1.0\r\nNats-Msg-Id: k\r\nNats-Sequence: 99\r\nNats-Stream: M\r\n"
    b"Nats-Subject: workspace.1.chat.2.messages\r\nNats-Sequence: 6\r\nNats-Last-Sequence: 4\r\n\r\n"
)
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Headers(TestCase):
    def test_the_servers_field_counts_whatever_a_publisher_wrote(self) -> None:
        self.assertEqual(headers.number(BLOCK, headers.SEQUENCE), 6)

    def test_fields_whose_names_end_alike_are_not_taken_for_each_other(self) -> None:
        self.assertEqual(headers.number(BLOCK, headers.LAST_SEQUENCE), 4)
        self.assertEqual(headers.text(BLOCK, headers.SUBJECT), "workspace.1.chat.2.messages")

    def test_what_is_missing_or_no_number_is_zero(self) -> None:
        self.assertEqual(headers.number(BLOCK, headers.UP_TO_SEQUENCE), 0)
        self.assertEqual(headers.number(b"NATS/1.0\r\nNats-Sequence: x\r\n\r\n", headers.SEQUENCE), 0)
        self.assertEqual(headers.number(b"NATS/1.0\r\nNats-Sequence: 1", headers.SEQUENCE), 0)
        self.assertEqual(headers.text(b"", headers.SUBJECT), "")

    def test_what_a_message_names_as_before_it(self) -> None:
        for value, expected in (
            ("e.7", 7), ("e.-1", 8), ("f.7", 0), ("f.-1", 0), ("e.-2", 0), ("e.x", 0), ("", 0)
        ):  # fmt: skip
            block = f"NATS/1.0\r\nNotify-After: {value}\r\n\r\n".encode()
            self.assertEqual(headers.after(block, "e", 9), expected, value)
        self.assertEqual(headers.after(BLOCK, "e", 9), 0)

    def test_status_and_description(self) -> None:
        block = b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 3\r\n\r\n"
        self.assertEqual((headers.status(block), headers.description(block)), (204, "EOB"))
        self.assertEqual(headers.number(block, headers.NUM_PENDING), 3)
        self.assertEqual(headers.status(b"NATS/1.0 503\r\n\r\n"), 503)
        self.assertEqual((headers.status(BLOCK), headers.status(b"")), (0, 0))

    async def test_a_message_is_on_the_wire_as_nats_py_puts_it_there(self) -> None:
        wrote: list[bytes] = []

        class Recorded(RawClient):
            is_connected = True  # type: ignore[assignment]

            async def _send_command(self, cmd: Any, priority: bool = False) -> None:
                wrote.append(bytes(cmd))

        client = Recorded()
        for payload in (b"", b"x" * 1000):
            for fields in (
                None,
                {},
                {"A": "b"},
                {"Nats-Msg-Id": " é\r\n ", "B": "  c d", "C": ""},
                {"A": "\u2028\x85\x0b\x1c\t"},
            ):
                for reply in ("r", ""):
                    await client.publish("a.b", payload, reply, fields)
                    theirs = wrote.pop()
                    told = int(theirs.partition(b"\r\n")[0].split()[-1])
                    self.assertEqual(headers.size(payload, fields), told, (payload[:5], fields))
                    block = b"" if fields is None else headers.block(fields)
                    self.assertEqual(b"".join(command("a.b", payload, reply, block)), theirs)

    def test_a_line_break_in_a_value_begins_no_line(self) -> None:
        block = headers.block({"A": "b\r\n\r\nPUB x 0\r\n", "B": "\n", "C": "a\rb\nc"})
        self.assertEqual(block, b"NATS/1.0\r\nA: b    PUB x 0\r\nB: \r\nC: a b c\r\n\r\n")

    async def test_nothing_is_put_on_a_connection_that_is_gone(self) -> None:
        with self.assertRaises(ConnectionClosedError):
            await RawClient().put(b"PING\r\n")

    def test_a_message_may_be_as_large_as_the_limit(self) -> None:
        needed = headers.size(b"abc", {"A": "b"})
        headers.check_size(b"abc", {"A": "b"}, needed)
        headers.check_size(b"abc", {"A": "b"}, 0)
        self.assertRaises(TooLarge, headers.check_size, b"abc", {"A": "b"}, needed - 1)

    def test_what_has_a_number_in_a_stream_is_a_message_whatever_its_first_line_says(self) -> None:
        for line in (b" 204 x", b" 404", b" 503 No Responders"):
            block = b"NATS/1.0" + line + b"\r\nNats-Stream: M\r\nNats-Sequence: 6\r\n\r\n"
            self.assertEqual(headers.status(block), 0)
        end = b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 9\r\n\r\n"
        self.assertEqual(headers.status(end), 204)

    def test_a_trace_has_the_form_of_one_or_is_none(self) -> None:
        def block(value: bytes) -> bytes:
            return b"NATS/1.0\r\ntraceparent: " + value + b"\r\n\r\n"

        self.assertEqual(headers.trace(block(TRACE)), TRACE.decode())
        for wrong in (b"", b"x", TRACE + b"0", b"\xff" * 55, TRACE[:-1] + b'"'):
            self.assertEqual(headers.trace(block(wrong)), "", wrong)
        self.assertEqual(headers.trace(BLOCK), "")
