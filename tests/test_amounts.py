"""Pruning takes away what was asked for, or says why not; of whatever network."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp
from conftest import ROOT, with_changes
from torch import Tensor, nn
from torch.nn import functional as F

from lowenergy import data, networks, params, targets, training
from lowenergy.base.errors import UserError
from lowenergy.compression import channels, prune
from lowenergy.compression.prune import pruning
from lowenergy.scoring import report_card
from lowenergy.storage import artifact
from lowenergy.training import Run

CHANNELS = {"kind": "structured", "finetune.epochs": 0, "retrain.epochs": 0, "scan_images": 0}
WEIGHTS = {**CHANNELS, "kind": "unstructured"}
TWO_OF_FOUR = {**CHANNELS, "kind": "2of4", "amount": 0.5, "allocation": "uniform"}
AMOUNTS = (0.05, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)


@cache
def _network(name: str) -> networks.Network:
    spec = networks.Spec(f"{ROOT}/tests/own_networks.py:{name}", channels=1, image_size=8, outputs=10, arguments={})
    if name == "resnet8":
        spec = networks.Spec("resnet8", 16, "3x3", "relu", "batch", 1, 8, 10)
    made, generator = networks.build(spec, seed=0).eval(), torch.Generator().manual_seed(0)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(generator=generator)
            for values in (module.running_var, module.weight.data):
                values.uniform_(0.5, 1.5, generator=generator)
    if isinstance(made, networks.Foreign):
        made.find_layers()
        pruning.unbearable(made)
    return made


def network(name: str) -> networks.Network:
    """One of own_networks.py, or the zoo's resnet8, with norms that have statistics of their own."""
    return copy.deepcopy(_network(name))


def images(count: int = 16) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def section(small_values: Any) -> Callable[[dict[str, Any]], prune.Params]:
    def make(changes: dict[str, Any]) -> prune.Params:
        return params.check(with_changes(small_values, {f"prune.{key}": v for key, v in changes.items()})).prune

    return make


@pytest.fixture
def pruned(small: params.Params, section: Any, splits: data.Splits, tmp_path: Path) -> Any:
    """(name, changes) -> the network that the file holds, and what its header says of pruning."""

    def make(name: str, changes: dict[str, Any]) -> tuple[networks.Network, dict[str, Any]]:
        source, run = network(name), Run("classifier-prune", 0, [], root=tmp_path)
        objective = targets.get("classifier").objective(copy.deepcopy(source), splits, small.classifier, run)
        model = prune.compress(source, "classifier", objective, section(changes), run)
        artifact.save(model, tmp_path / "model", run.provenance)
        read, header = artifact.read(tmp_path / "model", trust=["own_networks.py"])
        return read.build(), header["provenance"]["pruned"]

    return make


def widths(net: nn.Module) -> dict[str, int]:
    """Outputs of each layer, but for those of the last one."""
    found = {name.removeprefix("body."): m for name, m in net.named_modules() if isinstance(m, channels.Layer)}
    shapes = {name: m.weight.shape for name, m in found.items() if name != "fc"}
    return {name: shape[1 if isinstance(found[name], nn.ConvTranspose2d) else 0] for name, shape in shapes.items()}


# -- how much ---------------------------------------------------------------------------------------------------------

IN_SETS = {"Gated": 8, "resnet8": 3, "Shortcut": 2, "Scaled": 3}  # outputs of layers that can only go together


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        *((name, {}) for name in ("resnet8", "Few", "Shortcut", "Gated", "Scaled", "Dense", "PlainUp", "Linears")),
        *((name, {"allocation": "uniform"}) for name in ("resnet8", "Few", "Gated", "Scaled")),
        *((name, {"rounds": 3}) for name in ("resnet8", "Few")),
        ("Shortcut", {"importance": "l1"}),
    ],
    ids=str,
)
def test_a_larger_share_of_channels_leaves_no_more(section: Any, name: str, ways: dict[str, Any]) -> None:
    """Every layer is at its tenth in the end: of 7 channels one is left, and no layer is left whole."""
    before, counts, shares = widths(network(name)), [], []
    for amount in AMOUNTS:
        p = section({**CHANNELS, **ways, "amount": amount})
        net = network(name)
        source = pruning.Sizes.of(net, p)
        share = dict.fromkeys(pruning.prunable(net, p), amount) if ways.get("allocation") else amount
        for done in range(1, p.rounds + 1):
            pruning.cut(net, share, p, source, done)
        left = widths(pruning.loads_again(net, "classifier")[1])
        counts.append(sum(w.numel() for w in net.parameters()))
        shares.append(1 - sum(left.values()) / sum(before.values()))
        assert all(left[layer] >= max(1, int(0.1 * before[layer] + 1e-9)) for layer in before)
        if amount >= 0.95:
            assert all(
                left[layer] <= max(0.1 * before[layer], IN_SETS[name] if name == "Gated" else 1) for layer in left
            )
        if amount <= 0.7 and "allocation" not in ways:  # of which each layer rounds by itself
            assert shares[-1] == pytest.approx(amount, abs=0.51 * IN_SETS.get(name, 1) / sum(before.values()))
    assert counts == sorted(counts, reverse=True) or "rounds" in ways  # where later rounds choose anew
    assert counts[-1] == counts[-2] <= counts[-3]


def test_as_many_multiply_accumulates_go_as_asked_for_or_the_most_that_can_is_said(section: Any) -> None:
    left = []
    for amount in (0.05, 0.5, 0.9, 0.95):
        p, net = section({**CHANNELS, "amount_of": "macs", "amount": amount}), network("Few")
        source = pruning.Sizes.of(net, p)
        pruning.check(net, p)
        pruning.cut(net, amount, p, source)
        left.append(networks.macs(net) / source.macs)
        assert left[-1] <= 1 - amount
    assert left == sorted(left, reverse=True)
    with pytest.raises(
        UserError, match=r"amount = 0.97: more multiply-accumulates than can go: .*; give at most 0.96$"
    ):
        pruning.check(network("Few"), section({**CHANNELS, "amount_of": "macs", "amount": 0.97}))


def test_large_sets_go_too_if_multiply_accumulates_are_what_is_asked_for(section: Any) -> None:
    """The least important channels go three by three; those that go one by one, and cost less, all matter."""
    p, net = section({**CHANNELS, "amount_of": "macs", "amount": 0.3, "importance": "l1"}), network("Scaled")
    source = pruning.Sizes.of(net, p)
    large = max(channels.ChannelGraph(net).groups()[0], key=lambda group: max(group.costs))
    with torch.no_grad():
        net.get_submodule(large.root).weight.mul_(1e-3)  # type: ignore[operator, union-attr]
    pruning.cut(net, 0.3, p, source)
    assert networks.macs(net) <= 0.7 * source.macs


def test_amounts_are_counted_on_the_file_printed_and_in_the_card(
    pruned: Any, splits: data.Splits, small: params.Params, tmp_path: Path, capsys: Any
) -> None:
    whole = network("resnet8")
    before = widths(whole)
    after, said = pruned("resnet8", {**CHANNELS, "amount": 0.5})
    assert said["asked"] == {"channels": 0.5}
    matrices = [sum(w.numel() for w in net.parameters() if w.ndim > 1) for net in (whole, after)]
    assert said["reached"] == {
        "weights": round(1 - matrices[1] / matrices[0], 4),
        "channels": round(1 - sum(widths(after).values()) / sum(before.values()), 4),
        "macs": round(1 - networks.macs(after) / networks.macs(whole), 4),
    }
    assert "asked for 50.0% of the channels; gone: 7" in capsys.readouterr().out
    after, said = pruned("resnet8", {**WEIGHTS, "amount": 0.8})
    zeros = sum(int((layer.weight == 0).sum()) for layer in networks.coded_layers(after).values())
    assert said == {
        "asked": {"weights": 0.8},
        "reached": {"weights": round(zeros / matrices[0], 4), "channels": 0.0, "macs": 0.0},
    }
    out = capsys.readouterr().out
    assert "asked for 80.0% of the weights; gone: 80.0% of the weights" in out and "short" not in out
    card = report_card.measure(
        path=str(tmp_path / "model"),
        teacher=str(tmp_path / "model"),
        said=str(tmp_path / "said"),
        scorer="",
        reference="",
        splits=splits,
        p=small.classifier.evaluate,
        seed=0,
        plots=tmp_path,
    )
    assert card["pruned"] == said


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("Few", {**CHANNELS, "amount": 0.95}, "body.a, body.b, body.c: a tenth stays"),
        ("Few", {**CHANNELS, "amount": 0.05, "allocation": "uniform"}, "of 7 channels none is as little as that"),
        ("Attentive", {**CHANNELS, "amount": 0.5}, "body.qkv: it does not run with fewer"),
        ("Up", {**CHANNELS, "amount": 0.5}, "body.up: Torch-Pruning does not know what goes with them"),
        ("Frozen", {**CHANNELS, "amount": 0.5}, "body.a: it is called without gradients"),
        ("TwoOutputs", {**CHANNELS, "amount": 0.9}, "body.few: they go together with those of body.fc"),
        ("PlainUp", {**WEIGHTS, "amount": 0.5}, "body.up.weight: of no layer that is called by itself"),
        ("Few", TWO_OF_FOUR, "body.a: 1 inputs are no multiple of four; body.b, body.c: 7 inputs"),
    ],
)
def test_what_falls_short_is_explained_layer_by_layer(
    pruned: Any, capsys: Any, name: str, changes: dict[str, Any], why: str
) -> None:
    _, said = pruned(name, changes)
    (what, asked), *_ = said["asked"].items()
    assert said["reached"][what] < 0.9 * asked
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "that is short, because of" in line]
    assert why in line


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Linears", {**WEIGHTS, "scope": "conv"}, "prune.scope = conv: .*Linears has no convolution; give global"),
        ("Linears", {**TWO_OF_FOUR, "scope": "conv"}, "prune.scope = conv: .*Linears has no convolution; give global"),
        ("Linears", {**CHANNELS, "scope": "conv"}, "no channels of .*Linears can go: scope conv has none but"),
        ("OneLayer", CHANNELS, "no channels of .*OneLayer can go: scope global has none but the outputs"),
        ("Odd", TWO_OF_FOUR, "prune.kind = 2of4: no layer of .*Odd has a multiple of four inputs; give unstructured"),
    ],
)
def test_nothing_to_prune_is_one_line(pruned: Any, name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        pruned(name, changes)
    assert len(str(error.value).splitlines()) == 1


# -- of which network -------------------------------------------------------------------------------------------------

STAY = {  # layers whose channels cannot go
    "Up": {"b", "up"},
    "Shuffled": {"stem", "outer"},
    "Attentive": {"qkv"},
    "Tied": {"a", "b", "c"},
    "Frozen": {"a"},
    "TwoOutputs": {"few"},
    "Fours": {"b"},
}


@pytest.mark.parametrize(
    "name",
    ["Up", "PlainUp", "Shuffled", "Dense", "Gated", "Scaled", "Attentive", "Twice", "Tied", "Frozen", "AllFrozen"]
    + ["Linears", "Shortcut", "TwoOutputs", "Fours"],
)
def test_channels_of_any_network_go_but_for_those_that_cannot(section: Any, name: str) -> None:
    """Half of what can go has gone, and what nothing listens to leaves the outputs as they were."""
    net = network(name)
    wanted = {name: w.requires_grad for name, w in net.named_parameters()}
    stays = {layer.removeprefix("body.") for layer in pruning.unbearable(net)}
    assert stays == STAY.get(name, set())
    before, p = widths(net), section({**CHANNELS, "amount": 0.5})
    pruning.cut(net, 0.5, p, pruning.Sizes.of(net, p))
    after = widths(pruning.loads_again(net, "classifier")[1])
    assert all(after[layer] == before[layer] for layer in stays)
    can = before.keys() - stays
    assert sum(after[n] for n in can) == pytest.approx(0.5 * sum(before[n] for n in can), abs=4)
    assert {name: w.requires_grad for name, w in net.named_parameters()} == wanted, "frozen weights stay so"
    assert net(images()).shape == (16, 10)


@pytest.mark.parametrize("name", ["Shuffled", "Dense", "Gated", "Scaled", "PlainUp", "Twice", "Shortcut", "resnet8"])
def test_channels_that_nothing_reads_leave_the_answers_as_they_are(section: Any, name: str) -> None:
    """Whatever shuffles, splits and joins them on the way: no other channel is taken for one of those that went."""
    net = network(name)
    graph, generator = channels.ChannelGraph(net), torch.Generator().manual_seed(0)
    groups, _ = pruning.can_go(graph, section(CHANNELS))
    twins = {group.root: graph.twin(group, generator) for group in groups}
    with torch.no_grad():
        answers = net(images())
        for group in groups:
            graph.remove(group, twins[group.root])
        torch.testing.assert_close(net(images()), answers, rtol=1e-4, atol=1e-5)
    assert all(twins.values())


@pytest.mark.parametrize("name", ["Shuffled", "Dense", "Shortcut"])
def test_a_group_is_found_without_comparing_all_with_all(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Which takes hours where thousands of operations go together, as in timm's efficientvit_m0."""

    def groups() -> list[list[tuple[str, str, list[int]]]]:
        graph = channels.ChannelGraph(network(name))
        of_roots = (graph._together(root, range(4)) for root in graph.layers)
        return [[(type(m).__name__, side, c) for m, side, c, _ in graph._held(group)] for group in of_roots]

    compare, compared = tp.dependency.Group.has_pruning_op, []

    def counted(self: Any, dep: Any, idxs: Any) -> bool:
        compared.append(len(self))
        return bool(compare(self, dep, idxs))

    monkeypatch.setattr(tp.dependency.Group, "has_pruning_op", counted)
    ours = groups()
    assert not compared
    monkeypatch.setattr(channels, "_as_it_is", lambda operations: nullcontext())
    assert ours == groups() and compared


def test_the_least_important_channel_is_missed_least(section: Any) -> None:
    whole, p = network("Shortcut"), section({**CHANNELS, "amount": 0.04})
    cut = network("Shortcut")
    pruning.cut(cut, p.amount, p, pruning.Sizes.of(cut, p))
    assert widths(cut) != widths(whole)
    assert F.cosine_similarity(cut(images()), whole(images()), dim=1).min() > 0.95


# -- zeros ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Tied", "Twice", "Frozen", "AllFrozen", "PlainUp"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_zeros_hold_through_all_training(pruned: Any, name: str, rounds: int) -> None:
    """Of weights that layers share, that are used twice, or that learn nothing."""
    whole = network(name)
    training_too = {"finetune.epochs": 2, "retrain.epochs": 1, "rounds": rounds, "amount": 0.6}
    after, _ = pruned(name, {**WEIGHTS, **training_too})
    weights = {id(layer.weight): layer.weight for layer in networks.coded_layers(after).values()}
    zeros = [int((w == 0).sum()) for w in weights.values()]
    assert sum(zeros) == pytest.approx(0.6 * sum(w.numel() for w in weights.values()), abs=2)
    moved = {n: not torch.equal(w[w != 0], whole.get_parameter(n)[w != 0]) for n, w in _kept(after).items()}
    learns = {n: whole.get_parameter(n).requires_grad for n in moved}
    assert moved == learns, "the others are trained"


def _kept(net: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.weight": layer.weight for name, layer in networks.coded_layers(net).items()}


def test_a_network_that_fills_its_zeros_again_is_told_of(pruned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "hold_zeros", lambda network: None)
    with pytest.raises(UserError, match=r"body.a, .* did not keep their zeros in training"):
        pruned("Few", {**WEIGHTS, "finetune.epochs": 1})
