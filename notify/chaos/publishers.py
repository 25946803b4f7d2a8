"""Publishes numbered messages through the HTTP API, in order within a topic, each until its outcome is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from threading import Event, Thread

from notify.chaos.ledger import Ledger, Sent
from notify.client import Position, Publisher, PublishFailed
from notify.topics import Topic

#: concurrent publishers
MOST = 8
#: seconds for one attempt, and for all attempts of a message; less than the time for which servers remember a key
_TRY, _PATIENCE, _PAUSE = 3.0, 30.0, 0.1
#: one message in this many goes to a user
_TO_USERS = 4

#: errors after which nothing would be published, however often it is tried
_HOPELESS = frozenset((HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND))


class Publishers:
    """Threads that together publish ``rate`` messages per second, between :meth:`start` and :meth:`stop`.

    Each topic belongs to one thread, which sends the next message once the one before is settled, so the messages have a
    defined order. A message that one address of the API does not accept is retried at the next under the same key, so it is stored
    once. ``failed`` is called in a thread, with a sentence, if it is pointless to continue.
    """

    def __init__(
        self,
        ledger: Ledger,
        apis: Sequence[str],
        key: str,
        rate: float,
        failed: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._apis, self._key, self._failed, self._clock = ledger, apis, key, failed, clock
        self._stopping = Event()
        topics = list(ledger.sent)
        chats = [topic for topic in topics if topic.kind == "chat"]
        users = [topic for topic in topics if topic.kind == "user"]
        count = min(MOST, len(chats))
        self._threads = [
            Thread(target=self._work, args=(n, chats[n::count], users[n::count], count / rate), daemon=True)
            for n in range(count)
        ]

    def start(self) -> None:
        """Start publishing."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Send no new messages. Returns immediately."""
        self._stopping.set()

    def idle(self) -> bool:
        """Whether every outcome is known, or its timeout has passed."""
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, index: int, chats: Sequence[Topic], users: Sequence[Topic], interval: float) -> None:
        # Each thread begins at another address, so that a problem with one address does not stop all.
        first = index % len(self._apis)
        apis = [*self._apis[first:], *self._apis[:first]]
        publishers = [Publisher(api, self._key, tries=1, timeout=_TRY) for api in apis]
        turn, due = 0, self._clock() + interval * index / MOST
        while not self._stopping.wait(max(0.0, due - self._clock())):
            # A delayed publisher does not catch up, which would be an unintended burst.
            due = max(due + interval, self._clock())
            to_user = bool(users) and turn % _TO_USERS == _TO_USERS - 1
            topics, place = (users, turn // _TO_USERS) if to_user else (chats, turn)
            self._one(publishers, topics[place % len(topics)])
            turn += 1
        for publisher in publishers:
            publisher.close()

    def _one(self, publishers: list[Publisher], topic: Topic) -> None:
        """Publish the topic's next message. The address that accepted the previous one is tried first."""
        one = self._ledger.send(topic, self._clock())
        tried = 0
        while one.outcome == "waiting":
            try:
                one.position = _publish(publishers[0], self._ledger, topic, one)
            except PublishFailed as error:
                tried += 1
                if error.status in _HOPELESS:
                    self._failed(f"The HTTP API does not take messages: {error}.")
                    self._stopping.set()
                known = error.status is not None and error.status < HTTPStatus.INTERNAL_SERVER_ERROR
                if known and error.status not in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
                    # It counts as refused only if no earlier attempt can have succeeded.
                    one.outcome = "refused" if tried == 1 else "unknown"
                elif self._clock() - one.at > _PATIENCE:
                    one.outcome = "unknown"
                else:
                    publishers.append(publishers.pop(0))
                    time.sleep(_PAUSE)
            else:
                one.outcome, one.settled = "acknowledged", self._clock()


def _publish(publisher: Publisher, ledger: Ledger, topic: Topic, one: Sent) -> Position:
    key, text = f"{ledger.run}.{topic.subject}.{one.number}", ledger.text(topic, one.number)
    if topic.kind == "chat":
        return publisher.chat(topic.workspace_id, topic.id, 1, text, message_id=one.number, key=key)
    return publisher.notify(topic.workspace_id, topic.id, "chaos", text, notification_id=one.number, key=key)
