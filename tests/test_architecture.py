"""The import rules between the packages (ARCHITECTURE.md) hold, and each violation is reported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from tests.support.programs import ROOT

#: the source of each file by its path below notify/
Tree = dict[str, str]


class Package(NamedTuple):
    """``parts``: modules and folders directly in notify/; ``may``: the packages that they may import."""

    parts: str
    may: str


#: from the ground up: a package imports only itself and packages above it in this table, so no import points back up
PACKAGES = {
    "ground": Package("_version errors ids topics messages identity findings interfaces", ""),
    "config": Package("config", "ground"),
    "observe": Package("observe", "ground config"),
    "state": Package("state", ""),
    "wire": Package("wire", "ground"),
    "core": Package("core", "ground config observe wire"),
    "components": Package("components plugins", "ground config observe"),
    "nats": Package("nats", "ground config"),
    "workers": Package("workers", "ground config wire"),
    "auth": Package("auth", "ground config observe components"),
    "brokers": Package("brokers", "ground config observe state components nats"),
    "registries": Package("registries", "ground config observe components nats"),
    "control": Package("control", "ground config observe state components nats"),
    "transport": Package("transport", "ground config observe wire workers core"),
    "http": Package("http", "ground config observe wire core"),
    "service": Package("service", "ground config observe workers core transport http"),
    "dev": Package("dev", "ground config http"),
    "tap": Package(
        "tap roles", "ground config observe wire workers core components transport http service dev"
    ),
    "doctor": Package("doctor", "ground config observe components nats transport http"),
    "client": Package("client", ""),
    "testing": Package("testing", "ground config observe wire components nats tap client"),
    "chaos": Package("chaos", "ground config client"),
    "cli": Package("cli", "ground config observe components service tap doctor client chaos"),
}

#: the kinds of plugins: reached by name, through ``components``
KINDS = {"auth", "brokers", "registries", "control"}

#: a library, and the only modules that may import it
LIBRARIES = {
    "autobahn": "transport",
    "txaio": "transport",
    "nats": "nats",
    "nkeys": "nats",
    "asyncio": "nats service.reactor service.uv client._asyncio client._publish_asyncio",
    "uvloop": "service.uv",
    "twisted.web": "auth",
    "jwt": "auth cli.token",
    "google.protobuf": "wire",
}

#: libraries for input and output, and the pure modules: these must not import them, except for the part given here
IO = "twisted.internet twisted.protocols socket select ssl"
PURE = {
    "wire": "",
    "core": "twisted.internet.defer",
    "client.machine": "",
    "client.parts": "",
    **dict.fromkeys(("chaos.plan", "chaos.ledger", "chaos.report", "chaos.plot", "chaos.page"), ""),
}

#: the exceptions: a module, what it may import against the rules, and why
EXCEPTIONS = {
    ("cli.token", "auth"): "signs what the JWT authenticator verifies, with the same keys and checks",
    ("dev", "auth.tokens"): "signs the tokens of the demo page",
    ("chaos.local", "auth.tokens"): "signs the tokens of the clients of its own nodes",
}

#: how many files may stand directly in notify/
MOST_FILES = 12


def read(folder: Path) -> Tree:
    """The Python files below a folder, with their source."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.py")}


def module_of(path: str) -> str:
    """The name by which a file is imported, below ``notify``; empty for ``notify`` itself."""
    return path.removesuffix(".py").removesuffix("__init__").strip("/").replace("/", ".")


def within(name: str, places: str) -> bool:
    """Whether a dotted name is one of ``places`` (separated by spaces), or inside one."""
    return any(name == place or name.startswith(f"{place}.") for place in places.split())


def names(node: ast.AST) -> list[str]:
    """The names that an import statement imports, each with its package in front; empty for other statements."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.module, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def arrows(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """The modules of notify that each module imports, wherever the import stands and whatever it is for."""
    found = {}
    for module, parsed in modules.items():
        inner = {name[7:] for node in ast.walk(parsed) for name in names(node) if within(name, "notify")}
        found[module] = {name if name in modules else name.rpartition(".")[0] for name in inner}
    return found


def circles(graph: dict[str, set[str]]) -> Iterator[set[str]]:
    """The strongly connected components of two or more modules (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(node: str) -> Iterator[set[str]]:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                yield from visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            start = stack.index(node)
            circle = set(stack[start:])
            del stack[start:]
            if len(circle) > 1:
                yield circle

    for node in sorted(graph):
        if node not in index:
            yield from visit(node)


def package_of(module: str) -> str:
    """The package that a module belongs to; empty for none."""
    top = module.partition(".")[0]
    return next((name for name, package in PACKAGES.items() if top in ["", *package.parts.split()]), "")


def loaded(tree: ast.Module) -> Iterator[ast.AST]:
    """The parts of a module that run when it is loaded: everything outside functions."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)


def broken(tree: Tree, needed: set[tuple[str, str]]) -> Iterator[str]:
    """Yield a sentence for each violation. The exceptions that were needed are added to ``needed``."""

    def excepted(module: str, target: str) -> bool:
        found = {(who, what) for who, what in EXCEPTIONS if who == module and within(target, what)}
        needed.update(found)
        return bool(found)

    modules = {module_of(path): ast.parse(source) for path, source in sorted(tree.items())}
    graph = arrows(modules)
    for circle in circles(graph):
        yield f"circle: {', '.join(sorted(circle))}"
    for module, parsed in modules.items():
        if not (package := package_of(module)):
            yield f"{module} belongs to no package"
            continue
        may = PACKAGES[package].may.split()
        for target in sorted(graph[module]):
            if package_of(target) not in (package, *may) and not excepted(module, target):
                yield f"{module} imports {target}: {package} may import {', '.join(may) or 'nothing of notify'}"
        for name in sorted({name for node in ast.walk(parsed) for name in names(node)}):
            for library, places in LIBRARIES.items():
                if within(name, library) and not within(module, places):
                    yield f"{module} imports {name}: only {places} knows {library}"
            for place, but in PURE.items():
                forbidden = within(name, IO) and not within(name, but)
                if forbidden and within(module, place) and not excepted(module, name):
                    yield f"{module} imports {name}: {place} does no input and output"
        if any(within(name, "twisted.internet.reactor") for node in loaded(parsed) for name in names(node)):
            yield f"{module} imports the reactor when it is loaded"
    if (count := sum("/" not in path for path in tree)) > MOST_FILES:
        yield f"{count} files stand directly in notify/"


class ImportRules(SynchronousTestCase):
    """The rules hold for notify as it is."""

    def setUp(self) -> None:
        self.tree = read(ROOT / "notify")
        self.assertGreater(len(self.tree), 100)

    def test_no_rule_is_broken(self) -> None:
        self.assertEqual(list(broken(self.tree, set())), [])

    def test_every_exception_is_needed(self) -> None:
        needed: set[tuple[str, str]] = set()
        list(broken(self.tree, needed))
        self.assertEqual(needed, set(EXCEPTIONS))

    def test_no_module_brings_the_reactor(self) -> None:
        # Not indirectly either: a program that imports notify can still choose its reactor.
        program = "import sys; [__import__(name) for name in sys.argv[1:]]; print('twisted.internet.reactor' in sys.modules)"
        modules = [f"notify.{module_of(path)}".strip(".") for path in self.tree]
        done = subprocess.run(
            [sys.executable, "-c", program, *modules], capture_output=True, text=True, check=True, cwd=ROOT
        )
        self.assertEqual(done.stdout.strip(), "False")


class Table(SynchronousTestCase):
    """What the table of packages must not allow."""

    def test_arrows_point_one_way(self) -> None:
        above: set[str] = set()
        for name, package in PACKAGES.items():
            self.assertLessEqual(set(package.may.split()), above, name)
            above.add(name)

    def test_who_may_import_whom(self) -> None:
        by = {
            name: {other for other, package in PACKAGES.items() if name in package.may.split()}
            for name in PACKAGES
        }
        self.assertEqual(by["cli"], set())
        self.assertEqual(by["testing"], set())
        self.assertEqual(by["dev"], {"tap"})
        self.assertEqual(by["chaos"], {"cli"})
        self.assertEqual(by["tap"], {"cli", "testing"})
        self.assertEqual(set().union(*(by[kind] for kind in KINDS)), set())
        self.assertEqual(PACKAGES["client"].may, "")
        self.assertEqual(PACKAGES["ground"].may, "")


class MadeUp(SynchronousTestCase):
    """A made-up tree that breaks no rule, and what is reported when one thing in it is wrong."""

    good: Tree = {  # noqa: RUF012
        "__init__.py": "from notify._version import __version__",
        "_version.py": "",
        "errors.py": "from notify import __version__",
        "config.py": "from notify.errors import StartError",
        "wire/frames.py": "import msgspec\nfrom notify.errors import StartError",
        "core/hub.py": "",
        "core/session.py": "from twisted.internet.defer import Deferred\nfrom notify.wire import frames",
        "core/timers.py": "",
        "transport/websocket.py": "import autobahn.twisted\nfrom notify.core.session import Session",
        "nats/__init__.py": "",
        "nats/client.py": "import asyncio\nimport nats.errors",
        "auth/jwt.py": "",
        "brokers/__init__.py": "from notify.nats.client import Client",
        "registries/__init__.py": "",
        "http/__init__.py": "",
        "service/reactor.py": "import asyncio\ndef install():\n    from twisted.internet import reactor",
        "service/service.py": "",
        "dev/__init__.py": "",
        "tap.py": "from notify import dev",
        "client/__init__.py": "",
        "client/_asyncio.py": "import asyncio",
        "testing/__init__.py": "",
        "cli/__init__.py": "",
        "cli/token.py": "from notify.auth.jwt import JWTAuthenticator",
    }

    def told(self, more: Tree) -> list[str]:
        """What is reported after lines are added to files, or files to the tree."""
        tree = self.good | {path: f"{self.good.get(path, '')}\n{lines}\n" for path, lines in more.items()}
        return list(broken(tree, set()))

    def test_one_in_order_is_not_complained_about(self) -> None:
        self.assertEqual(self.told({}), [])

    def test_an_import_that_runs_back_up(self) -> None:
        self.assertEqual(
            self.told({"config.py": "import notify.service.reactor"}),
            ["config imports service.reactor: config may import ground"],
        )
        self.assertEqual(
            self.told({"errors.py": "from notify.wire import frames"}),
            [
                "circle: errors, wire.frames",
                "errors imports wire.frames: ground may import nothing of notify",
            ],
        )

    def test_a_circle_however_it_is_hidden(self) -> None:
        for back in (
            "from notify.core.session import Session",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from notify.core.session import Session",
            "def hidden():\n    from notify.core import session",
            "class Hidden:\n    def method(self):\n        import notify.core.session",
        ):
            told = self.told(
                {
                    "core/hub.py": "from notify.core import timers",
                    "core/session.py": "from notify.core import hub",
                    "core/timers.py": back,
                }
            )
            self.assertEqual(told, ["circle: core.hub, core.session, core.timers"])

    def test_two_circles_are_two(self) -> None:
        told = self.told(
            {
                "core/a.py": "from notify.core import b",
                "core/b.py": "from notify.core import a, c",
                "core/c.py": "from notify.core import d",
                "core/d.py": "from notify.core import c",
            }
        )
        self.assertEqual(told, ["circle: core.c, core.d", "circle: core.a, core.b"])

    def test_a_package_that_imports_what_it_should_not(self) -> None:
        for path, line, target in (
            ("brokers/__init__.py", "import notify.registries", "registries"),
            ("registries/__init__.py", "from notify import brokers", "brokers"),
            ("nats/__init__.py", "from notify.registries import Registry", "registries"),
            ("http/__init__.py", "from notify.transport import websocket", "transport.websocket"),
            ("http/__init__.py", "from notify.auth.jwt import JWTAuthenticator", "auth.jwt"),
            ("tap.py", "from notify.auth import jwt", "auth.jwt"),
            ("service/service.py", "from notify import dev", "dev"),
            ("client/__init__.py", "from notify.errors import StartError", "errors"),
            ("tap.py", "from notify.testing import make_context", "testing"),
            ("tap.py", "from notify.cli import COMMANDS", "cli"),
        ):
            module = module_of(path)
            (told,) = self.told({path: line})
            self.assertIn(f"{module} imports {target}: {package_of(module)} may import ", told)

    def test_a_library_out_of_its_place(self) -> None:
        for line, name, places in (
            ("import autobahn", "autobahn", "transport"),
            ("from nats.aio import client", "nats.aio.client", "nats"),
            ("def hidden():\n    import nkeys", "nkeys", "nats"),
            (
                "import asyncio",
                "asyncio",
                "nats service.reactor service.uv client._asyncio client._publish_asyncio",
            ),
        ):
            library = name.partition(".")[0]
            self.assertEqual(
                self.told({"service/service.py": line}),
                [f"service.service imports {name}: only {places} knows {library}"],
            )

    def test_input_and_output_in_a_pure_module(self) -> None:
        for line, name in (
            ("from twisted.internet import task", "twisted.internet.task"),
            (
                "from twisted.internet.interfaces import IReadDescriptor",
                "twisted.internet.interfaces.IReadDescriptor",
            ),
            ("import socket", "socket"),
        ):
            self.assertEqual(
                self.told({"core/session.py": line}),
                [f"core.session imports {name}: core does no input and output"],
            )
        self.assertEqual(
            self.told({"wire/frames.py": "from twisted.internet.defer import Deferred"}),
            ["wire.frames imports twisted.internet.defer.Deferred: wire does no input and output"],
        )

    def test_the_reactor_when_a_module_is_loaded(self) -> None:
        for line in (
            "from twisted.internet import reactor",
            "import twisted.internet.reactor",
            "if True:\n    try:\n        from twisted.internet import reactor\n    except ImportError:\n        pass",
            "class Hidden:\n    from twisted.internet import reactor",
        ):
            self.assertEqual(
                self.told({"http/__init__.py": line}), ["http imports the reactor when it is loaded"]
            )

    def test_a_file_in_no_package_and_too_many_of_them(self) -> None:
        self.assertEqual(self.told({"drawer.py": ""}), ["drawer belongs to no package"])
        told = self.told({f"drawer{number}.py": "" for number in range(MOST_FILES)})
        self.assertEqual(told[-1], "17 files stand directly in notify/")
