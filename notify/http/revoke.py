"""``POST /v1/revoke``: invalidates a user's tokens from before a certain time, on all nodes."""

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
    """Which tokens: those of a user issued before ``before``, Unix time in seconds, not in the future; default: now."""

    workspace_id: Id
    user_id: Id
    before: Annotated[float, Meta(ge=0)] | None = None


class Revoked(Struct, frozen=True):
    """The number of connections told to close, on all nodes.

    The tokens are refused until ``until`` (Unix time in seconds). ``kept``: nodes that start later refuse them as
    well; false: only until this process ends.
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
        """Closes with 4002, after which a client brings a new token. 503: the record could not be kept; repeat it."""
        what = read(request, Revoke, "two ids, workspace_id and user_id, and optionally before, a time")
        permit(request.key, what.workspace_id)
        hub, now = self._hub, self._hub.now()
        before = now if what.before is None else what.before
        if before > now:
            raise bad_request(
                "before is in the future: give Unix time in seconds, or leave it out to mean now"
            )
        wanted = Revocation(what.workspace_id, what.user_id, before, now + hub.live.now.limits.token_age)
        if not hub.revocations.has_room(wanted):
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too_many_revocations",
                "the limit on revoked users is reached and nothing was done; try again later",
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
        # Ask the nodes immediately, which is quick. Nodes that are unreachable, or start now, learn it from the
        # record.
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
                f"could not be stored ({problem}), and nodes that were not reached, or that start later, accept them: repeat the request",
                {b"Retry-After": b"1"},
            )
        return answer(Revoked(closed, revocation.before, revocation.until, kept, told.reached))
