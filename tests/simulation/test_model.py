"""The model of JetStream answers as a real nats-server does: same requests, same answers except for times."""

from __future__ import annotations

import json
import re
from inspect import signature
from random import Random
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from notify.nats.connection import Connection
from notify.nats.settings import NATSSettings
from notify.testing.simulation.clock import Clock, Draw, Host
from notify.testing.simulation.connection import SimulatedConnection
from notify.testing.simulation.jetstream import Cluster
from notify.testing.simulation.network import Conditions
from tests.support.natsd import NatsServer, until

CONFIG = {
    "name": "S",
    "subjects": ["a.>"],
    "retention": "limits",
    "storage": "memory",
    "num_replicas": 1,
    "allow_direct": True,
    "republish": {"src": ">", "dest": "live.>"},
}
BUCKET = {
    "name": "KV_B",
    "subjects": ["$KV.B.>"],
    "storage": "memory",
    "max_msgs_per_subject": 1,
    "allow_direct": True,
    "allow_msg_ttl": True,
    "subject_delete_marker_ttl": 10**9,
}
#: each call: ``request`` for one reply or ``gather`` for many, the subject, the body, and the header fields
CALLS: list[tuple[str, str, Any, dict[str, str]]] = [
    ("request", "$JS.API.STREAM.INFO.S", None, {}),
    ("request", "a.b", b"nobody stores it", {}),
    ("gather", "$JS.API.DIRECT.GET.S", {"multi_last": ["a.>"]}, {}),
    ("request", "$JS.API.STREAM.CREATE.S", CONFIG, {}),
    ("request", "$JS.API.STREAM.INFO.S", None, {}),
    ("gather", "$JS.API.DIRECT.GET.S", {"multi_last": ["a.>"]}, {}),
    ("gather", "$JS.API.DIRECT.GET.S", {"batch": 10, "seq": 1, "next_by_subj": "a.b"}, {}),
    ("request", "a.b", b"one", {"Nats-Msg-Id": "m1", "Nats-Expected-Stream": "S"}),
    ("request", "a.b", b"one", {"Nats-Msg-Id": "m1", "Nats-Expected-Stream": "S"}),
    ("request", "a.b", b"one", {"Nats-Expected-Stream": "T"}),
    ("request", "a.c", b"two", {}),
    ("request", "a.b", b"three", {"traceparent": "00-1"}),
    ("request", "a.b", b"four", {"Nats-Expected-Last-Subject-Sequence": "1"}),
    ("request", "a.b", b"four", {"Nats-Expected-Last-Subject-Sequence": "3"}),
    ("request", "a.d.e", b"five", {}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m2", "Nats-Expected-Last-Msg-Id": "m1"}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m2"}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m3", "Nats-Expected-Last-Msg-Id": "m2"}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m2", "Nats-Expected-Last-Msg-Id": "m1"}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m4", "Nats-Expected-Last-Msg-Id": "m2"}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m4", "Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1"}),
    ("request", "$JS.API.STREAM.UPDATE.S", CONFIG | {"allow_atomic": True}, {}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m4", "Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1"}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m5", "Nats-Batch-Id": "b", "Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1"}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m6", "Nats-Expected-Last-Msg-Id": "m5"}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m7", "Nats-Batch-Id": "c", "Nats-Batch-Sequence": "1"}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m5", "Nats-Batch-Id": "c", "Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1"}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m5", "Nats-Rollup": "notify-asks"}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m8", "Nats-Rollup": "notify-asks"}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m8"}),
    ("request", "a.d.f", b"five", {"Nats-Msg-Id": "m7", "Nats-Batch-Id": "d", "Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1"}),
    ("gather", "$JS.API.DIRECT.GET.S", {"multi_last": ["a.b", "a.x", "a.d.e"]}, {}),
    ("gather", "$JS.API.DIRECT.GET.S", {"multi_last": ["a.b", "a.c"], "seq": 3}, {}),
    ("gather", "$JS.API.DIRECT.GET.S", {"multi_last": ["a.b"], "up_to_seq": 3}, {}),
    ("gather", "$JS.API.DIRECT.GET.S", {"multi_last": ["a.x"]}, {}),
    ("gather", "$JS.API.DIRECT.GET.S", {"batch": 10, "seq": 1, "next_by_subj": "a.b"}, {}),
    ("gather", "$JS.API.DIRECT.GET.S", {"batch": 2, "seq": 1, "next_by_subj": "a.b"}, {}),
    ("gather", "$JS.API.DIRECT.GET.S", {"batch": 10, "seq": 2, "next_by_subj": ">"}, {}),
    ("gather", "$JS.API.DIRECT.GET.S", {"batch": 10, "seq": 9, "next_by_subj": "a.b"}, {}),
    ("gather", "$JS.API.DIRECT.GET.S", {"batch": 10, "max_bytes": 40, "seq": 1, "next_by_subj": "a.>"}, {}),
    ("request", "$JS.API.DIRECT.GET.S", {"last_by_subj": "a.b"}, {}),
    ("request", "$JS.API.DIRECT.GET.S", {"last_by_subj": "a.x"}, {}),
    ("request", "$JS.API.DIRECT.GET.S", {"seq": 2}, {}),
    ("request", "$JS.API.STREAM.MSG.GET.S", {"last_by_subj": "a.b"}, {}),
    ("request", "$JS.API.STREAM.MSG.GET.S", {"last_by_subj": "a.x"}, {}),
    ("request", "$JS.API.STREAM.MSG.GET.S", {"seq": 2, "next_by_subj": "a.b"}, {}),
    ("request", "$JS.API.STREAM.MSG.GET.S", {"seq": 9, "next_by_subj": "a.b"}, {}),
    ("request", "$JS.API.STREAM.MSG.DELETE.S", {"seq": 3}, {}),
    ("request", "$JS.API.STREAM.MSG.DELETE.S", {"seq": 3}, {}),
    ("request", "$JS.API.STREAM.INFO.S", {"deleted_details": True}, {}),
    ("request", "$JS.API.STREAM.INFO.S", {"subjects_filter": "a.>"}, {}),
    ("gather", "$JS.API.DIRECT.GET.S", {"batch": 10, "seq": 1, "next_by_subj": "a.b"}, {}),
    ("request", "$JS.API.STREAM.PURGE.S", {"filter": "a.c"}, {}),
    ("request", "$JS.API.STREAM.PURGE.S", {"filter": "a.b", "keep": 1}, {}),
    ("request", "$JS.API.STREAM.INFO.S", {"deleted_details": True}, {}),
    ("request", "$JS.API.CONSUMER.CREATE.S.C", {"stream_name": "S", "config": {
        "name": "C", "durable_name": "C", "deliver_policy": "new", "ack_policy": "explicit", "ack_wait": 10**9,
        "max_deliver": 5, "filter_subjects": ["a.b", "a.c"]}}, {}),
    ("request", "$JS.API.CONSUMER.INFO.S.C", None, {}),
    ("request", "$JS.API.CONSUMER.MSG.NEXT.S.C", {"batch": 1, "no_wait": True, "expires": 10**8}, {}),
    ("request", "$JS.API.CONSUMER.DELETE.S.C", None, {}),
    ("request", "$JS.API.CONSUMER.DELETE.S.C", None, {}),
    ("request", "$JS.API.CONSUMER.INFO.S.C", None, {}),
    ("request", "$JS.API.STREAM.PURGE.S", {}, {}),
    ("request", "$JS.API.STREAM.INFO.S", None, {}),
    ("request", "$JS.API.STREAM.UPDATE.S", CONFIG | {"max_msgs": 2}, {}),
    ("request", "a.b", b"six", {}),
    ("request", "a.b", b"seven", {}),
    ("request", "a.b", b"eight", {}),
    ("request", "$JS.API.STREAM.INFO.S", None, {}),
    ("request", "$JS.API.STREAM.CREATE.KV_B", BUCKET, {}),
    ("request", "$KV.B.x", b"1", {"Nats-TTL": "30s"}),
    ("request", "$KV.B.x", b"2", {}),
    ("request", "$KV.B.y", b"", {"KV-Operation": "DEL", "Nats-TTL": "60s"}),
    ("gather", "$JS.API.DIRECT.GET.KV_B", {"multi_last": ["$KV.B.>"]}, {}),
    ("request", "$JS.API.STREAM.DELETE.S", None, {}),
    ("request", "$JS.API.STREAM.DELETE.S", None, {}),
]  # fmt: skip

#: the parts of an API answer that notify reads
READ = {
    "error": ("code", "err_code"),
    "config": ("name", "subjects", "allow_direct", "republish", "retention", "max_msgs", "deliver_policy", "ack_wait",
               "max_deliver", "filter_subjects"),
    "state": ("messages", "first_seq", "last_seq", "num_deleted", "deleted", "subjects"),
    "message": ("subject", "seq", "data", "hdrs"),
    "delivered": ("consumer_seq", "stream_seq"),
}  # fmt: skip
PLAIN = ("seq", "duplicate", "stream", "success", "purged", "name", "stream_name", "num_ack_pending")


def read(data: bytes) -> Any:
    """The part of an answer that notify reads."""
    try:
        answer = json.loads(data)
    except ValueError:
        return data
    if not isinstance(answer, dict):
        return data
    found = {key: answer[key] for key in PLAIN if key in answer}
    if "error" in answer:
        found.pop("seq", None)
    for key, parts in READ.items():
        if key in answer:
            found[key] = {part: answer[key][part] for part in parts if part in (answer[key] or {})}
    return found


def plain(block: bytes) -> bytes:
    """A header block without times."""
    return re.sub(rb"(Nats-Time-Stamp): [^\r]*", rb"\1", block)


class Twins(TestCase):
    """The same calls on a real server and on the model."""

    timeout = 60

    def test_the_same_methods(self) -> None:
        clock = Clock(1_700_000_000.0)
        settings, host = NATSSettings(servers=("s1",)), Host(clock, "n1", 0.5)
        cluster = Cluster(clock, Draw("model"), 1)
        real = Connection(settings, reactor, Random(1), "real")
        model = SimulatedConnection(cluster, Conditions(), settings, host, Random(1), "model")
        public = {name for name in dir(real) if not name.startswith("_") and name != "log"}
        self.assertGreater(len(public), 10)
        self.assertEqual(public - set(dir(model)), set())
        for name in sorted(public):
            ours, theirs = getattr(SimulatedConnection, name, None), getattr(Connection, name, None)
            if callable(ours) and callable(theirs):
                self.assertEqual(list(signature(ours).parameters), list(signature(theirs).parameters), name)

    async def test_the_same_answers(self) -> None:
        server = NatsServer().start()
        self.addCleanup(server.remove)
        await server.up()
        real = Connection(NATSSettings(servers=(server.url,)), reactor, Random(1), "real")
        real.start()
        await until(lambda: real.connected)
        clock = Clock(1_700_000_000.0)
        cluster = Cluster(clock, Draw("model"), 1)
        model = SimulatedConnection(
            cluster, Conditions(), NATSSettings(servers=("s1",)), Host(clock, "n1", 0.5), Random(1), "model"
        )
        model.start()
        clock.run(clock.now + 1)
        republished: tuple[list[Any], list[Any]] = ([], [])
        for kept, connection in zip(republished, (real, model), strict=True):
            connection.subscribe(
                "live.>",
                lambda subject, reply, data, block, kept=kept: kept.append((subject, data, plain(block))),
            )
        for how, subject, body, fields in CALLS:
            payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
            there = await self.ask(real, how, subject, payload, fields)
            asked = self.ask(model, how, subject, payload, fields)
            clock.run(clock.now + 5)
            here = await asked
            self.assertEqual(here, there, f"{subject} {payload!r} {fields}")
        await until(lambda: len(republished[0]) == len(republished[1]))
        self.assertEqual(republished[1], republished[0])
        self.assertGreater(len(republished[0]), 5)
        await real.stop()

    def ask(
        self, connection: Any, how: str, subject: str, payload: bytes, fields: dict[str, str]
    ) -> Deferred[Any]:
        """The replies, reduced to what is compared, or the name of the error."""
        if how == "gather":
            asked = connection.gather(subject, payload)
        else:
            asked = connection.request(subject, payload, None, fields or None).addCallback(lambda one: [one])
        asked.addCallback(lambda replies: [(read(one.data), plain(one.block)) for one in replies])
        return asked.addErrback(lambda failure: failure.type.__name__)
