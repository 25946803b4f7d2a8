"""Runs kosoku; the compressed cases send at most COUNT messages: ``player COUNT OUTDIR ADDRESS CASE...``.

kosoku's driver passes an uncompressed message to a case as ``str``, one character for each byte, but the cases of
groups 12 and 13 hash bytes. They would wait until they time out if an echo arrived uncompressed because compression
did not make it smaller (RFC 7692, section 6, allows this). :func:`with_bytes` prevents that.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from kosoku import FailureError, run_fuzzingclient
from kosoku._report import write_reports
from kosoku.cases import CASES

#: cases played at once: more than there are cores, because a case mostly waits for its echo
AT_ONCE = 4


def with_bytes(take: Callable[[Any, bytes, bool], None]) -> Callable[[Any, str | bytes, bool], None]:
    """Wrap a case's ``onMessage``, so that it always receives bytes."""
    return lambda case, message, binary: take(
        case, message.encode("latin-1") if isinstance(message, str) else message, binary
    )


async def play(count: int, folder: str, address: str, cases: list[str]) -> None:
    """Play ``cases`` (ids, ``*`` for any part), and write their report."""
    for case in CASES.values():
        if hasattr(case, "COUNT"):
            case.COUNT = min(count, case.COUNT)
            case.onMessage = with_bytes(case.onMessage)
    try:
        results = await run_fuzzingclient(address, cases, [], concurrency=AT_ONCE)
    except FailureError as failure:
        results = failure.results
    write_reports(results, folder)


if __name__ == "__main__":
    asyncio.run(play(int(sys.argv[1]), *sys.argv[2:4], sys.argv[4:]))
