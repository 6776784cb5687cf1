"""Files of a run that are read back: no changed byte is believed where they are sealed, no value of another type."""

import json
import os
import shutil
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from metaser.config.load import load_experiment
from metaser.distributed import DistInfo
from metaser.environment import append_start
from metaser.errors import ConfigError, RunError
from metaser.eval.crossval import read_fold_report
from metaser.eval.metrics import task_metrics
from metaser.eval.predictions import read_predictions
from metaser.eval.report import build_report, read_report, write_report
from metaser.lines import parse_line
from metaser.record import DataRecord, read_material, read_record
from metaser.rundir import RunDir
from metaser.runfiles import read_json
from metaser.runlock import RunLock, last_holder, lock_holder
from metaser.sums import SUMS, is_as_sealed, is_sealed, sealed_json, sealed_yaml
from metaser.tasks.classification import ClassificationTask
from metaser.tasks.results import TaskResult, UtteranceResult
from metaser.tasks.spec import TaskSpec
from metaser.tracking import Tracker, read_metrics
from shards.files import file_sha256
from shards.kinship import Material

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)
_validate = TypeAdapter(dict[str, object]).validate_json


# ---------------------------------------------------------------- seals


@given(st.dictionaries(st.text().filter(lambda name: name != "sha256"), anything, min_size=1, max_size=4))
def test_what_is_sealed_is_read(values):
    text = sealed_json(values)
    assert is_as_sealed(text.encode())
    found = json.loads(text)
    assert is_sealed(found)
    digest = found.pop("sha256")
    assert found == values
    assert digest == sha256(json.dumps(values, indent=1, ensure_ascii=False).encode()).hexdigest()


@given(values=st.dictionaries(st.sampled_from("abc"), anything, min_size=1), data=st.data())
def test_no_changed_byte_of_what_is_sealed_is_believed(tmp_path_factory, values, data):
    path = tmp_path_factory.mktemp("sealed") / "data.json"
    content = bytearray(sealed_json(values).encode())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"data\.json is damaged: "):
        read_json(path, _validate)


@given(st.dictionaries(st.sampled_from("abc"), anything, min_size=1))
def test_what_is_sealed_is_not_believed_in_another_form(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("sealed") / "data.json"
    path.write_text(json.dumps(json.loads(sealed_json(values))))
    with pytest.raises(RunError, match=r"data\.json is damaged: it is not what its sha256 is of"):
        read_json(path, _validate)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": 1, "a": 2}', "it names a twice"),
        (b"[" * 100_000, "it is deeper than 64"),
        (b'{"a": "\\ud800"}', "it holds half a character"),
        (b'{"a": ' + b"9" * 5000 + b"}", "it holds a number of 5000 digits"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b'[{"time": "2', "Unterminated string"),
    ],
)
def test_json_that_no_run_writes(tmp_path, text, words):
    (tmp_path / "data.json").write_bytes(text)
    with pytest.raises(RunError, match=f"data.json is damaged: .*{words}"):
        read_json(tmp_path / "data.json", _validate)


EXPERIMENT = """
output_dir: x
data: {shards: y}
model: {coattention: {form: none}}
tasks: [{name: emotion, kind: classification}]
stages:
  - {name: first, train: [heads], weights: {emotion: 1}, num_steps: 10}
"""


@given(st.data())
def test_no_changed_byte_of_an_experiment_is_believed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    content = sealed_yaml(EXPERIMENT).encode()
    path.write_bytes(content)
    experiment = load_experiment(path)
    if data.draw(st.booleans()):
        changed = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        changed = content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]
    path.write_bytes(changed)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_experiment(path)
    path.write_bytes(content[content.index(b"\n") + 1 :])
    assert load_experiment(path) == experiment


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    run = RunDir(tmp_path)
    for path in (run.data, run.metrics, tmp_path / ".lock"):
        os.mkfifo(path)
    for read in (read_record, lock_holder, last_holder, lambda run: list(read_metrics(run.metrics))):
        with pytest.raises(RunError, match="it is a named pipe"):
            read(run)
    with pytest.raises(RunError, match="must be writable"):
        RunLock(run)


# ---------------------------------------------------------------- lines of metrics

BAD_LINES = {
    "stage: .*got '1'": {"stage": "1"},
    "stage: .*got 1.0": {"stage": 1.0},
    "stage: .*got True": {"stage": True},
    "stage: .*got 100000000000": {"stage": 10**18},
    "step: .*got -1": {"step": -1},
    "step: .*got 100000000000": {"step": 10**18},
    "loss: .*got 'low'": {"loss": "low"},
    "losses: .*got 3": {"losses": 3},
    "losses: asr: .*got None": {"losses": {"asr": None}},
    "dev: .*got 3": {"dev": 3},
    "dev: loss: .*got 'x'": {"dev": {"loss": "x"}},
    "dev: tasks: .*got 3": {"dev": {"tasks": 3}},
    "ua of emotion must be a number, got 'high'": {"dev": {"tasks": {"emotion": {"ua": "high"}}}},
    "ua of emotion must be a number, got True": {"dev": {"tasks": {"emotion": {"ua": True}}}},
    r"ua_interval_95 of emotion must be .*got \[1\]": {"dev": {"tasks": {"emotion": {"ua_interval_95": [1]}}}},
    "it holds a number of more than 20 digits": {"memory_gib": 10**399},
}


@pytest.mark.parametrize("words", BAD_LINES)
def test_a_line_with_values_of_other_kinds_ends_a_resumed_run_in_one_sentence(tmp_path, words):
    run = RunDir(tmp_path)
    good = {"stage": 1, "step": 1, "loss": 1.0}
    run.metrics.write_text(f"{json.dumps(good)}\n{json.dumps(good | BAD_LINES[words])}\n")
    before = run.metrics.read_bytes()
    with pytest.raises(
        RunError, match=f"^line 2 of .*metrics.jsonl is damaged: .*{words}.*; restore it or move it away$"
    ):
        Tracker(run, stage=1, step=1)
    assert run.metrics.read_bytes() == before
    assert not run.tensorboard.exists()


@given(st.dictionaries(st.text() | st.sampled_from(["stage", "step", "loss", "losses", "dev"]), anything))
def test_any_line_is_tracked_or_refused(tmp_path_factory, changes):
    run = RunDir(tmp_path_factory.mktemp("run"))
    run.metrics.write_text(json.dumps({"stage": 1, "step": 1, "loss": 1.0} | changes) + "\n")
    try:
        Tracker(run, stage=1, step=1).close()
    except RunError as error:
        assert str(error).isprintable()


def test_numbers_that_are_none_are_read_as_they_were_written():
    line = parse_line(b'{"stage": 1, "step": 1, "loss": NaN, "grad_norm": Infinity}', "here")
    assert line["grad_norm"] == float("inf")


# ---------------------------------------------------------------- reports

HEADER = "key,corpus,speaker,duration_s,mood.reference,mood.prediction,mood.probability.bad,mood.probability.good\n"
TASKS = (ClassificationTask(kind="classification", name="mood", labels=("bad", "good")),)
BAD_ROWS = {
    "no label of mood": "a,c,s,1,bad,dull,0.5,0.5\n",
    "sum to 1": "a,c,s,1,bad,bad,0.5,0.6\n",
    "must be 0 or more": "a,c,s,1,bad,bad,1.5,-0.5\n",
    "must be finite, got 'nan'": "a,c,s,1,bad,bad,nan,1\n",
    "must be finite, got 'inf'": "a,c,s,inf,bad,bad,0.5,0.5\n",
    "could not convert": "a,c,s,1,bad,bad,high,0.5\n",
    "has 5 cells, but the header": "a,c,s,1,bad\n",
    "key 'a' stands there twice": "a,c,s,1,bad,bad,0.5,0.5\na,c,s,1,bad,bad,0.5,0.5\n",
}


@pytest.mark.parametrize("words", BAD_ROWS)
def test_predictions_that_no_model_makes(tmp_path, words):
    path = tmp_path / "predictions.csv"
    path.write_text(HEADER + "z,c,s,1,bad,good,0.25,0.75\n")
    assert len(read_predictions(path, TASKS)[1]) == 1
    path.write_text(HEADER + BAD_ROWS[words])
    with pytest.raises(RunError, match=rf"predictions\.csv is damaged: .*{words}"):
        read_predictions(path, TASKS)


def test_predictions_that_are_gone_are_one_sentence(tmp_path):
    with pytest.raises(RunError, match=r"predictions\.csv is damaged: it is gone; evaluate the fold again"):
        read_predictions(tmp_path / "predictions.csv", TASKS)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a fold that was judged on one utterance."""
    run = RunDir(tmp_path_factory.mktemp("fold"))
    spec = TaskSpec(name="mood", kind="classification", fields=("mood",), labels=("bad", "good"))
    results = [
        UtteranceResult("a", "c", "s", {"corpus": "c"}, 1.0, {"mood": TaskResult("bad", "bad", (0.75, 0.25), 0.3)})
    ]
    protocol = {"speaker_overlap": False}
    whole = build_report([spec], "mood", results, split="test", protocol=protocol, run={"folder": "fold0", "seed": 0})
    write_report(run.report, whole, results, [spec])
    return run.report


@given(name=st.sampled_from(["report.json", "predictions.csv", SUMS]), data=st.data())
def test_no_changed_byte_of_a_report_is_believed(report, tmp_path_factory, name, data):
    run = RunDir(tmp_path_factory.mktemp("run"))
    shutil.copytree(report, run.report)
    read_fold_report(run)
    read_predictions(run.report / "predictions.csv", TASKS)
    content = bytearray((run.report / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (run.report / name).write_bytes(content)
    with pytest.raises(RunError, match=str(run.report)):
        read_fold_report(run), read_predictions(run.report / "predictions.csv", TASKS)
    if name == "report.json":
        with pytest.raises(RunError, match=str(run.report)):
            read_report(run.report)


def test_a_report_of_an_earlier_version_is_read_and_said(report, tmp_path, caplog):
    run = RunDir(tmp_path)
    shutil.copytree(report, run.report)
    (run.report / SUMS).unlink()
    read_fold_report(run)
    assert "cannot be checked" in caplog.text


# ---------------------------------------------------------------- records, reports


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"folders": [], "parts": [], "protocol": {"a": 1}}', "protocol in .*is damaged"),
        ('{"folders": [], "parts": 3, "protocol": {}}', "parts: "),
        (
            '{"folders": [], "parts": [{"corpus": "a", "split": "train", "num_utterances": -3, "duration_s": 1.0, '
            '"num_speakers": 1, "num_without_speaker": 0, "languages": {}, "styles": {}}], "protocol": {}}',
            "num_utterances: .*got -3",
        ),
    ],
)
def test_a_record_of_other_kinds_is_refused(tmp_path, text, words):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(RunError, match=words):
        read_record(RunDir(tmp_path))


@pytest.mark.parametrize("pid", ["-1", '"1"', "1.5", "true"])
def test_a_holder_that_is_no_process_is_refused(tmp_path, pid):
    (tmp_path / ".lock").write_text(f'{{"host": "a", "pid": {pid}}}')
    with pytest.raises(RunError, match=r"\.lock is damaged: pid: "):
        last_holder(RunDir(tmp_path))


def test_no_changed_byte_of_who_holds_the_lock_is_believed(tmp_path):
    run = RunDir(tmp_path)
    RunLock(run).release()
    path = tmp_path / ".lock"
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(RunError, match=r"\.lock is damaged: "):
            last_holder(run)


def test_the_list_of_starts_that_an_earlier_version_wrote_goes_on_sealed(tmp_path):
    run = RunDir(tmp_path)
    run.environment.write_text('[{"host": "first"}]')
    for _ in range(2):
        append_start(run, DistInfo(0, 1, 0), None)
    assert is_as_sealed(run.environment.read_bytes())
    first, *later = json.loads(run.environment.read_text())["starts"]
    assert first == {"host": "first"}
    assert len(later) == 2


def test_a_holder_s_words_are_shown_and_not_obeyed(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"host": "\x1b[2Jhost", "pid": 1}))
    assert str(last_holder(RunDir(tmp_path))) == r"process 1 on \x1b[2Jhost"


def test_another_record_of_what_was_trained_on_is_refused(tmp_path):
    run = RunDir(tmp_path)
    Material.nothing().write(run.trained_on)
    digest = file_sha256(run.trained_on)
    for known in ((), (digest,), ("0" * 64, digest)):
        assert len(read_material(run, DataRecord((), (), {}, None, known))) == 0
    with pytest.raises(RunError, match=r"trained_on\.parquet must have the sha256 that data\.json beside it says"):
        read_material(run, DataRecord((), (), {}, None, ("0" * 64,)))


def _answered(task, pairs):
    return [
        UtteranceResult(f"a/{number}", "a", f"s{number}", {}, 1.0, {task: TaskResult(*pair, None, None)})
        for number, pair in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("spec", "pairs", "reason"),
    [
        (TaskSpec(name="t", kind="regression", fields=("v",), labels=("v",)), [((1.0,), (0.5,))] * 3, "ccc_reason"),
        (TaskSpec(name="t", kind="ctc", fields=(), labels=("a",)), [("!", "a")] * 3, "wer_reason"),
    ],
)
def test_metrics_that_say_why_a_number_is_missing_are_read_back(tmp_path, spec, pairs, reason):
    metrics = task_metrics(spec, _answered("t", pairs))
    assert isinstance(metrics[reason], str)
    run = RunDir(tmp_path)
    run.metrics.write_text(json.dumps({"stage": 1, "step": 3, "dev": {"tasks": {"t": metrics}}}) + "\n")
    assert [line["dev"]["tasks"]["t"] for line in read_metrics(run.metrics)] == [json.loads(json.dumps(metrics))]
