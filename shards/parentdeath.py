"""Processes that end when their parent dies, even of a kill -9; loads no torch."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def exit_with_parent() -> None:
    """Make a process of `multiprocessing` exit when the one it works for dies; called in the child, by its initializer.

    Nobody else sees to it after a kill -9: a pool's workers wait for work, and readers forked from a server for its
    end, while the server waits for theirs.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Not by the kernel, as below: a reader's parent there is the server, not the trainer.
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def terminate_with_parent() -> None:
    """Let the kernel send SIGTERM to this process, which then saves, when the one that launched it dies (Linux).

    Called in a training that `accelerate launch` would orphan, and between fork and exec of a fold.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
