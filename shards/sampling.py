"""How often each utterance is drawn: weights as a pure function of the index, and one epoch's draw from them."""

from __future__ import annotations

import numpy as np

from shards.config import SamplingConfig
from shards.errors import PlanError
from shards.index import Index
from shards.indexcolumns import Codes
from shards.numbers import number_of


def sampling_weights(index: Index, sampling: SamplingConfig) -> np.ndarray | None:
    """Return how often each utterance is to be drawn per epoch, float64, shape (num_utterances,), mean 1; None is once.

    `weight` applies first, then `balance` evens out its field's values, then `corpora` shares the draws out.

    Raises:
        PlanError: if a weight is absent or negative, or a corpus is named that is not there or left out.
        FilterError: if a field is unknown.
    """
    if sampling == SamplingConfig():
        return None
    weights = np.ones(len(index)) if sampling.weight is None else _field_weights(index, sampling.weight)
    if sampling.balance is not None:
        weights = _balanced(weights, index.codes(sampling.balance), sampling.balance_power)
    if sampling.corpora:
        weights = _shared_out(weights, index.codes("corpus"), sampling.corpora)
    total = float(weights.sum())
    if not total > 0:
        raise PlanError("sampling must leave some utterance a positive weight, but all are zero; change `sampling`")
    return weights * (len(index) / total)


def _field_weights(index: Index, field: str) -> np.ndarray:
    codes = index.codes(field)
    numbers = [number_of(word) for word in codes.words]
    usable = [number is not None and 0 <= number < np.inf for number in numbers]
    bad = ~codes.lookup(usable, False).astype(bool)
    if bad.any():
        first = codes.numbers[np.flatnonzero(bad)[0]]
        raise PlanError(
            f"sampling.weight needs a number of at least 0 in {field} for every utterance, but {int(bad.sum())} of "
            f"{len(index)} have none (the first has {'no value' if first < 0 else repr(codes.words[first])}); add the "
            "metadata or filter them out"
        )
    return codes.lookup((number or 0.0 for number in numbers), 0.0)


def _balanced(weights: np.ndarray, codes: Codes, power: float) -> np.ndarray:
    """Return weights with which each value of a field has the same total (`power` 1), or gets part of the way there.

    Utterances without the field keep their weight.
    """
    present = codes.numbers >= 0
    masses = np.bincount(codes.numbers[present], weights[present], minlength=len(codes.words))
    filled = masses > 0
    if not filled.any():
        return weights
    factors = np.ones(len(masses))
    factors[filled] = (masses[filled].mean() / masses[filled]) ** power
    # What the values have together stays as it was, so that balancing takes nothing from utterances without one.
    factors *= masses.sum() / (masses * factors).sum()
    balanced: np.ndarray = weights * codes.lookup(factors, 1.0)
    return balanced


def _shared_out(weights: np.ndarray, corpora: Codes, shares: dict[str, float]) -> np.ndarray:
    present = list(corpora.counts())
    if sorted(shares) != present:
        raise PlanError(
            f"sampling.corpora must give each corpus of the stage a share, and no other; it names {sorted(shares)} and "
            f"the stage has {present}"
        )
    masses = np.bincount(corpora.numbers, weights, minlength=len(corpora.words))
    factors = [
        shares.get(corpus, 0.0) / mass if mass else 0.0 for corpus, mass in zip(corpora.words, masses, strict=True)
    ]
    shared: np.ndarray = weights * corpora.lookup(factors, 0.0)
    return shared


def draw_epoch(weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return as many rows as there are weights, in random order, each as often as its weight says.

    Systematic sampling: a weight of 2.3 is drawn two or three times an epoch, 2.3 times on average, never more or less,
    so that equal weights are exactly one pass.
    """
    order = generator.permutation(len(weights))
    ends = np.cumsum(weights[order])
    ticks = (np.arange(len(weights)) + generator.random()) * (ends[-1] / len(weights))
    chosen = np.searchsorted(ends, ticks, side="right")
    return generator.permutation(order[np.minimum(chosen, len(weights) - 1)])
