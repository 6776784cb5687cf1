"""Answers of other systems, judged as those of a run: a table of predictions, or an audio classifier of transformers.

An experiment says what is judged: its shards, its split, the filter of its last stage and its main task's labels. Its
folder then holds a report as a run's does, without a model.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from metaser.config.load import dump_experiment
from metaser.config.schema import ExperimentConfig
from metaser.errors import ConfigError, RunError, TrainingError
from metaser.eval.evaluate import utterance_results
from metaser.eval.protocol import judge_answers, own_choice
from metaser.eval.report import write_report
from metaser.record import material, used_rows
from metaser.rundir import RunDir, refuse_output_dir
from metaser.runfiles import write_whole, writing
from metaser.stagedata import experiment_specs, load_split_index
from metaser.sums import sealed_yaml
from metaser.targets import Targets
from metaser.tasks.kinds import kind_of
from metaser.tasks.results import UtteranceResult
from metaser.tasks.spec import TaskSpec
from metaser.windows import JoinedOutput
from shards.errors import ShardError
from shards.index import Index
from shards.inputfile import MAX_TEXT_BYTES, is_there, read_regular
from shards.plan import MicroBatch
from shards.read import read_batches
from shards.schema import RATE_HZ
from shards.shown import shown
from shards.splits import SplitAssignment

log = logging.getLogger(__name__)

_LEAST = 1e-30
"""A probability of which the logarithm is taken."""
_ROUNDING = 1e-2
_MAX_NAMED = 3

Scores = Callable[[Index, TaskSpec], Float[np.ndarray, "U C"]]
"""Returns each utterance's probability of each label."""


def judge_scores(
    config: ExperimentConfig, scores: Scores, note: str, *, split: str = "test", trained_here: bool = False
) -> dict[str, Any]:
    """Judge what anything says of the main task on a split of the experiment; write and return the report.

    Args:
        config: the experiment.
        scores: asked once, for all judged utterances.
        note: what is judged, for the report.
        split: of the experiment's own shards.
        trained_here: whether the experiment's training utterances made it; otherwise nobody knows what did.

    Raises:
        ConfigError: if the main task has no classes.
        InputError: if the data does not allow it, or there is nothing to judge.
    """
    run = RunDir(Path(config.output_dir))
    refuse_output_dir(run)
    if is_there(run.environment) or is_there(run.data) or run.is_crossval():
        raise RunError(f"{str(run.root)!r} holds a training, whose files stay as they are; choose another output_dir")
    index, splits, specs, main = judged_task(config)
    last = config.model_copy(update={"stages": config.stages[-1:]})

    def answer(part: Index) -> list[UtteranceResult]:
        logits_UC = torch.from_numpy(np.log(np.maximum(scores(part, main), _LEAST)).astype(np.float32))
        said = JoinedOutput({main.name: logits_UC}, {main.name: 1})
        return list(utterance_results([main], part, np.arange(len(part)), said, Targets([main], part)))

    judged = judge_answers(
        run,
        last,
        own_choice(config, index, splits, split),
        specs,
        lambda specs: (
            material(index, used_rows(config, specs, index, splits)) if trained_here else "it was made elsewhere"
        ),
        answer,
        notes_of=lambda part: [note],
    )
    if judged is None:
        raise TrainingError(f"something must be judged, but the {split} split is empty")
    report, results = judged
    with writing(run.root):
        run.root.mkdir(parents=True, exist_ok=True)
        write_whole(run.config, sealed_yaml(dump_experiment(config)))
        write_report(run.report, report, results, (main,))
    return report


def judged_task(config: ExperimentConfig) -> tuple[Index, SplitAssignment, tuple[TaskSpec, ...], TaskSpec]:
    """Return an experiment's utterances, splits and tasks, and its main task, which must have classes.

    Raises:
        ConfigError: if it has none.
        InputError: if the data does not allow it.
    """
    index, splits = load_split_index(config.data)
    specs = experiment_specs(config, index, splits)
    main = next(spec for spec in specs if spec.name == config.main_task)
    if not kind_of(main).has_classes:
        raise ConfigError(f"the main task must have classes, got {main.name!r} of kind {main.kind}; name another one")
    return index, splits, specs, main


# ---------------------------------------------------------------- a table


def table_scores(path: Path, words: Mapping[str, str | None]) -> Scores:
    """Return what a CSV table says: `key`, and `prediction` or a column of probabilities for each label.

    Args:
        path: the table. A column may be called `LABEL` or `probability.LABEL`; others count for nothing.
        words: what the table's own words for labels mean.

    Raises:
        ConfigError: if it cannot be read, or is no such table; from the scores, if it does not fit the utterances.
    """
    try:
        text = read_regular(path, max_bytes=MAX_TEXT_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--predictions must be a readable table in UTF-8, but {str(path)!r} is not: {error}"
        ) from error
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = list(reader)
    except csv.Error as error:
        raise ConfigError(f"--predictions must be a CSV table, but {str(path)!r} is not: {error}") from error
    header = [name for name in reader.fieldnames or () if name]
    if "key" not in header:
        raise ConfigError(f"--predictions must have a column key, but {str(path)!r} has {', '.join(header) or 'none'}")
    by_key = {row["key"]: row for row in rows}
    if len(by_key) < len(rows):
        raise ConfigError(
            f"--predictions must have each key once, but {str(path)!r} has {len(rows) - len(by_key)} twice"
        )

    def scores(part: Index, spec: TaskSpec) -> np.ndarray:
        keys = part.values("key")
        missing = [key for key in keys if key not in by_key]
        if missing:
            raise ConfigError(
                f"--predictions must have every judged utterance, but {str(path)!r} lacks {len(missing)} of "
                f"{len(keys)}, such as {', '.join(shown(key, 60) for key in missing[:_MAX_NAMED])}"
            )
        chosen = [by_key[key] for key in keys]
        column_of = _columns_of(spec, header, words)
        if len(column_of) == len(spec.labels):
            return _probabilities(chosen, [column_of[label] for label in spec.labels], path)
        if "prediction" not in header:
            raise ConfigError(
                f"--predictions must have a column prediction, or one for each of {', '.join(spec.labels)}, but "
                f"{str(path)!r} has {', '.join(header)}; say with --labels WORD=LABEL what its words mean"
            )
        return _certain([row["prediction"] or "" for row in chosen], spec, words, path)

    return scores


def _columns_of(spec: TaskSpec, header: Sequence[str], words: Mapping[str, str | None]) -> dict[str, str]:
    found = {}
    for column in header:
        word = column.removeprefix(f"{spec.name}.").removeprefix("probability.")
        label = words.get(word, word)
        if label in spec.labels:
            found[label] = column
    return found


def _probabilities(rows: Sequence[Mapping[str, str]], columns: Sequence[str], path: Path) -> np.ndarray:
    try:
        scores_UC = np.asarray([[float(row[column]) for column in columns] for row in rows])
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"--predictions must hold numbers in {', '.join(columns)}, but {str(path)!r}: {error}"
        ) from None
    sums_U = scores_UC.sum(axis=1)
    bad = np.flatnonzero(~(np.abs(sums_U - 1) <= _ROUNDING) | (scores_UC < 0).any(axis=1))
    if len(bad):
        raise ConfigError(
            f"--predictions must hold probabilities that sum to 1, but those of {shown(rows[bad[0]]['key'], 60)} in "
            f"{str(path)!r} are {', '.join(f'{value:g}' for value in scores_UC[bad[0]])}"
        )
    return scores_UC


def _certain(said: Sequence[str], spec: TaskSpec, words: Mapping[str, str | None], path: Path) -> np.ndarray:
    number_of = {label: number for number, label in enumerate(spec.labels)}
    numbers = [number_of.get(words.get(word, word) or "") for word in said]
    strange = sorted({word for word, number in zip(said, numbers, strict=True) if number is None})
    if strange:
        raise ConfigError(
            f"--predictions must be labels of {spec.name!r} ({', '.join(spec.labels)}), but {str(path)!r} has "
            f"{', '.join(shown(repr(word), 60) for word in strange[:_MAX_NAMED])}; say with --labels WORD=LABEL what "
            "they mean"
        )
    certain_UC: np.ndarray = np.eye(len(spec.labels))[np.asarray(numbers, int)]
    return certain_UC


# ---------------------------------------------------------------- a classifier of transformers


def classifier_scores(
    folder: str, words: Mapping[str, str | None], config: ExperimentConfig, device: torch.device
) -> Scores:
    """Return what an audio classifier of transformers in a local folder says of each clip, heard alone and whole.

    Probabilities of labels that the task does not have are left out, and the others made to sum to 1.

    Args:
        folder: with config.json, model.safetensors and preprocessor_config.json; no code of it runs.
        words: what its labels mean, where they have other names.
        config: how clips are read.
        device: where it computes.

    Raises:
        ConfigError: if there is no such model, or it knows none of the task's labels.
    """
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    if not Path(folder).is_dir():
        raise ConfigError(f"--hf must be a folder with a model of transformers, but {folder!r} is none")
    try:
        model = AutoModelForAudioClassification.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = shown(str(error).partition("\n")[0], 200)
        raise ConfigError(
            f"--hf must be an audio classifier of transformers, but {folder!r} is not: {reason}"
        ) from error
    model.to(device).train(mode=False)
    names = {int(number): str(name) for number, name in model.config.id2label.items()}

    def scores(part: Index, spec: TaskSpec) -> np.ndarray:
        columns = {
            number: spec.labels.index(label)
            for number, name in names.items()
            if (label := words.get(name, name)) in spec.labels
        }
        lacking = [label for number, label in enumerate(spec.labels) if number not in columns.values()]
        if lacking:
            raise ConfigError(
                f"--hf must know every label of {spec.name!r}, but {folder!r} has none for {', '.join(lacking)}; it "
                f"has {', '.join(names.values())}: say with --labels WORD=LABEL what they mean"
            )
        found = np.zeros((len(part), len(spec.labels)))
        for row, wave_T in enumerate(heard_clips(part, config)):
            inputs = extractor(wave_T, sampling_rate=RATE_HZ, return_tensors="pt").to(device)
            with torch.inference_mode():
                shares = model(**inputs).logits[0].float().softmax(-1).cpu().numpy()
            for number, column in columns.items():
                found[row, column] += shares[number]
        found /= found.sum(axis=1, keepdims=True)
        return found

    return scores


def heard_clips(part: Index, config: ExperimentConfig) -> Iterator[Float[np.ndarray, "T"]]:
    """Yield the samples of each utterance at 16 kHz.

    Raises:
        ShardError: if one cannot be decoded.
    """
    data = config.data
    micro_batches = (MicroBatch(np.asarray([item])) for item in range(len(part)))
    for batch in read_batches(part, micro_batches, num_workers=0, timeout_s=data.worker_timeout_s, remote=data.remote):
        if batch.problems:
            raise ShardError(f"every utterance is needed, but {batch.problems[0]}")
        yield batch.wave_BT[0].numpy()
