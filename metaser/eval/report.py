"""The report of an evaluation: one dict, written as JSON, Markdown and CSV, and shown as a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from metaser import markdown
from metaser.errors import TrainingError
from metaser.eval.coverage import LeftOut
from metaser.eval.metrics import add_interval, rounded, task_metrics
from metaser.eval.predictions import predictions_csv, read_covered
from metaser.rundir import PREDICTIONS, REPORT, REPORT_PAGE
from metaser.runfiles import validated_json, write_whole
from metaser.sums import SUMS, sums_text
from metaser.tasks.kinds import all_metrics, kind_of
from metaser.tasks.results import UtteranceResult
from metaser.tasks.spec import TaskSpec
from metaser.tasks.text import TEXT_NORMALISATION
from shards.jsontext import dump_json
from shards.shown import shown_text

UNKNOWN_GROUP = "(unknown)"
"""Where utterances stand whose metadata does not name their group."""

_SPEAKERS = {
    True: "speaker overlap",
    False: "unseen speakers",
    None: "unknown whether these speakers were trained on",
}
"""By `speaker_overlap`."""
_MAX_NAMED = 12
"""Labels in a sentence."""
_INTERVAL_TITLE = "UA, 95 % interval"
_table = partial(markdown.table, rule="---:")


def build_report(
    specs: Sequence[TaskSpec],
    main_task: str,
    results: Sequence[UtteranceResult],
    *,
    split: str,
    protocol: dict[str, Any],
    run: dict[str, Any],
    left_out: Mapping[str, LeftOut] | None = None,
) -> dict[str, Any]:
    """Return everything `report.json` holds.

    Keys: `split`, `num_utterances`, `main_task`, `tasks` (per task its metrics, for classification also
    `ua_interval_95` and, where that is None, `ua_interval_reason`; tasks that no utterance has a label for are left
    out), `groups` (per group field and value, the number of utterances with the main task's label and its headline
    metrics), `left_out` (per classification task the utterances whose word is none of its labels), `protocol` (with
    `text_normalisation` where transcripts are judged) and `run`.

    Args:
        specs: the model's tasks.
        main_task: name of the task that groups are compared by.
        results: every utterance of the split once; several folds' results may be pooled.
        split: `train`, `dev` or `test`.
        protocol: how the split was made; `speaker_overlap` says whether its speakers made the model (None: unknown),
            `used` and `notes` (sentences) are shown with the numbers.
        run: what was evaluated.
        left_out: what each classification task's labels leave out of the split.

    Raises:
        TrainingError: if an utterance occurs twice or there is none.
    """
    if not results:
        raise TrainingError(f"split {split!r} must hold at least one utterance, got 0; choose another split or shards")
    repeated = sorted(key for key, count in Counter(result.key for result in results).items() if count > 1)
    if repeated:
        raise TrainingError(
            f"every utterance must be counted exactly once, but {len(repeated)} came more than once, the first being "
            f"{repeated[0]}; evaluate each utterance in one process and one fold only"
        )
    tasks = {}
    for spec in specs:
        metrics = task_metrics(spec, results)
        if metrics is None:
            continue
        add_interval(metrics, spec, results)
        tasks[spec.name] = metrics
    main_spec = next(spec for spec in specs if spec.name == main_task)
    return {
        "split": split,
        "num_utterances": len(results),
        "main_task": main_task,
        "tasks": tasks,
        "groups": _group_tables(main_spec, results),
        "left_out": {name: part.model_dump() for name, part in (left_out or {}).items()},
        "protocol": protocol | _text_protocol(specs, tasks),
        "run": run,
    }


def _text_protocol(specs: Sequence[TaskSpec], tasks: Mapping[str, Any]) -> dict[str, str]:
    judged = [spec.name for spec in specs if kind_of(spec).is_text and spec.name in tasks]
    return {"text_normalisation": TEXT_NORMALISATION} if judged else {}


def write_report(
    folder: Path, report: Mapping[str, Any], results: Sequence[UtteranceResult], specs: Sequence[TaskSpec]
) -> None:
    """Write `report.json`, `report.md`, `predictions.csv` and checksums into `folder`, each complete or not at all.

    The same report and results, in any order, give the same bytes.

    Args:
        folder: made if missing.
        report: what `build_report` returned.
        results: the utterances it was built from, one CSV row each, sorted by key.
        specs: the model's tasks, which decide the CSV's columns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = dump_json(report, indent=2, sort_keys=True) + "\n"
    table = predictions_csv(results, specs)
    write_whole(folder / PREDICTIONS, table)
    write_whole(folder / REPORT_PAGE, _markdown(report))
    write_whole(
        folder / SUMS,
        sums_text({REPORT: sha256(text.encode()).hexdigest(), PREDICTIONS: sha256(table.encode()).hexdigest()}),
    )
    # Last: where it stands, all of it does.
    write_whole(folder / REPORT, text)


def read_report(folder: Path) -> dict[str, Any] | None:
    """Return what `report.json` in `folder` holds, None if there is no report.

    Raises:
        RunError: if it is damaged.
    """
    data = read_covered(folder / REPORT)
    return None if data is None else validated_json(data, _validate_report, str(folder / REPORT))


_validate_report = TypeAdapter(dict[str, Any]).validate_json


def render_table(report: Mapping[str, Any], main_task: str, console: Console) -> None:
    """Print the tasks' metrics, the main task first, and the main task's recall per class."""
    header, rows = _task_rows(report, main_task)
    table = Table(title=shown_text(_headline(report)), title_justify="left")
    for column, title in enumerate(header):
        table.add_column(shown_text(title), justify="left" if column == 0 else "right")
    for row in rows:
        table.add_row(*map(shown_text, row), style="bold" if row[0] == main_task else None)
    console.print(table)
    for line in _notes(report, main_task):
        console.print(shown_text(line), highlight=False, soft_wrap=True)

    recall_rows = _recall_rows(report, main_task)
    if recall_rows:
        recalls = Table(title=shown_text(f"{main_task}: recall per class"), title_justify="left")
        recalls.add_column("class")
        recalls.add_column("utterances", justify="right")
        recalls.add_column("recall", justify="right")
        for row in recall_rows:
            recalls.add_row(*map(shown_text, row))
        console.print(recalls)


def render_folds(report: Mapping[str, Any], console: Console) -> None:
    """Print a cross-validation: a row per fold, mean and standard deviation, then the pooled predictions."""
    header, rows = _fold_rows(report)
    table = Table(title=shown_text(f"{report['main_task']}, {len(report['folds'])} folds"), title_justify="left")
    for column, title in enumerate(header):
        table.add_column(shown_text(title), justify="left" if column == 0 else "right")
    for number, row in enumerate(rows):
        table.add_row(*map(shown_text, row), end_section=number == len(report["folds"]) - 1)
    console.print(table)
    render_table(report, report["main_task"], console)


def _fold_rows(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    metrics = list(report["mean"])
    rows = [
        [
            f"{fold['fold']} ({fold['group']})",
            str(fold["num_utterances"] or 0),
            *(rounded(fold[metric]) for metric in metrics),
        ]
        for fold in report["folds"]
    ]
    for name in ("mean", "std"):
        rows.append([name, "", *(rounded(report[name][metric]) for metric in metrics)])
    return ["fold (test group)", "utterances", *(all_metrics()[metric].title for metric in metrics)], rows


def _group_tables(spec: TaskSpec, results: Sequence[UtteranceResult]) -> dict[str, dict[str, dict[str, Any]]]:
    fields = sorted({field for result in results for field in result.groups})
    tables = {}
    for field in fields:
        members: dict[str, list[UtteranceResult]] = {}
        for result in results:
            members.setdefault(result.groups.get(field) or UNKNOWN_GROUP, []).append(result)
        if set(members) == {UNKNOWN_GROUP}:
            continue
        measured = {value: task_metrics(spec, members[value]) for value in sorted(members)}
        if any(measured.values()):
            tables[field] = {value: _group_row(spec, metrics) for value, metrics in measured.items()}
    return tables


def _group_row(spec: TaskSpec, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    names = kind_of(spec).metrics
    # A group without the label (MSP-Podcast's Test3) is said to have none.
    if metrics is None:
        return {"num_utterances": 0, **dict.fromkeys(names)}
    return {name: metrics[name] for name in ("num_utterances", *names)}


def _headline(report: Mapping[str, Any]) -> str:
    is_trained_on = report["split"] in ("train", "all") and report["protocol"].get("shards") is None
    overlap = True if is_trained_on else report["protocol"]["speaker_overlap"]
    speakers = _SPEAKERS[overlap]
    return f"{report['split']}: {report['num_utterances']} utterances, {speakers}"


def _protocol_notes(report: Mapping[str, Any]) -> list[str]:
    used = report["protocol"].get("used")
    return [*([used] if used else []), *report["protocol"].get("notes", ())]


def _task_rows(report: Mapping[str, Any], main_task: str) -> tuple[list[str], list[list[str]]]:
    """Return column titles and one row of text per task; a metric that no task has gets no column."""
    tasks = report["tasks"]
    names = sorted(tasks, key=lambda name: (name != main_task, name))
    metric_of = all_metrics()
    shown = [metric for metric in metric_of if any(metric in tasks[name] for name in names)]
    has_interval = any(tasks[name].get("ua_interval_95") for name in names)
    header = ["task", "utterances", *(metric_of[metric].title for metric in shown)]
    rows = []
    for name in names:
        numbers = (rounded(tasks[name].get(metric)) for metric in shown)
        rows.append([name, str(tasks[name]["num_utterances"]), *numbers])
    if has_interval:
        header.append(_INTERVAL_TITLE)
        for name, row in zip(names, rows, strict=True):
            bounds = tasks[name].get("ua_interval_95")
            row.append(f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else "-")
    return header, rows


def _recall_rows(report: Mapping[str, Any], main_task: str) -> list[list[str]]:
    metrics = report["tasks"].get(main_task, {})
    num_of = dict(zip(metrics.get("labels", ()), map(sum, metrics.get("confusion", ())), strict=True))
    return [[label, str(num_of[label]), rounded(metrics["recall"][label])] for label in metrics.get("classes", ())]


def _notes(report: Mapping[str, Any], main_task: str) -> list[str]:
    """Return what a reader of the numbers must know; sentences without their full stops."""
    main = report["tasks"].get(main_task, {})
    notes = _protocol_notes(report)
    for name, metrics in sorted(report["tasks"].items(), key=lambda task: (task[0] != main_task, task[0])):
        absent = [label for label in metrics.get("labels", ()) if label not in metrics["classes"]]
        if absent:
            notes.append(
                f"{name}: no utterance is {_few(absent)}; UA and macro-F1 are means over {_few(metrics['classes'])}"
            )
    if "ua_interval_reason" in main:
        notes.append(f"no interval for {main_task}: {main['ua_interval_reason']}")
    parts = {name: LeftOut.model_validate(part) for name, part in report.get("left_out", {}).items()}
    notes += [part.describe(name) for name, part in parts.items() if part.num_left_out]
    for name, metrics in sorted(report["tasks"].items()):
        if metrics.get("num_empty_references"):
            notes.append(
                f"{name}: {metrics['num_empty_references']} of {metrics['num_utterances']} transcripts are "
                "punctuation alone, so WER and CER leave them out"
            )
        if metrics.get("num_without_word_boundaries"):
            notes.append(
                f"{name}: {metrics['num_without_word_boundaries']} of {metrics['num_utterances']} transcripts are in a "
                "script that sets no blanks between words; there WER counts characters"
            )
    return notes


def _few(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:_MAX_NAMED])
    return shown if len(labels) <= _MAX_NAMED else f"{shown} and {len(labels) - _MAX_NAMED} more"


def _markdown(report: Mapping[str, Any]) -> str:
    main_task = report["main_task"]
    lines = [
        "# Evaluation",
        "",
        f"{markdown.plain(_headline(report))}.",
        "",
        *_table(*_task_rows(report, main_task), rule="---:"),
    ]
    for note in _notes(report, main_task):
        lines += ["", f"{markdown.plain(note)}."]
    if "folds" in report:
        lines += ["", "## Folds", "", *_table(*_fold_rows(report))]
    recall_rows = _recall_rows(report, main_task)
    if recall_rows:
        lines += [
            "",
            f"## Recall of {markdown.plain(main_task)}",
            "",
            *_table(["class", "utterances", "recall"], recall_rows, rule="---:"),
        ]
        metrics = report["tasks"][main_task]
        rows = [
            [label, *map(str, counts)] for label, counts in zip(metrics["labels"], metrics["confusion"], strict=True)
        ]
        header = ["reference \\ predicted", *metrics["labels"]]
        lines += ["", f"## Confusion of {markdown.plain(main_task)}", "", *_table(header, rows)]
    metric_of = all_metrics()
    for field, groups in report["groups"].items():
        shown = [metric for metric in metric_of if all(metric in group for group in groups.values())]
        rows = [
            [value, str(group["num_utterances"]), *(rounded(group[metric]) for metric in shown)]
            for value, group in groups.items()
        ]
        header = [field, "utterances", *(metric_of[metric].title for metric in shown)]
        lines += ["", f"## {markdown.plain(f'{main_task} by {field}')}", "", *_table(header, rows)]
    for title in ("protocol", "run"):
        if report[title]:
            lines += ["", f"## {title.capitalize()}", ""]
            lines += [
                f"- {markdown.plain(name)}: {markdown.plain(json.dumps(value, ensure_ascii=False))}"
                for name, value in report[title].items()
                if name not in ("used", "notes")
            ]
    return "\n".join(lines) + "\n"
