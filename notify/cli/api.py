"""Requests to the HTTP API: the options that say where it is, and the request itself."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener

from notify.cli.terminal import (
    API_URL,
    CommandError,
    Terminal,
    secret,
    secret_options,
    url,
    url_option,
)

_TIMEOUT = 10.0
#: timeout in seconds between lines of a streamed response; the server sends something much sooner
_SILENCE = 60.0
_MOST_LINE = 1024 * 1024
_MOST_BYTES = 64 * 1024 * 1024


def api_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options for the API's address and key."""
    url_option(parser, "the HTTP API's address; any node will do", "NOTIFY_API_URL", API_URL)
    secret_options(parser, "api-key", "the API key", "NOTIFY_API_KEY")


def call(
    options: argparse.Namespace,
    terminal: Terminal,
    path: str,
    query: dict[str, Any] | None = None,
    body: dict[str, Any] | None = None,
) -> Any:
    """The API's answer to a POST of ``body``, or else to a GET; the address is from :func:`api_options`. Raises :class:`CommandError`."""
    key, address = _where(options, terminal, path)
    return ask(f"{address}?{urlencode(query)}" if query else address, key, body)


def _where(options: argparse.Namespace, terminal: Terminal, path: str) -> tuple[str, str]:
    key = secret(options, terminal, "api-key", "API key", "NOTIFY_API_KEY")
    return key, url(options, terminal, "NOTIFY_API_URL", API_URL).rstrip("/") + path


class _NoRedirect(HTTPRedirectHandler):
    """Refuses redirects: the API key is only for the server that was named."""

    def redirect_request(self, *_: object) -> None:
        return None


def ask(address: str, key: str, body: dict[str, Any] | None = None) -> Any:
    """The answer of the HTTP API. Raises :class:`CommandError`."""
    with _answer(address, key, body) as response:
        return json.loads(response.read(_MOST_BYTES))


def lines(options: argparse.Namespace, terminal: Terminal, path: str, query: dict[str, Any]) -> Iterator[str]:
    """The lines of a streamed response, as they arrive. Its connection ends with the iterator."""
    key, address = _where(options, terminal, path)
    with _answer(f"{address}?{urlencode(query)}", key, None, _SILENCE) as response:
        while line := response.readline(_MOST_LINE):
            yield line.decode("utf-8", "replace").rstrip("\n")


@contextmanager
def _answer(address: str, key: str, body: dict[str, Any] | None, timeout: float = _TIMEOUT) -> Iterator[Any]:
    """The response to a request, to be read while the context lasts. Raises :class:`CommandError`."""
    if not address.startswith(("http://", "https://")):
        raise CommandError("--url is wrong: give the HTTP API's address, such as http://127.0.0.1:8081.")
    headers = {"Authorization": f"Bearer {key}"}
    data = None
    if body is not None:
        headers["Content-Type"], data = "application/json", json.dumps(body).encode()
    request = Request(address, data, headers)  # noqa: S310 - http(s) only, see above
    try:
        with build_opener(_NoRedirect).open(request, timeout=timeout) as response:
            yield response
    except HTTPError as error:
        try:
            reason = json.loads(error.read(_MOST_BYTES))["error"]["message"]
        except (OSError, ValueError, KeyError, TypeError):
            reason = f"HTTP {error.code}"
        raise CommandError(f"The server refused: {reason}.") from None
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise CommandError(f"No answer ({reason}). Check --url, and that the server is running.") from None
    except ValueError:
        raise CommandError(
            "The answer is not JSON. Check --url: it must be the address of notify's HTTP API."
        ) from None
