"""What the turns of a long recording cost to load, against decoding the recording for each of them.

    python bench/segments.py                # a recording of an hour, made in a temporary folder first

Turns of four seconds at random places, in each format in turn; the recording decoded whole once is the unit.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile as sf
import typer

from shards.audio import AudioFile

RATE_HZ = 16_000
TURN_S = 4.0
FORMATS = [("wav", "PCM_16"), ("flac", "PCM_16"), ("mp3", "MPEG_LAYER_III"), ("ogg", "VORBIS")]


def write_recording(path: Path, codec: str, length_s: int) -> None:
    """Write noise, a second at a time."""
    generator = np.random.default_rng(0)
    with sf.SoundFile(path, "w", RATE_HZ, 1, codec) as file:
        for _ in range(length_s):
            file.write(0.05 * generator.standard_normal(RATE_HZ))


def seconds_of(source: AudioFile) -> float:
    """Return how long loading takes."""
    started = time.perf_counter()
    source.load()
    return time.perf_counter() - started


def main(
    length_s: Annotated[int, typer.Option(help="Of the recording.")] = 3_600,
    turns: Annotated[int, typer.Option(help="Turns to load of each.")] = 100,
) -> None:
    """Measure."""
    starts_s = np.random.default_rng(0).uniform(0, length_s - TURN_S, turns)
    with tempfile.TemporaryDirectory() as folder:
        for suffix, codec in FORMATS:
            path = Path(folder) / f"recording.{suffix}"
            write_recording(path, codec, length_s)
            whole_s = seconds_of(AudioFile(path))
            turns_s = [seconds_of(AudioFile(path, float(start), float(start) + TURN_S)) for start in starts_s]
            ratio = turns * whole_s / sum(turns_s)
            print(
                f"{suffix:5s} whole {whole_s:6.2f} s; first turn {turns_s[0] * 1e3:8.1f} ms, the others "
                f"{statistics.median(turns_s[1:]) * 1e3:6.2f} ms each; {ratio:7.0f} x faster than {turns} decodings",
                flush=True,
            )
            path.unlink()


if __name__ == "__main__":
    typer.run(main)
