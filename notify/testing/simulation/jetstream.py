"""A model of a NATS cluster with JetStream, as far as notify uses it, with its faults.

``tests/simulation/test_model.py`` sends the same requests to the model and to a real nats-server. The model does not answer requests
that it does not know: the caller runs into a timeout, and the trace of the life says so.
"""

from __future__ import annotations

import itertools
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from notify.testing.simulation.clock import Clock, Draw, Host
from notify.testing.simulation.pull import Pull
from notify.testing.simulation.stream import NANO, Replica, Stored, Stream, matches

_DEFAULTS: dict[str, Any] = {
    "retention": "limits",
    "storage": "file",
    "discard": "old",
    "num_replicas": 1,
    "max_consumers": -1,
    "max_msgs": -1,
    "max_bytes": -1,
    "max_age": 0,
    "max_msgs_per_subject": -1,
    "max_msg_size": -1,
    "duplicate_window": 120 * NANO,
    "allow_direct": False,
    "sealed": False,
    "deny_delete": False,
    "deny_purge": False,
    "allow_rollup_hdrs": False,
}
_BATCH, _COMMIT = "Nats-Batch-Id", "Nats-Batch-Commit"
_ABANDONED = 10.0  # seconds without a message after which a batch is dropped
_NO_STREAM = (404, 10059, "stream not found")
_NO_MESSAGE = (404, 10037, "no message found")


class Client(Protocol):
    """A client's connection as the cluster sees it."""

    server: str
    node: str
    inbox_prefix: str

    def interested(self, subject: str) -> list[Any]:
        """Its matching subscriptions."""

    def hand_over(
        self, subject: str, reply: str, data: bytes, block: bytes, delay: float = 0.0, far: bool = False
    ) -> None:
        """Deliver a message to it."""

    def ended(self, reason: str) -> None:
        """The server has closed its connection."""


class Faults(Struct):
    """The faults in force: probabilities, and durations in seconds."""

    republish_dropped: float = 0.0
    republish_doubled: float = 0.0
    republish_late: float = 0.0
    ack_lost: float = 0.0
    ack_late: float = 0.0
    ack_refused: float = 0.0
    ack_refused_for_good: float = 0.0
    reply_lost: float = 0.0
    by: float = 1.0


class Cluster:
    """Servers, streams and consumers. ``stored`` and ``gone`` tell an oracle what is in the stream ``watched``."""

    def __init__(self, clock: Clock, draw: Draw, servers: int) -> None:
        self.clock, self.draw = clock, draw
        self.host = Host(clock, "nats", draw.unit("rank", "nats"))
        self.names = [f"s{number}" for number in range(1, servers + 1)]
        self.down: set[str] = set()
        self.isolated: set[str] = set()
        self.leaderless = False
        self.max_payload = 1024 * 1024
        self.streams: dict[str, Stream] = {}
        self.pulls: dict[tuple[str, str], Pull] = {}
        self.clients: dict[str, Client] = {}
        self.faults = Faults()
        self.stored: Callable[[Stream, Stored], None] = lambda stream, one: None
        self.gone: Callable[[Stored, str], None] = lambda one, why: None
        self.mark: Callable[[str], None] = lambda what: None
        self.say: Callable[..., None] = lambda *words: None
        self.version = "2.12.8"
        #: new streams are created with atomic batches allowed
        self.atomic = False
        #: for each batch the time of its newest message, and all its messages
        self._batches: dict[tuple[str, str, str], tuple[float, list[tuple[str, bytes, dict[str, str]]]]] = {}
        self._orders = itertools.count(1)
        self._created = itertools.count(1)

    # --- clients --------------------------------------------------------------------------------------------

    def reachable(self, server: str) -> bool:
        """Whether clients can connect to a server."""
        return server in self.names and server not in self.down

    def attach(self, client: Client) -> None:
        """A client has connected."""
        self.clients[client.inbox_prefix] = client

    def reaches(self, client: Client) -> bool:
        """Whether messages from the cluster reach a client."""
        return client.server not in self.isolated and client.inbox_prefix in self.clients

    def detach(self, client: Client) -> None:
        """A client has disconnected."""
        self.clients.pop(client.inbox_prefix, None)
        for pull in self.pulls.values():
            pull.left(client)

    def received(
        self, client: Client | None, subject: str, reply: str, data: bytes, fields: dict[str, str]
    ) -> None:
        """A client has published a message: a request, a message for a stream, or one for other clients."""
        server = client.server if client is not None else self._server()
        if server in self.down:
            return
        if subject.startswith("$JS.API.DIRECT.GET."):
            self._direct(server, subject, reply, data)
        elif subject.startswith("$JS.API."):
            if server not in self.isolated:
                self._api(client, subject.removeprefix("$JS.API."), reply, data)
        elif subject.startswith("$JS.ACK."):
            parts = subject.split(".")
            pull = self.pulls.get((parts[2], parts[3]))
            if pull is not None and server not in self.isolated:
                pull.acknowledged(int(parts[5]), data)
        else:
            self._published(server, subject, reply, data, fields)

    def answer(
        self, reply: str, data: bytes, block: bytes = b"", delay: float = 0.0, about: object = ""
    ) -> None:
        """Send a reply."""
        if not reply:
            return
        prefix = reply.rpartition(".")[0] + "."
        client = self.clients.get(prefix)
        if self.faults.reply_lost:
            # Do not use the reply subject, whose number depends on what else was requested at the same instant.
            key = (client.node if client is not None else "", about, data[:80], self.clock.now)
            if self.draw.chance(self.faults.reply_lost, "reply", *key):
                return
        if client is not None:
            client.hand_over(reply, "", data, block, delay)
            return
        for other in list(self.clients.values()):
            if other.interested(reply):
                other.hand_over(reply, "", data, block, delay)

    def tell(
        self, subject: str, data: bytes, block: bytes = b"", reply: str = "", delay: float = 0.0
    ) -> None:
        """Send a message to all subscribed clients. Those at isolated servers do not get it."""
        for client in list(self.clients.values()):
            if client.server not in self.isolated and client.interested(subject):
                client.hand_over(subject, reply, data, block, delay)

    def _server(self) -> str:
        return next((name for name in self.names if name not in self.down and name not in self.isolated), "")

    # --- publishing -----------------------------------------------------------------------------------------

    def _published(self, server: str, subject: str, reply: str, data: bytes, fields: dict[str, str]) -> None:
        stream = next((one for one in self.streams.values() if one.covers(subject)), None)
        if server not in self.isolated:
            self.tell(subject, data, _block(fields), reply)
        if stream is None:
            if reply and server not in self.isolated:
                self.answer(reply, b"", b"NATS/1.0 503\r\n\r\n")
            return
        if server in self.isolated or not self.leads(stream):
            return
        take = self._batched if _BATCH in fields else self.store
        answer = take(stream, subject, data, fields)
        faults, key = self.faults, ("ack", subject, answer.get("seq", 0), self.clock.now)
        # Only one acknowledgement of a batch matters.
        lost = 0.5 if faults.ack_lost and _COMMIT in fields else faults.ack_lost
        if not reply or self.draw.chance(lost, "lost", *key):
            return
        delay = (
            faults.by * self.draw.unit("by", *key) if self.draw.chance(faults.ack_late, "late", *key) else 0.0
        )
        self.answer(reply, msgspec.json.encode(answer) if answer else b"", delay=delay)

    def store(self, stream: Stream, subject: str, data: bytes, fields: dict[str, str]) -> dict[str, Any]:
        """Store one message. Returns the acknowledgement."""
        return self._objection(stream, subject, data, fields) or self._keep(stream, subject, data, fields)

    def _objection(
        self, stream: Stream, subject: str, data: bytes, fields: dict[str, str]
    ) -> dict[str, Any] | None:
        """Why a message is not stored: an error, or a duplicate."""
        now, name = self.clock.now, stream.name
        if stream.config.get("sealed"):
            return _error(name, 400, 10109, "invalid operation on sealed stream")
        most = stream.config.get("max_msg_size", -1)
        if 0 <= most < len(data):
            return _error(name, 400, 10054, "message size exceeds maximum allowed")
        if fields.get("Nats-Expected-Stream", name) != name:
            return _error(name, 400, 10060, "expected stream does not match")
        id = fields.get("Nats-Msg-Id")
        if subject.startswith("workspace.") and id is not None:
            if self.draw.chance(self.faults.ack_refused, "refused", id, now):
                return _error(name, 503, 10008, "JetStream system temporarily unavailable")
            if self.draw.chance(self.faults.ack_refused_for_good, "refused for good", id, now):
                return _error(name, 500, 10077, "maximum messages exceeded")
        if id is not None:
            before = stream.dedupe.get(id)
            if before is not None and before[1] + stream.config["duplicate_window"] / NANO > now:
                if not before[0]:
                    return _error(name, 409, 10158, "duplicate message id is in process")
                self.mark("a repeated publish is a duplicate")
                return {"stream": name, "seq": before[0], "duplicate": True}
        rollup = fields.get("Nats-Rollup")
        if rollup is not None and (
            rollup not in ("sub", "all") or not stream.config.get("allow_rollup_hdrs")
        ):
            self.mark("it was asked which ids of a list are known")
            return _error(name, 500, 10111, "rollup not permitted")
        expected = fields.get("Nats-Expected-Last-Subject-Sequence")
        if expected is not None and int(expected) != stream.last_of(subject):
            return _error(name, 400, 10071, f"wrong last sequence: {stream.last_of(subject)}")
        expected = fields.get("Nats-Expected-Last-Sequence")
        if expected is not None and int(expected) != stream.last_seq:
            return _error(name, 400, 10071, f"wrong last sequence: {stream.last_seq}")
        expected = fields.get("Nats-Expected-Last-Msg-Id")
        if expected is not None and expected != stream.last_id:
            self.mark("what was to be stored behind another was refused")
            if id is not None and len(stream.replicas) > 1:
                # The server remembers the id before it checks whether the message can be stored.
                stream.dedupe[id] = (0, now)
            return _error(name, 400, 10070, f"wrong last msg ID: {stream.last_id}")
        return None

    def _keep(self, stream: Stream, subject: str, data: bytes, fields: dict[str, str]) -> dict[str, Any]:
        now, name, id = self.clock.now, stream.name, fields.get("Nats-Msg-Id")
        ttl = fields.get("Nats-TTL", "") if stream.config.get("allow_msg_ttl") else ""
        before_this = stream.last_of(subject)
        seconds = float(ttl.removesuffix("s")) if ttl.endswith("s") else 0.0
        one = stream.store(subject, data, _block(fields), now, seconds)
        stream.last_id = id or ""
        if id is not None:
            stream.dedupe[id] = (one.seq, now)
        if seconds:
            self.clock.call(self.host, self.host.rank, seconds, self._expired, (stream, one))
        self.stored(stream, one)
        self._send_on(stream, one, before_this)
        for (of, _), pull in list(self.pulls.items()):
            if of == name:
                pull.pump()
        return {"stream": name, "seq": one.seq}

    def _batched(self, stream: Stream, subject: str, data: bytes, fields: dict[str, str]) -> dict[str, Any]:
        """Add one message to an atomic batch. Returns the answer, which is empty before the last message."""
        now, name, batch = self.clock.now, stream.name, fields[_BATCH]
        if not stream.config.get("allow_atomic"):
            return _error(name, 400, 10174, "atomic publish is disabled")
        # Only the leader knows the batch.
        key = (name, stream.leader, batch)
        heard, staged = self._batches.pop(key, (now, []))
        staged.append((subject, data, fields))
        if int(fields["Nats-Batch-Sequence"]) != len(staged) or heard + _ABANDONED < now:
            return _error(name, 400, 10176, "atomic publish batch is incomplete")
        if _COMMIT not in fields:
            self._batches[key] = (now, staged)
            return {}
        ids = [fields.get("Nats-Msg-Id", "") for _, _, fields in staged]
        objections = [self._objection(stream, *one) for one in staged]
        objection = next((one for one in objections if one is not None), None)
        if len(set(ids)) < len(ids) or (objection is not None and "error" not in objection):
            self.mark("a batch with a duplicate was refused")
            return _error(name, 400, 10201, "atomic publish batch contains duplicate message id")
        if objection is not None:
            return objection
        self.mark("a batch was stored")
        answers = [self._keep(stream, *one) for one in staged]
        return answers[-1] | {"batch": batch, "count": len(staged)}

    def _send_on(self, stream: Stream, one: Stored, before: int) -> None:
        republish = stream.config.get("republish")
        if not republish:
            return
        subject = republish["dest"].removesuffix(">") + one.subject
        block = (one.block.removesuffix(b"\r\n") or b"NATS/1.0\r\n") + (
            f"Nats-Stream: {stream.name}\r\nNats-Subject: {one.subject}\r\nNats-Sequence: {one.seq}\r\n"
            f"Nats-Time-Stamp: {one.time}\r\nNats-Last-Sequence: {before}\r\n\r\n"
        ).encode()
        faults = self.faults
        for client in list(self.clients.values()):
            if client.server in self.isolated or not client.interested(subject):
                continue
            key = ("republish", one.order, client.node)
            if self.draw.chance(faults.republish_dropped, "dropped", *key):
                self.mark("a republished message was dropped")
                continue
            late = faults.by * self.draw.unit("by", *key)
            delay = late if self.draw.chance(faults.republish_late, "late", *key) else 0.0
            far = client.server != stream.leader and not delay
            client.hand_over(subject, "", one.data, block, delay, far)
            if self.draw.chance(faults.republish_doubled, "doubled", *key):
                client.hand_over(subject, "", one.data, block, delay + late)

    def _expired(self, stream: Stream, one: Stored) -> None:
        if self.streams.get(stream.name) is stream and stream.remove(one.seq, "limit"):
            marker = stream.config.get("subject_delete_marker_ttl", 0)
            if marker and b"KV-Operation" not in one.block and b"Nats-Marker-Reason" not in one.block:
                fields = {"Nats-Marker-Reason": "MaxAge", "Nats-TTL": f"{round(marker / NANO)}s"}
                self.store(stream, one.subject, b"", fields)
                self.tell(one.subject, b"", _block(fields))

    def leads(self, stream: Stream) -> bool:
        """Whether the stream accepts messages and its leader can be asked."""
        return not self.leaderless and stream.leader not in self.down and stream.leader not in self.isolated

    def elect(self) -> None:
        """A server has failed, was isolated, or is back: streams move to a server that is available."""
        for stream in self.streams.values():
            there = [n for n in stream.replicas if n not in self.down and n not in self.isolated]
            if stream.leader not in there and len(there) * 2 > len(stream.replicas):
                self.lead(stream, there[0])

    def lead(self, stream: Stream, server: str) -> None:
        """Make a server the leader of a stream."""
        stream.leader = server
        self.tell(f"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{stream.name}", b"{}")

    # --- the API --------------------------------------------------------------------------------------------

    def _api(self, client: Client | None, call: str, reply: str, data: bytes) -> None:
        parts = call.split(".")
        body: dict[str, Any] = msgspec.json.decode(data) if data.strip() else {}
        if parts[:2] == ["CONSUMER", "MSG"]:
            pull = self.pulls.get((parts[3], parts[4]))
            if pull is None:
                self.answer(reply, b"", b"NATS/1.0 503\r\n\r\n")
            elif client is not None:
                pull.asked(client, reply, body)
            return
        name = parts[2] if parts[0] == "CONSUMER" or parts[1] != "MSG" else parts[3]
        stream = self.streams.get(name)
        if (stream is not None and not self.leads(stream)) or self.leaderless:
            return
        method = getattr(self, "_" + "_".join(parts[: 3 if parts[1] == "MSG" else 2]).lower(), None)
        if method is None:
            self.say("nats", f"knows no {call}")
            return
        answer = method(stream, parts, body)
        self.answer(reply, msgspec.json.encode({"type": f"io.nats.jetstream.api.v1.{call}", **answer}))

    def _stream_info(self, stream: Stream | None, parts: list[str], body: dict[str, Any]) -> dict[str, Any]:
        if stream is None:
            return _refused(_NO_STREAM)
        stream.expire(self.clock.now)
        state = stream.state(bool(body.get("deleted_details")), body.get("subjects_filter", ""))
        told: dict[str, Any] = {"config": stream.config, "created": stream.created, "state": state}
        told["cluster"] = {"leader": stream.leader, "replicas": self._others(stream)}
        if "subjects" in state:
            found = list(state["subjects"].items())[body.get("offset", 0) :]
            state["subjects"] = dict(found)
            told |= {
                "total": len(found) + body.get("offset", 0),
                "offset": body.get("offset", 0),
                "limit": 100_000,
            }
        return told

    def _others(self, stream: Stream) -> list[dict[str, Any]]:
        """The other copies as the leader sees them: it does not know that one is briefly behind, or has holes."""
        told = []
        for name, replica in stream.replicas.items():
            if name != stream.leader:
                offline = name in self.down or name in self.isolated
                well = not offline and replica.frozen is None
                told.append({"name": name, "current": well, "offline": offline})
        return told

    def _stream_create(self, stream: Stream | None, parts: list[str], body: dict[str, Any]) -> dict[str, Any]:
        if stream is not None:
            return _refused((400, 10058, "stream name already in use with a different configuration"))
        config = _DEFAULTS | body | ({"allow_atomic": True} if self.atomic else {})
        made = Stream(config, self.clock.now, self._orders, self._gone)
        copies = min(config["num_replicas"], len(self.names))
        start = next(self._created) - 1
        chosen = [self.names[(start + number) % len(self.names)] for number in range(copies)]
        made.replicas = {name: Replica() for name in chosen}
        made.leader = next((n for n in chosen if n not in self.down and n not in self.isolated), chosen[0])
        self.streams[parts[2]] = made
        return self._stream_info(made, parts, {}) | {"did_create": True}

    def _stream_update(self, stream: Stream | None, parts: list[str], body: dict[str, Any]) -> dict[str, Any]:
        if stream is None:
            return _refused(_NO_STREAM)
        stream.config = stream.config | body
        return self._stream_info(stream, parts, {})

    def _stream_delete(self, stream: Stream | None, parts: list[str], body: dict[str, Any]) -> dict[str, Any]:
        if stream is None:
            return _refused(_NO_STREAM)
        for seq in list(stream.messages):
            stream.remove(seq, "operator")
        del self.streams[stream.name]
        for key in [key for key in self.pulls if key[0] == stream.name]:
            self.pulls.pop(key).end("Stream Deleted")
        self.tell(f"$JS.EVENT.ADVISORY.STREAM.DELETED.{stream.name}", b"{}")
        return {"success": True}

    def _stream_purge(self, stream: Stream | None, parts: list[str], body: dict[str, Any]) -> dict[str, Any]:
        if stream is None:
            return _refused(_NO_STREAM)
        purged = stream.purge(body.get("filter", ""), body.get("seq", 0), body.get("keep", 0))
        return {"success": True, "purged": purged}

    def _stream_msg_get(
        self, stream: Stream | None, parts: list[str], body: dict[str, Any]
    ) -> dict[str, Any]:
        if stream is None:
            return _refused(_NO_STREAM)
        one = self._find(stream, body, lambda one: True)
        if one is None:
            return _refused(_NO_MESSAGE)
        message: dict[str, Any] = {"subject": one.subject, "seq": one.seq, "time": one.time}
        if one.data:
            message["data"] = b64encode(one.data).decode()
        if one.block:
            message["hdrs"] = b64encode(one.block).decode()
        return {"message": message}

    def _stream_msg_delete(
        self, stream: Stream | None, parts: list[str], body: dict[str, Any]
    ) -> dict[str, Any]:
        if stream is None:
            return _refused(_NO_STREAM)
        if not stream.remove(body["seq"], "operator"):
            return _refused((400, 10043, f"no message found for sequence {body['seq']}"))
        return {"success": True}

    def _consumer_create(
        self, stream: Stream | None, parts: list[str], body: dict[str, Any]
    ) -> dict[str, Any]:
        if stream is None:
            return _refused(_NO_STREAM)
        name = parts[3]
        pull = self.pulls.get((stream.name, name))
        if pull is not None and body.get("action") == "create":
            if _differs(pull.config, body["config"]):
                return _refused((400, 10148, "consumer already exists"))
        elif pull is None:
            pull = self.pulls[stream.name, name] = Pull(self, stream, name, body["config"])
        return pull.info()

    def _consumer_info(self, stream: Stream | None, parts: list[str], body: dict[str, Any]) -> dict[str, Any]:
        pull = self.pulls.get((parts[2], parts[3]))
        return _refused((404, 10014, "consumer not found")) if pull is None else pull.info()

    def _consumer_delete(
        self, stream: Stream | None, parts: list[str], body: dict[str, Any]
    ) -> dict[str, Any]:
        if stream is None:
            return _refused(_NO_STREAM)
        pull = self.pulls.pop((parts[2], parts[3]), None)
        if pull is None:
            return _refused((404, 10014, "consumer not found"))
        pull.end("Consumer Deleted")
        return {"success": True}

    # --- direct gets ----------------------------------------------------------------------------------------

    def _direct(self, server: str, subject: str, reply: str, data: bytes) -> None:
        name, _, rest = subject.removeprefix("$JS.API.DIRECT.GET.").partition(".")
        stream = self.streams.get(name)
        if stream is None or not stream.config.get("allow_direct"):
            if server not in self.isolated:
                self.answer(reply, b"", b"NATS/1.0 503\r\n\r\n")
            return
        there = [one for one in stream.replicas if one not in self.down]
        if server not in there:
            there = [one for one in there if one not in self.isolated]
            if server in self.isolated or not there:
                return
            server = there[int(self.draw.unit("direct", data, self.clock.now) * len(there))]
        stream.expire(self.clock.now)
        sees = stream.visible(server, self.clock.now)
        if server != stream.leader and not all(sees(one) for one in list(stream.messages.values())[-3:]):
            self.mark("a replica that is behind was asked")
        body: dict[str, Any] = {"last_by_subj": rest} if rest else msgspec.json.decode(data)
        if "multi_last" in body:
            self._direct_last(stream, sees, body, reply)
        elif "batch" in body:
            self._direct_batch(stream, sees, body, reply)
        else:
            one = self._find(stream, body, sees)
            if one is None:
                self.answer(reply, b"", b"NATS/1.0 404 Message Not Found\r\n\r\n")
            else:
                self.answer(reply, one.data, _direct_block(stream, one))

    def _direct_last(
        self, stream: Stream, sees: Callable[[Stored], bool], body: dict[str, Any], reply: str
    ) -> None:
        last = max((one.seq for one in stream.messages.values() if sees(one)), default=stream.last_seq)
        up_to = body.get("up_to_seq") or last
        chosen: list[Stored] = []
        for subject, numbers in stream.by_subject.items():
            if any(matches(pattern, subject) for pattern in body["multi_last"]):
                found = next((n for n in reversed(numbers) if n <= up_to and sees(stream.messages[n])), 0)
                if found and found >= body.get("seq", 0):
                    chosen.append(stream.messages[found])
        if len(chosen) > 1024:
            self.answer(reply, b"", b"NATS/1.0 413 Too Many Results\r\n\r\n")
            return
        if not chosen:
            self.answer(reply, b"", b"NATS/1.0 404 No Results\r\n\r\n")
            return
        chosen.sort(key=lambda one: one.seq)
        before, left = 0, len(chosen)
        for one in chosen:
            left -= 1
            self.answer(reply, one.data, _direct_block(stream, one, left, before), about=one.seq)
            before = one.seq
        end = f"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: {before}\r\nNats-UpTo-Sequence: {up_to}\r\n\r\n"
        self.answer(reply, b"", end.encode())

    def _direct_batch(
        self, stream: Stream, sees: Callable[[Stored], bool], body: dict[str, Any], reply: str
    ) -> None:
        pattern, start = body.get("next_by_subj", ">"), body.get("seq", 1)
        found = self._after(stream, pattern, start, sees)
        if not found:
            self.answer(reply, b"", b"NATS/1.0 404 Message Not Found\r\n\r\n")
            return
        most, count, size, before, left = body.get("max_bytes", 0), 0, 0, 0, len(found)
        for one in found:
            if count >= body["batch"] or (most and count and size + len(one.data) > most):
                break
            count, size, left = count + 1, size + len(one.data) + len(one.block) + len(one.subject), left - 1
            self.answer(reply, one.data, _direct_block(stream, one, left, before), about=one.seq)
            before = one.seq
        end = f"NATS/1.0 204 EOB\r\nNats-Num-Pending: {left}\r\nNats-Last-Sequence: {before}\r\n\r\n"
        self.answer(reply, b"", end.encode())

    @staticmethod
    def _after(stream: Stream, pattern: str, start: int, sees: Callable[[Stored], bool]) -> list[Stored]:
        if pattern in stream.by_subject:
            chosen = [stream.messages[n] for n in stream.by_subject[pattern] if n >= start]
        else:
            chosen = [
                one for one in stream.messages.values() if one.seq >= start and matches(pattern, one.subject)
            ]
        return [one for one in chosen if sees(one)]

    def _find(self, stream: Stream, body: dict[str, Any], sees: Callable[[Stored], bool]) -> Stored | None:
        if "last_by_subj" in body:
            found = self._after(stream, body["last_by_subj"], 0, sees)
            return found[-1] if found else None
        if "next_by_subj" in body:
            found = self._after(stream, body["next_by_subj"], body.get("seq", 1), sees)
            return found[0] if found else None
        one = stream.messages.get(body.get("seq", 0))
        return one if one is not None and sees(one) else None

    def _gone(self, one: Stored, why: str) -> None:
        self.gone(one, why)


def _differs(have: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return any(have.get(key) != value for key, value in wanted.items())


def _block(fields: dict[str, str]) -> bytes:
    if not fields:
        return b""
    return (
        "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
    ).encode()


def _direct_block(stream: Stream, one: Stored, pending: int | None = None, before: int = 0) -> bytes:
    batch = "" if pending is None else f"Nats-Num-Pending: {pending}\r\nNats-Last-Sequence: {before}\r\n"
    return (one.block.removesuffix(b"\r\n") or b"NATS/1.0\r\n") + (
        f"Nats-Stream: {stream.name}\r\nNats-Subject: {one.subject}\r\nNats-Sequence: {one.seq}\r\n"
        f"Nats-Time-Stamp: {one.time}\r\n{batch}\r\n"
    ).encode()


def _refused(error: tuple[int, int, str]) -> dict[str, Any]:
    code, number, words = error
    return {"error": {"code": code, "err_code": number, "description": words}}


def _error(stream: str, code: int, number: int, words: str) -> dict[str, Any]:
    return {"stream": stream, "seq": 0, **_refused((code, number, words))}
