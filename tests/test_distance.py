"""What is checked by outputs is checked by all of them, whatever size one of them has."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
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


VALUES = [-1e4, -1e9, torch.finfo(torch.float32).min]


def standard(seed: int, n: int = 16, k: int = 10) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


@given(st.sets(st.integers(0, 9), max_size=9), st.sampled_from(VALUES), st.booleans())
def test_what_masks_most_outputs_hides_nothing(masked: set[int], value: float, added: bool) -> None:
    """Written over the logits, or added to them; whatever the others are, they count."""
    mask = torch.tensor([i in masked for i in range(10)])

    def masking(outputs: Tensor) -> Tensor:
        return outputs + value * mask if added else outputs.masked_fill(mask, value)

    wanted = standard(0)
    assert networks.distance(masking(wanted), masking(wanted)) == 0
    assert networks.distance(masking(standard(1)), masking(wanted)) > 0.2
    assert networks.distance(masking(standard(1))[:1], masking(wanted)[:1]) > 0.02 or added  # an image alone


@pytest.mark.parametrize("count", [1, 2, 10])
def test_an_offset_hides_little_where_it_counts_little(count: int) -> None:
    wanted = 3e4 + standard(0, k=count)
    found = 3e4 + standard(1, k=count)
    assert networks.distance(found, wanted) < 1e-4 < networks.distance(found, wanted, offset=0.1)


@given(st.integers(1, 20), st.floats(1e-6, 1), st.integers(0, 99))
def test_outputs_of_one_size_have_one_norm(count: int, error: float, seed: int) -> None:
    wanted = 1 + 0.1 * standard(seed, k=count)
    found = wanted + error * standard(seed + 1, k=count)
    plain = float((found - wanted).norm() / wanted.norm())
    assert networks.distance(found, wanted) == pytest.approx(plain, rel=0.2)
    assert networks.distance(found[:, :, None], wanted[:, :, None]) == pytest.approx(plain, rel=1e-5)  # no logits


def test_outputs_that_are_nothing_or_no_numbers() -> None:
    wanted = standard(0)
    assert networks.distance(wanted[0, 0], wanted[0, 0]) == 0
    assert networks.distance(wanted, wanted[:, :3]) == math.inf
    assert math.isnan(networks.distance(wanted * math.nan, wanted))
    assert networks.distance(torch.zeros(2, 4), torch.zeros(2, 4)) == 0
    assert networks.distance(torch.zeros(0, 4), torch.zeros(0, 4)) == 0
    assert networks.distance(torch.arange(4).view(2, 2), torch.arange(4).view(2, 2) + 1) > 0.3
    dead = torch.cat([wanted, torch.zeros(16, 2)], 1)
    assert networks.distance(dead + 1e-6, dead) < 2e-6


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


class Faint(Masking):
    """Its logits differ from image to image by a millionth of their size, which is what rounding errors have too."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(400, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(1 + 1e-6 * super().forward(x)[:, :4].repeat(1, 100))


def test_onnx_may_round_each_output_by_a_fraction_of_its_own_size(tmp_path: Path) -> None:
    spec = networks.Spec(f"{__file__}:Faint", channels=1, image_size=8, outputs=4)
    net = networks.build(spec, seed=0).eval()
    net.find_layers()
    to_onnx.export(artifact.dense(net, "classifier"), {}, path := tmp_path / "model.onnx")
    images = standard(0, 4, 64).view(4, 1, 8, 8)
    (logits,) = onnxruntime.InferenceSession(path).run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        wanted = net(images)
    assert wanted.std(0).max() < 1e-5 < wanted.abs().min(), "which is the point of this network"
    np.testing.assert_allclose(logits, wanted, rtol=3e-5)
