"""A small synthetic corpus: every utterance is a tone, so that packing needs no files."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.corpora.base import CorpusReader
from shards.errors import AudioError
from shards.pack import pack_corpus
from shards.publish import PackSummary
from shards.schema import Rejection, SourceUtterance, Utterance, make_key


@dataclass(frozen=True)
class Tone:
    frequency_hz: float
    num_samples: int = 800
    rate_hz: int = 16_000
    num_channels: int = 1
    amplitude: float = 0.5
    delay_s: float = 0.0

    def load(self) -> tuple[np.ndarray, int]:
        time.sleep(self.delay_s)
        phase = 2 * np.pi * self.frequency_hz * np.arange(self.num_samples) / self.rate_hz
        wave = (self.amplitude * np.sin(phase)).astype(np.float32)
        return (wave if self.num_channels == 1 else np.stack([wave] * self.num_channels, axis=1)), self.rate_hz


@dataclass(frozen=True)
class Broken:
    reason: str

    def load(self) -> tuple[np.ndarray, int]:
        raise AudioError(self.reason)


def utterance(name: str, **metadata) -> Utterance:
    return Utterance(key=make_key("tones", name), corpus="tones", source=f"{name}.wav", **metadata)


def tone(number: int, *, delay_s: float = 0.0, **metadata) -> SourceUtterance:
    """The tone called `u007`, with metadata that differs from tone to tone unless given."""
    filled = {
        "emotion": ("anger", "neutral")[number % 2],
        "gender": ("female", "male", None)[number % 3],
        "speaker": f"s{number % 4}",
        "age": 20.0 + number,
        "split": ("train", "dev", "test")[number % 3],
        "extra": {"take": "ab"[number % 2]},
        **metadata,
    }
    return SourceUtterance(
        utterance(f"u{number:03d}", **filled), Tone(200 + number, 800 + 160 * number, delay_s=delay_s)
    )


def reader(items: Iterable[SourceUtterance | Rejection], name: str = "tones") -> CorpusReader:
    found = list(items)
    return CorpusReader(name, "Tones", "CC0-1.0", "nobody", lambda source, seed: iter(found))


def pack_items(items: Iterable[SourceUtterance | Rejection], out: Path, **options) -> PackSummary:
    return pack_corpus(reader(items), None, out, **{"shard_utterances": 4, **options})


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
