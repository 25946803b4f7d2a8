"""A real Chromium, controlled through the W3C WebDriver protocol with the standard library. Blocks: use a thread."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.programs import program

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One Chromium with a fresh profile, and ``flags`` added to the usual ones; use it in a ``with``."""

    def __init__(self, *flags: str, width: int = 1280, height: int = 900) -> None:
        driver, chromium = program("chromedriver"), program("chromium")
        self._profile = tempfile.mkdtemp()
        self._driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port(), timeout=60)
            options = {
                "binary": chromium,
                "args": [
                    *FLAGS,
                    *flags,
                    f"--user-data-dir={self._profile}",
                    f"--window-size={width},{height}",
                ],
            }
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{made['sessionId']}"
        except BaseException:
            self._kill()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._kill()

    def go(self, url: str) -> None:
        """Load a page."""
        self._command("url", {"url": url})

    def back(self) -> None:
        """Go back, as the browser's button does."""
        self._command("back", {})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script; return its result."""
        return self._command("execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: Any) -> Any:
        """Run a script; return what it passes to the callback that is its last argument."""
        return self._command("execute/async", {"script": script, "args": list(arguments)})

    def text(self, css: str) -> str:
        """The text of the first element that matches the selector."""
        return str(self.run("return document.querySelector(arguments[0])?.textContent ?? ''", css))

    def click(self, css: str) -> None:
        """Click on the element with a real click."""
        self._command(f"element/{self._find(css)}/click", {})

    def type(self, css: str, text: str) -> None:
        """Type text into the element with real key strokes."""
        self._command(f"element/{self._find(css)}/value", {"text": text})

    def press(self, key: str) -> None:
        """Press a key, wherever the focus is."""
        strokes = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._command("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def until(self, what: str, condition: Callable[[], Any], timeout: float = 60) -> Any:
        """Wait until the condition holds; ``what`` describes it in the error."""
        end = time.monotonic() + timeout
        while not (found := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"it did not happen within {timeout} s: {what}")
            time.sleep(0.05)
        return found

    def tab(self) -> str:
        """Open another tab and switch to it; return its handle."""
        return str(self.switch(self._command("window/new", {"type": "tab"})["handle"]))

    def here(self) -> str:
        """The current tab's handle."""
        return str(self._call("GET", f"{self._session}/window"))

    def switch(self, handle: str) -> str:
        """Switch to a tab."""
        self._command("window", {"handle": handle})
        return handle

    def freeze(self) -> None:
        """Stop this tab's scripts and timers, as a browser does with a tab that has been in the background for long."""
        self._devtools("Page.setWebLifecycleState", {"state": "frozen"})

    def leave(self) -> None:
        """Close this tab; switch to another one afterwards."""
        self._call("DELETE", f"{self._session}/window")

    def phone(self, width: int = 390, height: int = 844) -> None:
        """Emulate a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
        self._devtools("Emulation.setDeviceMetricsOverride", size)

    def scheme(self, name: str) -> None:
        """Emulate a preference for a colour scheme, ``light`` or ``dark``, and for reduced motion."""
        features = {"prefers-color-scheme": name, "prefers-reduced-motion": "reduce"}
        listed = [{"name": feature, "value": value} for feature, value in features.items()]
        self._devtools("Emulation.setEmulatedMedia", {"features": listed})

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Save a picture of the page."""
        shot = self._devtools("Page.captureScreenshot", {"captureBeyondViewport": whole})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def console(self) -> list[dict[str, Any]]:
        """Messages of the console since the last call."""
        return list(self._command("se/log", {"type": "browser"}))

    def _find(self, css: str) -> str:
        return str(self._command("element", {"using": "css selector", "value": css})[ELEMENT])

    def _devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._command("goog/cdp/execute", {"cmd": command, "params": parameters})

    def _command(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", f"{self._session}/{path}", body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        text = None if body is None else json.dumps(body)
        self._connection.request(method, path, text, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        value = json.loads(response.read())["value"]
        if response.status != 200:
            raise AssertionError(f"{method} {path}: {value['error']}: {value['message']}")
        return value

    def _port(self) -> int:
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if match := re.search(r"successfully on port (\d+)", line):
                return int(match[1])
        raise AssertionError("chromedriver did not start")

    def _kill(self) -> None:
        try:
            os.killpg(self._driver.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._driver.wait()
        if self._driver.stdout is not None:
            self._driver.stdout.close()
        shutil.rmtree(self._profile, ignore_errors=True)
