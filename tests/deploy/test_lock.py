"""requirements.lock is what setup.py asks for: the package and the image install nothing else."""

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from twisted.trial.unittest import TestCase

TOP = Path(__file__).parent.parent.parent


def locked(name: str = "requirements.lock") -> dict[str, Version]:
    found = re.findall(r"(?m)^([A-Za-z0-9._-]+)==(\S+)", (TOP / name).read_text())
    return {canonicalize_name(name): Version(version) for name, version in found}


class LockTests(TestCase):
    def test_every_requirement_is_locked_in_a_version_that_fits(self) -> None:
        versions = locked()
        wrong = []
        for line in distribution("notify-realtime").requires or []:
            requirement = Requirement(line)
            extras = ({"extra": extra} for extra in ("otel", "uvloop"))
            if requirement.marker and not any(requirement.marker.evaluate(extra) for extra in extras):
                continue
            version = versions.get(canonicalize_name(requirement.name))
            if version is None or version not in requirement.specifier:
                wrong.append(f"{line}: locked is {version}; run `make lock`")
        self.assertEqual(wrong, [])

    def test_what_builds_the_wheel_is_locked_in_a_version_that_fits(self) -> None:
        versions = locked("requirements-build.lock")
        for line in tomllib.loads((TOP / "pyproject.toml").read_text())["build-system"]["requires"]:
            self.assertIn(versions[canonicalize_name(Requirement(line).name)], Requirement(line).specifier)

    def test_everything_has_hashes(self) -> None:
        for name in ("requirements.lock", "requirements-build.lock"):
            text = (TOP / name).read_text()
            names = re.findall(r"(?m)^[A-Za-z0-9._-]+==", text)
            hashed = re.findall(r"(?m)^[A-Za-z0-9._-]+==[^\n]*\\\n    --hash=sha256:[0-9a-f]{64}", text)
            self.assertEqual((len(names), bool(names)), (len(hashed), True), name)

    def test_no_address_of_a_registry_is_in_it(self) -> None:
        self.assertNotIn("://", (TOP / "requirements.lock").read_text())
