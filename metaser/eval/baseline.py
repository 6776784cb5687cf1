"""Cheap answers that every result should stand beside: a linear model over functionals, or over a frozen encoder.

Features are standardised over training, the model is scikit-learn's logistic regression with balanced classes; the
strength of its penalty, and with the probe the encoder's layer, are those with the highest UA on dev. Test is judged
once, as that of any run.

Legend: U utterances, K kinds of features (layers), D features.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from metaser.config.load import dump_experiment
from metaser.config.schema import ExperimentConfig
from metaser.errors import ConfigError, TrainingError
from metaser.eval.evaluate import utterance_results
from metaser.eval.functionals import functionals
from metaser.eval.protocol import judge_answers, own_choice
from metaser.eval.report import write_report
from metaser.framecache import clip_frames
from metaser.model.encoders.base import SpeechEncoder
from metaser.model.encoders.families import load_encoder
from metaser.model.network import hearing
from metaser.processes import Processes
from metaser.record import material, used_rows
from metaser.rundir import RunDir, refuse_output_dir
from metaser.runfiles import write_whole, writing
from metaser.stagedata import experiment_specs, load_split_index, select_utterances
from metaser.sums import sealed_yaml
from metaser.targets import Targets
from metaser.tasks.kinds import kind_of
from metaser.tasks.results import UtteranceResult
from metaser.tasks.spec import TaskSpec
from metaser.windows import JoinedOutput
from shards.errors import ShardError
from shards.index import Index
from shards.plan import MicroBatch
from shards.read import read_batches

log = logging.getLogger(__name__)

BaselineKind = Literal["functionals", "probe"]
_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""scikit-learn's C: the inverse of the penalty."""
_MOST_ITERATIONS = 2000


def judge_baseline(config: ExperimentConfig, kind: BaselineKind, processes: Processes) -> dict[str, Any]:
    """Fit a baseline to the last stage's training utterances of the main task; judge it, write and return its report.

    The folder gets what a run's has, without a model: the experiment and `report/`.

    Raises:
        ConfigError: if the main task has no classes, or the probe's encoder is trained from scratch.
        InputError: if the data does not allow it.
    """
    run = RunDir(Path(config.output_dir))
    refuse_output_dir(run)
    index, splits = load_split_index(config.data)
    specs = experiment_specs(config, index, splits)
    main = next(spec for spec in specs if spec.name == config.main_task)
    if not kind_of(main).has_classes:
        raise ConfigError(f"a baseline needs a main task with classes, got {main.name!r} of kind {main.kind}")
    stage = config.stages[-1]
    parts = {}
    for split in ("train", "dev"):
        part = index.take(splits.rows(split))
        part = part.take(select_utterances(stage, specs, part))
        parts[split] = part.take(np.flatnonzero(Targets(specs, part).present(main.name)))
        if not len(parts[split]):
            raise TrainingError(f"a baseline needs {split} utterances with {main.name!r}, got none")
    features = _Features(config, kind, processes)
    model = _choose(
        features.of(parts["train"]),
        _classes(main, parts["train"]),
        features.of(parts["dev"]),
        _classes(main, parts["dev"]),
    )
    log.info("%s: %s, dev UA %.3f", kind, model.describe(features), model.dev_ua)

    def answer(part: Index) -> list[UtteranceResult]:
        logits_UC = torch.from_numpy(model.log_probabilities(features.of(part), len(main.labels)))
        said = JoinedOutput({main.name: logits_UC}, dict.fromkeys([main.name], 1))
        return list(utterance_results([main], part, np.arange(len(part)), said, Targets([main], part)))

    judged = judge_answers(
        run,
        config.model_copy(update={"stages": (stage,)}),
        own_choice(config, index, splits, "test"),
        specs,
        lambda specs: material(index, used_rows(config, specs, index, splits)),
        answer,
        notes_of=lambda part: [f"a baseline: logistic regression over {model.describe(features)}"],
    )
    if judged is None:
        raise TrainingError("a baseline must be judged, but the test split is empty")
    report, results = judged
    with writing(run.root):
        run.root.mkdir(parents=True, exist_ok=True)
        write_whole(run.config, sealed_yaml(dump_experiment(config)))
        write_report(run.report, report, results, (main,))
    return report


def _classes(spec: TaskSpec, part: Index) -> np.ndarray:
    number_of = {label: number for number, label in enumerate(spec.labels)}
    return np.asarray([number_of[spec.label_of(word)] for word in part.values(spec.fields[0])])


class _Features:
    """Computes features of utterances."""

    def __init__(self, config: ExperimentConfig, kind: BaselineKind, processes: Processes) -> None:
        self._config = config
        self._processes = processes
        self._encoder: SpeechEncoder | None = None
        if kind == "probe":
            if config.model.encoder.kind == "logmel":
                raise ConfigError("a probe needs an encoder that is trained already, got kind 'logmel'")
            self._encoder = hearing(load_encoder(config.model.encoder))
            self._encoder.to(processes.device).train(mode=False)
        self.names = (
            ("62 functionals",)
            if self._encoder is None
            else tuple(f"the mean frame of h{layer}" for layer in range(self._encoder.num_layers + 1))
        )

    def of(self, part: Index) -> Float[np.ndarray, "U K D"]:
        """Return each utterance's features."""
        if self._encoder is not None:
            frames = clip_frames(self._encoder, part, self._config, self._processes)
            return np.stack([frames_KLD.float().mean(dim=1).numpy() for frames_KLD in frames])
        data = self._config.data
        micro_batches = (MicroBatch(np.asarray([item])) for item in range(len(part)))
        found = []
        for batch in read_batches(
            part, micro_batches, num_workers=0, timeout_s=data.worker_timeout_s, remote=data.remote
        ):
            if batch.problems:
                raise ShardError(f"a baseline needs every utterance, but {batch.problems[0]}")
            found.append(functionals(batch.wave_BT[0].numpy())[None])
        return np.stack(found)


class _Linear:
    """A fitted model."""

    def __init__(self, fitted: Any, which: int, penalty: float, dev_ua: float) -> None:
        self._fitted = fitted
        self._which = which
        self._penalty = penalty
        self.dev_ua = dev_ua

    def describe(self, features: _Features) -> str:
        """Return what was chosen on dev."""
        return f"{features.names[self._which]}, C = {self._penalty:g}"

    def log_probabilities(self, features_UKD: np.ndarray, num_classes: int) -> np.ndarray:
        """Return the log-probability of each class; of one that training did not have, a very low one."""
        found = np.full((len(features_UKD), num_classes), -100.0, np.float32)
        found[:, self._fitted[-1].classes_] = self._fitted.predict_log_proba(features_UKD[:, self._which]).clip(
            min=-100.0
        )
        return found


def _choose(train_UKD: np.ndarray, classes_U: np.ndarray, dev_UKD: np.ndarray, dev_classes_U: np.ndarray) -> _Linear:
    """Return the model with the highest UA on dev; of equal ones, that of the lowest layer and strongest penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    best: _Linear | None = None
    for which in range(train_UKD.shape[1]):
        for penalty in _PENALTIES:
            regression = LogisticRegression(C=penalty, class_weight="balanced", max_iter=_MOST_ITERATIONS)
            fitted = make_pipeline(StandardScaler(), regression).fit(train_UKD[:, which], classes_U)
            dev_ua = float(balanced_accuracy_score(dev_classes_U, fitted.predict(dev_UKD[:, which])))
            if best is None or dev_ua > best.dev_ua:
                best = _Linear(fitted, which, penalty, dev_ua)
    assert best is not None  # noqa: S101 (there is a layer and a penalty)
    return best
