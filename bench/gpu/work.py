"""What all measurements work on: encoder shapes, clips of noise, micro-batches, and attempts that survive a failure.

Legend: B utterances, T samples.
"""

from __future__ import annotations

import argparse
import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from training import SPECS, fake_targets, iemocap_like_lengths, noise_batch, synchronise
from transformers import HubertConfig, PreTrainedConfig, Wav2Vec2Config, WavLMConfig

from gpu.report import Row, Rows, speed_of
from metaser.config.encoders import HuggingFaceEncoderConfig
from metaser.config.schema import ModelConfig
from metaser.model.network import MetaSERConfig
from metaser.tasks.kind import TaskTarget
from metaser.train.step import peak_memory_gib
from shards.batch import Batch
from shards.plan import Schedule, step_micro_batches
from shards.schema import RATE_HZ

T = TypeVar("T")

Targeted = tuple[Batch, dict[str, TaskTarget]]
"""A micro-batch and what its tasks shall answer."""

NUM_CLIPS, POOL = 5_531, 1_600
"""IEMOCAP's turns of four classes, and the default of `data.pool_utterances`."""
_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "wav2vec2-large": Wav2Vec2Config,
    "hubert-large": HubertConfig,
    "wavlm-large": WavLMConfig,
}
ENCODERS = tuple(_CONFIGS)


class Shape(NamedTuple):
    """Sizes of an encoder, and of what is measured with it."""

    sizes: dict[str, Any]
    batch: int
    """Clips of a step."""
    micro_batches_s: tuple[float, ...]
    steps: int
    matrix: int
    """Rows of the ceilings' square matrices."""
    copied_mib: int
    length: float
    """What clips' lengths are multiplied by."""
    least_s: float
    """What a measurement needs at least, roughly; one begins only where so much is left."""
    compile_s: float
    """The same where layers are compiled."""


SHAPES = {
    "large": Shape(
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        *(64, (160.0, 80.0, 320.0), 12, 8192, 2048, 1.0, 4.0, 30.0),
    ),
    "toy": Shape(
        {
            **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
            **{"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
        },
        *(8, (8.0, 16.0), 2, 256, 16, 0.2, 0.5, 10.0),
    ),
}
WARM_UP_STEPS = 2
LONGEST_MEASUREMENT_S = 6.0


def encoder_config(name: str, shape: Shape, **more: Any) -> PreTrainedConfig:
    """Return transformers' configuration of an encoder: pre-norm, layer norm in the CNN, as the large ones are."""
    return _CONFIGS[name](
        **shape.sizes, do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=name != "wavlm-large", **more
    )


def model_config(name: str, shape: Shape) -> MetaSERConfig:
    """Return the configuration of MetaSER's whole model around an encoder, its other settings at their defaults."""
    settings = ModelConfig(encoder=HuggingFaceEncoderConfig(kind="huggingface", name=name))
    architecture = {
        "kind": "huggingface",
        "config": encoder_config(name, shape).to_dict(),
        "do_normalize": True,
        "freeze_feature_encoder": True,
    }
    return MetaSERConfig(
        encoder=architecture,
        model=settings.model_dump(mode="json"),
        tasks=[spec.model_dump(mode="json") for spec in SPECS],
        main_task="emotion",
    )


def lengths_of(shape: Shape) -> np.ndarray:
    """Return the lengths of all clips in samples."""
    return (iemocap_like_lengths(NUM_CLIPS) * shape.length).astype(np.int64)


def schedule_of(shape: Shape) -> Schedule:
    """Return MetaSER's sequence of batches over the clips."""
    return Schedule(lengths_of(shape), batch_utterances=shape.batch, pool_utterances=POOL, seed=0)


def cut_step(schedule: Schedule, step: int, micro_batch_s: float) -> list[np.ndarray]:
    """Return the lengths of the clips of each micro-batch of the 0-based `step`.

    Raises:
        PlanError: A clip is longer than a micro-batch.
    """
    bound = int(micro_batch_s * RATE_HZ)
    cut = step_micro_batches(schedule, step, rank=0, num_processes=1, max_micro_batch_samples=bound)
    return [schedule.num_samples[micro_batch.items] for micro_batch in cut]


def targeted(num_samples: np.ndarray) -> Targeted:
    """Return noise of these lengths with random targets, page-locked where there is a GPU."""
    batch = noise_batch(num_samples)
    targets = fake_targets(batch)
    if not torch.cuda.is_available():
        return batch, targets
    pinned = {
        name: TaskTarget(target.values.pin_memory(), target.lengths_B.pin_memory()) for name, target in targets.items()
    }
    return batch.pin_memory(), pinned


def count_audio(micro_batches: list[Targeted]) -> tuple[float, float]:
    """Return the real and the padded seconds of audio."""
    real = sum(int(batch.num_samples_B.sum()) for batch, _ in micro_batches)
    return real / RATE_HZ, sum(batch.wave_BT.numel() for batch, _ in micro_batches) / RATE_HZ


@dataclass
class Bench:
    """A part's measurements: where its rows go, and how long it may take."""

    arguments: argparse.Namespace
    rows: Rows
    part: str
    until: float
    """When the part should be done, in seconds since 1970."""
    shape: Shape
    device: torch.device

    def row(self, table: str, **values: Any) -> None:
        """Write a row."""
        self.rows.append(table, self.part, **values)

    def attempt(self, what: str, least_s: float, measure: Callable[[], T]) -> T | None:
        """Return what `measure` returns; None where there is no time for it, or where it fails, which is written.

        Raises:
            RuntimeError: The GPU is unusable from here on.
        """
        left_s = self.until - time.time()
        if left_s < least_s:
            self.row("left out", what=what, why=f"{left_s:.0f} s were left, it needs about {least_s:.0f} s")
            return None
        try:
            return measure()
        except Exception as error:
            self.rows.append("failures", self.part, what=what, **failure(error))
        free_memory()
        synchronise()  # raises where the failure has broken the GPU's context
        return None

    def timed_steps(self, step: Callable[[int], tuple[float, float]]) -> Row:
        """Return the speed, padded share and peak memory of `step(n)`, which returns real and padded seconds of audio.

        The first steps, which allocate and pick kernels, are left out; so are further ones after a few seconds.
        """
        for number in range(WARM_UP_STEPS):
            step(number)
        synchronise()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        real, padded, seconds = [], [], []
        while len(seconds) < self.shape.steps and sum(seconds) < LONGEST_MEASUREMENT_S:
            started = time.perf_counter()
            audio = step(WARM_UP_STEPS + len(seconds))
            synchronise()
            seconds.append(time.perf_counter() - started)
            real.append(audio[0])
            padded.append(audio[1])
        return speed_of(real, seconds) | {
            "padded_share": 1 - sum(real) / sum(padded),
            "peak_gib": peak_memory_gib(self.device),
        }


def failure(error: BaseException) -> Row:
    """Return the columns that tell of a failure."""
    is_memory = isinstance(error, torch.OutOfMemoryError)
    return {
        "why": "out of memory" if is_memory else f"{type(error).__name__}: {error}"[:300],
        "out_of_memory": is_memory,
        "traceback": "".join(traceback.format_exception(error)),
    }


def free_memory() -> None:
    """Give back what no tensor uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
