"""What the process does with freed memory."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

_BLOCKS = """
import ctypes, sys
from metaser.allocator import keep_freed_memory

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = Mallinfo, ctypes.c_void_p, [ctypes.c_void_p]
if sys.argv[1] == "kept":
    keep_freed_memory()
before = libc.mallinfo2()
blocks = [libc.malloc(28_000_000) for _ in range(4)]
mapped = libc.mallinfo2().hblks - before.hblks
for block in blocks:
    libc.free(block)
print(mapped, libc.mallinfo2().fordblks // 1_000_000)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's")
def test_blocks_are_taken_from_the_heap_and_stay_there() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def blocks(how: str) -> tuple[int, int]:
        command = [sys.executable, "-c", _BLOCKS, how]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        mapped, free_mb = map(int, done.stdout.split())
        return mapped, free_mb

    assert blocks("given back")[0] > 0
    mapped, free_mb = blocks("kept")
    assert mapped == 0 and free_mb >= 112
