"""Lines of a page as one HTML file: no script, no network, light and dark, and a policy that forbids the rest."""

from collections.abc import Sequence
from html import escape

from altgrad.cli.layout import Line

_CLASSES = ("bold", "dim", "red", "green", "yellow", "cyan", "magenta")
_STYLE = """
:root { color-scheme: light dark; --red: #b3261e; --green: #19692c; --yellow: #805600; --cyan: #00639b;
  --magenta: #8b2a8b; }
@media (prefers-color-scheme: dark) { :root { --red: #ff8a80; --green: #7bd88f; --yellow: #ffd479; --cyan: #7cc7ff;
  --magenta: #e5a1e5; } }
body { margin: 1.5rem; } pre { font: 14px/1.45 ui-monospace, monospace; overflow-x: auto; }
.bold { font-weight: bold; } .dim { opacity: .65; } .red { color: var(--red); } .green { color: var(--green); }
.yellow { color: var(--yellow); } .cyan { color: var(--cyan); } .magenta { color: var(--magenta); }
"""


def html_page(title: str, lines: Sequence[Line]) -> str:
    """A document of these lines in a fixed-width font; whatever they say is text, never markup."""
    body = "\n".join("".join(_span(text, style) for text, style in line.spans) for line in lines)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><pre>{body}</pre></body></html>\n"
    )


def _span(text: str, style: str) -> str:
    classes = " ".join(word for word in style.split() if word in _CLASSES)
    return f'<span class="{classes}">{escape(text)}</span>' if classes else escape(text)
