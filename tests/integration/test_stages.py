"""What a stage moves, what it hands on, and on what it trains."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tinyencoders import BUCKETS, SIZES, WHISPER
from tinyruns import clip, dev_metrics, losses, read_json
from tones import pack_items
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperModel,
)

from metaser.errors import ConfigError, TrainingError
from metaser.model.metaser import MetaSERModel, build_model
from metaser.rundir import step_folder
from metaser.seeding import seed_generators
from metaser.targets import resolve_tasks
from metaser.tasks.spec import TaskSpec
from metaser.tracking import read_metrics
from metaser.train.checkpoint import newest_checkpoint, read_checkpoint
from shards.indexload import load_index

BOTH = "emotion: 1, asr: 0.5, gender: 0.5, style: 0.5"
METADATA = "asr: 1, gender: 0.5, style: 0.5"


def one_stage(train, weights, *, num_steps=3, eval_every_steps=3, more=""):
    stage = (
        f"{{name: only, train: [{train}], weights: {{{weights}}}, num_steps: {num_steps}, "
        f"eval_every_steps: {eval_every_steps}, learning_rate: {{encoder: 1e-2, heads: 1e-2, ari: 1e-2}}, "
        f"schedule: {{decay: constant, warmup_fraction: 0}}{more}}}"
    )
    return f"stages=[{stage}]"


def fresh_weights(config):
    index = load_index(config.data.shard_folders)
    training = index.take([row for row, split in enumerate(index.values("split")) if split == "train"])
    seed_generators(config.seed, "init")
    model = build_model(config.model, resolve_tasks(config.tasks, training), config.main_task)
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved_parts(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("train", "weights", "prefixes"),
    [
        ("heads", METADATA, ("heads.asr.", "heads.gender.", "heads.style.")),
        ("heads.gender", METADATA, ("heads.gender.",)),
        ("encoder.layers.0-0", METADATA, ("encoder.layers.0.",)),
        ("encoder.layers.1-1", METADATA, ("encoder.layers.1.", "encoder.final_norm.")),
        ("encoder", METADATA, ("encoder.",)),
        ("ari, heads.asr", METADATA, ("ari.", "heads.asr.")),
        ("coattention", BOTH, ("coattention.",)),
        ("heads, coattention", BOTH, ("heads.", "coattention.")),
    ],
)
def test_a_stage_moves_exactly_the_parameters_it_names(corpus, tmp_path, train, weights, prefixes):
    stage = one_stage(train, weights)
    before = fresh_weights(corpus.experiment(tmp_path, stage))
    corpus.train(tmp_path / "run", stage)
    after = newest_checkpoint(tmp_path / "run/stage1/checkpoints").model_tensors()
    expected = {name for name in before if name.startswith(prefixes)}
    if "emotion" not in weights and "ari" in train:
        # ARI has coefficients of its own for a task that has no weight here.
        assert torch.equal(before["ari.integration.task_scalars"][0], after["ari.integration.task_scalars"][0])
    assert moved_parts(before, after) == expected


def test_every_stage_starts_from_the_weights_the_one_before_selected(corpus, tmp_path):
    run = corpus.train(
        tmp_path / "run",
        # Far too high a rate: the dev loss is lowest early.
        "stages.0.learning_rate={encoder: 3e-1, heads: 3e-1, ari: 3e-1}",
        "stages.0.eval_every_steps=1",
        "stages.0.schedule={decay: constant, warmup_fraction: 0}",
        "stages.1.train=[heads.emotion]",
    )
    first, second = (run / f"stage{number}" / "checkpoints" for number in (1, 2))
    last = newest_checkpoint(first)
    assert 0 < last.state.best_step < last.state.step == 6
    selected = read_checkpoint(step_folder(first, last.state.best_step)).model_tensors()
    after = newest_checkpoint(second).model_tensors()
    assert moved_parts(selected, after) == {name for name in selected if name.startswith("heads.emotion.")}
    assert "encoder.layers.0.up.weight" in moved_parts(selected, last.model_tensors())


def test_missing_labels_need_no_special_case(corpus, tmp_path):
    index = load_index([str(corpus.shards)])
    missing = {field: index.values(field).count(None) for field in ("text", "emotion")}
    assert min(missing.values()) > 0
    run = corpus.train(tmp_path / "run", "data.batch_utterances=1", one_stage("encoder, heads", BOTH, num_steps=24))
    found = losses(run)
    assert all(math.isfinite(value) for *_, by_task in found for value in by_task.values())
    # One clip a step, one epoch: a step whose clip lacks a label has no loss for that task.
    assert len(found) == 24
    assert sum(by_task["emotion"] == 0 for *_, by_task in found) == missing["emotion"]
    assert sum(by_task["asr"] == 0 for *_, by_task in found) == missing["text"]
    assert all(by_task["gender"] > 0 for *_, by_task in found)


def test_a_merged_label_trains_and_is_judged_as_if_it_had_been_packed_so(corpus, finished, tmp_path):
    clips = [clip(number) for number in range(36)]
    happy = [c.utterance.emotion == "happiness" and c.utterance.key[-1] in "02468" for c in clips]
    excited = [
        replace(c, utterance=c.utterance.model_copy(update={"emotion": "excitement"})) if is_happy else c
        for c, is_happy in zip(clips, happy, strict=True)
    ]
    assert {c.utterance.split for c, is_happy in zip(clips, happy, strict=True) if is_happy} == {"train", "dev"}
    pack_items(excited, tmp_path / "shards", shard_utterances=20)
    split = corpus.train(
        tmp_path / "run", f"data.shards={tmp_path / 'shards'}", "tasks.0.merge={excitement: happiness}"
    )
    assert losses(split) == losses(finished)
    assert dev_metrics(split) == dev_metrics(finished)


def test_labels_that_are_missing_everywhere_stop_before_the_first_step(corpus, tmp_path):
    with pytest.raises(
        TrainingError, match=r"task 'style' has weight 0.1 in stage 'metadata', but none of its 2\d train"
    ):
        corpus.train(tmp_path / "run", "tasks.3={name: style, kind: classification, field: intensity}")
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_layer_that_is_not_there_stops_before_the_first_step_of_any_stage(corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"0 <= A <= B <= 1, .* got 'encoder.layers.1-2'"):
        corpus.train(tmp_path / "run", "stages.1.train=[encoder.layers.1-2]")
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_float32_weights(corpus, finished, tmp_path, precision):
    run = corpus.train(tmp_path / "run", f"parallel.precision={precision}")
    ours, float32 = losses(run), losses(finished)
    assert [line[:2] for line in ours] == [line[:2] for line in float32]
    assert ours != float32
    assert ours[0][2] == pytest.approx(float32[0][2], rel=0.05)
    assert {value.dtype for value in load_file(run / "best/model.safetensors").values()} == {torch.float32}


def test_the_average_of_a_short_stage_is_as_good_as_its_weights(corpus, tmp_path):
    """With 0.999 from the start, nine tenths of the average would still be the random weights of before step 1."""
    stage = one_stage("encoder, heads", "gender: 1", num_steps=100, eval_every_steps=100, more=", ema_decay: 0.999")
    run = corpus.train(tmp_path / "run", stage, "data.batch_utterances=4")
    found = [loss for *_, loss, _ in losses(run)]
    first, last = (sum(part) / len(part) for part in (found[:5], found[-20:]))
    ((*_, dev),) = dev_metrics(run)
    assert last < 0.9 * first
    assert dev["loss"] < first - 0.5 * (first - last)


OVERFLOWING = ("parallel.precision=fp16", "stages.0.weights.asr=10", "max_skipped_steps=1")
"""So heavy a loss overflows with the first scales, more often in a row than steps may fail that are not finite."""


def test_gradients_that_overflow_float16_lower_the_scale_and_stop_nothing(corpus, tmp_path):
    run = corpus.train(tmp_path / "run", *OVERFLOWING)
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line and line["stage"] == 1]
    skipped = [not math.isfinite(line["grad_norm"]) for line in lines]
    assert skipped[:3] == [True, True, True]
    assert sum(skipped) < 6
    before = [sum(skipped[:step]) for step in range(7)]
    assert [line["loss_scale"] for line in lines] == [2.0 ** (16 - count) for count in before[:6]]
    assert [line["num_overflows"] for line in lines] == [line["num_skipped"] for line in lines] == before[1:]
    state = newest_checkpoint(run / "stage1/checkpoints").state
    assert (state.loss_scale, state.num_skipped_in_a_row) == (2.0 ** (16 - before[6]), 0)


def test_a_loss_that_is_not_finite_still_stops_the_run_with_float16(corpus, tmp_path):
    with pytest.raises(TrainingError, match=r"max_skipped_steps = 1 .* step 2 of .* or use bf16 or float32"):
        corpus.train(tmp_path / "run", *OVERFLOWING, "stages.0.weights.asr=1e39")


@pytest.mark.parametrize(
    ("config", "model_class", "frozen"),
    [
        (Wav2Vec2Config(**SIZES), Wav2Vec2Model, "feature_extractor.conv_layers.1.conv.weight"),
        (WavLMConfig(**SIZES, **BUCKETS), WavLMModel, "feature_extractor.conv_layers.1.conv.weight"),
        (WhisperConfig(**WHISPER), WhisperModel, "conv2.weight"),
    ],
)
def test_a_hugging_face_encoder_trains_through_both_stages(corpus, tmp_path, config, model_class, frozen):
    torch.manual_seed(0)
    source = model_class(config)
    source.save_pretrained(tmp_path / "encoder")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "encoder")
    run = corpus.train(
        tmp_path / "run", f"model.encoder={{kind: huggingface, name: {tmp_path / 'encoder'}}}", "model.spec_augment={}"
    )
    assert [line[:2] for line in losses(run)] == [(stage, step) for stage in (1, 2) for step in range(1, 7)]
    (tmp_path / "encoder").rename(tmp_path / "gone")
    model = MetaSERModel.from_pretrained(run / "best")
    given, ours = source.state_dict(), model.state_dict()

    def same(part):
        name = next(name for name in ours if name.startswith("encoder.") and name.endswith(part))
        return torch.equal(given[next(name for name in given if name.endswith(part))], ours[name])

    assert same(frozen)
    attention = "self_attn" if config.model_type == "whisper" else "attention"
    assert not same(f"encoder.layers.1.{attention}.q_proj.weight")
    with torch.inference_mode():
        logits = model(0.1 * torch.randn(1, 8000), torch.tensor([8000])).logits["emotion"]
    assert logits.shape == (1, 4)
    assert json.loads((run / "best/config.json").read_text())["id2label"]["0"] == "anger"
    assert all(isinstance(spec, TaskSpec) for spec in model.task_specs)


def test_what_labels_leave_out_is_said_before_the_first_step_and_in_the_report(corpus, tmp_path):
    run = corpus.train(tmp_path / "run", "tasks.0.labels=[anger, neutral]", "stages.1.weights={emotion: 1}")
    lines = (run / "train.log").read_text().splitlines()
    said = next(number for number, line in enumerate(lines) if "utterances are left out by labels: " in line)
    assert said < next(number for number, line in enumerate(lines) if "stage 1 (metadata)" in line)
    found = read_json(run / "report/report.json")["left_out"]["emotion"]
    assert found == {"num_utterances": 6, "num_left_out": 3, "words": {"happiness": 2, "sadness": 1}}
