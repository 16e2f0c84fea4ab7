"""What is checked by outputs is checked by all of them, whatever size one of them has."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import lowenergy
from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.compression import channels
from lowenergy.runtimes import to_onnx
from lowenergy.storage import artifact


class Masking(nn.Module):
    """Its last class is impossible. The channels of the first convolution cannot go: the code turns them round."""

    def __init__(self, activation: str = "silu", noise: float = 0.0) -> None:
        super().__init__()
        self.activation, self.noise = activation, noise
        self.a, self.b, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.register_buffer("mask", torch.tensor([False] * 4 + [True]))

    def forward(self, x: Tensor) -> Tensor:
        if self.noise:  # as good as none, since it is the same each time; but ONNX draws it anew
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                x = x + self.noise * torch.randn(8, 8)
        act = getattr(F, self.activation)
        features = act(self.b(act(self.a(x)).flip(1)))
        return self.fc(features.mean((2, 3))).masked_fill(self.mask, -1e9)


def masking(**arguments: object) -> networks.Network:
    spec = networks.Spec(f"{__file__}:Masking", channels=1, image_size=8, outputs=5, arguments=arguments)
    net = networks.build(spec, seed=0).eval()
    net.find_layers()
    return net


@given(st.floats(200, 1e30), st.integers(0, 4), st.floats(1e-6, 10))
def test_an_output_that_is_always_large_hides_nothing(size: float, place: int, error: float) -> None:
    wanted = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    found = wanted + error * torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    others = [i for i in range(5) if i != place]
    apart = float((found - wanted)[:, others].norm() / wanted[:, others].norm())
    wanted[:, place] = found[:, place] = -size * float(wanted.norm())
    assert networks.distance(found, wanted) == pytest.approx(apart, rel=1e-3)
    found[:, place] *= 2
    assert networks.distance(found, wanted) == pytest.approx(max(apart, 1.0), rel=1e-3)


def test_outputs_of_usual_sizes_have_one_norm() -> None:
    wanted = torch.tensor([[1.0, 20.0, 0.0, 3.0], [2.0, 10.0, 0.0, -3.0]])
    found = wanted + 0.01
    assert networks.distance(found, wanted) == pytest.approx(float((found - wanted).norm() / wanted.norm()))
    assert networks.distance(wanted[0, 0], wanted[0, 0]) == 0
    assert networks.distance(wanted, wanted[:, :3]) == math.inf
    assert math.isnan(networks.distance(found / 0 * 0, wanted))
    assert networks.distance(torch.zeros(2, 4), torch.zeros(2, 4)) == 0


def test_channels_stay_that_a_masked_network_needs_where_they_are() -> None:
    assert channels.stuck(masking()) == {"body.a": "it would answer differently"}


def test_a_masked_network_is_not_taken_for_another_one(tmp_path: Path) -> None:
    artifact.save(artifact.dense(masking(), "classifier"), path := tmp_path / "model.safetensors", {})
    same, other = Masking(), Masking("relu")
    assert torch.equal(lowenergy.load(path, network=same)(torch.ones(1, 1, 8, 8)), masking()(torch.ones(1, 1, 8, 8)))
    with pytest.raises(UserError, match="gives other answers than the one that was stored"):
        lowenergy.load(path, network=other)


def test_onnx_of_a_masked_network_is_compared_by_the_classes_that_are_left(tmp_path: Path) -> None:
    net = masking(noise=0.5)
    model = replace(artifact.dense(net, "classifier"), origin="noisy")
    with pytest.raises(UserError, match="output `logits` is off by .* of its spread"):
        to_onnx.export(model, {}, tmp_path / "model.onnx")
    assert not [*tmp_path.iterdir()]
    to_onnx.export(artifact.dense(masking(), "classifier"), {}, tmp_path / "model.onnx")
