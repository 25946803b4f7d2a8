"""Lists what is installed in a folder of packages, in CycloneDX 1.6: sbom.py SITE-PACKAGES OUT.

The same packages give the same list, byte for byte: its number is made of them, its time is SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import os
import re
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

NAME = "notify-realtime"


def canonical(name: str) -> str:
    """A package's name in its one form."""
    return re.sub("[-_.]+", "-", name).lower()


def needed(found: Distribution) -> set[str]:
    """What a package asks for, whatever its markers say: what is not there is left out later."""
    lines = [line for line in found.requires or () if "extra ==" not in line]
    return {canonical(match[0]) for line in lines if (match := re.match(r"[\w.-]+", line))}


def component(found: Distribution) -> Component:
    """What is said of one package: name, version, what it is for, its licence where that is an expression."""
    name, about = canonical(found.metadata["Name"]), found.metadata
    expression = about.get("License-Expression")
    url = PackageURL("pypi", None, name, found.version)
    return Component(
        name=name,
        version=found.version,
        type=ComponentType.APPLICATION if name == NAME else ComponentType.LIBRARY,
        description=about.get("Summary"),
        licenses=[LicenseFactory().make_from_string(expression)] if expression else [],
        purl=url,
        bom_ref=str(url),
    )


def bom(site: Path) -> Bom:
    """The list for a folder."""
    found = {canonical(one.metadata["Name"]): one for one in distributions(path=[str(site)])}
    listed = {name: component(found[name]) for name in sorted(found)}
    components, root = [*listed.values()], listed[NAME]
    made = Bom(components=[one for one in components if one is not root])
    made.metadata.component = root
    made.metadata.timestamp = datetime.fromtimestamp(
        int(os.environ.get("SOURCE_DATE_EPOCH", time.time())), UTC
    )
    made.serial_number = uuid5(NAMESPACE_URL, " ".join(str(one.purl) for one in components))
    for name, one in listed.items():
        made.register_dependency(
            one, [listed[other] for other in sorted(needed(found[name])) if other in listed]
        )
    return made


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(JsonV1Dot6(bom(Path(sys.argv[1]))).output_as_string(indent=1) + "\n")
