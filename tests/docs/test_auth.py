"""docs/auth.md: its configurations start, its commands work, its programs run."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from notify import components, config
from notify.auth.backend import WebhookSettings
from notify.auth.jwt import JWTSettings
from notify.auth.webhook import WebhookAuthenticator
from notify.identity import Identity
from notify.testing import make_context
from notify.testing.contracts.authenticator import PEER
from notify.topics import chat
from tests.support.auth import SECRET
from tests.support.cli import Process
from tests.support.programs import program

PAGE = Path(__file__).parent.parent.parent / "docs" / "auth.md"


class AuthPage(TestCase):
    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.bin = os.path.dirname(sys.executable)

    def blocks(self, kind: str) -> list[str]:
        found = re.findall(rf"(?m)^```{kind}\n(.*?)^```$", PAGE.read_text(), re.DOTALL)
        self.assertTrue(found)
        return [block.replace("/etc/notify", self.folder) for block in found]

    def shell(self, block: str) -> str:
        if "openssl" in block:
            program("openssl")
        done = subprocess.run(
            ["sh", "-euc", block],
            cwd=self.folder,
            env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(done.returncode, 0, f"{block}\n{done.stderr}")
        return done.stdout.strip()

    def write(self, name: str, text: str) -> str:
        path = Path(self.folder, name)
        path.write_text(text)
        return str(path)

    def authenticator(self, toml: str) -> Any:
        made = config.load(self.write("notify.toml", toml), {})
        authenticator = components.make("auth", make_context(reactor, made))
        self.addCleanup(authenticator.stop)
        return authenticator

    async def test_every_configuration_and_every_command_works_in_the_order_of_the_page(self) -> None:
        self.write("webhook-secret", "w" * 32)
        kinds = re.findall(r"(?m)^```(toml|sh)$", PAGE.read_text())
        tomls, shells = iter(self.blocks("toml")), iter(self.blocks("sh"))
        authenticator, tokens = None, 0
        for kind in kinds:
            if kind == "toml":
                authenticator = self.authenticator(next(tomls))
                continue
            printed = self.shell(next(shells))
            if printed:
                tokens += 1
                identity = await authenticator.authenticate(printed, PEER)
                self.assertEqual((identity.user_id, identity.workspace_id), (1, 7))
        self.assertEqual(tokens, 2)

    async def test_a_token_of_a_private_key_and_of_a_named_secret_is_good(self) -> None:
        shells, tomls = self.blocks("sh"), self.blocks("toml")
        for block in shells:
            if "notify token" not in block:
                self.shell(block)
        for toml, options in (
            (tomls[1], "--private-key-file private.pem"),
            (tomls[3], "--key-id 2024-05"),
            (tomls[3], "--key-id 2024-06"),
        ):
            authenticator = self.authenticator(toml)
            printed = self.shell(f"notify token --config notify.toml --user 3 {options}")
            self.assertEqual((await authenticator.authenticate(printed, PEER)).user_id, 3)

    async def test_the_backends_example_makes_a_good_token(self) -> None:
        self.shell(self.blocks("sh")[0])
        made: dict[str, Any] = {}
        exec(self.blocks("python")[0], made)
        identity = await self.authenticator(self.blocks("toml")[0]).authenticate(made["token"], PEER)
        self.assertEqual((identity.user_id, identity.workspace_id), (1, 7))

    async def test_the_webhooks_backend_answers(self) -> None:
        code = (
            self.blocks("python")[1]
            .replace("9000", "0")
            .replace(
                "server.serve_forever()", "print(server.server_port, flush=True)\nserver.serve_forever()"
            )
        )
        process = Process()
        path = self.write("backend.py", code)
        reactor.spawnProcess(process, sys.executable, [sys.executable, path], env=os.environ)  # type: ignore[attr-defined]
        self.addCleanup(process.kill)
        await process.until(lambda: "\n" in process.out)
        settings = WebhookSettings(
            authorize_url=f"http://127.0.0.1:{int(process.out)}/authorize",
            jwt=JWTSettings(secret=SECRET),
        )
        webhook = WebhookAuthenticator(settings, make_context(reactor))
        self.addCleanup(webhook.stop)
        answers = [await webhook.authorize(Identity(user, 7), chat(7, 11)) for user in (1, 2)]
        self.assertEqual(answers, [True, False])
