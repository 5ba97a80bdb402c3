"""python -m bench.words: words that readers stumble over, wherever a reader meets them; `make lint` runs it.

Looked through are the pages, the reports of bench/ and study/, the comments of specs and matrices, their schemas (which
are what `kinds` and editors show), and every piece of text in the source that is no docstring: help, messages, labels.
Exit code 1 if any is found.
Comments and docstrings inside are not: they are for those who read the source.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = {
    r"foretells?|foretold": "predict",
    r"owe[sd]?|owing": "name the cause",
    r"stands?(?! for\b| in for\b| on\b)|standing": "is, are",
    r"lies|lying|lay": "is, are",
    r"mend(?:s|ed|ing)?": "fix",
    r"(?<!there )is no (?!longer\b|more\b|different\b|other\b|need\b)\w+": "is not a ...",
    r"anew": "again",
    r"told|heard|held|hush(?:ed)?": "say what happened",
    r"beside": "with, next to",
    r"whoever": "those who",
    r"and leave": "and exit",
    r"missions?": "the original AltGrad proposal",
    r"parts? (?:at|from|nowhere)|parted": "diverge",
}
"""A pattern of what is not written, and what to write in its place."""
JOINED = re.compile(r"""["']\s*\n\s*[rbfu]*["']""")
"""Where a piece of text goes on in the next line of a source."""
PATTERN = re.compile("|".join(rf"\b(?P<w{i}>{word})\b" for i, word in enumerate(WORDS)), re.I)
TEXTS = (
    "README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md", "matrices/**/*", "altgrad/cli/specs/*",
    "bench/RESULTS.md", "study/[!P]*.md", "study/*.j2",
)  # fmt: skip
"""Not study/PLAN.md, which stays word for word as it was registered before its results."""


def texts() -> Iterator[tuple[str, int, str]]:
    """Where a text begins, and the text; sources in which no such word is anywhere are left out."""
    for pattern in TEXTS:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                    yield str(path.relative_to(ROOT)), number, line
    for path in sorted((ROOT / "altgrad").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if not PATTERN.search(JOINED.sub("", source)):
            continue  # reading is quick, parsing is not
        silent = set()
        for node in ast.walk(ast.parse(source)):  # a statement comes before the constant in it
            if isinstance(node, ast.Expr):
                silent.add(id(node.value))
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and " " in node.value.strip()
                and id(node) not in silent
            ):
                yield str(path.relative_to(ROOT)), node.lineno, node.value


def offences() -> list[str]:
    """Every word that is not written, with its place and what to write."""
    advice = list(WORDS.values())
    return [
        f"{path}:{line}: {found[0]!r}: {advice[int(str(found.lastgroup)[1:])]}   {' '.join(text.split())[:100]}"
        for path, line, text in texts()
        for found in PATTERN.finditer(text)
    ]


if __name__ == "__main__":
    found = offences()
    print(*found, sep="\n")
    sys.exit(bool(found))
