"""A plan turned into decoded, padded batches by reader processes that see byte ranges only."""

from __future__ import annotations

import atexit
import errno
import hashlib
import multiprocessing
import os
import resource
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
from torch.multiprocessing import set_sharing_strategy
from torch.utils.data import DataLoader, Dataset

from shards.audio import decode_stored, pcm16, pcm_sha256
from shards.batch import Batch, as_batch
from shards.config import RemoteConfig
from shards.errors import AudioError, RangeError, ShardError
from shards.index import Index
from shards.parentdeath import exit_with_parent
from shards.plan import MicroBatch
from shards.ranges import ClipRange, MicroBatchRequest, micro_batch_request
from shards.signals import STOP_SIGNALS
from shards.store import RangeReader

_FILES_OF_LOADER, _FILES_OF_READER = 8, 6
"""How many the trainer opens for all readers, and for each."""


class MicroBatchDataset(Dataset[Batch | ShardError]):
    """Maps a `MicroBatchRequest` to its `Batch`; lives in the reader processes.

    A shard that cannot be read is returned, not raised: torch would bury its sentence in a worker's traceback.
    """

    def __init__(self, remote: RemoteConfig | None = None, *, is_shared: bool = False) -> None:
        """Make batches in shared memory if `is_shared`, for another process."""
        self._ranges = RangeReader(remote)
        self._is_shared = is_shared

    def __getitem__(self, request: MicroBatchRequest) -> Batch | ShardError:
        lengths = [clip.num_heard for clip in request.clips]
        wave_BT = np.zeros((len(lengths), max(lengths)), dtype=np.float32)
        valid, problems = [], []
        whole: dict[str, np.ndarray] = {}
        try:
            # The windows of one clip follow one another; it is read and decoded once.
            ranges = dict.fromkeys((clip.place, clip.offset, clip.num_bytes) for clip in request.clips)
            stored = dict(zip(ranges, self._ranges.read_many(list(ranges)), strict=True))
            for row, clip in zip(wave_BT, request.clips, strict=True):
                data = stored[clip.place, clip.offset, clip.num_bytes]
                try:
                    self._fill(clip, data, row[: clip.num_heard], whole)
                    valid.append(not request.is_dummy)
                except (AudioError, RangeError) as error:
                    row[:] = 0.0
                    valid.append(False)
                    problems.append(f"utterance {clip.key!r} in {clip.place}: {error}")
        except ShardError as error:
            return error
        batch = as_batch(request.items, wave_BT, lengths, valid, problems)
        if not self._is_shared:
            return batch
        try:
            # Here, not when torch sends it: what fails there is printed and lost, and the trainer waits for nothing.
            return batch.share_memory()
        except (RuntimeError, OSError) as error:
            return _no_sharing(error)

    def _fill(self, clip: ClipRange, data: bytes | RangeError, out: np.ndarray, whole: dict[str, np.ndarray]) -> None:
        """Decode what is heard of the clip into `out`; `whole` keeps what was decoded for one window only."""
        if clip.window is None:
            self._decode(clip, data, out)
            return
        if clip.key not in whole:
            samples = np.zeros(clip.num_samples, np.float32)
            self._decode(clip, data, samples)
            whole[clip.key] = samples
        out[:] = whole[clip.key][slice(*clip.window)]

    def _decode(self, clip: ClipRange, data: bytes | RangeError, out: np.ndarray) -> None:
        """Decode into `out`; what a transfer has damaged is read again."""
        for number in range(1, self._ranges.num_reads(clip.place) + 1):
            if isinstance(data, RangeError):
                raise data
            try:
                _decode_verified(clip, data, out)
                return
            except AudioError:
                if number == self._ranges.num_reads(clip.place):
                    raise
            data = self._ranges.read(clip.place, clip.offset, clip.num_bytes, fresh=True)


def _decode_verified(clip: ClipRange, data: bytes, out: np.ndarray) -> None:
    if clip.audio_sha256 is not None and hashlib.sha256(data).digest() != clip.audio_sha256:
        raise AudioError(
            f"its {clip.num_bytes} bytes at {clip.offset} are not the packed ones; run `metaser inspect --verify`"
        )
    decode_stored(data, out)
    if clip.audio_sha256 is None and pcm_sha256(pcm16(out)) != clip.pcm_sha256:
        raise AudioError("it does not decode to the packed audio; run `metaser inspect --verify`")


def _no_sharing(error: BaseException) -> ShardError:
    """Return what a user can do about a system that lets no process share what it has read."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
    return ShardError(
        f"reader processes must share memory and files with the training, but: {reason}; make room in /dev/shm and in "
        f"the folder of temporary files, allow more open files (ulimit -n), or set data.num_workers to 0"
    )


def _check_open_files(num_workers: int) -> None:
    """Raise the `OSError` of a process that may open no more files, if the pipes of its readers will not fit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    num_open = sum(1 for _ in Path("/proc/self/fd").iterdir())
    if num_open + _FILES_OF_LOADER + num_workers * _FILES_OF_READER > limit:
        raise OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)} for {num_workers} readers, at most {limit}")


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


def _start_reader(_worker: int) -> None:
    # Again in each reader: torch installs a SIGTERM handler of its own that ends it.
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # By default a batch is handed over as a descriptor that the receiver fetches from the reader, without a deadline: a
    # reader that is stopped after its reply would hang the training.
    set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]
    exit_with_parent()


def read_batches(
    index: Index,
    micro_batches: Iterable[MicroBatch],
    *,
    num_workers: int,
    timeout_s: float,
    pin_memory: bool = False,
    remote: RemoteConfig | None = None,
) -> Iterator[Batch]:
    """Yield the batch of each micro-batch, in order, read ahead by `num_workers` processes (0: in this one).

    Args:
        index: The utterances that `micro_batches` count in.
        micro_batches: What to read.
        num_workers: Reader processes.
        timeout_s: How long a reader process may take over one micro-batch.
        pin_memory: Deliver batches in page-locked memory.
        remote: How shards behind URLs are read.

    Raises:
        ShardError: if a reader process dies or delivers nothing for `timeout_s`; the sentence names what it was at.
    """
    requests = (micro_batch_request(index, micro_batch) for micro_batch in micro_batches)
    if num_workers == 0:
        dataset = MicroBatchDataset(remote)
        yield from map(_batch_or_raise, (dataset[request] for request in requests))
        return
    context = multiprocessing.get_context("forkserver")
    try:
        start_reader_server()
        # As the loader will, which leaves a half-made object behind when it fails.
        context.Event()
        _check_open_files(num_workers)
    except OSError as error:
        raise _no_sharing(error) from error
    awaited: deque[MicroBatchRequest] = deque()
    loader: DataLoader[Batch | ShardError] = DataLoader(
        MicroBatchDataset(remote, is_shared=True),
        batch_size=None,
        sampler=_noting(requests, awaited),
        num_workers=num_workers,
        multiprocessing_context=context,
        timeout=timeout_s,
        pin_memory=pin_memory,
        worker_init_fn=_start_reader,
    )
    try:
        batches = iter(loader)
    except OSError as error:
        raise _no_sharing(error) from error
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:  # a dying reader may break its pipe first
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ShardError(
                f"a reader process must deliver a batch within {timeout_s:g} s, but: {reason}; it was to read "
                f"{awaited[0].describe()}"
            ) from error
        awaited.popleft()
        yield _batch_or_raise(batch)


def _noting(requests: Iterable[MicroBatchRequest], awaited: deque[MicroBatchRequest]) -> Iterator[MicroBatchRequest]:
    """Yield `requests` as readers take them, and keep in `awaited` what has not come back."""
    for request in requests:
        awaited.append(request)
        yield request


def _batch_or_raise(result: Batch | ShardError) -> Batch:
    if isinstance(result, ShardError):
        raise result
    return result
