"""Networks: the published sizes, folding, pruned shapes."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.networks import Spec, build, build_with, fold_batchnorm
from lowenergy.networks.foreign import same
from lowenergy.networks.inputconv import InputConv2d
from lowenergy.networks.zoo import resnet
from lowenergy.params import architecture

STUDY = Spec("resnet18", 64, "7x7", "swish", "none", channels=1, image_size=28, outputs=10, head="mean")
ALL = ("resnet18", "resnet10", "resnet20", "resnet8", "cnn", "strided", "compact", "shallow", "residual", "unet")


def parameters(spec: Spec) -> int:
    return sum(w.numel() for w in build(spec, seed=0).parameters())


def test_the_studys_resnet18_has_its_published_size() -> None:
    assert parameters(STUDY) == 11_170_570


def test_torchvisions_resnet18_has_the_same_size() -> None:
    from torchvision.models import resnet18

    spec = replace(STUDY, norm="batch", channels=3, image_size=64, outputs=1000, activation="relu")
    assert parameters(spec) == sum(w.numel() for w in resnet18().parameters())


@pytest.mark.parametrize(
    ("student", "published"),
    [
        ({"name": "resnet18", "width": 32}, 2_795_925),
        ({"name": "resnet20", "width": 16, "stem": "3x3"}, 270_725),
        ({"name": "strided", "width": 16}, 77_004),
        ({"name": "strided", "width": 12}, 43_452),
        ({"name": "strided", "width": 8}, 19_436),
        ({"name": "shallow", "width": 8}, 2_412),
    ],
)
def test_the_studys_students_are_about_as_large_as_published(student: dict, published: int) -> None:
    assert parameters(replace(STUDY, outputs=1, **student)) == pytest.approx(published, rel=0.12)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("stem", ["7x7", "5x5", "3x3", "3x3-pool"])
def test_every_architecture_takes_every_size(name: str, size: int, stem: str) -> None:
    spec = Spec(name, 4, stem, "swish", "batch", channels=3, image_size=size, outputs=7)
    assert build(spec, seed=0)(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, c = (build(replace(STUDY, name="cnn", width=8), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.fc.weight, b.fc.weight)
    assert not torch.equal(a.fc.weight, c.fc.weight)


@pytest.mark.parametrize("name", ALL)
def test_folding_batchnorm_keeps_the_function(name: str) -> None:
    network = build(Spec(name, 8, "3x3", "relu", "batch", 1, 8, 5), seed=0)
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.rand(16, 1, 8, 8))
    images = torch.rand(4, 1, 8, 8)
    folded = fold_batchnorm(network.eval())
    assert folded.spec.norm == "none"
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-5)


def test_what_the_logits_of_a_unet_share_is_an_energy_and_no_class() -> None:
    network = build(Spec("unet", 4, "3x3", "swish", "none", channels=3, image_size=16, outputs=5), seed=0)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    features, shared = network.features(images)
    assert features.shape == (3, 16) and shared.shape == (3, 1)
    before = network(images)
    torch.testing.assert_close(before, network.fc(features) + shared)
    network.features[0].draw.conv.weight.data *= 2
    after = network(images)
    assert (after - before).abs().min() > 0.01
    torch.testing.assert_close(after.softmax(1), before.softmax(1))


@pytest.mark.parametrize("name", ["shallow", "unet"])
def test_exporters_see_every_layer(name: str) -> None:
    """A part of the graph by itself, such as autocast leaves, would hide the last layer from quantizers."""
    network = build(replace(STUDY, name=name, width=4, image_size=8), seed=0).eval()
    graph = torch.export.export(network, (torch.zeros(2, 1, 8, 8),)).graph
    found = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    layers = networks.coded_layers(network).values()
    assert found.count("aten.conv2d.default") == sum(isinstance(layer, nn.Conv2d) for layer in layers)
    assert found.count("aten.linear.default") == 1


def test_tensors_that_do_not_fit_together_are_refused() -> None:
    network = build(replace(STUDY, name="cnn", width=8), seed=0)
    state = dict(network.state_dict())
    state["fc.weight"] = state["fc.weight"][:, :-1]
    with pytest.raises(ValueError, match="do not fit architecture cnn"):
        build_with(network.spec, state)


def test_coded_layers_come_in_forward_order() -> None:
    names = list(networks.coded_layers(build(STUDY, seed=0)))
    assert names[0] == "features.0.conv" and names[-1] == "fc"
    assert len(names) == 21


@given(
    channels=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5, 7]),
    height=st.integers(4, 11),
    width=st.integers(4, 11),
    seed=st.integers(0, 2**31),
)
def test_the_fast_input_gradient_is_the_gradient(
    channels: int, kernel: int, height: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    fast = InputConv2d(channels, 4, kernel, 2, kernel // 2).double()
    x = torch.randn(2, channels, height, width, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(fast(x), nn.Conv2d.forward(fast, x))
    inputs = (x, fast.weight, fast.bias)
    weights = torch.randn_like(fast(x))
    wanted = torch.autograd.grad((nn.Conv2d.forward(fast, x) * weights).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad((fast(x) * weights).sum(), inputs), wanted)


def test_the_fast_input_gradient_has_gradients_of_its_own() -> None:
    """Flow regression differentiates the score with respect to the weights."""
    torch.manual_seed(0)
    fast = InputConv2d(1, 2, 5, 2, 2).double()
    x = torch.randn(1, 1, 6, 6, dtype=torch.double, requires_grad=True)

    def squared(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional_call(fast, {"weight": weight}, (x,)).square()

    assert torch.autograd.gradgradcheck(squared, (x, fast.weight.detach().requires_grad_()))


def test_what_the_zoo_does_not_have() -> None:
    spec = Spec("cnn", 4, "3x3", "swish", "none", channels=1, image_size=8, outputs=2)
    for name in ("blocks", "resnet9", "nothing"):
        with pytest.raises(UserError, match=f"{name} is no network of the zoo"):
            build(replace(spec, name=name), seed=0)
    assert {*architecture.RESNETS} == resnet.RESNETS.keys(), "params names them without importing torch"
    with pytest.raises(KeyError, match="sine"):  # not: no network
        build(replace(spec, activation="sine"), seed=0)


def test_tensors_of_other_shapes_are_not_the_same() -> None:
    assert not same(torch.zeros(1, 3), torch.zeros(2, 3)) and not same(torch.zeros(2), torch.zeros(3))
    assert same(torch.tensor([math.nan, 1.0]), torch.tensor([math.nan, 1.0]))
