"""A drawing of matplotlib's as part of a page: smaller, without identifiers of its own, in the page's colours.

What matplotlib writes as `style="..."` a page's policy refuses; the same as classes of the page's own style sheet is
allowed, says each once for all figures, and lets colours follow the reader's theme: every tone becomes a variable with
a light and a dark value. Coordinates keep a tenth of a point.
"""

import re
import xml.etree.ElementTree as ET
from html import escape

from altgrad.reports.figures import DARK, LIGHT

_NUMBER = re.compile(r"-?\d+\.\d+")
_TONES = {colour.lower(): name for name, colour in LIGHT.items() if name != "page"}  # white is also ink, on dark cells
_COLOUR = re.compile("|".join(_TONES))
_LEFT_OUT = ("metadata", "style", "title")
_FONT = re.compile(r"font-family:[^;]*;? ?")


class InlineFigures:
    """Drawings that share one style sheet."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}
        self._drawings = 0

    def add(self, drawing: str, label: str) -> str:
        """The drawing as markup. label: what it shows, for those who hear the page."""
        self._drawings += 1
        root = ET.fromstring(drawing)
        used = set(re.findall(r"#([\w.-]+)", drawing))
        box = " ".join(f"{float(number):.0f}" for number in root.attrib["viewBox"].split())
        inner = "".join(self._markup(child, used) for child in root)
        return f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}">{inner}</svg>'

    @property
    def style(self) -> str:
        """The style sheet of all drawings so far."""
        light, dark = (";".join(f"--{name}:{c}" for name, c in theme.items() if name not in _PAGES_OWN)
                       for theme in (LIGHT, DARK))  # fmt: skip
        rules = "".join(f".{name}{{{text}}}" for text, name in self._classes.items())
        return (
            f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
            f"svg *{{stroke-linejoin:round;stroke-linecap:butt}}svg image{{image-rendering:pixelated}}{rules}\n"
        )

    def _markup(self, element: ET.Element, used: set[str]) -> str:
        tag = element.tag.rpartition("}")[2]
        if tag in _LEFT_OUT:
            return ""
        inner = "".join(self._markup(child, used) for child in element)
        text = escape(element.text.strip()) if element.text else ""
        if tag in ("g", "defs") and not (inner or text):
            return ""
        attributes = "".join(
            f' {name}="{escape(value)}"'
            for key, given in element.attrib.items()
            if (pair := self._attribute(key.rpartition("}")[2], given, used)) is not None
            for name, value in (pair,)
        )
        return inner if tag == "g" and not attributes else f"<{tag}{attributes}>{text}{inner}</{tag}>"

    def _attribute(self, name: str, value: str, used: set[str]) -> tuple[str, str] | None:
        if name == "id":
            return ("id", f"f{self._drawings}{value}") if value in used else None
        if name == "style":
            plain = _FONT.sub("", value).rstrip("; ").replace(": ", ":").replace("; ", ";")
            themed = _COLOUR.sub(lambda found: f"var(--{_TONES[found[0]]})", plain)
            return "class", self._classes.setdefault(themed, f"s{len(self._classes)}")
        if name == "href":
            return name, f"#f{self._drawings}{value[1:]}" if value.startswith("#") else value
        if value.startswith("url(#"):
            return name, f"url(#f{self._drawings}{value[5:]}"
        short = _NUMBER.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
        return name, " ".join(short.split())


_PAGES_OWN = ("page", "text")
"""Variables that the page's style sheet has already, with the same meaning."""
