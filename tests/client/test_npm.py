"""The npm package of the JavaScript client: packed, installed into an empty folder, and used from there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from twisted.trial.unittest import SynchronousTestCase

from notify import __version__
from tests.support.browser import Browser
from tests.support.pages import serve_pages
from tests.support.process import Server, token
from tests.support.programs import ROOT, node_modules, program, run

PACKAGE = ROOT / "notify" / "web" / "client"
DECLARED = re.compile(r"(?m)^export (?:class|function|const|interface|type) (\w+)")
STRICT = (
    *("--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes", "--noEmit"),
    *("--target", "es2022", "--lib", "es2022"),
)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


class Described(SynchronousTestCase):
    def setUp(self) -> None:
        self.package = read(PACKAGE / "package.json")

    def test_it_is_of_our_version(self) -> None:
        self.assertEqual(self.package["version"], __version__)

    def test_it_carries_our_licence(self) -> None:
        self.assertEqual((PACKAGE / "LICENSE").read_text(), (ROOT / "LICENSE").read_text())

    def test_what_it_is_made_and_tested_with_is_pinned_once(self) -> None:
        tests, lock = (read(ROOT / "tests" / "js" / name) for name in ("package.json", "package-lock.json"))
        pins = tests["devDependencies"]
        self.assertEqual(lock["packages"][""]["devDependencies"], pins)
        for name, version in pins.items():
            self.assertEqual(lock["packages"][f"node_modules/{name}"]["version"], version)
        self.assertEqual(self.package["devDependencies"], {"esbuild": pins["esbuild"]})

    def test_the_typed_program_leaves_no_export_out(self) -> None:
        texts = [(PACKAGE / name).read_text() for name in ("notify-client.d.ts", "react.d.ts")]
        names = set(DECLARED.findall("\n".join(texts)))
        self.assertIn("NotifyClient", names)
        used = re.findall(r"\w+", (ROOT / "tests" / "js" / "package" / "every-export.ts").read_text())
        self.assertEqual({name for name in names if used.count(name) < 2}, set())


class Installed(SynchronousTestCase):
    """Installed in a folder of its own, with nothing else; the programs that use it are in tests/js/package."""

    def setUp(self) -> None:
        self.node, npm = program("node"), program("npm")
        self.modules = node_modules("esbuild")
        folder = Path(self.mktemp()).resolve()
        source, self.app = folder / "source", folder / "app"
        shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("dist", "node_modules"))
        (source / "node_modules").symlink_to(self.modules)
        run(npm, "pack", "--pack-destination", folder, cwd=source)
        [self.packed] = folder.glob("*.tgz")
        shutil.copytree(ROOT / "tests" / "js" / "package", self.app)
        (self.app / "package.json").write_text('{"private": true, "type": "module"}')
        run(npm, "install", "--offline", "--no-audit", "--no-fund", self.packed, cwd=self.app)

    def receives(self, *command: str | Path, cwd: Path) -> None:
        preload = ("--import", (self.modules.parent / "websocket.mjs").as_uri())  # for Node before 22
        with Server() as server:
            arguments = (*preload, *command, f"ws://127.0.0.1:{server.public}/ws", token(5))
            with subprocess.Popen(
                [self.node, *arguments],
                cwd=cwd,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as reader:
                assert reader.stdout is not None
                if (line := reader.stdout.readline()) != "ready\n":
                    self.fail(line + reader.stdout.read())
                self.assertEqual(server.publish(1, "Hello")[0], 200)
                self.assertEqual(reader.stdout.read(), "Hello\n")
            self.assertEqual(reader.returncode, 0)

    def bundle(self, entry: Path, out: Path) -> str:
        run(
            self.modules / ".bin" / "esbuild",
            *(entry, f"--outfile={out}", "--bundle", "--format=esm", "--platform=node"),
            cwd=self.app,
        )
        return out.read_text()

    def compile(self, *options: str) -> str:
        """What TypeScript reports about the program."""
        compiler = self.modules / "typescript" / "bin" / "tsc"
        done = subprocess.run(
            [self.node, compiler, *STRICT, *options, "every-export.ts"],
            cwd=self.app,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.assertEqual(done.returncode == 0, done.stdout == "", done.stderr)
        return done.stdout

    def test_it_holds_the_modules_their_types_and_the_file_for_a_script_tag(self) -> None:
        with tarfile.open(self.packed) as packed:
            names = {name.removeprefix("package/") for name in packed.getnames()}
        modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.js")} - {"global.js"}
        modules = {name for name in modules if not name.startswith(("dist/", "node_modules/"))}
        self.assertLessEqual({"notify-client.js", "machine.js", "parts/topics.js"}, modules)
        others = {"package.json", "README.md", "LICENSE", "notify-client.d.ts", "react.d.ts"}
        self.assertEqual(names, {*modules, *others, "dist/notify-client.global.js"})

    def test_a_program_receives_a_message(self) -> None:
        self.receives("module.mjs", cwd=self.app)

    def test_a_bundled_program_receives_a_message(self) -> None:
        elsewhere = self.app.parent / "elsewhere"
        self.bundle(self.app / "module.mjs", elsewhere / "bundle.mjs")
        self.receives("bundle.mjs", cwd=elsewhere)

    def test_a_bundler_takes_no_more_than_is_used(self) -> None:
        entry = self.app / "encode.mjs"
        entry.write_text('export { encode } from "notify-client";')
        bundled = self.bundle(entry, self.app / "small.mjs")
        self.assertIn("JSON.stringify", bundled)
        self.assertNotIn("connect_timeout", bundled)

    def test_strict_typescript_takes_every_export_as_it_is_meant_and_nothing_else(self) -> None:
        # The program marks wrong uses as expected errors; TypeScript complains if one is no error.
        for module in (("--module", "nodenext"), ("--module", "esnext", "--moduleResolution", "bundler")):
            self.assertEqual(self.compile(*module), "")
        program = self.app / "every-export.ts"
        program.write_text(program.read_text().replace("// @ts-expect-error no such setting", ""))
        self.assertRegex(
            self.compile("--module", "nodenext"), r"^every-export\.ts\(\d+,\d+\): error .*'patience'"
        )

    def test_the_file_for_a_script_tag_receives_a_message_and_makes_one_global(self) -> None:
        self.receives("script.mjs", cwd=self.app)

    def test_a_page_with_a_script_tag_receives_a_message(self) -> None:
        page = serve_pages(self, self.app)
        with Browser() as browser, Server(f'[listen]\nallowed_origins = ["{page}"]\n') as server:
            address = {"url": f"ws://127.0.0.1:{server.public}/ws", "token": token(5)}
            browser.go(f"{page}/page.html?{urlencode(address)}")
            browser.until("subscribed", lambda: browser.text("p"))
            self.assertEqual(browser.text("p"), "ready")
            server.publish(1, "Hello")
            browser.until("received", lambda: browser.text("p") == "Hello")
            saved = browser.until(
                "saved", lambda: browser.run("return localStorage.getItem('user-5:chat:1')")
            )
            self.assertEqual(json.loads(saved)["seq"], 1)
