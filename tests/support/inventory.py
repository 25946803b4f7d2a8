"""Compares the component list in a package or an image with requirements.lock."""

from __future__ import annotations

import json
import re

from tests.support.programs import ROOT


def wrong(text: str) -> list[str]:
    """Differences between a CycloneDX list and the lock, with versions; requirements for other Pythons are ignored."""
    lock = (ROOT / "requirements.lock").read_text()
    locked = re.findall(r"(?m)^([\w.-]+)==(\S+)(?: ; (.*))?", lock)
    wanted = {
        f"{name} {version}"
        for name, version, marker in locked
        if "!= 'CPython'" not in marker and "== 'PyPy'" not in marker
    }
    listed = {f"{one['name']} {one['version']}" for one in json.loads(text)["components"]}
    return sorted(wanted ^ listed)
