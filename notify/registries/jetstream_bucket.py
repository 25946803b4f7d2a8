"""The NATS key-value bucket of :mod:`notify.registries.jetstream_kv`: its keys, and how it is read and written.

All methods raise ``Unavailable`` if the server cannot be asked now, or does not store.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from notify import ids
from notify.errors import Unavailable
from notify.identity import Presence
from notify.ids import Id
from notify.nats import headers
from notify.nats.asking import Reply
from notify.nats.connection import Connection
from notify.nats.jetstream import ApiError, JetStream
from notify.topics import Topic

#: maximum number of parts of one entry
PARTS = 64

_GONE = "60s"  # how long the marker of a removed part is kept
_NANO = 10**9
_ANSWER = 4 * 2**20  # bytes per answer; the rest is requested next
_UNKNOWN = 2**20  # bytes per message if the server does not say: its default
_FIELDS = 256  # bytes of that which headers may take
_ATTEMPTS = 3  # to read what changes while it is read

# JetStream's errors for a wrong Nats-Expected-Last-Subject-Sequence (nats-server, server/errors.json).
_WRONG_LAST = frozenset({10071, 10164})

_NUMBERS = {str(number): number for number in range(1, PARTS)}

#: one process's users in a topic, and the number of connections of each
Entry = dict[Id, int]
_part = msgspec.json.Decoder(list[tuple[Id, int]])


class _Refused(Unavailable):
    """The server does not store a message. ``number`` is its error number."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(words)
        self.number = number


class _Key(NamedTuple):
    incarnation: str
    topic: Topic
    part: int


def is_mark(block: bytes) -> bool:
    """Whether a message is only a marker that the key was removed."""
    return b"KV-Operation" in block or b"Nats-Marker-Reason" in block


def split(present: Sequence[Presence], room: int) -> tuple[list[bytes], int]:
    """Split an entry into parts of at most ``room`` bytes. Also returns how many users did not fit into :data:`PARTS` parts.

    Without users there are no parts. The part of a user depends only on the user and on the number of parts, a power of two. So a
    change affects one part, and a reader that sees parts of two different splits sees users twice but misses none.
    """
    whole = [(one.user_id, one.connections) for one in present]
    bodies = [msgspec.json.encode(whole)] if whole else []
    if not whole or len(bodies[0]) <= room:
        return bodies, 0
    count = 2
    while count < PARTS and count * room < len(bodies[0]):
        count *= 2
    while True:
        parts: list[list[tuple[Id, int]]] = [[] for _ in range(count)]
        for one in whole:
            parts[crc32(str(one[0]).encode()) % count].append(one)
        bodies = [msgspec.json.encode(part) for part in parts]
        if all(len(body) <= room for body in bodies):
            return bodies, 0
        if count == PARTS:
            break
        count *= 2
    left_out = 0
    for number, part in enumerate(parts):
        while len(bodies[number]) > room:
            keep = len(part) * room // len(bodies[number])
            left_out += len(part) - keep
            del part[keep:]
            bodies[number] = msgspec.json.encode(part)
    return bodies, left_out


class Bucket:
    """See the module docstring. ``incarnation`` is this process's name; ``lease`` is in seconds."""

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
        self._max_msg_size = 0
        #: the highest sequence number acknowledged to this process
        self.newest = 0

    @property
    def leases(self) -> str:
        """The subject pattern of all leases."""
        return f"{self._root}.node.*"

    @property
    def room(self) -> int:
        """The maximum size of a part in bytes: what the server and the bucket accept in one message."""
        limits = [self._connection.max_payload or _UNKNOWN]
        if self._max_msg_size > 0:
            limits.append(self._max_msg_size)
        return max(min(limits) - _FIELDS, _FIELDS)

    def entries(self, topic: Topic, incarnation: str = "*") -> str:
        """The subject pattern of the first parts of all entries for a topic. First parts are written last."""
        return f"{self._root}.at.{incarnation}.{topic.workspace_id}.{topic.kind}.{topic.id}"

    async def ensure(self) -> None:
        """Create, update or check the bucket. Also raises ``StartError``."""
        answer = await self._jetstream.ensure_stream(self._stream, self._wanted, self._required)
        self._max_msg_size = answer["config"].get("max_msg_size", 0)

    # ------------------------------------------------------------------ reading

    async def read(self, topics: Iterable[Topic]) -> dict[Topic, dict[str, Entry]]:
        """The entries of other processes whose leases are valid, by topic and process."""
        alive: set[str] = set()
        found: list[tuple[_Key, bytes]] = []
        for reply in await self._last([self.leases, *self._parts(topics, "*")]):
            subject = headers.text(reply.block, headers.SUBJECT)
            if subject.startswith(f"{self._root}.node."):
                alive.add(subject.rpartition(".")[2])
            elif key := self._key(subject):
                found.append((key, reply.data))
        alive.discard(self._mine)
        entries: dict[Topic, dict[str, Entry]] = {}
        for key, data in found:
            if key.incarnation in alive:
                try:
                    part = _part.decode(data)
                except msgspec.DecodeError:
                    continue
                entry = entries.setdefault(key.topic, {}).setdefault(key.incarnation, {})
                for user, connections in part:
                    entry[user] = max(connections, entry.get(user, 0))
        return entries

    async def own(self, topics: Collection[Topic]) -> dict[Topic, dict[int, bytes]]:
        """The stored parts of this process's own entries for some topics."""
        found: dict[Topic, dict[int, bytes]] = {topic: {} for topic in topics}
        if topics:
            for reply in await self._last(self._parts(topics, self._mine)):
                if key := self._key(headers.text(reply.block, headers.SUBJECT)):
                    found[key.topic][key.part] = reply.data
        return found

    async def lives(self, incarnation: str) -> bool:
        """Whether a process has a lease, according to the leader: a replica that is behind must not declare a process dead."""
        subject = f"{self._root}.node.{incarnation}"
        try:
            message = await self._jetstream.message(self._stream, {"last_by_subj": subject})
        except ApiError as error:
            raise Unavailable(str(error)) from None
        return message is not None and not is_mark(b64decode(message.get("hdrs", "")))

    async def last_sequence(self) -> int:
        """The sequence number of the message stored last."""
        try:
            answer = await self._jetstream.api(f"STREAM.INFO.{self._stream}")
        except ApiError as error:
            raise Unavailable(str(error)) from None
        return int(answer["state"]["last_seq"])

    async def incarnations(self) -> set[str]:
        """All processes that have entries, alive or dead."""
        return {subject.split(".")[3] for subject in await self._subjects(f"{self._root}.at.>")}

    async def topics(self) -> set[Topic]:
        """The topics of this process's own entries, and of those removed some time ago."""
        keys = map(self._key, await self._subjects(f"{self._root}.at.{self._mine}.>"))
        return {key.topic for key in keys if key}

    async def _subjects(self, pattern: str) -> set[str]:
        found: set[str] = set()
        offset = 0
        while True:
            body = {"subjects_filter": pattern, "offset": offset}
            try:
                answer = await self._jetstream.api(f"STREAM.INFO.{self._stream}", body)
            except ApiError as error:
                raise Unavailable(str(error)) from None
            subjects = answer["state"].get("subjects") or {}
            found.update(subjects)
            offset += len(subjects)
            if not subjects or offset >= answer.get("total", 0):
                return found

    async def _last(self, subjects: list[str]) -> list[Reply]:
        """The last message of every subject that matches any of these patterns, without markers.

        The server returns at most 1,024 messages, or none (413). In that case the request is split into halves.
        """
        replies: list[Reply] = []
        since, attempts = 0, _ATTEMPTS
        while True:
            body = msgspec.json.encode({"multi_last": subjects, "seq": since, "max_bytes": _ANSWER})
            if len(body) > self.room and len(subjects) > 1:
                return await self._halves(subjects)
            *some, end = await self._connection.gather(f"$JS.API.DIRECT.GET.{self._stream}", body)
            status, words = headers.status(end.block), headers.description(end.block)
            if status == 413:
                return await self._halves(subjects)
            if status == 404 and words == "No Results":
                return replies
            if status == 404 and attempts:
                attempts -= 1  # a message expired while the answer was built, which ends it
                continue
            if status != 204:
                raise Unavailable(f"presence cannot be read: {words}")
            replies += (reply for reply in some if not is_mark(reply.block))
            pending = headers.number(end.block, headers.NUM_PENDING)
            if not some and pending and not since:
                raise Unavailable("presence cannot be read: NATS sends less than it has")
            # nats-server 2.11 counts one too few when it cuts an answer, so a large answer is also continued.
            large = sum(len(reply.data) for reply in some) > _ANSWER // 2
            if not some or not (pending or large):
                return replies
            since = headers.number(some[-1].block, headers.SEQUENCE) + 1

    async def _halves(self, subjects: list[str]) -> list[Reply]:
        if len(subjects) == 1:
            stem, _, wildcard = subjects[0].rpartition(".")
            if wildcard != ">":
                raise Unavailable("presence cannot be read: more than 1,024 nodes are there, or were")
            subjects = [f"{stem}.{number}" for number in range(1, PARTS)]
        middle = len(subjects) // 2
        return await self._last(subjects[:middle]) + await self._last(subjects[middle:])

    def _parts(self, topics: Iterable[Topic], incarnation: str) -> list[str]:
        first = [self.entries(topic, incarnation) for topic in topics]
        return [subject for one in first for subject in (one, f"{one}.>")]

    def _key(self, subject: str) -> _Key | None:
        """What an entry's subject names; ``None`` if it is not one of ours."""
        at, *rest = subject.removeprefix(f"{self._root}.").split(".")
        if at != "at" or len(rest) not in (4, 5):
            return None
        incarnation, workspace, kind, id, *part = rest
        number = _NUMBERS.get(part[0]) if part else 0
        try:
            named: Any = kind
            topic = Topic(ids.parse(workspace), named, ids.parse(id))
        except ValueError:
            return None
        return None if number is None else _Key(incarnation, topic, number)

    # ------------------------------------------------------------------ writing

    async def put(self, topic: Topic, bodies: list[bytes], had: int) -> None:
        """Store this process's entry for a topic in parts. Without parts, store a marker that there is no entry.

        ``had``: the number of parts that may be stored. The first part is written last, because other nodes listen for it.
        """
        first = self.entries(topic, self._mine)

        async def mark(number: int) -> None:
            await self.store(
                f"{first}.{number}" if number else first, b"", {"KV-Operation": "DEL", "Nats-TTL": _GONE}
            )

        for number in range(len(bodies) - 1, 0, -1):
            await self.store(f"{first}.{number}", bodies[number], {})
        if bodies:
            await self.store(first, bodies[0], {})
        for number in range(had - 1, len(bodies) - 1, -1):
            await mark(number)
        if bodies and had > len(bodies):
            await self.store(first, bodies[0], {})

    async def renew(self, last: int = 0) -> int:
        """Extend this process's lease. Returns its new sequence number.

        ``last``: the sequence number that the lease must have had until now; 0: any. If it had another, nothing is stored and 0 is returned.
        """
        fields = {"Nats-TTL": f"{self._seconds}s"}
        if last:
            fields["Nats-Expected-Last-Subject-Sequence"] = str(last)
        try:
            return await self.store(f"{self._root}.node.{self._mine}", b"", fields)
        except _Refused as error:
            if last and error.number in _WRONG_LAST:
                return 0
            raise

    async def withdraw(self) -> None:
        """End this process's lease, and remove its entries."""
        mark = {"KV-Operation": "DEL", "Nats-TTL": _GONE}
        await self.store(f"{self._root}.node.{self._mine}", b"", mark)
        await self.remove(self._mine)

    async def remove(self, incarnation: str, before: int = 0) -> int:
        """Remove the entries of a process with numbers below ``before``; 0: all. Returns the number of parts removed."""
        body: dict[str, Any] = {"filter": f"{self._root}.at.{incarnation}.>"}
        if before:
            body["seq"] = before
        try:
            answer = await self._jetstream.api(f"STREAM.PURGE.{self._stream}", body)
        except ApiError as error:
            raise Unavailable(str(error)) from None
        return int(answer.get("purged", 0))

    async def remove_own(self, before: int) -> int:
        """Remove this process's entries with numbers below ``before``."""
        return await self.remove(self._mine, before)

    async def store(self, subject: str, body: bytes, fields: dict[str, str]) -> int:
        """Store one message. Returns its sequence number."""
        reply = await self._connection.request(subject, body, None, fields)
        try:
            answer = msgspec.json.decode(reply.data)
            error, sequence = answer.get("error"), int(answer.get("seq", 0))
        except (msgspec.DecodeError, AttributeError):
            raise Unavailable("nobody stores it") from None
        if error:
            raise _Refused(int(error.get("err_code", 0)), str(error.get("description")))
        self.newest = max(self.newest, sequence)
        return sequence

    # ------------------------------------------------------------------ the stream behind the bucket

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
