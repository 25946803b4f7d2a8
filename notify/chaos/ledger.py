"""What was sent, what came to whom and when, and what is wrong with it. Without I/O; times are seconds of one clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from msgspec import Struct, field

from notify.client import Loss, Position
from notify.topics import Topic


class Sent(Struct):
    """One message, ``number`` in its topic. ``outcome``: ``waiting``, ``acknowledged``, ``unknown`` or ``refused``."""

    number: int
    at: float
    outcome: str = "waiting"
    settled: float = 0.0
    position: Position | None = None


class Got(Struct, frozen=True):
    """A message as a client's program got it."""

    number: int
    at: float


class Told(Struct, frozen=True):
    """A client's program was told that it may have missed messages."""

    loss: Loss
    at: float

    def covers(self, position: Position) -> bool:
        """Whether the message at this position is among those that may have been missed."""
        before, after = self.loss.before, self.loss.after
        if position.epoch == before.epoch:
            return position.seq > before.seq and (position.epoch != after.epoch or position.seq <= after.seq)
        return position.epoch != after.epoch or position.seq <= after.seq


class Held(Struct):
    """One topic as one client sees it. ``whole``: the client is connected and subscribed, as far as it knows."""

    client: str
    topic: Topic
    got: list[Got] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    whole: bool = False
    highest: int = 0


class Wrong(Struct, frozen=True):
    """What breaks the promise: ``what`` is lost, doubled, disordered or foreign; ``at`` where the message was sent."""

    what: str
    client: str
    topic: str
    number: int
    at: float


class Ledger:
    """Told what happens by publishers and clients, it knows what is missing and what is wrong.

    Each message carries the run's name, its topic and its number, so that one in the wrong place is known.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.sent: dict[Topic, list[Sent]] = {}
        self.held: list[Held] = []
        #: when a client lost its connection and when it had one again: time, client, and the close code or 0
        self.left: list[tuple[float, str, int]] = []
        self.came: list[tuple[float, str]] = []
        #: clients that the server has sent away for good, with the reason
        self.ended: dict[str, str] = {}
        #: messages of others in the same topics
        self.others = 0
        self.foreign: list[Wrong] = []

    # ------------------------------------------------------------------ what is sent

    def send(self, topic: Topic, at: float) -> Sent:
        """The next message of a topic that somebody reads."""
        sent = self.sent[topic]
        one = Sent(len(sent) + 1, at)
        sent.append(one)
        return one

    def text(self, topic: Topic, number: int) -> str:
        """What a message carries."""
        return f"{self.run} {topic.subject} {number}"

    def read(self, text: object) -> tuple[str, int] | None:
        """A text's subject and number; None where this run has not sent it."""
        parts = text.split(" ") if isinstance(text, str) else []
        if len(parts) != 3 or parts[0] != self.run or not parts[2].isdecimal():
            return None
        return parts[1], int(parts[2])

    # ------------------------------------------------------------------ what comes

    def hold(self, client: str, topic: Topic) -> Held:
        """A client reads a topic from now on."""
        held = Held(client, topic)
        self.sent.setdefault(topic, [])
        self.held.append(held)
        return held

    def receive(self, held: Held, text: object, at: float) -> None:
        """A client's program got a message of a topic."""
        read = self.read(text)
        if read is None:
            self.others += 1
            return
        subject, number = read
        if subject != held.topic.subject or number > len(self.sent[held.topic]):
            self.intrude(held.client, subject, number, at)
            return
        held.got.append(Got(number, at))
        held.highest = max(held.highest, number)

    def intrude(self, client: str, subject: str, number: int, at: float) -> None:
        """A client got what it must not."""
        self.foreign.append(Wrong("foreign", client, subject, number, at))

    # ------------------------------------------------------------------ what is missing, and what is wrong

    def behind(self) -> list[Held]:
        """Those that have not come to the newest acknowledged message of their topic, and were not told of its loss."""
        newest = {
            topic: next((one for one in reversed(sent) if one.outcome == "acknowledged"), None)
            for topic, sent in self.sent.items()
        }
        return [
            held
            for held in self.held
            if (last := newest.get(held.topic)) is not None
            and held.highest < last.number
            and not _told(held, last)
        ]

    def reached(self, held: Held, by: float) -> float | None:
        """When a client had come to whatever was acknowledged by a time; ``-inf``: to nothing, None: never."""
        sent = self.sent[held.topic]
        last = next(
            (one for one in reversed(sent) if one.outcome == "acknowledged" and one.settled <= by), None
        )
        if last is None:
            return float("-inf")
        found = [got.at for got in held.got if got.number >= last.number]
        found += [told.at for told in held.told if last.position is not None and told.covers(last.position)]
        return min(found, default=None)

    def wrongs(self) -> Iterator[Wrong]:
        """All that breaks the promise, client by client.

        ``lost``: acknowledged, and neither got nor told of by a client that holds itself whole. ``doubled``: got
        again. ``disordered``: got after one with a higher number, unless nobody knows when the stream took it.
        """
        yield from self.foreign
        for held in self.held:
            yield from self._of(held)

    def _of(self, held: Held) -> Iterator[Wrong]:
        def wrong(what: str, number: int, at: float) -> Wrong:
            return Wrong(what, held.client, held.topic.subject, number, at)

        sent = self.sent[held.topic]
        seen: set[int] = set()
        highest = 0
        for got in held.got:
            if got.number in seen:
                yield wrong("doubled", got.number, got.at)
            elif got.number < highest and sent[got.number - 1].outcome == "acknowledged":
                yield wrong("disordered", got.number, got.at)
            seen.add(got.number)
            highest = max(highest, got.number)
        for one in sent:
            # One that is not there any more can still come back and ask; what it has passed over, it never will.
            if (
                one.outcome == "acknowledged"
                and one.number not in seen
                and (held.whole or one.number < highest)
                and not _told(held, one)
            ):
                yield wrong("lost", one.number, one.at)

    def outcomes(self) -> Counter[str]:
        """How many messages ended how."""
        return Counter(one.outcome for sent in self.sent.values() for one in sent)


def _told(held: Held, one: Sent) -> bool:
    return one.position is not None and any(told.covers(one.position) for told in held.told)
