"""python -m bench.drawings: the drawings of README and of the site's concepts, docs/pictures/*.svg.

Every drawing has a card of its own behind it and follows the reader's colour scheme, so it can be read on light and on
dark pages. Grids are computed by `altgrad.formats`, so a drawing shows the numbers that casts give. A test fails where
a file says otherwise than this program.
"""

from collections.abc import Iterable
from html import escape
from pathlib import Path

from altgrad.formats import FloatFormat, round_value

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
STYLE = """<style>
.card{fill:#ffffff;stroke:#d0d7de}.box{fill:#f6f8fa;stroke:#8c959f}
.blue{fill:#ddf4ff;stroke:#0969da}.warm{fill:#fff1e5;stroke:#bc4c00}
.line{stroke:#57606a;stroke-width:1.5;fill:none}.hot{stroke:#bc4c00;stroke-width:2;fill:none}.cool{stroke:#0969da;stroke-width:2;fill:none}
.dot{fill:#0969da}.mark{fill:#bc4c00}text{font:14px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1f2328}
.soft{font-size:12px;fill:#57606a}.head{font-weight:600}.code{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:13px}
@media (prefers-color-scheme:dark){.card{fill:#161b22;stroke:#30363d}.box{fill:#21262d;stroke:#6e7681}
.blue{fill:#0c2d4d;stroke:#58a6ff}
.warm{fill:#3d1f0b;stroke:#f0883e}.line{stroke:#8b949e}.hot{stroke:#f0883e}.cool{stroke:#58a6ff}.dot{fill:#58a6ff}.mark{fill:#f0883e}
text{fill:#e6edf3}.soft{fill:#9da7b3}}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse">
<path d="M0 0L8 4L0 8z" fill="#808891"/></marker></defs>"""
WIDTH = 760


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, words: str = "", kind: str = "box", below: str = "") -> str:
    """A box with its words in the middle, and smaller ones in a second line."""
    middle = y + height / 2 + (5 if not below else -3)
    drawn = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" class="{kind}"/>'
    drawn += text(x + width / 2, middle, words) if words else ""
    return drawn + (text(x + width / 2, middle + 18, below, "soft") if below else "")


def line(x: float, y: float, to_x: float, to_y: float, kind: str = "line", arrow: bool = False) -> str:
    tip = ' marker-end="url(#tip)"' if arrow else ""
    return f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" class="{kind}"{tip}/>'


def dot(x: float, y: float, kind: str = "dot", radius: float = 4) -> str:
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" class="{kind}"/>'


def picture(height: int, title: str, parts: Iterable[str]) -> str:
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    card = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10" class="card"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{escape(title)}</title>'
    return "\n".join([head, STYLE, card, *parts, "</svg>", ""])


def grid_line(name: str, x: float, y: float, unit: float) -> list[str]:
    """The non-negative values of a format as dots on a line."""
    values = FloatFormat.parse(name).magnitudes
    return [line(x, y, x + unit * values[-1], y), *(dot(x + unit * value, y) for value in values)]


def cast() -> str:
    """x enters a format, and where in a Linear that happens."""
    steps = [("÷ scale", "x / s"), ("round", "to the grid"), ("bound", "at ±max"), ("× scale", "back to x's size")]
    parts = [text(24, 34, "One cast", "head", "start"), text(52, 78, "x"), text(722, 78, "Q(x)")]
    for i, (word, below) in enumerate(steps):
        parts += [
            box(92 + 148 * i, 48, 116, 50, word, "blue", below),
            line(66 + 148 * i, 73, 90 + 148 * i, 73, arrow=True),
        ]
    parts += [line(654, 73, 698, 73, arrow=True)]
    x, y, unit, value = 150.0, 150.0, 80.0, 2.3
    rounded = float(round_value(FloatFormat.parse("e2m1"), value))
    parts += grid_line("e2m1", x, y, unit)
    parts += [text(x - 20, y + 5, "e2m1", "code", "end"), dot(x + unit * value, y - 22, "mark")]
    parts += [text(x + unit * value + 10, y - 20, f"x / s = {value}", "soft", "start")]
    parts += [line(x + unit * value, y - 18, x + unit * rounded, y - 6, "hot", True)]
    parts += [text(x + unit * v, y + 22, f"{v:g}", "soft") for v in FloatFormat.parse("e2m1").magnitudes]
    parts += [text(24, 216, "Six slots of a Linear: every product casts its two operands", "head", "start")]
    products = [("forward", "y = x Wᵀ", "input", "weight"), ("grad_input", "dx = g W", "grad_output", "weight"),
                ("grad_weight", "dW = gᵀ x", "grad_output", "input")]  # fmt: skip
    for i, (name, formula, one, two) in enumerate(products):
        left = 24 + 242 * i
        parts += [box(left, 230, 228, 92), text(left + 114, 253, f"{name}:  {formula}")]
        parts += [box(left + 10, 268, 102, 36, one, "blue"), box(left + 116, 268, 102, 36, two, "blue")]
    return picture(338, "A tensor enters a format, and the six operand slots of a Linear", parts)


def grid() -> str:
    """Three grids of four bits."""
    parts = [text(24, 34, "Three formats of 4 bits: the same number of values, spaced differently", "head", "start")]
    rows = [("e1m2", "even: one spacing everywhere"), ("e2m1", "each binade has two values"),
            ("e3m0", "powers of two: the spacing doubles with the value")]  # fmt: skip
    for i, (name, words) in enumerate(rows):
        y, top = 90 + 82 * i, FloatFormat.parse(name).magnitudes[-1]
        parts += [
            text(80, y + 5, name, "code", "end"),
            *grid_line(name, 110, y, 600 / top),
            text(110, y - 18, words, "soft", "start"),
        ]
        values = FloatFormat.parse(name).magnitudes
        low, high = (110 + 600 / top * values[-2]), 710
        parts += [line(low, y + 16, high, y + 16, "hot"), text((low + high) / 2, y + 33, "spacing", "soft")]
    return picture(300, "Grids and their spacing", parts)


def scaling() -> str:
    """Where a scale puts a tensor's values, and how many values share one."""
    parts = [text(24, 34, "A scale moves the values into the format's range", "head", "start")]
    heights = [3, 5, 9, 14, 22, 33, 46, 60, 70, 66, 48, 26, 10]
    for i, height in enumerate(heights):
        kind = "warm" if i < 3 else "blue"
        parts += [f'<rect x="{40 + 28 * i}" y="{130 - height}" width="24" height="{height}" class="{kind}"/>']
    parts += [line(124, 136, 404, 136, "cool"), text(264, 156, "range of the format at this scale", "soft")]
    parts += [text(82, 156, "underflow", "soft"), text(404, 52, "amax", "soft"), line(392, 58, 392, 118, arrow=True)]
    parts += [text(24, 196, "How many values share a scale", "head", "start")]
    sorts = [("tensor", 8, 8), ("channel or row", 1, 8), ("block 1 x k", 1, 4), ("block k x k", 4, 4)]
    for i, (name, rows, columns) in enumerate(sorts):
        left = 40 + 182 * i
        for row in range(8):
            for column in range(8):
                shaded = (row // rows + column // columns) % 2 == 0
                kind = "blue" if shaded else "box"
                parts += [
                    f'<rect x="{left + 14 * column}" y="{212 + 14 * row}" width="13" height="13" class="{kind}"/>'
                ]
        parts += [text(left + 56, 346, name, "soft")]
    parts += [
        text(440, 90, "delayed: the amax of past steps", "", "start"),
        text(440, 112, "current: this tensor's amax", "", "start"),
    ]
    parts += [text(440, 134, "block: mx, nvfp4", "", "start")]
    return picture(362, "Scaling", parts)


def storage() -> str:
    """What is kept between steps."""
    parts = [text(24, 34, "master: weights are float32 between steps; the forward pass casts them", "head", "start")]
    parts += [box(40, 50, 150, 50, "float32 weight", "box", "kept"), line(192, 75, 268, 75, arrow=True)]
    parts += [box(270, 50, 150, 50, "cast", "blue", "each forward"), line(422, 75, 498, 75, arrow=True)]
    parts += [box(500, 50, 200, 50, "products"), line(600, 102, 600, 124), line(600, 124, 115, 124)]
    parts += [line(115, 124, 115, 102, arrow=True), text(360, 118, "+ update, nothing is lost", "soft")]
    parts += [text(24, 172, "stored in a format: weights are on the grid between steps", "head", "start")]
    parts += [box(40, 188, 150, 50, "weight on the grid", "blue", "kept"), line(192, 213, 498, 213, arrow=True)]
    parts += [box(500, 188, 200, 50, "products"), line(600, 240, 600, 282), line(600, 282, 422, 282, arrow=True)]
    parts += [box(230, 258, 190, 50, "storage rounds", "warm", "weight + update"), line(228, 282, 115, 282)]
    parts += [line(115, 282, 115, 240, arrow=True), text(510, 276, "requested update", "soft")]
    parts += [text(325, 332, "nearest · stochastic · kahan · eco", "code")]
    return picture(350, "Storage: what is kept between steps", parts)


def stall() -> str:
    """An update smaller than half a gap."""
    parts = [text(24, 34, "An update below half the gap to the next grid value is rounded away", "head", "start")]
    left, right, update = 120.0, 600.0, 0.3
    for y, name in ((110, "nearest"), (210, "stochastic")):
        at = left + update * (right - left)
        parts += [
            text(24, y + 5, name, "code", "start"),
            line(left, y, right, y),
            dot(left, y, radius=6),
            dot(right, y, radius=6),
        ]
        parts += [
            dot(at, y, "mark", 5),
            line(left, y - 26, at, y - 26, "hot", True),
            text((left + at) / 2, y - 33, "update", "soft"),
        ]
        parts += [text(left, y + 46, "weight", "soft"), text(right, y + 46, "next value", "soft")]
    at = left + update * (right - left)
    parts += [f'<path d="M{at} 116Q{(at + left) / 2} 152 {left + 8} 118" class="hot" marker-end="url(#tip)"/>']
    parts += [text(430, 96, "back to the weight: a stall, in every step", "soft")]
    parts += [f'<path d="M{at} 216Q{(at + left) / 2} 252 {left + 8} 218" class="line" marker-end="url(#tip)"/>']
    parts += [f'<path d="M{at} 216Q{(at + right) / 2} 268 {right - 8} 218" class="cool" marker-end="url(#tip)"/>']
    parts += [text(430, 196, f"up with probability {update}, else back: right on average", "soft")]
    return picture(268, "A stall", parts)


def objects() -> str:
    """Matrix, spec, run, store."""
    parts = [text(24, 34, "A matrix makes specs, a spec makes a run, runs make answers", "head", "start")]
    parts += [box(24, 84, 130, 64, "matrix", "blue", "arms, axes, seeds"), line(156, 116, 196, 116, arrow=True)]
    for i in range(3):
        y = 54 + 48 * i
        parts += [box(200, y, 130, 36, f"spec, seed {i}"), line(332, y + 18, 372, y + 18, arrow=True)]
        parts += [box(376, y, 130, 36, f"run, seed {i}", "blue"), line(508, y + 18, 552, y + 18, arrow=True)]
    for i, word in enumerate(("compare", "report", "diagnose")):
        parts += [box(556, 54 + 48 * i, 180, 36, f"altgrad {word}", "warm")]
    parts += [text(265, 222, "YAML: all that decides a run", "soft"), text(441, 222, "a folder of files", "soft")]
    parts += [text(646, 222, "reads the folders", "soft")]
    return picture(240, "Matrix, spec and run", parts)


DRAWINGS = {each.__name__: each for each in (cast, grid, scaling, storage, stall, objects)}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
