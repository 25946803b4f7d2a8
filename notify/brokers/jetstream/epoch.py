"""Starts a new epoch on an operator's command (``notify new-epoch``), outside the server."""

from __future__ import annotations

from random import SystemRandom
from typing import Any

from notify.brokers.jetstream.history import History, Memory
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.brokers.jetstream.stream import Streams
from notify.errors import Unavailable
from notify.nats.asking import Reply
from notify.nats.bridge import run_alone
from notify.nats.probe import Probe
from notify.observe.metrics import Metrics

_PATIENCE = 30.0  # seconds


class _Requests:
    """The part of a connection that :class:`History` needs, on top of a :class:`Probe`."""

    def __init__(self, probe: Probe, patience: float) -> None:
        self._probe = probe
        self._patience = patience

    async def request(
        self, subject: str, payload: bytes, timeout: float | None = None, fields: dict[str, str] | None = None
    ) -> Any:
        return Reply(await self._probe.request(subject, payload, timeout or self._patience, fields), b"")


def new_epoch(settings: JetStreamSettings) -> str:
    """Start a new epoch for the stream as it is, and return its name. Raises ``StartError``, ``Unavailable``."""
    settings.check()
    try:
        return run_alone(_new_epoch(settings), _PATIENCE)
    except TimeoutError:
        raise Unavailable("no answer in time") from None


async def _new_epoch(settings: JetStreamSettings) -> str:
    problem = Unavailable("no server is configured")
    for url in settings.servers:
        probe = Probe(settings, url, "notify new-epoch")
        try:
            await probe.connect()
        except Unavailable as error:
            problem = Unavailable(f"NATS at {url.rpartition('@')[2]} cannot be reached: {error}")
            continue
        try:
            requests: Any = _Requests(probe, max(2.0, settings.request_timeout))
            random = SystemRandom()
            streams = Streams(settings, requests, random, lambda: "")
            memory = Memory(None, None)
            history = History(streams, requests, settings.dead_letter_stream, random, memory, Metrics())
            return (await history.renew(await streams.look())).epoch
        finally:
            probe.sever()
    raise problem
