"""The gradient as a graph is autograd's, for every layer that a network can have; onnxruntime computes it the same."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.energies import HEADS, ExplicitEnergy, energy_gradient, energy_of
from lowenergy.energies.gradient import gradient_graph
from lowenergy.networks.zoo.blocks import ACTIVATIONS
from lowenergy.runtimes import int8, loading, sampling
from lowenergy.storage import artifact

SPEC = networks.Spec("cnn", 4, "3x3", "swish", "none", channels=1, image_size=9, outputs=6, head="mean")
SPECS = [
    *(
        replace(SPEC, name=name, image_size=size)
        for name, size in product(("cnn", "strided", "compact", "resnet8", "unet"), (8, 9, 13))
    ),
    *(replace(SPEC, name="resnet10", stem=stem, channels=3, image_size=17) for stem in ("7x7", "5x5", "3x3-pool")),
    replace(SPEC, name="residual", stem="5x5", channels=3, image_size=17),
    *(replace(SPEC, activation=activation) for activation in ACTIVATIONS),
    replace(SPEC, norm="batch"),
    replace(SPEC, head="logsumexp"),
    replace(SPEC, head="scalar", outputs=1),
]


def images_for(shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(5, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def assert_same_gradient(network: nn.Module, head: str, images: Tensor) -> None:
    energies, wanted = energy_gradient(energy_of(network, head), images)
    graph = gradient_graph(network, head, tuple(images.shape[1:]))  # type: ignore[arg-type]
    for batch in (images, images[:1]):  # its batch size is free
        with torch.no_grad():
            logits, gradient = graph(batch)
        n = len(batch)
        torch.testing.assert_close(HEADS[head](logits), energies[:n], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient, wanted[:n], rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.name}-{s.stem}-{s.image_size}-{s.activation}-{s.head}")
def test_equals_autograd(spec: networks.Spec) -> None:
    assert spec.head is not None
    assert_same_gradient(networks.build(spec, seed=0).eval(), spec.head, images_for(spec.input_shape))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("mobilenet_v3_small", {}),  # depthwise, squeeze and excitation, hardswish
        ("convnext_tiny", {}),  # layer norm, gelu, layer scale
    ],
)
def test_equals_autograd_on_networks_from_elsewhere(name: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(num_classes=10, **arguments).eval()
    assert_same_gradient(network, "logsumexp", images_for((3, 32, 32)))


def odd_layers() -> nn.Module:
    """Grouped, dilated, transposed, strided without padding, normalised: what no network of the zoo has."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, padding=1),
        nn.Softplus(),
        nn.Conv2d(8, 8, 3, dilation=2, padding=2),
        nn.GroupNorm(2, 8),
        nn.Tanh(),
        nn.Conv2d(8, 6, 4, stride=2, padding=1),
        nn.ELU(),
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1),
        nn.LeakyReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


def test_equals_autograd_on_odd_layers() -> None:
    torch.manual_seed(0)
    network, images = odd_layers(), images_for((4, 10, 10))
    network(images)
    assert_same_gradient(network.eval(), "mean", images)


def test_a_graph_is_indifferent_to_how_tensors_lie_in_memory() -> None:
    network, images = networks.build(SPEC, seed=0).eval(), images_for(SPEC.input_shape)
    graph = gradient_graph(network, "mean", SPEC.input_shape)
    wanted = graph(images)[1]
    network.to(memory_format=torch.channels_last)  # the graph's parameters are the network's
    torch.testing.assert_close(graph(images.contiguous(memory_format=torch.channels_last))[1], wanted)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_the_gradient_of_one_image_does_not_depend_on_how_it_lies_in_memory(norm: Any, training: bool) -> None:
    """Behind attention, a batch of one has other strides; torch 2.15 read batch norms' gradients by them."""
    generator = torch.Generator().manual_seed(0)
    layer = norm(16, affine=True, track_running_stats=True, dtype=torch.double).train(training)
    with torch.no_grad():
        for value in (layer.weight, layer.running_mean, layer.running_var):
            value.uniform_(0.5, 2, generator=generator)
    values, slopes = torch.randn(2, 1, 16, 3, 3, dtype=torch.double, generator=generator)

    def laid_out(value: Tensor, strides: tuple[int, ...]) -> Tensor:
        return torch.empty_strided(value.shape, strides, dtype=value.dtype).copy_(value)

    orders = ((144, 9, 3, 1), (144, 1, 48, 16), (16, 1, 48, 16), (7, 9, 3, 1))
    found = []
    for x, slope in product(orders, orders):
        images = laid_out(values, x).requires_grad_()
        (gradient,) = torch.autograd.grad(layer(images), images, laid_out(slopes, slope))
        found.append(gradient)
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0])
    if not training:
        factor = layer.weight / (layer.running_var + layer.eps).sqrt()
        torch.testing.assert_close(found[0], (slopes * factor.view(-1, 1, 1)).detach())


def test_int8_scales_move_to_the_gradient_and_change_nothing() -> None:
    network, images = networks.build(SPEC, seed=0).eval(), images_for(SPEC.input_shape)
    graph = gradient_graph(network, "mean", SPEC.input_shape)
    wanted = graph(images)[1]
    before = graph.code
    int8.move_scales(graph, {k: int8.best_scale(m.weight, 8) for k, m in networks.coded_layers(network).items()})
    assert graph.code != before
    gradient = graph(images)[1]
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_a_sampler_takes_the_graphs_gradient() -> None:
    network, images = networks.build(SPEC, seed=0).eval(), images_for(SPEC.input_shape)
    explicit = ExplicitEnergy(network, lambda x: (network(x), torch.full_like(x, 7.0)), "mean")
    energies, gradient = energy_gradient(explicit, images)
    assert (gradient == 7).all() and not gradient.requires_grad
    torch.testing.assert_close(energies, network(images).mean(1))


@pytest.mark.slow
def test_onnxruntime_computes_the_same_and_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(SPEC, name="strided", image_size=28)
    model = artifact.dense(networks.build(spec, seed=0).eval(), "ebm")
    network = loading.network_of(model)
    few, many = (sampling.fastest(model, network, images=count) for count in (1, 10**8))
    assert not isinstance(few, ExplicitEnergy) and isinstance(many, ExplicitEnergy)
    images = torch.rand(70, *spec.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    energies, gradient = energy_gradient(many, images)
    wanted_energies, wanted = energy_gradient(few, images)
    torch.testing.assert_close(energies, wanted_energies, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
    # The same bytes however many threads there are, and whichever images are asked for together.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    again = energy_gradient(sampling.in_onnxruntime(model, network), images)[1]
    assert torch.equal(again, gradient)
    assert torch.equal(energy_gradient(many, images[:32])[1], gradient[:32])


class WithSlope(nn.Module):
    """An energy and the square of its own slope, whose gradient writes in place within torch, and has no export."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.net(x)
            (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return energy + slope.square().flatten(1).sum(1, keepdim=True)


def test_a_gradient_within_the_forward_pass_is_traced() -> None:
    torch.manual_seed(0)
    assert_same_gradient(WithSlope().eval(), "scalar", images_for((1, 4, 4)))


def test_what_cannot_be_traced_is_said_in_one_line() -> None:
    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    with pytest.raises(UserError, match="the gradient of this network cannot be traced: ") as error:
        gradient_graph(Fickle(), "mean", (1, 4, 4))
    assert len(str(error.value).splitlines()) == 1
