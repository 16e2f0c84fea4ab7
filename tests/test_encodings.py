"""What goes into a file comes out of it, for any tensor; damaged files are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import lowenergy
from lowenergy import artifact, files, models
from lowenergy.encodings import Coded, Dense, Int8, Sparse, from_parts, pack_bits, unpack_bits
from lowenergy.files import FileError

SPEC = models.Spec("cnn", 8, "3x3", "swish", "batch", channels=1, image_size=8, outputs=10)
floats = npst.arrays(np.float32, npst.array_shapes(max_dims=4, max_side=6), elements=st.sampled_from([0, 1, -2.5]))


@given(st.integers(1, 16).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, 2**b - 1), max_size=99))))
def test_bits_are_packed_tightly_and_back(case: tuple[int, list[int]]) -> None:
    bits, numbers = case
    codes = torch.tensor(numbers, dtype=torch.long)
    packed = pack_bits(codes, bits)
    assert len(packed) == -(-len(numbers) * bits // 8)
    assert torch.equal(unpack_bits(packed, bits, len(numbers)), codes)


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit in 3 bits"):
        pack_bits(torch.tensor([1, 8]), 3)


@given(floats)
def test_sparse_is_exact_and_holds_no_zeros(array: np.ndarray) -> None:
    sparse = Sparse.encode(torch.from_numpy(array))
    assert torch.equal(sparse.decode(), torch.from_numpy(array))
    assert len(sparse.values) == np.count_nonzero(array)
    assert len(sparse.bitmask) == -(-array.size // 8)


@given(st.integers(2, 40), st.integers(1, 9), st.integers(1, 30), st.randoms(use_true_random=False))
def test_every_encoding_survives_its_parts(k: int, d: int, n: int, random: object) -> None:
    codes = torch.randint(k, (n,))
    for encoded in (
        Dense(torch.randn(n, d)),
        Sparse.encode(torch.randn(n, d).relu()),
        Int8(torch.randint(-128, 128, (n, d)).to(torch.int8), torch.rand(n)),
        Coded(codes, torch.randn(k, d).half(), (n, d)),
    ):
        again = from_parts(encoded.parts(), encoded.kind, json.loads(json.dumps(encoded.facts())))
        assert torch.equal(again.decode(), encoded.decode())
        assert again.decode().shape == (n, d)


def network(seed: int = 0) -> models.Network:
    """With weights, and norm statistics, that differ from their initial values."""
    net = models.build(SPEC, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator)
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return net.eval()


def test_saving_twice_gives_the_same_bytes_and_the_same_outputs(tmp_path: Path) -> None:
    net, images = network(), torch.rand(5, 1, 8, 8)
    for name in ("a", "b"):
        artifact.save(artifact.dense(net, "classifier"), tmp_path / name, {"seed": 0})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert torch.equal(lowenergy.load(tmp_path / "a")(images), net(images))


def test_coded_parts_are_compressed_where_it_pays(tmp_path: Path) -> None:
    net = network()
    tensors = {name: Dense(value) for name, value in artifact.weights(net).items()}
    zeros = torch.zeros_like(net.fc.weight)
    coded = tensors | {"fc.weight": Int8(zeros.to(torch.int8), torch.ones(10))}
    artifact.save(artifact.Model("classifier", SPEC, coded), tmp_path / "m", {})
    model, header = artifact.read(tmp_path / "m")
    assert "fc.weight" in header["packed"]
    assert torch.equal(model.tensors["fc.weight"].decode(), zeros)


@pytest.mark.parametrize("cut", [0, 4, 50, 5000])
def test_truncated_models_are_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.safetensors"
    artifact.save(artifact.dense(network(), "classifier"), path, {})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FileError, match=r"model.safetensors: truncated"):
        lowenergy.load(path)


def rewrite(path: Path, **changes: object) -> None:
    tensors, header = files.read_safetensors(path)
    files.write_safetensors(path, tensors, {**header, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "format 99 is not 1"),
        ({"spec": {"name": "resnet9"}}, "does not fit its header"),
        ({"encodings": {"fc.weight": ["pq", {"shape": [10, 10]}]}}, "does not fit its header"),
        ({"encodings": {"fc.weight": ["jpeg", {}]}}, "unknown encoding 'jpeg'"),
        ({"packed": {"fc.weight": {"dtype": "F32", "shape": [3]}}}, "does not fit its header"),
    ],
)
def test_tampered_headers_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = tmp_path / "model.safetensors"
    artifact.save(artifact.dense(network(), "classifier"), path, {})
    rewrite(path, **changes)
    with pytest.raises(FileError, match=message):
        lowenergy.load(path)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="not one of lowenergy's"):
        lowenergy.load(tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="no such file"):
        lowenergy.load(tmp_path / "none.safetensors")


def test_missing_tensors_are_refused(tmp_path: Path) -> None:
    model = artifact.dense(network(), "classifier")
    rest = {name: tensor for name, tensor in model.tensors.items() if name != "fc.bias"}
    artifact.save(artifact.Model("classifier", SPEC, rest), tmp_path / "m", {})
    with pytest.raises(FileError, match=r"fc\.bias"):
        lowenergy.load(tmp_path / "m")
