"""The list of what is in a package or an image, beside what requirements.lock says should be."""

from __future__ import annotations

import json
import re

from tests.support.programs import ROOT


def wrong(text: str) -> list[str]:
    """What a CycloneDX list has too much or too little of, with versions; markers of other Pythons are left out."""
    lock = (ROOT / "requirements.lock").read_text()
    locked = re.findall(r"(?m)^([\w.-]+)==(\S+)(?: ; (.*))?", lock)
    wanted = {
        f"{name} {version}"
        for name, version, marker in locked
        if "!= 'CPython'" not in marker and "== 'PyPy'" not in marker
    }
    listed = {f"{one['name']} {one['version']}" for one in json.loads(text)["components"]}
    return sorted(wanted ^ listed)
