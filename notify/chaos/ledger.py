"""Records what was sent, and what each client received and when, and finds what is wrong. No I/O; times are seconds of one clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from msgspec import Struct, field

from notify.client import Loss, Position
from notify.topics import Topic


class Sent(Struct):
    """One message with its ``number`` in its topic. ``outcome``: ``waiting``, ``acknowledged``, ``unknown`` or ``refused``."""

    number: int
    at: float
    outcome: str = "waiting"
    settled: float = 0.0
    position: Position | None = None


class Got(Struct, frozen=True):
    """A message as received by a client's application."""

    number: int
    at: float


class Told(Struct, frozen=True):
    """A client's application was told that messages may be lost."""

    loss: Loss
    at: float

    def covers(self, position: Position) -> bool:
        """Whether the message at this position is among those reported as possibly lost."""
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
    """A broken promise: ``what`` is lost, doubled, disordered or foreign; ``at`` is when the message was sent."""

    what: str
    client: str
    topic: str
    number: int
    at: float


class Ledger:
    """Records the events of publishers and clients, and determines what is missing and what is wrong.

    Each message carries the run's name, its topic and its number, so that a message in the wrong place is recognised.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.sent: dict[Topic, list[Sent]] = {}
        self.held: list[Held] = []
        #: when a client lost its connection, with the close code or 0, and when it had one again
        self.left: list[tuple[float, str, int]] = []
        self.came: list[tuple[float, str]] = []
        #: clients that the server has closed for good, with the reason
        self.ended: dict[str, str] = {}
        #: the number of messages from others in the same topics
        self.others = 0
        self.foreign: list[Wrong] = []

    # ------------------------------------------------------------------ sending

    def send(self, topic: Topic, at: float) -> Sent:
        """Record the next message of a topic that a client reads."""
        sent = self.sent[topic]
        one = Sent(len(sent) + 1, at)
        sent.append(one)
        return one

    def text(self, topic: Topic, number: int) -> str:
        """The text of a message."""
        return f"{self.run} {topic.subject} {number}"

    def read(self, text: object) -> tuple[str, int] | None:
        """The subject and number in a text; None if this run did not send it."""
        parts = text.split(" ") if isinstance(text, str) else []
        if len(parts) != 3 or parts[0] != self.run or not parts[2].isdecimal():
            return None
        return parts[1], int(parts[2])

    # ------------------------------------------------------------------ receiving

    def hold(self, client: str, topic: Topic) -> Held:
        """A client reads a topic from now on."""
        held = Held(client, topic)
        self.sent.setdefault(topic, [])
        self.held.append(held)
        return held

    def receive(self, held: Held, text: object, at: float) -> None:
        """A client's application received a message of a topic."""
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
        """A client received a message that it must not receive."""
        self.foreign.append(Wrong("foreign", client, subject, number, at))

    # ------------------------------------------------------------------ missing messages, and broken promises

    def behind(self) -> list[Held]:
        """The readers that have neither received the newest acknowledged message of their topic, nor were told that it is lost."""
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
        """When a client had received everything acknowledged by a time; ``-inf``: nothing was, None: never."""
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
        """All broken promises, client by client.

        ``lost``: acknowledged, but neither received nor reported as lost by a client that considers itself complete. ``doubled``:
        received again. ``disordered``: received after a message with a higher number, unless it is unknown when the stream stored it.
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
            # A client that is disconnected can still come back and ask for messages, but not for those it has passed over.
            if (
                one.outcome == "acknowledged"
                and one.number not in seen
                and (held.whole or one.number < highest)
                and not _told(held, one)
            ):
                yield wrong("lost", one.number, one.at)

    def outcomes(self) -> Counter[str]:
        """The number of messages by outcome."""
        return Counter(one.outcome for sent in self.sent.values() for one in sent)


def _told(held: Held, one: Sent) -> bool:
    return one.position is not None and any(told.covers(one.position) for told in held.told)
