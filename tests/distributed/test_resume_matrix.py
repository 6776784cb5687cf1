"""Interrupted anywhere, by anything, spread in any way, a run goes on as if nothing had happened."""

import itertools
import json
import os
import signal
from collections import Counter

import pytest
from tinyruns import EXACT, dev_metrics, losses, num_lines, ranks, train_ranks

from metaser.distributed import dist_info
from metaser.train.run import train

SPREAD = {"single": 1, "ddp": 2, "zero2": 2, "zero3": 2}
MOMENTS = {"mid-epoch": 6, "epoch boundary": 4, "stage boundary": 8}
"""The line of metrics.jsonl after which the run is interrupted; a stage has six steps of three an epoch, and writes its
evaluations after the third and the last."""
SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
WORKERS = (0, 2)
MATRIX = list(itertools.product(SPREAD, MOMENTS, SIGNALS, WORKERS))
PAIRWISE = [
    (spread, moment, list(SIGNALS)[(i + j) % 2], WORKERS[(i // 2 + j) % 2])
    for (i, spread), (j, moment) in itertools.product(enumerate(SPREAD), enumerate(MOMENTS))
]


def names(case):
    return "-".join(str(part).replace(" ", "") for part in case)


CASES = [
    pytest.param(case, id=names(case), marks=pytest.mark.distributed if case in PAIRWISE else pytest.mark.reliability)
    for case in MATRIX
]


@pytest.mark.distributed
def test_the_cases_run_each_time_cover_all_pairs():
    for first, second in itertools.combinations(range(4), 2):
        assert {(case[first], case[second]) for case in PAIRWISE} == {(case[first], case[second]) for case in MATRIX}


def overrides_of(spread, workers):
    return (f"parallel.strategy={spread}", f"data.num_workers={workers}", "log_keys=true", "data.max_micro_batch_s=2")


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """Return a function that trains once in each way and returns the run's folder."""
    runs = {}

    def run_of(spread):
        if spread not in runs:
            folder = tmp_path_factory.mktemp(spread) / "run"
            runs[spread] = train_ranks(SPREAD[spread], corpus.yaml, folder, *overrides_of(spread, 0))
        return runs[spread]

    return run_of


def train_until(config, line, number):
    """Train in this process; the main one sends itself signal `number` when `line` lines of metrics are written."""
    lines = []

    def on_metrics(metrics):
        lines.append(metrics)
        if len(lines) == line:
            os.kill(os.getpid(), number)

    train(config, dist_info(), on_metrics=on_metrics)


def keys_by_step(run):
    """Return the keys that all processes together read in each (stage, step)."""
    found = {}
    for path in sorted((run / "keys").glob("rank-*.jsonl")):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            found.setdefault((line["stage"], line["step"]), []).extend(line["keys"])
    return {position: sorted(keys) for position, keys in found.items()}


def assert_no_utterance_is_lost_or_repeated(run, expected):
    ours = keys_by_step(run)
    assert ours == keys_by_step(expected)
    for stage in (1, 2):
        for epoch in (0, 1):
            steps = range(3 * epoch + 1, 3 * epoch + 4)
            counts = Counter(key for step in steps for key in ours[stage, step])
            assert set(counts.values()) == {1}
            assert len(counts) == 24


def assert_same_run(run, expected, *, rel):
    """Compare to the last bit for `rel` 0."""
    if rel == 0:
        assert losses(run) == losses(expected)
        assert dev_metrics(run) == dev_metrics(expected)
        assert (run / "best/model.safetensors").read_bytes() == (expected / "best/model.safetensors").read_bytes()
        return
    assert [line[:2] for line in losses(run)] == [line[:2] for line in losses(expected)]
    assert [line[:2] for line in dev_metrics(run)] == [line[:2] for line in dev_metrics(expected)]
    for ours, theirs in zip(losses(run), losses(expected), strict=True):
        assert ours[2] == pytest.approx(theirs[2], rel=rel)


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(corpus, undisturbed, tmp_path, case):
    spread, moment, name, workers = case
    run, count = tmp_path / "run", SPREAD[spread]
    expected = undisturbed(spread)
    config = corpus.experiment(run, *overrides_of(spread, workers))
    with ranks(count, train_until, config, MOMENTS[moment], SIGNALS[name], folder=tmp_path / "said") as job:
        codes = job.join()
    if name == "SIGTERM":
        assert codes == [0] * count, job.said()
    else:
        assert codes[0] == -signal.SIGKILL, job.said()
        assert set(codes[1:]) <= {2}, job.said()
    assert num_lines(run / "metrics.jsonl") < num_lines(expected / "metrics.jsonl")
    train_ranks(count, corpus.yaml, run, *overrides_of(spread, workers))
    assert_same_run(run, expected, rel=1e-5 if spread.startswith("zero") else 0)
    assert_no_utterance_is_lost_or_repeated(run, expected)


@pytest.mark.distributed
def test_no_utterance_is_lost_or_repeated_on_another_number_of_processes(corpus, undisturbed, tmp_path):
    run = tmp_path / "run"
    config = corpus.experiment(run, *EXACT, *overrides_of("ddp", 0))
    with ranks(2, train_until, config, 5, signal.SIGTERM, folder=tmp_path / "said") as job:
        assert job.join() == [0, 0], job.said()
    train_ranks(3, corpus.yaml, run, *EXACT, *overrides_of("ddp", 0))
    assert_no_utterance_is_lost_or_repeated(run, undisturbed("ddp"))
