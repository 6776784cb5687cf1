"""Our reader and webdataset's on the same shards, alternately in one process: records, batches, and resuming.

    python bench/reader.py                # makes 2,000 clips of IEMOCAP-like lengths in a temporary folder first
    python bench/reader.py --shards data/emodb

Medians over the rounds and of the ratios within each round, per second of this process's CPU time: files lie in the
page cache, and other work on the machine must not count. No reader processes. Clips are filtered noise, which FLAC
compresses about as well as speech.
"""

from __future__ import annotations

import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile as sf
import torch
import typer
import webdataset

from shards.corpora.base import CorpusReader
from shards.index import Index
from shards.indexload import load_index
from shards.pack import pack_corpus
from shards.plan import MicroBatch, Schedule, step_micro_batches
from shards.ranges import micro_batch_request
from shards.read import read_batches
from shards.schema import RATE_HZ, SourceUtterance, Utterance, make_key
from shards.store import RangeReader

BATCH = 32
NO_LIMIT = 10**12


@dataclass(frozen=True)
class Noise:
    """Speech-like in level and spectrum: noise through a leaky integrator, swelling at a syllable's pace."""

    seed: int
    num_samples: int

    def load(self) -> tuple[np.ndarray, int]:
        """Return the samples and their rate."""
        white = np.random.default_rng(self.seed).standard_normal(self.num_samples).astype(np.float32)
        smooth = np.convolve(white, 0.9 ** np.arange(32), mode="same")
        swell = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * np.arange(self.num_samples) / RATE_HZ)
        return (0.02 * smooth * swell).astype(np.float32), RATE_HZ


def make_shards(folder: Path, count: int) -> None:
    """Pack `count` clips of IEMOCAP-like lengths (log-normal, mean 4.5 s, 99th percentile 15 s)."""
    lengths = (RATE_HZ * np.exp(np.random.default_rng(0).normal(1.328, 0.5935, count)).clip(0.5, 34)).astype(int)

    def read(_source: Path | None, _seed: int) -> Iterator[SourceUtterance]:
        for number, length in enumerate(lengths.tolist()):
            utterance = Utterance(
                key=make_key("noise", f"u{number:06d}"), corpus="noise", emotion="neutral", text="a b c"
            )
            yield SourceUtterance(utterance, Noise(number, length))

    pack_corpus(CorpusReader("noise", "Noise", "CC0-1.0", "", read), None, folder, num_workers=2)


# ---------------------------------------------------------------- the two readers


def our_records(index: Index) -> int:
    """Read every clip's bytes in random order."""
    ranges = RangeReader()
    order = np.random.default_rng(1).permutation(len(index))
    for start in range(0, len(order), BATCH):
        for clip in micro_batch_request(index, MicroBatch(order[start : start + BATCH])).clips:
            ranges.read(clip.place, clip.offset, clip.num_bytes)
    return len(order)


def their_records(index: Index) -> int:
    """Read every sample's bytes in the shards' order."""
    return sum(1 for _ in webdataset.WebDataset(list(index.shard_places), shardshuffle=False))


def our_batches(index: Index) -> int:
    """Decode, verify and pad an epoch's batches."""
    schedule = Schedule(index.num_samples, batch_utterances=BATCH, pool_utterances=1_600, seed=0)
    micro_batches = (
        micro_batch
        for step in range(schedule.steps_per_epoch)
        for micro_batch in step_micro_batches(schedule, step, rank=0, num_processes=1, max_micro_batch_samples=NO_LIMIT)
    )
    return sum(len(batch.items_B) for batch in read_batches(index, micro_batches, num_workers=0, timeout_s=60))


def same_batches_unsorted(index: Index) -> int:
    """Decode, verify and pad the batches that webdataset's order gives, so that padding is the same."""
    micro_batches = (
        MicroBatch(np.arange(start, min(start + BATCH, len(index)))) for start in range(0, len(index), BATCH)
    )
    return sum(len(batch.items_B) for batch in read_batches(index, micro_batches, num_workers=0, timeout_s=60))


def their_batches(index: Index) -> int:
    """Decode and pad with webdataset, the usual way: soundfile for audio, json for metadata, a collation function."""
    return sum(len(batch[1]) for batch in _their_dataset(index))


def _their_dataset(index: Index) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[str]]]:
    return iter(
        webdataset.WebDataset(list(index.shard_places), shardshuffle=False)
        .map_dict(flac=lambda data: sf.read(io.BytesIO(data), dtype="float32")[0], json=json.loads)
        .batched(BATCH, collation_fn=_collate)
    )


def _collate(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    lengths = torch.tensor([len(sample["flac"]) for sample in samples])
    wave = torch.zeros(len(samples), int(lengths.max()))
    for row, sample in zip(wave, samples, strict=True):
        row[: len(sample["flac"])] = torch.from_numpy(sample["flac"])
    return wave, lengths, [sample["json"]["emotion"] for sample in samples]


def our_resume(index: Index) -> int:
    """Deliver the first batch after 90 % of an epoch."""
    schedule = Schedule(index.num_samples, batch_utterances=BATCH, pool_utterances=1_600, seed=0)
    step = int(0.9 * schedule.steps_per_epoch)
    micro_batches = step_micro_batches(schedule, step, rank=0, num_processes=1, max_micro_batch_samples=NO_LIMIT)
    next(read_batches(index, micro_batches, num_workers=0, timeout_s=60))
    return 1


def their_replay_of_records(index: Index) -> int:
    """Replay 90 % of an epoch without decoding it, then deliver a batch: the best that an iterable can do."""
    samples = iter(webdataset.WebDataset(list(index.shard_places), shardshuffle=False))
    skipped = int(0.9 * len(index))
    decoded = [
        {"flac": sf.read(io.BytesIO(sample["flac"]), dtype="float32")[0], "json": json.loads(sample["json"])}
        for sample in islice(samples, skipped, skipped + BATCH)
    ]
    _collate(decoded)
    return 1


def their_replay_of_batches(index: Index) -> int:
    """Replay 90 % of an epoch's batches, as skipping the first batches of a loader does."""
    skipped = int(0.9 * len(index)) // BATCH
    next(islice(_their_dataset(index), skipped, None))
    return 1


# ---------------------------------------------------------------- measuring


def compare(title: str, unit: str, ours: Callable[[Index], int], theirs: Callable[[Index], int], index: Index) -> None:
    """Time the two alternately and print medians per CPU second."""
    rates: tuple[list[float], list[float]] = ([], [])
    for round_number in range(ROUNDS + 1):
        for run, rate in zip((ours, theirs), rates, strict=True):
            started = time.process_time()
            count = run(index)
            if round_number:  # the first warms the caches
                rate.append(count / (time.process_time() - started))
    ratio = statistics.median(our / their for our, their in zip(*rates, strict=True))
    our_rate, their_rate = map(statistics.median, rates)
    print(f"{title:44s} {our_rate:12,.1f} {their_rate:12,.1f} {unit:9s} {ratio:8.2f} x")


ROUNDS = 5


@contextmanager
def folder_of(shards: str | None, count: int) -> Iterator[Path]:
    """Yield the shards to read."""
    if shards is not None:
        yield Path(shards)
        return
    with tempfile.TemporaryDirectory() as temporary:
        make_shards(Path(temporary) / "noise", count)
        yield Path(temporary) / "noise"


def main(
    shards: Annotated[str | None, typer.Option(help="Shard folder to read instead of noise.")] = None,
    count: Annotated[int, typer.Option(help="Clips to make.")] = 2_000,
) -> None:
    """Compare the two readers."""
    torch.set_num_threads(1)
    with folder_of(shards, count) as folder:
        index = load_index([folder])
        print(
            f"{len(index)} clips, {index.duration_s.mean():.2f} s on average, {len(index.shard_places)} shards; "
            f"webdataset {webdataset.__version__}, medians of {ROUNDS} rounds\n"
        )
        print(f"{'':44s} {'ours':>12s} {'webdataset':>12s} {'':9s} {'ratio':>8s}")
        compare("records, not decoded (ours in random order)", "clips/s", our_records, their_records, index)
        compare("decoded and batched, the same batches", "clips/s", same_batches_unsorted, their_batches, index)
        compare("decoded and batched, our schedule", "clips/s", our_batches, their_batches, index)
        compare("first batch after 90 %, records replayed", "1/s", our_resume, their_replay_of_records, index)
        compare("first batch after 90 %, batches replayed", "1/s", our_resume, their_replay_of_batches, index)


if __name__ == "__main__":
    typer.run(main)
