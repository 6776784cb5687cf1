"""Whisper's encoder, which hears a limited time at once, through training, judging, predicting and starting anew."""

import logging
import re
import shutil
from pathlib import Path

import pytest
import soundfile as sf
import torch
from tinyencoders import WHISPER
from tinyruns import ALONE, Speech, losses, metaser, read_json
from tones import pack_items
from transformers import WhisperConfig, WhisperModel

from metaser.config.encoders import HuggingFaceEncoderConfig
from metaser.config.load import load_experiment
from metaser.config.schema import AdapterConfig, CoattentionConfig, ModelConfig
from metaser.errors import ConfigError, ModelError, TrainingError
from metaser.eval.protocol import evaluate_run
from metaser.model.metaser import MetaSERModel, build_model
from metaser.predict import load_model, predict_files
from metaser.rundir import RunDir
from metaser.tasks.spec import TaskSpec
from metaser.train.initial import load_initial_weights
from shards.schema import RATE_HZ, SourceUtterance, Utterance, make_key

SHARED = Path(__file__).parents[3] / "shared" / "models" / "whisper-base-encoder"
WINDOWED = ("data.window_s=0.4", "data.window_overlap_s=0.1")
SHORT = ("stages.0.num_steps=2", "stages.1.num_steps=2", "stages.0.eval_every_steps=2", "stages.1.eval_every_steps=2")


def save_encoder(folder: Path, num_positions: int, **changes: object) -> str:
    """Save a small Whisper that hears so many times 20 ms, and return the override that reads it."""
    torch.manual_seed(0)
    WhisperModel(WhisperConfig(**WHISPER | changes, max_source_positions=num_positions)).save_pretrained(folder)
    return f"model.encoder={{kind: huggingface, name: {folder}}}"


@pytest.fixture(scope="module")
def windowed(corpus, tmp_path_factory):
    """A run whose encoder hears 0.5 s; the longest clip lasts 0.825 s."""
    folder = tmp_path_factory.mktemp("whisper")
    return corpus.train(folder / "run", save_encoder(folder / "encoder", 25), *WINDOWED, *SHORT)


@pytest.mark.parametrize(
    ("num_positions", "overrides", "error", "words"),
    [
        # Training's longest clip lasts 0.795 s, dev's 0.81 s, test's 0.825 s.
        (
            20,
            (),
            TrainingError,
            "at most the 0.4 s that the model hears at once, got 0.825 s; set data.w",
        ),
        (
            41,
            (),
            TrainingError,
            "at most the 0.82 s that the model hears at once, got 0.825 s; set data.w",
        ),
        (
            20,
            ("data.window_s=0.5",),
            ConfigError,
            "data.window_s must be at most the 0.4 s .+, got 0.5; shorten it",
        ),
        (
            42,
            ("stages.0.augment.speed={probability: 0.1, factors: [0.9, 1.1]}",),
            TrainingError,
            r"at most the 0.84 s .+, got 0.795 s / 0.9 = 0.8833333 s in stage 'metadata'; set data.window_s to 0.756",
        ),
    ],
)
def test_what_the_encoder_does_not_hear_is_refused_before_the_first_step(
    corpus, tmp_path, num_positions, overrides, error, words
):
    with pytest.raises(error, match=words):
        corpus.train(tmp_path / "run", save_encoder(tmp_path / "encoder", num_positions), *overrides)
    assert not (tmp_path / "run/config.yaml").exists()


def test_longest_clips_that_just_fit_train(corpus, tmp_path):
    run = corpus.train(tmp_path / "run", save_encoder(tmp_path / "encoder", 42), *SHORT)
    # Of the longest training clip's whole second, it hears so much.
    assert read_json(run / "best/config.json")["window_s"] == 0.84


def test_longer_recordings_are_judged_and_answered_in_windows(windowed, tmp_path, caplog):
    run = shutil.copytree(windowed, tmp_path / "run")
    config = load_experiment(run / "config.yaml")
    whole = config.model_copy(
        update={"data": config.data.model_copy(update={"window_s": None, "window_overlap_s": None})}
    )
    voice = Speech(pitch_hz=150.0, waver_hz=3.0, duration_s=2.0, seed=1)
    utterance = Utterance(key=make_key("other", "long"), corpus="other", source="long.wav", emotion="anger")
    pack_items([SourceUtterance(utterance, voice)], tmp_path / "other")
    assert whole.data.max_micro_batch_s > voice.duration_s
    caplog.set_level(logging.INFO)
    report = evaluate_run(RunDir(run), whole, ALONE, shards=str(tmp_path / "other"), allow_overlap=True)
    assert report["num_utterances"] == 1
    assert "(the longest has 2.0 s) are heard in windows of 0.4 s that overlap by 0.1 s" in caplog.text
    sf.write(tmp_path / "long.wav", voice.load()[0], RATE_HZ, subtype="FLOAT")
    (answer,) = predict_files(load_model(run), [str(tmp_path / "long.wav")])
    assert len(answer.windows) > 4 and answer.error is None


def test_a_window_beyond_the_limit_is_refused_on_the_command_line(windowed, tmp_path):
    sf.write(tmp_path / "a.wav", Speech(150.0, 3.0, 0.3, 1).load()[0], RATE_HZ)
    done = metaser("predict", windowed, tmp_path / "a.wav", "--window", "0.6", folder=tmp_path)
    assert done.returncode == 2
    assert "a window must last at most the 0.5 s that the model hears at once, got 0.6" in done.stderr


def test_a_model_of_the_same_form_takes_all_weights_and_another_is_refused(tmp_path):
    tasks = (TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("anger", "joy")),)

    def fresh(name: str) -> MetaSERModel:
        encoder = HuggingFaceEncoderConfig(kind="huggingface", name=str(tmp_path / name))
        adapters, form = AdapterConfig(lora_rank=1), CoattentionConfig(form="none")
        return build_model(ModelConfig(encoder=encoder, adapters=adapters, coattention=form), tasks, "emotion")

    save_encoder(tmp_path / "encoder", 25)
    save_encoder(tmp_path / "other", 25, encoder_attention_heads=4)
    source = fresh("encoder")
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1)
    source.save_pretrained(tmp_path / "model")
    model = fresh("encoder")
    said = load_initial_weights(model, str(tmp_path / "model"))
    assert (said.fresh, said.unused) == ({}, {})
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(ModelError, match="encoder_attention_heads is 2 there and 4 here"):
        load_initial_weights(fresh("other"), str(tmp_path / "model"))


def test_a_view_limits_what_is_heard_once_it_is_joined(tmp_path):
    save_encoder(tmp_path / "encoder", 25)
    tasks = (TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("anger", "joy")),)
    views = {"whisper": HuggingFaceEncoderConfig(kind="huggingface", name=str(tmp_path / "encoder"))}
    limits = {}
    for form in ("none", "concat"):
        config = ModelConfig(views=views, coattention=CoattentionConfig(form=form, width=8))
        limits[form] = build_model(config, tasks, "emotion").longest_samples
    assert limits == {"none": None, "concat": 8000}


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not here")
def test_a_real_checkpoint_trains_two_steps_in_both_stages(corpus, tmp_path):
    run = corpus.train(tmp_path / "run", f"model.encoder={{kind: huggingface, name: {SHARED}}}", *SHORT)
    assert [line[:2] for line in losses(run)] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert read_json(run / "best/config.json")["encoder"]["config"]["d_model"] == 512
    log = (run / "train.log").read_text()
    assert max(map(len, log.splitlines())) < 500
    assert not re.search(r"decoder\.layers", log)
