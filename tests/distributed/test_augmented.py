"""Two processes augment each clip as one does."""

import pytest
from test_processes import EXACT, train
from tinyruns import AUGMENTED, losses

pytestmark = pytest.mark.distributed


def test_two_processes_augment_as_one_does(corpus, tmp_path):
    alone = corpus.train(tmp_path / "alone", *EXACT, *AUGMENTED)
    pair = train(corpus, tmp_path / "pair", *EXACT, *AUGMENTED)
    for ours, theirs in zip(losses(pair), losses(alone), strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], rel=1e-4)
        assert ours[3] == pytest.approx(theirs[3], rel=1e-4, abs=1e-6)
