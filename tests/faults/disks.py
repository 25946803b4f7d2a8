"""Faults of the disk below a nats-server: the store goes back in time, a block is missing, a bit flips.

The store is the content of ``store_dir``. A stream's messages are in numbered blocks, ``msgs/N.blk``, beside an
index, ``index.db``, that the server writes when it is stopped. After a kill, the server reads its blocks at the
next start; after a stop, it trusts the index.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.natsd import NatsServer

STREAM = "MESSAGES"


def store(server: NatsServer) -> Path:
    """The store of a server."""
    return server.directory / "js"


def blocks(server: NatsServer) -> list[Path]:
    """The block files of the stream in one server's copy, oldest first."""
    folder = store(server) / "jetstream" / "$G" / "streams" / STREAM / "msgs"
    return sorted(folder.glob("*.blk"), key=lambda path: int(path.stem))


def remember(server: NatsServer) -> Path:
    """Copy a server's store, running or not: what its disk would hold if it had been synced now and never again."""
    synced = server.directory / "synced"
    shutil.rmtree(synced, ignore_errors=True)
    # Files come and go while the server runs; one that disappears before it is copied counts as not synced.
    shutil.copytree(store(server), synced, copy_function=_copied, ignore_dangling_symlinks=True)
    return synced


def put_back(server: NatsServer, synced: Path) -> None:
    """Replace the store of a stopped server with the one that :func:`remember` kept."""
    shutil.rmtree(store(server))
    shutil.copytree(synced, store(server))


def lose_block(server: NatsServer, index: int) -> None:
    """Remove a block from the copy of a stopped server; index 0 is the oldest."""
    found = blocks(server)
    assert len(found) > 2, f"{len(found)} blocks are too few to lose one"
    found[index].unlink()


def flip(server: NatsServer, content: bytes) -> None:
    """Flip a bit of the payload that contains ``content``, in the copy of a stopped server."""
    for block in blocks(server):
        data = bytearray(block.read_bytes())
        at = data.find(content)
        if at >= 0:
            data[at] ^= 1
            block.write_bytes(data)
            return
    raise AssertionError(f"no block has {content!r}")


def _copied(source: str, target: str) -> None:
    try:
        shutil.copy2(source, target)
    except FileNotFoundError:
        pass
