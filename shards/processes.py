"""What processes that serve another one have in common."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading


def end_with_parent() -> None:
    """Make this process end when the one it works for does, however that ends.

    Nobody else sees to it after a kill -9: a pool's workers wait for work, and readers forked from a server for its
    end, while the server waits for theirs.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
