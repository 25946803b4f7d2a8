"""Shows the interfaces of a module, which are objects of zope.interface and to autodoc no classes.

``.. interfaces:: notify.interfaces`` is each of them with its attributes and methods, as they stand in the source.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def _block(head: str, text: str | None, depth: int) -> Iterator[str]:
    indent = "   " * depth
    yield f"{indent}.. py:{head}"
    yield ""
    for line in inspect.cleandoc(text or "").splitlines():
        yield f"{indent}   {line}" if line else ""
    yield ""


def shown(module: str, source: str) -> Iterator[str]:
    """The interfaces in a module's source, as reStructuredText."""
    yield f".. py:currentmodule:: {module}"
    yield ""
    for one in ast.parse(source).body:
        if not isinstance(one, ast.ClassDef) or [ast.unparse(base) for base in one.bases] != ["Interface"]:
            continue
        yield from _block(f"class:: {one.name}", ast.get_docstring(one), 0)
        for part in one.body:
            if isinstance(part, ast.FunctionDef):
                returns = ast.unparse(part.returns) if part.returns else "None"
                head = f"method:: {part.name}({ast.unparse(part.args)}) -> {returns}"
                yield from _block(head, ast.get_docstring(part), 1)
            elif isinstance(part, ast.Assign) and isinstance(part.value, ast.Call):
                yield from _block(
                    f"attribute:: {ast.unparse(part.targets[0])}", ast.literal_eval(part.value.args[0]), 1
                )


class Interfaces(SphinxDirective):
    """See the module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The nodes that stand in its place."""
        module = importlib.import_module(self.arguments[0])
        lines = list(shown(module.__name__, inspect.getsource(module)))
        self.env.note_dependency(module.__file__ or "")
        place: Any = nodes.section()
        place.document = self.state.document
        self.state.nested_parse(StringList(lines, source=module.__file__), 0, place)
        found: list[nodes.Node] = place.children
        return found
