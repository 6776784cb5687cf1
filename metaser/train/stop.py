"""A request to stop: noted when the signal comes, acted on at the next step boundary, everywhere for one reason."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from shards.signals import STOP_SIGNALS

LOOK_EVERY_S = 1.0
STOP_FILE = "metaser stop"
"""The reason that the file gives."""
REASONS = (*(number.name for number in STOP_SIGNALS), signal.SIGINT.name, STOP_FILE)
"""Weakest first: where several came, the last of them says whether and why the run goes on by itself."""


class StopNow(Exception):  # noqa: N818 (no error)
    """Raised in all processes at the same boundary when any of them was asked to stop."""


def reason_flags(reason: str | None) -> list[float]:
    """Return `reason` as one number for each of `REASONS`, to be added up over processes."""
    return [float(reason == each) for each in REASONS]


def strongest_reason(flags: Sequence[float]) -> str | None:
    """Return the strongest reason in a sum of `reason_flags`, None if nobody has one."""
    return next((reason for reason, flag in reversed([*zip(REASONS, flags, strict=True)]) if flag > 0), None)


class StopRequest:
    """Notes SIGTERM, SIGUSR1, SIGUSR2 (and Ctrl-C on the main process), and a file that appears.

    Attributes:
        reason: Which of `REASONS` this process, or by `agree` another one, has met; None as long as there is none.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Look for `file` about once a second; one that is older than this object asked an earlier process."""
        self.reason: str | None = None
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
        if number == signal.SIGINT and self.reason is not None:
            raise KeyboardInterrupt
        self.agree(signal.Signals(number).name)

    def agree(self, reason: str) -> None:
        """Take over another reason to stop unless this process has a stronger one."""
        if self.reason is None or REASONS.index(reason) > REASONS.index(self.reason):
            self.reason = reason

    def look(self) -> str | None:
        """Return this process's reason to stop, None if there is none; looks for the file if that is due."""
        now = time.monotonic()
        if now - self._last_look >= LOOK_EVERY_S:
            self._last_look = now
            if self.is_by_person:
                self.agree(STOP_FILE)
        return self.reason

    @property
    def is_by_person(self) -> bool:
        """Whether a person ran `metaser stop`, seen by this or another process: no job must start the run again."""
        if self.reason == STOP_FILE:
            return True
        try:
            return self._file is not None and self._file.stat().st_mtime >= self._created
        except FileNotFoundError:
            return False
