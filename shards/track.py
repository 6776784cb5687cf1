"""One file's sound block by block, as models hear it: mono at 16 kHz, a channel of it or the mean of all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from shards.audio import AudioFile, prepare, to_mono
from shards.errors import AudioError
from shards.windows import is_silent

_ALIKE = 1e-4
"""Energy of the difference over that of the sound: 40 dB, as lossy codecs leave between equal channels."""


class Channels:
    """What a pass over a recording finds in its channels."""

    def __init__(self, num: int) -> None:
        """Begin with nothing heard of `num` channels."""
        self.num = num
        self._lowest = np.full(num, np.inf)
        self._highest = np.full(num, -np.inf)
        self._energy = np.zeros(num)
        self._difference = np.zeros(num)
        self._mix_energy = 0.0

    def hear(self, samples_TC: Float32[np.ndarray, "T C"], mix_T: Float32[np.ndarray, " T"]) -> None:
        """Take in the next samples, and the mean of their channels."""
        self._lowest = np.minimum(self._lowest, samples_TC.min(axis=0))
        self._highest = np.maximum(self._highest, samples_TC.max(axis=0))
        first_T = samples_TC[:, 0]
        for number in range(self.num):
            of_channel_T = samples_TC[:, number]
            difference_T = of_channel_T - first_T
            self._energy[number] += float(np.vdot(of_channel_T, of_channel_T))
            self._difference[number] += float(np.vdot(difference_T, difference_T))
        self._mix_energy += float(np.vdot(mix_T, mix_T))

    @property
    def silent(self) -> list[int]:
        """Channels, counted from 1, that hold no sound."""
        ranges = np.stack([self._lowest, self._highest]).astype(np.float32)
        return [number + 1 for number in range(self.num) if is_silent(ranges[:, number])]

    @property
    def are_alike(self) -> bool:
        """Whether every channel is the first one, up to what a lossy codec changes."""
        return bool((self._difference <= _ALIKE * self._energy[0]).all())

    @property
    def cancel(self) -> bool:
        """Whether the mean of the channels is more than 40 dB below them."""
        return self._mix_energy <= _ALIKE * self._energy.mean() and len(self.silent) < self.num


class Track:
    """What is heard of one file."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            AudioError: if it is no audio file, or is damaged.
        """
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise AudioError(f"audio must be a file, but {path} is a device or a pipe; write the sound to a file first")
        self.path = path
        samples, self._rate_hz = AudioFile(path).load()
        self._samples_TC = samples[:, None] if samples.ndim == 1 else samples
        self.num_channels = self._samples_TC.shape[1]
        self.channels = Channels(self.num_channels)
        """What the last pass over all blocks has found."""

    def blocks(self, channel: int | None = None) -> Iterator[Float32[np.ndarray, " T"]]:
        """Yield mono samples at 16 kHz: one channel, counted from 1, or the mean of all.

        Raises:
            AudioError: if there is no such channel, or a part of the file is damaged.
        """
        if channel is not None and not 1 <= channel <= self.num_channels:
            raise AudioError(f"channel must be 1 to the {self.num_channels} of {self.path}, got {channel}; correct it")
        self.channels = Channels(self.num_channels)
        yield prepare(self._mono(self._samples_TC, channel), self._rate_hz)

    def _mono(self, samples_TC: Float32[np.ndarray, "T C"], channel: int | None) -> Float32[np.ndarray, " T"]:
        mix_T = samples_TC[:, 0] if self.num_channels == 1 else to_mono(samples_TC)
        self.channels.hear(samples_TC, mix_T)
        return mix_T if channel is None else samples_TC[:, channel - 1]
