"""The JavaScript client: its own tests under Node, its types under TypeScript, its package."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify import __version__
from notify.client import Settings
from tests.tools import ROOT, node_modules, program

PACKAGE = ROOT / "notify" / "web" / "client"
TYPED = """
import { HistoryLost, LocalStorageStore, NotifyClient } from "%s";
const token = async () => ({ value: "T", expiresAt: 1.5 });
const client = new NotifyClient("ws://h/ws", { token, store: new LocalStorageStore("user-1") });
await client.start();
client.on("state", (state) => console.log(state.state, state.delay?.toFixed()));
for await (const message of client.chat(7n, { onLost: (loss) => console.log(loss.before.seq) })) {
  const text: string = message.content;
  console.log(text, message.position.seq);
}
for await (const notification of client.notifications) console.log(notification.kind, notification.data);
"""


def run(*command: str, timeout: float = 100) -> Deferred[Any]:
    return deferToThread(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


class JavaScript(TestCase):
    timeout = 120

    async def test_its_own_tests_pass_and_so_do_all_scenarios(self) -> None:
        tests = sorted(str(path) for path in (ROOT / "tests" / "js").glob("*.test.mjs"))
        done = await run(program("node"), "--test", "--test-reporter=tap", *tests)
        self.assertEqual(done.returncode, 0, done.stdout[-5000:])
        counts = dict(re.findall(r"^# (\w+) (\d+)$", done.stdout, re.MULTILINE))
        scenarios = json.loads((ROOT / "tests/conformance/scenarios.json").read_text())["scenarios"]
        self.assertGreater(int(counts["pass"]), len(scenarios))
        self.assertEqual((counts["fail"], counts["skipped"], counts["todo"]), ("0", "0", "0"))
        for scenario in scenarios:
            self.assertRegex(done.stdout, rf"(?m)^\s*ok \d+ - {re.escape(scenario['name'])}$")

    async def test_a_typed_program_is_accepted_and_a_wrong_one_is_not(self) -> None:
        compiler = node_modules() / "typescript" / "bin" / "tsc"
        folder = node_modules().parent / "node_modules" / ".typed"
        folder.mkdir(exist_ok=True)
        (folder / "package.json").write_text('{"type": "module"}')
        typed = TYPED % "../../../../notify/web/client/notify-client.js"
        (folder / "right.ts").write_text(typed)
        (folder / "wrong.ts").write_text(typed.replace("message.position.seq", "message.position.sequence"))
        options = ("--noEmit", "--strict", "--target", "es2022", "--module", "nodenext")
        right = await run(program("node"), str(compiler), *options, str(folder / "right.ts"))
        self.assertEqual((right.returncode, right.stdout), (0, ""))
        wrong = await run(program("node"), str(compiler), *options, str(folder / "wrong.ts"))
        self.assertIn("'sequence' does not exist", wrong.stdout)

    async def test_npm_would_pack_the_library_and_not_the_demo(self) -> None:
        done = await run(program("npm"), "pack", "--dry-run", "--json", "--offline", str(PACKAGE))
        packed = {one["path"] for one in json.loads(done.stdout)[0]["files"]}
        self.assertEqual(packed, {"notify-client.js", "notify-client.d.ts", "package.json"})

    async def test_its_settings_are_those_of_the_python_library(self) -> None:
        show = (
            f"import('{PACKAGE / 'notify-client.js'}').then((m) => console.log(JSON.stringify(m.DEFAULTS)))"
        )
        done = await run(program("node"), "-e", show)
        self.assertEqual(json.loads(done.stdout), msgspec.to_builtins(Settings()))

    async def test_what_is_exported_is_declared(self) -> None:
        show = f"import('{PACKAGE / 'notify-client.js'}').then((m) => console.log(Object.keys(m).join()))"
        exported = (await run(program("node"), "-e", show)).stdout.strip().split(",")
        declared = re.findall(
            r"(?m)^export (?:class|function|const) (\w+)", (PACKAGE / "notify-client.d.ts").read_text()
        )
        self.assertIn("NotifyClient", exported)
        self.assertEqual(sorted(exported), sorted(declared))

    def test_its_package_is_whole_and_of_our_version(self) -> None:
        package = json.loads((PACKAGE / "package.json").read_text())
        self.assertEqual(package["version"], __version__)
        named = [*package["files"], package["main"], package["types"], *package["exports"]["."].values()]
        self.assertEqual([name for name in named if not (PACKAGE / name).is_file()], [])
