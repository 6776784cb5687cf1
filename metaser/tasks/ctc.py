"""Recognising a transcript's characters by CTC (Graves et al. 2006)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from typing_extensions import override

from metaser.tasks.joining import join_frames
from metaser.tasks.kind import Metric, TaskKind, TaskTarget, TaskTargets
from metaser.tasks.results import Prediction, Probabilities, Reference, TaskResult
from metaser.tasks.spec import TaskConfig, TaskSpec
from metaser.tasks.text import fold_text, lacks_word_boundaries, score_text, score_words

if TYPE_CHECKING:
    from torch import Tensor

    from shards.index import Index
    from shards.windows import Window

BLANK = 0
UNKNOWN = 1
SPECIAL = ("<blank>", "<unk>")
UNKNOWN_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_SURE = 30.0
"""Logit of what stands for a silent window; the other characters' are 0."""
_BARELY = 1e-3
"""More than the blank, which a loss may therefore take as well: whether a word ends in the silence is not known."""


class CtcTask(TaskConfig):
    """Recognise characters with CTC; the alphabet is that of the training text, case-folded."""

    kind: Literal["ctc"]
    name: str = "asr"
    field: str = "text"

    @property
    @override
    def metadata_fields(self) -> tuple[str, ...]:
        return (self.field,)


class _Characters(TaskTargets):
    """Characters of the text, looked up when they are needed; the text of a part of a clip is unknown."""

    def __init__(self, spec: TaskSpec, index: Index, is_whole: np.ndarray) -> None:
        self._index = index
        self._field = spec.fields[0]
        self._number_of = {char: number for number, char in enumerate(spec.labels)}
        self._is_whole = is_whole
        texts = index.stream(self._field)
        has_words = np.fromiter((bool(text and fold_text(text)) for text in texts), bool, len(index))
        self.weights = (has_words & is_whole).astype(float)

    def lookup(self, items: np.ndarray) -> TaskTarget:
        import torch

        stored = zip(self._index.take(items).values(self._field), self._is_whole[items].tolist(), strict=True)
        texts = [fold_text(text or "") if is_whole else "" for text, is_whole in stored]
        rows = [[self._number_of.get(char, UNKNOWN) for char in text] for text in texts]
        tokens_BU = np.zeros((len(rows), max(1, *map(len, rows))), dtype=np.int64)
        for row, tokens in zip(tokens_BU, rows, strict=True):
            row[: len(tokens)] = tokens
        return TaskTarget(torch.from_numpy(tokens_BU), torch.tensor([len(row) for row in rows]))


class Ctc(TaskKind[CtcTask]):
    """Characters on frames; targets are tokens_BU with U characters at most."""

    name = "ctc"
    config = CtcTask
    metrics: ClassVar = {"wer": Metric("WER", False), "cer": Metric("CER", False)}
    curve = "cer"
    per_frame = True
    needs_whole_clip = True
    is_text = True

    @override
    def check(self, spec: TaskSpec) -> None:
        super().check(spec)
        if spec.labels[: len(SPECIAL)] != SPECIAL:
            raise ValueError(f"task {spec.name!r} must have labels that begin with {SPECIAL}, got {spec.labels[:2]}")

    @override
    def resolve(self, task: CtcTask, training: Index) -> TaskSpec:
        (field,) = task.metadata_fields
        characters = sorted({char for text in training.stream(field) if text for char in fold_text(text)})
        return TaskSpec(name=task.name, kind=self.name, fields=(field,), labels=(*SPECIAL, *characters))

    @override
    def targets(self, spec: TaskSpec, index: Index, is_whole: np.ndarray) -> TaskTargets:
        return _Characters(spec, index, is_whole)

    @override
    def losses(self, spec: TaskSpec, logits: Tensor, num_frames_B: Tensor, target: TaskTarget) -> Tensor:
        """Return CTC losses divided by the target's length; 0 where that is longer than the frames."""
        import torch
        from torch.nn import functional

        log_probs_LBC = logits.log_softmax(dim=-1).transpose(0, 1)
        losses_B = functional.ctc_loss(
            log_probs_LBC,
            target.values,
            num_frames_B,
            target.lengths_B,
            blank=BLANK,
            reduction="none",
            zero_infinity=True,
        )
        present_B = target.lengths_B > 0
        return torch.where(present_B, losses_B / target.lengths_B.clamp(min=1), torch.zeros_like(losses_B))

    @override
    def num_too_long(self, num_frames_B: Tensor, target: TaskTarget) -> Tensor:
        """Return how many transcripts need more frames than their clip has (a repeated character needs a blank)."""
        tokens_BU = target.values
        repeats_B = ((tokens_BU[:, 1:] == tokens_BU[:, :-1]) & (tokens_BU[:, 1:] != BLANK)).sum(dim=1)
        return (target.lengths_B + repeats_B > num_frames_B).sum()

    @override
    def predictions(
        self, spec: TaskSpec, logits: Tensor, num_frames_B: Tensor
    ) -> list[tuple[Prediction, Probabilities]]:
        """Return the text of the best path."""
        best_BL = (logits.argmax(dim=-1) if logits.ndim == 3 else logits).tolist()
        lengths = num_frames_B.tolist()
        return [(greedy_text(spec, row[:length]), None) for row, length in zip(best_BL, lengths, strict=True)]

    @override
    def condense(self, logits: Tensor) -> Tensor:
        """Return the best character of each frame: of an alphabet of thousands, hours of logits fill no memory."""
        return logits.argmax(dim=-1)

    @override
    def join(
        self, spec: TaskSpec, windows: Sequence[Window], parts: Sequence[Tensor | None], hop_samples: int
    ) -> Tensor:
        """Return the frames of all windows one after the other; a silent one between others parts words."""
        import torch

        first = next(part for part in parts if part is not None)
        gap = torch.tensor(silent_characters(spec)) if first.ndim == 1 else _gap_logits(spec, first.shape[-1])
        return join_frames(windows, parts, gap, hop_samples)

    @override
    def is_label(self, reference: Reference) -> bool:
        return isinstance(reference, str) and bool(fold_text(reference))

    @override
    def measure(self, spec: TaskSpec, pairs: Sequence[TaskResult]) -> dict[str, Any]:
        """Return `wer` and `cer` of normalised text (`metaser.tasks.text`): errors of the whole set over its length.

        `num_empty_references` counts transcripts of which nothing is left, which both leave out (None with
        `wer_reason` if that is all), and `num_without_word_boundaries` those in which WER counts characters.
        """
        import jiwer

        texts = [(str(task.reference), str(task.prediction)) for task in pairs]
        judged = [(true, said) for true, said in texts if score_text(true)]
        counts = {
            "num_empty_references": len(texts) - len(judged),
            "num_without_word_boundaries": sum(lacks_word_boundaries(true) for true, _ in judged),
        }
        if not judged:
            return {"wer": None, "cer": None, "wer_reason": "no transcript has more than punctuation", **counts}
        references, predictions = ([pair[side] for pair in judged] for side in (0, 1))
        return {
            "wer": float(jiwer.wer([*map(score_words, references)], [*map(score_words, predictions)])),
            "cer": float(jiwer.cer([*map(score_text, references)], [*map(score_text, predictions)])),
            **counts,
        }

    @override
    def describe_outputs(self, spec: TaskSpec) -> str:
        return f"{len(spec.labels) - len(SPECIAL)} characters"

    @override
    def describe_difference(self, theirs: TaskSpec) -> str:
        return "another alphabet there"

    @override
    def answer(self, spec: TaskSpec, prediction: Prediction, probabilities: Probabilities) -> dict[str, Any]:
        return {"text": prediction}

    @override
    def answer_columns(self, spec: TaskSpec) -> list[str]:
        return ["text"]

    @override
    def brief(self, answer: Mapping[str, Any]) -> str:
        return str(answer["text"])


def greedy_text(spec: TaskSpec, frames: Sequence[int]) -> str:
    """Return the text of the best CTC path: repeats merged, blanks dropped (Graves et al. 2006)."""
    previous = BLANK
    characters = []
    for number in frames:
        if number not in (previous, BLANK):
            characters.append(UNKNOWN_CHARACTER if number == UNKNOWN else spec.labels[number])
        previous = number
    return "".join(characters)


def silent_characters(spec: TaskSpec) -> list[int]:
    """Return the best character of each frame of a silent window: it parts words where the alphabet can."""
    return [BLANK, *([spec.labels.index(" ")] if " " in spec.labels else []), BLANK]


def _gap_logits(spec: TaskSpec, num_outputs: int) -> Tensor:
    import torch

    characters = silent_characters(spec)
    gap_LC = torch.zeros(len(characters), num_outputs)
    gap_LC[:, BLANK] = _SURE
    for frame, character in enumerate(characters):
        if character != BLANK:
            gap_LC[frame, character] = _SURE + _BARELY
    return gap_LC
