"""What distance costs: clips' byte ranges in random order from local shards, over HTTP on loopback, and from the cache.

    python bench/remote.py [--latency_ms 20]

Shards are random bytes with clip sizes like those of 4.5-s FLAC clips; nothing is decoded. All kinds read the same
clips, alternately in one run, each round in another order; medians. The server is a process of its own, and answers
after the latency.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from shards.config import RemoteConfig
from shards.store import RangeReader

CLIPS_PER_SHARD = 256
Range = tuple[str, int, int]


def main() -> None:
    """Time every way of reading and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=512, help="clips read in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32, help="clips asked for together")
    parser.add_argument("--latency_ms", type=float, default=0.0, help="what the server waits before each reply")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clips = write_shards(Path(folder) / "shards", 4 * CLIPS_PER_SHARD)
        here, there = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(
            target=serve, args=(there, Path(folder) / "shards", arguments.latency_ms / 1000), daemon=True
        )
        server.start()
        url = here.recv()
        kinds = readers(url, RemoteConfig(cache_dir=f"{folder}/cache"), arguments.batch)
        order = np.random.default_rng(0).permutation(len(clips))[: arguments.clips]
        chosen = [clips[number] for number in order]
        times_s: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(arguments.rounds + 1):
            for kind, read in random.Random(number).sample(sorted(kinds.items()), len(kinds)):
                started = time.perf_counter()
                num_bytes = read(chosen)
                if number > 0:  # the first round opens files and connections, and fills the cache
                    times_s[kind].append(time.perf_counter() - started)
        server.kill()
    report(times_s, arguments.clips, num_bytes)


def write_shards(folder: Path, num_clips: int) -> list[Range]:
    """Write shards of random bytes; return each clip's path, offset and length."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    seconds = np.clip(np.exp(generator.normal(np.log(4.5) - 0.18, 0.6, num_clips)), 0.6, 30)
    clips: list[Range] = []
    for first in range(0, num_clips, CLIPS_PER_SHARD):
        lengths = (seconds[first : first + CLIPS_PER_SHARD] * 16_000).astype(int)  # FLAC: about a byte per sample
        path = folder / f"bench-{first:06d}.tar"
        path.write_bytes(generator.bytes(int(lengths.sum())))
        offsets = np.cumsum(lengths) - lengths
        clips += [(str(path), int(offset), int(length)) for offset, length in zip(offsets, lengths, strict=True)]
    return clips


def readers(url: str, cached: RemoteConfig, batch: int) -> dict[str, Callable[[Sequence[Range]], int]]:
    """Return functions that read ranges, given by local paths, and return the number of bytes."""
    local, remote, kept = RangeReader(), RangeReader(), RangeReader(cached)
    descriptors: dict[str, int] = {}

    def plain(clips: Sequence[Range]) -> int:
        total = 0
        for path, offset, num_bytes in clips:
            if path not in descriptors:
                descriptors[path] = os.open(path, os.O_RDONLY)
            total += len(os.pread(descriptors[path], num_bytes, offset))
        return total

    def one_by_one(reader: RangeReader, clips: Sequence[Range]) -> int:
        return sum(len(reader.read(*clip)) for clip in clips)

    def together(reader: RangeReader, clips: Sequence[Range]) -> int:
        return sum(
            len(data)
            for first in range(0, len(clips), batch)
            for data in reader.read_many(clips[first : first + batch])
        )

    def by_url(read: Callable[[RangeReader, Sequence[Range]], int], reader: RangeReader, clips: Sequence[Range]) -> int:
        return read(reader, [(f"{url}/{Path(path).name}", *span) for path, *span in clips])

    return {
        "plain os.pread": plain,
        "local": partial(one_by_one, local),
        "HTTP, one by one": partial(by_url, one_by_one, remote),
        f"HTTP, {batch} together": partial(by_url, together, remote),
        "HTTP, warm cache": partial(by_url, together, kept),
    }


def report(times_s: dict[str, list[float]], num_clips: int, num_bytes: int) -> None:
    """Print the median of each kind and its ratio to the plainest."""
    base_s = statistics.median(times_s["plain os.pread"])
    print(f"{num_clips} clips of {num_bytes / num_clips / 1e3:.0f} kB")
    for kind, values in times_s.items():
        median_s = statistics.median(values)
        print(
            f"{kind:20s} {num_clips / median_s:9.0f} clips/s {num_bytes / median_s / 1e6:7.0f} MB/s"
            f"   x {median_s / base_s:.2f} of the time"
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        time.sleep(self.server.latency_s)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        start, end = int(asked[1]), int(asked[2])
        path = self.server.folder / Path(self.path).name
        with path.open("rb") as file:
            data = os.pread(file.fileno(), end - start + 1, start)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def serve(there: Connection, folder: Path, latency_s: float) -> None:
    """Serve `folder` on loopback and tell the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.latency_s = folder, latency_s
    there.send(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()


if __name__ == "__main__":
    main()
