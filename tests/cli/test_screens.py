"""The pictures of docs/screens are what is drawn today."""

import re

from bench.screens import FOLDER, SIZES, screens

PAGE = FOLDER.parent / "SCREENS.md"


def test_the_pictures_in_docs_are_what_is_drawn_and_the_page_shows_each() -> None:
    drawn = dict(screens())
    stale = [name for name, svg in drawn.items() if (FOLDER / f"{name}.svg").read_text() != svg]
    assert not stale, "run python -m bench.screens"
    assert {path.stem for path in FOLDER.iterdir()} == set(drawn)
    assert set(re.findall(r"screens/(\S+)\.svg", PAGE.read_text())) == set(drawn)
    assert {f"{name}-{width}x{height}" for name in ("train", "sweep") for width, height in SIZES} <= set(drawn)
    known = re.compile("http://www.w3.org|https://www.textualize.io")
    assert not [name for name, svg in drawn.items() if "http" in known.sub("", svg)], "nothing from the network"
