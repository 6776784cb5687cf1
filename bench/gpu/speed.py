"""MetaSER's own steps: speed, where their time goes, the dearest kernels."""

from __future__ import annotations

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from training import STAGES, stage_engine, synchronise, train_step

from gpu.report import Row
from gpu.timeline import Timeline, marked
from gpu.work import (
    WARM_UP_STEPS,
    Bench,
    Targeted,
    count_audio,
    cut_step,
    free_memory,
    lengths_of,
    model_config,
    schedule_of,
    targeted,
)
from metaser.config.schema import ParallelConfig, StageConfig
from metaser.distributed import dist_info
from metaser.model.metaser import MetaSERModel
from metaser.processes import Processes
from metaser.train.engine import Engine
from metaser.train.flops import flop_counter
from shards.schema import RATE_HZ

NUM_KERNELS = 20
_SCOPES = ("metaser.", "Optimizer.", "ProfilerStep")
"""How names of a trace begin that are no kernels but span some."""
TRACED_STEPS = 2
FLOP_LENGTHS_S = (2.0, 4.0, 8.0)
"""Three lengths give the operations of a clip as a polynomial of second degree in its length."""


def measure_encoder(bench: Bench, name: str) -> None:
    """Write all rows of one encoder, those that matter most first."""
    encoder = _Encoder(bench, name)
    shape = bench.shape
    main_s, *other_s = shape.micro_batches_s
    metadata, emotion = STAGES
    for stage in (emotion, metadata):
        bench.attempt(f"operations, stage {stage.name}", shape.least_s, lambda stage=stage: encoder.count_flops(stage))
    bench.attempt("stage emotion", shape.least_s, lambda: encoder.measure_speed(emotion, main_s))
    bench.attempt("time of each part", shape.least_s, lambda: encoder.measure_parts(emotion, main_s))
    bench.attempt("kernels", 2 * shape.least_s, lambda: encoder.trace_kernels(emotion, main_s))
    for seconds in other_s:
        what = f"micro-batches of {seconds:g} s"
        bench.attempt(what, shape.least_s, lambda seconds=seconds: encoder.measure_speed(emotion, seconds))
    bench.attempt("stage metadata", shape.least_s, lambda: encoder.measure_speed(metadata, main_s))
    if bench.arguments.no_compile:
        bench.row("left out", what="compiled layers", why="--no-compile")
        return
    bench.attempt("compiled layers", shape.compile_s, lambda: encoder.measure_compiled(emotion, main_s))
    if encoder.is_compiled:
        bench.attempt("parts, compiled", shape.least_s, lambda: encoder.measure_parts(emotion, main_s))
        bench.attempt("metadata, compiled", shape.least_s, lambda: encoder.measure_speed(metadata, main_s))
        for seconds in other_s:
            what = f"micro-batches of {seconds:g} s, compiled"
            bench.attempt(what, shape.least_s, lambda seconds=seconds: encoder.measure_speed(emotion, seconds))


class _Encoder:
    """MetaSER's whole model around one encoder, and the engine of the stage that was measured last."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench = bench
        self.is_compiled = False
        wants_compiler = not bench.arguments.no_compile
        self.processes = Processes(ParallelConfig(compile_layers=wants_compiler), dist_info())
        torch.manual_seed(0)
        with bench.device:
            self.model = MetaSERModel(model_config(name, bench.shape))
        self.schedule = schedule_of(bench.shape)
        self.flops: dict[str, float] = {}
        """TFLOP of a step per real second of audio, by stage."""
        self._steps: dict[float, list[list[Targeted]]] = {}
        self._engine: Engine | None = None
        self._stage = ""

    def engine(self, stage: StageConfig) -> Engine:
        """Return the stage's engine."""
        if self._engine is None or self._stage != stage.name:
            self._engine = None
            free_memory()
            self._engine = stage_engine(self.model, stage, self.processes, self.bench.arguments.precision)
            self._stage = stage.name
        return self._engine

    def steps(self, micro_batch_s: float) -> list[list[Targeted]]:
        """Return the micro-batches of the steps of one measurement."""
        if micro_batch_s not in self._steps:
            numbers = range(WARM_UP_STEPS + self.bench.shape.steps)
            cut = [cut_step(self.schedule, number, micro_batch_s) for number in numbers]
            self._steps[micro_batch_s] = [list(map(targeted, micro_batches)) for micro_batches in cut]
        return self._steps[micro_batch_s]

    def count_flops(self, stage: StageConfig) -> None:
        """Count the operations of forward and backward passes of single clips, without padding, by FlopCounterMode.

        The matrix products of attention that its backward pass repeats are counted where the kernel's formula has them.
        """
        engine = self.engine(stage)
        lengths = torch.tensor(FLOP_LENGTHS_S, dtype=torch.float64) * self.bench.shape.length
        counts = []
        for length in lengths.tolist():
            clip = targeted(np.array([int(length * RATE_HZ)]))
            counter = flop_counter()
            with counter:
                train_step(engine, stage, [clip])
            counts.append(float(counter.get_total_flops()))
        powers = torch.stack([lengths**power for power in range(3)], dim=1)
        coefficients = torch.linalg.solve(powers, torch.tensor(counts, dtype=torch.float64))
        seconds = torch.from_numpy(lengths_of(self.bench.shape) / RATE_HZ)
        total = sum(float(factor * (seconds**power).sum()) for power, factor in enumerate(coefficients))
        self.flops[stage.name] = total / float(seconds.sum()) / 1e12

    def measure_speed(self, stage: StageConfig, micro_batch_s: float) -> None:
        """Write speed, step times, padded share and peak memory."""
        engine, steps = self.engine(stage), self.steps(micro_batch_s)

        def step(number: int) -> tuple[float, float]:
            train_step(engine, stage, steps[number])
            return count_audio(steps[number])

        self.bench.row(
            "speed", **self._columns(stage, micro_batch_s), **self.bench.timed_steps(step), **self._flops(stage)
        )

    def measure_compiled(self, stage: StageConfig, micro_batch_s: float) -> None:
        """Compile the layers and measure as before; the compilation falls into the steps that warm up."""
        self.model.encoder.compile_layers()
        self.is_compiled = True
        self.measure_speed(stage, micro_batch_s)

    def measure_parts(self, stage: StageConfig, micro_batch_s: float) -> None:
        """Write the share of a step's time that each part takes, both passes together."""
        engine, steps = self.engine(stage), self.steps(micro_batch_s)
        timeline = Timeline(self.bench.device)
        with marked(self.model, timeline.mark):
            for number, micro_batches in enumerate(steps):
                if number == WARM_UP_STEPS:
                    timeline.restart()
                train_step(engine, stage, micro_batches, timeline.mark)
                timeline.mark("")
        seconds = timeline.seconds()
        total = sum(seconds.values())
        shares = {part.replace(" ", "_"): share / total for part, share in seconds.items()}
        step_ms = 1000 * total / (len(steps) - WARM_UP_STEPS)
        self.bench.row("parts", **self._columns(stage, micro_batch_s), step_ms=step_ms, **shares)

    def trace_kernels(self, stage: StageConfig, micro_batch_s: float) -> None:
        """Write the dearest kernels (on a CPU: operations), and the share of a step in which none runs."""
        engine, steps = self.engine(stage), self.steps(micro_batch_s)
        uses_gpu = self.bench.device.type == "cuda"
        traced = steps[WARM_UP_STEPS : WARM_UP_STEPS + TRACED_STEPS]

        def step(number: int) -> tuple[float, float]:
            train_step(engine, stage, traced[number % len(traced)])
            return count_audio(traced[number % len(traced)])

        plain = self.bench.timed_steps(step)
        with profile(activities=[ProfilerActivity.CUDA if uses_gpu else ProfilerActivity.CPU]) as tracer:
            for number in range(len(traced)):
                step(number)
            synchronise()
        kernels = [
            (event.self_device_time_total if uses_gpu else event.self_cpu_time_total, event)
            for event in tracer.key_averages()
            if not event.key.startswith(_SCOPES)
        ]
        busy_us = sum(time_us for time_us, _ in kernels)
        for time_us, event in sorted(kernels, key=lambda kernel: -kernel[0])[:NUM_KERNELS]:
            calls, ms = event.count / len(traced), time_us / 1000 / len(traced)
            self.bench.row("kernels", kernel=event.key, calls_a_step=calls, ms_a_step=ms, share=time_us / busy_us)
        if uses_gpu:
            # Of the same steps without the profiler, which slows the host down.
            busy_s_per_audio_s = busy_us / 1e6 / sum(count_audio(micro_batches)[0] for micro_batches in traced)
            gaps = 1 - busy_s_per_audio_s * plain["audio_s_per_s"]
            self.bench.row("gaps", **self._columns(stage, micro_batch_s), host_gaps=gaps)

    def _columns(self, stage: StageConfig, micro_batch_s: float) -> Row:
        mode = "compiled" if self.is_compiled else "eager"
        return {"stage": stage.name, "mode": mode, "micro_batch_s": micro_batch_s}

    def _flops(self, stage: StageConfig) -> Row:
        return {"tflop_per_audio_s": self.flops.get(stage.name)}
