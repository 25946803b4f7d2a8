"""What a node remembers over restarts: the directory for it, and files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def directory(configured: str) -> Path | None:
    """The directory that is configured, or that systemd gives ($STATE_DIRECTORY); None: there is none."""
    found = configured or os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(found) if found else None


def write(path: Path, data: bytes) -> None:
    """Put a file in the place of the one before, durably: after a loss of power it is there. Blocks. Raises ``OSError``."""
    new = path.with_suffix(".new")
    with open(new, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    # Until its directory is on the disk, too, the loss of power brings the old file back.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
