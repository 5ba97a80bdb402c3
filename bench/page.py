"""A page of which the program writes parts: what stands between two markers is replaced, the prose around it stays."""

import os
import re
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def refresh(path: Path, part: str, body: str) -> None:
    """Put `body` between the markers `<!-- part: begin -->` and `<!-- part: end -->`; at the end where there are none.

    The file is written aside and renamed, so a reader sees the old page or the new one.
    """
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    block = f"{begin}\n{body.strip()}\n{end}"
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    found = between.sub(lambda _: block, text, count=1) if between.search(text) else f"{text}\n{block}\n".lstrip()
    aside = path.with_suffix(path.suffix + ".aside")
    aside.write_text(found, encoding="utf-8")
    os.replace(aside, path)


class Results:
    """Tables of one program, shown as they come and, if wanted, kept in bench/RESULTS.md between its own markers."""

    def __init__(self, part: str, head: str) -> None:
        self.part, self.blocks = part, [head]
        print(head)

    def add(self, table: str) -> None:
        self.blocks.append(table)
        print(f"\n{table}", flush=True)

    def write(self, wanted: bool) -> None:
        if wanted:
            refresh(RESULTS, self.part, "\n\n".join(self.blocks))
