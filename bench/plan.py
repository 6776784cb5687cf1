"""Time and memory of planning against the number of utterances; padding, waiting and randomness of the plan.

    python bench/plan.py                     # up to ten million utterances
    python bench/plan.py --sizes 10000 --sizes 100000

Planning is all that a training does before its first step: the folder is checked and its columns are read from
`index.parquet`, speakers are split, a filter is applied, the first epoch is drawn. Each size runs in a process of its
own, whose peak memory is the kernel's (`ru_maxrss`).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from shards.config import RandomSpeakers
from shards.files import file_sha256
from shards.filter import select_rows
from shards.index import INDEX_SCHEMA
from shards.indexload import load_index
from shards.manifest import FileRecord, IndexRecord, Manifest, Settings, ShardRecord, write_manifest
from shards.plan import Schedule, cut_micro_batches, step_micro_batches
from shards.ranges import micro_batch_request
from shards.schema import RATE_HZ, SCHEMA_VERSION
from shards.splits import assign_splits

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
EMOTIONS = ("anger", "happiness", "neutral", "sadness")
NUM_STEPS = 2_000


def write_folder(folder: Path, count: int) -> None:
    """Write the index and manifest of `count` utterances of 500 speakers, and a tar of the size they name (a hole)."""
    generator = np.random.default_rng(0)
    duration_s = 0.0
    speakers = [f"s{row * 500 // count:03d}" for row in range(count)]
    with pq.ParquetWriter(folder / "index.parquet", INDEX_SCHEMA, compression="zstd", compression_level=3) as writer:
        for start in range(0, count, 1 << 17):
            rows = np.arange(start, min(count, start + (1 << 17)))
            size = len(rows)
            words = {
                "key": [f"made/{speakers[row]}/utterance-{row:09d}" for row in rows.tolist()],
                "corpus": ["made"] * size,
                "speaker": [f"made:{speakers[row]}" for row in rows.tolist()],
                "gender": [("female", "male")[int(speakers[row][1:]) % 2] for row in rows.tolist()],
                "emotion": [EMOTIONS[number] for number in generator.integers(0, 4, size).tolist()],
                "text": [f"sentence number {row} of many that nobody needs while planning" for row in rows.tolist()],
                "extra": ["{}"] * size,
            }
            numbers = {
                "shard": np.zeros(size, np.int32),
                "audio_offset": 512 + rows * 100_352,
                "audio_bytes": np.full(size, 90_000),
                "num_samples": (RATE_HZ * np.exp(generator.normal(1.328, 0.5935, size)))
                .clip(8_000, 480_000)
                .astype(int),
            }
            duration_s += float(numbers["num_samples"].sum()) / RATE_HZ
            digests = {name: [generator.bytes(32) for _ in range(size)] for name in ("audio_sha256", "pcm_sha256")}
            columns = {name: [None] * size for name in INDEX_SCHEMA.names} | words | numbers | digests
            writer.write_table(pa.table(columns, schema=INDEX_SCHEMA))
    tar = folder / "made-000000.tar"
    with tar.open("wb") as file:
        file.truncate(count * 100_352 + 1_024)
    (folder / "rejected.jsonl").touch()

    def record(path: Path) -> dict[str, object]:
        return {"name": path.name, "num_bytes": path.stat().st_size, "sha256": file_sha256(path)}

    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        corpus="made",
        licence="",
        citation="",
        source=None,
        settings=Settings(seed=0, shard_utterances=count, max_duration_s=60, versions={}),
        fingerprint="",
        shards=(
            ShardRecord(
                name=tar.name,
                num_bytes=tar.stat().st_size,
                sha256="0" * 64,
                num_utterances=count,
                duration_s=duration_s,
            ),
        ),
        index=IndexRecord(**record(folder / "index.parquet"), num_utterances=count),
        rejected=FileRecord(**record(folder / "rejected.jsonl")),
        labels={"corpus": {"made": count}},
        extra_names=(),
        num_rejected_by_kind={},
        warnings=(),
    )
    write_manifest(folder, manifest)


def plan(folder: Path) -> dict[str, float]:
    """Plan a training and ask for the requests of some steps; return seconds and peak memory."""
    started = time.perf_counter()
    index = load_index([folder])
    splits = assign_splits(index, [RandomSpeakers(policy="random_speakers", num_test_speakers=20, num_dev_speakers=20)])
    chosen = select_rows(index, 'emotion in ["anger", "happiness", "neutral", "sadness"] and duration_s < 20')
    rows = splits.rows("train")
    training = index.take(rows[chosen[rows]])
    schedule = Schedule(training.num_samples, batch_utterances=256, pool_utterances=1_600, seed=0)
    schedule.items(0)
    micro_batch_request(
        training, step_micro_batches(schedule, 0, rank=3, num_processes=8, max_micro_batch_samples=320 * RATE_HZ)[0]
    )
    planned = time.perf_counter()
    num_steps = min(NUM_STEPS, schedule.steps_per_epoch)
    for step in range(num_steps):
        for micro_batch in step_micro_batches(
            schedule, step, rank=3, num_processes=8, max_micro_batch_samples=320 * RATE_HZ
        ):
            micro_batch_request(training, micro_batch)
    return {
        "plan_s": planned - started,
        "step_ms": (time.perf_counter() - planned) / num_steps * 1e3,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def quality() -> None:
    """Print padding, straggler factor and randomness on IEMOCAP-like lengths (log-normal, mean 4.5 s, p99 15 s)."""
    num_samples = (RATE_HZ * np.exp(np.random.default_rng(0).normal(1.328, 0.5935, 5_531)).clip(0.5, 34)).astype(int)
    print("\n5,531 clips of IEMOCAP-like lengths over 8 micro-batches a step, pools of 1,600")
    print("clips a micro-batch   pool   padding  straggler  together again  (by chance)")
    for per_micro_batch in (4, 32):
        for pool in (1_600, 8 * per_micro_batch):
            schedule = Schedule(num_samples, batch_utterances=8 * per_micro_batch, pool_utterances=pool, seed=0)
            padded = largest = again = pairs = 0
            second = np.empty(len(num_samples), int)
            for step in range(schedule.steps_per_epoch, 2 * schedule.steps_per_epoch):
                second[schedule.items(step)] = step
            for step in range(schedule.steps_per_epoch):
                items = schedule.items(step)
                lengths = num_samples[items]
                (micro_batches,) = cut_micro_batches(lengths, 8, 10**9)
                costs = [
                    len(micro_batch) * int(lengths[micro_batch[-1]]) if len(micro_batch) else 0
                    for micro_batch in micro_batches
                ]
                padded, largest = padded + sum(costs), largest + 8 * max(costs)
                met = second[items]
                again += int((met[:, None] == met).sum()) - len(met)
                pairs += len(met) * (len(met) - 1)
            chance = 8 * per_micro_batch / len(num_samples)
            print(
                f"{per_micro_batch:12d}  {pool:5d}  {1 - num_samples.sum() / padded:7.1%}  {largest / padded:9.3f}"
                f"  {again / pairs:14.1%}  {chance:11.1%}"
            )


def main(
    sizes: Annotated[list[int] | None, typer.Option(help="Utterances; repeat for several.")] = None,
    folder: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure each size in a process of its own."""
    if folder:
        print(json.dumps(plan(Path(folder))))
        return
    print("utterances   index MB   plan s   a rank's slice of a step, ms   peak GiB")
    for count in sizes or SIZES:
        with tempfile.TemporaryDirectory() as temporary:
            write_folder(Path(temporary), count)
            size_mb = (Path(temporary) / "index.parquet").stat().st_size / 1e6
            done = subprocess.run(
                [sys.executable, __file__, "--folder", temporary], check=True, stdout=subprocess.PIPE, text=True
            )
            got = json.loads(done.stdout)
        print(f"{count:10,d}  {size_mb:9.1f}  {got['plan_s']:7.2f}  {got['step_ms']:29.2f}  {got['peak_gib']:9.2f}")
    quality()


if __name__ == "__main__":
    typer.run(main)
