"""Windows' answers joined: each moment counts once, one window is left as it is, frames are those of the whole."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metaser.config.encoders import LogMelEncoderConfig
from metaser.model.encoders.families import build_encoder
from metaser.tasks.kinds import kind_of
from metaser.tasks.results import Prediction, Probabilities
from metaser.tasks.spec import TaskSpec
from metaser.windows import JoinedOutput, WindowOutput, join_windows
from shards.windows import FRAME_SAMPLES, Windowing

ASR = TaskSpec(name="asr", kind="ctc", fields=("text",), labels=("<blank>", "<unk>", "a", "b"))
GENDER = TaskSpec(name="gender", kind="classification", fields=("gender",), labels=("female", "male"))
AFFECT = TaskSpec(name="affect", kind="regression", fields=("valence", "arousal"), labels=("valence", "arousal"))
SPECS = (ASR, GENDER, AFFECT)
ENCODER = build_encoder(
    LogMelEncoderConfig(num_mels=8, width=8, num_layers=1, num_heads=2, feed_forward=8).model_dump()
)


def said(window, *, female=0.5, valence=0.0, frames=None):
    num_frames = ENCODER.num_frames(window.end - window.start)
    return WindowOutput(
        window,
        {
            "asr": torch.zeros(num_frames, 4) if frames is None else frames,
            "gender": torch.tensor([female, 1 - female]).log(),
            "affect": torch.tensor([valence, 1.0]),
        },
    )


def joined(outputs):
    return join_windows(SPECS, outputs, hop_samples=ENCODER.hop_samples)


def predictions(spec: TaskSpec, output: JoinedOutput) -> list[tuple[Prediction, Probabilities]]:
    return kind_of(spec).predictions(spec, output.logits[spec.name], output.frames_of(spec.name))


def test_one_window_is_left_as_it_is():
    (window,) = Windowing.of_seconds(1.0).cut(9_000)
    output = said(window, female=0.3, frames=torch.randn(ENCODER.num_frames(9_000), 4))
    whole = joined([output])
    for name, logits in output.logits.items():
        assert torch.equal(whole.logits[name][0], logits)
    assert whole.frames_of("asr").tolist() == [ENCODER.num_frames(9_000)]


def test_seconds_weigh():
    # 1 s and 0.5 s of own time: the windows of 1 s overlap by half a second.
    windows = Windowing.of_seconds(1.0, 0.5).cut(24_000)
    assert [window.own_samples for window in windows] == [12_000, 12_000]
    windows = Windowing.of_seconds(1.0, 0.0).cut(24_000)
    assert [window.own_samples for window in windows] == [12_000, 12_000]
    windows = Windowing.of_seconds(1.0, 0.0).cut(48_000 - 8_000)
    assert [window.own_samples for window in windows] == [16_000, 12_000, 12_000]
    shares = (0.9, 0.2, 0.4)
    outputs = [said(window, female=share, valence=share) for window, share in zip(windows, shares, strict=True)]
    whole = joined(outputs)
    assert whole.logits["affect"][0].tolist() == pytest.approx([(0.9 * 1.0 + 0.2 * 0.75 + 0.4 * 0.75) / 2.5, 1.0])
    female, male = (
        math.exp(sum(s * math.log(p) for s, p in zip((1.0, 0.75, 0.75), values, strict=True)) / 2.5)
        for values in (shares, [1 - share for share in shares])
    )
    ((label, probabilities),) = predictions(GENDER, whole)
    assert label == "female"
    assert probabilities == pytest.approx((female / (female + male), male / (female + male)))


@given(st.integers(1_600, 16_000), st.integers(8, 24), st.integers(1_600, 100_000))
def test_the_frames_are_those_of_the_whole(length, overlap_frames, num_samples):
    windowing = Windowing.of_seconds(length / 16_000, min(overlap_frames * FRAME_SAMPLES, length // 2) / 16_000)
    outputs = []
    for window in windowing.cut(num_samples):
        number = torch.arange(ENCODER.num_frames(window.end - window.start)) + window.start // FRAME_SAMPLES
        outputs.append(said(window, frames=number[:, None].expand(-1, 4).float()))
    whole = joined(outputs)
    assert whole.logits["asr"][0, :, 0].tolist() == list(range(ENCODER.num_frames(num_samples)))


def test_silence_parts_letters_and_weighs_nothing():
    windows = Windowing.of_seconds(1.0, 0.0).cut(48_000)
    letters = torch.zeros(ENCODER.num_frames(16_000), 4)
    letters[:, 2] = 5.0
    outputs = [
        said(windows[0], female=0.9, frames=letters),
        WindowOutput(windows[1], None),
        said(windows[2], female=0.9, frames=letters),
    ]
    whole = joined(outputs)
    assert predictions(ASR, whole) == [("aa", None)]
    assert whole.logits["gender"].softmax(dim=-1)[0].tolist() == pytest.approx([0.9, 0.1])
    assert len(joined(outputs[:2]).logits["asr"][0]) == len(letters)


@pytest.mark.parametrize("letters", [(), (" ",)])
@given(is_silent=st.lists(st.booleans(), min_size=2, max_size=5).filter(lambda silences: not all(silences)))
def test_evaluation_and_prediction_hear_the_same_in_a_silence(letters, is_silent):
    spec = ASR.model_copy(update={"labels": (*ASR.labels, *letters)})
    windows = Windowing.of_seconds(1.0, 0.0).cut(16_000 * len(is_silent))
    frames = torch.nn.functional.one_hot(torch.full((ENCODER.num_frames(16_000),), 2), len(spec.labels)).float()
    parts = [None if silent else frames for silent in is_silent]
    outputs = [
        WindowOutput(window, None if part is None else {"asr": part})
        for window, part in zip(windows, parts, strict=True)
    ]
    whole = join_windows((spec,), outputs, hop_samples=ENCODER.hop_samples)
    ((evaluated, _),) = predictions(spec, whole)
    condensed = [
        WindowOutput(window, None if part is None else {"asr": kind_of(spec).condense(part)})
        for window, part in zip(windows, parts, strict=True)
    ]
    ((predicted, _),) = predictions(spec, join_windows((spec,), condensed, hop_samples=ENCODER.hop_samples))
    words = "".join("-" if silent else "a" for silent in is_silent).strip("-")
    expected = "".join(letters).join("a" for word in words.split("-") if word)
    assert evaluated == predicted == expected
