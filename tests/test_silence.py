"""A training that learns nothing is seen, tried again more slowly, and said where it stays so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import with_changes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from lowenergy import data, networks, params, targets, training
from lowenergy.energies import flow_loss, silent_flow
from lowenergy.training import Run, loop, silent_cross_entropy
from lowenergy.training.silence import silent_divergence


class Weight(nn.Module):
    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))


def warnings(run: Run) -> list[str]:
    return list(run.provenance.get("warnings", []))


def fitted(lr: float, run: Run, *, slope: float = 1.0, steps: int = 200) -> Weight:
    """Minimise w² from 1 on, by steps of w -= 2 lr w: at lr 1 its sign changes, and nothing else ever does."""
    network = Weight()
    optimizer = torch.optim.SGD(network.parameters(), lr)
    schedule = LambdaLR(optimizer, lambda step: 1.0)

    def loss(network: nn.Module, step: int) -> tuple[Tensor, Any]:
        value = slope * (network.value**2).sum() + (1 - slope) * (network.value**2).sum().detach()
        return value, {}

    training.fit(network, loss, steps=steps, optimizer=optimizer, schedule=schedule, run=run, silent={"loss": 1.0})
    return network


def test_a_rate_that_learns_nothing_is_lowered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run("toy", 0, [], root=tmp_path)
    assert abs(float(fitted(1.0, run).value)) < 1e-3  # at 0.3 it falls by 0.4 a step
    assert run.retries == 1 and not warnings(run)
    assert "learns nothing: loss is 1, 1 without any answer; back to step 0" in capsys.readouterr().out


def test_a_one_cycle_rate_is_lowered_too(tmp_path: Path) -> None:
    network = Weight()
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    schedule = OneCycleLR(optimizer, 1.0, total_steps=101, cycle_momentum=False)
    before = optimizer.param_groups[0]["lr"]
    loop._slow_down({"optimizer": optimizer, "schedule": schedule})
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(loop.CAUTION * before)
    assert max(rates) == pytest.approx(loop.CAUTION, rel=1e-3)


def test_what_never_learns_says_so_in_its_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run("toy", 0, [], root=tmp_path)
    fitted(0.1, run, slope=0.0)  # no gradient at all
    assert run.retries == loop.RETRIES
    assert warnings(run) == ["fit: learns nothing"]
    assert capsys.readouterr().out.count("learns nothing") == loop.RETRIES + 1


def test_what_learns_is_left_alone(tmp_path: Path) -> None:
    run = Run("toy", 0, [], root=tmp_path)
    fitted(0.1, run)
    assert run.retries == 0 and not warnings(run)


def test_what_has_yet_to_learn_one_thing_is_left_alone_while_it_learns_another(tmp_path: Path) -> None:
    """As a student does whose rate still rises: at 12 % of the steps it has learnt energies, and nothing of slopes."""
    run, network = Run("toy-distill", 0, [], root=tmp_path), Weight()
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    schedule = LambdaLR(optimizer, lambda step: 1.0)

    def loss(network: nn.Module, step: int) -> tuple[Tensor, Any]:
        return (network.value**2).sum(), {"slopes": 1.0 if step < 200 else 0.1}

    training.fit(network, loss, steps=1000, optimizer=optimizer, schedule=schedule, run=run, silent={"slopes": 1.0})
    assert run.retries == 0 and not warnings(run)


def test_a_network_that_dies_goes_back_to_where_it_lived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It learns, is thrown out at step 150 of 400 where the rate is high, and would stay dead."""
    run, network = Run("toy-distill", 0, [], root=tmp_path), Weight()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    schedule = LambdaLR(optimizer, lambda step: 1.0)

    def loss(network: nn.Module, step: int) -> tuple[Tensor, Any]:
        if step > 150 and optimizer.param_groups[0]["lr"] > 0.02:
            return 0 * network.value.sum() + 1.0, {}
        return (network.value**2).sum(), {}

    training.fit(network, loss, steps=400, optimizer=optimizer, schedule=schedule, run=run, silent={"loss": 1.0})
    assert "back to step 14" in capsys.readouterr().out or "back to step 15" in capsys.readouterr().out
    assert run.retries == 1 and not warnings(run) and abs(float(network.value)) < 1e-3


def test_a_dead_student_is_not_silent(
    small_values: Any, splits: data.Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last layer is frozen at nothing: energies are alike for all images, slopes are none."""
    p = params.check(with_changes(small_values, {"distill.train.epochs": 8})).distill
    small = params.check(small_values)
    spec = networks.Spec.of(small.ebm.architecture, splits.input_shape, 10, "mean", None)
    teacher, student = (networks.build(spec, seed=seed).eval() for seed in (0, 1))
    assert isinstance(student, networks.Backbone)
    nn.init.zeros_(student.fc.weight)
    student.fc.weight.requires_grad_(False)
    run = Run("ebm-distill", 0, [], root=tmp_path)
    objective = targets.get("ebm").objective(teacher, splits, small.ebm, run)
    training.finetune(student, objective, p.train, run)
    assert "fit: learns nothing" in warnings(run)


def test_finetuning_that_does_harm_says_so(small_values: Any, splits: data.Splits, tmp_path: Path) -> None:
    small = params.check(small_values)
    spec = networks.Spec.of(small.classifier.architecture, splits.input_shape, 10, None, None)
    teacher = networks.build(spec, seed=0).eval()
    run = Run("classifier-prune", 0, [], root=tmp_path)
    objective = targets.get("classifier").objective(teacher, splits, small.classifier, run)
    harmful = small.prune.finetune.model_copy(update={"lr": 3.0})
    training.finetune(networks.build(spec, seed=0), objective, harmful, run)
    assert "fit: ends worse than it began" in warnings(run)


@given(st.lists(st.integers(0, 4), min_size=5, max_size=40), st.floats(0, 0.5))
def test_no_constant_answer_beats_the_silent_cross_entropy(labels: list[int], smoothing: float) -> None:
    of = torch.tensor([*labels, 4])
    silent = silent_cross_entropy(of, smoothing)
    shares = (1 - smoothing) * of.bincount(minlength=5).double() / len(of) + smoothing / 5
    best = F.cross_entropy(shares.log().clamp_min(-30).expand(len(of), 5), of, label_smoothing=smoothing)
    assert float(best) == pytest.approx(silent, abs=1e-5)
    other = F.cross_entropy(torch.zeros(len(of), 5, dtype=torch.double), of, label_smoothing=smoothing)
    assert float(other) >= silent - 1e-9


def test_the_silent_divergence_is_that_of_the_mean_answer(generator: torch.Generator) -> None:
    logits = 3 * torch.randn(50, 6, generator=generator, dtype=torch.double)
    wanted = (logits / 2).log_softmax(1)

    def divergence(answer: Tensor) -> float:
        given = answer.log().expand(50, 6)
        return float(4 * F.kl_div(given, wanted, reduction="batchmean", log_target=True))

    mean = wanted.exp().mean(0)
    assert divergence(mean) == pytest.approx(silent_divergence(logits, 2.0))
    assert divergence(torch.full((6,), 1 / 6, dtype=torch.double)) > silent_divergence(logits, 2.0)


@pytest.mark.parametrize("rest", [0.0, 0.2])
def test_the_silent_flow_is_that_of_no_slope(rest: float, generator: torch.Generator) -> None:
    images = torch.rand(4000, 1, 4, 4, generator=generator) * 2 - 1
    flow = flow_loss(lambda x: 0 * x.flatten(1).sum(1), images, generator, rest=rest)
    assert float(flow) == pytest.approx(silent_flow(images, rest), rel=0.03)
