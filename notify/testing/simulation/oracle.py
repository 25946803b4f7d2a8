"""What must be true in a simulated life: a shadow of the history, and of what each client was told about it.

Safety, at any moment: each message arrives once and in order; no message between two others is left out; ``prev`` never
names a message that the connection was not sent; a position is recovered only within its own history; nothing arrives from
another chat, user or workspace. A loss is reported only if there can be one (see :meth:`Oracle.excuse`).

Liveness, once everything is healed: every message has arrived that the stream kept, or that it dropped without the client being told.

Clients are not owed messages that an operator deleted or purged, or that a server lost when it went back: these exist nowhere.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from msgspec import Struct

from notify.client import actions as do
from notify.client.actions import Frame, Id, Position
from notify.testing.simulation.client import SimulatedClient
from notify.topics import Topic

#: a message's place: the history, and its number in that history
Key = tuple[int, int]
_NOWHERE: Key = (-1, 0)
#: the id of messages that were never published: a client that gets one was not deceived by notify
FORGED = -1


class Entry:
    """One published message. ``key`` is None until it is known to be stored."""

    __slots__ = ("accepted", "event", "key", "number", "removed", "size", "topic", "valid")

    def __init__(self, number: int, topic: Topic, event: bool, valid: bool, size: int) -> None:
        self.number, self.topic, self.event, self.valid, self.size = number, topic, event, valid, size
        self.key: Key | None = None
        self.removed = ""
        self.accepted = False

    def owed(self, client: SimulatedClient) -> bool:
        """Whether a client that is subscribed to the topic must receive it."""
        return (
            self.valid
            and self.removed not in ("operator", "rollback")
            and (client.who.events or not self.event)
        )


class Track:
    """How far a client has come in a topic: ``base`` is where it began, ``last`` is what it received last.

    ``let_go``: the messages up to here that were gone when it began had been removed by limits.
    """

    __slots__ = ("base", "debts", "got", "last", "let_go")

    def __init__(self) -> None:
        self.base: Key | None = None
        self.last = self.let_go = _NOWHERE
        self.got: set[int] = set()
        #: messages that were left out and must still be reported as lost
        self.debts: list[Entry] = []


class Line(Struct):
    """What one connection was told of a topic: ``answered`` is the newest number at the answer, ``last`` the last one sent."""

    epoch: str
    answered: int
    last: int


class Violation(Exception):  # noqa: N818
    """Something that must be true is not. ``kind`` is a short name for it, which stays the same while the plan is shrunk."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(f"{kind}: {words}")
        self.kind = kind


class Oracle:
    """See the module docstring. ``place(seq)`` returns the history in which the stream gave a number, and the number, but nothing past its end.

    If it is None, positions tell the history.
    """

    def __init__(self, replay: int, queue: int, place: Callable[[int], Key] | None) -> None:
        self._replay, self._queue, self._place = replay, queue, place
        self.entries: dict[int, Entry] = {}
        self.stored: dict[Topic, list[tuple[Key, int]]] = {}
        self.tracks: dict[tuple[str, Id | None], Track] = {}
        self.lines: dict[tuple[str, Id | None], Line] = {}
        self._asked: dict[tuple[str, Any], tuple[Id | None, Any]] = {}
        #: chats that a connection has left: messages in flight may still arrive until it subscribes to them again
        self._leaving: set[tuple[str, Id | None]] = set()
        self._epochs: dict[str, int] = {}
        #: why losses may be reported at any time from now on
        self.lossy = ""
        #: the stream went back or was recreated. Until notify compares, the second message with a number looks like the next one, and what
        #: was left out by then must be reported as lost before the end
        self.went_back = False
        #: messages that were published atomically, and whether the publisher was told that none of them is stored
        self._as_one: dict[tuple[int, ...], bool] = {}
        #: the first violation
        self.violation: Violation | None = None
        self.marks: Counter[str] = Counter()

    def wrong(self, kind: str, words: str) -> None:
        """Something is wrong."""
        if self.violation is None:
            self.violation = Violation(kind, words)

    # --- the history ----------------------------------------------------------------------------------------

    def keep(self, number: int, key: Key) -> None:
        """A message is stored at this place."""
        entry = self.entries[number]
        if entry.key is None:
            entry.key = key
            insort(self.stored.setdefault(entry.topic, []), (key, number))
        elif entry.key != key and not self.lossy:
            self.wrong("stored twice", f"message {number} at {entry.key} and at {key}")
        elif entry.key < key:
            # The publisher retried a lost message: it now belongs to the later history.
            self.stored[entry.topic].remove((entry.key, number))
            for track in self.tracks.values():
                if track.base is not None and track.base[0] > entry.key[0]:
                    track.got.discard(number)  # clients told of the later history may get it again
            entry.key, entry.removed = key, ""
            insort(self.stored[entry.topic], (key, number))

    def accepted(self, number: int, epoch: str, seq: int) -> None:
        """A publisher was told that its message is stored there."""
        entry = self.entries[number]
        entry.accepted = True
        if self._place is None:
            self.keep(number, (self._history(epoch), seq))
        elif entry.key is None:
            self.wrong("accepted, not stored", f"message {number} at {seq}")
        elif entry.key[1] != seq and not self.lossy:
            self.wrong("accepted elsewhere", f"message {number} is at {entry.key[1]}, said to be at {seq}")

    def as_one(self, numbers: tuple[int, ...], refused: bool = False) -> None:
        """Messages are published atomically; ``refused``: the publisher was told that none of them is stored."""
        self._as_one[numbers] = refused

    def _torn(self) -> Iterator[tuple[str, str]]:
        for numbers, refused in self._as_one.items():
            stored = [number for number in numbers if self.entries[number].key is not None]
            if stored and (refused or len(stored) < len(numbers)):
                yield (
                    "torn",
                    f"of messages {numbers} as one {stored} are stored, and it was{'' if refused else ' not'} refused",
                )

    def removed(self, number: int, why: str) -> None:
        """A message was removed from the stream."""
        self.entries[number].removed = why

    def _history(self, epoch: str) -> int:
        return self._epochs.setdefault(epoch, len(self._epochs))

    def _key(self, epoch: str, seq: int) -> Key:
        return (self._history(epoch), seq) if self._place is None else self._place(seq)

    # --- what a connection receives -------------------------------------------------------------------------

    def connected(self, client: SimulatedClient) -> None:
        """See :class:`~notify.testing.simulation.client.Watcher`."""
        name = client.who.name
        self._leaving = {key for key in self._leaving if key[0] != name}
        for lines in (self.lines, self._asked):
            for key in [key for key in lines if key[0] == name]:
                del lines[key]

    def sent(self, client: SimulatedClient, frame: Frame) -> None:
        """See :class:`~notify.testing.simulation.client.Watcher`."""
        name, kind = client.who.name, frame["type"]
        if kind == "auth":
            self._asked[name, "auth"] = None, frame.get("since")
        elif kind == "subscribe":
            self._asked[name, frame["id"]] = frame["chat_id"], frame.get("since")
        elif kind == "history":
            self._asked[name, frame["id"]] = frame["chat_id"], frame
        elif kind == "unsubscribe":
            self.lines.pop((name, frame["chat_id"]), None)
            self._leaving.add((name, frame["chat_id"]))
            for key in [
                k for k, asked in self._asked.items() if k[0] == name and asked[0] == frame["chat_id"]
            ]:
                del self._asked[key]

    def frame(self, client: SimulatedClient, frame: Frame) -> None:
        """See :class:`~notify.testing.simulation.client.Watcher`."""
        name, kind = client.who.name, frame["type"]
        if kind in ("chat_message", "chat_event", "notification"):
            self._sent_message(client, frame)
        elif kind == "subscribed" or (kind == "auth_result" and "epoch" in frame):
            asked = self._asked.pop((name, frame["id"] if kind == "subscribed" else "auth"), None)
            if asked is not None:
                self._answered(client, *asked, frame)
        elif kind == "history":
            _, asked = self._asked.pop((name, frame["id"]), (None, {}))
            self._page(client, asked, frame)
        elif kind == "error":
            self._asked.pop((name, frame.get("id")), None)
            self.marks[f"error {frame['code']}"] += 1

    def _page(self, client: SimulatedClient, asked: Frame, frame: Frame) -> None:
        """Check that a page is a complete part of the history, next to the position that it was requested for."""
        self.marks["a page of history came"] += bool(frame["messages"])
        where = f"{client.who.name} chat {frame['chat_id']}, a page"
        topic = _topic(client, frame["chat_id"])
        before, after = asked.get("before"), asked.get("after")
        ends = [self._key(place["epoch"], place["seq"]) if place else None for place in (after, before)]
        keys, last = [ends[0]], 0
        for one in frame["messages"]:
            if one["seq"] <= last:
                self.wrong("out of order", f"{where} has {one['seq']} behind {last}")
            last = one["seq"]
            entry = self._entry(one)
            if one["message_id"] == FORGED:
                keys.append(None)
            elif entry is None or entry.topic != topic or (entry.event and not client.who.events):
                self.wrong("foreign", f"{where}: {one}")
            else:
                keys.append(entry.key)
        keys.append(ends[1])
        if self.went_back:
            return  # the page may be from a different history by now
        for early, late in pairwise(keys):
            if early is not None and late is not None and early >= late:
                self.wrong("out of order", f"{where} has {late} behind {early}")
            for key, number in self.stored.get(topic, ()):
                entry = self.entries[number]
                between = early is not None and late is not None and early < key < late
                if between and entry.owed(client) and not entry.removed:
                    self.wrong("left out", f"{where} has {early} and {late} without {key}, message {number}")

    def _answered(self, client: SimulatedClient, chat: Id | None, since: Any, frame: Frame) -> None:
        epoch, seq = frame["epoch"], frame["seq"]
        last = seq
        if frame["recovered"]:
            self.marks["a position was recovered"] += 1
            last = since["seq"]
            if epoch != since["epoch"] or seq < last:
                self.wrong("recovered elsewhere", f"{client.who.name} chat {chat}: {since} by {epoch}:{seq}")
        elif since is not None and since["epoch"]:
            self.marks["a position was not recovered"] += 1
        self.lines[client.who.name, chat] = Line(epoch, seq, last)
        self._leaving.discard((client.who.name, chat))

    def _sent_message(self, client: SimulatedClient, frame: Frame) -> None:
        chat = frame.get("chat_id")
        where = f"{client.who.name} chat {chat}"
        entry = self._entry(frame)
        if frame.get("message_id") == FORGED:
            if (client.who.name, chat) in self.lines:
                self.lines[client.who.name, chat].last = frame["seq"]
            return
        who = client.who
        topic = _topic(client, chat)
        if entry is None or entry.topic != topic or (chat is not None and chat not in who.chats):
            self.wrong("foreign", f"{where}: {frame}")
            return
        if entry.event and not who.events:
            self.wrong("foreign", f"{where} did not ask for events: {frame}")
        line = self.lines.get((who.name, chat))
        if line is None:
            if (who.name, chat) not in self._leaving:
                self.wrong("before its answer", f"{where}: {frame}")
            return
        seq, known = frame["seq"], line.last
        if seq > line.answered:
            known = max(known, line.answered)
        if frame["epoch"] != line.epoch:
            self.wrong("another history", f"{where} is in {line.epoch}, was sent {frame['epoch']}:{seq}")
        elif seq <= line.last:
            self.wrong("again", f"{where} was sent {seq} behind {line.last}")
        elif frame["prev"] > known:
            self.wrong("prev is open", f"{where} was sent {seq} with prev {frame['prev']}, and knows {known}")
        line.last = seq

    def _entry(self, frame: Frame) -> Entry | None:
        number = frame.get("notification_id") if frame["type"] == "notification" else frame.get("message_id")
        return self.entries.get(number) if isinstance(number, int) else None

    # --- what an application receives -----------------------------------------------------------------------

    def action(self, client: SimulatedClient, action: do.Action) -> None:
        """See :class:`~notify.testing.simulation.client.Watcher`."""
        match action:
            case do.Deliver(chat, frame):
                self._delivered(client, chat, frame)
            case do.Lost(chat, before, after):
                self._lost(client, chat, before, after)
            case do.SubscriptionChanged(chat, "live", position) if position is not None:
                track = self.track(client, chat)
                if track.base is None:
                    self._begin(client, chat, track, position)
            case do.GapFound():
                self.marks["the client found a gap"] += 1
            case do.SubscriptionChanged(chat, "refused"):
                self.wrong("refused", f"{client.who.name} chat {chat}")

    def track(self, client: SimulatedClient, chat: Id | None) -> Track:
        """How far a client has come."""
        return self.tracks.setdefault((client.who.name, chat), Track())

    def forget(self, client: SimulatedClient, chat: Id) -> None:
        """The client has unsubscribed from a chat."""
        self.tracks.pop((client.who.name, chat), None)

    def _begin(self, client: SimulatedClient, chat: Id | None, track: Track, position: Position) -> None:
        """A client is told where it begins. Messages that limits had removed by then may still arrive, but are not owed."""
        track.base = track.last = self._key(position.epoch, position.seq)
        track.debts.clear()
        for key, number in reversed(self.stored.get(_topic(client, chat), ())):
            if self.entries[number].removed == "limit":
                track.let_go = key
                break

    def _delivered(self, client: SimulatedClient, chat: Id | None, frame: Frame) -> None:
        entry = self._entry(frame)
        if entry is None:
            return
        if self._place is None and entry.key is None:
            self.keep(entry.number, self._key(frame["epoch"], frame["seq"]))
        where = f"{client.who.name} chat {chat}"
        if entry.key is None or not entry.valid:
            self.wrong("never stored", f"{where} got message {entry.number}")
            return
        track = self.track(client, chat)
        if entry.number in track.got:
            self.wrong("twice", f"{where} got message {entry.number} at {entry.key} again")
        elif entry.key <= track.last:
            self.wrong("out of order", f"{where} got {entry.key} behind {track.last}")
        else:
            for missing in self._between(client, entry.topic, track, entry.key):
                if self.went_back:
                    track.debts.append(missing)
                else:
                    words = f"{where} got {entry.key} without {missing.key}, message {missing.number}"
                    self.wrong("left out", words)
        track.got.add(entry.number)
        track.last = max(track.last, entry.key)

    def _between(
        self, client: SimulatedClient, topic: Topic, track: Track, until: Key | None
    ) -> Iterator[Entry]:
        for key, number in reversed(self.stored.get(topic, ())):
            if key <= track.last:
                return
            entry = self.entries[number]
            if entry.removed == "limit" and key <= track.let_go:
                continue
            if (until is None or key < until) and entry.number not in track.got and entry.owed(client):
                yield entry

    def _lost(self, client: SimulatedClient, chat: Id | None, before: Position, after: Position) -> None:
        self.marks["a loss was told"] += 1
        track = self.track(client, chat)
        if track.base is not None and not self.excuse(client, chat, track):
            self.wrong("needless loss", f"{client.who.name} chat {chat} from {before} to {after}")
        self._begin(client, chat, track, after)
        # The client reloads the chat and continues from there: messages after that point may have arrived before.
        base = track.base or _NOWHERE
        track.got = {number for number in track.got if (self.entries[number].key or _NOWHERE) <= base}

    def excuse(self, client: SimulatedClient, chat: Id | None, track: Track) -> str:
        """Why a loss may be reported now; empty if there is no reason.

        Histories end (recreated, gone back), operators delete, limits remove messages, and a resume is bounded.
        """
        if self.lossy:
            return self.lossy
        topic = _topic(client, chat)
        behind = [self.entries[number] for key, number in self.stored.get(topic, ()) if key > track.last]
        if len(behind) > self._replay:
            return "more messages than one resumption may have"
        if sum(entry.size + 250 for entry in behind) > self._queue:
            return "more bytes than may wait for a client"
        return ""

    def closed(self, client: SimulatedClient, code: int, reason: str) -> None:
        """See :class:`~notify.testing.simulation.client.Watcher`."""
        self.marks[f"closed with {code}"] += 1
        if code == 4004 and not self.lossy:
            self.wrong("needless loss", f"{client.who.name} was closed with 4004")
        elif code in (1002, 1007, 1009, 4000) or code >= 4500:
            self.wrong("closed", f"{client.who.name} was closed with {code} {reason}")

    # --- the end --------------------------------------------------------------------------------------------

    def unfinished(self, clients: list[SimulatedClient]) -> Iterator[tuple[str, str]]:
        """What is not as it must be in the end: the kind of violation, and its details."""
        yield from self._torn()
        for client in clients:
            who = client.who
            if client.machine.state != "connected":
                yield "not connected", f"{who.name} is {client.machine.state}"
                continue
            for topic in client.machine.topics.values():
                where = f"{who.name} chat {topic.chat}"
                track = self.track(client, topic.chat)
                if not topic.live or track.base is None:
                    yield "not live", where
                    continue
                for missing in track.debts:
                    yield (
                        "left out",
                        f"{where}: message {missing.number} at {missing.key}, and it was not told",
                    )
                for missing in self._between(client, _topic(client, topic.chat), track, None):
                    yield (
                        "missing",
                        f"{where}: message {missing.number} at {missing.key}, behind {track.last}",
                    )


def _topic(client: SimulatedClient, chat: Id | None) -> Topic:
    who = client.who
    return Topic(who.workspace, "user", who.user) if chat is None else Topic(who.workspace, "chat", chat)
