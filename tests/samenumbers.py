"""Whether two checkouts compute the same: losses, reports and predictions to the last digit.

    python tests/samenumbers.py --before 7499d0f                      # a commit, or the folder of a checkout
    python tests/samenumbers.py --before 7499d0f --only demo,emodb --emodb FOLDER

`tiny` trains two stages with every kind of task that both versions have, on clips made here; `demo` is `metaser demo`;
`emodb` packs the recordings in a folder and trains a few steps. Each version packs, trains, evaluates and predicts by
itself, from its own code, on one thread. `before` is by default the last commit, `after` always this working tree.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile as sf
import typer

REPOSITORY = Path(__file__).resolve().parents[1]
EMOTIONS = ("anger", "happiness", "neutral", "sadness")
MODEL = """
data: {shards: SHARDS, batch_utterances: 8, num_workers: 0, window_s: 1.5}
model:
  encoder: {kind: logmel, num_mels: 16, width: 16, num_layers: 2, num_heads: 2, feed_forward: 32, dropout: 0.1}
  coattention: {form: cross, width: 8, num_heads: 2}
  spec_augment: {num_time_masks: 1, max_time_mask_frames: 4, num_feature_masks: 1, max_feature_mask: 3}
  head_width: 8
parallel: {device: cpu}
"""
TINY = f"""
{MODEL}
tasks:
  - {{name: emotion, kind: classification}}
  - {{name: asr, kind: ctc}}
  - {{name: gender, kind: classification, class_weights: balanced}}
  - {{name: affect, kind: regression, fields: [valence, arousal], offset: 3, scale: 2}}
stages:
  - {{name: metadata, train: [encoder, ari, heads], weights: {{asr: 1.0, gender: 0.1, affect: 0.1}}, num_steps: 8,
     augment: {{speed: {{probability: 0.5}}, vtlp: {{probability: 0.5}}}}, eval_every_steps: 4, save_every_steps: 4}}
  - {{name: emotion, train: [encoder, ari, heads, coattention], num_steps: 8, eval_every_steps: 4, save_every_steps: 4,
     weights: {{emotion: 1.0, asr: 0.1, gender: 0.1, affect: 0.1}}, select: emotion.ua}}
"""
EMODB = f"""
{MODEL}
tasks: [{{name: emotion, kind: classification, labels: all}}, {{name: gender, kind: classification}}]
stages:
  - {{name: emotion, train: [encoder, ari, heads, coattention], weights: {{emotion: 1.0, gender: 0.1}}, num_steps: 20,
     eval_every_steps: 10, save_every_steps: 10, select: emotion.ua}}
"""

Numbers = dict[str, Any]


def tiny(version: Path, folder: Path, emodb: Path | None) -> Numbers:
    """Return the numbers of a two-stage run on 48 clips, some longer than a window, some labels missing."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(48):
        time_s = np.arange(round(16_000 * generator.uniform(0.4, 2.2))) / 16_000
        tone = 0.2 * np.sin(2 * np.pi * (120 + 60 * (number % 2)) * time_s)
        sf.write(folder / f"{number:02d}.wav", tone + 0.02 * generator.standard_normal(len(time_s)), 16_000)
        emotion = EMOTIONS[number // 6 % 4]
        rows.append(
            {
                "file": f"{number:02d}.wav",
                "speaker": f"s{number % 6}",
                "split": ("train", "train", "train", "train", "dev", "test")[number % 6],
                "emotion": "" if number % 6 < 4 and number % 5 == 0 else emotion,
                "gender": ("female", "male")[number % 2],
                "text": "" if number % 7 == 0 else f"{emotion[:2]} so",
                "valence": "" if number % 11 == 0 else f"{number % 5 + 1}",
                "arousal": f"{number % 4 + 1}",
            }
        )
    with (folder / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "config.yaml").write_text(TINY.replace("SHARDS", str(folder / "shards")))
    return _trained(version, folder, ["csv", str(folder / "clips.csv")], [f"{number:02d}.wav" for number in range(12)])


def emodb(version: Path, folder: Path, emodb: Path | None) -> Numbers:
    """Return the numbers of twenty steps on EMO-DB."""
    if emodb is None:
        raise typer.BadParameter("emodb needs --emodb FOLDER, the corpus")
    rule = "splits: [{policy: leave_one_out, field: speaker, fold: 0}]"
    text = EMODB.replace("SHARDS", str(folder / "shards")).replace("num_workers: 0", f"num_workers: 0, {rule}")
    (folder / "config.yaml").write_text(text)
    recordings = sorted(str(path) for path in emodb.rglob("*.wav"))[:12]
    return _trained(version, folder, ["emodb", str(emodb)], recordings)


def demo(version: Path, folder: Path, emodb: Path | None) -> Numbers:
    """Return the numbers of the demo."""
    _metaser(version, folder, "demo", "--out", str(folder / "demo"))
    (report,) = folder.glob("demo/**/report/report.json")
    return _numbers(report.parents[1], report.parent)


CASES: dict[str, Callable[[Path, Path, Path | None], Numbers]] = {"tiny": tiny, "emodb": emodb, "demo": demo}


def _trained(version: Path, folder: Path, corpus: list[str], recordings: list[str]) -> Numbers:
    run = folder / "run"
    _metaser(version, folder, "pack", *corpus, str(folder / "shards"))
    _metaser(version, folder, "train", "config.yaml", f"output_dir={run}")
    _metaser(version, folder, "evaluate", str(run))
    said = _metaser(version, folder, "predict", str(run), *recordings, "--format", "csv")
    return _numbers(run, run / "report") | {"predict": _rows(said)}


def _numbers(run: Path, report: Path) -> Numbers:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("stage", "step", "loss", "losses", "grad_norm", "dev")
    return {
        "metrics.jsonl": [{name: line[name] for name in kept if name in line} for line in lines],
        "report.json": {
            name: value for name, value in json.loads((report / "report.json").read_text()).items() if name != "run"
        },
        "predictions.csv": _rows((report / "predictions.csv").read_text()),
    }


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def _metaser(version: Path, folder: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(version), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"`metaser {' '.join(words)}` failed in {version}:\n{done.stderr[-2000:]}")
    return done.stdout


def _checkout(version: str, folder: Path) -> Path:
    if Path(version).is_dir():
        return Path(version).resolve()
    archive = subprocess.run(["git", "archive", version], cwd=REPOSITORY, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def first_difference(one: Any, other: Any, place: str = "") -> str | None:
    """Return where two trees of numbers differ first, and how; None if they are equal."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(f"{place}.{name}", one[name], other[name]) for name in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(f"{place}.{number}", *pair) for number, pair in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other else f"{place.lstrip('.')}: {one!r:.200} before, {other!r:.200} after"
    return next((found for name, *pair in pairs if (found := first_difference(*pair, name))), None)


def main(
    before: Annotated[str, typer.Option(help="Commit or folder.")] = "HEAD",
    only: Annotated[str, typer.Option(help=f"Of {', '.join(CASES)}.")] = "tiny,demo",
    emodb: Annotated[Path | None, typer.Option(help="The folder of EMO-DB.")] = None,
) -> None:
    differ = False
    with tempfile.TemporaryDirectory(prefix="metaser-same-") as name:
        # Equal places, since reports hold them.
        (Path(name) / "tree").mkdir()
        versions = [_checkout(before, Path(name) / "tree"), REPOSITORY]
        for case in only.split(","):
            found = []
            for version in versions:
                folder = Path(name) / case
                folder.mkdir()
                found.append(CASES[case](version, folder, emodb))
                folder.rename(Path(name) / f"{case}-{len(found)}")
            difference = first_difference(*found)
            differ |= difference is not None
            print(f"{case}: {difference or 'equal to the last digit'}", flush=True)
    raise typer.Exit(int(differ))


if __name__ == "__main__":
    typer.run(main)
