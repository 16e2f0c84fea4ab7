"""What is exported computes the same in onnxruntime, or is refused in one line that names the operation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from conftest import ROOT
from test_gradient import assert_same_gradient
from torch import Tensor, nn
from torch.nn import functional as F

import lowenergy
from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.base.files import FileError
from lowenergy.networks.foreign import Foreign
from lowenergy.runtimes import sampling, to_onnx
from lowenergy.storage import artifact
from lowenergy.storage.encodings import Range

HEADER = {"provenance": {"sampler": {"step_size": 0.05, "noise": 0.015, "gradient_clamp": 5.0, "chain_steps": 20}}}


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def resized(**how: Any) -> nn.Module:
    return Call(lambda x: F.interpolate(x, **how))


class Between(nn.Module):
    """Some layers between a convolution and the outputs."""

    def __init__(self, *layers: nn.Module, outputs: int = 3) -> None:
        super().__init__()
        self.first, self.layers = nn.Conv2d(1, 4, 3, padding=1), nn.Sequential(*layers)
        self.last = nn.Linear(self.layers(self.first(torch.zeros(2, 1, 8, 8))).flatten(1).shape[1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(self.first(x)).flatten(1))


def model_of(*layers: nn.Module, head: str | None = None) -> artifact.Model:
    torch.manual_seed(0)
    body = Between(*layers).eval()
    spec = networks.Spec("nets/own.py:Net", channels=1, image_size=8, outputs=3, head=head, arguments={})
    network = Foreign(spec, body).eval()
    network.find_layers()
    model = artifact.dense(network, "jem" if head else "classifier")
    return replace(model, spec=replace(model.spec, given=networks.Given(network)), origin="m.safetensors")


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "average": lambda: nn.AvgPool2d(2),
    "average, overlapping, at borders fewer": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average, ceil": lambda: nn.AvgPool2d((3, 2), (2, 3), (1, 0), ceil_mode=True),
    "average, of a size of its own": lambda: nn.AvgPool2d(2, divisor_override=3),
    "adaptive average": lambda: nn.AdaptiveAvgPool2d(3),
    "adaptive average, one side": lambda: nn.AdaptiveAvgPool2d((5, None)),
    "adaptive average, up": lambda: nn.AdaptiveAvgPool2d(11),
    "adaptive maximum": lambda: nn.AdaptiveMaxPool2d((3, 5)),
    "adaptive maximum, up": lambda: nn.AdaptiveMaxPool2d(11),
    "norm of neighbours": lambda: nn.LocalResponseNorm(3),
    "power": lambda: nn.LPPool2d(2, 3),
    "replicate": lambda: nn.ReplicationPad2d((1, 2, 0, 3)),
    "convolution, replicate": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"),
    "reflect": lambda: nn.ReflectionPad2d(2),
    "nearest": lambda: resized(size=(11, 5)),
    "nearest, exact": lambda: resized(size=(11, 5), mode="nearest-exact"),
    "bilinear, smoothed": lambda: resized(size=(5, 3), mode="bilinear", antialias=True),
    "bicubic, smoothed": lambda: resized(size=(5, 3), mode="bicubic", antialias=True),
    "area": lambda: resized(size=(5, 3), mode="area"),
    "mish": lambda: nn.Mish(),
    "log of the sigmoid": lambda: nn.LogSigmoid(),
    "gated": lambda: nn.GLU(1),
    "random slope": lambda: nn.RReLU(),
}


@pytest.mark.parametrize("case", PLAIN)
def test_gradients_are_autograds(case: str) -> None:
    """Backward passes that torch does not decompose."""
    torch.manual_seed(0)
    network = Between(PLAIN[case]()).eval()
    assert_same_gradient(network, "logsumexp", torch.rand(5, 1, 8, 8) * 2 - 1)


CHAINS: dict[str, tuple[str, ...]] = {
    "down": ("mish", "average, overlapping, at borders fewer", "replicate", "norm of neighbours", "adaptive average"),
    "up": ("nearest", "average, of a size of its own", "random slope", "adaptive maximum", "nearest, exact", "power"),
    "smoothed": ("bilinear, smoothed", "adaptive average, one side", "log of the sigmoid", "bicubic, smoothed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
def test_plain_operations_are_exported(tmp_path: Path, chain: str) -> None:
    """As an energy with its step; export itself compares with torch."""
    model = model_of(*(PLAIN[name]() for name in CHAINS[chain]), head="logsumexp")
    to_onnx.export(model, HEADER, tmp_path / "m.onnx")
    assert_steps_alike(model, tmp_path / "m.onnx")


def assert_steps_alike(model: artifact.Model, path: Path) -> None:
    """By other images than export looks at."""
    images, noise = torch.rand(5, 1, 8, 8) * 2 - 1, torch.zeros(5, 1, 8, 8)
    session = onnxruntime.InferenceSession(path)
    energy, moved = session.run(["energy", "next"], {"images": images.numpy(), "noise": noise.numpy()})
    images.requires_grad_()
    wanted = -model.build()(images).logsumexp(1)
    (gradient,) = torch.autograd.grad(wanted.sum(), images)
    torch.testing.assert_close(torch.from_numpy(energy), wanted.detach(), rtol=1e-4, atol=1e-4)
    step = (images - 0.05 * gradient.clamp(-5, 5)).clamp(-1, 1).detach()
    torch.testing.assert_close(torch.from_numpy(moved), step, rtol=0, atol=1e-5)


def attending(x: Tensor) -> Tensor:
    """Heads among the batch, as SAM's are, with a bias of each."""
    x = x.flatten(2)  # (n, 4, 64)
    one = F.scaled_dot_product_attention(x, x, x, x @ x.mT, 0.0)
    return F.scaled_dot_product_attention(one, x, x, attn_mask=x @ x.mT)


@pytest.mark.parametrize("case", ["adaptive maximum", "average, of a size of its own", "attention of three dimensions"])
def test_classifiers_of_operations_that_no_exporter_knows(tmp_path: Path, case: str) -> None:
    model = model_of(PLAIN[case]() if case in PLAIN else Call(attending))
    to_onnx.export(model, {}, tmp_path / "m.onnx")
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    (logits,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model.build()(images).detach(), rtol=1e-4, atol=1e-5)


def refused(tmp_path: Path, model: artifact.Model) -> str:
    with pytest.raises(FileError) as error:
        to_onnx.export(model, HEADER, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    assert len(str(error.value).splitlines()) == 1 and str(error.value).isprintable()
    return str(error.value).removeprefix("m.safetensors: ")


@pytest.mark.parametrize(
    ("layer", "head", "operation"),
    [
        (nn.FractionalMaxPool2d(2, output_size=3), None, "aten.fractional_max_pool2d"),
        (Call(lambda x: x.cummax(2)[0]), None, "aten.cummax"),
        (Call(lambda x: x - x.median(1, keepdim=True)[0]), "mean", "aten.median"),
    ],
)
def test_what_has_no_form_is_one_line_that_names_it(
    tmp_path: Path, layer: nn.Module, head: str | None, operation: str
) -> None:
    assert refused(tmp_path, model_of(layer, head=head)) == f"no ONNX form: {operation} has none; nothing is written"


@pytest.mark.slow
def test_what_onnxruntime_computes_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.15 exports averages of a size of their own as plain ones, in silence."""
    monkeypatch.setattr(to_onnx, "FORWARD", {})
    said = refused(tmp_path, model_of(nn.Tanh(), nn.AvgPool2d(2, divisor_override=3), nn.Tanh()))
    assert "onnxruntime's output `logits` is off by " in said and "from aten.avg_pool2d.default on; nothing" in said


@pytest.mark.slow
def test_a_wrong_gradient_is_refused_in_files_and_in_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(nn.SiLU(), head="mean")
    plain = to_onnx.gradient_graph

    def wrong(*args: Any) -> Any:
        graph = plain(*args)
        last = next(node for node in graph.graph.nodes if node.op == "output")
        logits, gradient = last.args[0]
        with graph.graph.inserting_before(last):
            less = graph.graph.call_function(torch.ops.aten.mul.Tensor, (gradient, 0.97))
        last.args = ((logits, less),)
        graph.recompile()
        return graph

    monkeypatch.setattr(to_onnx, "gradient_graph", wrong)
    assert "onnxruntime's output `next` is off by 0.03 of its spread" in refused(tmp_path, model)
    to_onnx.export(model, HEADER, tmp_path / "scores.onnx", sampler=False)
    sampling.fastest(model, model.build(), images=10**9)
    assert "sampling by autograd: m.safetensors: onnxruntime's output `gradient` is off by" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_tie_moves_in_torch_it_may_move_in_onnxruntime() -> None:
    model = replace(model_of(nn.ReLU()), activations={"first:in": Range(0.1, 0)})
    images, _ = to_onnx.looked_at(model.spec.input_shape)
    run, [(logits, _)] = to_onnx._made(replace(model, activations={}), images, gradient=False, kept=False)
    spread = float((logits - logits.mean(0)).norm())
    wanted = logits + 0.1 * spread * logits / logits.norm()
    with pytest.raises(FileError, match="`logits` is off by 0.09"):
        to_onnx._checked(run, {"images": images}, {"logits": wanted}, model, near=[{"logits": wanted}])
    to_onnx._checked(run, {"images": images}, {"logits": wanted}, model, near=[{"logits": logits}])


@pytest.mark.parametrize("head", [None, "mean"])
def test_a_dead_channel_keeps_its_bias_in_int8_kernels(tmp_path: Path, head: str | None) -> None:
    """As onnxruntime is used by default, not as the export compares it."""
    torch.manual_seed(0)
    body = Between(nn.Conv2d(4, 4, 3), nn.ReLU())
    with torch.no_grad():
        body.layers[0].weight[:3], body.layers[0].bias[:3] = 0, torch.tensor([0.5, 1.0, 2.0])
    images, _ = to_onnx.looked_at((1, 8, 8))
    given = {"images": images.repeat(8, 1, 1, 1), "labels": torch.arange(64) % 3}
    constants = {} if head is None else {"step_size": 0.05, "noise": 0.015, "gradient_clamp": 5.0, "chain_steps": 20}
    small = lowenergy.compress(
        body, "quantize", **given, head=head, **constants, calibration_images=20, accept_chance=True, device="cpu"
    )
    lowenergy.export(small, tmp_path / "m.onnx", sampler=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    with torch.no_grad():
        wanted = small.network(images) if head is None else small.network(images).mean(1)
    assert (found - wanted).norm() <= 0.05 * wanted.norm()


def test_outputs_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, model_of(Call(torch.log))).startswith("its output `logits` is not finite, in torch either")


@pytest.mark.slow
def test_networks_that_draw_have_no_one_answer(tmp_path: Path) -> None:
    assert "from aten." in refused(tmp_path, model_of(Call(lambda x: F.dropout(x, 0.5, training=True))))


def test_more_than_a_file_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx, "LARGEST_FILE", 1000)
    assert "an ONNX file has at most 2 GiB" in refused(tmp_path, model_of())


def test_what_cannot_be_traced_is_one_line(tmp_path: Path) -> None:
    for head in (None, "mean"):
        with pytest.raises(UserError) as error:
            to_onnx.export(model_of(Call(lambda x: x if x.sum() > 0 else -x), head=head), HEADER, tmp_path / "m.onnx")
        assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_outputs_may_be_off_by_what_errors_of_rounding_do() -> None:
    images, _ = to_onnx.looked_at((1, 8, 8))
    edge = images.flatten(1)[:, :4].clone()

    class Jumping(nn.Module):  # as rounded layers do, at ties
        def forward(self, images: Tensor) -> Tensor:
            flat = images.flatten(1)
            return flat[:, 4:8] + (flat[:, :4] > edge)

    assert to_onnx._own_errors(Jumping(), {"images": images}, ["logits"], {}, 0.3) == {"logits": 0.3}
    smooth = to_onnx._own_errors(nn.Flatten(), {"images": images}, ["logits"], {}, 0.3)
    assert 0 < smooth["logits"] < 1e-4


def test_large_graphs_are_exported_without_being_rewritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small ones are, and their files are smaller for it; export itself compares the answers."""
    model, header = artifact.read(ROOT / "pretrained/mnist-ebm-12k.safetensors", trust=None)
    sizes = []
    for most in (to_onnx.REWRITTEN, 0):
        monkeypatch.setattr(to_onnx, "REWRITTEN", most)
        to_onnx.export(model, header, tmp_path / "x.onnx")
        sizes.append((tmp_path / "x.onnx").stat().st_size)
    assert 0.8 * sizes[1] < sizes[0] < sizes[1]
