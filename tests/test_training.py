"""The loop: it learns, it resumes to the same bytes, it says when it diverges."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TARGETS, with_changes
from ruamel.yaml import YAML
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lowenergy import cli, data, networks, params, targets, training
from lowenergy.base import checkpoint
from lowenergy.runtimes import int8
from lowenergy.runtimes.loading import load
from lowenergy.storage import artifact
from lowenergy.targets.jem import training as of_jem
from lowenergy.training import DivergedError, Run, loop
from lowenergy.training import energies as of_energies

KILLED = """
import sys, torch
from lowenergy import data
from lowenergy import params
from lowenergy import targets
from lowenergy import training
from lowenergy.base import checkpoint
from lowenergy.params import check
from lowenergy.training import loop
from ruamel.yaml import YAML

target, root, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
p = check(YAML(typ="safe").load(open(f"{root}/params.yaml")))
splits = data.prepare(p.data, p.seed).read()
checkpoint.SECONDS = 0.0
keep = loop.keep

def keep_and_die(run, part, content):
    keep(run, part, content)
    if content["step"] >= kill_at:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)

loop.keep = keep_and_die
run = training.Run(target, p.seed, [], root=root)
targets.get(target).train(splits, getattr(p, target), run)
"""


@pytest.mark.parametrize("target", TARGETS)
def test_teachers_learn(target: str, small: params.Params, splits: data.Splits, tmp_path: Path) -> None:
    run = Run(target, 0, [], root=tmp_path)
    network = targets.get(target).train(splits, getattr(small, target), run)
    curves = tmp_path / "plots/curves" / target / "plots/metrics"
    assert (curves / "loss.tsv").exists()
    assert not network.training
    if target == "ebm":
        noise = torch.rand(200, 1, 8, 8) * 2 - 1
        energies = [network(x).mean(1).mean() for x in (data.to_float(splits.test.images), noise)]
        assert energies[0] < energies[1]
    else:
        logits = network(data.to_float(splits.test.images))
        assert (logits.argmax(1) == splits.test.labels).float().mean() > 0.3  # 0.1 is chance


@pytest.mark.slow
@pytest.mark.parametrize("target", ["classifier", "jem"])
def test_kill_and_resume_give_the_same_bytes(
    target: str, small: params.Params, splits: data.Splits, tmp_path: Path, small_values: Any, capfd: Any
) -> None:
    YAML(typ="safe").dump(small_values, tmp_path / "params.yaml")
    command = [sys.executable, "-c", KILLED, target, str(tmp_path), "20"]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    outcomes = []
    for root in (tmp_path, tmp_path / "uninterrupted"):
        run = Run(target, small.seed, [], root=root)
        network = targets.get(target).train(splits, getattr(small, target), run)
        artifact.save(artifact.dense(network, target), root / "model", {})
        curve = (root / "plots/curves" / target / "plots/metrics/loss.tsv").read_bytes()
        outcomes.append(((root / "model").read_bytes(), curve))
        training.finished(run)
        assert not run.checkpoint("fit").exists()
    assert "resumed at step 20" in capfd.readouterr().out
    assert outcomes[0] == outcomes[1]


def test_foreign_and_damaged_checkpoints_are_not_taken_up(
    small: params.Params, splits: data.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    first = Run("classifier", 0, ["these params"], root=tmp_path)
    targets.get("classifier").train(splits, small.classifier, first)
    for run, reason in ((Run("classifier", 0, ["others"], root=tmp_path), "belongs to other params"),):
        targets.get("classifier").train(splits, small.classifier, run)
        assert reason in capfd.readouterr().out
    first.checkpoint("fit").write_bytes(b"half a file")
    targets.get("classifier").train(splits, small.classifier, Run("classifier", 0, [], root=tmp_path))
    assert "is unreadable" in capfd.readouterr().out


def test_divergence_without_end_stops_with_the_last_healthy_model(
    small_values: Any, splits: data.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_energies, "RECOVERIES", 2)
    absurd = params.check(with_changes(small_values, {"ebm.train.lr": 1e9, "energies.train.gradient_norm": None}))
    run = Run("ebm", 0, [], root=tmp_path)
    with pytest.raises(DivergedError, match=r"ebm: step \d+: .* for the 3. time; .* Lower the learning rate"):
        targets.get("ebm").train(splits, absurd.ebm, run)
    assert run.recoveries == 2
    saved = tmp_path / ".checkpoints/ebm.last-healthy.safetensors"
    network = load(saved)
    assert all(weight.isfinite().all() for weight in network.parameters())
    assert cli.main(["sample", str(saved), "--n", "2", "--steps", "2", "--out", str(tmp_path / "grid.png")]) == 0


def test_the_guard_watches_energies(
    small: params.Params, splits: data.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_energies, "RECOVERIES", 0)
    monkeypatch.setattr(of_energies, "LARGEST_ENERGY", 1e-6)
    with pytest.raises(DivergedError, match=r"energy_\w+ \S+ is beyond 1e-06"):
        targets.get("ebm").train(splits, small.ebm, Run("ebm", 0, [], root=tmp_path))


def test_the_guard_watches_chains(
    small: params.Params, splits: data.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_energies, "langevin_chain", lambda of, images, *rest: [torch.zeros_like(images)])
    with pytest.raises(DivergedError, match=r"the chains have collapsed: their spread is 0 of the data's, for the 6"):
        targets.get("ebm").train(splits, small.ebm, Run("ebm", 0, [], root=tmp_path))


def slope(run: Run) -> nn.Linear:
    """Fits y = 2x by gradient descent whose first learning rates are far too high."""
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight), nn.init.zeros_(network.bias)
    optimizer = torch.optim.SGD(network.parameters(), lr=30.0)

    def loss(wrapped: nn.Module, step: int) -> Any:
        x = torch.randn(16, 1, generator=run.generator)
        return (wrapped(x) - 2 * x).square().mean(), {}

    training.fit(
        network,
        loss,
        steps=400,
        optimizer=optimizer,
        schedule=LambdaLR(optimizer, lambda step: 1.0),
        run=run,
        guard=lambda point: "the loss explodes" if point["loss"] > 1e3 else None,
        recoveries=9,
        weight_average=0.9,
    )
    return network


def test_divergence_goes_back_and_slows_down(tmp_path: Path, capfd: Any) -> None:
    run = Run("a/b", 0, [], root=tmp_path)
    network = slope(run)
    assert network.weight.item() == pytest.approx(2, abs=1e-3)
    assert 2 <= run.recoveries <= 6
    assert f"({run.recoveries} of 9 recoveries)" in capfd.readouterr().out


def test_a_checkpoint_of_a_view_is_as_small_as_the_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)
    kept = checkpoint.Checkpoint(tmp_path / "samples.pt", "these inputs", torch.device("cpu"))
    samples = torch.arange(10.0**6)
    kept.keep_now_and_then({"samples": samples[:10], "step": 3})
    assert kept.path.stat().st_size < 10_000
    content = kept.kept()
    assert content is not None and content["samples"].equal(samples[:10]) and content["step"] == 3


@pytest.mark.parametrize("kill_at", [1, 2, 20])
def test_a_run_killed_after_recovering_ends_the_same(
    kill_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = slope(Run("a/b", 0, [], root=tmp_path / "uninterrupted"))
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    keep, kept = loop.keep, []

    def keep_and_die(run: Run, part: str, content: Any) -> None:
        keep(run, part, content)
        kept.append(part)
        if len(kept) == kill_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "keep", keep_and_die)
    with pytest.raises(KeyboardInterrupt):
        slope(Run("a/b", 0, [], root=tmp_path))
    resumed = slope(Run("a/b", 0, [], root=tmp_path))
    assert torch.equal(resumed.weight, wanted.weight)
    assert torch.equal(resumed.bias, wanted.bias)


def test_dropout_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(root: Path, end: int = 20) -> nn.Module:
        run = Run("a/b", 0, [], root=root)
        network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        for weight in network.parameters():
            nn.init.constant_(weight, 0.3)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

        def loss(network: nn.Module, step: int) -> Any:
            if step == end:
                raise KeyboardInterrupt
            return (network(torch.randn(16, 4, generator=run.generator)) - 1).square().mean(), {}

        schedule = LambdaLR(optimizer, lambda step: 1.0)
        training.fit(network, loss, steps=20, optimizer=optimizer, schedule=schedule, run=run)
        return network

    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    wanted = train(tmp_path / "uninterrupted")
    torch.rand(7)  # what else draws from torch's own generator does not matter
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, end=11)
    resumed = train(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), wanted.parameters(), strict=True))


def said_on_one_thread(code: str) -> str:
    """What a program prints, in a process of its own, which may end as it likes."""
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=here, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_odd_numbers_of_channels_are_trained_on_one_thread() -> None:
    """What structured pruning leaves; with channels last, oneDNN ended the process here."""
    code = """
import torch
from lowenergy.networks import training_format
torch.manual_seed(0)
make = lambda i, o, k, s: torch.nn.Conv2d(i, o, k, s, k // 2)
network = torch.nn.Sequential(make(1, 6, 3, 1), make(6, 9, 3, 2), make(9, 13, 3, 2), make(13, 21, 1, 1))
network.to(memory_format=training_format(network))
for _ in range(5):
    network(torch.randn(64, 1, 8, 8)).square().mean().backward()
print(training_format(network))
"""
    assert "contiguous" in said_on_one_thread(code)


def test_narrow_strided_convolutions_do_not_end_the_process() -> None:
    """Of 1x1, as in the shortcuts of a narrow residual network: on AVX-512, channels last end it in the first step."""
    code = """
import torch
from lowenergy import networks
network = networks.build(networks.Spec("resnet8", 8, "3x3", "relu", "batch", 3, 56, 10, None), seed=0).train()
network.to(memory_format=networks.training_format(network))
network(torch.randn(8, 3, 56, 56)).square().mean().backward()
print(networks.training_format(network))
"""
    assert "contiguous" in said_on_one_thread(code)


def test_graphs_of_such_convolutions_are_known_too() -> None:
    for width, stem, wanted in ((8, "3x3", torch.contiguous_format), (16, "3x3", torch.channels_last)):
        network = networks.build(networks.Spec("resnet8", width, stem, "relu", "none", 3, 16, 10, None), seed=0).eval()
        layers = networks.coded_layers(network)
        scales = {name: int8.best_scale(layer.weight, 8) for name, layer in layers.items()}
        graph = int8.prepare(network, scales, dict.fromkeys(layers, 8))
        assert networks.training_format(network) == networks.training_format(graph) == wanted


@pytest.mark.parametrize(
    ("augmented", "expected"),
    [({}, 1), ({"flip": True}, 0.5), ({"crop_padding": 1}, 1 / 9)],  # the corner stays where it is in one of 3x3 crops
)
def test_real_images_of_energies_are_mirrored_and_cropped_if_asked(
    augmented: dict[str, Any],
    expected: float,
    small_values: Any,
    splits: data.Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = splits.train.images.clone()
    left[..., :2, :2], left[..., 0, -1] = 0, 0
    left[..., 0, 0] = 255
    seen: list[torch.Tensor] = []
    flow_loss = of_energies.flow_loss

    def watched(energy: Any, images: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(images[:, 0, 0, 0] > 0)
        return flow_loss(energy, images, *rest)

    monkeypatch.setattr(of_energies, "flow_loss", watched)
    values = with_changes(small_values, {"ebm.train.epochs": 1})
    values["energies"]["train"] |= augmented
    p = params.check(values)
    only_left = replace(splits, train=data.Split(left, splits.train.labels))
    targets.get("ebm").train(only_left, p.ebm, Run("ebm", 0, [], root=tmp_path))
    share = float(torch.cat(seen).float().mean())
    assert share == 1 if expected == 1 else abs(share - expected) < 0.05


@pytest.mark.slow
def test_a_jems_labels_count_more_and_more_if_told_to(
    small_values: Any, splits: data.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a teacher and of a student, which both begin knowing little; not of a network that is mended."""
    counted: list[float] = []

    def watched(p: of_jem.JemTraining, logits: torch.Tensor, labels: torch.Tensor, progress: float) -> Any:
        value, logs = classification(p, logits, labels, progress)
        full, _ = classification(p.model_copy(update={"classification_rise": 0.0}), logits, labels, progress)
        counted.append(float(value / full))
        return value, logs

    classification = of_jem.classification
    monkeypatch.setattr(of_jem, "classification", watched)
    values = with_changes(small_values, {"jem.train.epochs": 1, "energies.train.batch_size": 20})
    values["jem"]["train"]["classification_rise"] = 0.5
    p = params.check(values)

    def run() -> Run:
        counted.clear()
        return Run("jem", 0, [], root=tmp_path)

    network = targets.get("jem").train(splits, p.jem, run())
    rising = [min(1.0, 2 * step / len(counted)) for step in range(len(counted))]
    assert len(rising) > 10
    assert counted == pytest.approx(rising, abs=1e-6)
    for retrain, expected in ((p.distill.retrain, rising), (p.prune.retrain, [1.0] * len(rising))):
        again = run()
        objective = targets.get("jem").objective(network, splits, p.jem, again)
        objective.retrain(network, retrain.model_copy(update={"epochs": 1}), again)
        assert counted == pytest.approx(expected, abs=1e-6)


def test_a_jem_weighs_its_labels(small_values: Any, splits: data.Splits, tmp_path: Path) -> None:
    losses = {}
    for weight in (None, 1.0, 3.0):
        values = with_changes(small_values, {})
        if weight:
            values["jem"]["train"]["classification_weight"] = weight
        p, run = params.check(values), Run("jem", 0, [], root=tmp_path)
        network = networks.build(
            networks.Spec.of(p.jem.architecture, splits.input_shape, 10, "logsumexp", splits.normalisation), seed=0
        )
        losses[weight] = float(targets.get("jem").objective(network, splits, p.jem, run).own_loss(network, run))
    assert losses[None] == losses[1.0]
    assert losses[3.0] - losses[1.0] == pytest.approx(2 * math.log(10), rel=0.05)  # a fresh network knows no class
