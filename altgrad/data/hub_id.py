"""A data set of the Hugging Face Hub by name, and whether it can be had.

Asked in a second, and without torch or `datasets`: both take seconds to import, and a machine without network should
say so at once.
"""

import os
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from altgrad.spec import Spec

__all__ = ["Hub", "downloaded", "how_to_copy", "reachable", "refusal"]

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PATIENCE_SECONDS = 1.0


class Hub(Spec):
    """A data set of the Hugging Face Hub: `{hub: owner/name, config: part, revision: commit}`.

    `hub` is an id, or a folder laid out as the Hub's are (begin it with `.`, `/` or `~`). `config` names one of its
    parts and may be left out where there is only one. `revision` (a commit, tag or branch) pins what an id means.
    """

    hub: Annotated[str, Field(min_length=1)]
    """An id on the Hub (owner/name), or a folder laid out as the Hub's are."""
    config: Annotated[str, Field(min_length=1)] | None = None
    """Which part of the data set; null where there is only one."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """The commit, tag or branch that is read; null: the newest."""

    noun: ClassVar[str] = "source"

    @property
    def folder(self) -> Path | None:
        """The folder that is meant, or None for an id."""
        return Path(self.hub).expanduser() if self.hub.startswith((".", "/", "~")) else None

    @property
    def name(self) -> str:
        """On one line: `owner/name`, `owner/name (config)`, `owner/name (config) at revision`."""
        return (
            self.hub + (f" ({self.config})" if self.config else "") + (f" at {self.revision}" if self.revision else "")
        )

    @model_validator(mode="after")
    def _id_or_folder(self) -> "Hub":
        if self.folder is not None and self.revision is not None:
            raise ValueError(f"{self.hub} is a folder, which has no revisions; leave revision out.")
        if self.folder is None and not _ID.fullmatch(self.hub):
            raise ValueError(
                f"{self.hub!r:.80} is not an id; write owner/name, or a folder beginning with ./, / or ~/."
            )
        return self


def reachable() -> bool:
    """Whether the Hub answers within a second; any answer will do, a refusal too. No if HF_HUB_OFFLINE is set."""
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        if os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}:
            return False
    answers: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(_endpoint(), method="HEAD")
            urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS).close()
            answers.append(True)
        except urllib.error.HTTPError as error:
            error.close()
            answers.append(True)
        except (OSError, ValueError):
            answers.append(False)

    # In a thread, since looking up a name knows no timeout.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE_SECONDS)
    return answers == [True]


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def downloaded(name: str) -> bool:
    """Whether `datasets` has a prepared copy; asked of the disk, since importing the library takes a second."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(home) / "datasets").expanduser()
    return (cache / name.replace("/", "___")).is_dir()


def how_to_copy(source: Hub) -> str:
    """The commands that fetch a data set on a machine with a network, in one line."""
    name = source.hub.rpartition("/")[2]
    config = f", config: {source.config}" if source.config else ""
    revision = f" --revision {source.revision}" if source.revision else ""
    return (
        f"{source.name} was not downloaded before and {_endpoint()} does not answer; where there is network run "
        f"`hf download {source.hub} --repo-type dataset{revision} --local-dir {name}`, copy the folder here and write "
        f"source: {{hub: ./{name}{config}}}."
    )


def refusal(source: Hub) -> str | None:
    """Why an id cannot be had here and now, and what to do; None if it may be, and for folders."""
    if source.folder is not None or reachable() or downloaded(source.hub):
        return None
    return how_to_copy(source)
