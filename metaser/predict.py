"""A trained model's answers for audio files: any format, rate and number of channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metaser.errors import ModelError
from metaser.eval.evaluate import predict_task
from metaser.model.metaser import MetaSERModel
from shards.audio import AudioFile, prepare
from shards.errors import AudioError

SHORTEST_S = 0.1


@dataclass(frozen=True)
class FilePrediction:
    """What the model says of one file; `error` and no tasks if the file cannot be used."""

    file: str
    duration_s: float | None
    tasks: dict[str, dict[str, Any]]
    """classification: `label` and `probabilities`; ctc: `text`; regression: the fields' values."""
    error: str | None = None


def load_model(path: str | Path) -> MetaSERModel:
    """Return the model in an exported folder, or the best model of a run's folder, ready to predict.

    Raises:
        ModelError: if there is none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(f"MODEL must be a run's folder or an exported model's, but {str(path)!r} is not a folder")
    if not (folder / "config.json").is_file() and (folder / "best" / "config.json").is_file():
        folder = folder / "best"
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(
                f"MODEL must be a run's folder or an exported model's, but {str(folder)!r} holds no {name}"
            )
    model: MetaSERModel = MetaSERModel.from_pretrained(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return model


def predict_files(model: MetaSERModel, files: Sequence[str]) -> Iterator[FilePrediction]:
    """Yield the prediction for each file, one after another."""
    for file in files:
        try:
            yield _predict_file(model, file)
        except AudioError as error:
            yield FilePrediction(file, None, {}, error=str(error))


def _predict_file(model: MetaSERModel, file: str) -> FilePrediction:
    rate_hz = model.config.sampling_rate
    samples = prepare(*AudioFile(Path(file)).load())
    if len(samples) < SHORTEST_S * rate_hz:
        raise AudioError(f"{file} must be at least {SHORTEST_S:g} s long, got {len(samples) / rate_hz:.3f} s")
    wave_BT = torch.from_numpy(samples)[None].to(model.device)
    with torch.inference_mode():
        output = model(wave_BT, torch.tensor([len(samples)], device=model.device))
    tasks: dict[str, dict[str, Any]] = {}
    for spec in model.task_specs:
        ((prediction, probabilities),) = predict_task(spec, output.logits[spec.name].cpu(), output.num_frames_B.cpu())
        if spec.kind == "classification":
            tasks[spec.name] = {
                "label": prediction,
                "probabilities": dict(zip(spec.labels, probabilities or (), strict=True)),
            }
        elif spec.kind == "ctc":
            tasks[spec.name] = {"text": prediction}
        else:
            tasks[spec.name] = dict(zip(spec.labels, prediction, strict=True))
    return FilePrediction(file, len(samples) / rate_hz, tasks)
