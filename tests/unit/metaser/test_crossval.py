import csv
import json
import statistics

import pytest
from tinyruns import make_corpus

from metaser.errors import ConfigError, RunError
from metaser.eval.crossval import plan_folds, read_crossval, start_crossval, write_crossval

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
    run.metrics.write_text(json.dumps({"stage": len(plan.config.stages), "step": last.num_steps, "loss": 1.0}) + "\n")
    correct = sum(reference == prediction for reference, prediction in answers)
    task = {"num_utterances": len(answers), "wa": correct / len(answers), "ua": 0.5, "macro_f1": 0.25}
    report = {"tasks": {"emotion": task}, "protocol": {"speaker_overlap": False}}
    (run.report / "report.json").write_text(json.dumps(report))
    with (run.report / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        shares = [f"emotion.probability.{label}" for label in LABELS]
        writer.writerow(["key", "corpus", "speaker", "emotion.reference", "emotion.prediction", *shares])
        for number, (reference, prediction) in enumerate(answers):
            writer.writerow([f"tiny/{fold}-{number}", "tiny", f"s{fold}", reference, prediction, *[0.25] * 4])
        # Kept from the task by a filter, and without a label.
        writer.writerow([f"tiny/{fold}-a", "tiny", f"s{fold}", "", "", *[""] * 4])
        writer.writerow([f"tiny/{fold}-b", "tiny", f"s{fold}", "", "anger", *[0.25] * 4])


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
    assert pooled["ua_interval_95"] == [0.5, 0.5]
    assert json.loads((tmp_path / "runs/report/report.json").read_text()) == json.loads(json.dumps(report))
    assert "| 5 (tiny:s5) | 7 | 0.857 |" in (tmp_path / "runs/report/report.md").read_text()
    assert (tmp_path / "runs/report/confusion.png").is_file()


def test_another_experiment_in_the_same_folder_is_refused(corpus, tmp_path):
    start_crossval(plan_folds(corpus.experiment(tmp_path, LEAVE_ONE_OUT)))
    fourth = LEAVE_ONE_OUT.replace("speaker}", "speaker, fold: 4}")
    start_crossval(plan_folds(corpus.experiment(tmp_path / "fold4", fourth)))
    with pytest.raises(RunError, match="must hold the same cross-validation to go on with it"):
        start_crossval(plan_folds(corpus.experiment(tmp_path, LEAVE_ONE_OUT, "seed=1")))
