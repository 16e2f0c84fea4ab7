"""Graphs do what their networks do, whatever a network does with its layers; what does not is refused by name."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import only, with_changes
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from test_gradient import assert_same_gradient
from torch import Tensor, nn
from torch.nn import functional as F

import lowenergy
from lowenergy import data, energies, networks, params, targets
from lowenergy.base.errors import UserError
from lowenergy.compression import quantize
from lowenergy.energies import energy_of, logits_and_gradient
from lowenergy.energies.gradient import gradient_graph
from lowenergy.networks import Foreign, Spec
from lowenergy.params import recipes
from lowenergy.runtimes import int8
from lowenergy.storage import artifact
from lowenergy.storage.encodings import Int8
from lowenergy.training import Run, chance
from stages import compress


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def taken_in(body: nn.Module, channels: int = 1, head: str | None = None) -> Foreign:
    """As if from a user's file, with weights, and norms with statistics, of their own."""
    for seed, module in enumerate(body.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.running_mean, module.running_var = (
                random(module.num_features, seed=seed),
                random(module.num_features, seed=seed + 99) + 1.5,
            )
            if module.affine:
                module.weight.data, module.bias.data = (random(module.num_features, seed=seed + s) + 1 for s in (1, 2))
    network = Foreign(Spec("own.py:Net", channels=channels, image_size=8, outputs=4, head=head), body).eval()
    network.find_layers()
    return network


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach() - wanted.detach()).norm() / wanted.detach().norm())


class Net(nn.Module):
    """Two convolutions, with what is under test between them."""

    def __init__(self, between: Callable[["Net", Tensor], Tensor] | None = None, **layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.fc = nn.LazyLinear(4)
        self.eval()(torch.zeros(2, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        x = self.between(self, x) if self.between else self.b(x)
        return self.fc(F.silu(x).flatten(1))


# -- norms ------------------------------------------------------------------------------------------------------------


class Scaled(nn.Conv2d):
    """Its weight is computed."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight / self.weight.std(), self.bias, padding=1)


class Unbiased(nn.Conv2d):
    """Takes no notice of a bias that it is given."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight, None, padding=1)


def conv(kind: Any = nn.Conv2d, **more: Any) -> Any:
    return kind(8, 8, 3, padding=1, **more)


def tied(first: Any, second: Any) -> Any:
    second.weight = first.weight
    return second


def norm2(**more: Any) -> nn.Module:
    return nn.BatchNorm2d(8, **more)


def twice_with_two(n: Any, x: Tensor) -> Tensor:
    return n.m(n.c(x)) + n.n(n.c(F.avg_pool2d(x, 2).repeat(1, 1, 2, 2)))


def plainly(n: Any, x: Tensor) -> Tensor:
    return n.n(n.c(x))


shared = conv()
# What stands between the convolutions, its layers, and how many of its norms go.
NORMS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "a convolution called twice, two norms": (twice_with_two, {"c": conv(), "m": norm2(), "n": norm2()}, 0),
    "a convolution called twice, one norm": (lambda n, x: n.n(n.c(x)) + n.c(x), {"c": conv(), "n": norm2()}, 0),
    "a norm called twice": (lambda n, x: n.n(n.c(x)) + n.n(n.d(x)), {"c": conv(), "d": conv(), "n": norm2()}, 0),
    "tied weights": (lambda n, x: n.n(n.c(x)) + n.d(x), {"c": shared, "d": tied(shared, conv()), "n": norm2()}, 0),
    "an output used elsewhere": (lambda n, x: n.n(y := n.c(x)) + y, {"c": conv(), "n": norm2()}, 0),
    "a bias used elsewhere": (lambda n, x: n.n(n.c(x)) + n.c.bias[:, None, None], {"c": conv(), "n": norm2()}, 0),
    "statistics used elsewhere": (lambda n, x: n.n(n.c(x)) * n.n.running_var.mean(), {"c": conv(), "n": norm2()}, 0),
    "no statistics": (plainly, {"c": conv(), "n": norm2(track_running_stats=False)}, 0),
    "a computed weight": (plainly, {"c": conv(Scaled), "n": norm2()}, 0),
    "a norm before": (lambda n, x: n.c(n.n(x)), {"c": conv(), "n": norm2()}, 0),
    "folding would change it": (plainly, {"c": conv(Unbiased, bias=False), "n": norm2()}, 0),
    "plain": (plainly, {"c": conv(bias=False), "n": norm2()}, 1),
    "frozen": (plainly, {"c": conv().requires_grad_(False), "n": norm2().requires_grad_(False)}, 1),
    "no affine part": (plainly, {"c": conv(), "n": norm2(affine=False)}, 1),
    "grouped": (plainly, {"c": conv(groups=4), "n": norm2()}, 1),
    "padding by name": (plainly, {"c": nn.Conv2d(8, 8, 3, padding="same"), "n": norm2()}, 1),
    "transposed": (plainly, {"c": conv(nn.ConvTranspose2d, groups=2, bias=False), "n": norm2()}, 1),
    "written in place behind": (lambda n, x: F.relu_(n.n(n.c(x))), {"c": conv(), "n": norm2()}, 1),
    "a layer of two names": (lambda n, x: n.s(x), {"c": (c := conv()), "s": nn.Sequential(c, norm2())}, 1),
    "after a linear layer": (
        lambda n, x: n.n(n.c(x.flatten(1))), {"c": nn.Linear(512, 8), "n": nn.BatchNorm1d(8)}, 1,
    ),
    "after a linear layer, over rows": (
        lambda n, x: n.n(n.c(x.flatten(2))), {"c": nn.Linear(64, 8), "n": nn.BatchNorm1d(8)}, 0,
    ),
    "in one dimension": (
        lambda n, x: n.n(n.c(x.flatten(2))), {"c": nn.Conv1d(8, 8, 3, bias=False), "n": nn.BatchNorm1d(8)}, 1,
    ),
    "in three": (
        lambda n, x: n.n(n.c(x[:, :, None])), {"c": nn.Conv3d(8, 8, (1, 3, 3), bias=False), "n": nn.BatchNorm3d(8)}, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NORMS)
def test_folding_keeps_the_function_and_files_can_be_read(case: str) -> None:
    between, layers, gone = copy.deepcopy(NORMS[case])
    network, images = taken_in(Net(between, **layers)), random(6, 1, 8, 8)
    body = copy.deepcopy(network.body)
    folded = networks.fold_batchnorm(network, images)
    assert distance(folded(images), network(images)) < 1e-4
    assert len(networks.batchnorms(network)) - len(networks.batchnorms(folded)) == gone
    again = networks.build_with(replace(folded.spec, given=networks.Given(body)), artifact.weights(folded))
    assert torch.equal(again(images), folded(images))
    assert {p.requires_grad for p in folded.a.parameters()} == {True} if hasattr(folded, "a") else True


def test_only_the_norms_that_would_change_the_answers_stay() -> None:
    layers = {f"c{i}": conv(Unbiased if i == 2 else nn.Conv2d, bias=False) for i in range(5)}
    layers |= {f"n{i}": norm2() for i in range(5)}

    def between(n: Any, x: Tensor) -> Tensor:
        for i in range(5):
            x = F.silu(getattr(n, f"n{i}")(getattr(n, f"c{i}")(x)))
        return x

    network, images = taken_in(Net(between, **layers)), random(4, 1, 8, 8)
    folded = networks.fold_batchnorm(network)  # on images of its own
    assert list(networks.batchnorms(folded)) == ["body.n2"]
    assert distance(folded(images), network(images)) < 1e-4


def test_norms_of_the_zoo_stay_where_they_cannot_go() -> None:
    network, images = networks.build(Spec("cnn", 4, "3x3", "relu", "batch", 1, 8, 3), seed=0).eval(), random(4, 1, 8, 8)
    assert not networks.batchnorms(networks.fold_batchnorm(network, images))
    network.features[0].norm.running_var.fill_(-1)  # as after a diverged training
    assert networks.batchnorms(networks.fold_batchnorm(network, images))


@given(st.integers(3, 60), st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_refreshed_statistics_are_those_of_all_images(count: int, batch_size: int) -> None:
    images = random(count, 3, 2, 2, seed=count) * torch.arange(1, count + 1).view(-1, 1, 1, 1)  # none like the others
    for norm, seen in ((nn.BatchNorm2d(3), images), (nn.BatchNorm1d(3), images.flatten(2)), (nn.BatchNorm1d(12), None)):
        seen = images.flatten(1) if seen is None else seen
        network = nn.Sequential(norm).eval()
        networks.refresh_batchnorm(network, seen, batch_size)
        variance, mean = torch.var_mean(seen, [0, *range(2, seen.ndim)])
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, variance)
        assert norm.momentum == 0.1 and not norm.training


@pytest.mark.parametrize("count", [250, 251, 252, 499, 501])
def test_one_image_more_changes_deep_statistics_no_more_than_an_image_can(count: int) -> None:
    network = networks.build(Spec("resnet8", 8, "3x3", "relu", "batch", 1, 8, 10), seed=0).eval()
    images = random(501, 1, 8, 8) + random(501, 1, 1, 1, seed=1)

    def refreshed(images: Tensor, batch_size: int) -> Tensor:
        net = copy.deepcopy(network)
        networks.refresh_batchnorm(net, images, batch_size)
        norms = networks.batchnorms(net).values()
        return torch.cat([torch.cat([n.running_mean / n.running_var.sqrt(), n.running_var.log()]) for n in norms])

    assert float((refreshed(images[:count], 250) - refreshed(images[:count], 501)).abs().max()) < 0.05


def test_a_single_value_has_no_statistics() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3))
    networks.refresh_batchnorm(network, random(5, 3), batch_size=1)
    before = network[0].running_mean.clone()
    with pytest.raises(UserError, match="0 sees one value of each channel") as error:
        networks.refresh_batchnorm(network, random(1, 3))
    assert len(str(error.value).splitlines()) == 1
    assert torch.equal(network[0].running_mean, before) and not network.training and network[0].momentum == 0.1
    networks.refresh_batchnorm(nn.Sequential(nn.BatchNorm2d(3)), random(1, 3, 2, 2))


def test_norms_that_are_not_called_or_have_no_statistics_are_left_alone() -> None:
    network = Net(lambda n, x: n.n(x), n=norm2(track_running_stats=False), idle=norm2())
    network.idle.running_mean.fill_(7)
    networks.refresh_batchnorm(network, random(6, 1, 8, 8))
    assert (network.idle.running_mean == 7).all()


# -- what is written in place -----------------------------------------------------------------------------------------


def crossed(n: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :4] = x[:, 4:]
    y[:, 4:] = x[:, :4]
    return n.b(y)


def added(n: Any, x: Tensor) -> Tensor:
    y = n.b(x)
    y += x * 1
    y.mul_(2)
    return n.b(y)


def through_a_view(n: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y.view(len(x), -1)[:, :64].zero_()
    return n.b(y)


def masked(n: Any, x: Tensor) -> Tensor:
    y, z = x.clone(), n.b(x)
    y[y > 0.1] = 0
    y[:, [0, 3, 5]] = 0.5
    return n.b(y) + F.relu_(z) + z


def copied(n: Any, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y.copy_(n.b(x)).sub_(1)
    return n.b(y)


def without_gradient(n: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = n.b(x)
        y[:, :4] = 0
    return y * x + x.detach()


WRITES = [crossed, added, through_a_view, masked, copied, without_gradient]


@pytest.mark.parametrize("between", WRITES)
def test_graphs_know_what_is_written_in_place(between: Any) -> None:
    network, images = taken_in(Net(between)), random(5, 1, 8, 8)
    layers = networks.coded_layers(network)
    scales = {name: int8.best_scale(layer.weight, 8) for name, layer in layers.items()}
    prepared = int8.prepare(network, scales, dict.fromkeys(scales, 8))
    int8.check(prepared, network, images)
    assert not [n for n in prepared.graph.nodes if networks.graphs.writes(n)]
    prepared(images)
    int8.freeze(prepared)
    int8.round_only(prepared, scales)
    assert {place.layer for place in int8.places(prepared)} == scales.keys()
    assert 0 < distance(prepared(images), network(images)) < 0.05


@pytest.mark.parametrize("between", WRITES)
def test_gradient_graphs_know_it_too(between: Any) -> None:
    network, images = taken_in(Net(between)), random(5, 1, 8, 8)
    graph = gradient_graph(network, "logsumexp", (1, 8, 8))
    for found, wanted in zip(graph(images), logits_and_gradient(network, "logsumexp", images), strict=True):
        assert distance(found, wanted) < 1e-4


def test_what_nobody_else_sees_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def between(n: Any, x: Tensor) -> Tensor:
        y = F.relu_(n.n(n.b(x)))
        y += x
        return F.dropout(F.hardswish(y, inplace=True).flatten(1), 0.5, n.training, inplace=True)

    network, images = taken_in(Net(between, n=norm2())), random(5, 1, 8, 8)
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", None)
    program = networks.traced(network)
    assert not [n for n in program.graph.nodes if networks.graphs.writes(n) or "batch_norm" in str(n.target)]
    assert distance(program.module(check_guards=False)(images), network(images)) < 1e-6


@pytest.mark.parametrize("shared", [lambda y: y, lambda y: y.contiguous(), lambda y: y.flatten(2), F.silu])
def test_what_another_sees_is_not_taken_for_fresh(shared: Any) -> None:
    def between(n: Any, x: Tensor) -> Tensor:
        y = n.b(x)
        F.relu_(shared(y))
        return y.flatten(2)

    network, images = taken_in(Net(between)), random(5, 1, 8, 8)
    assert distance(networks.traced(network).module(check_guards=False)(images), network(images)) < 1e-6


def test_a_mean_over_images_is_one_wherever_they_lie() -> None:
    def between(n: Any, x: Tensor) -> Tensor:
        x = n.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # channels last, as ConvNeXt has them
        return F.adaptive_avg_pool2d(x, 1)

    graph = gradient_graph(taken_in(Net(between, norm=nn.LayerNorm(8))), "mean", (1, 8, 8))
    assert not [n for n in graph.graph.nodes if "strided" in str(n.target)]


def test_what_autograd_cannot_do_is_said_in_one_line() -> None:
    def between(n: Any, x: Tensor) -> Tensor:
        y = x.exp()
        y += 1
        return y

    with pytest.raises(UserError, match="the gradient of this network cannot be computed: ") as error:
        gradient_graph(taken_in(Net(between)), "mean", (1, 8, 8))
    assert len(str(error.value).splitlines()) == 1


# -- graphs that are not the network ----------------------------------------------------------------------------------


def test_a_graph_that_differs_is_refused_with_operation_and_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = taken_in(Net()), random(5, 1, 8, 8)
    scales = {name: int8.best_scale(layer.weight, 8) for name, layer in networks.coded_layers(network).items()}
    prepared = int8.prepare(network, scales, dict.fromkeys(scales, 8))
    second = [node for node in prepared.graph.nodes if node.target is torch.ops.aten.silu.default][1]
    second.target = torch.ops.aten.gelu.default
    prepared.recompile()
    before = [(m.min_val.clone(), m.max_val.clone()) for m in prepared.modules() if hasattr(m, "min_val")]
    with pytest.raises(
        UserError, match=r"own.py:Net: the graph to be quantized differs .* first at aten.gelu.default in body"
    ):
        int8.check(prepared, network, images)
    after = [(m.min_val, m.max_val) for m in prepared.modules() if hasattr(m, "min_val")]
    assert all(torch.equal(a, b) for pair in zip(before, after, strict=True) for a, b in zip(*pair, strict=True))
    # The same of a gradient, whose decomposition is wrong.
    monkeypatch.setitem(energies.gradient.PLAIN, torch.ops.aten.silu_backward.default, lambda g, x: g * x.sigmoid())
    with pytest.raises(UserError, match=r"the gradient graph differs .* first at aten.\w+.\w+ at body.\w+;"):
        gradient_graph(network, "mean", (1, 8, 8))


def test_gradients_that_jump_may_be_off_by_what_errors_of_rounding_do() -> None:
    network, images = taken_in(Net(lambda n, x: F.relu(n.b(x)))), random(3, 1, 8, 8)

    def energy(images: Tensor) -> Any:
        return logits_and_gradient(network, "mean", images)

    def jumping(images: Tensor) -> Tensor:  # 1 or 0 for a twentieth of the pixels, as rounding wills
        return 1 + ((images.flatten(1)[:, ::20] - wanted) > 0).float()

    wanted = images.flatten(1)[:, ::20]
    assert all(by < 1e-4 for by in networks.sensitivity(energy, images))
    (own,) = networks.sensitivity(jumping, images)
    assert own == networks.graphs.MOST

    def graph_off(by: float) -> Any:
        graph = torch.fx.symbolic_trace(nn.Identity())
        graph.forward = lambda images: jumping(images) * (1 + by)
        return graph

    def answers(_: nn.Module, images: Tensor) -> Tensor:
        return jumping(images)

    networks.check_same(graph_off(0.5 * own), network, images[:1], "it", answers)
    with pytest.raises(UserError, match="it differs from the network by 0.1"):
        networks.check_same(graph_off(2 * own), network, images[:1], "it", answers)


def test_double_precision_decides_where_errors_of_rounding_are_magnified() -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(1e7 * (x[:, 0] / 3 + x[:, 1] / 7 + x[:, 2]))

    class Reordered(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = by

        def forward(self, x: Tensor) -> Tensor:
            return self.by * torch.sin(1e7 * (x[:, 0] / 3 + (x[:, 1] / 7 + x[:, 2])))

    images = random(3, 3, 8, 8)
    same, other = (torch.fx.symbolic_trace(Reordered(by)) for by in (1.0, 1.01))
    assert (same(images) - Steep()(images)).norm() > networks.graphs.MOST * images.norm()
    networks.check_same(same, Steep(), images, "it")
    with pytest.raises(UserError, match="it differs from the network by"):
        networks.check_same(other, Steep(), images, "it")


def test_gradients_by_weights_are_compared_too() -> None:
    class Stopped(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.conv2d(input, self.weight.detach() if torch.compiler.is_compiling() else self.weight, padding=1)

    network = taken_in(Net(lambda n, x: n.c(x), c=conv(Stopped)))
    prepared = int8.prepare(network, {}, {})
    with pytest.raises(UserError, match=r"has gradients by body.c.weight that differ from the network's by 0\.\d+ of"):
        int8.check(prepared, network, random(5, 1, 8, 8))


def test_a_batch_size_that_is_not_free_is_said_in_one_line() -> None:
    def between(n: Any, x: Tensor) -> Tensor:
        return x if x.shape[0] == 2 else 2 * x

    network = taken_in(Net(between))
    with pytest.raises(UserError, match="its code takes the number of images for a constant") as error:
        int8.prepare(network, {}, {})
    assert len(str(error.value).splitlines()) == 1


# -- layers under many names, and in many forms -----------------------------------------------------------------------


def with_ties() -> Foreign:
    body = Net(lambda n, x: n.d(n.s(x)) + n.c(x), c=(first := conv()), d=tied(first, conv()), s=nn.Sequential(first))
    return taken_in(body, head="logsumexp")


def test_tied_weights_are_one_layer() -> None:
    network, images = with_ties(), random(5, 1, 8, 8)
    assert set(networks.coded_layers(network)) == {"body.a", "body.c", "body.fc"}  # b is not called
    scales = {name: int8.best_scale(layer.weight, 8) for name, layer in networks.coded_layers(network).items()}
    for gradient in (False, True):
        prepared = int8.prepare(network, scales, dict.fromkeys(scales, 8), gradient=gradient)
        assert {place.layer for place in int8.places(prepared)} == scales.keys()
        int8.check(prepared, network, images)


def test_asking_for_an_energy_leaves_a_network_with_ties_as_it_was() -> None:
    network, images = with_ties(), random(5, 1, 8, 8)
    before = dict(network.named_parameters(remove_duplicate=False))
    wanted, _ = energies.energy_gradient(energy_of(network, "logsumexp"), images)
    frozen = energy_of(network, "logsumexp", frozen=True)
    torch.testing.assert_close(energies.energy_gradient(frozen, images)[0], wanted)
    gradient_graph(network, "logsumexp", (1, 8, 8))
    after = dict(network.named_parameters(remove_duplicate=False))
    assert all(after[name] is before[name] for name in before) and after.keys() == before.keys()
    with torch.no_grad():
        network.body.c.weight.mul_(2)  # seen by the energy that takes weights as constants
    torch.testing.assert_close(frozen(images), energy_of(network, "logsumexp")(images))


def test_weights_used_otherwise_are_not_mistaken_for_pullbacks() -> None:
    """A weight turned, transposed or scaled by the network itself."""

    def between(n: Any, x: Tensor) -> Tensor:
        w = n.b.weight
        return n.b(x) + F.conv2d(x, w.flip(2), padding=1) + F.conv2d(x, 2 * w, padding=1) + n.c(x)

    network, images = taken_in(Net(between, c=nn.Conv2d(8, 8, 1)), head="mean"), random(5, 1, 8, 8)
    scales = {name: int8.best_scale(layer.weight, 8) for name, layer in networks.coded_layers(network).items()}
    for gradient, pulled in ((False, set()), (True, {"body.a", "body.b", "body.c", "body.fc"})):
        prepared = int8.prepare(network, scales, dict.fromkeys(scales, 8), gradient=gradient)
        int8.check(prepared, network, images)
        seen = [(place.layer, place.pulled) for place in int8.places(prepared)]
        assert {layer for layer, is_pulled in seen if is_pulled} == pulled
        assert sorted(layer for layer, is_pulled in seen if not is_pulled) == sorted(scales)


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.integers(1, 2),
    named=st.sampled_from(["same", "valid"]),
)
@settings(max_examples=25, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_padding_by_name_is_padding_in_numbers(kernel: tuple[int, int], dilation: int, named: str) -> None:
    x, w = random(2, 4, 9, 10), random(6, 2, *kernel)
    wanted = F.conv2d(x, w, None, 1, named, dilation, 2)
    found = networks.graphs._padded_in_numbers(x, w, None, [1], named, [dilation], 2)
    torch.testing.assert_close(found, wanted)


def test_padding_by_name_has_an_int8_form_in_both_directions() -> None:
    layers = {"c": nn.Conv2d(8, 8, 3, padding="same"), "d": nn.Conv2d(8, 8, (2, 3), padding="valid")}
    network, images = taken_in(Net(lambda n, x: n.d(n.c(x)), **layers), head="mean"), random(5, 1, 8, 8)
    scales = {name: int8.best_scale(layer.weight, 8) for name, layer in networks.coded_layers(network).items()}
    prepared = int8.prepare(network, scales, dict.fromkeys(scales, 8), gradient=True)
    int8.check(prepared, network, images)
    found = {(place.layer, place.pulled) for place in int8.places(prepared)}
    assert found == set(itertools.product(scales, (False, True)))


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(8, 4, 3, stride=2, groups=2), nn.Conv3d(8, 4, (1, 3, 3), padding=(0, 2, 0))]
)
def test_gradients_of_convolutions_of_other_dimensions(layer: nn.Module) -> None:
    def between(n: Any, x: Tensor) -> Tensor:
        return n.c(x.flatten(2) if isinstance(layer, nn.Conv1d) else x[:, :, None])

    assert_same_gradient(taken_in(Net(between, c=layer)), "mean", torch.rand(3, 1, 8, 8) * 2 - 1)


PLAIN: dict[str, Any] = {
    "average pooling": lambda n, x: F.avg_pool2d(x, 3, 2, 1),
    "of what is there": lambda n, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "by a divisor": lambda n, x: F.avg_pool2d(x, (2, 3), divisor_override=5),
    "adaptive": lambda n, x: F.adaptive_avg_pool2d(x, (3, 5)),
    "adaptive maxima": lambda n, x: F.adaptive_max_pool2d(x, (3, 5)),
    "bilinear": lambda n, x: F.interpolate(x, (5, 11), mode="bilinear"),
    "bicubic": lambda n, x: F.interpolate(x, scale_factor=1.5, mode="bicubic", align_corners=True),
    "antialias": lambda n, x: F.interpolate(x, (5, 6), mode="bilinear", antialias=True),
    "nearest": lambda n, x: F.interpolate(x, (5, 12), mode="nearest"),
    "nearest-exact": lambda n, x: F.interpolate(x, (5, 12), mode="nearest-exact"),
    "padded": lambda n, x: F.pad(F.pad(x, (1, 2, 3, 0), mode="reflect"), (1, 2, 3, 0), mode="replicate"),
    "attention": lambda n, x: F.scaled_dot_product_attention(*[x.flatten(2)[:, None] for _ in range(3)]),
    "norms": lambda n, x: F.instance_norm(x) + F.layer_norm(x, (8,)) + F.group_norm(x, 2) + F.rms_norm(x, (8,)),
    "activations": lambda n, x: F.mish(x) + F.hardswish(x) + F.gelu(x, approximate="tanh") + F.softplus(x) + F.celu(x),
    "many": lambda n, x: F.pixel_shuffle(x, 2)[:, :, ::2].roll(3, 2) + x.cumsum(3)[:, :2].amax(3, keepdim=True),
    "unfolded": lambda n, x: (
        F.unfold(x, 3) + x.std((1, 2, 3), keepdim=True).flatten(1)[..., None] + x.logsumexp(1).mean()
    ),
}


@pytest.mark.parametrize("case", PLAIN)
def test_backward_passes_are_plain_operations(case: str) -> None:
    graph = gradient_graph(Net(PLAIN[case]).eval(), "logsumexp", (1, 8, 8))  # compares itself with autograd
    assert not [node for node in graph.graph.nodes if "backward" in str(node.target)]


# -- all of it at once ------------------------------------------------------------------------------------------------


class Stranger(nn.Module):
    """Heads that share a convolution and not its norms, a shift written in place, ties, a frozen layer, padding by
    name, a part without gradient."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding="same", bias=False), nn.BatchNorm2d(8)
        self.shared, self.m, self.n = conv(bias=False), norm2(), norm2()
        self.mixed = tied(self.shared, conv())
        self.frozen = nn.Conv2d(8, 8, 1).requires_grad_(False)
        self.aside = nn.Conv2d(1, 8, 1)
        self.out = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            aside = self.aside(x)
        x = F.relu_(self.norm(self.stem(x)))
        y = torch.zeros_like(x)
        y[:, :4], y[:, 4:] = x[:, 4:], x[:, :4]
        y = self.m(self.shared(y)).relu_() + self.n(self.shared(F.avg_pool2d(y, 2).repeat(1, 1, 2, 2)))
        z = self.frozen(self.mixed(y)) + aside
        z += y
        return self.out(F.silu(z).mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["classifier", "jem"])
def test_such_a_network_is_quantized_trained_and_read_again(
    small_values: Any, splits: data.Splits, target: str, tmp_path: Path, capsys: Any
) -> None:
    p = params.check(
        with_changes(
            small_values, {"quantize.finetune.epochs": 1, "quantize.finetune.lr": 1e-6, "quantize.retrain.epochs": 0}
        )
    )
    network = in_the_house(Stranger(), None if target == "classifier" else "logsumexp")
    networks.refresh_batchnorm(network, data.to_float(splits.train.images[:200]))
    run = Run(f"{target}/quantize", 0, [], root=tmp_path)
    objective = targets.get(target).objective(copy.deepcopy(network), splits, getattr(p, target), run)
    model = quantize.compress(copy.deepcopy(network), target, objective, p.quantize, run)
    assert "norms that are not folded: body.m, body.n\n" in capsys.readouterr().out
    kept = {name for name, part in model.tensors.items() if name.endswith("weight") and isinstance(part, Int8)}
    assert kept >= {f"body.{name}.weight" for name in ("stem", "shared", "frozen", "out")}
    model = replace(model, spec=replace(model.spec, given=networks.Given(Stranger())))
    artifact.save(model, tmp_path / "made", {"stage": "quantize"})
    again = lowenergy.load(tmp_path / "made", network=Stranger())
    images = data.to_float(splits.test.images[:50])
    # A JEM's norms see drawn images as well, and move.
    assert distance(again(images), network(images)) < (0.1 if target == "classifier" else 0.4)


# -- scales -----------------------------------------------------------------------------------------------------------


@given(st.integers(2, 8), st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_best_scale_is_the_best_of_all_shares(bits: int, channels: int, weights: int, seed: int) -> None:
    weight, levels = torch.randn(channels, weights, generator=torch.Generator().manual_seed(seed)), 2 ** (bits - 1) - 1
    weight[0] *= seed % 2  # a channel may be pruned
    scales = weight.abs().amax(1) * torch.linspace(int8.LEAST_SHARE.get(levels, 0.31), 1.0, 70)[:, None] / levels
    scales = scales.clamp_min(int8.SMALLEST_SCALE)
    zero_point = torch.zeros(channels, dtype=torch.int)
    errors = [
        (torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, -levels - 1, levels) - weight)
        .square()
        .sum(1)
        for scale in scales
    ]
    wanted = scales[torch.stack(errors).argmin(0), torch.arange(channels)]
    assert torch.equal(int8.best_scale(weight, bits), wanted)


def test_the_best_scale_does_not_depend_on_how_many_channels_are_looked_at_together(monkeypatch: Any) -> None:
    weight = torch.randn(50, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    wanted = int8.best_scale(weight, 5)
    for size in (1, 100, 10**6):
        monkeypatch.setattr(int8, "IN_CACHE", size)
        assert torch.equal(int8.best_scale(weight, 5), wanted)


# -- a network that takes views of what lies in order ------------------------------------------------------------------


class Viewing(nn.Module):
    """x.view(len(x), -1), as half of all tutorials have it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.b(F.silu(self.a(x)))).view(x.size(0), -1))


def test_views_are_borne_in_training_matching_and_graphs(small: params.Params, tmp_path: Path) -> None:
    network, images = taken_in(Viewing(), channels=3, head="logsumexp"), random(20, 3, 8, 8)
    assert networks.memory_format(network) == networks.training_format(network) == torch.contiguous_format
    assert networks.memory_format(taken_in(Net())) == torch.channels_last
    split = data.Split(data.to_bytes(images), torch.arange(20) % 4)
    splits = data.Splits(split, split, split, list("abcd"), "made up")
    run = Run("classifier/distill", 0, [], root=tmp_path)
    objective = targets.get("classifier").objective(network, splits, small.classifier, run)
    objective.loss(network, torch.arange(8), run)[0].backward()
    scales = {name: int8.best_scale(layer.weight, 8) for name, layer in networks.coded_layers(network).items()}
    for gradient in (False, True):
        prepared = int8.prepare(network, scales, dict.fromkeys(scales, 8), gradient=gradient)
        int8.check(prepared, network, images[:3])
        prepared(images.contiguous(memory_format=torch.channels_last))


# -- results that answer like chance -----------------------------------------------------------------------------------


class Linear(nn.Module):
    """A classifier of digits, or an energy: how far an image is from those of the data."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class Far(nn.Module):
    def __init__(self, images: Tensor) -> None:
        super().__init__()
        flat = images.flatten(1)
        inverse = torch.linalg.inv(torch.cov(flat.t()) + 0.05 * torch.eye(64))
        self.register_buffer("mean", flat.mean(0))
        self.fc = nn.Linear(64, 64, bias=False)
        self.fc.weight.data = torch.linalg.cholesky(inverse).t()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1) - self.mean).square().mean(1)


def solved(splits: data.Splits) -> Linear:
    """By ridge regression."""
    network = Linear()
    images = torch.cat([data.to_float(splits.train.images).flatten(1), torch.ones(len(splits.train), 1)], 1)
    squares = images.t() @ images + 10 * torch.eye(65)
    found = torch.linalg.solve(squares, images.t() @ F.one_hot(splits.train.labels, 10).float())
    network.fc.weight.data, network.fc.bias.data = found[:-1].t().contiguous(), found[-1]
    return network


def in_the_house(body: nn.Module, head: str | None = None) -> Foreign:
    spec = Spec("nets/own.py:Linear", channels=1, image_size=8, outputs=10, head=head, arguments={})
    network = Foreign(spec, body).eval()
    network.find_layers()
    return network


def test_classifiers_that_guess_are_refused(splits: data.Splits, tmp_path: Path, capsys: Any) -> None:
    source, run = in_the_house(solved(splits)), Run("classifier/prune", 0, [], root=tmp_path)

    def check(body: nn.Module, accepted: bool = False, source: Foreign = source) -> None:
        chance.check(in_the_house(body), source, splits.validation, run, accepted=accepted)

    weak = solved(splits)
    weak.fc.weight.data *= (random(10, 64) > -0.9).float()
    check(weak)
    constant, broken = solved(splits), solved(splits)
    constant.fc.weight.data.zero_()
    with pytest.raises(
        UserError, match=r"prune: the result answers like chance: \d+.\d% of 143 .* source 9\d\."
    ) as error:
        check(constant)
    assert len(str(error.value).splitlines()) == 1 and "prune.accept_chance: true" in str(error.value)
    check(constant, accepted=True)
    assert "result: answers like chance: 9.8% of" in (said := capsys.readouterr().out) and "which is accepted" in said
    assert run.provenance["warnings"] == ["result: answers like chance"]
    check(constant, source=in_the_house(constant))  # no worse than its source
    broken.fc.bias.data[3] = torch.nan
    for accepted in (False, True):
        with pytest.raises(UserError, match="not finite"):
            check(broken, accepted)


def test_classifiers_that_guess_are_refused_on_images_that_lie_class_by_class(
    splits: data.Splits, tmp_path: Path
) -> None:
    order = splits.train.labels.argsort(stable=True)
    held = splits.train.take(torch.cat([order[:100].repeat(3), order[-299:]]))  # 300 of the first class, then others
    source, first = in_the_house(solved(splits)), solved(splits)
    first.fc.weight.data.zero_()
    first.fc.bias.data = -torch.arange(10.0)  # answers with the first class
    run = Run("classifier/prune", 0, [], root=tmp_path)
    with pytest.raises(UserError, match="of 300 validation images right"):
        chance.check(in_the_house(first), source, held, run, accepted=False)


def test_energies_that_tell_nothing_are_refused(splits: data.Splits, tmp_path: Path) -> None:
    run, good = Run("ebm/quantize", 0, [], root=tmp_path), Far(data.to_float(splits.train.images))

    def check(body: nn.Module) -> None:
        result, source = in_the_house(body, "scalar"), in_the_house(good, "scalar")
        chance.check(result, source, splits.validation, run, accepted=False)

    check(good)
    rounded = copy.deepcopy(good)
    rounded.fc.weight.data = rounded.fc.weight.mul(4).round() / 4
    check(rounded)
    flat, upside_down = copy.deepcopy(good), nn.Sequential(copy.deepcopy(good), nn.Hardtanh(0, 0.1), nn.Threshold(1, 1))
    flat.fc.weight.data.zero_()
    for bad in (flat, upside_down):
        with pytest.raises(UserError, match="quantize: the result answers like chance: its energy"):
            check(bad)


def test_a_stage_writes_nothing_that_guesses_unless_it_is_accepted(
    tmp_path: Path, small_values: Any, splits: data.Splits, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "own.py").write_text(
        "from torch import nn\n\n\nclass Linear(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    changes = {"networks": "nets", "classifier.architecture": {"name": "nets/own.py:Linear"}, "prune.scan_images": 0}
    values = with_changes(small_values, {**changes, "prune.finetune.epochs": 0, "prune.retrain.epochs": 0})
    values = only(values, "classifier")

    def pruned(**more: Any) -> None:
        YAML().dump({**values, "prune": {**values["prune"], **more}}, tmp_path / "params.yaml")
        recipes.write(params.load())
        compress.main("classifier-prune")

    data.save(splits, data.SPLITS)
    source = solved(splits)
    body, made_by = nn.Sequential(nn.Flatten(), source.fc), {"stage": "teacher"}
    artifact.save(artifact.dense(in_the_house(body), "classifier"), "models/classifier.safetensors", made_by)
    made = tmp_path / "models/classifier-prune.safetensors"
    with pytest.raises(UserError, match="classifier-prune: the result answers like chance: "):
        pruned(amount=0.995)
    assert not made.exists()
    pruned(amount=0.995, accept_chance=True)
    assert made.exists() and "which is accepted" in capsys.readouterr().out
    pruned(amount=0.3)
    assert "chance" not in capsys.readouterr().out


def test_a_unit_that_is_about_to_be_switched_is_no_other_gradient() -> None:
    """Orders of summation may differ as to whether it is on; then one image's gradient lacks its part."""
    images, units = random(8, 1, 8, 8), 2000
    torch.manual_seed(0)
    network = taken_in(nn.Sequential(nn.Flatten(), nn.Linear(64, units), nn.ReLU(), nn.Linear(units, 4)))
    first: Any = network.body[1]  # type: ignore[index]
    some = torch.arange(units) < 20
    with torch.no_grad():  # these are just on, in the first image
        first.bias[some] += 1e-7 - first(images[:1].flatten(1))[0, some]
    prepared = int8.prepare(network, {}, {})
    int8.check(prepared, network, images)
    with torch.no_grad():  # and now just off, of which the graph knows nothing
        first.bias[some] -= 2e-7
    int8.check(prepared, network, images)
    with torch.no_grad():  # another network
        first.bias[some] -= 0.2
    with pytest.raises(UserError, match="differ"):
        int8.check(prepared, network, images)
