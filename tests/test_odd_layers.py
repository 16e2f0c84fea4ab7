"""Layers that do more than multiply, and tensors that go other ways: the same as written plainly, or one line."""

import itertools
import pickle
import shutil
from collections import deque, namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from test_strangers import CODED, IMAGES, LABELS, NOTHING, PRUNED, Net
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional as F
from torchvision.ops import roi_align

import lowenergy
from lowenergy import commands
from lowenergy.base.errors import UserError
from lowenergy.runtimes import to_onnx
from lowenergy.storage import artifact
from lowenergy.storage.encodings import Dense
from lowenergy.training import Run, loop

X = IMAGES[:6].float() / 127.5 - 1
FEW: dict[str, Any] = {"codewords": 16, "codewords_fc": 16, "block_conv": 9, "block_fc": 4, "calibration_images": 100}
ROUNDED: dict[str, Any] = {"finetune": NOTHING, "retrain": NOTHING, "calibration_images": 20}


def compressed(network: nn.Module, method: str, **given: Any) -> Any:
    options: dict[str, Any] = {"images": IMAGES, "labels": LABELS, "accept_chance": True, "device": "cpu"}
    return lowenergy.compress(network, method, **{**options, **given})


# -- the same function, written in another way ------------------------------------------------------------------------


class Two(nn.Module):
    """A 1x1 convolution and one of 3x3, whose channels are of very different size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pre, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 3)
        with torch.no_grad():
            self.pre.weight.mul_(torch.logspace(-1.5, 1, 16)[:, None, None, None])
            self.fc.weight.mul_(torch.logspace(-2, 0.5, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.both(F.relu(self.a(x)))).mean((2, 3)))

    def both(self, x: Tensor) -> Any:
        return self.b(F.relu(self.pre(x)))


def moved(network: nn.Module, **parts: nn.Conv2d) -> None:
    """With other layers of the same weights in their places."""
    for name, layer in parts.items():
        layer.load_state_dict(network.get_submodule(name).state_dict(), strict=False)
        setattr(network, name, layer)


class ChannelsLast(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LastChannels(Two):
    def __init__(self) -> None:
        super().__init__()
        moved(self, b=ChannelsLast(16, 16, 3, padding=1))

    def both(self, x: Tensor) -> Any:
        return self.b(F.relu(self.pre(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class CallsAnother(nn.Conv2d):
    first: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(self.first(x)))


class Inner(Two):
    def __init__(self) -> None:
        super().__init__()
        moved(self, b=CallsAnother(16, 16, 3, padding=1))
        self.b.first = self.pre

    def both(self, x: Tensor) -> Any:
        return self.b(x)


class GivesTwo(nn.Conv2d):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), self.bias


class Pair(Two):
    def __init__(self) -> None:
        super().__init__()
        moved(self, b=GivesTwo(16, 16, 3, padding=1))

    def both(self, x: Tensor) -> Any:
        return self.b(F.relu(self.pre(x)))[0]


def weights(network: nn.Module, method: str, **given: Any) -> list[Tensor]:
    model = compressed(network, method, **given).model
    first = {name: part for name, part in model.tensors.items() if name.endswith("weight")}
    return [first[f"body.{name}.weight"].decode() for name in ("a", "b", "fc")]


@pytest.mark.parametrize(
    "method", [("pq", {**CODED, **FEW}), ("quantize", {**ROUNDED, "weight_bits": 2, "rounding": "gptq"})]
)
@pytest.mark.parametrize("other", [LastChannels, Inner, Pair])
def test_a_layer_is_compressed_by_what_its_weight_multiplies(other: Any, method: tuple[str, dict[str, Any]]) -> None:
    made = []
    for kind in (Two, other):
        torch.manual_seed(0)
        made.append(weights(kind(), method[0], **method[1]))
    for plain, found in zip(*made, strict=True):
        torch.testing.assert_close(found, plain)


class TakesTwo(nn.Conv2d):
    def forward(self, given: Any) -> Any:
        x, mask = given
        return super().forward(x * mask)


class Masked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b = TakesTwo(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x.mean(1, keepdim=True) > -1).float()
        return self.fc(F.silu(self.b((F.silu(self.a(x)), mask))).mean((2, 3)))


class Turned(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.func.functional_call(self.b, {"weight": self.b.weight.flip(0)}, (F.silu(self.a(x)),))
        return self.fc(F.silu(x).mean((2, 3)))


@pytest.mark.parametrize("kind", [Masked, Turned])
def test_layers_that_are_called_otherwise_stay_as_they_are(kind: Any, capsys: Any) -> None:
    torch.manual_seed(0)
    network = kind()
    for method, given in (
        ("pq", {**CODED, **FEW}),
        ("quantize", {"activation_bits": 4, "finetune": {"epochs": 1}, "retrain": {"epochs": 1}}),
    ):
        made = compressed(network, method, **given)
        assert made.model.tensors["body.b.weight"].kind == "dense"
        assert made.network(X).isfinite().all()
    assert "of no layer" in capsys.readouterr().err


class EachAlone(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda image: self.fc(F.silu(self.b(F.silu(self.a(image)))).mean((1, 2))))(x)


def test_networks_that_are_mapped_over_images_are_refused_in_one_line() -> None:
    for method in ("prune", "pq"):
        with pytest.raises(UserError, match="calls no convolution or fully connected layer") as error:
            compressed(EachAlone(), method)
        assert "\n" not in str(error.value)


class Empty(Net):
    """One of its layers has no inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Linear(0, 16)

    def forward(self, x: Tensor) -> Tensor:
        features = F.silu(self.b(F.silu(self.a(x)))).mean((2, 3))
        return self.fc(features + self.none(features[:, :0]))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("method", ["quantize", "pq"])
def test_layers_without_weights_stay_as_they_are(method: str) -> None:
    torch.manual_seed(0)
    made = compressed(Empty(), method, **{"quantize": ROUNDED, "pq": CODED}[method])
    assert made.model.tensors["body.none.weight"].decode().shape == (16, 0)
    assert made.model.tensors["body.b.weight"].kind != "dense"


class MoreInTraining(Net):
    def __init__(self) -> None:
        super().__init__()
        self.also = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.b(F.silu(self.a(x))))
        if self.training:
            x = x + 0.1 * self.also(x)
        return self.fc(x.mean((2, 3)))


def test_channels_that_training_needs_stay() -> None:
    torch.manual_seed(0)
    given: dict[str, Any] = {**PRUNED, "kind": "structured", "finetune": {"epochs": 1}}
    made = compressed(MoreInTraining(), "prune", **given)
    assert made.model.tensors["body.b.weight"].decode().shape[0] == 16
    assert made.model.tensors["body.a.weight"].decode().shape[0] < 16


class Steps(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return (x * 4).round() / 4

    @staticmethod
    def backward(_: Any, *given: Tensor) -> Tensor:
        return given[0]


class Stepped(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.b(Steps.apply(F.silu(self.a(x))))).mean((2, 3)))


def test_gradients_matter_only_where_a_graph_is_trained() -> None:
    torch.manual_seed(0)
    network = Stepped().eval()
    with torch.no_grad():
        wanted, found = network(X), compressed(network, "quantize", **ROUNDED).network(X)
    assert float((found - wanted).norm()) < 0.05 * float(wanted.norm())
    with pytest.raises(UserError, match="gradients by"):
        compressed(network, "quantize", **{**ROUNDED, "finetune": {"epochs": 1}})


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.norm(self.b(F.silu(self.a(x))))).mean((2, 3)))


@pytest.mark.parametrize("head", [None, "logsumexp"])
def test_few_bits_are_trained_in_networks_with_norms(head: str | None) -> None:
    """In memory they bear channels last: whether they do is tried with a copy, while inputs are rounded."""
    torch.manual_seed(0)
    given: dict[str, Any] = {"activation_bits": 4, "calibration_images": 20, "finetune": {"epochs": 1}}
    if head:
        given |= {"labels": None, "head": head, "finetune": NOTHING, "retrain": {"epochs": 1}}
    made = compressed(Normed(), "quantize", **given)
    assert {of.bits for name, of in made.model.activations.items() if name.endswith(":in")} == {4}


# -- tensors ----------------------------------------------------------------------------------------------------------


class SeesParameter(Net):
    """Its copies use the parameter of the network that they are copies of."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = lambda x: F.conv2d(x, self.b.weight, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        return self.fc((F.silu(self.b(x)) + self.middle(x)).mean((2, 3)))


class KeepsParameter(Net):
    def __init__(self) -> None:
        super().__init__()
        weight = self.b.weight
        self.middle = lambda x: F.conv2d(x, weight, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        return self.fc((F.silu(self.b(x)) + self.middle(x)).mean((2, 3)))


@pytest.mark.parametrize("kind", [SeesParameter, KeepsParameter])
def test_copies_with_a_parameter_of_the_original_are_refused(kind: Any) -> None:
    with pytest.raises(UserError, match=r"uses a parameter of shape \(16, 16, 3, 3\) that is none of its own"):
        compressed(kind(), "prune", **PRUNED)


class Standardised(nn.Conv2d):
    """Keeps what it has made of its weight, until training begins."""

    kept: Tensor | None = None

    def train(self, mode: bool = True) -> "Standardised":
        if mode:
            self.kept = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        if not self.training:
            weight = self.kept = weight.detach() if self.kept is None else self.kept
        return F.conv2d(x, weight, self.bias, padding=1)


class Keeping(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b = Standardised(16, 16, 3, padding=1)


@pytest.mark.parametrize("method", ["prune", "pq"])
def test_what_layers_keep_of_former_weights_is_forgotten(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Keeping().eval()
    network(X)  # somebody has evaluated it
    made = compressed(network, method, **{"prune": {**PRUNED, "amount": 0.6}, "pq": {**CODED, **FEW}}[method])
    right = Keeping()
    right.load_state_dict({name.removeprefix("body."): of.decode() for name, of in made.model.tensors.items()})
    with torch.no_grad():
        torch.testing.assert_close(made.network(X), right.eval()(X))
    made.save(tmp_path / "model.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(
            lowenergy.load(tmp_path / "model.safetensors", network=Keeping())(X), made.network(X)
        )


class Gains(Net):
    """Small gains of channels, which a buffer makes up for."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([1e3, *[1e-8] * 15]).view(16, 1, 1))
        self.register_buffer("up", 1 / self.gain.detach())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.b(F.silu(self.a(x) * self.gain * self.up))).mean((2, 3)))


def test_small_numbers_by_which_channels_are_multiplied_are_kept() -> None:
    torch.manual_seed(0)
    network = Gains().eval()
    with torch.no_grad():
        wanted, found = network(X), compressed(network, "pq", **CODED).network(X)
    assert float((found - wanted).norm()) < 0.01 * float(wanted.norm())


class OutOfState(nn.Conv2d):
    def _save_to_state_dict(self, *_: Any) -> None:
        pass

    def _load_from_state_dict(self, *_: Any) -> None:
        pass


class Unsaved(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b = OutOfState(16, 16, 3, padding=1)


def test_weights_that_no_file_would_hold_are_refused(tmp_path: Path) -> None:
    for call in (
        lambda: lowenergy.save(Unsaved().eval(), tmp_path / "x.safetensors", images=IMAGES),
        lambda: compressed(Unsaved(), "quantize", **ROUNDED),
    ):
        with pytest.raises(UserError, match=r"b\.(bias|weight) is not in its state dict"):
            call()
    assert not list(tmp_path.iterdir())


def test_torchs_wrapper_of_layers_to_be_computed_twice_is_taken_off() -> None:
    network = Net()
    network.b = checkpoint_wrapper(network.b)
    made = compressed(network, "quantize", finetune={"epochs": 2, "lr": 0.01}, retrain=NOTHING)
    assert made.model.tensors["body.b.weight"].kind == "int8"


class TwoNames(Net):
    def __init__(self) -> None:
        super().__init__()
        self.n = nn.BatchNorm2d(16)
        self.block = nn.Sequential(self.b, self.n, nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(F.silu(self.a(x))).mean((2, 3)))


def test_a_norm_under_two_names_is_stored_once(tmp_path: Path) -> None:
    network, path = TwoNames().eval(), tmp_path / "x.safetensors"
    lowenergy.save(network, path, images=IMAGES)
    assert torch.equal(lowenergy.load(path, network=TwoNames())(X), network(X))
    made = compressed(network, "prune", **PRUNED)
    made.save(path)
    assert torch.equal(lowenergy.load(path, network=TwoNames())(X), made.network(X))


class AsksItsNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.n = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.silu(self.a(x)))
        assert x.shape[1] == self.n.num_features
        return self.fc(F.silu(self.n(x)).mean((2, 3)))


def test_a_norm_that_its_network_asks_stays(capsys: Any) -> None:
    assert compressed(AsksItsNorm(), "quantize", **ROUNDED).network(X).isfinite().all()
    assert "norms that are not folded: body.n" in capsys.readouterr().err


class Expanded(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.full((1,), 0.3).expand(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.b(F.silu(self.a(x)))).mean((2, 3)) + self.shift)


def test_an_expanded_buffer_is_one_like_others() -> None:
    network = Expanded()
    assert torch.allclose(compressed(network, "prune", **{**PRUNED, "amount": 0.01}).network(X), network(X), atol=0.1)


def test_weights_that_are_quantized_already_are_refused() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    network = Net()
    quantize_(network, Int8WeightOnlyConfig())
    with pytest.raises(UserError, match=r"fc\.weight is a \w+; give plain weights"):
        compressed(network, "prune", **PRUNED)


class MasksInPlace(nn.Conv2d):
    mask: Tensor

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        mask = torch.ones_like(self.weight)
        mask[:, :, 1, 2:] = mask[:, :, 2:] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class Pixels(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b = MasksInPlace(16, 16, 3, padding=1)


def test_weights_that_are_written_where_they_are_used_do_not_stay_coded(tmp_path: Path) -> None:
    made = compressed(Pixels(), "pq", **{**CODED, **FEW})
    made.save(path := tmp_path / "x.safetensors")
    assert torch.equal(lowenergy.load(path, network=Pixels())(X), made.network(X))
    with pytest.raises(UserError, match="writes into its weights where it uses them"):
        lowenergy.load(path, network=Pixels(), coded=True)


class Overflowing(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (x.amax() < 0.9)  # not of the images that are tried


def test_answers_that_are_not_finite_stay_coded(tmp_path: Path) -> None:
    made = compressed(Overflowing(), "pq", images=IMAGES.clamp(max=200), **{**CODED, **FEW})
    made.save(path := tmp_path / "x.safetensors")
    bright = torch.ones(2, 3, 8, 8)
    for coded in (False, True):
        assert not lowenergy.load(path, network=Overflowing(), coded=coded)(bright).isfinite().any()


# -- zeros, counts, numbers -------------------------------------------------------------------------------------------


def test_what_was_pruned_is_trained_on_rounded() -> None:
    """The hooks that keep zeros are gone when the new graph's gradients are compared with the network's."""
    pruned = compressed(Net(), "prune", **{**PRUNED, "amount": 0.7})
    again = lowenergy.compress(
        pruned, "quantize", accept_chance=True, calibration_images=20, finetune=NOTHING, retrain={"epochs": 1}
    )
    for name, part in again.model.tensors.items():
        if name.endswith("weight"):
            zeros = pruned.model.tensors[name].decode() == 0
            assert zeros.any() and not part.decode()[zeros].any()


class Products(Net):
    def __init__(self) -> None:
        super().__init__()
        self.pairs, self.v = nn.Bilinear(16, 16, 16), nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.b(F.silu(self.a(x)))).mean((2, 3))
        return self.fc(self.pairs(x, x)) * (x @ self.v)[:, None]


def test_products_of_three_and_of_a_vector_are_counted() -> None:
    counts = [compressed(kind(), "prune", **PRUNED).card(IMAGES, LABELS).macs for kind in (Net, Products)]
    assert counts[1] - counts[0] == 16 * 16 * 16 + 16 * 16 + 16


class HandsOn(Net):
    """A weight of its own goes into the next module beside what it has computed, as class tokens do."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 3)

        def forward(self, both: Any) -> Tensor:
            return self.fc(both[0] + both[1])

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.token = HandsOn.Last(), nn.Parameter(torch.zeros(1, 16))  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((F.silu(self.b(F.silu(self.a(x)))).mean((2, 3)), self.token.expand(len(x), -1)))


def test_weights_that_are_handed_on_do_not_keep_operations_from_being_counted() -> None:
    counts = [compressed(kind(), "prune", **PRUNED).card(IMAGES, LABELS).macs for kind in (Net, HandsOn)]
    assert counts[0] == counts[1]


def test_blocks_longer_than_any_row_are_found_at_once() -> None:
    long = dict.fromkeys(("block_conv", "block_small", "block_1x1", "block_fc"), 10**9)
    assert compressed(Net(), "pq", **{**CODED, **FEW, **long}).size_bytes > 0


def test_labels_in_any_order_and_holder() -> None:
    wanted = compressed(Net(), "prune", **PRUNED).card(IMAGES, LABELS)
    assert wanted.accuracy is not None
    for labels in (LABELS.flip(0).numpy()[::-1], deque(LABELS.tolist()), dict(enumerate(LABELS.tolist())).values()):
        assert compressed(Net(), "prune", **PRUNED, labels=labels).card(IMAGES, labels).images == wanted.images


def test_a_loader_without_end_is_ended_by_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 10**6))
    with pytest.raises(UserError, match="fill half of the free disk at .* does the loader ever end"):
        compressed(Net(), "prune", images=itertools.cycle([(IMAGES, LABELS)]), labels=None)


def test_what_was_made_is_pickled_without_its_graph() -> None:
    made = compressed(Net(), "quantize", **ROUNDED)
    made.network(X)
    again = pickle.loads(pickle.dumps(made))
    assert again.to_bytes() == made.to_bytes() and torch.equal(again.network(X), made.network(X))


def test_a_bias_of_another_shape_is_one_line(tmp_path: Path) -> None:
    """Which only a damaged file has."""
    model = compressed(Net(), "quantize", **ROUNDED).model
    for shape in ((1, 16), (5,)):
        wrong = replace(model, tensors={**model.tensors, "body.b.bias": Dense(torch.ones(shape))})
        with pytest.raises(UserError, match="cannot be built") as error:
            to_onnx.export(wrong, {}, tmp_path / "x.onnx")
        assert "\n" not in str(error.value)


def test_a_file_of_an_unknown_target_has_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowenergy, "evaluate", lambda *_, **__: SimpleNamespace(accuracy=None))
    made = compressed(Net(), "prune", **PRUNED)
    artifact.save(replace(made.model, target="other"), tmp_path / "x.safetensors", made.provenance)
    with pytest.raises(UserError, match="its target, 'other', has no accuracy"):
        commands.score(tmp_path / "x.safetensors")


# -- C ----------------------------------------------------------------------------------------------------------------


class Times(Net):
    def forward(self, x: Tensor) -> Tensor:
        for t in torch.linspace(0, 1, 3):
            x = x + torch.full_like(x[:, :1], t.item())
        return super().forward(x)


class Halves(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        n, c, height, width = x.shape
        return self.fc(
            F.silu(self.b(x.reshape(2 * n, c // 2, height, width)).reshape(n, c, height, width)).mean((2, 3))
        )


@pytest.mark.parametrize(
    ("kind", "said"), [(Times, "as it is used here"), (Halves, r"convolution of 2 images at a time \(after layer")]
)
def test_operations_used_as_c_knows_them_not_are_named(
    kind: Callable[[], nn.Module], said: str, tmp_path: Path
) -> None:
    lowenergy.save(kind().eval(), tmp_path / "x.safetensors", images=IMAGES)
    with pytest.raises(UserError, match=f"no C form of .*{said}") as error:
        lowenergy.export(tmp_path / "x.safetensors", tmp_path / "c", to="c", network=kind())
    assert "\n" not in str(error.value)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slopes[0]


@pytest.mark.parametrize(
    ("kind", "what"),
    {
        "torchvision": (lambda x: roi_align(x, [torch.tensor([[0.0, 0.0, 4.0, 4.0]])] * len(x), 2), "roi_align"),
        "marked": (Once.apply, "once_differentiable"),
    }.values(),
)
def test_what_cannot_be_differentiated_twice_is_said_in_one_line(kind: Callable[[Tensor], Tensor], what: str) -> None:
    images = X.clone().requires_grad_()
    one_line = pytest.raises(UserError, match=rf"ebm: .*{what}.*; an energy is differentiated twice")
    with one_line, loop._explained(cast(Run, SimpleNamespace(name="ebm"))):
        (slopes,) = torch.autograd.grad(kind(images).square().sum(), images, create_graph=True)
        slopes.square().sum().backward()
