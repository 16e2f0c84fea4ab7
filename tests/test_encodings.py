"""What goes into a file comes out of it, for any tensor; damaged files are refused."""

import base64
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.torch import save

import lowenergy
from lowenergy import networks
from lowenergy.base import files
from lowenergy.base.files import FileError
from lowenergy.storage import artifact
from lowenergy.storage.encodings import (
    Coded,
    Constant,
    Dense,
    Int8,
    Sparse,
    entropy,
    from_parts,
    pack_bits,
    places,
    present,
    unpack_bits,
)

SPEC = networks.Spec("cnn", 8, "3x3", "swish", "batch", channels=1, image_size=8, outputs=10)
SOME = st.sampled_from([0, -0.0, 1, -2.5])
floats = npst.arrays(np.float32, npst.array_shapes(max_dims=4, max_side=6), elements=SOME)


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
    sparse = Sparse(torch.from_numpy(array))
    parts = sparse.parts()
    again = from_parts(parts, "sparse", sparse.facts()).decode()
    assert torch.equal(again, torch.from_numpy(array))
    assert torch.equal(again.signbit(), sparse.decode().signbit())  # a mask by multiplication leaves zeros with a sign
    assert len(parts["values"]) == np.count_nonzero(array)
    assert set(parts) - {"values"} in ({"bitmask"}, {"gaps"})


@given(st.integers(0, 3000), st.floats(0, 1), st.integers(0, 2**16))
def test_places_are_exact_however_they_are_written(count: int, share: float, seed: int) -> None:
    where = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share**3  # mostly sparse: long gaps
    assert torch.equal(present(places(where), count), where)


def test_few_places_are_written_as_gaps_and_many_as_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = {share: set(places(torch.rand(40000, generator=generator) < share)) for share in (0.01, 0.05, 0.5)}
    assert kinds == {0.01: {"gaps"}, 0.05: {"gaps"}, 0.5: {"bitmask"}}
    with pytest.raises(ValueError, match="gaps lead to element 9 of 5"):
        present({"gaps": torch.tensor([4, 4], dtype=torch.uint8)}, 5)
    with pytest.raises(ValueError, match="2 values for 1 places"):
        from_parts({"gaps": torch.tensor([4], dtype=torch.uint8), "values": torch.ones(2)}, "sparse", {"shape": [5]})


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_files_shrink_as_sparsity_grows(bits: int) -> None:
    """From dense on, by every tenth, whatever the values are; each of them is smaller than its dense file."""
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(0))

    def size(sparsity: float) -> int:
        kept = weight * (torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) >= sparsity)
        if bits == 32:
            encoded = Sparse(kept) if sparsity else Dense(kept)
        else:
            top = 2 ** (bits - 1) - 1
            encoded = Int8((kept / weight.abs().max() * top).round().to(torch.int8), torch.ones(64), bits)
        return len(artifact.to_bytes(artifact.Model("ebm", SPEC, {"w": encoded}), {}))

    sizes = [size(i / 10) for i in range(10)]
    assert all(b < a for a, b in pairwise(sizes))


@given(st.integers(2, 40), st.integers(1, 9), st.integers(1, 30), st.randoms(use_true_random=False))
def test_every_encoding_survives_its_parts(k: int, d: int, n: int, random: object) -> None:
    codes = torch.randint(k, (n,))
    skewed = torch.where(torch.rand(n) < 0.9, 0, codes)  # these go as symbols
    for encoded in (
        Dense(torch.randn(n, d)),
        Constant(0.5, (n, d)),
        Coded(skewed, torch.randn(k, d).half(), (n, d)),
        Sparse(torch.randn(n, d).relu()),
        Int8(torch.randint(-128, 128, (n, d)).to(torch.int8), torch.rand(n)),
        Int8(torch.randint(-4, 4, (n, d)).to(torch.int8), torch.rand(n), bits=3),
        Int8(torch.randint(-128, 128, (n, d)).relu().to(torch.int8), torch.rand(n)),
        Int8(torch.randint(-4, 4, (n, d)).relu().to(torch.int8), torch.rand(n), bits=3),
        Coded(codes, torch.randn(k, d).half(), (n, d)),
    ):
        again = from_parts(encoded.parts(), encoded.kind, json.loads(json.dumps(encoded.facts())))
        assert torch.equal(again.decode(), encoded.decode())
        assert again.decode().shape == (n, d)


def test_symbols_that_name_no_codeword_are_refused() -> None:
    parts = {"symbols": torch.tensor([0, 1, 3]).byte(), "codebook": torch.zeros(3, 2).half()}
    with pytest.raises(ValueError, match="code 3 of a codebook of 3"):
        from_parts(parts, "pq", {"shape": [3, 2]})


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=30))
def test_entropy_is_that_of_the_frequencies(shares: list[float]) -> None:
    counts = [max(1, round(100 * share)) for share in shares]
    codes = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    wanted = -sum(c / len(codes) * math.log2(c / len(codes)) for c in counts)
    assert entropy(codes) == pytest.approx(wanted, abs=1e-9)


def test_uneven_codes_take_about_their_entropy_on_disk(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.multinomial(0.9 ** torch.arange(200.0), 100000, replacement=True, generator=generator)
    coded = Coded(codes, torch.randn(200, 9, generator=generator).half(), (100000, 9))
    assert set(coded.parts()) == {"symbols", "codebook"}
    files.write_bytes(tmp_path / "m", artifact.to_bytes(artifact.Model("classifier", SPEC, {"x": coded}), {}))
    assert artifact.bytes_by_part(tmp_path / "m")["codes"] < 1.03 * len(codes) * entropy(codes) / 8
    assert torch.equal(artifact.read(tmp_path / "m")[0].tensors["x"].decode(), coded.decode())


def network(seed: int = 0) -> networks.Backbone:
    """With weights, and norm statistics, that differ from their initial values."""
    net = networks.build(SPEC, seed=seed)
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
    ones = torch.ones_like(net.fc.weight)
    coded = tensors | {"fc.weight": Int8(ones.to(torch.int8), torch.ones(10))}
    artifact.save(artifact.Model("classifier", SPEC, coded), tmp_path / "m", {})
    model, header = artifact.read(tmp_path / "m")
    assert "fc.weight" in header["packed"]
    assert torch.equal(model.tensors["fc.weight"].decode(), ones)


def test_headers_of_coded_files_are_packed_and_plain_ones_still_load(tmp_path: Path) -> None:
    names = [f"features.{i}.conv.weight" for i in range(20)]
    weights = {name: Int8(torch.ones(4, 3, dtype=torch.int8), torch.ones(4)) for name in names}
    model = artifact.Model("ebm", SPEC, weights)
    path = tmp_path / "model.safetensors"
    files.write_bytes(path, artifact.to_bytes(model, {"data": "digits"}))
    assert b"digits" not in path.read_bytes()
    tensors, header = files.read_safetensors(path)
    assert header["provenance"] == {"data": "digits"}
    plain = tmp_path / "plain.safetensors"
    files.write_safetensors(plain, tensors, header)
    assert b"digits" in plain.read_bytes() and plain.stat().st_size > path.stat().st_size + 500
    assert artifact.read(plain, trust=None)[1] == artifact.read(path, trust=None)[1]
    for text in ("no base 85 \x00", base64.b85encode(b"not zstd").decode()):
        plain.write_bytes(save({"w": torch.ones(1)}, {files.HEADER: text}))
        with pytest.raises(FileError, match=r"plain.safetensors: a safetensors file, but not one of lowenergy's"):
            files.read_safetensors(plain)


@pytest.mark.parametrize("cut", [0, 4, 50, 5000])
def test_truncated_models_are_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.safetensors"
    artifact.save(artifact.dense(network(), "classifier"), path, {})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FileError, match=r"model.safetensors: truncated"):
        lowenergy.load(path)


def rewrite(path: Path, **changes: object) -> None:
    tensors, header = files.read_safetensors(path)
    header |= changes
    files.write_safetensors(path, tensors, header | {"sha256": artifact.digest(tensors, header)})


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


@pytest.mark.parametrize("place", [-1, -1000, -20000])
def test_a_flipped_bit_is_noticed(tmp_path: Path, place: int) -> None:
    path = tmp_path / "model.safetensors"
    artifact.save(artifact.dense(network(), "classifier"), path, {})
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"model.safetensors: altered since it was written"):
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
    files.write_bytes(tmp_path / "m", artifact.to_bytes(artifact.Model("classifier", SPEC, rest), {}))
    with pytest.raises(FileError, match=r"fc\.bias"):
        lowenergy.load(tmp_path / "m")
