"""What the process does with freed memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, statistics, torch
from metaser.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    # More than is kept by default.
    some = [torch.ones(7_000_000) for _ in range(4)]
    del some
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = statistics.median(faults() for _ in range(20))
keep_freed_memory()
print(before, statistics.median(faults() for _ in range(20)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's")
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", _FAULTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    # 112 MB have 27,000 pages.
    assert after < 1_000 < before
