"""Trainings with every augmentation switched on."""

import pytest
from test_resume import assert_same_run, interrupted
from tinyruns import AUGMENTED, dev_metrics, error_line, losses, metaser

EXACT = ("model.encoder.dropout=0", "model.coattention.dropout=0", "model.head_dropout=0")
STILL = tuple(f"stages.{stage}.learning_rate={{encoder: 0, heads: 0, ari: 0}}" for stage in (0, 1))


@pytest.fixture(scope="module")
def augmented(corpus, tmp_path_factory):
    return corpus.train(tmp_path_factory.mktemp("augmented") / "run", *AUGMENTED)


def test_killed_and_started_again_it_goes_on_as_if_nothing_had_happened(corpus, augmented, tmp_path):
    interrupted(corpus, tmp_path / "run", 9, 2, overrides=AUGMENTED)
    assert_same_run(corpus.train(tmp_path / "run", *AUGMENTED), augmented)


def test_it_trains_on_other_audio_than_a_run_without(finished, augmented):
    assert not {line[2] for line in losses(finished)} & {line[2] for line in losses(augmented)}


@pytest.mark.reliability
def test_the_cut_into_micro_batches_changes_nothing_but_rounding(corpus, tmp_path):
    whole = corpus.train(tmp_path / "whole", *AUGMENTED, *EXACT, "data.max_micro_batch_s=30")
    parts = corpus.train(tmp_path / "parts", *AUGMENTED, *EXACT, "data.max_micro_batch_s=2")
    for ours, theirs in zip(losses(parts), losses(whole), strict=True):
        assert ours[2] == pytest.approx(theirs[2], rel=1e-4)
        assert ours[3] == pytest.approx(theirs[3], rel=1e-4, abs=1e-6)


def test_dev_and_test_are_not_augmented(corpus, tmp_path):
    """With learning rates of zero the weights stay, so that only what is heard could change the results."""
    plain = corpus.train(tmp_path / "plain", *STILL)
    noisy = corpus.train(tmp_path / "noisy", *STILL, *AUGMENTED)
    assert losses(plain) != losses(noisy)
    assert dev_metrics(plain) == dev_metrics(noisy)
    ours, theirs = ((run / "report/predictions.csv").read_bytes() for run in (plain, noisy))
    assert ours == theirs


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.1.augment.noise={probability: 1, folder: nowhere}", "but 'nowhere' does not exist"),
        ("data.max_micro_batch_s=0.85", "data.max_micro_batch_s must hold the longest clip at the slowest speed"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_the_first_step(corpus, tmp_path, override, words):
    run = tmp_path / "run"
    done = metaser("train", corpus.yaml, f"output_dir={run}", *AUGMENTED, override, folder=tmp_path)
    assert words in error_line(done)
    assert not (run / "metrics.jsonl").exists()
