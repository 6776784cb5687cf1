"""A folder that keeps what the frozen part of the encoder makes of clips, so that it is computed once for all steps.

Clips are told apart by the checksum of their samples, encoders by that of everything the frames depend on: trainings
with the same frozen part share their frames, whatever else they do.

Legend: B utterances, K kept layers, L frames, D features of a frame.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metaser.config.schema import ExperimentConfig, StageConfig
from metaser.errors import RunError
from metaser.given import FramesOf
from metaser.model.encoders.base import FrozenFrames, Inputs, Lookup, SpeechEncoder
from metaser.model.metaser import MetaSERModel
from metaser.processes import Processes, autocast
from metaser.runfiles import writing
from metaser.stagedata import StageData, is_cut
from shards.config import DataConfig
from shards.errors import ShardError
from shards.files import whole_file
from shards.index import Index
from shards.plan import MicroBatch
from shards.read import read_batches

log = logging.getLogger(__name__)

_FORM = 1
"""Of what is kept; a change of what encoders compute needs another."""
_PIECE_BYTES = 1 << 28
"""Of frames in one file, about; what a process has computed since its last file is lost when it is killed."""
_ALIGNMENT = 64
_REPORT_EVERY_S = 30.0
_SUMS = "crc32"


@dataclass
class FrameCache:
    """The frames of one encoder up to one depth, in files of many clips each that are never changed."""

    folder: Path
    depth: int
    _files: dict[Path, Any] = field(default_factory=dict)
    _places: dict[str, Path] = field(default_factory=dict)
    _sums: dict[str, int] = field(default_factory=dict)
    """Of clips that have not been read yet."""

    def refresh(self) -> None:
        """Look for files that this or another process has added.

        Raises:
            RunError: if one is damaged.
        """
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._files:
                continue
            try:
                file: Any = safe_open(path, framework="pt")
                sums = {str(sound): int(crc) for sound, crc in json.loads((file.metadata() or {})[_SUMS]).items()}
            except (SafetensorError, OSError, KeyError, ValueError, AttributeError) as error:
                raise _damaged(path) from error
            self._files[path] = file
            for sound in sums.keys() & set(file.keys()):
                self._places[sound] = path
                self._sums[sound] = sums[sound]

    def missing(self, sounds: Sequence[str]) -> list[int]:
        """Return the positions of `sounds` without frames, one for each sound."""
        first = {sound: position for position, sound in reversed([*enumerate(sounds)])}
        return sorted(position for sound, position in first.items() if sound not in self._places)

    def add(self, frames: dict[str, Shaped[Tensor, "K L D"]]) -> None:
        """Write a file with the frames of some clips, by their sound.

        Raises:
            RunError: if the disk refuses.
        """
        sums = json.dumps({sound: _crc32(frames_KLD) for sound, frames_KLD in frames.items()})
        path = self.folder / f"{uuid4().hex}.safetensors"
        with writing(path), whole_file(path) as file:
            file.write(save(frames, {_SUMS: sums}))

    def read(self, sound: str) -> Shaped[Tensor, "K L D"]:
        """Return a clip's frames.

        Raises:
            RunError: if they are damaged.
        """
        path = self._places[sound]
        try:
            frames_KLD: Tensor = self._files[path].get_tensor(sound)
        except (SafetensorError, OSError) as error:
            raise _damaged(path) from error
        expected = self._sums.get(sound)
        if expected is not None:
            if _crc32(frames_KLD) != expected:
                raise _damaged(path)
            del self._sums[sound]
        return frames_KLD

    def lookup(self, index: Index) -> Lookup:
        """Return what finds the frames of utterances of `index`, all of which are there."""
        sounds = sounds_of(index)

        def look(items: np.ndarray) -> FrozenFrames:
            found = [self.read(sounds[item]) for item in items]
            num_kept, _, width = found[0].shape
            longest = max(frames_KLD.shape[1] for frames_KLD in found)
            padded_KBLD = found[0].new_zeros(num_kept, len(found), longest, width)
            for row, frames_KLD in enumerate(found):
                padded_KBLD[:, row, : frames_KLD.shape[1]] = frames_KLD
            return FrozenFrames(self.depth, tuple(padded_KBLD.unbind(0)))

        return look


def sounds_of(index: Index) -> list[str]:
    """Return the checksum of each utterance's samples."""
    return [digest.hex() for digest in index.values("pcm_sha256")]


def frozen_depth(config: ExperimentConfig, stage: StageConfig, model: MetaSERModel, data: StageData) -> int | str:
    """Return how far up the encoder the stage's clips keep their frames, or why they do not.

    `model` trains what the stage trains.
    """
    changes = [name for name, change in stage.augment if change.probability > 0]
    if changes:
        return f"augment.{changes[0]} changes the sound"
    if num_cut := sum(int(is_cut(part, config.data).sum()) for part in (data.training, data.dev)):
        return f"{num_cut} utterances are longer than data.window_s"
    masks = config.model.spec_augment
    masked = bool(masks.num_time_masks or masks.num_feature_masks)
    depth = model.encoder.frozen_depth(masked=masked, mixed=model.mixes_layers)
    return "the stage trains the encoder from the beginning" if depth is None else depth


def open_cache(root: Path, encoder: SpeechEncoder, depth: int, precision: str) -> FrameCache:
    """Return the part of the folder `root` that has the frames of `encoder` up to `depth`, computed in `precision`."""
    digest = hashlib.sha256()
    told = {"form": _FORM, "depth": depth, "precision": precision, "encoder": encoder.form_of(encoder.architecture())}
    digest.update(json.dumps(told, sort_keys=True).encode())
    for name, tensor in sorted(encoder.frozen_tensors(depth).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor))
    return FrameCache(root / digest.hexdigest()[:32], depth)


def kept_frames(
    config: ExperimentConfig, data: DataConfig, model: MetaSERModel, judged: Index, processes: Processes
) -> FramesOf | None:
    """Return what finds the frames of all layers of the utterances to be judged, computing what is missing.

    None if a training has not kept those of this very encoder, or they are heard in windows.
    """
    if config.frame_cache is None or is_cut(judged, data).any() or model.mixes_layers:
        return None
    depth = model.encoder.num_layers + 1
    cache = open_cache(Path(config.frame_cache), model.encoder, depth, config.parallel.precision)
    if not any(processes.all_gather(cache.folder.is_dir())):
        return None
    problem = fill(cache, model.encoder, judged, config, processes, lambda: False)
    return cache.lookup if problem is None else None


def clip_frames(
    encoder: SpeechEncoder, index: Index, config: ExperimentConfig, processes: Processes
) -> Iterator[Shaped[Tensor, "K L D"]]:
    """Yield the frames of all layers of each utterance of `index`, heard whole: kept ones if there are, or computed.

    Raises:
        ShardError: if one cannot be decoded.
    """
    depth = encoder.num_layers + 1
    if config.frame_cache is None:
        for frames_KLD in _compute(encoder, depth, index, range(len(index)), config, processes):
            if isinstance(frames_KLD, str):
                raise ShardError(f"every utterance is needed, but {frames_KLD}")
            yield frames_KLD
        return
    cache = open_cache(Path(config.frame_cache), encoder, depth, config.parallel.precision)
    problem = fill(cache, encoder, index, config, processes, lambda: False)
    if problem is not None:
        raise ShardError(f"every utterance is needed, but {problem}")
    yield from map(cache.read, sounds_of(index))


def fill(
    cache: FrameCache,
    encoder: SpeechEncoder,
    index: Index,
    config: ExperimentConfig,
    processes: Processes,
    is_stopped: Callable[[], bool],
) -> str | None:
    """Compute what is missing of the utterances of `index`; return a clip's problem if one cannot be decoded.

    The processes share the work. If they share no disk, those of each machine then do what their own lacks.

    Raises:
        RunError: if the disk refuses, or a file of the cache is damaged.
    """
    info = processes.info
    sounds = sounds_of(index)
    num_local = max(processes.all_gather(info.local_rank)) + 1
    # By machine for disks of their own; alone where machines have differently many processes.
    for number, count in ((info.rank, info.num_processes), (info.local_rank, num_local), (0, 1)):
        cache.refresh()
        missing = cache.missing(sounds)
        # All look before the first of them writes.
        processes.barrier()
        mine = missing[number::count]
        problem = None
        if mine:
            # Before what may take hours.
            with writing(cache.folder):
                cache.folder.mkdir(parents=True, exist_ok=True)
            log.info("keeping the frames of %d clips in %s", len(mine), cache.folder)
            found = _compute(encoder, cache.depth, index, mine, config, processes)
            problem = _keep(cache, [sounds[item] for item in mine], found, is_stopped)
        problems = [each for each in processes.all_gather(problem) if each is not None]
        if problems or any(processes.all_gather(is_stopped())):
            return problems[0] if problems else None
    cache.refresh()
    return None


def _keep(
    cache: FrameCache, sounds: Sequence[str], found: Iterable[Tensor | str], is_stopped: Callable[[], bool]
) -> str | None:
    """Write frames as they are computed; return the first problem of a clip."""
    # One block for a file's frames: kept one by one between what each clip needs for a moment, they tore the heap to
    # ten times their size.
    block = torch.empty(_PIECE_BYTES, dtype=torch.uint8)
    piece: dict[str, Tensor] = {}
    end = 0
    told = time.monotonic()
    for number, (sound, frames_KLD) in enumerate(zip(sounds, found, strict=True), start=1):
        if isinstance(frames_KLD, str):
            return frames_KLD
        num_bytes = -(-frames_KLD.nbytes // _ALIGNMENT) * _ALIGNMENT
        if end + num_bytes > len(block) and piece:
            cache.add(piece)
            piece, end = {}, 0
        if num_bytes <= len(block):
            place = block[end : end + frames_KLD.nbytes].view(frames_KLD.dtype).view(frames_KLD.shape)
            piece[sound] = place.copy_(frames_KLD)
        else:
            piece[sound] = frames_KLD
        end += num_bytes
        if number == len(sounds) or is_stopped():
            cache.add(piece)
            break
        if time.monotonic() - told > _REPORT_EVERY_S:
            told = time.monotonic()
            log.info("kept the frames of %d of %d clips", number, len(sounds))
    return None


def _compute(
    encoder: SpeechEncoder,
    depth: int,
    index: Index,
    items: Sequence[int],
    config: ExperimentConfig,
    processes: Processes,
) -> Iterator[Tensor | str]:
    """Yield the frames of the utterances at `items`, or why one cannot be decoded.

    One at a time, so that a clip's frames are the same whoever else is computed.
    """
    data = config.data
    micro_batches = (MicroBatch(np.asarray([item])) for item in items)
    batches = read_batches(
        index,
        micro_batches,
        num_workers=min(data.num_workers, len(items)),
        timeout_s=data.worker_timeout_s,
        remote=data.remote,
        pin_memory=processes.device.type == "cuda",
    )
    for batch in batches:
        if batch.problems:
            yield batch.problems[0]
            continue
        inputs = Inputs(batch.wave_BT, batch.num_samples_B).to(processes.device)
        with torch.no_grad(), autocast(processes.device, config.parallel.precision):
            kept = encoder.frozen_frames(inputs, depth)
        yield torch.cat(kept.frames).cpu()


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _crc32(tensor: Tensor) -> int:
    return zlib.crc32(_bytes_of(tensor))


def _damaged(path: Path) -> RunError:
    return RunError(f"{path} must hold frames as a training has kept them, but it is damaged; delete it")
