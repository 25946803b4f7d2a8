"""What the pages say about this repository is true: links, targets, modules, and the tables of the protocol."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path
from typing import get_args

from msgspec import NODEFAULT, structs
from twisted.trial.unittest import SynchronousTestCase

from notify.core import authentication, chats, session
from notify.transport.websocket import CODES
from notify.wire import frames
from tests.support.programs import ROOT, program
from tests.test_architecture import PACKAGES, module_of, package_of, read

#: folders that are made by installing or running something
MADE = {".venv", ".git", "node_modules", "build", "dist", ".pytest_cache", "_trial_temp"}

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^(?:```.*?^```|~~~.*?^~~~)", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"(?:`|\$ |^ {4}|&& )(?:[A-Z_]+=\S+ )*make ([a-z][a-z0-9-]*)", re.MULTILINE)
PATH = re.compile(r"`((?:notify|tests|benchmarks|docs|etc|deploy|debian|packaging|proto)/[\w./-]*\w/?)[`:]")
INSTALL = re.compile(r"\b(?:pip3?|npm|uv|pipx) (?:install|i|add) ([^`&;,#|)\n]*)")

#: names of this project that are, until it is published, somebody else's or nobody's in a registry
UNPUBLISHED = {"notify", "notify-server", "notify-client"}
UNPUBLISHED |= set(re.findall(r'^    name="(.+)",$', (ROOT / "setup.py").read_text(), re.MULTILINE))


def pages() -> list[Path]:
    found = [
        path for path in ROOT.rglob("*.md") if not any(part in MADE for part in path.relative_to(ROOT).parts)
    ]
    return sorted(found)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere in this repository."""
    wrong = []
    for link in LINK.findall(CODE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            wrong.append(link)
    return wrong


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def unpublished(text: str) -> list[str]:
    """The names of this project that a text installs from a registry."""
    words = [word for line in INSTALL.findall(text) for word in line.split()]
    names = [re.split(r"[\[=<>~!@]", word.strip("\"'"))[0] for word in words]
    return [name for name in names if name.lower().replace("_", "-") in UNPUBLISHED]


class Pages(SynchronousTestCase):
    def test_every_link_leads_to_a_file_that_exists(self) -> None:
        count = 0
        for page in pages():
            self.assertEqual(broken(page), [], page.relative_to(ROOT))
            count += len(LINK.findall(page.read_text()))
        self.assertGreater(count, 40)

    def test_a_link_that_leads_nowhere_is_seen(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        (folder / "there.md").write_text("# A heading: `one`\n")
        page = folder / "page.md"
        page.write_text(
            "[a](there.md) [b](there.md#a-heading-one) [c](gone.md) [d](there.md#two) [e](https://x/)"
        )
        self.assertEqual(broken(page), ["gone.md", "there.md#two"])

    def test_every_make_is_a_target(self) -> None:
        named = {name: page for page in pages() for name in TARGET.findall(page.read_text())}
        self.assertLessEqual({"run", "test", "check", "deb", "bench", "faults"}, set(named))
        for name, page in named.items():
            self.assertIn(name, targets(), page.relative_to(ROOT))

    def test_no_page_installs_a_name_that_is_not_published(self) -> None:
        texts = [*pages(), ROOT / "etc" / "notify.toml", *(ROOT / "notify").rglob("*.py")]
        for path in texts:
            self.assertEqual(unpublished(path.read_text()), [], path.relative_to(ROOT))

    def test_a_name_that_is_not_published_is_seen(self) -> None:
        text = """`pip install notify-server`, pip install -U "notify_realtime[otel]>=1", `npm install notify-client`,
            npm i --save notify-client; pip install . && pip install ".[otel]" /src/notify-server, npm ci notify-client"""
        self.assertEqual(
            unpublished(text), ["notify-server", "notify_realtime", "notify-client", "notify-client"]
        )

    def test_every_target_that_is_no_file_is_phony_and_explained(self) -> None:
        text = (ROOT / "Makefile").read_text()
        phony = set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split())
        self.assertEqual(phony, targets())
        shown = subprocess.run(
            [program("make"), "--no-print-directory", "help"],
            cwd=ROOT,
            # As from a shell, even if the tests themselves run under make.
            env={
                name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        self.assertEqual({line.split()[0] for line in shown.splitlines()}, phony)

    def test_every_file_of_ours_that_is_named_is_there(self) -> None:
        named = {name: page for page in pages() for name in PATH.findall(page.read_text())}
        self.assertGreater(len(named), 20)
        for name, page in named.items():
            self.assertTrue((ROOT / name).exists(), f"{page.relative_to(ROOT)}: {name}")

    def test_every_metric_that_is_named_is_counted(self) -> None:
        code = "".join(path.read_text() for path in (ROOT / "notify").rglob("*.py"))
        made = set(re.findall(r"\"(notify_\w+)\"", code))
        named = {
            name: page for page in pages() for name in re.findall(r"`(notify_[a-z_]+)", page.read_text())
        }
        self.assertGreater(len(named), 10)
        for name, page in named.items():
            if name.startswith("notify_worker_") and name not in made:
                # A worker's metric has the name of one of the server's, or of one of a process.
                name = name.replace("_worker_process_", "_process_").replace("_worker_", "_")
                made.add("notify_process_cpu_seconds")
            self.assertTrue(
                {name, name.removesuffix("_total"), name.removesuffix("_info")} & made,
                f"{page.relative_to(ROOT)}: {name}",
            )


def modules() -> list[tuple[str, str]]:
    """Package and name of every module, except the version, generated code, and packages that only re-export."""
    found = []
    for path, source in read(ROOT / "notify").items():
        makes = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(source).body)
        if (makes or not path.endswith("__init__.py")) and not path.startswith(("_version", "wire/proto/")):
            package = package_of(module_of(path))
            module = path.removesuffix(".py").removesuffix("__init__")
            found.append((package, module.removeprefix(f"{package}/") or module))
    return found


class Architecture(SynchronousTestCase):
    """ARCHITECTURE.md, compared with the tree."""

    page = (ROOT / "ARCHITECTURE.md").read_text()

    def part(self, heading: str) -> str:
        found = self.page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        self.assertTrue(found, heading)
        return found

    def test_every_module_is_in_the_table_and_no_other(self) -> None:
        named, packages, package = [], [], ""
        for first, second in re.findall(
            r"^\| (.*?) ?\| (.*?) ?\| .+ \|$", self.part("Modules"), re.MULTILINE
        )[2:]:
            if first:
                package = first.strip("`")
                packages.append(package)
            named += [(package, module) for module in re.findall(r"`(.+?)`", second)]
        self.assertEqual(sorted(packages), sorted([*PACKAGES, "web"]))
        self.assertEqual(set(modules()) - set(named), set(), "not in the table")
        self.assertEqual(set(named) - set(modules()), set(), "not in the tree")
        self.assertEqual(len(named), len(set(named)))

    def test_every_package_is_in_the_picture(self) -> None:
        picture = self.part("Packages").split("```")[1] + "testing"
        for package in PACKAGES:
            self.assertRegex(picture, rf"\b{package}\b")

    def test_the_data_flows_through_modules_that_exist(self) -> None:
        named = re.findall(r"\b([a-z]+/[a-z_]+)\b", self.part("Data flow").split("```")[1])
        self.assertGreater(len(named), 8)
        for path in named:
            place = ROOT / "notify" / path
            self.assertTrue(place.is_dir() or place.with_suffix(".py").exists(), path)


class Protocol(SynchronousTestCase):
    """The tables of docs/protocol.md, compared with the frames, fields and codes of the code."""

    page = (ROOT / "docs" / "protocol.md").read_text()

    def part(self, heading: str) -> str:
        return self.page.partition(f"### {heading}\n")[2].partition("\n### ")[0].partition("\n## ")[0]

    def fields(self, heading: str) -> dict[str, set[str]]:
        """The fields in the tables of a part, by type."""
        found: dict[str, set[str]] = {}
        for types, cell in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|(.*)$", self.part(heading), re.MULTILINE):
            for name in re.findall(r"`(\w+)`", types):
                found.setdefault(name, set()).update(
                    re.findall(r"`(\w+)(?::[^`]*)?`", cell.partition("|")[0])
                )
        return found

    def test_client_frames_have_the_fields_that_are_listed(self) -> None:
        listed = self.fields("Client to server")
        kinds = {kind.__struct_config__.tag: kind for kind in get_args(frames.ClientFrame)}
        self.assertEqual(set(listed), set(kinds))
        for tag, kind in kinds.items():
            fields = {field.encode_name for field in structs.fields(kind)} - {"id"}
            self.assertEqual(listed[tag], fields, tag)

    def test_what_the_original_protocol_asks_for_is_needed_and_the_rest_is_not(self) -> None:
        original = self.part("Client to server").partition("Additive:")[0]
        for kind in get_args(frames.ClientFrame):
            row = re.search(rf"^\| `{kind.__struct_config__.tag}` \|(.*?)\|", original, re.MULTILINE)
            if row is not None:
                needed = {
                    field.encode_name
                    for field in structs.fields(kind)
                    if field.default is NODEFAULT and field.default_factory is NODEFAULT
                }
                self.assertEqual(set(re.findall(r"`(\w+)`", row[1])), needed)

    def test_server_frames_have_the_fields_that_are_listed(self) -> None:
        listed = self.fields("Server to client")
        kinds = {kind.__struct_config__.tag: kind for kind in get_args(frames.ServerFrame)}
        self.assertEqual(set(listed), set(kinds))
        for tag, kind in kinds.items():
            fields = {field.encode_name for field in structs.fields(kind)} - {"id"}
            self.assertEqual(listed[tag] - {"id", "since", "refresh"}, fields, tag)

    def test_every_error_code_is_listed(self) -> None:
        listed = re.search(r"^Error codes: (.*?`internal`)\.", self.page, re.MULTILINE | re.DOTALL)
        assert listed is not None
        sources = [Path(module.__file__).read_text() for module in (session, authentication, chats)]
        sent = {code for source in sources for code in re.findall(r"\berror\(\s*\"(\w+)\"", source)}
        self.assertEqual(set(re.findall(r"`(\w+)`", listed[1])), sent)

    def test_every_close_code_is_listed(self) -> None:
        rows = re.findall(r"^\| ([\d, ]+) \|", self.part("Close codes"), re.MULTILINE)
        listed = {int(code) for row in rows for code in row.split(",")}
        # 1000 is a client's own goodbye, and 1006 is never sent (RFC 6455, section 7.4.1).
        self.assertEqual(listed - {1002, 1007, 1009}, CODES - {1000, 1002, 1006, 1007, 1009})
