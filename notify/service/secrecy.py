"""Keeps the process's memory, with its keys, tokens and messages, out of core dumps and away from other processes."""

from __future__ import annotations

import ctypes
import os
import sys

from twisted.logger import Logger

log = Logger()

#: prctl(2), from linux/prctl.h
PR_SET_DUMPABLE = 4


def conceal() -> None:
    """Disable core dumps, and forbid other processes of the same user to read the memory. Linux only; root still may.

    Must be called once the process has its final user: a change of user undoes it.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
        log.warn("core dumps may contain secrets: {reason}", reason=os.strerror(ctypes.get_errno()))
