"""One instance of a service as seen by NATS's tools (``nats micro``): the answers to their requests.

The rules are those of NATS's ADR-32. No I/O here.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

_VERBS = ("PING", "INFO", "STATS")


class Endpoint(Struct):
    """One endpoint of a service, and how often it was called. Times are in nanoseconds."""

    name: str
    subject: str
    requests: int = 0
    errors: int = 0
    time: int = 0
    last_error: str = ""

    def served(self, nanoseconds: int, error: str = "") -> None:
        """Count one more call."""
        self.requests += 1
        self.time += nanoseconds
        if error:
            self.errors += 1
            self.last_error = error


class Service:
    """``id`` identifies the instance; ``started`` is Unix time. Every instance answers every request, so there is no queue group."""

    def __init__(
        self, name: str, id: str, version: str, about: str, metadata: dict[str, str], endpoints: Iterable[Endpoint], started: float
    ) -> None:  # fmt: skip
        self.endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self._about = about
        self._started = datetime.fromtimestamp(started, UTC).isoformat().replace("+00:00", "Z")
        self._who: dict[str, Any] = {"name": name, "id": id, "version": version, "metadata": metadata}

    def subjects(self) -> dict[str, str]:
        """The subjects to subscribe to, and for each the verb that :meth:`answer` takes."""
        name, id = self._who["name"], self._who["id"]
        return {
            subject: verb
            for verb in _VERBS
            for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{name}", f"$SRV.{verb}.{name}.{id}")
        }

    def answer(self, verb: str) -> bytes:
        """The answer to a request."""
        kind = {"type": f"io.nats.micro.v1.{verb.lower()}_response"}
        about: dict[str, Any] = {}
        if verb == "INFO":
            about = {
                "description": self._about,
                "endpoints": [_named(one) for one in self.endpoints.values()],
            }
        elif verb == "STATS":
            about = {
                "started": self._started,
                "endpoints": [_counted(one) for one in self.endpoints.values()],
            }
        return msgspec.json.encode({**kind, **self._who, **about})


def _named(one: Endpoint) -> dict[str, Any]:
    return {"name": one.name, "subject": one.subject, "queue_group": "", "metadata": {}}


def _counted(one: Endpoint) -> dict[str, Any]:
    return {
        "name": one.name,
        "subject": one.subject,
        "queue_group": "",
        "num_requests": one.requests,
        "num_errors": one.errors,
        "last_error": one.last_error,
        "processing_time": one.time,
        "average_processing_time": one.time // one.requests if one.requests else 0,
    }
