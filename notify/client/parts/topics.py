"""The topics that a client is subscribed to, and its position in each: docs/client.md, rules 8 to 17, 27 to 30."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec
from msgspec import Struct

from notify.client.actions import (
    Action,
    Deliver,
    Frame,
    GapFound,
    Id,
    Lost,
    Position,
    PresenceChanged,
    Settings,
    Signalled,
    SubscriptionChanged,
)
from notify.client.parts.backoff import Backoff
from notify.client.parts.requests import HISTORY, SIGNALS, Refusal, Request, Requests, positioned

NOWHERE = {"epoch": "", "seq": 0}
#: the kinds of message in a chat
KINDS = ("chat_message", "chat_event")


class Topic(Struct):
    """The state of one chat, or of the notifications (``chat`` None)."""

    chat: Id | None
    backoff: Backoff
    position: Position | None = None
    watch: bool = False
    live: bool = False
    paused: bool = False
    #: messages were discarded while paused
    behind: bool = False
    #: a message was handed over since the last gap
    progress: bool = True
    #: the id of the unanswered ``subscribe`` or ``history`` frame for this topic
    request: int | None = None
    #: the topic is behind, and catches up by pages of history before it is subscribed to
    paging: bool = False
    #: history was asked for the messages after this position
    asked: bool = False
    #: the ``seq`` in the answer that made it live: once the replay is received, nothing up to there is missing
    answered: int = 0

    def judge(self, frame: Frame) -> Literal["next", "duplicate", "gap"]:
        """How a message follows the current position."""
        if self.position is None or frame["epoch"] != self.position.epoch:
            return "gap"
        if frame["seq"] <= self.position.seq:
            return "duplicate"
        known = self.position.seq
        if frame["seq"] > self.answered:
            known = max(known, self.answered)
        return "gap" if frame["prev"] > known else "next"

    def advance(self, frame: Frame) -> None:
        """A message was handed over."""
        self.position, self.progress = Position(frame["epoch"], frame["seq"]), True
        self.asked = False
        self.backoff.reset()


class Topics:
    """The subscribed chats, and the notifications, which are always subscribed to. They outlive connections.

    Chats are subscribed to one by one, but notifications come with the connection. Only a new connection can therefore fill a
    gap in the notifications, and the methods that find such a gap say so.
    """

    def __init__(
        self,
        settings: Settings,
        random: Callable[[], float],
        requests: Requests,
        do: Callable[[Action], None],
    ) -> None:
        self._settings, self._random, self._requests, self._do = settings, random, requests, do
        self.notifications = Topic(None, Backoff(settings, random))
        self.chats: dict[Id, Topic] = {}
        # of the current connection
        self._queue: dict[Id, None] = {}  # chats to subscribe to, in order
        self._retries: dict[Id, float] = {}  # when to queue the chats again that were refused for now
        self._unanswered = 0

    def get(self, chat: Id | None) -> Topic | None:
        """The topic of a chat, or None if it is not subscribed to."""
        return self.notifications if chat is None else self.chats.get(chat)

    def values(self) -> Iterator[Topic]:
        """The notifications and all chats."""
        yield self.notifications
        yield from self.chats.values()

    # --- what the application does --------------------------------------------------------------------------

    def subscribe(self, chat: Id, now: float, since: Position | None, watch: bool) -> None:
        """Subscribe to this chat from now on, or from after ``since``. Has no effect if the chat is already subscribed to."""
        if chat not in self.chats:
            self.chats[chat] = Topic(chat, Backoff(self._settings, self._random), since, watch)
            self._do(SubscriptionChanged(chat, "subscribing"))
            self._want(chat, now)

    def unsubscribe(self, chat: Id, now: float) -> None:
        """Unsubscribe from this chat."""
        topic = self.chats.pop(chat, None)
        if topic is not None:
            self._withdraw(topic, chat, now)

    def pause(self, chat: Id | None, now: float) -> None:
        """Deliver no more of a topic until it is resumed."""
        topic = self.get(chat)
        if topic is not None and not topic.paused:
            topic.paused = True
            if chat is not None:
                self._withdraw(topic, chat, now)
            self._do(SubscriptionChanged(chat, "paused"))

    def resume(self, chat: Id | None, now: float) -> bool:
        """Continue after the last message that was handed over. Returns whether that requires a new connection."""
        topic = self.get(chat)
        if topic is None or not topic.paused:
            return False
        topic.paused = False
        self._do(SubscriptionChanged(chat, "subscribing"))
        if chat is not None:
            topic.paging, topic.answered = True, 0
            self._want(chat, now)
            return False
        if topic.live and not topic.behind:
            self._do(SubscriptionChanged(None, "live", topic.position))
        return topic.live and topic.behind

    def signal(self, chat: Id, kind: str, data: Any, now: float) -> bool:
        """Send a signal to a chat's members. Returns whether it was sent; if not, it is lost."""
        topic = self.chats.get(chat)
        if topic is None or not topic.live or SIGNALS not in self._requests.features:
            return False
        if not self._requests.pace.allows(now):
            return False
        self._requests.send({"type": "signal", "chat_id": chat, "kind": kind, "data": data}, now)
        return True

    # --- what happens to the client -------------------------------------------------------------------------

    def since(self) -> Frame:
        """The position from which to resume the notifications, for ``auth``. Without one, a position that asks the server for one."""
        position = self.notifications.position
        return NOWHERE if position is None else msgspec.to_builtins(position)

    def authenticated(self, frame: Frame, now: float) -> None:
        """The server has said from where the notifications continue, unless it does not store them."""
        if "epoch" in frame:
            self._settle(self.notifications, frame, now)

    def connected(self, now: float) -> None:
        """The connection accepts subscriptions."""
        for chat in self.chats:
            self._want(chat, now)

    def disconnected(self) -> None:
        """The connection is lost."""
        self._queue.clear()
        self._retries.clear()
        self._unanswered = 0
        for topic in self.values():
            topic.live, topic.request, topic.asked = False, None, False
            topic.backoff.reset()

    def message(self, chat: Id | None, frame: Frame, now: float) -> bool:
        """A message arrived with its position. Returns whether a new connection is needed to get the messages missing before it."""
        topic = self.get(chat)
        if topic is None or not topic.live or topic.position is None:
            return False
        if topic.paused:
            topic.behind = True
            return False
        match topic.judge(frame):
            case "gap":
                self._do(GapFound(chat, topic.position.seq, frame["prev"]))
                topic.live = False
                if chat is None:
                    return True
                self._fill(topic, chat, now)
            case "next":
                topic.advance(frame)
                self._do(Deliver(chat, frame))
        return False

    def presence(self, chat: Any, users: list[Frame]) -> None:
        """A user entered or left a chat."""
        if isinstance(chat, int | str) and chat in self.chats:
            self._do(PresenceChanged(chat, users))

    def signalled(self, chat: Any, frame: Frame) -> None:
        """A member of a chat sent a signal."""
        user, kind = frame.get("user_id"), frame.get("kind")
        if (
            isinstance(chat, int | str)
            and chat in self.chats
            and isinstance(user, int | str)
            and isinstance(kind, str)
        ):
            self._do(Signalled(chat, user, kind, frame.get("data")))

    def answered(self, request: Request, frame: Frame, now: float) -> None:
        """The server has subscribed the client to a chat, or has sent a page of it."""
        self._unanswered -= 1
        topic = self.chats.get(request.key)
        if topic is not None and topic.request == request.id:
            if topic.paging:
                self._turn(topic, request.key, frame, now)
            elif "epoch" in frame:
                self._settle(topic, frame, now)
        self._pump(now)

    def refused(self, request: Request, refusal: Refusal, now: float) -> None:
        """The server refused, temporarily or for good."""
        self._unanswered -= 1
        topic = self.chats.get(request.key)
        if topic is not None and topic.request == request.id:
            topic.request = None
            if topic.paging and (refusal.code == "history_unavailable" or not refusal.again):
                topic.paging = False  # subscribe instead: the answer says what is lost or forbidden
                self._want(request.key, now)
            elif refusal.again:
                delay = self._retry(topic, request.key, now)
                self._refuse("waiting", request.key, refusal, delay)
            else:
                del self.chats[request.key]
                self._refuse("refused", request.key, refusal)
        self._pump(now)

    def withdrawn(self, chat: Any, refusal: Refusal, now: float) -> bool:
        """An unsolicited error arrived. Returns whether it ends the subscription to the chat that it names."""
        topic = self.chats.get(chat) if isinstance(chat, int | str) else None
        if topic is None:
            return False
        if refusal.again:
            if topic.live:  # otherwise it is not subscribed, or is about to be again
                topic.live = False
                self._refuse("waiting", chat, refusal, self._retry(topic, chat, now))
            return True
        del self.chats[chat]
        self._queue.pop(chat, None)
        self._retries.pop(chat, None)
        self._refuse("refused", chat, refusal)
        return True

    def due(self) -> float | None:
        """When :meth:`tick` is due next."""
        due = list(self._retries.values())
        if self._queue and self._unanswered < self._settings.window:
            due.append(self._requests.pace.next())
        return min(due, default=None)

    def tick(self, now: float) -> None:
        """Queue the subscriptions whose retry is due."""
        for chat in [chat for chat, at in self._retries.items() if at <= now]:
            del self._retries[chat]
            self._want(chat, now)
        self._pump(now)

    # --- subscribing ----------------------------------------------------------------------------------------

    def _want(self, chat: Id, now: float) -> None:
        topic = self.chats.get(chat)
        if self._requests.ready and topic is not None and not topic.paused:
            self._queue[chat] = None
            self._pump(now)

    def _withdraw(self, topic: Topic, chat: Id, now: float) -> None:
        self._queue.pop(chat, None)
        self._retries.pop(chat, None)
        if topic.live or (topic.request is not None and not topic.paging):
            self._requests.send({"type": "unsubscribe", "chat_id": chat}, now)
        topic.live, topic.request = False, None

    def _pump(self, now: float) -> None:
        """Subscribe to the queued chats, as far as the window and the server's rate limit allow."""
        while self._queue and self._unanswered < self._settings.window and self._requests.pace.allows(now):
            chat = next(iter(self._queue))
            del self._queue[chat]
            topic = self.chats[chat]
            self._unanswered += 1
            topic.live, topic.request = False, self._requests.ask(self, chat, self._frame(topic), now)

    def _frame(self, topic: Topic) -> Frame:
        """The request for a chat: for its next page, or for the subscription."""
        position = None if topic.position is None else msgspec.to_builtins(topic.position)
        topic.paging = topic.paging and position is not None and HISTORY in self._requests.features
        if topic.paging:
            topic.asked = True
            return {"type": "history", "chat_id": topic.chat, "after": position, "limit": self._settings.page}
        frame: Frame = {"type": "subscribe", "chat_id": topic.chat}
        if position is not None:
            frame["since"] = position
        if topic.watch:
            frame["watch_presence"] = True
        return frame

    def _settle(self, topic: Topic, answer: Frame, now: float) -> None:
        """The server has said from where a topic continues."""
        newest = Position(answer["epoch"], answer["seq"])
        if topic.position is None:
            topic.position = newest
        elif not answer.get("recovered"):
            if topic.chat is not None and self._further(topic, newest):
                # Too much for one resume. Unsubscribe, as messages that arrive before it has caught up would be discarded.
                self._requests.send({"type": "unsubscribe", "chat_id": topic.chat}, now)
                topic.request, topic.paging, topic.answered = None, True, 0
                self._want(topic.chat, now)
                return
            self._do(Lost(topic.chat, topic.position, newest))
            topic.position = newest
        topic.answered = newest.seq
        topic.live, topic.behind, topic.request = True, False, None
        if not topic.paused:
            self._do(SubscriptionChanged(topic.chat, "live", topic.position))

    def _further(self, topic: Topic, newest: Position) -> bool:
        """Whether history may have messages that the resume could not replay."""
        position = topic.position
        return (
            position is not None
            and HISTORY in self._requests.features
            and not topic.asked
            and position.epoch == newest.epoch
            and position.seq < newest.seq
        )

    def _turn(self, topic: Topic, chat: Id, answer: Frame, now: float) -> None:
        """A page arrived. The reader asks for the next one with ``resume``; after the last page the chat goes live."""
        topic.request = None
        messages = answer.get("messages")
        handed, whole = 0, answer.get("type") == "history" and isinstance(messages, list)
        for message in messages if whole and messages else ():
            if not positioned(message) or message.get("chat_id") != chat or message.get("type") not in KINDS:
                continue
            judged = topic.judge(message)
            if judged == "gap" and topic.position is not None:
                self._do(GapFound(chat, topic.position.seq, message["prev"]))
                whole = False
                break
            if judged == "next":
                topic.advance(message)
                self._do(Deliver(chat, message))
                handed += 1
        if handed and whole and answer.get("more") is True:
            topic.paused = True
            self._do(SubscriptionChanged(chat, "paused"))
            return
        end = answer.get("seq")
        if (
            whole
            and answer.get("more") is True
            and topic.position is not None
            and answer.get("epoch") == topic.position.epoch
            and isinstance(end, int)
            and end > topic.position.seq
        ):
            topic.position = Position(topic.position.epoch, end)  # nothing up to there is for this client
        else:
            topic.paging = False
        self._want(chat, now)

    def _fill(self, topic: Topic, chat: Id, now: float) -> None:
        """Ask again from the last position. Messages that arrive meanwhile are ignored, because the answer includes them."""
        if topic.progress:
            topic.progress = False
            self._want(chat, now)
        else:
            self._retry(topic, chat, now)

    def _retry(self, topic: Topic, chat: Id, now: float) -> float:
        delay = topic.backoff.next()
        self._retries[chat] = now + delay
        return delay

    def _refuse(self, state: str, chat: Id, refusal: Refusal, delay: float | None = None) -> None:
        self._do(SubscriptionChanged(chat, state, delay=delay, code=refusal.code, message=refusal.message))
