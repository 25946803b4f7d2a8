"""One instance of a service as NATS's tools see it (``nats micro``): what it answers to their questions.

The rules are NATS's ADR-32. No I/O in here.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

_VERBS = ("PING", "INFO", "STATS")


class Endpoint(Struct):
    """One thing that can be asked of a service, and how often it was. Times are nanoseconds."""

    name: str
    subject: str
    requests: int = 0
    errors: int = 0
    time: int = 0
    last_error: str = ""

    def served(self, nanoseconds: int, error: str = "") -> None:
        """It was asked once more."""
        self.requests += 1
        self.time += nanoseconds
        if error:
            self.errors += 1
            self.last_error = error


class Service:
    """``id`` is the instance's own, ``started`` Unix time; every instance answers every request, so there is no queue group."""

    def __init__(
        self, name: str, id: str, version: str, about: str, metadata: dict[str, str], endpoints: Iterable[Endpoint], started: float
    ) -> None:  # fmt: skip
        self.endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self._about = about
        self._started = datetime.fromtimestamp(started, UTC).isoformat().replace("+00:00", "Z")
        self._who: dict[str, Any] = {"name": name, "id": id, "version": version, "metadata": metadata}

    def subjects(self) -> dict[str, str]:
        """The subjects to hear questions on, and the verb of each, which :meth:`answer` takes."""
        name, id = self._who["name"], self._who["id"]
        return {
            subject: verb
            for verb in _VERBS
            for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{name}", f"$SRV.{verb}.{name}.{id}")
        }

    def answer(self, verb: str) -> bytes:
        """The answer to a question."""
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
