"""What is published: an sdist equal to the tree, a wheel with all of notify and nothing else, and correct metadata."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from trove_classifiers import classifiers
from twisted.trial.unittest import SynchronousTestCase

from notify import __version__
from notify.transport import fanout
from tests.support.programs import ROOT, UNMEASURED, need, program, run

#: the module that a requirement is imported as, if the names differ
IMPORTED_AS = {
    "cyclonedx-python-lib": "cyclonedx",
    "grpcio-tools": "grpc_tools",
    "nats-py": "nats",
    "opentelemetry-api": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
    "opentelemetry-proto": "opentelemetry.proto",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "protobuf": "google.protobuf",
    "pyjwt": "jwt",
    "pyopenssl": "OpenSSL",
    "python-socketio": "socketio",
    "pyyaml": "yaml",
    "zope-interface": "zope.interface",
}

#: the only module that may need each of the server's extras
EXTRAS = {"otel": "notify/observe/tracing.py", "uvloop": "notify/service/uv.py"}

#: the C source, and the suffix of the library that a wheel has if it was built there
FAN_OUT, SUFFIX = "notify/transport/_fanout.c", sysconfig.get_config_var("EXT_SUFFIX")

#: files that running the project creates in the tree; they are planted, and must be left out
JUNK = (
    ".venv/pyvenv.cfg",
    "build/lib/notify/errors.py",
    "debian/.tools/bin/pip",
    "debian/notify-server/usr/bin/notify",
    "examples/chat/data/chat.sqlite",
    "node_modules/ws/index.js",
    "notify/__pycache__/errors.cpython-311.pyc",
    "notify/plugins/dropin.cache",
    "notify/transport/_fanout.cpython-30-nowhere.so",
    "notify/web/client/dist/notify-client.global.js",
    "tests/js/node_modules/ws/index.js",
)


def tree() -> list[str]:
    """The files of the project: everything here except what .gitignore names."""
    ignored = (ROOT / ".gitignore").read_text().split()
    pattern = re.compile("|".join(map(_expression, [".git/", *ignored, *(f"**/{line}" for line in ignored)])))
    names = []
    for folder, folders, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        # Do not descend into ignored folders: they have a hundred times as many files.
        folders[:] = [name for name in folders if not pattern.fullmatch((here / name).as_posix())]
        names += [(here / name).as_posix() for name in files]
    return sorted(name for name in names if not pattern.fullmatch(name) and (ROOT / name).is_file())


def _expression(pattern: str) -> str:
    parts = re.escape(pattern.rstrip("/")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    return f"{parts}(?:/.*)?"


class Built(NamedTuple):
    source: frozenset[str]
    sdist: frozenset[str]
    wheel: frozenset[str]
    path: Path
    metadata: Metadata


@cache
def built() -> Built:
    """An sdist of the tree with junk in it, and the wheel built from the sdist; made once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="notify-dist-"))
    try:
        source, out = folder / "source", Path.cwd() / "notify-dist"
        names = tree()
        for name in names:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
        for name in JUNK:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text("junk")
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, environ=UNMEASURED)
    finally:
        shutil.rmtree(folder)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    with tarfile.open(sdist) as archive:
        inside = frozenset(m.name.partition("/")[2] for m in archive.getmembers() if m.isfile())
    with zipfile.ZipFile(wheel) as archive_:
        info = f"{wheel.name.rsplit('-', 3)[0]}.dist-info"
        metadata = Metadata.from_email(archive_.read(f"{info}/METADATA"), validate=True)
        return Built(frozenset(names), inside, frozenset(archive_.namelist()), wheel, metadata)


class Artefacts(SynchronousTestCase):
    def test_the_sdist_is_the_tree(self) -> None:
        made = {name for name in built().sdist if re.match(r"PKG-INFO$|setup\.cfg$|[^/]+\.egg-info/", name)}
        self.assertEqual(built().sdist - made, built().source)
        self.assertIn("proto/notify.proto", built().sdist)

    def test_the_tree_is_what_git_knows(self) -> None:
        need((ROOT / ".git").exists(), "this is no clone")
        shown = run(program("git"), "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
        self.assertEqual(set(tree()), {name for name in shown.splitlines() if (ROOT / name).is_file()})

    def test_the_wheel_has_every_file_of_notify_and_nothing_else(self) -> None:
        info = f"{built().path.name.rsplit('-', 3)[0]}.dist-info/"
        ours = {name for name in built().source if name.startswith("notify/")}
        self.assertLessEqual(
            {
                *("notify/py.typed", "notify/wire/proto/notify_pb2.pyi"),
                *("notify/web/index.html", "notify/web/admin/index.html", "notify/web/admin/admin.js"),
                *("notify/web/admin/admin.css", "notify/web/client/int64.js"),
            },
            ours,
        )
        inside = {name for name in built().wheel if not name.startswith(info)}
        compiled = {name for name in inside if name.endswith(".so")}
        self.assertEqual(inside - compiled, ours - {FAN_OUT} | {"twisted/plugins/notify_plugin.py"})
        self.assertEqual(compiled, {f"notify/transport/_fanout{SUFFIX}"} if fanout.in_c else set())
        self.assertIn(f"{info}licenses/LICENSE", built().wheel)

    def test_a_wheel_for_every_machine_can_be_built_and_one_that_has_what_is_in_c_or_fails(self) -> None:
        source = Path(self.mktemp()).resolve()
        for name in tree():
            if name.startswith(("notify/", "twisted/")) or name in (
                "setup.py",
                "pyproject.toml",
                "README.md",
                "LICENSE",
            ):
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, source / name)

        def build(pure: str) -> list[str]:
            out = Path(self.mktemp()).resolve()
            options = ("-m", "build", "--wheel", "--no-isolation", "--outdir", out, source)
            run(sys.executable, *options, environ={"NOTIFY_PURE": pure, "CC": "false", **UNMEASURED})
            return [made.name.partition("-")[2] for made in out.glob("*.whl")]

        self.assertEqual(build("1"), [f"{__version__}-py3-none-any.whl"])
        self.assertEqual([name.endswith(".whl") for name in build("")], [True])
        with self.assertRaisesRegex(AssertionError, "notify.transport._fanout"):
            build("0")

    def test_installed_it_has_the_plugin_and_the_command(self) -> None:
        target = Path(self.mktemp()).resolve()
        command = ("-m", "pip", "install", "-q", "--no-deps", "--target", target, built().path)
        run(sys.executable, *command, environ=UNMEASURED)
        shown = run(sys.executable, "-I", "-c", LOOK, target)
        self.assertEqual(shown.split(), [str(target), "notify", "jwt", "memory"])
        self.assertTrue((target / "bin" / "notify").exists())


#: prints where notify is, and what Twisted and notify find in it; the editable installation is disabled
LOOK = """
import sys
sys.path = [sys.argv[1]] + [p for p in sys.path if "__editable__" not in p]
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
import notify, os
from twisted.plugin import getPlugins
from twisted.application.service import IServiceMaker
from notify.components import plugins
print(os.path.dirname(os.path.dirname(notify.__file__)))
print(*[p.tapname for p in getPlugins(IServiceMaker) if p.tapname == "notify"][:1])
print(*[n for n in plugins("auth") if n == "jwt"], *[n for n in plugins("broker") if n == "memory"])
"""


class About(SynchronousTestCase):
    """What no validator checks; ``built`` has validated the metadata."""

    def test_the_licence_is_an_expression_and_its_text_comes_along(self) -> None:
        self.assertEqual((built().metadata.license_expression, built().metadata.license), ("MIT", None))
        self.assertEqual(built().metadata.license_files, ["LICENSE"])

    def test_the_description_is_the_readme(self) -> None:
        self.assertEqual(built().metadata.description_content_type, "text/markdown")
        self.assertEqual(
            (built().metadata.description or "").strip(), (ROOT / "README.md").read_text().strip()
        )

    def test_every_classifier_exists(self) -> None:
        self.assertLessEqual(
            {"Framework :: Twisted", "Typing :: Typed"}, set(built().metadata.classifiers or [])
        )
        self.assertEqual(set(built().metadata.classifiers or []) - classifiers, set())

    def test_the_oldest_python_is_the_one_that_is_asked_for(self) -> None:
        named = re.findall(r"Python :: (3\.\d+)", "\n".join(built().metadata.classifiers or []))
        oldest = min(named, key=lambda version: int(version[2:]))
        self.assertEqual(str(built().metadata.requires_python), f">={oldest}")


def required(*extras: str) -> dict[str, Requirement]:
    """What an installation with these extras requires, by name."""
    found = {}
    for requirement in built().metadata.requires_dist or []:
        marker = requirement.marker
        if not marker or any(marker.evaluate({"extra": extra}) for extra in extras):
            found[canonicalize_name(requirement.name)] = requirement
    return found


def imported(folder: str, beside: bool = False) -> dict[str, str]:
    """The modules that a folder imports from elsewhere, each with one file that does so.

    ``beside``: files there import their neighbours by bare names, which do not count.
    """
    found = {}
    for name in tree():
        if not (name.startswith(f"{folder}/") and name.endswith((".py", ".pyi"))):
            continue
        own = OURS | {path.stem for path in (ROOT / name).parent.glob("*.py") if beside}
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            else:
                continue
            found.update({module: name for module in modules if module.partition(".")[0] not in own})
    return found


OURS = {*sys.stdlib_module_names, "notify", "tests", "benchmarks"}


def provides(name: str, module: str) -> bool:
    """Whether a module is imported from this requirement."""
    return f"{module}.".startswith(IMPORTED_AS.get(name, name.replace("-", "_")) + ".")


def reasons() -> set[str]:
    """The requirements that have a comment beside them in setup.py."""
    lines = re.findall(r'^ +"([\w.-]+)\S*",  # \S', (ROOT / "setup.py").read_text(), re.MULTILINE)
    return {canonicalize_name(line) for line in lines}


class Requirements(SynchronousTestCase):
    def check_imports(self, folder: str, *extras: str, beside: bool = False) -> dict[str, str]:
        """Check that every import of a folder has an entry; return the imports."""
        entries, modules = required(*extras), imported(folder, beside)
        self.assertTrue(modules)
        for module, file in modules.items():
            self.assertTrue(
                any(provides(name, module) for name in entries), f"{file}: {module} has no entry in setup.py"
            )
        return modules

    def check_entries(self, entries: set[str], modules: dict[str, str]) -> None:
        """Check that every entry is imported, or has a reason beside it."""
        unused = {name for name in entries if not any(provides(name, module) for module in modules)}
        self.assertEqual(unused - reasons(), set(), "imported nowhere, and no reason beside it")

    def test_notify_and_install_requires(self) -> None:
        found = self.check_imports("notify", *EXTRAS)
        modules = {module: file for module, file in found.items() if file not in EXTRAS.values()}
        self.check_entries(set(required()), modules)
        for module, file in modules.items():
            self.assertTrue(any(provides(name, module) for name in required()), f"{file}: {module}")

    def test_extras(self) -> None:
        for extra, file in EXTRAS.items():
            self.check_entries(set(required(extra)) - set(required()), imported(file.rpartition("/")[0]))

    def test_tests_and_test(self) -> None:
        modules = self.check_imports("tests", "test")
        self.check_entries(set(required("test")) - set(required(*EXTRAS, "examples")), modules)

    def test_benchmarks_and_bench(self) -> None:
        modules = self.check_imports("benchmarks", "bench")
        self.check_entries(set(required("bench")) - set(required()), modules)

    def test_examples_and_examples(self) -> None:
        modules = self.check_imports("docs/examples/cookbook", "examples", beside=True)
        modules |= self.check_imports("examples", "examples", beside=True)
        self.check_entries(set(required("examples")) - set(required()), modules)
        self.assertLessEqual(set(required("examples")), set(required("test")))

    def test_dev_is_test_and_programs(self) -> None:
        self.assertLess(set(required("test")), set(required("dev")))
        self.check_entries(set(required("dev")) - set(required("test")), {})

    def test_the_client_alone_needs_what_its_page_installs(self) -> None:
        page = (ROOT / "docs" / "client.md").read_text()
        part = page.partition("## Installing\n")[2].partition("\n## ")[0]
        words = [word for line in re.findall(r"pip install ([^&`\n]*)", part) for word in line.split()]
        # skips options and paths
        told = {Requirement(name).name for word in words if (name := word.strip("'"))[0].isalpha()}
        # zope.interface comes with Twisted, and only the Twisted front end needs it.
        of_twisted = ("twisted.", "zope.")
        modules = {module for module in imported("notify/client") if not module.startswith(of_twisted)}
        self.assertEqual({name for module in modules for name in required() if provides(name, module)}, told)
