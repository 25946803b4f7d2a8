"""Authentication: ``auth`` and ``refresh`` (docs/protocol.md, section 1), and how long a token is valid."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET
from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify import topics
from notify.core import access, chats
from notify.core.client import AUTHENTICATING, CLOSED, NEW, OPEN, Client, given, position
from notify.core.feed import Joined
from notify.core.witness import reason_of
from notify.errors import Unauthorized
from notify.identity import Identity
from notify.observe.logging import clients
from notify.topics import Topic
from notify.wire import encodings
from notify.wire.frames import ENCODED, Auth, AuthResult, Ok, Refresh

log = Logger()

#: the cost of a refresh, in messages, because some signatures take a millisecond to check. After one there is still
#: allowance for what else a client does; a client that sends one after the other waits from the second on
REFRESH_ITEMS = 900


def auth(client: Client, frame: Auth) -> Deferred[Any] | None:
    """Admit a client on its first token."""
    if client.state != NEW:
        client.error("already_authenticated", "use refresh for a new token", frame.id)
        return None
    client.state = AUTHENTICATING
    return _ask(client, frame)


def _ask(client: Client, frame: Auth) -> Deferred[Any]:
    asked = client.hub.live.now.authenticator.authenticate(frame.token, client.connection.peer)
    asked.addCallbacks(_admit, _refuse, (client, frame), {}, (client, frame))
    asked.addErrback(_cannot_admit, client, frame)
    return asked


def _admit(identity: Identity, client: Client, frame: Auth) -> Deferred[None] | None:
    hub = client.hub
    if client.state == CLOSED:
        return None
    identity = _bounded(identity, client)
    if _expired(identity, hub.now()):
        _say_refused(client, "the token has expired, or is older than [limits] token_age")
        tell(client, "refused", "the token has expired", identity=identity)
        _deny(client, frame)
        return None
    mine = topics.user(identity.workspace_id, identity.user_id)
    most = hub.live.now.limits.max_connections_per_user
    places = hub.places
    if not most or places is None:
        return _let_in(not 0 < most <= len(hub.registry.members(mine)), client, identity, frame)
    # If the authenticator has to be asked again meanwhile, the connection is removed from this set.
    hub.waiting.setdefault(mine, set()).add(client.connection)
    asked = places.room(mine, most)
    return asked.addBoth(_waited, client, mine).addCallback(_judged, client, identity, frame)


def _waited(result: bool | Failure, client: Client, mine: Topic) -> Any:
    """The registry has answered. Returns its answer, and whether the authenticator's answer still stands."""
    waiting = client.hub.waiting.get(mine, set())
    stands = client.connection in waiting
    waiting.discard(client.connection)
    if not waiting:
        client.hub.waiting.pop(mine, None)
    return result if isinstance(result, Failure) else (result, stands)


def _judged(told: tuple[bool, bool], client: Client, identity: Identity, frame: Auth) -> Deferred[Any] | None:
    room, stands = told
    if stands or client.state == CLOSED:
        return _let_in(room, client, identity, frame)
    return _ask(client, frame)


def _let_in(room: bool, client: Client, identity: Identity, frame: Auth) -> Deferred[None] | None:
    hub, connection = client.hub, client.connection
    if client.state == CLOSED:
        return None
    # Check at the moment when the client becomes a member: a later revocation finds it among the members.
    if _revoked(identity, client):
        return None
    if not room:
        hub.metrics.auth.labels("full").inc()
        clients.debug(
            "{connection} is sent away: user {user} of workspace {workspace} has as many connections as one may",
            connection=connection.id,
            user=identity.user_id,
            workspace=identity.workspace_id,
        )
        tell(client, "refused", "limits.max_connections_per_user is reached", identity=identity)
        client.close(1013, hub.retry_after())
        return None
    mine = topics.user(identity.workspace_id, identity.user_id)
    connection.identity = identity
    encoded = ENCODED & hub.features.intersection(frame.features or ())
    connection.encoding = encodings.featured(connection.encoding, encoded)
    joining = hub.dispatcher.subscribe(connection, mine, position(frame.since))
    return joining.addCallback(_admitted, client, identity, frame)


def _admitted(joined: Joined, client: Client, identity: Identity, frame: Auth) -> None:
    hub = client.hub
    if client.state == CLOSED:
        return
    client.state = OPEN
    hub.arrive(client.connection)
    hub.metrics.auth.labels("ok").inc()
    tell(client, "ok")
    _expect_refresh(client, identity)
    asked = frame.since is not None
    result = AuthResult(
        success=True,
        user_id=identity.user_id,
        connection_id=client.connection.id,
        expires_at=_expiry(identity),
        ping_interval=int(hub.live.now.limits.ping_interval),
        epoch=joined.position.epoch if asked else UNSET,
        seq=joined.position.seq if asked else UNSET,
        recovered=joined.recovered if asked else UNSET,
        features=tuple(sorted(hub.features.intersection(frame.features))) if frame.features else UNSET,
        id=given(frame.id),
    )
    client.send(result, joined.bodies)
    client.owe(joined.read)
    clients.debug(
        "{connection} is user {user} of workspace {workspace}",
        connection=client.connection.id,
        user=identity.user_id,
        workspace=identity.workspace_id,
    )


def _refuse(failure: Failure, client: Client, frame: Auth) -> None:
    if not isinstance(failure.value, Unauthorized):
        failure.raiseException()
    if client.state != CLOSED:
        _say_refused(client, str(failure.value))
        tell(client, "refused", str(failure.value), frame.token)
        _deny(client, frame)


def _say_refused(client: Client, reason: str) -> None:
    log.info(
        "{connection} from {peer} is refused: {reason}",
        connection=client.connection.id,
        peer=client.connection.peer.host,
        reason=reason,
    )


def _deny(client: Client, frame: Auth) -> None:
    client.hub.metrics.auth.labels("refused").inc()
    client.send(AuthResult(success=False, user_id=None, id=given(frame.id)))
    client.close(4500, "authentication failed")


def _cannot_admit(failure: Failure, client: Client, frame: Auth) -> None:
    """Nothing is known against the client: it may come back, possibly to another node."""
    if client.state == CLOSED:
        return
    client.hub.metrics.auth.labels("unavailable").inc()
    tell(client, "unavailable", reason_of(failure.value), frame.token)
    client.failed(failure, frame.id)
    client.close(1013, client.hub.retry_after())


def tell(
    client: Client,
    outcome: str,
    reason: str = "",
    token: str = "",
    identity: Identity | None = None,
    what: str = "auth",
) -> None:
    """Report the outcome of a token to the traces: see :meth:`~notify.core.witness.Witness.auth`."""
    witness = client.hub.witness
    if witness is not None:
        witness.auth(client.connection, outcome, reason, token, identity, what)


def refresh(client: Client, frame: Refresh) -> Deferred[Any]:
    """Replace the client's token with a new one of the same user."""
    asked = client.hub.live.now.authenticator.authenticate(frame.token, client.connection.peer)
    asked.addCallbacks(_refreshed, _not_refreshed, (client, frame), {}, (client,))
    return asked


def _refreshed(identity: Identity, client: Client, frame: Refresh) -> None:
    current = client.connection.identity
    if client.state == CLOSED:
        return
    identity = _bounded(identity, client)
    if current is None or _expired(identity, client.hub.now()) or not current.same_user(identity):
        tell(client, "refused", "the new token has expired, or is another user's", what="refresh")
        client.close(4500, "authentication failed")
        return
    if _revoked(identity, client):
        return
    client.connection.identity = identity
    tell(client, "ok", what="refresh")
    _expect_refresh(client, identity)
    if frame.id is not None:
        client.send(Ok(frame.id, _expiry(identity)))
    if identity.chats is not None:
        chats.keep(client, identity.chats)
    client.review()
    client.owe(REFRESH_ITEMS)


def _not_refreshed(failure: Failure, client: Client) -> None:
    if not isinstance(failure.value, Unauthorized):
        failure.raiseException()
    if client.state != CLOSED:
        tell(client, "refused", str(failure.value), what="refresh")
        client.close(4500, "authentication failed")


def _revoked(identity: Identity, client: Client) -> bool:
    """Whether the token is refused because the user's tokens were revoked. The client is told to bring a new one."""
    reason = client.hub.revocations.refuses(identity)
    if reason:
        client.hub.metrics.auth.labels("revoked").inc()
        log.info(
            "{connection} from {peer}, user {user} of workspace {workspace}: the token is refused: {reason}",
            connection=client.connection.id,
            peer=client.connection.peer.host,
            user=identity.user_id,
            workspace=identity.workspace_id,
            reason=reason,
        )
        tell(client, "refused", reason, identity=identity, what="refresh" if client.state == OPEN else "auth")
        client.close(access.TOKEN_EXPIRED, access.REVOKED)
    return bool(reason)


def _bounded(identity: Identity, client: Client) -> Identity:
    """The identity, which expires at the latest when its token reaches ``token_age``, or after
    ``limits.reauthenticate``.

    The latter is shortened by up to a tenth, so that not all clients expire at once.
    """
    hub = client.hub
    limits = hub.live.now.limits
    if identity.issued_at is not None:
        # A revocation is dropped by then, so a token that outlived it would be valid again.
        oldest = identity.issued_at + limits.token_age
        if identity.expires_at is None or oldest < identity.expires_at:
            identity = replace(identity, expires_at=oldest)
    longest = limits.reauthenticate
    if not longest:
        return identity
    ends, now = identity.expires_at, hub.now()
    if ends is not None and ends <= now + 0.9 * longest:
        return identity
    latest = now + longest * (0.9 + 0.1 * hub.random.random())
    return replace(identity, expires_at=latest if ends is None else min(ends, latest))


def _expect_refresh(client: Client, identity: Identity) -> None:
    expires_at = identity.expires_at
    client.expect(None if expires_at is None else max(0.0, expires_at - client.hub.now()))


def _expired(identity: Identity, now: float) -> bool:
    return identity.expires_at is not None and identity.expires_at <= now


def _expiry(identity: Identity) -> int | None:
    return None if identity.expires_at is None else int(identity.expires_at)
