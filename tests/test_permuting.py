"""Channels in another order: what the network computes stays, and blocks hold weights that are alike."""

import copy
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import ROOT, with_changes
from hypothesis import given
from hypothesis import strategies as st
from test_amounts import images, network
from test_constructs import NETWORKS
from torch import nn

from lowenergy import data, networks, params, targets
from lowenergy.compression.pq import Params, permuting
from lowenergy.compression.pq import network as pq
from lowenergy.networks import Spec
from lowenergy.storage import artifact
from lowenergy.training import Run

sys.path.append(str(ROOT / "benchmarks"))
from conformance import difference, splits, stir

WIDE = Params(allocation="uniform", block_conv=18, block_small=18, block_1x1=2, block_fc=4)
STAY = {  # what keeps all of its channels where they are, and why
    **dict.fromkeys(("TorchsAttention", "Masked", "MixedTokens"), "attention splits them, or torch does"),
    **dict.fromkeys(("Grouped", "GroupedTransposed", "GroupNormed", "Shuffled"), "groups have to stay apart"),
    **dict.fromkeys(("Tied", "TiedConvolutions", "TiedToOthers"), "weights are shared"),
    **dict.fromkeys(("SpectralHook", "SpectralParametrized", "WeightNormParametrized"), "the weight is computed"),
    "OwnParametrization": "the weight is computed",
    "OwnParameter": "Torch-Pruning does not know what goes with them",
}
NO_FUNCTION = {"BufferCounts", "WeightNormHook"}  # of the image alone; without a weight


@pytest.fixture
def run(tmp_path: Any) -> Run:
    return Run("classifier-pq", 0, [], root=tmp_path)


@pytest.mark.parametrize("name", sorted({*NETWORKS} - NO_FUNCTION))
def test_whatever_the_network_does_it_computes_the_same(
    name: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = Spec(NETWORKS[name], channels=3, image_size=8, outputs=10, arguments={})
    net, shown = networks.build(spec, seed=0).eval(), data.to_float(splits(8).train.images)
    net.find_layers()
    stir(net, shown)
    wanted, before = net(shown), copy.deepcopy(net.state_dict())
    permuting.permute(net, shown, WIDE, run)
    assert difference(net(shown), wanted) < 1e-6
    moved = any(not torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert moved == (name not in STAY)
    assert ("channels in another order" in capsys.readouterr().out) == moved


class Masked(nn.Module):
    """The mask of the first convolution's channels is in no file: whoever builds the network makes it, as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 10)
        self.register_buffer("mask", torch.arange(16)[:, None, None] / 16, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.second((self.first(x) * self.mask).relu()).relu().mean((2, 3)))


class Turned(nn.Module):
    """The first convolution's channels are turned round, and its answers hide that behind an offset."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1000 + self.fc(self.second(self.first(x).flip(1).relu()).relu().mean((2, 3)))


class Joined(nn.Module):
    """One layer reads three channels of one and five of another, in blocks of four."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 5, 3)
        self.third, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.third(torch.cat([self.first(x), self.second(x)], 1).relu()).relu().mean((2, 3)))


def test_fewer_channels_than_a_block_reads_stay(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    net = networks.build(Spec(f"{__file__}:Joined", channels=1, image_size=8, outputs=10, arguments={}), seed=0).eval()
    net.find_layers()
    before, wanted = copy.deepcopy(net.state_dict()), net(images())
    permuting.permute(net, images(), Params(allocation="uniform", block_1x1=4, block_fc=4), run)
    torch.testing.assert_close(net(images()), wanted)
    assert torch.equal(net.state_dict()["body.first.weight"], before["body.first.weight"])
    assert "13 channels in another order: cosine" in (said := capsys.readouterr().out) and "nan" not in said


@pytest.mark.parametrize(("allocation", "moves"), [("uniform", False), ("sensitivity", True)])
def test_blocks_count_that_allocation_may_try(allocation: Any, moves: bool, run: Run, capsys: Any) -> None:
    p = Params(allocation=allocation, block_conv=9, block_small=9, block_1x1=1, block_fc=1)
    permuting.permute(network("resnet8"), images(), p, run)
    assert ("channels in another order" in capsys.readouterr().out) == moves


@pytest.mark.parametrize("name", ["Masked", "Turned"])
def test_channels_stay_where_something_else_counts_on_their_places(
    name: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = Spec(f"{__file__}:{name}", channels=1, image_size=8, outputs=10, arguments={})
    net = networks.build(spec, seed=0).eval()
    net.find_layers()
    before = copy.deepcopy(net.state_dict())
    permuting.permute(net, images(), WIDE, run)
    stay = {key for key, value in net.state_dict().items() if torch.equal(value, before[key])}
    assert stay >= {"body.first.weight", "body.first.bias", "body.fc.bias"}
    assert "16 channels in another order" in capsys.readouterr().out  # the second's
    again = networks.build_with(spec, {key: value.clone() for key, value in net.state_dict().items()})
    torch.testing.assert_close(again(images()), net(images()), rtol=1e-5, atol=1e-5)


@given(st.permutations(range(12)), st.sampled_from([2, 3, 4, 6]))
def test_channels_that_are_read_alike_come_together(places: list[int], span: int) -> None:
    """Of 12 channels each `span` are read with the same weights, wherever they stand at first."""
    kinds = torch.tensor(places) // span
    similar = nn.functional.one_hot(kinds).float()
    similar = similar @ similar.t()
    order = permuting.neighbours(similar, span)
    assert sorted(order) == list(range(12))
    assert all(len(set(kinds[order[i : i + span]].tolist())) == 1 for i in range(0, 12, span))
    assert permuting.likeness(similar, order, span) == 1


def test_what_is_left_over_comes_last() -> None:
    similar = torch.eye(5) + 0.1
    similar[1, 3] = similar[3, 1] = 0.9
    assert permuting.neighbours(similar, 2) == [1, 3, 0, 2, 4]
    assert permuting.likeness(similar, [1, 3, 0, 2, 4], 2) == pytest.approx((0.9 + 0.1) / 2)


class Pairs(nn.Module):
    """The second convolution reads eight channels with four kernels; the same ones are four channels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3), nn.Linear(16, 10)
        with torch.no_grad():
            self.second.weight[:, 4:] = self.second.weight[:, :4]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.second(self.first(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("target", ["classifier", "ebm"])
def test_a_file_of_the_same_size_is_closer_to_the_network(
    target: str, small_values: Any, splits: data.Splits, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layers read each channel with the kernels of another one: next to each other, their blocks are half as wide."""
    net = network("resnet8")
    net.spec = replace(net.spec, head="mean" if target == "ebm" else None)
    with torch.no_grad():
        for layer in networks.coded_layers(net).values():
            if isinstance(layer, nn.Conv2d) and layer.in_channels > 1 and layer.kernel_size == (3, 3):
                half = layer.in_channels // 2
                other = torch.arange(half).roll(1).view(2, -1).t().flatten()  # no two neighbours' are neighbours
                layer.weight[:, half:] = layer.weight[:, other]
    off, sizes = [], []
    for permute in (False, True):
        changes = {"permute": permute, "block_conv": 18, "block_small": 18, "codewords": 64, "finetune.epochs": 0}
        changes |= {"allocation": "uniform", "vectors_per_codeword": 2}
        p = params.check(with_changes(small_values, {f"pq.{key}": value for key, value in changes.items()}))
        run = Run("classifier-pq", 0, [p.pq], root=tmp_path)
        objective = targets.get(target).objective(copy.deepcopy(net), splits, getattr(p, target), run)
        model = pq.compress(copy.deepcopy(net), target, objective, p.pq, run)
        off.append(difference(model.build()(images()), net(images())))
        sizes.append(len(artifact.to_bytes(model, {})))
    assert "cosine of the weights that share a block" in capsys.readouterr().out
    assert off[1] < 0.9 * off[0], off
    assert sizes[1] < 1.05 * sizes[0], sizes
