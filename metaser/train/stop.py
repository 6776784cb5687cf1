"""A request to stop: noted when the signal comes, acted on at the next step boundary."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from shards.read import STOP_SIGNALS

LOOK_EVERY_S = 1.0


class StopNow(Exception):  # noqa: N818 (no error)
    """Raised in all processes at the same boundary when any of them was asked to stop."""


class StopRequest:
    """Turns SIGTERM, SIGUSR1, SIGUSR2 (and Ctrl-C on the main process), and a file that appears, into a flag."""

    def __init__(self, file: Path | None = None) -> None:
        """Look for `file` about once a second; one that is older than this object asked somebody else."""
        self.signal_name: str | None = None
        self._file = file
        self._created = time.time()
        self._last_look = float("-inf")
        self._kept: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        """Handle the signals from now on; outside the main thread (a notebook's worker) there is nothing to handle."""
        if threading.current_thread() is threading.main_thread():
            for number in (*STOP_SIGNALS, signal.SIGINT):
                self._kept[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._kept.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name is not None:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name

    @property
    def is_set(self) -> bool:
        """Whether a signal or the file has come."""
        return self.signal_name is not None or self._file_appeared()

    def _file_appeared(self) -> bool:
        now = time.monotonic()
        if self._file is None or now - self._last_look < LOOK_EVERY_S:
            return False
        self._last_look = now
        if not self.is_final:
            return False
        self.signal_name = "metaser stop"
        return True

    @property
    def is_final(self) -> bool:
        """Whether the file is there: whoever put it there does not want the run to be continued by itself."""
        try:
            return self._file is not None and self._file.stat().st_mtime >= self._created
        except FileNotFoundError:
            return False
