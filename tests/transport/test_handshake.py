"""The rules of the opening handshake."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from notify.transport.handshake import (
    Accepted,
    Refused,
    judge,
    split_head,
)
from notify.wire import encodings
from notify.wire.head import MAX_HEAD


def request(line: str = "GET /ws HTTP/1.1", **headers: str | None) -> bytes:
    """The head of an opening handshake; a header that is None is left out."""
    fields = {
        "Host": "chat.example",
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    return "\r\n".join(
        [line, *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    ).encode("latin-1")


class Heads(SynchronousTestCase):
    """Where a head ends, whatever pieces it arrives in."""

    def test_a_head_ends_at_its_empty_line(self) -> None:
        self.assertEqual(split_head(b"a\r\nb\r\n\r\nrest\r\n\r\n"), (b"a\r\nb", b"rest\r\n\r\n"))
        for part in (b"", b"a", b"a\r\nb\r\n", b"a\r\n\r", b"a\n\nb"):
            self.assertIsNone(split_head(part), part)

    def test_its_bound_is_the_same_for_one_that_is_whole_and_one_that_is_not(self) -> None:
        for size, fits in ((MAX_HEAD, True), (MAX_HEAD + 1, False)):
            whole = b"x" * size + b"\r\n\r\n"
            for data in (whole, whole + b"more"):
                if fits:
                    self.assertEqual(split_head(data), (b"x" * size, data[len(whole) :]))
                else:
                    self.assertEqual(self.assertRaises(Refused, split_head, data).status, 431)
        # As long as the longest accepted head is not complete, more data is expected.
        whole = b"x" * MAX_HEAD + b"\r\n\r\n"
        for end in range(len(whole) - 6, len(whole)):
            self.assertIsNone(split_head(whole[:end]))
        self.assertRaises(Refused, split_head, b"x" * (MAX_HEAD + 4))


def accepted(head: bytes, allowed: tuple[str, ...] = (), compress: bool = False) -> Accepted:
    return judge(head, allowed, compress)


class Judgements(SynchronousTestCase):
    def status(self, head: bytes, compress: bool = False) -> int:
        statuses = set()
        for allowed in ((), ("*",)):
            try:
                judge(head, allowed, compress)
                statuses.add(101)
            except Refused as refused:
                statuses.add(int(refused.status))
        [status] = statuses
        return status

    def test_a_browsers_handshake_opens_a_connection(self) -> None:
        found = accepted(
            request(
                "GET /ws?client_id=a%20b&x=1 HTTP/1.1",
                Origin="https://chat.example",
                Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits",
                Sec_WebSocket_Protocol="x, notify.v1.json.batch, notify.v1.json",
                X_Forwarded_For="192.0.2.1",
                Cookie="a=b; c=d",
            )
        )
        self.assertEqual(
            found,
            Accepted(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Protocol: notify.v1.json.batch\r\n"
                b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
                encodings.encoding("notify.v1.json.batch"),
                None,
                "https://chat.example",
                "192.0.2.1",
            ),
        )

    def test_a_client_id_of_the_form_is_read_and_of_any_other_ignored(self) -> None:
        for query, found in (
            ("", ""),
            ("?client_id=a-B_9", "a-B_9"),
            ("?x=1&client_id=" + "y" * 64 + "&z", "y" * 64),
            ("?client_id=", ""),
            ("?client_id", ""),
            ("?client_id=" + "y" * 65, ""),
            ("?client_id=a%20b", ""),
            ("?client_id=a%41", ""),
            ("?client_id=a.b", ""),
            ("?client_id=a;client_id=b", ""),
            ("?client_id=a&client_id=a", ""),
            ("?my_client_id=a", ""),
            ("?CLIENT_ID=a", ""),
            ("?x=?client_id=a", ""),
        ):
            for target in (f"/ws{query}", f"http://chat.example/ws{query}"):
                self.assertEqual(accepted(request(f"GET {target} HTTP/1.1")).client_id, found, target)

    def test_a_user_agent_is_kept_without_control_characters_and_not_all_of_it(self) -> None:
        for agent, found in (
            (None, ""),
            ("Mozilla/5.0 (X11)", "Mozilla/5.0 (X11)"),
            ("a\tb", "ab"),
            ("x" * 10_000, "x" * 200),
            ("\xe9\x9b", "\N{REPLACEMENT CHARACTER}" * 2),
            ("a\r\nUser-Agent: b", "a, b"),
        ):
            self.assertEqual(accepted(request(User_Agent=agent)).agent, found)

    def test_what_was_agreed_is_in_the_answer_and_nothing_else(self) -> None:
        offer = request(Sec_WebSocket_Extensions="permessage-deflate; server_max_window_bits=10")
        found = accepted(offer, compress=True)
        self.assertIn(
            b"\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
            b"client_no_context_takeover; server_max_window_bits=10\r\n",
            found.answer,
        )
        self.assertEqual(found.deflate and found.deflate.window_bits, 10)
        for bare in (accepted(offer), accepted(request(), compress=True)):
            self.assertIsNone(bare.deflate)
            self.assertNotIn(b"Sec-WebSocket-Extensions", bare.answer)
            self.assertNotIn(b"Sec-WebSocket-Protocol", bare.answer)

    def test_what_is_legal_is_taken_however_unusual(self) -> None:
        for head in (
            request("GET /ws? HTTP/1.1"),
            request("GET /ws?[x]=%zz&a/b?c HTTP/1.1"),
            request("GET http://chat.example/ws HTTP/1.1"),
            request("GET HTTPS://chat.example:444/ws?a=b HTTP/1.1"),
            request(Host="chat.example:"),
            request(Host="[::1]:80"),
            request(Host="[::1]"),
            request(Host="::1:80"),  # some clients omit the brackets
            request(Host="my_service:8000"),
            request(Upgrade="h2c, WebSocket"),
            request(Connection="Upgrade,close"),
            request(Connection=",keep-alive ,\tupGRADE,"),
            request(Connection="close\r\nConnection: upgrade"),
            request(Upgrade="h2c\r\nupgrade: websocket"),
            request(Sec_WebSocket_Version=" \t13 "),
            request(Sec_WebSocket_Protocol=""),
            request(Sec_WebSocket_Protocol=", a,, b,"),
            request(Sec_WebSocket_Extensions=""),
            request(Sec_WebSocket_Extensions='a; b="c", , d\r\nSec-WebSocket-Extensions: e'),
            request(Sec_WebSocket_Extensions="permessage-deflate; server_max_window_bits=99"),
            request(X_Odd="\xe9\x85\xa0"),
            request(X_Empty=""),
            request(Content_Length="0"),
        ):
            for compress in (False, True):
                self.assertEqual(self.status(head, compress), 101, head)

    def test_lists_go_on_over_several_headers(self) -> None:
        found = accepted(
            request(
                Sec_WebSocket_Protocol="a\r\nSec-WebSocket-Protocol: notify.v1.json",
                Sec_WebSocket_Extensions="a\r\nsec-websocket-extensions: permessage-deflate",
                X_Forwarded_For="1.1.1.1\r\nx-forwarded-for: 2.2.2.2",
            ),
            compress=True,
        )
        self.assertIn(b"Sec-WebSocket-Protocol: notify.v1.json\r\n", found.answer)
        self.assertIsNotNone(found.deflate)
        self.assertEqual(found.forwarded, "1.1.1.1, 2.2.2.2")

    def test_each_refusal_has_its_status(self) -> None:
        for status, heads in (
            (
                400,
                (
                    b"",
                    request("GET /ws  HTTP/1.1"),
                    request("GET /ws HTTP/1.1 "),
                    request("GET /ws"),
                    request("GET /ws\tHTTP/1.1"),
                    request("GET /ws?\xe9 HTTP/1.1"),
                    request("GET /ws#there HTTP/1.1"),
                    request("GET /ws?a#b HTTP/1.1"),
                    request("GET http://chat.example/ws HTTP/1.1", Host=None),
                    request(Host=None),
                    request(Host="chat.example:http"),
                    request(Host="[::1]:x"),
                    request("GET http://chat.example:x/ws HTTP/1.1"),
                    request(Host="a\r\nHost: a"),
                    request(Origin=""),
                    request(Origin="http://chat.example\r\nOrigin: http://chat.example"),
                    request(Upgrade=""),
                    request(Upgrade="h2c"),
                    request(Connection=None),
                    request(Connection="close"),
                    request(Connection="upgraded"),
                    request(Sec_WebSocket_Version=None),
                    request(Sec_WebSocket_Version=""),
                    request(Sec_WebSocket_Version="+13"),
                    request(Sec_WebSocket_Version="013"),
                    request(Sec_WebSocket_Version="13, 13"),
                    request(Sec_WebSocket_Version="13\r\nSec-WebSocket-Version: 13"),
                    request(Sec_WebSocket_Key=None),
                    request(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ="),
                    request(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25j!!=="),
                    request(Sec_WebSocket_Key="A" * 22 + "==\r\nSec-WebSocket-Key: " + "A" * 22 + "=="),
                    request(Sec_WebSocket_Protocol="a, a"),
                    request(Sec_WebSocket_Protocol="a\r\nSec-WebSocket-Protocol: b, a"),
                    request(Sec_WebSocket_Extensions="permessage-deflate; ="),
                    request(Sec_WebSocket_Extensions="a\r\nSec-WebSocket-Extensions: ;"),
                    request(Content_Length="1"),
                    request(Content_Length="0\r\nContent-Length: 0"),
                    request(Content_Length="-1"),
                    request(Transfer_Encoding="chunked"),
                    request(Transfer_Encoding="identity"),
                    request(Transfer_Encoding="chunked\r\nTransfer-Encoding: chunked"),
                    request(Transfer_Encoding="chunked\r\nContent-Length: 0"),
                    request(X_Folded="a\r\n b"),
                    request(X_Folded="a\r\n\tb"),
                    request(X_Bare="a\nHost: evil"),
                    request(X_Bare="a\rHost: evil"),
                    request(X_Control="a\0"),
                    request(X_Control="a\x7f"),
                    request(X="a\r\nno colon"),
                    request(X="a\r\n: nothing"),
                    request(X="a\r\nName : b"),
                    request(X="a\r\nN\xe4me: b"),
                ),
            ),
            (404, (request("GET /wsx HTTP/1.1"), request("GET /ws;p HTTP/1.1"), request("GET * HTTP/1.1"))),
            (
                404,
                (
                    request("GET http://chat.example HTTP/1.1"),
                    request("GET ws://chat.example/ws HTTP/1.1"),
                    request("GET http://user@chat.example/ws HTTP/1.1"),
                ),
            ),
            (405, (request("POST /ws HTTP/1.1"), request("get /ws HTTP/1.1"))),
            (
                426,
                (
                    request(Upgrade=None),
                    request(Sec_WebSocket_Version="8"),
                    request(Sec_WebSocket_Version="0"),
                ),
            ),
            (505, (request("GET /ws HTTP/1.0"), request("GET /ws HTTP/2"), request("GET /ws x"))),
        ):
            for head in heads:
                for compress in (False, True):
                    self.assertEqual(self.status(head, compress), status, head)

    def test_a_refusal_says_what_would_do_and_quotes_nothing(self) -> None:
        for head, lines in (
            (request(Host="evil:evil"), ["HTTP/1.1 400 Bad Request"]),
            (request(Origin="http://evil"), ["HTTP/1.1 403 Forbidden"]),
            (request("GET /evil HTTP/1.1"), ["HTTP/1.1 404 Not Found"]),
            (request("EVIL /ws HTTP/1.1"), ["HTTP/1.1 405 Method Not Allowed", "Allow: GET"]),
            (
                request(Sec_WebSocket_Version="8"),
                ["HTTP/1.1 426 Upgrade Required", "Upgrade: websocket", "Sec-WebSocket-Version: 13"],
            ),
            (request("GET /ws EVIL"), ["HTTP/1.1 505 HTTP Version Not Supported"]),
        ):
            answer = self.assertRaises(Refused, judge, head, (), False).answer.decode()
            self.assertTrue(answer.endswith("\r\n\r\n"))
            found = answer.removesuffix("\r\n\r\n").split("\r\n")
            self.assertLessEqual({*lines, "Content-Length: 0"}, {*found})
            connection = "close, Upgrade" if "Upgrade: websocket" in found else "close"
            self.assertIn(f"Connection: {connection}", found)
            self.assertNotIn("evil", answer.lower())

    def test_where_a_page_comes_from_counts_and_with_a_star_it_does_not(self) -> None:
        for origin, host, target in (
            ("http://chat.example", "chat.example", "/ws"),
            ("http://chat.example", "elsewhere", "http://chat.example/ws"),
        ):
            accepted(request(f"GET {target} HTTP/1.1", Origin=origin, Host=host))
        for origin in ("http://evil", "null", "nonsense", "http://[::1", "http://a:x", "//a", "http://\xe9"):
            head = request(Origin=origin)
            self.assertEqual(self.assertRaises(Refused, judge, head, (), False).status, 403, origin)
            self.assertEqual(self.assertRaises(Refused, judge, head, ("http://a",), False).status, 403)
            self.assertEqual(accepted(head, ("*",)).encoding, encodings.choose(())[1])
        other = request("GET http://elsewhere/ws HTTP/1.1", Origin="http://chat.example")
        self.assertEqual(self.assertRaises(Refused, judge, other, (), False).status, 403)

    def test_a_run_of_blanks_can_be_read_in_one_way_only(self) -> None:
        blanks = " " * 1_000_000  # a pattern with alternatives would take hours for these
        for value in (f"a{blanks}\0", f"a;{blanks}=;", f"a,{blanks};", f"a;b{blanks};", f"a;b={blanks};"):
            self.assertEqual(self.status(request(Sec_WebSocket_Extensions=value)), 400)
