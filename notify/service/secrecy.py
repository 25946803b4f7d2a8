"""What the process keeps to itself: its memory holds keys, tokens and messages, and goes into no core dump."""

from __future__ import annotations

import ctypes
import os
import sys

from twisted.logger import Logger

log = Logger()

#: prctl(2), of linux/prctl.h
PR_SET_DUMPABLE = 4


def conceal() -> None:
    """Write no core dump, and let no other process of the same user read the memory. Linux only; root still may.

    To be called once the process has the user that it keeps: a change of user undoes it.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
        log.warn("secrets may get into core dumps: {reason}", reason=os.strerror(ctypes.get_errno()))
