"""Cheap answers that every result should stand beside: a linear model over functionals, or over a frozen encoder.

Features are standardised over training, the model is scikit-learn's logistic regression with balanced classes; the
strength of its penalty, and with the probe the encoder's layer, are those with the highest UA on dev. Test is judged
once, as that of any run.

Legend: U utterances, K kinds of features (layers), D features.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from metaser.config.schema import ExperimentConfig
from metaser.errors import ConfigError, TrainingError
from metaser.eval.foreign import heard_clips, judge_scores, judged_task
from metaser.eval.functionals import functionals
from metaser.framecache import clip_frames
from metaser.model.encoders.base import SpeechEncoder
from metaser.model.encoders.families import load_encoder
from metaser.model.network import hearing
from metaser.processes import Processes
from metaser.stagedata import select_utterances
from metaser.targets import Targets
from metaser.tasks.spec import TaskSpec
from shards.index import Index

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
    index, splits, specs, main = judged_task(config)
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

    def scores(part: Index, spec: TaskSpec) -> np.ndarray:
        return model.probabilities(features.of(part), len(spec.labels))

    note = f"a baseline: logistic regression over {model.describe(features)}"
    return judge_scores(config, scores, note, trained_here=True)


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
        return np.stack([functionals(wave_T)[None] for wave_T in heard_clips(part, self._config)])


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

    def probabilities(self, features_UKD: np.ndarray, num_classes: int) -> np.ndarray:
        """Return the probability of each class; of one that training did not have, zero."""
        found = np.zeros((len(features_UKD), num_classes))
        found[:, self._fitted[-1].classes_] = self._fitted.predict_proba(features_UKD[:, self._which])
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
