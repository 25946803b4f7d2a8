"""The client without the server's libraries: what it imports, and what the documented line installs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support.process import KEY, Server, token, wait_for
from tests.support.programs import ROOT, UNMEASURED, need, run

EXAMPLES = ROOT / "docs" / "examples"
#: the libraries that the client needs
LIBRARIES = {"msgspec", "wsproto", "h11"}

#: an interpreter that has only these libraries, and coverage, which is there if the tests are measured
BLOCKED = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {LIBRARIES | {"notify", "coverage"}!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
before = set(sys.modules)
"""


def blocked(program: str) -> str:
    return run(sys.executable, "-c", BLOCKED + program).strip()


class Imports(SynchronousTestCase):
    def test_the_package_itself_imports_nothing(self) -> None:
        new = blocked("import notify; print(*sorted(set(sys.modules) - before))")
        self.assertEqual(new.split(), ["notify", "notify._version"])

    def test_the_client_needs_its_libraries_and_nothing_else_of_notify(self) -> None:
        new = blocked(
            "from notify.client import AsyncioClient, AsyncioPublisher, FileStore, Publisher\n"
            "AsyncioClient('ws://127.0.0.1/ws', 'token'), Publisher('http://127.0.0.1', 'key')\n"
            "print(*(name for name in sys.modules if name.startswith('notify')))"
        ).split()
        self.assertIn("notify.client.publisher", new)
        stray = [
            name
            for name in new
            if name not in ("notify", "notify._version") and not name.startswith("notify.client")
        ]
        self.assertEqual(stray, [])

    def test_twisted_is_missed_only_by_its_own_client(self) -> None:
        said = blocked(
            "import notify.client\n"
            "for name in ('TwistedClient', 'TwistedPublisher'):\n"
            "    try:\n        getattr(notify.client, name)\n"
            "    except ModuleNotFoundError as error:\n        print(error.name.partition('.')[0])"
        )
        self.assertEqual(said.split(), ["twisted", "twisted"])

    def test_with_twisted_its_client_is_there_like_the_others(self) -> None:
        import notify.client

        self.assertEqual(notify.client.TwistedClient.__module__, "notify.client._twisted")
        self.assertEqual(notify.client.TwistedPublisher.__module__, "notify.client._publish_twisted")
        self.assertFalse(hasattr(notify.client, "TornadoClient"))


class Environment:
    """An empty virtual environment in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        need(find_spec("ensurepip"), "ensurepip is missing: apt-get install python3-venv")
        self.folder = folder
        run(sys.executable, "-m", "venv", folder, environ=UNMEASURED)
        self.python = folder / "bin" / "python"
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))},
            "PATH": f"{folder / 'bin'}:{os.environ.get('PATH', '')}",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }

    def call(self, *command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command],
            env={**self.environ, **environ},
            cwd=self.folder,
            text=True,
            capture_output=True,
            timeout=120,
        )

    def packages(self) -> set[str]:
        listed = self.call(self.python, "-m", "pip", "list", "--format=json")
        return {package["name"] for package in json.loads(listed.stdout)}


def documented() -> str:
    """The line of docs/client.md that installs the client alone."""
    (line,) = re.findall(r"(?m)^\$ (pip install --no-deps .*)$", (ROOT / "docs" / "client.md").read_text())
    return str(line)


def tree(folder: Path) -> Path:
    """A copy of the source tree, because a build leaves files there, and picks up those of earlier builds."""
    left = shutil.ignore_patterns(
        ".*",
        "_trial_temp*",
        "build",
        "dist",
        "*.egg-info",
        "__pycache__",
        "node_modules",
        "tests",
        "benchmarks",
    )
    shutil.copytree(ROOT, folder, ignore=left)
    return folder


class Alone(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def test_the_documented_line_installs_the_client_alone_and_it_receives(self) -> None:
        environment = Environment(self.folder / "venv")
        before = environment.packages()
        answers = environment.call(
            environment.python, "-m", "pip", "--retries=0", "--timeout=10", "index", "versions", "wsproto"
        )
        need(answers.returncode == 0, "no package index can be reached")
        line = documented()
        source = tree(self.folder / "notify")
        installed = environment.call("/bin/sh", "-c", f"cd {source} && {line}")
        self.assertEqual(installed.returncode, 0, installed.stdout + installed.stderr)

        came = environment.packages() - before
        self.assertGreater(came, LIBRARIES)
        (distribution,) = came - LIBRARIES
        asked = (
            "import sys; from importlib.metadata import requires; print(*requires(sys.argv[1]), sep='\\n')"
        )
        required = environment.call(environment.python, "-c", asked, distribution).stdout.split("\n")
        bounds = re.findall(r"'(\w+>=[\d.]+)'", line)
        self.assertEqual(len(bounds), 3, line)
        self.assertLessEqual(set(bounds), set(required))

        with Server() as server:
            self.receive(environment, server)

    def receive(self, environment: Environment, server: Server) -> None:
        """Run the programs of the documentation with the environment's interpreter."""
        output = self.folder / "output"
        with output.open("w") as file:
            reader = subprocess.Popen(
                [environment.python, EXAMPLES / "first.py"],
                env={
                    **environment.environ,
                    "NOTIFY_URL": f"ws://127.0.0.1:{server.public}/ws",
                    "NOTIFY_TOKEN": token(5),
                },
                cwd=self.folder,
                stdout=file,
            )
        try:
            wait_for(
                "the first program is in the chat",
                lambda: (
                    server.http("GET", "/v1/presence?workspace_id=1&chat_id=1")[1]["users"]
                    or reader.poll() is not None
                ),
            )
            published = environment.call(
                environment.python,
                EXAMPLES / "publish.py",
                NOTIFY_API_URL=f"http://127.0.0.1:{server.internal}",
                NOTIFY_API_KEY=KEY,
            )
            self.assertRegex(published.stdout, r"^\S+ 1$", published.stderr)
            wait_for("the message is printed", lambda: output.read_text().endswith("\n"))
            self.assertEqual(output.read_text(), "7 Hello\n")
        finally:
            reader.kill()
            reader.wait()
