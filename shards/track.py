"""One file's sound as models hear it: mono at 16 kHz, a channel of it or the mean of all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from shards.audio import CANCELLED, QUIET_PEAK, check_channel, prepare, to_mono
from shards.parts import load_file
from shards.windows import is_silent

_ALIKE = 1e-4
"""Energy of the difference over that of the sound: 40 dB, as lossy codecs leave between equal channels."""

_PART_SAMPLES = 1 << 20


class Channels:
    """What a recording's channels hold."""

    def __init__(self, num: int) -> None:
        """Begin with nothing heard of `num` channels."""
        self.num = num
        # The last one is their mean.
        self._lowest = np.full(num + 1, np.inf)
        self._highest = np.full(num + 1, -np.inf)
        self._energy = np.zeros(num)
        self._difference = np.zeros(num)
        self._mix_energy = 0.0

    def hear(self, samples_TC: Float32[np.ndarray, "T C"], mix_T: Float32[np.ndarray, " T"]) -> None:
        """Take in the next samples, and the mean of their channels."""
        self._lowest = np.minimum(self._lowest, [*samples_TC.min(axis=0), mix_T.min()])
        self._highest = np.maximum(self._highest, [*samples_TC.max(axis=0), mix_T.max()])
        first_T = samples_TC[:, 0]
        for number in range(self.num):
            of_channel_T = samples_TC[:, number]
            difference_T = of_channel_T - first_T
            self._energy[number] += float(np.vdot(of_channel_T, of_channel_T))
            self._difference[number] += float(np.vdot(difference_T, difference_T))
        self._mix_energy += float(np.vdot(mix_T, mix_T))

    @property
    def quiet(self) -> list[int]:
        """Channels, counted from 1, that are all but silent (peak below -60 dB of full scale)."""
        peaks = np.maximum(-self._lowest, self._highest)[:-1]
        return [int(number) + 1 for number in np.flatnonzero((peaks < QUIET_PEAK / 32_768) | self._constant())]

    def is_silent(self, channel: int | None) -> bool:
        """Return whether a channel, or the mean of all, holds no sound; resampling makes some at a constant's ends."""
        place = -1 if channel is None else channel - 1
        return is_silent(np.array([self._lowest[place], self._highest[place]], np.float32))

    @property
    def are_alike(self) -> bool:
        """Whether every channel is the first one, up to what a lossy codec changes."""
        return bool((self._difference <= _ALIKE * self._energy[0]).all())

    @property
    def cancel(self) -> bool:
        """Whether mixing leaves little of the channels, as packing judges it."""
        return self._mix_energy < CANCELLED * float(self._energy.sum()) / self.num**2

    def _constant(self) -> np.ndarray:
        return np.array([self.is_silent(number) for number in range(1, self.num + 1)])


class Track:
    """What is heard of one file."""

    def __init__(self, path: Path) -> None:
        """Open the file, and find out what its channels hold.

        Raises:
            AudioError: if it is no audio file, or is damaged.
        """
        self.path = path
        samples, self._rate_hz = load_file(path)
        self._samples_TC = samples[:, None] if samples.ndim == 1 else samples
        self.num_channels = self._samples_TC.shape[1]
        self.channels = Channels(self.num_channels)
        for _, part_TC in self._parts():
            self.channels.hear(part_TC, part_TC[:, 0] if self.num_channels == 1 else to_mono(part_TC))

    def mono(self, channel: int | None = None) -> Float32[np.ndarray, " T"]:
        """Return samples at 16 kHz: of one channel, counted from 1, or the mean of all.

        Raises:
            AudioError: if there is no such channel.
        """
        if channel is not None:
            check_channel(channel, self.num_channels, self.path)
        if channel is not None or self.num_channels == 1:
            return prepare(np.ascontiguousarray(self._samples_TC[:, (channel or 1) - 1]), self._rate_hz)
        mix_T = np.empty(len(self._samples_TC), np.float32)
        for start, part_TC in self._parts():
            mix_T[start : start + len(part_TC)] = to_mono(part_TC)
        return prepare(mix_T, self._rate_hz)

    def _parts(self) -> Iterator[tuple[int, Float32[np.ndarray, "T C"]]]:
        # An hour of stereo at 48 kHz is 1.4 GB, and each thing done to it at once as much again.
        for start in range(0, len(self._samples_TC), _PART_SAMPLES):
            yield start, self._samples_TC[start : start + _PART_SAMPLES]
