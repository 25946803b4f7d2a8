"""The NATS key-value bucket of :mod:`notify.registries.jetstream_kv`: its keys, and what is asked and told of it.

All methods raise ``Unavailable`` where the server cannot be asked now, or does not store.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable
from typing import Any

import msgspec

from notify import ids
from notify.errors import Unavailable
from notify.identity import Presence
from notify.ids import Id
from notify.nats import headers
from notify.nats.connection import Connection
from notify.nats.jetstream import NO_MESSAGE, ApiError, JetStream
from notify.topics import Topic

_GONE = "60s"  # how long the mark of a removed entry is kept
_NANO = 10**9

#: one process's users in a topic, and the connections of each
Entry = list[tuple[Id, int]]
_entry = msgspec.json.Decoder(Entry)


def is_mark(block: bytes) -> bool:
    """Whether a message only marks that there is nothing any more."""
    return b"KV-Operation" in block or b"Nats-Marker-Reason" in block


class Bucket:
    """See the module. ``incarnation`` is this process's name, ``lease`` is in seconds."""

    def __init__(
        self,
        connection: Connection,
        jetstream: JetStream,
        name: str,
        replicas: int,
        lease: float,
        incarnation: str,
    ) -> None:
        self._connection = connection
        self._jetstream = jetstream
        self._root = f"$KV.{name}"
        self._stream = f"KV_{name}"
        self._replicas = replicas
        self._seconds = max(1, round(lease))
        self._mine = incarnation

    @property
    def leases(self) -> str:
        """Everybody's leases, as a subject."""
        return f"{self._root}.node.*"

    def entries(self, topic: Topic) -> str:
        """Everybody's entries for a topic, as a subject."""
        return f"{self._root}.at.*.{topic.workspace_id}.{topic.kind}.{topic.id}"

    async def ensure(self) -> None:
        """Make, update or check the bucket. Raises ``StartError``, too."""
        await self._jetstream.ensure_stream(self._stream, self._wanted, self._required)

    # ------------------------------------------------------------------ reading

    async def read(self, topics: Iterable[Topic]) -> dict[Topic, dict[str, Entry]]:
        """The entries of other processes whose leases live, by topic and process."""
        subjects = [self.leases, *(self.entries(topic) for topic in topics)]
        *replies, end = await self._connection.gather(
            f"$JS.API.DIRECT.GET.{self._stream}", msgspec.json.encode({"multi_last": subjects})
        )
        if headers.status(end.block) not in (204, 404):
            raise Unavailable(f"presence cannot be read: {headers.description(end.block)}")
        alive: set[str] = set()
        found: list[tuple[str, Topic, bytes]] = []
        for reply in replies:
            if is_mark(reply.block):
                continue
            parts = headers.text(reply.block, headers.SUBJECT).split(".")[2:]
            if parts[0] == "node":
                alive.add(parts[1])
            elif parts[0] == "at" and len(parts) == 5:
                kind: Any = parts[3]
                found.append((parts[1], Topic(ids.parse(parts[2]), kind, ids.parse(parts[4])), reply.data))
        alive.discard(self._mine)
        entries: dict[Topic, dict[str, Entry]] = {}
        for incarnation, topic, data in found:
            if incarnation in alive:
                try:
                    entries.setdefault(topic, {})[incarnation] = _entry.decode(data)
                except msgspec.DecodeError:
                    continue
        return entries

    async def lives(self, incarnation: str) -> bool:
        """Whether a process has its lease, as the leader knows: a replica that is behind must not bury anybody."""
        subject = f"{self._root}.node.{incarnation}"
        try:
            answer = await self._jetstream.api(f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": subject})
        except ApiError as error:
            if error.number == NO_MESSAGE:
                return False
            raise Unavailable(str(error)) from None
        return not is_mark(b64decode(answer["message"].get("hdrs", "")))

    async def incarnations(self) -> set[str]:
        """All processes that have entries, living or not."""
        found: set[str] = set()
        offset = 0
        while True:
            body = {"subjects_filter": f"{self._root}.at.>", "offset": offset}
            try:
                answer = await self._jetstream.api(f"STREAM.INFO.{self._stream}", body)
            except ApiError as error:
                raise Unavailable(str(error)) from None
            subjects = answer["state"].get("subjects") or {}
            found.update(subject.split(".")[3] for subject in subjects)
            offset += len(subjects)
            if not subjects or offset >= answer.get("total", 0):
                return found

    # ------------------------------------------------------------------ writing

    async def put(self, topic: Topic, present: list[Presence]) -> None:
        """Store this process's entry for a topic; nobody: mark that there is none."""
        subject = self.entries(topic).replace("*", self._mine)
        if present:
            body = msgspec.json.encode([(one.user_id, one.connections) for one in present])
            await self.store(subject, body, {})
        else:
            await self.store(subject, b"", {"KV-Operation": "DEL", "Nats-TTL": _GONE})

    async def renew(self) -> None:
        """Extend this process's lease."""
        await self.store(f"{self._root}.node.{self._mine}", b"", {"Nats-TTL": f"{self._seconds}s"})

    async def withdraw(self) -> None:
        """End this process's lease, and remove its entries."""
        mark = {"KV-Operation": "DEL", "Nats-TTL": _GONE}
        await self.store(f"{self._root}.node.{self._mine}", b"", mark)
        await self.remove(self._mine)

    async def remove(self, incarnation: str) -> int:
        """Remove all entries of a process; gives how many there were."""
        body = {"filter": f"{self._root}.at.{incarnation}.>"}
        try:
            answer = await self._jetstream.api(f"STREAM.PURGE.{self._stream}", body)
        except ApiError as error:
            raise Unavailable(str(error)) from None
        return int(answer.get("purged", 0))

    async def store(self, subject: str, body: bytes, fields: dict[str, str]) -> None:
        """Store one message."""
        reply = await self._connection.request(subject, body, None, fields)
        try:
            error = msgspec.json.decode(reply.data).get("error")
        except (msgspec.DecodeError, AttributeError):
            error = {"description": "nobody stores it"}
        if error:
            raise Unavailable(str(error.get("description")))

    # ------------------------------------------------------------------ the stream that the bucket is

    def _wanted(self, have: dict[str, Any]) -> dict[str, Any]:
        return {
            "subjects": [f"{self._root}.>"],
            "retention": "limits",
            "storage": "memory",
            "discard": "new",
            "num_replicas": self._replicas,
            "max_msgs_per_subject": 1,
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,
            "deny_delete": True,
            "subject_delete_marker_ttl": self._seconds * _NANO,
        }

    def _required(self, have: dict[str, Any]) -> list[str]:
        needs = {"max_msgs_per_subject": 1, "allow_direct": True, "allow_msg_ttl": True}
        return [
            f"{key} is {have.get(key)!r}, not {value!r}"
            for key, value in needs.items()
            if have.get(key) != value
        ]
