"""A plan turned into decoded, padded batches by reader processes that see byte ranges only."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from shards.audio import decode_flac, pcm16, pcm_sha256
from shards.batch import Batch, collate
from shards.errors import AudioError, ShardError
from shards.manifest import Index
from shards.plan import Slot

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class ClipRange:
    """Where one clip's FLAC bytes lie, and what they must decode to."""

    key: str
    path: str
    offset: int
    num_bytes: int
    num_samples: int
    sha256: str


@dataclass(frozen=True)
class SlotRequest:
    """All that a reader process needs to know of one slot."""

    items: np.ndarray
    clips: tuple[ClipRange, ...]
    is_dummy: bool


def slot_request(index: Index, slot: Slot) -> SlotRequest:
    """Return the byte ranges of `slot`, whose items are rows of `index`."""
    keys = index.table.column("key")
    hashes = index.table.column("pcm_sha256")
    clips = tuple(
        ClipRange(
            key=keys[row].as_py(),
            path=str(index.shard_paths[index.shard[row]]),
            offset=int(index.audio_offset[row]),
            num_bytes=int(index.audio_bytes[row]),
            num_samples=int(index.num_samples[row]),
            sha256=hashes[row].as_py(),
        )
        for row in slot.items.tolist()
    )
    return SlotRequest(slot.items, clips, slot.is_dummy)


class SlotDataset(Dataset[Batch | ShardError]):
    """Maps a `SlotRequest` to its `Batch`; lives in the reader processes.

    A shard that cannot be opened is returned, not raised: torch would bury its sentence in a worker's traceback.
    """

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def __getitem__(self, request: SlotRequest) -> Batch | ShardError:
        clips, valid, problems = [], [], []
        for clip in request.clips:
            try:
                clips.append(self._decode(clip))
                valid.append(not request.is_dummy)
            except AudioError as error:
                clips.append(np.zeros(clip.num_samples, dtype=np.float32))
                valid.append(False)
                problems.append(str(error))
            except ShardError as error:
                return error
        return collate(request.items, clips, valid, problems)

    def _decode(self, clip: ClipRange) -> np.ndarray:
        data = os.pread(self._descriptor(clip.path), clip.num_bytes, clip.offset)
        where = f"utterance {clip.key!r} in {clip.path}"
        if len(data) != clip.num_bytes:
            raise AudioError(f"{where} must have {clip.num_bytes} bytes at {clip.offset}, got {len(data)}")
        try:
            samples = decode_flac(data)
        except AudioError as error:
            raise AudioError(f"{where}: {error}") from error
        if len(samples) != clip.num_samples or pcm_sha256(pcm16(samples)) != clip.sha256:
            raise AudioError(
                f"{where} does not decode to the audio that was packed ({len(samples)} samples, expected "
                f"{clip.num_samples}); run `metaser inspect --verify`"
            )
        return samples

    def _descriptor(self, path: str) -> int:
        if path not in self._descriptors:
            try:
                self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise ShardError(f"shard {path} must be readable: {error.strerror}") from error
        return self._descriptors[path]

    def __getstate__(self) -> dict[str, Any]:
        return {"_descriptors": {}}


@atexit.register
def _kill_readers() -> None:
    """Let the process end: multiprocessing asks its children by SIGTERM, to which readers are deaf, and waits."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def start_reader_server() -> None:
    """Start the process that reader processes are forked from, deaf to the signals that stop a training.

    A signal sent to the whole job must reach the trainer only: were the server or a reader to die of it, the last
    checkpoint could not be followed by a clean stop.
    """
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in (*STOP_SIGNALS, signal.SIGINT)}
    try:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["shards.read"])
        forkserver.ensure_running()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _ignore_stop_signals(_worker: int) -> None:
    """Again in each reader: torch installs a SIGTERM handler of its own that ends it."""
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def read_slots(
    index: Index, slots: Iterable[Slot], *, num_workers: int, timeout_s: float, pin_memory: bool = False
) -> Iterator[Batch]:
    """Yield the batch of each slot, in order, read ahead by `num_workers` processes (0: in this one).

    Raises:
        ShardError: if a reader process dies or delivers nothing for `timeout_s`.
    """
    requests = (slot_request(index, slot) for slot in slots)
    if num_workers == 0:
        dataset = SlotDataset()
        yield from map(_batch_or_raise, (dataset[request] for request in requests))
        return
    start_reader_server()
    loader: DataLoader[Batch | ShardError] = DataLoader(
        SlotDataset(),
        batch_size=None,
        sampler=requests,
        num_workers=num_workers,
        multiprocessing_context="forkserver",
        timeout=timeout_s,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_stop_signals,
    )
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:  # a dying reader may break its pipe first
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ShardError(
                f"a reader process must deliver a batch within {timeout_s:g} s, but: {reason}; "
                f"the shards are {sorted({str(Path(path).parent) for path in index.shard_paths})}"
            ) from error
        yield _batch_or_raise(batch)


def _batch_or_raise(result: Batch | ShardError) -> Batch:
    if isinstance(result, ShardError):
        raise result
    return result
