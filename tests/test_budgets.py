"""A file has at most as many bytes as were asked for: as it is saved, after training, with its header."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import with_changes
from test_amounts import images, network
from torch import nn

from lowenergy import data, networks, params, targets
from lowenergy.base.errors import UserError
from lowenergy.compression.pq import activations
from lowenergy.compression.pq import network as pq
from lowenergy.compression.pq.codebooks import input_moments
from lowenergy.searching.goal import Goal
from lowenergy.storage import artifact
from lowenergy.storage.coded import coded_weights
from lowenergy.storage.encodings import Coded
from lowenergy.training import Run

PROVENANCE = {
    "stage": "pq",
    "data": "digits, 8x8, seed 0",
    "seed": 0,
    "source": {"branch": "teacher", "sha256": "0123456789abcdef" * 4},
}
TRAINED = {"finetune.epochs": 2, "finetune.lr": 0.02, "retrain.epochs": 1, "allocation": "uniform", "codewords": 256}


@pytest.fixture
def coded(small_values: Any, splits: data.Splits, tmp_path: Path) -> Callable[..., Path]:
    """(network or its name, changes) -> the file, as the stage writes it."""

    def make(of: str | networks.Network, changes: dict[str, Any]) -> Path:
        p = params.check(with_changes(small_values, {f"pq.{key}": value for key, value in changes.items()}))
        run = Run("classifier-pq", 0, [], root=tmp_path)
        run.provenance |= PROVENANCE
        source = network(of) if isinstance(of, str) else of
        objective = targets.get("classifier").objective(copy.deepcopy(source), splits, p.classifier, run)
        model = pq.compress(source, "classifier", objective, p.pq, run)
        artifact.save(model, tmp_path / "model", run.provenance)
        return tmp_path / "model"

    return make


def read(path: Path) -> artifact.Model:
    return artifact.read(path, trust=["own_networks.py"])[0]


@pytest.mark.parametrize(
    ("name", "budget"),
    [("resnet8", 9_000), ("resnet8", 16_000), *(("Few", budget) for budget in (2_500, 2_600, 2_777, 2_900, 3_000))],
)
def test_no_file_is_larger_than_its_budget_nor_much_smaller(coded: Any, name: str, budget: int) -> None:
    size = coded(name, {**TRAINED, "budget_bytes": budget}).stat().st_size
    assert 0.95 * budget < size <= budget


def test_codes_are_chosen_again_where_training_has_made_the_file_too_large(
    coded: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As few as will do: what training has made of the network stays nearly the same."""
    fit, keep, answers = pq.fit_budget, pq.keep_budget, []
    with monkeypatch.context() as patch:
        patch.setattr(pq, "fit_budget", lambda network, target, p, run: fit(
            network, target, p.model_copy(update={"budget_bytes": round(1.05 * p.budget_bytes)}), run
        ))  # fmt: skip

        def keep_and_look(net: networks.Network, *rest: Any) -> None:
            codes = [code.codes.clone() for *_, code in coded_weights(net)]
            with torch.no_grad():
                answers.append(net(images()))
                keep(net, *rest)
                answers.append(net(images()))
            changed = [
                (a != code.codes).float().mean() for a, (*_, code) in zip(codes, coded_weights(net), strict=True)
            ]
            assert max(changed) > 0 and sum(changed) / len(changed) < 0.3

        patch.setattr(pq, "keep_budget", keep_and_look)
        size = coded("Few", {**TRAINED, "budget_bytes": 2_700}).stat().st_size
    assert 0.97 * 2_700 < size <= 2_700
    assert "training had made it larger; some codes chosen again" in capsys.readouterr().out
    before, after = answers
    assert (after - before).norm() < 0.3 * before.norm()


def test_a_budget_below_what_one_codeword_a_layer_takes_is_refused_before_anything_is_learnt(
    coded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pq, "code_layers", lambda *_: pytest.fail("learnt"))
    with pytest.raises(
        UserError, match=r"pq.budget_bytes = 3000: the smallest file found has 6,\d\d\d bytes; give at"
    ) as error:
        coded("resnet8", {**TRAINED, "budget_bytes": 3000})
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("seed", range(8))
def test_the_smallest_budget_that_is_not_refused_is_kept(coded: Any, seed: int) -> None:
    """Whatever the weights are: the header holds digits of the answers, which take a few bytes more or fewer."""
    source, generator = network("Few"), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(10 ** (2 * torch.rand((), generator=generator) - 1))
    untrained = {**TRAINED, "finetune.epochs": 0, "retrain.epochs": 0}
    with pytest.raises(UserError) as error:
        coded(source, {**untrained, "budget_bytes": 100})
    budget = int(str(error.value).partition("give at least ")[2].partition(", as")[0].replace(",", ""))
    for changes in (untrained, *([TRAINED] if seed == 0 else [])):
        assert coded(source, {**changes, "budget_bytes": budget}).stat().st_size <= budget


def test_a_budget_foresees_what_training_makes_of_constants(coded: Any) -> None:
    """Factors of 1e-6, which float16 is too coarse for, all alike until they are trained."""
    source = network("Scaled")
    changes = {**TRAINED, "finetune.epochs": 5, "retrain.epochs": 0}
    with pytest.raises(UserError) as error:
        coded(copy.deepcopy(source), {**changes, "budget_bytes": 100})
    budget = int(str(error.value).partition("give at least ")[2].partition(", as")[0].replace(",", ""))
    assert coded(source, {**changes, "budget_bytes": budget}).stat().st_size <= budget


def test_a_search_keeps_to_the_bytes_of_the_saved_file(coded: Any) -> None:
    size = coded("Few", {**TRAINED, "budget_bytes": 4000}).stat().st_size
    figures = {"size_bytes": size, "validation": {"accuracy": 0.5}}
    assert Goal(max_bytes=size).violations(figures, figures) == [0.0]
    assert Goal(max_bytes=size - 1).violations(figures, figures)[0] > 0


# -- of which network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "Few",
        "Up",
        "PlainUp",
        "Dense",
        "Gated",
        "Scaled",
        "Attentive",
        "Twice",
        "Tied",
        "Frozen",
        "AllFrozen",
        "Linears",
    ],
)
def test_any_network_is_coded(coded: Any, name: str) -> None:
    source = network(name)
    with torch.no_grad():
        wanted = source(images(64))
    model = read(coded(copy.deepcopy(source), {"finetune.epochs": 0, "allocation": "uniform"}))
    layers = [f"{layer}.weight" for layer in list(networks.coded_layers(source))[1:]]  # the first stays
    assert [key for key in layers if not isinstance(model.tensors[key], Coded)] == []
    with torch.no_grad():
        found = model.build()(images(64))
    if not any(isinstance(m, nn.BatchNorm2d) for m in source.modules()):  # whose statistics are others now
        assert (found - wanted).norm() < 0.4 * wanted.norm()


def test_layers_of_one_weight_keep_one_codebook(coded: Any) -> None:
    model = read(coded("Tied", {"finetune.epochs": 1, "allocation": "uniform"}))
    assert isinstance(model.tensors["body.b.weight"], Coded) and "body.c.weight" not in model.tensors
    built = model.build().get_submodule("body")
    assert built.b.weight is built.c.weight  # type: ignore[union-attr]


def test_a_layer_that_is_called_twice_is_watched_at_both_calls() -> None:
    net, seen = network("Twice"), []
    layer = networks.coded_layers(net)["body.again"]
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    net(images())
    handle.remove()
    found = activations.moments_of(net, {"body.again": 9}, images(), "32-true", only=True)["body.again"]
    wanted = [input_moments(layer, networks.padded(layer, *given, 1), 9) for given in seen]
    assert len(wanted) == 2 and found.count == sum(one.count for one in wanted)
    torch.testing.assert_close(found.squares, wanted[0].squares + wanted[1].squares)


def weight_of(net: networks.Network) -> torch.Tensor:
    return list(networks.coded_layers(net).values())[1].weight.detach()


@pytest.mark.parametrize("what", ["zeros", "one value", "an input that is always 0", "one image"])
@pytest.mark.parametrize("name", ["Few", "Gated"])
def test_layers_with_nothing_to_tell_are_coded(coded: Any, name: str, what: str) -> None:
    source, changes = network(name), {"finetune.epochs": 0, "allocation": "uniform"}
    if what == "zeros":
        weight_of(source).zero_()
    elif what == "one value":
        weight_of(source).fill_(0.1)
    elif what == "one image":
        changes["calibration_images"] = 1
    else:
        first = next(iter(networks.coded_layers(source).values()))
        first.weight.data.zero_()
        first.bias.data.zero_()  # type: ignore[union-attr]
    with torch.no_grad():
        wanted = source(images())
        found = read(coded(copy.deepcopy(source), changes)).build()(images())
    assert (found - wanted).norm() < 0.6 * wanted.norm()


def test_numbers_beyond_float16_are_stored_as_they_are(coded: Any) -> None:
    """In float16 they would be infinite, or 0."""
    source = network("Few")
    weight_of(source).mul_(1e6)
    source.get_parameter("body.a.bias").data.mul_(1e-7)
    with torch.no_grad():
        wanted = source(images())
        found = read(coded(copy.deepcopy(source), {"finetune.epochs": 0, "allocation": "uniform"})).build()
        assert (found(images()) - wanted).norm() < 0.5 * wanted.norm()
    assert torch.equal(found.get_parameter("body.a.bias"), source.get_parameter("body.a.bias"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "the weight of body.b is not finite"),
        (float("inf"), "the weight of body.b is not finite"),
        (1e25, "body.c sees numbers that are not finite, or too large to be squared"),
    ],
)
def test_what_is_not_finite_is_named_in_one_line(coded: Any, value: float, message: str) -> None:
    source = network("Few")
    weight_of(source)[0, 0, 0, 0] = value
    with pytest.raises(UserError, match=message) as error:
        coded(source, {"output_weights": False})
    assert len(str(error.value).splitlines()) == 1
