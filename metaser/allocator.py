"""How this process gets its memory from the system."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Names of malloc.h for the parameters of `mallopt`."""


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for what is needed next; where it is not glibc, change nothing.

    By default it returns each activation of a few megabytes to the system at once and asks for it again, and the system
    clears every page anew: 40 % of the time of a wav2vec 2.0 CNN on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
