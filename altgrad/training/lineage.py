"""What the weights of a run have read before: the data of the runs that `init_from` leads back to.

Acts of the European Union quote and amend one another, and collections of them overlap. A model trained on other EU
acts may know the packaged sample's validation text by heart, and its numbers there would say nothing. Whether a
collection holds such text cannot be told from its name; so every other source is named, and people decide.
"""

from pathlib import Path

from altgrad.data.documents import SAMPLE
from altgrad.data.hub import Hub
from altgrad.spec import SpecError
from altgrad.store import Run
from altgrad.training.run import RunSpec

__all__ = ["earlier_sources", "leak_warning"]


def earlier_sources(init_from: str | None) -> list[str]:
    """The data sources of the run that `init_from` names, of the run that one began with, and so on; newest first.

    Empty for folders and files that are no run, of which nothing is known.
    """
    found: list[str] = []
    seen: set[Path] = set()
    while init_from is not None and Run(Path(init_from)).exists and Path(init_from).resolve() not in seen:
        seen.add(Path(init_from).resolve())
        try:
            spec = RunSpec.parse(Run(Path(init_from)).spec_text())
        except (SpecError, ValueError):
            break
        found.append(source_of(spec))
        init_from = spec.init_from
    return found


def source_of(spec: RunSpec) -> str:
    """What a run reads, in words; empty for data without a source."""
    source = getattr(spec.data, "source", "")
    return source.name if isinstance(source, Hub) else str(source)


def leak_warning(spec: RunSpec) -> str | None:
    """Why numbers on the packaged sample may mean nothing, if the weights have read anything else before; else None."""
    others = list(dict.fromkeys(source for source in earlier_sources(spec.init_from) if source not in ("", SAMPLE)))
    if source_of(spec) != SAMPLE or not others:
        return None
    return (
        f"the weights were trained on {', '.join(others)} before; if EU acts are among that, the validation text of "
        f"{SAMPLE} may be too, and numbers on it mean nothing. Judge this model on data it has not read."
    )
