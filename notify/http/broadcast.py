"""``POST /v1/broadcast``: one payload to many topics of a workspace."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct
from twisted.internet.defer import Deferred

from notify.http.answers import Answer, Refused, bad_request, too_large, topic_of
from notify.http.keys import permit
from notify.http.publish import IDEMPOTENCY_KEY, MAX_LIST, Publication, Publisher, unquoted
from notify.http.request import Request
from notify.ids import Id
from notify.messages import Poison, parse_event
from notify.topics import Kind, Topic

#: the ids that differ between subjects, by the kind of their topic
_OWN: dict[Kind, str] = {"chat": "chat_id", "user": "user_id"}
_WORKSPACE = "workspace_id"


class Broadcast(Struct, frozen=True, forbid_unknown_fields=True):
    """One payload for many subjects of one workspace. It need not name their ids: the server fills them in from each subject."""

    subjects: Annotated[list[str], Meta(min_length=1)]
    payload: dict[str, Raw]


_decode = msgspec.json.Decoder(Broadcast).decode
_id = msgspec.json.Decoder(Id).decode


class Broadcaster:
    """Publishes through a publisher. ``max_payload`` is the most bytes of one message, ``max_body`` of all together.

    A broadcast costs the broker as much as a list of as many messages, and has the bounds of one: ``MAX_LIST``
    messages, and as many bytes as the body of a list could have, although its own body is smaller.
    """

    def __init__(self, publisher: Publisher, max_payload: int, max_body: int) -> None:
        self._publisher = publisher
        self._max_payload, self._max_body = max_payload, max_body

    def __call__(self, request: Request) -> Answer | Deferred[Answer]:
        """Publish the broadcast in the request, or nothing if any part of it is invalid.

        Afterwards each subject is accepted or refused on its own, all are handed to the broker in order, and the
        answer is that of a list.
        """
        request.parameters([])  # refuses all parameters, so that nobody believes in atomic=true here
        key = request.text_header("Idempotency-Key", IDEMPOTENCY_KEY, "1 to 128 visible ASCII characters")
        try:
            body = _decode(request.body)
        except msgspec.ValidationError as error:
            raise bad_request(f"the body is not a valid broadcast: {unquoted(error, Broadcast)}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise bad_request("the body is not valid JSON in UTF-8") from None
        if len(body.subjects) > MAX_LIST:
            raise too_large(f"a broadcast may have at most {MAX_LIST} subjects")
        topics = [topic_of(subject) for subject in body.subjects]
        if len({topic.workspace_id for topic in topics}) > 1:
            raise bad_request("all subjects of a broadcast must be of one workspace")
        permit(request.key, topics[0].workspace_id)
        if len(set(topics)) < len(topics):
            raise bad_request("each subject of a broadcast may be listed only once")
        payloads = self._payloads(topics, body.payload)
        messages = [Publication(s, Raw(p)) for s, p in zip(body.subjects, payloads, strict=True)]
        # The broker scopes a key to its topic, so a repeat may list the subjects in another order.
        mine = None if key is None else f"{key}:*"
        return self._publisher.together(messages, [mine] * len(messages), request)

    def _payloads(self, topics: Sequence[Topic], fields: dict[str, Raw]) -> list[bytes]:
        """The payload for each topic. Raises :class:`Refused` if one is invalid or too large."""
        for kind in {topic.kind for topic in topics}:
            _check_named([topic for topic in topics if topic.kind == kind], fields)
        rest = {kind: _without(fields, (_WORKSPACE, own)) for kind, own in _OWN.items()}
        payloads, judged = [], set[Kind]()
        for topic in topics:
            ids = msgspec.json.encode({_WORKSPACE: topic.workspace_id, _OWN[topic.kind]: topic.id})
            payload = ids[:-1] + rest[topic.kind]
            if topic.kind not in judged:  # what is valid for one is valid for all of its kind
                judged.add(topic.kind)
                _judge(topic, payload)
            payloads.append(payload)
        if max(map(len, payloads)) > self._max_payload:
            raise too_large(f"a payload may have at most {self._max_payload} bytes")
        if sum(map(len, payloads)) > self._max_body:
            raise too_large(f"the payloads of a broadcast may have at most {self._max_body} bytes together")
        return payloads


def _check_named(topics: Sequence[Topic], fields: dict[str, Raw]) -> None:
    """Check that ids in the payload equal those of all subjects."""
    own = _OWN[topics[0].kind]
    for name, wanted in ((_WORKSPACE, {topics[0].workspace_id}), (own, {topic.id for topic in topics})):
        if name in fields and wanted != {_read(fields[name])}:
            raise _invalid(f"the payload has a {name} that differs from that of a subject; leave it out")


def _read(value: Raw) -> Id | None:
    try:
        id: Id = _id(value)
        return id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _without(fields: dict[str, Raw], names: tuple[str, ...]) -> bytes:
    """The end of a JSON object whose start is added later: the fields, except those with these names."""
    rest = msgspec.json.encode({name: value for name, value in fields.items() if name not in names})
    return rest[1:] if rest == b"{}" else b"," + rest[1:]


def _judge(topic: Topic, payload: bytes) -> None:
    try:
        parse_event(topic, payload)
    except Poison as poison:
        raise _invalid(str(poison)) from None


def _invalid(message: str) -> Refused:
    return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_message", message)
