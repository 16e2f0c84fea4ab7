"""Each method, on each kind of network: smaller, loadable, the same after loading, and doing what it says."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import with_changes

import lowenergy
from lowenergy import artifact, data, energy, int8, models, params, targets
from lowenergy.compression import distill, pq, prune, quantize
from lowenergy.encodings import Int8
from lowenergy.energy import energy_gradient
from lowenergy.errors import UserError
from lowenergy.loading import energy_of, network_of
from lowenergy.training import Run

METHODS = {"prune": prune, "quantize": quantize, "distill": distill, "pq": pq}


def teacher(target: str, small: params.Params) -> models.Network:
    """Untrained: compression must not depend on luck in training."""
    section = getattr(small, target)
    return models.build(models.Spec.of(section.architecture, (1, 8, 8), outputs=10), seed=1).eval()


@pytest.fixture
def compress(small: params.Params, splits: data.Splits, tmp_path: Path, values: Any) -> Any:
    def run_method(method: str, target: str, changes: dict[str, Any] | None = None) -> artifact.Model:
        p = params.check(with_changes(small.model_dump(), changes or {}))
        run = Run(f"{target}/{method}", 0, [], root=tmp_path)
        network = teacher(target, p)
        objective = targets.get(target).objective(copy.deepcopy(network), splits, getattr(p, target), run)
        return METHODS[method].compress(network, target, objective, getattr(p, method), run)

    return run_method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", params.TARGETS)
def test_smaller_and_the_same_after_loading(
    compress: Any, method: str, target: str, small: params.Params, tmp_path: Path
) -> None:
    model = compress(method, target)
    dense, coded = tmp_path / "teacher", tmp_path / "coded"
    artifact.save(artifact.dense(teacher(target, small), target), dense, {})
    artifact.save(model, coded, {"stage": method})
    assert coded.stat().st_size < dense.stat().st_size / 2
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(lowenergy.load(coded)(images), network_of(model)(images))


@pytest.mark.parametrize(
    ("method", "changes"),
    [*((method, {}) for method in METHODS), ("prune", {"prune.kind": "structured", "prune.amount": 0.4})],
)
def test_networks_with_a_fast_input_gradient_compress_too(compress: Any, method: str, changes: dict[str, Any]) -> None:
    strided = {f"{section}.name": "strided" for section in ("ebm.architecture", "distill.student")}
    model = compress(method, "ebm", {**strided, **changes})
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = network_of(model)
    # Plain operations without gradients, the fast ones with them: they must agree.
    with torch.no_grad():
        wanted = network(images)
    torch.testing.assert_close(network(images), wanted)
    _, gradient = energy_gradient(energy_of(model, network), images)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("scope", ["global", "conv"])
@pytest.mark.parametrize("target", ["classifier", "ebm"])
def test_unstructured_masks_hold_through_finetuning(compress: Any, target: str, scope: str) -> None:
    network = network_of(compress("prune", target, {"prune.amount": 0.8, "prune.scope": scope}))
    layers = models.coded_layers(network)
    pruned = [m for m in layers.values() if scope == "global" or isinstance(m, torch.nn.Conv2d)]
    kept = sum(int(m.weight.count_nonzero()) for m in pruned) / sum(m.weight.numel() for m in pruned)
    assert 0.195 < kept < 0.205
    if scope == "conv":
        assert layers["fc"].weight.count_nonzero() == layers["fc"].weight.numel()


@pytest.mark.parametrize("scope", ["global", "conv"])
@pytest.mark.parametrize("target", params.TARGETS)
def test_structured_pruning_removes_channels(compress: Any, target: str, scope: str, small: params.Params) -> None:
    network = network_of(compress("prune", target, {"prune.kind": "structured", "prune.scope": scope}))
    before, after = (sum(w.numel() for w in n.parameters()) for n in (teacher(target, small), network))
    assert after < before / 2
    assert network.fc.out_features == 10
    assert all(w.count_nonzero() > 0 for w in network.parameters() if w.ndim > 1)


@pytest.mark.parametrize("bits", [8, 4])
def test_int8_files_hold_what_torchao_converts_to(compress: Any, bits: int) -> None:
    model = compress("quantize", "ebm", {"quantize.weight_bits": bits})
    simulated = int8.restore(model, explicit=True)
    converted = int8.convert(simulated)
    images = torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        wanted, found = simulated(images), converted(images)
    stored = [t.values for t in model.tensors.values() if isinstance(t, Int8)]
    kernels = [b for name, b in converted.named_buffers() if name.startswith("_frozen_param")]
    assert len(kernels) == 2 * len(stored) > 8  # both directions
    assert all(b.dtype == torch.int8 for b in kernels)
    forward, backward = kernels[: len(stored)], kernels[len(stored) :]
    assert all(torch.equal(a, b) for a, b in zip(stored, forward, strict=True))
    # The pullbacks hold the same integers, elsewhere (and zeros, where a stride is undone).
    for a, b in zip(reversed(stored), backward, strict=True):
        assert torch.equal(a[a != 0].sort().values, b[b != 0].sort().values)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(b.std()))  # a tie rounded the other way


@pytest.mark.parametrize("target", ["ebm", "jem"])
def test_int8_energies_sample_with_an_int8_gradient(compress: Any, target: str, small: params.Params) -> None:
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    exact = teacher(target, small)
    model = compress("quantize", target)
    energies, gradient = energy_gradient(energy_of(model, network_of(model)), images)
    wanted_energies, wanted = energy_gradient(energy.energy_of(exact, exact.spec.head), images)
    assert torch.nn.functional.cosine_similarity(wanted.flatten(1), gradient.flatten(1)).min() > 0.95
    torch.testing.assert_close(energies, wanted_energies, atol=0.1, rtol=0.1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_inductors_int8_kernels_do_what_is_simulated(compress: Any) -> None:
    from torch._dynamo.utils import counters

    model = compress("quantize", "ebm")
    simulated = int8.restore(model, explicit=True)
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    counters.clear()
    found = int8.compiled(simulated)(images)
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in models.build(model.spec, seed=0).modules())
    assert counters["inductor"]["qconv_weight_prepack_matcher_count"] >= 2 * convolutions  # forward and pullback
    with torch.no_grad():
        wanted = simulated(images)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


def test_layers_can_stay_float(compress: Any) -> None:
    model = compress("quantize", "ebm", {"quantize.keep_float": ["features.0.conv", "ebm:fc", "jem:features.2.conv"]})
    floats = {name for name, t in model.tensors.items() if name.endswith("weight") and not isinstance(t, Int8)}
    assert floats == {"features.0.conv.weight", "fc.weight"}
    assert not [name for name in model.activations if name.startswith(("features.0.", "fc:"))]
    energy_gradient(energy_of(model, network_of(model)), torch.zeros(2, 1, 8, 8))
    with pytest.raises(UserError, match=r"quantize\.keep_float: nonsense is no layer of ebm; it has features"):
        compress("quantize", "ebm", {"quantize.keep_float": ["nonsense"]})


def test_the_most_sensitive_layers_stay_float_until_the_loss_is_within_budget(compress: Any, tmp_path: Path) -> None:
    def table() -> pd.DataFrame:
        return pd.read_csv(tmp_path / "plots/curves/ebm/quantize/sensitivity.csv").set_index("layer")

    compress("quantize", "ebm", {"quantize.weight_bits": 3})
    free = table()
    assert (free.loc[:, "int8"] == 1).all()
    layers = free.drop("all")
    assert (layers["added_loss"] > 0).all() and free.loc["all", "added_loss"] > layers["added_loss"].max()
    budget = 0.5 * float(free.loc["all", "added_loss"])
    model = compress("quantize", "ebm", {"quantize.weight_bits": 3, "quantize.loss_budget": budget})
    within = table()
    spared = set(within.index[within["int8"] == 0])
    assert 0 < len(spared) < len(layers) and within.loc["all", "added_loss"] <= budget
    assert spared == set(layers["added_loss"].nlargest(len(spared)).index)
    assert {f"{name}.weight" for name in spared} == {
        name for name, t in model.tensors.items() if name.endswith("weight") and not isinstance(t, Int8)
    }


@pytest.mark.parametrize("target", params.TARGETS)
def test_finetuning_in_int8_brings_it_nearer_to_the_teacher(
    compress: Any, target: str, small: params.Params, splits: data.Splits
) -> None:
    images, exact = data.to_float(splits.test.images), teacher(target, small)

    def distance(epochs: int) -> float:
        changes = {
            "quantize.weight_bits": 3,
            "quantize.finetune.epochs": epochs,
            "quantize.finetune.lr": 0.0005,
            "classifier.matching.label_weight": 0.0,
        }
        model = compress("quantize", target, changes)
        network = network_of(model)
        if target == "classifier":
            return float((network(images).log_softmax(1) - exact(images).log_softmax(1)).square().mean())
        _, gradient = energy_gradient(energy_of(model, network), images)
        _, wanted = energy_gradient(energy.energy_of(exact, exact.spec.head), images)
        return float((gradient - wanted).square().mean())

    assert distance(15) < 0.7 * distance(0)


def test_int8_files_without_a_range_are_refused(compress: Any) -> None:
    model = compress("quantize", "classifier")
    with pytest.raises(ValueError, match="quantize again"):
        int8.restore(replace(model, activations=dict(list(model.activations.items())[1:])))


def test_layers_that_cannot_be_rounded_are_named() -> None:
    network = models.build(models.Spec("cnn", 4, "3x3", "relu", "none", 1, 8, 10), seed=0)
    network.get_submodule("features.4.conv").padding = "same"  # another operation to the exporter
    scales = {name: int8.best_scale(layer.weight, 8) for name, layer in models.coded_layers(network).items()}
    with pytest.raises(UserError, match=r"layer features\.4\.conv: no plain convolution"):
        int8.prepare(network, scales)


def test_students_are_smaller_and_learn(
    compress: Any, small: params.Params, splits: data.Splits, tmp_path: Path
) -> None:
    changes = {"distill.train.epochs": 6, "classifier.matching.label_weight": 0.0}
    student = network_of(compress("distill", "classifier", changes))
    wanted = teacher("classifier", small)
    images = data.to_float(splits.test.images)
    fresh = models.build(student.spec, seed=0).eval()

    def distance(network: torch.nn.Module) -> float:
        return float((network(images).log_softmax(1) - wanted(images).log_softmax(1)).square().mean())

    assert distance(student) < 0.5 * distance(fresh)


@pytest.mark.parametrize("kind", ["structured", "unstructured"])
def test_pruned_energies_quantize(
    compress: Any, small: params.Params, splits: data.Splits, tmp_path: Path, kind: str
) -> None:
    pruned = network_of(compress("prune", "ebm", {"prune.kind": kind, "prune.amount": 0.3}))
    run = Run("ebm/quantize", 0, [], root=tmp_path)
    objective = targets.get("ebm").objective(copy.deepcopy(pruned), splits, small.ebm, run)
    model = quantize.compress(copy.deepcopy(pruned), "ebm", objective, small.quantize, run)
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    _, found = energy_gradient(energy_of(model, network_of(model)), images)
    _, wanted = energy_gradient(energy.energy_of(pruned, "mean"), images)
    assert torch.nn.functional.cosine_similarity(wanted.flatten(1), found.flatten(1)).min() > 0.95
    if kind == "unstructured":  # a zero stays a zero
        stored = model.tensors["features.2.conv.weight"].decode()
        assert (stored[pruned.get_submodule("features.2.conv").weight == 0] == 0).all()


def test_chains_of_methods(compress: Any, small: params.Params, splits: data.Splits, tmp_path: Path) -> None:
    """structured pruning, then product quantization of the narrower network."""
    pruned = network_of(compress("prune", "ebm", {"prune.kind": "structured", "prune.amount": 0.3}))
    run = Run("ebm/pq", 0, [], root=tmp_path)
    objective = targets.get("ebm").objective(copy.deepcopy(pruned), splits, small.ebm, run)
    coded = pq.compress(pruned, "ebm", objective, small.pq, run)
    artifact.save(coded, tmp_path / "chain.safetensors", {})
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(lowenergy.load(tmp_path / "chain.safetensors")(images), network_of(coded)(images))
