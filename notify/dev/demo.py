"""What the demo page of ``twistd notify --dev`` may do beyond a client: get a token, and publish. Never outside it.

A page of another site must not be able to use these: they are asked for by a loopback address or ``localhost`` (so that
no other name can be pointed at it), answer JSON without any CORS header, and publish only what is sent as JSON.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from ipaddress import ip_address
from secrets import randbits
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Raw, Struct
from twisted.internet.defer import Deferred

from notify.http.answers import Answer, Refused, answer, bad_request
from notify.http.request import Request, Route
from notify.ids import Id
from notify.interfaces import IBroker
from notify.messages import ChatEvent, ChatMessage, Position

T = TypeVar("T")

WORKSPACE = 1
#: seconds a token may live
SHORTEST, LONGEST = 3.0, 3600.0
USERS = 1000


class DemoToken(Struct, frozen=True):
    """A token; ``expires_at`` is Unix time in seconds."""

    token: str
    expires_at: float


class DemoMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """What the page wants to say. ``message_id`` is the page's own, to know its messages again."""

    chat_id: Id
    sender_id: Id
    content: Annotated[str, Meta(min_length=1, max_length=2000)]
    message_id: Id | None = None


class DemoChange(Struct, frozen=True, forbid_unknown_fields=True):
    """An edit of a message, or with ``content`` null its deletion. Who wrote it is for those who are told to look at."""

    chat_id: Id
    sender_id: Id
    refers_to: Id
    content: Annotated[str, Meta(min_length=1, max_length=2000)] | None


def demo_routes(
    issue_token: Callable[[int, float], str], broker: IBroker, now: Callable[[], float] = time.time
) -> Mapping[bytes, Route]:
    """``GET /demo/token?user=1&ttl=60``, ``POST /demo/publish`` and ``POST /demo/change``, for the public site.

    ``issue_token(user_id, seconds)`` makes a token of workspace 1; ``now`` is Unix time.
    """

    def token(request: Request) -> Answer:
        _own_address(request)
        asked = request.parameters((), ("user", "ttl"))
        user = _number(asked.get("user", "1"), "user", 1, USERS)
        ttl = _number(asked.get("ttl", "60"), "ttl", SHORTEST, LONGEST)
        return answer(DemoToken(issue_token(int(user), ttl), now() + ttl))

    def publish(request: Request) -> Deferred[Answer]:
        message = _read(request, DemoMessage)
        return to_broker(
            ChatMessage(
                message_id=randbits(53) if message.message_id is None else message.message_id,
                chat_id=message.chat_id,
                workspace_id=WORKSPACE,
                sender_id=message.sender_id,
                content=message.content,
                timestamp=int(now()),
            )
        )

    def change(request: Request) -> Deferred[Answer]:
        asked = _read(request, DemoChange)
        data = None if asked.content is None else {"content": asked.content}
        return to_broker(
            ChatEvent(
                message_id=randbits(53),
                chat_id=asked.chat_id,
                workspace_id=WORKSPACE,
                sender_id=asked.sender_id,
                kind="deleted" if asked.content is None else "edited",
                data=Raw(msgspec.json.encode(data)),
                timestamp=int(now()),
                refers_to=asked.refers_to,
            )
        )

    def to_broker(event: ChatMessage | ChatEvent) -> Deferred[Answer]:
        publishing: Deferred[Position] = broker.publish(event.topic, msgspec.json.encode(event))
        return publishing.addCallback(answer)

    return {
        b"/demo/token": Route({b"GET": token}),
        b"/demo/publish": Route({b"POST": publish}, max_body=16 * 1024, json=True),
        b"/demo/change": Route({b"POST": change}, max_body=16 * 1024, json=True),
    }


def _read(request: Request, kind: type[T]) -> T:
    _own_address(request)
    try:
        return msgspec.json.decode(request.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"not a message of the demo: {str(error).replace('`', chr(39))}") from None


def _own_address(request: Request) -> None:
    """Refuse a Host that is not this machine's to itself: any other can be made to lead here by anyone."""
    try:
        host = urlsplit(f"//{request.host}").hostname or ""
        own = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        own = False
    if not own:
        raise Refused(HTTPStatus.FORBIDDEN, "forbidden", "open the demo page by localhost or 127.0.0.1")


def _number(text: str, name: str, least: float, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise bad_request(f"'{name}' is a number from {least:g} to {most:g}")
    return number
