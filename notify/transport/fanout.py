"""Which way a message goes out to the members of its chat: in C where that was built, in Python otherwise.

Both do the same, and are held to it by one suite of tests (tests/transport/test_fanout.py). ``NOTIFY_PURE=1`` in the
environment leaves what was built aside.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from notify.core.dispatcher import FanOut, one_by_one
from notify.transport.connection import Connection

#: the C way; None: it was not built, or cannot be loaded
in_c: FanOut | None
try:
    from notify.transport import _fanout
except ImportError:
    in_c = None
else:
    in_c = _fanout.FanOut(Connection)


def choose(environ: Mapping[str, str] = os.environ) -> FanOut:
    """The way to go."""
    if in_c is None or environ.get("NOTIFY_PURE") == "1":
        return one_by_one
    return in_c


def name(way: FanOut) -> str:
    """What a way is called where operators are told of it."""
    return "C" if way is in_c else "Python"
