"""The loop: it learns, it resumes to the same bytes, it says when it diverges."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, with_changes

from lowenergy import artifact, data, params, targets, training
from lowenergy.training import DivergedError, Run

KILLED = """
import sys, torch
from lowenergy import data, params, targets, training
from lowenergy.params import check
from ruamel.yaml import YAML

target, root, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
p = check(YAML(typ="safe").load(open(f"{root}/params.yaml")))
splits = data.prepare(p.data, p.seed)
training.CHECKPOINT_SECONDS = 0.0
keep = training.keep

def keep_and_die(run, part, content):
    keep(run, part, content)
    if content["step"] >= kill_at:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)

training.keep = keep_and_die
run = training.Run(f"{target}/teacher", p.seed, [], root=root)
targets.get(target).train(splits, getattr(p, target), run)
"""


@pytest.mark.parametrize("target", params.TARGETS)
def test_teachers_learn(target: str, small: params.Params, splits: data.Splits, tmp_path: Path) -> None:
    run = Run(f"{target}/teacher", 0, [], root=tmp_path)
    network = targets.get(target).train(splits, getattr(small, target), run)
    curves = tmp_path / "plots/curves" / target / "teacher/plots/metrics"
    assert (curves / "loss.tsv").exists()
    assert not network.training
    if target == "ebm":
        noise = torch.rand(200, 1, 8, 8) * 2 - 1
        energies = [network(x).mean(1).mean() for x in (data.to_float(splits.test.images), noise)]
        assert energies[0] < energies[1]
    else:
        logits = network(data.to_float(splits.test.images))
        assert (logits.argmax(1) == splits.test.labels).float().mean() > 0.3  # 0.1 is chance


@pytest.mark.parametrize("target", ["classifier", "jem"])
def test_kill_and_resume_give_the_same_bytes(
    target: str, small: params.Params, splits: data.Splits, tmp_path: Path, values: Any, capfd: Any
) -> None:
    from ruamel.yaml import YAML

    YAML(typ="safe").dump(small.model_dump(), tmp_path / "params.yaml")
    command = [sys.executable, "-c", KILLED, target, str(tmp_path), "20"]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    outcomes = []
    for root in (tmp_path, tmp_path / "uninterrupted"):
        run = Run(f"{target}/teacher", small.seed, [], root=root)
        network = targets.get(target).train(splits, getattr(small, target), run)
        artifact.save(artifact.dense(network, target), root / "model", {})
        curve = (root / "plots/curves" / target / "teacher/plots/metrics/loss.tsv").read_bytes()
        outcomes.append(((root / "model").read_bytes(), curve))
        training.finished(run)
        assert not run.checkpoint("fit").exists()
    assert "resumed at step 20" in capfd.readouterr().out
    assert outcomes[0] == outcomes[1]


def test_foreign_and_damaged_checkpoints_are_not_taken_up(
    small: params.Params, splits: data.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    first = Run("classifier/teacher", 0, ["these params"], root=tmp_path)
    targets.get("classifier").train(splits, small.classifier, first)
    for run, reason in ((Run("classifier/teacher", 0, ["others"], root=tmp_path), "belongs to other params"),):
        targets.get("classifier").train(splits, small.classifier, run)
        assert reason in capfd.readouterr().out
    first.checkpoint("fit").write_bytes(b"half a file")
    targets.get("classifier").train(splits, small.classifier, Run("classifier/teacher", 0, [], root=tmp_path))
    assert "is unreadable" in capfd.readouterr().out


def test_divergence_is_an_error_that_names_the_stage(
    values: Any, small: params.Params, splits: data.Splits, tmp_path: Path
) -> None:
    absurd = params.check(with_changes(small.model_dump(), {"ebm.train.lr": 1e30, "ebm.train.gradient_norm": None}))
    with pytest.raises(DivergedError, match=r"ebm/teacher: step \d+: .* Lower the learning rate"):
        targets.get("ebm").train(splits, absurd.ebm, Run("ebm/teacher", 0, [], root=tmp_path))
