"""Networks, arguments and images of strangers that were wrong in silence, or a traceback: right now, or one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import lowenergy
from lowenergy.base.errors import UserError
from lowenergy.calls import images as using_images

LABELS = torch.arange(120) % 3
IMAGES = torch.randint(60, (120, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
for label in range(3):
    IMAGES[label == LABELS, :, :, 2 * label : 2 * label + 2] += 150
NOTHING: dict[str, Any] = {"epochs": 0}
PRUNED: dict[str, Any] = {"scan_images": 0, "finetune": NOTHING, "retrain": NOTHING, "amount": 0.3}
CODED: dict[str, Any] = {
    "codewords": 256,
    "codewords_fc": 256,
    "block_conv": 1,
    "block_small": 1,
    "block_1x1": 1,
    "block_fc": 1,
    "kmeans_steps": 8,
    "finetune": NOTHING,
    "allocation": "uniform",
    "vectors_per_codeword": 1,
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.b(F.silu(self.a(x)))).mean((2, 3)))


def compressed(network: nn.Module, method: str = "prune", **given: Any) -> Any:
    images, labels = given.pop("images", IMAGES), given.pop("labels", LABELS)
    options = {**{"prune": PRUNED, "pq": CODED}[method], "accept_chance": True, "device": "cpu", **given}
    return lowenergy.compress(network, method, images=images, labels=labels, **options)


class Closure(Net):
    """Its copies call the layer of the network that they are copies of."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = lambda x: F.silu(self.b(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(F.silu(self.a(x))).mean((2, 3)))


class ByName(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(input=F.silu(self.b(F.silu(self.a(x)))).mean((2, 3)))


class NormByName(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.norm(input=self.b(F.silu(self.a(x))))).mean((2, 3)))


class Pairs(Net):
    def __init__(self, widths: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.widths = (*widths, 2) if isinstance(widths, tuple) else None
        assert self.widths


class Scaled(Net):
    def __init__(self, scale: dict[int, float] | None = None) -> None:
        super().__init__()
        self.k = (scale or {}).get(1, 5.0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.k)


@pytest.mark.parametrize(
    ("network", "given", "said"),
    [
        (Closure(), {}, "a copy of it calls a Conv2d that is none of its own: a lambda or an inner function"),
        (NormByName(), {}, r"calls norm with its input by name; write norm\(x\)"),
        (ByName(), {}, r"calls fc with its input by name; write fc\(x\)"),
        (Pairs((3, 4)), {"arguments": {"widths": (3, 4)}}, "arguments=.*give those that the module was made with"),
        (Scaled({1: 2.0}), {"arguments": {"scale": {1: 2.0}}}, "arguments=.*give those that the module was made with"),
        (Net(), {"arguments": {"act": F.relu}}, "arguments: .*a file has numbers, texts, lists and dicts"),
        (Net(), {"validation": (IMAGES, LABELS + 7)}, "labels: 9, and the network has 3 outputs"),
    ],
)
def test_what_would_be_wrong_is_one_line(network: nn.Module, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compressed(network, **given)


class Normed(Net):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm: Any = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.norm(self.b(F.silu(self.a(x))))).mean((2, 3)))


class PlusOne(nn.BatchNorm2d):
    """A norm whose weight is what is more than 1."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + 1
        return F.batch_norm(x, self.running_mean, self.running_var, weight, self.bias, self.training, 0.1, self.eps)


class Twins(Normed):
    """Two norms with one weight."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(16))
        self.other = nn.BatchNorm2d(16)
        self.other.weight = self.norm.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.norm(self.b(F.silu(self.other(self.a(x)))))).mean((2, 3)))


@pytest.mark.parametrize(
    "network", [Normed(nn.BatchNorm2d(16)), Normed(nn.BatchNorm2d(16, bias=False)), Normed(PlusOne(16)), Twins()]
)
def test_norms_of_strangers_are_coded_as_they_are(network: nn.Module, tmp_path: Path) -> None:
    """The layers have 256 codewords of one weight, so what differs is the norms."""
    network.train()
    with torch.no_grad():
        for _ in range(100):
            network(IMAGES.float() / 127.5 - 1)
    network.eval()
    small = compressed(network, "pq", calibration_images=20, keep_first=False)
    images = IMAGES[:20].float() / 127.5 - 1
    with torch.no_grad():
        wanted = network(images)
        assert (small.network(images) - wanted).norm() < 0.1 * wanted.norm()
    small.save(tmp_path / "small.safetensors")
    again = lowenergy.load(tmp_path / "small.safetensors", network=network)
    with torch.no_grad():
        torch.testing.assert_close(again(images), small.network(images))


class Late(Net):
    """Another activation, or a tensor that no state_dict has, is another function."""

    def __init__(self, act: Any = F.silu, factor: float = 1.0) -> None:
        super().__init__()
        self.act, self.factor = act, torch.tensor(factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.b(self.act(self.a(x * self.factor)))).mean((2, 3)))


@pytest.mark.parametrize("other", [Late(F.relu), Late(F.silu, 0.7), Late(F.gelu)])
def test_another_network_of_the_same_tensors_is_refused(other: nn.Module, tmp_path: Path) -> None:
    small = compressed(Late())
    small.save(tmp_path / "small.safetensors")
    assert lowenergy.load(tmp_path / "small.safetensors", network=Late())(IMAGES[:2].float()).shape == (2, 3)
    with pytest.raises(UserError, match="gives other answers than the one that was stored .* another was handed over"):
        lowenergy.load(tmp_path / "small.safetensors", network=other)


class Sloped(Net):
    """Takes a gradient on the way forward."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(F.silu(self.a(y)).mean(1).square().sum(), y, create_graph=self.training)
        return super().forward(x + slope)


def test_a_gradient_within_the_forward_pass() -> None:
    small = compressed(Sloped())
    assert small.network(IMAGES[:2].float()).shape == (2, 3)
    with pytest.raises(UserError, match="its operations cannot be counted"):
        small.card(IMAGES, LABELS)


class Endless(Dataset[Any]):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return IMAGES[i], int(LABELS[i])

    def __iter__(self) -> Iterator[Any]:
        return iter([self[0]])


def test_pictures_with_a_palette_have_its_colours() -> None:
    pictures = [Image.fromarray(image.movedim(0, -1).numpy()).quantize(200) for image in IMAGES[:4]]
    pixels = using_images._tensor(pictures[0])
    assert pixels.shape == (8, 8, 3) and (pixels.int() - IMAGES[0].movedim(0, -1).int()).abs().float().mean() < 8


def test_arrays_of_another_byte_order_and_data_sets_without_length() -> None:
    floats = (IMAGES.float() / 127.5 - 1).numpy()
    one = compressed(Net(), images=floats.astype(">f4"), labels=LABELS.numpy().astype(">i4"))
    assert one.model.tensors
    with pytest.raises(UserError, match="Endless has no length"):
        compressed(Net(), images=Endless(), labels=None)
