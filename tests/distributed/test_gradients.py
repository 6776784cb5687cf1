"""The gradient of a step depends neither on the number of processes, nor on accumulation, nor on the strategy."""

import pytest
from gradients import ALL_AT_ONCE, IN_MICRO_BATCHES, distance, gradient_of

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    return gradient_of(corpus, tmp_path_factory.mktemp("alone"), 1, "single", ALL_AT_ONCE, in_float64=True)


def test_every_trainable_parameter_has_a_gradient(alone):
    assert [name for name, value in alone.items() if not value.abs().max() > 0 and "k_proj.bias" not in name] == []


@pytest.mark.parametrize(
    ("count", "micro_batches"),
    [(1, IN_MICRO_BATCHES), (2, ALL_AT_ONCE), (2, IN_MICRO_BATCHES), (4, ALL_AT_ONCE), (4, IN_MICRO_BATCHES)],
)
def test_the_gradient_is_the_same_however_a_step_is_cut(corpus, alone, tmp_path, count, micro_batches):
    ours = gradient_of(corpus, tmp_path, count, "auto", micro_batches, in_float64=True)
    assert distance(ours, alone) < 1e-9


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("micro_batches", [ALL_AT_ONCE, IN_MICRO_BATCHES])
def test_zero_computes_the_same_gradient_in_float32(corpus, alone, tmp_path, strategy, micro_batches):
    ours = gradient_of(corpus, tmp_path, 2, strategy, micro_batches)
    assert distance(ours, alone) < 1e-5


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_in_bf16_gradients_differ_by_its_rounding(corpus, alone, tmp_path, strategy):
    ours = gradient_of(corpus, tmp_path, 2, strategy, IN_MICRO_BATCHES, more=("parallel.precision=bf16",))
    assert 1e-4 < distance(ours, alone) < 5e-2


def test_activations_computed_again_give_the_same_gradient(corpus, alone, tmp_path):
    more = ("parallel.activation_checkpointing=true",)
    ours = gradient_of(corpus, tmp_path, 2, "ddp", IN_MICRO_BATCHES, in_float64=True, more=more)
    assert distance(ours, alone) < 1e-9
