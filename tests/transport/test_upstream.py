"""The undocumented parts of autobahn, Twisted and pyOpenSSL that we depend on exist, and are used in one place."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket import compress_deflate, protocol
from OpenSSL import SSL
from twisted.internet import abstract, tcp
from twisted.internet.task import Clock
from twisted.protocols import tls
from twisted.trial.unittest import SynchronousTestCase

import notify.http
import notify.transport
from notify.transport.upstream import AUTOBAHN, PYOPENSSL, SHARED, TWISTED, OpenProtocol, initial_state
from notify.transport.websocket import ConnectionFactory
from tests.support.world import World

LEANED_ON: list[tuple[dict[str, str], tuple[ModuleType, ...]]] = [
    (AUTOBAHN, (protocol, compress_deflate)),
    (TWISTED, (abstract, tcp, tls)),
    (PYOPENSSL, (SSL,)),
]

#: attributes that only a client's end reads
CLIENTS = {
    "acceptMaskedServerFrames",
    "maskClientFrames",
    "serverConnectionDropTimeout",
    "serverConnectionDropTimeoutCall",
}


def spoken_of(source: str) -> set[str]:
    """The names of attributes, methods, class variables and imports in a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.ClassDef):
            for one in node.body:
                targets = one.targets if isinstance(one, ast.Assign) else [getattr(one, "target", None)]
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def private(source: str) -> set[str]:
    """The private names that a module uses and does not define itself."""
    used, own = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            used.add(node.attr)
            mine = isinstance(node.value, ast.Name) and node.value.id == "self"
            if mine and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
        elif isinstance(node, ast.ClassDef):
            own |= {name for one in node.body for name in defined(one)}
    return used - own


def defined(node: ast.stmt) -> set[str]:
    """The private names that a statement in the body of a class defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def of_self(source: str) -> list[ast.Attribute]:
    """Every use of ``self.something`` in a module."""
    return [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    ]


def modules(package: ModuleType) -> dict[str, str]:
    """The sources of a package's modules, by module name."""
    [folder] = package.__path__
    return {path.stem: path.read_text() for path in Path(folder).glob("*.py")}


class Names(SynchronousTestCase):
    def gone(self, names: dict[str, str], sources: list[str]) -> list[str]:
        there = set().union(*map(spoken_of, sources))
        return [f"{name} ({why})" for name, why in names.items() if name not in there]

    def test_each_name_is_there(self) -> None:
        for names, places in LEANED_ON:
            self.assertEqual(self.gone(names, [inspect.getsource(place) for place in places]), [])

    def test_one_that_is_renamed_is_told(self) -> None:
        for names, places in LEANED_ON:
            for name in [*names][::5]:
                renamed = [re.sub(rf"\b{name}\b", "renamed", inspect.getsource(place)) for place in places]
                self.assertEqual(self.gone(names, renamed), [f"{name} ({names[name]})"])

    def test_they_are_touched_in_one_place_and_no_others_are(self) -> None:
        sources = modules(notify.transport)
        listed = {*AUTOBAHN, *TWISTED, *PYOPENSSL}
        for name, source in sources.items():
            if name == "upstream":
                self.assertEqual(private(source) - listed, set(), name)
                self.assertEqual(listed - spoken_of(source), set(), "listed, and not leaned on")
            else:
                self.assertEqual(private(source), set(), name)
                self.assertEqual({node.attr for node in of_self(source)} & listed, set(), name)

    def test_the_http_front_leans_on_none(self) -> None:
        for name, source in modules(notify.http).items():
            self.assertEqual(private(source), set(), name)


class InitialState(SynchronousTestCase):
    """Our replacement for autobahn's own initialisation of each connection."""

    def factory(self) -> Any:
        return ConnectionFactory(World().hub, Clock())

    def test_a_connection_has_everything_that_autobahn_gives_one(self) -> None:
        factory = self.factory()
        stock: Any = WebSocketServerProtocol()
        stock.factory, stock.peer = factory, ""
        stock._connectionMade()
        ours = factory.protocol()
        missing = [name for name in vars(stock) if not hasattr(ours, name)]
        self.assertEqual(missing, [])
        self.assertEqual(vars(ours), {})

    def test_a_connection_has_everything_that_autobahn_reads_of_one(self) -> None:
        """autobahn's handshake, which we do not use, sets some attributes: what is read later must be set elsewhere."""
        ours = self.factory().protocol()
        todo = ["dataReceived", "other", "connectionLost", "sendPing", "say_close", "onCloseHandshakeTimeout"]
        done, reads, sets = {"processHandshake", "processProxyConnect"}, set(), set()
        while todo:
            name = todo.pop()
            if name in done:
                continue
            done.add(name)
            for kind in type(ours).__mro__:
                method = vars(kind).get(name)
                if not callable(method) or (
                    not kind.__module__.startswith("autobahn") and kind is not OpenProtocol
                ):
                    continue
                for node in of_self(textwrap.dedent(inspect.getsource(method))):
                    (sets if isinstance(node.ctx, ast.Store) else reads).add(node.attr)
            todo += sorted(reads - done)
        self.assertIn("websocket_version", reads)
        missing = {name for name in reads - sets - CLIENTS if not hasattr(ours, name)}
        self.assertEqual(missing, set())

    def test_nothing_that_can_change_is_shared_but_what_is_known_to_be_safe(self) -> None:
        shared = {
            name
            for name, value in initial_state(self.factory()).items()
            if not (value is None or callable(value) or isinstance(value, bool | int | float | str | bytes))
        }
        options = {"allowedOrigins", "allowedOriginsPatterns", "versions"}
        self.assertEqual(shared - options, SHARED)
