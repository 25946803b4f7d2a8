"""The source of keys and their rotation: a fixed set, a file that is read again when it changes, or a URL."""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random
from typing import Protocol

from prometheus_client import Counter
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from notify.auth.http import Client
from notify.auth.keys import Keys, UnusableKey
from notify.auth.sharing import Shared
from notify.errors import StartError, Unauthorized, Unavailable

#: parses the bytes of a file or URL. Raises UnusableKey
Reader = Callable[[bytes], Keys]

MOST_BYTES = 256 * 1024
_MOST_ASKED = 1000


class KeySource(Protocol):
    """The currently valid keys, and a way to look for a key that is not among them."""

    def start(self) -> Deferred[None]:
        """Get ready."""

    def keys(self) -> Keys:
        """The keys known now, without waiting."""

    def look(self, key_id: str | None) -> Deferred[None]:
        """Fires once :meth:`keys` is as up to date as possible, if it might then have a key with this id.

        Errback :class:`Unauthorized`: there is no such key. :class:`Unavailable`: unknown at present.
        """

    def stop(self) -> Deferred[None]:
        """Release the resources that :meth:`start` acquired."""


_NO_SUCH_KEY = "no known key may have signed the token"
_LATER = "the token's key is not known yet; it is looked for soon"


class FixedKeys:
    """Keys given in the configuration."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def start(self) -> Deferred[None]:
        """See :class:`KeySource`."""
        return succeed(None)

    def keys(self) -> Keys:
        """See :class:`KeySource`."""
        return self._keys

    def look(self, key_id: str | None) -> Deferred[None]:
        """See :class:`KeySource`. There is nowhere to look."""
        return fail(Unauthorized(_NO_SUCH_KEY))

    def stop(self) -> Deferred[None]:
        """See :class:`KeySource`."""
        return succeed(None)


class FileKeys(FixedKeys):
    """A small local file. While in use it is checked once a second, and read again when it has changed.

    If the file is missing or unusable at start, that is a :class:`StartError`. Later the old keys stay in use, and the problem is logged once.
    """

    log = Logger()

    def __init__(self, path: str, key: str, read: Reader, clock: IReactorTime) -> None:
        self._path, self._key, self._read, self._clock = path, key, read, clock
        self._looked = clock.seconds()
        try:
            self._seen: object = self._version()
            super().__init__(self._load())
        except OSError as error:
            raise StartError(f"'{key}' {path} cannot be read: {error.strerror}.") from None
        except UnusableKey as error:
            raise StartError(f"'{key}' {path} {error}.") from None

    def keys(self) -> Keys:
        """See :class:`KeySource`."""
        now = self._clock.seconds()
        if now - self._looked >= 1:
            self._looked = now
            self._look_again()
        return self._keys

    def _version(self) -> object:
        status = os.stat(self._path)
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _load(self) -> Keys:
        with open(self._path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UnusableKey(f"is longer than {MOST_BYTES} bytes")
        return self._read(data)

    def _look_again(self) -> None:
        seen: object = None
        try:
            seen = self._version()
            if seen != self._seen:
                self._keys = self._load()
                self.log.info("{key}: read again, as {path} has changed", key=self._key, path=self._path)
        except (OSError, UnusableKey) as error:
            if seen != self._seen:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                self.log.error(
                    "{key}: the keys stay as they were, for {path} {reason}",
                    key=self._key,
                    path=self._path,
                    reason=reason,
                )
        self._seen = seen


class URLKeys:
    """A JWK Set at a URL. It is fetched at start, every ``refresh`` seconds, and for an unknown key id.

    Fetches always begin at least ``cooldown`` seconds apart. While the URL is unreachable, the fetched keys stay valid for ``most_age``
    seconds from the last successful fetch. A set without a usable key means that there are no keys. A token with an unknown key id is
    refused only if a fetch that began after the id was first named does not have it; until then its client is told to retry. So neither
    a made-up id nor a rotation just after a fetch permanently rejects a valid client.
    """

    log = Logger()

    def __init__(
        self,
        url: str,
        client: Client,
        read: Reader,
        clock: IReactorTime,
        random: Random,
        refresh: float,
        cooldown: float,
        most_age: float,
        fetches: Counter,
    ) -> None:
        self.url = url
        self._client, self._read, self._clock = client, read, clock
        self._random, self._refresh, self._cooldown, self._fetches = random, refresh, cooldown, fetches
        self._most_age = most_age
        self._fetched: Keys | None = None
        self._body: bytes | None = None  # the source of the keys
        self._fetched_at = float("-inf")
        self._asked: set[str] = set()  # ids named since the last fetch began
        self._absent: set[str] = set()  # ids that the last fetch was made for but did not contain
        self._fetch: Shared[None] | None = None
        self._next: IDelayedCall | None = None
        self._began = float("-inf")
        self._failing = False
        self._stopped = False

    def take_over(self, before: URLKeys) -> None:
        """Start with the keys that ``before`` fetched from the same URL, parsed again. Call it before :meth:`start`."""
        if before._body is not None:
            self._body, self._fetched_at = before._body, before._fetched_at
            self._fetched = self._read(before._body)

    @property
    def _keys(self) -> Keys | None:
        """The keys; None if they are not known yet, or have become too old."""
        if self._clock.seconds() - self._fetched_at > self._most_age:
            return None
        return self._fetched

    def start(self) -> Deferred[None]:
        """Fetch for the first time. An unreachable URL is retried, and does not prevent the start."""
        return self._fetch_now()

    def keys(self) -> Keys:
        """See :class:`KeySource`."""
        return self._keys or Keys([])

    def look(self, key_id: str | None) -> Deferred[None]:
        """See :class:`KeySource`."""
        if self._stopped:
            return fail(Unavailable("the server is stopping"))
        if self._keys is not None and (key_id is None or self._has(key_id)):
            return fail(Unauthorized(_NO_SUCH_KEY))
        if key_id is not None and len(self._asked) < _MOST_ASKED:
            self._asked.add(key_id)
        if self._fetch is not None and not self._fetch.done:
            return self._fetch.wait().addCallback(self._judge, key_id)
        wait = self._began + self._cooldown - self._clock.seconds()
        if wait <= 0:
            return self._fetch_now().addCallback(self._judge, key_id)
        if key_id in self._absent and not self._failing:
            return fail(Unauthorized(_NO_SUCH_KEY))
        self._schedule(wait)
        return fail(Unavailable(_LATER))

    def stop(self) -> Deferred[None]:
        """Stop fetching."""
        self._stopped = True
        if self._next is not None and self._next.active():
            self._next.cancel()
        return self._client.close()

    def _has(self, key_id: str) -> bool:
        return any(key.id == key_id for key in self.keys().all)

    def _judge(self, _: None, key_id: str | None) -> None:
        """What a fetch that a caller waited for says about a key id. The fetch may have begun before the id was named."""
        if self._keys is None or self._failing:
            raise Unavailable("the keys cannot be fetched now")
        if key_id is not None and not self._has(key_id) and key_id not in self._absent:
            self._schedule(self._began + self._cooldown - self._clock.seconds())
            raise Unavailable(_LATER)

    def _schedule(self, wait: float) -> None:
        """Fetch in ``wait`` seconds, or earlier if that is already scheduled."""
        if self._stopped:
            return
        if self._next is not None and self._next.active():
            if self._next.getTime() <= self._clock.seconds() + wait:
                return
            self._next.cancel()
        self._next = self._clock.callLater(max(wait, 0), self._fetch_now)

    def _fetch_now(self) -> Deferred[None]:
        if self._next is not None and self._next.active():
            self._next.cancel()
        self._began = self._clock.seconds()
        asked, self._asked = self._asked, set()
        self._fetch = Shared(Deferred.fromCoroutine(self._fetch_once(asked)))
        return self._fetch.wait()

    async def _fetch_once(self, asked: set[str]) -> None:
        try:
            answer = await self._client.request("GET", self.url)
            if answer.status != 200:
                raise Unavailable(f"it answered with status {answer.status}")
            self._fetched, self._body = self._read(answer.body), answer.body
        except (Unavailable, UnusableKey) as error:
            self._failing = True
            self._fetches.labels("failed").inc()
            reason = f"what it gives {error}" if isinstance(error, UnusableKey) else str(error)
            self.log.error(
                "jwks_url {url}: {reason}; {state}",
                url=self.url,
                reason=reason,
                state="no token can be verified" if self._keys is None else "the keys known so far stay good",
            )
        else:
            self._failing = False
            self._fetched_at = self._clock.seconds()
            self._fetches.labels("ok").inc()
            self._absent = asked - {key.id for key in self._fetched.all if key.id is not None}
        spread = 0.9 + 0.2 * self._random.random()
        self._schedule(self._cooldown if self._failing else max(self._refresh * spread, self._cooldown))
