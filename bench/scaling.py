"""What training on several processes costs: measured here, and predicted for 8, 64 and 512 GPUs.

    python bench/scaling.py                      # measures 1, 2 and 4 processes over gloo, and checks the model by them
    python bench/scaling.py --predict            # the model alone, in a minute; its inputs are options
    python bench/scaling.py --predict --million-parameters 1000 --node-gb-per-s 50

Measured are steps of MetaSER (`StepRunner.run`, batches in memory) beside what torch, Accelerate and DeepSpeed alone do
with the same model, loss, optimizer and batches, in turn: one group of processes a way, which sleeps while another has
its turn. Bytes are those that the kernel says were sent through a process's sockets (TCP_INFO), in steps of their own,
beside the collectives that torch's profiler saw.

The model is a sum: computing (the slowest process of the real plan), what of the exchange no backward pass hides, and
the optimizer. Fed with gloo's bandwidth and the step of one process, it must give the steps measured on 2 and 4.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from spread import FLOAT32_BYTES, NUM_STEPS, Group, Setup, groups, write_input

from shards.plan import Schedule, cut_micro_batches
from shards.schema import RATE_HZ

DDP_BUCKET_BYTES = 25 * 2**20
ZERO_BUCKET_BYTES = 5_000_000 * FLOAT32_BYTES
NUM_SMALL = 240
"""Biases and norms of a large encoder's layers: ZeRO 3 keeps them whole, and gathers each by itself after a step."""
ENOUGH = 0.93
"""Of the fastest strategy's speed: differences below are smaller than the model's own error."""
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")

# ---------------------------------------------------------------- the model: bytes


@dataclass(frozen=True)
class Exchange:
    """What a step sends in one way."""

    kind: str
    """`all_reduce`, `all_gather`, or `reduce_scatter`."""
    num_bytes: float
    """Of the whole tensors."""
    num_calls: int
    hidden_by: str = ""
    """The pass that it may run beside: `forward`, `backward`, or none."""

    def sent_bytes(self, num_processes: int, *, is_gloo: bool = False) -> float:
        """Return the bytes that each process sends; gloo scatters by reducing everything everywhere."""
        passes = 2 if self.kind == "all_reduce" or (is_gloo and self.kind == "reduce_scatter") else 1
        return passes * (num_processes - 1) / num_processes * self.num_bytes


def exchanges(strategy: str, num_bytes: float, *, num_micro_batches: int = 1, is_ideal: bool = False) -> list[Exchange]:
    """Return what a step with gradients of `num_bytes` sends.

    `is_ideal` is the theory: ZeRO 1 and 2 scatter the gradients. DeepSpeed 0.19 all-reduces them instead.
    """
    if strategy == "ddp":
        return [Exchange("all_reduce", num_bytes, math.ceil(num_bytes / DDP_BUCKET_BYTES), "backward")]
    calls = math.ceil(num_bytes / ZERO_BUCKET_BYTES)
    if strategy in ("zero1", "zero2"):
        # Gradients that lie with other processes cannot wait for the step's last micro-batch.
        times = num_micro_batches if strategy == "zero2" else 1
        kind = "reduce_scatter" if is_ideal else "all_reduce"
        return [
            Exchange(kind, times * num_bytes, times * calls, "backward"),
            Exchange("all_gather", num_bytes, calls),
        ]
    times = num_micro_batches
    small = [] if is_ideal else [Exchange("all_gather", 0.0, NUM_SMALL)]
    return [
        *small,
        Exchange("all_gather", times * num_bytes, times * calls, "forward"),
        Exchange("all_gather", times * num_bytes, times * calls, "backward"),
        Exchange("reduce_scatter", times * num_bytes, times * calls, "backward"),
    ]


@dataclass(frozen=True)
class Link:
    """How fast processes exchange, by kind of collective."""

    bytes_per_s: dict[str, float]
    """Of what each process sends."""
    latency_s: dict[str, float]
    """Of one call without bytes."""
    is_gloo: bool = False

    def seconds(self, exchange: Exchange, num_processes: int) -> float:
        """Return how long it takes with nothing beside it; one process sends nothing."""
        if num_processes == 1:
            return 0.0
        sent = exchange.sent_bytes(num_processes, is_gloo=self.is_gloo)
        return exchange.num_calls * self.latency_s[exchange.kind] + sent / self.bytes_per_s[exchange.kind]


@dataclass(frozen=True)
class Cluster:
    """GPUs and what lies between them. The defaults are data sheets' figures of H100 nodes, none of them measured."""

    gpus_per_node: int = 8
    nvlink_gb_per_s: float = 450.0
    """Of one GPU, one direction."""
    node_gb_per_s: float = 400.0
    """Of one node, one direction: eight times 400 Gb/s; 50 where a node has one such port."""
    bus_share: float = 0.8
    """Of these that a collective reaches."""
    hop_us: float = 1.0
    """From one GPU to the next of its node."""
    node_hop_us: float = 5.0

    def link(self, num_gpus: int) -> Link:
        """Return the speed of collectives over all of `num_gpus`.

        Rings cross each node's border once, and all of a node's ports carry them together. All-reduces take trees
        (logarithmic in the number of nodes), the others rings (linear in that of GPUs).
        """
        num_nodes = math.ceil(num_gpus / self.gpus_per_node)
        within = self.hop_us * (min(num_gpus, self.gpus_per_node) - 1)
        speed = self.nvlink_gb_per_s if num_nodes == 1 else min(self.nvlink_gb_per_s, self.node_gb_per_s)
        tree_us = 2 * (within + self.node_hop_us * math.log2(num_nodes))
        ring_us = num_nodes * within + (self.node_hop_us * num_nodes if num_nodes > 1 else 0)
        latency_s = {"all_reduce": tree_us / 1e6, "all_gather": ring_us / 1e6, "reduce_scatter": ring_us / 1e6}
        return Link(dict.fromkeys(latency_s, speed * self.bus_share * 1e9), latency_s)


def exposed_s(
    found: list[Exchange], link: Link, num_processes: int, *, hiding_s: dict[str, float], overlap: float
) -> float:
    """Return what of the exchange a step waits for.

    An exchange hides behind `overlap` of its pass of `hiding_s`, but for its last call, which has nothing behind it.
    """
    exposed = 0.0
    for name in ("forward", "backward", ""):
        parts = [exchange for exchange in found if exchange.hidden_by == name]
        seconds = sum(link.seconds(exchange, num_processes) for exchange in parts)
        last = max((link.seconds(exchange, num_processes) / exchange.num_calls for exchange in parts), default=0.0)
        hidden = min(seconds - last, overlap * hiding_s.get(name, 0.0)) if name else 0.0
        exposed += seconds - max(hidden, 0.0)
    return exposed


def memory_bytes(strategy: str, num_parameters: float, num_processes: int, *, activation_bytes: float = 0.0) -> float:
    """Return what a GPU holds: weights, gradients and Adam's two states in float32, buckets, activations."""
    whole = FLOAT32_BYTES * num_parameters
    weights, gradients, states = whole, whole, 2 * whole
    buffers = 0.0
    if strategy != "ddp":
        states /= num_processes
        buffers = 2.0 * ZERO_BUCKET_BYTES
    if strategy in ("zero2", "zero3"):
        gradients /= num_processes
    if strategy == "zero3":
        weights /= num_processes
        # LIVE_ELEMENTS of metaser/deepspeed.py.
        buffers += 15_000_000 * FLOAT32_BYTES
    return weights + gradients + states + min(buffers, 2 * whole) + activation_bytes


# ---------------------------------------------------------------- the model: stragglers of the real plan


def lengths(corpus: str) -> np.ndarray:
    """Return lengths in samples like those of IEMOCAP (5,531 clips) or MSP-Podcast's training part (84,000)."""
    generator = np.random.default_rng(0)
    if corpus == "IEMOCAP-like":
        seconds = np.exp(generator.normal(1.328, 0.5935, 5_531)).clip(0.5, 34)
    else:
        seconds = np.exp(generator.normal(np.log(5.3), 0.4, 84_000)).clip(2.75, 11)
    return (RATE_HZ * seconds).astype(np.int64)


CORPORA = ("IEMOCAP-like", "MSP-Podcast-like")


def large_tflop(padded_s: float, longest_s: float) -> float:
    """Return what a large encoder's step costs in TFLOP: attention grows with the longest clip (1.2 GFLOP at 5 s)."""
    return padded_s * (3 * (30.2 + 0.8 + 1.2 * longest_s / 5) + 4.9) / 1000


@dataclass(frozen=True)
class Share:
    """What the plan gives to processes, over some steps."""

    audio_s: float
    """Real seconds of a step, of all processes."""
    padding: float
    rounds: float
    """Micro-batches of one process in a step."""
    tflop: float
    """Of the mean process in a step."""
    straggler: float
    """Slowest over mean where processes meet once a step, mean over the steps."""
    straggler_each: float
    """The same where they meet in each micro-batch (ZeRO 2 and 3)."""
    padded_s: float
    """Of the process that has most in a micro-batch, the most of any step."""
    plan_ms: float
    """For one step, once an epoch is drawn."""


def share(
    num_samples: np.ndarray, num_processes: int, batch_utterances: int, max_micro_batch_s: float, num_steps: int = 12
) -> Share:
    """Return the share of work that the schedule's steps give to each of `num_processes`."""
    schedule = Schedule(num_samples, batch_utterances=batch_utterances, pool_utterances=1_600, seed=0)
    steps = np.linspace(0, schedule.steps_per_epoch - 1, min(num_steps, schedule.steps_per_epoch)).astype(int)
    schedule.items(0)
    real = padded = rounds = most = planned_s = 0.0
    costs, slowest, slowest_each = [], [], []
    for step in steps.tolist():
        started = time.perf_counter()
        found = samples_of_ranks(schedule, step, num_processes, max_micro_batch_s)
        planned_s += time.perf_counter() - started
        cost = np.array([[large_tflop(one / RATE_HZ, long / RATE_HZ) for one, long in row] for row in found])
        costs.append(float(cost.sum(axis=0).mean()))
        slowest.append(float(cost.sum(axis=0).max()))
        slowest_each.append(float(cost.max(axis=1).sum()))
        rounds += len(found)
        padded += sum(one for row in found for one, _ in row)
        most = max(most, *(one / RATE_HZ for row in found for one, _ in row))
        real += float(num_samples[schedule.items(step)].sum())
    return Share(
        audio_s=real / RATE_HZ / len(steps),
        padding=1 - real / padded,
        rounds=rounds / len(steps),
        tflop=statistics.mean(costs),
        straggler=sum(slowest) / sum(costs),
        straggler_each=sum(slowest_each) / sum(costs),
        padded_s=most,
        plan_ms=planned_s / len(steps) * 1e3,
    )


def samples_of_ranks(
    schedule: Schedule, step: int, num_processes: int, max_micro_batch_s: float
) -> list[list[tuple[int, int]]]:
    """Return padded samples and the longest clip of each micro-batch, by round and process.

    What `step_micro_batches` gives to one rank, for all ranks at once; a process without a clip is given the shortest.
    """
    items = schedule.items(step)
    sizes = schedule.num_samples[items]
    rounds = cut_micro_batches(sizes, num_processes, int(max_micro_batch_s * RATE_HZ))
    shortest = int(sizes[0])
    return [
        [
            (len(part) * int(sizes[part[-1]]), int(sizes[part[-1]])) if len(part) else (shortest, shortest)
            for part in parts
        ]
        for parts in rounds
    ]


# ---------------------------------------------------------------- the model: a step


@dataclass(frozen=True)
class Gpu:
    """One GPU, and a large encoder on it."""

    million_parameters: float = 316.0
    peak_tflops: float = 790.0
    mfu: float = 0.45
    overlap: float = 0.9
    """Of a pass that an exchange may run beside."""
    memory_gb: float = 80.0
    memory_tb_per_s: float = 3.35
    activation_mb_per_s: float = 50.0
    """Of a padded second of audio."""


@dataclass(frozen=True)
class Prediction:
    """A step of one strategy."""

    step_s: float
    compute_s: float
    straggler_s: float
    exposed_s: float
    optimizer_s: float
    memory_gb: float
    audio_s_per_s: float


def predict(strategy: str, num_gpus: int, work: Share, gpu: Gpu, cluster: Cluster) -> Prediction:
    """Return the step of a large encoder; another size costs in proportion to its parameters."""
    parameters = gpu.million_parameters * 1e6
    tflop = work.tflop * gpu.million_parameters / Gpu.million_parameters
    compute_s = tflop / (gpu.peak_tflops * gpu.mfu)
    straggler = work.straggler_each if strategy in ("zero2", "zero3") else work.straggler
    waiting_s = compute_s * (straggler - 1)
    found = exchanges(strategy, parameters * FLOAT32_BYTES, num_micro_batches=max(1, round(work.rounds)))
    # What DDP and ZeRO 1 send can only run beside the last micro-batch's pass; a backward pass is two thirds.
    beside = 1 / max(1.0, work.rounds) if strategy in ("ddp", "zero1") else 1.0
    hiding = {"forward": compute_s / 3 * beside, "backward": compute_s * 2 / 3 * beside}
    exposed = exposed_s(found, cluster.link(num_gpus), num_gpus, hiding_s=hiding, overlap=gpu.overlap)
    # AdamW reads weight, gradient and two states and writes three of them.
    updated = parameters if strategy == "ddp" else parameters / num_gpus
    optimizer_s = 7 * FLOAT32_BYTES * updated / (gpu.memory_tb_per_s * 1e12)
    step_s = compute_s + waiting_s + exposed + optimizer_s
    memory = memory_bytes(
        strategy, parameters, num_gpus, activation_bytes=work.padded_s * gpu.activation_mb_per_s * 1e6
    )
    return Prediction(
        step_s, compute_s, waiting_s, exposed, optimizer_s, memory / 1e9, audio_s_per_s=work.audio_s / step_s
    )


# ---------------------------------------------------------------- measured

SETS = (
    ("one", "alone", "gloo", "torch", "accelerate", "metaser ddp"),
    ("one", "alone", "gloo", "torch", "deepspeed 1", "metaser zero1"),
    ("one", "alone", "gloo", "torch", "deepspeed 2", "metaser zero2"),
    ("one", "alone", "gloo", "torch", "deepspeed 3", "metaser zero3"),
)
SETS_OF_ONE = (
    ("torch", "accelerate", "metaser single"),
    ("torch", "deepspeed 1", "metaser zero1", "deepspeed 3", "metaser zero3"),
)


def in_turn(found: dict[str, Group], num_rounds: int, link_bytes: int) -> dict[str, list[dict[str, float]]]:
    """Return each way's answers, slowest process first, one a round; the order changes from round to round."""
    answers: dict[str, list[dict[str, float]]] = {way: [] for way in found}
    order = list(found)
    for number in range(num_rounds):
        random.Random(number).shuffle(order)
        for way in order:
            if way == "gloo":
                answers[way].append(max(found[way].ask(link=link_bytes), key=lambda answer: sum(answer.values())))
            else:
                answers[way].append(
                    max(found[way].ask(steps=list(range(NUM_STEPS))), key=lambda answer: answer["step"])
                )
    return answers


def quartiles(values: list[float]) -> list[float]:
    """Return the lower quartile, the median and the upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def strategy_of(way: str) -> str | None:
    """Return the strategy of the model that `way` follows; None for what exchanges nothing."""
    if way in ("torch", "accelerate"):
        return "ddp"
    library, _, what = way.partition(" ")
    return {"deepspeed": f"zero{what}", "metaser": what}.get(library)


def measure(ways: tuple[str, ...], num_processes: int, setup: Setup, num_rounds: int) -> list[dict[str, Any]]:
    """Return a row for each way: seconds of a step, ratio to others, bytes sent, and what the model says."""
    rows = []
    with groups(ways, num_processes, setup) as found:
        num_bytes = FLOAT32_BYTES * max(group.num_parameters for group in found.values())
        counted = {way: group.ask(count=True) for way, group in found.items() if num_processes > 1 and strategy_of(way)}
        answers = in_turn(found, num_rounds, num_bytes)
    seconds = {way: [answer["step"] for answer in each] for way, each in answers.items() if way != "gloo"}
    for way in seconds:
        row: dict[str, Any] = {"processes": num_processes, "way": way}
        if num_rounds:
            row["step_s"] = statistics.median(seconds[way])
            for other in seconds:
                ratios = [ours / theirs for ours, theirs in zip(seconds[way], seconds[other], strict=True)]
                row[f"over {other}"] = quartiles(ratios)
        if way in counted:
            sent = statistics.mean(answer["sent"] for answer in counted[way])
            theory = sum(
                exchange.sent_bytes(num_processes)
                for exchange in exchanges(str(strategy_of(way)), num_bytes, is_ideal=True)
            )
            row |= {"sent_mb": sent / 1e6, "theory_mb": theory / 1e6, "collectives": counted[way][0]["collectives"]}
        if num_rounds and num_processes > 1 and way.startswith("metaser"):
            row |= checked(way, num_processes, setup, answers, num_bytes, row["collectives"])
        rows.append(row)
    return rows


def checked(
    way: str,
    num_processes: int,
    setup: Setup,
    answers: dict[str, list[dict[str, float]]],
    num_bytes: int,
    collectives: dict[str, tuple[int, float]],
) -> dict[str, float]:
    """Return the step that the model says, from gloo's speed and computing in the same rounds.

    Computing is that of one process over the plan and the cores, or that of as many processes that exchange nothing.
    """
    middle = {
        name: {part: statistics.median(answer[part] for answer in answers[name]) for part in answers[name][0]}
        for name in ("one", "alone", "gloo", way)
    }
    one, times = middle["one"], middle["gloo"]
    kinds = ("all_reduce", "all_gather")
    latency = {kind: times[f"{kind} small"] for kind in kinds}
    speeds = {
        kind: Exchange(kind, num_bytes, 1).sent_bytes(num_processes)
        / max(times[f"{kind} large"] - times[f"{kind} small"], 1e-9)
        for kind in kinds
    }
    link = Link(
        speeds | {"reduce_scatter": speeds["all_reduce"]},
        latency | {"reduce_scatter": latency["all_reduce"]},
        is_gloo=True,
    )
    # What was counted, for ZeRO 3 gathers small parameters one by one.
    found = [Exchange(kind, mb * 1e6, calls) for kind, (calls, mb) in collectives.items()]
    # As many processes as cores: whoever sends keeps from computing, so nothing is hidden.
    exchange_s = exposed_s(found, link, num_processes, hiding_s={}, overlap=0.0)
    num_samples = setup.num_samples()
    busy, single = (busy_samples(num_samples, number, setup.clips) for number in (num_processes, 1))
    passes_s = (one["forward"] + one["backward"]) * busy / single
    rest_s = (one["step"] - one["forward"] - one["backward"]) * max(1.0, num_processes / num_cores())
    measured = middle[way]["step"]
    return {
        "from_one_s": passes_s + rest_s + exchange_s,
        "from_many_s": middle["alone"]["step"] + exchange_s,
        "model_exchange_s": exchange_s,
        "error_from_one": (passes_s + rest_s + exchange_s) / measured - 1,
        "error": (middle["alone"]["step"] + exchange_s) / measured - 1,
        **{f"{kind}_gb_per_s": speeds[kind] / 1e9 for kind in kinds},
        **{f"{kind}_latency_ms": latency[kind] * 1e3 for kind in kinds},
    }


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


def busy_samples(num_samples: np.ndarray, num_processes: int, clips: int) -> float:
    """Return the padded samples that a step waits for: the slowest process's, or all of them over the cores."""
    schedule = Schedule(num_samples, batch_utterances=clips * num_processes, pool_utterances=1_600, seed=1)
    waits = []
    for step in range(NUM_STEPS):
        (costs,) = samples_of_ranks(schedule, step, num_processes, 240)
        each = [padded for padded, _ in costs]
        waits.append(max(max(each), sum(each) / num_cores()))
    return statistics.mean(waits)


def show_measured(rows: list[dict[str, Any]]) -> None:
    """Print steps, bytes and the model's errors; what stands in several sets once, beside its first neighbours."""
    seen = set()
    shown = []
    for row in rows:
        if (row["processes"], row["way"]) not in seen and row["way"] != "one":
            shown.append(row)
        seen.add((row["processes"], row["way"]))
    rows = shown
    references = {"accelerate": "torch", "metaser ddp": "torch", "metaser single": "torch"}
    references |= {f"metaser zero{stage}": f"deepspeed {stage}" for stage in (1, 2, 3)}
    if any("step_s" in row for row in rows):
        print("| processes | way | ms a step | over | ratio | quartiles | over torch |")
        print("|---|---|---|---|---|---|---|")
    for row in rows:
        if "step_s" not in row:
            continue
        reference = references.get(row["way"], "torch")
        low, middle, high = row[f"over {reference}"]
        print(
            f"| {row['processes']} | {row['way']} | {row['step_s'] * 1e3:.0f} | {reference} | {middle:.3f} "
            f"| {low:.3f}-{high:.3f} | {row['over torch'][1]:.3f} |"
        )
    print("\n| processes | way | MB sent | theory | ratio | collectives (calls, MB) |\n|---|---|---|---|---|---|")
    for row in rows:
        if "sent_mb" in row:
            kinds = ", ".join(f"{name} {calls} x, {mb:.1f}" for name, (calls, mb) in row["collectives"].items())
            print(
                f"| {row['processes']} | {row['way']} | {row['sent_mb']:.2f} | {row['theory_mb']:.2f} "
                f"| {row['sent_mb'] / row['theory_mb']:.3f} | {kinds} |"
            )
    if any("error" in row for row in rows):
        print("\n| processes | way | exchange | from one process | error | from as many | error | measured |")
        print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        if "error" in row:
            print(
                f"| {row['processes']} | {row['way']} | {row['model_exchange_s'] * 1e3:.0f} "
                f"| {row['from_one_s'] * 1e3:.0f} | {row['error_from_one']:+.0%} | {row['from_many_s'] * 1e3:.0f} "
                f"| {row['error']:+.0%} | {row['step_s'] * 1e3:.0f} |"
            )
    for row in rows:
        if "all_reduce_gb_per_s" in row:
            print(
                f"gloo beside {row['way']} on {row['processes']}: all-reduce {row['all_reduce_gb_per_s']:.2f} GB/s "
                f"and {row['all_reduce_latency_ms']:.2f} ms; all-gather {row['all_gather_gb_per_s']:.2f} GB/s, "
                f"{row['all_gather_latency_ms']:.2f} ms"
            )


# ---------------------------------------------------------------- predicted


def show_predicted(
    gpu: Gpu, cluster: Cluster, gpus: list[int], clips: list[int], max_micro_batch_s: float
) -> list[dict[str, Any]]:
    """Print what the plan and the model say; return a row for each corpus, number of GPUs, batch and strategy."""
    rows: list[dict[str, Any]] = []
    print("| corpus | GPUs | clips a GPU | padding | straggler | each micro-batch | planning, ms a step |")
    print("|---|---|---|---|---|---|---|")
    for corpus in CORPORA:
        num_samples = lengths(corpus)
        for each in clips:
            base = predict("ddp", 1, share(num_samples, 1, each, max_micro_batch_s), gpu, cluster)
            for number in gpus:
                if number * each > len(num_samples):
                    continue
                work = share(num_samples, number, number * each, max_micro_batch_s)
                print(
                    f"| {corpus} | {number} | {each} | {work.padding:.1%} | {work.straggler:.3f} "
                    f"| {work.straggler_each:.3f} | {work.plan_ms:.1f} |"
                )
                for strategy in STRATEGIES:
                    found = predict(strategy, number, work, gpu, cluster)
                    rows.append(
                        {
                            "corpus": corpus,
                            "gpus": number,
                            "clips": each,
                            "strategy": strategy,
                            **asdict(found),
                            "scaling": found.audio_s_per_s / number / base.audio_s_per_s,
                            "fits": found.memory_gb <= gpu.memory_gb,
                        }
                    )
    print(
        "\n| corpus | GPUs | clips a GPU | strategy | ms a step | computing | straggler | exchange | optimizer ", end=""
    )
    print("| GB | audio-s/s | of one GPU's speed |\n|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        parts = (row[name] * 1e3 for name in ("step_s", "compute_s", "straggler_s", "exposed_s", "optimizer_s"))
        print(
            f"| {row['corpus']} | {row['gpus']} | {row['clips']} | {row['strategy']} "
            f"| {' | '.join(f'{part:.1f}' for part in parts)} | {row['memory_gb']:.1f} | {row['audio_s_per_s']:,.0f} "
            f"| {row['scaling']:.0%} |"
        )
    print("\n| corpus | GPUs | clips a GPU | choose | audio-s/s | of one GPU's speed | GB |")
    print("|---|---|---|---|---|---|---|")
    for row in best(rows):
        print(
            f"| {row['corpus']} | {row['gpus']} | {row['clips']} | {row['strategy']} | {row['audio_s_per_s']:,.0f} "
            f"| {row['scaling']:.0%} | {row['memory_gb']:.1f} |"
        )
    return rows


def best(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what to choose for each corpus, number of GPUs and batch; nothing where no strategy fits.

    The first of `STRATEGIES` that fits and is within `ENOUGH` of the fastest: the fewer parts move, the better.
    """
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["fits"]:
            cases.setdefault((row["corpus"], row["gpus"], row["clips"]), []).append(row)
    found = []
    for fitting in cases.values():
        enough = ENOUGH * max(row["audio_s_per_s"] for row in fitting)
        found.append(next(row for row in fitting if row["audio_s_per_s"] >= enough))
    return found


def main(
    predict_only: Annotated[bool, typer.Option("--predict", help="The model alone.")] = False,
    processes: Annotated[list[int] | None, typer.Option(help="Repeat for several.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each way; 0 counts bytes only.")] = 5,
    clips: Annotated[int, typer.Option(help="Of a process and step that is measured.")] = 2,
    width: Annotated[int, typer.Option(help="Of the measured encoder.")] = 256,
    layers: Annotated[int, typer.Option(help="Of the measured encoder.")] = 6,
    gpus: Annotated[list[int] | None, typer.Option(help="Repeat for several.")] = None,
    clips_per_gpu: Annotated[list[int] | None, typer.Option(help="Repeat for several.")] = None,
    max_micro_batch_s: Annotated[float, typer.Option(help="data.max_micro_batch_s.")] = 240.0,
    million_parameters: Annotated[float, typer.Option(help="Trained.")] = Gpu.million_parameters,
    peak_tflops: Annotated[float, typer.Option(help="Of a GPU.")] = Gpu.peak_tflops,
    mfu: Annotated[float, typer.Option(help="Share of the peak.")] = Gpu.mfu,
    overlap: Annotated[float, typer.Option(help="Share of a pass that hides an exchange.")] = Gpu.overlap,
    memory_gb: Annotated[float, typer.Option(help="Of a GPU.")] = Gpu.memory_gb,
    activation_mb_per_s: Annotated[float, typer.Option(help="Of a padded second.")] = Gpu.activation_mb_per_s,
    nvlink_gb_per_s: Annotated[float, typer.Option(help="Of a GPU, one way.")] = Cluster.nvlink_gb_per_s,
    node_gb_per_s: Annotated[float, typer.Option(help="Between nodes, of a node, one way.")] = Cluster.node_gb_per_s,
    hop_us: Annotated[float, typer.Option(help="From a GPU to the next of its node.")] = Cluster.hop_us,
    node_hop_us: Annotated[float, typer.Option(help="From a node to the next.")] = Cluster.node_hop_us,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all rows there, too.")] = None,
) -> None:
    rows: list[dict[str, Any]] = []
    if not predict_only:
        with tempfile.TemporaryDirectory(prefix="metaser-bench-") as folder:
            write_input(Path(folder), width=width, num_layers=layers)
            setup = Setup(f"{folder}/experiment.yaml", clips)
            for number in processes or (1, 2, 4):
                for ways in SETS if number > 1 else SETS_OF_ONE:
                    rows += measure(ways, number, setup, rounds)
                    print(f"measured: {number} processes, {', '.join(ways)}", file=sys.stderr, flush=True)
        show_measured(rows)
        print()
    gpu = Gpu(
        million_parameters=million_parameters,
        peak_tflops=peak_tflops,
        mfu=mfu,
        overlap=overlap,
        memory_gb=memory_gb,
        activation_mb_per_s=activation_mb_per_s,
    )
    cluster = Cluster(
        nvlink_gb_per_s=nvlink_gb_per_s, node_gb_per_s=node_gb_per_s, hop_us=hop_us, node_hop_us=node_hop_us
    )
    predicted = show_predicted(gpu, cluster, gpus or [8, 64, 512], clips_per_gpu or [4, 16, 32], max_micro_batch_s)
    if json_out is not None:
        json_out.write_text(json.dumps({"measured": rows, "predicted": predicted}))


if __name__ == "__main__":
    typer.run(main)
