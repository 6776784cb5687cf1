"""What the frozen part of an encoder makes of clips, computed beforehand and given back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_encoder import NAMES, batch, clips, encoders, folders  # noqa: F401 (a fixture)
from torch import Tensor

from metaser.model.encoders.base import FrameMasks, FrozenFrames, Inputs, SpeechEncoder

torch.set_num_threads(1)
HAVE_FEATURES = [name for name in NAMES if name != "logmel"]


@torch.no_grad()
def frozen_of(encoder: SpeechEncoder, waves: list[Tensor], depth: int) -> FrozenFrames:
    """Return what is computed of each clip alone, padded."""
    alone = [encoder.frozen_frames(Inputs(wave[None], torch.tensor([len(wave)])), depth).frames for wave in waves]
    longest = max(frames[0].shape[1] for frames in alone)
    pads = [[torch.nn.functional.pad(part, (0, 0, 0, longest - part.shape[1])) for part in frames] for frames in alone]
    return FrozenFrames(depth, tuple(torch.cat(parts) for parts in zip(*pads, strict=True)))


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_given_its_frozen_frames_answers_as_if_it_computed_them(
    folders: dict[str, Path],  # noqa: F811
    name: str,
) -> None:
    encoder = encoders(folders, name)
    waves = clips()
    inputs = Inputs(*batch(waves))
    depths = [*range(0 if name in HAVE_FEATURES else 1, encoder.num_layers + 2)]
    with torch.no_grad():
        expected = encoder(inputs)
        for depth in depths:
            found = encoder(inputs._replace(frozen=frozen_of(encoder, waves, depth)))
            assert len(found.layers) == len(expected.layers)
            for ours, theirs in zip(found.layers, expected.layers, strict=True):
                real_BL1 = expected.frame_mask_BL[:, :, None]
                torch.testing.assert_close(ours * real_BL1, theirs * real_BL1, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["wav2vec2-base", "wav2vec2-large", "wavlm-large"])
def test_time_and_feature_masks_hide_of_kept_features_what_they_hide_of_computed_ones(
    folders: dict[str, Path],  # noqa: F811
    name: str,
) -> None:
    encoder = encoders(folders, name)
    waves = clips()[:2]
    inputs = Inputs(*batch(waves))
    num_frames = encoder.num_frames(inputs.wave_BT.shape[1])
    masks = FrameMasks(torch.rand(2, num_frames) < 0.3, torch.rand(2, encoder.num_mask_features) < 0.3)
    with torch.no_grad():
        expected = encoder(inputs._replace(masks=masks)).layers[-1]
        found = encoder(inputs._replace(masks=masks, frozen=frozen_of(encoder, waves, 0))).layers[-1]
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_frames_depend_on_exactly_the_frozen_tensors(folders: dict[str, Path], name: str) -> None:  # noqa: F811
    encoder = encoders(folders, name)
    waves = clips()[:1]
    whole = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    for depth in (0 if name in HAVE_FEATURES else 1, 1, 2, encoder.num_layers + 1):
        expected = frozen_of(encoder, waves, depth)
        needed = encoder.frozen_tensors(depth)
        others = {key: tensor for key, tensor in whole.items() if key not in needed}
        kept = {key: tensor.detach().clone() for key, tensor in whole.items()}
        with torch.no_grad():
            for tensor in others.values():
                tensor.add_(1)
            changed = frozen_of(encoder, waves, depth)
            for key, tensor in whole.items():
                tensor.copy_(kept[key])
        for ours, theirs in zip(changed.frames, expected.frames, strict=True):
            assert torch.equal(ours, theirs)
        # Each of the lowest depth's own weights counts, too.
        for key in [key for key in needed if key.endswith(("weight", "original1", "original0"))][:4]:
            with torch.no_grad():
                whole[key].mul_(1.5)
                changed = frozen_of(encoder, waves, depth)
                whole[key].copy_(kept[key])
            pairs = zip(changed.frames, expected.frames, strict=True)
            assert not all(torch.equal(ours, theirs) for ours, theirs in pairs), (depth, key)


@pytest.mark.parametrize("name", NAMES)
def test_the_frozen_depth_ends_below_the_lowest_part_that_trains(folders: dict[str, Path], name: str) -> None:  # noqa: F811
    encoder = encoders(folders, name)
    features = 0 if name in HAVE_FEATURES else None
    # SpecAugment acts on Whisper's mel frames, before its convolutions.
    under_masks = features if name not in ("whisper", "logmel") else None
    num_layers = encoder.num_layers

    def depths(**trained: bool) -> list[int | None]:
        return [
            encoder.frozen_depth(masked=masked, mixed=mixed)
            for masked, mixed in ((False, False), (False, True), (True, False))
        ]

    encoder.requires_grad_(False)
    assert depths() == [num_layers + 1, 1, under_masks]
    norm = encoder.top_norm()
    if norm is not None:
        norm.requires_grad_(True)
        assert depths() == [num_layers, 1, under_masks]
        norm.requires_grad_(False)
    for number, layer in enumerate(encoder.transformer_layers):
        layer.requires_grad_(True)
        assert depths() == [number + 1, 1, under_masks]
        layer.requires_grad_(False)
    encoder.requires_grad_(True)
    for parameter in encoder.frozen_parameters():
        parameter.requires_grad_(False)
    # Whisper trains nothing between its convolutions and its first layer.
    lowest = 1 if name == "whisper" else features
    assert depths() == [lowest, lowest, under_masks]
    encoder.requires_grad_(True)
    assert depths() == [None, None, None]
