"""Builds the Debian package, and later versions of it."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.package.machine import BUILD, TOP, check, run, say
from tests.support.inventory import wrong

#: code for a later version that refuses a setting which the version before accepts
REFUSED = """

_load = load


def load(*arguments, **named):
    config = _load(*arguments, **named)
    if config.log.burst == 7:
        raise ConfigError(f"{config.source}: unknown key 'log.burst'.")
    return config
"""


def archive(folder: Path) -> Path:
    """Make the source archive and unpack it."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, TOP)
    (made,) = folder.glob("*.tar.gz")
    run("tar", "-C", folder, "-xf", made)
    return folder / made.name.removesuffix(".tar.gz")


def build() -> Path:
    """Build the package from the source archive and from the tree, compare the results, and check it with lintian."""
    with tempfile.TemporaryDirectory() as work:
        places = {"one": archive(Path(work) / "source"), "another/deeper/path": TOP}

        def into(place: str) -> Path:
            out = Path(work) / "out" / place
            # A separate cache for each: pip may read a wheel that another pip is still writing there.
            cache = f"PIP_CACHE_DIR={Path(work) / 'pip' / place}"
            run("env", cache, places[place] / "packaging/build-deb", out, Path(work) / place)
            return out

        with ThreadPoolExecutor() as pool:
            outs = list(pool.map(into, places))
        deb, other = (next(out.glob("*.deb")) for out in outs)
        same = [hashlib.sha256(made.read_bytes()).hexdigest() for made in (deb, other)]
        check(
            same[0] == same[1],
            f"built from the source archive and here it is the same, bit by bit: {same[0][:16]}",
        )
        report = run(
            "lintian", "--fail-on=error,warning", "--tag-display-limit=0", *outs[0].glob("*.changes")
        )
        check("E:" not in report and "W:" not in report, "lintian has nothing to say")
        BUILD.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(deb, BUILD))


def build_elsewhere(suite: str) -> Path:
    """Build the package for another Debian release, within that release."""
    with tempfile.TemporaryDirectory() as out:
        run(TOP / "packaging/debian13", suite, out)
        (deb,) = Path(out).glob("*.deb")
        BUILD.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(deb, BUILD))


def later(deb: Path, made: Path, appended: dict[str, str]) -> None:
    """Make a later version of ``deb`` at ``made``, with text appended to files: ``{glob pattern: text}``."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        run("dpkg-deb", "--raw-extract", deb, tree)
        listed = (tree / "usr/share/doc/notify-server/sbom.cdx.json").read_text()
        assert not wrong(listed), f"the list of what is in it is not that of the lock: {wrong(listed)}"
        control = tree / "DEBIAN/control"
        version = re.search(r"(?m)^Version: (.*)$", control.read_text())
        assert version is not None
        control.write_text(control.read_text().replace(version[0], f"Version: {version[1]}+{made.stem}"))
        sums = tree / "DEBIAN/md5sums"
        for pattern, text in appended.items():
            (path,) = tree.glob(pattern)
            path.write_text(path.read_text() + text)
            sums.write_text(re.sub(rf"(?m)^.*{path.relative_to(tree)}\n", "", sums.read_text()))
        run("dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "--build", tree, made)
    say(f"{made.name}: {made.stat().st_size / 2**20:.1f} MiB, {version[1]}+{made.stem}")
