"""What mkdocs asks while it builds the site (`hooks` of mkdocs.yml): generated pages, README as the first one, links.

Pages outside docs/ that readers are sent to are part of the site under project/. A link is resolved where its page is
in the repository, so that the same text is right there and here; one to a file that the site lacks becomes plain text.
"""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.reference_pages import pages  # noqa: E402

OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "project/CONTRIBUTING.md",
    "SECURITY.md": "project/SECURITY.md",
    "CHANGELOG.md": "project/CHANGELOG.md",
    "TEST_MATRIX.md": "project/TEST_MATRIX.md",
    "bench/RESULTS.md": "project/RESULTS.md",
    "study/README.md": "project/STUDY.md",
    "study/FINDINGS.md": "project/FINDINGS.md",
    "study/PLAN.md": "project/PLAN.md",
    "study/FIRST.md": "project/FIRST.md",
    "study/FIRST_PLAN.md": "project/FIRST_PLAN.md",
    "study/figures/dial.svg": "project/figures/dial.svg",
    "study/figures/uneven.svg": "project/figures/uneven.svg",
    "study/figures/confirmed.svg": "project/figures/confirmed.svg",
    "study/figures/rates.svg": "project/figures/rates.svg",
    "claims/FINDINGS.md": "project/CLAIMS.md",
    "claims/PLAN.md": "project/CLAIMS_PLAN.md",
}
"""Pages and pictures by their path in the repository, and where the site has them."""
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add what is generated, and what lies outside docs/."""
    from mkdocs.structure.files import File

    found = pages()
    found |= {there: (ROOT / here).read_text(encoding="utf-8") for here, there in OUTSIDE.items()}
    for path, text in found.items():
        files.append(File.generated(config, path, content=text))
    named = str(config["nav"])
    more = [f.src_uri for f in files.documentation_pages() if "/" not in f.src_uri and f.src_uri not in named]
    if more:
        config["nav"].append({"More": sorted(more)})
    config["nav"] = _with_folders(config["nav"], sorted(f.src_uri for f in files.documentation_pages()))
    return files


def _with_folders(nav: Any, pages: list[str]) -> Any:
    """A nav in which `folder/` is every page of that folder, its README first."""
    if isinstance(nav, list):
        return [_with_folders(each, pages) for each in nav]
    if isinstance(nav, dict):
        return {key: _with_folders(each, pages) for key, each in nav.items()}
    if nav.endswith("/"):
        inside = [page for page in pages if page.startswith(nav)]
        return sorted(inside, key=lambda page: (not page.endswith("README.md"), page))
    return nav


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as they are on the site."""
    there = page.file.src_uri
    here = next((path for path, moved in OUTSIDE.items() if moved == there), f"docs/{there}")
    known = {f.src_uri for f in files}
    return "".join(
        part if i % 2 else _relinked(part, here, there, known)
        for i, part in enumerate(re.split(r"(```.*?```)", markdown, flags=re.S))
    )


def _relinked(text: str, here: str, there: str, known: set[str]) -> str:
    def link(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return match[0]
        origin = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        moved = OUTSIDE.get(origin, origin.removeprefix("docs/"))
        if moved not in known or (not origin.startswith("docs/") and origin not in OUTSIDE):
            return f"{words}"
        return f"{picture}[{words}]({posixpath.relpath(moved, posixpath.dirname(there) or '.')}{hash_}{anchor})"

    return _LINK.sub(link, text)
