"""``POST /v1/signal``: a backend sends a signal to the members of a chat in a user's name. It is not stored."""

from __future__ import annotations

from http import HTTPStatus

import msgspec
from msgspec import Struct

from notify import ids
from notify.core.signals import Signals
from notify.http.answers import Answer, Refused, answer, bad_request, too_large
from notify.http.keys import permit
from notify.http.request import Request
from notify.messages import Poison, Signal, check_data

#: bytes of a request in addition to its signal's data
MARGIN = 4096


class SignalRequest(Signal, frozen=True, forbid_unknown_fields=True):
    """A signal to a chat: ``user_id`` is the user who types or points, and does not receive it; ``data`` is any JSON value."""


class Signalled(Struct, frozen=True):
    """The signal was handed to the broker. Whether anybody receives it is not known."""

    workspace_id: ids.Id
    chat_id: ids.Id
    sent: bool = True


_decode = msgspec.json.Decoder(SignalRequest).decode


class Signaller:
    """See the module."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def __call__(self, request: Request) -> Answer:
        """Answers immediately, without waiting for anything. The user need not be connected, nor a member."""
        try:
            what = _decode(request.body)
        except msgspec.ValidationError as error:
            raise bad_request(f"the body is not a valid signal: {_unquoted(error)}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise bad_request("the body is not valid JSON in UTF-8") from None
        permit(request.key, what.workspace_id)
        if len(memoryview(what.data)) > self._signals.size:
            raise too_large(f"the data of a signal may have at most {self._signals.size} bytes")
        try:
            check_data(what.data, self._signals.size)
        except Poison as error:
            raise bad_request(str(error)) from None
        if not self._signals.carried:
            raise Refused(
                HTTPStatus.NOT_IMPLEMENTED,
                "unsupported",
                "this server's broker plugin does not support signals",
            )
        if not self._signals.send(what):
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "unavailable",
                "the broker cannot carry signals now and this one was not sent; try again later",
                {b"Retry-After": b"1"},
            )
        return answer(Signalled(what.workspace_id, what.chat_id), HTTPStatus.ACCEPTED)


def _unquoted(error: msgspec.ValidationError) -> str:
    """msgspec's error without the field name, the only thing that it quotes."""
    text = ids.explained(error)
    return "it has an unknown field" if "unknown field" in text else text.replace("`", "'")
