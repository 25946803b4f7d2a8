"""Reading header blocks."""

from twisted.trial.unittest import TestCase

from notify.nats import headers

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

    def test_status_and_description(self) -> None:
        block = b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 3\r\n\r\n"
        self.assertEqual((headers.status(block), headers.description(block)), (204, "EOB"))
        self.assertEqual(headers.number(block, headers.NUM_PENDING), 3)
        self.assertEqual(headers.status(b"NATS/1.0 503\r\n\r\n"), 503)
        self.assertEqual((headers.status(BLOCK), headers.status(b"")), (0, 0))

    def test_a_trace_has_the_form_of_one_or_is_none(self) -> None:
        def block(value: bytes) -> bytes:
            return b"NATS/1.0\r\ntraceparent: " + value + b"\r\n\r\n"

        self.assertEqual(headers.trace(block(TRACE)), TRACE.decode())
        for wrong in (b"", b"x", TRACE + b"0", b"\xff" * 55, TRACE[:-1] + b'"'):
            self.assertEqual(headers.trace(block(wrong)), "", wrong)
        self.assertEqual(headers.trace(BLOCK), "")
