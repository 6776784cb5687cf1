"""Groups of processes that train over gloo, by MetaSER or by torch, Accelerate, DeepSpeed alone; used by `scaling.py`.

Each group does its steps when it is asked to, and sleeps in between, so that several can be measured in turn.
"""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from shards.plan import Schedule
from shards.schema import RATE_HZ

FLOAT32_BYTES = 4


_EXPERIMENT = """
output_dir: FOLDER/run
data: {shards: FOLDER/packed, batch_utterances: 2, max_micro_batch_s: 240, num_workers: 0}
model:
  encoder: {kind: logmel, num_mels: 40, width: WIDTH, num_layers: LAYERS, num_heads: 4, feed_forward: FEEDFORWARD,
            dropout: 0.0}
  coattention: {form: cross, width: 32, num_heads: 2}
  head_width: 32
tasks:
  - {name: emotion, kind: classification}
  - {name: asr, kind: ctc}
  - {name: gender, kind: classification}
stages:
  - name: all
    train: [encoder, ari, heads, coattention]
    weights: {emotion: 1.0, asr: 0.1, gender: 0.1}
    num_steps: 1000000
    eval_every_steps: 1000000
    save_every_steps: 1000000
    select: emotion.ua
    learning_rate: {encoder: 1.0e-5, heads: 1.0e-5}
parallel: {device: cpu}
"""
NUM_CLIPS = 256
NUM_STEPS = 4
"""Steps of which each training has the batches in memory, again and again."""


@dataclass(frozen=True)
class Setup:
    """What all measured trainings have in common."""

    yaml: str
    clips: int
    """Of a process and step."""

    def num_samples(self) -> np.ndarray:
        """Return the lengths of the clips that are trained on."""
        from shards.indexload import load_index

        return load_index([Path(self.yaml).parent / "packed"]).num_samples


def write_input(folder: Path, *, width: int, num_layers: int) -> None:
    """Write shards of noise, log-normal lengths of 2 s on average, and the experiment on them."""
    import soundfile as sf

    from shards.pack import pack_corpus

    generator = np.random.default_rng(0)
    rows = []
    for number in range(NUM_CLIPS):
        seconds = float(np.exp(generator.normal(0.52, 0.5935)).clip(0.5, 15))
        sf.write(folder / f"{number:04d}.wav", 0.05 * generator.standard_normal(int(RATE_HZ * seconds)), RATE_HZ)
        emotion = ("anger", "happiness", "neutral", "sadness")[number % 4]
        gender = ("female", "male")[number // 4 % 2]
        rows.append((f"{number:04d}.wav", emotion, f"s{number % 8}", gender, "so it is", "train"))
    with (folder / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "emotion", "speaker", "gender", "text", "split"))
        table.writerows(rows)
    pack_corpus("csv", folder / "clips.csv", folder / "packed")
    sizes = {"FOLDER": str(folder), "WIDTH": str(width), "LAYERS": str(num_layers), "FEEDFORWARD": str(4 * width)}
    text = _EXPERIMENT
    for name, value in sizes.items():
        text = text.replace(name, value)
    (folder / "experiment.yaml").write_text(text)


Step = Callable[[int], dict[str, float]]
"""Does the step of this number, from 0; returns the seconds of its parts, where it knows them."""


class Parts:
    """A model, its optimizer, and one process's batches in memory, before anything is spread."""

    def __init__(self, setup: Setup, rank: int, num_processes: int, overrides: tuple[str, ...] = ()) -> None:
        from metaser.config.load import load_experiment
        from metaser.model.metaser import build_model
        from metaser.seeding import seed_generators
        from metaser.stagedata import training_rows
        from metaser.targets import Targets, resolve_tasks
        from metaser.train.optim import build_optimizer
        from metaser.train.stage import freeze_all_but, select_parameters
        from shards.indexload import load_index
        from shards.plan import step_micro_batches
        from shards.read import read_batches
        from shards.splits import assign_splits

        self.config = load_experiment(setup.yaml, list(overrides))
        index = load_index(self.config.data.shard_folders)
        splits = assign_splits(index, self.config.data.splits, allow_speaker_overlap=False)
        self.specs = resolve_tasks(self.config.tasks, index.take(training_rows(self.config, index, splits)))
        self.stage = self.config.stages[0]
        self.training = index.take(splits.rows("train"))
        seed_generators(self.config.seed, "init")
        self.model = build_model(self.config.model, self.specs, self.config.main_task)
        trainable = select_parameters(self.model, self.stage)
        freeze_all_but(self.model, trainable)
        self.model.train()
        self.num_trainable = sum(value.numel() for value in self.model.parameters() if value.requires_grad)
        self.optimizer = build_optimizer(self.model, trainable, self.stage)
        self.targets = Targets(self.specs, self.training)
        batch = setup.clips * num_processes
        self.schedule = Schedule(self.training.num_samples, batch_utterances=batch, pool_utterances=1_600, seed=1)
        self.batches = []
        for step in range(NUM_STEPS):
            micro_batches = step_micro_batches(
                self.schedule, step, rank=rank, num_processes=num_processes, max_micro_batch_samples=240 * RATE_HZ
            )
            self.batches.append(list(read_batches(self.training, micro_batches, num_workers=0, timeout_s=60)))


def metaser_step(setup: Setup, strategy: str, rank: int, num_processes: int) -> tuple[Step, int]:
    """Return MetaSER's whole step: learning rates, targets, losses, engine, metrics summed over the processes."""
    from metaser.distributed import dist_info
    from metaser.processes import Processes
    from metaser.train.augment import Augmenter
    from metaser.train.build import build_engine
    from metaser.train.state import TrainState
    from metaser.train.step import StepRunner

    parts = Parts(setup, rank, num_processes, (f"parallel.strategy={strategy}",))
    processes = Processes(parts.config.parallel, dist_info())
    engine = build_engine(processes, parts.model, parts.optimizer, max_grad_norm=1.0)
    runner = StepRunner(
        parts.config,
        parts.stage,
        1,
        parts.specs,
        parts.training,
        parts.targets,
        parts.schedule,
        engine,
        Augmenter(parts.stage.augment, seed=0),
    )
    if engine.needs_warm_up:
        runner.warm_up(parts.batches[0][0])
    state = TrainState(stage=1)

    def step(number: int) -> dict[str, float]:
        line, _ = runner.run(number + 1, parts.batches[number], state, stop=None)
        return {name: float(line["time_s"][name]) for name in ("forward", "backward", "optimizer")}

    return step, parts.num_trainable


def plain_step(setup: Setup, library: str, rank: int, num_processes: int) -> tuple[Step, int]:
    """Return the step that a user of `library` writes; targets are looked up beforehand.

    `torch` is DistributedDataParallel, or nothing around the model with one process; `alone` exchanges nothing.
    """
    import torch
    import torch.distributed as dist

    from metaser.model.encoders.base import Inputs
    from metaser.train.objective import micro_batch_loss

    parts = Parts(setup, rank, num_processes)
    ready = [
        (
            Inputs(batch.wave_BT, batch.num_samples_B),
            parts.targets.lookup(batch.items_B.numpy()),
            batch.valid_B,
            parts.targets.denominators(parts.schedule.items(step)),
        )
        for step in range(NUM_STEPS)
        for batch in parts.batches[step]
    ]
    if len(ready) != NUM_STEPS:
        raise ValueError(f"a step must be one micro-batch of each process, got {len(ready)} in {NUM_STEPS} steps")
    model, optimizer = parts.model, parts.optimizer
    wrapped: Any = model
    backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward
    trainable = [value for value in model.parameters() if value.requires_grad]
    if library == "accelerate":
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        handlers = [InitProcessGroupKwargs(backend="gloo")] if num_processes > 1 else []
        accelerator = Accelerator(cpu=True, kwargs_handlers=handlers)
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        backward = accelerator.backward
    elif library.startswith("deepspeed"):
        return _deepspeed_step(parts, ready, int(library[-1]), rank, num_processes), parts.num_trainable
    elif num_processes > 1:
        dist.init_process_group("gloo")
        if library == "torch":
            wrapped = torch.nn.parallel.DistributedDataParallel(model)

    def step(number: int) -> dict[str, float]:
        inputs, targets, valid_B, denominators = ready[number]
        output = wrapped(*inputs, tasks=parts.stage.weighted_tasks)
        loss, _ = micro_batch_loss(
            parts.specs, parts.stage.weights, output.logits, output.num_frames_B, targets, valid_B, denominators
        )
        backward(loss * num_processes)
        if library == "accelerate":
            accelerator.clip_grad_norm_(trainable, 1.0)
        else:
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": float(loss.detach())}

    return step, parts.num_trainable


def _deepspeed_step(parts: Parts, ready: list[Any], stage: int, rank: int, num_processes: int) -> Step:
    import torch.distributed as dist

    from metaser.deepspeed import choose_device
    from metaser.train.objective import micro_batch_loss

    choose_device(use_cuda=False)
    import deepspeed

    if num_processes == 1:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    else:
        dist.init_process_group("gloo")
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        # torch's AdamW, as MetaSER.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    wrapped, *_ = deepspeed.initialize(model=parts.model, optimizer=parts.optimizer, config=settings)
    if stage == 3 and wrapped.optimizer.persistent_parameters:
        # Some are read outside of their own module's forward, before DeepSpeed would have them.
        wrapped.optimizer.persistent_parameters[0].all_gather(wrapped.optimizer.persistent_parameters)

    def step(number: int) -> dict[str, float]:
        inputs, targets, valid_B, denominators = ready[number]
        output = wrapped(*inputs, tasks=parts.stage.weighted_tasks)
        loss, _ = micro_batch_loss(
            parts.specs, parts.stage.weights, output.logits, output.num_frames_B, targets, valid_B, denominators
        )
        wrapped.backward(loss * num_processes)
        wrapped.step()
        return {"loss": float(loss.detach())}

    return step


# ---------------------------------------------------------------- bytes and seconds of one process


def sent_bytes() -> int:
    """Return what this process has sent through TCP so far, in bytes, by the kernel's count (Linux)."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith("socket:"):  # noqa: PTH115
                continue
            copy = os.dup(int(entry.name))
        except OSError:
            # Closed since the folder was listed.
            continue
        with socket.socket(fileno=copy) as found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                # `tcpi_bytes_sent` of struct tcp_info.
                total += struct.unpack_from("Q", found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 200)[0]
    return total


def collectives_of(work: Callable[[], object], num_processes: int) -> dict[str, tuple[int, float]]:
    """Return calls and MB of each kind of collective in `work`, as c10d was asked for them: of the whole tensors."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        work()
    calls: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    asked = "?"
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        if event.name.startswith("c10d::"):
            asked = event.name
        elif event.name.startswith("gloo:"):
            # Gloo reduces everything everywhere where it was asked to scatter.
            name = "reduce_scatter" if "reduce_scatter" in asked else event.name.removeprefix("gloo:")
            calls[name] += 1
            parts = num_processes if name == "all_gather" else 1
            elements[name] += parts * sum(math.prod(shape) for shape in event.input_shapes if shape)
    return {name: (calls[name], elements[name] * FLOAT32_BYTES / 1e6) for name in calls}


def measure_link(num_bytes: int, num_processes: int, repeats: int = 3) -> dict[str, float]:
    """Return seconds of a small and of a large all-reduce and all-gather (of `num_bytes` altogether)."""
    import torch
    import torch.distributed as dist

    found = {}
    for size, label in ((1_024, "small"), (num_bytes // FLOAT32_BYTES // num_processes, "large")):
        part, whole = torch.zeros(size), torch.zeros(size * num_processes)
        works = {
            "all_reduce": lambda whole=whole: dist.all_reduce(whole),
            "all_gather": lambda whole=whole, part=part: dist.all_gather_into_tensor(whole, part),
        }
        for kind, work in works.items():
            work()
            dist.barrier()
            started = time.perf_counter()
            for _ in range(repeats):
                work()
            found[f"{kind} {label}"] = (time.perf_counter() - started) / repeats
    return found


def serve(way: str, rank: int, num_processes: int, port: int, setup: Setup, pipe: Connection) -> None:
    """Be one process of a training, and do what is asked for through `pipe`."""
    if num_processes > 1:
        place = {"RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_RANK": rank, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    num_trainable, step = 0, None
    if way == "gloo":
        dist.init_process_group("gloo")
    elif way.startswith("metaser"):
        step, num_trainable = metaser_step(setup, way.split()[1], rank, num_processes)
    else:
        step, num_trainable = plain_step(setup, way, rank, num_processes)
    if step is not None:
        # The first allocate; DDP arranges its buckets, DeepSpeed traces the order of modules.
        for number in range(2):
            step(number)
    pipe.send({"parameters": num_trainable})
    while (asked := pipe.recv()) is not None:
        if dist.is_initialized():
            dist.barrier()
        if "link" in asked:
            pipe.send(measure_link(asked["link"], num_processes))
        elif "count" in asked and step is not None:
            before = sent_bytes()
            for number in range(NUM_STEPS):
                step(number)
            sent = (sent_bytes() - before) / NUM_STEPS
            # Asking for a collective's size is work; in a step of its own.
            pipe.send({"sent": sent, "collectives": collectives_of(lambda: step(0), num_processes)})
        elif step is not None:
            started = time.perf_counter()
            parts: Counter[str] = Counter()
            for number in asked["steps"]:
                parts.update(step(number))
            count = len(asked["steps"])
            spent = (time.perf_counter() - started) / count
            pipe.send({"step": spent, **{name: value / count for name, value in parts.items()}})
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


# ---------------------------------------------------------------- groups of processes


class Group:
    """The processes of one training."""

    def __init__(self, way: str, num_processes: int, setup: Setup) -> None:
        if way == "one":
            way, num_processes = "metaser single", 1
        self.way, self.num_processes = way, num_processes
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("forkserver")
        self._pipes: list[Connection] = []
        self.processes = []
        for rank in range(num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(way, rank, num_processes, port, setup, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)
        self.num_parameters = int(self.answers()[0]["parameters"])

    def ask(self, **asked: object) -> list[dict[str, Any]]:
        """Return every process's answer, in rank order."""
        for pipe in self._pipes:
            pipe.send(asked)
        return self.answers()

    def answers(self) -> list[dict[str, Any]]:
        """Wait for every process's answer.

        Raises:
            SystemExit: if one has ended.
        """
        try:
            return [pipe.recv() for pipe in self._pipes]
        except EOFError:
            raise SystemExit(f"{self.way}, {self.num_processes} processes: one has ended; see above") from None

    def close(self) -> None:
        """Let all processes end."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(60)


_PRELOADED = [
    *("metaser.train.step", "metaser.train.build", "metaser.train.zero", "metaser.config.load", "accelerate"),
    *("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer", "torch.profiler"),
]


@contextmanager
def groups(ways: tuple[str, ...], num_processes: int, setup: Setup) -> Iterator[dict[str, Group]]:
    """Start a group for each way; none outlives the block.

    Ways are `torch`, `accelerate`, `deepspeed STAGE`, `metaser STRATEGY`, `alone` (nothing is exchanged), `gloo`
    (nothing but exchange) and `one` (MetaSER on a single process, whatever the number).
    """
    # Most of a start is imports, which all processes then share.
    os.environ["DS_ACCELERATOR"] = "cpu"
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
    found: dict[str, Group] = {}
    try:
        for way in ways:
            found[way] = Group(way, num_processes, setup)
        yield found
        for group in found.values():
            group.close()
    finally:
        for group in found.values():
            for process in group.processes:
                process.kill()
