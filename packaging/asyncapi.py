"""Makes docs/asyncapi.yaml, the wire protocol for programs, from the frames themselves: asyncapi.py FILE."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import yaml

from notify import __version__
from notify.http.openapi import finish
from notify.wire import frames

REF = "#/components/schemas/{name}"

#: what answers a client's frame, beside an error
ANSWERS = {
    "auth": ["auth_result"],
    "refresh": ["ok"],
    "subscribe": ["subscribed", "presence"],
    "unsubscribe": ["ok"],
    "presence": ["presence"],
    "history": ["history"],
    "signal": ["ok"],
    "ping": ["pong"],
}

DESCRIPTION = (
    "The frames of the WebSocket at /ws, as JSON. docs/protocol.md is the contract in words: order, positions, "
    "resumption, features, close codes. With the subprotocol notify.v1.json.batch, a server frame is an array of these "
    "objects; with notify.v1.protobuf, the frames are those of proto/notify.proto."
)


def tag(kind: Any) -> str:
    """The ``type`` of a frame."""
    name: str = kind.__struct_config__.tag
    return name


def _message(kind: Any) -> dict[str, Any]:
    text = " ".join((inspect.getdoc(kind) or "").replace("``", "`").split())
    return {"name": tag(kind), "summary": text, "payload": {"$ref": REF.format(name=kind.__name__)}}


def _in(name: str) -> dict[str, str]:
    return {"$ref": f"#/channels/connection/messages/{name}"}


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0 document, from the server's point of view: it receives clients' frames, and sends its own."""
    client, server = get_args(frames.ClientFrame), get_args(frames.ServerFrame)
    _, schemas = msgspec.json.schema_components((*client, *server), ref_template=REF)
    finish(schemas)
    theirs = {tag(kind): kind for kind in server}
    # `presence`, `history` and `signal` are frames in both directions.
    ours = {f"client_{tag(kind)}" if tag(kind) in theirs else tag(kind): kind for kind in client}
    told = sorted(set(theirs) - {name for names in ANSWERS.values() for name in names})
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "notify, WebSocket",
            "version": __version__,
            "description": DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {"public": {"host": "localhost:8080", "protocol": "ws"}},
        "channels": {
            "connection": {
                "address": "/ws",
                "description": "One WebSocket connection. Frames are handled in order; the first is auth.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in (*ours, *theirs)},
            }
        },
        "operations": {
            **{
                f"receive_{tag(kind)}": {
                    "action": "receive",
                    "channel": {"$ref": "#/channels/connection"},
                    "messages": [_in(name)],
                    "reply": {
                        "channel": {"$ref": "#/channels/connection"},
                        "messages": [_in(answer) for answer in (*ANSWERS[tag(kind)], "error")],
                    },
                }
                for name, kind in ours.items()
            },
            "tell": {
                "action": "send",
                "channel": {"$ref": "#/channels/connection"},
                "summary": "Unsolicited frames: messages, events, notifications, signals, and presence that the client watches.",
                "messages": [_in(name) for name in (*told, "presence")],
            },
        },
        "components": {
            "messages": {name: _message(kind) for name, kind in (*ours.items(), *theirs.items())},
            "schemas": schemas,
        },
    }


def text() -> str:
    """The file."""
    made: str = yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=110)
    return f"# Made by `make asyncapi` from notify/wire/frames.py.\n{made}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text())
