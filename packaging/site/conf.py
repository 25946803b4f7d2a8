"""The site of docs/: `make docs`. A broken link, or a name that a docstring refers to and nobody has, ends the build."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

top = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(top), str(top / "packaging" / "site")]

from interfaces import Interfaces  # noqa: E402

from notify import __version__  # noqa: E402

project = "notify"
copyright = "the maintainers of notify"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
# The repository's own pages, so that every link between them is one here, too.
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/**.md",
    "benchmarks/README.md",
    "benchmarks/results/results.md",
    "benchmarks/results/bars/**.md",
    "benchmarks/results/second/results.md",
    "examples/**.md",
    "changes/README.md",
]
exclude_patterns = ["docs/examples"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
# `json` with an ellipsis and the like: shown as it is.
suppress_warnings = ["misc.highlighting_failure"]

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": False}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"notify {__version__}"
html_copy_source = False
html_show_sphinx = False
html_theme_options: dict[str, Any] = {
    "navigation_with_keys": True,
    "top_of_page_buttons": [],
}


#: pages whose tables are branches of the site's tree
INDICES = ("docs/README", "docs/cookbook/README", "docs/operations/README", "docs/reference/README")
#: what hangs on others
BRANCHES = {
    "README": [
        "docs/README",
        "ARCHITECTURE",
        "CONTRIBUTING",
        "SECURITY",
        "CHANGELOG",
        "benchmarks/README",
        "examples/chat/README",
    ],
    "benchmarks/README": [
        "results/results",
        "results/second/results",
        "results/bars/results",
        "results/bars/second/results",
    ],
    "CHANGELOG": ["changes/README"],
}
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s:]+)\)")


def setup(app: Any) -> None:
    """The pages are written for a reader of the repository: what a site needs besides is added here."""
    app.connect("source-read", prepare)
    app.add_directive("interfaces", Interfaces)
    app.connect("build-finished", open_with)


def prepare(app: Any, page: str, source: list[str]) -> None:
    """Give an index its branches, and lead a link to a folder to its README, or nowhere."""
    folder = (top / page).parent
    branches = BRANCHES.get(page, [])
    if page in INDICES:
        rows = re.findall(r"^\| (.*?) \|", source[0], re.MULTILINE)
        branches = [
            to.removesuffix(".md") for row in rows for _, to in LINK.findall(row) if to.endswith(".md")
        ]

    def lead(link: re.Match[str]) -> str:
        text, to = link.groups()
        if not (folder / to).is_dir():
            return link[0]
        return f"[{text}]({to}/README.md)" if (folder / to / "README.md").is_file() else text

    tree = "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(branches) + "\n```\n" if branches else ""
    source[0] = LINK.sub(lead, source[0]) + tree


def open_with(app: Any, failed: Exception | None) -> None:
    """A folder's page has another name on the web than in a repository; pictures in HTML are where that looks for them."""
    if failed is None:
        copytree(top / "docs" / "images", Path(app.outdir) / "docs" / "images", dirs_exist_ok=True)
        copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")
