"""On the demo's corpus and model, too, every strategy learns the same."""

import pytest
from tinyruns import EXACT, dev_metrics, losses, make_demo, train_ranks

pytestmark = pytest.mark.distributed

STEPS = 12
TOLERANCE = 1e-3
"""Of each loss, relative. Rounding alone, one process with micro-batches of 20 s, moves losses by up to 1.1e-4."""


@pytest.fixture(scope="module")
def demo(demo_shards, tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo"), demo_shards, steps=STEPS)


@pytest.fixture(scope="module")
def alone(demo, tmp_path_factory):
    return demo.train(tmp_path_factory.mktemp("alone") / "run", *EXACT)


@pytest.mark.parametrize(
    "strategy", ["ddp", *(pytest.param(name, marks=pytest.mark.reliability) for name in ("zero1", "zero2")), "zero3"]
)
def test_the_demo_s_loss_curves_lie_on_each_other(demo, alone, tmp_path, strategy):
    run = train_ranks(2, demo.yaml, tmp_path / "run", *EXACT, f"parallel.strategy={strategy}")
    assert len(losses(run)) == 2 * STEPS
    for ours, theirs in zip(losses(run), losses(alone), strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], rel=TOLERANCE)
        assert ours[3] == pytest.approx(theirs[3], rel=TOLERANCE)
    for ours, theirs in zip(dev_metrics(run), dev_metrics(alone), strict=True):
        assert ours[2]["loss"] == pytest.approx(theirs[2]["loss"], rel=TOLERANCE)
