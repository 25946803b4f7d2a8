"""Who may open an event stream, and of which topics: the rules, without a socket."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from notify.transport.eventrequest import Asked, NoStream, Preflight, begin, instead, judge, nothing
from notify.wire.eventstream import Close
from notify.wire.frames import Since

PAGE = "https://chat.example"


def request(line: str = "GET /events HTTP/1.1", *more: str, **headers: str | None) -> bytes:
    """The head of a request; a header that is None is left out."""
    fields = {
        "Host": "push.example",
        "Authorization": "Bearer a.b.c",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([line, *lines, *more]).encode("latin-1")


def asking(query: str, **headers: str | None) -> Asked:
    return judge(request(f"GET /events?{query} HTTP/1.1", **headers), (), True)


def parts(answer: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of an answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, json.loads(body) if body else None


class Case(SynchronousTestCase):
    def refused(self, head: bytes, origins: tuple[str, ...] = (), welcome: bool = True) -> NoStream:
        refused: NoStream = self.assertRaises(NoStream, judge, head, origins, welcome)
        status, headers, body = parts(refused.answer)
        self.assertEqual(status, refused.status)
        self.assertEqual(set(body["error"]) >= {"code", "message"}, True)
        self.assertEqual(headers["content-length"], str(len(refused.answer.partition(b"\r\n\r\n")[2])))
        self.assertEqual((headers["connection"], headers["cache-control"]), ("close", "no-store"))
        return refused


class Queries(Case):
    def test_chats_features_and_presence(self) -> None:
        self.assertEqual(
            asking(
                "chat=5&chat=-7&chat=abc&features=events,new&watch_presence=true&client_id=me", User_Agent="x"
            ),
            Asked("a.b.c", (5, -7, "abc"), {}, ("events", "new"), True, "", "", "me", "x"),
        )
        self.assertEqual(judge(request(), (), True), Asked("a.b.c", (), {}, (), False, "", "", "", ""))
        self.assertEqual(asking("chat=%35&watch_presence=false").chats, (5,))

    def test_what_is_not_of_its_form_is_refused(self) -> None:
        for query in (
            *("chat", "chat=", "chat=05", "chat=x!", "chat=5&chat=5", "chat=5&chat=%35", "chats=5", "chat=5&&chat=6"),
            *("token=a.b.c", "access_token=a", "chat=5&since=3", "features=", "features=a&features=b", "features=a%0Ab"),
            *("features=" + ",".join(["a"] * 65), "features=" + "a" * 65, "watch_presence=yes", "chat=%FF", "chat=%zz"),
            *("watch_presence=true&watch_presence=true", "&".join(f"client_id={n}" for n in range(60))),
        ):  # fmt: skip
            refused = self.refused(request(f"GET /events?{query} HTTP/1.1"))
            self.assertEqual(refused.status, 400, query)
            self.assertNotIn(b"a.b.c", refused.answer)

    def test_at_most_32_chats(self) -> None:
        self.assertEqual(len(asking("&".join(f"chat={n}" for n in range(32))).chats), 32)
        refused = self.refused(request(f"GET /events?{'&'.join(f'chat={n}' for n in range(33))} HTTP/1.1"))
        self.assertEqual((refused.status, refused.why), (400, "a stream has at most 32 chats"))

    def test_a_client_id_of_another_form_is_none(self) -> None:
        for query in ("client_id=a%20b", "client_id=", "client_id=a&client_id=b"):
            self.assertEqual(asking(query).client_id, "")

    @given(st.text(), st.text())
    def test_whatever_is_asked_is_answered(self, query: str, last: str) -> None:
        line = f"GET /events?{quote(query, safe='&=%#,')} HTTP/1.1"
        try:
            judge(request(line, Last_Event_ID=quote(last, safe=":=;,*%")), (), True)
        except NoStream as refused:
            self.assertEqual(refused.status, 400)


class Headers(Case):
    def test_a_token_comes_in_its_header_and_nowhere_else(self) -> None:
        self.assertEqual(judge(request(Authorization="bearer  x"), (), True).token, "x")
        for given_ in (None, "", "Bearer", "Bearer ", "Basic abc", "Bearer a b", "Bearer \xe9"):
            refused = self.refused(request(Authorization=given_))
            self.assertEqual(parts(refused.answer)[1]["www-authenticate"], "Bearer", given_)
        self.assertEqual(self.refused(request("GET /events HTTP/1.1", "Authorization: Bearer b")).status, 401)

    def test_positions(self) -> None:
        asked = asking("chat=5", Last_Event_ID="e:*=3,5=4")
        self.assertEqual(asked.positions, {None: Since("e", 3), 5: Since("e", 4)})
        self.assertEqual(asking("chat=5", Last_Event_ID="").positions, {})
        for bad in ("5", "e:5=x", "e:5=4;", "\xe9:5=4", "e:" + ",".join(f"{n}=1" for n in range(34))):
            refused = self.refused(request("GET /events?chat=5 HTTP/1.1", Last_Event_ID=bad))
            self.assertEqual(refused.status, 400, bad)
        self.assertEqual(
            self.refused(
                request("GET /events HTTP/1.1", "Last-Event-ID: e:5=1", Last_Event_ID="e:5=1")
            ).status,
            400,
        )

    def test_where_it_comes_from(self) -> None:
        asked = judge(
            request(
                "GET /events HTTP/1.1",
                "X-Forwarded-For: 9.9.9.9",
                X_Forwarded_For="8.8.8.8",
                User_Agent="a\tb",
            ),
            (),
            True,
        )
        self.assertEqual((asked.forwarded, asked.agent), ("8.8.8.8, 9.9.9.9", "ab"))

    def test_requests_that_are_none(self) -> None:
        for head, status in (
            (request("GET /events HTTP/2.0"), 505),
            (request("GET /events HTTP/1.1", Host=None), 400),
            (request("GET /events HTTP/1.1", "Host: b"), 400),
            (request("GET /events?a#b HTTP/1.1"), 400),
            (request("GET /events HTTP/1.1", "no header"), 400),
            (request("GET /events HTTP/1.1", Content_Length="3"), 400),
            (request("GET /events HTTP/1.1", Transfer_Encoding="chunked"), 400),
            (
                request(
                    "GET /events HTTP/1.1", "Origin: https://push.example", Origin="https://push.example"
                ),
                400,
            ),
            (request("GET /events HTTP/1.1", Origin=""), 400),
            (request("POST /events HTTP/1.1", Content_Length="3"), 405),
            (request("OPTIONS /events HTTP/1.1", Content_Length="3"), 405),
        ):
            self.assertEqual(self.refused(head).status, status, head)
        self.assertEqual(
            parts(self.refused(request("PUT /events HTTP/1.1")).answer)[1]["allow"], "GET, OPTIONS"
        )
        self.assertEqual(judge(request("GET /events HTTP/1.0", Host=None), (), True).token, "a.b.c")

    def test_a_server_that_is_starting_says_when_to_come_again(self) -> None:
        status, headers, _ = parts(self.refused(request(Origin="https://push.example"), welcome=False).answer)
        self.assertEqual((status, headers["retry-after"]), (503, "5"))
        self.assertEqual(headers["access-control-allow-origin"], "https://push.example")


class Pages(Case):
    def test_origins_are_those_of_websockets(self) -> None:
        for origin, origins, allowed in (
            ("https://push.example", (), True),
            (PAGE, (), False),
            (PAGE, (PAGE,), True),
            ("https://evil.example", (PAGE,), False),
            ("https://evil.example", ("*",), True),
            ("null", (PAGE,), False),
        ):
            head = request(Origin=origin)
            if allowed:
                self.assertEqual(judge(head, origins, True).origin, origin)
            else:
                refused = self.refused(head, origins)
                self.assertEqual(refused.status, 403, origin)
                self.assertTrue(refused.origin)
                self.assertNotIn(b"Access-Control", refused.answer)
        # The authority in the target is the host, whatever the Host header says.
        self.assertEqual(judge(request(f"GET {PAGE}/events HTTP/1.1", Origin=PAGE), (), True).origin, PAGE)

    def test_a_page_may_read_whatever_it_is_answered(self) -> None:
        for head in (
            request(Origin=PAGE, Authorization=None),
            request("GET /events?chat=x! HTTP/1.1", Origin=PAGE),
            request("POST /events HTTP/1.1", Origin=PAGE),
            request(Origin=PAGE, Last_Event_ID="x"),
        ):
            headers = parts(self.refused(head, (PAGE,)).answer)[1]
            self.assertEqual((headers["access-control-allow-origin"], headers["vary"]), (PAGE, "Origin"))
        for answer in (
            begin(PAGE),
            instead(Close(4500), PAGE).answer,
            nothing(["forbidden"], PAGE).answer,
        ):
            headers = parts(answer)[1]
            self.assertEqual(headers["access-control-allow-origin"], PAGE)
            self.assertEqual(headers["access-control-expose-headers"], "Retry-After")
        self.assertNotIn(b"Access-Control", begin(""))

    def test_a_preflight(self) -> None:
        asks = ("OPTIONS /events HTTP/1.1", "Access-Control-Request-Method: GET")
        answer = self.assertRaises(
            Preflight, judge, request(*asks, Authorization=None, Origin=PAGE), (PAGE,), True
        ).answer
        status, headers, body = parts(answer)
        self.assertEqual((status, body, headers["access-control-allow-origin"]), (204, None, PAGE))
        self.assertEqual(headers["access-control-allow-methods"], "GET")
        self.assertEqual(
            headers["access-control-allow-headers"].lower().split(", "),
            ["authorization", "last-event-id", "cache-control"],
        )
        self.assertNotIn("access-control-allow-credentials", headers)
        self.assertEqual(self.refused(request(*asks, Origin="https://evil.example"), (PAGE,)).status, 403)
        plain = self.assertRaises(Preflight, judge, request("OPTIONS /events HTTP/1.1"), (), True).answer
        self.assertEqual(parts(plain)[1]["allow"], "GET, OPTIONS")
        self.assertNotIn(b"Access-Control", plain)


class Instead(SynchronousTestCase):
    def test_each_close_code_has_a_status(self) -> None:
        for code, status, name in (
            (4500, HTTPStatus.UNAUTHORIZED, "unauthorized"),
            (4002, HTTPStatus.UNAUTHORIZED, "token_expired"),
            (4503, HTTPStatus.FORBIDDEN, "disconnected"),
            (4504, HTTPStatus.TOO_MANY_REQUESTS, "rate_limited"),
            *(
                (code, HTTPStatus.SERVICE_UNAVAILABLE, "unavailable")
                for code in (1012, 1013, 4000, 4001, 4004)
            ),
        ):
            found, _, body = parts(instead(Close(code), "").answer)
            self.assertEqual((found, body["error"]["code"], body["error"]["close"]), (status, name, code))

    def test_when_to_come_again(self) -> None:
        _, headers, body = parts(instead(Close(1012, "", 1840, True), "").answer)
        self.assertEqual(headers["retry-after"], "2")
        self.assertEqual((body["error"]["retry_after_ms"], body["error"]["elsewhere"]), (1840, True))

    def test_chats_that_are_all_refused(self) -> None:
        for codes, status in (
            (["forbidden"], 403),
            (["forbidden", "forbidden"], 403),
            (["forbidden", "unavailable"], 503),
            (["internal"], 503),
        ):
            self.assertEqual(parts(nothing(codes, "").answer)[0], status)
