"""Shared by the tests of docs/cookbook: its files as programs, as modules and in pages. They block."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from types import ModuleType, TracebackType
from typing import Any
from unittest.mock import patch

from notify.auth.tokens import issue
from tests.support.pages import Asked, serve_pages
from tests.support.process import KEY, SECRET, Server
from tests.support.programs import ROOT

PAGES = ROOT / "docs" / "cookbook"
EXAMPLES = ROOT / "docs" / "examples"
COOKBOOK = EXAMPLES / "cookbook"


def addresses(server: Server) -> dict[str, str]:
    """The environment of a program that uses a server, except for a token."""
    return {
        "NOTIFY_URL": f"ws://127.0.0.1:{server.public}/ws",
        "NOTIFY_API_URL": f"http://127.0.0.1:{server.internal}",
        "NOTIFY_API_KEY": KEY,
    }


def recipe(case: Any, name: str, **environ: str) -> ModuleType:
    """A file of the cookbook as a module, with this environment until the test case ends."""
    changed = patch.dict(os.environ, environ)
    changed.start()
    case.addCleanup(changed.stop)
    spec = importlib.util.spec_from_file_location(name, COOKBOOK / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(value: Any, status: int = 200) -> tuple[int, str, bytes]:
    """A backend's JSON answer."""
    return status, "application/json", json.dumps(value).encode()


def token_answer(user_id: int = 1) -> tuple[int, str, bytes]:
    """The answer of the token endpoint in tokens.md; the token is valid for five minutes."""
    now = time.time()
    return answer({"token": issue(SECRET, user_id, 1, 300, now), "expires_at": now + 300})


class Site:
    """A web application: pages with a script of the cookbook, the token endpoint, and ``answers`` by path.

    ``user`` is the user who is signed in; ``asked`` has the requests that ``answers`` handled.
    """

    def __init__(self, case: Any) -> None:
        self.answers: dict[str, Any] = {"/favicon.ico": lambda _: (204, "image/x-icon", b"")}
        self.asked: list[Asked] = []
        self.user = 1
        self.origin = serve_pages(case, ROOT, answer=self._answer)

    def page(self, path: str, script: str, server: Server, body: str) -> str:
        """Serve a page at this path; return its URL."""
        html = (
            f'<!doctype html><title>A page</title><body data-notify="ws://127.0.0.1:{server.public}/ws">{body}'
            f'<script type="module" src="/docs/examples/cookbook/{script}"></script>'
        )
        self.answers[path] = lambda _: (200, "text/html", html.encode())
        return self.origin + path

    def _answer(self, asked: Asked) -> tuple[int, str, bytes] | None:
        if asked.path == "/notify/token":
            return token_answer(self.user) if asked.method == "POST" else answer({}, 405)
        found = self.answers.get(asked.path)
        if found is None:
            return None
        self.asked.append(asked)
        return found(asked)


class Program:
    """A Python program that runs until the end of the ``with``."""

    def __init__(self, path: Path, **environ: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(path)],
            env={**os.environ, **environ},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, seconds: float = 30) -> str:
        """Wait for the next line that it prints."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"it printed nothing for {seconds} s") from None
        if line is None:
            raise AssertionError("it ended")
        return line

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
