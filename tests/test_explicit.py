"""The explicit input gradient is the autograd one, for every layer that a network can have."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.energies import HEADS, ExplicitEnergy, energy_gradient, energy_of
from lowenergy.energies.gradient import Explicit
from lowenergy.runtimes import int8

SPEC = networks.Spec("cnn", 4, "3x3", "swish", "none", channels=1, image_size=9, outputs=6, head="mean")
SPECS = [
    *(
        replace(SPEC, name=name, image_size=size)
        for name, size in product(("cnn", "strided", "compact", "resnet8"), (8, 9, 13))
    ),
    *(replace(SPEC, name="resnet10", stem=stem, channels=3, image_size=17) for stem in ("7x7", "3x3", "3x3-pool")),
    *(replace(SPEC, activation=activation) for activation in networks.ACTIVATIONS),
    replace(SPEC, head="logsumexp"),
    replace(SPEC, head="scalar", outputs=1),
]


def images_for(spec: networks.Spec) -> Tensor:
    return torch.rand(5, *spec.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.name}-{s.stem}-{s.image_size}-{s.activation}-{s.head}")
def test_equals_autograd(spec: networks.Spec) -> None:
    network, images = networks.build(spec, seed=0).eval(), images_for(spec)
    energies, wanted = energy_gradient(energy_of(network, spec.head), images)
    with torch.no_grad():
        logits, gradient = Explicit(network)(images)
    torch.testing.assert_close(HEADS[spec.head](logits), energies)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_int8_scales_move_to_the_gradient_and_change_nothing() -> None:
    network, images = networks.build(SPEC, seed=0).eval(), images_for(SPEC)
    wanted = Explicit(network)(images)[1]
    for layer in networks.coded_layers(network).values():
        layer.register_buffer("scale", int8.best_scale(layer.weight, 8), persistent=False)
    gradient = Explicit(network)(images)[1]
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_a_sampler_takes_the_graphs_gradient() -> None:
    network, images = networks.build(SPEC, seed=0).eval(), images_for(SPEC)
    explicit = ExplicitEnergy(network, lambda x: (network(x), torch.full_like(x, 7.0)), "mean")
    energies, gradient = energy_gradient(explicit, images)
    assert (gradient == 7).all() and not gradient.requires_grad
    torch.testing.assert_close(energies, network(images).mean(1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda n: n.features.insert(2, nn.Softplus()), r"layer features\.2: a Softplus has no pullback"),
        (lambda n: n.features.append(nn.Conv2d(16, 16, 3, groups=2)), r"layer features\.\d+: only plain convolutions"),
        (lambda n: setattr(n, "fc", nn.Bilinear(1, 1, 1)), "layer fc: a Bilinear has no pullback"),
    ],
)
def test_layers_without_a_pullback_are_named(spoil, message) -> None:
    network = networks.build(SPEC, seed=0)
    spoil(network)
    with pytest.raises(UserError, match=message):
        Explicit(network)
