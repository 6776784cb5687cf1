"""A corpus of 36 short clips, a tiny two-stage experiment on it, and ways to train in processes that may be killed.

Processes are forked from a server that has imported everything already, because importing takes longer than training.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import yaml
from tones import pack_items

from launch.cli import main
from launch.exits import exit_with_code
from launch.train import train as train_verb
from metaser.config.load import load_experiment
from metaser.config.schema import ExperimentConfig
from metaser.distributed import DistInfo
from metaser.tracking import read_metrics
from metaser.train.run import train
from shards.labels import FOUR_EMOTIONS
from shards.pack import pack_corpus
from shards.schema import RATE_HZ, SourceUtterance, Utterance, make_key

REPOSITORY = Path(__file__).parents[1]
ALONE = DistInfo(rank=0, num_processes=1, local_rank=0)
TIMEOUT_S = 300.0
"""Nothing that these tests start may run longer."""

EXPERIMENT = """
output_dir: runs/tiny
data: {shards: SHARDS, batch_utterances: 8, max_micro_batch_s: 4, num_workers: 0, worker_timeout_s: 30}
model:
  encoder: {kind: logmel, num_mels: 16, width: 16, num_layers: 2, num_heads: 2, feed_forward: 32, dropout: 0.1}
  coattention: {form: cross, width: 8, num_heads: 2}
  spec_augment: {num_time_masks: 1, max_time_mask_frames: 4, num_feature_masks: 1, max_feature_mask: 3}
  head_width: 8
tasks:
  - {name: emotion, kind: classification}
  - {name: asr, kind: ctc}
  - {name: gender, kind: classification}
  - {name: style, kind: classification}
stages:
  - name: metadata
    train: [encoder, ari, heads]
    weights: {asr: 1.0, gender: 0.1, style: 0.1}
    num_steps: 6
    learning_rate: {encoder: 1.0e-3, heads: 3.0e-3, ari: 1.0e-2}
    eval_every_steps: 3
    save_every_steps: 2
  - name: emotion
    train: [encoder, ari, heads, coattention]
    weights: {emotion: 1.0, asr: 0.1, gender: 0.1, style: 0.1}
    num_steps: 6
    learning_rate: {encoder: 1.0e-3, heads: 3.0e-3, ari: 1.0e-2}
    eval_every_steps: 3
    save_every_steps: 2
    select: emotion.ua
parallel: {device: cpu}
"""

AUGMENTED = tuple(
    f"stages.{stage}.augment.{name}.probability=0.6"
    for stage in (0, 1)
    for name in ("speed", "reverberation", "noise", "gain", "band_limit", "vtlp")
)
"""Overrides that switch every augmentation on."""
EXACT = ("model.encoder.dropout=0", "model.coattention.dropout=0", "model.head_dropout=0")
"""Dropout draws from each micro-batch's own generator, and micro-batches are cut by the number of processes."""


@dataclass(frozen=True)
class Speech:
    """A voice's tone, wavering as fast as its emotion wants, in noise."""

    pitch_hz: float
    waver_hz: float
    duration_s: float
    seed: int

    def load(self) -> tuple[np.ndarray, int]:
        time_s = np.arange(round(self.duration_s * RATE_HZ)) / RATE_HZ
        tone = np.sin(2 * np.pi * self.pitch_hz * time_s) * (1 + np.sin(2 * np.pi * self.waver_hz * time_s))
        noise = np.random.default_rng(self.seed).standard_normal(len(time_s))
        return (0.2 * tone + 0.02 * noise).astype(np.float32), RATE_HZ


def clip(number: int, **changes: object) -> SourceUtterance:
    """Return clip `number` of 36: six speakers, one of them dev and one test; some training labels are missing."""
    speaker, emotion = number % 6, FOUR_EMOTIONS[number // 6 % 4]
    is_training = speaker < 4
    metadata = {
        "text": None if is_training and number % 7 == 0 else f"{emotion[:2]} {'so' if number % 2 else 'no'}",
        "emotion": None if is_training and number % 5 == 0 else emotion,
        "gender": ("female", "male")[speaker % 2],
        "style": ("improvised", "scripted")[number // 12 % 2],
        "speaker": f"s{speaker}",
        "split": {4: "dev", 5: "test"}.get(speaker, "train"),
        "extra": {"pitch_hz": 120.0 + 60 * (speaker % 2)} | ({} if number % 3 == 0 else {"number": number}),
        **changes,
    }
    name = f"u{number:03d}"
    utterance = Utterance(key=make_key("tiny", name), corpus="tiny", source=f"{name}.wav", **metadata)  # type: ignore[arg-type]
    waver_hz = 3.0 * (1 + FOUR_EMOTIONS.index(emotion))
    return SourceUtterance(utterance, Speech(120.0 + 60 * (speaker % 2), waver_hz, 0.3 + 0.015 * number, number))


def pack_clips(out: Path, **changes: object) -> Path:
    """Pack the corpus into `out`, each clip with `changes`."""
    pack_items([clip(number, **changes) for number in range(36)], out, shard_utterances=20)
    return out


def write_experiment(path: Path, shards: Path) -> Path:
    """Write the experiment on `shards` as YAML to `path`."""
    path.write_text(EXPERIMENT.replace("SHARDS", str(shards)))
    return path


@dataclass(frozen=True)
class TinyCorpus:
    """Where the packed corpus and the experiment on it lie."""

    shards: Path
    yaml: Path

    def experiment(self, out: Path, *overrides: str) -> ExperimentConfig:
        """Return the experiment with its run in `out`."""
        return load_experiment(self.yaml, [f"output_dir={out}", *overrides])

    def train(self, out: Path, *overrides: str) -> Path:
        """Train in this process and return the run's folder."""
        assert train(self.experiment(out, *overrides), ALONE)
        return out


def make_corpus(folder: Path) -> TinyCorpus:
    """Pack the corpus below `folder`."""
    return TinyCorpus(pack_clips(folder / "shards"), write_experiment(folder / "tiny.yaml", folder / "shards"))


def pack_demo(folder: Path) -> Path:
    """Pack the embedded corpus into `folder`."""
    pack_corpus("demo", None, folder, num_workers=2)
    return folder


def make_demo(folder: Path, shards: Path, *, steps: int | None = None) -> TinyCorpus:
    """Write the demo's experiment on the embedded corpus in `shards` into `folder`, each stage cut to `steps` steps."""
    experiment = yaml.safe_load((REPOSITORY / "configs/experiment/demo.yaml").read_text())
    experiment["data"]["shards"] = str(shards)
    if steps is not None:
        for stage in experiment["stages"]:
            stage |= {"num_steps": steps, "eval_every_steps": steps // 2, "save_every_steps": steps // 2}
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return TinyCorpus(shards, path)


def losses(run: Path) -> list[tuple[int, int, float, dict[str, float]]]:
    """Return (stage, step, loss, loss by task) of every training step in `metrics.jsonl`, in its order."""
    lines = read_metrics(run / "metrics.jsonl")
    return [(line["stage"], line["step"], line["loss"], line["losses"]) for line in lines if "loss" in line]


def dev_metrics(run: Path) -> list[tuple[int, int, dict[str, object]]]:
    """Return (stage, step, dev metrics) of every evaluation, in the order of `metrics.jsonl`."""
    return [(line["stage"], line["step"], line["dev"]) for line in read_metrics(run / "metrics.jsonl") if "dev" in line]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Wait until `condition()` holds; `what` names it in the failure."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.002)


def num_lines(path: Path) -> int:
    """Return how many whole lines `path` has; 0 if it does not exist."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start_server(*, with_deepspeed: bool = False) -> None:
    """Start the server that processes are forked from, with everything imported; before readers start a leaner one."""
    modules = ["tinyruns", "launch.console", "metaser.predict", "tensorboard", "matplotlib.pyplot", "sklearn.metrics"]
    if with_deepspeed:
        modules += ["deepspeed", "metaser.train.zero", "deepspeed.runtime.zero.muon.muon_optimizer"]
    multiprocessing.get_context("forkserver").set_forkserver_preload([*modules, "frozen"])
    # Python 3.11's server does not know pytest's sys.path.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@contextmanager
def started(target: Callable[..., object], *arguments: object) -> Iterator[BaseProcess]:
    """Run `target(*arguments)` in a process of its own, which does not outlive the block."""
    process = multiprocessing.get_context("forkserver").Process(target=target, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def metaser(
    *arguments: object, folder: Path, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the `metaser` command, after `before` in its process; return its exit code and output, kept in `folder`."""
    with started(_command, [str(argument) for argument in arguments], folder, before) as process:
        process.join(TIMEOUT_S)
        assert process.exitcode is not None, f"still running after {TIMEOUT_S} s: {arguments}"
        code = process.exitcode
    out, err = ((folder / name).read_text() for name in ("stdout.txt", "stderr.txt"))
    return subprocess.CompletedProcess([str(argument) for argument in arguments], code, out, err)


class SetVariables:
    """Sets variables in the process of a command, and unsets those that are None; a class, because it is sent there."""

    def __init__(self, **variables: str | None) -> None:
        self.variables = variables

    def __call__(self) -> None:
        for name, value in self.variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class LimitMemory:
    """Lets a process have so many bytes beyond what it has; those that come from it have as many alone."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def __call__(self) -> None:
        (has_kib,) = re.findall(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        limit = int(has_kib) * 1024 + self.num_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def files_below(folder: Path) -> list[str]:
    """Return the names of all that lies in `folder`, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _command(arguments: list[str], folder: Path, before: Callable[[], None] | None) -> None:
    for descriptor, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ["COLUMNS"] = "300"
    sys.argv = ["metaser", *arguments]
    if before is not None:
        before()
    main()


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one sentence that a command which got something wrong must have ended with."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == errors[0], done.stderr
    return errors[0]


def read_json(path: Path) -> dict[str, object]:
    """Return the JSON object in `path`."""
    values: dict[str, object] = json.loads(path.read_text())
    return values


# ---------------------------------------------------------------- several processes


class Ranks:
    """Processes that train together, forked from the server; none outlives the block."""

    def __init__(self, processes: list[BaseProcess], folder: Path) -> None:
        self.processes = processes
        self.folder = folder

    def join(self, timeout_s: float = TIMEOUT_S) -> list[int | None]:
        """Wait for all, and return their exit codes."""
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def said(self) -> str:
        """Return what all of them wrote to stdout and stderr."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("rank-*.txt")))


@contextmanager
def ranks(count: int, target: Callable[..., object], *arguments: object, folder: Path) -> Iterator[Ranks]:
    """Run `target(*arguments)` in `count` processes as a launcher would start them; their output goes to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    processes = [
        context.Process(target=_rank, args=(rank, count, port, folder, target, arguments)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        yield Ranks(processes, folder)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _rank(
    rank: int, count: int, port: int, folder: Path, target: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    descriptor = os.open(folder / f"rank-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    if count > 1:
        place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
    exit_with_code(lambda: target(*arguments))


def _train_command(arguments: list[str]) -> None:
    os.environ["COLUMNS"] = "300"
    train_verb(arguments[0], arguments[1:])


def training(count: int, experiment: Path, *overrides: str, folder: Path) -> AbstractContextManager[Ranks]:
    """Train in `count` processes, as `metaser train EXPERIMENT OVERRIDES` under a launcher."""
    return ranks(count, _train_command, [str(experiment), *overrides], folder=folder)


def train_ranks(count: int, experiment: Path, run: Path, *overrides: str, timeout_s: float = TIMEOUT_S) -> Path:
    """Train to the end in `count` processes and return the run's folder."""
    with training(count, experiment, f"output_dir={run}", *overrides, folder=run.with_name(f"{run.name}-said")) as job:
        assert job.join(timeout_s) == [0] * count, job.said()
    return run
