"""The interface description served at /openapi.json, generated from the types that are served."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from notify import __version__
from notify.core.witness import Seen
from notify.http.answers import REF, ErrorAnswer
from notify.http.broadcast import Broadcast
from notify.http.cluster import Connections, Nodes, Topics
from notify.http.commands import (
    Disconnect,
    Disconnected,
    Draining,
    Reloading,
    Shed,
    ShedRequest,
    Unsubscribe,
    Unsubscribed,
    WhichNode,
)
from notify.http.pipeline import MOST_STREAMS, StreamMessage, StreamOutcome
from notify.http.publish import MAX_LIST, Published, PublishedList
from notify.http.reads import DEFAULT_HISTORY, MAX_HISTORY, NEWEST, History, PresenceAnswer, TopicPosition
from notify.http.revoke import Revoke, Revoked
from notify.http.signals import Signalled, SignalRequest
from notify.http.trace import LONGEST, MOST, USUAL
from notify.ids import INT64_MAX, INT64_MIN, TEXT_PATTERN, TOKEN
from notify.messages import ChatEvent, ChatMessage, Notification
from notify.observe.health import HealthReport, Live

_TYPES = (
    ChatMessage,
    ChatEvent,
    Notification,
    Published,
    PublishedList,
    Broadcast,
    StreamMessage,
    StreamOutcome,
    SignalRequest,
    Signalled,
    History,
    TopicPosition,
    PresenceAnswer,
    Nodes,
    Connections,
    Topics,
    Seen,
    Disconnect,
    Disconnected,
    Unsubscribe,
    Unsubscribed,
    Revoke,
    Revoked,
    ShedRequest,
    Shed,
    WhichNode,
    Reloading,
    Draining,
    HealthReport,
    Live,
    ErrorAnswer,
)


def _int64_pattern() -> str:
    """A pattern that matches exactly the canonical decimal forms of signed 64-bit integers."""
    digits = str(INT64_MAX)
    last = len(digits) - 1
    below = [
        f"{digits[:i]}[{'1' if i == 0 else '0'}-{int(digit) - 1}][0-9]{{{last - i}}}"
        for i, digit in enumerate(digits)
        if int(digit) > (1 if i == 0 else 0)
    ]
    return f"(0|-?([1-9][0-9]{{0,{last - 1}}}|{'|'.join(below)}|{digits})|{INT64_MIN})"


INT64 = _int64_pattern()
#: an id in a subject: an integer, or text that does not look like one
_SPELT = rf"({INT64}|(?!-?[0-9]+\.){TOKEN})"
_CHAT = rf"chat\.{_SPELT}\.messages"
_USER = rf"user\.{_SPELT}\.notifications"
SUBJECT_PATTERN = rf"^workspace\.{_SPELT}\.({_CHAT}|{_USER})$"

_ERRORS = {
    400: "The request does not have the form described here.",
    401: "The request has no API key, or an unknown one.",
    403: "The server has no API keys, so nobody may use this; or the key is not allowed to do this, or not in this workspace; or the "
    "Host is not trusted.",
    404: "This server knows no node of this name.",
    408: "The request did not arrive completely in time.",
    409: "Not now: the node is already doing this, or is starting or leaving.",
    410: "The messages after that position cannot be returned without a gap: reload, and continue from a newer position.",
    413: "The body, the list or the payload is too large.",
    415: "The body is not JSON.",
    422: "The subject is unknown, or the payload is not valid for it. Nothing was published.",
    426: "This path is for WebSockets: send an opening handshake (RFC 6455).",
    429: "Too many unknown API keys came from this address, or too many traces are running: try again later.",
    500: "The server failed; its log says why.",
    501: "The broker's plugin cannot do this, or not as it is configured.",
    503: "The broker is away and nothing was done, or the change could not be saved, or too many streams are open: try again later.",
    504: "The broker, or the named node, did not answer in time.",
}


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": REF.format(name=name)}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _success(description: str, name: str) -> dict[str, Any]:
    return {"description": description, "content": _json(_schema(name)), "headers": _HEADERS}


_HEADERS = {
    "X-Request-Id": {
        "description": "The request's own id, or a generated one; logs name it.",
        "required": True,
        "schema": {"type": "string"},
    }
}


def _responses(successes: dict[int, dict[str, Any]], *errors: int) -> dict[str, Any]:
    responses: dict[str, Any] = {str(status): response for status, response in successes.items()}
    for status in errors:
        headers = dict(_HEADERS)
        if status == 401:
            headers["WWW-Authenticate"] = {"required": True, "schema": {"type": "string"}}
        if status in (429, 503):
            headers["Retry-After"] = {"schema": {"type": "string", "pattern": "^[0-9]+$"}}
        responses[str(status)] = {
            "description": _ERRORS[status],
            "content": _json(_schema("ErrorAnswer")),
            "headers": headers,
        }
    return responses


def _parameter(name: str, where: str, schema: dict[str, Any], text: str, required: bool) -> dict[str, Any]:
    return {"name": name, "in": where, "required": required, "description": text, "schema": schema}


def _id(name: str, text: str, required: bool = True) -> dict[str, Any]:
    integer = {"type": "integer", "format": "int64", "minimum": INT64_MIN, "maximum": INT64_MAX}
    schema = {"anyOf": [integer, {"type": "string", "pattern": TEXT_PATTERN}]}
    return _parameter(name, "query", schema, text, required)


def finish(schema: Any) -> None:
    """Complete msgspec's schema, in place.

    Every integer here has 64 bits: say so for generators of clients, whose default may be smaller. Remove the
    indentation of docstrings, which msgspec before 0.23 keeps.
    """
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            schema.setdefault("format", "int64")
        if isinstance(schema.get("description"), str):
            schema["description"] = inspect.cleandoc(schema["description"])
        for part in schema.values():
            finish(part)
    elif isinstance(schema, list):
        for part in schema:
            finish(part)


def _operation(id: str, summary: str, tag: str, **more: Any) -> dict[str, Any]:
    return {"operationId": id, "summary": summary, "tags": [tag], **more}


#: the possible statuses other than success: of a query, of a command, of a command that names a node
_ASKED = (400, 401, 403, 408, 413, 429, 500)
_TOLD = (*_ASKED, 415)
_ORDERED = (*_ASKED, 404, 504)


def _command(
    id: str, summary: str, takes: str, responses: dict[str, Any], body: bool = True, **more: Any
) -> dict[str, Any]:
    return _operation(
        id,
        summary,
        "command",
        security=[{"apiKey": []}],
        requestBody={"required": body, "content": _json(_schema(takes))},
        responses=responses,
        **more,
    )


def _paths(max_payload: int, max_body: int) -> dict[str, Any]:
    secured: list[dict[str, list[str]]] = [{"apiKey": []}]
    one = [_schema(f"{kind}Publication") for kind in ("Chat", "ChatEvent", "Notification")]
    many = {"type": "array", "items": _schema("Publication"), "minItems": 1, "maxItems": MAX_LIST}
    ready = {
        "200": _success("Ready.", "HealthReport"),
        "503": _success("Not ready; the body says why.", "HealthReport"),
    }
    return {
        "/v1/publish": {
            "post": _operation(
                "publish",
                "Publish one message, or a list in order",
                "publish",
                description=(
                    f"A payload may have at most {max_payload} bytes, the body {max_body}. The ids in a payload are "
                    "those of its subject. The messages of a list are independent, and published in order: one that is "
                    "refused does not hold up the others. With `atomic`, all are stored or none is."
                ),
                security=secured,
                parameters=[
                    _parameter(
                        "atomic",
                        "query",
                        {"type": "string", "enum": ["true", "false"], "default": "false"},
                        "Store all messages of a list, or none: an error in one message is then the answer, with its `index`. The "
                        "broker must support this (otherwise 501, also for a repeat of a stored list): NATS needs 2.12.12 or 2.14.3, and "
                        "`allow_atomic = true`.",
                        False,
                    ),
                    _parameter(
                        "Idempotency-Key",
                        "header",
                        _KEY,
                        "A repeat with the same key publishes nothing and returns the first answer, within the "
                        "broker's duplicate window. In a list, a message without its own key has the key KEY:INDEX, "
                        "which must not be used for another message. "
                        "Keys are compared, payloads are not.",
                        False,
                    ),
                    _parameter(
                        "traceparent",
                        "header",
                        # What a header can contain (RFC 9110, section 5.5).
                        {"type": "string", "pattern": r"^[\t -~\u0080-\u00ff]*$"},
                        "W3C trace context, which travels with the message. An invalid one is ignored.",
                        False,
                    ),
                ],
                requestBody={"required": True, "content": _json({"anyOf": [*one, many]})},
                responses=_responses(
                    {
                        200: {
                            "description": "Accepted: the position, or the positions of the list.",
                            "content": _json({"anyOf": [_schema("Published"), _schema("PublishedList")]}),
                            "headers": _HEADERS,
                        },
                        207: _success("Some messages of the list were not accepted.", "PublishedList"),
                    },
                    *(400, 401, 403, 408, 413, 415, 422, 429, 500, 501, 503, 504),
                ),
            )
        },
        "/v1/broadcast": {
            "post": _operation(
                "broadcast",
                "Publish one payload to many subjects of a workspace",
                "publish",
                description=(
                    "The server fills in `workspace_id`, and `chat_id` or `user_id`, from each subject; a payload that names other ids is refused. "
                    "An invalid body or payload publishes nothing. Otherwise the subjects are independent. "
                    f"The payloads together may have {max_body} bytes."
                ),
                security=secured,
                parameters=[
                    _parameter(
                        "Idempotency-Key",
                        "header",
                        {"type": "string", "pattern": "^[!-~]{1,128}$"},
                        "A repeat with the same key publishes nothing to the subjects that already have the message, and returns the first "
                        "answers, within the broker's duplicate window, in whatever order the subjects are.",
                        False,
                    ),
                ],
                requestBody={"required": True, "content": _json(_schema("Broadcast"))},
                responses=_responses(
                    {
                        200: _success(
                            "Accepted: the positions, in the order of the subjects.", "PublishedList"
                        ),
                        207: _success("Some subjects were not accepted.", "PublishedList"),
                    },
                    *(400, 401, 403, 408, 413, 415, 422, 429, 500),
                ),
            )
        },
        "/v1/stream": {
            "get": _operation(
                "stream",
                "Open a WebSocket to publish messages without one request for each",
                "publish",
                description=(
                    "A text frame is a `StreamMessage`, or a list of them as in a POST to /v1/publish. Each message is answered by a text frame, "
                    f"a `StreamOutcome` with its id, as soon as its outcome is known. A frame may have at most {max_body} "
                    f"bytes, a payload {max_payload}. At most {MOST_STREAMS} streams are open at a time. Pages may not open one."
                ),
                security=secured,
                responses=_responses(
                    {101: {"description": "The WebSocket is open."}},
                    *(400, 401, 403, 408, 413, 426, 429, 500, 503),
                ),
            )
        },
        "/v1/signal": {
            "post": _operation(
                "signal",
                "Signal a momentary state, such as typing, to a chat's members in a user's name; stored nowhere",
                "publish",
                description="Sent to the chat's members with the feature `signals` on all nodes, but not to the user's own "
                "clients. Delivery is best effort: a signal that cannot be delivered immediately is lost.",
                security=secured,
                requestBody={"required": True, "content": _json(_schema("SignalRequest"))},
                responses=_responses(
                    {202: _success("The signal was handed to the broker.", "Signalled")},
                    *(400, 401, 403, 408, 413, 415, 429, 500, 501, 503),
                ),
            )
        },
        "/v1/history": {
            "get": _operation(
                "history",
                "Messages after a position or before one, oldest first",
                "ask",
                description="Give at most one of `since` and `before`. `before` returns the last messages before a position, or the newest ones: "
                "to continue, send `previous` as `before`. A page may have fewer messages than are available even if `complete` is false.",
                security=secured,
                parameters=[
                    _parameter(
                        "subject",
                        "query",
                        {"type": "string", "pattern": SUBJECT_PATTERN},
                        "The subject whose history to return.",
                        True,
                    ),
                    _parameter(
                        "since",
                        "query",
                        {"type": "string", "pattern": rf"^[!-~]{{1,64}}:{_seq_pattern()}$"},
                        "A position, written epoch:seq; without it, the oldest message that is kept comes first.",
                        False,
                    ),
                    _parameter(
                        "before",
                        "query",
                        {"type": "string", "pattern": rf"^({NEWEST}|[!-~]{{1,64}}:{_seq_pattern()})$"},
                        f"A position, written epoch:seq, or '{NEWEST}'.",
                        False,
                    ),
                    _parameter(
                        "limit",
                        "query",
                        {
                            "type": "integer",
                            "minimum": 1,
                            "maximum": MAX_HISTORY,
                            "default": DEFAULT_HISTORY,
                        },
                        "The maximum number of messages.",
                        False,
                    ),
                ],
                responses=_responses(
                    {200: _success("Messages.", "History")},
                    400,
                    401,
                    403,
                    408,
                    410,
                    413,
                    422,
                    429,
                    500,
                    501,
                    503,
                    504,
                ),
            )
        },
        "/v1/position": {
            "get": _operation(
                "position",
                "The newest position of a subject",
                "ask",
                description="Give it to a page together with the state that you load after this request: a client that subscribes "
                "with it as `since` misses nothing that is not in the state.",
                security=secured,
                parameters=[
                    _parameter(
                        "subject",
                        "query",
                        {"type": "string", "pattern": SUBJECT_PATTERN},
                        "The subject whose position to return.",
                        True,
                    ),
                ],
                responses=_responses(
                    {200: _success("The position.", "TopicPosition")},
                    *(400, 401, 403, 408, 413, 422, 429, 500, 501, 503, 504),
                ),
            )
        },
        "/v1/presence": {
            "get": _operation(
                "presence",
                "Who is connected and subscribed to a chat, on any node",
                "ask",
                security=secured,
                parameters=[_id("workspace_id", "The chat's workspace."), _id("chat_id", "The chat.")],
                responses=_responses(
                    {200: _success("The users.", "PresenceAnswer")},
                    400,
                    401,
                    403,
                    408,
                    413,
                    429,
                    500,
                    503,
                    504,
                ),
            )
        },
        "/v1/nodes": {
            "get": _operation(
                "nodes",
                "The nodes, and the state of each",
                "ask",
                description="Rates are measured over a second, so the answer takes one.",
                security=secured,
                responses=_responses({200: _success("The nodes.", "Nodes")}, *_ASKED),
            )
        },
        "/v1/connections": {
            "get": _operation(
                "connections",
                "A user's connections on all nodes",
                "ask",
                security=secured,
                parameters=[
                    _id("user_id", "The user."),
                    _id("workspace_id", "Only connections in this workspace.", False),
                ],
                responses=_responses({200: _success("The connections.", "Connections")}, *_ASKED),
            )
        },
        "/v1/topics": {
            "get": _operation(
                "topics",
                "The chats of a workspace that have members, on all nodes, busiest first",
                "ask",
                description="Rates are measured over a second, so the answer takes one.",
                security=secured,
                parameters=[_id("workspace_id", "The workspace.")],
                responses=_responses({200: _success("The chats.", "Topics")}, *_ASKED),
            )
        },
        "/v1/trace": {
            "get": _operation(
                "trace",
                "What happens with a user's clients, or in a chat, on all nodes, as it happens",
                "ask",
                description=f"Server-sent events, without names or ids: the data of each is one `Seen` as JSON. One of user_id and "
                f"chat_id is required. At most {MOST} traces run through a node at a time; each node keeps some 100 events a second and "
                "reports how many it left out. A trace contains no message content and no tokens.",
                security=secured,
                parameters=[
                    _id("workspace_id", "The workspace of the user or chat."),
                    _id("user_id", "The user.", False),
                    _id("chat_id", "The chat.", False),
                    _parameter(
                        "peer",
                        "query",
                        {"type": "string"},
                        "An IP address: of the clients that belong to no user, show only those from this address. For keys for all workspaces.",
                        False,
                    ),
                    _parameter(
                        "seconds",
                        "query",
                        {"type": "integer", "minimum": 1, "maximum": LONGEST, "default": USUAL},
                        "How long the trace runs, in seconds.",
                        False,
                    ),
                ],
                responses=_responses(
                    {
                        200: {
                            "description": "Events, until the time is over.",
                            "content": {"text/event-stream": {"schema": _schema("Seen")}},
                            "headers": _HEADERS,
                        }
                    },
                    *_ASKED,
                ),
            )
        },
        "/v1/disconnect": {
            "post": _command(
                "disconnect",
                "Close a user's connections on all nodes, with 4503 or, to have the clients reconnect, 1012",
                "Disconnect",
                _responses({200: _success("The connections were told to close.", "Disconnected")}, *_TOLD),
            )
        },
        "/v1/unsubscribe": {
            "post": _command(
                "unsubscribe",
                "End a user's subscriptions to a chat on all nodes",
                "Unsubscribe",
                _responses({200: _success("The subscriptions are ended.", "Unsubscribed")}, *_TOLD),
                description="The clients get `forbidden` for the chat. When they subscribe again, the authenticator decides "
                "afresh, whatever was cached.",
            )
        },
        "/v1/revoke": {
            "post": _command(
                "revoke",
                "Refuse a user's tokens that were issued before now, or before a time, on all nodes",
                "Revoke",
                _responses(
                    {
                        200: _success(
                            "The tokens are refused, and their connections were told to close.", "Revoked"
                        )
                    },
                    *_TOLD,
                    503,
                ),
                description="Connections are closed with 4002, and clients ask for a new token. 503, `not_kept`: it was done on "
                "the nodes that were reached, but not saved for the others; repeat the request.",
            )
        },
        "/v1/shed": {
            "post": _command(
                "shed",
                "Move a share of a node's clients to other nodes, in small steps",
                "ShedRequest",
                _responses({202: _success("The shed has begun.", "Shed")}, *_ORDERED, 409, 415),
                description="The clients are chosen at random, and asked to change their `client_id`, on which load balancers hash.",
            )
        },
        "/v1/reload": {
            "post": _command(
                "reload",
                "Reload the configuration, on this node or another",
                "WhichNode",
                _responses({202: _success("The reload has begun.", "Reloading")}, *_ORDERED),
                body=False,
            )
        },
        "/v1/drain": {
            "post": _command(
                "drain",
                "Drain this node or another: it is not ready from now on, and sends its clients away in small steps",
                "WhichNode",
                _responses(
                    {202: _success("The drain has begun, or is already running.", "Draining")}, *_ORDERED
                ),
                body=False,
            )
        },
        "/health/live": {
            "get": _operation(
                "live",
                "Whether the process runs",
                "health",
                responses={
                    "200": _success("The process runs.", "Live"),
                    **_responses({}, 400, 408, 413, 500),
                },
            )
        },
        "/health/ready": {
            "get": _operation(
                "ready",
                "Whether the server can be given traffic",
                "health",
                responses={**ready, **_responses({}, 400, 408, 413, 500)},
            )
        },
        "/health": {
            "get": _operation(
                "health",
                "State of broker, listeners and drain",
                "health",
                responses={**ready, **_responses({}, 400, 408, 413, 500)},
            )
        },
        "/metrics": {
            "get": _operation(
                "metrics",
                "Prometheus metrics",
                "health",
                responses={
                    "200": {
                        "description": "Prometheus text format.",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                        "headers": _HEADERS,
                    },
                    **_responses({}, 400, 403, 408, 413, 500),
                },
            )
        },
        "/openapi.json": {
            "get": _operation(
                "openapi",
                "This description",
                "health",
                responses={
                    "200": {
                        "description": "OpenAPI 3.1.",
                        "content": _json({"type": "object"}),
                        "headers": _HEADERS,
                    },
                    **_responses({}, 400, 408, 413, 500),
                },
            )
        },
    }


_KEY = {"type": "string", "pattern": "^[!-~]{1,128}$"}
_OWN_KEY = (
    "This message's own idempotency key, in place of the one that the header gives it. The key KEY:INDEX is that of a "
    "message in the list with the key KEY."
)


def _seq_pattern() -> str:
    return INT64.replace("-?", "").replace(f"|{INT64_MIN}", "")


def _publication(text: str, subject: dict[str, Any], payload: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": text,
        "type": "object",
        "properties": {"subject": subject, "payload": payload, "key": {**_KEY, "description": _OWN_KEY}},
        "required": ["subject", "payload"],
        "additionalProperties": False,
    }


def document(max_payload: int, max_body: int) -> dict[str, Any]:
    """The OpenAPI 3.1 document; the arguments are bounds in bytes."""
    _, components = msgspec.json.schema_components(_TYPES, ref_template=REF)
    finish(components)
    components["ChatPublication"] = _publication(
        "A chat message; the ids in the payload are those of the subject.",
        {"type": "string", "pattern": rf"^workspace\.{_SPELT}\.{_CHAT}$"},
        _schema("ChatMessage"),
    )
    subjects = components["Broadcast"]["properties"]["subjects"]
    subjects |= {"maxItems": MAX_LIST, "uniqueItems": True}
    subjects["items"] = {"type": "string", "pattern": SUBJECT_PATTERN}
    components["ChatEvent"]["not"] = {"required": ["content"]}
    components["ChatEventPublication"] = _publication(
        "A change in a chat other than a message; the ids in the payload are those of the subject.",
        {"type": "string", "pattern": rf"^workspace\.{_SPELT}\.{_CHAT}$"},
        _schema("ChatEvent"),
    )
    components["NotificationPublication"] = _publication(
        "A user notification; the ids in the payload are those of the subject.",
        {"type": "string", "pattern": rf"^workspace\.{_SPELT}\.{_USER}$"},
        _schema("Notification"),
    )
    components["Publication"] = _publication(
        "A message of a list. It should be a ChatPublication, ChatEventPublication or NotificationPublication; if it is not, the list "
        "is accepted and this message gets its own error.",
        {"type": "string"},
        {},
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "notify, internal HTTP",
            "version": __version__,
            "description": "Publishing, queries, commands and health. For backends and operators, not for browsers.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": _paths(max_payload, max_body),
        "components": {
            "schemas": components,
            "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer"}},
        },
    }
