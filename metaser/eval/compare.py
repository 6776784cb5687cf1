"""Runs or cross-validations beside one another: their differences, and whether they can be compared at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metaser.config.load import load_experiment
from metaser.config.schema import ExperimentConfig
from metaser.errors import ConfigError, RunError
from metaser.eval.crossval import read_crossval
from metaser.eval.metrics import rounded
from metaser.eval.paired import METRICS, Answers, Difference, compare, count_by_speaker, metric_of
from metaser.eval.predictions import read_predictions
from metaser.eval.report import read_report
from metaser.rundir import RunDir, existing_run
from metaser.tasks.kinds import all_metrics, kind_of
from shards.shown import shown

_MAX_NAMED = 3


@dataclass(frozen=True)
class System:
    """What one system, of one or several models, said of its test utterances in one task."""

    name: str
    task: str
    answers: Answers
    speaker_of: Mapping[str, str | None]
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What its report says of the numbers' worth."""

    @property
    def keys(self) -> set[str]:
        """The utterances that all of its models judged."""
        return set(self.answers.references)


def read_system(name: str, paths: Sequence[str | Path], task: str | None = None) -> System:
    """Return what the runs or cross-validations in the folders `paths` said, together as one system.

    Args:
        name: What tables call it.
        paths: A folder for each model of the system.
        task: The task; None is the main one.

    Raises:
        RunError: if one is no run or not evaluated, or the models were not judged on the same utterances.
        ConfigError: if the task does not exist or has no classes.
    """
    return _as_one(name, [_read(Path(path), task) for path in paths])


def _as_one(name: str, parts: Sequence[System]) -> System:
    first = parts[0]
    for part in parts[1:]:
        if part.answers.references != first.answers.references:
            raise RunError(
                f"models of one system must be judged on the same utterances, but {part.name} was not on those of "
                f"{first.name}; compare them as systems of their own"
            )
    labels = tuple(dict.fromkeys(label for part in parts for label in part.labels))
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    predictions = [said for part in parts for said in part.answers.predictions]
    return System(name, first.task, Answers(first.answers.references, predictions), first.speaker_of, labels, notes)


def pooled_system(name: str, models: Sequence[Sequence[Path]], task: str | None = None) -> System:
    """Return as one system models of which each is several runs over disjoint test sets, as the folds of a corpus.

    Raises:
        RunError: as in `read_system`, or if an utterance was judged by two runs of one model.
        ConfigError: as in `read_system`.
    """
    return _as_one(name, [_pooled([_read(path, task) for path in folds]) for folds in models])


def _pooled(parts: Sequence[System]) -> System:
    """Return what the runs of one model said together."""
    references: dict[str, str] = {}
    said: dict[str, str] = {}
    speaker_of: dict[str, str | None] = {}
    for part in parts:
        if twice := sorted(references.keys() & part.keys):
            raise RunError(f"folds must judge each utterance once, but {shown(twice[0], 80)} stands in two")
        references |= part.answers.references
        said |= part.answers.predictions[0]
        speaker_of |= part.speaker_of
    labels = tuple(dict.fromkeys(label for part in parts for label in part.labels))
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    return System(parts[0].name, parts[0].task, Answers(references, [said]), speaker_of, labels, notes)


def _read(path: Path, task: str | None) -> System:
    run = RunDir(path)
    config = _experiment(path)
    report = read_report(run.report)
    if report is None:
        raise RunError(f"RUN must be evaluated, but {str(path)!r} has no report; train it to its end first")
    task = config.main_task if task is None else task
    specs, results = read_predictions(run.predictions, config.tasks)
    spec = next((spec for spec in specs if spec.name == task), None)
    if spec is None:
        names = ", ".join(spec.name for spec in specs)
        raise ConfigError(f"--task must be one that {str(path)!r} answers ({names}), got {task!r}")
    if not kind_of(spec).has_classes:
        raise ConfigError(
            f"runs are compared in a task with classes, but {task!r} is of kind {spec.kind}; name another"
        )
    judged = [result for result in results if task in result.tasks and result.tasks[task].reference is not None]
    if not judged:
        raise RunError(f"{str(path)!r} must have judged utterances of which {task!r} is known, but has none")
    answers = Answers(
        {result.key: str(result.tasks[task].reference) for result in judged},
        [{result.key: str(result.tasks[task].prediction) for result in judged}],
    )
    speaker_of = {
        result.key: None if result.speaker is None else f"{result.corpus}:{result.speaker}" for result in judged
    }
    notes = []
    if report["protocol"].get("speaker_overlap") is not False:
        notes.append(f"{path.name}: its test speakers are not known to be new to the model")
    return System(path.name, task, answers, speaker_of, tuple(spec.labels), tuple(notes))


def _experiment(path: Path) -> ExperimentConfig:
    if RunDir(path).is_crossval():
        return read_crossval(path).config
    return load_experiment(existing_run(path).config)


@dataclass(frozen=True)
class Comparison:
    """Several systems on the utterances that all of them judged."""

    task: str
    metrics: dict[str, dict[str, float]]
    """By system, then by metric."""
    differences: dict[str, dict[str, Difference]]
    """Of each system but the first to the first, by metric."""
    num_utterances: int
    num_speakers: int
    num_models: dict[str, int]
    warnings: tuple[str, ...]
    """Why the systems are not, or not quite, comparable; sentences."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def compare_systems(systems: Sequence[System]) -> Comparison:
    """Return the first system beside each of the others.

    Raises:
        RunError: if no utterance was judged by all of them.
    """
    keys = sorted(set.intersection(*(system.keys for system in systems)))
    if not keys:
        names = ", ".join(system.name for system in systems)
        raise RunError(f"runs must have judged the same utterances to be compared, but {names} have none in common")
    warnings = list(_warnings(systems, keys))
    keys = [key for key in keys if all(_same_reference(systems, key))]
    if not keys:
        raise RunError("runs must agree on what is true of the utterances that they judged, but do so of none")
    nameless = [key for key in keys if systems[0].speaker_of[key] is None]
    if nameless:
        warnings.append(f"{len(nameless)} utterances have no speaker, and count as those of one")
    speaker_of = {key: systems[0].speaker_of[key] or "" for key in keys}
    labels = tuple(dict.fromkeys(label for system in systems for label in system.labels))
    counts = [count_by_speaker(_only(system.answers, keys), speaker_of, labels) for system in systems]
    return Comparison(
        task=systems[0].task,
        metrics={
            system.name: {metric: metric_of(some, metric) for metric in METRICS}
            for system, some in zip(systems, counts, strict=True)
        },
        differences={
            system.name: {metric: compare(some, counts[0], metric) for metric in METRICS}
            for system, some in zip(systems[1:], counts[1:], strict=True)
        },
        num_utterances=len(keys),
        num_speakers=counts[0].shape[1],
        num_models={system.name: len(system.answers.predictions) for system in systems},
        warnings=tuple(warnings),
    )


def _only(answers: Answers, keys: Sequence[str]) -> Answers:
    references = {key: answers.references[key] for key in keys}
    return Answers(references, [{key: said[key] for key in keys} for said in answers.predictions])


def _same_reference(systems: Sequence[System], key: str) -> Iterator[bool]:
    expected = systems[0].answers.references[key]
    return (system.answers.references[key] == expected for system in systems)


def _warnings(systems: Sequence[System], keys: Sequence[str]) -> Iterator[str]:
    first = systems[0]
    for system in systems:
        others = sorted(system.keys - set(keys))
        if others:
            yield (
                f"{system.name} judged {len(others)} utterances more than the {len(keys)} that all did, such as "
                f"{', '.join(shown(key, 60) for key in others[:_MAX_NAMED])}: they are left out"
            )
    for system in systems[1:]:
        if set(system.labels) != set(first.labels):
            yield f"{system.name} chooses from {', '.join(system.labels)}, {first.name} from {', '.join(first.labels)}"
        other = [key for key in keys if system.answers.references[key] != first.answers.references[key]]
        if other:
            yield (
                f"{len(other)} utterances, such as {shown(other[0], 60)}, have another label in {system.name} than in "
                f"{first.name}: they are left out"
            )
    yield from dict.fromkeys(note for system in systems for note in system.notes)


def metric_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return column titles and each system's metrics as text."""
    header = ["system", "models", *(all_metrics()[name].title for name in METRICS)]
    rows = [
        [name, str(comparison.num_models[name]), *(rounded(values[each]) for each in METRICS)]
        for name, values in comparison.metrics.items()
    ]
    return header, rows


def difference_rows(comparison: Comparison, metric: str = "ua") -> tuple[list[str], list[list[str]]]:
    """Return column titles and, as text, what each system but the first gains over it in `metric`."""
    header = [f"{all_metrics()[metric].title} more than the first", *DIFFERENCE_TITLES]
    rows = [[name, *difference_cells(found[metric])] for name, found in comparison.differences.items()]
    return header, rows


DIFFERENCE_TITLES = ("difference", "95 % interval", "p", "could have shown")


def difference_cells(found: Difference) -> list[str]:
    """Return a difference, its interval, its p value and the detectable difference as a table shows them."""
    interval = found.interval_95
    return [
        f"{found.difference:+.3f}",
        "-" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}",
        "-" if found.p_value is None else f"{found.p_value:.3f}",
        rounded(found.detectable),
    ]


def comparison_notes(comparison: Comparison, metric: str = "ua") -> list[str]:
    """Return what a reader of the differences must know; sentences without their full stops."""
    notes = [
        f"{comparison.task}: {comparison.num_utterances} utterances of {comparison.num_speakers} speakers; intervals "
        "and p values say what other speakers would change, not what other seeds would"
    ]
    found = [differences[metric] for differences in comparison.differences.values()]
    notes += dict.fromkeys(f"no interval: {each.reason}" for each in found if each.reason is not None)
    smallest = [each.smallest_p for each in found if each.smallest_p is not None]
    if smallest and smallest[0] > 0.05:
        notes.append(
            f"with {comparison.num_speakers} speakers no p value is below {smallest[0]:.3f}: this test cannot show any "
            "difference at 5 %"
        )
    if len(found) > 1 and smallest:
        notes.append(
            f"{len(found)} differences are tested: of such, one in twenty falls below 0.05 though there is none; "
            f"after Bonferroni, {0.05 / len(found):.4f} is the level"
        )
    return [*notes, *comparison.warnings]
