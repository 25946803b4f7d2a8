"""One client of one server for a few requests from outside (``notify doctor``). It neither retries nor reconnects."""

from __future__ import annotations

import nats.errors

from notify.errors import Unavailable
from notify.nats.asking import NoResponders
from notify.nats.client import RawClient, missing_permission, words_of
from notify.nats.dial import dial
from notify.nats.settings import NATSSettings


class Probe:
    """See the module docstring. For coroutines on an asyncio loop."""

    def __init__(self, settings: NATSSettings, url: str, name: str) -> None:
        self._settings = settings
        self._url = url
        self._name = name
        self._client: RawClient
        #: the permissions found to be missing so far, in the server's words
        self.denied: list[str] = []

    async def connect(self) -> str:
        """Log in. Returns the server's version. Raises ``StartError``, and ``Unavailable`` with the reason."""
        try:
            self._client = await dial(self._settings, self._url, self._name, self._failed)
        except (OSError, nats.errors.Error, TimeoutError, ValueError) as error:
            raise Unavailable(words_of(error) or "no answer in time") from None
        self._client.read_directly(self._failed)  # nats-py would report subjects in lower case
        return self._client.version

    async def request(
        self, subject: str, payload: bytes, timeout: float, fields: dict[str, str] | None = None
    ) -> bytes:
        """Send one request and return its reply's payload. Raises ``Unavailable``, or ``NoResponders`` if nobody listens."""
        try:
            reply = await self._client.request(subject, payload, timeout=timeout, headers=fields)
        except nats.errors.NoRespondersError:
            raise NoResponders(f"nobody answers on {subject}") from None
        except (nats.errors.Error, TimeoutError) as error:
            raise Unavailable(words_of(error)) from None
        return bytes(reply.data)

    async def subscribe(self, subject: str) -> None:
        """Subscribe to a subject to learn whether that is permitted. Messages are dropped."""
        await self._client.subscribe(subject)

    async def publish(self, subject: str, payload: bytes, fields: dict[str, str]) -> None:
        """Send one message to learn whether that is permitted."""
        await self._client.publish(subject, payload, headers=fields)

    async def settle(self) -> None:
        """Wait until the server has responded to everything that was sent, for at most four seconds."""
        try:
            for _ in range(2):  # nats-py's first ping overtakes what its client has not written yet
                await self._client.flush(2)
        except (nats.errors.Error, TimeoutError):
            pass

    def sever(self) -> None:
        """Drop the connection."""
        self._client.sever()

    def _failed(self, error: Exception) -> None:
        if words := missing_permission(error):
            self.denied.append(words)
