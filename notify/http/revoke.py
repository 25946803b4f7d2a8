"""``POST /v1/revoke``: a user's tokens of before a time are good no more, on any node."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from msgspec import Meta, Struct
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from notify.core.hub import Hub
from notify.core.revocations import Revocation
from notify.core.steering import Count
from notify.errors import Unavailable
from notify.http.answers import Answer, Refused, answer, bad_request
from notify.http.cluster import Cluster, Reached
from notify.http.commands import by, read
from notify.http.keys import permit
from notify.http.request import Request
from notify.ids import Id
from notify.interfaces import IControl
from notify.observe import logging

audit = Logger(logging.AUDIT)


class Revoke(Struct, frozen=True, forbid_unknown_fields=True):
    """The user whose tokens to revoke: those issued before ``before``, a Unix time in seconds that is not in the future; without it, before now."""

    workspace_id: Id
    user_id: Id
    before: Annotated[float, Meta(ge=0)] | None = None


class Revoked(Struct, frozen=True):
    """How many connections were told to close, on all nodes; the tokens are refused until ``until`` (Unix time in seconds).

    ``kept``: nodes that start later also learn of it; if false, it holds until this process ends.
    """

    closed: int
    before: float
    until: float
    kept: bool
    reached: Reached


class Revoker:
    """See the module. ``hub`` is this node's."""

    def __init__(self, control: IControl, hub: Hub) -> None:
        self._control = control
        self._cluster = Cluster(control)
        self._hub = hub

    def __call__(self, request: Request) -> Deferred[Answer]:
        """Closes with 4002, after which a client comes with a new token. 503 where it could not be kept: repeat it then."""
        what = read(request, Revoke, "two ids, workspace_id and user_id, and perhaps before, a time")
        permit(request.key, what.workspace_id)
        hub, now = self._hub, self._hub.now()
        before = now if what.before is None else what.before
        if before > now:
            raise bad_request("before is in the future: it is Unix time in seconds, and now without it")
        wanted = Revocation(what.workspace_id, what.user_id, before, now + hub.live.now.limits.token_age)
        if not hub.revocations.has_room(wanted):
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too_many_revocations",
                "as many users' tokens are revoked as there is room for; nothing was done",
                {b"Retry-After": b"60"},
            )
        audit.info(
            "API key {key} from {peer}, request {request}: revoke tokens of user {user} of workspace {workspace} before {before}",
            **by(request),
            user=what.user_id,
            workspace=what.workspace_id,
            before=before,
        )
        revocation = hub.revocations.with_known(wanted)
        return Deferred.fromCoroutine(self._revoke(revocation))

    async def _revoke(self, revocation: Revocation) -> Answer:
        # At once, for it is quick; the nodes that are not reached, or start now, hear of what is kept.
        telling = self._cluster.ask("revoke", revocation, Count)
        problem, kept = "", False
        try:
            kept = await self._control.keep(revocation.key, revocation.over, revocation.until)
        except Unavailable as error:
            problem = str(error)
        told = await telling
        closed = sum(one.count for _, one in told.answers)
        if problem:
            missing = f", not on {', '.join(told.reached.missing)}" if told.reached.missing else ""
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "not_kept",
                f"the tokens are refused, and {closed} connections closed, on {told.reached.answered} nodes{missing}; but it "
                f"could not be kept ({problem}), and a node that was not reached, or starts, takes them: repeat the request",
                {b"Retry-After": b"1"},
            )
        return answer(Revoked(closed, revocation.before, revocation.until, kept, told.reached))
