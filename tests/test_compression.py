"""Each method, on each kind of network: smaller, loadable, the same after loading, and doing what it says."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import with_changes

import lowenergy
from lowenergy import artifact, data, int8, models, params, targets
from lowenergy.compression import distill, pq, prune, quantize
from lowenergy.encodings import Int8
from lowenergy.energy import energy_gradient
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


def test_int8_files_hold_what_torchao_converts_to(compress: Any, tmp_path: Path) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    model = compress("quantize", "ebm")
    loaded = network_of(model)
    images = torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        simulated = loaded(images)
        converted = convert_pt2e(copy.deepcopy(loaded))
        real = converted(images)
    stored = [t.values for t in model.tensors.values() if isinstance(t, Int8)]
    frozen = [b for name, b in converted.named_buffers() if name.startswith("_frozen_param")]
    assert len(stored) == len(frozen) > 4
    assert all(torch.equal(a, b) for a, b in zip(stored, frozen, strict=True))
    # Rounding a tie the other way moves one activation by one step, no more.
    torch.testing.assert_close(real, simulated, rtol=0.02, atol=0.02 * float(simulated.std()))


def test_int8_networks_still_have_a_score(compress: Any, small: params.Params) -> None:
    from lowenergy.energy import energy_gradient, energy_of

    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    _, exact = energy_gradient(energy_of(teacher("ebm", small), "mean"), images)
    _, rounded = energy_gradient(energy_of(network_of(compress("quantize", "ebm")), "mean"), images)
    assert torch.nn.functional.cosine_similarity(exact.flatten(1), rounded.flatten(1)).min() > 0.95


def test_int8_ranges_of_another_torchao_are_refused(compress: Any) -> None:
    model = compress("quantize", "classifier")
    network = models.build_with(model.spec, {name: t.decode() for name, t in model.tensors.items()})
    with pytest.raises(ValueError, match="quantize again"):
        int8.restore(network, {}, model.activations)


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


def test_chains_of_methods(compress: Any, small: params.Params, splits: data.Splits, tmp_path: Path) -> None:
    """structured pruning, then product quantization of the narrower network."""
    pruned = network_of(compress("prune", "ebm", {"prune.kind": "structured", "prune.amount": 0.3}))
    run = Run("ebm/pq", 0, [], root=tmp_path)
    objective = targets.get("ebm").objective(copy.deepcopy(pruned), splits, small.ebm, run)
    coded = pq.compress(pruned, "ebm", objective, small.pq, run)
    artifact.save(coded, tmp_path / "chain.safetensors", {})
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(lowenergy.load(tmp_path / "chain.safetensors")(images), network_of(coded)(images))
