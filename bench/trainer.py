"""Training speed beside others': MetaSER, the Hugging Face Trainer, SpeechBrain's Brain and a plain loop, in turns.

    python bench/trainer.py                                   8 and 32 clips a step, on this CPU
    python bench/trainer.py --batch 8 --systems metaser,trainer --turns 7
    python bench/trainer.py --systems metaser,metaser@8d2e3a4     # beside an earlier version: a commit, or a checkout

All fine-tune the same small wav2vec 2.0 (4 layers of width 128, CNN frozen, random weights, AdamW) on the same clips of
IEMOCAP-like lengths (log-normal, mean 4.5 s, at most 30 s) for four emotions. MetaSER reads packed FLAC and decodes
it; the others have decoded clips in memory. Each system is a process of its own that does a few steps when it is its
turn, and waits meanwhile. `trainer` is the Trainer as it is; `grouped` is that with batches of like lengths; `plain` is
a loop over padded random batches that lie in memory. `metaser` trains emotion alone, as the others do; `metaser-all`
transcripts, gender and style, too, with ARI and co-attention. `metaser-cache` keeps the frozen CNN's features
(`frame_cache`), which are computed beforehand; `metaser-reader` reads ahead in a process of its own, and
`metaser-memory` does the same steps on batches that lie in memory.

Printed are real (unpadded) audio-seconds per second over all turns, the share of padding, the quartiles of the turns,
and what MetaSER gains.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from hardening import REPOSITORY, checkout

NUM_CLIPS = 2_400
"""More than 50 batches of 32, within which the Trainer's grouping sorts."""
RATE_HZ = 16_000
EMOTIONS = ("anger", "happiness", "neutral", "sadness")
ENCODER = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
FORM = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True, "layerdrop": 0.0}
LEARNING_RATE = 1e-4

OnStep = Callable[[float, float], None]
"""Called after each optimizer step with its real and its padded seconds of audio."""


# ---------------------------------------------------------------- what all train on


def make_input(folder: Path) -> None:
    """Write the clips as arrays and as shards, and an encoder."""
    from reader import Noise
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    from shards.corpora.base import CorpusReader
    from shards.pack import pack_corpus
    from shards.schema import SourceUtterance, Utterance, make_key

    generator = np.random.default_rng(0)
    seconds = np.clip(np.exp(generator.normal(np.log(4.5) - 0.18, 0.6, NUM_CLIPS)), 0.6, 30)
    clips = [Noise(seed, int(length * RATE_HZ)) for seed, length in enumerate(seconds)]
    np.save(folder / "samples.npy", np.concatenate([clip.load()[0] for clip in clips]))
    np.save(folder / "lengths.npy", np.asarray([clip.num_samples for clip in clips]))

    def read(_source: Path | None, _seed: int) -> Iterator[SourceUtterance]:
        for number, clip in enumerate(clips):
            # The last two are trained on by nobody: a run must have utterances to choose and to judge by.
            split = {NUM_CLIPS - 1: "test", NUM_CLIPS - 2: "dev"}.get(number, "train")
            utterance = Utterance(
                key=make_key("noise", f"{number:05d}"),
                corpus="noise",
                speaker=f"{split}{number % 10}",
                split=split,
                emotion=EMOTIONS[number % 4],
                gender=("female", "male")[number % 2],
                style=("improvised", "scripted")[number // 2 % 2],
                text="so it is " * max(1, clip.num_samples // RATE_HZ // 2),
            )
            yield SourceUtterance(utterance, clip)

    pack_corpus(CorpusReader("noise", "Noise", "CC0-1.0", "", read), None, folder / "shards", num_workers=2)
    torch_seeded()
    Wav2Vec2Model(Wav2Vec2Config(**ENCODER, **FORM)).save_pretrained(folder / "encoder")
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder / "encoder")


def torch_seeded() -> Any:
    """Return torch, its generator seeded."""
    import torch

    torch.manual_seed(0)
    return torch


@dataclass(frozen=True)
class Clips:
    """The clips as arrays, for torch's loaders."""

    samples: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> Clips:
        """Return the clips that `make_input` wrote, but those for choosing and judging."""
        lengths = np.load(folder / "lengths.npy")
        starts = np.cumsum(lengths) - lengths
        return cls(np.load(folder / "samples.npy", mmap_mode="r"), starts[:-2], lengths[:-2])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> dict[str, Any]:
        start, length = self.starts[number], self.lengths[number]
        return {"input_values": np.asarray(self.samples[start : start + length]), "labels": int(number % 4)}


def padded(clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Return clips as a batch: each normalised as wav2vec 2.0's feature extractor does, padded to the longest."""
    import torch

    lengths = [len(clip["input_values"]) for clip in clips]
    wave_BT = torch.zeros(len(clips), max(lengths))
    mask_BT = torch.zeros(len(clips), max(lengths), dtype=torch.long)
    for row, (clip, length) in enumerate(zip(clips, lengths, strict=True)):
        samples = clip["input_values"]
        wave_BT[row, :length] = torch.from_numpy((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))
        mask_BT[row, :length] = 1
    labels = torch.tensor([clip["labels"] for clip in clips])
    return {"input_values": wave_BT, "attention_mask": mask_BT, "labels": labels}


def classifier(folder: Path) -> Any:
    """Return transformers' classifier over the encoder, its CNN frozen."""
    from transformers import Wav2Vec2ForSequenceClassification

    torch_seeded()
    model = Wav2Vec2ForSequenceClassification.from_pretrained(folder / "encoder", num_labels=len(EMOTIONS))
    model.freeze_feature_encoder()
    return model.train()


# ---------------------------------------------------------------- the systems


def experiment(
    folder: Path, batch: int, *, precision: str, every_task: bool = False, num_workers: int = 0, has_cache: bool = False
) -> Any:
    """Return what MetaSER trains."""
    from metaser.config.schema import ExperimentConfig

    others = [("asr", "ctc"), ("gender", "classification"), ("style", "classification")] if every_task else []
    stage = {
        "name": "emotion",
        "train": ["encoder", "ari", "heads", "coattention"] if every_task else ["encoder", "heads"],
        "weights": {"emotion": 1.0, **{name: 0.1 for name, _ in others}},
        "num_steps": 100_000,
        "learning_rate": dict.fromkeys(("encoder", "heads"), LEARNING_RATE),
        "eval_every_steps": 100_000,
        "save_every_steps": 100_000,
    }
    model = {"encoder": {"kind": "huggingface", "name": str(folder / "encoder")}}
    parts = {} if every_task else {"ari": {"form": "none"}, "coattention": {"form": "none"}}
    cache = {"frame_cache": str(folder / "cache")} if has_cache else {}
    return ExperimentConfig.model_validate(
        {
            "output_dir": str(folder / f"run-{os.getpid()}"),
            "data": {"shards": str(folder / "shards"), "batch_utterances": batch, "num_workers": num_workers},
            "model": model | parts,
            "tasks": [{"name": name, "kind": kind} for name, kind in [("emotion", "classification"), *others]],
            "stages": [stage],
            "parallel": {"device": "cpu", "precision": precision},
            **cache,
        }
    )


def metaser(folder: Path, batch: int, on_step: OnStep, *, precision: str = "float32", **settings: Any) -> None:
    """Train as `metaser train` does, from the shards."""
    from metaser.distributed import DistInfo
    from metaser.train.run import train

    def on_metrics(line: dict[str, Any]) -> None:
        real_s = line["audio_s_per_s"] * line["step_s"]
        on_step(real_s, real_s / (1 - line["padding_fraction"]))

    train(experiment(folder, batch, precision=precision, **settings), DistInfo(0, 1, 0), on_metrics=on_metrics)


def in_memory(folder: Path, batch: int, on_step: OnStep, *, precision: str = "float32") -> None:
    """Do MetaSER's steps on batches that lie in memory: what reading costs is the difference."""
    torch_seeded()
    from metaser.distributed import DistInfo
    from metaser.model.metaser import build_model
    from metaser.processes import Processes
    from metaser.stagedata import load_split_index
    from metaser.train.build import build_stage_engine, build_stages, build_step_runner
    from metaser.train.checks import check_data
    from metaser.train.state import TrainState

    config = experiment(folder, batch, precision=precision)
    processes = Processes(config.parallel, DistInfo(0, 1, 0))
    data = check_data(config, *load_split_index(config.data), num_processes=1)
    (stage,) = build_stages(config, data)
    engine = build_stage_engine(processes, build_model(config.model, data.specs, config.main_task), stage.config)
    runner = build_step_runner(config, stage, engine)
    steps = range(1, 26)
    batches = {step: list(runner.read(runner.micro_batches_of(step), num_workers=0)) for step in steps}
    state = TrainState(stage=1)
    while True:
        for step in steps:
            line, _ = runner.run(step, batches[step], state, stop=None)
            real_s = line["audio_s_per_s"] * line["step_s"]
            on_step(real_s, real_s / (1 - line["padding_fraction"]))


def trainer(folder: Path, batch: int, on_step: OnStep, **settings: Any) -> None:
    """Train by transformers' Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, Wav2Vec2FeatureExtractor

    seen = _Seen()
    model = classifier(folder)
    model.register_forward_pre_hook(seen.look, with_kwargs=True)

    class Turns(TrainerCallback):
        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            on_step(*seen.take())

    arguments = TrainingArguments(
        output_dir=str(folder / f"trainer-{os.getpid()}"),
        per_device_train_batch_size=batch,
        max_steps=100_000,
        learning_rate=LEARNING_RATE,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
        **settings,
    )
    # Grouping looks for the lengths of what the extractor says that the model hears.
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder / "encoder")
    callbacks: list[TrainerCallback] = [Turns()]
    Trainer(
        model,
        arguments,
        train_dataset=Clips.load(folder),
        data_collator=padded,
        processing_class=extractor,
        callbacks=callbacks,
    ).train()


class _Seen:
    """Adds up the seconds of audio that a model of transformers is given."""

    def __init__(self) -> None:
        self.real_s = self.padded_s = 0.0

    def look(self, model: Any, positional: Any, named: dict[str, Any]) -> None:
        self.real_s += float(named["attention_mask"].sum()) / RATE_HZ
        self.padded_s += named["input_values"].numel() / RATE_HZ

    def take(self) -> tuple[float, float]:
        found = (self.real_s, self.padded_s)
        self.real_s = self.padded_s = 0.0
        return found


def plain(folder: Path, batch: int, on_step: OnStep) -> None:
    """Train in a loop over random batches that are padded beforehand."""
    torch = torch_seeded()
    clips, model, seen = Clips.load(folder), classifier(folder), _Seen()
    model.register_forward_pre_hook(seen.look, with_kwargs=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    order = np.random.default_rng(0).permutation(len(clips))
    batches = [
        padded([clips[number] for number in order[start : start + batch]]) for start in range(0, 25 * batch, batch)
    ]
    while True:
        for each in batches:
            model(**each).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            on_step(*seen.take())


def speechbrain(folder: Path, batch: int, on_step: OnStep) -> None:
    """Train by SpeechBrain's Brain, in batches of like lengths that hold as many seconds as `batch` mean clips."""
    torch = torch_seeded()
    import speechbrain as sb
    from speechbrain.dataio.sampler import DynamicBatchSampler
    from torch.utils.data import DataLoader

    clips, model, seen = Clips.load(folder), classifier(folder), _Seen()
    model.register_forward_pre_hook(seen.look, with_kwargs=True)
    lengths_s = (clips.lengths / RATE_HZ).tolist()
    sampler = DynamicBatchSampler(
        clips,
        max_batch_length=batch * float(np.mean(lengths_s)),
        num_buckets=60,
        length_func=lambda clip: clip,
        lengths_list=lengths_s,
        shuffle=True,
        batch_ordering="random",
    )

    class Emotions(sb.Brain):
        def compute_forward(self, given: dict[str, Any], stage: Any) -> Any:
            return self.modules.model(**given)

        def compute_objectives(self, output: Any, given: dict[str, Any], stage: Any) -> Any:
            return output.loss

        def on_fit_batch_end(self, *arguments: Any) -> None:
            on_step(*seen.take())

    trained = partial(torch.optim.AdamW, lr=LEARNING_RATE)
    brain = Emotions({"model": model}, trained, run_opts={"device": "cpu"})
    loader = DataLoader(clips, batch_sampler=sampler, collate_fn=padded)
    brain.fit(range(1_000), loader, progressbar=False)


SYSTEMS: dict[str, Callable[[Path, int, OnStep], None]] = {
    "metaser": metaser,
    "metaser-bf16": partial(metaser, precision="bf16"),
    "metaser-cache": partial(metaser, has_cache=True),
    "metaser-cache-bf16": partial(metaser, has_cache=True, precision="bf16"),
    "metaser-reader": partial(metaser, num_workers=1),
    "metaser-memory": in_memory,
    "metaser-all": partial(metaser, every_task=True),
    "trainer": trainer,
    "grouped": partial(trainer, train_sampling_strategy="group_by_length"),
    "grouped-bf16": partial(trainer, train_sampling_strategy="group_by_length", bf16=True),
    "grouped-workers": partial(trainer, train_sampling_strategy="group_by_length", dataloader_num_workers=1),
    "plain": plain,
    "speechbrain": speechbrain,
}


# ---------------------------------------------------------------- turns


class Turns:
    """Lets a system do as many steps as the line on stdin says, then answers with what they took."""

    def __init__(self, answers: Any) -> None:
        self._answers = answers
        self._begin()

    def _begin(self) -> None:
        line = sys.stdin.readline()
        if not line.strip():
            os._exit(0)
        self._left = int(line)
        self._real_s = self._padded_s = 0.0
        self._started = time.perf_counter()

    def on_step(self, real_s: float, padded_s: float) -> None:
        """Count a step; wait for the next turn after the last of this one."""
        self._real_s += real_s
        self._padded_s += padded_s
        self._left -= 1
        if not self._left:
            seconds = time.perf_counter() - self._started
            print(json.dumps([self._real_s, self._padded_s, seconds]), file=self._answers, flush=True)
            self._begin()


@dataclass
class Contestant:
    """A system in its process, and what its turns took."""

    name: str
    process: subprocess.Popen[str]
    turns: list[tuple[float, float, float]]
    start_s: float
    """What came before the first turn: loading, two steps, and all that is computed beforehand."""

    @classmethod
    def start(cls, name: str, folder: Path, batch: int) -> Contestant:
        """Start a process that waits for its first turn."""
        system, _, version = name.partition("@")
        tree = checkout(version, folder / f"tree-{len(list(folder.iterdir()))}") if version else REPOSITORY
        command = [sys.executable, str(Path(__file__).resolve()), "--system", system, "--batch", str(batch)]
        log = (folder / f"{name.replace('/', '-')}-{batch}.log").open("w")
        process = subprocess.Popen(
            [*command, "--folder", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])},
            text=True,
        )
        return cls(name, process, [], 0.0)

    def take(self, num_steps: int) -> tuple[float, float, float]:
        """Do so many steps; return their real and padded seconds of audio, and the seconds they took."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{num_steps}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended before its turn did; see its log")
        real_s, padded_s, seconds = json.loads(line)
        return real_s, padded_s, seconds

    @property
    def speed(self) -> float:
        """Real audio-seconds per second over all turns."""
        return sum(turn[0] for turn in self.turns) / sum(turn[2] for turn in self.turns)

    def figures(self) -> dict[str, Any]:
        """Return what is printed and written."""
        speeds = [real_s / seconds for real_s, _, seconds in self.turns]
        low, _, high = statistics.quantiles(speeds, n=4) if len(speeds) > 1 else (speeds[0],) * 3
        real_s, padded_s = (sum(turn[part] for turn in self.turns) for part in (0, 1))
        return {
            "audio_s_per_s": self.speed,
            "quartiles": [low, high],
            "padding": 1 - real_s / padded_s,
            "start_s": self.start_s,
            "turns": self.turns,
        }


def compare(folder: Path, batch: int, names: list[str], turns: int, steps: int) -> dict[str, Any]:
    """Return each system's figures at a batch size, the systems in turn."""
    contestants = [Contestant.start(name, folder, batch) for name in names]
    try:
        for contestant in contestants:
            # Loads, allocates, picks kernels.
            started = time.perf_counter()
            contestant.take(2)
            contestant.start_s = time.perf_counter() - started
        for number in range(turns):
            for contestant in contestants[:: 1 if number % 2 else -1]:
                contestant.turns.append(contestant.take(steps))
    finally:
        for contestant in contestants:
            contestant.process.kill()
    return {contestant.name: contestant.figures() for contestant in contestants}


def table(batch: int, found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    first = next(iter(found))
    lines = [
        f"| {batch} clips a step | audio-s/s | quartiles of turns | padding | beforehand, s | {first} is faster by |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in found.items():
        low, high = figures["quartiles"]
        gain = found[first]["audio_s_per_s"] / figures["audio_s_per_s"]
        speeds = f"{figures['audio_s_per_s']:.1f} | {low:.1f}-{high:.1f}"
        lines.append(f"| {name} | {speeds} | {figures['padding']:.0%} | {figures['start_s']:.0f} | {gain:.2f} x |")
    return "\n".join(lines)


def main(
    batch: Annotated[list[int] | None, typer.Option(help="Clips of a step.")] = None,
    systems: Annotated[str, typer.Option(help=f"Of {', '.join(SYSTEMS)}.")] = ",".join(SYSTEMS),
    turns: Annotated[int, typer.Option(help="Of each system.")] = 5,
    steps: Annotated[int, typer.Option(help="Of a turn.")] = 13,
    out: Annotated[Path | None, typer.Option(help="For the figures as JSON.")] = None,
    system: Annotated[str | None, typer.Option(hidden=True)] = None,
    folder: Annotated[Path | None, typer.Option(help="For the clips, found again there; by default a new one.")] = None,
) -> None:
    batches = batch or [8, 32]
    if system is not None and folder is not None:
        answers = os.fdopen(os.dup(1), "w")
        # What the systems themselves print is no answer.
        os.dup2(2, 1)
        turn = Turns(answers)
        SYSTEMS[system](folder, batches[0], turn.on_step)
        return
    names = systems.split(",")
    if "speechbrain" in names and find_spec("speechbrain") is None:
        names.remove("speechbrain")
        print("speechbrain is left out: it is not installed")
    found = {}
    with tempfile.TemporaryDirectory(prefix="metaser-bench-") as name:
        root = Path(name) if folder is None else folder
        if not (root / "encoder").exists():
            root.mkdir(exist_ok=True)
            make_input(root)
        for size in batches:
            found[size] = compare(root, size, names, turns, steps)
            print(table(size, found[size]) + "\n", flush=True)
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
