"""Models as C: the same answers as torch, the same bytes by every compiler, memory as planned."""

import ctypes
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.nn import functional as F

from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.cli import main
from lowenergy.energies import energy_gradient
from lowenergy.networks.foreign import Foreign
from lowenergy.runtimes import c, int8
from lowenergy.runtimes.c import directory
from lowenergy.runtimes.loading import dense_network, energy_in
from lowenergy.storage import Coded, Constant, Dense, Int8, Model, Sparse, artifact

SAMPLER = {"step_size": 0.05, "noise": 0.015, "gradient_clamp": 5.0, "chain_steps": 20}
HEADER = {"provenance": {"sampler": SAMPLER}}
STRICT = ["-std=c99", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pedantic"]
ARENA = r"\((\d+)L \+ \(MODEL_KEEP \? (\d+)L : .* (\d+)L \* MODEL_LANES"
SMALLEST = ROOT / "pretrained" / "mnist-ebm-12k.safetensors"


class Compiled:
    """A directory of C as a library; its arena is filled with NaN, which no plan may read."""

    def __init__(self, directory: Path, compiler: str = "gcc", *flags: str) -> None:
        library = directory.with_name(f"{directory.name}-{compiler}{''.join(flags)}.so")
        command = [compiler, *STRICT, *(flags or ["-O1"]), "-shared", "-fPIC", "-o", library, directory / "model.c"]
        subprocess.run(command, check=True)
        self.library: Any = ctypes.CDLL(str(library))
        for name in ("model_energy", "model_step"):
            if hasattr(self.library, name):
                getattr(self.library, name).restype = ctypes.c_float
        header = (directory / "model.h").read_text()
        self.shape = tuple(
            int(re.search(rf"define MODEL_{k} (\d+)", header)[1])  # type: ignore[index]
            for k in ("CHANNELS", "HEIGHT", "WIDTH")
        )
        self.outputs = int(re.search(r"define MODEL_OUTPUTS (\d+)", header)[1])  # type: ignore[index]
        fixed, kept, tile = map(int, re.search(ARENA, header).groups())  # type: ignore[union-attr]
        lanes = next((int(f.partition("=")[2]) for f in flags if f.startswith("-DMODEL_LANES")), 8)
        keeps = "-DMODEL_KEEP=1" in flags
        self.arena_bytes = fixed + (kept if keeps else tile * lanes if lanes > 1 else 0)
        self.memory = np.full(self.arena_bytes + 16, 0xFF, np.uint8)  # every float of it is NaN
        self.start = -self.memory.ctypes.data % 8
        if keeps:
            self.memory[self.start + fixed : self.start + self.arena_bytes] = 0

    def arena(self) -> Any:
        return ctypes.c_void_p(self.memory.ctypes.data + self.start)

    def untouched(self) -> bool:
        """Nothing was written beyond the arena."""
        return bool((self.memory[self.start + self.arena_bytes :] == 0xFF).all())

    def energy(self, image: Tensor) -> float:
        return float(self.library.model_energy(self.arena(), _pointer(image.numpy().copy())))

    def logits(self, image: Tensor) -> np.ndarray:
        found = np.zeros(self.outputs, np.float32)
        self.library.model_logits(self.arena(), _pointer(image.numpy().copy()), _pointer(found))
        return found

    def step(self, image: Tensor, random: int = 1) -> tuple[float, np.ndarray]:
        moved = image.numpy().copy()
        state = ctypes.c_uint32(random)
        return self.library.model_step(self.arena(), _pointer(moved), ctypes.byref(state)), moved

    def sample(self, seed: int, steps: int) -> np.ndarray:
        image = np.zeros(self.shape, np.float32)
        self.library.model_sample(self.arena(), _pointer(image), ctypes.c_uint32(seed), steps)
        return image


def _pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)


GCC = directory.COMPILERS["gcc"]
KEPT = ["-O1", "-DMODEL_KEEP=1"]


@pytest.fixture(autouse=True)
def sizes_untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports do not compile their code to tell its size, but for the command's test."""
    monkeypatch.setattr(directory, "COMPILERS", {})


def agrees(model: Model, out: Path, builds: Sequence[list[str]] = ([],), **options: Any) -> set[str]:
    """Logits, energies and steps, of images of three kinds, by each build; which of these were compared."""
    c.export(model, HEADER, out, **options)
    return set().union(*(has_torchs_answers(Compiled(out, "gcc", *flags), model) for flags in builds))


def has_torchs_answers(made: Compiled, model: Model) -> set[str]:
    compared = set()
    network = dense_network(model)
    images = torch.rand(3, *model.spec.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[1] *= 0.3
    images[2] = -1.0
    with torch.no_grad():
        logits = network(images).numpy()
    spread = max(1.0, float(np.abs(logits).max()))
    if model.target != "ebm":
        found = np.stack([made.logits(image) for image in images])
        np.testing.assert_allclose(found, logits, atol=2e-5 * spread)
        compared.add("logits")
    if model.spec.head is not None:
        energies, gradient = energy_gradient(energy_in(model, network), images)
        clamped = gradient.clamp(-SAMPLER["gradient_clamp"], SAMPLER["gradient_clamp"])
        moved = (images - SAMPLER["step_size"] * clamped).numpy()
        steps = [made.step(image) for image in images]
        np.testing.assert_allclose([energy for energy, _ in steps], energies, atol=2e-5 * spread)
        np.testing.assert_allclose([made.energy(image) for image in images], energies, atol=2e-5 * spread)
        noise = [(found - want) / SAMPLER["noise"] for (_, found), want in zip(steps, moved, strict=True)]
        both = (np.abs(steps[0][1]) < 1) & (np.abs(steps[1][1]) < 1)
        np.testing.assert_allclose(noise[0][both], noise[1][both], atol=2e-3)  # the same numbers, whatever the image
        assert 0.5 < noise[0][both].std() < 1.5
        compared |= {"energy", "step"}
    assert made.untouched()
    return compared


COMPARED = {"classifier": {"logits"}, "ebm": {"energy", "step"}, "jem": {"logits", "energy", "step"}}


# -- encodings --------------------------------------------------------------------------------------------------------


def zoo(name: str, target: str, **changes: Any) -> Model:
    given = {
        "width": 4,
        "stem": "3x3",
        "activation": "swish",
        "norm": "none",
        "channels": 1,
        "image_size": 12,
    } | changes
    head = {"classifier": None, "ebm": "mean", "jem": "logsumexp"}[target]
    spec = networks.Spec(name=name, outputs=3, head=head, **given)  # type: ignore[arg-type]
    network = networks.build(spec, seed=0).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return artifact.dense(network, target)


@pytest.mark.parametrize(
    ("name", "target", "changes"),
    [
        ("cnn", "classifier", {}),
        ("cnn", "ebm", {"channels": 3, "activation": "gelu"}),
        ("shallow", "ebm", {"image_size": 9, "activation": "elu"}),
        ("strided", "jem", {"image_size": 13, "activation": "leaky_relu"}),
        ("compact", "ebm", {"image_size": 11}),
        ("residual", "jem", {"channels": 3}),
        ("unet", "jem", {"channels": 3, "image_size": 13}),
        ("resnet8", "classifier", {"norm": "batch", "activation": "relu"}),
        ("resnet8", "ebm", {"norm": "batch", "activation": "relu", "stem": "7x7", "image_size": 24}),
        ("resnet10", "classifier", {"stem": "7x7", "norm": "batch", "image_size": 24, "mean": [0.4], "std": [0.3]}),
        ("residual", "ebm", {"stem": "5x5", "channels": 3, "image_size": 20}),
    ],
)
def test_networks_of_the_zoo(name: str, target: str, changes: dict[str, Any], tmp_path: Path) -> None:
    assert agrees(zoo(name, target, **changes), tmp_path / "c") == COMPARED[target]


class Attentive(nn.Module):
    """Norms, tokens, attention, groups, windows, joins: what networks from elsewhere are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=2)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.token_norm = nn.LayerNorm(12)
        self.back = nn.ConvTranspose2d(12, 6, 4, stride=2, padding=1)
        self.squeeze, self.excite = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.fc = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.stem(x)))
        x = self.grouped(F.relu6(self.depthwise(x)))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.token_norm(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        x = self.back(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = torch.cat(
            [F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 2), F.interpolate(x, scale_factor=2.0)[:, :, ::4, ::4]], 1
        )
        a, b = F.pad(x, (1, 0, 0, 2)).chunk(2, 1)
        x = torch.cat([a * torch.tanh(b), F.softplus(a), b.softmax(1)[:, :9]], 1)[:, :18]
        return self.fc(x.amax((2, 3)) + x.mean((2, 3)))


class Strange(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cumsum(self.conv(x), 2).mean((2, 3)))


def foreign(body: nn.Module, target: str, size: int = 12) -> Model:
    head = {"classifier": None, "ebm": "mean", "jem": "logsumexp"}[target]
    outputs = body(torch.zeros(2, 3, size, size)).shape[1]
    spec = networks.Spec("test.py:Net", channels=3, image_size=size, outputs=outputs, head=head)
    model = artifact.dense(Foreign(spec, body.eval()).eval(), target)
    return Model(model.target, replace(spec, given=networks.Given(body)), model.tensors)


@pytest.mark.parametrize("target", ["classifier", "ebm"])
def test_networks_from_elsewhere(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert agrees(foreign(Attentive(), target), tmp_path / "c") == COMPARED[target]


class Alike(nn.Module):
    """Two layers whose names differ by what C does not allow in a name."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleDict({"b": nn.Conv2d(3, 4, 3)})
        self.a_b = nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a_b(F.relu(self.a["b"](x))).mean((2, 3))


def test_names_that_are_alike_in_c(tmp_path: Path) -> None:
    assert agrees(foreign(Alike(), "classifier"), tmp_path / "c") == {"logits"}


class Suffixed(nn.Module):
    """Tensors named as what the code appends to the name of an int8 weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.conv.weight_scale = nn.Parameter(torch.rand(4, 1, 1))
        self.conv.weight_values = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale, values = cast(Tensor, self.conv.weight_scale), cast(Tensor, self.conv.weight_values)
        return self.fc((self.conv(x) * scale + values).mean((2, 3)))


def test_names_that_are_like_what_the_code_appends(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = foreign(Suffixed(), "classifier")
    assert agrees(as_integers(model, 8), tmp_path / "c") == {"logits"}


class Still(nn.Module):
    """Logits that are the same for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc.weight.sum(1).expand(len(x), -1)


def test_logits_that_are_constant(tmp_path: Path) -> None:
    assert agrees(foreign(Still(), "classifier"), tmp_path / "c") == {"logits"}


class Beyond(nn.Module):
    """Asks for the logarithms of negative numbers, which are no numbers."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(torch.log(x) < 50.0, x, 2 * x)
        return torch.where(torch.log1p(2 * x) < 50.0, x, 3 * x).mean((2, 3))


def test_negative_numbers_have_no_logarithm(tmp_path: Path) -> None:
    assert agrees(foreign(Beyond(), "classifier"), tmp_path / "c") == {"logits"}


class Masked(nn.Module):
    """Conditions on images beside those that are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
        self.register_buffer("mask", torch.rand(4, 12, 12, generator=torch.Generator().manual_seed(0)) > 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = torch.where(self.mask & (x > 0), x, 0.1 * x)  # type: ignore[operator]
        x = torch.where(~(self.mask | (x < 0.1)), 2 * x, x)  # type: ignore[operator]
        return self.fc(torch.where(torch.logical_and(self.mask, x > 0.2), x, -x).mean((2, 3)))


def test_conditions_that_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert agrees(foreign(Masked(), "ebm"), tmp_path / "c") == COMPARED["ebm"]


class Wide(nn.Module):
    """A layer of more inputs than 16 bits count."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16 * 64 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).flatten(1))


@pytest.mark.slow
def test_a_layer_of_65536_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert agrees(foreign(Wide(), "classifier", 64), tmp_path / "c") == {"logits"}


def as_integers(model: Model, bits: int, zeros: float = 0.0) -> Model:
    """Weights as integers of so many bits, some of which are 0."""
    generator = torch.Generator().manual_seed(0)
    tensors = dict(model.tensors)
    for name, part in model.tensors.items():
        if name.endswith("weight"):
            w = part.decode()
            w = w * (torch.rand(w.shape, generator=generator) >= zeros)
            scale = w.flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
            tensors[name] = Int8(int8.rounded(w, scale, bits), scale, bits)
    return Model(model.target, model.spec, tensors)


def test_more_weights_than_16_bits_count_in_arrays_of_fewer_bytes(tmp_path: Path) -> None:
    """95,000 integers of three bits are 36 kB, and a bit for each of the 173,000 places 22 kB."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 400), nn.ReLU(), nn.Linear(400, 3))
    assert agrees(as_integers(foreign(body, "classifier"), 3, zeros=0.45), tmp_path / "c") == {"logits"}
    assert "typedef uint32_t place_t" in (tmp_path / "c" / "model.c").read_text()


def test_a_kernel_that_a_byte_does_not_count_is_refused(tmp_path: Path) -> None:
    body = nn.Sequential(nn.Conv2d(3, 2, 3, dilation=256, padding=256), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match="dilation of 256: code in C has room for 255"):
        c.export(foreign(body, "classifier"), HEADER, tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_what_has_no_c_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no C form of cumsum \(after layer body.conv\)"):
        c.export(foreign(Strange(), "classifier"), HEADER, tmp_path / "c")
    assert not list(tmp_path.iterdir())


class BothWays(nn.Module):
    """A matrix that is computed multiplies in one place and is added in another; queries that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.mixing, self.queries = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(1, 2, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mixing, pixels = torch.tanh(self.mixing), self.conv(x).flatten(2).mT
        pixels = F.silu(pixels @ mixing + (pixels.unsqueeze(3) * mixing).amax(2))
        return self.fc(self.attention(self.queries.expand(len(x), -1, -1), pixels, pixels)[0].mean(1))


@pytest.mark.parametrize("target", ["classifier", "ebm"])
def test_a_constant_may_be_used_as_it_is_and_turned(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert agrees(foreign(BothWays(), target), tmp_path / "c") == COMPARED[target]


def test_operations_that_compute_something_else_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = directory.operations.lower

    def wrong(*given: Any) -> Any:
        program = lower(*given)
        name = next(name for name, value in program.constants.items() if value.ndim == 4)
        return replace(program, constants={**program.constants, name: program.constants[name].flip(3)})

    monkeypatch.setattr(directory.operations, "lower", wrong)
    with pytest.raises(UserError, match=r"no C form: it would differ from the network by \d"):
        c.export(foreign(Attentive(), "classifier"), HEADER, tmp_path / "c")
    assert not list(tmp_path.iterdir())


class Drawing(nn.Module):
    """The same noise each time; code in C would have that of the export."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            x = x + torch.randn(x.shape[2:])
        return self.fc(self.conv(x).relu().mean((2, 3)))


class DrawingForNothing(nn.Module):
    """As where code draws which paths to drop before it asks whether it is training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand(len(x), 1, 1, 1) > 0.5
        x = self.conv(x).relu()
        return self.fc((x * kept if self.training else x).mean((2, 3)))


def test_random_numbers_that_nothing_needs_are_left_out(tmp_path: Path) -> None:
    assert agrees(foreign(DrawingForNothing(), "classifier"), tmp_path / "c") == COMPARED["classifier"]


@pytest.mark.parametrize("target", ["classifier", "ebm"])
def test_random_numbers_are_refused(target: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="draws random numbers, which C has not: aten.randn"):
        c.export(foreign(Drawing(), target), HEADER, tmp_path / "c")
    assert not list(tmp_path.iterdir())


def encoded(kind: str) -> Model:
    """An EBM with every weight of one encoding; odd channels, so that rows end anywhere."""
    model = zoo("strided", "ebm", width=5)
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Any] = dict(model.tensors)
    for name, part in model.tensors.items():
        w = part.decode()
        if not name.endswith("weight"):
            continue
        if kind == "half":
            tensors[name] = Dense(w.half())
        elif kind.startswith("pq"):
            d = 5 if w.numel() % 5 == 0 else 1
            words = {"pq": 11, "pq wide": 600, "pq of floats": 11}[kind]
            codes = torch.randint(words, (w.numel() // d,), generator=generator)
            codebook = torch.randn(words, d, generator=generator) * 0.1
            codebook = codebook if kind == "pq of floats" else codebook.half()
            tensors[name] = Coded(codes, codebook, tuple(w.shape))
        elif kind.startswith("sparse"):
            share = {"sparse": 0.6, "sparse gaps": 0.97}[kind]
            tensors[name] = Sparse(w * (torch.rand(w.shape, generator=generator) > share))
        elif kind == "constant":
            tensors[name] = Constant(0.05, tuple(w.shape))
    return Model(model.target, model.spec, tensors)


@pytest.mark.parametrize("kind", ["half", "pq", "pq wide", "pq of floats", "sparse", "sparse gaps", "constant"])
def test_weights_stay_as_they_are_stored(kind: str, tmp_path: Path) -> None:
    model = encoded(kind)
    agrees(model, tmp_path / "c", [[], KEPT] if kind in ("half", "pq", "sparse gaps") else [[]])
    card = json.loads((tmp_path / "c" / "card.json").read_text())
    floats = 4 * sum(part.decode().numel() for part in model.tensors.values())
    assert card["constant_bytes"] < (1.6 if kind == "pq wide" else 0.75) * floats  # 600 words for 60 weights
    if kind in ("pq", "sparse"):
        agrees(model, tmp_path / "unpacked", unpack=True)


# -- the same bytes ---------------------------------------------------------------------------------------------------

COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]


@pytest.mark.slow
def test_the_same_bytes_by_every_compiler(tmp_path: Path) -> None:
    model, header = artifact.read(SMALLEST)
    found = {}
    exports: dict[str, dict[str, Any]] = {"fast": {}, "small": {"ram": 32000}, "unpacked": {"unpack": True}}
    one_lane, native = ["-O1", "-DMODEL_LANES=1"], ["-O3", "-march=native"]
    builds = {
        "fast": [*([compiler, level] for compiler in COMPILERS for level in ("-O0", "-O2", "-Os")),
                 ["gcc", *one_lane], ["gcc", *native], ["gcc", *KEPT]],
        "small": [["gcc", *one_lane], ["gcc", *KEPT]],
        "unpacked": [["gcc", *native]],
    }  # fmt: skip
    for name, options in exports.items():
        c.export(model, header, tmp_path / name, **options)
        for compiler, *flags in builds[name]:
            made = Compiled(tmp_path / name, compiler, *flags)
            found[name, compiler, *flags] = made.sample(3, 4).tobytes()
            assert made.untouched()
    assert len(set(found.values())) == 1, {key: hash(value) for key, value in found.items()}


def test_the_shipped_energy_is_torchs(tmp_path: Path) -> None:
    model, header = artifact.read(SMALLEST)
    c.export(model, header, tmp_path / "c")
    made = Compiled(tmp_path / "c")
    images = torch.from_numpy(np.stack([made.sample(seed, steps) for seed in range(3) for steps in (0, 5, 40)]))
    with torch.no_grad():
        energies = dense_network(model)(images).mean(1).numpy()
    found = np.array([made.energy(image) for image in images])
    assert np.abs(found - energies).max() < 1e-4 * energies.std()


# -- memory -----------------------------------------------------------------------------------------------------------


def test_a_limit_trades_time_for_memory(tmp_path: Path) -> None:
    model, _ = artifact.read(SMALLEST)
    free, tight = c.planned(model), c.planned(model, ram=30000)
    assert tight.bytes + directory.stack(tight.program) <= 30000 < free.bytes
    assert tight.work > free.work == free.least_work
    with pytest.raises(UserError, match=r"no plan of 5,000 bytes of RAM: the smallest takes 2\d,\d{3}; give --ram 2"):
        c.export(model, HEADER, tmp_path / "c", ram=5000)
    assert not list(tmp_path.iterdir())


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_all_or_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c"
    monkeypatch.setattr(directory, "COMPILERS", {"gcc": GCC})
    assert main(["export", str(SMALLEST), "--to", "c", "--out", str(out), "--ram", "32k"]) == 0
    assert "more than without the limit" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"model.h", "model.c", "main.c", "Makefile", "card.json"}
    assert 1000 < json.loads((out / "card.json").read_text())["code_bytes"]["gcc"] < 16000
    subprocess.run(["make", "-s"], cwd=out, check=True)
    drawn = subprocess.run([out / "main", "1", "2"], capture_output=True, text=True, check=True).stdout
    assert drawn.startswith("P2\n# energy ") and len(drawn.split()) == 1 + 5 + 3 + 784
    assert main(["export", str(SMALLEST), "--to", "c", "--out", str(out)]) == 0  # over what make has made
    (out / "mine.txt").write_text("keep")
    assert main(["export", str(SMALLEST), "--to", "c", "--out", str(out)]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "keep"
    with pytest.raises(SystemExit):
        main(["export", str(SMALLEST), "--to", "c", "--ram", "many"])
    assert main(["export", str(SMALLEST), "--ram", "32k", "--out", str(tmp_path / "x.onnx")]) == 2
    assert not (tmp_path / "x.onnx").exists()


def test_an_energy_without_a_sampler(tmp_path: Path) -> None:
    model = zoo("shallow", "ebm")
    with pytest.raises(UserError, match="does not say how to sample from it; make it by its stage, or by compress"):
        c.export(model, {"provenance": {}}, tmp_path / "c")
    assert not list(tmp_path.iterdir())
    c.export(model, {"provenance": {}}, tmp_path / "c", sampler=False)
    assert "model_step" not in (tmp_path / "c" / "model.h").read_text()
    images = torch.rand(2, 1, 12, 12)
    made = Compiled(tmp_path / "c")
    with torch.no_grad():
        np.testing.assert_allclose([made.energy(i) for i in images], dense_network(model)(images).mean(1), atol=1e-5)
