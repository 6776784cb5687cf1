"""A request to stop: noted when the signal comes, acted on at the next step boundary."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from shards.read import STOP_SIGNALS


class StopNow(Exception):  # noqa: N818 (no error)
    """Raised in all processes at the same boundary when any of them was asked to stop."""


class StopRequest:
    """Turns SIGTERM, SIGUSR1, SIGUSR2 (and Ctrl-C on the main process) into a flag."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
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
        """Whether a signal has come."""
        return self.signal_name is not None
