"""kosoku, with a choice of how many messages the compressed cases send: ``player COUNT OUTDIR ADDRESS CASE...``.

Its driver hands a case an uncompressed message as ``str``, one character a byte, and the cases of groups 12 and 13 hash bytes: they would wait for
their time to run out where an echo did not get smaller and so came as it was (RFC 7692, section 6, allows it).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from kosoku import FailureError, run_fuzzingclient
from kosoku._report import write_reports
from kosoku.cases import CASES

#: played at once: more than there are cores, for a case waits for its echo most of the time
AT_ONCE = 4


def with_bytes(take: Callable[[Any, bytes, bool], None]) -> Callable[[Any, str | bytes, bool], None]:
    """A case's ``onMessage`` that gets bytes whatever came."""
    return lambda case, message, binary: take(
        case, message.encode("latin-1") if isinstance(message, str) else message, binary
    )


async def play(count: int, folder: str, address: str, cases: list[str]) -> None:
    """Plays ``cases``, ids with ``*``, and writes their report."""
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
