"""Seconds and memory against the size of the corpus: opening, planning an epoch, the first batch, batches, targets.

    python bench/corpus_size.py                            # 10,000, 100,000 and 1,000,000 utterances
    python bench/corpus_size.py --sizes 10000 --batches 50

Utterances are made by index: each has a row of its own (key, speaker, transcript, digest of the samples), and the audio
of one of 250 packed clips: all tars are hard links to one. So batches are really read, their bytes verified, decoded.
Each size has a process of its own. Memory is the kernel's: resident after the imports, then the peak in each part.
"""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from shards.files import file_sha256
from shards.manifest import IndexRecord, read_manifest, write_manifest
from shards.schema import RATE_HZ

SIZES = (10_000, 100_000, 1_000_000)
NUM_CLIPS = 250
EMOTIONS = ("anger", "happiness", "neutral", "sadness")
BATCH_UTTERANCES = 32
PARTS = ("open", "plan", "first batch", "batches", "targets")


def write_clips(folder: Path) -> Path:
    """Write shards of noise of 0.5 to 15 s (log-normal, 4.5 s on average); return their folder."""
    import soundfile as sf

    from shards.pack import pack_corpus

    generator = np.random.default_rng(0)
    with (folder / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "emotion", "speaker", "gender", "text", "split"))
        for number in range(NUM_CLIPS):
            seconds = float(np.exp(generator.normal(1.328, 0.5935)).clip(0.5, 15))
            noise = 0.05 * generator.standard_normal(int(RATE_HZ * seconds))
            sf.write(folder / f"{number:04d}.wav", noise, RATE_HZ)
            table.writerow((f"{number:04d}.wav", EMOTIONS[number % 4], f"s{number % 8}", "female", "so", "train"))
    pack_corpus("csv", folder / "clips.csv", folder / "clips", shard_utterances=NUM_CLIPS)
    return folder / "clips"


def write_folder(clips: Path, folder: Path, count: int) -> None:
    """Write a shard folder of `count` utterances whose tars are links to that of `clips`.

    Raises:
        ValueError: if `count` is no multiple of `NUM_CLIPS`.
    """
    if count % NUM_CLIPS:
        raise ValueError(f"--sizes must be multiples of {NUM_CLIPS}, got {count}")
    manifest = read_manifest(clips)
    stored = pq.read_table(clips / manifest.index.name)
    path = folder / manifest.index.name
    generator = np.random.default_rng(0)
    with pq.ParquetWriter(path, stored.schema, compression="zstd", compression_level=3) as writer:
        for start in range(0, count, 400 * NUM_CLIPS):
            rows = np.arange(start, min(count, start + 400 * NUM_CLIPS))
            part = stored.take(pa.array(rows % NUM_CLIPS))
            columns = {
                "key": [f"made/utterance-{row:09d}" for row in rows.tolist()],
                "speaker": [f"s{row * 500 // count:03d}" for row in rows.tolist()],
                "text": [f"sentence number {row} of many" for row in rows.tolist()],
                "shard": (rows // NUM_CLIPS).tolist(),
                # Of copies, speakers of two splits must have none; what is read is held to the bytes' digest.
                "pcm_sha256": [generator.bytes(32) for _ in rows],
            }
            for name, values in columns.items():
                place = part.schema.get_field_index(name)
                part = part.set_column(place, part.schema.field(place), pa.array(values, part.schema.field(place).type))
            writer.write_table(part)
    (shard,) = manifest.shards
    shards = [shard.model_copy(update={"name": f"clips-{number:06d}.tar"}) for number in range(count // NUM_CLIPS)]
    for link in shards:
        (folder / link.name).hardlink_to(clips / shard.name)
    (folder / manifest.rejected.name).write_bytes((clips / manifest.rejected.name).read_bytes())
    index = IndexRecord(name=path.name, num_bytes=path.stat().st_size, sha256=file_sha256(path), num_utterances=count)
    labels = {
        name: {value: number * len(shards) for value, number in counts.items()}
        for name, counts in manifest.labels.items()
    }
    write_manifest(folder, manifest.model_copy(update={"shards": tuple(shards), "index": index, "labels": labels}))


def run(folder: Path, num_batches: int, num_workers: int) -> dict[str, float]:
    """Do what a training does before and while it reads; return seconds and peak MiB by part."""
    from metaser.targets import Targets, resolve_tasks
    from metaser.tasks.classification import ClassificationTask
    from metaser.tasks.ctc import CtcTask
    from shards.config import RandomSpeakers
    from shards.indexload import load_index
    from shards.plan import Schedule, step_micro_batches
    from shards.read import read_batches
    from shards.splits import assign_splits

    found = {"imports MiB": resident_mib("VmRSS")}

    def part(name: str, work: Callable[[], Any]) -> Any:
        # What an import or the part before needed for a moment would hide what this one needs.
        Path("/proc/self/clear_refs").write_text("5")
        started = time.perf_counter()
        result = work()
        found[f"{name} s"] = time.perf_counter() - started
        found[f"{name} MiB"] = resident_mib("VmHWM")
        return result

    def plan() -> tuple[Any, Any]:
        way = RandomSpeakers(policy="random_speakers", num_test_speakers=20, num_dev_speakers=20)
        training = index.take(assign_splits(index, [way]).rows("train"))
        schedule = Schedule(training.num_samples, batch_utterances=BATCH_UTTERANCES, pool_utterances=1_600, seed=0)
        schedule.items(0)
        return training, schedule

    index = part("open", lambda: load_index([folder]))
    training, schedule = part("plan", plan)
    wanted = (
        micro_batch
        for step in range(schedule.steps_per_epoch)
        for micro_batch in step_micro_batches(
            schedule, step, rank=0, num_processes=1, max_micro_batch_samples=480 * RATE_HZ
        )
    )
    batches = read_batches(training, wanted, num_workers=num_workers, timeout_s=60)
    part("first batch", lambda: next(batches))
    part("batches", lambda: sum(len(batch.items_B) for batch in islice(batches, num_batches)))
    batches.close()
    found["reader MiB"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10 if num_workers else 0.0
    tasks = [ClassificationTask(name="emotion", kind="classification"), CtcTask(name="asr", kind="ctc")]
    part("targets", lambda: Targets(resolve_tasks(tasks, training), training))
    return found


def resident_mib(entry: str) -> float:
    """Return an entry of /proc/self/status in MiB: VmRSS now, VmHWM the most since it was reset.

    Raises:
        KeyError: if there is no such entry.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry):
            return int(line.split()[1]) / 1024
    raise KeyError(entry)


def show(found: dict[int, dict[str, float]], num_batches: int) -> None:
    """Print seconds, peaks and the growth between neighbouring sizes."""
    print(f"| utterances | {' | '.join(f'{name}, s' for name in PARTS)} | ms a batch |\n|{'---|' * (len(PARTS) + 2)}")
    for count, row in found.items():
        seconds = " | ".join(f"{row[f'{name} s']:.2f}" for name in PARTS)
        print(f"| {count:,} | {seconds} | {row['batches s'] / num_batches * 1e3:.1f} |")
    names = ("imports", *PARTS, "reader")
    print(f"\n| utterances | {' | '.join(f'{name}, MiB' for name in names)} |\n|{'---|' * (len(names) + 1)}")
    for count, row in found.items():
        peaks = " | ".join(f"{row[f'{name} MiB']:.0f}" for name in names)
        print(f"| {count:,} | {peaks} |")
    sizes = list(found)
    for less, more in pairwise(sizes):
        grown = {name: (found[more][f"{name} MiB"] - found[less][f"{name} MiB"]) * 2**20 for name in PARTS}
        each = ", ".join(f"{name} {size / (more - less):.0f}" for name, size in grown.items())
        print(f"\nbytes an utterance from {less:,} to {more:,}, at the end of: {each}")


def main(
    sizes: Annotated[list[int] | None, typer.Option(help="Utterances; repeat for several.")] = None,
    batches: Annotated[int, typer.Option(help="Read after the first.")] = 200,
    workers: Annotated[int, typer.Option(help="Reader processes; 0 reads in the process itself.")] = 0,
    folder: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure each size in a process of its own."""
    if folder:
        print(json.dumps(run(Path(folder), batches, workers)))
        return
    found = {}
    with tempfile.TemporaryDirectory(prefix="metaser-bench-") as temporary:
        clips = write_clips(Path(temporary))
        for count in sizes or SIZES:
            made = Path(temporary) / str(count)
            made.mkdir()
            write_folder(clips, made, count)
            command = [sys.executable, __file__, "--folder", str(made)]
            options = ["--batches", str(batches), "--workers", str(workers)]
            done = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, text=True)
            found[count] = json.loads(done.stdout.splitlines()[-1])
    show(found, batches)


if __name__ == "__main__":
    typer.run(main)
