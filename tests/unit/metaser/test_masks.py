import torch
from hypothesis import given
from hypothesis import strategies as st

from metaser.config.schema import SpecAugmentConfig
from metaser.train.masks import draw_masks

CONFIG = SpecAugmentConfig(num_time_masks=2, max_time_mask_frames=10, num_feature_masks=2, max_feature_mask=5)
lengths = st.lists(st.integers(1, 120), min_size=1, max_size=5)


def draw(num_frames, *, config=CONFIG, seed=0, epoch=0, keys=None, num_features=24):
    keys = keys or [f"c/{number}" for number in range(len(num_frames))]
    return draw_masks(config, keys, num_frames, num_features, seed=seed, epoch=epoch)


@given(lengths, st.integers(0, 9), st.integers(0, 9))
def test_masks_stay_inside_the_clip_and_hide_at_most_what_they_may(num_frames, seed, epoch):
    time_BL, feature_BF = draw(num_frames, seed=seed, epoch=epoch)
    assert time_BL.shape == (len(num_frames), max(num_frames))
    assert feature_BF.shape == (len(num_frames), 24)
    for row, length in zip(time_BL, num_frames, strict=True):
        assert not row[length:].any()
        assert int(row.sum()) <= 2 * min(10, length // 4)
    assert int(feature_BF.sum(dim=1).max()) <= 2 * 5


@given(lengths, st.data())
def test_a_clips_masks_do_not_depend_on_its_neighbours(num_frames, data):
    row = data.draw(st.integers(0, len(num_frames) - 1))
    together, alone = draw(num_frames), draw([num_frames[row]], keys=[f"c/{row}"])
    assert torch.equal(together.time_BL[row, : num_frames[row]], alone.time_BL[0])
    assert torch.equal(together.feature_BD[row], alone.feature_BD[0])


def test_key_seed_and_epoch_each_change_the_masks():
    first = draw([100], keys=["a"])
    assert torch.equal(first.time_BL, draw([100], keys=["a"]).time_BL)
    for other in (draw([100], keys=["b"]), draw([100], keys=["a"], seed=1), draw([100], keys=["a"], epoch=1)):
        assert not torch.equal(first.time_BL, other.time_BL)


def test_masks_reach_their_widest_and_every_place():
    draws = [
        draw([40], keys=[str(number)], config=CONFIG.model_copy(update={"num_time_masks": 1})) for number in range(400)
    ]
    time = torch.cat([masks.time_BL for masks in draws])
    assert time.sum(dim=1).unique().tolist() == list(range(11))
    assert time.any(dim=0).all()
    assert torch.cat([masks.feature_BD for masks in draws]).any(dim=0).all()


def test_no_masks_asked_for_draws_none():
    assert draw([100], config=SpecAugmentConfig()) is None
    only_time = draw([100], config=SpecAugmentConfig(num_time_masks=3))
    assert only_time.time_BL.any()
    assert not only_time.feature_BD.any()
