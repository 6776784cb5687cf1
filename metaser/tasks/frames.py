"""Saying of every frame whether something is there (speech, laughter), from intervals; binary cross-entropy and F1."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from typing_extensions import override

from metaser.errors import TrainingError
from metaser.tasks.joining import own_frames
from metaser.tasks.kind import Metric, TaskKind, TaskTarget, TaskTargets
from metaser.tasks.results import Prediction, Probabilities, Reference, TaskResult
from metaser.tasks.spec import TaskConfig, TaskSpec
from shards.shown import shown

if TYPE_CHECKING:
    from torch import Tensor

    from shards.index import Index
    from shards.windows import Window

NOWHERE = "nowhere"
"""What a field says of a clip without it; an empty one, and `-` in many tables, says nothing."""
_TOLERANCE_S = 0.1
"""By which an interval may end behind its clip, as rounded times do."""
_NO_FRAMES = "-"
_MAX_FRAMES = 1 << 21
"""Of an answer; the longest utterance, of four hours, has 720,000."""
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_INTERVAL = re.compile(rf"({_NUMBER})-({_NUMBER})")
_RUN = re.compile(r"([1-9][0-9]{0,8})\*([01])")
_ABSENT = -30.0
"""Logit of a silent window's frames."""


class FramesTask(TaskConfig):
    """Say of every frame whether its centre lies in one of the intervals: `0.31-1.22 1.50-2.90` (s), `nowhere`."""

    kind: Literal["frames"]
    name: str
    field: str
    """Metadata field with the intervals, e.g. `extra.speech`."""

    @property
    @override
    def metadata_fields(self) -> tuple[str, ...]:
        return (self.field,)


def parse_intervals(text: str) -> list[tuple[float, float]]:
    """Return start and end in seconds of each interval.

    Raises:
        TrainingError: if `text` holds something else, or intervals that end before they begin.
    """
    found = []
    for word in [] if text.strip() == NOWHERE else text.split():
        match = _INTERVAL.fullmatch(word)
        start_s, end_s = map(float, match.groups()) if match else (0.0, 0.0)
        if not 0 <= start_s < end_s < math.inf:
            raise TrainingError(
                f"intervals must look like '0.31-1.22 1.50-2.90', in seconds, each with its end after its start, or be "
                f"'{NOWHERE}' where there is none, got {shown(word, 60)!r} in {shown(text, 100)!r}; correct the field"
            )
        found.append((start_s, end_s))
    return found


def _refuse_beyond(spec: TaskSpec, index: Index, found: Sequence[Sequence[tuple[float, float]]]) -> None:
    """Refuse intervals behind the end of their clip: times in another unit, or of another file.

    Raises:
        TrainingError: naming the first.
    """
    ends_s = np.array([max((end_s for _, end_s in intervals), default=0.0) for intervals in found])
    beyond = np.flatnonzero(ends_s > index.duration_s + _TOLERANCE_S)
    if len(beyond):
        key = index.take(beyond[:1]).values("key")[0]
        raise TrainingError(
            f"intervals must lie inside their clip, but {spec.fields[0]} of {key!r} goes on to {ends_s[beyond[0]]:g} s "
            f"of {index.duration_s[beyond[0]]:g} s ({len(beyond)} such utterances); give times in seconds from the "
            "clip's beginning"
        )


class _Intervals(TaskTargets):
    """Intervals as fractions of the clip, which hold for every speed that it is played at."""

    def __init__(self, spec: TaskSpec, index: Index, is_whole: np.ndarray) -> None:
        texts = [text if text and text.strip() else None for text in index.stream(spec.fields[0])]
        found = [parse_intervals(text) if text else [] for text in texts]
        _refuse_beyond(spec, index, found)
        self._is_labelled = is_whole & np.array([text is not None for text in texts], bool)
        self.weights = self._is_labelled.astype(float)
        # Flat, because ten million lists of pairs would take gigabytes.
        self._ends = np.cumsum([len(intervals) for intervals in found])
        self._bounds = np.array([pair for intervals in found for pair in intervals], np.float32).reshape(-1, 2)
        self._durations_s = index.duration_s.astype(np.float32)

    @override
    def lookup(self, items: np.ndarray) -> TaskTarget:
        import torch

        starts = np.where(items > 0, self._ends[items - 1], 0)
        is_labelled = self._is_labelled[items]
        counts = np.where(is_labelled, self._ends[items] - starts, 0)
        bounds_BI2 = np.full((len(items), max(1, int(counts.max(initial=0))), 2), np.nan, np.float32)
        for row, (item, start, count) in enumerate(zip(items, starts, counts, strict=True)):
            bounds_BI2[row, :count] = self._bounds[start : start + count] / self._durations_s[item]
        return TaskTarget(torch.from_numpy(bounds_BI2), torch.from_numpy(is_labelled.astype(np.int64)))


class FrameLabels(TaskKind[FramesTask]):
    """One logit per frame; targets are the bounds of I intervals as fractions of the clip, bounds_BI2 (NaN: none).

    A frame's centre is taken to lie at (l + 0.5) / L of its clip of L frames, at most half a frame beside where the
    encoder's receptive field has it.
    """

    name = "frames"
    config = FramesTask
    metrics: ClassVar = {"f1": Metric("F1", True)}
    curve = "f1"
    per_frame = True
    needs_whole_clip = True

    @override
    def resolve(self, task: FramesTask, training: Index) -> TaskSpec:
        return TaskSpec(name=task.name, kind=self.name, fields=task.metadata_fields, labels=task.metadata_fields)

    @override
    def check(self, spec: TaskSpec) -> None:
        super().check(spec)
        if len(spec.labels) != 1:
            raise ValueError(f"task {spec.name!r} must have one label, got {spec.labels}")

    @override
    def targets(self, spec: TaskSpec, index: Index, is_whole: np.ndarray) -> TaskTargets:
        return _Intervals(spec, index, is_whole)

    @override
    def losses(self, spec: TaskSpec, logits: Tensor, num_frames_B: Tensor, target: TaskTarget) -> Tensor:
        """Return the mean binary cross-entropy over each utterance's own frames."""
        import torch
        from torch.nn import functional

        logits_BL = logits.squeeze(-1)
        true_BL = _frames_inside(target.values, num_frames_B, logits_BL.shape[1])
        losses_BL = functional.binary_cross_entropy_with_logits(logits_BL, true_BL.to(logits_BL), reduction="none")
        own_BL = torch.arange(logits_BL.shape[1], device=logits.device) < num_frames_B[:, None]
        sums_B = torch.where(own_BL, losses_BL, torch.zeros_like(losses_BL)).sum(dim=1)
        return torch.where(target.lengths_B > 0, sums_B / num_frames_B.clamp(min=1), torch.zeros_like(sums_B))

    @override
    def predictions(
        self,
        spec: TaskSpec,
        logits: Tensor,
        num_frames_B: Tensor,
    ) -> list[tuple[Prediction, Probabilities]]:
        """Return runs of frames, as `frames_text` writes them; a frame has it from a probability of a half on."""
        rows = (logits.squeeze(-1) > 0).tolist()
        return [(frames_text(row[:num]), None) for row, num in zip(rows, num_frames_B.tolist(), strict=True)]

    @override
    def references(
        self,
        spec: TaskSpec,
        utterances: Index,
        target: TaskTarget,
        num_frames_B: Tensor,
    ) -> list[Reference]:
        rows = _frames_inside(target.values, num_frames_B, int(num_frames_B.max())).tolist()
        return [frames_text(row[:num]) for row, num in zip(rows, num_frames_B.tolist(), strict=True)]

    @override
    def join(
        self, spec: TaskSpec, windows: Sequence[Window], parts: Sequence[Tensor | None], hop_samples: int
    ) -> Tensor:
        """Return the recording's frames, those of silent windows without it."""
        import torch

        if len(parts) == 1 and parts[0] is not None:
            return parts[0]
        pieces = []
        for window, part in zip(windows, parts, strict=True):
            own = own_frames(window, hop_samples)
            num_silent = len(range((window.end - window.start) // hop_samples)[own])
            pieces.append(torch.full((num_silent, spec.num_outputs), _ABSENT) if part is None else part[own])
        return torch.cat(pieces)

    @override
    def measure(self, spec: TaskSpec, pairs: Sequence[TaskResult]) -> dict[str, Any]:
        """Return `f1` over the frames of all utterances, None with `f1_reason` if it is nowhere, neither true nor said.

        Beside it stand `precision` and `recall`, and how many frames there are and have it.
        """
        true, said = (
            np.concatenate([parse_frames(str(getattr(pair, side))) for pair in pairs])
            for side in ("reference", "prediction")
        )
        num_hits, num_true, num_said = int((true & said).sum()), int(true.sum()), int(said.sum())
        metrics: dict[str, Any] = {
            "f1": 2 * num_hits / (num_true + num_said) if num_true + num_said else None,
            "precision": num_hits / num_said if num_said else None,
            "recall": num_hits / num_true if num_true else None,
            "num_frames": len(true),
            "num_frames_with": num_true,
        }
        if metrics["f1"] is None:
            metrics["f1_reason"] = "no frame has it, neither in truth nor as predicted"
        return metrics

    @override
    def parse(
        self,
        spec: TaskSpec,
        references: Sequence[str | None],
        predictions: Sequence[str],
        probabilities: Probabilities,
    ) -> TaskResult:
        lengths = {len(parse_frames(text)) for text in (references[0], predictions[0]) if text is not None}
        if len(lengths) > 1:
            raise ValueError(f"reference and prediction of {spec.name} must have as many frames, got {sorted(lengths)}")
        return TaskResult(references[0], predictions[0], None, None)

    @override
    def answer(self, spec: TaskSpec, prediction: Prediction, probabilities: Probabilities) -> dict[str, Any]:
        return {"frames": prediction}

    @override
    def answer_columns(self, spec: TaskSpec) -> list[str]:
        return ["frames"]

    @override
    def brief(self, answer: Mapping[str, Any]) -> str:
        inside = parse_frames(answer["frames"])
        return f"{inside.mean():.0%}" if len(inside) else _NO_FRAMES


def frames_text(is_inside: Sequence[bool]) -> str:
    """Return `12*0 40*1`: how many frames in a row are without and with it."""
    return " ".join(f"{len(list(run))}*{int(value)}" for value, run in groupby(is_inside)) or _NO_FRAMES


def parse_frames(text: str) -> np.ndarray:
    """Return what `frames_text` wrote, shape (num_frames,), bool.

    Raises:
        ValueError: if it is no such text.
    """
    runs = [_RUN.fullmatch(run) for run in text.split()] if text != _NO_FRAMES else []
    if None in runs or not text:
        raise ValueError(f"frames must look like '12*0 40*1', got {text[:100]!r}")
    matches = [run for run in runs if run is not None]
    numbers = [int(run[1]) for run in matches]
    if sum(numbers) > _MAX_FRAMES:
        raise ValueError(f"there must be at most {_MAX_FRAMES} frames, got {sum(numbers)}")
    return np.repeat(np.array([run[2] == "1" for run in matches], bool), numbers)


def _frames_inside(bounds_BI2: Tensor, num_frames_B: Tensor, num_frames: int) -> Tensor:
    """Return which frames have their centre in an interval, shape (B, num_frames)."""
    import torch

    centres_BL = (torch.arange(num_frames, device=bounds_BI2.device) + 0.5) / num_frames_B[:, None].clamp(min=1)
    # Counted where they begin and end: comparing each frame with each interval would take gigabytes for an hour.
    begun, ended = (
        torch.zeros(len(bounds_BI2), num_frames + 1, dtype=torch.int32, device=bounds_BI2.device).scatter_add_(
            1, firsts_BI, torch.ones_like(firsts_BI, dtype=torch.int32)
        )
        for firsts_BI in (
            # Behind all frames where there is no interval.
            torch.searchsorted(centres_BL, bounds_BI.nan_to_num(torch.inf).contiguous().to(centres_BL))
            for bounds_BI in bounds_BI2.unbind(dim=-1)
        )
    )
    return (begun - ended).cumsum(dim=1)[:, :num_frames] > 0
