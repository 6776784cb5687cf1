"""Views of sound and text: the same gradient and curves on any number of processes, in any cut and strategy."""

from pathlib import Path

import pytest
from gradients import ALL_AT_ONCE, IN_MICRO_BATCHES, distance, gradient_of
from textfolders import save_bert, with_views
from tinyruns import EXACT, losses, train_ranks

pytestmark = pytest.mark.distributed

NO_DROPOUT = tuple(f"model.views.{name}.dropout=0" for name in ("words", "mel", "pitch"))


@pytest.fixture(scope="module")
def views(tmp_path_factory) -> tuple[str, ...]:
    return (*with_views(save_bert(tmp_path_factory.mktemp("bert"))), *NO_DROPOUT)


@pytest.fixture(scope="module")
def alone(corpus, views, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return gradient_of(corpus, folder, 1, "single", ALL_AT_ONCE, in_float64=True, more=views)


def test_every_parameter_of_the_views_has_a_gradient(alone):
    of_views = [name for name in alone if name.startswith("views.")]
    at_rest = [name for name in of_views if not alone[name].abs().max() > 0]
    assert len(of_views) > 44 and all(name.endswith(("key.bias", "k_proj.bias")) for name in at_rest), at_rest


@pytest.mark.parametrize(("count", "cut"), [(1, IN_MICRO_BATCHES), (2, ALL_AT_ONCE), (4, IN_MICRO_BATCHES)])
def test_the_gradient_is_the_same_however_a_step_is_cut(corpus, views, alone, tmp_path, count, cut):
    ours = gradient_of(corpus, tmp_path, count, "auto", cut, in_float64=True, more=views)
    assert distance(ours, alone) < 1e-9


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_zero_computes_the_same_gradient_in_float32(corpus, views, alone, tmp_path, strategy):
    ours = gradient_of(corpus, tmp_path, 2, strategy, IN_MICRO_BATCHES, more=views)
    assert distance(ours, alone) < 1e-5


def test_activations_computed_again_give_the_same_gradient(corpus, views, alone, tmp_path):
    more = (*views, "parallel.activation_checkpointing=true")
    ours = gradient_of(corpus, tmp_path, 2, "ddp", IN_MICRO_BATCHES, in_float64=True, more=more)
    assert distance(ours, alone) < 1e-9


@pytest.mark.parametrize(("count", "strategy"), [(2, "ddp"), (2, "zero3")])
def test_the_loss_curves_lie_on_each_other(corpus, views, tmp_path: Path, count, strategy):
    one, several = (
        losses(train_ranks(ranks, corpus.yaml, tmp_path / way, *EXACT, *views, f"parallel.strategy={way}"))
        for ranks, way in ((1, "single"), (count, strategy))
    )
    assert [line[:2] for line in one] == [line[:2] for line in several]
    for ours, theirs in zip(several, one, strict=True):
        assert ours[2] == pytest.approx(theirs[2], rel=2e-5)
