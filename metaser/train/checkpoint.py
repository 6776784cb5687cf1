"""Checkpoints: complete or absent, never unpickled, independent of how the work was spread.

A folder `step-000200/` holds `model.safetensors` (all weights, float32), `optimizer.safetensors` (`PARAMETER.STATE`),
where a moving average is kept `average.safetensors` (the trained weights' average), and `checkpoint.json` (the
position, every file's size and sha256, and the sha256 of both).
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from metaser.errors import RunError
from metaser.model.tensorfile import Stamp, TensorFileError, open_tensors, stamp_of
from metaser.rundir import step_draft, step_drafts, step_folder, step_paths
from metaser.sums import is_as_sealed, is_sealed, sealed_json
from metaser.train.state import TrainState
from shards.files import sync
from shards.inputfile import MAX_SETTINGS_BYTES, open_regular, read_regular
from shards.jsontext import parse_json
from shards.shown import shown

log = logging.getLogger(__name__)

MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"
MARKER = "checkpoint.json"


class _FileSum(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    num_bytes: int
    sha256: str


class _Marker(BaseModel):
    """What `checkpoint.json` holds; that of an earlier version has no sha256 of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    state: dict[str, Any]
    files: dict[Literal["model.safetensors", "optimizer.safetensors", "average.safetensors"], _FileSum]
    sha256: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    state: TrainState
    stamps: Mapping[str, Stamp]
    """Of its files, as they were when their sha256 was compared: reading large ones twice takes seconds."""

    def model_tensors(self) -> dict[str, Tensor]:
        """Return all weights.

        Raises:
            RunError: if the file is not as it was when the checkpoint was read, or holds what no training writes.
        """
        return self._tensors(MODEL)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state by `PARAMETER.STATE`.

        Raises:
            RunError: as `model_tensors` does.
        """
        return self._tensors(OPTIMIZER)

    def average_tensors(self) -> dict[str, Tensor]:
        """Return the averaged weights of what was trained; empty where no average was kept.

        Raises:
            RunError: as `model_tensors` does.
        """
        return self._tensors(AVERAGE) if AVERAGE in self.stamps else {}

    def selected_tensors(self) -> dict[str, Tensor]:
        """Return all weights as they are judged and handed on: averaged where an average was kept.

        Raises:
            RunError: as `model_tensors` does.
        """
        return self.model_tensors() | self.average_tensors()

    def _tensors(self, name: str) -> dict[str, Tensor]:
        path = self.path / name
        try:
            with open_tensors(path) as file:
                is_unchanged = file.stamp == self.stamps[name]
                # Mapped: the processes of a node share the pages, where copies of a large model would fill its memory.
                tensors = load_file(path) if is_unchanged else {}
        except (OSError, TensorFileError, SafetensorError) as error:
            raise RunError(f"{path} must hold tensors of a checkpoint, but does not: {error}") from error
        if not is_unchanged:
            raise RunError(f"{path} must stay as it is while it is read, but has changed; start again")
        return tensors


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
    temporary = step_draft(folder, state.step)
    contents = {MODEL: model, OPTIMIZER: optimizer} | ({} if average is None else {AVERAGE: average})
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, tensors in contents.items():
            save_file(tensors, temporary / name)
        files = {name: _fingerprint(temporary / name)[0] for name in contents}
        (temporary / MARKER).write_text(sealed_json({"state": state.to_dict(), "files": files}), encoding="utf-8")
        for name in (*contents, MARKER):
            sync(temporary / name)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync(folder)
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
    return [path for _, path in sorted(step_paths(folder).items()) if path.is_dir() and not path.is_symlink()]


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path` after checking every byte.

    Raises:
        RunError: if it is missing, incomplete or damaged.
    """
    try:
        state, files, is_covered = _read_marker(path)
        stamps = {}
        for name in {MODEL, OPTIMIZER, *files}:
            got, stamps[name] = _fingerprint(path / name)
            if got != files[name]:
                raise RunError(f"{path / name} must have {files[name]}, got {got}")
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is not a complete checkpoint: {_reason(error)}") from error
    if not is_covered:
        log.warning(
            "%s has no sha256 of its own, because an earlier version of MetaSER wrote it: whether what it says of the "
            "training's state is as it was written cannot be checked",
            path / MARKER,
        )
    return Checkpoint(path, state, stamps)


def _read_marker(path: Path) -> tuple[TrainState, dict[str, dict[str, Any]], bool]:
    """Return the state, every file's fingerprint, and whether a sha256 covers both.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not what was written, or is that of another step.
    """
    data = read_regular(path / MARKER, max_bytes=MAX_SETTINGS_BYTES)
    values = parse_json(data)
    marker = _Marker.model_validate(values)
    if is_sealed(values) and not is_as_sealed(data):
        raise ValueError(f"{MARKER} is not what its sha256 is of: it is damaged, or was changed")
    state = TrainState.from_dict(marker.state)
    if path.name != step_folder(path, state.step).name:
        raise ValueError(f"it is that of step {state.step}, in a folder of another's name")
    return state, {name: found.model_dump() for name, found in marker.files.items()}, marker.sha256 is not None


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return shown(f"{place}: {first['msg']}, got {first['input']!r}", 200)
    return shown(f"{error} is not in it" if isinstance(error, KeyError) else str(error), 300)


def prune_checkpoints(folder: Path, *, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints and the selected ones they name, and what a killed writer left.

    The older ones of these are what a run falls back to when the newest is damaged, so their selected ones stay too.
    """
    for leftover in step_drafts(folder):
        shutil.rmtree(leftover, ignore_errors=True)
    newest = step_folders(folder)[-keep_last:]
    kept = {*newest, *(step_folder(folder, _selected_step(path)) for path in newest)}
    for path in step_folders(folder):
        if path not in kept:
            shutil.rmtree(path)


def _selected_step(path: Path) -> int:
    try:
        return _read_marker(path)[0].best_step
    except (OSError, ValueError):
        return 0


def _fingerprint(path: Path) -> tuple[dict[str, Any], Stamp]:
    with open_regular(path) as file:
        stamp = stamp_of(file)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"num_bytes": stamp.num_bytes, "sha256": digest}, stamp
