from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from metaser.config.ari import ARI_FORMS, AriForm
from metaser.errors import ConfigError
from metaser.model.ari import Ari, build_ari

NUM_LAYERS = 4
WIDTH = 6
TASKS = ("asr", "gender", "emotion")
FORMS = tuple(ARI_FORMS)
SUMS = ("weighted_sum", "normed_weighted_sum")
"""Start from all layers, the others from the last."""


@pytest.fixture
def layers() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, 5, WIDTH, generator=generator) for _ in range(NUM_LAYERS + 1))


@pytest.fixture(name="mask_BL")
def frame_mask() -> Tensor:
    return torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


def perturbed(form: AriForm) -> Ari:
    """ARI whose every parameter differs from its start, so that a form that ignores one is caught."""
    ari = build_ari(form, NUM_LAYERS, WIDTH, TASKS)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in ari.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return ari


def normed(norms: nn.ModuleList, index: int, frames_BLD: Tensor) -> Tensor:
    norm = norms[index]
    assert isinstance(norm, nn.LayerNorm)
    return layer_norm(frames_BLD, (WIDTH,), norm.weight, norm.bias)


@pytest.mark.parametrize("form", FORMS)
def test_zero_initialised_forms_are_the_last_layer_exactly(
    form: AriForm, layers: tuple[Tensor, ...], mask_BL: Tensor
) -> None:
    ari = build_ari(form, NUM_LAYERS, WIDTH, TASKS)
    frames = ari(layers, mask_BL)
    assert list(frames) == list(TASKS)
    for frames_BLD in frames.values():
        assert torch.equal(frames_BLD, layers[-1]) == (form not in SUMS)


@pytest.mark.parametrize("form", ["dense", "dense+task"])
def test_zero_dense_residuals_leave_a_layers_output_as_it_is(form: AriForm, layers: tuple[Tensor, ...]) -> None:
    mix = build_ari(form, NUM_LAYERS, WIDTH, TASKS).layer_mix()
    assert mix is not None
    for layer in range(1, NUM_LAYERS + 1):
        assert torch.equal(mix(layer, layers[:layer], layers[layer]), layers[layer])


def test_weighted_sum_is_the_mean_at_the_start_and_the_softmax_later(
    layers: tuple[Tensor, ...], mask_BL: Tensor
) -> None:
    fresh = build_ari("weighted_sum", NUM_LAYERS, WIDTH, TASKS)
    torch.testing.assert_close(fresh(layers, mask_BL)["asr"], torch.stack(layers).mean(dim=0))
    ari = perturbed("weighted_sum")
    weights = ari.get_parameter("integration.mix_scalars").softmax(0)
    expected = sum(weight * frames for weight, frames in zip(weights, layers, strict=True))
    for frames_BLD in ari(layers, mask_BL).values():
        torch.testing.assert_close(frames_BLD, expected)


def test_normed_weighted_sum_is_the_definition(layers: tuple[Tensor, ...], mask_BL: Tensor) -> None:
    ari = perturbed("normed_weighted_sum")
    norms = ari.get_submodule("integration.norms")
    assert isinstance(norms, nn.ModuleList)
    weights = ari.get_parameter("integration.mix_scalars").softmax(1)
    frames = ari(layers, mask_BL)
    for k, name in enumerate(TASKS):
        parts = [weights[k, layer] * normed(norms, layer, layers[layer]) for layer in range(NUM_LAYERS + 1)]
        torch.testing.assert_close(frames[name], (NUM_LAYERS + 1) * sum(parts))


@pytest.mark.parametrize("form", ["task", "dense+task"])
def test_task_is_the_definition(form: AriForm, layers: tuple[Tensor, ...], mask_BL: Tensor) -> None:
    ari = perturbed(form)
    norms = ari.get_submodule("integration.norms")
    assert isinstance(norms, nn.ModuleList)
    a = ari.get_parameter("integration.task_scalars")
    frames = ari(layers, mask_BL)
    for k, name in enumerate(TASKS):
        expected = layers[NUM_LAYERS].clone()
        for layer in range(1, NUM_LAYERS):
            expected += a[k, layer - 1] * normed(norms, layer - 1, layers[layer])
        torch.testing.assert_close(frames[name], expected)


def test_gated_is_the_definition_with_the_mean_of_the_true_frames(layers: tuple[Tensor, ...], mask_BL: Tensor) -> None:
    ari = perturbed("gated")
    norms = ari.get_submodule("integration.norms")
    assert isinstance(norms, nn.ModuleList)
    u, b = ari.get_parameter("integration.gate_vectors"), ari.get_parameter("integration.gate_scalars")
    frames = ari(layers, mask_BL)
    for k, name in enumerate(TASKS):
        for row, length in enumerate((5, 3)):
            expected = layers[NUM_LAYERS][row].clone()
            for layer in range(1, NUM_LAYERS):
                frames_LD = normed(norms, layer - 1, layers[layer][row])
                gate = torch.tanh(u[k] @ frames_LD[:length].mean(0) + b[k, layer - 1])
                expected += gate * frames_LD
            torch.testing.assert_close(frames[name][row], expected)


@pytest.mark.parametrize("form", ["dense", "dense+task"])
def test_dense_is_the_definition(form: AriForm, layers: tuple[Tensor, ...]) -> None:
    ari = perturbed(form)
    norms = ari.get_submodule("dense.norms")
    assert isinstance(norms, nn.ModuleList)
    c = ari.get_parameter("dense.dense_scalars")

    def run(steps: Sequence[nn.Linear], start: Tensor) -> tuple[Tensor, Tensor]:
        mix = ari.layer_mix()
        assert mix is not None
        ours, naive = [start], [start]
        for layer, step in enumerate(steps, start=1):
            ours.append(mix(layer, ours, step(ours[-1])))
            g = step(naive[-1])
            for j in range(layer):
                g = g + c[layer - 1, j] * normed(norms, j, naive[j])
            naive.append(g)
        return ours[-1], naive[-1]

    torch.manual_seed(3)
    steps = [nn.Linear(WIDTH, WIDTH) for _ in range(NUM_LAYERS)]
    for start in layers[:2]:  # a second pass must not see the first one's frames
        ours, naive = run(steps, start)
        torch.testing.assert_close(ours, naive)


def test_only_the_dense_forms_mix_layers() -> None:
    mixing = [form for form in FORMS if build_ari(form, NUM_LAYERS, WIDTH, TASKS).layer_mix() is not None]
    assert mixing == ["dense", "dense+task"]


@pytest.mark.parametrize("form", FORMS)
def test_coefficients_have_a_row_per_task_and_a_column_per_layer(form: AriForm) -> None:
    ari = perturbed(form)
    maps = ari.coefficients()
    assert maps["task"].shape == (len(TASKS), NUM_LAYERS + 1)
    assert not any(values.requires_grad for values in maps.values())
    if form == "task":
        assert torch.equal(maps["task"][:, 1:-1], ari.get_parameter("integration.task_scalars"))
    if form in SUMS:
        torch.testing.assert_close(maps["task"].sum(1), torch.ones(len(TASKS)))
    else:
        assert torch.equal(maps["task"][:, -1], torch.ones(len(TASKS)))
        assert torch.equal(maps["task"][:, 0], torch.zeros(len(TASKS)))
    if "dense" in form:
        assert maps["dense"].shape == (NUM_LAYERS, NUM_LAYERS)
        assert torch.equal(maps["dense"], maps["dense"].tril())
        assert maps["dense"][-1].abs().min() > 0
    else:
        assert set(maps) == {"task"}


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("none", set()),
        ("weighted_sum", {"integration.mix_scalars"}),
        ("normed_weighted_sum", {"integration.mix_scalars"}),
        ("task", {"integration.task_scalars"}),
        ("dense", {"dense.dense_scalars"}),
        ("gated", {"integration.gate_scalars"}),
        ("dense+task", {"dense.dense_scalars", "integration.task_scalars"}),
    ],
)
def test_scalars_are_told_from_norms_and_vectors(form: AriForm, names: set[str]) -> None:
    assert set(build_ari(form, NUM_LAYERS, WIDTH, TASKS).scalar_parameters()) == names


@pytest.mark.parametrize("form", [form for form in FORMS if form != "none"])
def test_scalars_learn_from_their_zero_start(form: AriForm, layers: tuple[Tensor, ...], mask_BL: Tensor) -> None:
    ari = build_ari(form, NUM_LAYERS, WIDTH, TASKS)
    mix = ari.layer_mix()
    if mix is not None:
        mixed = [layers[0]]
        for layer in range(1, NUM_LAYERS + 1):
            mixed.append(mix(layer, mixed, layers[layer]))
        layers = tuple(mixed)
    sum(frames.square().sum() for frames in ari(layers, mask_BL).values()).backward()
    for name, scalars in ari.scalar_parameters().items():
        assert scalars.grad is not None and scalars.grad.abs().sum() > 0, name


@pytest.mark.parametrize("form", FORMS)
def test_reset_returns_to_the_start(form: AriForm, layers: tuple[Tensor, ...], mask_BL: Tensor) -> None:
    ari = perturbed(form)
    ari.reset_coefficients()
    fresh = build_ari(form, NUM_LAYERS, WIDTH, TASKS)
    if form == "normed_weighted_sum":
        # Its norms, which are no coefficients, are seen from the start.
        fresh.get_submodule("integration.norms").load_state_dict(ari.get_submodule("integration.norms").state_dict())
    torch.testing.assert_close(ari(layers, mask_BL), fresh(layers, mask_BL))


@pytest.mark.parametrize("form", ["task", "gated", "dense+task"])
def test_forms_over_inner_layers_refuse_a_single_layer(form: AriForm) -> None:
    with pytest.raises(ConfigError, match=r"'.*' needs an encoder of at least 2 layers, got 1; choose"):
        build_ari(form, 1, WIDTH, TASKS)


@pytest.mark.parametrize("form", ["task", "gated"])
def test_autocast_moves_the_mixture_a_little(form: str) -> None:
    torch.manual_seed(0)
    ari = build_ari(form, 4, 32, ["a", "b"])
    with torch.no_grad():
        for parameter in ari.parameters():
            parameter.add_(torch.randn_like(parameter))
    # Layers of large encoders have a few values of hundreds.
    layers = tuple(100 * torch.randn(2, 7, 32) for _ in range(5))
    mask_BL = torch.arange(7) < torch.tensor([[7], [4]])
    exact = ari(layers, mask_BL)["a"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = ari(layers, mask_BL)["a"]
    change = (half.float() - exact)[mask_BL].square().mean().sqrt() / (exact - layers[-1])[
        mask_BL
    ].square().mean().sqrt()
    assert 0 < change < 0.02
