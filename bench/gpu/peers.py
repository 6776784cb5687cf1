"""What others would take: transformers' `Trainer`, and plain loops over batches in memory.

All train transformers' own encoder with a linear layer per task over its last layer (frames for CTC, their mean for the
classes): the same tasks and losses without ARI and co-attention, which is less work than MetaSER's. Encoder, clips,
precision, number of clips a step, clipping and AdamW are the same.

Legend: B utterances, T samples, L frames, D hidden.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from training import SPECS, STAGES, fake_targets, synchronise
from transformers import AutoModel, Trainer, TrainerCallback, TrainingArguments

from gpu.report import speed_of
from gpu.work import (
    WARM_UP_STEPS,
    Bench,
    Targeted,
    count_audio,
    cut_step,
    encoder_config,
    free_memory,
    lengths_of,
    schedule_of,
    targeted,
)
from metaser.model.encoders.base import real_mask
from metaser.processes import autocast
from metaser.tasks.kind import TaskTarget
from metaser.train.objective import micro_batch_loss
from metaser.train.step import peak_memory_gib
from shards.batch import as_batch
from shards.schema import RATE_HZ

ENCODER = "wav2vec2-large"
DEFAULT_BATCH, WORKERS = 8, 4
"""Clips at once: the Trainer's default. Its readers, where it has some."""
EMOTION = STAGES[1]


def measure_peers(bench: Bench) -> None:
    """Write a row for each peer."""
    clips, least_s = bench.shape.batch, bench.shape.least_s
    at_once = min(DEFAULT_BATCH, clips)
    bench.attempt("Trainer, default", 2 * least_s, lambda: run_trainer(bench, "Trainer, default", at_once))
    best = clips
    while best:
        # The largest that fits: memory decides, so a failure leads to the next smaller one.
        what = f"Trainer, best, {best} clips at once"
        if bench.attempt(what, 2 * least_s, lambda best=best: run_trainer(bench, "Trainer, best", best, is_best=True)):
            break
        best //= 2
    what = "plain loop, random batches"
    bench.attempt(what, least_s, lambda: run_loop(bench, what, random_steps(bench, at_once)))
    planned = "plain loop, MetaSER's batches"
    bench.attempt(planned, least_s, lambda: run_loop(bench, planned, planned_steps(bench)))


class PeerModel(nn.Module):
    """transformers' encoder with a linear layer per task."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        # MetaSER has neither of these.
        config = encoder_config(ENCODER, bench.shape, layerdrop=0.0, apply_spec_augment=False)
        self.encoder = AutoModel.from_config(config)
        for parameter in self.encoder.feature_extractor.parameters():
            parameter.requires_grad_(False)
        self.heads = nn.ModuleDict({spec.name: nn.Linear(config.hidden_size, spec.num_outputs) for spec in SPECS})

    def forward(
        self, input_ids: Tensor, num_samples_B: Tensor, num_items_in_batch: Any = None, **targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss of all tasks; `input_ids` are samples, because transformers takes lengths from this name."""
        real_BT = real_mask(num_samples_B, input_ids.shape[1])
        frames_BLD = self.encoder(input_ids, attention_mask=real_BT.long()).last_hidden_state
        num_frames_B = self.encoder._get_feat_extract_output_lengths(num_samples_B)
        real_BL1 = real_mask(num_frames_B, frames_BLD.shape[1])[:, :, None]
        mean_BD = (frames_BLD * real_BL1).sum(1) / num_frames_B[:, None]
        logits = {name: head(frames_BLD if name == "asr" else mean_BD) for name, head in self.heads.items()}
        wanted = {name: TaskTarget(targets[name], targets[f"{name}_lengths"]) for name in logits}
        valid_B = torch.ones_like(num_samples_B, dtype=torch.bool)
        shares = dict.fromkeys(logits, float(len(num_samples_B)))
        loss, _ = micro_batch_loss(SPECS, EMOTION.weights, logits, num_frames_B, wanted, valid_B, shares)
        return {"loss": loss}


def peer_model(bench: Bench) -> PeerModel:
    """Return the model with random weights on the device."""
    torch.manual_seed(0)
    with bench.device:
        return PeerModel(bench)


def arguments_of(micro_batch: Targeted) -> dict[str, Tensor]:
    """Return the peers' arguments for a micro-batch."""
    batch, targets = micro_batch
    values = {name: target.values for name, target in targets.items()}
    lengths = {f"{name}_lengths": target.lengths_B for name, target in targets.items()}
    return {"input_ids": batch.wave_BT, "num_samples_B": batch.num_samples_B, **values, **lengths}


class Clips(Dataset):
    """Clips of noise, parts of one buffer."""

    def __init__(self, num_samples: np.ndarray) -> None:
        self._num_samples = num_samples
        self._noise = 0.1 * np.random.default_rng(0).standard_normal(2 * int(num_samples.max()), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._num_samples)

    def __getitem__(self, item: int) -> dict[str, np.ndarray]:
        """Return the samples under the name by which transformers finds lengths."""
        length = int(self._num_samples[item])
        start = item % (len(self._noise) - length)
        return {"input_ids": self._noise[start : start + length]}


def collate(clips: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Return padded clips with random targets."""
    waves = [clip["input_ids"] for clip in clips]
    lengths = [len(wave) for wave in waves]
    wave_BT = np.zeros((len(waves), max(lengths)), np.float32)
    for row, wave in zip(wave_BT, waves, strict=True):
        row[: len(wave)] = wave
    batch = as_batch(np.arange(len(waves)), wave_BT, lengths, [True] * len(waves))
    return arguments_of((batch, fake_targets(batch)))


class _StepTimes(TrainerCallback):
    """Notes when each step has ended on the device."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the device and look at the clock."""
        synchronise()
        self.ended.append(time.perf_counter())
        if len(self.ended) == WARM_UP_STEPS and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()


class _CountingTrainer(Trainer):
    """Notes the lengths of every micro-batch."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.lengths: list[tuple[Tensor, int]] = []

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss."""
        # Kept on the device: reading them here would make the host wait.
        self.lengths.append((inputs["num_samples_B"], inputs["input_ids"].numel()))
        return super().compute_loss(model, inputs, *args, **kwargs)


def run_trainer(bench: Bench, peer: str, at_once: int, *, is_best: bool = False) -> bool:
    """Write the row of the Trainer with so many clips at once, the best with grouped lengths and readers."""
    slots = bench.shape.batch // at_once
    best: dict[str, Any] = {
        "train_sampling_strategy": "group_by_length",
        "dataloader_num_workers": WORKERS if bench.device.type == "cuda" else 1,
        "dataloader_persistent_workers": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=slots,
            max_steps=WARM_UP_STEPS + bench.shape.steps,
            bf16=bench.arguments.precision == "bf16",
            fp16=bench.arguments.precision == "fp16",
            use_cpu=bench.device.type == "cpu",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            **(best if is_best else {}),
        )
        times = _StepTimes()
        trainer = _CountingTrainer(
            model=peer_model(bench),
            args=settings,
            train_dataset=Clips(lengths_of(bench.shape)),
            data_collator=collate,
            callbacks=[times],
        )
        trainer.train()
    seconds = np.diff(times.ended[WARM_UP_STEPS - 1 :]).tolist()
    counts = [(float(lengths.sum()) / RATE_HZ, padded / RATE_HZ) for lengths, padded in trainer.lengths]
    steps = [counts[start : start + slots] for start in range(0, len(counts), slots)][WARM_UP_STEPS:]
    real = [sum(audio for audio, _ in step) for step in steps]
    padded = sum(audio for step in steps for _, audio in step)
    bench.row(
        *("peers",),
        **{"encoder": ENCODER, "peer": peer, "clips_at_once": at_once, "slots": slots},
        **speed_of(real, seconds),
        padded_share=1 - sum(real) / padded,
        peak_gib=peak_memory_gib(bench.device),
    )
    trainer.accelerator.free_memory()
    del trainer
    free_memory()
    return True


def random_steps(bench: Bench, at_once: int) -> list[list[Targeted]]:
    """Return steps of clips in random order, `at_once` in a micro-batch."""
    shuffled = np.random.default_rng(1).permutation(lengths_of(bench.shape))
    clips = bench.shape.batch
    steps = [shuffled[start : start + clips] for start in range(0, clips * _num_steps(bench), clips)]
    return [[targeted(step[start : start + at_once]) for start in range(0, clips, at_once)] for step in steps]


def planned_steps(bench: Bench) -> list[list[Targeted]]:
    """Return the steps that MetaSER would do."""
    schedule = schedule_of(bench.shape)
    cut = [cut_step(schedule, step, bench.shape.micro_batches_s[0]) for step in range(_num_steps(bench))]
    return [list(map(targeted, micro_batches)) for micro_batches in cut]


def _num_steps(bench: Bench) -> int:
    return WARM_UP_STEPS + bench.shape.steps


def run_loop(bench: Bench, peer: str, steps: list[list[Targeted]]) -> None:
    """Write the row of a plain loop over batches in memory."""
    model = peer_model(bench)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step(number: int) -> tuple[float, float]:
        for micro_batch in steps[number]:
            arguments = arguments_of(micro_batch)
            given = {name: value.to(bench.device, non_blocking=True) for name, value in arguments.items()}
            with autocast(bench.device, bench.arguments.precision):
                loss = model(**given)["loss"]
            (loss / len(steps[number])).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return count_audio(steps[number])

    bench.row("peers", encoder=ENCODER, peer=peer, **bench.timed_steps(step))
