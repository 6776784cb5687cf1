"""The numbers of a training: `metrics.jsonl`, and TensorBoard events made from the same lines.

`metrics.jsonl` is the truth, and its lines are sealed (`metaser/lines.py`). A resumed run cuts it back to its
checkpoint and writes the TensorBoard events anew from what is left, so that every (stage, step) stands exactly once in
both.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from metaser.lines import Chain, Line, read_lines
from metaser.rundir import RunDir
from metaser.runfiles import read_bytes, writing
from shards.files import whole_file
from shards.inputfile import MAX_TEXT_BYTES
from shards.shown import shown

log = logging.getLogger(__name__)

OnMetrics = Callable[[dict[str, Any]], None]
"""Called with every line of `metrics.jsonl` as it is written."""


def read_metrics(path: Path) -> Iterator[Line]:
    """Yield the lines of a `metrics.jsonl`, without their seals; a torn last line (the writer was killed) is left out.

    Raises:
        RunError: if it cannot be read, or any other line is damaged, gone, doubled or moved.
    """
    data = read_bytes(path, max_bytes=MAX_TEXT_BYTES)
    if data is not None:
        yield from _read(data, path)


def _read(data: bytes, path: Path) -> Iterator[Line]:
    lines = enumerate(data.split(b"\n")[:-1], start=1)
    return read_lines(((line, f"line {number} of {path}") for number, line in lines), Chain())


class Tracker:
    """Writes the lines of one run; only the main process has one.

    Raises:
        RunError: from every method, if the disk refuses.
    """

    def __init__(self, run: RunDir, *, stage: int, step: int) -> None:
        """Continue after the 1-based `stage` and its `step` (0: before its first), dropping what lies beyond."""
        self._run = run
        self._excepthook = threading.excepthook
        threading.excepthook = self._ignore_full_disk
        with writing(run.metrics):
            kept, chain = _cut_back(run.metrics, stage, step)
            self._file = _SealedFile(run.metrics, chain)
        if step and (not kept or _position(kept[-1]) != (stage, step)):
            log.warning(
                "%s must reach step %d of stage %d, from where this training goes on, but ends before; the numbers of "
                "the steps between are lost",
                run.metrics,
                step,
                stage,
            )
        self._stage_offsets: dict[int, int] = {}
        self._last_step = 0
        with writing(run.tensorboard):
            shutil.rmtree(run.tensorboard, ignore_errors=True)
            self._writer = SummaryWriter(str(run.tensorboard), flush_secs=10)
            for line in kept:
                self._to_tensorboard(line)

    def log(self, line: Line) -> None:
        """Write one line; `stage` and `step` must be in it."""
        with writing(self._run.metrics):
            self._file.append(line)
        with writing(self._run.tensorboard):
            self._to_tensorboard(line)

    def close(self) -> None:
        """Flush and close both files."""
        threading.excepthook = self._excepthook
        self._file.close()
        with writing(self._run.tensorboard):
            self._writer.close()

    def _ignore_full_disk(self, found: threading.ExceptHookArgs) -> None:
        """Print no traceback of TensorBoard's thread when the disk is full: its next call raises the same."""
        if not (issubclass(found.exc_type, OSError) and type(found.thread).__module__.startswith("tensorboard.")):
            self._excepthook(found)

    def _to_tensorboard(self, line: Line) -> None:
        stage, step = line["stage"], line["step"]
        offset = self._stage_offsets.setdefault(stage, self._last_step)
        self._last_step = offset + step
        for name, value in _scalars({key: value for key, value in line.items() if key not in ("stage", "step")}):
            self._writer.add_scalar(shown(f"stage{stage}/{name}"), value, self._last_step)


class KeyLog:
    """Which utterances one process read in each step: `keys/rank-0.jsonl`, cut back like the metrics."""

    def __init__(self, run: RunDir, rank: int) -> None:
        """Continue the log of process `rank`; `cut_back_keys` must have run."""
        self._path = run.key_log(rank)
        with writing(self._path):
            run.keys.mkdir(parents=True, exist_ok=True)
            data = read_bytes(self._path, max_bytes=MAX_TEXT_BYTES) or b""
            self._file = _SealedFile(self._path, Chain.after(data, str(self._path)))

    def write(self, stage: int, step: int, keys: list[str]) -> None:
        """Write what was read in the 1-based `step` of the 1-based `stage`."""
        with writing(self._path):
            self._file.append({"stage": stage, "step": step, "keys": keys})

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True)
class Recorder:
    """All that one process writes of its steps."""

    tracker: Tracker | None
    """In the main process only."""
    key_log: KeyLog | None
    """If the experiment asks for it."""
    on_metrics: OnMetrics

    def write_metrics(self, line: Line) -> None:
        """Write and show a line of `metrics.jsonl`; nothing but in the main process."""
        if self.tracker is not None:
            self.tracker.log(line)
            self.on_metrics(line)

    def close(self) -> None:
        """Flush and close all files."""
        if self.tracker is not None:
            self.tracker.close()
        if self.key_log is not None:
            self.key_log.close()


def cut_back_keys(run: RunDir, *, stage: int, step: int) -> None:
    """Drop what all processes' key logs hold beyond the 1-based `stage` and its `step`."""
    for path in run.key_logs():
        with writing(path):
            _cut_back(path, stage, step)


class _SealedFile:
    """Lines that are appended to a file."""

    def __init__(self, path: Path, chain: Chain) -> None:
        """Continue after the lines that `chain` has seen."""
        self._chain = chain
        # Unbuffered: what a full disk refused is not tried again when the file is closed.
        self._file = path.open("ab", buffering=0)

    def append(self, line: Line) -> None:
        data = self._chain.sealed(json.dumps(line).encode()) + b"\n"
        written = self._file.write(data)
        if written != len(data):
            # A nearly full disk takes a part; the next write says why.
            self._file.write(data[written:])

    def close(self) -> None:
        self._file.close()


def _position(line: Line) -> tuple[int, int]:
    return line["stage"], line["step"]


def _cut_back(path: Path, stage: int, step: int) -> tuple[list[Line], Chain]:
    """Cut the file behind its last line that is not beyond `stage` and `step`; return the lines that are left."""
    data = read_bytes(path, max_bytes=MAX_TEXT_BYTES) or b""
    # Lazily: what lies behind the checkpoint may be damaged, it is cut off.
    kept = list(itertools.takewhile(lambda line: _position(line) <= (stage, step), _read(data, path)))
    end = 0
    for _ in kept:
        end = data.index(b"\n", end) + 1
    if end != len(data):
        with whole_file(path) as file:
            file.write(data[:end])
    return kept, Chain.after(data[:end], str(path))


def _scalars(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)
