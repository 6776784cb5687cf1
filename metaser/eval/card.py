"""The README of an exported model: what was done, on what, with which result, and what is not known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaser.config.encoders import EncoderConfig, HuggingFaceEncoderConfig, TextEncoderConfig
from metaser.config.schema import ExperimentConfig, StageConfig
from metaser.eval.claims import describe_rules
from metaser.eval.metrics import rounded, selected_value
from metaser.eval.start import describe_start, known_start
from metaser.markdown import code, plain, table
from metaser.record import DataRecord, PartRecord, read_record
from metaser.rundir import RunDir
from metaser.runfiles import write_whole, writing
from metaser.tasks.kinds import kind_of
from metaser.tasks.spec import TaskSpec
from metaser.tracking import read_metrics
from shards.inputfile import MAX_SETTINGS_BYTES, read_regular
from shards.labels import language_code
from shards.splits import describe_overlap
from shards.yamltext import YamlTextError, dump_yaml, parse_yaml

_KINDS_OF_SPEECH = {
    "emodb": "acted",
    "ravdess": "acted",
    "crema-d": "acted",
    "nemo": "acted",
    "iemocap": "acted, partly improvised",
    "meld": "acted, of a television series",
    "msp-podcast": "of podcasts",
    "demo": "synthetic",
}
"""By corpus reader."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def write_card(run: RunDir, config: ExperimentConfig, specs: Sequence[TaskSpec], report: Mapping[str, Any]) -> None:
    """Write the exported model's card anew, now that `report` says how it does on test.

    A model that an earlier version exported keeps the card that it has.

    Raises:
        RunError: if the disk refuses, or what the card tells of is damaged.
    """
    if read_record(run) is None:
        return
    path = run.best / "README.md"
    with writing(path):
        write_whole(path, model_card(run, config, specs, report))


def model_card(
    run: RunDir, config: ExperimentConfig, specs: Sequence[TaskSpec], report: Mapping[str, Any] | None = None
) -> str:
    """Return the README of an exported model: what was done, on what, with which result, and what is not known.

    Args:
        run: its record of the data and its metrics are read.
        config: the run's experiment.
        specs: the model's tasks.
        report: of the test split, once there is one.

    Raises:
        RunError: if the run's record or metrics are damaged.
    """
    record = read_record(run) or DataRecord((), (), {})
    sections = [
        [f"# {plain(run.root.resolve().name)}: speech emotion recognition", "", _summary(config)],
        ["## Tasks", "", *table(["task", "kind", "labels"], map(_task_row, specs))],
        ["## Training", "", *_training(config, record)],
        ["## Data", "", *_data(record)],
        ["## Protocol", "", *_protocol(config, record)],
        ["## Results", "", *_results(run, config, specs, report)],
        ["## Limits", "", *_limits(record, report)],
        ["## Use", "", *_use(config)],
    ]
    return _front_matter(config, record) + "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _front_matter(config: ExperimentConfig, record: DataRecord) -> str:
    # The hub takes no other words.
    codes = map(language_code, _counted(record, "languages", "train"))
    languages = sorted({code.partition("-")[0] for code in codes if code})
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "audio-classification",
        "tags": ["speech-emotion-recognition", "metaser"],
    }
    if languages:
        header["language"] = languages
    encoders = (config.model.encoder, *config.model.views.values())
    names = [
        name for encoder in encoders if (name := getattr(encoder, "name", None)) is not None and _is_hub_name(name)
    ]
    if names:
        header["base_model"] = names[0] if len(names) == 1 else names
    return f"---\n{dump_yaml(header)}---\n\n"


def _is_hub_name(name: str) -> bool:
    return _HUB_NAME.fullmatch(name) is not None and not Path(name).is_dir()


def _summary(config: ExperimentConfig) -> str:
    names = ", then ".join(f"{code(stage.name)}" for stage in config.stages)
    count = "one stage" if len(config.stages) == 1 else f"{len(config.stages)} stages"
    return f"Trained by MetaSER in {count}: {names}. The main task is {plain(config.main_task)}."


def _task_row(spec: TaskSpec) -> list[str]:
    labels = kind_of(spec).describe_outputs(spec)
    merged = f" ({', '.join(f'{old} counts as {new}' for old, new in spec.merge.items())})" if spec.merge else ""
    return [spec.name, spec.kind, labels + merged]


def _training(config: ExperimentConfig, record: DataRecord) -> list[str]:
    rows = [_stage_row(number, stage) for number, stage in enumerate(config.stages, start=1)]
    start = known_start(config, record)
    header = ["stage", "name", "steps", "trained", "tasks (weight)", "utterances", "weights chosen by"]
    return [
        f"Encoder: {_encoder(config.model.encoder)}.",
        "",
        *(f"View {code(name)}: {_encoder(view)}.\n" for name, view in config.model.views.items()),
        *([] if start is None else [f"{plain(_sentence(describe_start(start)))}.", ""]),
        *table(header, rows),
        "",
        f"{config.data.batch_utterances} utterances a step, seed {config.seed}.",
    ]


def _encoder(encoder: EncoderConfig) -> str:
    if not isinstance(encoder, HuggingFaceEncoderConfig | TextEncoderConfig):
        return plain(encoder.describe())
    revision = f", revision {plain(encoder.revision)}" if encoder.revision else ""
    reads = f", reads {code(encoder.field)}" if isinstance(encoder, TextEncoderConfig) else ""
    licence = _encoder_licence(Path(encoder.name) / "README.md")
    return f"{code(encoder.name)}{revision}, pre-trained{reads}; its licence: {licence or 'see there, not known here'}"


def _encoder_licence(card: Path) -> str | None:
    """Return the licence that the card of a local checkpoint names."""
    try:
        text = read_regular(card, max_bytes=MAX_SETTINGS_BYTES).decode(errors="replace")
        match = re.match(r"---\r?\n(.{,100000}?)\n---", text, re.DOTALL)
        header = parse_yaml(match[1]) if match else None
    except (OSError, YamlTextError):
        # Then it is not known, which the card says.
        return None
    return plain(str(header["license"])) if isinstance(header, dict) and header.get("license") else None


def _stage_row(number: int, stage: StageConfig) -> list[str]:
    weights = ", ".join(f"{name} ({stage.weights[name]:g})" for name in stage.weighted_tasks)
    chosen = "all with a label for a task" if stage.filter is None else stage.filter
    return [str(number), stage.name, str(stage.num_steps), ", ".join(stage.train), weights, chosen, stage.select]


def _data(record: DataRecord) -> list[str]:
    rows = [
        [
            part.corpus,
            part.split,
            str(part.num_utterances),
            f"{part.duration_s / 3600:.2f}",
            _speakers(part),
            ", ".join(part.languages) or "unknown",
        ]
        for part in record.parts
    ]
    folders = [
        [", ".join(folder.corpora), folder.reader, folder.licence or "unknown", folder.citation or "-"]
        for folder in record.folders
    ]
    return [
        *table(["corpus", "split", "utterances", "hours", "speakers", "language"], rows),
        "",
        *table(["corpus", "packed as", "licence", "to be cited"], folders),
        "",
        "A corpus's licence may bind the model, too.",
    ]


def _speakers(part: PartRecord) -> str:
    if not part.num_without_speaker:
        return str(part.num_speakers)
    unknown = f"unknown for {part.num_without_speaker} utterances"
    return f"{part.num_speakers}, {unknown}" if part.num_speakers else "unknown"


def _protocol(config: ExperimentConfig, record: DataRecord) -> list[str]:
    protocol = record.protocol
    lines = [
        f"- Split: {plain(describe_rules(config.data.splits))}.",
        "- Weights are chosen on dev; test is judged once, with the chosen ones.",
    ]
    if not protocol:
        return lines
    unknown = sum(protocol["num_utterances_without_speaker"].values())
    overlap = f"- Speakers of train, dev and test: {describe_overlap(protocol['speaker_overlap'])}"
    lines.append(f"{overlap}; those of {unknown} utterances are unknown." if unknown else f"{overlap}.")
    lines.append(
        f"- Recordings (equal samples) in more than one of them: {protocol['num_recordings_in_two_splits']}; files of "
        f"which parts stand in more than one: {protocol['num_files_in_two_splits']}. Copies that were cut, re-encoded "
        "or made louder are not found."
    )
    return lines


def _results(
    run: RunDir, config: ExperimentConfig, specs: Sequence[TaskSpec], report: Mapping[str, Any] | None
) -> list[str]:
    lines = []
    dev = _selected(run, config)
    if dev is not None:
        select = config.stages[-1].select
        lines += [
            f"Dev, at step {dev['step']} of the last stage, chosen by {plain(select)} = "
            f"{selected_value(dev['dev'], select)[0]:.4f}:",
            "",
            *_metrics_table(specs, dev["dev"]["tasks"]),
            "",
        ]
    if report is None:
        return [*lines, "Test: not judged yet."]
    notes = [report["protocol"].get("used"), *report["protocol"].get("notes", ())]
    return [
        *lines,
        f"Test, {report['num_utterances']} utterances:",
        "",
        *_metrics_table(specs, report["tasks"]),
        *(f"\n{plain(_sentence(note))}." for note in notes if note),
    ]


def _selected(run: RunDir, config: ExperimentConfig) -> dict[str, Any] | None:
    """Return the evaluation whose weights the last stage chose: the first of the best."""
    best: tuple[float, dict[str, Any]] | None = None
    for line in read_metrics(run.metrics):
        if line["stage"] != len(config.stages) or "dev" not in line:
            continue
        value, higher_is_better = selected_value(line["dev"], config.stages[-1].select)
        score = value if higher_is_better else -value
        if best is None or score > best[0]:
            best = score, line
    return None if best is None else best[1]


def _metrics_table(specs: Sequence[TaskSpec], tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = []
    for spec in specs:
        metrics = tasks.get(spec.name)
        if metrics is None:
            continue
        values = ", ".join(
            f"{metric.title} {rounded(metrics.get(name))}" for name, metric in kind_of(spec).metrics.items()
        )
        rows.append([spec.name, str(metrics["num_utterances"]), values, _interval(metrics)])
    return table(["task", "utterances", "metrics", "UA, 95 % interval"], rows)


def _interval(metrics: Mapping[str, Any]) -> str:
    bounds = metrics.get("ua_interval_95")
    if bounds:
        return f"{bounds[0]:.3f} to {bounds[1]:.3f}"
    return f"none: {metrics['ua_interval_reason']}" if metrics.get("ua_interval_reason") else "-"


def _limits(record: DataRecord, report: Mapping[str, Any] | None) -> list[str]:
    kinds = sorted(
        {
            f"{corpus} ({_KINDS_OF_SPEECH.get(folder.reader, 'what kind of speech, is not recorded')})"
            for folder in record.folders
            for corpus in folder.corpora
        }
    )
    learned = sorted(_counted(record, "languages", "train"))
    tested = sorted(_counted(record, "languages", "test"))
    lines = [
        f"- Speech: {plain(', '.join(kinds)) or 'unknown'}. How people act an emotion is not how they have it.",
        f"- Languages: trained on {plain(', '.join(learned)) or 'unknown ones'}, "
        + (f"tested on {plain(', '.join(tested)) or 'unknown ones'}." if report else "not tested yet."),
        "- Not tested: other corpora, languages, microphones, rooms and noise than the above, and whatever the labels "
        "do not name: every input gets one of them.",
    ]
    if report is not None and report["protocol"]["speaker_overlap"] is not False:
        state = "were" if report["protocol"]["speaker_overlap"] else "may have been"
        lines.append(f"- People of the test set {state} trained on: for new people expect less.")
    return lines


def _use(config: ExperimentConfig) -> list[str]:
    return [
        "Input is mono audio at 16 kHz. `metaser predict FOLDER some.wav` prints what the model says of "
        f"{plain(config.main_task)}; in Python:",
        "`from metaser import MetaSERModel`, then `MetaSERModel.from_pretrained(FOLDER)`.",
        *(
            ["It reads what is said, too: `metaser predict FOLDER some.wav --text WORDS`."]
            if any(view.reads_text for view in config.model.views.values())
            else []
        ),
    ]


def _counted(record: DataRecord, field: str, *splits: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for part in record.parts:
        if part.split in splits:
            counts.update(getattr(part, field))
    return counts


def _sentence(note: str) -> str:
    return note[:1].upper() + note[1:]
