"""python -m study.first: FIRST.md, what the first edition found, from FIRST.md.j2 and results/*.parquet.

`--check` only says whether it is that.

No number is written by hand: the template asks for it by name, and a name that the results do not have is an error.
"""

import argparse
import sys
from functools import lru_cache
from pathlib import Path

import jinja2

from study.gpu import Gpu
from study.grid import Grid
from study.results import Results

HERE = Path(__file__).resolve().parent
F1 = "validation/tuned_f1_micro"
PAGE, TEMPLATE = HERE / "FIRST.md", HERE / "FIRST.md.j2"


def render() -> str:
    """The page as the results have it."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(of=lru_cache(Results), grid=Grid, gpu=Gpu(), F1=F1)


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if FIRST.md is another text")
    options = parser.parse_args()
    text = render()
    if options.check:
        sys.exit(0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text else 1)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
