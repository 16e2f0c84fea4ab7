"""Networks, arguments and images of strangers that were wrong in silence, or a traceback: right now, or one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

import lowenergy
from lowenergy import cli, energies
from lowenergy.base import files
from lowenergy.base.errors import UserError
from lowenergy.calls import images as using_images
from lowenergy.calls import inception

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


class Wide(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 5)


class Closure(Net):
    """Its copies call the layer of the network that they are copies of."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = lambda x: F.silu(self.b(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(F.silu(self.a(x))).mean((2, 3)))


class NormOfNothing(Net):
    """What has no tensors belongs to nobody."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.InstanceNorm2d(3)(x))


def test_a_norm_without_tensors_may_be_made_anywhere() -> None:
    assert compressed(NormOfNothing()).size_bytes


class ClosureOfNorm(Net):
    """As Closure, with what has no parameters, but statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16, affine=False)
        self.middle = lambda x: F.silu(self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(self.b(F.silu(self.a(x)))).mean((2, 3)))


class Renormed(Net):
    """Holds the norms of its filters by writing the weight in every forward pass, as EEGNet is often written."""

    def forward(self, x: Tensor) -> Tensor:
        self.b.weight.data = torch.renorm(self.b.weight.data, 2, 0, 0.5)
        return super().forward(x)


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
        (Closure(), {}, "a copy of it uses a Conv2d that is none of its own: put layers"),
        (ClosureOfNorm(), {}, "a copy of it uses a BatchNorm2d that is none of its own"),
        (Renormed(), {}, r"changes b.weight in evaluation mode, when asked"),
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
    first, second = 3 * 16 * 9 * 64, 16 * 16 * 9 * 64  # the first convolution runs twice, and once backwards
    assert small.card(IMAGES, LABELS).macs == 3 * first + second + 16 * 3


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


class Softmax(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class ScaledConv(nn.Conv2d):
    """A layer with a tensor whose name others might like as well."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.register_buffer("scale", torch.full((16, 1, 1), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def test_a_tensor_called_scale_is_the_layer_s_own() -> None:
    network = Net()
    network.a, network.b = ScaledConv(3, 16, 3, padding=1), ScaledConv(16, 16, 3, padding=1)
    small = lowenergy.compress(network, "quantize", images=IMAGES, head="mean", accept_chance=True, device="cpu")
    images = (IMAGES[:8].float() / 127.5 - 1).requires_grad_()
    (wanted,) = torch.autograd.grad(network(images).mean(1).sum(), images)
    (found,) = torch.autograd.grad(small.network(images).mean(1).sum(), images)
    assert (found - wanted).norm() < 0.2 * wanted.norm()


class Equalized(nn.Conv2d):
    """As in ProGAN: the weight that it stores is not the one that it multiplies with."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.weight[0].numel() ** -0.5, self.bias)


def test_layers_that_scale_their_weight_lose_no_more_by_codes_than_plain_ones() -> None:
    torch.manual_seed(0)
    own, plain = Net(), Net()
    own.b = Equalized(16, 16, 3, padding=1)
    with torch.no_grad():
        own.a.load_state_dict(plain.a.state_dict())
        own.fc.load_state_dict(plain.fc.state_dict())
        own.b.load_state_dict(plain.b.state_dict())
        own.b.weight.mul_(plain.b.weight[0].numel() ** 0.5)
    images, lost = IMAGES[:40].float() / 127.5 - 1, []
    for network in (plain, own):
        small = compressed(network, "pq", codewords=16, calibration_images=40)
        with torch.no_grad():
            lost.append(float((small.network(images) - network(images)).norm() / network(images).norm()))
    assert lost[1] < 3 * lost[0] + 0.02


@pytest.mark.parametrize(
    ("layers", "width", "macs"),
    [
        (lambda: nn.LSTM(24, 16, batch_first=True), 16, 8 * (24 + 16) * 64),
        (
            lambda: nn.TransformerEncoderLayer(24, 2, 32, batch_first=True),
            24,
            8 * (4 * 24 * 24 + 2 * 24 * 32 + 2 * 8 * 24),
        ),
    ],
)
def test_fused_layers_are_counted(layers: Any, width: int, macs: int) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.fc = layers(), nn.Linear(width, 3)

        def forward(self, x: Tensor) -> Tensor:
            out = self.rows(x.flatten(1).view(len(x), 8, 24))
            return self.fc((out[0] if isinstance(out, tuple) else out).mean(1))

    given: dict[str, Any] = {"images": IMAGES, "labels": LABELS, "accept_chance": True, "device": "cpu"}
    small = lowenergy.compress(Rows(), "prune", **given, **PRUNED)
    assert small.card(IMAGES, LABELS).macs == macs + 3 * width


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images": IMAGES.float() / 255 * 1.02 - 0.01}, "these floats are never below 0"),
        ({"images": IMAGES.float() / 255, "mean": 0.4, "std": 0.2}, "no pixel is darker than the mean"),
        ({"labels": LABELS * 10**9}, r"labels: 2000000000; give classes from 0 to one less than there are"),
        ({"labels": {0: 1}}, "labels: dict; give one whole number"),
        ({"mean": "half", "std": 1}, "mean='half', std=1: give numbers, one each or one for each channel"),
        ({"mean": [None] * 3, "std": 1}, r"mean=\[nan, nan, nan\], .* both are of pixels from 0"),
        ({"teacher": Wide()}, "teacher: .* has 5 outputs, the network 3"),
        ({"network": Softmax()}, "gives probabilities; return what it takes the softmax of"),
        ({"network": Net}, "the class Net is no network"),
    ],
)
def test_what_strangers_mistake_is_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        compressed(given.pop("network", Net()), **given)
    assert "\n" not in str(refused.value)


def test_labels_of_every_kind_of_integer() -> None:
    wanted = using_images.read(IMAGES, LABELS)[0].labels
    for kind in (np.uint8, np.uint16, np.uint32, np.int64):
        assert torch.equal(using_images.read(IMAGES, LABELS.numpy().astype(kind))[0].labels, wanted)
    many = using_images.read(IMAGES.repeat(3, 1, 1, 1), pd.Series(LABELS.repeat(3)))[0]
    assert torch.equal(many.labels[:120], wanted)


class OnDisk:
    """Like an array of h5py."""

    shape, dtype = IMAGES.shape, np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, part: slice) -> np.ndarray:
        return IMAGES[part].numpy()


def test_arrays_on_disk_are_read_in_slices() -> None:
    assert torch.equal(using_images.read(OnDisk(), LABELS)[0].images, IMAGES)


def test_labels_of_some_images_only() -> None:
    some = [(image, None if i == 0 else 1) for i, image in enumerate(IMAGES)]
    with pytest.raises(UserError, match="some images come with labels, some without"):
        using_images.read(some)


@pytest.mark.parametrize("answers", [(), (1,), (torch.tensor(1),)])
def test_a_loader_of_single_images_is_refused(answers: tuple[Any, ...]) -> None:
    """Three colours of one image are not three grey images."""
    items = [(image, *answers) if answers else image for image in IMAGES[:6]]
    for loader in (iter(items), DataLoader(items, batch_size=None)):
        with pytest.raises(UserError, match=r"\(3, 8, 8\) looks like one image; add a batch dimension"):
            using_images.read(loader)
    with pytest.raises(UserError, match="looks like one image"):
        inception.pixels_of(iter(IMAGES[:6]), "images")
    grey = using_images.read(iter([(IMAGES[:3, 0], [0, 1, 2])]))[0]
    assert grey.images.shape == (3, 1, 8, 8) and grey.labels.tolist() == [0, 1, 2]


class Stream(IterableDataset[Any]):
    def __init__(self, items: Any) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def test_streams_are_read_as_data_sets_are() -> None:
    pictures = [Image.fromarray(image.movedim(0, -1).numpy()) for image in IMAGES]
    pairs = list(zip(pictures, LABELS.tolist(), strict=True))
    for items, labelled in ((pairs, True), ([(picture, None) for picture in pictures], False)):
        found, said = using_images.read(Stream(items))
        assert torch.equal(found.images, IMAGES) and said == labelled
    with pytest.raises(UserError, match="images 0 to 1 differ in size; resize all to one size"):
        using_images.read(Stream([IMAGES[0], IMAGES[0, :, :4, :4]]))


def test_an_empty_batch_is_passed_over() -> None:
    floats = IMAGES.float() / 127.5 - 1
    read = using_images.read(iter([(floats[:n], LABELS[:n]) for n in (0, 5, 0)]))[0]
    assert torch.equal(read.images, IMAGES[:5])


def test_validation_images_and_labels_may_be_a_list() -> None:
    splits, _ = using_images.gathered(IMAGES, LABELS, validation=[IMAGES[:9], LABELS[:9]])
    assert len(splits.train) == 120 and torch.equal(splits.validation.labels, LABELS[:9])


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (IMAGES, LABELS + 0j, "labels of complex64"),
        (IMAGES, b"x" * 120, "labels: bytes; give one whole number"),
        (IMAGES, LABELS.to_sparse(), "labels: a sparse tensor; give a plain one"),
        (IMAGES, LABELS.to("meta"), "labels: a meta tensor"),
        (IMAGES.to_sparse(), LABELS, "images: a sparse tensor"),
        (IMAGES.to("meta"), LABELS, "images: a meta tensor"),
        (torch.nested.nested_tensor([IMAGES[0].float(), IMAGES[1].float()]), LABELS[:2], "images: a nested tensor"),
        (torch.tensor(3), LABELS, "images: a single number"),
        (IMAGES[:10], range(10), "10 images of 10 classes are too few to hold some out; give more of each"),
    ],
)
def test_odd_tensors_are_one_line(images: Any, labels: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        using_images.gathered(images, labels)


def test_energies_that_are_no_numbers_have_no_auroc() -> None:
    broken = torch.tensor([1.0, torch.nan])
    for pair in ((broken, LABELS.float()), (LABELS.float(), broken)):
        with pytest.raises(UserError, match="energies: some are NaN"):
            energies.auroc_of(*pair)


@pytest.mark.parametrize(("share", "held"), [(0.1, 12), (0.4, 48), (0.3, 36), (np.float32(0.25), 30)])
def test_as_many_are_held_out_as_was_said(share: float, held: int) -> None:
    splits, _ = using_images.gathered(IMAGES, LABELS, validation=share)
    assert abs(len(splits.validation.images) - held) <= 3


def test_nobody_is_trusted_unless_named(tmp_path: Path) -> None:
    small = lowenergy.compress(
        Net(), "prune", images=IMAGES, labels=LABELS, arguments={}, accept_chance=True, device="cpu", **PRUNED
    )
    small.save(tmp_path / "small.safetensors")
    for trust, said in ((None, "code that is in no file of models"), ("nets", r"give a list, trust=\['nets'\]")):
        with pytest.raises(UserError, match=said):
            lowenergy.load(tmp_path / "small.safetensors", trust=trust)  # type: ignore[arg-type]


def test_training_goes_on_with_the_same_normalisation() -> None:
    given: dict[str, Any] = {"images": IMAGES, "labels": LABELS, "device": "cpu"}
    small = lowenergy.compress(Net(), "prune", mean=0.3, std=0.1, accept_chance=True, **given, **PRUNED)
    trained = lowenergy.train(small.network, "classifier", epochs=1, lr=1e-9, **given)
    images = IMAGES[:8].float() / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(trained.network(images), small.network(images), rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match=r"mean=\[0.1.*the network is known to take mean=\[0.3"):
        lowenergy.train(small.network, "classifier", mean=0.1, std=0.1, **given)
    with pytest.raises(UserError, match="labels: of images, and none are given"):
        lowenergy.compress(small, "prune", labels=LABELS)


def test_samples_go_where_their_name_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x.jpg", "x.npy", "x"):
        assert cli.main(["sample", "m.safetensors", "--out", str(tmp_path / name)]) == 2
        assert "give samples.png, a picture, or samples.npz" in capsys.readouterr().err


def test_a_file_beside_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "w.part").write_text("mine")
    files.write_bytes(tmp_path / "w", b"ours")
    assert (tmp_path / "w.part").read_text() == "mine" and (tmp_path / "w").read_bytes() == b"ours"
