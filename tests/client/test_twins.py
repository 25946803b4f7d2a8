"""Random lives of a client: lived by the Python machine and then, event by event, by the JavaScript machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from twisted.trial.unittest import TestCase

from notify.client.actions import FetchToken, Position, Send, Settings
from notify.client.machine import Machine
from tests.support.programs import ROOT, program

LIVES, EVENTS = 450, 120
CODES = (1000, 1006, 1012, 1013, 4000, 4001, 4002, 4004, 4499, 4500, 4501, 4503)
REASONS = ("", '{"retry_after_ms": 1500}', '{"retry_after_ms": -1}', "gone", "{",
           '{"retry_after_ms": 700, "elsewhere": true}', '{"elsewhere": true}', '{"elsewhere": 1}')  # fmt: skip
ERRORS = ("forbidden", "unavailable", "rate_limited", "too_many_subscriptions", "history_unavailable")


class Life:
    """One random life: events are drawn at random, mostly from those that can sensibly happen next."""

    def __init__(self, seed: int) -> None:
        self.draw = Random(seed)
        self.settings: dict[str, Any] = {"window": 2, "burst": 6, "rate": 5.0, "max_commands": 3}
        if seed % 2:
            self.settings["features"] = ["events"]
        self.granted = ["history", "signals"] if seed % 3 else self.settings.get("features", [])
        self.randoms: list[float] = []
        self.now = 0.0
        self.machine = Machine(
            msgspec.convert(self.settings, Settings), self._random, lambda: 1000 + self.now
        )
        self.token = 0
        self.asked: list[dict[str, Any]] = []
        self.count = 0
        self.steps: list[Any] = []
        self.did: Counter[str] = Counter()

    def _random(self) -> float:
        self.randoms.append(round(self.draw.random(), 6))
        return self.randoms[-1]

    def live(self) -> dict[str, Any]:
        self.step(self.now, ["start"])
        for _ in range(EVENTS):
            due = self.machine.deadline()
            if due is not None and self.draw.random() < (0.05 if self.machine.state == "connected" else 0.25):
                self.step(due, ["timer"])
            else:
                at = self.now + self.draw.choice((0, 0, 0, 0.01, 0.3))
                self.step(at if due is None else min(at, due), self.event())
        return {"settings": self.settings, "unix": 1000, "random": self.randoms, "steps": self.steps}

    def step(self, at: float, event: list[Any]) -> None:
        self.now = at
        name, *args = event
        machine = self.machine
        if name == "subscribe":
            machine.subscribe(args[0], at, args[1] and Position(**args[1]), args[2])
        elif name == "token":
            machine.token(args[0], args[1], at, args[2])
        else:
            names = {"open": "opened", "close": "closed", "frame": "received", "timer": "tick"}
            getattr(machine, names.get(name, name))(*args, at)
        for action in machine.actions:
            self.did[type(action).__name__] += 1
            if isinstance(action, FetchToken):
                self.token = action.n
            elif isinstance(action, Send):
                self.did[action.frame["type"]] += 1
                self.asked.append(action.frame)
        self.steps.append([at, event, msgspec.to_builtins(machine.actions)])
        machine.actions.clear()

    def event(self) -> list[Any]:
        draw, state = self.draw, self.machine.state
        if draw.random() < 0.2:
            return self.users()
        if state == "connecting":
            token = ["token", self.token, "T", draw.choice((None, 1000 + self.now + 40))]
            rare = draw.choice((["token_failed", self.token, "no"], self.close()))
            return draw.choice((token, token, token, ["open"], ["open"], ["open"], rare))
        if state == "authenticating":
            return self.auth_result() if draw.random() < 0.9 else self.close()
        if state == "connected":
            if draw.random() < 0.1:
                return self.rare()
            return draw.choice((self.answer(), self.answer(), self.message(), self.message(), self.message()))
        return draw.choice((["online"], ["start"], self.users()))

    def users(self) -> list[Any]:
        draw, chat = self.draw, self.draw.choice((1, 2, "c-3"))
        self.count += 1
        return draw.choice(
            (
                ["subscribe", chat, draw.choice((None, self.place())), draw.random() < 0.3],
                ["subscribe", chat, None, False],
                ["unsubscribe", chat],
                ["pause", draw.choice((chat, None))],
                ["resume", draw.choice((chat, None))],
                ["resume", chat],
                ["request", self.count, {"type": "ping"}],
                ["request", self.count, {"type": "presence", "chat_id": chat}],
                ["request", self.count, {"type": "history", "chat_id": chat}],
                ["signal", chat, "typing", draw.choice((None, True, {"x": 1}))],
                ["online"],
                ["refresh", self.count],
            )
        )

    def place(self) -> dict[str, Any]:
        return {"epoch": self.draw.choice("eeef"), "seq": self.draw.randrange(12)}

    def close(self) -> list[Any]:
        return [
            "close",
            self.draw.choice(CODES[:9] if self.draw.random() < 0.9 else CODES),
            self.draw.choice(REASONS),
        ]

    def rare(self) -> list[Any]:
        draw = self.draw
        error = {"type": "error", "code": draw.choice(ERRORS), "message": "m"}
        return draw.choice(
            (
                self.close(),
                ["online"],
                ["frame", error],
                ["frame", {**error, "chat_id": draw.choice((1, 2, "c-3", None))}],
                ["frame", {"type": "presence", "chat_id": draw.choice((1, 2, 9)), "users": []}],
                [
                    "frame",
                    {
                        "type": "signal",
                        "chat_id": draw.choice((1, 2, 9)),
                        "user_id": 6,
                        "kind": "k",
                        "data": 1,
                    },
                ],
                ["frame", {"type": "pong"}],
                ["frame", draw.choice(({}, [], None, {"type": 7}, {"type": "chat_message", "chat_id": 1}))],
                ["stop"] if draw.random() < 0.1 else ["token", self.token, "T2", None],
            )
        )

    def auth_result(self) -> list[Any]:
        draw = self.draw
        result = {
            "type": "auth_result",
            "success": draw.random() < 0.95,
            "user_id": 5,
            "ping_interval": draw.choice((5, 25)),
        }
        result["features"] = self.granted if draw.random() < 0.9 else draw.choice(([], None, "history", [7]))
        expires = {"expires_at": draw.choice((None, 1000 + self.now + 20, 900))}
        return ["frame", {**result, **expires, **self.place(), "recovered": draw.random() < 0.7}]

    def answer(self) -> list[Any]:
        draw = self.draw
        asked = [frame for frame in self.asked[-8:] if "id" in frame]
        if not asked:
            return ["frame", {"type": "ok", "id": 99}]
        frame = draw.choice(asked)
        if draw.random() < 0.15:
            retry = draw.choice(({}, {"retry": True}, {"retry": False}))
            return [
                "frame",
                {"type": "error", "code": draw.choice(ERRORS), "message": "m", "id": frame["id"], **retry},
            ]
        kinds = {"subscribe": "subscribed", "ping": "pong", "presence": "presence", "history": "history"}
        answer = {"type": kinds.get(frame["type"], "ok"), "id": frame["id"]}
        if frame["type"] == "subscribe":
            since = frame.get("since")
            place = since if since and draw.random() < 0.7 else self.place()
            answer |= {"chat_id": frame["chat_id"], **place, "recovered": draw.random() < 0.8}
        elif frame["type"] == "presence":
            answer |= {"chat_id": frame["chat_id"], "users": [{"user_id": 5, "connections": 1}]}
        elif frame["type"] == "history":
            answer |= self.page(frame)
        return ["frame", answer]

    def page(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A page as it should be, or one that is broken in some way."""
        draw, chat = self.draw, asked["chat_id"]
        place = asked.get("after") or self.place()
        messages: list[Any] = []
        last = place["seq"]
        for _ in range(draw.randrange(4)):
            seq = last + draw.choice((1, 1, 1, 2, 0))
            prev = last if draw.random() < 0.95 else seq + 1
            epoch = place["epoch"] if draw.random() < 0.98 else "g"
            kind = draw.choice(("chat_message", "chat_message", "chat_event"))
            messages.append({"type": kind, "chat_id": chat, "epoch": epoch, "seq": seq, "prev": prev})
            last = seq
        if draw.random() < 0.1:
            messages.insert(0, draw.choice((None, 7, [], {}, {"type": "chat_message", "chat_id": chat})))
        answer: dict[str, Any] = {"chat_id": chat, "messages": messages, "more": draw.random() < 0.6}
        if draw.random() < 0.1:
            answer["messages"] = draw.choice((None, 7, "m", {"a": 1}))
        if draw.random() < 0.3:
            answer |= self.place()
        return answer

    def message(self) -> list[Any]:
        draw = self.draw
        topics = [
            topic for topic in self.machine.topics.values() if topic.position is not None and topic.live
        ]
        if not topics or draw.random() < 0.02:
            return ["frame", {"type": "notification", **self.place(), "prev": draw.randrange(9)}]
        topic = draw.choice(topics)
        assert topic.position is not None
        seq = topic.position.seq + draw.choice((1, 1, 1, 2, 0, -1))
        last = topic.position.seq
        prev = draw.choice((last, last, last, topic.answered, topic.answered + 1, 0, seq - 1))
        place = {"epoch": topic.position.epoch, "seq": seq, "prev": prev}
        if topic.chat is None:
            return ["frame", {"type": "notification", **place}]
        kind = draw.choice(("chat_message", "chat_message", "chat_event"))
        return ["frame", {"type": kind, "chat_id": topic.chat, **place}]


class Twins(TestCase):
    timeout = 120

    def test_both_machines_do_the_same_in_random_lives(self) -> None:
        lives = [Life(seed) for seed in range(LIVES)]
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        (folder / "lives.jsonl").write_text("\n".join(json.dumps(life.live()) for life in lives))
        did = sum((life.did for life in lives), Counter[str]())
        for action in (
            "Deliver",
            "GapFound",
            "Lost",
            "SubscriptionChanged",
            "Done",
            "Failed",
            "PresenceChanged",
            "history",
        ):
            self.assertGreater(did[action], 50, did)
        command = [program("node"), str(ROOT / "tests" / "js" / "replay.mjs"), str(folder / "lives.jsonl")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.stdout.strip(), f"{LIVES} lives alike", done.stderr)
