"""python -m bench.dearest JUNIT.xml: the tests that take longest, and the claim that each adds.

    make test PYTEST_ADDOPTS=--junitxml=build/junit.xml;  python -m bench.dearest build/junit.xml --page

Cases of one test count together, with the fixtures that the first of them waits for. A claim is the name of a test, and
the first sentence of its docstring where it has one.
"""

import argparse
import ast
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from bench.page import Results

ROOT = Path(__file__).resolve().parents[1]


def claim(module: str, name: str) -> str:
    """What a test says that it shows."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    found = next((n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name), None)
    more = " ".join(((found and ast.get_docstring(found)) or "").split()).partition(". ")[0]
    return f"{name.removeprefix('test_').replace('_', ' ')}{': ' if more else ''}{more.rstrip('.')}".replace("|", "/")


def table(file: Path, count: int) -> str:
    """The dearest tests of a run, in Markdown."""
    seconds: Counter[tuple[str, str]] = Counter()
    cases: Counter[tuple[str, str]] = Counter()
    for case in ElementTree.parse(file).iter("testcase"):
        test = case.get("classname", ""), case.get("name", "").partition("[")[0]
        seconds[test] += float(case.get("time", 0))  # type: ignore[assignment]
        cases[test] += 1
    top, whole = seconds.most_common(count), sum(seconds.values())
    share = sum(taken for _, taken in top) / whole
    lines = [f"{sum(cases.values()):,} tests, {whole:.0f} s in all; these {len(top)} are {share:.0%} of that.", ""]
    lines += ["| seconds | cases | test | what it adds |", "|---|---|---|---|"]
    lines += [
        f"| {taken:.1f} | {cases[test]} | {test[0].removeprefix('tests.')} | {claim(*test)} |" for test, taken in top
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--page", action="store_true", help="write it into bench/RESULTS.md")
    options = parser.parse_args()
    results = Results("dearest", "Seconds of one worker of two, cases of a test together:")
    results.add(table(options.file, options.count))
    results.write(options.page)


if __name__ == "__main__":
    main()
