"""Which windows of a recording a model hears, and what it says of them, joined into what it says of the recording.

Classes: the mean of the windows' log-probabilities, renormalised (their geometric mean); numbers: the mean; both
weighted by the seconds for which a window speaks, so that overlaps count once. Characters: the frames of all windows
one after the other, each taken from the window that speaks for it, so that no word stands there twice. Silent windows
say nothing.

Legend: W windows, L frames, C outputs of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metaser.errors import ConfigError, ModelError
from metaser.model.metaser import MetaSERModel, MetaSEROutput
from metaser.tasks import CTC_BLANK, TaskSpec
from shards.config import MIN_HOP_S, MIN_WINDOW_S
from shards.windows import Window, Windowing

_DEFAULT_WINDOW_S = 15.0
"""For a model whose config.json does not say how long a window it should hear."""
_SURE = 30.0
"""Logit of what stands for a silent window; the other characters' are 0."""
_BARELY = 1e-3
"""More than the blank, which a loss may therefore take as well: whether a word ends in the silence is not known."""


def choose_windows(model: MetaSERModel, window_s: float | None = None, overlap_s: float | None = None) -> Windowing:
    """Return the windows that `model` hears long recordings in.

    Args:
        model: Its config.json names a window: the one it was trained with, or the length of its training clips.
        window_s: Another length.
        overlap_s: How far windows overlap; None is the model's own, or a quarter of another length.

    Raises:
        ConfigError: if the lengths make no windows.
        ModelError: if those in config.json do not.
    """
    stored_s = getattr(model.config, "window_s", None), getattr(model.config, "window_overlap_s", None)
    if window_s is None and stored_s[0] is not None:
        window_s, overlap_s = stored_s[0], stored_s[1] if overlap_s is None else overlap_s
    window_s = _DEFAULT_WINDOW_S if window_s is None else window_s
    problem = _objection(window_s, overlap_s)
    if problem is None:
        return Windowing.of_seconds(window_s, overlap_s)
    if (window_s, overlap_s) == stored_s:
        raise ModelError(f"window_s and window_overlap_s in config.json: {problem}; export the model again")
    raise ConfigError(f"{problem}; give other --window or --overlap")


def _objection(window_s: Any, overlap_s: Any) -> str | None:
    if not isinstance(window_s, int | float) or not MIN_WINDOW_S <= window_s < float("inf"):
        return f"a window must last {MIN_WINDOW_S:g} s or longer, got {window_s}"
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
    """ctc: `L C`; classification and regression: `C`."""


def join_windows(specs: Sequence[TaskSpec], outputs: Sequence[WindowOutput], *, hop_samples: int) -> MetaSEROutput:
    """Return what all windows of one recording, in their order, say of it: a batch of one.

    One window's outputs are returned as they are.

    Args:
        specs: Tasks; those that the windows have no outputs of are left out.
        outputs: All windows with what was said of them; at least one is not silent.
        hop_samples: Samples from one frame of the model to the next.
    """
    speaking = [output for output in outputs if output.logits is not None]
    names = (speaking[0].logits or {}).keys()
    logits = {}
    num_frames = 0
    for spec in specs:
        if spec.name not in names:
            continue
        if spec.kind == "ctc":
            parts = [None if part is None else part[spec.name] for _, part in outputs]
            joined = join_frames([output.window for output in outputs], parts, _gap_logits(spec, parts), hop_samples)
            num_frames = len(joined)
        else:
            joined = _mean(spec, [(window, part[spec.name]) for window, part in speaking if part is not None])
        logits[spec.name] = joined[None]
    return MetaSEROutput(logits, torch.tensor([num_frames]))


def join_frames(windows: Sequence[Window], parts: Sequence[Tensor | None], gap: Tensor, hop_samples: int) -> Tensor:
    """Return the frames (first dimension) of all windows in their order, and `gap` for silent ones between others."""
    if len(parts) == 1 and parts[0] is not None:
        return parts[0]
    pieces: list[Tensor] = []
    is_after_silence = False
    for window, part in zip(windows, parts, strict=True):
        if part is not None:
            pieces += [gap] if pieces and is_after_silence else []
            pieces.append(part[_own_frames(window, hop_samples)])
        is_after_silence = part is None
    return torch.cat(pieces)


def _own_frames(window: Window, hop_samples: int) -> slice:
    # Halves go up, not to the even number: two neighbours must cut between the same frames.
    first, last = (
        (2 * (cut - window.start) + hop_samples) // (2 * hop_samples) for cut in (window.own_start, window.own_end)
    )
    return slice(first, None if window.own_end == window.end else last)


def silent_characters(spec: TaskSpec) -> list[int]:
    """Return the best character of each frame of a silent window: it parts words where the alphabet can."""
    return [CTC_BLANK, *([spec.labels.index(" ")] if " " in spec.labels else []), CTC_BLANK]


def _gap_logits(spec: TaskSpec, parts: Sequence[Tensor | None]) -> Float[Tensor, "L C"]:
    (shape, *_) = (part.shape for part in parts if part is not None)
    characters = silent_characters(spec)
    gap_LC = torch.zeros(len(characters), shape[-1])
    gap_LC[:, CTC_BLANK] = _SURE
    for frame, character in enumerate(characters):
        if character != CTC_BLANK:
            gap_LC[frame, character] = _SURE + _BARELY
    return gap_LC


def _mean(spec: TaskSpec, heard: Sequence[tuple[Window, Float[Tensor, "C"]]]) -> Float[Tensor, "C"]:
    if len(heard) == 1:
        return heard[0][1]
    logits_WC = torch.stack([logits for _, logits in heard]).double()
    if spec.kind == "classification":
        logits_WC = logits_WC.log_softmax(dim=-1)
    weights_W = torch.tensor([window.own_samples for window, _ in heard], dtype=torch.float64)
    mean_C: Tensor = (weights_W / weights_W.sum()) @ logits_WC
    return mean_C.float()
