"""Activations of fewer than eight bits, in torch, ONNX and C, their learned steps; and learned rounding of weights."""

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT, with_changes
from hypothesis import given
from hypothesis import strategies as st
from test_compression import compress, teacher  # noqa: F401 fixtures
from test_deploy import HEADER, session_of
from test_device_int8 import images_for, is_the_reference
from torch import nn

import lowenergy
from lowenergy import data, networks, params
from lowenergy.base.errors import UserError
from lowenergy.base.progress import Progress
from lowenergy.compression.quantize import quantizing, rounding
from lowenergy.compression.quantize.inputs import of_inputs, rounded_inputs
from lowenergy.compression.quantize.quantizing import rounded_weights
from lowenergy.energies import ExplicitEnergy, energy_gradient, energy_of
from lowenergy.params import ParamsError
from lowenergy.runtimes import int8, to_onnx
from lowenergy.runtimes.loading import energy_in, network_of
from lowenergy.scoring import micronet
from lowenergy.storage import Model, artifact
from lowenergy.storage.encodings import Int8, Range
from lowenergy.targets.classifier import training as classifier
from lowenergy.training import Run

UNTRAINED = {"quantize.finetune.epochs": 0}


def steps_seen(prepared: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The whole numbers that each rounded input has, by its name."""
    seen: dict[str, torch.Tensor] = {}
    handles = []
    for place in int8.places(prepared):
        for name, module in place.activations.items():

            def look(module: Any, _: Any, out: torch.Tensor, name: str = name) -> None:
                seen[name] = (out / module.scale + module.zero_point).round().unique()

            handles.append(module.register_forward_hook(look))
    with torch.no_grad():
        prepared(images)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("target", "bits"), [("classifier", 3), ("ebm", 4), ("jem", 2)])
def test_activations_have_as_many_levels_as_bits_allow(
    compress: Any,  # noqa: F811
    target: str,
    bits: int,
    tmp_path: Path,
) -> None:
    artifact.save(compress("quantize", target, {"quantize.activation_bits": bits}), tmp_path / "m.safetensors", {})
    model, header = artifact.read(tmp_path / "m.safetensors")
    assert {len(found) for name, found in header["activations"].items() if name.endswith(":in")} == {3}
    assert {len(found) for name, found in header["activations"].items() if name.endswith(":out")} == {2}
    seen = steps_seen(int8.restore(model, gradient=target != "classifier"), images_for(model))
    wanted = {name for name in model.activations if name.endswith(":in")}
    assert wanted <= seen.keys() and any(":gradient" in name for name in wanted) == (target != "classifier")
    for name in wanted:
        assert model.activations[name].bits == bits
        assert seen[name].min() >= 0 and seen[name].max() <= 2**bits - 1, name
    assert max(len(seen[name]) for name in wanted) == 2**bits  # all of them are used somewhere


@pytest.mark.parametrize("target", ["classifier", "ebm"])
def test_inputs_share_bits_by_what_they_cost(
    compress: Any,  # noqa: F811
    target: str,
    small: params.Params,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    eight_and_four = {"quantize.weight_bits": 8, "quantize.activation_bits": 4, **UNTRAINED}
    by_sensitivity = {**eight_and_four, "quantize.allocation": "sensitivity"}
    source = teacher(target, small)
    with torch.no_grad():
        source.fc.weight *= 30  # or all answers are alike
    model = compress("quantize", target, by_sensitivity, source)
    said = capsys.readouterr().out
    assert "bits of inputs: " in said
    graph = int8.restore(model, gradient=target != "classifier")
    spent, operations = 0, 0
    for place in int8.places(graph):
        (name,) = (name for name in place.activations if name.endswith(":in"))
        spent += place.multiplications * model.activations[name].bits
        operations += place.multiplications
    assert 3 * operations < spent <= 4 * operations
    assert len({given.bits for name, given in model.activations.items() if name.endswith(":in")}) > 1
    seen = steps_seen(graph, images_for(model))
    for name in seen:
        assert seen[name].max() <= 2 ** model.activations[name].bits - 1, name
    artifact.save(model, tmp_path / "m.safetensors", {})
    assert artifact.read(tmp_path / "m.safetensors")[0].activations == model.activations

    compress("quantize", target, eight_and_four, source)
    added = (
        re.search(r"rounding adds ([^ ]+) to", said),
        re.search(r"rounding adds ([^ ]+) to", capsys.readouterr().out),
    )
    assert added[0] and added[1] and float(added[0][1]) < float(added[1][1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "bits", "allocation"), [("classifier", 3, "uniform"), ("ebm", 4, "uniform"), ("ebm", 4, "sensitivity")]
)
def test_onnx_and_c_have_these_levels(
    compress: Any,  # noqa: F811
    target: str,
    bits: int,
    allocation: str,
    tmp_path: Path,
) -> None:
    changes = {"quantize.activation_bits": bits, "quantize.allocation": allocation, **UNTRAINED}
    model = compress("quantize", target, changes)
    images = 1.5 * images_for(model)  # beyond the ranges
    network = int8.restore(model, outputs=True)
    to_onnx.export(model, HEADER, tmp_path / "m.onnx", sampler=target != "classifier")
    session = session_of(tmp_path / "m.onnx", int8_kernels=False)
    given = {"images": images.numpy()}
    with torch.no_grad():
        logits = network(images)
    if target == "classifier":
        np.testing.assert_allclose(session.run(None, given)[0], logits, rtol=1e-3, atol=1e-3 * float(logits.std()))
    else:
        noise = torch.zeros_like(images)
        found = session.run(["energy", "next"], {**given, "noise": noise.numpy()})
        of_images = ExplicitEnergy(network, int8.restore(model, gradient=True, outputs=True), model.spec.head)
        energies, gradient = energy_gradient(of_images, images)
        np.testing.assert_allclose(found[0], energies.detach(), rtol=1e-3, atol=1e-3)
        wanted = (images - 0.05 * gradient.clamp(-5, 5)).clamp(-1, 1)
        np.testing.assert_allclose(found[1], wanted.detach(), rtol=0, atol=2e-3)
    made = is_the_reference(model, tmp_path / "c", steps=True)
    if target == "classifier":
        with torch.no_grad():
            logits = network(images_for(model))
        found = [made.logits(image) for image in images_for(model)]
        # A tie that falls to the other side moves a value by a level.
        np.testing.assert_allclose(found, logits, atol=0.1 * float(logits.abs().max()))
    assert "to_level(" in (tmp_path / "c" / "model.c").read_text()


def test_files_without_bits_have_eight() -> None:
    model, header = artifact.read(ROOT / "pretrained" / "mnist-ebm-tiny.safetensors")
    assert {given.bits for given in model.activations.values()} == {8}
    assert artifact._ranges(model) == header["activations"]  # and are written as they were


def test_the_score_counts_bits_of_activations() -> None:
    network = networks.build(networks.Spec("cnn", 8, "3x3", "relu", "none", 1, 8, 10), seed=0).eval()
    plain = artifact.dense(network, "classifier")
    weight = Int8(torch.ones(plain.tensors["fc.weight"].shape).char(), torch.ones(10), bits=3)
    eight = replace(plain, tensors={**plain.tensors, "fc.weight": weight}, activations={"fc:in": Range(0.1, 0)})
    four, two = (replace(eight, activations={"fc:in": Range(0.1, 0, bits)}) for bits in (4, 2))
    n = weight.values.numel()
    operations = [micronet.operations_of(model).wide for model in (eight, four, two)]
    assert operations[0] - operations[1] == pytest.approx(n * (8 - 4) / 32)
    assert operations[1] - operations[2] == pytest.approx(n * (4 - 3) / 32)  # the wider operand counts
    assert micronet.storage_of(eight) - micronet.storage_of(four) == 4 / 32  # a zero point is as wide


@given(bits=st.integers(2, 7), seed=st.integers(0, 50))
def test_learned_steps_round_as_files_say(bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 50, generator=generator).requires_grad_()
    given = Range(0.21, int(torch.randint(2**bits, (1,), generator=generator)), bits)
    step = int8.LearnedStep(given)
    wanted = torch.fake_quantize_per_tensor_affine(x.detach(), given.scale, given.zero, 0, 2**bits - 1)
    torch.testing.assert_close(step(x), wanted)
    step(x).sum().backward()
    steps = x.detach() / given.scale
    low, high = -given.zero, 2**bits - 1 - given.zero
    inside = (steps > low) & (steps < high)
    assert x.grad is not None and torch.equal(x.grad, inside.float())
    of_step = torch.where(inside, steps.round() - steps, steps.clamp(low, high)).sum()  # the paper's equation 3
    caution = (50 * (2**bits - 1)) ** -0.5
    assert step.factor.grad is not None
    torch.testing.assert_close(step.factor.grad, caution / given.scale * of_step, rtol=1e-3, atol=1e-3)
    assert step.range() == given


def test_rounding_has_the_second_gradients_of_its_formula() -> None:
    """Those by which an energy is trained whose inputs are rounded."""
    start = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))

    def plain(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        steps = (x / step).clamp(-2, 5)
        return (steps + (steps.round() - steps).detach()) * step

    def gradients(rounds: Any) -> list[torch.Tensor]:
        x, step = start.clone().requires_grad_(), torch.tensor(0.3, requires_grad=True)
        (by_image,) = torch.autograd.grad((rounds(x, step) ** 3).sum(), x, create_graph=True)
        return list(torch.autograd.grad(by_image.square().sum(), (x, step)))

    found = gradients(lambda x, step: int8.on_steps(x, step, -2, 5))
    torch.testing.assert_close(found, gradients(plain), rtol=1e-4, atol=1e-4)
    assert float(found[0].norm()) > 0 < float(found[1].abs())


@pytest.mark.parametrize("share", [-0.7, 0.0])
def test_a_step_that_crosses_zero_rounds_in_training_as_in_the_file(share: float) -> None:
    """The range of integers is not symmetric, so a step and its negative round differently."""
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    step = int8.LearnedStep(Range(0.21, 2, 3))
    weights = quantizing.RoundedWeight(torch.full((4,), 0.21), 3, x.shape)
    with torch.no_grad():
        step.factor.fill_(share)
        weights.scale.fill_(0.21 * share)
    found = step.range()
    assert found.scale > 0
    torch.testing.assert_close(step(x), torch.fake_quantize_per_tensor_affine(x, found.scale, found.zero, 0, 7))
    scale = weights.scale.detach().abs().clamp_min(int8.SMALLEST_SCALE).flatten()
    torch.testing.assert_close(weights(x), int8.rounded(x, scale.view(-1, 1), 3).float() * scale.view(-1, 1))


class Twice(nn.Module):
    """Calls a layer two times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(self.first(x).relu()).relu()
        logits: torch.Tensor = self.last(self.again(x).relu().mean((2, 3)))
        return logits


def twice() -> Any:
    torch.manual_seed(0)
    network = networks.Foreign(networks.Spec("own.py:Net", channels=1, image_size=8, outputs=10), Twice()).eval()
    network.find_layers()
    return network


def test_each_call_has_its_range() -> None:
    network = twice()
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    layers = networks.coded_layers(network)
    scales = {name: int8.best_scale(layer.weight, 8) for name, layer in layers.items()}
    graph = int8.prepare(network, scales, dict.fromkeys(scales, 8), activation_bits=3)
    with torch.no_grad():
        graph(images)
        ranges = of_inputs(int8.ranges(int8.freeze(graph)))
        assert len(ranges) == 4 and sum(":2:in" in name for name in ranges) == 1
        for place in int8.places(graph):
            place.weight.disable_fake_quant()
        with rounded_inputs(network, ranges, int8.shared(graph)):
            for _ in range(2):
                torch.testing.assert_close(network(images), graph(images), rtol=1e-4, atol=1e-4)
    assert not hasattr(network, "rounded_inputs")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["classifier", "ebm"])
def test_trained_steps_bring_it_nearer_to_the_teacher(
    compress: Any,  # noqa: F811
    target: str,
    small: params.Params,
    splits: data.Splits,
) -> None:
    """A classifier with its norms at work, an energy's graph in both directions."""
    images, exact = data.to_float(splits.test.images), teacher(target, small)
    networks.refresh_batchnorm(exact, data.to_float(splits.train.images))

    def made(epochs: int) -> tuple[float, Model]:
        changes = {"quantize.activation_bits": 3, "quantize.finetune.epochs": epochs, "quantize.finetune.lr": 0.0005}
        model = compress("quantize", target, {**changes, "classifier.matching.label_weight": 0.0}, copy.deepcopy(exact))
        network = network_of(model)
        if target == "classifier":
            return float((network(images).log_softmax(1) - exact(images).log_softmax(1)).square().mean()), model
        of_exact = energy_of(exact, exact.spec.head or "")
        with torch.no_grad():
            return float((energy_in(model, network)(images) - of_exact(images)).square().mean()), model

    (before, untrained), (after, trained) = made(0), made(12)
    assert after < 0.8 * before
    for name, found in trained.activations.items():
        moved = found.scale != untrained.activations[name].scale
        assert found.zero == untrained.activations[name].zero if name.endswith(":in") else True
        assert moved or not name.endswith(":in"), name


def test_layers_that_take_in_the_same_learn_one_step() -> None:
    network = networks.build(networks.Spec("resnet8", 8, "3x3", "relu", "none", 1, 8, 10), seed=0).eval()
    scales = {name: int8.best_scale(layer.weight, 8) for name, layer in networks.coded_layers(network).items()}
    graph = int8.prepare(network, scales, dict.fromkeys(scales, 8), activation_bits=4)
    with torch.no_grad():
        graph(torch.rand(8, 1, 8, 8))
    ranges, same = of_inputs(int8.ranges(int8.freeze(graph))), int8.shared(graph)
    twins = [name for name, first in same.items() if name != first]
    assert twins  # the shortcuts
    with rounded_inputs(network, ranges, same) as inputs:
        assert len(inputs.steps) == len(ranges) - len(twins)
        for step in inputs.steps:
            step.get_parameter("factor").data.mul_(1.5)
    assert all(ranges[name] == ranges[same[name]] for name in twins)
    int8.hold_ranges(graph, ranges)
    held = int8.ranges(graph)
    assert all(held[name].scale == pytest.approx(found.scale) for name, found in ranges.items())


def test_few_levels_are_not_spent_on_rare_values() -> None:
    values = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    values[0] = 40.0
    few = int8.FewLevels(dtype=torch.uint8, quant_min=0, quant_max=15, qscheme=torch.per_tensor_affine)
    few(values)
    scale, zero = few.calculate_qparams()
    rounded = torch.fake_quantize_per_tensor_affine(values, float(scale), int(zero), 0, 15)
    whole = torch.fake_quantize_per_tensor_affine(values, 44 / 15, 1, 0, 15)
    assert (rounded - values)[1:].square().mean() < 0.3 * (whole - values)[1:].square().mean()


def test_steps_do_not_decay() -> None:
    spec = networks.Spec("cnn", 4, "3x3", "relu", "none", channels=1, image_size=8, outputs=10)
    network = networks.build(spec, seed=0)
    scales = {name: int8.best_scale(layer.weight, 4) for name, layer in networks.coded_layers(network).items()}
    ranges = {f"{name}:in": Range(0.02, 3, 4) for name in scales}
    with rounded_inputs(network, ranges, {}), rounded_weights(network, scales, dict.fromkeys(scales, 4)):
        others, steps = classifier._with_decay(network)
        named = {id(w): name for name, w in network.named_parameters()}
        assert steps["weight_decay"] == 0 and "weight_decay" not in others
        assert all(named[id(w)].endswith((".factor", ".scale")) for w in steps["params"])
        assert len(steps["params"]) == 2 * len(scales) and len(others["params"]) + len(steps["params"]) == len(named)
    assert len(classifier._with_decay(network)) == 1


# -- learned rounding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_learned_rounding_is_better_for_outputs_and_next_to_nearest(groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=groups)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    # Inputs that go together, as those of layers do: else nearest is best.
    mixed = torch.randn(8, 3, generator=generator) @ torch.randn(3, 64 * 8 * 8, generator=generator)
    x = mixed.view(8, 64, 8, 8).transpose(0, 1) + 0.1 * torch.randn(64, 8, 8, 8, generator=generator)
    scale = int8.best_scale(layer.weight, 3).view(-1, 1, 1, 1)
    nearest = int8.rounded(layer.weight.detach(), scale, 3).float()
    positions = torch.arange(64 * 16)
    with torch.no_grad():
        around = networks.padded(layer, x, 1)
        patches, outputs = (
            rounding._patches_at(layer, around, positions),
            rounding._outputs_at(layer, layer(x), positions),
        )
        torch.testing.assert_close(patches @ rounding._as_matrices(layer, layer.weight).mT, outputs)

    def found() -> tuple[torch.Tensor, float]:
        fixed = torch.Generator().manual_seed(1)
        return rounding.learned(layer, nearest, scale, 3, patches, outputs, fixed, Progress("", 10**9))

    integers, share = found()
    integers = integers.reshape(nearest.shape)
    assert (integers - nearest).abs().max() == 1  # here and there
    assert (integers - layer.weight / scale).abs()[nearest.abs() < 3].max() < 1  # up or down
    assert integers.min() >= -4 and integers.max() <= 3
    again = nn.functional.conv2d(x, integers * scale, layer.bias, 2, 1, 1, groups)
    before = nn.functional.conv2d(x, nearest * scale, layer.bias, 2, 1, 1, groups)
    with torch.no_grad():
        error = float((again - layer(x)).square().sum() / (before - layer(x)).square().sum())
    assert error == pytest.approx(share, rel=1e-3) and error < 0.8
    assert torch.equal(found()[0].reshape(nearest.shape), integers)  # by its seed


@pytest.mark.parametrize("target", ["classifier", "ebm"])
def test_learned_rounding_makes_files_of_as_many_bits(
    compress: Any,  # noqa: F811
    target: str,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounding, "STEPS", 50)
    changes = {"quantize.weight_bits": 3, **UNTRAINED}
    nearest = compress("quantize", target, changes)
    learned = compress("quantize", target, {**changes, "quantize.rounding": "learned"})
    said = capsys.readouterr().out
    assert "rounding so leaves" in said and "does not apply" not in said
    moved = 0
    for name, one in nearest.tensors.items():
        other = learned.tensors[name]
        if isinstance(one, Int8):
            assert isinstance(other, Int8) and other.bits == 3 and torch.equal(one.scale, other.scale)
            off = (one.values.int() - other.values.int()).abs()
            assert off.max() <= 1
            moved += int(off.sum())
    assert moved


def test_layers_that_are_called_twice_round_to_nearest(tmp_path: Path, capsys: Any) -> None:
    network = twice()
    layers = networks.coded_layers(network)
    scales = {name: int8.best_scale(layer.weight, 3) for name, layer in layers.items()}
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    names = [*scales]
    ranges = {f"{name}:in": Range(0.02, 100) for name in names}
    again = next(name for name in names if "again" in name)
    ranges[f"{again}:2:in"] = Range(0.02, 100)
    rounding.learn_rounding(
        network, scales, dict.fromkeys(scales, 3), ranges, images, Run("twice", 0, [], root=tmp_path, watched=False)
    )
    assert f"rounded to nearest, for learning does not apply: {again}\n" in capsys.readouterr().out
    moved = 0
    for name, layer in networks.coded_layers(network).items():
        scale = scales[name].view(-1, *[1] * (layer.weight.ndim - 1))
        off = ((layer.weight / scale).round() - int8.rounded(before[name], scales[name], 3)).abs()
        assert off.max() <= (0 if name == again else 1)
        moved += int(off.sum())
    assert moved


@pytest.mark.parametrize("groups", [1, 2])
def test_gptq_leaves_less_of_the_outputs_error(groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=groups)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.weight[0, :2] = 0  # pruned
    mixed = torch.randn(8, 3, generator=generator) @ torch.randn(3, 64 * 8 * 8, generator=generator)
    x = mixed.view(8, 64, 8, 8).transpose(0, 1) + 0.1 * torch.randn(64, 8, 8, 8, generator=generator)
    x[:, 7] = 0  # a channel that no image has
    rough = x + 0.2 * torch.randn(x.shape, generator=generator) * (x != 0)  # of earlier layers, which are rounded
    scale = int8.best_scale(layer.weight, 3).view(-1, 1, 1, 1)
    nearest = int8.rounded(layer.weight.detach(), scale, 3).float()
    positions = torch.arange(64 * 16)
    with torch.no_grad():
        outputs = rounding._outputs_at(layer, layer(x), positions)
        found, share = rounding.compensated(
            layer, nearest, scale, 3, rounding._patches_at(layer, networks.padded(layer, rough, 1), positions), outputs
        )
        integers = found.reshape(nearest.shape)
        assert integers.min() >= -4 and integers.max() <= 3 and torch.equal(integers, integers.round())
        assert not integers[0, :2].any()
        errors = [
            (nn.functional.conv2d(rough, of * scale, layer.bias, 2, 1, 1, groups) - layer(x)).square().sum()
            for of in (integers, nearest)
        ]
    assert float(errors[0] / errors[1]) == pytest.approx(share, rel=1e-3) and share < 0.7


@pytest.mark.parametrize("target", ["classifier", "jem"])
def test_gptq_makes_files_of_as_many_bits(compress: Any, target: str, capsys: Any) -> None:  # noqa: F811
    changes = {"quantize.weight_bits": 3, **UNTRAINED}
    nearest, found = (
        compress("quantize", target, {**changes, "quantize.rounding": how}) for how in ("nearest", "gptq")
    )
    assert "rounding so leaves" in capsys.readouterr().out
    pairs = [(one, found.tensors[name]) for name, one in nearest.tensors.items() if isinstance(one, Int8)]
    assert all(one.bits == other.bits == 3 and torch.equal(one.scale, other.scale) for one, other in pairs)
    assert any(not torch.equal(one.values, other.values) for one, other in pairs)


@pytest.mark.parametrize("how", ["learned", "gptq"])
def test_rounding_answers_to_inputs_that_are_rounded_themselves(
    compress: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """Those of three bits have at most eight values, zeros around them included."""
    counts: list[int] = []
    choose = getattr(rounding, "learned" if how == "learned" else "compensated")

    def counted(layer: Any, nearest: Any, scale: Any, bits: int, patches: torch.Tensor, *rest: Any) -> Any:
        counts.append(len(patches.unique()))
        return choose(layer, nearest, scale, bits, patches, *rest)

    monkeypatch.setattr(rounding, choose.__name__, counted)
    changes = {"quantize.activation_bits": 3, "quantize.weight_bits": 4, "quantize.rounding": how}
    compress("quantize", "classifier", {**changes, "quantize.finetune.epochs": 0, "quantize.retrain.epochs": 0})
    assert counts and max(counts) <= 8


def test_rounding_is_learned_without_training(small_values: Any) -> None:
    with pytest.raises(ParamsError, match=r"rounding = learned is for networks that are not trained; set finetune"):
        params.check(with_changes(small_values, {"quantize.rounding": "learned"}))


PICTURES = torch.rand(120, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def taken(body: nn.Module, head: str | None = None) -> networks.Foreign:
    """A module as a network here."""
    spec = networks.Spec("own.py:Net", channels=3, image_size=8, outputs=3, head=head, given=networks.Given(body))
    network = networks.Foreign(spec, body).eval()
    network.find_layers()
    return network


def rounded_graph(network: networks.Network, bits: int, activation_bits: int) -> tuple[Any, Any]:
    """The calibrated graph, and the model as it is stored."""
    layers = networks.coded_layers(network)
    of_layers, scales = dict.fromkeys(layers, bits), {n: int8.best_scale(w.weight, bits) for n, w in layers.items()}
    graph = quantizing._calibrated(network, scales, PICTURES, of_layers, activation_bits)
    target = "ebm" if network.spec.head else "classifier"
    return graph, quantizing._encoded(quantizing._Rounded(network, scales, of_layers, activation_bits, graph), target)


@pytest.mark.parametrize(("channels", "side"), [(64, 5), (64, 3), (48, 7), (192, 3)])
def test_ranges_are_chosen_from_all_places(channels: int, side: int) -> None:
    """The first place of each map is small: a range from it alone would cut off all else."""
    x = torch.rand(250, channels, side, side, generator=torch.Generator().manual_seed(0))
    x[:, :, 0] *= 0.01
    x[:, :, :, 0] *= 0.01
    observer = int8.FewLevels(dtype=torch.uint8, quant_min=0, quant_max=15)
    observer(x)
    scale, _ = observer.calculate_qparams()
    assert 0.7 / 15 < float(scale) < 1.1 / 15


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sign", [1, -1])
def test_integers_of_channels_with_a_negative_norm_stay_what_was_trained(sign: int, bits: int) -> None:
    """Folding such a norm turns them round, and there is one more below 0 than above."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.SiLU(), nn.Flatten(), nn.Linear(576, 3)).train()
    for _ in range(20):
        body(PICTURES)
    with torch.no_grad():
        body[1].weight.mul_(sign)  # type: ignore[operator]
    network = taken(body)
    folded = networks.fold_batchnorm(networks.duplicate(network), PICTURES[:8])
    layers = networks.coded_layers(network)
    scales = {name: int8.best_scale(layer.weight, bits) for name, layer in layers.items()}
    negative = quantizing._negated(network, folded, scales)
    with rounded_weights(network, scales, dict.fromkeys(layers, bits), negative), torch.no_grad():
        trained = network(PICTURES)
    folded, scales = quantizing._folded(network, scales, PICTURES[:8])
    with torch.no_grad():
        for name, layer in networks.coded_layers(folded).items():
            along = scales[name].view(-1, *[1] * (layer.weight.ndim - 1))
            layer.weight.copy_(int8.rounded(layer.weight, scales[name], bits) * along)
        torch.testing.assert_close(folded(PICTURES), trained, rtol=1e-4, atol=1e-4)


class Strided(nn.Module):
    """Convolutions whose pullbacks are no convolutions, and a weight that is used transposed as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 32, 4, stride=2, padding=1)
        self.b = nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32)
        self.c, self.fc = nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.c(nn.functional.silu(self.b(nn.functional.silu(self.a(x)))).mean((2, 3))))
        return self.fc(nn.functional.linear(x, self.c.weight.t()))


def test_a_weight_is_rounded_wherever_it_is_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph, model = rounded_graph(taken(Strided(), "mean"), 2, 8)
    with torch.no_grad():
        for in_memory, stored in zip(graph(PICTURES), int8.restore(model, gradient=True)(PICTURES), strict=True):
            torch.testing.assert_close(in_memory, stored)
    to_onnx.export(model, HEADER, tmp_path / "m.onnx")
    wide = [w for w in onnx.load(tmp_path / "m.onnx").graph.initializer if w.data_type == 1 and max([*w.dims, 0]) > 100]
    assert not wide  # no weight is there as floats, beside its bits


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_biases_are_not_rounded_away_by_kernels(bits: int, tmp_path: Path) -> None:
    """They are so many steps of the input's scale times the weight's, which are large where there are few levels."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    )
    _, model = rounded_graph(taken(body), bits, bits)
    to_onnx.export(model, {"provenance": {}}, tmp_path / "m.onnx")
    with torch.no_grad():
        wanted = int8.restore(model, outputs=True)(PICTURES)
    (found,) = session_of(tmp_path / "m.onnx").run(None, {"images": PICTURES.numpy()})
    assert (
        float((torch.from_numpy(found) - wanted).norm() / (wanted - wanted.mean(0)).norm()) < 0.06
    )  # else 0.08 to 0.4


def test_what_two_layers_take_in_is_rounded_if_it_is_for_one() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c((self.a(x) + self.b(x)).mean((2, 3)))

    graph, _ = rounded_graph(taken(Twins()), 8, 2)
    for layer in ("body.a", "body.b"):
        int8.round_only(graph, [layer])
        (rounding,) = {p.activations[f"{p.layer}:in"] for p in int8.places(graph) if p.layer in ("body.a", "body.b")}
        assert rounding.fake_quant_enabled[0] == 1


class Standardized(nn.Conv2d):
    """Its weight is computed, so that it has no int8 form."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def test_layers_that_stay_float_take_no_bits_and_a_budget_may_leave_none() -> None:
    images = ((PICTURES + 1) * 127.5).byte()
    given: dict[str, Any] = {"images": images, "labels": torch.arange(120) % 3, "accept_chance": True, "device": "cpu"}
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.SiLU(), Standardized(16, 64, 3), nn.Flatten(), nn.Linear(1024, 3))
    small = lowenergy.compress(body, "quantize", weight_bits=3, allocation="sensitivity", **given)
    coded = [part for part in small.model.tensors.values() if isinstance(part, Int8)]
    assert len(coded) == 2
    assert sum(c.bits * c.values.numel() for c in coded) <= 3 * sum(c.values.numel() for c in coded)
    with pytest.raises(UserError, match="no layer of classifier is left to quantize within it; give more"):
        lowenergy.compress(body, "quantize", weight_bits=2, loss_budget=1e-15, **given)


def test_zeros_among_integers_are_counted_as_the_rules_say() -> None:
    """A mask of one bit each, and the bits of those that are not 0, where that is less."""
    values = torch.zeros(8, 100, dtype=torch.int8)
    values[:, :25] = 3
    sparse, full = (Int8(v, torch.ones(8), 4) for v in (values, values + 1))
    model = Model("classifier", networks.Spec("own.py:Net", channels=3, image_size=8, outputs=3), {"w": sparse})
    assert micronet._bits(model, sparse) == 800 + 200 * 4 + 8 * 32
    assert micronet._bits(model, full) == 800 * 4 + 8 * 32


@pytest.mark.parametrize("bits", [2, 3])
def test_rare_large_weights_do_not_decide_the_scale(bits: int) -> None:
    weight = torch.distributions.StudentT(3.0).sample((4, 4608))  # type: ignore[no-untyped-call]

    def error(scale: torch.Tensor) -> float:
        return float((int8.rounded(weight, scale, bits) * scale[:, None] - weight).square().sum())

    best = min(error(weight.abs().amax(1) * share / (2 ** (bits - 1) - 1)) for share in torch.linspace(0.02, 1, 200))
    assert error(int8.best_scale(weight, bits)) < 1.1 * best
