"""Support for tests of notify and of its plugins: a fake connection, a context with a clock, and contract suites.

A plugin author subclasses a suite of :mod:`notify.testing.contracts` together with a ``TestCase``, and says how
to create the plugin; see docs/plugins.md.
"""

from notify.testing.fakes import (
    FakeConnection,
    chat_payload,
    event_payload,
    make_context,
    notification_payload,
)
from notify.testing.recorder import Recorder

__all__ = [
    "FakeConnection",
    "Recorder",
    "chat_payload",
    "event_payload",
    "make_context",
    "notification_payload",
]
