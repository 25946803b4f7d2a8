"""Plays a client of the original protocol, and one with the additions that came before features, on a simulated clock.

``tests/conformance/original.json`` holds, byte for byte, what a server wrote for this before text ids, features and
events existed. Run as a program, this module prints what the current server writes.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from notify.config import Duration, Limits
from notify.testing import chat_payload, notification_payload
from notify.topics import chat, user
from notify.wire.encodings import SUBPROTOCOLS, encoding
from notify.wire.protobuf import pb
from tests.support.world import Client, World

ROOM, MINE = chat(1, 10), user(1, 7)

Step = dict[str, Any]


def script() -> list[Step]:
    """The client's frames, and what is published in between."""
    original: list[Step] = [
        {"type": "ping"},
        {"type": "subscribe", "chat_id": 10},
        {"type": "auth", "token": "wrong"},
        {"reconnect": True},
        {"type": "auth", "token": "good"},
        {"type": "subscribe", "chat_id": 10},
        {"publish": [1]},
        {"publish": [2, 3, 4]},
        {"type": "auth", "token": "good"},
        {"type": "subscribe", "chat_id": 99},
        {"type": "ping"},
        {"notify": [1, 2]},
        {"type": "unsubscribe", "chat_id": 10},
        {"publish": [5]},
        {"type": "subscribe", "chat_id": 10},
        {"publish": [6]},
        {"type": "subscribe", "chat_id": -(2**63)},
        {"type": "unknown"},
    ]
    additions: list[Step] = [
        {"reconnect": True},
        {"type": "auth", "token": "good", "since": {"epoch": "", "seq": 0}, "id": 1},
        {"type": "subscribe", "chat_id": 10, "since": {"epoch": "EPOCH", "seq": 2}, "id": "two"},
        {"publish": [7, 8]},
        {"type": "subscribe", "chat_id": 10, "since": {"epoch": "other", "seq": 2}, "id": 3},
        {"publish": [9]},
        {"type": "subscribe", "chat_id": 11, "watch_presence": True, "id": 4},
        {"wait": 1.0},
        {"type": "presence", "chat_id": 10, "id": 5},
        {"type": "refresh", "token": "narrow", "id": 6},
        {"type": "ping", "id": -7},
        {"type": "unsubscribe", "chat_id": 10, "id": 8},
        {"reconnect": True},
        {"type": "auth", "token": "good", "since": {"epoch": "EPOCH", "seq": 5}, "id": 9},
        {"type": "presence", "chat_id": 99, "id": 10},
    ]
    return original + additions


def packed(step: Step, name: str) -> bytes:
    """A client's frame in an encoding."""
    if name != "notify.v1.protobuf":
        return json.dumps(step).encode()
    message = pb.ClientMessage()
    id = step.get("id")
    if isinstance(id, str):
        message.id_text = id
    elif id is not None:
        message.id = id
    body = getattr(message, step["type"], None)
    if body is not None:
        body.SetInParent()
        for key, value in step.items():
            if key == "since":
                body.since.epoch, body.since.seq = value["epoch"], value["seq"]
            elif key not in ("type", "id"):
                setattr(body, key, value)
    return pb.ClientFrame(messages=[message]).SerializeToString()


def play(name: str) -> list[list[str]]:
    """The frames that the server wrote after each step, in hexadecimal."""
    from notify.identity import Identity

    # The recording is from a time when tokens were valid for as long as they say.
    world = World(Limits(reauthenticate=Duration(0)))
    world.authenticator.tokens["good"] = Identity(7, 1, 1_700_003_600.0)
    world.authenticator.tokens["narrow"] = Identity(7, 1, None, frozenset({10}))
    world.authenticator.forbidden.add(99)
    epoch: str = world.broker._epoch

    def connect(number: int) -> Client:
        client = world.connect()
        client.connection.id = f"c{number}"
        client.connection.encoding = encoding(name)
        return client

    number, client, written = 1, connect(1), []
    for step in json.loads(json.dumps(script()).replace("EPOCH", epoch)):
        if "reconnect" in step:
            client.leave()
            number += 1
            client = connect(number)
        elif "wait" in step:
            world.clock.advance(step["wait"])
        elif "publish" in step:
            for n in step["publish"]:
                world.publish(ROOM, chat_payload(ROOM, n, f"message {n}", 2**62 + n))
        elif "notify" in step:
            for n in step["notify"]:
                world.publish(MINE, notification_payload(MINE, n, data={"a": [1, None, "é"]}))
        else:
            client.raw(packed(step, name))
        world.turn()
        written.append([frame.hex() for frame in client.connection.frames])
        client.connection.frames.clear()
    return written


if __name__ == "__main__":
    json.dump({name: play(name) for name in SUBPROTOCOLS}, sys.stdout, indent=0)
