"""Predictions for files of any length and any number of channels, in memory that does not grow with the length."""

import multiprocessing
import os
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from transformers import WavLMConfig

from metaser.config.encoders import LogMelEncoderConfig
from metaser.config.schema import CoattentionConfig, ModelConfig
from metaser.errors import ConfigError, ModelError
from metaser.model.encoders.base import init_encoder_weights
from metaser.model.encoders.wav2vec2 import Wav2Vec2Encoder
from metaser.model.metaser import MetaSERConfig, MetaSERModel, build_model
from metaser.predict import choose_channel, predict_files
from metaser.tasks.ctc import greedy_text
from metaser.tasks.spec import TaskSpec
from metaser.windows import choose_windows
from shards.schema import RATE_HZ
from shards.windows import Windowing

TASKS = (
    TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=("anger", "joy", "neutral")),
    TaskSpec(name="asr", kind="ctc", fields=("text",), labels=("<blank>", "<unk>", "a", "b", " ")),
    TaskSpec(name="affect", kind="regression", fields=("valence", "arousal"), labels=("valence", "arousal"), scale=2.0),
)
WINDOWING = Windowing.of_seconds(1.0, 0.24)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = LogMelEncoderConfig(num_mels=20, width=16, num_layers=2, num_heads=2, feed_forward=24)
    built = build_model(
        ModelConfig(encoder=encoder, coattention=CoattentionConfig(width=8, num_heads=2), head_width=12),
        TASKS,
        "emotion",
    )
    for parameter in built.parameters():
        # Fresh heads say the same of everything.
        torch.nn.init.normal_(parameter, std=0.3)
    return built.eval()


def sound(seconds, seed=0):
    """Return noise whose colour changes every second, so that windows differ."""
    parts = []
    generator = np.random.default_rng(seed)
    for number in range(int(np.ceil(seconds))):
        noise = generator.standard_normal(RATE_HZ)
        parts.append(np.convolve(noise, np.ones(1 + 5 * (number % 4)), mode="same"))
    return (0.05 * np.concatenate(parts)[: round(seconds * RATE_HZ)]).astype(np.float32)


def write(path, samples, rate_hz=RATE_HZ):
    sf.write(path, samples, rate_hz, subtype="FLOAT")
    return str(path)


def direct(model, samples):
    with torch.inference_mode():
        output = model(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    return {name: logits[0] for name, logits in output.logits.items()}


def only(predictions):
    (prediction,) = predictions
    return prediction


def test_a_file_that_fits_a_window_is_answered_whole(model, tmp_path):
    samples = sound(1.0)
    found = only(predict_files(model, [write(tmp_path / "a.wav", samples)], windowing=WINDOWING))
    said = direct(model, samples)
    assert list(found.tasks["emotion"]["probabilities"].values()) == said["emotion"].softmax(dim=-1).tolist()
    assert list(found.tasks["affect"].values()) == (2 * said["affect"]).tolist()
    assert found.tasks["asr"]["text"] == greedy_text(TASKS[1], said["asr"].argmax(dim=-1).tolist())
    assert [(window.start_s, window.end_s, window.tasks) for window in found.windows] == [(0.0, 1.0, found.tasks)]
    assert (found.duration_s, found.channel, found.num_channels, found.notes) == (1.0, None, 1, ())


def test_a_longer_file_is_answered_by_window_and_as_a_whole(model, tmp_path):
    samples = sound(3.7)
    found = only(predict_files(model, [write(tmp_path / "a.wav", samples)], windowing=WINDOWING))
    windows = WINDOWING.cut(len(samples))
    starts_s = [0.0, 0.76, 1.52, 2.28, 2.7]
    assert [(window.start_s, window.end_s) for window in found.windows] == [
        (start_s, pytest.approx(start_s + 1)) for start_s in starts_s
    ]
    said = [direct(model, samples[window.start : window.end]) for window in windows]
    for part, answers in zip(found.windows, said, strict=True):
        assert list(part.tasks["emotion"]["probabilities"].values()) == answers["emotion"].softmax(dim=-1).tolist()
    seconds = torch.tensor([window.own_samples for window in windows]) / len(samples)
    mean = sum(share * answers["emotion"].log_softmax(dim=-1) for share, answers in zip(seconds, said, strict=True))
    assert list(found.tasks["emotion"]["probabilities"].values()) == pytest.approx(
        mean.softmax(dim=-1).tolist(), abs=1e-6
    )
    affect = sum(share * 2 * answers["affect"] for share, answers in zip(seconds, said, strict=True))
    assert list(found.tasks["affect"].values()) == pytest.approx(affect.tolist(), abs=1e-5)
    # Frames 0 to 43 of the first window, whose last 0.12 s are the second's to speak for, and so on.
    best = [answers["asr"].argmax(dim=-1).tolist() for answers in said]
    cuts = [(0, 44), (6, 44), (6, 44), (6, 36), (15, 49)]
    joined = [number for row, (first, last) in zip(best, cuts, strict=True) for number in row[first:last]]
    assert len(joined) == model.encoder.num_frames(len(samples))
    assert found.tasks["asr"]["text"] == greedy_text(TASKS[1], joined)


def test_silent_windows_are_marked_and_not_answered(model, tmp_path):
    samples = sound(6.0)
    samples[: 2 * RATE_HZ] = 0
    found = only(predict_files(model, [write(tmp_path / "a.wav", samples)], windowing=WINDOWING))
    assert [window.is_silent for window in found.windows] == [True, True] + [False] * 6
    assert found.windows[0].tasks == {}
    assert found.notes == (f"2 of the 8 windows of {tmp_path / 'a.wav'} are silent and have no answer",)
    rest = only(predict_files(model, [write(tmp_path / "b.wav", samples[24_000:])], windowing=WINDOWING))
    shares = [found.tasks["emotion"]["probabilities"], rest.tasks["emotion"]["probabilities"]]
    assert list(shares[0].values()) == pytest.approx(list(shares[1].values()), abs=0.02)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_silence_is_refused(model, tmp_path, rate_hz, level):
    for seconds in (0.5, 2.5):
        file = write(tmp_path / "a.wav", np.full(round(seconds * rate_hz), level, np.float32), rate_hz)
        found = only(predict_files(model, [file], windowing=WINDOWING))
        assert found.error == f"audio must hold sound, but {file} is silent from end to end; record it again"
        assert found.tasks == {}


def stereo(path, left, right):
    return write(path, np.stack([left, right], axis=1))


def test_mixing_is_said(model, tmp_path):
    left, right = sound(0.8, 1), sound(0.8, 2)
    file = stereo(tmp_path / "call.wav", left, right)
    mixed = only(predict_files(model, [file]))
    assert (mixed.channel, mixed.num_channels) == ("mix", 2)
    assert mixed.notes == (f"{file} has 2 channels, which were mixed; --channel 1, 2 or each keeps them apart",)
    alike = only(predict_files(model, [stereo(tmp_path / "alike.wav", left, left)]))
    assert (alike.channel, alike.notes) == ("mix", ())


def test_a_channel_is_picked(model, tmp_path):
    left, right = sound(1.8, 1), sound(1.8, 2)
    file = stereo(tmp_path / "call.wav", left, right)
    alone = [
        only(predict_files(model, [write(tmp_path / f"{side}.wav", of)], windowing=WINDOWING))
        for side, of in (("l", left), ("r", right))
    ]
    for channel, expected in ((1, alone[:1]), (2, alone[1:]), ("each", alone)):
        found = list(predict_files(model, [file], windowing=WINDOWING, channel=channel))
        assert [prediction.tasks for prediction in found] == [prediction.tasks for prediction in expected]
        assert all(prediction.notes == () for prediction in found)
    assert [prediction.channel for prediction in found] == [1, 2]
    absent, whole = predict_files(model, [file, write(tmp_path / "l.wav", left)], windowing=WINDOWING, channel=3)
    assert absent.error == f"channel must be 1 to the 2 of {file}, got 3; correct it"
    assert "channel must be 1 to the 1 of" in whole.error


def test_silent_and_cancelling_channels_are_named(model, tmp_path):
    left = sound(0.8, 1)
    half = stereo(tmp_path / "half.wav", left, 0 * left)
    assert only(predict_files(model, [half])).notes == (
        f"{half} has 2 channels, which were mixed although channel 2 is silent; --channel picks one",
    )
    first, second = predict_files(model, [half], channel="each")
    assert first.error is None
    assert (
        second.error
        == f"audio must hold sound, but channel 2 of {half} is silent from end to end; choose another --channel"
    )
    assert second.channel == 2
    against = stereo(tmp_path / "against.wav", left, -left)
    nearly = stereo(tmp_path / "nearly.wav", left, -0.8 * left)
    for file in (against, nearly):
        assert only(predict_files(model, [file])).error == (
            f"channels must not cancel each other when they are mixed, but those of {file} do; choose one of its 2 "
            "with --channel 1 or each"
        )
        assert only(predict_files(model, [file], channel=2)).error is None


def test_every_other_file_is_answered(model, tmp_path):
    good = write(tmp_path / "good.wav", sound(0.5))
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "words.wav").write_text("words")
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "endless.wav").symlink_to("/dev/zero")
    write(tmp_path / "short.wav", sound(0.05))
    write(tmp_path / "nan.wav", np.full(8_000, np.nan, np.float32))
    bad = ["absent.wav", "folder.wav", "words.wav", "pipe.wav", "endless.wav", "short.wav", "nan.wav"]
    found = list(predict_files(model, [name for part in bad for name in (str(tmp_path / part), good)]))
    assert len(found) == 2 * len(bad)
    for name, refused, answered in zip(bad, found[::2], found[1::2], strict=True):
        assert str(tmp_path / name) in refused.error
        assert answered.error is None
    assert all("must be a plain file" in found[number].error for number in (2, 6, 8))
    assert "at least 0.1 s long, got 0.050 s" in found[10].error


def test_the_model_says_how_long_a_window_is(model):
    assert choose_windows(model) == Windowing.of_seconds(15.0)
    assert choose_windows(model, 4.0) == Windowing.of_seconds(4.0, 1.0)
    assert choose_windows(model, None, 5.0) == Windowing.of_seconds(15.0, 5.0)
    model.config.window_s, model.config.window_overlap_s = 2.5, 0.5
    try:
        assert choose_windows(model) == Windowing.of_seconds(2.5, 0.5)
        assert choose_windows(model, None, 1.0) == Windowing.of_seconds(2.5, 1.0)
        assert choose_windows(model, 4.0) == Windowing.of_seconds(4.0, 1.0)
        model.config.window_s = "long"
        with pytest.raises(ModelError, match=r"config.json: a window must last 0.1 s or longer, got long"):
            choose_windows(model)
    finally:
        del model.config.window_s, model.config.window_overlap_s


@pytest.mark.parametrize(
    ("window_s", "overlap_s", "words"),
    [
        (0.05, None, "must last 0.1 s or longer, got 0.05"),
        (float("nan"), None, "got nan"),
        (float("inf"), None, "got inf"),
        (2.0, 2.0, "overlap by 0 to 1.98 s, so that each begins at least 0.02 s after the other, got 2.0"),
        (2.0, -1.0, "got -1.0"),
        (2.0, float("nan"), "got nan"),
    ],
)
def test_what_makes_no_windows_is_refused(model, window_s, overlap_s, words):
    with pytest.raises(ConfigError, match=words):
        choose_windows(model, window_s, overlap_s)


def test_no_window_is_longer_than_the_encoder_hears(model):
    model.encoder.longest_samples = 3 * RATE_HZ
    try:
        assert choose_windows(model) == Windowing.of_seconds(3.0)
        assert choose_windows(model, 3.0) == Windowing.of_seconds(3.0)
        words = r"at most the 3 s that the model hears at once, got 3\.5; give other --window"
        with pytest.raises(ConfigError, match=words):
            choose_windows(model, 3.5)
        model.config.window_s = 4.0
        with pytest.raises(ModelError, match=r"config.json: a window must last at most the 3 s .+ got 4"):
            choose_windows(model)
    finally:
        model.encoder.longest_samples = None
        vars(model.config).pop("window_s", None)


def test_channels_have_names():
    assert [choose_channel(text) for text in ("1", "12", "LEFT", "Right", "Each", "MIX")] == [
        1,
        12,
        1,
        2,
        "each",
        "mix",
    ]
    for text in ("0", "-1", "middle", "", "1.5", "²"):
        with pytest.raises(ConfigError, match="a number from 1, left, right, each or mix"):
            choose_channel(text)


# ---------------------------------------------------------------- memory


def wavlm():
    """Return a tiny WavLM of 12 heads, whose position bias takes 48 bytes for every pair of frames."""
    config = WavLMConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=12,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    encoder = Wav2Vec2Encoder(config, do_normalize=False, freeze_feature_encoder=True)
    encoder.apply(init_encoder_weights)
    form = MetaSERConfig(
        encoder=encoder.architecture(),
        model=ModelConfig(coattention=CoattentionConfig(form="none")).model_dump(mode="json"),
        tasks=[TASKS[0].model_dump(mode="json")],
        main_task="emotion",
    )
    return MetaSERModel(form, encoder).eval()


def _predict_within(limit_bytes, windowing, files):
    torch.set_num_threads(1)
    model = wavlm()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + limit_bytes,) * 2)
    return [(found.error, len(found.windows)) for found in predict_files(model, files, windowing=windowing)]


@pytest.mark.parametrize(
    ("window_s", "num_windows"), [(15.0, 22), (600.0, 0)], ids=["as by default", "too long for the memory"]
)
def test_four_minutes_under_a_limit_of_memory(tmp_path, window_s, num_windows):
    long, short = write(tmp_path / "long.wav", np.tile(sound(10.0), 24)), write(tmp_path / "short.wav", sound(1.0))
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as child:
        (error, found), other = child.submit(
            _predict_within, 2**30, Windowing.of_seconds(window_s), [long, short]
        ).result()
    assert found == num_windows
    assert other == (None, 1)
    assert error == (
        None
        if num_windows
        else f"a window must fit the memory, but {long} in windows of 600 s needs more than there is; give a shorter "
        "--window"
    )
