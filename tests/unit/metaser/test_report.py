"""Reports and figures: what stands in them, and that the same results give the same bytes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from metaser.errors import RunError, TrainingError
from metaser.eval.coverage import LeftOut
from metaser.eval.figures import ari_figure, confusion_figure, curves_figure
from metaser.eval.report import UNKNOWN_GROUP, build_report, render_table, write_report
from metaser.tasks.results import TaskResult, UtteranceResult
from metaser.tasks.spec import TaskSpec

EMOTION = TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("anger", "neutral"))
GENDER = TaskSpec(name="gender", kind="classification", fields=("gender",), labels=("female", "male"))
STYLE = TaskSpec(name="style", kind="classification", fields=("style",), labels=("improvised", "scripted"))
ASR = TaskSpec(name="asr", kind="ctc", fields=("text",), labels=("<blank>", "<unk>", "a"))
AFFECT = TaskSpec(name="affect", kind="regression", fields=("valence", "arousal"), labels=("valence", "arousal"))
SPECS = (GENDER, EMOTION, STYLE, ASR, AFFECT)
PNG = b"\x89PNG\r\n\x1a\n"


def make_results(num_speakers: int = 6) -> list[UtteranceResult]:
    results = []
    for row in range(num_speakers * 4):
        emotion = ("anger", "neutral")[row % 2]
        gender = ("female", "male")[row // 4 % 2]
        results.append(
            UtteranceResult(
                key=f"made/{row:03d}",
                corpus="made",
                speaker=f"made:{row // 4}",
                groups={"gender": gender, "language": "de" if row else None, "age_group": None},
                duration_s=1.0,
                tasks={
                    # The first utterance is the only wrong one.
                    "emotion": TaskResult(emotion, "neutral" if row == 0 else emotion, (0.25, 0.75), 0.5),
                    "gender": TaskResult(gender, gender, (0.5, 0.5), 0.7),
                    "style": TaskResult(None, "scripted", (0.5, 0.5), None),
                    "asr": TaskResult("ja, nein", "ja, nein", None, 1.0),
                    "affect": TaskResult((row / 10, None), (row / 10, 0.0), None, 0.0),
                },
            )
        )
    return results


def make_report(results: list[UtteranceResult], *, overlap: bool = False) -> dict[str, Any]:
    protocol = {"policy": "stored", "speaker_overlap": overlap}
    return build_report(SPECS, "emotion", results, split="test", protocol=protocol, run={"step": 400})


def rendered(report: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=120)
    render_table(report, "emotion", console)
    return console.file.getvalue()


def test_report_has_the_contracted_keys() -> None:
    report = make_report(make_results())
    assert report["split"] == "test"
    assert report["num_utterances"] == 24
    assert set(report["tasks"]) == {"emotion", "gender", "asr", "affect"}
    emotion = report["tasks"]["emotion"]
    assert emotion["wa"] == pytest.approx(23 / 24)
    assert emotion["recall"] == {"anger": pytest.approx(11 / 12), "neutral": 1.0}
    assert emotion["ua_interval_95"][0] < emotion["ua"] <= emotion["ua_interval_95"][1] == 1.0
    assert "ua_interval_reason" not in emotion
    assert report["tasks"]["asr"]["cer"] == 0
    assert report["tasks"]["affect"]["ccc_by_field"] == {"valence": pytest.approx(1.0), "arousal": None}
    assert report["protocol"]["speaker_overlap"] is False
    assert report["run"] == {"step": 400}


def test_groups_count_every_utterance_once() -> None:
    groups = make_report(make_results())["groups"]
    assert set(groups) == {"gender", "language"}, "age_group is unknown throughout"
    assert groups["gender"]["male"] == {"num_utterances": 12, "wa": 1.0, "ua": 1.0, "macro_f1": 1.0}
    assert groups["gender"]["female"]["wa"] == pytest.approx(11 / 12)
    assert groups["language"][UNKNOWN_GROUP]["num_utterances"] == 1
    for table in groups.values():
        assert sum(group["num_utterances"] for group in table.values()) == 24


def test_few_speakers_have_a_reason_instead_of_an_interval() -> None:
    report = make_report(make_results(num_speakers=2))
    assert report["tasks"]["emotion"]["ua_interval_95"] is None
    assert "at least 5 speakers, there are 2" in report["tasks"]["emotion"]["ua_interval_reason"]
    assert "no interval for emotion: it needs" in rendered(report)


def test_what_labels_leave_out_is_in_the_report_the_table_and_the_page(tmp_path: Path) -> None:
    left_out = {
        "emotion": LeftOut(num_utterances=100, num_left_out=40, words={"fear": 10, "surprise": 30}),
        "gender": LeftOut(num_utterances=100, num_left_out=0, words={}),
    }
    results, run = make_results(), {"step": 1}
    protocol = {"speaker_overlap": False}
    report = build_report(SPECS, "emotion", results, split="test", protocol=protocol, run=run, left_out=left_out)
    assert report["left_out"]["emotion"]["words"] == {"surprise": 30, "fear": 10}
    write_report(tmp_path, report, results, SPECS)
    sentence = "emotion: 40 of 100 utterances are left out by labels: surprise 30, fear 10"
    for text in (rendered(json.loads((tmp_path / "report.json").read_text())), (tmp_path / "report.md").read_text()):
        assert sentence in text
        assert "gender: " not in text


def test_a_class_that_no_utterance_has_is_named() -> None:
    results = [result for result in make_results() if result.tasks["emotion"].reference == "anger"]
    assert "emotion: no utterance is neutral; UA and macro-F1 are means over anger" in rendered(make_report(results))


def test_transcripts_of_punctuation_and_scripts_without_blanks_are_counted() -> None:
    results = make_results()
    for row, text in enumerate(("...", "\u4f60\u597d")):
        results[row].tasks["asr"] = TaskResult(text, "\u4f60 \u574f", None, 1.0)
    report = make_report(results)
    asr = report["tasks"]["asr"]
    # Two words in each of 22 transcripts, and two characters.
    assert asr["wer"] == pytest.approx(1 / 46)
    assert (asr["num_empty_references"], asr["num_without_word_boundaries"]) == (1, 1)
    assert "asr: 1 of 24 transcripts are punctuation alone" in rendered(report)
    assert "asr: 1 of 24 transcripts are in a script that sets no blanks" in rendered(report)
    assert "NFKC" in report["protocol"]["text_normalisation"]


def test_a_group_without_the_label_has_a_row_that_says_so(tmp_path: Path) -> None:
    results = make_results()
    for row, result in enumerate(results):
        result.groups["split_set"] = f"Test{row % 3 + 1}"
        if row % 3 == 2:
            result.tasks["emotion"] = TaskResult(None, "anger", (0.5, 0.5), None)
    report = make_report(results)
    assert report["groups"]["split_set"]["Test1"]["num_utterances"] == 8
    assert report["groups"]["split_set"]["Test3"] == {"num_utterances": 0, "wa": None, "ua": None, "macro_f1": None}
    write_report(tmp_path, report, results, SPECS)
    assert "| Test3 | 0 | - | - | - |" in (tmp_path / "report.md").read_text()


def test_a_repeated_utterance_is_refused() -> None:
    results = make_results()
    with pytest.raises(
        TrainingError, match="counted exactly once, but 1 came more than once, the first being made/003"
    ):
        make_report([*results, results[3]])


def test_no_utterance_is_refused() -> None:
    with pytest.raises(TrainingError, match="split 'test' must hold at least one utterance, got 0"):
        make_report([])


def test_files_repeat_in_any_order(tmp_path: Path) -> None:
    results = make_results()
    for name, order in (("one", results), ("two", results[::-1])):
        write_report(tmp_path / name, make_report(order), order, SPECS)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["SHA256SUMS", "predictions.csv", "report.json", "report.md"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_json_file_is_the_report(tmp_path: Path) -> None:
    report = make_report(make_results())
    write_report(tmp_path, report, make_results(), SPECS)
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_predictions_have_a_row_per_utterance(tmp_path: Path) -> None:
    results = make_results()
    write_report(tmp_path, make_report(results), results[::-1], SPECS)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [result.key for result in results]
    first = rows[0]
    assert (first["corpus"], first["speaker"]) == ("made", "made:0")
    assert (first["emotion.reference"], first["emotion.prediction"]) == ("anger", "neutral")
    assert (first["emotion.probability.anger"], first["emotion.probability.neutral"]) == ("0.25", "0.75")
    assert (first["style.reference"], first["asr.reference"]) == ("", "ja, nein")
    assert (rows[3]["affect.valence.reference"], rows[3]["affect.arousal.reference"]) == ("0.3", "")
    assert (rows[3]["affect.valence.prediction"], rows[3]["affect.arousal.prediction"]) == ("0.3", "0")


def test_markdown_shows_what_was_measured(tmp_path: Path) -> None:
    write_report(tmp_path, make_report(make_results(), overlap=True), make_results(), SPECS)
    text = (tmp_path / "report.md").read_text()
    assert "test: 24 utterances, speaker overlap." in text
    assert "| task | utterances | WA | UA | macro-F1 | WER | CER | CCC | MSE | UA, 95 % interval |" in text
    assert "| anger | 11 | 1 |" in text
    assert "## emotion by gender" in text
    assert '- policy: "stored"' in text


def test_table_has_the_main_task_first_and_every_auxiliary_task() -> None:
    text = rendered(make_report(make_results()))
    assert "test: 24 utterances, unseen speakers" in text
    assert "speaker overlap" not in text
    positions = [text.index(name) for name in ("WA", "UA", "macro-F1", "WER", "CER", "CCC")]
    assert positions == sorted(positions)
    assert text.index("emotion") < text.index("affect") < text.index("asr") < text.index("gender")
    assert "0.958" in text and "0.917" in text


def test_table_of_the_written_report_is_the_same(tmp_path: Path) -> None:
    report = make_report(make_results())
    write_report(tmp_path, report, make_results(), SPECS)
    assert rendered(json.loads((tmp_path / "report.json").read_text())) == rendered(report)


def test_table_says_speaker_overlap() -> None:
    assert "speaker overlap" in rendered(make_report(make_results(), overlap=True))
    assert "speaker overlap" in rendered(make_report(make_results()) | {"split": "train"})


def test_table_of_another_corpus_may_lack_the_main_task() -> None:
    results = [
        UtteranceResult(
            "made/1",
            "made",
            None,
            {},
            1.0,
            {"emotion": TaskResult(None, "anger", None, None), "asr": TaskResult("a", "b", None, 1.0)},
        )
    ]
    report = build_report((EMOTION, ASR), "emotion", results, split="test", protocol={"speaker_overlap": False}, run={})
    assert set(report["tasks"]) == {"asr"}
    assert "asr" in rendered(report)


# ---------------------------------------------------------------- figures


def test_figures_are_png_and_repeat(tmp_path: Path) -> None:
    drawn = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        confusion_figure(["anger", "a$b$"], [[3, 1], [0, 0]], folder / "confusion.png", "emotion, 100 $ test")
        ari_figure(["emotion", "asr"], [1, 2, 3], np.zeros((2, 3)), folder / "ari.png")
        curves_figure(metrics_lines(), folder / "curves.png")
        drawn.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {"confusion.png", "ari.png", "curves.png"}
    assert all(picture.startswith(PNG) for picture in drawn[0].values())


def test_large_confusion_is_drawn_without_names(tmp_path: Path) -> None:
    labels = [f"speaker{row}" for row in range(60)]
    confusion_figure(labels, np.eye(60, dtype=int).tolist(), tmp_path / "speakers.png", "speaker")
    assert (tmp_path / "speakers.png").read_bytes().startswith(PNG)


def test_curves_depend_on_every_kind_of_line(tmp_path: Path) -> None:
    lines = metrics_lines()
    pictures = set()
    for number, kept in enumerate((lines, [line for line in lines if "dev" not in line], lines[:-5])):
        curves_figure(kept, tmp_path / f"{number}.png")
        pictures.add((tmp_path / f"{number}.png").read_bytes())
    assert len(pictures) == 3


def test_curves_need_a_step(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="at least one training step, got 0 lines without"):
        curves_figure([], tmp_path / "curves.png")


def metrics_lines() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for stage in (1, 2):
        for step in range(1, 6):
            loss = 2.0 / step
            lines.append({"stage": stage, "step": step, "loss": loss, "losses": {"asr": loss, "emotion": None}})
        tasks = {"asr": {"cer": 0.5}, "emotion": {"ua": 0.5 + 0.1 * stage}}
        lines.append({"stage": stage, "step": 5, "dev": {"loss": 1.0, "tasks": tasks}})
    # A skipped step.
    lines.insert(3, {"stage": 1, "step": 6, "loss": float("nan"), "losses": {"asr": float("nan")}})
    return lines
