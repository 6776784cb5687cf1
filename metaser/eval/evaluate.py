"""A model's answers on a split: every utterance exactly once, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from metaser.errors import TrainingError
from metaser.eval.metrics import TaskResult, UtteranceResult
from metaser.model.metaser import MetaSEROutput
from metaser.targets import Targets, TaskTarget
from metaser.tasks import CTC_BLANK, CTC_UNKNOWN, TaskSpec
from metaser.train.engine import Processes
from metaser.train.objective import utterance_losses
from shards.batch import Batch
from shards.config import DataConfig
from shards.errors import ShardError
from shards.index import Index
from shards.plan import evaluation_slots
from shards.read import read_slots
from shards.schema import RATE_HZ

GROUP_FIELDS = ("gender", "age_group", "language", "corpus", "extra.split_set")
"""Results are compared by these; `extra.split_set` tells MSP-Podcast's several test sets apart."""
UNKNOWN_CHARACTER = "\N{REPLACEMENT CHARACTER}"

Forward = Callable[[Batch], MetaSEROutput]


def evaluate(
    forward: Forward,
    specs: Sequence[TaskSpec],
    index: Index,
    data: DataConfig,
    processes: Processes,
    *,
    at_boundary: Callable[[], None] = lambda: None,
) -> list[UtteranceResult]:
    """Return the results on every utterance of `index`, sorted by key, on every process.

    `forward` maps a batch on the device to the model's output. `at_boundary` is called between batches.

    Raises:
        TrainingError: if the processes' results do not add up to every utterance once.
        ShardError: if an utterance cannot be decoded: a score over fewer is no score.
    """
    targets = Targets(specs, index)
    info = processes.info
    slots = evaluation_slots(
        index.num_samples,
        rank=info.rank,
        num_processes=info.num_processes,
        max_slot_samples=round(data.max_slot_s * RATE_HZ),
    )
    mine: list[UtteranceResult] = []
    for batch in read_slots(index, slots, num_workers=0, timeout_s=data.worker_timeout_s, remote=data.remote):
        if batch.problems:
            raise ShardError(f"evaluation needs every utterance, but {batch.problems[0]}")
        at_boundary()
        # Not inference_mode: ZeRO 3 would keep weights gathered in it, which cannot train afterwards.
        with torch.no_grad():
            on_device = batch.to(processes.device)
            output = forward(on_device)
        if bool(batch.valid_B.all()):
            mine.extend(utterance_results(specs, index, batch.items_B.numpy(), output, targets))
    results = sorted((result for part in processes.gather(mine) for result in part), key=lambda result: result.key)
    expected = sorted(index.values("key"))
    if [result.key for result in results] != expected:
        raise TrainingError(f"evaluation must see each of {len(expected)} utterances once, got {len(results)} results")
    return results


def utterance_results(
    specs: Sequence[TaskSpec], index: Index, items: np.ndarray, output: MetaSEROutput, targets: Targets
) -> Iterator[UtteranceResult]:
    """Yield what the model's `output` says about the utterances of `index` at `items`, in that order."""
    part = index.take(items)
    target_of = targets.lookup(items)
    by_task = {
        spec.name: _task_results(
            spec,
            part,
            output.logits[spec.name],
            output.num_frames_B,
            target_of[spec.name],
            targets.weights(spec.name, items),
        )
        for spec in specs
        if spec.name in output.logits
    }
    groups = {
        field.removeprefix("extra."): [None if value is None else str(value) for value in part.values(field)]
        for field in GROUP_FIELDS
        if field in index.fields
    }
    durations_s = part.duration_s
    for row, (key, corpus, speaker) in enumerate(
        zip(part.values("key"), part.values("corpus"), part.values("speaker"), strict=True)
    ):
        yield UtteranceResult(
            key=key,
            corpus=corpus,
            speaker=speaker,
            groups={field: values[row] for field, values in groups.items()},
            duration_s=float(durations_s[row]),
            tasks={name: results[row] for name, results in by_task.items()},
        )


def _task_results(
    spec: TaskSpec,
    part: Index,
    logits: torch.Tensor,
    num_frames_B: torch.Tensor,
    target: TaskTarget,
    weights_B: np.ndarray,
) -> list[TaskResult]:
    losses = utterance_losses(spec, logits, num_frames_B, target.to(logits.device)).cpu().tolist()
    has_label = (target.lengths_B > 0).tolist()
    predictions = predict_task(spec, logits.cpu(), num_frames_B.cpu())
    if spec.kind == "regression":
        references: list[str | tuple[float | None, ...] | None] = [
            tuple(row) for row in zip(*(part.values(field) for field in spec.fields), strict=True)
        ]
    else:
        references = [None if value is None else spec.label_of(value) for value in part.values(spec.fields[0])]
    return [
        TaskResult(
            reference=reference if known else None,
            prediction=prediction,
            probabilities=probabilities,
            loss=loss if known else None,
            loss_weight=weight,
        )
        for reference, known, (prediction, probabilities), loss, weight in zip(
            references, has_label, predictions, losses, weights_B.tolist(), strict=True
        )
    ]


def predict_task(
    spec: TaskSpec, logits: torch.Tensor, num_frames_B: torch.Tensor
) -> list[tuple[str | tuple[float, ...], tuple[float, ...] | None]]:
    """Return each utterance's prediction and, for classification, the probabilities in label order."""
    if spec.kind == "ctc":
        best_BL = logits.argmax(dim=-1).tolist()
        lengths = num_frames_B.tolist()
        return [(greedy_text(spec, row[:length]), None) for row, length in zip(best_BL, lengths, strict=True)]
    if spec.kind == "classification":
        probabilities_BC = logits.float().softmax(dim=-1)
        return [
            (spec.labels[number], tuple(row))
            for number, row in zip(probabilities_BC.argmax(dim=-1).tolist(), probabilities_BC.tolist(), strict=True)
        ]
    values_BF = logits.float() * spec.scale + spec.offset
    return [(tuple(row), None) for row in values_BF.tolist()]


def greedy_text(spec: TaskSpec, frames: Sequence[int]) -> str:
    """Return the text of the best CTC path: repeats merged, blanks dropped (Graves et al. 2006)."""
    previous = CTC_BLANK
    characters = []
    for number in frames:
        if number not in (previous, CTC_BLANK):
            characters.append(UNKNOWN_CHARACTER if number == CTC_UNKNOWN else spec.labels[number])
        previous = number
    return "".join(characters)
