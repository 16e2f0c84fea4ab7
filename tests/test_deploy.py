"""ONNX files: the same outputs in onnxruntime as in torch, for every target and method; small; usable without torch."""

import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, TARGETS
from test_compression import METHODS, compress, teacher  # noqa: F401 a fixture

import lowenergy
from lowenergy import data, networks, params
from lowenergy.base.errors import UserError
from lowenergy.cli import main
from lowenergy.energies import ExplicitEnergy, energy_gradient, langevin_chain
from lowenergy.params import Sampler
from lowenergy.runtimes import int8, to_onnx
from lowenergy.runtimes.loading import energy_in, network_of
from lowenergy.storage import artifact

SAMPLER = {"step_size": 0.05, "noise": 0.015, "gradient_clamp": 5.0}
HEADER = {"provenance": {"sampler": {**SAMPLER, "chain_steps": 20}}}


def session_of(path: Path, *, int8_kernels: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    if not int8_kernels:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "target"),
    [*product(["teacher", *METHODS], ["classifier", "ebm"]), ("teacher", "jem"), ("quantize", "jem")],
)
def test_same_outputs(
    compress: Any,  # noqa: F811
    method: str,
    target: str,
    small: params.Params,
    splits: data.Splits,
    tmp_path: Path,
) -> None:
    model = artifact.dense(teacher(target, small), target) if method == "teacher" else compress(method, target)
    to_onnx.export(model, HEADER, tmp_path / "model.onnx")
    images = data.to_float(splits.test.images[:30])
    network = int8.restore(model, outputs=True) if model.activations else network_of(model)  # rounds as the file does
    # As the graph says, without the kernels that may round a tie the other way.
    session = session_of(tmp_path / "model.onnx", int8_kernels=False)
    if target == "classifier":
        (logits,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(images), rtol=1e-3, atol=1e-3)
        return
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    found = session.run(["energy", "next"], {"images": images.numpy(), "noise": noise.numpy()})
    of_images = energy_in(model, network)
    if model.activations:
        of_images = ExplicitEnergy(network, int8.restore(model, gradient=True, outputs=True), model.spec.head)
    energies, gradient = energy_gradient(of_images, images)
    wanted = (images - 0.05 * gradient.clamp(-5, 5) + 0.015 * noise).clamp(-1, 1)
    torch.testing.assert_close(torch.from_numpy(found[0]), energies, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(found[1]), wanted, rtol=0, atol=2e-3)
    if target == "jem":
        (logits,) = session.run(["logits"], {"images": images.numpy(), "noise": noise.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(images), rtol=1e-3, atol=1e-3)
    if method not in ("teacher", "quantize"):
        return
    to_onnx.export(model, HEADER, tmp_path / "longer.onnx", step_size=0.1)
    (moved,) = session_of(tmp_path / "longer.onnx", int8_kernels=False).run(
        ["next"], {"images": images.numpy(), "noise": noise.numpy()}
    )
    wanted = (images - 0.1 * gradient.clamp(-5, 5) + 0.015 * noise).clamp(-1, 1)
    torch.testing.assert_close(torch.from_numpy(moved), wanted, rtol=0, atol=4e-3)
    to_onnx.export(model, {}, tmp_path / "scores.onnx", sampler=False)
    session = session_of(tmp_path / "scores.onnx", int8_kernels=False)
    assert [output.name for output in session.get_outputs()] == ["energy", *["logits"] * (target == "jem")]
    np.testing.assert_allclose(session.run(["energy"], {"images": images.numpy()})[0], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes"),
    [("prune", {}), ("quantize", {}), ("quantize", {"quantize.weight_bits": 4}), ("pq", {})],
)
def test_weights_stay_coded(compress: Any, method: str, changes: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    wide = {"ebm.architecture.width": 48}  # else nodes outweigh weights, which need no training for this
    wide |= {f"{name}.finetune.epochs": 0 for name in ("prune", "quantize", "pq")} | {"prune.retrain.epochs": 0}
    model = compress(method, "ebm", {**wide, "prune.scan_images": 0, **changes})
    artifact.save(model, tmp_path / "model.safetensors", {})
    to_onnx.export(model, HEADER, tmp_path / "model.onnx")
    stored, exported = ((tmp_path / f"model.{kind}").stat().st_size for kind in ("safetensors", "onnx"))
    assert exported < 1.3 * stored


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes(small: params.Params, tmp_path: Path) -> None:
    model = artifact.dense(teacher("ebm", small), "ebm")
    for name in ("model.onnx", "again.onnx"):
        to_onnx.export(model, HEADER, tmp_path / name)
    content = (tmp_path / "model.onnx").read_bytes()
    assert (tmp_path / "again.onnx").read_bytes() == content
    assert str(ROOT).encode() not in content  # nor any other trace of this machine


@pytest.mark.slow
def test_kernels_that_saturate_are_said(
    compress: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On processors without VNNI sums of uint8 times int8 saturate; others show nothing of it, so here one is off."""
    model, header = compress("quantize", "classifier"), {"provenance": {}}
    session_of = to_onnx._session_of
    capsys.readouterr()  # what compressing says

    class Saturated:
        def __init__(self, session: onnxruntime.InferenceSession) -> None:
            self.session = session

        def run(self, *asked: Any) -> list[np.ndarray]:
            return [np.minimum(found, np.median(found)) for found in self.session.run(*asked)]

    def off(content: bytes, *, kernels: bool = False) -> Any:
        return Saturated(session_of(content)) if kernels else session_of(content)

    monkeypatch.setattr(to_onnx, "_session_of", lambda content, *, kernels=False: session_of(content))
    to_onnx.export(model, header, tmp_path / "model.onnx")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(to_onnx, "_session_of", off)
    to_onnx.export(model, header, tmp_path / "model.onnx")
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 1 and "session.disable_quant_qdq to 1" in said


@pytest.mark.slow
def test_what_rounding_outputs_changes_is_said(
    compress: Any,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = compress("quantize", "classifier")
    artifact.save(model, tmp_path / "model.safetensors", {"stage": "quantize"})
    lowenergy.export(tmp_path / "model.safetensors", tmp_path / "model.onnx")
    said = float(re.findall(r"unlike in `evaluate`: logits are off by (\S+) of", capsys.readouterr().err)[0])
    images, _ = to_onnx.looked_at(model.spec.input_shape)
    (written,) = session_of(tmp_path / "model.onnx", int8_kernels=False).run(None, {"images": images.numpy()})
    measured = network_of(model)(images).detach().numpy()
    off = np.linalg.norm(written - measured) / np.linalg.norm(measured - measured.mean(0))
    assert off == pytest.approx(said, rel=0.1) and off > 0.001


@pytest.mark.slow
def test_int8_kernels_run_in_both_directions(compress: Any, tmp_path: Path) -> None:  # noqa: F811
    model = compress("quantize", "ebm")
    to_onnx.export(model, HEADER, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
    ops = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in networks.build(model.spec, seed=0).modules())
    assert ops.count("QLinearConv") >= 2 * convolutions  # forward and pullback
    assert "Conv" not in ops


@pytest.mark.slow
def test_sampling_in_onnxruntime_is_the_same_chain(compress: Any, tmp_path: Path) -> None:  # noqa: F811
    model = compress("prune", "ebm")
    to_onnx.export(model, HEADER, tmp_path / "model.onnx")
    session, constants = session_of(tmp_path / "model.onnx"), Sampler(**SAMPLER)
    start = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    energy = energy_in(model, network_of(model))
    *_, wanted = langevin_chain(energy, start, 20, constants, torch.Generator().manual_seed(2))
    generator, images = torch.Generator().manual_seed(2), start.numpy()
    for _ in range(20):
        noise = torch.empty(images.shape).normal_(generator=generator).numpy()
        (images,) = session.run(["next"], {"images": images, "noise": noise})
    np.testing.assert_allclose(images, wanted.numpy(), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_the_example_of_the_docs_runs(compress: Any, target: str, tmp_path: Path) -> None:  # noqa: F811
    artifact.save(compress("quantize", target), tmp_path / "model.safetensors", HEADER["provenance"])
    assert main(["export", str(tmp_path / "model.safetensors")]) == 0
    steps = ["--steps", "3"] if target != "classifier" else []
    command = [sys.executable, ROOT / "docs" / "onnx_example.py", tmp_path / "model.onnx", "--n", "5", *steps]
    done = subprocess.run([*map(str, command), "--out", str(tmp_path / "x.npz")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("classes" in done.stdout) == (target != "ebm")
    assert ("mean energy" in done.stdout) == (target != "classifier")
    images = np.load(tmp_path / "x.npz")["images"]
    assert images.shape == (5, 1, 8, 8) and images.dtype == np.uint8 and images.std() > 10
    source = (ROOT / "docs" / "onnx_example.py").read_text()
    assert "torch" not in source and "lowenergy" not in source.split('"""')[2]


def test_energies_that_do_not_say_how_to_sample_are_refused(small: params.Params, tmp_path: Path) -> None:
    model = artifact.dense(teacher("ebm", small), "ebm")
    with pytest.raises(UserError, match="does not say how to sample from it"):
        to_onnx.export(model, {"provenance": {}}, tmp_path / "model.onnx")
    for sampler, size in ((True, -1.0), (False, 0.1)):
        with pytest.raises(UserError, match="step size"):
            to_onnx.export(model, HEADER, tmp_path / "model.onnx", sampler=sampler, step_size=size)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pq", "quantize"])
def test_no_slices_with_negative_steps(compress: Any, method: str, tmp_path: Path) -> None:  # noqa: F811
    """Which some converters refuse."""
    to_onnx.export(compress(method, "ebm"), HEADER, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    constants = {part.name: onnx.numpy_helper.to_array(part) for part in graph.initializer}
    steps = [constants[node.input[4]] for node in graph.node if node.op_type == "Slice" and len(node.input) > 4]
    assert all((step > 0).all() for step in steps)
    assert any(node.op_type == "Gather" for node in graph.node)
