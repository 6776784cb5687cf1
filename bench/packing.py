"""Packing speed by number of processes, and what it costs to be killed half-way and run again.

    python bench/packing.py               # 1,200 WAV files of IEMOCAP-like lengths, made in a temporary folder first

Rounds alternate; medians. Seconds are of the whole command, its start included.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile as sf
import typer

from shards.manifest import read_manifest
from shards.packfolder import STATE_FOLDER

ROUNDS = 3
SHARD_UTTERANCES = 64


def write_files(folder: Path, count: int) -> Path:
    """Write 44.1 kHz stereo files and the table that lists them."""
    generator = np.random.default_rng(0)
    lengths_s = np.exp(generator.normal(1.328, 0.5935, count)).clip(0.5, 34)
    for number, length_s in enumerate(lengths_s):
        white = generator.standard_normal((int(44_100 * length_s), 2)).astype(np.float32)
        sf.write(folder / f"{number:05d}.wav", 0.02 * (white[1:] + 0.9 * white[:-1]), 44_100, subtype="PCM_16")
    table = folder / "files.csv"
    table.write_text("file\n" + "".join(f"{number:05d}.wav\n" for number in range(count)))
    return table


def command(table: Path, out: Path, workers: int) -> list[str]:
    """Return a program that packs `table`."""
    program = (
        "from pathlib import Path; from shards.pack import pack_corpus\n"
        "if __name__ == '__main__':\n"
        f"    pack_corpus('csv', Path({str(table)!r}), Path({str(out)!r}), num_workers={workers}, "
        f"shard_utterances={SHARD_UTTERANCES})\n"
    )
    script = out.with_suffix(".py")
    script.write_text(program)
    return [sys.executable, str(script)]


def timed(arguments: list[str]) -> float:
    """Return the seconds of a command."""
    started = time.perf_counter()
    subprocess.run(arguments, check=True)
    return time.perf_counter() - started


def killed_half_way(arguments: list[str], out: Path, num_shards: int) -> float:
    """Kill a packing with -9 when half of its shards are done; return its seconds."""
    started = time.perf_counter()
    with subprocess.Popen(arguments) as process:
        while len(list((out / STATE_FOLDER).glob("*.tar.json"))) < num_shards // 2:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    return time.perf_counter() - started


def main(count: Annotated[int, typer.Option(help="Files to make.")] = 1_200) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        table = write_files(folder, count)
        source_mb = sum(path.stat().st_size for path in folder.glob("*.wav")) / 1e6
        whole: dict[int, list[float]] = {1: [], 2: []}
        parts: list[tuple[float, float]] = []
        for number in range(ROUNDS):
            for workers, seconds in whole.items():
                out = folder / f"out-{workers}-{number}"
                seconds.append(timed(command(table, out, workers)))
            out = folder / f"killed-{number}"
            arguments = command(table, out, 1)
            first_s = killed_half_way(arguments, out, -(-count // SHARD_UTTERANCES))
            parts.append((first_s, timed(arguments)))
            same = [read_manifest(folder / name).sha256 for name in (f"out-1-{number}", f"killed-{number}")]
            if same[0] != same[1]:
                raise SystemExit("the resumed folder differs from the uninterrupted one")
        packed = read_manifest(folder / "out-1-0")
        audio_s = sum(shard.duration_s for shard in packed.shards)
        packed_mb = sum(shard.num_bytes for shard in packed.shards) / 1e6
        print(
            f"{count} files of 44.1 kHz stereo, {audio_s / 3600:.2f} h, {source_mb:.0f} MB -> {packed_mb:.0f} MB packed"
        )
        for workers, seconds in whole.items():
            middle = statistics.median(seconds)
            speed = f"{source_mb / middle:6.1f} MB/s, {audio_s / middle:5.0f} x real time"
            print(f"{workers} process(es): {middle:6.1f} s, {speed}")
        ratio = statistics.median(sum(part) / full for part, full in zip(parts, whole[1], strict=True))
        print(f"killed half-way and run again: {ratio:.2f} x the uninterrupted time, the same bytes")


if __name__ == "__main__":
    typer.run(main)
