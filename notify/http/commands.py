"""What the API can tell the server to do: send a user away, or leave."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

import msgspec
from msgspec import Struct
from twisted.logger import Logger

from notify.http.answers import Answer, answer, bad_request
from notify.http.keys import permit
from notify.http.request import Request
from notify.ids import Id
from notify.observe import logging

#: who told the server to do what: neither sampled nor left out at a higher level
audit = Logger(logging.AUDIT)


class Disconnect(Struct, frozen=True, forbid_unknown_fields=True):
    """Whom to disconnect."""

    workspace_id: Id
    user_id: Id


class Disconnected(Struct, frozen=True):
    """How many connections of this node were told to close."""

    closed: int


class Draining(Struct, frozen=True):
    """The server leaves."""

    draining: bool = True


_decode = msgspec.json.Decoder(Disconnect).decode


def _by(request: Request) -> dict[str, str]:
    return {"key": request.key.name, "peer": request.peer, "request": request.request_id}


class Disconnector:
    """``POST /v1/disconnect``: closes a user's connections on this node."""

    def __init__(self, disconnect: Callable[[Id, Id], int]) -> None:
        """``disconnect(workspace_id, user_id)`` closes them, and says how many there were."""
        self._disconnect = disconnect

    def __call__(self, request: Request) -> Answer:
        """Closes with 4503, after which a client does not come back by itself."""
        try:
            whom = _decode(request.body)
        except msgspec.ValidationError:
            raise bad_request("the body must be an object of two ids, workspace_id and user_id") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise bad_request("the body is not valid JSON in UTF-8") from None
        permit(request.key, whom.workspace_id)
        closed = self._disconnect(whom.workspace_id, whom.user_id)
        audit.info(
            "API key {key} from {peer}, request {request}: disconnect user {user} of workspace {workspace}: {closed} closed",
            **_by(request),
            user=whom.user_id,
            workspace=whom.workspace_id,
            closed=closed,
        )
        return answer(Disconnected(closed))


class Drainer:
    """``POST /v1/drain``: starts the drain, and is harmless when it runs already."""

    def __init__(self, drain: Callable[[], object]) -> None:
        self._drain = drain

    def __call__(self, request: Request) -> Answer:
        """Answers as soon as the drain has begun."""
        permit(request.key, None)
        audit.info("API key {key} from {peer}, request {request}: drain", **_by(request))
        self._drain()
        return answer(Draining(), HTTPStatus.ACCEPTED)
