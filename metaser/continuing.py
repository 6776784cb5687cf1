"""What may change in an experiment between the starts of one run. Loads no torch: `metaser submit` asks it, too."""

from __future__ import annotations

from typing import Any

from metaser.config.schema import ExperimentConfig
from metaser.errors import RunError
from metaser.rundir import RunDir

_ACCEPTED = "allow_recording_overlap"


def refuse_changes(before: ExperimentConfig, now: ExperimentConfig, run: RunDir) -> None:
    """Refuse to continue a run with another experiment: only `output_dir`, `parallel` and more steps may change.

    A stage that a later one has built on keeps its number of steps.

    Raises:
        RunError: naming every changed value.
    """
    old, new = (
        # What is accepted changes no number; runs from before recordings were compared must be able to go on.
        config.model_dump(mode="json", exclude={"output_dir": True, "parallel": True, "data": {_ACCEPTED}})
        for config in (before, now)
    )
    # Where frames are kept changes no number, that they are does: dropout of the frozen part is left out.
    for tree in (old, new):
        tree["frame_cache"] = tree["frame_cache"] is not None
    for number, (old_stage, new_stage) in enumerate(zip(old["stages"], new["stages"], strict=False), start=1):
        is_built_on = run.checkpoints(number + 1).is_dir()
        if new_stage["num_steps"] >= old_stage["num_steps"] and not is_built_on:
            old_stage["num_steps"] = new_stage["num_steps"]
    changes = list(_differences(old, new, ""))
    if changes:
        raise RunError(
            f"run {str(run.root)!r} can only be continued with the experiment it was started with, but these changed: "
            f"{'; '.join(changes)}; choose another output_dir"
        )


def _differences(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [change for name in names for change in _differences(old.get(name), new.get(name), f"{path}.{name}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [change for number, (a, b) in pairs for change in _differences(a, b, f"{path}.{number}")]
    return [] if old == new else [f"{path.lstrip('.')} from {old!r} to {new!r}"]
