"""The operator's own deployment: its addresses, and faults that are shell commands on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from itertools import cycle, islice

from twisted.internet.threads import deferToThread

from notify.chaos.target import Seat, TrialFailed
from notify.client import Settings
from notify.ids import Id

#: timeout in seconds for a fault's command
PATIENCE = 60.0


class Deployment:
    """A :class:`~notify.chaos.target.Target`. Clients use the addresses and the tokens in turn."""

    settings = Settings()

    def __init__(
        self,
        urls: Sequence[str],
        apis: Sequence[str],
        api_key: str,
        tokens: Sequence[str],
        workspace: Id,
        chats: Sequence[Id],
    ) -> None:
        self.name = f"The deployment at {', '.join(urls)}"
        self.urls, self.apis, self.api_key = urls, apis, api_key
        self._tokens, self._workspace, self._chats = tokens, workspace, tuple(chats)
        self._running: set[subprocess.Popen[str]] = set()

    def seats(self, count: int) -> list[Seat]:
        """Clients, each of which reads all of the chats."""
        given = islice(zip(cycle(self.urls), cycle(self._tokens), strict=False), count)
        return [
            Seat(f"client-{index}", url, lambda token=token: token, self._workspace, self._chats)  # type: ignore[misc]
            for index, (url, token) in enumerate(given, 1)
        ]

    async def start(self) -> None:
        """Nothing to do: the deployment is running already."""

    async def act(self, command: str) -> None:
        """Run a shell command."""
        await deferToThread(self._shell, command)

    def _shell(self, command: str) -> None:
        # A process group of its own: Ctrl-C reaches only this program, which then undoes the faults and can end the whole group.
        process = subprocess.Popen(  # noqa: S602 - it is what the operator wrote
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._running.add(process)
        try:
            _, said = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            _end(process)
            raise TrialFailed(f"its command was ended after {PATIENCE:g} s") from None
        finally:
            self._running.discard(process)
        if process.returncode:
            last = said.strip().splitlines()[-1:] or [""]
            raise TrialFailed(
                f"its command ended with status {process.returncode}: {last[0][:200]}".rstrip(": ")
            )

    async def stop(self, undo: Sequence[str]) -> None:
        """End the commands that still run, then run the undo commands."""
        for process in list(self._running):
            _end(process)
        for command in undo:
            with contextlib.suppress(TrialFailed):
                await self.act(command)


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
