"""Words of a corpus, of a configuration and of file names do nothing where they are shown."""

import csv
import json
import re
from pathlib import Path

import pytest
import soundfile as sf
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tinyruns import EXPERIMENT, clip, error_line, metaser
from tones import Tone, pack_items

from metaser.eval.predictions import read_predictions
from metaser.tasks.classification import ClassificationTask
from shards.shown import shown

WORDS = (
    "\x1b[2J\x1b[31mRED",
    "a|b\n## Injected",
    "<script>alert(1)</script>",
    '=HYPERLINK("http://e")',
    "[bold]x[/bold][link=http://e]y[/link]",
    "\u202eevil\x9b31m\u2028",
    ":smile: $x^$ &lt;",
    "[click](http://e) `code` *x*",
)
TASK = "mood"
STAGE = "last\x1b[2J\n## Injected [red]"


def clips():
    for number in range(36):
        word = WORDS[number // 6 % 4 + 4 * (number % 2)]
        changes = {"extra": {"mood": word}, "language": "de", "speaker": f"{WORDS[number % 6]}{number % 6}"}
        yield clip(number, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    summary = pack_items(list(clips()), folder / "shards <b>|[red]", shard_utterances=20)
    assert summary.num_utterances == 36
    tree = yaml.safe_load(EXPERIMENT)
    tree["data"]["shards"] = str(folder / "shards <b>|[red]")
    tree["tasks"] = [
        {"name": TASK, "kind": "classification", "field": "extra.mood", "labels": "all"},
        {"name": "asr", "kind": "ctc"},
    ]
    tree["stages"] = [{**tree["stages"][1], "name": STAGE, "weights": {TASK: 1, "asr": 0.1}, "select": "loss"}]
    tree["main_task"] = TASK
    path = folder / "words.yaml"
    path.write_text(yaml.safe_dump(tree))
    run = folder / "run <b>|[red]"
    done = metaser("train", path, f"output_dir={json.dumps(str(run))}", "stages.0.num_steps=3", folder=folder)
    assert done.returncode == 0, done.stderr
    return run, done


def check_lines(text: str, *, holds_words: bool = True) -> None:
    """Refuse anything that a terminal obeys; what looks like rich's markup must stand there as it is."""
    for line in text.split("\n"):
        assert shown(line) == line
        assert not line.startswith("## Injected")
    if holds_words:
        assert "[bold]x[/bold]" in text


def check_markdown(text: str) -> None:
    check_lines(text, holds_words=False)
    assert not re.search(r"(?<!\\)<(script|b)", text)
    assert not re.search(r"(?<!\\)\[click", text)
    assert re.search(r"\\\[click", text)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({re.sub(r"\\.", "", row).count("|") for row in table.splitlines()}) == 1


def test_a_training_shows_them_and_obeys_none(trained):
    run, done = trained
    check_lines(done.stdout)
    check_lines(done.stderr, holds_words=False)
    check_lines((run / "train.log").read_text(), holds_words=False)
    check_lines((run / "config.yaml").read_text(), holds_words=False)
    check_lines((run / "report/report.json").read_text(), holds_words=False)
    check_markdown((run / "report/report.md").read_text())
    check_markdown((run / "best/README.md").read_text())
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    check_lines("\n".join(events.Tags()["scalars"]), holds_words=False)
    header = (run / "best/README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(header)["language"] == ["de"]


def test_predictions_hold_no_formula_and_read_back(trained):
    run, _ = trained
    path = run / "report/predictions.csv"
    with path.open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r") and not re.fullmatch(r"-?[\d.e-]+", cell)]
    assert "\x1b" not in path.read_text() and "\u202e" not in path.read_text()
    tasks = [ClassificationTask(kind="classification", name=TASK, field="extra.mood", labels="all")]
    (spec,), results = read_predictions(path, tasks)
    assert set(spec.labels) == set(WORDS)
    assert {result.tasks[TASK].reference for result in results} <= set(WORDS)
    assert {result.speaker for result in results} == {f"tiny:{WORDS[5]}5"}


def test_every_verb_shows_them_as_they_are(trained, tmp_path):
    run, _ = trained
    shards = run.parent / "shards <b>|[red]"
    check_lines(metaser("inspect", shards, "--png", tmp_path / "png", folder=tmp_path).stdout)
    done = metaser("inspect", shards, "--json", folder=tmp_path)
    check_lines(done.stdout)
    assert f"tiny:{WORDS[0]}0" in json.loads(done.stdout)["speakers"]
    done = metaser("evaluate", run, folder=tmp_path)
    check_lines(done.stdout)
    done = metaser("evaluate", run, "--json", folder=tmp_path)
    check_lines(done.stdout)
    assert set(json.loads(done.stdout)["tasks"][TASK]["labels"]) == set(WORDS)
    done = metaser("status", run, tmp_path / WORDS[1], folder=tmp_path)
    check_lines(done.stdout + done.stderr, holds_words=False)
    assert "run <b>|[red]" in done.stdout
    check_lines(metaser("train", run / "config.yaml", "--print-config", folder=tmp_path).stdout, holds_words=False)


def test_files_of_any_name_are_predicted_and_shown(trained, tmp_path):
    run, _ = trained
    samples, rate_hz = Tone(300, 8000).load()
    files = [tmp_path / f"{word.replace('/', '')}.wav" for word in WORDS]
    for file in files:
        with file.open("wb") as opened:
            sf.write(opened, samples, rate_hz, format="WAV")
    files.append(tmp_path / f"missing {WORDS[0]}\n.wav")
    for output in ("table", "jsonl", "csv"):
        done = metaser("predict", run, *files, "--format", output, folder=tmp_path)
        assert done.returncode == 2, done.stderr
        check_lines(done.stderr, holds_words=False)
        if output != "csv":
            check_lines(done.stdout, holds_words=False)
        if output == "jsonl":
            assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == list(map(str, files))
    assert "\x1b" not in done.stdout
    with (tmp_path / "stdout.txt").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(files)


def test_what_is_wrong_with_them_is_one_line(tmp_path):
    for arguments in (
        ("predict", f"no{WORDS[1]}{WORDS[0]}", "x.wav"),
        ("inspect", f"no{WORDS[1]}{WORDS[5]}"),
        ("evaluate", f"no{WORDS[1]}"),
        ("status", f"no{WORDS[1]}"),
        ("train", f"no{WORDS[0]}\n.yaml"),
        ("pack", "csv", f"no{WORDS[0]}\n.csv", tmp_path / "out"),
        ("pack", f"co{WORDS[1]}", tmp_path, tmp_path / "out"),
    ):
        line = error_line(metaser(*arguments, folder=tmp_path))
        check_lines(line, holds_words=False)


def test_a_table_of_words_is_packed_and_told(tmp_path):
    rows = [["file", "speaker", "emotion", "text"]]
    for number, word in enumerate(WORDS):
        samples, rate_hz = Tone(300 + number, 8000).load()
        sf.write(tmp_path / f"{number}.wav", samples, rate_hz)
        rows.append([f"{number}.wav", word, word if number % 2 else "anger", word])
    rows.append([f"{WORDS[0]}.wav", "x", "anger", "x"])
    with Path(tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    command = ("pack", "csv", tmp_path / "t.csv", tmp_path / "out", "--workers", 1, "--on-bad", "skip")
    done = metaser(*command, folder=tmp_path)
    check_lines(done.stdout + done.stderr, holds_words=False)
    assert done.returncode == 0, done.stderr
    check_lines(metaser("inspect", tmp_path / "out", folder=tmp_path).stdout)
