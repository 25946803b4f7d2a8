"""Chooses how a message is written to the members of its chat: in C if that was built, otherwise in Python.

Both do the same, and one test suite runs against both (tests/transport/test_fanout.py). ``NOTIFY_PURE=1`` in the
environment selects Python.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from notify.core.dispatcher import FanOut, one_by_one
from notify.transport.connection import Connection

#: the C version; None: it was not built, or cannot be loaded
in_c: FanOut | None
try:
    from notify.transport import _fanout
except ImportError:
    in_c = None
else:
    in_c = _fanout.FanOut(Connection)


def choose(environ: Mapping[str, str] = os.environ) -> FanOut:
    """The version to use: C if it was built, unless ``NOTIFY_PURE=1`` is set."""
    if in_c is None or environ.get("NOTIFY_PURE") == "1":
        return one_by_one
    return in_c


def name(way: FanOut) -> str:
    """The name of a version, for operators."""
    return "C" if way is in_c else "Python"
