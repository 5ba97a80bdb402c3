"""No secret belongs in a spec: specs are stored with every run, logged, shared and committed.

A key that asks for one (`api_key`, `password`) and a text that has the form of a known one are refused before anything
is said about the rest, and what was found is never shown. The forms are those of their issuers' documentation, as
secret scanners use them. Forty hex digits are a W&B key unless the key above says that they are a revision or a hash.
"""

import re
from collections.abc import Iterator
from typing import Any

from altgrad.document import Document, Location, SpecError
from altgrad.spec.messages import dotted

REMEDY = "specs are stored and shared, so keep it in the environment (WANDB_API_KEY, HF_TOKEN) or the tool's own login"

_KEY = re.compile(
    r"(.*_)?(password|passwd|passphrase|secret|credentials?|api_?key|access_?key|private_?key|secret_?key)(_.*)?"
    r"|(.*_)?(auth|access|api|bearer|hf|hub|refresh|session|wandb|github|login)_?token|token|authorization"
)
_TEXT = re.compile(
    r"""\b(
      hf_[A-Za-z0-9]{20,} | api_org_[A-Za-z0-9]{20,}          # Hugging Face
    | wandb_v\d_[A-Za-z0-9_]{20,} | local-[0-9a-f]{40}\b      # W&B, hosted and local
    | sk-((proj|svcacct|admin|ant|or)-[\w-]{20,}|[A-Za-z0-9]{20,}) # OpenAI, Anthropic, OpenRouter
    | (AKIA|ASIA)[A-Z0-9]{16}\b | AIza[A-Za-z0-9_-]{35}       # AWS, Google
    | gh[pousr]_[A-Za-z0-9]{30,} | github_pat_\w{20,} | glpat-[\w-]{16,} | xox[a-z]-[\w-]{10,}
    | eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.                          # a JSON web token
    | \w*(API_?KEY|TOKEN|PASSWORD|SECRET|api_?key|password|secret)["']?\s*[=:]\s*\S+
    )
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
    | ://[^/\s:@]*:[^/\s@]+@                                  # a password in an address
    | (?i:bearer)\ [\w.~+/-]{16,}""",
    re.VERBOSE,
)
_HEX = re.compile(r"""\s*["']?[0-9a-f]{40}["']?\s*""")
_HASH_KEY = re.compile(r".*(revision|commit|sha|hash|digest|checksum).*", re.IGNORECASE)


def refuse_credentials(document: Document, location: Location = ()) -> None:
    """SpecError at the first key or text, from `location` down, that looks like a secret. Never shows it."""
    value = document.data
    for key in location:
        value = value[key]
    for at, is_key in _suspects(value, location):
        named = "a key here" if any(looks_secret(str(part)) for part in at) else f"'{dotted(at)[:60]}'"
        raise SpecError(document.where(at, key=is_key), f"{named} looks like a secret; {REMEDY}.")


def looks_secret(text: str, key: str = "") -> bool:
    """Whether a text under `key` has the form of a secret."""
    return bool(_TEXT.search(text) or (_HEX.fullmatch(text) and not _HASH_KEY.fullmatch(key)))


def asks_for_secret(key: str) -> bool:
    """Whether a key's name says that a secret stands under it, in snake, kebab or camel case."""
    snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", key).replace("-", "_").lower()
    return bool(_KEY.fullmatch(snake))


def _suspects(value: Any, location: Location) -> Iterator[tuple[Location, bool]]:
    """(location, whether the key is meant) of whatever looks like a secret, in document order."""
    if isinstance(value, dict):
        for key, item in value.items():
            if asks_for_secret(key) or looks_secret(key):
                yield (*location, key), True
            yield from _suspects(item, (*location, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _suspects(item, (*location, index))
    elif isinstance(value, str):
        key = next((part for part in reversed(location) if isinstance(part, str)), "")
        if looks_secret(value, key):
            yield location, False
