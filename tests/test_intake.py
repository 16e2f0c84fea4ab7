"""Taking in networks that are not ours, as their authors write and keep them, or one line that says what is wrong."""

import argparse
import copy
import dataclasses
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch
from conftest import with_changes
from safetensors.torch import save_file, save_model
from timm.layers import ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.prune import l1_unstructured

import lowenergy
from lowenergy import data, energies, networks, params, targets
from lowenergy.base.errors import UserError
from lowenergy.compression import distill, pq, prune, quantize
from lowenergy.networks import Foreign, NetworkError, Spec
from lowenergy.networks.importing import imported
from lowenergy.params import Architecture
from lowenergy.runtimes.loading import network_of
from lowenergy.storage import artifact
from lowenergy.targets.ebm import EnergyArchitecture
from lowenergy.training import Run

IMAGES = 2 * torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
METHODS: dict[str, Any] = {"prune": prune, "quantize": quantize, "pq": pq, "distill": distill}


class Net(nn.Module):
    """Two convolutions and a layer; what is odd about the others stands on these."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(128, classes)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return F.avg_pool2d(x + F.relu(self.b(x)), 2).flatten(1)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.features(x))


# -- networks that are right, odd as they are -------------------------------------------------------------------------


class TwoNames(Net):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.b

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return F.avg_pool2d(F.relu(self.again(x + F.relu(self.b(x)))), 2).flatten(1)


class Tied(TwoNames):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.again.weight = self.b.weight


class TiedLater(Tied):
    """The layer whose weight it is comes second."""

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return F.avg_pool2d(F.relu(self.b(x + F.relu(self.again(x)))), 2).flatten(1)


class TiedToNoLayer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(10, 128)
        self.fc.weight = self.first.weight


class Lists(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(8, 1, 1)) for _ in range(2)])
        self.named = nn.ParameterDict({"shift": nn.Parameter(torch.zeros(8, 1, 1))})

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x) * self.gains[0] + self.named["shift"])
        return F.avg_pool2d(x + self.gains[1] * F.relu(self.b(x)), 2).flatten(1)


class Lazy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.norm, self.fc = nn.LazyConv2d(8, 3, padding=1), nn.LazyBatchNorm2d(), nn.LazyLinear(10)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return F.avg_pool2d(x + F.relu(self.norm(self.b(x))), 2).flatten(1)


class Buffers(Net):
    def __init__(self, kind: str) -> None:
        super().__init__()
        table = torch.linspace(0.5, 1.5, 64, dtype=torch.float64).view(8, 8)
        self.register_buffer("table", (table > 1 if kind == "bool" else 100 * table).to(getattr(torch, kind)))
        self.register_buffer("once", torch.ones(1), persistent=False)
        self.register_buffer("nothing", None)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        table = self.table.real if self.table.is_complex() else self.table
        return super().forward(x * table.float() / 100 * self.once * self.count)


class Standardised(Net):
    """Its weights are computed in its own forward pass: just layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = StdConv2d(1, 8, 3, padding=1), ScaledStdConv2d(8, 8, 3, padding=1)


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a.weight.requires_grad_(False)
        self.unused = nn.Linear(3, 3)


class Double(Net):
    def __init__(self, kind: str = "float64") -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.to(getattr(torch, kind))

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        return F.avg_pool2d(x + F.relu(self.b(x)), 2).flatten(1)


class Versioned(Net):
    """As MNASNet, it loads no state without the version of who wrote it."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, local: Any, *rest: Any) -> None:
        if local.get("version") != 2:
            raise ValueError(f"version should be 2, not {local.get('version')}")
        super()._load_from_state_dict(state, prefix, local, *rest)


class Norms1d(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(128)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.features(x)))


class Extra(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor(2.0)

    def get_extra_state(self) -> Tensor:
        return self.scale

    def set_extra_state(self, state: Tensor) -> None:
        self.scale = state

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def wrapped(kind: str) -> nn.Module:
    if kind == "compiled inside":
        net = Net()
        net.a = torch.compile(net.a)
        return net
    return {"parallel": nn.DataParallel, "compiled": torch.compile}[kind](Net())


RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    **{cls.__name__: (cls.__name__, {}) for cls in (TwoNames, Tied, TiedLater, TiedToNoLayer, Lists, Lazy, Frozen)},
    **{cls.__name__: (cls.__name__, {}) for cls in (Versioned, Norms1d, Extra, Standardised)},
    **{
        f"Buffers {kind}": ("Buffers", {"kind": kind})
        for kind in ("complex64", "float64", "bfloat16", "float16", "int16", "int64", "uint8", "bool")
    },
    **{f"Double {kind}": ("Double", {"kind": kind}) for kind in ("float64", "float16", "bfloat16")},
    **{kind: ("wrapped", {"kind": kind}) for kind in ("parallel", "compiled", "compiled inside")},
}


def taken(
    name: str,
    arguments: dict[str, Any] | None = None,
    *,
    head: str | None = None,
    weights: str | None = None,
    **how: Any,
) -> Any:
    """The network as the teacher stage takes it in."""
    path = name if ":" in name or "." in name else f"test_intake.{name}"
    spec = Spec(path, channels=1, image_size=8, outputs=0 if head else 10, head=head, arguments=arguments or {})
    architecture = Architecture(name=path, arguments=arguments or {}, weights=weights)
    return networks.of_params(
        architecture, spec, seed=0, where="classifier.architecture", images=IMAGES, **{"batch_size": 64, **how}
    )


def trained(network: Any, steps: int = 3) -> Any:
    """By a few steps, and settled, as the teacher stage does it."""
    optimizer = torch.optim.SGD([w for w in network.parameters() if w.requires_grad], 0.05)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        sum(F.cross_entropy(part, torch.arange(5)) for part in network.outputs(IMAGES)).backward()
        optimizer.step()
    return networks.settled(network, IMAGES, "classifier")


@pytest.mark.parametrize("case", RIGHT)
def test_file_and_back(case: str, tmp_path: Path) -> None:
    network = trained(taken(*RIGHT[case]))
    artifact.save(artifact.dense(network, "classifier"), tmp_path / "m", {})
    loaded = lowenergy.load(tmp_path / "m", trust=["test_intake"])
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), network(IMAGES))
    kept, state = network.state_dict(), loaded.state_dict()
    assert kept.keys() == state.keys()
    for name, value in kept.items():
        if not name.endswith("num_batches_tracked"):
            assert value.dtype == state[name].dtype and torch.equal(value, state[name]), name


@pytest.fixture
def compress(small_values: Any, splits: data.Splits, tmp_path: Path) -> Any:
    few = data.Split(splits.train.images[:128], splits.train.labels[:128])
    splits = replace(splits, train=few)

    def run(method: str, network: Any, changes: dict[str, Any] | None = None, target: str = "classifier") -> Any:
        always = {
            "prune.scan_images": 0,
            "prune.retrain.epochs": 0,
            "pq.allocation": "uniform",
            "distill.train.epochs": 1,
            **{f"{method}.finetune.epochs": 0 for method in ("prune", "pq", "quantize")},
        }
        p = params.check(with_changes(small_values, {**always, **(changes or {})}))
        run = Run(f"{target}-{method}", 0, [], root=tmp_path)
        objective = targets.get(target).objective(copy.deepcopy(network), splits, getattr(p, target), run)
        model = METHODS[method].compress(copy.deepcopy(network), target, objective, getattr(p, method), run)
        artifact.save(model, tmp_path / "made", {})
        read, header = artifact.read(tmp_path / "made", trust=["test_intake"])
        return read, header, network_of(read)

    return run


@pytest.mark.parametrize("method", ["prune", "quantize", "pq", "distill"])
@pytest.mark.parametrize("case", ["TwoNames", "Tied", "TiedLater"])
def test_tied_weights_stay_tied(compress: Any, case: str, method: str) -> None:
    network = trained(taken(case))
    again = "body.again.weight"
    finetuned = {} if method == "distill" else {f"{method}.finetune.epochs": 1}
    model, header, made = compress(method, network, finetuned)
    with torch.no_grad():
        assert torch.equal(made(IMAGES), model.build()(IMAGES)) == (method != "quantize")
    if method == "distill":
        return
    assert header["tied"][again] == "body.b.weight" and again not in model.tensors
    state = model.build().state_dict()
    assert torch.equal(state[again], state["body.b.weight"])
    assert not torch.equal(state[again], network.state_dict()[again])
    kind = {"prune": "sparse", "quantize": "int8", "pq": "pq"}[method]
    assert model.tensors["body.b.weight"].kind == kind


@pytest.mark.parametrize(
    ("case", "method"),
    [
        *((f"Buffers {kind}", method) for kind in ("complex64", "float64", "bfloat16") for method in ("prune", "pq")),
        *((case, "quantize") for case in ("Buffers complex64", "Frozen", "Versioned")),
    ],
)
def test_every_branch(compress: Any, case: str, method: str) -> None:
    network = trained(taken(*RIGHT[case]))
    model, _, made = compress(method, network)
    with torch.no_grad():
        assert made(IMAGES).isfinite().all()
        if method != "prune":
            assert float((made(IMAGES) - network(IMAGES)).norm() / network(IMAGES).norm()) < 0.7
    if "Buffers" in case:  # as they are, not rounded
        stored, own = model.tensors["body.table"].decode(), network.state_dict()["body.table"]
        assert stored.dtype == own.dtype and torch.equal(stored, own)


def test_structured_pruning_leaves_tied_layers_right(compress: Any) -> None:
    changed = {"prune.kind": "structured", "prune.amount": 0.3}
    _, _, made = compress("prune", trained(taken("TwoNames")), changed)
    with torch.no_grad():
        assert made(IMAGES).shape == (5, 10)
    with pytest.raises(UserError, match=r"no channels of .* can go: body\.again shares its weight; give unstructured"):
        compress("prune", trained(taken("Tied")), changed)


# -- computed weights -------------------------------------------------------------------------------------------------


def scaled(module: nn.Module, name: str) -> None:
    """A hook that somebody wrote: a weight of norm 1."""
    weight = module._parameters.pop(name)
    module.register_parameter(f"{name}_raw", weight)
    module.register_buffer("calls", torch.zeros(1))

    def hook(module: Any, _: Any) -> None:
        raw = getattr(module, f"{name}_raw")
        setattr(module, name, raw / raw.norm())

    hook(module, None)
    module.register_forward_pre_hook(hook)


def projected(module: Any) -> None:
    """Another one: it writes into the parameter."""

    def hook(module: Any, _: Any) -> None:
        module.weight.data = module.weight.data / module.weight.data.norm()

    module.register_forward_pre_hook(hook)


def watched(module: nn.Module) -> None:
    """And one that sets nothing."""
    module.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.5,))


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / (1 + weight.abs())


class PoweredInEvaluation(nn.Module):
    """A spectral norm as many have written it, whose power iteration never rests."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("u", torch.randn(len(weight)))

    def forward(self, weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(flat.t() @ self.u, dim=0)
            self.u.copy_(F.normalize(flat @ v, dim=0))
        return weight / (self.u @ flat @ v)


class Computed(Net):
    def __init__(self, kind: str, classes: int = 10) -> None:
        super().__init__(classes)
        for layer in (self.a, self.b, self.fc):
            if kind in ("spectral_norm", "weight_norm"):
                getattr(nn.utils, kind)(layer)
            elif kind.startswith("parametrizations."):
                getattr(parametrizations, kind.partition(".")[2])(layer)
            elif kind == "scaled":
                scaled(layer, "weight")
            elif kind == "projected":
                projected(layer)
            elif kind == "watched":
                watched(layer)
            elif kind == "two":
                parametrizations.weight_norm(layer)
                parametrize.register_parametrization(layer, "weight", Half())
                parametrize.register_parametrization(layer, "bias", Half())
            elif kind == "powered":
                parametrize.register_parametrization(layer, "weight", PoweredInEvaluation(layer.weight))
            elif kind == "pruned":
                l1_unstructured(layer, "weight", 0.3)


COMPUTED = [
    *("spectral_norm", "weight_norm", "parametrizations.spectral_norm", "parametrizations.weight_norm"),
    *("parametrizations.orthogonal", "scaled", "projected", "two", "powered", "pruned"),
]


@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_weights_become_plain(kind: str, tmp_path: Path, capsys: Any) -> None:
    network = taken("Computed", {"kind": kind})
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        network(IMAGES).square().mean().backward()
        optimizer.step()
    network.eval()
    if kind == "powered":
        with torch.no_grad():  # each call goes on from the one before
            for _ in range(200):
                network(IMAGES)
    with torch.no_grad():
        wanted = network(IMAGES)
    network = networks.settled(network, IMAGES, "classifier")
    with torch.no_grad():
        torch.testing.assert_close(network(IMAGES), wanted)
    assert "a.weight, " in capsys.readouterr().out
    of_layers = {f"body.{layer}.{part}" for layer in ("a", "b", "fc") for part in ("weight", "bias")}
    assert {name for name, _ in network.named_parameters()} == of_layers == set(networks.stored_state(network))
    assert network.layers == ("body.a", "body.b", "body.fc")
    artifact.save(artifact.dense(network, "classifier"), tmp_path / "m", {})
    with torch.no_grad():
        assert torch.equal(lowenergy.load(tmp_path / "m", trust=["test_intake"])(IMAGES), network(IMAGES))
        handed = lowenergy.load(tmp_path / "m", network=Computed(kind))
        assert torch.equal(handed(IMAGES), network(IMAGES))


def test_hooks_that_set_no_weight_stay() -> None:
    network = taken("Computed", {"kind": "watched"})
    wanted = network.eval()(IMAGES)
    assert torch.equal(networks.settled(network, IMAGES, "")(IMAGES), wanted)
    assert sum(len(module._forward_pre_hooks) for module in network.modules()) == 3


@pytest.mark.parametrize("kind", ["spectral_norm", "parametrizations.weight_norm", "scaled"])
def test_computed_weights_are_compressed(compress: Any, kind: str) -> None:
    network = trained(taken("Computed", {"kind": kind}))
    model, _, _ = compress("prune", network)
    values = [model.tensors[f"{name}.weight"].decode() for name in network.layers]
    zeros = sum(int((value == 0).sum()) for value in values) / sum(value.numel() for value in values)
    assert zeros == pytest.approx(0.7, abs=0.005)
    if kind == "scaled":
        model, _, _ = compress("quantize", network)
        assert {model.tensors[f"{name}.weight"].kind for name in network.layers} == {"int8"}
    model, _, _ = compress("pq", network)
    assert [model.tensors[f"{name}.weight"].kind for name in network.layers] == ["dense", "pq", "pq"]


def test_an_energy_of_computed_weights(
    compress: Any, small: params.Params, splits: data.Splits, tmp_path: Path
) -> None:
    few = replace(splits, train=data.Split(splits.train.images[:128], splits.train.labels[:128]))
    architecture = EnergyArchitecture(
        name="test_intake.Computed", arguments={"kind": "spectral_norm", "classes": 1}, head="scalar"
    )
    p = small.ebm.model_copy(update={"architecture": architecture})
    network = targets.get("ebm").train(few, p, Run("ebm", 0, [], root=tmp_path))
    assert "body.a.weight" in dict(network.named_parameters())
    for method in ("prune", "pq", "quantize"):
        model, _, _ = compress(method, network, target="ebm")
        assert model.tensors["body.b.weight"].kind != "dense"


def test_weights_computed_elsewhere_are_left_out() -> None:
    for keeps_gradient in (False, True):
        network = trained(taken("SetByOthers", {"trained": keeps_gradient}))
        assert network.layers == ("body.a", "body.fc")


class SetByOthers(Net):
    """One layer's weight is made by the network's own code."""

    def __init__(self, trained: bool = False) -> None:
        super().__init__()
        self.code, self.trained = nn.Parameter(0.1 * torch.randn(8, 8, 3, 3)), trained
        del self.b.weight
        self.b.weight = self.code.detach()

    def forward(self, x: Tensor) -> Tensor:
        self.b.weight = self.code.tanh() if self.trained else self.code.detach().tanh()
        return super().forward(x)


# -- refused in one line ----------------------------------------------------------------------------------------------


class Companions(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class NoStatistics(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)

    def features(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.relu(self.norm(self.a(x))), 2).flatten(1)


class FixedBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return (
            super().forward(x).view(-1, 2, 5)[:, 0].reshape(-1, 2, 5).flatten(1) if len(x) > 1 else super().forward(x)
        )


class Squeezed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class OnlyMany(Net):
    def forward(self, x: Tensor) -> Tensor:
        assert len(x) > 1, "give me more"
        return super().forward(x)


class Dropping(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5))


class Counting(Net):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return super().forward(x)


class CountingBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return super().forward(x)


class Remembering(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mean: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.mean.append(1.0)
        return super().forward(x)


class WritesImages(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


class Overflowing(Net):
    def features(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)).flatten(1)[:, :128].exp().exp().exp()


class NaNVariance(Net):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.norm.running_var[3] = value

    def features(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.relu(self.norm(self.a(x))), 2).flatten(1)


class NaNConstant(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.full((2, 2), torch.nan), persistent=False)


class Infinite(Net):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.b.bias, torch.inf)


class RandomConstant(Net):
    def __init__(self) -> None:
        super().__init__()
        self.order = torch.randperm(128).tolist()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x)[:, self.order])


class TwoInTraining(Net):
    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        return (self.fc(features), features) if self.training else self.fc(features)


class DictInTraining(Net):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return {"out": out, "aux": out} if self.training else out


class Answers(Net):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return {
            "tuple": (out, self.features(x)),
            "list": [out, out],
            "dict": {"logits": out},
            "maps": out[:, :, None, None],
            "none": None,
            "double": out.double(),
            "classes": out.argmax(1),
            "numpy": out.detach().numpy(),
        }[self.kind]


class Objects(Net):
    def get_extra_state(self) -> Any:
        return {"epoch": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


class Sparse(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("graph", torch.eye(3).to_sparse())


class Colon(Net):
    def __init__(self) -> None:
        super().__init__()
        self.named = nn.ParameterDict({"a:b": nn.Parameter(torch.ones(1))})


class Wide(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(2, dtype=torch.complex128))


class NothingTrained(Net):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Locked(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.lock = Lock()
        return super().forward(x)


class WritesOver(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).sigmoid()
        x += 0.1  # of which the derivative of the sigmoid is made
        return self.fc(x)


class UnusedLazy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.LazyLinear(3)


class SharedMemory(Net):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Parameter(self.b.weight.data[:4])

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) + self.part.sum()


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Net()


def pretrained(pretrained: bool = False) -> nn.Module:
    """Another network without its weights, as torchvision's GoogLeNet is."""
    net = Net()
    if pretrained:
        net.scale = nn.Parameter(torch.ones(1))
    return net


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "Companions": ({}, "gives an image other outputs alone than among 3, by .* no image may depend on its companions"),
    "NoStatistics": ({}, "no image may depend on its companions; norms need running statistics"),
    "FixedBatch": ({}, "."),
    "Squeezed": ({}, r"gives \(3, 10\) for 3 images and \(10, 1\) for one|\(10, 1\) for 1 image"),
    "OnlyMany": ({}, "1 image of .*: give me more"),
    "Dropping": ({}, "gives other outputs when asked again, .* dropout must heed self.training"),
    "Counting": ({}, "changes steps in evaluation mode"),
    "CountingBuffer": ({}, "changes seen in evaluation mode"),
    "Remembering": ({}, "changes mean in evaluation mode"),
    "WritesImages": ({}, "writes into the images that it is given; let it work on images.clone()"),
    "Overflowing": ({}, "not finite|gives (inf|nan) for the first of 3 training images; .* is the first whose outputs"),
    "NaNVariance": ({"value": torch.nan}, "norm.running_var is NaN in 1 of its 8 values"),
    "NaNVariance infinite": ({"value": torch.inf}, "norm.running_var is infinite in 1 of its 8 values"),
    "NaNVariance negative": ({"value": -3.0}, "gives nan for the first of 3 training images; norm is the first"),
    "NaNConstant": ({}, "table is NaN in 4 of its 4 values"),
    "Infinite": ({}, "b.bias is infinite in 8 of its 8 values"),
    "RandomConstant": ({}, "built again and given the same weights, it gives other outputs: something in its constr"),
    "TwoInTraining": ({}, r"gives \(3, 10\), \(3, 128\) for 3 images of .* in training mode, and \(3, 10\) in eval"),
    "DictInTraining": ({}, "gives a dict with out, aux, and not logits .*, for 3 images of .* in training mode"),
    "Answers": ({"kind": "tuple"}, r"gives a tuple of \(3, 10\), \(3, 128\), and not logits \(batch, n\)"),
    "Answers list": ({"kind": "list"}, "gives a list of"),
    "Answers dict": ({"kind": "dict"}, "gives a dict with logits"),
    "Answers maps": ({"kind": "maps"}, r"gives \(3, 10, 1, 1\), and not"),
    "Answers none": ({"kind": "none"}, "gives a NoneType"),
    "Answers double": ({"kind": "double"}, "gives float64, and not float32"),
    "Answers classes": ({"kind": "classes"}, "gives int64, and not float32"),
    "Answers numpy": ({"kind": "numpy"}, "gives a ndarray, and not"),
    "Objects": ({}, "_extra_state is a dict; keep it in buffers, as tensors"),
    "Sparse": ({}, "graph is sparse_coo, which no file holds"),
    "Colon": ({}, "named.a:b: a file keeps colons to itself"),
    "Wide": ({}, "table is complex128, which no file holds"),
    "NothingTrained": ({}, "no weight of it can be trained"),
    "Locked": ({}, r"cannot be copied \(copy.deepcopy\) after a forward pass: cannot pickle"),
    "WritesOver": ({}, "gradient cannot be computed: it writes into a tensor in place that its gradient needs"),
    "UnusedLazy": ({}, "unused.weight has no size yet, since the network does not use it"),
    "SharedMemory": ({}, "part and b.weight share memory without being one parameter"),
    "scripted": ({}, "is TorchScript; name the module that it was made from"),
    "on_meta": ({}, "built on the device meta"),
    "pretrained": ({"pretrained": True}, "built again, without pretrained weights, it has other tensors: .*scale"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(case: str) -> None:
    arguments, said = WRONG[case]
    with pytest.raises(NetworkError, match=said) as error:
        taken(case.split(" ")[0], arguments)
    assert len(str(error.value).splitlines()) == 1
    assert case.split(" ")[0] in str(error.value)


def test_what_is_wrong_with_energies_is_one_line() -> None:
    wrong = {"Steps": "has no gradient by the images", "Root": "is not finite", "Aux": "auxiliary"}
    wrong["WritesOver"] = "writes into a tensor in place"
    wrong["SlopeOfCompanions"] = "has other gradients by an image alone than among 3, by .* of their norm"
    wrong["AsksForGradients"] = "gives other outputs, by .* of their norm, where gradients are asked for"
    for name, said in wrong.items():
        with pytest.raises(NetworkError, match=said) as error:
            taken(name, head="mean")
        assert len(str(error.value).splitlines()) == 1


class Steps(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sign().detach())


class Root(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x * 0).square().sum((1, 2, 3)).sqrt()[:, None]


class AsksForGradients(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.5 if x.requires_grad else 1.0)


class OfCompanions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return slopes[0] * len(slopes[0])


class SlopeOfCompanions(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(OfCompanions.apply(x))  # type: ignore[no-untyped-call]


class Aux(Net):
    """Auxiliary classifiers in training mode, as GoogLeNet and Inception have them."""

    def __init__(self, heads: int = 2, aux_logits: bool = True) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(128, 10) for _ in range(heads if aux_logits else 0)])

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        out = self.fc(features)
        return (out, *(head(features) for head in self.heads)) if self.training and len(self.heads) else out


def test_a_batch_of_one_in_training() -> None:
    taken("Norms1d")
    with pytest.raises(NetworkError, match="fails at 1 image of .* more than 1 value per channel"):
        taken("Norms1d", batch_size=1)


def test_training_is_what_divides_by_zero(splits: data.Splits, small: params.Params, tmp_path: Path) -> None:
    """What only training brings about is found before a file is written."""
    network = taken("Net")
    with torch.no_grad():
        network.body.b.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(NetworkError, match="^classifier: after training: b.weight is NaN in 1 of its 576"):
        networks.settled(network, IMAGES, "classifier")


def test_masks_may_be_infinite() -> None:
    network = trained(taken("Masked"))
    assert network(IMAGES).isfinite().all()
    assert network.state_dict()["body.mask"].isinf().sum() == 6  # above the diagonal, as it was


class Masked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))


# -- auxiliary classifiers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "weight"), [(1, 0.4), (2, 0.3)])
def test_auxiliary_classifiers_train_and_leave(
    heads: int, weight: float, splits: data.Splits, small: params.Params, tmp_path: Path, monkeypatch: Any
) -> None:
    losses: list[float] = []
    monkeypatch.setattr(
        "lowenergy.targets.classifier.training.fit",
        lambda network, loss, **_: losses.append(float(loss(network.train(), 0)[0])),
    )
    few = replace(splits, train=data.Split(splits.train.images[:64], splits.train.labels[:64]))
    architecture = Architecture(name="test_intake.Aux", arguments={"heads": heads})
    p = small.classifier.model_copy(update={"architecture": architecture})
    own = p.model_copy(update={"train": p.train.model_copy(update={"crop_padding": 0, "label_smoothing": 0.0})})
    network = targets.get("classifier").train(few, own, Run("classifier", 0, [], root=tmp_path))
    made = networks.build(network.spec, seed=0)
    assert network.state_dict().keys() == made.state_dict().keys()
    assert network.spec.arguments == {"heads": heads, "aux_logits": False} and not len(network.body.heads)

    fresh = Aux(heads).train()
    spec = Spec("test_intake.Aux", channels=1, image_size=8, outputs=10, arguments={"heads": heads})
    fresh.load_state_dict(networks.build(spec, seed=0).body.state_dict())
    images = data.to_float(few.train.images)
    with torch.no_grad():
        logits, *others = fresh(images)
    wanted = F.cross_entropy(logits, few.train.labels) + weight * sum(
        F.cross_entropy(other, few.train.labels) for other in others
    )
    assert losses == [pytest.approx(float(wanted), rel=1e-4)]


# -- weights as people have them --------------------------------------------------------------------------------------


def own_state() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return Net().state_dict()


def prefixed(prefix: str, state: Any = None) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in (state or own_state()).items()}


CHECKPOINTS: dict[str, Any] = {
    "plain": lambda: own_state(),
    "module.": lambda: prefixed("module."),
    "_orig_mod.": lambda: prefixed("_orig_mod."),
    "module._orig_mod.": lambda: prefixed("module._orig_mod."),
    "_orig_mod.module.": lambda: prefixed("_orig_mod.module."),
    "model.": lambda: prefixed("model."),
    "net.backbone.": lambda: prefixed("net.backbone."),
    "state_dict": lambda: {"state_dict": prefixed("module.")},
    "model": lambda: {"model": own_state(), "optimizer": {}, "epoch": 3},
    "replay buffer": lambda: {"model_state_dict": own_state(), "replay_buffer": torch.zeros(3)},
    "optimizer": lambda: {"net": own_state(), "optimizer": torch.optim.Adam(Net().parameters()).state_dict()},
    "ema": lambda: {"ema": {"decay": 0.9, "shadow": own_state()}, "step": torch.tensor(3)},
    "params": lambda: {"params": own_state()},
    "namespace": lambda: {"model": own_state(), "args": argparse.Namespace(lr=1, path=Path("x"))},
    "best": lambda: {"model": own_state(), "best": np.float64(0.5), "other": np.float32(1)},
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(loaded_net()).state_dict(),
    "loss beside it": lambda: {"state_dict": {**prefixed("net."), "loss.weight": torch.ones(3)}, "epoch": 3},
    "checkpointed": lambda: {n.replace("a.", "a._checkpoint_wrapped_module."): v for n, v in own_state().items()},
    "extras in it": lambda: {**own_state(), "epoch": 3, "name": "x"},
    "half": lambda: {name: value.to(torch.float16).float().to(torch.float16) for name, value in own_state().items()},
    "parameters": lambda: dict(loaded_net().named_parameters()),
}


def loaded_net() -> Net:
    net = Net()
    net.load_state_dict(own_state())
    return net


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints_as_people_have_them(case: str, tmp_path: Path, capsys: Any) -> None:
    torch.save(CHECKPOINTS[case](), tmp_path / "w.pt")
    network = taken("Net", weights=str(tmp_path / "w.pt"), batch_size=0)
    for name, value in own_state().items():
        wanted = value.half().float() if case == "half" else value
        assert torch.equal(network.body.state_dict()[name], wanted)
    said = capsys.readouterr().out
    assert bool(said) == (case not in ("plain", "half", "parameters", "extras in it")), said
    if case == "model":
        assert said.endswith("w.pt: took model, and left optimizer, epoch\n")
    if case == "loss beside it":
        assert said.endswith("w.pt: took state_dict.net without the prefix net., and left loss\n")
    if case == "module._orig_mod.":
        assert "without the prefix" in said


def test_weights_in_safetensors_with_a_prefix(tmp_path: Path) -> None:
    save_file(prefixed("model."), tmp_path / "w.safetensors")
    network = taken("Net", weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(network.body.a.weight, own_state()["a.weight"])
    tied = Tied()
    save_model(tied, str(tmp_path / "tied.safetensors"))  # one name for both
    assert torch.equal(taken("Tied", weights=str(tmp_path / "tied.safetensors")).body.again.weight, tied.b.weight)


def test_versions_of_weights(tmp_path: Path) -> None:
    net = Versioned()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": nn.DataParallel(net).state_dict()}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        assert torch.equal(taken("Versioned", weights=str(tmp_path / name)).body.a.weight, net.a.weight)


class Opaque:
    pass


class Runs:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


BAD_CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "two": (lambda: {"model": own_state(), "ema": own_state()}, "w.pt: model and ema would fit; keep one"),
    "two in one": (
        lambda: {**prefixed("student."), **prefixed("teacher.")},
        "w.pt: student and teacher would fit; keep one",
    ),
    "codes": (
        lambda: {**own_state(), "fc.weight": torch.ones(10, 128, dtype=torch.int8)},
        "fc.weight is int8, where numbers like float32 are needed",
    ),
    "quantized": (
        lambda: {**own_state(), "fc.weight": torch.quantize_per_tensor(torch.ones(10, 128), 0.1, 0, torch.qint8)},
        "fc.weight is qint8, and not a plain tensor",
    ),
    "complex": (
        lambda: {**own_state(), "fc.weight": torch.ones(10, 128, dtype=torch.complex64)},
        "fc.weight is complex64, where numbers like float32 are needed",
    ),
    "sparse": (lambda: {**own_state(), "fc.weight": torch.ones(10, 128).to_sparse()}, "fc.weight is sparse_coo"),
    "meta": (lambda: {n: v.to("meta") for n, v in own_state().items()}, "a.weight has no values"),
    "none": (lambda: {"epoch": 3, "args": "x"}, "holds no state dict, but epoch, args; save module.state_dict()"),
    "a list": (lambda: [1, 2], "holds no state dict"),
    "shapes": (
        lambda: {"model": {**prefixed("module."), "module.fc.weight": torch.zeros(7, 128)}},
        r"w.pt, model, does not fit .*: fc.weight: the network has \(10, 128\), the file \(7, 128\)$",
    ),
    "a module": (lambda: loaded_net(), r"it holds a test_intake.Net, and making one could run code\); save module.st"),
    "an object": (lambda: {"model": own_state(), "x": Opaque()}, "it holds a test_intake.Opaque, and making one"),
    "code": (lambda: {"model": own_state(), "x": Runs()}, "could run code"),
    "half of it": (
        lambda: {"a.weight": own_state()["a.weight"]},
        "a.bias: the network has .8,., the file none; b.weight: .* and 2 more$",
    ),
    "NaN": (
        lambda: {**own_state(), "fc.weight": torch.full((10, 128), torch.nan)},
        "classifier.architecture: .*w.pt: fc.weight is NaN in 1,280 of its 1,280 values",
    ),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_bad_checkpoints_are_one_line(case: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    content, said = BAD_CHECKPOINTS[case]
    torch.save(content(), "w.pt")
    with pytest.raises(UserError, match=said) as error:
        taken("Net", weights="w.pt")
    assert len(str(error.value).splitlines()) == 1
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS: `git lfs pull` fetches"),
        (b"<!doctype html>\n", r"\(it begins with '<!doctype html>'\)"),
        (b"", r"\(it is empty\)"),
    ],
)
def test_files_that_are_no_checkpoints_say_what_they_are(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        taken("Net", weights=str(tmp_path / "w.pt"))
    with pytest.raises(UserError, match="a directory; name the file in it"):
        taken("Net", weights=str(tmp_path))


def test_tied_weights_that_differ_in_the_file(tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in Tied().state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    taken("Tied", weights=str(tmp_path / "w.pt"))
    state["again.weight"] += 1
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match="b.weight and again.weight are one tensor in the network, and two in the file"):
        taken("Tied", weights=str(tmp_path / "w.pt"))


def test_weights_of_the_older_weight_norm(tmp_path: Path) -> None:
    old = Computed("weight_norm")
    torch.save(old.state_dict(), tmp_path / "w.pt")
    network = taken("Computed", {"kind": "parametrizations.weight_norm"}, weights=str(tmp_path / "w.pt"))
    torch.testing.assert_close(network.eval()(IMAGES), old.eval()(IMAGES))


# -- files of one's own -----------------------------------------------------------------------------------------------

OWN = """from __future__ import annotations
import pickle
import typing
from dataclasses import dataclass, field

import torch
from torch import nn

{imports}


@dataclass
class Config:
    width: int = 8
    names: typing.List[str] = field(default_factory=list)


class Shape(typing.NamedTuple):
    height: int
    width: int


class Net(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.config, self.shape = Config(), Shape(8, 8)
        self.a, self.fc = block(self.config.width), nn.Linear(8 * 64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.a(x).relu().flatten(1))
"""
BLOCKS = (
    "from torch import nn\n\n\ndef block(width):\n    return nn.Conv2d(1, width, {kernel}, padding={kernel} // 2)\n"
)


def write_own(folder: Path, imports: str, kernel: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.py").write_text(OWN.replace("{imports}", imports))
    (folder / "blocks.py").write_text(BLOCKS.replace("{kernel}", str(kernel)))


@pytest.mark.parametrize(
    "imports",
    ["from .blocks import block", "from blocks import block", "import blocks; block = blocks.block",
     "from nets.blocks import block", "from . import blocks; block = blocks.block"],
)  # fmt: skip
def test_a_file_of_ones_own(imports: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path / "nets", imports)
    monkeypatch.delitem(sys.modules, "nets", raising=False)  # of another test's folder
    network = trained(taken("nets/own.py:Net"))
    assert pickle.loads(pickle.dumps(network.body.config)) == network.body.config
    assert pickle.loads(pickle.dumps(network.body.shape)) == (8, 8)
    assert copy.deepcopy(network).body.config == dataclasses.replace(network.body.config)
    assert imported("nets/own.py:Net") is imported("nets/own.py:Net")
    write_own(tmp_path / "nets", imports.replace("nets.blocks", "blocks"), kernel=15)  # and changed
    assert imported("nets/own.py:Net")().a.weight.shape[-1] == 15


def test_two_files_of_one_name(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path / "one", "from blocks import block", kernel=1)
    write_own(tmp_path / "two", "from blocks import block", kernel=5)
    one, two = imported("one/own.py:Net"), imported("two/own.py:Net")
    assert (one().a.weight.shape[-1], two().a.weight.shape[-1]) == (1, 5)
    assert one is not two and one.__module__ != two.__module__
    assert one().a.weight.shape[-1] == 1 and imported("one/own.py:Net") is one


def test_a_file_that_draws_when_it_is_run(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path, "from blocks import block\nORDER = torch.randperm(512)")
    code = (tmp_path / "own.py").read_text().replace(".flatten(1))", ".flatten(1)[:, ORDER])")
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(NetworkError, match="something in its constructor or file is random"):
        taken("own.py:Net")
    assert imported("own.py:Net") is imported("own.py:Net")


def test_a_package_of_ones_own(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path / "nets", "from .blocks import block")
    (tmp_path / "nets" / "__init__.py").write_text("from .own import Net\n")
    assert taken("nets/own.py:Net")(IMAGES).shape == (len(IMAGES), 10)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("from .none import x", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def (", "SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_run(code: str, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(NetworkError, match=f"own.py cannot be run: {said}"):
        imported("own.py:Net")


# -- energies with BatchNorm ------------------------------------------------------------------------------------------


def test_batchnorm_in_an_energy_is_said(capsys: Any) -> None:
    for spec, instead in (
        (Spec("resnet8", 4, "3x3", "swish", "batch", image_size=8, outputs=10, head="mean"), "norm: none"),
        (Spec("resnet8", 4, "3x3", "swish", "batch", image_size=8, outputs=10, head="logsumexp"), "norm: none"),
        (Spec("test_intake.Norms1d", image_size=8, head="mean"), "GroupNorm or no norm"),
        (Spec("resnet8", 4, "3x3", "swish", "batch", image_size=8, outputs=10), None),
        (Spec("resnet8", 4, "3x3", "swish", "none", image_size=8, outputs=10, head="mean"), None),
    ):
        own = {"width": 4, "stem": "3x3", "activation": "swish", "norm": spec.norm} if not spec.is_foreign else {}
        network = networks.of_params(Architecture(name=spec.name, **own), spec, seed=0, where="ebm.architecture")
        assert isinstance(network, Foreign) == spec.is_foreign
        said = capsys.readouterr().out
        assert (f"ebm.architecture: warning: {spec.name} has BatchNorm" in said) == (instead is not None)
        assert instead is None or said.endswith(f"give {instead}\n")


# -- energies ---------------------------------------------------------------------------------------------------------


class Attending(Net):
    """Torch's fused attention has no second derivative, which the training of energies needs."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).flatten(2).transpose(1, 2)
        return self.fc(F.scaled_dot_product_attention(x, x, x).flatten(1)[:, :128])


def test_energies_may_attend(generator: torch.Generator) -> None:
    network = taken("Attending", head="mean")
    loss = energies.flow_loss(energies.energy_of(network, "mean"), IMAGES, generator)
    _, gradients = energies.logits_and_gradient(network, "mean", IMAGES)
    (loss + gradients.square().sum()).backward()
    assert network.body.a.weight.grad.isfinite().all()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


class DifferentiableOnce(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Once.apply(x).square())


@pytest.mark.parametrize("case", ["DifferentiableOnce", "Norms1d"])
def test_what_cannot_be_trained_so_is_one_line(
    case: str, small: params.Params, splits: data.Splits, tmp_path: Path
) -> None:
    few = replace(splits, train=data.Split(splits.train.images[:8], splits.train.labels[:8]))
    architecture = EnergyArchitecture(name=f"test_intake.{case}", head="mean")
    p = small.ebm.model_copy(update={"architecture": architecture})
    p = p.model_copy(update={"train": p.train.model_copy(update={"batch_size": 1 if case == "Norms1d" else 8})})
    with pytest.raises(UserError, match="differentiate|more than 1 value per channel") as error:
        targets.get("ebm").train(few, p, Run("ebm", 0, [], root=tmp_path))
    assert len(str(error.value).splitlines()) == 1
