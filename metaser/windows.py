"""Which windows of a recording a model hears, and what it says of them, joined into what it says of the recording.

Classes: the mean of the windows' log-probabilities, renormalised (their geometric mean); numbers: the mean; both
weighted by the seconds for which a window speaks, so that overlaps count once. Characters: the frames of all windows
one after the other, each taken from the window that speaks for it, so that no word stands there twice. Silent windows
say nothing.

Legend: L frames, C outputs of a task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaser.errors import ConfigError, ModelError
from metaser.model.network import MetaSERNetwork
from metaser.tasks.kinds import kind_of
from metaser.tasks.spec import TaskSpec
from shards.config import MIN_HOP_S, MIN_WINDOW_S
from shards.schema import RATE_HZ
from shards.windows import Window, Windowing

_DEFAULT_WINDOW_S = 15.0
"""For a model whose config.json does not say how long a window it should hear."""


def choose_windows(model: MetaSERNetwork, window_s: float | None = None, overlap_s: float | None = None) -> Windowing:
    """Return the windows that `model` hears long recordings in.

    Args:
        model: Its config.json names a window: the one it was trained with, or the length of its training clips.
        window_s: Another length.
        overlap_s: How far windows overlap; None is the model's own, or a quarter of another length.

    Raises:
        ConfigError: if the lengths make no windows, or longer ones than the model's encoder hears.
        ModelError: if those in config.json do not.
    """
    stored_s = getattr(model.config, "window_s", None), getattr(model.config, "window_overlap_s", None)
    if window_s is None and stored_s[0] is not None:
        window_s, overlap_s = stored_s[0], stored_s[1] if overlap_s is None else overlap_s
    longest_s = math.inf if model.longest_samples is None else model.longest_samples / RATE_HZ
    window_s = min(_DEFAULT_WINDOW_S, longest_s) if window_s is None else window_s
    problem = _problem(window_s, overlap_s, longest_s)
    if problem is None:
        return Windowing.of_seconds(window_s, overlap_s)
    if (window_s, overlap_s) == stored_s:
        raise ModelError(f"window_s and window_overlap_s in config.json: {problem}; export the model again")
    raise ConfigError(f"{problem}; give other --window or --overlap")


def _problem(window_s: Any, overlap_s: Any, longest_s: float) -> str | None:
    if not isinstance(window_s, int | float) or not MIN_WINDOW_S <= window_s < float("inf"):
        return f"a window must last {MIN_WINDOW_S:g} s or longer, got {window_s}"
    if window_s > longest_s:
        return f"a window must last at most the {longest_s:g} s that the model hears at once, got {window_s:g}"
    if overlap_s is not None and not (isinstance(overlap_s, int | float) and 0 <= overlap_s <= window_s - MIN_HOP_S):
        return (
            f"windows of {window_s:g} s must overlap by 0 to {window_s - MIN_HOP_S:g} s, so that each begins at least "
            f"{MIN_HOP_S:g} s after the other, got {overlap_s}"
        )
    return None


class WindowOutput(NamedTuple):
    """What a model says of one window, without a batch dimension; None of a silent one."""

    window: Window
    logits: Mapping[str, Tensor] | None
    """`L C` of kinds that answer for every frame, `C` of the others; or what `TaskKind.condense` made of them."""


@dataclass(frozen=True)
class JoinedOutput:
    """What a model says of one recording, joined from its windows: a batch of one."""

    logits: Mapping[str, Tensor]
    num_frames: Mapping[str, int]

    def frames_of(self, task: str) -> Tensor:
        """Return how many frames the task's logits have, shape (1,)."""
        return torch.tensor([self.num_frames[task]])


def join_windows(specs: Sequence[TaskSpec], outputs: Sequence[WindowOutput], *, hop_samples: int) -> JoinedOutput:
    """Return what all windows of one recording, in their order, say of it.

    One window's outputs are returned as they are.

    Args:
        specs: Tasks; those that the windows have no outputs of are left out.
        outputs: All windows with what was said of them; at least one is not silent.
        hop_samples: Samples from one frame of the model to the next.
    """
    names = next(output.logits for output in outputs if output.logits is not None).keys()
    windows = [output.window for output in outputs]
    logits, num_frames = {}, {}
    for spec in specs:
        if spec.name not in names:
            continue
        parts = [None if output.logits is None else output.logits[spec.name] for output in outputs]
        joined = kind_of(spec).join(spec, windows, parts, hop_samples)
        logits[spec.name] = joined[None]
        num_frames[spec.name] = len(joined) if kind_of(spec).per_frame else 0
    return JoinedOutput(logits, num_frames)
