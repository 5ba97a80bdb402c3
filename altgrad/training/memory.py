"""Freed memory stays with a process that only trains.

Each step frees its activations and asks for as many again. glibc maps large ones from the kernel and gives them back,
and the kernel zeroes every page anew at its first touch: 3 to 10 % of a step (bench/RESULTS.md). Kept, they are reused;
the process then holds what its largest step took (a few percent more than before) until it ends.

Only for processes of our own: what a program that calls `altgrad.train` does with its memory is its own business.
"""

import ctypes
from functools import cache

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Of glibc's <malloc.h>."""
LARGEST = (1 << 31) - 1


@cache
def keep_freed_memory() -> bool:
    """Have malloc map nothing and give nothing back from here on; whether there is one that can be told so."""
    try:
        tell = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or none to ask
        return False
    return bool(tell(MMAP_MAX, 0)) and bool(tell(TRIM_THRESHOLD, LARGEST))
