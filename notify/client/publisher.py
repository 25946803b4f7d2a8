"""Publishes over HTTP, synchronously, on the standard library: for backends of any kind."""

from __future__ import annotations

import http.client
import json
import random
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from notify.client.actions import Id, Position

#: statuses after which the same request, with the same key, may succeed
RETRIED = frozenset(
    (
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    )
)
#: messages and bytes in one request
BATCH, BATCH_BYTES = 500, 512 * 1024
#: the longest wait (seconds) between two tries, whatever the server asks for
MAX_WAIT = 30.0


class PublishFailed(Exception):  # noqa: N818
    """Not published, or not known to be (``unknown``: the tries ran out without an answer).

    ``positions`` is what became of a list: the position of each message that was accepted, ``None`` for the others
    and for those that were never sent.
    """

    def __init__(
        self,
        code: str,
        message: str,
        status: int | None = None,
        positions: list[Position | None] | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.status = code, status
        self.positions = positions or []


class _Again(Exception):  # noqa: N818
    """A try that may be repeated. ``wait``: the seconds that the server asks for; ``partial``: a list's answer."""

    def __init__(
        self, failed: PublishFailed, wait: float | None = None, partial: dict[str, Any] | None = None
    ) -> None:
        self.failed, self.wait, self.partial = failed, wait, partial


class Publisher:
    """A connection to the HTTP API at ``url`` (``http://127.0.0.1:8081``), kept open; use it in a ``with``.

    Each request carries an idempotency key, and its repeats carry the same: a message is stored once, however
    often it had to be sent. At most ``tries`` tries a request, with backoff and full jitter between them, each
    of them limited to ``timeout`` seconds. May be used by several threads, one request at a time.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        tries: int = 6,
        timeout: float = 10.0,
        tls: ssl.SSLContext | None = None,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = random.random,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the address of the HTTP API is like http://127.0.0.1:8081")
        if tries < 1:
            raise ValueError("tries: at least one")
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = tls or ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        self._path = parts.path.rstrip("/") + "/v1/publish"
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        self._tries, self._sleep, self._random = tries, sleep, random
        self._lock = threading.Lock()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next publish opens another."""
        with self._lock:
            self._connection.close()

    def chat(
        self,
        workspace_id: Id,
        chat_id: Id,
        sender_id: Id,
        content: str,
        *,
        message_id: Id | None = None,
        timestamp: int | None = None,
        key: str | None = None,
    ) -> Position:
        """Publish one chat message; ``message_id`` is random and ``timestamp`` now where they are not given."""
        payload = {
            "message_id": uuid.uuid4().int >> 75 if message_id is None else message_id,
            "chat_id": chat_id,
            "workspace_id": workspace_id,
            "sender_id": sender_id,
            "content": content,
            "timestamp": int(time.time()) if timestamp is None else timestamp,
        }
        return self.publish(f"workspace.{workspace_id}.chat.{chat_id}.messages", payload, key=key)

    def notify(
        self,
        workspace_id: Id,
        user_id: Id,
        kind: str,
        data: Any,
        *,
        notification_id: Id | None = None,
        timestamp: int | None = None,
        key: str | None = None,
    ) -> Position:
        """Publish one notification; ``data`` is any JSON value."""
        payload = {
            "notification_id": uuid.uuid4().int >> 75 if notification_id is None else notification_id,
            "workspace_id": workspace_id,
            "user_id": user_id,
            "kind": kind,
            "data": data,
            "timestamp": int(time.time()) if timestamp is None else timestamp,
        }
        return self.publish(f"workspace.{workspace_id}.user.{user_id}.notifications", payload, key=key)

    def publish(self, subject: str, payload: Mapping[str, Any], *, key: str | None = None) -> Position:
        """Publish one message; gives its position once the broker has accepted it. Raises :class:`PublishFailed`.

        ``key`` is the idempotency key, where the caller has one that outlives this call.
        """
        body = _encode(subject, payload)
        answer = self._request(body, key or uuid.uuid4().hex)
        return Position(answer["epoch"], answer["seq"])

    def publish_many(self, messages: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Position]:
        """Publish any number of ``(subject, payload)`` in order, in as few requests as allowed.

        Gives their positions. Raises :class:`PublishFailed` with those of the messages that were accepted; of the
        request in which it happened every message was tried, behind it none.
        """
        positions: list[Position | None] = []
        for batch in _batches(messages):
            try:
                results = self._list(b"[" + b",".join(batch) + b"]", uuid.uuid4().hex)
            except PublishFailed as error:
                error.positions = positions + (error.positions or [None] * len(batch))
                raise
            positions += results
        return [position for position in positions if position is not None]

    def _list(self, body: bytes, key: str) -> list[Position | None]:
        answer = self._request(body, key)
        results: list[dict[str, Any]] = answer["results"]
        positions = [
            Position(result["epoch"], result["seq"]) if result["status"] == HTTPStatus.OK else None
            for result in results
        ]
        for result in results:
            if result["status"] != HTTPStatus.OK:
                error = result["error"]
                raise PublishFailed(error["code"], error["message"], result["status"], positions)
        return list(positions)

    def _request(self, body: bytes, key: str) -> dict[str, Any]:
        """Send until it is settled, each time with the same key."""
        with self._lock:
            for attempt in range(self._tries):
                try:
                    return self._try(body, key)
                except _Again as again:
                    if attempt + 1 == self._tries:
                        if again.partial is not None:
                            return again.partial
                        raise again.failed from None
                    window = min(MAX_WAIT, 0.2 * 2**attempt)
                    wait = window * self._random() if again.wait is None else min(again.wait, MAX_WAIT)
                    self._sleep(wait)
        raise AssertionError("unreachable")

    def _try(self, body: bytes, key: str) -> dict[str, Any]:
        headers = {**self._headers, "Idempotency-Key": key}
        try:
            self._connection.request("POST", self._path, body, headers)
            response = self._connection.getresponse()
            status, answer = response.status, response.read()
            advice = response.getheader("Retry-After", "")
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            failed = PublishFailed("unknown", f"no answer from the server: {error or type(error).__name__}")
            raise _Again(failed) from None
        try:
            value = json.loads(answer)
        except ValueError:
            value = None
        wait = float(advice) if advice.isdecimal() else None
        if status == HTTPStatus.MULTI_STATUS and isinstance(value, dict):
            # What may still succeed is tried again; the key keeps what is stored already from being stored twice.
            for result in value.get("results", []):
                if result.get("status") in RETRIED:
                    raise _Again(_refusal(result, status), wait, value)
            return value
        if status == HTTPStatus.OK and isinstance(value, dict):
            return value
        failed = _refusal(value, status)
        if status in RETRIED:
            raise _Again(failed, wait)
        raise failed


def _refusal(value: Any, status: int) -> PublishFailed:
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return PublishFailed("failed", f"the server answered with HTTP {status}", status)
    return PublishFailed(str(error.get("code")), str(error.get("message")), status)


def _encode(subject: str, payload: Mapping[str, Any]) -> bytes:
    return json.dumps({"subject": subject, "payload": payload}, separators=(",", ":")).encode()


def _batches(messages: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for subject, payload in messages:
        one = _encode(subject, payload)
        if batch and (len(batch) == BATCH or size + len(one) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += len(one) + 1
    if batch:
        yield batch
