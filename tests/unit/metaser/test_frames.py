"""The kind of task that answers for every frame, from intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from tables import index_of
from torch.nn import functional

from metaser.errors import TrainingError
from metaser.targets import Targets, resolve_tasks
from metaser.tasks.frames import FramesTask, frames_text, parse_frames, parse_intervals
from metaser.tasks.kind import TaskTarget
from metaser.tasks.kinds import KINDS
from metaser.tasks.results import TaskResult
from metaser.tasks.spec import TaskSpec
from shards.windows import FRAME_SAMPLES, Windowing

FRAMES = KINDS["frames"]
TASK = FramesTask(kind="frames", name="speech", field="text")
SPEC = TaskSpec(name="speech", kind="frames", fields=("text",), labels=("speech",))
RUNS = st.lists(st.booleans(), max_size=60)


def test_intervals_are_read_or_refused_with_what_stands_there() -> None:
    assert parse_intervals("0.31-1.22 1.5-2") == [(0.31, 1.22), (1.5, 2.0)]
    assert parse_intervals("nowhere") == parse_intervals(" nowhere ") == []
    for wrong in ("1-0.5", "1-1", "a-b", "1,5-2", "0.5", "-", "-1-2", "1e3-2e3", "0-" + "9" * 400):
        with pytest.raises(TrainingError, match=r"intervals must look like '0\.31-1\.22 1\.50-2\.90'"):
            parse_intervals(wrong)


def test_a_frame_has_what_its_centre_lies_in_whatever_the_speed() -> None:
    index = index_of(text=["0.2-0.5", "nowhere", None, "0-1"], num_samples=[16_000] * 4)
    (spec,) = resolve_tasks([TASK], index)
    targets = Targets([spec], index)
    assert targets.weights("speech", np.arange(4)).tolist() == [1, 1, 0, 1]
    found = targets.lookup(np.arange(4))["speech"]
    for num_frames in (50, 40, 10):
        lengths = torch.full((4,), num_frames)
        said = [parse_frames(str(text)) for text in FRAMES.references(spec, index, found, lengths)]
        centres_s = (np.arange(num_frames) + 0.5) / num_frames
        assert said[0].tolist() == ((centres_s >= 0.2) & (centres_s < 0.5)).tolist()
        assert not said[1].any() and said[3].all()


@given(RUNS)
def test_runs_are_read_as_they_were_written(frames: list[bool]) -> None:
    assert parse_frames(frames_text(frames)).tolist() == frames


@pytest.mark.parametrize("text", ["", "3*2", "0*1", "x", "1*0 2", "9999999999*1", "999999999*1"])
def test_runs_that_nobody_wrote_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"frames must look like|at most 2097152 frames"):
        parse_frames(text)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(0, 7), st.randoms())
def test_padding_and_company_change_no_loss(lengths: list[int], spare: int, random) -> None:
    texts = [random.choice(("0.1-0.4", "nowhere", "0-0.5 0.6-0.9 0.2-0.7", None)) for _ in lengths]
    index = index_of(text=texts, num_samples=[16_000] * len(lengths))
    found = Targets([SPEC], index).lookup(np.arange(len(lengths)))["speech"]
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(len(lengths), max(lengths) + spare, 1, generator=generator)
    losses = FRAMES.losses(SPEC, logits, torch.tensor(lengths), found)
    for row, length in enumerate(lengths):
        alone = Targets([SPEC], index).lookup(np.array([row]))["speech"]
        single = FRAMES.losses(SPEC, logits[row : row + 1, :length], torch.tensor([length]), alone)
        assert losses[row].item() == pytest.approx(single.item(), abs=1e-6)
        if texts[row] is None:
            assert single.item() == 0
        else:
            (true,) = FRAMES.references(SPEC, index.take(np.array([row])), alone, torch.tensor([length]))
            expected = functional.binary_cross_entropy_with_logits(
                logits[row, :length, 0], torch.tensor(parse_frames(str(true))).float()
            )
            assert single.item() == pytest.approx(expected.item(), abs=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.integers(1, 59))
def test_f1_is_that_of_scikit_learn_over_all_frames(frames: list[tuple[bool, bool]], cut: int) -> None:
    pairs = [
        TaskResult(frames_text([true for true, _ in part]), frames_text([said for _, said in part]), None, None)
        for part in (frames[:cut], frames[cut:])
        if part
    ]
    measured = FRAMES.measure(SPEC, pairs)
    if not any(true or said for true, said in frames):
        assert measured["f1"] is None and "no frame has it" in measured["f1_reason"]
    else:
        true, said = zip(*frames, strict=True)
        assert measured["f1"] == pytest.approx(f1_score(true, said, zero_division=0))
    assert (measured["num_frames"], measured["num_frames_with"]) == (len(frames), sum(true for true, _ in frames))


@given(st.integers(16_000, 100_000), st.lists(st.booleans(), min_size=12, max_size=12))
def test_windows_are_joined_frame_by_frame_and_silent_ones_have_none(num_samples: int, silences: list[bool]) -> None:
    windows = Windowing.of_seconds(0.5, 0.2).cut(num_samples)
    silences = [*silences, *[False] * len(windows)][: len(windows)]
    if all(silences):
        silences[0] = False
    parts = []
    for window, silent in zip(windows, silences, strict=True):
        number = torch.arange((window.end - window.start) // FRAME_SAMPLES) + window.start // FRAME_SAMPLES
        parts.append(None if silent else number[:, None].float())
    joined = FRAMES.join(SPEC, windows, parts, FRAME_SAMPLES)[:, 0].tolist()
    assert len(joined) == num_samples // FRAME_SAMPLES
    assert all(value in (number, -30.0) for number, value in enumerate(joined))
    assert (-30.0 in joined) == any(silences)


def test_predictions_are_runs_of_the_utterances_own_frames() -> None:
    logits = torch.tensor([[[-1.0], [2.0], [3.0], [9.0]], [[1.0], [-2.0], [-3.0], [-9.0]]])
    assert FRAMES.predictions(SPEC, logits, torch.tensor([3, 4])) == [("1*0 2*1", None), ("1*1 3*0", None)]
    assert FRAMES.brief({"frames": "1*0 3*1"}) == "75%"
    assert math.isfinite(FRAMES.measure(SPEC, [TaskResult("1*1", "1*1", None, None)])["f1"])


@given(RUNS, RUNS)
def test_answers_of_other_lengths_than_their_references_are_refused(true: list[bool], said: list[bool]) -> None:
    cells = [frames_text(true)], [frames_text(said)]
    if len(true) == len(said):
        assert FRAMES.parse(SPEC, *cells, None) == TaskResult(cells[0][0], cells[1][0], None, None)
    else:
        with pytest.raises(ValueError, match="as many frames"):
            FRAMES.parse(SPEC, *cells, None)


def test_an_interval_behind_its_clip_names_it() -> None:
    index = index_of(text=["0-1", "310-1220"], num_samples=[16_000] * 2)
    with pytest.raises(TrainingError, match=r"text of '.*' goes on to 1220 s of 1 s \(1 such utterances\)"):
        Targets([SPEC], index)
    Targets([SPEC], index_of(text=["0-1.09"], num_samples=[16_000]))


def test_hours_with_many_intervals_take_no_gigabytes() -> None:
    num_frames = 720_000
    bounds = (torch.arange(36_000)[:, None] + torch.tensor([0.25, 0.5])) / 36_000
    target = TaskTarget(bounds[None], torch.ones(1, dtype=torch.long))
    (text,) = FRAMES.references(SPEC, index_of(text=["x"]), target, torch.tensor([num_frames]))
    assert abs(parse_frames(str(text)).mean() - 0.25) < 1e-3
