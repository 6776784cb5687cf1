"""Training speed: real audio-seconds per second, MFU and memory of both stages, and what the schedule's batches gain.

    python bench/training.py                                  a small encoder on a CPU
    python bench/training.py --shape large --precision bf16   24 layers of width 1024 (wav2vec 2.0 large) on a GPU

Weights are random, clips are noise with IEMOCAP-like lengths (log-normal, mean 4.5 s). Scheduled and random batches of
the same clips are timed alternately in one run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from metaser.config.encoders import HuggingFaceEncoderConfig
from metaser.config.schema import LearningRates, ModelConfig, ParallelConfig, StageConfig
from metaser.distributed import dist_info
from metaser.model.encoders.base import Inputs
from metaser.model.metaser import MetaSERModel, build_model
from metaser.processes import Processes
from metaser.tasks.ctc import SPECIAL as CTC_SPECIAL
from metaser.tasks.kind import TaskTarget
from metaser.tasks.spec import TaskSpec
from metaser.train.engine import Engine
from metaser.train.objective import micro_batch_loss
from metaser.train.optim import build_optimizer
from metaser.train.stage import freeze_all_but, select_parameters
from shards.batch import Batch, as_batch
from shards.labels import FOUR_EMOTIONS, GENDERS, STYLES
from shards.plan import Schedule
from shards.schema import RATE_HZ

SHAPES = {
    "small": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
SPECS = (
    TaskSpec(name="asr", kind="ctc", fields=("text",), labels=(*CTC_SPECIAL, *"abcdefghijklmnopqrstuvwxyz '")),
    TaskSpec(name="gender", kind="classification", fields=("gender",), labels=GENDERS),
    TaskSpec(name="style", kind="classification", fields=("style",), labels=STYLES),
    TaskSpec(name="emotion", kind="classification", fields=("emotion",), labels=FOUR_EMOTIONS),
)
STAGES = (
    StageConfig(
        name="metadata",
        train=("encoder", "ari", "heads"),
        weights={"asr": 1.0, "gender": 0.1, "style": 0.1},
        num_steps=1,
        learning_rate=LearningRates(),
    ),
    StageConfig(
        name="emotion",
        train=("encoder", "ari", "heads", "coattention"),
        weights={"emotion": 1.0, "asr": 0.1, "gender": 0.1, "style": 0.1},
        num_steps=1,
        learning_rate=LearningRates(),
    ),
)
# Forward cost of the large shape per second of audio (GFLOP): linear layers, positional convolution, attention at 5 s;
# the frozen CNN (4.9) runs forward only, the rest costs three times its forward pass.
LARGE_TFLOP_PER_AUDIO_S = (3 * (30.2 + 0.8 + 1.2) + 4.9) / 1000
H200_BF16_TFLOPS = 790  # measured in plain matrix products


def main() -> None:
    """Time both stages and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--precision", choices=("float32", "bf16", "fp16"), default="float32")
    parser.add_argument("--batch", type=int, default=16, help="clips of a step")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each kind and stage")
    arguments = parser.parse_args()
    processes = Processes(ParallelConfig(), dist_info())
    num_samples = iemocap_like_lengths(1_600)
    device = (
        torch.cuda.get_device_name() if processes.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    )
    print(
        f"{arguments.shape} shape, {arguments.precision}, {arguments.batch} clips a step, {device}, "
        f"torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        config = Wav2Vec2Config(
            **SHAPES[arguments.shape], do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True
        )
        Wav2Vec2Model(config).save_pretrained(folder)
        for stage in STAGES:
            report(stage, time_stage(stage, Path(folder), num_samples, processes, arguments), arguments)


def report(stage: StageConfig, figures: dict[str, float], arguments: argparse.Namespace) -> None:
    """Print one stage's figures."""
    line = (
        f"stage {stage.name}: {figures['scheduled']:.0f} audio-s/s scheduled, {figures['random']:.0f} in random "
        f"batches (x {figures['scheduled'] / figures['random']:.2f})"
    )
    if torch.cuda.is_available():
        line += f", peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        if arguments.shape == "large":
            mfu = figures["scheduled"] * LARGE_TFLOP_PER_AUDIO_S / H200_BF16_TFLOPS
            line += f", MFU {mfu:.1%} of {H200_BF16_TFLOPS} TFLOP/s"
    print(line, flush=True)


def time_stage(
    stage: StageConfig, encoder: Path, num_samples: np.ndarray, processes: Processes, arguments: argparse.Namespace
) -> dict[str, float]:
    """Return the median real audio-seconds per second in scheduled and in random batches."""
    torch.manual_seed(0)
    model_config = ModelConfig(encoder=HuggingFaceEncoderConfig(kind="huggingface", name=str(encoder)))
    engine = stage_engine(build_model(model_config, SPECS, "emotion"), stage, processes, arguments.precision)
    schedule = Schedule(num_samples, batch_utterances=arguments.batch, pool_utterances=1_600, seed=0)
    shuffled = np.random.default_rng(1).permutation(len(num_samples))
    speeds: dict[str, list[float]] = {"scheduled": [], "random": []}
    for step in range(arguments.steps + 2):
        choices = {
            "scheduled": schedule.items(step),
            "random": shuffled[step * arguments.batch : (step + 1) * arguments.batch],
        }
        for kind, items in choices.items():
            speed = time_step(engine, stage, num_samples[items])
            if step >= 2:  # the first steps allocate and pick kernels
                speeds[kind].append(speed)
    return {kind: statistics.median(values) for kind, values in speeds.items()}


def stage_engine(model: MetaSERModel, stage: StageConfig, processes: Processes, precision: str) -> Engine:
    """Return an engine that trains what `stage` moves, on the processes' device."""
    trainable = select_parameters(model, stage)
    freeze_all_but(model, trainable)
    model.to(processes.device)
    model.train()
    return Engine(processes, model, build_optimizer(model, trainable, stage), precision=precision, max_grad_norm=1.0)


def iemocap_like_lengths(count: int) -> np.ndarray:
    """Return the lengths of so many clips in samples: log-normal, mean 4.5 s, between 0.6 and 30 s."""
    generator = np.random.default_rng(0)
    seconds = np.clip(np.exp(generator.normal(np.log(4.5) - 0.18, 0.6, count)), 0.6, 30)
    return (seconds * RATE_HZ).astype(np.int64)


def noise_batch(num_samples: np.ndarray) -> Batch:
    """Return clips of noise of these lengths, on the CPU."""
    generator = np.random.default_rng(int(num_samples.sum()))
    wave_BT = np.zeros((len(num_samples), num_samples.max()), np.float32)
    for row, length in zip(wave_BT, num_samples, strict=True):
        row[:length] = 0.1 * generator.standard_normal(length, dtype=np.float32)
    return as_batch(np.arange(len(num_samples)), wave_BT, num_samples.tolist(), [True] * len(num_samples))


def time_step(engine: Engine, stage: StageConfig, num_samples: np.ndarray) -> float:
    """Do one optimizer step over noise of these lengths; return its real audio-seconds per second."""
    batch = noise_batch(num_samples).to(engine.processes.device)
    targets = fake_targets(batch)
    synchronise()
    started = time.perf_counter()
    train_step(engine, stage, [(batch, targets)])
    synchronise()
    return float(num_samples.sum()) / RATE_HZ / (time.perf_counter() - started)


def train_step(
    engine: Engine,
    stage: StageConfig,
    micro_batches: Sequence[tuple[Batch, dict[str, TaskTarget]]],
    mark: Callable[[str], None] = lambda part: None,
) -> None:
    """Do one optimizer step over micro-batches that lie anywhere; tell `mark` which part of the step begins."""
    device = engine.processes.device
    num_clips = sum(len(batch.num_samples_B) for batch, _ in micro_batches)
    denominators = dict.fromkeys(stage.weighted_tasks, float(num_clips))
    for number, (from_batch, from_targets) in enumerate(micro_batches):
        mark("data")
        batch = from_batch.to(device)
        targets = {name: target.to(device) for name, target in from_targets.items()}
        with engine.accumulating(is_last=number == len(micro_batches) - 1):
            output = engine.forward(Inputs(batch.wave_BT, batch.num_samples_B), stage.weighted_tasks)
            loss, _ = micro_batch_loss(
                SPECS, stage.weights, output.logits, output.num_frames_B, targets, batch.valid_B, denominators
            )
            engine.backward(loss)
    mark("optimizer")
    engine.step()


def fake_targets(batch: Batch) -> dict[str, TaskTarget]:
    """Return random labels, and transcripts of ten characters a second (at most 20)."""
    device, count = batch.wave_BT.device, len(batch.num_samples_B)
    ones = torch.ones(count, dtype=torch.int64, device=device)
    targets = {
        spec.name: TaskTarget(torch.randint(len(spec.labels), (count,), device=device), ones) for spec in SPECS[1:]
    }
    lengths = (batch.num_samples_B * 10 // RATE_HZ).clamp(1, 20)
    tokens = torch.randint(2, len(SPECS[0].labels), (count, 20), device=device)
    return {**targets, "asr": TaskTarget(tokens, lengths)}


def synchronise() -> None:
    """Wait for the device, so that the clock sees its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
