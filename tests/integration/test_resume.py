"""Interrupted at any time and started again, a run gives the numbers of one that nothing interrupted."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tinyruns import ALONE, TIMEOUT_S, dev_metrics, error_line, losses, metaser, num_lines, started, wait_until

import metaser.train.run as training
import metaser.train.selected as selected
from metaser.errors import RunError, TrainingError
from metaser.rundir import step_folder
from metaser.tracking import read_metrics
from metaser.train.checkpoint import newest_checkpoint, read_checkpoint, save_checkpoint

NUM_LINES = 16
"""Of an uninterrupted run: 12 steps and 4 evaluations."""


def train_until(config, line, signal_number):
    """Train in this process and send it `signal_number` as soon as `line` lines of metrics are written."""
    lines = []

    def on_metrics(metrics):
        lines.append(metrics)
        if len(lines) == line:
            os.kill(os.getpid(), signal_number)

    training.train(config, ALONE, on_metrics=on_metrics)


def interrupted(corpus, run, *lines, signal_number=signal.SIGKILL, overrides=()):
    """Start `run` once for each of `lines`, and interrupt it when it has written so many more lines."""
    for line in lines:
        with started(train_until, corpus.experiment(run, *overrides), line, signal_number) as process:
            process.join(TIMEOUT_S)
            assert process.exitcode == (-signal.SIGKILL if signal_number == signal.SIGKILL else 0)
    return run


def tensorboard_scalars(run):
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_same_run(ours, expected):
    assert losses(ours) == losses(expected)
    assert dev_metrics(ours) == dev_metrics(expected)
    assert (ours / "best/model.safetensors").read_bytes() == (expected / "best/model.safetensors").read_bytes()
    mine, theirs = (json.loads((run / "report/report.json").read_text())["tasks"] for run in (ours, expected))
    assert mine == theirs
    counts = Counter((line["stage"], line["step"], "dev" in line) for line in _metrics(ours))
    assert set(counts.values()) == {1}
    found = tensorboard_scalars(ours)
    assert found.keys() == tensorboard_scalars(expected).keys()
    for stage, first in ((1, 1), (2, 7)):
        assert [step for step, _ in found[f"stage{stage}/loss"]] == list(range(first, first + 6))
        in_file = [loss for number, _, loss, _ in losses(ours) if number == stage]
        assert [value for _, value in found[f"stage{stage}/loss"]] == pytest.approx(in_file, rel=1e-6)
        assert [step for step, _ in found[f"stage{stage}/dev/loss"]] == [first + 2, first + 5]


def _metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


DRAWN = random.Random(7).randint(1, NUM_LINES)


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param((1,), id="before-any-checkpoint"),
        pytest.param((8,), id="stage-boundary", marks=pytest.mark.reliability),
        pytest.param((9, 2), id="second-stage-twice"),
        pytest.param((NUM_LINES,), id="before-the-report"),
        pytest.param((DRAWN,), id=f"drawn-{DRAWN}", marks=pytest.mark.reliability),
    ],
)
def test_killed_and_started_again_it_goes_on_as_if_nothing_had_happened(corpus, finished, tmp_path, lines):
    interrupted(corpus, tmp_path / "run", *lines)
    assert not (tmp_path / "run/report/report.json").exists()
    assert_same_run(corpus.train(tmp_path / "run"), finished)


def test_killed_from_outside_at_random_moments(corpus, finished, tmp_path):
    run, generator = tmp_path / "run", random.Random(3)
    for _ in range(4):
        seen = num_lines(run / "metrics.jsonl")
        with started(training.train, corpus.experiment(run), ALONE) as process:
            wait_until(lambda seen=seen: num_lines(run / "metrics.jsonl") != seen or not process.is_alive(), "a step")
            process.join(generator.uniform(0, 0.15))
    assert_same_run(corpus.train(run), finished)


def test_with_reader_processes_too(corpus, finished, tmp_path):
    workers = ("data.num_workers=2",)
    interrupted(corpus, tmp_path / "run", 5, overrides=workers)
    assert_same_run(corpus.train(tmp_path / "run", *workers), finished)


@pytest.mark.parametrize(
    "name", ["SIGUSR2", *(pytest.param(name, marks=pytest.mark.reliability) for name in ("SIGTERM", "SIGUSR1"))]
)
def test_asked_to_stop_it_saves_exits_with_0_and_goes_on_later(corpus, finished, tmp_path, name):
    run = interrupted(corpus, tmp_path / "run", 5, signal_number=signal.Signals[name])
    last_step = losses(run)[-1][1]
    assert newest_checkpoint(run / "stage1/checkpoints").state.step == last_step == 5
    assert f"stopped by {name} and saved; start again to continue" in (run / "train.log").read_text()
    assert_same_run(corpus.train(run), finished)


def test_the_command_stops_on_sigterm_to_its_whole_job(corpus, tmp_path):
    run = tmp_path / "run"
    command = [Path(sys.executable).with_name("metaser"), "train", corpus.yaml, f"output_dir={run}"]
    overrides = ["stages.0.num_steps=100000", "stages.0.eval_every_steps=100000", "data.num_workers=1"]
    with subprocess.Popen([*command, *overrides], stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            wait_until(lambda: num_lines(run / "metrics.jsonl") > 3 or process.poll() is not None, "four steps")
            os.killpg(process.pid, signal.SIGTERM)
            _, said = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert "stopped by SIGTERM and saved" in said
    assert newest_checkpoint(run / "stage1/checkpoints").state.step == len(losses(run))


@pytest.mark.parametrize("damage", ["changed", "never renamed"])
def test_a_torn_checkpoint_is_passed_over(corpus, finished, tmp_path, damage, caplog):
    run = interrupted(corpus, tmp_path / "run", 7)
    torn = newest_checkpoint(run / "stage1/checkpoints").path
    weights = torn / "model.safetensors"
    if damage == "changed":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    else:
        torn.rename(torn.with_name(f".{torn.name}.tmp"))
    before = newest_checkpoint(run / "stage1/checkpoints")
    assert before.path < torn
    caplog.clear()
    assert_same_run(corpus.train(run), finished)
    assert (f"passing over an incomplete checkpoint: {torn}" in caplog.text) == (damage != "never renamed")
    assert not list(run.rglob("*.tmp"))


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(corpus, tmp_path):
    run = interrupted(corpus, tmp_path / "run", 7)
    metrics = (run / "metrics.jsonl").read_bytes()
    for weights in run.glob("stage*/checkpoints/step-*/model.safetensors"):
        weights.write_bytes(b"")
    with pytest.raises(RunError, match=r"has 2 checkpoints, but none is complete \(newest: .*step-00000\d.\); put one"):
        corpus.train(run)
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_optimizer_state_of_another_shape_is_refused(corpus, tmp_path):
    run = interrupted(corpus, tmp_path / "run", 7)
    newest = newest_checkpoint(run / "stage1/checkpoints")
    optimizer = {name: value.reshape(-1)[:1].clone() for name, value in newest.optimizer_tensors().items()}
    save_checkpoint(newest.path.parent, newest.model_tensors(), optimizer, newest.state)
    with pytest.raises(TrainingError, match="must hold optimizer state for exactly the parameters"):
        corpus.train(run)


def test_killed_between_saving_and_exporting_the_best_model(corpus, finished, tmp_path):
    """The second export of the second stage never happens; the restarted run must not keep the first."""
    select = ("stages.1.select=loss",)
    with started(train_and_die_exporting, corpus.experiment(tmp_path / "run", *select), 2) as process:
        process.join(TIMEOUT_S)
        assert process.exitcode == -signal.SIGKILL
    stale = (tmp_path / "run/best/model.safetensors").read_bytes()
    assert newest_checkpoint(tmp_path / "run/stage2/checkpoints").state.best_step == 6
    corpus.train(tmp_path / "run", *select)
    corpus.train(tmp_path / "whole", *select)
    exported = (tmp_path / "run/best/model.safetensors").read_bytes()
    assert exported == (tmp_path / "whole/best/model.safetensors").read_bytes()
    assert exported != stale


def train_and_die_exporting(config, number):
    export, calls = selected.export_model, []

    def export_or_die(*arguments, **options):
        calls.append(arguments)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        export(*arguments, **options)

    selected.export_model = export_or_die
    training.train(config, ALONE)


def test_a_full_disk_is_one_sentence_and_costs_nothing_but_time(corpus, finished, tmp_path):
    run = interrupted(corpus, tmp_path / "run", 5)
    done = metaser("train", corpus.yaml, f"output_dir={run}", folder=tmp_path, before=limit_file_size)
    assert "cannot be written: " in error_line(done)
    assert "earlier checkpoints are complete, free the disk and start again" in error_line(done)
    assert_same_run(corpus.train(run), finished)


def limit_file_size(num_bytes=40_000):
    """Let no file grow to the size of a checkpoint's, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def test_a_disk_that_fills_up_while_numbers_are_written_is_one_sentence(corpus, tmp_path):
    run = tmp_path / "run"
    long = ("stages.0.num_steps=3000", "stages.0.eval_every_steps=3000", "stages.0.save_every_steps=20")
    limit = partial(limit_file_size, 150_000)
    done = metaser("train", corpus.yaml, f"output_dir={run}", *long, folder=tmp_path, before=limit)
    assert re.search(r"(metrics\.jsonl|tensorboard) cannot be written: .*File too large", error_line(done))
    assert 20 <= newest_checkpoint(run / "stage1/checkpoints").state.step < 3000


def test_a_best_model_that_cannot_be_written_is_one_sentence(corpus, finished, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".best.tmp").write_text("in the way")
    said = error_line(metaser("train", corpus.yaml, f"output_dir={run}", folder=tmp_path))
    assert f"{run / 'best'} cannot be written: " in said
    assert newest_checkpoint(run / "stage2/checkpoints").state.step == 3
    (run / ".best.tmp").unlink()
    assert_same_run(corpus.train(run), finished)


def test_asked_to_stop_in_an_evaluation_it_stops_before_its_end(corpus, finished, tmp_path):
    run = interrupted(corpus, tmp_path / "run", 3, signal_number=signal.SIGTERM)
    assert dev_metrics(run) == []
    state = newest_checkpoint(run / "stage1/checkpoints").state
    assert (state.step, state.evaluated_step) == (3, 0)
    assert_same_run(corpus.train(run), finished)


def test_asked_to_stop_in_the_last_report_it_stops_before_its_end(corpus, finished, tmp_path):
    run = interrupted(corpus, tmp_path / "run", NUM_LINES, signal_number=signal.SIGTERM)
    assert not (run / "report/report.json").exists()
    assert_same_run(corpus.train(run), finished)


def test_averaged_weights_go_on_too_and_are_what_is_judged(corpus, tmp_path):
    average = ("stages.0.ema_decay=0.7", "stages.1.ema_decay=0.7")
    whole = corpus.train(tmp_path / "whole", *average)
    interrupted(corpus, tmp_path / "run", 5, 5, overrides=average)
    assert_same_run(corpus.train(tmp_path / "run", *average), whole)
    last = newest_checkpoint(whole / "stage2/checkpoints")
    best = read_checkpoint(step_folder(whole / "stage2/checkpoints", last.state.best_step))
    exported = load_file(whole / "best/model.safetensors")
    average, weights = best.average_tensors(), best.model_tensors()
    name = "encoder.layers.0.up.weight"
    assert torch.equal(exported[name], average[name])
    assert not torch.equal(average[name], weights[name])
    assert exported.keys() == weights.keys()


def test_float16_goes_on_with_its_loss_scale(corpus, tmp_path):
    overflowing = ("parallel.precision=fp16", "stages.0.weights.asr=10")
    whole = corpus.train(tmp_path / "whole", *overflowing)
    scales = [line.get("loss_scale") for line in read_metrics(whole / "metrics.jsonl")]
    interrupted(corpus, tmp_path / "run", 2, overrides=overflowing)
    assert_same_run(corpus.train(tmp_path / "run", *overflowing), whole)
    assert [line.get("loss_scale") for line in read_metrics(tmp_path / "run/metrics.jsonl")] == scales
    assert len({scale for scale in scales if scale is not None}) > 2


def test_the_same_seed_twice_gives_the_same_run_and_another_seed_another(corpus, finished, tmp_path):
    assert_same_run(corpus.train(tmp_path / "again"), finished)
    other = corpus.train(tmp_path / "other", "seed=1")
    assert not {line[2] for line in losses(other)} & {line[2] for line in losses(finished)}


def test_resume_never_refuses_a_started_run(corpus, finished):
    with pytest.raises(RunError, match=r"--resume never needs an empty run folder, but '.*/run' already holds a run"):
        training.train(corpus.experiment(finished), ALONE, resume="never")


def test_another_experiment_is_refused_naming_every_change(corpus, finished):
    before = (finished / "config.yaml").read_text()
    with pytest.raises(RunError) as refused:
        corpus.train(finished, "seed=5", "stages.0.num_steps=5", "model.encoder.width=24")
    for change in ("seed from 0 to 5", "stages.0.num_steps from 6 to 5", "model.encoder.width from 16 to 24"):
        assert change in str(refused.value)
    assert (finished / "config.yaml").read_text() == before


def test_more_steps_are_accepted_and_go_on_from_the_last(corpus, finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    corpus.train(run, "stages.1.num_steps=9")
    assert losses(run)[:12] == losses(finished)
    assert [line[:2] for line in losses(run)[12:]] == [(2, 7), (2, 8), (2, 9)]


def test_more_steps_are_refused_for_a_stage_that_others_have_built_on(corpus, finished):
    with pytest.raises(RunError, match=r"stages.0.num_steps from 6 to 9"):
        corpus.train(finished, "stages.0.num_steps=9")


def test_a_finished_run_started_again_changes_nothing(corpus, finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    assert_same_run(corpus.train(run), finished)


def test_a_run_in_use_is_refused_naming_who_uses_it(corpus, tmp_path):
    run, overrides = tmp_path / "run", ("stages.0.num_steps=100000", "stages.0.eval_every_steps=100000")
    with started(training.train, corpus.experiment(run, *overrides), ALONE) as process:
        wait_until(lambda: num_lines(run / "metrics.jsonl") > 0, "a step")
        with pytest.raises(RunError, match=rf"is in use by process {process.pid} on .+; stop it"):
            corpus.train(run, *overrides)
        assert process.is_alive()
    with started(training.train, corpus.experiment(run, *overrides), ALONE) as process:
        seen = (run / "environment.json").read_text()
        wait_until(lambda: (run / "environment.json").read_text() != seen, "the killed run's lock is free")
