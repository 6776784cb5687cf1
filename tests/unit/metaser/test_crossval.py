import csv
import json
import statistics

import pytest
from tinyruns import make_corpus

from launch.verbs.crossval import crossval
from metaser.errors import ConfigError, RunError
from metaser.eval.crossval import (
    check_crossval,
    fold_runs,
    plan_folds,
    read_crossval,
    read_fold_report,
    start_crossval,
    write_crossval,
)
from metaser.rundir import RunDir
from metaser.runlock import RunLock
from metaser.train.checks import check_folds
from shards.errors import SplitError

LEAVE_ONE_OUT = "data.splits=[{policy: leave_one_out, field: speaker}]"
LABELS = ("anger", "happiness", "neutral", "sadness")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("tiny"))


def finish_fold(plan, fold, answers):
    """Write what a finished fold leaves: its last step and its report, with `answers` of (reference, prediction)."""
    run = plan.run(fold)
    run.report.mkdir(parents=True)
    from metaser.config.load import dump_experiment

    run.config.write_text(dump_experiment(plan.experiment(fold)))
    last = plan.config.stages[-1]
    speed = {"loss": 1.0, "audio_s_per_s": 9.0, "step_s": 0.5}
    run.metrics.write_text(json.dumps({"stage": len(plan.config.stages), "step": last.num_steps, **speed}) + "\n")
    correct = sum(reference == prediction for reference, prediction in answers)
    task = {"num_utterances": len(answers), "wa": correct / len(answers), "ua": 0.5, "macro_f1": 0.25}
    protocol = {"speaker_overlap": False, "num_with_text": 4, "num_texts_in_training": 3}
    left_out = {"emotion": {"num_utterances": len(answers) + fold, "num_left_out": fold, "words": {"fear": fold}}}
    report = {"tasks": {"emotion": task}, "protocol": protocol, "left_out": left_out}
    (run.report / "report.json").write_text(json.dumps(report))
    with (run.report / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        shares = [f"emotion.probability.{label}" for label in LABELS]
        sides = [f"{task}.{side}" for task in ("emotion", "asr") for side in ("reference", "prediction")]
        writer.writerow(["key", "corpus", "speaker", "group.gender", *sides[:2], *shares, *sides[2:]])
        gender = ("female", "male")[fold % 2]
        for number, answer in enumerate(answers):
            who = [f"tiny/{fold}-{number}", "tiny", f"s{fold}", gender]
            writer.writerow([*who, *answer, 0.125, 0.5, 0.25, 0.125, "so be it", "So, be!"])
        # Kept from the task by a filter, and without a label.
        writer.writerow([f"tiny/{fold}-a", "tiny", f"s{fold}", gender, "", "", *[""] * 4, "", ""])
        writer.writerow([f"tiny/{fold}-b", "tiny", f"s{fold}", gender, "", "anger", *[0.25] * 4, "", "x"])


def test_folds_are_the_groups_of_the_first_rule_with_a_fold(corpus, tmp_path):
    plan = plan_folds(corpus.experiment(tmp_path / "runs", LEAVE_ONE_OUT))
    assert plan.groups == tuple(f"tiny:s{speaker}" for speaker in range(6))
    third = plan.experiment(3)
    assert third.output_dir == str(tmp_path / "runs/fold3")
    assert third.data.splits[0].fold == 3
    assert plan_folds(corpus.experiment(tmp_path / "runs/fold2", LEAVE_ONE_OUT)).root == tmp_path / "runs"


def test_an_experiment_without_folds_is_refused(corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"a rule with a `fold` in data\.splits .+, got stored"):
        plan_folds(corpus.experiment(tmp_path))


def test_a_rule_for_no_corpus_is_refused(corpus, tmp_path):
    with pytest.raises(ConfigError, match="must apply to one corpus, but applies to none of tiny"):
        plan_folds(corpus.experiment(tmp_path, "data.splits=[{policy: leave_one_out, corpus: other}]"))


def test_the_report_pools_all_folds_and_gives_mean_and_deviation(corpus, tmp_path):
    plan = plan_folds(corpus.experiment(tmp_path / "runs", LEAVE_ONE_OUT))
    start_crossval(plan)
    for fold in range(6):
        with pytest.raises(RunError, match=rf"but {6 - fold} of 6 are not: {fold}"):
            write_crossval(plan)
        answers = [("anger", "anger")] * (fold + 1) + [("sadness", "anger")]
        finish_fold(plan, fold, answers)
    report = write_crossval(read_crossval(tmp_path / "runs"))
    wa = [(fold + 1) / (fold + 2) for fold in range(6)]
    assert [fold["wa"] for fold in report["folds"]] == pytest.approx(wa)
    assert report["mean"]["wa"] == pytest.approx(statistics.fmean(wa))
    assert report["std"]["wa"] == pytest.approx(statistics.stdev(wa))
    pooled = report["tasks"]["emotion"]
    assert pooled["num_utterances"] == 21 + 6
    assert pooled["confusion"][0] == [21, 0, 0, 0]
    assert pooled["confusion"][3] == [6, 0, 0, 0]
    assert pooled["ua"] == 0.5
    assert report["protocol"]["speaker_overlap"] is False
    assert "18 of 24 utterances with a text (75%)" in report["protocol"]["notes"][0]
    assert pooled["ua_interval_95"][0] < 0.5 < pooled["ua_interval_95"][1]
    assert json.loads((tmp_path / "runs/report/report.json").read_text()) == json.loads(json.dumps(report))
    text = (tmp_path / "runs/report/report.md").read_text()
    assert "| 5 (tiny:s5) | 7 | 0.857 |" in text
    assert "emotion: 15 of 42 utterances are left out by labels: fear 15." in text
    assert report["tasks"]["asr"]["wer"] == pytest.approx(1 / 3)
    genders = report["groups"]["gender"]
    assert {name: group["num_utterances"] for name, group in genders.items()} == {"female": 12, "male": 15}
    with (tmp_path / "runs/report/predictions.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert {len(row) for row in rows} == {len(header)}
    assert len(rows) == 27 + 12
    shares = [row[header.index("emotion.probability.happiness")] for row in rows if row[0] == "tiny/3-1"]
    assert shares == ["0.5"]
    assert (tmp_path / "runs/report/confusion.png").is_file()
    for damage in (b"\x80\xff", b"key,corpus\na,b\n", None):
        path = tmp_path / "runs/fold2/report/predictions.csv"
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.raises(RunError, match=r"fold2/report/predictions.csv is damaged"):
            write_crossval(plan)


def test_folds_may_know_different_speakers(corpus, tmp_path):
    speakers = "tasks.3={name: speaker, kind: classification}"
    weights = ("stages.0.weights={asr: 1}", "stages.1.weights={emotion: 1}")
    plan = plan_folds(corpus.experiment(tmp_path / "runs", LEAVE_ONE_OUT, speakers, *weights))
    for fold in range(6):
        finish_fold(plan, fold, [("anger", "anger")])
        path = plan.run(fold).report / "predictions.csv"
        head, *rows = path.read_text().splitlines()
        more = ["speaker.reference,speaker.prediction", *(f"speaker.probability.s{fold + add}" for add in (1, 2))]
        path.write_text("\n".join([f"{head},{','.join(more)}", *(f"{row},,s{fold + 1},0.75,0.25" for row in rows)]))
    write_crossval(plan)
    with (tmp_path / "runs/report/predictions.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["key"] == "tiny/2-0")
    shares = {name[-2:]: share for name, share in row.items() if name.startswith("speaker.probability.")}
    assert shares == {f"s{number}": {3: "0.75", 4: "0.25"}.get(number, "0") for number in range(1, 8)}


ONLY_S2_IS_ANGRY = (
    "stages.1.filter=speaker == 'tiny:s2' or emotion != 'anger'",
    "tasks.0.labels=[anger, sadness, neutral, happiness]",
)


def test_folds_that_cannot_train_are_named_with_the_reason_before_any_starts(corpus, tmp_path):
    plan = plan_folds(corpus.experiment(tmp_path / "runs", LEAVE_ONE_OUT, *ONLY_S2_IS_ANGRY))
    words = (
        r"but 2 of 6 are not: fold 1 \(tiny:s1\): training must have utterances of every label of task 'emotion', but "
        r"has none of anger \(training has .+; dev has anger 2\).+; fold 2 \(tiny:s2\): .+; test has anger 2\)"
    )
    with pytest.raises(ConfigError, match=words):
        check_folds(plan)
    for cluster in (None, "absent.yaml"):
        with pytest.raises(ConfigError, match="2 of 6 are not"):
            overrides = [f"output_dir={tmp_path / 'runs'}", LEAVE_ONE_OUT, *ONLY_S2_IS_ANGRY]
            crossval.__wrapped__(str(corpus.yaml), overrides, None, cluster, cluster is not None)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["data.max_micro_batch_s=0.5"],
            r"6 of 6 are not: folds 0 .*data\.max_micro_batch_s must hold the longest clip",
        ),
        (["parallel.expected_num_processes=99"], r"each of the 99 processes needs an utterance"),
        (
            ["data.max_micro_batch_s=0.83", "stages.1.augment.speed={probability: 1, factors: [0.5]}"],
            r"longest clip at the slowest speed",
        ),
        (["data.window_s=0.1", "data.window_overlap_s=0", "stages.0.weights={asr: 1}"], r"every fold: .*needs train"),
    ],
)
def test_folds_are_checked_like_a_training(corpus, tmp_path, overrides, words):
    plan = plan_folds(corpus.experiment(tmp_path / "runs", LEAVE_ONE_OUT, *overrides))
    with pytest.raises(ConfigError, match=words):
        check_folds(plan)


def test_what_folds_leave_out_or_lack_is_said(corpus, tmp_path):
    overrides = ["tasks.0.labels=[anger, neutral]", "stages.1.filter=speaker != 'tiny:s4' or emotion != 'anger'"]
    plan = plan_folds(corpus.experiment(tmp_path, LEAVE_ONE_OUT, *overrides, "stages.1.weights={emotion: 1}"))
    notes = check_folds(plan)
    assert notes[0].startswith("every fold: emotion: ")
    assert "are left out by labels: " in notes[0]
    assert any(note.startswith("fold 4 (tiny:s4): emotion: the test set (") for note in notes)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("num_dev_groups: 99", "leaving out one speaker for test and 99 for dev leaves none of the 6 of corpus 'tiny'"),
        ("field: session", "needs session for every utterance of corpus 'tiny', but 36 of 36 have none"),
    ],
)
def test_a_rule_that_no_fold_can_follow_is_refused(corpus, tmp_path, rule, words):
    with pytest.raises(SplitError, match=words):
        plan_folds(corpus.experiment(tmp_path / "runs", f"data.splits=[{{policy: leave_one_out, {rule}}}]"))
    assert not (tmp_path / "runs").exists()


def test_the_plan_may_change_until_a_fold_has_started_or_waits(corpus, tmp_path):
    first = plan_folds(corpus.experiment(tmp_path, LEAVE_ONE_OUT))
    start_crossval(first)
    fourth = LEAVE_ONE_OUT.replace("speaker}", "speaker, fold: 4}")
    same = plan_folds(corpus.experiment(tmp_path / "fold4", fourth))
    other = plan_folds(corpus.experiment(tmp_path, LEAVE_ONE_OUT, "seed=1"))
    first.run(2).jobs.mkdir(parents=True)
    check_crossval(other)
    check_crossval(same, is_queued=True)
    with pytest.raises(RunError, match="must hold the same cross-validation to go on with it"):
        check_crossval(other, is_queued=True)
    first.run(2).config.touch()
    check_crossval(same)
    with pytest.raises(RunError, match="must hold the same cross-validation to go on with it"):
        check_crossval(other)


@pytest.mark.parametrize("state", ["started", "submitted", "in training"])
def test_the_folder_of_a_run_takes_no_cross_validation(corpus, tmp_path, state):
    run = RunDir(tmp_path)
    run.jobs.mkdir()
    if state == "started":
        run.config.touch()
    elif state == "submitted":
        run.submissions.write_text("[]")
    lock = RunLock(run) if state == "in training" else None
    with pytest.raises(RunError, match=r"must have a folder of its own, but .+ holds a run"):
        check_crossval(plan_folds(corpus.experiment(tmp_path, LEAVE_ONE_OUT)))
    if lock is not None:
        lock.release()


def test_the_folder_of_a_cross_validation_takes_no_run(corpus, tmp_path):
    start_crossval(plan_folds(corpus.experiment(tmp_path, LEAVE_ONE_OUT)))
    with pytest.raises(RunError, match=r"must have a folder of its own, but .+ holds a cross-validation"):
        RunLock(RunDir(tmp_path))
    RunLock(RunDir(tmp_path / "fold0")).release()


def test_only_folders_of_folds_are_folds(tmp_path):
    for name in ("fold10", "fold2", "fold0_backup", "fold", "fold02", "fold-1", "folds"):
        (tmp_path / name).mkdir()
    (tmp_path / "fold3").touch()
    assert {fold: run.root.name for fold, run in fold_runs(tmp_path).items()} == {2: "fold2", 10: "fold10"}


def damaged_plans(text):
    good = json.loads(text)
    return [
        b"",
        b"{",
        b"[]",
        b"\x80\x04\x95",
        b'{"rule": 0}',
        *(
            json.dumps({**good, **change}).encode()
            for change in (
                {"rule": 7},
                {"rule": -1},
                {"groups": 3},
                {"groups": []},
                {"experiment": 3},
                {"experiment": "seed: x"},
            )
        ),
    ]


def test_a_damaged_plan_is_one_sentence(corpus, tmp_path):
    plan = plan_folds(corpus.experiment(tmp_path, LEAVE_ONE_OUT))
    start_crossval(plan)
    path = tmp_path / "crossval.json"
    for data in damaged_plans(path.read_text()):
        path.write_bytes(data)
        for action in (lambda: read_crossval(tmp_path), lambda: check_crossval(plan)):
            with pytest.raises((RunError, ConfigError), match=r"crossval\.json (is damaged|has \d+ problem)"):
                action()
        assert path.read_bytes() == data


@pytest.mark.parametrize("data", ["{", "{}", '{"tasks": {}, "protocol": {}}', '{"tasks": 3}'])
def test_a_damaged_report_of_a_fold_is_one_sentence(tmp_path, data):
    run = RunDir(tmp_path)
    run.report.mkdir()
    (run.report / "report.json").write_text(data)
    with pytest.raises(RunError, match=r"report\.json is damaged"):
        read_fold_report(run)
