"""The arrows between rooms point one way (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent / "notify"

#: a library, and the only places that may import it
ONLY = {
    "autobahn": ("transport/",),
    "twisted.web": ("http/", "auth/", "testing/"),
}

#: rooms that know a kind of plugin, and why
EXCEPTIONS = {
    ("cli/token.py", "auth"): "signs what the JWT authenticator verifies, with the same keys",
    ("dev/__init__.py", "auth"): "makes tokens for its own server",
}

#: what the ground floor may import of notify: itself
GROUND = {"topics", "messages", "errors", "identity", "_version"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


class Arrows(SynchronousTestCase):
    def setUp(self) -> None:
        self.rooms = {str(path.relative_to(ROOT)): imports(path) for path in ROOT.rglob("*.py")}

    def test_each_library_stays_in_its_room(self) -> None:
        for library, places in ONLY.items():
            for room, names in self.rooms.items():
                if any(name == library or name.startswith(library + ".") for name in names):
                    self.assertTrue(room.startswith(places), f"{room} imports {library}")

    def test_nobody_imports_a_concrete_plugin_but_its_own_kind(self) -> None:
        for room, names in self.rooms.items():
            for kind in ("auth", "brokers", "registries"):
                if not room.startswith((f"{kind}/", "testing/")):
                    used = {name for name in names if name.startswith(f"notify.{kind}.")}
                    if (room, kind) in EXCEPTIONS:
                        continue
                    self.assertEqual(used, set(), room)

    def test_the_ground_floor_stands_on_nothing(self) -> None:
        for room in GROUND:
            used = {name.split(".")[1] for name in self.rooms[f"{room}.py"] if name.startswith("notify.")}
            self.assertLessEqual(used, GROUND, room)

    def test_the_session_knows_no_socket_and_no_reactor(self) -> None:
        for room in (
            "core/session.py",
            "wire/frames.py",
            "core/dispatcher.py",
            "core/presence.py",
            "client/machine.py",
        ):
            used = {
                name for name in self.rooms[room] if name.startswith(("twisted.internet.reactor", "socket"))
            }
            self.assertEqual(used, set(), room)
            self.assertNotIn("notify.transport.websocket", self.rooms[room])

    def test_no_module_imports_the_reactor_when_it_is_loaded(self) -> None:
        for path in ROOT.rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ImportFrom) and node.module == "twisted.internet":
                    self.assertNotIn("reactor", [alias.name for alias in node.names], path)
