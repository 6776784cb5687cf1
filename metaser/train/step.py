"""One optimizer step over one global batch."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metaser.config.schema import ExperimentConfig, StageConfig
from metaser.errors import TrainingError
from metaser.inputs import Augment, make_inputs
from metaser.memory import refusing_lack_of_memory, training_advice
from metaser.model.encoders.base import Inputs, Lookup
from metaser.seeding import seed_generators
from metaser.targets import Targets
from metaser.tasks.kinds import kind_of
from metaser.tasks.spec import TaskSpec
from metaser.train.augment import Augmenter, micro_batch_samples
from metaser.train.engine import Engine
from metaser.train.flops import flop_counter
from metaser.train.masks import draw_masks
from metaser.train.objective import micro_batch_loss
from metaser.train.optim import learning_rates, schedule_factor, set_learning_rates
from metaser.train.scale import LOWEST_SCALE, adapt_loss_scale
from metaser.train.state import TrainState
from metaser.train.stop import reason_flags, strongest_reason
from shards.batch import Batch
from shards.index import Index
from shards.plan import MicroBatch, Schedule, random_windows, step_micro_batches
from shards.read import read_batches
from shards.schema import RATE_HZ


@dataclass(frozen=True)
class StepRunner:
    """Everything that stays the same over a stage's steps."""

    config: ExperimentConfig
    stage: StageConfig
    stage_number: int
    specs: tuple[TaskSpec, ...]
    index: Index
    targets: Targets
    schedule: Schedule
    engine: Engine
    augmenter: Augmenter
    lookups: Mapping[str, Lookup] = field(default_factory=dict)
    """What each view that reads is given of the stage's utterances, by the view's name."""
    _flops_per_s: dict[str, float] = field(default_factory=dict, init=False)
    """Operations per second of audio of one step, counted once where `parallel.peak_tflops` is given."""

    def micro_batches_of(self, step: int) -> list[MicroBatch]:
        """Return this process's micro-batches of the 1-based `step`."""
        info = self.engine.processes.info
        micro_batches = step_micro_batches(
            self.schedule,
            step - 1,
            rank=info.rank,
            num_processes=info.num_processes,
            max_micro_batch_samples=micro_batch_samples(self.stage.augment, self.config.data.max_micro_batch_s),
        )
        return [self.in_windows(micro_batch, step) for micro_batch in micro_batches]

    def in_windows(self, micro_batch: MicroBatch, step: int) -> MicroBatch:
        """Return `micro_batch` as the 1-based `step` hears it: of clips longer than a window, a random one."""
        windowing = self.config.data.windowing
        if windowing is None:
            return micro_batch
        return random_windows(
            micro_batch,
            self.index.num_samples,
            self.index.take(micro_batch.items).values("key"),
            windowing,
            seed=self.config.seed,
            epoch=self.schedule.epoch_of(step - 1),
        )

    def all_micro_batches(self, first_step: int) -> Iterator[MicroBatch]:
        """Yield this process's micro-batches from the 1-based `first_step` to the stage's end, for the readers."""
        for step in range(first_step, self.stage.num_steps + 1):
            yield from self.micro_batches_of(step)

    def read(self, micro_batches: Iterable[MicroBatch], *, num_workers: int) -> Iterator[Batch]:
        """Yield the batches of `micro_batches`, as `read_batches` does."""
        data = self.config.data
        return read_batches(
            self.index,
            micro_batches,
            num_workers=num_workers,
            timeout_s=data.worker_timeout_s,
            remote=data.remote,
            pin_memory=self.engine.processes.device.type == "cuda",
        )

    def run(
        self, step: int, batches: Sequence[Batch], state: TrainState, *, stop: str | None
    ) -> tuple[dict[str, Any], str | None]:
        """Do the 1-based `step` with this process's `batches`; return its metrics line and why anyone asks to stop.

        `stop` is this process's reason to stop, the returned one the strongest of all; None if there is none.

        Raises:
            TrainingError: if too many steps in a row were not finite, too many clips cannot be decoded, or a
                micro-batch does not fit the memory.
        """
        started = time.perf_counter()
        factor = schedule_factor(self.stage.schedule, step, self.stage.num_steps)
        set_learning_rates(self.engine.optimizer, factor)
        if self.engine.needs_loss_scale:
            self.engine.loss_scale = state.loss_scale
        sums = self.forward_backward(step, batches)
        norm = self.engine.step()
        problems = [problem for batch in batches for problem in batch.problems]
        shared = self.engine.processes.all_reduce(
            torch.tensor([*sums.values(), float(len(problems)), *reason_flags(stop)])
        )
        numbers = shared.tolist()
        flags = numbers[len(sums) + 1 :]
        totals = dict(zip((*sums, "problems"), numbers, strict=False))
        if totals["problems"]:
            self._count_problems(state, problems)
        self._count_skips(state, step, norm, totals["loss"])
        parts_s = self.engine.clock.take()
        seconds = time.perf_counter() - started + parts_s["data"]
        audio_s = totals["audio_samples"] / RATE_HZ
        line = {
            "stage": self.stage_number,
            "step": step,
            "loss": totals["loss"],
            "losses": {name: totals[f"task:{name}"] for name in self.stage.weighted_tasks},
            "epoch": self.schedule.epoch_of(step - 1),
            "lr_factor": factor,
            "lr": learning_rates(self.engine.optimizer),
            "grad_norm": norm,
            "audio_s_per_s": audio_s / seconds,
            "padding_fraction": 1 - audio_s * RATE_HZ / max(totals["padded_samples"], 1.0),
            "step_s": seconds,
            "time_s": parts_s,
            "memory_gib": peak_memory_gib(self.engine.processes.device),
            "num_skipped": state.num_skipped,
            "num_ctc_too_long": int(totals["ctc_too_long"]),
        }
        if self.engine.needs_loss_scale:
            line |= {"loss_scale": self.engine.loss_scale, "num_overflows": state.num_overflows}
        if self._flops_per_s:
            line["mfu"] = self._flops_per_s["device"] * line["audio_s_per_s"] / self._peak_flops()
        return line, strongest_reason(flags)

    def keys_of(self, batches: Sequence[Batch]) -> list[str]:
        """Return the keys of the utterances that count in `batches`."""
        return [key for batch in batches for key in self.index.take(batch.items_B[batch.valid_B].numpy()).values("key")]

    def warm_up(self, batch: Batch) -> None:
        """One discarded forward and backward.

        Without it a resumed run would differ from an uninterrupted one (`Engine.needs_warm_up`).
        """
        self._micro_batch(1, 0, batch, self.targets.denominators(batch.items_B.numpy()), is_last=True)
        self.engine.discard_gradients()

    def forward_backward(self, step: int, batches: Sequence[Batch]) -> dict[str, float]:
        """Add up the gradients of the 1-based `step`; return this process's share of what is summed and logged."""
        if self.config.parallel.peak_tflops is None or self._flops_per_s:
            return self._forward_backward(step, batches)
        counter = flop_counter()
        with counter:
            sums = self._forward_backward(step, batches)
        padded_s = max(sums["padded_samples"], 1.0) / RATE_HZ
        self._flops_per_s["device"] = counter.get_total_flops() / padded_s
        return sums

    def _peak_flops(self) -> float:
        return (self.config.parallel.peak_tflops or 0.0) * 1e12 * self.engine.processes.info.num_processes

    def _forward_backward(self, step: int, batches: Sequence[Batch]) -> dict[str, float]:
        denominators = self.targets.denominators(self.schedule.items(step - 1))
        tasks = (f"task:{name}" for name in self.stage.weighted_tasks)
        names = ("loss", "audio_samples", "padded_samples", "ctc_too_long", *tasks)
        device = self.engine.processes.device
        sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in names}
        for number, batch in enumerate(batches):
            found = self._micro_batch(step, number, batch, denominators, is_last=number == len(batches) - 1)
            for name, value in found.items():
                sums[name] += value
        # Read here alone: between the micro-batches the host need not wait for the device.
        return dict(zip(names, torch.stack(list(sums.values())).tolist(), strict=True))

    def _micro_batch(
        self, step: int, number: int, batch: Batch, denominators: dict[str, float], *, is_last: bool
    ) -> dict[str, Tensor | float]:
        with refusing_lack_of_memory(lambda: TrainingError(self._no_memory(step, batch))):
            return self._compute(step, number, batch, denominators, is_last=is_last)

    def _no_memory(self, step: int, batch: Batch) -> str:
        num_clips, longest_s = len(batch.items_B), int(batch.num_samples_B.max()) / RATE_HZ
        what = "one clip" if num_clips == 1 else f"{num_clips} clips"
        return (
            f"a micro-batch must fit the memory, but one of {what}, the longest of {longest_s:.2f} s "
            f"({num_clips * longest_s:.2f} padded seconds), in step {step} of stage {self.stage.name!r} needs more "
            f"than there is; {training_advice(self.config)}"
        )

    def _compute(
        self, step: int, number: int, batch: Batch, denominators: dict[str, float], *, is_last: bool
    ) -> dict[str, Tensor | float]:
        info = self.engine.processes.info
        seed_generators(self.config.seed, self.stage_number, step, number * info.num_processes + info.rank)
        items = batch.items_B.numpy()
        device = self.engine.processes.device
        augment = self._augment(self.schedule.epoch_of(step - 1))
        inputs = make_inputs(batch, device, self.lookups, augment=augment)
        targets = {name: target.to(device) for name, target in self.targets.lookup(items).items()}
        with self.engine.accumulating(is_last=is_last):
            output = self.engine.forward(inputs, self.stage.weighted_tasks)
            loss, shares = micro_batch_loss(
                self.specs,
                self.stage.weights,
                output.logits,
                output.num_frames_B,
                targets,
                batch.valid_B.to(device, non_blocking=True),
                denominators,
            )
            self.engine.backward(loss)
        sums: dict[str, Tensor | float] = {f"task:{name}": share for name, share in shares.items()}
        sums["loss"] = loss.detach()
        if bool(batch.valid_B.any()):
            sums["audio_samples"] = inputs.num_samples_B.sum()
            sums["padded_samples"] = float(inputs.wave_BT.numel())
            sums["ctc_too_long"] = sum(
                kind_of(spec).num_too_long(output.num_frames_B, targets[spec.name])
                for spec in self.specs
                if spec.name in shares
            )
        return sums

    def _augment(self, epoch: int) -> Augment:
        def augment(batch: Batch, device: torch.device) -> Inputs:
            keys = self.index.take(batch.items_B.numpy()).values("key")
            encoder = self.engine.model.encoder
            changes = self.augmenter.draw(batch, keys, epoch)
            masks = draw_masks(
                self.config.model.spec_augment,
                keys,
                encoder.num_frames(changes.num_samples_B).tolist(),
                encoder.num_mask_features,
                seed=self.config.seed,
                epoch=epoch,
            )
            changed = self.augmenter.apply(batch.to(device), changes)
            return Inputs(changed.wave_BT, changed.num_samples_B, masks, changes.warp_B).to(device)

        return augment

    def _count_skips(self, state: TrainState, step: int, norm: float, loss: float) -> None:
        scaled = self.engine.needs_loss_scale
        if math.isfinite(norm):
            state.num_skipped_in_a_row = 0
            if scaled:
                adapt_loss_scale(state, overflowed=False)
            return
        state.num_skipped += 1
        if scaled and math.isfinite(loss) and state.loss_scale > LOWEST_SCALE:
            # No fault of the training: the scale starts as high as can be, and rises until this happens.
            state.num_overflows += 1
            adapt_loss_scale(state, overflowed=True)
            return
        state.num_skipped_in_a_row += 1
        if state.num_skipped_in_a_row > self.config.max_skipped_steps:
            keys = self.index.take(self.schedule.items(step - 1)).values("key")
            raise TrainingError(
                f"at most max_skipped_steps = {self.config.max_skipped_steps} steps in a row may have a gradient that "
                f"is not finite, but step {step} of stage {self.stage.name!r} is one more; its batch is {keys}; "
                f"lower the learning rate{' or use bf16 or float32' if scaled else ''}"
            )

    def _count_problems(self, state: TrainState, problems: Sequence[str]) -> None:
        everyone = sorted({problem for part in self.engine.processes.all_gather(list(problems)) for problem in part})
        state.bad_keys = sorted({*state.bad_keys, *everyone})
        allowed = int(self.config.data.max_bad_fraction * len(self.index))
        if len(state.bad_keys) > allowed:
            raise TrainingError(
                f"at most {allowed} utterances may be unreadable (data.max_bad_fraction = "
                f"{self.config.data.max_bad_fraction:g} of {len(self.index)}), but {len(state.bad_keys)} are: "
                f"{state.bad_keys[0]}"
            )


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory this process has held so far: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
