"""One connection to a NATS cluster that is always re-established.

nats-py's own reconnecting is switched off: it keeps half-dead clients, buffers what it cannot send, gives up on error texts that
it does not know, and closes for good when its attempts run out. Here a client that ends for whatever reason is thrown away, and a
new one is created with the next server, without limit. ``up`` tells the owner that all server-side state of the old client is gone.

Requests and their replies are those of :mod:`notify.nats.asking`. Subscriptions also use raw header blocks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import Random
from typing import Any
from urllib.parse import urlsplit

import nats.errors
from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from notify.errors import StartError, Unavailable
from notify.nats import headers
from notify.nats.asking import Asking
from notify.nats.bridge import as_deferred
from notify.nats.client import Handler, RawClient, command, missing_permission, words_of
from notify.nats.dial import INBOX, dial, redacted
from notify.nats.settings import NATSSettings

_BACKOFF = (0.05, 2.0)  # seconds between attempts: the first, the longest
_PROVEN = 3.0  # seconds after which a client counts as stable: the next attempt is made without delay
_COMPLAIN_EVERY = 30.0  # seconds between log lines about the same problem with the same server
_COMPLAINTS = 64  # problems that are remembered


class Subscription:
    """A subscription to a subject, renewed with each new client."""

    __slots__ = ("handler", "live", "subject")

    def __init__(self, subject: str, handler: Handler) -> None:
        self.subject = subject
        self.handler = handler
        self.live: Any = None


class Gathering:
    """A context that may be nested: ``ended`` is called when the outermost ends. ``depth`` is 0 outside of it."""

    __slots__ = ("_ended", "depth")

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        self.depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if not self.depth:
            self._ended()


class Hooks(Struct):
    """The callbacks of a connection's owner. All are called in the reactor's thread."""

    up: Callable[[], None]
    down: Callable[[str], None]
    #: a permission is missing; called with the server's words
    denied: Callable[[str], None]
    #: nats-py dropped messages because one of its queues was full
    dropped: Callable[[], None]
    #: a server of the cluster has joined or left
    changed: Callable[[], None] = lambda: None
    #: called first for a missing permission, with the server's words: returns whether it is optional and was handled
    spared: Callable[[str], bool] = lambda _: False


class Connection(Asking):
    """See the module docstring. ``reactor`` is an IReactorTime; times are in seconds."""

    log = Logger()

    def __init__(self, settings: NATSSettings, reactor: Any, random: Random, name: str) -> None:
        super().__init__(reactor, settings.request_timeout)
        self._settings = settings
        self._reactor = reactor
        self._random = random
        self._name = name
        # Shuffled, so that nodes with the same list do not all start with its first server.
        self._servers: deque[str] = deque(random.sample(settings.servers, len(settings.servers)))
        self._client: RawClient | None = None
        self._runner: Deferred[None] | None = None
        self._end = asyncio.Event()
        self._stopping = False
        self._subscriptions: set[Subscription] = set()
        self._outgoing: deque[Callable[[RawClient], Awaitable[Any]]] = deque()
        self._gathered: list[bytes] = []
        #: messages published within ``with connection.gathering:`` are written together when it ends, in the same turn of the reactor
        self.gathering = Gathering(self._write_gathered)
        self._wake = asyncio.Event()
        self._complaints: dict[tuple[str, str], float] = {}
        self._last_error = ""
        self._reason = ""
        self.hooks = Hooks(lambda: None, lambda _: None, lambda _: None, lambda: None)
        self.server = self.version = ""
        self._max_payload = 0

    @property
    def connected(self) -> bool:
        """Whether there is a client that is not known to be dead."""
        return self._client is not None

    @property
    def unsent(self) -> int:
        """The number of messages and commands that wait until the server has read earlier ones."""
        return len(self._outgoing)

    @property
    def max_payload(self) -> int:
        """The bytes that the server accepts in one message, headers included; the last known value while there is no client.

        0 before the first connection.
        """
        return self._max_payload if self._client is None else self._client.max_payload

    def start(self) -> Deferred[None]:
        """Connect, and stay connected. Errbacks ``StartError`` if no attempt can succeed; otherwise never fires."""
        self._runner = as_deferred(self._run())
        finished: Deferred[None] = Deferred()

        def ended(outcome: Any) -> None:
            if not self._stopping and not finished.called:
                finished.callback(outcome)

        self._runner.addBoth(ended)
        return finished

    async def stop(self) -> None:
        """Disconnect, and do not reconnect."""
        self._stopping = True
        self._end.set()
        if self._runner is not None:
            runner, self._runner = self._runner, None
            if self._client is None:
                runner.cancel()
            else:
                done: Deferred[None] = Deferred()
                runner.addBoth(lambda _: done.callback(None))
                await done

    def abandon(self, reason: str) -> None:
        """Drop this client, which seems alive but does not work, and connect to another server."""
        if self._client is not None:
            self._reason = reason
            self._end.set()

    # ------------------------------------------------------------------ what the users of a connection call

    def publish(
        self, subject: str, payload: bytes, reply: str = "", fields: dict[str, str] | None = None
    ) -> None:
        """Send one message. It is silently dropped while there is no client. Order is kept.

        Raises ``TooLarge`` for a message over :attr:`max_payload`, and ``ValueError`` for a subject that is empty or has spaces: for
        either the server would close the connection.
        """
        if subject.split() != [subject]:
            raise ValueError(f"{subject!r} is not a NATS subject")
        block = b"" if fields is None else headers.block(fields)
        headers.check(len(payload) + len(block), self.max_payload)
        pieces = command(subject, payload, reply, block)
        if self.gathering.depth:
            self._gathered.extend(pieces)
        else:
            self._write(pieces)

    def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """Call ``handler(subject, reply, data, block)`` for each message from now on, across all clients.

        A request made after this call reaches the server after the subscription does.
        """
        subscription = Subscription(subject, handler)
        self._subscriptions.add(subscription)
        self._send(partial(self._establish, subscription))
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription. Messages in flight may still arrive."""
        self._subscriptions.discard(subscription)

        async def withdraw(_: RawClient) -> None:
            if subscription.live is not None:
                live, subscription.live = subscription.live, None
                await live.unsubscribe()

        self._send(withdraw)

    def inbox(self) -> str:
        """Return a subject that is unique to this node, for replies that keep coming."""
        return f"{INBOX}.{self._random.getrandbits(64):016x}.own"

    def post(
        self,
        subject: str,
        payload: bytes,
        inbox: str,
        fields: dict[str, str] | None,
        failed: Callable[[Exception], None],
    ) -> None:
        """See :class:`~notify.nats.asking.Asking`."""

        async def send(client: RawClient) -> None:
            try:
                await client.publish(subject, payload, inbox, fields)
            except Exception as error:
                failed(Unavailable(f"asking NATS on {subject} failed: {words_of(error)}"))
                raise

        self._send(send)

    # ------------------------------------------------------------------ one client after the other

    async def _run(self) -> None:
        delay = _BACKOFF[0]
        while not self._stopping:
            url = self._servers[0]
            self._servers.rotate(-1)
            self._end = asyncio.Event()
            try:
                client = await self._connect(url)
            except StartError:
                raise
            except Exception as error:  # nats-py has many ways to say that it could not connect
                self._complain(url, self._last_error or str(error) or "no answer in time")
            else:
                began = self._reactor.seconds()
                try:
                    await self._serve(client, url)
                except Exception:  # nothing may keep it from connecting anew
                    self.log.failure("a connection to NATS ended with an error")
                if self._reactor.seconds() - began >= _PROVEN:
                    delay = _BACKOFF[0]
                    continue
            await self._rest(delay * self._random.uniform(0.5, 1.0))
            delay = min(delay * 2, _BACKOFF[1])

    async def _rest(self, seconds: float) -> None:
        if not self._stopping:
            rested = deferLater(self._reactor, seconds, lambda: None)
            await rested.asFuture(asyncio.get_running_loop())

    async def _connect(self, url: str) -> RawClient:
        end, self._last_error = self._end, ""

        def lame_duck() -> None:
            self._reason = "the server is shutting down (lame duck)"
            end.set()

        return await dial(self._settings, url, self._name, self._classify, end.set, lame_duck)

    async def _serve(self, client: RawClient, url: str) -> None:
        """Use one client until it ends."""
        if self._stopping:  # a cancellation is lost if it coincides with the new client
            await client.end()
            return
        end, self._wake, self._reason = self._end, asyncio.Event(), ""
        self._inbox = f"{INBOX}.{self._random.getrandbits(64):016x}.".encode()
        self._outgoing.clear()
        self._learn(client)
        self.version = client.version
        self.server = f"{redacted(url)} ({self.version})"
        client.watch(end.set)
        client.changed = lambda: self.hooks.changed()
        sender = asyncio.ensure_future(self._pump(client, end))
        try:
            client.read_directly(self._classify)
            self._client = client
            self._send(lambda c: c.subscribe_raw(f"{self._inbox.decode()}*", self._route))
            for subscription in list(self._subscriptions):
                subscription.live = None
                self._send(partial(self._establish, subscription))
            self.log.info("connected to NATS at {server}", server=self.server)
            self._complaints.clear()
            self.hooks.up()
            await end.wait()
        finally:
            self._client, self._max_payload = None, client.max_payload
            end.set()
            sender.cancel()
            self._outgoing.clear()
            reason = self._reason or self._last_error or client.ended_by or "the connection was lost"
            self.lose()
            for subscription in self._subscriptions:
                subscription.live = None
            if not self._stopping:
                self.log.warn(
                    "disconnected from NATS at {server}: {reason}", server=self.server, reason=reason
                )
                self.hooks.down(reason)
            await client.end()

    async def _pump(self, client: RawClient, end: asyncio.Event) -> None:
        wake, outgoing = self._wake, self._outgoing
        while True:
            while outgoing:
                try:
                    await outgoing.popleft()(client)
                except Exception as error:
                    if isinstance(error, OSError) or not client.is_connected:
                        self._reason = words_of(error) or "sending failed"
                        end.set()
                        return
                    self.log.failure("one message to NATS failed")  # the others go on
            if end.is_set():  # nats-py swallows a cancellation while it flushes
                return
            wake.clear()
            await wake.wait()

    def _write(self, pieces: Sequence[bytes]) -> None:
        client = self._client
        # What has left the queue, but is not written, keeps the client from writing directly.
        if client is not None and (self._outgoing or not client.write(b"".join(pieces))):
            # Joined later: each attempt to publish the same message waits with the same payload, and not with a copy.
            self._send(lambda client: client.put(b"".join(pieces)))

    def _write_gathered(self) -> None:
        if self._gathered:
            pieces, self._gathered = self._gathered, []
            self._write(pieces)

    def _send(self, action: Callable[[RawClient], Awaitable[Any]]) -> None:
        if self._client is not None:
            self._outgoing.append(action)
            self._wake.set()

    async def _establish(self, subscription: Subscription, client: RawClient) -> None:
        if subscription in self._subscriptions and subscription.live is None:
            subscription.live = await client.subscribe_raw(subscription.subject, subscription.handler)

    def _route(self, subject: bytes, reply: str, data: bytes, block: bytes) -> None:
        self.answered(subject[len(self._inbox) :], data, block)

    def _learn(self, client: RawClient) -> None:
        """Remember the cluster's other servers. Those in the configuration are never forgotten."""
        known = {urlsplit(url).netloc.rpartition("@")[2] for url in self._servers}
        template = urlsplit(self._settings.servers[0])
        userinfo, at, _ = template.netloc.rpartition("@")
        for found in client.discovered_servers:
            address = found.netloc.rpartition("@")[2]
            if address not in known and len(self._servers) < 64:
                known.add(address)
                self._servers.append(f"{template.scheme}://{userinfo}{at}{address}")

    def _classify(self, error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            self.hooks.dropped()
        elif words := missing_permission(error):
            if self.hooks.spared(words):
                return
            self.log.error("NATS refuses what notify needs: {error}", error=words)
            self.hooks.denied(words)
        else:
            self._last_error = words_of(error) or type(error).__name__

    def _complain(self, url: str, error: str) -> None:
        now = self._reactor.seconds()
        if len(self._complaints) > _COMPLAINTS:
            self._complaints.clear()
        if now - self._complaints.get((url, error), -_COMPLAIN_EVERY) >= _COMPLAIN_EVERY:
            self._complaints[url, error] = now
            self.log.warn(
                "cannot connect to NATS at {url}: {error}; trying on", url=redacted(url), error=error
            )
