"""Checkpoints: complete or absent, never unpickled, independent of how the work was spread.

A folder `step-000200/` holds `model.safetensors` (all weights, float32), `optimizer.safetensors` (`PARAMETER.STATE`),
where a moving average is kept `average.safetensors` (the trained weights' average), and `checkpoint.json` (the
position, and every file's size and sha256).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from metaser.errors import RunError
from metaser.train.state import TrainState

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{6,})")
MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"
MARKER = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    state: TrainState

    def model_tensors(self) -> dict[str, Tensor]:
        """Return all weights."""
        return load_file(self.path / MODEL)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state by `PARAMETER.STATE`."""
        return load_file(self.path / OPTIMIZER)

    def average_tensors(self) -> dict[str, Tensor]:
        """Return the averaged weights of what was trained; empty where no average was kept."""
        path = self.path / AVERAGE
        return load_file(path) if path.exists() else {}

    def selected_tensors(self) -> dict[str, Tensor]:
        """Return all weights as they are judged and handed on: averaged where an average was kept."""
        return self.model_tensors() | self.average_tensors()


def step_folder(folder: Path, step: int) -> Path:
    """Return where the checkpoint of `step` lies."""
    return folder / f"step-{step:06d}"


def save_checkpoint(
    folder: Path,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: TrainState,
    *,
    average: dict[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint that appears under its name only when every byte is on disk.

    Raises:
        RunError: if the disk refuses (full, read-only); earlier checkpoints are untouched.
    """
    final = step_folder(folder, state.step)
    temporary = folder / f".{final.name}.tmp"
    contents = {MODEL: model, OPTIMIZER: optimizer} | ({} if average is None else {AVERAGE: average})
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, tensors in contents.items():
            save_file(tensors, temporary / name)
        files = {name: _fingerprint(temporary / name) for name in contents}
        (temporary / MARKER).write_text(
            json.dumps({"state": state.to_dict(), "files": files}, indent=1), encoding="utf-8"
        )
        for name in (*contents, MARKER):
            _sync(temporary / name)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"checkpoint {final} cannot be written: {error}; earlier checkpoints are complete, free the disk "
            "and start again to continue"
        ) from error
    return final


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint in `folder`, saying which ones were passed over and why.

    One whose selected weights lie in another checkpoint is complete only with that one.
    """
    for path in reversed(step_folders(folder)):
        try:
            found = read_checkpoint(path)
            if found.state.best_step not in (0, found.state.step):
                read_checkpoint(step_folder(folder, found.state.best_step))
            return found
        except RunError as error:
            log.warning("passing over an incomplete checkpoint: %s", error)
    return None


def step_folders(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, complete or not, by ascending step."""
    by_step = {int(match[1]): path for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))}
    return [by_step[step] for step in sorted(by_step)]


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path` after checking every byte.

    Raises:
        RunError: if it is missing, incomplete or damaged.
    """
    try:
        marker: dict[str, Any] = json.loads((path / MARKER).read_text(encoding="utf-8"))
        state = TrainState.from_dict(marker["state"])
        expected = marker["files"]
        for name in {MODEL, OPTIMIZER, *expected}:
            got = _fingerprint(path / name)
            if got != expected[name]:
                raise RunError(f"{path / name} must have {expected[name]}, got {got}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not a complete checkpoint: {error}") from error
    return Checkpoint(path, state)


def prune_checkpoints(folder: Path, *, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints and the selected ones they name, and what a killed writer left.

    The older ones of these are what a run falls back to when the newest is damaged, so their selected ones stay too.
    """
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover)
    newest = step_folders(folder)[-keep_last:]
    kept = {*newest, *(step_folder(folder, _selected_step(path)) for path in newest)}
    for path in step_folders(folder):
        if path not in kept:
            shutil.rmtree(path)


def _selected_step(path: Path) -> int:
    try:
        return int(json.loads((path / MARKER).read_text(encoding="utf-8"))["state"]["best_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"num_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
