"""Codes that are chosen anew while a coded network is finetuned."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import with_changes
from test_amounts import images, network
from torch import Tensor, nn

from lowenergy import data, networks, params, targets, training
from lowenergy.base import checkpoint
from lowenergy.base.errors import UserError
from lowenergy.compression.pq import moving
from lowenergy.compression.pq import network as pq
from lowenergy.compression.pq.codebooks import Codebook, Metric, bits, blocks_of, by_position
from lowenergy.compression.pq.layers import PricedCode, priced_codes
from lowenergy.storage import artifact
from lowenergy.storage.coded import CodedWeight, coded_weights
from lowenergy.training import Run

MOVING = {"allocation": "uniform", "reassign_every": 2, "finetune.epochs": 2, "finetune.lr": 0.01, "codewords": 8}
NAMES = ("Few", "Gated", "Tied", "Twice", "AllFrozen")


@pytest.fixture
def setting(small_values: Any, splits: data.Splits, tmp_path: Path) -> Any:
    """(network's name, changes) -> what pq.compress takes."""

    def make(name: str, changes: dict[str, Any], root: Path = tmp_path) -> tuple[Any, ...]:
        p = params.check(with_changes(small_values, {f"pq.{k}": v for k, v in changes.items()}))
        run, net = Run("classifier-pq", 0, [p.pq], root=root), network(name)
        objective = targets.get("classifier").objective(copy.deepcopy(net), splits, p.classifier, run)
        return net, "classifier", objective, p.pq, run

    return make


def codes_of(net: networks.Network) -> list[Tensor]:
    return [code.codes.clone() for *_, code in coded_weights(net)]


@pytest.mark.parametrize("groups", [1, 2])
def test_each_block_gets_the_codeword_that_is_best_for_its_weight_now(generator: torch.Generator, groups: int) -> None:
    """Σ (w - c)ᵀ G (w - c) + price · bits(c), by brute force over all codewords; what it misses is then w - c."""
    weight = torch.randn(6, 4, 3, 3, generator=generator)
    blocks = blocks_of(weight, 9, groups)
    codewords = torch.randn(5, 9, generator=generator)
    codes = torch.randint(5, blocks.shape[:2], generator=generator)
    roots = torch.randn(len(blocks), 9, 9, generator=generator)
    metric = Metric(roots @ roots.mT, torch.rand(blocks.shape[:2], generator=generator) + 0.1)
    code = PricedCode(Codebook(codewords, codes, 0, 0), weight, metric, rate=0.0, groups=groups)
    code.scale, penalty = 0.1, 3 * bits(codes, 5)
    code.missed = nn.Parameter(10 * torch.randn(weight.shape, generator=generator))
    wanted = CodedWeight.forward(code, codewords) + 0.1 * code.missed.detach()
    factors = metric.factors()
    off = blocks_of(wanted, 9, groups)[:, :, None] - codewords
    errors = torch.einsum("pokd,pde,poke->pok", off, factors @ factors.mT, off) * metric.weights[..., None]
    least = (errors + penalty).min(2).indices
    assert not torch.equal(least, codes)
    moving.choose(code, codewords, factors, penalty)
    assert torch.equal(by_position(code.codes.long(), 6, groups), least)
    missed = wanted - CodedWeight.forward(code, codewords)
    torch.testing.assert_close(0.1 * code.missed.detach(), missed, rtol=1e-4, atol=1e-5)


def test_the_network_computes_with_codewords_and_blocks_get_their_own_gradient(setting: Any) -> None:
    net, _, objective, p, run = setting("Few", MOVING)
    pq.code_layers(net, objective, images(), None, pq.shapes_of(net, objective, images(), None, p, run), 0.0, p, run)
    before = net(images())
    with moving.codes(net, p, run, lambda: None):
        assert torch.equal(net(images()), before)
        net(images()).square().sum().backward()
        for _, layer, codebook, code in coded_weights(net):
            assert isinstance(code, PricedCode) and code.missed is not None and code.missed.grad is not None
            rows = blocks_of(code.missed.grad / code.scale, codebook.shape[1]).transpose(0, 1).flatten(0, 1)
            summed = torch.zeros_like(codebook).index_add_(0, code.codes.long(), rows)
            torch.testing.assert_close(codebook.grad, summed, rtol=1e-3, atol=1e-4)
            assert layer.weight.shape == code.missed.shape
    assert not [name for name, _ in net.named_parameters() if name.endswith("missed")]


@pytest.mark.parametrize("name", NAMES)
def test_any_network_keeps_its_function_and_its_frozen_weights(setting: Any, name: str) -> None:
    source = network(name)
    net, target, objective, p, run = setting(name, {**MOVING, "codewords": 64, "finetune.lr": 0.001})
    model = pq.compress(net, target, objective, p, run)
    artifact.save(model, run.checkpoints.parent / "model", run.provenance)
    with torch.no_grad():
        wanted, found = source(images(64)), model.build()(images(64))
    norms = any(isinstance(m, nn.BatchNorm2d) for m in source.modules())  # whose statistics are others now
    assert found.isfinite().all() and (norms or (found - wanted).norm() < 0.4 * wanted.norm())


def test_codes_move_until_they_are_held(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net, target, objective, p, run = setting("Few", MOVING)
    first: list[list[Tensor]] = []
    steps_seen: list[tuple[int, int]] = []
    choose, finetune = moving.choose, training.finetune

    def counted(*given: Any) -> Tensor:
        steps_seen.append(now[0])
        return choose(*given)

    now = [(0, 0)]

    def watched(network: networks.Network, *given: Any, before_step: Any) -> None:
        first.append(codes_of(network))

        def step(at: int, of: int) -> None:
            now[0] = (at, of)
            before_step(at, of)

        finetune(network, *given, before_step=step)
        first.append(codes_of(network))

    monkeypatch.setattr(moving, "choose", counted)
    monkeypatch.setattr(training, "finetune", watched)
    pq.compress(net, target, objective, p, run)
    assert not all(map(torch.equal, *first))
    ats = sorted({at for at, _ in steps_seen})
    of = steps_seen[0][1]
    assert ats == list(range(2, int(0.8 * of) + 1, 2))


def test_a_budget_is_kept_to_while_codes_move(setting: Any, tmp_path: Path) -> None:
    budget = 2_700
    net, target, objective, p, run = setting("Few", {**MOVING, "codewords": 256, "budget_bytes": budget})
    artifact.save(pq.compress(net, target, objective, p, run), tmp_path / "model", run.provenance)
    assert 0.9 * budget < (tmp_path / "model").stat().st_size <= budget


@pytest.mark.parametrize("every", [0, 3])
def test_the_smallest_budget_holds_whatever_codes_do(setting: Any, tmp_path: Path, every: int) -> None:
    """Once trained, a file may be too large for a while; what keeps the budget at the end still comes."""
    changes = {**MOVING, "codewords": 64, "finetune.epochs": 1, "reassign_every": every}
    with pytest.raises(UserError) as error:
        pq.compress(*setting("Scaled", {**changes, "budget_bytes": 100}))
    budget = int(str(error.value).partition("give at least ")[2].partition(", as")[0].replace(",", ""))
    net, target, objective, p, run = setting("Scaled", {**changes, "budget_bytes": budget})
    artifact.save(pq.compress(net, target, objective, p, run), tmp_path / "model", run.provenance)
    assert (tmp_path / "model").stat().st_size <= budget


def test_a_training_that_goes_back_chooses_at_the_same_prices(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last choice changes prices; a step before it that comes again must not care."""
    net, _, objective, p, run = setting("Few", MOVING)
    pq.code_layers(net, objective, images(), None, pq.shapes_of(net, objective, images(), None, p, run), 1e-4, p, run)
    choose, seen = moving.choose, []

    def noted(code: PricedCode, codebook: Tensor, factors: Tensor, penalty: Tensor) -> Tensor:
        seen.append(penalty.clone())
        return choose(code, codebook, factors, penalty)

    def dearer() -> None:
        for codebook, code in priced_codes(net):
            code.assign(codebook, 5.0)

    monkeypatch.setattr(moving, "choose", noted)
    with moving.codes(net, p, run, dearer) as move:
        for step in (2, 4, 6, 8, 2):
            move(step, 10)
    count = len(seen) // 5
    assert count and all(map(torch.equal, seen[:count], seen[-count:]))
    assert not all(
        torch.equal(penalty, code.penalty) for penalty, (_, code) in zip(seen, priced_codes(net), strict=False)
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reassign_every": 45}, "pq.reassign_every = 45: more than 32 of 40 steps, so no code is chosen anew"),
        ({"finetune.epochs": 0}, "pq.finetune.epochs = 0, so no code is chosen anew"),
    ],
)
def test_codes_that_never_move_are_said(
    setting: Any, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    pq.compress(*setting("Few", {**MOVING, **changes}))
    assert said in capsys.readouterr().out


def test_a_killed_run_goes_on_with_the_same_bytes(
    setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)
    whole = artifact.to_bytes(pq.compress(*setting("Few", MOVING, tmp_path / "whole")), {})
    choose, calls = moving.choose, []

    def dies(code: PricedCode, *given: Any) -> Tensor:
        calls.append(code)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return choose(code, *given)

    monkeypatch.setattr(moving, "choose", dies)
    with pytest.raises(KeyboardInterrupt):
        pq.compress(*setting("Few", MOVING, tmp_path / "killed"))
    assert artifact.to_bytes(pq.compress(*setting("Few", MOVING, tmp_path / "killed")), {}) == whole
    assert "resumed at step" in capsys.readouterr().out


def test_priced_codes_without_moving_have_nothing_to_train_but_codewords(setting: Any) -> None:
    net, _, objective, p, run = setting("Few", {**MOVING, "reassign_every": 0})
    pq.code_layers(net, objective, images(), None, pq.shapes_of(net, objective, images(), None, p, run), 0.0, p, run)
    with moving.codes(net, p, run, lambda: None):
        assert all(code.missed is None for _, code in priced_codes(net))
