"""Networks of a few layers, each with one thing that their makers do, through every step and back from disk."""

import ast
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from conformance import cells, name_of

SHARED = {"Around", "Between", "Tokens", "NormThatActivates", "SameConv"}  # no networks
SHARED |= {"Standard", "StandardisedConv", "Widths"}
NETWORKS = {
    node.name: f"{path}:{node.name}"
    for path in sorted((ROOT / "tests" / "networks").glob("*.py"))
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.ClassDef) and node.name not in SHARED
}
# What is refused, by one line that has these words: network, target (or "" for both), cell.
REFUSED: dict[tuple[str, str, str], str] = {
    ("Attention", "", "channels pruned"): "can go: it does not run with fewer",  # all heads' widths in one layer
    ("BufferCounts", "", "taken in"): "gives other outputs when asked again",
    ("FrozenNorm", "", "channels pruned"): "can go: it does not run with fewer",  # its buffers are no parameters
    ("GroupedTransposed", "", "channels pruned"): "no channels of",
    ("InstanceNormed", "", "channels pruned"): "no channels of",
    ("Looking", "classifier", "int8"): "cannot be exported: Data-dependent branching",
    ("Looking", "classifier", "onnx"): "no ONNX form: Data-dependent branching",
    ("Looking", "ebm", "int8"): "cannot be traced: Could not guard on data-dependent expression",
    ("Masked", "", "channels pruned"): "can go: it does not run with fewer",
    ("MixedTokens", "", "channels pruned"): "can go: it does not run with fewer",
    ("NormWithoutStatistics", "", "taken in"): "norms need running statistics",
    ("OwnParameter", "", "channels pruned"): "Torch-Pruning does not know what goes with them",
    ("ReadsData", "", "int8"): "torch cannot trace what its code reads of a tensor's .data; take .detach()",
    ("ReadsData", "", "onnx"): "torch cannot trace what its code reads of a tensor's .data; take .detach()",
    ("Tied", "", "channels pruned"): "body.b shares its weight",
    ("TiedConvolutions", "", "channels pruned"): "body.b shares its weight",
    ("TiedToOthers", "", "channels pruned"): "shares its weight",
    ("TorchsAttention", "", "channels pruned"): "can go: it would answer differently",
    ("TupleInTraining", "ebm", "taken in"): "an energy has no loss for them",
}
# One of each kind; all of them were right or refused when the benchmark was written.
ENERGIES = ["Activations", "Attention", "CalledTwice", "Grouped", "Looking", "NormSeesMore", "PoolsOfOddSizes"]
ENERGIES += ["TorchsEncoder", "Transposed", "TupleInTraining", "WeightNormParametrized", "WrittenOver"]
REAL = {  # rows of the benchmark
    **{f"timm test_{name}": () for name in ("byobnet", "convnext", "mambaout", "resnet", "vit")},
    "timm test_efficientnet": ("dense",),
    "timm lcnet_035": (),
    "timm mobilenetv2_035": (),
    "torchvision shufflenet_v2_x0_5": (),
    "torchvision squeezenet1_1": (),
}
CHOSEN = {
    name_of(entry): entry for entry in json.loads((ROOT / "benchmarks" / "conformance_networks.json").read_text())
}


def not_as_expected(entry: dict[str, Any], target: str, folder: Path, export: Sequence[str], name: str) -> list[str]:
    wrong = []
    for cell, found in cells(entry, target, folder, export=export):
        words = REFUSED.get((name, target, cell), REFUSED.get((name, "", cell)))
        fits = found["verdict"] == "right" if words is None else found["verdict"] == "refused" and words in found["at"]
        if not fits:
            wrong.append(f"{cell}: {found['verdict']} {found['difference']:.2g} {found['at']}")
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_is_right_or_refused_in_one_line(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    entry = {"name": NETWORKS[name], "arguments": {}, "pixels": 8}
    assert not not_as_expected(entry, "classifier", tmp_path, ("dense",), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENERGIES)
def test_is_right_as_an_energy_too(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    entry = {"name": NETWORKS[name], "arguments": {}, "pixels": 8}
    assert not not_as_expected(entry, "ebm", tmp_path, (), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_networks_of_libraries_are_right(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert not not_as_expected(CHOSEN[name], "classifier", tmp_path, REAL[name], name)
