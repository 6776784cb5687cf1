"""What checking costs: packing, reading, continuing and predicting by two versions of MetaSER, side by side.

    python bench/hardening.py --before 7499d0f            # a commit, or the folder of a checkout
    python bench/hardening.py --before 7499d0f --only predict,checkpoint --rounds 9

Each version makes its own input once. Rounds alternate between the two, their order changes from round to round, and
each measurement has a process of its own, which does the work once before it counts. Ratios are after / before: of the
medians of processor and of wall-clock seconds, and the quartiles of the rounds' own ratios of processor seconds.
`before` is by default the last commit, `after` always this working tree.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_CLIPS, NUM_ROWS, NUM_LINES = 150, 10_000, 20_000
WIDTH = 256
"""Of the model whose checkpoints and export are read: 40 MB of weights."""

Case = Callable[[Path], None]


# ---------------------------------------------------------------- the work, by the version that is on the path


def make_input(folder: Path) -> None:
    """Write recordings, tables, shards, a run of two steps with its checkpoints and export."""
    import soundfile as sf

    generator = np.random.default_rng(0)
    for number in range(NUM_CLIPS):
        white = generator.standard_normal((int(44_100 * generator.uniform(1, 4)), 2)).astype(np.float32)
        sf.write(folder / f"{number:04d}.wav", 0.02 * (white[1:] + 0.9 * white[:-1]), 44_100, subtype="PCM_16")
    emotions = ("anger", "happiness", "neutral", "sadness")
    splits = ("train", "train", "dev", "test")
    rows = [
        {
            "file": f"{number:04d}.wav",
            "emotion": emotions[number // 4 % 4],
            "speaker": f"s{number % 4}",
            "split": splits[number % 4],
        }
        for number in range(NUM_CLIPS)
    ]
    _write_csv(folder / "clips.csv", rows)
    many = [
        {**rows[number % NUM_CLIPS], "file": f"many/{number}.wav", "text": f"so {number}"} for number in range(NUM_ROWS)
    ]
    (folder / "many").mkdir()
    for number in range(NUM_ROWS):
        (folder / "many" / f"{number}.wav").touch()
    _write_csv(folder / "many.csv", many)
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    pack(folder)
    adopted = folder / "adopted"
    adopted.mkdir()
    for path in (folder / "packed").glob("*.tar"):
        (adopted / path.name).write_bytes(path.read_bytes())
    (folder / "experiment.yaml").write_text(_EXPERIMENT.replace("FOLDER", str(folder)).replace("WIDTH", str(WIDTH)))
    train(folder)
    line = json.loads((folder / "run" / "metrics.jsonl").read_bytes().splitlines()[0])
    is_sealed = line.pop("seal", None) is not None
    lines = [json.dumps(line).encode()] * NUM_LINES
    if is_sealed:
        from metaser.lines import Chain

        lines = list(map(Chain().sealed, lines))
    (folder / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


_EXPERIMENT = """
output_dir: FOLDER/run
data: {shards: FOLDER/packed, batch_utterances: 2, num_workers: 0}
model:
  encoder: {kind: logmel, num_mels: 80, width: WIDTH, num_layers: 12, num_heads: 4, feed_forward: 1024}
  coattention: {form: none}
  head_width: 32
tasks:
  - {name: emotion, kind: classification}
stages:
  - {name: emotion, train: [encoder, heads], weights: {emotion: 1.0}, num_steps: 2, eval_every_steps: 2,
     save_every_steps: 1, select: emotion.ua, learning_rate: {encoder: 1.0e-5, heads: 1.0e-5}}
parallel: {device: cpu}
"""


def _write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def pack(folder: Path) -> None:
    from shards.pack import pack_corpus

    out = folder / "packed"
    _remove(out)
    pack_corpus("csv", folder / "clips.csv", out, shard_utterances=64)


def adopt(folder: Path) -> None:
    from shards.adopt import adopt_shards

    _remove(folder / "adopted-out")
    adopt_shards(folder / "adopted", folder / "adopted-out")


def table_csv(folder: Path) -> None:
    _read_table("csv", folder / "many.csv")


def table_jsonl(folder: Path) -> None:
    _read_table("jsonl", folder / "many.jsonl")


def _read_table(corpus: str, path: Path) -> None:
    from shards.corpora.base import corpus_reader

    assert sum(hasattr(item, "utterance") for item in corpus_reader(corpus).read(path, 0)) == NUM_ROWS


def _index(folder: Path) -> Any:
    try:
        from shards.indexload import load_index
    except ImportError:
        # Where it stood until 0.1.0.
        from shards.index import load_index
    return load_index([folder / "packed"])


def open_shards(folder: Path) -> None:
    _index(folder).codes("emotion").counts()


def read_clips(folder: Path) -> None:
    import shards.plan
    import shards.read

    index = _index(folder)
    schedule = shards.plan.Schedule(index.num_samples, batch_utterances=10, pool_utterances=100, seed=0)
    # Micro-batches were called slots until 0.1.0.
    plan, word = vars(shards.plan), "micro_batch" if hasattr(shards.plan, "MicroBatch") else "slot"
    cut = partial(plan[f"step_{word}{'es' if word == 'micro_batch' else 's'}"], **{f"max_{word}_samples": 1 << 40})
    read = getattr(shards.read, "read_batches", None) or vars(shards.read)["read_slots"]
    wanted = [part for step in range(schedule.steps_per_epoch) for part in cut(schedule, step, rank=0, num_processes=1)]
    # Opening is measured by itself.
    for _ in range(10):
        for _ in read(index, wanted, num_workers=0, timeout_s=60):
            pass


def verify(folder: Path) -> None:
    from shards.survey import verify as verify_shards

    assert not verify_shards([folder / "packed"])


def checkpoint(folder: Path) -> None:
    from metaser.train.checkpoint import newest_checkpoint

    found = newest_checkpoint(folder / "run" / "stage1" / "checkpoints")
    assert found is not None
    for tensors in (found.model_tensors(), found.optimizer_tensors()):
        # As a model takes them: what is only mapped has not been read.
        for tensor in tensors.values():
            tensor.clone()


def metrics(folder: Path) -> None:
    from metaser.tracking import read_metrics

    assert len(list(read_metrics(folder / "metrics.jsonl"))) == NUM_LINES


def resume(folder: Path) -> None:
    """Go on with a run that is finished: all that is read back is read, and nothing is trained."""
    train(folder)


def train(folder: Path) -> None:
    from metaser.config.load import load_experiment
    from metaser.distributed import DistInfo
    from metaser.train.run import train as train_run

    train_run(load_experiment(folder / "experiment.yaml"), DistInfo(0, 1, 0))


def load_model(folder: Path) -> None:
    from metaser.predict import load_model as load

    load(folder / "run")


def predict(folder: Path) -> None:
    from metaser.predict import load_model as load
    from metaser.predict import predict_files

    files = [str(folder / f"{number:04d}.wav") for number in range(0, NUM_CLIPS, 5)]
    assert not any(found.error for found in predict_files(load(folder / "run"), files))


REPEATS = {"adopt": 4, "open": 20, "verify": 8, "checkpoint": 10, "metrics": 3, "load": 10}
"""Of what is over too soon to be measured once."""
CASES: dict[str, Case] = {
    "pack": pack,
    "adopt": adopt,
    "csv": table_csv,
    "jsonl": table_jsonl,
    "open": open_shards,
    "read": read_clips,
    "verify": verify,
    "checkpoint": checkpoint,
    "metrics": metrics,
    "resume": resume,
    "load": load_model,
    "predict": predict,
}


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- the comparison


def measured(tree: Path, folder: Path, case: str) -> tuple[float, float]:
    """Return processor and wall-clock seconds of a case by the version in `tree`."""
    command = [sys.executable, str(Path(__file__).resolve()), "--case", case, "--folder", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case} failed in {tree}:\n{done.stderr}")
    cpu_s, wall_s = map(float, done.stdout.split()[-2:])
    return cpu_s, wall_s


def checkout(version: str, folder: Path) -> Path:
    """Return the folder of a version: a checkout, or a commit written to `folder`."""
    if Path(version).is_dir():
        return Path(version).resolve()
    folder.mkdir(exist_ok=True)
    archive = subprocess.run(["git", "archive", version], cwd=REPOSITORY, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def main(
    before: Annotated[str, typer.Option(help="Commit or folder.")] = "HEAD",
    rounds: int = 5,
    only: Annotated[str, typer.Option(help=f"Of {', '.join(CASES)}.")] = ",".join(CASES),
    case: Annotated[str | None, typer.Option(hidden=True)] = None,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    if case is not None and folder is not None:
        if case == "input":
            make_input(folder)
            print(0, 0)
            return
        # The first time pays for imports and cold files.
        CASES[case](folder)
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        for _ in range(REPEATS.get(case, 1)):
            CASES[case](folder)
        print(time.process_time() - cpu_s, time.perf_counter() - wall_s)
        return
    with tempfile.TemporaryDirectory(prefix="metaser-bench-") as name:
        trees = {"before": checkout(before, Path(name) / "tree"), "after": REPOSITORY}
        folders = {version: Path(name) / version for version in trees}
        for version, tree in trees.items():
            folders[version].mkdir()
            measured(tree, folders[version], "input")
        print(f"{'':12} {'before':>9} {'after':>9} {'ratio':>7} {'quartiles':>15} {'wall ratio':>11}")
        for chosen in only.split(","):
            found: dict[str, list[tuple[float, float]]] = {version: [] for version in trees}
            for number in range(rounds):
                for version in sorted(trees, reverse=number % 2 == 0):
                    found[version].append(measured(trees[version], folders[version], chosen))
            _show(chosen, found)


def _show(case: str, found: dict[str, list[tuple[float, float]]]) -> None:
    cpu = {version: [cpu_s for cpu_s, _ in times] for version, times in found.items()}
    wall = {version: [wall_s for _, wall_s in times] for version, times in found.items()}
    ratios = [after / before for before, after in zip(cpu["before"], cpu["after"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    before, after = (statistics.median(cpu[version]) for version in ("before", "after"))
    walls = statistics.median(wall["after"]) / statistics.median(wall["before"])
    print(
        f"{case:12} {before:7.3f} s {after:7.3f} s {after / before:7.3f} {low:7.3f}-{high:.3f} {walls:11.3f}",
        flush=True,
    )


if __name__ == "__main__":
    typer.run(main)
