"""What `metaser predict` prints, read back."""

from __future__ import annotations

import csv
import io

import pytest

from launch.verbs.predict import _print_csv
from metaser.predict import FilePrediction
from metaser.tasks.spec import TaskSpec


def test_csv_holds_classes_and_files_of_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    labels = ("label", "probabilities", "text", "a,b\r", '"')
    spec = TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=labels)
    shares = {label: number / 16 for number, label in enumerate(labels)}
    said = FilePrediction("a\rb.wav", 1.5, {"emotion": {"label": "label", "probabilities": shares}})
    assert not _print_csv(iter([said]), [spec], per_window=False, with_text=False)
    header, row = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    assert len(set(header)) == len(header) == len(row)
    cells = dict(zip(header, row, strict=True))
    assert (cells["file"], cells["emotion.label"]) == ("a\rb.wav", "label")
    columns = ("probability.label", *labels[1:])
    assert {label: float(cells[f"emotion.{name}"]) for label, name in zip(labels, columns, strict=True)} == shares
