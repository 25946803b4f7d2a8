"""Programs that some tests need beside Python."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from unittest import SkipTest

ROOT = Path(__file__).parent.parent
NODE_MODULES = ROOT / "tests" / "js" / "node_modules"


def need(found: object, what: str) -> None:
    """Skip a test, loudly, for what this machine lacks; with ``REQUIRE_ALL=1`` in the environment, fail it."""
    if not found:
        if os.environ.get("REQUIRE_ALL"):
            raise AssertionError(f"{what}, and REQUIRE_ALL is set")
        raise SkipTest(what)


def node() -> str:
    """Where Node is."""
    found = shutil.which("node")
    need(found, "node is missing: the JavaScript client is not tested")
    return str(found)


def node_modules() -> Path:
    """Where what `make js` installs is."""
    need((NODE_MODULES / "ws").is_dir(), "tests/js/node_modules is missing: run `make js`")
    return NODE_MODULES
