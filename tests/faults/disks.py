"""What disks do to the store of a nats-server: it goes back in time, a block goes missing, a bit flips.

A store is what lies under ``store_dir``; a stream's messages are in numbered blocks ``msgs/N.blk`` beside an index,
``index.db``, that the server writes when it is stopped. A server that is killed reads its blocks at the next start, one
that was stopped believes the index.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.natsd import NatsServer

STREAM = "MESSAGES"


def store(server: NatsServer) -> Path:
    """All that a server keeps."""
    return server.directory / "js"


def blocks(server: NatsServer) -> list[Path]:
    """The blocks of the history in one server's copy, the oldest first."""
    folder = store(server) / "jetstream" / "$G" / "streams" / STREAM / "msgs"
    return sorted(folder.glob("*.blk"), key=lambda path: int(path.stem))


def remember(server: NatsServer) -> Path:
    """Copy the store of a server, running or not: what its disk would hold, had it been synced now and never again."""
    synced = server.directory / "synced"
    shutil.rmtree(synced, ignore_errors=True)
    # Files come and go while it runs: what is gone by the time that it is copied was not synced.
    shutil.copytree(store(server), synced, copy_function=_copied, ignore_dangling_symlinks=True)
    return synced


def put_back(server: NatsServer, synced: Path) -> None:
    """Give a server that does not run the store that :func:`remember` kept."""
    shutil.rmtree(store(server))
    shutil.copytree(synced, store(server))


def lose_block(server: NatsServer, index: int) -> None:
    """Remove a block from the copy of a server that does not run: 0 is the oldest."""
    found = blocks(server)
    assert len(found) > 2, f"{len(found)} blocks are too few to lose one"
    found[index].unlink()


def flip(server: NatsServer, content: bytes) -> None:
    """Flip a bit of the payload that has this in it, in the copy of a server that does not run."""
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
