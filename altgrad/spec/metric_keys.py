"""Metric keys: `<group>/<site or parameter>/<quantity>`, and a histogram's bins, `.../binade_<exponent>_<what>`."""

import re
from functools import lru_cache

_BIN = re.compile(r"(.+)/binade_(-?[0-9]+)_(.+)")


@lru_cache(maxsize=1 << 16)
def split_key(key: str) -> tuple[str, str, str]:
    """Group, place and quantity; the place of `train/loss` is empty, and a place may hold further slashes."""
    group, _, rest = key.partition("/")
    place, _, quantity = rest.rpartition("/")
    return group, place, quantity


def split_bin(key: str) -> tuple[str, int, str] | None:
    """What the histogram is of (`stiffness/<parameter>`), the bin's exponent, and what it counts; None for others."""
    found = _BIN.fullmatch(key)
    return (found[1], int(found[2]), found[3]) if found else None


def bin_key(of: str, exponent: int, what: str) -> str:
    """The inverse of `split_bin`."""
    return f"{of}/binade_{exponent}_{what}"
