"""Every strategy learns the same, moves the same parameters, and continues what another one has begun."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from tinyruns import EXACT, clip, dev_metrics, error_line, losses, metaser, ranks, train_ranks, write_experiment
from tones import pack_items

from metaser.config.schema import CoattentionConfig, ModelConfig, ParallelConfig, StageConfig
from metaser.distributed import dist_info
from metaser.errors import TrainingError
from metaser.model.metaser import build_model
from metaser.processes import Processes, choose_strategy
from metaser.tasks.spec import TaskSpec
from metaser.tracking import read_metrics
from metaser.train.build import build_engine
from metaser.train.checkpoint import newest_checkpoint
from metaser.train.optim import build_optimizer
from metaser.train.stage import freeze_all_but, select_parameters

pytestmark = pytest.mark.distributed

SPREAD = {
    "ddp": (2, ()),
    "zero1": (2, ()),
    "zero2": (2, ()),
    "zero3": (2, ()),
    "zero3-alone": (1, ("parallel.strategy=zero3",)),
    "zero2-offload": (2, ("parallel.strategy=zero2", "parallel.offload=cpu")),
    "zero3-offload": (2, ("parallel.strategy=zero3", "parallel.offload=cpu")),
    "zero2-micro-batches": (2, ("parallel.strategy=zero2", "data.max_micro_batch_s=1")),
    "zero3-recomputed": (2, ("parallel.strategy=zero3", "parallel.activation_checkpointing=true")),
    "zero1-extra": (2, ("parallel.strategy=zero1", "parallel.extra={zero_optimization: {reduce_bucket_size: 999}}")),
}
"""How many processes, and what changes beside the strategy that the name is."""
RARER = ("zero3-alone", "zero2-offload", "zero1-extra")


def overrides_of(name):
    return (*EXACT, *(SPREAD[name][1] or (f"parallel.strategy={name}",)))


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    return corpus.train(tmp_path_factory.mktemp("alone") / "run", *EXACT)


@pytest.fixture(scope="module")
def spread(corpus, tmp_path_factory):
    """Return a function that trains once in each way and returns the run's folder."""
    runs = {}

    def run_of(name):
        if name not in runs:
            runs[name] = train_ranks(
                SPREAD[name][0], corpus.yaml, tmp_path_factory.mktemp(name) / "run", *overrides_of(name)
            )
        return runs[name]

    return run_of


def assert_same_curve(run, expected, *, rel=1e-5):
    assert [line[:2] for line in losses(run)] == [line[:2] for line in losses(expected)]
    for ours, theirs in zip(losses(run), losses(expected), strict=True):
        assert ours[2] == pytest.approx(theirs[2], rel=rel)
        assert ours[3] == pytest.approx(theirs[3], rel=rel, abs=1e-7)
    for (*_, ours), (*_, theirs) in zip(dev_metrics(run), dev_metrics(expected), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=rel)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.reliability) if name in RARER else name for name in SPREAD]
)
def test_the_loss_curves_lie_on_each_other(alone, spread, name):
    assert_same_curve(spread(name), alone)


def distance(ours, theirs):
    """Return the norm of the difference over the norm of it all.

    The gradient of a key's bias is zero but for rounding, and Adam blows that up to whole steps.
    """
    assert ours.keys() == theirs.keys()
    names = [name for name in theirs if "k_proj.bias" not in name and theirs[name].is_floating_point()]
    difference = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in names)
    return math.sqrt(difference / sum(float(theirs[name].double().square().sum()) for name in names))


@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "zero3", "zero3-offload"])
def test_weights_and_optimizer_states_are_saved_whole_and_in_float32(alone, spread, name):
    for stage in (1, 2):
        folder = f"stage{stage}/checkpoints"
        ours, theirs = newest_checkpoint(spread(name) / folder), newest_checkpoint(alone / folder)
        for mine, expected in (
            (ours.model_tensors(), theirs.model_tensors()),
            (ours.optimizer_tensors(), theirs.optimizer_tensors()),
        ):
            assert {key: value.dtype for key, value in mine.items()} == {
                key: value.dtype for key, value in expected.items()
            }
            assert distance(mine, expected) < 1e-4
    ours, theirs = (json.loads((run / "report/report.json").read_text())["tasks"] for run in (spread(name), alone))
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "zero3"])
def test_learning_rates_and_weight_decay_depend_on_the_step_alone(alone, spread, name):
    def rates(run):
        return [line["lr"] for line in read_metrics(run / "metrics.jsonl") if "lr" in line]

    assert rates(spread(name)) == rates(alone)
    assert len({json.dumps(line) for line in rates(alone)}) >= 6


@pytest.mark.parametrize("name", ["single", "ddp", "zero1", "zero2", "zero3"])
def test_each_stage_moves_exactly_the_parameters_it_names(corpus, tmp_path, name):
    count = 1 if name == "single" else 2
    stages = (
        "stages.0.train=[encoder.layers.1-1, heads.asr]",
        "stages.1.train=[ari, coattention, heads.emotion]",
        # With decay a parameter would move without a gradient.
        "stages.0.weight_decay=0.1",
        "stages.0.save_every_steps=1",
        "checkpoints.keep_last=20",
        "stages.0.eval_every_steps=6",
        "stages.1.eval_every_steps=6",
        "stages.1.save_every_steps=1",
    )
    run = train_ranks(count, corpus.yaml, tmp_path / "run", f"parallel.strategy={name}", *stages)
    first = {step: load_file(run / f"stage1/checkpoints/step-{step:06d}/model.safetensors") for step in (1, 6)}
    second = load_file(run / "stage2/checkpoints/step-000006/model.safetensors")
    top = ("encoder.layers.1.", "encoder.final_norm.")
    assert moved(first[1], first[6]) == {key for key in first[1] if key.startswith((*top, "heads.asr."))}
    assert moved(first[6], second) == {
        key for key in second if key.startswith(("ari.", "coattention.", "heads.emotion."))
    }


def moved(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param(("ddp:2", "single:1", "ddp:2"), id="two-one-two"),
        pytest.param(("ddp:2", "zero2:2", "ddp:2"), id="ddp-zero2-ddp", marks=pytest.mark.reliability),
        pytest.param(("zero3:2", "ddp:3", "zero1:1", "zero3:2"), id="zero3-ddp-zero1-zero3"),
    ],
)
def test_another_strategy_and_number_of_processes_continues(corpus, alone, tmp_path, ways):
    """Each way does two of the second stage's steps."""
    run = tmp_path / "run"
    constant = ("stages.1.schedule={decay: constant, warmup_fraction: 0}", "stages.1.eval_every_steps=2")
    for number, way in enumerate(ways):
        strategy, count = way.split(":")
        steps = f"stages.1.num_steps={2 + 2 * number}"
        train_ranks(int(count), corpus.yaml, run, *EXACT, *constant, steps, f"parallel.strategy={strategy}")
    whole = corpus.train(tmp_path / "whole", *EXACT, *constant, f"stages.1.num_steps={2 * len(ways)}")
    assert_same_curve(run, whole, rel=1e-4)
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert [start["num_processes"] for start in starts] == [int(way.split(":")[1]) for way in ways]


def test_averaged_weights_are_judged_and_exported_whatever_the_strategy(corpus, tmp_path):
    average = ("stages.0.ema_decay=0.5", "stages.1.ema_decay=0.5")
    alone = corpus.train(tmp_path / "alone", *EXACT, *average)
    for strategy in ("zero1", "zero3"):
        run = train_ranks(2, corpus.yaml, tmp_path / strategy, *EXACT, *average, f"parallel.strategy={strategy}")
        assert_same_curve(run, alone)
        for name in ("stage2/checkpoints/step-000006/average.safetensors", "best/model.safetensors"):
            assert distance(load_file(run / name), load_file(alone / name)) < 1e-4


def test_steps_that_are_not_finite_are_skipped_alike_and_counted(tmp_path):
    """One clip's valence is so large that its squared error is infinite: its step is skipped, once an epoch."""
    clips = [clip(number, valence=1e30 if number == 8 else 0.5) for number in range(36)]
    pack_items(clips, tmp_path / "shards", shard_utterances=20)
    yaml = write_experiment(tmp_path / "tiny.yaml", tmp_path / "shards")
    affect = ("tasks.3={name: affect, kind: regression, fields: [valence]}", "stages.1.train=[heads.emotion]")
    affect += ("stages.0.weights={asr: 1.0, gender: 0.1, affect: 1.0}", "stages.1.weights={emotion: 1.0}")
    skipped = {}
    for strategy in ("single", "ddp", "zero2", "zero3"):
        count = 1 if strategy == "single" else 2
        run = train_ranks(count, yaml, tmp_path / strategy, *EXACT, *affect, f"parallel.strategy={strategy}")
        lines = [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line and line["stage"] == 1]
        skipped[strategy] = [line["num_skipped"] for line in lines]
        assert newest_checkpoint(run / "stage1/checkpoints").state.num_skipped == 2
    # Six steps of three an epoch.
    assert skipped["single"][2] == 1
    assert skipped["single"][5] == 2
    assert len(set(map(tuple, skipped.values()))) == 1, skipped


def loss_scales(run):
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    return [(line["loss_scale"], line["num_overflows"], line["num_skipped"]) for line in lines]


def test_float16_scales_the_loss_alike_whatever_the_strategy(corpus, tmp_path):
    # So heavy a loss overflows with the first scales. One process cuts a step otherwise, and so overflows at others.
    float16 = (*EXACT, "parallel.precision=fp16", "stages.0.weights.asr=10")
    spread = train_ranks(2, corpus.yaml, tmp_path / "ddp", *float16, "parallel.strategy=ddp")
    assert 1 < loss_scales(spread)[5][1] < 6
    expected = newest_checkpoint(spread / "stage1/checkpoints")
    for strategy in ("zero1", "zero2", "zero3"):
        run = train_ranks(2, corpus.yaml, tmp_path / strategy, *float16, f"parallel.strategy={strategy}")
        assert loss_scales(run) == loss_scales(spread)
        assert_same_curve(run, spread, rel=1e-2)
        saved = newest_checkpoint(run / "stage1/checkpoints")
        assert saved.state.loss_scale == expected.state.loss_scale
        assert distance(saved.model_tensors(), expected.model_tensors()) < 1e-2


def test_the_loss_scale_goes_on_under_another_strategy(corpus, tmp_path):
    float16 = (*EXACT, "parallel.precision=fp16", "stages.1.weights.asr=10", "stages.1.eval_every_steps=2")
    float16 += ("stages.1.schedule={decay: constant, warmup_fraction: 0}",)
    for number, strategy in enumerate(("zero2", "ddp", "zero3")):
        way = (f"stages.1.num_steps={2 + 2 * number}", f"parallel.strategy={strategy}")
        run = train_ranks(2, corpus.yaml, tmp_path / "run", *float16, *way)
    whole = train_ranks(2, corpus.yaml, tmp_path / "whole", *float16, "parallel.strategy=ddp")
    assert loss_scales(run) == loss_scales(whole)
    assert loss_scales(run)[-1][1] > 0


def build_spread(strategy):
    """In each process: a spread model whose optimizer must update the weights themselves."""
    processes = Processes(ParallelConfig(device="cpu", strategy=strategy), dist_info())
    specs = (TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("a", "b")),)
    stage = StageConfig(name="s", train=("encoder", "heads"), weights={"emotion": 1}, num_steps=1)
    model = build_model(ModelConfig(coattention=CoattentionConfig(form="none")), specs, "emotion")
    trainable = select_parameters(model, stage)
    freeze_all_but(model, trainable)
    engine = build_engine(processes, model, build_optimizer(model, trainable, stage), max_grad_norm=1.0)
    for flat in engine._flat_partitions():
        flat.data.fill_(7.0)
    held = [engine._storage(parameter) for parameter in engine.trainable.values()]
    numbers = [int((part == 7.0).sum()) for part in held]
    # Of ZeRO 1's whole weights a process updates its half.
    whole = sum(part.numel() for part in held)
    assert sum(numbers) >= (whole if strategy == "zero3" else whole // 2 - 2), (numbers, whole)
    processes.close()


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_zero_keeps_no_second_copy_of_the_weights(tmp_path, strategy):
    with ranks(2, build_spread, strategy, folder=tmp_path) as job:
        assert job.join() == [0, 0], job.said()


def test_a_single_process_is_not_several(corpus, tmp_path):
    with pytest.raises(TrainingError, match="'single' needs one process, but 2 were started"):
        choose_strategy(corpus.experiment(tmp_path, "parallel.strategy=single").parallel, 2)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("parallel.offload=cpu", "offload 'cpu' needs strategy 'zero2' or 'zero3', got 'auto'"),
        ("parallel.extra={a: 1}", "extra holds settings of DeepSpeed, which strategy 'auto' does not use, got ['a']"),
    ],
)
def test_settings_that_do_not_fit_are_refused(corpus, tmp_path, override, words):
    assert words in error_line(
        metaser("train", corpus.yaml, f"output_dir={tmp_path / 'run'}", override, folder=tmp_path)
    )


def test_extra_leaves_alone_what_metaser_decides(corpus, tmp_path):
    given = ("parallel.strategy=zero2", "parallel.extra={gradient_clipping: 3, zero_optimization: {stage: 1}}")
    said = error_line(metaser("train", corpus.yaml, f"output_dir={tmp_path / 'run'}", *given, folder=tmp_path))
    assert "must leave ['gradient_clipping', 'zero_optimization.stage'] alone" in said


def test_a_report_needs_no_deepspeed(spread, tmp_path):
    done = metaser("evaluate", spread("zero3"), "--json", folder=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads((spread("zero3") / "report/report.json").read_text())


def test_compiled_layers_compute_the_same_in_three_compilations(corpus, alone, tmp_path):
    run = train_ranks(
        1, corpus.yaml, tmp_path / "run", *EXACT, "parallel.compile_layers=true", "data.max_micro_batch_s=2"
    )
    assert_same_curve(run, alone, rel=1e-4)
    said = (tmp_path / "run-said/rank-0.txt").read_text()
    # Each stage compiles for training and evaluation, and perhaps for a single utterance; not for every length.
    assert 2 <= said.count("Recompiling function _run_layer") <= 4, said
