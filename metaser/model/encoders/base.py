"""What every encoder offers: what it sees of a batch goes in, the frames of all its layers and the frame mask come out.

An encoder is the main one (`model.encoder`) or a view beside it (`model.views`). Its families are modules beside this
one, found through `metaser/model/encoders/families.py`.

Legend: B utterances, T samples, M tokens, L frames, D hidden, F maskable features, N layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init

from metaser.model.attention import AttentionMask

if TYPE_CHECKING:
    from shards.index import Index

LayerMix = Callable[[int, Sequence[Tensor], Tensor], Tensor]
"""`mix(l, [g_0 .. g_{l-1}], Layer_l(g_{l-1}))` gives `g_l`, for l = 1 .. N."""

Count = TypeVar("Count", int, np.ndarray, Tensor)


class FrameMasks(NamedTuple):
    """SpecAugment's masks over the main encoder's input frames, True is hidden."""

    time_BL: Bool[Tensor, "B L"]
    feature_BD: Bool[Tensor, "B F"]

    def to(self, device: torch.device) -> FrameMasks:
        """Return the masks on `device`."""
        return FrameMasks(*(mask.to(device, non_blocking=True) for mask in self))


class Tokens(NamedTuple):
    """Texts as numbers of a vocabulary, padded at the end (with anything)."""

    ids_BM: Int[Tensor, "B M"]
    num_tokens_B: Int[Tensor, "B"]
    """True length of each text, at least 1."""

    def to(self, device: torch.device) -> Tokens:
        """Return the tokens on `device`."""
        return Tokens(*(part.to(device, non_blocking=True) for part in self))


class FrozenFrames(NamedTuple):
    """What the main encoder's frozen part makes of clips, computed beforehand; see `SpeechEncoder.frozen_depth`."""

    depth: int
    frames: tuple[Float[Tensor, "B L _"], ...]
    """Padded at the end with zeros: with depth 0 the features before SpecAugment's masks, else h0 .. h(depth - 1)."""

    def to(self, device: torch.device) -> FrozenFrames:
        """Return the frames on `device`."""
        return FrozenFrames(self.depth, tuple(frames.to(device, non_blocking=True) for frames in self.frames))


Given = Tokens | FrozenFrames | Tensor
"""What an encoder is given beside the sound: a view `Tokens` or a vector for each utterance (B V), the main encoder
what its frozen part makes of the sound."""

Lookup = Callable[[np.ndarray], Given]
"""Returns, on the CPU, what a view is given of a split's utterances at some positions."""


class Inputs(NamedTuple):
    """What a model sees of a batch; the arguments of `MetaSERModel.forward`."""

    wave_BT: Float[Tensor, "B T"]
    """Samples at 16 kHz, padded at the end (with any finite values)."""
    num_samples_B: Int[Tensor, "B"]
    """True length of each clip."""
    masks: FrameMasks | None = None
    """What SpecAugment hides from the main encoder's layers; None hides nothing."""
    warp_B: Float[Tensor, "B"] | None = None
    """How far VTLP moves each clip's mel filters, in encoders that have some; None moves none."""
    tokens: Mapping[str, Tokens] = {}
    """The texts of views that read, by the view's name."""
    vectors: Mapping[str, Float[Tensor, "B V"]] = {}
    """The numbers of views that are given some, by the view's name; NaN where there is none."""
    frozen: FrozenFrames | None = None
    """What the main encoder's frozen part would compute of the clips; None lets it compute."""

    def to(self, device: torch.device) -> Inputs:
        """Return the inputs on `device`."""
        return Inputs(
            self.wave_BT.to(device, non_blocking=True),
            self.num_samples_B.to(device, non_blocking=True),
            None if self.masks is None else self.masks.to(device),
            None if self.warp_B is None else self.warp_B.to(device, non_blocking=True),
            {view: tokens.to(device) for view, tokens in self.tokens.items()},
            {view: vectors_BV.to(device, non_blocking=True) for view, vectors_BV in self.vectors.items()},
            None if self.frozen is None else self.frozen.to(device),
        )

    def with_given(self, given: Mapping[str, Given]) -> Inputs:
        """Return the inputs with what each view is given, by the view's name; the main encoder has none."""
        tokens = {view: some for view, some in given.items() if isinstance(some, Tokens)}
        vectors = {view: some for view, some in given.items() if isinstance(some, Tensor)}
        frozen = [some for some in given.values() if isinstance(some, FrozenFrames)]
        return self._replace(tokens=tokens, vectors=vectors, frozen=frozen[0] if frozen else None)


class EncoderOutput(NamedTuple):
    """Frames of every layer."""

    layers: tuple[Float[Tensor, "B L D"], ...]
    """h0, the input of the first layer, after the positional convolution; h1 .. hN-1, the raw outputs of the
    layers; hN, after the final LayerNorm where the model has one. Padded frames hold arbitrary finite values."""
    frame_mask_BL: Bool[Tensor, "B L"]
    """True at real frames."""


class SelfFilled(nn.Module):
    """A module whose buffers are no weights to be learned: it fills them itself."""

    def reset_parameters(self) -> None:
        """Fill the buffers."""
        raise NotImplementedError


class Encoder(nn.Module):
    """An encoder of any input: a stack of transformer layers, run so that padding never changes a clip's real frames.

    Attributes:
        num_layers: N.
        hidden_size: D.
        longest_samples: The longest clip that it hears, in samples; None hears any.
        gradient_checkpointing: Recompute the layers in the backward pass instead of keeping their activations.
    """

    longest_samples: int | None = None
    view: str = ""
    """The encoder's name in `model.views`; empty for the main one."""
    given_fields: tuple[str, ...] = ()
    """The metadata fields of which `lookup` tells it; none where it only hears."""
    reads_text: bool = False
    """Whether it is given texts, which `tokenize` takes."""
    files: ClassVar[tuple[str, ...]] = ()
    """Names of what must lie beside the weights of an exported model, with `{view}` for the view's name."""

    def __init__(self, num_layers: int, hidden_size: int) -> None:
        """Remember N and D."""
        super().__init__()
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.gradient_checkpointing = False

    @classmethod
    def from_config(cls, config: Any, *, setting: str = "model.encoder") -> Encoder:
        """Return the encoder that a configuration of its kind asks for: with a checkpoint's weights, or fresh.

        Args:
            config: The configuration.
            setting: Where it stands in the experiment, for messages.

        Raises:
            ModelError: The checkpoint does not exist, is damaged, lacks weights, or is of another kind of model.
        """
        raise NotImplementedError

    @classmethod
    def from_architecture(cls, architecture: Mapping[str, Any]) -> Encoder:
        """Return an encoder with random weights, from what `architecture` gave; reads no files."""
        raise NotImplementedError

    @classmethod
    def read_architecture(cls, values: Any, path: Path) -> dict[str, Any]:
        """Return an exported model's `architecture` that stands in `path`, which may be damaged or hostile.

        Raises:
            ModelError: No encoder can be built of it.
            ValidationError: Likewise.
        """
        raise NotImplementedError

    @classmethod
    def form_of(cls, architecture: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of `architecture` decides the weights' form and meaning."""
        raise NotImplementedError

    def architecture(self) -> dict[str, Any]:
        """Return what `from_architecture` needs to rebuild the encoder without its weights; fit for JSON."""
        raise NotImplementedError

    @classmethod
    def files_of(cls, view: str) -> tuple[str, ...]:
        """Return the names of the `files` of a view."""
        return tuple(name.format(view=view) for name in cls.files)

    def save_files(self, folder: Path) -> None:
        """Write the `files` into the folder of an exported model."""

    def read_files(self, folder: Path) -> None:
        """Take the `files` from the folder of an exported model, where `from_architecture` built the encoder.

        Raises:
            ModelError: One is missing, damaged, or not the one that the architecture tells of.
        """

    def share_files(self, other: Encoder) -> None:
        """Take the `files` from an encoder of the same architecture."""

    def lookup(self, index: Index) -> Lookup:
        """Return what finds what the encoder is given of the utterances of `index`.

        Raises:
            ConfigError: The `given_fields` hold what it cannot be given; from the lookup, too.
        """
        raise NotImplementedError

    def fit(self, training: Index) -> None:
        """Take from the training utterances what is not learned by steps, such as the mean of a field of numbers."""

    def tokenize(self, texts: Sequence[str | None]) -> Tokens:
        """Return the tokens of texts, on the CPU, for an encoder that reads; None is an utterance without text."""
        raise NotImplementedError

    @property
    def transformer_layers(self) -> nn.ModuleList:
        """The N layers, lowest first."""
        raise NotImplementedError

    def top_norm(self) -> nn.Module | None:
        """Return the norm over the top layer's output, None where there is none."""
        raise NotImplementedError

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """Yield what the configuration says never to train; a stage that thaws the encoder leaves these alone."""
        yield from ()

    def reset_parameters(self) -> None:
        """Initialise what the encoder itself holds, beside its modules."""

    def forward(self, inputs: Inputs, *, mix: LayerMix | None = None) -> EncoderOutput:
        """Return the frames of all layers.

        Args:
            inputs: The batch.
            mix: Applied after each layer (`dense` ARI, bottlenecks); the final LayerNorm sees its last output.
        """
        raise NotImplementedError

    def compile_layers(self) -> None:
        """Compile what all layers do, once for all numbers of utterances and frames."""
        self._run_layer = torch.compile(self._run_layer, dynamic=True)  # type: ignore[method-assign]

    def _run_layer(self, layer: Any, frames_BLD: Tensor, mask: AttentionMask) -> Tensor:
        raise NotImplementedError

    def _run_layers(self, frames: Sequence[Tensor], real_BL: Tensor, mix: LayerMix | None) -> EncoderOutput:
        """Return all layers' frames, given those of the lowest, g_0 at least; of all layers, they are the output."""
        num_layers = self.num_layers + 1
        layers = frames if len(frames) == num_layers else self._run_more_layers(frames, real_BL, mix, num_layers)
        return EncoderOutput(tuple(layers), real_BL)

    def _run_more_layers(
        self, frames: Sequence[Tensor], real_BL: Tensor, mix: LayerMix | None, until: int
    ) -> list[Tensor]:
        """Return h_0 .. h_(until - 1), given the first of them."""
        layers = list(frames)
        mask = self._attention_mask(real_BL)
        for number in range(len(layers), until):
            frames_BLD = self._checkpointed(self.transformer_layers[number - 1], layers[-1], mask)
            layers.append(frames_BLD if mix is None else mix(number, tuple(layers), frames_BLD))
        if until > self.num_layers:
            layers[-1] = self._final_norm(layers[-1])
        return layers

    def _final_norm(self, frames_BLD: Tensor) -> Tensor:
        norm = self.top_norm()
        if norm is None:
            return frames_BLD
        normed_BLD: Tensor = norm(frames_BLD)
        return normed_BLD

    def _attention_mask(self, real_BL: Tensor) -> AttentionMask:
        return AttentionMask(real_BL[:, None, None, :])

    def _checkpointed(self, layer: nn.Module, frames_BLD: Tensor, mask: AttentionMask) -> Tensor:
        if not (self.gradient_checkpointing and self.training):
            return self._run_layer(layer, frames_BLD, mask)
        recomputed: Tensor = checkpoint(self._run_layer, layer, frames_BLD, mask, use_reentrant=False)
        return recomputed


class SpeechEncoder(Encoder):
    """An encoder that hears: the main one's interface.

    Attributes:
        num_mask_features: F, the features that `FrameMasks.feature_BD` hides.
    """

    masks_features: ClassVar[bool] = True
    """Whether SpecAugment's masks act on what `_features` gives; otherwise on what becomes of it."""

    def __init__(
        self, num_layers: int, hidden_size: int, num_mask_features: int, windows: Sequence[tuple[int, int]]
    ) -> None:
        """Remember the sizes.

        Args:
            num_layers: N.
            hidden_size: D.
            num_mask_features: F.
            windows: (length, hop) of each step from samples to frames.
        """
        super().__init__(num_layers, hidden_size)
        self.num_mask_features = num_mask_features
        self._windows = tuple(windows)
        self._min_samples = 1
        for length, hop in reversed(self._windows):
            self._min_samples = (self._min_samples - 1) * hop + length

    def num_frames(self, num_samples: Count) -> Count:
        """Return the frames of clips of so many samples, without running the model; never less than one.

        Clips shorter than the first frame's window are padded to it with silence.
        """
        return self._num_outputs(num_samples, self._windows)

    @property
    def hop_samples(self) -> int:
        """Samples from the beginning of one frame to that of the next."""
        return math.prod(hop for _, hop in self._windows)

    def forward(self, inputs: Inputs, *, mix: LayerMix | None = None) -> EncoderOutput:
        """Return the frames of all layers, L = `num_frames(T)`; see `Encoder.forward`."""
        wave_BT = inputs.wave_BT
        num_samples_B = inputs.num_samples_B.to(wave_BT.device)
        wave_BT = nn.functional.pad(wave_BT.float(), (0, max(0, self._min_samples - wave_BT.shape[1])))
        real_BL = real_mask(self.num_frames(num_samples_B), self.num_frames(wave_BT.shape[1]))
        inputs = inputs._replace(wave_BT=wave_BT, num_samples_B=num_samples_B)
        if inputs.frozen is None:
            frames: Sequence[Tensor] = [self._embed(self._features(inputs, real_BL), inputs, real_BL)]
        elif inputs.frozen.depth == 0:
            frames = [self._embed(inputs.frozen.frames[0], inputs, real_BL)]
        else:
            frames = inputs.frozen.frames
        return self._run_layers(frames, real_BL, mix)

    def frozen_depth(self, *, masked: bool, mixed: bool) -> int | None:
        """Return how far up the encoder nothing is trained, so that a clip's frames stay the same from step to step.

        0 stands for the features before the layers, 1 for h0, and so on to N + 1 for the frames of all layers, the
        final norm included. None: the features are trained, or so cheap that nobody keeps them.

        Args:
            masked: SpecAugment hides something of the clips, anew in each step.
            mixed: Something is mixed into the frames between the layers.
        """
        features = self._feature_modules()
        if masked or _is_trained(self, but=(self.transformer_layers, self.top_norm())):
            keeps_features = features and not (masked and self.masks_features)
            return 0 if keeps_features and not any(map(_is_trained, features)) else None
        if mixed:
            return 1
        num_frozen = next(
            (number for number, layer in enumerate(self.transformer_layers) if _is_trained(layer)), self.num_layers
        )
        top_norm = self.top_norm()
        if num_frozen == self.num_layers and top_norm is not None and _is_trained(top_norm):
            return self.num_layers
        return num_frozen + 1

    def frozen_frames(self, inputs: Inputs, depth: int) -> FrozenFrames:
        """Return what `forward` may be given instead of computing it, up to `depth`; in `eval` mode without dropout."""
        wave_BT = nn.functional.pad(inputs.wave_BT.float(), (0, max(0, self._min_samples - inputs.wave_BT.shape[1])))
        real_BL = real_mask(self.num_frames(inputs.num_samples_B), self.num_frames(wave_BT.shape[1]))
        inputs = inputs._replace(wave_BT=wave_BT)
        features = self._features(inputs, real_BL)
        if depth == 0:
            return FrozenFrames(0, (features,))
        layers = self._run_more_layers([self._embed(features, inputs, real_BL)], real_BL, None, depth)
        return FrozenFrames(depth, tuple(layers))

    def frozen_tensors(self, depth: int) -> dict[str, Tensor]:
        """Return the weights and buffers that `frozen_frames` depends on, by name."""
        above: list[nn.Module] = [*self.transformer_layers[max(depth - 1, 0) :]]
        top_norm = self.top_norm()
        if top_norm is not None and depth <= self.num_layers:
            above.append(top_norm)
        left_out = {id(tensor) for part in above for tensor in _tensors_of(part).values()}
        if depth == 0:
            kept = {id(tensor) for part in self._feature_modules() for tensor in _tensors_of(part).values()}
            left_out = {id(tensor) for tensor in _tensors_of(self).values()} - kept
        return {name: tensor for name, tensor in _tensors_of(self).items() if id(tensor) not in left_out}

    def _feature_modules(self) -> tuple[nn.Module, ...]:
        """Return the modules with the weights that `_features` depends on, if its result is worth keeping."""
        return ()

    def _features(self, inputs: Inputs, real_BL: Tensor) -> Tensor:
        """Return what is made of the sound alone."""
        raise NotImplementedError

    def _embed(self, features_BLD: Tensor, inputs: Inputs, real_BL: Tensor) -> Tensor:
        """Return h0."""
        raise NotImplementedError

    def _num_outputs(self, num_samples: Count, windows: Sequence[tuple[int, int]]) -> Count:
        """Return how many outputs the windows have, one after the other, for so many samples."""
        # Written so that ints, numpy arrays and tensors all pass.
        count: Any = num_samples + (self._min_samples - num_samples) * (num_samples < self._min_samples)
        for length, hop in windows:
            count = (count - length) // hop + 1
        outputs: Count = count
        return outputs


@torch.no_grad()
def init_encoder_weights(module: nn.Module) -> None:
    """Initialise the parameters that `module` itself holds, for `nn.Module.apply` and `_init_weights`.

    What a checkpoint has already filled is left alone (transformers marks it), and so is what has no memory.
    """
    held: Any = module
    if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        # To draw nothing there, torch would import all of dynamo.
        return
    if isinstance(module, nn.Linear):
        init.xavier_uniform_(held.weight)
    elif isinstance(module, nn.Conv1d) and not parametrize.is_parametrized(module, "weight"):
        init.kaiming_normal_(held.weight)
    elif isinstance(module, nn.Embedding):
        init.normal_(held.weight, std=0.02)
    elif isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d) and module.weight is not None:
        init.ones_(held.weight)
    elif isinstance(module, parametrize.ParametrizationList):
        # Weight norm: original1 is the direction, original0 its length at each point of the kernel.
        init.kaiming_normal_(held.original1)
        init.copy_(held.original0, torch.norm_except_dim(held.original1, 2, 2))
    elif hasattr(module, "gru_rel_pos_const"):
        init.ones_(held.gru_rel_pos_const)
    elif isinstance(module, Encoder | SelfFilled):
        module.reset_parameters()
    if isinstance(module, nn.BatchNorm1d):
        init.zeros_(held.running_mean)
        init.ones_(held.running_var)
        init.zeros_(held.num_batches_tracked)
    if isinstance(getattr(module, "bias", None), Tensor):
        init.zeros_(held.bias)


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _is_trained(module: nn.Module, *, but: Sequence[nn.Module | None] = ()) -> bool:
    left_out = {id(weight) for part in but if part is not None for weight in part.parameters()}
    return any(weight.requires_grad for weight in module.parameters() if id(weight) not in left_out)


def real_mask(num_B: Int[Tensor, "B"], length: int) -> Bool[Tensor, "B length"]:
    """Return True at the first `num_B` of `length` positions."""
    return torch.arange(length, device=num_B.device) < num_B[:, None]
