"""A model's answers on a split: every utterance exactly once, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from metaser.errors import TrainingError
from metaser.model.metaser import MetaSEROutput
from metaser.processes import Processes
from metaser.targets import Targets
from metaser.tasks.kind import TaskTarget
from metaser.tasks.kinds import kind_of
from metaser.tasks.results import TaskResult, UtteranceResult
from metaser.tasks.spec import TaskSpec
from metaser.windows import JoinedOutput, WindowOutput, join_windows
from shards.batch import Batch
from shards.config import DataConfig
from shards.errors import ShardError
from shards.index import Index
from shards.plan import evaluation_micro_batches
from shards.read import read_batches
from shards.schema import RATE_HZ
from shards.windows import FRAME_SAMPLES, Windowing, is_silent

GROUP_FIELDS = ("gender", "age_group", "language", "corpus", "extra.split_set")
"""Results are compared by these; `extra.split_set` tells MSP-Podcast's several test sets apart."""

Forward = Callable[[Batch], MetaSEROutput]


def evaluate(
    forward: Forward,
    specs: Sequence[TaskSpec],
    index: Index,
    data: DataConfig,
    processes: Processes,
    *,
    at_boundary: Callable[[], None] = lambda: None,
    hop_samples: int = FRAME_SAMPLES,
) -> list[UtteranceResult]:
    """Return the results on every utterance of `index`, sorted by key, on every process.

    `forward` maps a batch, which lies on the CPU, to the model's output, whose frames lie `hop_samples` apart.
    `at_boundary` is called between batches. Utterances longer than `data.window_s` are heard in windows, as `metaser
    predict` hears them.

    Raises:
        TrainingError: if the processes' results do not add up to every utterance once.
        ShardError: if an utterance cannot be decoded: a score over fewer is no score.
    """
    targets = Targets(specs, index)
    info = processes.info
    micro_batches = evaluation_micro_batches(
        index.num_samples,
        rank=info.rank,
        num_processes=info.num_processes,
        max_micro_batch_samples=round(data.max_micro_batch_s * RATE_HZ),
        windowing=data.windowing,
    )
    mine: list[UtteranceResult] = []
    joiner = _Joiner(specs, index, data.windowing, hop_samples)
    for batch in read_batches(index, micro_batches, num_workers=0, timeout_s=data.worker_timeout_s, remote=data.remote):
        if batch.problems:
            raise ShardError(f"evaluation needs every utterance, but {batch.problems[0]}")
        at_boundary()
        # Not inference_mode: ZeRO 3 would keep weights gathered in it, which cannot train afterwards.
        with torch.no_grad():
            output = forward(batch)
        if bool(batch.valid_B.all()):
            items = batch.items_B.numpy()
            said: MetaSEROutput | JoinedOutput | None = output
            if joiner.is_cut(items):
                items, said = items[:1], joiner.add(batch, output)
            if said is not None:
                mine.extend(utterance_results(specs, index, items, said, targets))
    results = sorted((result for part in processes.all_gather(mine) for result in part), key=lambda result: result.key)
    expected = sorted(index.values("key"))
    if [result.key for result in results] != expected:
        raise TrainingError(f"evaluation must see each of {len(expected)} utterances once, got {len(results)} results")
    return results


class _Joiner:
    """Collects the windows of one utterance, which come one after another, until it is whole."""

    def __init__(self, specs: Sequence[TaskSpec], index: Index, windowing: Windowing | None, hop_samples: int) -> None:
        self._specs = specs
        self._index = index
        self._windowing = windowing
        self._hop_samples = hop_samples
        self._collected: list[WindowOutput] = []
        self._is_silent: list[bool] = []

    def is_cut(self, items: np.ndarray) -> bool:
        """Return whether a batch of `items` holds windows of an utterance."""
        return self._windowing is not None and bool(self._index.num_samples[items[0]] > self._windowing.length)

    def add(self, batch: Batch, output: MetaSEROutput) -> JoinedOutput | None:
        """Take in the next windows; return what all of them say once the last is there."""
        if self._windowing is None:
            return None
        windows = self._windowing.cut(int(self._index.num_samples[batch.items_B[0]]))
        first = len(self._collected)
        for row, window in enumerate(windows[first : first + len(batch.items_B)]):
            logits = {
                name: values[row, : output.num_frames_B[row]].cpu() if values.ndim == 3 else values[row].cpu()
                for name, values in output.logits.items()
            }
            self._collected.append(WindowOutput(window, logits))
            self._is_silent.append(is_silent(batch.wave_BT[row, : batch.num_samples_B[row]].numpy()))
        if len(self._collected) < len(windows):
            return None
        collected, silences, self._collected, self._is_silent = self._collected, self._is_silent, [], []
        # A score needs every utterance, so that one without any sound is answered all the same.
        if not all(silences):
            pairs = zip(collected, silences, strict=True)
            collected = [output._replace(logits=None) if silent else output for output, silent in pairs]
        return join_windows(self._specs, collected, hop_samples=self._hop_samples)


def utterance_results(
    specs: Sequence[TaskSpec],
    index: Index,
    items: np.ndarray,
    output: MetaSEROutput | JoinedOutput,
    targets: Targets,
) -> Iterator[UtteranceResult]:
    """Yield what the model's `output` says about the utterances of `index` at `items`, in that order."""
    part = index.take(items)
    target_of = targets.lookup(items)
    by_task = {
        spec.name: _task_results(
            spec,
            part,
            output.logits[spec.name],
            output.frames_of(spec.name),
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
    _check_finite(spec, part, logits, num_frames_B)
    losses = kind_of(spec).losses(spec, logits.float(), num_frames_B, target.to(logits.device)).cpu().tolist()
    has_label = (target.lengths_B > 0).tolist()
    predictions = kind_of(spec).predictions(spec, logits.cpu(), num_frames_B.cpu())
    references = kind_of(spec).references(spec, part, target, num_frames_B.cpu())
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


def _check_finite(spec: TaskSpec, part: Index, logits: torch.Tensor, num_frames_B: torch.Tensor) -> None:
    """Refuse answers that are no numbers, which no score may be made of.

    Raises:
        TrainingError: if there are some.
    """
    is_finite = torch.isfinite(kind_of(spec).numbers(spec, logits)).all(dim=-1)
    if kind_of(spec).per_frame:
        # Behind an utterance's own frames stands anything.
        frames_L = torch.arange(logits.shape[1], device=logits.device)
        is_finite = (is_finite | (frames_L >= num_frames_B.to(logits.device)[:, None])).all(dim=-1)
    if not bool(is_finite.all()):
        key = part.values("key")[is_finite.tolist().index(False)]
        raise TrainingError(
            f"a model must answer in numbers, but its {spec.name} of {key!r} is NaN or infinite: its weights or the "
            "samples are too large to compute with; train it anew, with a lower learning rate if it came to that here"
        )
