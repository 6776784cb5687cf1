"""One process on a GPU, in bf16 and fp16, with every strategy."""

import pytest
from tinyruns import EXACT, losses, train_ranks

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("strategy", ["single", "ddp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_on_a_gpu_learns_what_float32_does_on_a_cpu(corpus, tmp_path, strategy, precision):
    alone = corpus.train(tmp_path / "alone", *EXACT)
    given = ("parallel.device=cuda", f"parallel.precision={precision}", f"parallel.strategy={strategy}")
    run = train_ranks(1, corpus.yaml, tmp_path / "run", *EXACT, *given)
    assert [line[:2] for line in losses(run)] == [line[:2] for line in losses(alone)]
    for ours, theirs in zip(losses(run), losses(alone), strict=True):
        assert ours[2] == pytest.approx(theirs[2], rel=0.05)
