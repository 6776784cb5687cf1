"""How far a run is, read from its folder while it trains or afterwards."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from metaser.config.load import load_experiment
from metaser.config.schema import StageConfig
from metaser.errors import RunError
from metaser.lines import Chain, Stage, Step, read_lines
from metaser.rundir import RunDir, step_paths
from metaser.runfiles import reading, validated_json
from metaser.runlock import LockHolder, lock_holder
from shards.inputfile import is_there, open_regular

_TAIL_BYTES = 200_000
_RECENT_STEPS = 50


@dataclass(frozen=True)
class CheckpointPlace:
    """The newest checkpoint by name; whether it is whole is found out by whoever reads it."""

    stage: int
    step: int
    age_s: float


@dataclass(frozen=True)
class RunProgress:
    """Where a run stands."""

    stage: int
    """1-based; 0 before the first step."""
    stage_name: str | None
    step: int
    num_steps: int
    """Of this stage."""
    loss: float | None
    audio_s_per_s: float | None
    """Median of the last steps."""
    remaining_s: float | None
    """All steps that are left, at the median duration of the last ones; evaluations and saves come on top."""
    checkpoint: CheckpointPlace | None
    is_finished: bool
    """Trained to the end and evaluated."""
    holder: LockHolder | None
    """Who trains right now."""


def read_progress(run: RunDir) -> RunProgress:
    """Return where the run in this folder stands; one that was only submitted stands at stage 0.

    Raises:
        ConfigError: if its configuration cannot be read.
        RunError: if another file of it cannot.
    """
    stages: Sequence[StageConfig] = load_experiment(run.config).stages if run.is_run() else ()
    steps = _last_steps(run.metrics)
    recent = [line for line in steps if line.stage == steps[-1].stage][-_RECENT_STEPS:]
    last = recent[-1] if recent else None
    stage = last.stage if last else 0
    if stage > len(stages):
        raise RunError(f"{run.metrics} must be of the {len(stages)} stages of its run, got stage {stage}")
    num_left = sum(part.num_steps for part in stages[max(stage - 1, 0) :]) - (last.step if last else 0)
    return RunProgress(
        stage=stage,
        stage_name=stages[stage - 1].name if last else None,
        step=last.step if last else 0,
        num_steps=stages[stage - 1].num_steps if last else 0,
        loss=last.loss if last else None,
        audio_s_per_s=statistics.median(line.audio_s_per_s for line in recent) if recent else None,
        remaining_s=num_left * statistics.median(line.step_s for line in recent) if recent else None,
        checkpoint=_newest_checkpoint(run, len(stages)),
        is_finished=is_finished(run),
        holder=lock_holder(run),
    )


def is_finished(run: RunDir) -> bool:
    """Return whether the run was trained to its last step and evaluated.

    Raises:
        ConfigError: if its configuration cannot be read.
        RunError: if another file of it cannot.
    """
    with reading(run.root):
        if not run.is_run() or not is_there(run.report_json):
            return False
    last = load_experiment(run.config).stages
    steps = _last_steps(run.metrics)
    return bool(steps) and (steps[-1].stage, steps[-1].step) == (len(last), last[-1].num_steps)


@dataclass(frozen=True)
class _Step:
    """What the line of a training step says of how far and how fast."""

    stage: Stage
    step: Step
    loss: float
    audio_s_per_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    step_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]


_validate_step = TypeAdapter(_Step).validate_json


def _last_steps(path: Path) -> list[_Step]:
    """Return the training steps in the last part of a `metrics.jsonl` that may be growing."""
    with reading(path):
        try:
            with open_regular(path) as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _TAIL_BYTES))
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return []
    # What follows the last line break is being written; what precedes the first may be half a line.
    is_whole = size <= _TAIL_BYTES
    whole = lines[:-1] if is_whole else lines[1:-1]
    read = read_lines(((line, str(path)) for line in whole), Chain(is_at_start=is_whole))
    return [
        validated_json(data, _validate_step, str(path))
        for data, line in zip(whole, read, strict=True)
        if "loss" in line
    ]


def _newest_checkpoint(run: RunDir, num_stages: int) -> CheckpointPlace | None:
    for stage in range(num_stages, 0, -1):
        for step, path in sorted(step_paths(run.checkpoints(stage)).items(), reverse=True):
            # A training may delete it meanwhile.
            with suppress(FileNotFoundError):
                return CheckpointPlace(stage, step, time.time() - path.stat().st_mtime)
    return None
