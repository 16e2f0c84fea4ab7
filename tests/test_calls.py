"""The public calls: any module and any images, what a stage makes byte for byte, and nothing else changed."""

import copy
import doctest
import io
import os
import pathlib
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, with_changes
from ruamel.yaml import YAML
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import lowenergy
from lowenergy import data, networks, params, targets
from lowenergy.base import intervals as shares
from lowenergy.base.errors import UserError
from lowenergy.calls import images as intake
from lowenergy.calls import making, measuring, using
from lowenergy.calls import models as calls
from lowenergy.data import Splits
from lowenergy.params import recipes
from lowenergy.scoring import accuracy, answers, intervals
from lowenergy.storage import artifact
from lowenergy.training import Run
from stages import compress as stage

NOTHING: dict[str, Any] = {"epochs": 0}
QUICK: dict[str, Any] = {  # by method
    "prune": {"scan_images": 0, "finetune": NOTHING, "retrain": NOTHING},
    "quantize": {"calibration_images": 20},
    "distill": {"train": {"epochs": 1}, "retrain": NOTHING},
    "pq": {"codewords": 4, "codewords_fc": 4, "kmeans_steps": 2, "finetune": NOTHING, "allocation": "uniform"},
}
SMALL = {"name": "cnn", "width": 4, "stem": "3x3", "activation": "swish", "norm": "none"}


class Net(nn.Module):
    """Somebody's own."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.b, self.fc = nn.Conv2d(width, 16, 3, padding=1, stride=2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.norm(self.a(x)))))
        return self.fc(x.mean((2, 3)))


def stripes(count: int = 240, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three classes that differ in where a bright stripe is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.randint(90, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    for label in range(3):
        images[labels == label, :, :, 2 * label : 2 * label + 2] += 150
    return images, labels


IMAGES, LABELS = stripes()


@pytest.fixture(scope="module")
def trained() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Net()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(40):
        loss = F.cross_entropy(network(data.to_float(IMAGES)), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.fixture
def network(trained: Net) -> Net:
    return copy.deepcopy(trained)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def made(network: Any, method: str, images: Any = IMAGES, labels: Any = LABELS, **more: Any) -> making.Made:
    given = {} if images is None else {"images": images, "labels": labels}
    return lowenergy.compress(network, method, **given, **{**QUICK[method], "accept_chance": True, **more})


# -- the same as a stage ----------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(small_values: Any, elsewhere: Path) -> Callable[..., tuple[params.Params, Splits]]:
    """What stands before a stage: params with these branches, splits, an untrained teacher."""

    def prepared(kind: str, **branches: dict[str, Any]) -> tuple[params.Params, Splits]:
        changes = {"data.limit": 120, "prune.scan_images": 0, "pq.allocation": "uniform", "distill.student.width": 4}
        values = with_changes(small_values, {**changes, f"{kind}.architecture.width": 8})
        values |= {"networks": str(ROOT / "lowenergy/networks/zoo"), "teachers": {kind: {"kind": kind}}}
        for method in params.methods():
            values[method]["accept_chance"] = True
        values["branches"] = {name: {"target": kind, **branch} for name, branch in branches.items()}
        YAML().dump(values, Path("params.yaml"))
        p = params.load()
        recipes.write(p)
        splits = data.prepare(p.data, p.seed).read()
        data.save(splits, data.SPLITS)
        section = p.teachers[kind].section
        head = {"classifier": None, "ebm": "mean", "jem": "logsumexp"}[kind]
        spec = networks.Spec.of(section.architecture, splits.input_shape, 10, head)
        sampler = {} if head is None else {"sampler": section.train.recorded_sampler}
        teacher = networks.build(spec, seed=1).eval()
        provenance = {"stage": "teacher", "data": "digits", "seed": 0, **sampler}
        artifact.save(artifact.dense(teacher, kind), f"models/{kind}.safetensors", provenance)
        return p, splits

    return prepared


def called(p: params.Params, branch: str, start: Any, splits: Any = None) -> making.Made:
    """What a branch of params.yaml is, by a call."""
    section = p.teachers[p.branches[branch].target].section
    images: dict[str, Any] = {} if splits is None else {"images": splits}
    return lowenergy.compress(
        start,
        p.branches[branch].by,
        **images,
        matching=section.matching.model_dump(),
        training=section.train.model_dump(exclude={"sampler"}),
        device="cpu",
        **p.branches[branch].params.model_dump(),
    )


@pytest.mark.parametrize(
    ("kind", "method"),
    [*(("classifier", method) for method in params.methods()), ("ebm", "prune"), ("ebm", "pq"), ("jem", "distill")],
)
def test_a_call_and_a_stage_make_the_same_bytes(workspace: Any, kind: str, method: str) -> None:
    p, splits = workspace(kind, small={"start": kind, "by": method})
    stage.main("small")
    small = called(p, "small", f"models/{kind}.safetensors", splits)
    assert small.to_bytes() == Path("models/small.safetensors").read_bytes()
    small.save("again.safetensors")
    assert Path("again.safetensors").read_bytes() == small.to_bytes()


def test_a_chain_is_that_of_stages(workspace: Any) -> None:
    """From memory as from a file: pruned, then quantized, towards the same teacher."""
    p, splits = workspace(
        "classifier", prune={"start": "classifier", "by": "prune"}, tiny={"start": "prune", "by": "quantize"}
    )
    teacher = "models/classifier.safetensors"
    stage.main("prune")
    stage.main("tiny")
    pruned = called(p, "prune", teacher, splits)
    chained = called(p, "tiny", pruned)
    assert chained.to_bytes() == Path("models/tiny.safetensors").read_bytes()
    assert chained.provenance["start"]["name"] == "prune" and chained.seed == pruned.seed
    apart = made("models/prune.safetensors", "quantize", splits, None, teacher=teacher)
    assert apart.to_bytes() == made(pruned, "quantize", None).to_bytes()
    with pytest.raises(UserError, match="quantized or product-quantized, which no method can go on from"):
        made(chained, "pq", None)


def test_training_is_that_of_a_stage(small: params.Params, splits: Splits, tmp_path: Path) -> None:
    few = replace(splits, train=splits.train.take(torch.arange(128)))
    section = small.ebm.model_copy(update={"architecture": small.ebm.architecture.model_copy(update={"width": 4})})
    wanted = targets.get("ebm").train(few, section, Run("ebm", 0, [], root=tmp_path))
    found = lowenergy.train(
        section.architecture.model_dump(), "ebm", images=few, device="cpu", **section.train.model_dump()
    )
    assert all(torch.equal(w, v) for w, v in zip(wanted.parameters(), found.network.parameters(), strict=True))


# -- any images -------------------------------------------------------------------------------------------------------


class Pairs(Dataset):
    """As torchvision's folders: an image and a label at a time."""

    def __init__(self, image_of: Callable[[Tensor], Any]) -> None:
        self.image_of = image_of

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.image_of(IMAGES[index]), int(LABELS[index])


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield from ((image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True))


def pillow(image: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(image[0].numpy())


def cut_off(mode: str) -> Any:
    """A picture whose file ends in the middle, which shows when it is decoded."""
    from PIL import Image

    Image.effect_noise((64, 64), 50).convert(mode).save(content := io.BytesIO(), "JPEG")
    return Image.open(io.BytesIO(content.getvalue()[:900]))


FLOATS = data.to_float(IMAGES)
SOURCES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "tensor": (IMAGES, LABELS, {}),
    "array": (IMAGES.numpy(), LABELS.numpy(), {}),
    "a pair": ((IMAGES, LABELS), None, {}),
    "without channels": (IMAGES[:, 0], LABELS.tolist(), {}),
    "channels last": (IMAGES.movedim(1, 3).numpy(), LABELS, {}),
    "floats": (FLOATS, LABELS, {}),
    "half precision": (FLOATS.double(), LABELS.int(), {}),
    "from 0 to 1": (IMAGES / 255, LABELS, {"mean": 0, "std": 1}),
    "normalised": ((IMAGES / 255 - 0.13) / 0.31, LABELS, {"mean": [0.13], "std": 0.31}),
    "data set": (Pairs(lambda image: image), None, {}),
    "data set of pictures": (Pairs(pillow), None, {}),
    "list": (list(IMAGES), list(LABELS), {}),
    "loader": (DataLoader(TensorDataset(FLOATS, LABELS), 33), None, {}),
    "stream": (Stream(), None, {}),
    "batches": ([(IMAGES, LABELS)].__iter__(), None, {}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_images_of_every_kind_are_the_same_images(source: str) -> None:
    images, labels, options = SOURCES[source]
    splits, labelled = intake.gathered(images, labels, **options)
    wanted, _ = intake.gathered(IMAGES, LABELS)
    assert labelled and splits.input_shape == (1, 8, 8) and splits.classes == ["0", "1", "2"]
    for part in ("train", "validation"):
        found, same = getattr(splits, part), getattr(wanted, part)
        assert torch.equal(found.images, same.images) and torch.equal(found.labels, same.labels)
    assert (splits.normalisation is None) == (not options)


def test_of_each_class_a_tenth_is_held_out() -> None:
    splits, _ = intake.gathered(IMAGES, LABELS)
    counts, held = LABELS.bincount(), splits.validation.labels.bincount()
    assert all(abs(10 * h - c) <= 10 for h, c in zip(held, counts, strict=True))
    assert len(splits.train) + len(splits.validation) == len(IMAGES)
    both = torch.cat([splits.train.images, splits.validation.images]).flatten(1)
    assert len(both.unique(dim=0)) == len(IMAGES.flatten(1).unique(dim=0))
    given, _ = intake.gathered(IMAGES[:100], LABELS[:100], validation=(IMAGES[100:], LABELS[100:]))
    assert torch.equal(given.train.images, IMAGES[:100]) and torch.equal(given.validation.labels, LABELS[100:])
    few, _ = intake.gathered(IMAGES[:9], torch.arange(3).repeat_interleave(3), validation=0.05)
    assert few.validation.labels.tolist() == [0, 1, 2]


def test_images_may_be_more_than_memory() -> None:
    """They are read once, and mapped from a file."""

    class Many(Dataset):
        def __len__(self) -> int:
            return 8000

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.full((3, 128, 128), index % 256, dtype=torch.uint8), index % 2

    def own() -> int:
        """Bytes of memory; pages that are mapped from a file go whenever somebody else needs them."""
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) * 1024

    def watch() -> None:
        while not over.wait(0.01):
            seen.append(own())

    over, seen, before = threading.Event(), [], own()
    watcher = threading.Thread(target=watch)
    watcher.start()
    splits, _ = intake.gathered(Many())
    over.set()
    watcher.join()
    assert splits.train.images.nbytes > 350e6 and max(seen) - before < 250e6
    assert splits.train.take(torch.tensor([0, 7199])).images.unique().tolist() == [0, 7999 % 256]
    assert not list(Path.cwd().iterdir())


WRONG: list[tuple[Any, Any, dict[str, Any], str]] = [
    (IMAGES / 255, LABELS, {}, "never below 0, as pixels from 0 to 1 are. If the network takes them so, give mean=0"),
    (3 * FLOATS, LABELS, {}, "floats from -3 to .*, where -1 to 1 is expected of pixels; give mean and std"),
    (FLOATS, LABELS, {"mean": 0.1, "std": 5}, "mean and std are of others"),
    (FLOATS * torch.nan, LABELS, {}, "floats from nan to nan"),
    (IMAGES // 16, LABELS, {}, "images: no pixel is brighter than 14, and white is 255; scale the images to 0..255"),
    (IMAGES.int(), LABELS, {}, "images of int32; give uint8 from 0 to 255, or floats"),
    (IMAGES[:, :, :, :6], LABELS, {}, r"images of \(\d+, 1, 8, 6\), where squares are needed"),
    (IMAGES, LABELS[:3], {}, "240 images and 3 labels"),
    (IMAGES, LABELS.float(), {}, "labels of float32"),
    (IMAGES, ["cat", "dog", "eel"] * 80, {}, "labels of str; give one whole number for each image"),
    (IMAGES, 3, {}, "labels: int; give one whole number for each image"),
    (IMAGES, LABELS - 1, {}, "labels: -1; give classes from 0"),
    (IMAGES, None, {}, "labels: a classifier needs them"),
    (IMAGES, LABELS + 5, {}, "labels: 7, and the network has 3 outputs"),
    (IMAGES, LABELS, {"mean": 0.5}, "mean and std: give both"),
    (IMAGES, LABELS, {"mean": [0.5, 0.5], "std": 1}, "the images have 1 channels; give so many values each"),
    (IMAGES, LABELS, {"validation": 0.9}, "validation=0.9: give a share"),
    (IMAGES[:1], LABELS[:1], {}, "1 images are too few to hold some out"),
    ("folder", LABELS, {}, "str is none of tensor, array, Dataset, DataLoader"),
    ([IMAGES[0], IMAGES[0, :, :4, :4]], [0, 1], {}, "differ in size"),
    ([cut_off("L")], [0], {}, r"images: one of them cannot be decoded \(.*truncated.*\); leave it out"),
    ([cut_off("CMYK")], [0], {}, r"one of them cannot be decoded \(.*truncated.*\); leave it out"),
    ((2 * FLOATS).to(torch.float8_e4m3fn), LABELS, {}, "floats from -2 to .*, where -1 to 1 is expected"),
    (DataLoader(TensorDataset(FLOATS), 8), LABELS, {}, "a loader of batches brings its own"),
    (IMAGES.repeat(1, 3, 1, 1), LABELS, {}, r"does not take images of \(3, 8, 8\)"),
]


@pytest.mark.parametrize(("images", "labels", "options", "said"), WRONG, ids=[case[3][:30] for case in WRONG])
def test_unfit_images_are_one_line(network: Net, images: Any, labels: Any, options: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        made(network, "prune", images, labels, **options)
    assert "\n" not in str(error.value)


# -- any module -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["training", "frozen", "double precision", "parallel", "normalised"])
def test_a_module_comes_back_as_it_was(network: Net, state: str) -> None:
    module: nn.Module = network
    options: dict[str, Any] = {}
    images = IMAGES
    if state == "training":
        module.train()
        module.norm.eval()
    elif state == "frozen":
        module.requires_grad_(False)
    elif state == "double precision":
        module.double()
    elif state == "parallel":
        module = nn.DataParallel(network)
    elif state == "normalised":
        options, images = {"mean": 0.5, "std": 0.25}, (IMAGES / 255 - 0.5) / 0.25
    module.register_forward_hook(lambda *_: None)
    next(module.parameters()).grad = torch.ones_like(next(module.parameters()))
    kept = {name: (t.clone(), id(t), t.requires_grad) for name, t in module.state_dict(keep_vars=True).items()}
    modes = [m.training for m in module.modules()]
    small = made(module, "prune", images, finetune={"epochs": 1}, **options)
    now = {name: (t, id(t), t.requires_grad) for name, t in module.state_dict(keep_vars=True).items()}
    assert kept.keys() == now.keys() and [m.training for m in module.modules()] == modes
    assert all(torch.equal(kept[n][0], now[n][0]) and kept[n][1:] == now[n][1:] for n in kept)
    assert (next(module.parameters()).grad == 1).all() and len(module._forward_hooks) == 1
    assert not small.network.training and small.network(FLOATS).shape == (len(IMAGES), 3)
    changed = dict(small.network.body.named_parameters())["a.weight"]
    assert not torch.equal(changed, kept["module.a.weight" if state == "parallel" else "a.weight"][0].float())


def test_what_is_coded_answers_like_the_module(network: Net) -> None:
    """Also with a normalisation of its own, which is then within."""
    small = made(network, "quantize", (IMAGES / 255 - 0.5) / 0.25, mean=0.5, std=0.25)
    found, wanted = small.network(FLOATS), network((IMAGES / 255 - 0.5) / 0.25)
    assert (found.argmax(1) == wanted.argmax(1)).float().mean() > 0.95
    card = small.card((IMAGES / 255 - 0.5) / 0.25, LABELS)
    assert card == small.card(IMAGES, LABELS) and card.agreement > 0.95


def test_a_traced_module_is_a_network_as_well(network: Net) -> None:
    small, of_traced = made(network, "quantize"), made(torch.fx.symbolic_trace(network), "quantize")
    assert torch.equal(small.network(FLOATS), of_traced.network(FLOATS))


def test_one_s_own_module_is_handed_over_or_trusted(network: Net) -> None:
    made(network, "pq").save("own.safetensors")
    with pytest.raises(UserError, match=r"its network is test_calls\.Net, code that is in no file of models"):
        lowenergy.load("own.safetensors")
    images = data.to_float(IMAGES)
    handed = lowenergy.load("own.safetensors", network=Net())(images)
    assert torch.equal(lowenergy.load("own.safetensors", trust=["test_calls"])(images), handed)
    made(Net(6), "prune", arguments={"width": 6}).save("six.safetensors")
    assert lowenergy.load("six.safetensors", trust=["test_calls"])(images).shape == (240, 3)
    before = lowenergy.load("own.safetensors", network=Net())
    assert before.body.a.weight.shape[0] == 8


class Kind(Net):
    """What it computes is in no tensor."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.sign * x)


def test_a_file_names_no_constructor_that_makes_another_network() -> None:
    images = data.to_float(IMAGES)
    torch.manual_seed(0)  # else its weights are those that the order of the tests gives
    right = Kind(-1.0)
    with pytest.raises(UserError, match=r"arguments=\{'sign': 1.0\}: .* test_calls.Kind gives other outputs"):
        made(right, "prune", arguments={"sign": 1.0})
    with pytest.raises(UserError, match=r"arguments=\{'sing': 1\}: with them, test_calls.Kind\(sing=1\): TypeError"):
        made(right, "prune", arguments={"sing": 1})
    made(right, "prune", arguments={"sign": -1.0}).save("told.safetensors")
    by_name = lowenergy.load("told.safetensors", trust=["test_calls"])(images)
    trained = lowenergy.train(right, "classifier", images=IMAGES, labels=LABELS, epochs=1)
    student = made(Net(), "distill", student=right)
    lowenergy.save(right, "saved.safetensors", images=IMAGES)
    made(right, "prune").save("untold.safetensors")
    trained.save("trained.safetensors")
    student.save("student.safetensors")
    for name in ("untold", "trained", "student", "saved"):
        with pytest.raises(UserError, match=r"does not say with which arguments it is made; hand it over: load\(path,"):
            lowenergy.load(f"{name}.safetensors", trust=["test_calls"])
        with pytest.raises(
            UserError, match=rf"{name}.safetensors: .* gives other answers than the one that was stored"
        ):
            lowenergy.load(f"{name}.safetensors", network=Kind(1.0))
        handed = lowenergy.load(f"{name}.safetensors", network=Kind(-1.0))(images)
        assert name != "untold" or torch.equal(handed, by_name)


def test_a_library_s_network_that_was_changed_is_handed_over() -> None:
    """As by a hook, or by an attribute such as GoogLeNet's transform_input, which its printed form does not show."""
    from torchvision import models

    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def spec(module: nn.Module) -> networks.Spec:
        return calls.named(module, images, head=None, normalisation=None, arguments=None)

    module = models.squeezenet1_1(num_classes=3)
    assert spec(module).arguments == {"num_classes": 3}
    module.classifier.register_forward_hook(lambda _, __, out: out - 1)
    assert spec(module).arguments is None


@pytest.mark.parametrize("maker", ["timm", "torchvision"])
def test_networks_of_timm_and_torchvision_load_by_their_file_alone(maker: str) -> None:
    if maker == "timm":
        import timm

        module = timm.create_model("test_resnet.r160_in1k", num_classes=3, in_chans=1)
    else:
        from torchvision import models

        module = models.squeezenet1_1(num_classes=3)
    images = IMAGES.repeat_interleave(4, 2).repeat_interleave(4, 3)[:40]
    images = images if maker == "timm" else images.repeat(1, 3, 1, 1)
    small = made(module, "pq", images, LABELS[:40])
    small.save("small.safetensors")
    again = lowenergy.load("small.safetensors")
    assert torch.equal(again(data.to_float(images)), small.network(data.to_float(images)))


def test_a_student_may_be_a_module(network: Net) -> None:
    student = Net(4)
    small = made(network, "distill", student=student)
    assert small.network.body.a.weight.shape[0] == 4 and small.model.spec.name == "test_calls.Net"
    assert not torch.equal(small.network.body.a.weight, student.a.weight)
    small.save("student.safetensors")
    assert lowenergy.load("student.safetensors", network=Net(4))(FLOATS).shape == (240, 3)


class Broken(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.rand(()))


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        (Broken(), {}, "gives other outputs when asked again"),
        (nn.Flatten(), {}, "calls no convolution or fully connected layer"),
        (Net, {}, "^the class Net is no network; give a torch.nn.Module"),
        ({"a.weight": torch.ones(3)}, {}, "^dict is no network; give a torch.nn.Module"),
        (None, {}, "^NoneType is no network"),
        (Net().to("meta"), {}, "Net: built on the device meta, without weights"),
        (Net(), {"head": "scalar"}, "head scalar"),
        (Net(), {"step_size": 1.0}, "step_size: of an energy; give head="),
        (Net(), {"amount": 1.2}, r"^prune.amount = 1.2: input should be less than 1 \(fraction to remove\)$"),
        (Net(), {"amout": 0.5}, "^prune.amout = 0.5 is not a parameter; `lowenergy params` lists all of them$"),
        (
            Net(),
            {"finetune": {"epochs": -1}},
            "^prune.finetune.epochs = -1: input should be greater than or equal to 0",
        ),
        (Net(), {"matching": {"heat": 1}}, "classifier.matching.heat = 1 is not a parameter"),
        (Net(), {"device": "tpu"}, "device='tpu': "),
        (Net(), {"kind": "2of4"}, "prune.kind = 2of4 halves every layer"),
    ],
)
def test_unfit_modules_and_parameters_are_one_line(module: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        made(module, "prune", **options)
    assert "\n" not in str(error.value) and "params.yaml" not in str(error.value)


def test_there_is_no_such_method(network: Net) -> None:
    with pytest.raises(UserError, match="'shrink' is no method; there are distill, pq, prune, quantize"):
        lowenergy.compress(network, "shrink", images=IMAGES, labels=LABELS)
    with pytest.raises(UserError, match="give images to train and calibrate on"):
        lowenergy.compress(network, "prune")


# -- nothing else changes ---------------------------------------------------------------------------------------------


def test_nothing_of_torch_is_left_changed(network: Net, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)

    def state() -> Any:
        return (
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.is_grad_enabled(),
            torch.get_default_device(),
            torch.get_rng_state().tolist(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.get_float32_matmul_precision(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
            dict(os.environ),
            Path.cwd(),
            sys.stdout,
        )

    plain = made(network, "prune", finetune={"epochs": 1}, scan_images=5)
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        fresh, before = Net(), state()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            small = made(network, "prune", finetune={"epochs": 1}, scan_images=5)
            small.card(IMAGES, LABELS)
            assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        energy = made(network, "pq", head="mean", matching={"images": 20, "chains": 5, "chain_steps": 4})
        assert lowenergy.sample(energy, n=2, steps=2).dtype == torch.float32
        energy.save("../energy.safetensors")
        assert next(lowenergy.load("../energy.safetensors", network=fresh).parameters()).dtype == torch.float32
        assert state() == before
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
    assert small.to_bytes() == plain.to_bytes(), "whatever the caller has set, the result is the same"
    assert not list(elsewhere.iterdir()), "nothing is written where one works"
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("lowenergy-*/plots/curves/*/*/*.jsonl"))


def test_tensors_are_made_where_the_network_is(network: Net) -> None:
    """Whatever the caller's default device is; meta would have no values."""
    plain = made(network, "prune").to_bytes()
    with torch.device("meta"):
        assert made(network, "prune").to_bytes() == plain and torch.empty(1).is_meta


def test_an_error_leaves_nothing_changed_either(network: Net) -> None:
    torch.use_deterministic_algorithms(False)  # whatever tests before it have left
    before = torch.get_rng_state()
    with pytest.raises(UserError, match="smallest file found"):
        made(network, "pq", budget_bytes=10)
    assert torch.equal(torch.get_rng_state(), before) and not torch.are_deterministic_algorithms_enabled()


def test_progress_is_told_and_output_is_the_callers(network: Net, capsys: pytest.CaptureFixture[str]) -> None:
    made(network, "prune", finetune={"epochs": 2})
    said = capsys.readouterr()
    assert not said.out and "prune: step" in said.err and "asked for 70.0% of the weights" in said.err


def test_seeds_are_heeded(network: Net) -> None:
    one, same, other = (made(network, "distill", seed=seed).to_bytes() for seed in (0, 0, 1))
    assert one == same != other


# -- energies and cards -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def energy(trained: Net) -> making.Made:
    matching = {"images": 40, "chains": 10, "chain_steps": 5}
    constants = {"step_size": 0.2, "noise": 0.01, "gradient_clamp": 2.0, "chain_steps": 12}
    return made(trained, "prune", IMAGES, None, head="mean", matching=matching, **constants)


def test_an_energy_is_sampled_as_it_says(energy: making.Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert energy.provenance["sampler"] == {"step_size": 0.2, "noise": 0.01, "gradient_clamp": 2.0, "chain_steps": 12}
    images = lowenergy.sample(energy, n=5, seed=3)
    assert images.shape == (5, 1, 8, 8) and images.abs().max() <= 1 and images.dtype == torch.float32
    energy.save("energy.safetensors")
    assert torch.equal(lowenergy.sample("energy.safetensors", n=5, seed=3, network=Net()), images)
    assert torch.equal(lowenergy.sample(energy, n=5, seed=3, steps=12, step_size=0.2), images)
    assert not torch.equal(lowenergy.sample(energy, n=5, seed=4), images)
    smaller = made(energy, "quantize", None, noise=0.02, training={"lr": 0.001})
    assert smaller.provenance["sampler"] == {**energy.provenance["sampler"], "noise": 0.02}
    assert (smaller.matching, smaller.training) == (energy.matching, {"lr": 0.001})
    with pytest.raises(UserError, match="n=0: give at least 1"):
        lowenergy.sample(energy, n=0)
    assert made(energy, "quantize", None).provenance["sampler"] == energy.provenance["sampler"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda energy: lowenergy.load(None), "path: NoneType is no path"),  # type: ignore[arg-type]
        (lambda energy: lowenergy.load(b"model"), "path: bytes is no path"),  # type: ignore[arg-type]
        (lambda energy: lowenergy.sample(energy, n=2.5), "n=2.5: give a whole number"),  # type: ignore[arg-type]
        (
            lambda energy: lowenergy.sample(energy, n=10**12),
            "n=1000000000000: the images take 2.* GiB of .*; give fewer",
        ),
        (lambda energy: lowenergy.sample(energy, steps=1.5), "steps=1.5: give a whole number"),  # type: ignore[arg-type]
        (lambda energy: lowenergy.sample(energy, step_size="x"), "step_size='x': give a number"),  # type: ignore[arg-type]
        (lambda energy: lowenergy.sample(energy, step_size=float("nan")), "step_size=nan: give a number above 0"),
        (lambda energy: lowenergy.sample(energy, seed="a"), "seed='a': give a whole number"),  # type: ignore[arg-type]
        (lambda energy: lowenergy.sample(energy, seed=-1), "seed=-1: give at least 0"),
        (lambda energy: lowenergy.sample(energy, seed=2**70), "give one below 2\\^63"),
        (lambda energy: lowenergy.compress(energy, "quantize", seed=1.5), "seed=1.5"),  # type: ignore[arg-type]
        (lambda energy: lowenergy.compress(energy, None), "None is no method"),  # type: ignore[arg-type]
        (lambda energy: lowenergy.train(Net(), ["ebm"], images=None), "kind="),  # type: ignore[arg-type]
        (lambda energy: lowenergy.export(energy, None), "out: NoneType is no path"),  # type: ignore[arg-type]
        (lambda energy: energy.save(3), "path: int is no path"),
        (lambda energy: energy.save("."), ".: Is a directory; give the name of a file"),
    ],
)
def test_arguments_that_are_no_numbers_or_paths_are_refused_by_name(energy: making.Made, call: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        call(energy)


def test_a_card_says_what_there_is(network: Net) -> None:
    small = made(network, "prune", amount=0.9)
    images, labels = stripes(90, seed=1)
    card = small.card(images, labels)
    logits, wanted = (accuracy.predict(n, images, 100) for n in (small.network, making.network_of(small.teacher.model)))
    assert float(card.accuracy) == accuracy.measure(logits, labels)["accuracy"]
    assert card.accuracy == intervals.wilson(int((logits.argmax(1) == labels).sum()), 90)
    assert card.gain == intervals.mcnemar(logits.argmax(1) == labels, wanted.argmax(1) == labels)
    assert card.agreement == answers.agreement(logits, wanted)
    assert card.size_bytes == small.size_bytes and card.compression_ratio == small.teacher.size / small.size_bytes
    assert card.micronet["score"] > 0 and card.macs == networks.macs(small.network)
    text = str(card)
    assert f"{small.size_bytes:,} bytes" in text and "MicroNet score" in text and "calibration error" in text
    assert f"class {card.lost_most.label}" in text
    unlike = lowenergy.evaluate(small, images, labels)
    assert unlike.gain is None and unlike.accuracy == card.accuracy


def test_fid_through_ones_own_classifier(network: Net, energy: making.Made) -> None:
    lowenergy.save(network, "scorer.safetensors", images=IMAGES)
    with pytest.raises(UserError, match="code that is in no file of models"):
        lowenergy.fid(IMAGES, scorer="scorer.safetensors")
    trust = ["test_calls"]
    with pytest.raises(UserError, match=r"reference\.safetensors: no such file"):
        lowenergy.fid(IMAGES, scorer="scorer.safetensors", trust=trust)
    near = lowenergy.fid(IMAGES[:100], scorer="scorer.safetensors", real=IMAGES[100:], trust=trust)
    far = lowenergy.fid(lowenergy.sample(energy, n=100, steps=2), scorer="scorer.safetensors", real=IMAGES, trust=trust)
    assert near.fid.high < far.fid.low and near.images == 100
    card = energy.card(IMAGES, scorer="scorer.safetensors", samples=100, steps=2, trust=trust)
    assert card.generation.fid == far.fid and "FID" in str(card)
    assert energy.card(IMAGES).generation is None
    energy.save("energy.safetensors")
    for call in (lowenergy.fid, partial(lowenergy.evaluate, energy)):
        with pytest.raises(UserError, match=r"energy\.safetensors: an energy, whose outputs are no classes; FID looks"):
            call(IMAGES, scorer="energy.safetensors", trust=trust)


# -- the package ------------------------------------------------------------------------------------------------------

CALLS = [lowenergy.compress, lowenergy.train, lowenergy.save, lowenergy.evaluate, lowenergy.fid]
CALLS += [lowenergy.load, lowenergy.sample, lowenergy.export]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples of docstrings have beside them."""
    folder = tmp_path_factory.mktemp("zoo")
    found: dict[str, Any] = {"IMAGES": torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8), "pathlib": pathlib}
    found["LABELS"] = torch.arange(300) % 10
    for name, head in (("CLASSIFIER", None), ("ENERGY", "mean")):
        spec = networks.Spec("cnn", 4, "3x3", "swish", "none", 1, 8, 10, head)
        found[name] = str(folder / f"{name.lower()}.safetensors")
        sampler = {"sampler": {"step_size": 0.1, "noise": 0.01, "gradient_clamp": 1.0, "chain_steps": 10}}
        model = artifact.dense(networks.build(spec, seed=0).eval(), "ebm" if head else "classifier")
        artifact.save(model, found[name], sampler if head else {})
    return found


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_the_example_of_a_call_runs(call: Any, zoo: dict[str, Any]) -> None:
    (test,) = [t for t in doctest.DocTestFinder(recurse=False).find(call, call.__name__, globs=dict(zoo)) if t.examples]
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


@pytest.mark.parametrize("module", [shares, intervals, answers])
def test_the_examples_of_formulas_run(module: Any) -> None:
    tried = doctest.testmod(module)
    assert tried.attempted and not tried.failed


def test_all_that_is_public_is_named_and_found() -> None:
    public = (*CALLS, measuring.Card, making.Made, UserError)
    assert {each.__name__ for each in public} == set(lowenergy.__all__) <= set(dir(lowenergy))
    for name in lowenergy.__all__:
        assert getattr(lowenergy, name) in public
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lowenergy.nothing  # noqa: B018
    assert using.load is lowenergy.load


HEAVY = ("dvc", "dvclive", "matplotlib", "dask", "distributed", "optuna", "pandas", "sklearn", "rich", "ruamel", "PIL")
HEAVY += ("torchvision", "torchao", "onnx", "onnxruntime", "lightning_fabric", "torch_pruning", "timm")


def test_importing_is_quick() -> None:
    """Nothing heavy, not even torch, until a call is made; measured on an idle machine in CONTRIBUTING's words."""
    code = "import sys, lowenergy; print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"
    code = (
        "import sys; from lowenergy import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).endswith("[]\n")


def test_who_only_has_a_model_needs_little(zoo: dict[str, Any]) -> None:
    """load, sample, evaluate and export (to C) with nothing but torch, safetensors, numpy, zstandard and pydantic."""
    code = f"""
import sys
sys.modules |= dict.fromkeys({HEAVY!r})  # importing one of them fails
import lowenergy, torch
classifier, energy = {zoo["CLASSIFIER"]!r}, {zoo["ENERGY"]!r}
images, labels = torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8), torch.arange(50) % 10
lowenergy.load(classifier)
print(lowenergy.evaluate(classifier, images, labels))
drawn = lowenergy.sample(energy, n=20, steps=2)
print(lowenergy.fid(drawn, scorer=classifier, real=images))
lowenergy.export(energy, "energy-c")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout and "FID" in done.stdout


def test_an_ebms_logits_are_no_classes(tmp_path: Path) -> None:
    """With the head logsumexp, a JEM's are."""
    spec = networks.Spec("cnn", 4, "3x3", "swish", "none", channels=1, image_size=8, outputs=3, head="logsumexp")
    for target in ("ebm", "jem"):
        artifact.save(artifact.dense(networks.build(spec, seed=0), target), tmp_path / target, {"stage": "teacher"})
    assert getattr(lowenergy.evaluate(tmp_path / "ebm"), "accuracy", None) is None
    with pytest.raises(UserError, match="give images to test on"):
        lowenergy.evaluate(tmp_path / "jem")


def test_what_was_loaded_and_trained_loads_again(tmp_path: Path) -> None:
    """With its own constructor, and from the weights that it had."""
    images, labels = torch.rand(40, 1, 32, 32) * 2 - 1, torch.arange(40) % 4
    spec = networks.Spec("cnn", 4, "3x3", "relu", "batch", channels=1, image_size=32, outputs=4)
    artifact.save(artifact.dense(networks.build(spec, seed=0), "classifier"), tmp_path / "ours", {"stage": "teacher"})
    made = timm.create_model("test_efficientnet", num_classes=4, in_chans=1)
    lowenergy.train(made, "classifier", images=images, labels=labels, epochs=1).save(tmp_path / "theirs")
    for name in ("ours", "theirs"):
        first = lowenergy.load(tmp_path / name)
        lowenergy.train(first, "classifier", images=images, labels=labels, epochs=1, lr=1e-6).save(tmp_path / "again")
        again = lowenergy.load(tmp_path / "again")
        assert again.spec.name == first.spec.name
        for after, before in zip(again.parameters(), first.parameters(), strict=True):
            torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)


def test_a_pruned_network_trains_on_with_the_channels_that_it_has() -> None:
    images, labels = torch.rand(40, 1, 8, 8) * 2 - 1, torch.arange(40) % 4
    network = networks.build(
        networks.Spec("cnn", 8, "3x3", "relu", "batch", channels=1, image_size=8, outputs=4), seed=0
    )
    pruned = lowenergy.compress(
        network, "prune", images=images, labels=labels, kind="structured", amount=0.4, accept_chance=True
    ).network
    again = lowenergy.train(pruned, "classifier", images=images, labels=labels, epochs=1).network
    assert [w.shape for w in again.parameters()] == [w.shape for w in pruned.parameters()]


def test_accuracy_of_outputs_that_are_nan_is_one_line() -> None:
    class Root(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1)) + (x.mean((1, 2, 3)) + 0.5).sqrt()[:, None]

    body, images = Root(64, 3), torch.full((9, 1, 8, 8), 128, dtype=torch.uint8)
    lowenergy.save(body, "root.safetensors", images=images)
    images[4:6] = 0
    with pytest.raises(UserError, match=r"Root: its outputs are NaN for 2 of 9 images, the first of them number 4 "):
        lowenergy.evaluate(lowenergy.load("root.safetensors", network=body), images, torch.zeros(9).long())


def test_norms_settle_on_images_of_all_classes_that_lie_class_by_class() -> None:
    images = torch.full((4400, 1, 8, 8), 64, dtype=torch.uint8)
    images[2200:] = 192
    body = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4, momentum=0.01), nn.Flatten(), nn.Linear(256, 2))
    labels = torch.arange(2).repeat_interleave(2200)
    network: Any = lowenergy.train(
        body, "classifier", images=images, labels=labels, epochs=1, batch_size=100, crop_padding=0
    ).network
    conv, norm = network.body[0], network.body[1]
    with torch.no_grad():
        of_all = conv(data.to_float(images[[0, -1]])).mean((0, 2, 3))
    assert torch.allclose(norm.running_mean, of_all, atol=0.01)


def test_a_foreign_energy_trains_on_as_the_energy_that_it_is(tmp_path: Path) -> None:
    images = torch.rand(40, 1, 8, 8) * 2 - 1
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 3))
    small = lowenergy.compress(
        body,
        "prune",
        images=images,
        head="logsumexp",
        finetune={"epochs": 0},
        matching={"images": 20, "chains": 5, "chain_steps": 4},
    )
    small.save(tmp_path / "energy")
    loaded = lowenergy.load(tmp_path / "energy", network=body)
    assert lowenergy.train(loaded, "ebm", images=images, epochs=1).model.spec.head == "logsumexp"
    assert lowenergy.train(loaded, "ebm", images=images, epochs=1, head="mean").model.spec.head == "mean"


def test_a_loaded_energy_trains_on_as_the_energy_that_it_is(tmp_path: Path) -> None:
    images = torch.rand(40, 1, 8, 8) * 2 - 1
    spec = networks.Spec("cnn", 4, "3x3", "swish", "none", channels=1, image_size=8, outputs=3, head="logsumexp")
    artifact.save(artifact.dense(networks.build(spec, seed=0), "ebm"), tmp_path / "energy", {"stage": "teacher"})
    made = lowenergy.train(lowenergy.load(tmp_path / "energy"), "ebm", images=images, epochs=1)
    made.save(tmp_path / "again")
    again = lowenergy.load(tmp_path / "again").spec
    assert (again.head, again.outputs) == ("logsumexp", 3)
