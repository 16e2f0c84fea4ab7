"""Each method, on each kind of network: smaller, loadable, the same after loading, and doing what it says."""

import copy
import itertools
import shutil
from collections import OrderedDict
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import TARGETS, with_changes
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lowenergy
from lowenergy import data, energies, networks, params, targets
from lowenergy.base.errors import UserError
from lowenergy.compression import distill, pq, prune, quantize
from lowenergy.compression.budget import divide_bits
from lowenergy.compression.distill import distilling
from lowenergy.compression.prune import pruning
from lowenergy.compression.quantize import quantizing
from lowenergy.energies import energy_gradient
from lowenergy.runtimes import int8
from lowenergy.runtimes.loading import energy_in, network_of
from lowenergy.storage import artifact
from lowenergy.storage.encodings import Coded, Int8
from lowenergy.training import Run, mean_loss

METHODS = {"prune": prune, "quantize": quantize, "distill": distill, "pq": pq}


def teacher(target: str, small: params.Params) -> networks.Backbone:
    """Untrained: compression must not depend on luck in training."""
    section = getattr(small, target)
    head = {"ebm": "mean", "jem": "logsumexp"}.get(target)
    return networks.build(networks.Spec.of(section.architecture, (1, 8, 8), outputs=10, head=head), seed=1).eval()


@pytest.fixture
def compress(small_values: Any, splits: data.Splits, tmp_path: Path) -> Any:
    def run_method(
        method: str, target: str, changes: dict[str, Any] | None = None, network: networks.Backbone | None = None
    ) -> artifact.Model:
        p = params.check(with_changes(small_values, changes or {}))
        run = Run(f"{target}-{method}", 0, [], root=tmp_path)
        network = network or teacher(target, p)
        objective = targets.get(target).objective(copy.deepcopy(network), splits, getattr(p, target), run)
        return METHODS[method].compress(network, target, objective, getattr(p, method), run)

    return run_method


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", TARGETS)
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


FEWER_CHANNELS = {"prune.kind": "structured", "prune.amount": 0.4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method", "changes"),
    [
        *(("strided", method, {}) for method in METHODS),  # a fast input gradient
        ("strided", "prune", FEWER_CHANNELS),
        ("unet", "prune", FEWER_CHANNELS),  # attention, and a term beside the features
        ("unet", "quantize", {}),
    ],
)
def test_unlike_networks_compress_too(compress: Any, name: str, method: str, changes: dict[str, Any]) -> None:
    named = {f"{section}.name": name for section in ("ebm.architecture", "distill.student")}
    model = compress(method, "ebm", {**named, **changes})
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = network_of(model)
    # Plain operations without gradients, the fast ones with them: they must agree.
    with torch.no_grad():
        wanted = network(images)
    torch.testing.assert_close(network(images), wanted)
    _, gradient = energy_gradient(energy_in(model, network), images)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("scope", ["global", "conv"])
@pytest.mark.parametrize("target", ["classifier", "ebm"])
def test_unstructured_masks_hold_through_finetuning(compress: Any, target: str, scope: str) -> None:
    network = network_of(compress("prune", target, {"prune.amount": 0.8, "prune.scope": scope}))
    layers = networks.coded_layers(network)
    pruned = [m for m in layers.values() if scope == "global" or isinstance(m, torch.nn.Conv2d)]
    kept = sum(int(m.weight.count_nonzero()) for m in pruned) / sum(m.weight.numel() for m in pruned)
    assert 0.195 < kept < 0.205
    if scope == "conv":
        assert layers["fc"].weight.count_nonzero() == layers["fc"].weight.numel()


@pytest.mark.parametrize("scope", ["global", "conv"])
@pytest.mark.parametrize("target", TARGETS)
def test_structured_pruning_removes_channels(compress: Any, target: str, scope: str, small: params.Params) -> None:
    network = network_of(compress("prune", target, {"prune.kind": "structured", "prune.scope": scope}))
    before, after = (sum(w.numel() for w in n.parameters()) for n in (teacher(target, small), network))
    assert after < before / 2
    assert network.fc.out_features == 10
    assert all(w.count_nonzero() > 0 for w in network.parameters() if w.ndim > 1)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["classifier", "ebm"])
@pytest.mark.parametrize(
    ("importance", "allocation"),
    [("l1", "ranked"), ("l2", "uniform"), ("group", "sensitivity"), ("taylor", "ranked"), ("taylor", "sensitivity")],
)
def test_every_way_to_choose_removes_what_was_asked_for(
    compress: Any, small: params.Params, target: str, importance: str, allocation: str
) -> None:
    ways = {"prune.importance": importance, "prune.allocation": allocation, "prune.amount": 0.5}
    ways |= {"prune.finetune.epochs": 0, "prune.retrain.epochs": 0, "prune.scan_images": 20}
    before = networks.coded_layers(teacher(target, small))
    after = networks.coded_layers(network_of(compress("prune", target, ways)))
    kept = {name: float((layer.weight != 0).float().mean()) for name, layer in after.items()}
    weights = {name: layer.weight.numel() for name, layer in before.items()}
    total = sum(kept[name] * weights[name] for name in kept) / sum(weights.values())
    assert total == pytest.approx(0.5, abs=0.005)
    assert (max(kept.values()) - min(kept.values()) < 0.01) == (allocation == "uniform")

    after = networks.coded_layers(network_of(compress("prune", target, {**ways, "prune.kind": "structured"})))
    hidden = [name for name in before if name != "fc"]
    share = sum(len(after[name].weight) for name in hidden) / sum(len(before[name].weight) for name in hidden)
    assert share == pytest.approx(0.5, abs=0.15)  # channels go whole, and those of shortcuts together
    assert len(after["fc"].weight) == 10


@pytest.mark.parametrize("kind", ["unstructured", "structured"])
def test_rounds_end_where_one_shot_does(compress: Any, small: params.Params, tmp_path: Path, kind: str) -> None:
    ways = {"prune.kind": kind, "prune.amount": 0.6, "prune.finetune.epochs": 3, "prune.retrain.epochs": 0}

    def left(rounds: int) -> int:
        network = network_of(compress("prune", "ebm", {**ways, "prune.rounds": rounds}))
        return sum(int(layer.weight.count_nonzero()) for layer in networks.coded_layers(network).values())

    once, thrice = left(1), left(3)
    assert thrice == pytest.approx(once, rel=0.01 if kind == "unstructured" else 0.25)
    curves = tmp_path / "plots/curves/ebm-prune"
    assert {path.name for path in curves.iterdir() if path.is_dir()} >= {"round1", "round2", "round3"}


@pytest.mark.slow
def test_pruning_to_a_share_of_the_multiply_accumulates(compress: Any, small: params.Params) -> None:
    ways = {"prune.kind": "structured", "prune.amount_of": "macs", "prune.amount": 0.5}
    for target in ("classifier", "ebm"):
        whole = networks.macs(teacher(target, small))
        assert 0.42 < networks.macs(network_of(compress("prune", target, ways))) / whole <= 0.5
    with pytest.raises(UserError, match="prune.amount = 0.999: more multiply-accumulates than can go"):
        compress("prune", "ebm", {**ways, "prune.amount": 0.999})


def test_two_of_four(compress: Any, small: params.Params) -> None:
    ways = {"prune.kind": "2of4", "prune.amount": 0.5, "prune.allocation": "uniform"}
    layers = networks.coded_layers(network_of(compress("prune", "ebm", ways)))
    for name, layer in layers.items():
        if name == "features.0.conv":  # one input channel
            assert layer.weight.count_nonzero() == layer.weight.numel()
            continue
        groups = layer.weight.movedim(1, -1).reshape(-1, 4)
        assert ((groups != 0).sum(1) == 2).all(), name
    weight = networks.coded_layers(teacher("ebm", small))["fc"].weight.detach().clone()
    layer = torch.nn.Linear(*reversed(weight.shape))
    layer.weight.data.copy_(weight)
    pruning.keep_two_of_four({"fc": layer})
    kept, groups = layer.weight.detach().reshape(-1, 4), weight.reshape(-1, 4).abs()
    assert (groups[kept != 0].view(-1, 2).amin(1) >= groups[kept == 0].view(-1, 2).amax(1)).all()


def test_taylor_keeps_what_the_loss_needs(small: params.Params, splits: data.Splits, tmp_path: Path) -> None:
    """Large weights of a channel that nothing listens to go first."""
    run = Run("classifier-prune", 0, [], root=tmp_path)
    network = teacher("classifier", small)
    objective = targets.get("classifier").objective(copy.deepcopy(network), splits, small.classifier, run)
    layer = networks.coded_layers(network)["features.2.first.conv"]
    with torch.no_grad():
        layer.weight[3] *= 100
        networks.coded_layers(network)["features.2.second.conv"].weight[:, 3] = 0
    pruning.leave_slopes(network, objective, run)
    pruning.zero_weights({"layer": layer}, 1 / len(layer.weight), by_slope=True)
    assert not layer.weight[3].any() and layer.weight.count_nonzero() == layer.weight.numel() * (
        1 - 1 / len(layer.weight)
    )


@given(
    st.lists(
        st.tuples(st.integers(1, 1000), st.lists(st.floats(0, 10), min_size=9, max_size=9)), min_size=1, max_size=6
    ),
    st.floats(0.05, 0.95),
)
def test_layers_give_what_costs_each_the_same(layers: list[tuple[int, list[float]]], amount: float) -> None:
    added = {f"l{i}": sorted(losses) for i, (_, losses) in enumerate(layers)}
    sizes = {f"l{i}": size for i, (size, _) in enumerate(layers)}
    shares = pruning.allot(added, sizes, amount)
    assert sum(shares[name] * sizes[name] for name in sizes) / sum(sizes.values()) == pytest.approx(amount, abs=0.02)
    assert all(0 <= share < 1 for share in shares.values())
    if len({tuple(losses) for losses in added.values()}) == 1:  # equally sensitive
        assert max(shares.values()) - min(shares.values()) < 1e-6


def test_the_scan_says_how_much_each_layer_bears(compress: Any, tmp_path: Path) -> None:
    compress("prune", "ebm", {"prune.finetune.epochs": 0, "prune.retrain.epochs": 0})
    table = pd.read_csv(tmp_path / "plots/curves/ebm-prune/sensitivity.csv")
    assert set(table["amount"]) == set(pruning.SCANNED)
    for _, rows in table.groupby("layer"):
        assert rows["added_loss"].iloc[0] >= 0 and rows["added_loss"].iloc[-1] > rows["added_loss"].iloc[0]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_int8_files_hold_what_torchao_converts_to(compress: Any, bits: int) -> None:
    model = compress("quantize", "ebm", {"quantize.weight_bits": bits})
    simulated = int8.restore(model, gradient=True)
    converted = int8.convert(simulated)
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
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


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ebm", "jem"])
def test_int8_energies_sample_with_an_int8_gradient(compress: Any, target: str, small: params.Params) -> None:
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    exact = teacher(target, small)
    model = compress("quantize", target)
    found_energies, gradient = energy_gradient(energy_in(model, network_of(model)), images)
    wanted_energies, wanted = energy_gradient(energies.energy_of(exact, exact.spec.head), images)
    assert torch.nn.functional.cosine_similarity(wanted.flatten(1), gradient.flatten(1)).min() > 0.95
    torch.testing.assert_close(found_energies, wanted_energies, atol=0.1, rtol=0.1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_inductors_int8_kernels_do_what_is_simulated(compress: Any) -> None:
    from torch._dynamo.utils import counters

    model = compress("quantize", "ebm")
    simulated = int8.restore(model, gradient=True)
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    counters.clear()
    found = int8.compiled(simulated)(images)
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in networks.build(model.spec, seed=0).modules())
    assert counters["inductor"]["qconv_weight_prepack_matcher_count"] >= 2 * convolutions  # forward and pullback
    with torch.no_grad():
        wanted = simulated(images)
    # Without VNNI, products of 8 bits are summed in 16, which saturate: the same only roughly.
    exact = "vnni" in Path("/proc/cpuinfo").read_text()
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() < (0.02 if exact else 0.5) * b.norm()


def made_of(names: list[str], head: str | None) -> networks.Foreign:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2)]
    body = nn.Sequential(OrderedDict(zip(names, layers, strict=True)))
    spec = networks.Spec("x:Y", channels=1, image_size=8, outputs=2, head=head, given=networks.Given(body))
    net = networks.Foreign(spec, body.eval()).eval()
    net.find_layers()
    return net


def test_layers_have_names_with_slashes_and_kinds_exist(small: params.Params) -> None:
    net = made_of(["block/1", "relu", "ebm/2", "flat", "fc"], None)

    def kept(*names: str) -> set[str]:
        return quantizing._kept_float(net, "ebm", small.quantize.model_copy(update={"keep_float": [*names]}))

    assert kept("body.block/1", "body.ebm/2", "ebm/body.fc") == {"body.block/1", "body.ebm/2", "body.fc"}
    assert kept("classifier/body.block/1", "jem/nonsense") == set()
    for unknown in ("body.block/3", "emb/body.fc", "ebm/nonsense"):
        with pytest.raises(UserError, match=f"{unknown.removeprefix('ebm/')} is no layer of ebm; it has body.block/1"):
            kept("body.fc", unknown)


@pytest.mark.parametrize("head", [None, "mean"])
@pytest.mark.parametrize("name", ["global", "class", 'say "a"', "back\\slash"])
def test_names_that_python_cannot_write_are_one_line(name: str, head: str | None) -> None:
    net = made_of(["first", "relu", name, "flat", "fc"], head)
    with pytest.raises(UserError, match=r"cannot write a graph with a part named .*; rename it$"):
        int8.prepare(net, {}, {}, gradient=head is not None)


def test_names_of_weights_that_python_cannot_write_are_one_line() -> None:
    net = made_of(["first", "relu", "second", "flat", "fc"], None)
    net.body.register_parameter("lambda", nn.Parameter(torch.ones(1)))
    with pytest.raises(UserError, match="cannot write a graph with a part named 'lambda'; rename it$"):
        int8.prepare(net, {}, {})


@pytest.mark.slow
def test_layers_can_stay_float(compress: Any) -> None:
    model = compress("quantize", "ebm", {"quantize.keep_float": ["features.0.conv", "ebm/fc", "jem/features.2.conv"]})
    floats = {name for name, t in model.tensors.items() if name.endswith("weight") and not isinstance(t, Int8)}
    assert floats == {"features.0.conv.weight", "fc.weight"}
    assert not [name for name in model.activations if name.startswith(("features.0.", "fc:"))]
    energy_gradient(energy_in(model, network_of(model)), torch.zeros(2, 1, 8, 8))
    with pytest.raises(UserError, match=r"quantize\.keep_float: nonsense is no layer of ebm; it has features"):
        compress("quantize", "ebm", {"quantize.keep_float": ["nonsense"]})


@pytest.mark.slow
def test_the_most_sensitive_layers_stay_float_until_the_loss_is_within_budget(compress: Any, tmp_path: Path) -> None:
    def table() -> pd.DataFrame:
        return pd.read_csv(tmp_path / "plots/curves/ebm-quantize/sensitivity.csv").set_index("layer")

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


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_finetuning_in_int8_brings_it_nearer_to_the_teacher(
    compress: Any, target: str, small: params.Params, splits: data.Splits
) -> None:
    images, exact = data.to_float(splits.test.images), teacher(target, small)
    networks.refresh_batchnorm(
        exact, data.to_float(splits.train.images)
    )  # norms that know what they see, as if trained

    def distance(epochs: int) -> float:
        changes = {
            "quantize.weight_bits": 3,
            "quantize.finetune.epochs": epochs,
            "quantize.finetune.lr": 0.0005,
            "classifier.matching.label_weight": 0.0,
        }
        model = compress("quantize", target, changes, copy.deepcopy(exact))
        network = network_of(model)
        if target == "classifier":
            return float((network(images).log_softmax(1) - exact(images).log_softmax(1)).square().mean())
        _, gradient = energy_gradient(energy_in(model, network), images)
        _, wanted = energy_gradient(energies.energy_of(exact, exact.spec.head), images)
        return float((gradient - wanted).square().mean())

    assert distance(15) < 0.7 * distance(0)


def test_a_network_trained_with_its_norms_keeps_its_integers_when_they_are_folded() -> None:
    spec = networks.Spec("resnet8", 8, "3x3", "relu", "batch", 1, 8, 10)
    network, generator = networks.build(spec, seed=0).eval(), torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.copy_(torch.rand(values.shape, generator=generator) + 0.2)
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
    layers = networks.coded_layers(network)
    scales = {name: int8.best_scale(layer.weight, 3) for name, layer in layers.items()}
    wanted = {name: int8.rounded(layer.weight, scales[name], 3) for name, layer in layers.items()}
    with quantizing.rounded_weights(network, scales, dict.fromkeys(scales, 3)):
        images = torch.rand(5, 1, 8, 8, generator=generator)
        answers = network(images)
    for name, layer in layers.items():
        layer.weight.data = wanted[name] * scales[name].view(-1, *[1] * (layer.weight.ndim - 1))
    folded, found = quantizing._folded(network, scales, images)
    torch.testing.assert_close(folded(images), answers, rtol=1e-4, atol=1e-4)
    for name, layer in networks.coded_layers(folded).items():
        assert torch.equal(int8.rounded(layer.weight, found[name], 3), wanted[name])


def test_int8_files_without_a_range_are_refused(compress: Any) -> None:
    model = compress("quantize", "classifier")
    with pytest.raises(ValueError, match="quantize again"):
        int8.restore(replace(model, activations=dict(list(model.activations.items())[1:])))


def test_padding_by_name_is_rounded_as_padding_in_numbers_is() -> None:
    network = networks.build(networks.Spec("cnn", 4, "3x3", "relu", "none", 1, 8, 10), seed=0)
    network.get_submodule("features.4.conv").padding = "same"  # another operation to the exporter
    scales = {name: int8.best_scale(layer.weight, 8) for name, layer in networks.coded_layers(network).items()}
    rounded = {place.layer for place in int8.places(int8.prepare(network, scales, dict.fromkeys(scales, 8)))}
    assert rounded == scales.keys()


def test_students_are_smaller_and_learn(
    compress: Any, small: params.Params, splits: data.Splits, tmp_path: Path
) -> None:
    changes = {"distill.train.epochs": 6, "classifier.matching.label_weight": 0.0}
    student = network_of(compress("distill", "classifier", changes))
    wanted = teacher("classifier", small)
    images = data.to_float(splits.test.images)
    fresh = networks.build(student.spec, seed=0).eval()

    def distance(network: torch.nn.Module) -> float:
        return float((network(images).log_softmax(1) - wanted(images).log_softmax(1)).square().mean())

    assert distance(student) < 0.5 * distance(fresh)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "target"), [*product(METHODS, ("classifier", "ebm")), ("distill", "jem")])
def test_retraining_lowers_the_targets_own_loss(
    compress: Any, target: str, method: str, small: params.Params, splits: data.Splits, tmp_path: Path
) -> None:
    run = Run(f"{target}-measure", 0, [], root=tmp_path)
    objective = targets.get(target).objective(teacher(target, small), splits, getattr(small, target), run)

    def own_loss(epochs: int) -> float:
        part = "train" if method == "distill" else "finetune"
        changes = {f"{method}.{part}.epochs": 0, f"{method}.retrain.epochs": epochs}
        changes["distill.student.norm"] = "batch" if target == "classifier" else "none"  # SGD wants it, energies do not
        # What is rounded has no norms any more, which SGD's rate counts on.
        rates = {f"{method}.retrain.lr": 4.0 if (method, target) == ("quantize", "classifier") else 1.0}
        model = compress(method, target, {**changes, **rates, "quantize.weight_bits": 4})
        assert all(weight.bits == 4 for weight in model.tensors.values() if isinstance(weight, Int8))
        network = model.build()
        run.generator.manual_seed(1)
        return sum(float(objective.own_loss(network, run).detach()) for _ in range(8))

    assert own_loss(6) < 0.9 * own_loss(0)
    assert (tmp_path / "plots/curves" / f"{target}-{method}" / "retrain/plots/metrics/loss.tsv").exists()


@given(bits=st.integers(2, 8), seed=st.integers(0, 100))
def test_weights_are_trained_where_their_integers_are(bits: int, seed: int) -> None:
    """What a retrained network computes with is what the file will say; beyond the range a weight has no slope."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, 2, 2, generator=generator).requires_grad_()
    scale = int8.best_scale(weight.detach(), bits)
    rounding = quantizing.RoundedWeight(scale, bits, weight.shape)
    wanted = int8.rounded(weight.detach(), scale, bits) * scale.view(-1, 1, 1, 1)
    assert torch.allclose(rounding(weight), wanted)
    rounding(weight).square().sum().backward()
    assert weight.grad is not None and rounding.scale.grad is not None
    steps = weight.detach() / scale.view(-1, 1, 1, 1)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    at_the_edge = (steps == low) | (steps == high)  # where either is right
    found = torch.where((steps > low) & (steps < high), 2 * wanted, 0.0)
    assert torch.allclose(weight.grad[~at_the_edge], found[~at_the_edge], atol=1e-6)
    levels = wanted / scale.view(-1, 1, 1, 1)
    of_steps = 2 * wanted * (levels - torch.where((steps >= low) & (steps <= high), steps, 0.0))
    of_scale = rounding.caution * of_steps.flatten(1).sum(1)  # LSQ's, by the chain rule
    torch.testing.assert_close(rounding.scale.grad.flatten(), of_scale, rtol=1e-3, atol=1e-5)


def test_energies_trained_by_chains_alone_retrain_by_chains_alone(compress: Any, tmp_path: Path) -> None:
    """No flow to train on until chains join in: they do at once, whatever contrastive_from says."""
    chains = {"energies.train.flow_weight": 0.0, "ebm.train.contrastive_weight": 1.0, "ebm.train.contrastive_from": 0.0}
    changes = {"distill.retrain.contrastive_from": 0.5, "distill.retrain.epochs": 2, "distill.train.epochs": 0}
    network = network_of(
        compress(
            "distill", "ebm", {**chains, **changes, "energies.train.burn_in": 0, "jem.train.contrastive_from": 0.0}
        )
    )
    assert all(weight.isfinite().all() for weight in network.parameters())
    curves = tmp_path / "plots/curves/ebm-distill/retrain/plots/metrics"
    assert (curves / "energy_chains.tsv").exists() and not (curves / "flow.tsv").exists()


def test_students_start_from_the_teachers_leading_channels(small: params.Params) -> None:
    whole = teacher("classifier", small)
    twin = networks.build(whole.spec, seed=5)
    assert len(distilling.inherit(twin, whole)) > 10
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(twin.eval()(images), whole(images))
    narrow = networks.build(replace(whole.spec, width=8), seed=5)
    distilling.inherit(narrow, whole)
    theirs, ours = (networks.coded_layers(n)["features.3.first.conv"].weight for n in (whole, narrow))
    torch.testing.assert_close(ours, theirs[:16, :8] * 2**0.5)
    other = networks.build(replace(whole.spec, name="cnn"), seed=5)
    before = other.fc.weight.clone()
    assert "fc" not in distilling.inherit(other, whole)  # as many outputs, of other features
    assert torch.equal(other.fc.weight, before)


def test_one_output_is_enough_for_a_mean(small: params.Params) -> None:
    ten = teacher("ebm", small)
    one = distilling.merge_outputs(ten)
    images = torch.rand(4, 1, 8, 8)
    assert one.spec.outputs == 1 and one.fc.weight.shape == (1, ten.fc.in_features)
    torch.testing.assert_close(one(images).mean(1), ten(images).mean(1))


def test_features_are_compared_by_what_resembles_what() -> None:
    from lowenergy.targets.classifier.training import feature_error

    features = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    assert feature_error(3 * features @ rotation, features) < 1e-6  # another basis, another width: the same
    wider = torch.cat([features, torch.zeros(16, 5)], 1)
    assert feature_error(wider, features) < 1e-6
    assert feature_error(features.flip(0), features) > 0.1


@pytest.mark.slow
def test_classifiers_match_features_where_asked(compress: Any, tmp_path: Path) -> None:
    compress("distill", "classifier", {"classifier.matching.feature_weight": 1.0})
    curve = pd.read_csv(tmp_path / "plots/curves/classifier-distill/plots/metrics/feature_error.tsv", sep="\t")
    assert curve["feature_error"].iloc[-1] < curve["feature_error"].iloc[0]
    compress("quantize", "classifier", {"classifier.matching.feature_weight": 1.0})  # an int8 graph has none


@given(st.data())
def test_bits_are_shared_as_well_as_can_be(draw: st.DataObject) -> None:
    """Against every other way, of layers of one size whose costs fall ever more slowly: there, greedy is best."""
    falls = draw.draw(st.lists(st.lists(st.floats(0.01, 1), min_size=6, max_size=6), min_size=1, max_size=3))
    costs = {str(i): {bits: sum(sorted(steps)[: 8 - bits]) for bits in range(2, 9)} for i, steps in enumerate(falls)}
    budget = draw.draw(st.integers(2 * len(costs), 8 * len(costs)))
    choices = {name: {bits: (10 * bits, cost) for bits, cost in of.items()} for name, of in costs.items()}
    shares = divide_bits(choices, 10 * budget)
    assert sum(shares.values()) <= budget and set(shares.values()) <= set(range(2, 9))
    best = min(
        sum(costs[str(i)][bits] for i, bits in enumerate(way))
        for way in itertools.product(range(2, 9), repeat=len(costs))
        if sum(way) <= budget
    )
    assert sum(costs[name][bits] for name, bits in shares.items()) == pytest.approx(best)


def test_a_large_layer_pays_for_its_bits() -> None:
    sizes, costs = {"large": 100, "small": 10}, {2: 1.0, 4: 0.5, 8: 0.0}
    choices = {name: {bits: (size * bits, cost) for bits, cost in costs.items()} for name, size in sizes.items()}
    assert divide_bits(choices, 500) == {"large": 4, "small": 8}
    assert divide_bits(choices, 100) == {"large": 2, "small": 2}  # the fewest


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_mixed_blocks_and_codewords_take_no_more_room_and_lose_less(
    target: str, small_values: Any, splits: data.Splits, tmp_path: Path
) -> None:
    coding = {"pq.codewords": 16, "pq.finetune.epochs": 0, f"{target}.train.epochs": 4}
    section = getattr(params.check(with_changes(small_values, coding)), target)
    trained = targets.get(target).train(splits, section, Run(target, 0, [], root=tmp_path))

    def made(allocation: str) -> tuple[set[tuple[int, ...]], float, int]:
        p = params.check(with_changes(small_values, {**coding, "pq.allocation": allocation})).pq
        run = Run(f"{target}-pq", 0, [p], root=tmp_path)
        objective = targets.get(target).objective(copy.deepcopy(trained), splits, section, run)
        model = pq.compress(copy.deepcopy(trained), target, objective, p, run)
        codebooks = {tuple(part.codebook.shape) for part in model.tensors.values() if isinstance(part, Coded)}
        artifact.save(model, tmp_path / allocation, {})
        shares = artifact.bytes_by_part(tmp_path / allocation)
        loss = mean_loss(model.build(), objective, torch.arange(0, len(objective.inputs), 3), run)
        return codebooks, loss, shares["codes"] + shares["codebooks"]

    (_, uniform, most), (codebooks, mixed, size) = made("uniform"), made("sensitivity")
    assert len({shape[1] for shape in codebooks}) > 1  # blocks of several lengths
    assert size <= 1.05 * most  # codes of a byte or less are not all packed as tightly
    assert mixed < uniform


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_mixed_bits_take_no_more_room_and_lose_less(compress: Any, target: str, tmp_path: Path) -> None:
    def made(allocation: str) -> tuple[artifact.Model, float, int]:
        model = compress("quantize", target, {**rounding, "quantize.allocation": allocation})
        path = tmp_path / allocation
        artifact.save(model, path, {})
        table = pd.read_csv(tmp_path / f"plots/curves/{target}-quantize/sensitivity.csv").set_index("layer")
        return artifact.read(path)[0], float(table.loc["all", "added_loss"]), path.stat().st_size

    rounding = {"quantize.weight_bits": 3, "quantize.finetune.epochs": 0}
    (_, uniform, most), (model, mixed, size) = made("uniform"), made("sensitivity")
    bits = {encoded.bits for encoded in model.tensors.values() if isinstance(encoded, Int8)}
    assert len(bits) > 1 and size <= 1.02 * most  # the header names other numbers of bits
    assert mixed < uniform
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.isfinite(network_of(model)(images)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "target"), [*product(METHODS, ["ebm"]), ("quantize", "jem")])
def test_energies_are_matched_along_the_networks_own_chains(compress: Any, target: str, method: str) -> None:
    alone, along = (compress(method, target, {"energies.matching.student_chains": chains}) for chains in (0, 8))
    assert any(not torch.equal(along.tensors[name].decode(), t.decode()) for name, t in alone.tensors.items())
    assert all(t.decode().isfinite().all() for t in along.tensors.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["structured", "unstructured"])
def test_pruned_energies_quantize(
    compress: Any, small: params.Params, splits: data.Splits, tmp_path: Path, kind: str
) -> None:
    pruned = network_of(compress("prune", "ebm", {"prune.kind": kind, "prune.amount": 0.3}))
    run = Run("ebm-quantize", 0, [], root=tmp_path)
    objective = targets.get("ebm").objective(copy.deepcopy(pruned), splits, small.ebm, run)
    model = quantize.compress(copy.deepcopy(pruned), "ebm", objective, small.quantize, run)
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    _, found = energy_gradient(energy_in(model, network_of(model)), images)
    _, wanted = energy_gradient(energies.energy_of(pruned, "mean"), images)
    assert torch.nn.functional.cosine_similarity(wanted.flatten(1), found.flatten(1)).min() > 0.95
    if kind == "unstructured":  # a zero stays a zero
        stored = model.tensors["features.2.conv.weight"].decode()
        assert (stored[pruned.get_submodule("features.2.conv").weight == 0] == 0).all()


@pytest.mark.slow
def test_chains_of_methods(compress: Any, small: params.Params, splits: data.Splits, tmp_path: Path) -> None:
    """structured pruning, then product quantization of the narrower network."""
    pruned = network_of(compress("prune", "ebm", {"prune.kind": "structured", "prune.amount": 0.3}))
    run = Run("ebm-pq", 0, [], root=tmp_path)
    objective = targets.get("ebm").objective(copy.deepcopy(pruned), splits, small.ebm, run)
    coded = pq.compress(pruned, "ebm", objective, small.pq, run)
    artifact.save(coded, tmp_path / "chain.safetensors", {})
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(lowenergy.load(tmp_path / "chain.safetensors")(images), network_of(coded)(images))
