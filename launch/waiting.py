"""How the threads that share an operation wait for each other."""

from __future__ import annotations

import os

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""With any of these set, the user has chosen."""


def wait_passively() -> None:
    """Let threads sleep soon, not spin on, until the others are done; torch must not be loaded yet.

    A thread that spins uses up the time that the system would give to the one it waits for: where other work shares the
    processors, a training is several times slower (bench/busy.py). Child processes inherit it.
    """
    if not any(name in os.environ for name in CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "passive"
        # GNU's OpenMP, torch's own: about as many turns as falling asleep and waking up take.
        os.environ["GOMP_SPINCOUNT"] = "1000"
