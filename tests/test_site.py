"""The site: its nav names pages that exist, its reference is whole, a browser draws it without asking anyone else."""

import functools
import importlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

import altgrad
from altgrad.spec.families import FAMILIES
from bench.reference_pages import BENEATH, commands, pages
from bench.website import OUTSIDE, _relinked
from tests.reports.chromium import Chromium

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    return pages()


def named(nav: object) -> Iterator[str]:
    for each in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from [each] if isinstance(each, str) else named(each)


def test_nav_names_pages_that_exist_and_groups_every_page_of_a_folder(reference: dict[str, str]) -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    told = list(named(yaml.safe_load(text)["nav"]))
    docs = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    known = docs | set(reference) | {path for path in OUTSIDE.values() if path.endswith(".md")}
    assert [page for page in told if page not in known and not page.endswith("/")] == []
    folders = tuple(page for page in told if page.endswith("/"))
    left = {page for page in known - set(told) if "/" in page and not page.startswith(folders)}
    assert left == set(), "pages of docs/ itself go under More when nav does not name them; those of folders do not"


def test_every_command_field_kind_and_name_is_in_the_reference(reference: dict[str, str]) -> None:
    assert all(f"## {words}\n" in reference["reference/cli.md"] for words, _ in commands())
    for name in ("run", "matrix"):
        schema = json.loads((ROOT / "matrices" / f"{name}.schema.json").read_text(encoding="utf-8"))
        page = reference[f"reference/{name}-spec.md"]
        assert all(f"| `{field}` |" in page for field in schema["properties"])
        assert all(f"## {key}\n" in page for key in schema["definitions"])
    assert all(f"## {family}\n" in reference["reference/kinds.md"] for family in FAMILIES)
    told = reference["reference/python.md"]
    assert all(f".{name}\n" in told for name in altgrad.__all__ if name != "__version__")


def test_names_beneath_the_verbs_say_what_they_are() -> None:
    for package, names in BENEATH.items():
        module = importlib.import_module(package)
        assert [name for name in names if not (getattr(module, name).__doc__ or "").strip()] == []


def test_links_are_those_of_the_place_that_a_page_has_on_the_site() -> None:
    known = {"start/install.md", "index.md", "project/FINDINGS.md", "pictures/cast.svg"}
    for here, there, link, moved in (
        ("README.md", "index.md", "[a](docs/start/install.md#x)", "[a](start/install.md#x)"),
        ("README.md", "index.md", "![a](docs/pictures/cast.svg)", "![a](pictures/cast.svg)"),
        ("docs/start/install.md", "start/install.md", "[a](../../study/FINDINGS.md)", "[a](../project/FINDINGS.md)"),
        ("docs/start/install.md", "start/install.md", "[a](../../pyproject.toml) [b](#c)", "a [b](#c)"),
        ("README.md", "index.md", "[a](https://a.b/c.md)", "[a](https://a.b/c.md)"),
    ):
        assert _relinked(link, here, there, known) == moved


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Not a word."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The built site's folder, and where it is served."""
    for needed in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(needed, reason=f"{needed} is of the extra `docs`; `pip install 'altgrad[docs]'` brings it")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.long
def test_nothing_on_a_page_is_loaded_from_elsewhere(site: tuple[Path, str]) -> None:
    loads = re.compile(
        r"<(?:script|img|iframe)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*rel=\"?(?:stylesheet|preconnect)\"?[^>]*//"
    )
    assert [str(page) for page in site[0].rglob("*.html") if loads.search(page.read_text(encoding="utf-8"))] == []


@pytest.mark.long
@pytest.mark.needs("chromium", "bash")
def test_a_browser_draws_every_page_without_network_or_complaint(
    site: tuple[Path, str], tmp_path: Path, program: object
) -> None:
    """Desktop and phone, light and dark; the browser has no way out but to this machine."""
    assert callable(program)
    browser = Chromium(program("chromium"), tmp_path)
    folder, home = site
    try:
        for page in sorted(folder.rglob("*.html")):
            if page.name == "404.html" or ("recipes" in page.parts and page.name != "README.html"):
                continue  # one recipe's page is like another's
            browser.complaints.clear()
            browser.again(width=1280)
            browser.call("Page.navigate", url=f"{home}/{page.relative_to(folder)}")
            for _ in range(200):
                time.sleep(0.05)
                if browser.state().get("loaded"):
                    break
            for width, dark in ((1280, False), (1280, True), (390, True), (390, False)):
                state = browser.again(width=width, dark=dark)
                assert state["loaded"] and state["wide"] <= 0, f"{page.name} can be scrolled sideways at {width}"
            assert browser.complaints == [], page.name
    finally:
        browser.close()
