"""The heartbeats of the processes, and the failure report of the first that died.

A collective operation with a dead process waits or breaks without saying whose fault it is. So every process tells the
others every few seconds, through the store where they met, that it lives and where it stands, or why it ends.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from metaser.distributed import DistInfo
from shards.shown import shown

HEARTBEAT_S = 2.0
SILENT_S = 40.0
"""A process that has not been heard of for so long is dead."""
GRACE_S = 10.0
"""How long the main thread has to end the process before the monitor's thread does."""
EXIT_CODE = 2


@dataclass(frozen=True)
class FailureReport:
    """A process that ended before the others."""

    rank: int
    where: str
    reason: str

    def __str__(self) -> str:
        """Return the one sentence that every other process ends with."""
        return (
            f"all processes must live until the training is done, but rank {self.rank} ({self.where}) has ended: "
            f"{self.reason}; start again to continue from the last checkpoint"
        )


class Monitor:
    """Sends this process's heartbeat and listens to those of the others, in a thread of its own."""

    def __init__(self, info: DistInfo) -> None:
        """Start; the processes must have met."""
        self._info = info
        # A connection of its own: the main thread may be waiting on the other one.
        self._store: Any = dist.distributed_c10d._get_default_store().clone()
        self._position = "before its first step"
        self._host = socket.gethostname()
        self._failure: FailureReport | None = None
        self._found = threading.Event()
        self._stopped = threading.Event()
        self._heard: dict[int, tuple[int, float]] = {}
        """Each other's last heartbeat, and when it was first seen."""
        self._known: dict[int, tuple[int, str]] = {}
        """The process number and the position of those on this machine."""
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()

    def note(self, position: str) -> None:
        """Say where this process stands: the others report it should this process be killed."""
        self._position = position

    def announce(self, reason: str, *, failure: FailureReport | None = None) -> None:
        """Tell the others why this process ends, by itself or because another did (`failure`); return when all know.

        It must not be gone before: rank 0 would take the store with it, and the others would name this process instead
        of the one that failed first.
        """
        own = FailureReport(self._info.rank, self._where(), " ".join(reason.split())[-2000:])
        first = own if failure is None else failure
        origin = [first.rank, first.where, first.reason]
        with suppress(RuntimeError):  # the others may be gone already
            self._store.set(f"ended/{self._info.rank}", json.dumps(origin))
        time.sleep(2 * HEARTBEAT_S)

    def failure(self, timeout_s: float) -> FailureReport | None:
        """Return the first process found dead, waiting for the finding up to `timeout_s`."""
        self._found.wait(timeout_s)
        return self._failure

    def stop(self) -> None:
        """End the monitoring; from here on the others may end. A process that fails is monitored to its end."""
        self._stopped.set()
        self._thread.join()

    def _where(self) -> str:
        return f"pid {os.getpid()} on {self._host}"

    def _run(self) -> None:
        heartbeat = 0
        while not self._stopped.wait(HEARTBEAT_S if heartbeat else 0):
            heartbeat += 1
            try:
                values = [heartbeat, self._host, os.getpid(), self._position]
                self._store.set(f"alive/{self._info.rank}", json.dumps(values))
                self._failure = self._find_failure()
            except RuntimeError as error:
                # Rank 0 or the launcher held the store.
                reason = f"the store where the processes met is gone ({' '.join(str(error).split())[:200]})"
                self._failure = self._find_killed() or FailureReport(0, "or the launcher", reason)
            if self._failure is not None:
                break
        if self._failure is None:
            return
        self._found.set()
        if not self._stopped.wait(GRACE_S):
            # The main thread waits in an operation that will never end.
            print(f"error: {shown(str(self._failure))}", file=sys.stderr, flush=True)
            os._exit(EXIT_CODE)

    def _find_failure(self) -> FailureReport | None:
        now = time.monotonic()
        for rank in range(self._info.num_processes):
            if rank == self._info.rank:
                continue
            if self._store.check([f"ended/{rank}"]):
                return FailureReport(*json.loads(self._store.get(f"ended/{rank}")))
            if not self._store.check([f"alive/{rank}"]):
                continue
            heartbeat, host, pid, position = json.loads(self._store.get(f"alive/{rank}"))
            last_heartbeat, heard_at = self._heard.get(rank, (0, now))
            self._heard[rank] = (heartbeat, now if heartbeat != last_heartbeat else heard_at)
            if host == self._host:
                self._known[rank] = (pid, position)
            if now - self._heard[rank][1] > SILENT_S:
                reason = f"nothing was heard of it for {SILENT_S:.0f} s, {position}"
                return FailureReport(rank, f"pid {pid} on {host}", reason)
        return self._find_killed()

    def _find_killed(self) -> FailureReport | None:
        for rank, (pid, position) in self._known.items():
            if not _is_running(pid):
                reason = f"it was killed, or died without a word, {position}"
                return FailureReport(rank, f"pid {pid} on {self._host}", reason)
        return None


def _is_running(pid: int) -> bool:
    try:
        # The state follows the name, which stands in brackets and may hold anything.
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in (b"Z", b"X")
