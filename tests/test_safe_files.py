"""A file is written only if it can be read again as it is; one that is damaged, or made to do harm, is one line."""

import base64
import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

import lowenergy
from benchmarks import damaged_files
from lowenergy import cli, networks
from lowenergy.base import files
from lowenergy.base.errors import UserError
from lowenergy.base.files import FileError
from lowenergy.networks.foreign import Foreign
from lowenergy.storage import artifact
from lowenergy.storage.encodings import Coded, Constant, Dense, Int8, Part, Sparse, decoded_shape
from lowenergy.storage.limits import TooLargeError

SPEC = networks.Spec("cnn", 4, "3x3", "swish", "batch", channels=1, image_size=8, outputs=10)
ENERGY = networks.Spec("cnn", 4, "3x3", "swish", "none", channels=1, image_size=8, outputs=1, head="scalar")
SAMPLER = {"step_size": 0.05, "noise": 0.015, "gradient_clamp": 5.0, "chain_steps": 2}
HARMLESS = 2**29  # bytes of memory, which is more than a limit's 256 MiB and all that decoding takes


# -- what is written --------------------------------------------------------------------------------------------------


def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Foreign:
    """A network in a file of the user's own, `Net`."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(f"import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n{body}")
    spec = networks.Spec("own.py:Net", channels=1, image_size=8, outputs=3, arguments={})
    network = networks.build(spec, seed=7)
    network.find_layers()
    return network


LAYERS = """    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 4, 3), nn.Linear(144, 3)
"""


@pytest.mark.parametrize(
    "more",
    [
        """        self.by = 1.0

    def forward(self, x):
        self.by = self.by + 0.5 * self.training
        return self.last(self.conv(x).flatten(1)) * self.by
""",  # a number that training moves
        """        self.register_buffer("table", torch.rand(3), persistent=False)

    def forward(self, x):
        return self.last(self.conv(x).flatten(1)) + self.table
""",  # drawn by the constructor, and in no state dict
        """        self.scale = torch.ones(3)

    def forward(self, x):
        if self.training:
            self.scale = self.scale * 1.01
        return self.last(self.conv(x).flatten(1)) * self.scale
""",  # a tensor that is no buffer
    ],
    ids=["number", "buffer", "tensor"],
)
def test_what_a_file_cannot_hold_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    network = own(tmp_path, monkeypatch, LAYERS + more)
    network.train()(torch.zeros(2, 1, 8, 8))
    with pytest.raises(FileError, match=r"^teacher: read again, own.py:Net gives other outputs, by up to .* than in"):
        artifact.save(artifact.dense(network, "classifier"), "teacher", {})
    assert {path.name for path in tmp_path.iterdir()} <= {"own.py", "__pycache__"}
    assert network.training, "left as it was"


def test_a_network_as_training_leaves_it_is_written(tmp_path: Path) -> None:
    """Channels last, in training mode; its outputs are compared bit for bit, so in the same layout."""
    network = networks.build(networks.Spec("resnet8", 24, "3x3", "relu", "batch", 3, 16, 10), seed=0)
    network.to(memory_format=torch.channels_last).train()
    network(torch.rand(8, 3, 16, 16))
    artifact.save(artifact.dense(network, "classifier"), tmp_path / "m", {})
    assert network.training and network.features[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in artifact.weights(lowenergy.load(tmp_path / "m")).items():
        assert torch.equal(value, network.state_dict()[name])


def test_networks_that_draw_in_evaluation_mode_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = """
    def forward(self, x):
        return self.last(nn.functional.dropout(self.conv(x).flatten(1), 0.5, True))
"""
    network = own(tmp_path, monkeypatch, LAYERS + forward)
    artifact.save(artifact.dense(network, "classifier"), "m", {})
    assert artifact.read("m", trust=["own.py"])[0].target == "classifier"


def test_a_disk_that_writes_something_else_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    artifact.save(artifact.dense(networks.build(SPEC, seed=0), "classifier"), path, {})
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda number: os.truncate(number, 5000))
    with pytest.raises(FileError, match=r"m: what was written cannot be read again \(.*truncated.*\); nothing is"):
        artifact.save(artifact.dense(networks.build(SPEC, seed=1), "classifier"), path, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_tensors_that_do_not_make_the_network_are_not_written(tmp_path: Path) -> None:
    model = artifact.dense(networks.build(SPEC, seed=0), "classifier")
    rest = {name: encoded for name, encoded in model.tensors.items() if name != "fc.bias"}
    with pytest.raises(FileError, match=r"fc\.bias"):
        artifact.save(artifact.Model("classifier", SPEC, rest), tmp_path / "m", {})
    assert not list(tmp_path.iterdir())


KINDS = (
    torch.complex64,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int16,
    torch.int64,
    torch.bool,
    torch.uint8,
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("way", ["dense", "packed"])
def test_buffers_of_any_kind_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: torch.dtype, way: str
) -> None:
    buffer = f"        self.register_buffer('table', (torch.arange(64) / 7).to({kind}))\n"
    forward = """
    def forward(self, x):
        table = self.table.real if self.table.is_complex() else self.table
        return self.last(self.conv(x * table.float().view(8, 8)).flatten(1))
"""
    network = own(tmp_path, monkeypatch, LAYERS + buffer + forward)
    model = artifact.dense(network, "classifier")
    if way == "packed":
        zeros = Sparse(model.tensors["body.conv.weight"].decode().relu())
        model = artifact.Model("classifier", network.spec, {**model.tensors, "body.conv.weight": zeros})
    artifact.save(model, "m", {})
    table = artifact.read("m", trust=["own.py"])[0].build().body.table
    assert table.dtype == kind and torch.equal(table, network.body.table)


def test_what_has_no_form_in_a_file_is_named(tmp_path: Path) -> None:
    network = networks.build(SPEC, seed=0)
    network.register_buffer("odd", torch.ones(3, dtype=torch.complex128))
    with pytest.raises(FileError, match=r"^cnn: odd is torch.complex128, which no file holds"):
        artifact.save(artifact.dense(network, "classifier"), tmp_path / "m", {})
    strange = networks.Spec(**{**SPEC.__dict__, "arguments": {"when": {1, 2}}})
    with pytest.raises(FileError, match="have no form in a file: .*set"):
        artifact.to_bytes(artifact.Model("classifier", strange, {}), {})


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("folder", "Is a directory; give the name of a file"),
        ("", "Is a directory; give the name of a file"),
        ("file/x.onnx", "a file stands where a directory is needed"),
        ("x" * 300, "give a shorter name"),
        ("/proc/nothing/x.onnx", "/proc/nothing/x.onnx: "),
        ("/dev/full", "there is something that is no file"),
        ("m.safetensors", "that is the model itself"),
    ],
)
@pytest.mark.parametrize("command", ["export", "sample"])
def test_places_where_no_file_can_be_are_one_line_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, command: str, out: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    artifact.save(artifact.dense(networks.build(ENERGY, seed=0), "ebm"), "m.safetensors", {"sampler": SAMPLER})
    monkeypatch.setattr(artifact.Model, "build", lambda _: pytest.fail("computes before it looks"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert cli.main([command, "m.safetensors", "--out", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert Path("/dev/full").is_char_device()


def test_a_place_without_permission_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    artifact.save(artifact.dense(networks.build(SPEC, seed=0), "classifier"), tmp_path / "m", {})

    def refused(path: Path, *_: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    plain = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r": (refused if "w" in mode else plain)(path, mode))
    assert cli.main(["export", str(tmp_path / "m"), "--out", str(tmp_path / "m.onnx")]) == 2
    assert "m.onnx: Permission denied; give yourself the permission" in capsys.readouterr().err


# -- what is read -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    artifact.save(artifact.dense(networks.build(ENERGY, seed=0), "ebm"), path, {"data": "digits", "sampler": SAMPLER})
    return path


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], Any]) -> Path:
    """The file with a change, signed again."""
    tensors, header = files.read_safetensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(header, tensors)
    facts = {key: value for key, value in header.items() if key != "sha256"}
    files.write_safetensors(path, tensors, {**facts, "sha256": artifact.digest(tensors, facts)})
    return path


def refused(path: Path, capsys: Any, commands: tuple[str, ...] = ("show", "export", "sample")) -> str:
    """What each command says of a file: the same one line."""
    said = set()
    for command in commands:
        capsys.readouterr()
        more = [] if command == "show" else ["--out", str(path.with_suffix(".out.png"))]
        assert cli.main([command, str(path), *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        said.add(line)
    (line,) = said
    with pytest.raises(UserError) as error:
        lowenergy.load(path)
    assert str(error.value) == line and line.startswith(str(path))
    assert list(path.parent.iterdir()) == [path]
    return line.removeprefix(f"{path}: ")


HEADERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown network": (lambda h: h["spec"].update(name="vgg"), "spec.name = 'vgg': 'vgg' is none of cnn"),
    "no network": (lambda h: h["spec"].update(name=""), "spec.name = ''"),
    "unknown size of a network": (lambda h: h["spec"].update(name="cnn5"), "spec.name = 'cnn5': 'cnn5' is not cnn"),
    "unknown resnet": (lambda h: h["spec"].update(name="resnet9"), "spec.name = 'resnet9': 'resnet9' is not resnet8"),
    "unknown activation": (lambda h: h["spec"].update(activation="sine"), "spec.activation = 'sine': input should be"),
    "unknown stem": (lambda h: h["spec"].update(stem=3), "spec.stem = 3"),
    "unknown head": (lambda h: h["spec"].update(head="max"), "spec.head = 'max'"),
    "width of a million": (lambda h: h["spec"].update(width=10**6), "spec.width = 1000000"),
    "width in words": (lambda h: h["spec"].update(width="4"), "spec.width = '4': input should be a valid integer"),
    "width that is none": (lambda h: h["spec"].update(width=True), "spec.width = True"),
    "image without end": (lambda h: h["spec"].update(image_size=10**9), "spec.image_size = 1000000000"),
    "image without pixels": (lambda h: h["spec"].update(image_size=0), "spec.image_size = 0"),
    "no channels": (lambda h: h["spec"].pop("channels"), "spec.channels is missing"),
    "lacks a stem": (lambda h: h["spec"].pop("stem"), "stem missing"),
    "arguments as a list": (lambda h: h["spec"].update(arguments=[1]), "spec.arguments = [1]"),
    "what a network has not": (lambda h: h["spec"].update(depth=3), "depth"),
    "one mean of three": (lambda h: h["spec"].update(mean=[0.5, 0.5], std=[1.0]), "mean and std"),
    "spread of nothing": (lambda h: h["spec"].update(mean=[0.5], std=[0.0]), "spec.std.0 = 0.0"),
    "spec as a list": (lambda h: h.update(spec=[h["spec"]]), "spec = "),
    "no spec": (lambda h: h.pop("spec"), "spec is missing"),
    "no target": (lambda h: h.pop("target"), "target is missing"),
    "a target of many lines": (lambda h: h.update(target="a\nb"), r"'a\nb' is no name"),
    "encodings as a list": (lambda h: h.update(encodings=[1]), "encodings = [1]"),
    "an encoding as a word": (lambda h: h.update(encodings={"fc.bias": "pq"}), "encodings.fc.bias = 'pq'"),
    "an encoding that is none": (lambda h: h.update(encodings={"fc.bias": ["zip", {}]}), "unknown encoding 'zip'"),
    "an encoding without its facts": (lambda h: h.update(encodings={"x": ["pq", {}]}), "encodings.x.shape is missing"),
    "no bits": (lambda h: h.update(encodings={"x": ["int8", {"shape": [1], "bits": 0}]}), "encodings.x.bits = 0"),
    "a shape below nothing": (lambda h: h.update(encodings={"x": ["sparse", {"shape": [-1]}]}), "x.shape.0 = -1"),
    "a shape of 2^60": (lambda h: h.update(encodings={"x": ["sparse", {"shape": [2**60]}]}), "encodings.x.shape.0 = "),
    "a tensor of no parts": (lambda h: h.update(encodings={"x": ["sparse", {"shape": [3]}]}), "'x': no part 'values'"),
    "packed as a word": (lambda h: h.update(packed="all"), "packed = 'all'"),
    "packed as nothing": (lambda h: h.update(packed={"fc.bias": {"dtype": "F32"}}), "packed.fc.bias.shape is missing"),
    "packed what is not": (lambda h: h.update(packed={"fc.bias": {"dtype": "F32", "shape": [1]}}), "zstd of F32"),
    "packed what there is not": (lambda h: h.update(packed={"x": {"dtype": "F32", "shape": [1]}}), "packed.x is of no"),
    "a range below nothing": (lambda h: h.update(activations={"fc:in": [-1.0, 3]}), "activations.fc:in.0 = -1.0"),
    "a zero beyond a byte": (lambda h: h.update(activations={"fc:in": [1.0, 256]}), "activations.fc:in.1 = 256"),
    "a zero beyond its bits": (lambda h: h.update(activations={"fc:in": [1.0, 16, 4]}), "activations.fc:in = [1.0, 16"),
    "a range of one bit": (lambda h: h.update(activations={"fc:in": [1.0, 0, 1]}), "activations.fc:in.2 = 1"),
    "an output of few bits": (lambda h: h.update(activations={"fc:out": [1.0, 0, 4]}), "fc:out has 4 bits"),
    "a range of one": (lambda h: h.update(activations={"fc:in": [1.0]}), "activations.fc:in.1 is missing"),
    "provenance as a list": (lambda h: h.update(provenance=["digits"]), "provenance = ['digits']"),
    "a sampler without noise": (lambda h: h["provenance"]["sampler"].pop("noise"), "sampler.noise is missing"),
    "a sampler of no steps": (lambda h: h["provenance"]["sampler"].update(chain_steps=0), "chain_steps = 0"),
    "steps of no size": (lambda h: h["provenance"]["sampler"].update(step_size=float("nan")), "step_size = nan"),
    "a format to come": (lambda h: h.update(format=2), "format 2 is not 1"),
    "no format": (lambda h: h.pop("format"), "holds no model"),
    "format in words": (lambda h: h.update(format="1"), "format '1' is not 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_damaged_headers_are_one_line_that_names_the_field(sound: Path, capsys: Any, case: str) -> None:
    change, said = HEADERS[case]
    commands = ("export", "sample") if "no network of the zoo" in said else ("show", "export", "sample")
    assert said in refused(rewritten(sound, lambda header, _: change(header)), capsys, commands)


def test_headers_that_nest_or_fill_memory_are_one_line(sound: Path, capsys: Any) -> None:
    tensors, header = files.read_safetensors(sound)
    text = json.dumps(header)[:-1]
    many = "[" + "[]," * 2**25 + "[]]"  # 100 MB, in a few kB of zstd
    for more in ('"a": ' + "[" * 40 + "]" * 40, '"a": ' + "[" * 10**5 + "]" * 10**5, f'"a": {many}'):
        packed = zstandard.ZstdCompressor().compress(f"{text}, {more}}}".encode())
        sound.write_bytes(save(tensors, {files.HEADER: base64.b85encode(packed).decode()}))
        assert_harmless(lambda: refused(sound, capsys))
    for plain in ("[1]", "null", '"a"', "{", "", "1" * 5000, "\udcff"[:0] + "é"):
        sound.write_bytes(save(tensors, {files.HEADER: plain}))
        assert "not one of lowenergy's" in refused(sound, capsys)
    sound.write_bytes(save(tensors, {files.HEADER: base64.b85encode(damaged_files.stating(packed, 2**44)).decode()}))
    assert "zstd of 17,592,186,044,416 bytes" in refused(sound, capsys)


def test_no_provenance_is_no_traceback(sound: Path, capsys: Any) -> None:
    rewritten(sound, lambda header, _: header.pop("provenance"))
    assert cli.main(["show", str(sound)]) == 0
    assert artifact.read(sound)[1]["provenance"] == {}
    out = sound.with_name("out.png")
    for command in ("sample", "export"):
        assert cli.main([command, str(sound), "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "does not say how to sample from it" in line
    artifact.save(artifact.dense(networks.build(SPEC, seed=0), "classifier"), sound, {})
    assert cli.main(["score", str(sound)]) == 2
    assert "does not say which data it was trained on" in capsys.readouterr().err


def test_what_is_no_file_is_one_line(tmp_path: Path, capsys: Any) -> None:
    for path in (tmp_path, Path("/dev/null"), Path("/dev/zero")):
        assert cli.main(["show", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line
    files.write_safetensors(tmp_path / "reference", {"a": torch.ones(2)}, {})
    assert cli.main(["show", str(tmp_path / "reference")]) == 2
    assert "holds no model" in capsys.readouterr().err


def assert_harmless(use: Callable[[], Any]) -> None:
    """It takes little memory, however much the file would have it take."""
    before = damaged_files.memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    use()
    assert damaged_files.memory("VmHWM") - before < HARMLESS


def bytes_of(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def zeros_packed(count: int) -> Tensor:
    return torch.frombuffer(bytearray(zstandard.ZstdCompressor().compress(bytes(count))), dtype=torch.uint8)


STATING = torch.frombuffer(
    bytearray(damaged_files.stating(zstandard.ZstdCompressor().compress(bytes(9)), 2**42)), dtype=torch.uint8
)
BOMBS: dict[str, tuple[Any, dict[str, Any], dict[str, Tensor]]] = {
    "constant": (["constant", {"shape": [2**34], "value": 1.0}], {}, {}),
    "constant of many sides": (["constant", {"shape": [2**10] * 8, "value": 1.0}], {}, {}),
    "sparse": (["sparse", {"shape": [2**31]}], {}, {":gaps": bytes_of(0), ":values": torch.ones(1)}),
    "int8": (
        ["int8", {"shape": [1, 2**31], "bits": 8}],
        {},
        {":gaps": bytes_of(0), "": torch.ones(1).char(), ":scale": torch.ones(1)},
    ),
    "packed int8": (
        ["int8", {"shape": [1, 2**31], "bits": 2}],
        {},
        {":gaps": bytes_of(0), ":packed": bytes_of(0), ":scale": torch.ones(1)},
    ),
    "zeros": (None, {"": {"dtype": "F32", "shape": [2**28]}}, {"": zeros_packed(2**26)}),
    "a frame that states a size": (None, {"": {"dtype": "U8", "shape": [9]}}, {"": STATING}),
    "a bitmask of zeros": (
        ["sparse", {"shape": [2**33]}],
        {":bitmask": {"dtype": "U8", "shape": [2**30]}},
        {":bitmask": zeros_packed(2**26), ":values": torch.ones(0)},
    ),
    "codes": (
        ["pq", {"shape": [2**32]}],
        {":symbols": {"dtype": "U8", "shape": [2**30]}},
        {":symbols": zeros_packed(2**26), ":codebook": torch.ones(1, 4).half()},
    ),
    "codewords": (
        ["pq", {"shape": [4]}],
        {":codebook": {"dtype": "F16", "shape": [2**30, 1]}},
        {":codes": bytes_of(*[0] * 15), ":codebook": zeros_packed(2**26)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_a_small_file_takes_little_memory(sound: Path, capsys: Any, case: str) -> None:
    encoding, packed, parts = BOMBS[case]

    def change(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        if encoding is not None:
            header["encodings"] = {"fc.bias": encoding}
        header["packed"] = {f"fc.bias{part}": undo for part, undo in packed.items()}
        del tensors["fc.bias"]
        tensors |= {f"fc.bias{part}": tensor for part, tensor in parts.items()}

    rewritten(sound, change)
    assert sound.stat().st_size < 30_000
    assert_harmless(lambda: refused(sound, capsys))


SMALL_VIT = {"image_size": 32, "patch_size": 8, "num_layers": 1, "num_heads": 1, "hidden_dim": 4, "mlp_dim": 4}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "of the zoo": ("resnet18", {"width": 1024}),
    "an image of many pixels": ("resnet8", {"image_size": 4096, "width": 512}),
    "layers of the zoo": ("unet", {"width": 1024, "image_size": 512}),
    "vision": ("torchvision.models.resnet18", {"arguments": {"num_classes": 10**9}}),
    "wide": ("torchvision.models.resnet50", {"arguments": {"width_per_group": 10**7}}),
    "layers without end": ("torchvision.models.VisionTransformer", {"arguments": {**SMALL_VIT, "num_layers": 10**9}}),
    "places": ("torchvision.models.VisionTransformer", {"arguments": {**SMALL_VIT, "image_size": 2**22}}),
    "no form without content": ("torchvision.models.regnet_y_400mf", {"arguments": {"num_classes": 10**10}}),
    "of timm": ("timm.create_model", {"arguments": {"model_name": "vit_tiny_patch16_224", "img_size": 10**6}}),
}  # fmt: skip


@pytest.mark.parametrize("case", NETWORKS)
def test_a_small_file_builds_no_large_network(sound: Path, case: str) -> None:
    """Sizes are looked at before anything is allocated: those of the header, and those that follow from them."""
    name, changes = NETWORKS[case]
    rest = {} if "." in name else {"width": 4, "stem": "3x3", "activation": "relu", "norm": "none"}
    spec = {"name": name, "channels": 3, "image_size": 32, "outputs": 10, "head": None, **rest, **changes}
    rewritten(sound, lambda header, _: header.update(spec=spec, target="classifier"))
    assert cli.main(["show", str(sound)]) == 0, "which builds nothing"
    with pytest.raises(TooLargeError) as error:
        assert_harmless(lambda: lowenergy.load(sound))
    assert str(error.value).startswith(str(sound)) and len(str(error.value).splitlines()) == 1


def test_who_trusts_a_file_gives_it_more(sound: Path, capsys: Any) -> None:
    rewritten(sound, lambda header, _: header["encodings"].update() if "encodings" in header else None)
    model, header = artifact.read(sound)
    with pytest.raises(TooLargeError, match=r"allow more: load\(path, limit=\d+\) or `--limit \d+`"):
        lowenergy.load(sound, limit=1000)
    assert cli.main(["show", str(sound), "--limit", "1000"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    with pytest.raises(SystemExit):
        cli.main(["show", str(sound), "--limit", "-1"])
    assert "'-1' is no number of bytes" in capsys.readouterr().err
    enough = line.split("--limit ")[1].strip("`")
    assert cli.main(["show", str(sound), "--limit", enough]) == 0
    large = artifact.Model(model.target, model.spec, {**model.tensors, "x": Constant(0.0, (2**27,))})
    sound.write_bytes(artifact.to_bytes(large, header["provenance"]))
    with pytest.raises(TooLargeError):
        artifact.read(sound)
    assert artifact.read(sound, limit=2**30)[0].tensors["x"].shape == (2**27,)


F32, F16, U8, I8 = torch.float32, torch.float16, torch.uint8, torch.int8


@pytest.mark.parametrize(
    ("parts", "kind", "facts"),
    [
        ({}, "dense", {}),
        ({"": Part(F32, (3,)), "scale": Part(F32, (3,))}, "dense", {}),
        ({"": Part(F32, (3,))}, "constant", {"shape": [3], "value": 1.0}),
        ({"gaps": Part(U8, (3,))}, "sparse", {"shape": [3]}),
        ({"gaps": Part(U8, (4,)), "values": Part(F32, (3,))}, "sparse", {"shape": [3]}),
        ({"gaps": Part(I8, (3,)), "values": Part(F32, (3,))}, "sparse", {"shape": [3]}),
        ({"bitmask": Part(U8, (2,)), "values": Part(F32, (3,))}, "sparse", {"shape": [3]}),
        ({"bitmask": Part(U8, (1,)), "values": Part(F32, (4,))}, "sparse", {"shape": [3]}),
        ({"bitmask": Part(U8, (1,)), "values": Part(I8, (3,))}, "sparse", {"shape": [3]}),
        ({"bitmask": Part(U8, (1,)), "gaps": Part(U8, (1,)), "values": Part(F32, (3,))}, "sparse", {"shape": [3]}),
        ({"": Part(I8, (3, 4))}, "int8", {}),
        ({"": Part(U8, (3, 4)), "scale": Part(F32, (3,))}, "int8", {}),
        ({"": Part(I8, (3, 4)), "scale": Part(F32, (4,))}, "int8", {}),
        ({"": Part(I8, ()), "scale": Part(F32, ())}, "int8", {}),
        ({"": Part(I8, (11,)), "scale": Part(F32, (3,))}, "int8", {"shape": [3, 4], "bits": 8}),
        ({"packed": Part(U8, (4,)), "scale": Part(F32, (3,))}, "int8", {"shape": [3, 4], "bits": 3}),
        ({"packed": Part(U8, (5, 1)), "scale": Part(F32, (3,))}, "int8", {"shape": [3, 4], "bits": 3}),
        ({"codes": Part(U8, (1,)), "codebook": Part(F16, (4, 2))}, "pq", {"shape": [10]}),
        ({"codes": Part(U8, (2,)), "codebook": Part(I8, (4, 2))}, "pq", {"shape": [10]}),
        ({"codes": Part(U8, (2,)), "codebook": Part(F16, (4, 3))}, "pq", {"shape": [10]}),
        ({"codes": Part(U8, (2,)), "codebook": Part(F16, (8,))}, "pq", {"shape": [10]}),
        ({"codes": Part(U8, (2,)), "codebook": Part(F16, (0, 2))}, "pq", {"shape": [10]}),
        ({"symbols": Part(U8, (5,)), "codebook": Part(F16, (257, 2))}, "pq", {"shape": [10]}),
        ({"symbols": Part(U8, (4,)), "codebook": Part(F16, (4, 2))}, "pq", {"shape": [10]}),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    parts: dict[str, Part], kind: str, facts: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decoded_shape(parts, kind, facts)


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 5, 8]))
def test_parts_as_they_are_written_belong_together(seed: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    value = torch.randint(-1, 1, (3, 4, bits), generator=generator)
    for encoded in (
        Dense(value.float()),
        Constant(0.5, (3, 4)),
        Sparse(value.float()),
        Int8(value.to(torch.int8), torch.ones(3), bits),
        Coded(value.flatten() + 1, torch.ones(2, 3).half(), (3, 4, 3 * bits)),
    ):
        parts = {name: Part(part.dtype, tuple(part.shape)) for name, part in encoded.parts().items()}
        assert decoded_shape(parts, encoded.kind, encoded.facts()) == tuple(encoded.shape) == encoded.decode().shape


ORIGINALS = damaged_files.sound(shipped=False)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_mutants_are_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """benchmarks/damaged_files.py tries 2,000 of them, by every command."""
    chance = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / "mutant.safetensors"
    path.write_bytes(damaged_files.mutant(chance.choice(ORIGINALS), chance, path))
    outcomes = damaged_files.tried(path, ("show", "load"))
    assert not any(outcome.startswith(damaged_files.BAD) for outcome in outcomes.values()), outcomes


def test_files_of_others_say_what_is_strange(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1, dtype=torch.float8_e4m3fn)}, tmp_path / "m", {files.HEADER: "{}"})
    with pytest.raises(FileError, match=r"'x' has 1 dimensions of F8_E4M3"):
        files.read_safetensors(tmp_path / "m")
    save_file({"x": torch.zeros([1] * 20)}, tmp_path / "m", {files.HEADER: "{}"})
    with pytest.raises(FileError, match=r"'x' has 20 dimensions"):
        files.read_safetensors(tmp_path / "m")
