"""Networks that are not ours, through every branch and back from disk; and files that must not make code run."""

import contextlib
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, with_changes
from ruamel.yaml import YAML
from safetensors.torch import save_file
from test_deploy import session_of
from torch import nn

import lowenergy
from lowenergy import cli, data, energies, networks, params
from lowenergy.base.errors import UserError
from lowenergy.base.nested import with_values
from lowenergy.compression.pq.codebooks import blocks_of, by_position, input_moments, row_major
from lowenergy.networks import NetworkError, Spec
from lowenergy.params import recipes
from lowenergy.runtimes import int8, to_onnx
from lowenergy.storage import artifact
from stages import compress, evaluate, prepare, scorer, teacher

OWN = '''
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """Grouped, depthwise, dilated and 1x1 convolutions; a norm before its convolution and one after; a skip."""

    def __init__(self, classes=10):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.wide = nn.Conv2d(16, 32, 3, padding=2, dilation=2)
        self.grouped, self.before = nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=4), nn.BatchNorm2d(32)
        self.depth, self.point = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 32, 1)
        self.register_buffer("order", torch.arange(32).flip(0))
        self.out = nn.Linear(32, classes)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = self.before(F.gelu(self.grouped(self.wide(x))))
        x = F.silu(x + self.point(self.depth(x)))
        return self.out(x.mean((2, 3))[:, self.order])


class Energy(nn.Module):
    """An energy by itself, with layer norms and a product: images -> (n,)."""

    def __init__(self, width=8):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.norm, self.last = nn.GroupNorm(2, 2 * width), nn.Linear(2 * width * 16, 32)

    def forward(self, x):
        features = F.silu(self.norm(self.second(F.silu(self.first(x)))))
        return self.last(features.flatten(1)).square().sum(1) * 0.1


class Nothing(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]


class Moody(nn.Module):
    """Looks at its values before it decides, which no exporter can follow."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = self.first(x.flatten(1))
        return self.last(x.relu() if x.sum() > 0 else x)


def several(classes):
    return nn.Linear(3, classes)


def broken():
    raise RuntimeError("no such thing\\nat all")
'''
SMALL_SETTING = [[1, 8, 1, 1], [4, 16, 1, 2]]
FOREIGN: dict[str, tuple[str, dict[str, Any]]] = {  # case -> target, its architecture
    "own": ("classifier", {"name": "nets/own.py:Net"}),
    "mobilenet": (
        "classifier",
        {
            "name": "torchvision.models.MobileNetV2",
            "arguments": {"num_classes": 10, "width_mult": 0.25, "inverted_residual_setting": SMALL_SETTING},
        },
    ),
    "energy": ("ebm", {"name": "nets/own.py:Energy", "head": "scalar"}),
    "jem": ("jem", {"name": "nets/own.py:Net"}),
}  # fmt: skip
COLOUR = {"mobilenet": {"data.channels": 3, "data.mean": [0.5, 0.4, 0.3], "data.std": [0.2, 0.2, 0.3]}}


def project(place: Path, small_values: Any, case: str, **changes: Any) -> None:
    """A folder in which stages run: params and a file of networks."""
    target, architecture = FOREIGN[case]
    values = with_changes(small_values, {f"{target}.architecture": architecture, "networks": "nets"})
    values["teachers"] = {target: {"kind": target}}
    values["branches"] = {
        f"{target}-{method}": {"target": target, "start": target, "by": method} for method in params.methods()
    }
    values = with_values(values, {**COLOUR.get(case, {}), "distill.train.epochs": 2, **changes})
    (place / "nets").mkdir(parents=True, exist_ok=True)
    (place / "nets" / "own.py").write_text(OWN)
    YAML().dump(values, place / "params.yaml")
    with contextlib.chdir(place):
        recipes.write(params.check(values))


@pytest.fixture(scope="module")
def made(request: Any, tmp_path_factory: pytest.TempPathFactory, small_values: Any) -> Any:
    """A foreign teacher, trained by its stage; the test stands in its folder."""
    place = tmp_path_factory.mktemp(request.param)
    project(place, small_values, request.param)
    patch = pytest.MonkeyPatch()
    patch.chdir(place)
    prepare.main()
    if FOREIGN[request.param][0] != "classifier":
        scorer.main()
    teacher.main(FOREIGN[request.param][0])
    evaluate.main(FOREIGN[request.param][0])  # what branches are compared with
    yield request.param, FOREIGN[request.param][0], place
    patch.undo()


ROWS: dict[str, dict[str, Any]] = {
    "prune": {},
    "prune structured": {"prune.kind": "structured", "prune.amount": 0.3},
    "prune 2of4": {"prune.kind": "2of4", "prune.amount": 0.5, "prune.allocation": "uniform"},
    "quantize": {},
    "quantize 4 bits": {"quantize.weight_bits": 4, "quantize.finetune.epochs": 0},
    "quantize a pruned one": {"quantize.finetune.epochs": 0},
    "pq": {"pq.block_conv": 9},
    "pq within a budget": {"pq.budget_bytes": 9_000, "pq.finetune.epochs": 0},
    "distill": {},
    "distill into a foreign one": {
        "distill.student": {"name": "nets/own.py:Net", "arguments": {"classes": 10}},
        "distill.accept_chance": True,  # trained so briefly, it learns something on some processors only
    },
}


FEWER = {  # the other two go through each branch, and what may differ between networks
    "mobilenet": ("prune structured", "quantize a pruned one", "pq", "distill into a foreign one"),
    "jem": ("quantize",),
    "energy": ("prune", "prune structured", "quantize", "pq within a budget", "distill into a foreign one"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "row"), [(case, row) for case in FOREIGN for row in FEWER.get(case, ROWS)], indirect=["made"]
)
def test_every_branch_and_back_from_disk(made: Any, row: str, small_values: Any) -> None:
    case, target, place = made
    changes = dict(ROWS[row])
    if row.startswith("distill into"):
        if case == "mobilenet":
            changes["distill.student"] = FOREIGN["mobilenet"][1] | {
                "arguments": {"num_classes": 10, "width_mult": 0.25}
            }
        if case == "energy":
            changes["distill.student"] = {"name": "nets/own.py:Energy", "arguments": {"width": 4}}
    if row == "pq within a budget" and case != "own":
        changes["pq.budget_bytes"] = 14_000
    method = row.split(" ")[0]
    name = f"{target}-{method}"
    if row == "quantize a pruned one":
        changes[f"branches.{name}.start"] = f"{target}-prune"
    project(place, small_values, case, **changes)
    if row == "quantize a pruned one":
        compress.main(f"{target}-prune")
    compress.main(name)
    path = place / f"models/{name}.safetensors"
    evaluate.main(name)
    card = json.loads((place / f"cards/{name}.json").read_text())
    assert card["size_bytes"] == path.stat().st_size and card["macs"] > 0
    assert (card["micronet"]["score"] if target == "classifier" else card["fid"]) > 0

    model, header = artifact.read(path, trust=["own.py"])
    network = lowenergy.load(path, trust=["own.py"])
    test = data.load(data.SPLITS).test
    with torch.no_grad():
        logits = network(data.to_float(test.images))
    if target == "classifier":
        assert float((logits.argmax(1) == test.labels).double().mean()) == pytest.approx(card["accuracy"])
    if method == "quantize":
        kinds = {name: encoded.kind for name, encoded in model.tensors.items()}
        assert {kinds[f"{name}.weight"] for name in networks.coded_layers(model.build())} == {"int8"}
    if row == "prune structured":
        assert card["parameters"] < sum(w.numel() for w in lowenergy.load(
            place / f"models/{target}.safetensors", trust=["own.py"]).parameters())  # fmt: skip

    to_onnx.export(model, header, place / "model.onnx")
    session = session_of(place / "model.onnx", int8_kernels=False)
    images = data.to_float(test.images[:5])
    given = {i.name: (images if i.name == "images" else torch.zeros_like(images)).numpy() for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    first = torch.from_numpy(session.run(names[:1], given)[0])
    if method == "quantize":  # onnxruntime rounds the layers' outputs, too
        network = int8.restore(model, outputs=True)
    with torch.no_grad():
        wanted = network(images)
    close = 0.02 * float(wanted.abs().max()) if method == "quantize" else 1e-3
    if target != "classifier":
        wanted = energies.HEADS[model.spec.head](wanted)
    torch.testing.assert_close(first, wanted, rtol=1e-3, atol=close)


def test_weights_make_the_teacher_bit_for_bit(tmp_path: Path, small_values: Any, monkeypatch: Any) -> None:
    project(tmp_path, small_values, "own")
    monkeypatch.chdir(tmp_path)
    prepare.main()
    torch.manual_seed(3)
    net = networks.foreign.imported("nets/own.py:Net")().eval()
    torch.save(net.state_dict(), "nets/weights.pt")
    save_file(net.state_dict(), "nets/weights.safetensors")
    images = data.to_float(data.load(data.SPLITS).test.images)
    for weights in ("nets/weights.pt", "nets/weights.safetensors"):
        architecture = FOREIGN["own"][1] | {"weights": weights}
        project(
            tmp_path, small_values, "own", **{"classifier.architecture": architecture, "classifier.train.epochs": 0}
        )
        teacher.main("classifier")
        loaded = lowenergy.load("models/classifier.safetensors", network=networks.foreign.imported("nets/own.py:Net")())
        with torch.no_grad():
            assert torch.equal(loaded(images), net(images))
        for name, value in net.state_dict().items():
            if "num_batches" not in name:
                assert torch.equal(loaded.state_dict()[f"body.{name}"], value)

    def message(content: Any) -> str:
        torch.save(content, "nets/weights.pt")
        architecture = FOREIGN["own"][1] | {"weights": "nets/weights.pt"}
        project(tmp_path, small_values, "own", **{"classifier.architecture": architecture})
        with pytest.raises(UserError) as error:
            teacher.main("classifier")
        return str(error.value)

    state = net.state_dict()
    shapes = message({**state, "out.weight": torch.zeros(7, 32), "more": torch.zeros(1)})
    assert "out.weight: the network has (10, 32), the file (7, 32); more: the network has none, the file (1,)" in shapes
    assert "holds no state dict" in message([1, 2])
    Path("nets/weights.pt").write_bytes(pickle.dumps(print))
    assert "neither safetensors nor" in message_of(tmp_path)


def message_of(place: Path) -> str:
    with pytest.raises(UserError) as error:
        teacher.main("classifier")
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_normalisation_is_the_artifacts_own(tmp_path: Path) -> None:
    plain = Spec("cnn", 4, "3x3", "relu", "none", 3, 8, 10)
    normal = networks.build(Spec(**{**plain.__dict__, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}), seed=0).eval()
    images = torch.rand(4, 3, 8, 8)
    wanted = (images - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    artifact.save(artifact.dense(normal, "classifier"), tmp_path / "m.safetensors", {})
    loaded = lowenergy.load(tmp_path / "m.safetensors")
    with torch.no_grad():
        expected = networks.build(plain, seed=0).eval()(wanted)
        torch.testing.assert_close(loaded(images * 2 - 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("torchvision.models.nothing", {}, "torchvision.models has no network nothing"),
        ("no.such.module", {}, "No module named 'no'; install it"),
        ("nets/none.py:Net", {}, "no such file"),
        ("nets/own.py:Missing", {}, "nets/own.py has no network Missing"),
        ("nets/own.py:broken", {}, "RuntimeError: no such thing"),
        ("nets/own.py:Net", {"classes": 7}, "10 are needed; give classifier.architecture.arguments {classes: 10}"),
        ("nets/own.py:Net", {"wrong": 7}, "TypeError"),
        ("nets/own.py:several", {"classes": 10}, "does not take images of (1, 8, 8)"),
        ("torchvision.models.resnet18", {"num_classes": 10}, "set data.channels and data.image_size"),
        ("torch.nn.Flatten", {}, "64 outputs, 10 are needed"),
        ("nets/own.py:Nothing", {}, "calls no convolution or fully connected layer: nothing to compress"),
        ("pathlib.Path", {}, "gives a PosixPath, and no torch.nn.Module"),
        ("timm.create_model", {"model_name": "resnet18", "num_classes": 10}, "arguments {in_chans: 1}"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_before_training(
    tmp_path: Path,
    small_values: Any,
    splits: data.Splits,
    monkeypatch: Any,
    name: str,
    arguments: Any,
    said: str,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    project(tmp_path, small_values, "own", **{"classifier.architecture": {"name": name, "arguments": arguments}})
    data.save(splits, data.SPLITS)
    assert said in message_of(tmp_path)
    assert cli.main(["check"]) == 2
    assert said in capsys.readouterr().err


def test_what_cannot_be_exported_can_still_be_pruned(
    tmp_path: Path, small_values: Any, splits: data.Splits, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    project(tmp_path, small_values, "own", **{"classifier.architecture": {"name": "nets/own.py:Moody"}})
    data.save(splits, data.SPLITS)
    teacher.main("classifier")
    compress.main("classifier-prune")
    with pytest.raises(UserError, match=r"^nets/own.py:Moody cannot be exported: [^\n]+$"):
        compress.main("classifier-quantize")


def test_own_files_must_be_where_stages_look(tmp_path: Path, small_values: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    project(tmp_path, small_values, "own", networks="elsewhere")
    with pytest.raises(params.ParamsError, match="is not in networks: elsewhere, .*set networks to nets"):
        params.load()


def test_a_file_is_data_not_code(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\nfrom torch import nn\nNet = nn.Identity\n"
    )

    def written(name: str, arguments: Any) -> Path:
        spec = Spec(name, channels=3, image_size=32, outputs=10, arguments=arguments)
        model = artifact.Model("classifier", spec, {}, answers=())
        Path("model.safetensors").write_bytes(artifact.to_bytes(model, {"data": "digits"}))
        return Path("model.safetensors")

    for name, arguments in {
        "evil.py:Net": {},
        "evil.Net": {},
        "os.system": {"command": "touch ran"},
        "torchvision.datasets.utils.download_url": {"url": "file:///etc/passwd", "root": "."},
        "torchvision.models.get_model": {"name": "resnet18"},
        "timm.create_model": {"model_name": "hf-hub:someone/something"},
        "timm.models.load_checkpoint": {},
    }.items():
        path = written(name, arguments)
        with pytest.raises(NetworkError, match=r"if you trust it, say so: .*load\(path, network="):
            lowenergy.load(path)
        assert cli.main(["export", str(path)]) == 2
    path = written("timm.create_model", {"model_name": "resnet18", "checkpoint_path": "evil.pt"})
    with pytest.raises(NetworkError):
        lowenergy.load(path)
    assert not Path("ran").exists()
    assert cli.main(["show", str(path)]) == 0  # looking imports nothing

    for name, arguments in (
        ("torchvision.models.resnet18", {"num_classes": 10}),
        ("timm.create_model", {"model_name": "resnet18", "num_classes": 10}),
    ):
        spec = Spec(name, channels=3, image_size=32, outputs=10, arguments=arguments)
        network = networks.build(spec, seed=0).eval()
        artifact.save(artifact.dense(network, "classifier"), "model.safetensors", {})
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(lowenergy.load("model.safetensors")(images), network(images))


def watched(layer: networks.Layer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What its weight is multiplied with, and what comes of it."""
    seen = []
    with networks.watched({"": layer}, lambda _, __, *both: seen.append(both)):
        layer(x)
    return seen[0]


def test_what_a_weight_is_multiplied_with_holds_all_that_its_module_puts_around_it(generator: torch.Generator) -> None:
    class PadsItself(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(
                nn.functional.pad(x, (1, 2, 0, 3)), self.weight, self.bias, self.stride, padding=(1, 0)
            )

    for layer in (
        PadsItself(8, 6, 3, stride=2),
        nn.Conv2d(8, 6, (4, 3), padding="same", dilation=(1, 2)),
        nn.Conv2d(8, 6, 3, padding=(0, 2), stride=2),
        nn.Conv2d(8, 6, 3, padding="valid"),
        nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 6, 3, padding="same", padding_mode="circular", groups=2),
    ):
        x = torch.randn(2, 8, 9, 7, generator=generator)
        (given, output), whole = watched(layer, x), layer(x)
        torch.testing.assert_close(networks.product(layer, given), whole)
        torch.testing.assert_close(output, whole)


def test_blocks_of_grouped_convolutions_meet_their_own_groups_inputs(generator: torch.Generator) -> None:
    """The error that the moments predict is that of the outputs, for every kind of convolution."""
    for layer in (
        nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 6, 3, padding=2, dilation=2, stride=2, bias=False),
        nn.Conv2d(8, 6, (3, 1), padding="same", bias=False),
        nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(8, 6, 1, padding=1, bias=False),
        nn.Linear(8, 6, bias=False),
    ):
        groups = getattr(layer, "groups", 1)
        shape = (5, 7, 8) if isinstance(layer, nn.Linear) else (5, 8, 9, 9)
        inputs = torch.randn(shape, generator=generator)
        change = torch.randn(layer.weight.shape, generator=generator)
        d = 3 if layer.weight[0].numel() % 3 == 0 else 2
        blocks, moments = blocks_of(change, d, groups), input_moments(layer, watched(layer, inputs)[0], d)
        with torch.no_grad():
            layer.weight.copy_(change)
            out = layer(inputs)
        per_output = out.square().movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1).mean(1).sum()
        # Blocks of one output add up before they are squared, so only single blocks are compared: all others zero.
        for position in range(0, len(blocks), max(1, len(blocks) // 3)):
            alone = torch.zeros_like(blocks)
            alone[position] = blocks[position]
            with torch.no_grad():
                flat = alone.unflatten(0, (groups, -1)).transpose(1, 2)
                layer.weight.copy_(flat.reshape(layer.weight.shape))
                out = layer(inputs)
            measured = out.square().movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1).mean(1).sum()
            predicted = (blocks[position] @ moments.gram()[position] * blocks[position]).sum()
            torch.testing.assert_close(predicted, measured, rtol=1e-3, atol=1e-4)
        assert per_output > 0
        codes = torch.arange(blocks.shape[0] * blocks.shape[1]).view(blocks.shape[:2])
        assert torch.equal(by_position(row_major(codes, groups), len(change), groups), codes)
        assert torch.equal(blocks.flatten(0, 1)[row_major(codes, groups)].flatten(), change.flatten())


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5", "squeezenet1_1", "timm"]
)
def test_folding_keeps_the_function(name: str) -> None:
    arguments: dict[str, Any] = {"num_classes": 10}
    if name == "timm":  # whose norms activate as well, and so cannot go
        path, arguments["model_name"] = "timm.create_model", "resnext26ts"
    else:
        path = f"torchvision.models.{name}"
    spec = Spec(path, channels=3, image_size=64, outputs=10, arguments=arguments)
    network = networks.build(spec, seed=0)
    network.train()
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        network(images)  # statistics that are not 0 and 1
    network.eval()
    network.find_layers()
    folded = networks.fold_batchnorm(network)

    def norms(of: nn.Module) -> int:
        return sum(isinstance(m, nn.BatchNorm2d) for m in of.modules())

    with torch.no_grad():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-3, atol=1e-3)
    assert norms(folded) < norms(network) or norms(network) == 0 or name == "timm"
    again = networks.build_with(folded.spec, artifact.weights(folded))  # what is missing is known by its names
    with torch.no_grad():
        torch.testing.assert_close(again(images), folded(images))
    assert norms(again) == norms(folded)


def test_the_document_says_how(tmp_path: Path, small_values: Any, splits: data.Splits, monkeypatch: Any) -> None:
    """Its file and its params, word by word."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(python|yaml)\n(.*?)```", (ROOT / "docs" / "networks.md").read_text(), re.DOTALL)
    code = next(text for kind, text in blocks if text.startswith("# nets/own.py"))
    said = YAML(typ="safe").load(next(text for kind, text in blocks if text.startswith("networks: ")))
    project(tmp_path, small_values, "own", **{"classifier.architecture": said["classifier"]["architecture"]})
    (tmp_path / said["networks"] / "own.py").write_text(code)
    data.save(splits, data.SPLITS)
    teacher.main("classifier")
    compress.main("classifier-pq")
    with pytest.raises(NetworkError):
        lowenergy.load("models/classifier-pq.safetensors")
    trusted = lowenergy.load("models/classifier-pq.safetensors", trust=["nets/own.py"])
    given = lowenergy.load("models/classifier-pq.safetensors", network=networks.foreign.imported("nets/own.py:Net")(10))
    images = data.to_float(splits.test.images)
    with torch.no_grad():
        assert torch.equal(trusted(images), given(images))
    for _, text in blocks:  # the other examples are params that there are
        if "architecture" in text and text.startswith("classifier"):
            params.Architecture.model_validate(YAML(typ="safe").load(text)["classifier"]["architecture"])


def test_the_zoo_is_not_foreign() -> None:
    assert not any(
        Spec(n.stem, 4, "3x3", "relu", "none").is_foreign for n in (ROOT / "lowenergy/networks/zoo").glob("*.py")
    )
