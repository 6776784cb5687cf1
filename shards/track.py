"""One file's sound as models hear it: mono at 16 kHz, a channel of it or the mean of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from shards.audio import CANCELLED, QUIET_PEAK, Sound, check_channel, to_mono
from shards.limits import MAX_CLIP_S
from shards.parts import hear_file
from shards.windows import is_silent

_ALIKE = 1e-4
"""Energy of the difference over that of the sound: 40 dB, as lossy codecs leave between equal channels."""

_PART_SAMPLES = 1 << 20
_MOST_KEPT_VALUES = 1 << 26
"""Samples, 268 MB: twelve minutes of stereo at 48 kHz."""


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
        # Channel by channel: for two, numpy takes 80 times as long over a short axis.
        heard = [*samples_TC.T, mix_T]
        self._lowest = np.minimum(self._lowest, [samples_T.min() for samples_T in heard])
        self._highest = np.maximum(self._highest, [samples_T.max() for samples_T in heard])
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

    most_s: float = MAX_CLIP_S

    def __init__(self, path: Path, channel: int | None = None) -> None:
        """Decode the file, find out what its channels hold, and make ready what `mono` returns of `channel`.

        Raises:
            AudioError: if it is no audio file, is damaged or too long.
        """
        self.path = path
        self._first = channel
        self.begin()
        hear_file(path, self)

    def begin(self) -> None:
        """Forget what came; what decodes the file calls it."""
        self.num_channels = 0
        self._sound: Sound | None = None
        self._kept: list[tuple[np.ndarray, int]] | None = []

    def take(self, samples: Float32[np.ndarray, "T *channels"], rate_hz: int) -> None:
        """Hear the next block; what decodes the file calls it."""
        samples_TC = samples[:, None] if samples.ndim == 1 else samples
        if not self.num_channels:
            self.num_channels = samples_TC.shape[1]
            self.channels = Channels(self.num_channels)
            if self._first is None or self._first <= self.num_channels:
                self._sound = self._new_sound(self._first)
        for start in range(0, len(samples_TC), _PART_SAMPLES):
            part_TC = samples_TC[start : start + _PART_SAMPLES]
            self.channels.hear(part_TC, part_TC[:, 0] if self.num_channels == 1 else to_mono(part_TC))
        if self._sound is not None:
            self._sound.take(samples, rate_hz)
        # Of a longer recording every other channel is decoded anew.
        if self._kept is not None:
            self._kept.append((samples, rate_hz))
            if sum(block.size for block, _ in self._kept) > _MOST_KEPT_VALUES:
                self._kept = None

    def mono(self, channel: int | None = None) -> Float32[np.ndarray, " T"]:
        """Return samples at 16 kHz: of one channel, counted from 1, or the mean of all.

        Raises:
            AudioError: if there is no such channel.
        """
        if channel is not None:
            check_channel(channel, self.num_channels, self.path)
        sound, self._sound = self._sound, None
        if sound is not None and channel == self._first:
            return sound.end()
        sound = self._new_sound(channel)
        if self._kept is None:
            hear_file(self.path, sound)
        else:
            for block, rate_hz in self._kept:
                sound.take(block, rate_hz)
        return sound.end()

    def _new_sound(self, channel: int | None) -> Sound:
        return Sound(str(self.path), channel)
