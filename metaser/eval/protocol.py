"""Which weights are judged on which utterances, and where the result goes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from metaser.config.schema import ExperimentConfig
from metaser.distributed import DistInfo
from metaser.errors import ModelError, RunError
from metaser.eval.card import write_card
from metaser.eval.claims import describe_rules, kinship_facts, kinship_notes, refuse_kinship
from metaser.eval.coverage import all_left_out
from metaser.eval.evaluate import evaluate
from metaser.eval.figures import ari_figure, confusion_figure, curves_figure
from metaser.eval.report import build_report, write_report
from metaser.eval.start import describe_start, is_same_shards, known_start, start_facts, start_notes
from metaser.framecache import kept_frames
from metaser.given import given_notes, lookups
from metaser.inputs import make_inputs
from metaser.model.metaser import MetaSERModel, MetaSEROutput, load_export
from metaser.processes import Processes, autocast
from metaser.record import DataRecord, is_own_folder, material, read_material, read_record, used_rows
from metaser.rundir import CONFUSION, CURVES, RunDir
from metaser.runfiles import writing
from metaser.stagedata import passes_filter, select_utterances
from metaser.targets import Targets
from metaser.tasks.results import UtteranceResult
from metaser.tasks.spec import TaskSpec
from metaser.tracking import read_metrics
from metaser.windows import choose_windows
from shards.batch import Batch
from shards.config import DataConfig, SplitRule, StoredSplit
from shards.errors import ShardError, SplitError
from shards.index import Index
from shards.indexload import load_index
from shards.inputfile import is_there
from shards.kinship import START, Material, kinship
from shards.schema import RATE_HZ, SPLITS
from shards.splits import SplitAssignment, assign_splits

log = logging.getLogger(__name__)


ALL = "all"
"""Beside the splits' names: every utterance, whatever split it stands in."""


@dataclass(frozen=True)
class Choice:
    """The utterances that a split's name stands for, before the stages' filters."""

    index: Index
    """Of all shards that were read."""
    rows: np.ndarray
    split: str
    reasons: tuple[str, ...]
    """Why just these."""
    is_own: bool
    """Whether the run was trained on these shards, so that its own split rules hold."""
    protocol: dict[str, Any]
    """What the report must say of the splits."""


def evaluate_run_split(
    run: RunDir,
    config: ExperimentConfig,
    index: Index,
    splits: SplitAssignment,
    processes: Processes,
    *,
    split: str = "test",
    folder: Path | None = None,
    at_boundary: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """Judge the run's best model on `split` of its own shards and write the report to `folder` (default: `report/`).

    Each task is judged on what any stage's filter admits, the main task on what the last stage's does.
    `at_boundary` is called between batches. Returns the report on every process; None, with a message, if the split is
    empty.

    Raises:
        RunError: if the run has no best model yet.
    """
    choice = own_choice(config, index, splits, split)

    def made_from(specs: tuple[TaskSpec, ...]) -> Material | str:
        if config.init_from is not None:
            return _made_earlier(run, config, specs)
        return material(index, used_rows(config, specs, index, splits))

    return _judge(
        run, config, choice, made_from, processes, folder=folder or run.report, at_boundary=at_boundary, accept=True
    )


def _judge(
    run: RunDir,
    config: ExperimentConfig,
    choice: Choice,
    made_from: Callable[[tuple[TaskSpec, ...]], Material | str],
    processes: Processes,
    *,
    folder: Path,
    accept: bool,
    at_boundary: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """Judge the best model on chosen utterances; see `evaluate_run_split`.

    Args:
        run: where the model is, and the curves that are drawn.
        config: the run's experiment.
        choice: what is judged.
        made_from: returns what moved or chose the weights, or why that is unknown.
        processes: share the work.
        folder: for the report.
        accept: whether recordings and speakers that made the model may be judged.
        at_boundary: called between batches.
    """
    if not is_there(run.best / "config.json"):
        raise RunError(f"run {str(run.root)!r} has no best model yet; its last stage must be evaluated on dev first")
    model = load_export(run.best, setting="RUN")
    specs = model.task_specs

    def answer(part: Index) -> list[UtteranceResult]:
        model.to(processes.device)  # type: ignore[arg-type]
        heard = _heard(config.data, model, part)
        found = lookups(model, part, kept_frames(config, heard, model, part, processes))

        def forward(batch: Batch) -> MetaSEROutput:
            with autocast(processes.device, config.parallel.precision):
                output: MetaSEROutput = model(*make_inputs(batch, processes.device, found))
            return output

        results = evaluate(
            forward, specs, part, heard, processes, at_boundary=at_boundary, hop_samples=model.encoder.hop_samples
        )
        _refuse_no_numbers(results, run)
        return results

    judged = judge_answers(
        run, config, choice, specs, made_from, answer, accept=accept, notes_of=lambda part: given_notes(model, part)
    )
    if judged is None:
        return None
    report, results = judged

    def write() -> None:
        with writing(folder):
            write_report(folder, report, results, specs)
            write_figures(folder, run, model, report)
        if folder == run.report:
            write_card(run, config, specs, report)

    processes.on_main(write)
    return report


def judge_answers(
    run: RunDir,
    config: ExperimentConfig,
    choice: Choice,
    specs: tuple[TaskSpec, ...],
    made_from: Callable[[tuple[TaskSpec, ...]], Material | str],
    answer: Callable[[Index], Sequence[UtteranceResult]],
    *,
    accept: bool = True,
    notes_of: Callable[[Index], Iterable[str]] = lambda part: (),
) -> tuple[dict[str, Any], list[UtteranceResult]] | None:
    """Return the report on what anything answers for chosen utterances, and its results; None if there are none.

    Args:
        run: what is judged, for its name and its record.
        config: its experiment, whose stages' filters say who is judged.
        choice: what is judged.
        specs: the tasks.
        made_from: returns what moved or chose the weights, or why that is unknown.
        answer: returns the results on some utterances.
        accept: whether recordings and speakers that made the weights may be judged.
        notes_of: returns what else the report must say.
    """
    chosen = choice.index.take(choice.rows)
    by_stage = [select_utterances(stage, specs, chosen) for stage in config.stages]
    part = chosen.take(np.unique(np.concatenate(by_stage)))
    left_out = all_left_out(config, specs, chosen)
    if not len(part):
        notes = "".join(f"; {some.describe(name)}" for name, some in left_out.items() if some.num_left_out)
        log.warning("no %s utterances to evaluate on%s", choice.split, notes)
        return None
    protocol = _protocol(config, specs, choice, part, made_from(specs), read_record(run), accept=accept)
    protocol |= _used(config, specs, choice, chosen, by_stage)
    protocol["notes"] = [*protocol["notes"], *notes_of(part)]
    main_keys = set(chosen.take(by_stage[-1]).values("key"))
    results = [
        result if result.key in main_keys else _without_task(result, config.main_task) for result in answer(part)
    ]
    report = build_report(
        specs,
        config.main_task,
        results,
        split=choice.split,
        protocol=protocol,
        run={"folder": run.root.name, "seed": config.seed},
        left_out=left_out,
    )
    return report, results


def _heard(data: DataConfig, model: MetaSERModel, part: Index) -> DataConfig:
    """Return `data`, with the windows of `metaser predict` if other shards hold clips that no micro-batch can.

    Likewise if the model's encoder does not hear such clips.
    """
    longest_s = float(part.duration_s.max())
    is_heard = model.longest_samples is None or int(part.num_samples.max()) <= model.longest_samples
    if data.window_s is not None or (longest_s <= data.max_micro_batch_s and is_heard):
        return data
    windowing = choose_windows(model)
    window_s = min(windowing.length / RATE_HZ, data.max_micro_batch_s)
    overlap_s = min((windowing.length - windowing.hop) / RATE_HZ, window_s / 2)
    log.info(
        "clips longer than %g s (the longest has %.1f s) are heard in windows of %g s that overlap by %g s",
        window_s,
        longest_s,
        window_s,
        overlap_s,
    )
    return data.model_copy(update={"window_s": window_s, "window_overlap_s": overlap_s})


def evaluate_run(
    run: RunDir,
    config: ExperimentConfig,
    info: DistInfo,
    *,
    shards: str | None = None,
    split: str = "test",
    allow_overlap: bool = False,
) -> dict[str, Any]:
    """Judge the run's best model on `split` (or `all`) of its own or other shards.

    The run's own test split goes to `report/report.json`; anything else to `report/NAME/`, which leaves that alone.
    The run's split rules hold for its own shards only: other corpora count by their own split, or whole.

    Raises:
        SplitError: if the split is empty, or unknown, or holds what the model was made from and neither the experiment
            nor `allow_overlap` accepts that.
        RunError: if the run has no best model yet.
    """
    if split not in (*SPLITS, ALL):
        raise SplitError(f"split must be one of {', '.join(SPLITS)} or {ALL}, got {split!r}")
    folders = config.data.shard_folders if shards is None else (shards,)
    index = load_index(folders, config.data.remote)
    record = read_record(run)
    if shards is None or is_own_folder(config, record, shards):
        choice = own_choice(config, index, _own_splits(config, index), split)
    else:
        choice = _other_choice(index, split, shards)
    own_test = shards is None and split == "test"
    name = split if shards is None else f"{Path(shards).name}-{split}"
    # However it was trained, the model fits one device to be judged.
    parallel = config.parallel.model_copy(update={"strategy": "auto", "offload": "none", "extra": {}})
    processes = Processes(parallel, info)
    try:
        report = _judge(
            run,
            config,
            choice,
            lambda specs: _made_earlier(run, config, specs),
            processes,
            folder=run.report if own_test else run.report / name,
            accept=allow_overlap or shards is None or (choice.is_own and split != "test"),
        )
    finally:
        processes.close()
    if report is None:
        raise SplitError(
            f"split {split!r} of {', '.join(map(str, folders))} must hold utterances that the filter of a stage "
            f"admits and of which a task knows the label, got none of {len(choice.rows)}; {_used_sentence(0, choice)}"
        )
    return report


def _own_splits(config: ExperimentConfig, index: Index) -> SplitAssignment:
    """Return the run's splits; that a recording stands in two is told, because the run has accepted it."""
    overlap = config.data.allow_speaker_overlap
    return assign_splits(index, _rules_for(config, index), allow_speaker_overlap=overlap, allow_recording_overlap=True)


def own_choice(config: ExperimentConfig, index: Index, splits: SplitAssignment, split: str) -> Choice:
    """Return the utterances of a split of the run's own shards."""
    if split == ALL:
        counts = splits.protocol["num_utterances"]
        reason = f"all were asked for: {counts['train']} of train, {counts['dev']} of dev, {counts['test']} of test"
        return Choice(index, np.arange(len(index)), ALL, (reason,), True, splits.protocol)
    rows = splits.rows(split)
    rule = describe_rules(_rules_for(config, index))
    others = len(index) - len(rows)
    reason = f"{others} stand in other splits ({rule})" if others else f"all stand in split {split!r} ({rule})"
    return Choice(index, rows, split, (reason,), True, splits.protocol)


def _other_choice(index: Index, split: str, shards: str) -> Choice:
    """Choose by each corpus's own split, or the whole corpus where it has none.

    Raises:
        SplitError: if a corpus has a split for a part of its utterances, or none and another part than test is meant.
    """
    protocol = {"shards": shards, "num_recordings_in_two_splits": 0}
    if split == ALL:
        return Choice(index, np.arange(len(index)), ALL, ("all were asked for",), False, protocol)
    corpora, stored = index.codes("corpus"), index.codes("split")
    wanted = stored.words.index(split) if split in stored.words else None
    is_chosen = np.zeros(len(index), dtype=bool)
    reasons = []
    for corpus in corpora.counts():
        of_corpus = corpora.numbers == corpora.words.index(corpus)
        num_all, num_split = int(of_corpus.sum()), int((of_corpus & (stored.numbers >= 0)).sum())
        if num_split not in (0, num_all) or (num_split == 0 and split != "test"):
            raise SplitError(
                f"split {split!r} of corpus {corpus!r} must be known for every utterance, but {num_all - num_split} of "
                f"{num_all} have no split of their own; pass --split all to judge the whole corpus"
            )
        if num_split == 0:
            is_chosen |= of_corpus
            reasons.append(f"corpus {corpus!r} has no split of its own and counts whole")
            continue
        found = of_corpus & (stored.numbers == wanted) if wanted is not None else np.zeros_like(of_corpus)
        is_chosen |= found
        others = num_all - int(found.sum())
        reasons.append(
            f"{others} of corpus {corpus!r} stand in other parts of its own split"
            if others
            else f"all of corpus {corpus!r} stand in {split!r} of its own split"
        )
    return Choice(index, np.flatnonzero(is_chosen), split, tuple(reasons), False, protocol)


def _refuse_no_numbers(results: Sequence[UtteranceResult], run: RunDir) -> None:
    """Refuse to report answers that are NaN or infinite."""
    for result in results:
        for name, task in result.tasks.items():
            numbers = task.prediction if isinstance(task.prediction, tuple) else task.probabilities or ()
            if not all(map(math.isfinite, numbers)):
                raise ModelError(
                    f"a model must answer in numbers, but for {result.key!r} that of {str(run.best)!r} says NaN or "
                    f"infinity of {name}; its weights or the samples are too large to compute with: train it again"
                )


def _made_earlier(run: RunDir, config: ExperimentConfig, specs: tuple[TaskSpec, ...]) -> Material | str:
    """Return what moved or chose the run's weights, from its record or from its shards, or why that is unknown."""
    if is_there(run.trained_on):
        return read_material(run, read_record(run))
    try:
        index = load_index(config.data.shard_folders, config.data.remote)
    except ShardError as error:
        return f"the run has no {run.trained_on.name}, and its shards cannot be read ({error})"
    return material(index, used_rows(config, specs, index, _own_splits(config, index)))


def _protocol(
    config: ExperimentConfig,
    specs: tuple[TaskSpec, ...],
    choice: Choice,
    part: Index,
    made: Material | str,
    record: DataRecord | None,
    *,
    accept: bool,
) -> dict[str, Any]:
    """Return what the report says of the judged utterances' relation to what made the model."""
    start = known_start(config, record)
    if isinstance(made, str):
        note = f"whether recordings or speakers made the model could not be checked: {made}"
        notes = [note] if start is None else [note, describe_start(start)]
        return {**choice.protocol, "speaker_overlap": None, "notes": notes}
    if choice.is_own and choice.split == "dev":
        made = made.of_split("train", START)
    judged = Material.of(part, {choice.split: np.arange(len(part))})
    kin = kinship(made, judged, same_shards=choice.is_own)
    if not accept:
        refuse_kinship(kin, f"split {choice.split!r}", config)
    facts = kinship_facts(kin)
    if choice.is_own:
        facts["speaker_overlap"] = choice.protocol["speaker_overlap"] is True or kin.speaker_overlap
    else:
        facts["num_recordings_in_two_splits"] = kin.num_recordings
    notes = kinship_notes(kin, specs, config.main_task)
    if start is not None:
        is_same = choice.is_own and record is not None and is_same_shards(start, record)
        of_start = kinship(made.of_split(START), judged, same_shards=is_same)
        facts |= start_facts(start, of_start, facts)
        notes += start_notes(start, of_start)
    if choice.is_own and choice.split == "dev":
        notes.insert(0, "the weights were chosen on this split")
    return {**choice.protocol, **facts, "notes": notes}


def _used(
    config: ExperimentConfig,
    specs: tuple[TaskSpec, ...],
    choice: Choice,
    chosen: Index,
    by_stage: Sequence[np.ndarray],
) -> dict[str, Any]:
    """Return how many utterances are used, by which task, and why not the others."""
    num_used = len(np.unique(np.concatenate(by_stage)))
    passes = np.zeros(len(chosen), dtype=bool)
    for stage in config.stages:
        passes |= passes_filter(stage, chosen)
    num_filtered = int((~passes).sum())
    left_out = {
        "other splits": len(choice.index) - len(choice.rows),
        "filter": num_filtered,
        "no label": len(chosen) - num_filtered - num_used,
    }
    sentence = _used_sentence(num_used, choice, left_out)
    num_main, num_labelled = (
        len(by_stage[-1]),
        int(Targets(specs, chosen.take(by_stage[-1])).present(config.main_task).sum()),
    )
    if num_labelled < num_used:
        reasons = [
            *([f"{num_used - num_main} are not for stage {config.stages[-1].name!r}"] if num_main < num_used else []),
            *([f"{num_main - num_labelled} have no label that it knows"] if num_labelled < num_main else []),
        ]
        sentence += f"; {num_labelled} of them for {config.main_task}, because {' and '.join(reasons)}"
    return {"num_left_out": left_out, "used": sentence}


def _used_sentence(num_used: int, choice: Choice, left_out: Mapping[str, int] | None = None) -> str:
    reasons = list(choice.reasons)
    if left_out and left_out["filter"]:
        reasons.append(f"{left_out['filter']} pass no stage's filter")
    if left_out and left_out["no label"]:
        reasons.append(f"{left_out['no label']} have no label that a task of a stage knows")
    return f"{num_used} of {len(choice.index)} used, because {', '.join(reasons)}"


def _without_task(result: UtteranceResult, task: str) -> UtteranceResult:
    return replace(result, tasks={name: value for name, value in result.tasks.items() if name != task})


def _rules_for(config: ExperimentConfig, index: Index) -> tuple[SplitRule, ...]:
    """Return the run's split rules without those of corpora that `index` does not hold."""
    present = set(index.values("corpus"))
    return tuple(rule for rule in config.data.splits if rule.corpus is None or rule.corpus in present) or (
        StoredSplit(),
    )


def write_figures(folder: Path, run: RunDir, model: MetaSERModel, report: dict[str, Any]) -> None:
    """Write the confusion matrix, the loss curves and the ARI coefficients as PNG into `folder`."""
    main = report["tasks"].get(model.config.main_task, {})
    if "confusion" in main:
        labels = next(spec.labels for spec in model.task_specs if spec.name == model.config.main_task)
        confusion_figure(labels, main["confusion"], folder / CONFUSION, f"{model.config.main_task}, {report['split']}")
    curves_figure(read_metrics(run.metrics), folder / CURVES)
    for name, coefficients in model.ari.coefficients().items():
        values = coefficients.detach().cpu().numpy()
        rows = list(model.ari.task_names) if name == "task" else [f"layer {row + 1}" for row in range(len(values))]
        ari_figure(rows, [f"h{column}" for column in range(values.shape[1])], values, folder / f"ari_{name}.png")
