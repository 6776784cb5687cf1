"""A recording cut into windows: all of it, no sliver, each moment spoken for once."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.schema import RATE_HZ
from shards.windows import FRAME_SAMPLES, Windowing, is_silent

WINDOWINGS = st.tuples(st.integers(1_600, 20_000), st.floats(0, 0.98)).map(
    lambda given: Windowing.of_seconds(given[0] / RATE_HZ, given[0] / RATE_HZ * given[1])
)


def test_seconds_become_samples():
    assert Windowing.of_seconds(2.0, 0.5) == Windowing(32_000, 24_000)
    assert Windowing.of_seconds(2.0) == Windowing(32_000, 24_000)
    # The overlap that was asked for is the least: windows begin at whole frames.
    assert Windowing.of_seconds(2.0, 0.51) == Windowing(32_000, 23_680)
    assert Windowing.of_seconds(0.1, 0.1).hop == FRAME_SAMPLES


def test_what_fits_a_window_is_one():
    assert Windowing(1_600, 800).cut(1_600) == ((0, 1_600, 0, 1_600),)
    assert Windowing(1_600, 800).cut(7) == ((0, 7, 0, 7),)


def test_the_last_window_is_moved_back():
    windows = Windowing(16_000, 8_000).cut(26_100)
    assert [(window.start, window.end) for window in windows] == [(0, 16_000), (8_000, 24_000), (10_240, 26_100)]
    assert [(window.own_start, window.own_end) for window in windows] == [
        (0, 12_000),
        (12_000, 17_120),
        (17_120, 26_100),
    ]


@given(WINDOWINGS, st.integers(1, 300_000))
def test_windows_cover_a_recording_and_share_it(windowing, num_samples):
    windows = windowing.cut(num_samples)
    assert (windows[0].start, windows[-1].end) == (0, num_samples)
    assert all(window.start % FRAME_SAMPLES == 0 for window in windows)
    assert all(window.start <= window.own_start < window.own_end <= window.end for window in windows)
    assert all(left.own_end == right.own_start for left, right in pairwise(windows))
    assert sum(window.own_samples for window in windows) == num_samples
    if len(windows) > 1:
        lengths = [window.end - window.start for window in windows]
        assert set(lengths[:-1]) == {windowing.length}
        assert windowing.length - FRAME_SAMPLES < lengths[-1] <= windowing.length
        gaps = [right.start - left.start for left, right in pairwise(windows)]
        assert set(gaps[:-1]) <= {windowing.hop}
        assert 0 < gaps[-1] <= windowing.hop


@pytest.mark.parametrize("level", [0.0, 0.25, -1.0])
def test_a_constant_is_silent(level):
    assert is_silent(np.full(1_000, level, np.float32))
    assert is_silent(np.full(1_000, level, np.float32) + np.float32(1e-6) * np.arange(1_000).astype(np.float32) / 1_000)


def test_two_steps_of_sixteen_bits_are_sound():
    samples = np.zeros(1_000, np.float32)
    samples[500] = 2 / 32_768
    assert not is_silent(samples)
