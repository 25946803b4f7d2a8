"""The API's queries about messages and users: history, and presence on all nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType
from twisted.internet.defer import Deferred

from notify import ids, topics
from notify.core.pages import newest
from notify.http.answers import REF, Answer, answer, bad_request, topic_of
from notify.http.keys import permit
from notify.http.request import Request
from notify.identity import Presence
from notify.ids import INT64_MAX, Id
from notify.interfaces import IBroker, IRegistry, pages_of
from notify.messages import ChatEvent, ChatMessage, Earlier, Message, Notification, Position, Replayed
from notify.topics import Topic

#: the most messages, and bytes of messages, in one answer of the history
MAX_HISTORY, MAX_HISTORY_BYTES = 1000, 4 * 2**20
DEFAULT_HISTORY = 100

#: the value of ``before`` for the newest messages
NEWEST = "newest"

_EVENT = Meta(
    extra_json_schema={
        "anyOf": [{"$ref": REF.format(name=kind.__name__)} for kind in (ChatMessage, ChatEvent, Notification)]
    }
)

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
SINCE = re.compile(r"([!-~]{1,64}):(0|[1-9][0-9]{0,18})", re.ASCII)


class HistoryItem(Struct, frozen=True):
    """A message with its position; the payload is as it was published."""

    epoch: str
    seq: int
    # msgspec cannot describe a union of untagged types, so the schema is given here.
    payload: Annotated[Any, _EVENT]


class History(Struct, frozen=True):
    """Messages, oldest first.

    ``next`` is the ``since`` for the messages that follow; null if none is known. ``complete`` is false if there were more
    messages than one answer carries. ``previous``, only in answers to ``before``, is the ``before`` for older messages; null if
    nothing is kept.
    """

    subject: str
    messages: list[HistoryItem]
    next: str | None
    complete: bool
    previous: str | UnsetType | None = UNSET


class TopicPosition(Struct, frozen=True):
    """The newest position of a subject. A client whose state is loaded after this answer, and which subscribes with it as ``since``, misses nothing."""

    subject: str
    epoch: str
    seq: int


class PresenceAnswer(Struct, frozen=True):
    """The users who are connected and subscribed to a chat, on any node."""

    workspace_id: Id
    chat_id: Id
    users: list[Presence]


def integer(parameters: Mapping[str, str], name: str, low: int, high: int, default: int) -> int:
    """The integer parameter ``name``, from ``low`` to ``high``. Raises :class:`~notify.http.answers.Refused`."""
    if name not in parameters:
        return default
    text = parameters[name]
    if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
        raise bad_request(f"the query parameter '{name}' must be an integer from {low} to {high}")
    return int(text)


def identifier(parameters: Mapping[str, str], name: str) -> Id:
    """The id in the parameter ``name``. Raises :class:`~notify.http.answers.Refused`."""
    try:
        return ids.parse(parameters[name])
    except ValueError as error:
        raise bad_request(f"the query parameter '{name}' is wrong: {error}") from None


def position(
    parameters: Mapping[str, str], name: str = "since", besides: str | None = None
) -> Position | None:
    """The position in a parameter, written ``epoch:seq``; None if it is absent or has the value ``besides``."""
    text = parameters.get(name)
    if text is None or text == besides:
        return None
    match = SINCE.fullmatch(text)
    if match is None or int(match[2]) > INT64_MAX:
        also = f", or '{besides}'" if besides else ""
        raise bad_request(f"the query parameter '{name}' must be a position, written epoch:seq{also}")
    return Position(match[1], int(match[2]))


class HistoryReader:
    """``GET /v1/history``: messages after ``since`` or from the oldest stored one, or the last ``before`` a position."""

    def __init__(self, broker: IBroker) -> None:
        self._broker = broker

    def __call__(self, request: Request) -> Deferred[Answer]:
        """Errback :class:`~notify.errors.HistoryLost`, :class:`~notify.errors.Unavailable`, :class:`~notify.errors.Unsupported`."""
        parameters = request.parameters(["subject"], ["since", "before", "limit"])
        topic = topic_of(parameters["subject"])
        permit(request.key, topic.workspace_id)
        since = position(parameters)
        before = position(parameters, "before", NEWEST)
        limit = integer(parameters, "limit", 1, MAX_HISTORY, DEFAULT_HISTORY)
        if "before" in parameters:
            if since is not None:
                raise bad_request("the query parameters 'since' and 'before' cannot be used together")
            return self._before(topic, before, limit)
        replayed = self._broker.replay(topic, since, limit, MAX_HISTORY_BYTES)
        return replayed.addCallback(self._answer, topic, since)

    def _before(self, topic: Topic, before: Position | None, limit: int) -> Deferred[Answer]:
        if before is None:
            page = Deferred.fromCoroutine(newest(self._broker, topic, limit, MAX_HISTORY_BYTES))
        else:
            page = pages_of(self._broker).earlier(topic, before, limit, MAX_HISTORY_BYTES)
        return page.addCallback(self._answer_before, topic, before)

    @staticmethod
    def _answer(replayed: Replayed, topic: Topic, since: Position | None) -> Answer:
        last = replayed.reached or (replayed.messages[-1].position if replayed.messages else since)
        following = None if last is None else f"{last.epoch}:{last.seq}"
        return answer(History(topic.subject, _items(replayed.messages), following, not replayed.more))

    @staticmethod
    def _answer_before(page: Earlier, topic: Topic, before: Position | None) -> Answer:
        # A topic without messages also has a newest position, which may be 0.
        following = f"{page.epoch}:{page.last}" if page.last or before is None else None
        older = f"{page.epoch}:{page.first}" if page.first else None
        return answer(History(topic.subject, _items(page.messages), following, not page.more, older))


def _items(messages: list[Message]) -> list[HistoryItem]:
    return [HistoryItem(one.position.epoch, one.position.seq, one.event) for one in messages]


class PositionReader:
    """``GET /v1/position``: a topic's newest position, whether anybody follows the topic or not."""

    def __init__(self, broker: IBroker) -> None:
        self._broker = broker

    def __call__(self, request: Request) -> Deferred[Answer]:
        """Errback :class:`~notify.errors.Unavailable`. Raises :class:`~notify.errors.Unsupported`."""
        topic = topic_of(request.parameters(["subject"])["subject"])
        permit(request.key, topic.workspace_id)
        newest = pages_of(self._broker).newest(topic)
        return newest.addCallback(lambda at: answer(TopicPosition(topic.subject, at.epoch, at.seq)))


class PresenceReader:
    """``GET /v1/presence``: who is in a chat, on any node."""

    def __init__(self, registry: IRegistry) -> None:
        self._registry = registry

    def __call__(self, request: Request) -> Deferred[Answer]:
        """Errback :class:`~notify.errors.Unavailable`."""
        parameters = request.parameters(["workspace_id", "chat_id"])
        workspace_id, chat_id = identifier(parameters, "workspace_id"), identifier(parameters, "chat_id")
        permit(request.key, workspace_id)
        present = self._registry.presence(topics.chat(workspace_id, chat_id))
        return present.addCallback(lambda users: answer(PresenceAnswer(workspace_id, chat_id, users)))
