"""Publishes synchronously, over a stream or by HTTP requests: for backends of any kind."""

from __future__ import annotations

import http.client
import json
import math
import random
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import msgspec

from notify.client._pipe import Fault, Gone, NoStream, Outcome, Pipe
from notify.client._wire import Address
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
#: messages and bytes in one request, or under way in a stream; a larger message goes by a request
BATCH, BATCH_BYTES = 500, 512 * 1024
#: the longest wait (seconds) between two tries, whatever the server asks for
MAX_WAIT = 30.0
#: seconds for which requests are made where no stream was opened
WITHOUT_STREAM = 60.0


class PublishFailed(Exception):  # noqa: N818
    """Not published, or not known to be (``unknown``: the tries ran out without an answer).

    ``positions`` is what became of a list: the position of each message that was accepted, ``None`` for the others
    and for those that were never sent. ``errors`` says of each of the others that was sent what is wrong with it.
    """

    def __init__(
        self,
        code: str,
        message: str,
        status: int | None = None,
        positions: list[Position | None] | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.text, self.status = code, message, status
        self.positions = positions or []
        self.errors: list[PublishFailed | None] = []


class _Again(Exception):  # noqa: N818
    """A try that may be repeated. ``wait``: the seconds that the server asks for."""

    def __init__(self, failed: PublishFailed, wait: float | None = None) -> None:
        self.failed, self.wait = failed, wait


class Publisher:
    """A connection to the HTTP API at ``url`` (``http://127.0.0.1:8081``), kept open; use it in a ``with``.

    Each message carries an idempotency key, and its repeats carry the same: a message is stored once, however
    often it had to be sent. At most ``tries`` tries, with backoff and full jitter between them, each
    of them limited to ``timeout`` seconds without an answer. May be used by several threads, one publish at a time.

    With ``stream`` messages go over a WebSocket (``/v1/stream``), which costs the server less than a request for each;
    where none can be opened, as at an older server or through some proxies, they go by requests for a minute.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        tries: int = 6,
        timeout: float = 10.0,
        stream: bool = True,
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
        secure, path = parts.scheme == "https", parts.path.rstrip("/")
        self._tls = (tls or ssl.create_default_context()) if secure else None
        if self._tls is not None:
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout, context=self._tls
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        self._path = path + "/v1/publish"
        port = parts.port or (443 if secure else 80)
        self._address = Address(secure, parts.hostname, port, path + "/v1/stream")
        self._timeout = timeout
        self._pipe: Pipe | None = None
        self._stream_from = -math.inf if stream else math.inf
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
            if self._pipe is not None:
                self._pipe.close()
                self._pipe = None

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
        key = key or uuid.uuid4().hex
        [outcome] = self._settle([_encode(subject, payload)], [key], key)
        if outcome.status != HTTPStatus.OK:
            raise _failed(outcome)
        return Position(outcome.epoch, outcome.seq)

    def publish_many(self, messages: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Position]:
        """Publish any number of ``(subject, payload)`` in order, some hundreds at a time.

        Gives their positions. Raises :class:`PublishFailed` with those of the messages that were accepted; of those
        that were sent together with the one that failed every message was tried, behind them none.
        """
        positions: list[Position | None] = []
        for batch in _batches(messages):
            try:
                results = self._list(batch, uuid.uuid4().hex)
            except PublishFailed as error:
                before: list[PublishFailed | None] = [None] * len(positions)
                error.errors = before + (error.errors or [error for _ in batch])
                error.positions = positions + (error.positions or [None] * len(batch))
                raise
            positions += results
        return [position for position in positions if position is not None]

    def _list(self, batch: list[bytes], key: str) -> list[Position | None]:
        outcomes = self._settle(batch, [f"{key}:{index}" for index in range(len(batch))], key, many=True)
        positions = [
            Position(one.epoch, one.seq) if one.status == HTTPStatus.OK else None for one in outcomes
        ]
        errors = [None if one.status == HTTPStatus.OK else _failed(one) for one in outcomes]
        failed = [error for error in errors if error is not None]
        if failed:
            # One that could be told of others, too, says more than what is wrong with one message.
            worst = next((error for error in failed if _may_be_repeated(error.status)), failed[0])
            raised = PublishFailed(worst.code, worst.text, worst.status, list(positions))
            raised.errors = errors
            raise raised
        return list(positions)

    def _settle(self, batch: list[bytes], keys: list[str], key: str, many: bool = False) -> list[Outcome]:
        """Send until it is settled what became of each message, each time with the same keys.

        ``key`` is that of a request with all of them. Raises :class:`PublishFailed` where nothing is known of any.
        """
        outcomes: list[Outcome | None] = [None] * len(batch)
        with self._lock:
            for attempt in range(self._tries):
                try:
                    pipe = self._open_pipe(batch)
                    if pipe is None:
                        self._request(batch, key, many, outcomes)
                    else:
                        self._send(pipe, batch, keys, outcomes)
                    break
                except _Again as again:
                    if attempt + 1 == self._tries:
                        if not any(outcomes):
                            raise again.failed from None
                        break
                    window = min(MAX_WAIT, 0.2 * 2**attempt)
                    wait = window * self._random() if again.wait is None else min(again.wait, MAX_WAIT)
                    self._sleep(wait)
        unknown = Outcome(None, error=Fault("unknown", "no answer from the server"))
        return [one or unknown for one in outcomes]

    def _open_pipe(self, batch: list[bytes]) -> Pipe | None:
        """The stream, if these messages are to go over it and it can be had."""
        if len(batch[0]) > BATCH_BYTES:
            return None
        if self._pipe is not None and not self._pipe.usable():
            self._drop_pipe()
        if self._pipe is None and time.monotonic() >= self._stream_from:
            try:
                self._pipe = Pipe(self._address, self._headers["Authorization"], self._timeout, self._tls)
            except NoStream:
                self._stream_from = time.monotonic() + WITHOUT_STREAM
            except OSError as error:
                raise _Again(_no_answer(error)) from None
        return self._pipe

    def _drop_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.drop()

    def _send(self, pipe: Pipe, batch: list[bytes], keys: list[str], outcomes: list[Outcome | None]) -> None:
        """Send over a stream what is not settled."""
        messages = []
        for index, one in enumerate(outcomes):
            if one is None or _may_be_repeated(one.status):
                outcomes[index] = None
                messages.append(
                    (index, b'"key":%b,%b' % (json.dumps(keys[index]).encode(), batch[index][1:]))
                )

        def take(index: int, outcome: Outcome) -> None:
            outcomes[index] = outcome

        try:
            pipe.exchange(messages, take)
        except Gone as gone:
            self._drop_pipe()
            raise _Again(PublishFailed("unknown", str(gone))) from None
        except BaseException:  # interrupted: what was sent may end within a frame
            self._drop_pipe()
            raise
        _look_for_more(outcomes)

    def _request(self, batch: list[bytes], key: str, many: bool, outcomes: list[Outcome | None]) -> None:
        """Send all of them by a request: the keys keep those that are stored already from being stored twice."""
        for index, one in enumerate(outcomes):
            if one is not None and _may_be_repeated(one.status):
                outcomes[index] = None
        body = b"[" + b",".join(batch) + b"]" if many else batch[0]
        try:
            self._connection.request("POST", self._path, body, {**self._headers, "Idempotency-Key": key})
            response = self._connection.getresponse()
            status, answer = response.status, response.read()
            advice = response.getheader("Retry-After", "")
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise _Again(_no_answer(error)) from None
        try:
            value = json.loads(answer)
        except ValueError:
            value = None
        wait = float(advice) if advice.isdecimal() else None
        if status in (HTTPStatus.OK, HTTPStatus.MULTI_STATUS) and isinstance(value, dict):
            results = value.get("results", []) if many else [{"status": status, **value}]
            try:
                told = msgspec.convert(results, list[Outcome])
            except msgspec.ValidationError:
                told = []
            if len(told) != len(batch):
                raise PublishFailed("failed", "the server's answer cannot be understood", status)
            outcomes[:] = told
            _look_for_more(outcomes, wait)
            return
        failed = _refusal(value, status)
        if status in RETRIED:
            raise _Again(failed, wait)
        raise failed


def _may_be_repeated(status: int | None) -> bool:
    return status is None or status in RETRIED


def _look_for_more(outcomes: list[Outcome | None], wait: float | None = None) -> None:
    """Whether all is settled: raises :class:`_Again` for what may still succeed."""
    for one in outcomes:
        if one is not None and _may_be_repeated(one.status):
            raise _Again(_failed(one), wait)


def _failed(outcome: Outcome) -> PublishFailed:
    fault = outcome.error or Fault("failed", f"the server answered with {outcome.status}")
    return PublishFailed(fault.code, fault.message, outcome.status)


def _no_answer(error: Exception) -> PublishFailed:
    return PublishFailed("unknown", f"no answer from the server: {error or type(error).__name__}")


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
