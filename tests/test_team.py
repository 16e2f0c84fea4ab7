"""Several processes that share each batch: what they learn is what one process learns, and one that dies ends them."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import ROOT, with_changes
from ruamel.yaml import YAML
from safetensors.torch import load_file

from lowenergy.base import files
from lowenergy.base.errors import UserError
from lowenergy.base.team import Team

pytestmark = pytest.mark.slow

# A few steps of each kind of training; the first process saves the weights.
STEPS = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from lowenergy import data, networks, targets, training
from lowenergy import params

root, out, *cases = sys.argv[1:]
p = params.load(Path(root) / "params.yaml")
splits = data.prepare(p.data, p.seed).read()
for case in cases:
    target = {"pruned": "ebm", "student": "classifier", "joint": "jem"}.get(case, case)
    section = getattr(p, target)
    with training.running(f"{target}-{case}", 0, [], root=out) as run:
        if case == target:
            network = targets.get(target).train(splits, section, run)
        else:
            head = {"ebm": "mean", "jem": "logsumexp"}.get(target)
            spec = networks.Spec.of(section.architecture, splits.input_shape, 10, head, splits.normalisation)
            teacher = networks.of_params(section.architecture, spec, seed=1, where="")
            network = networks.of_params(section.architecture, spec, seed=2, where="")
            if case == "pruned":
                with torch.no_grad():
                    for weight in network.parameters():
                        weight[weight.abs() < weight.abs().median()] = 0
                training.hold_zeros(network)
            objective = targets.get(target).objective(teacher, splits, section, run)
            training.finetune(network, objective, p.prune.finetune, run)
        if run.team.rank == 0:
            state = {name: value.contiguous() for name, value in network.state_dict().items()}
            save_file(state, run.curves / "weights")
training.disband(run)
"""
CASES = ("classifier", "student", "ebm", "pruned", "joint")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
FEW = {
    "data.limit": 150,
    "classifier.architecture.norm": "batch",
    "classifier.train.batch_size": 33,  # uneven shares
    "classifier.train.epochs": 1,
    "classifier.train.lr": 0.02,
    "classifier.train.crop_padding": 1,
    "classifier.train.flip": True,
    "classifier.matching.feature_weight": 1.0,
    "energies.train.batch_size": 33,
    "energies.train.burn_in": 3,  # so that only some of the chains count
    "energies.train.chain_steps": 2,
    "energies.train.buffer_size": 40,
    "energies.matching.images": 30,
    "energies.matching.chains": 9,
    "energies.matching.student_chains": 5,
    "ebm.train.epochs": 1,
    "ebm.train.contrastive_from": 0.0,
    "prune.finetune.epochs": 1,
    "prune.finetune.batch_size": 33,
}


def run(command: list[str], processes: int | str, cwd: Path = ROOT, code: int = 0) -> str:
    here = os.environ | {"LOWENERGY_PROCESSES": str(processes), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=cwd, env=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, small_values: Any) -> list[Path]:
    """What one process has learnt in each case, and what two have."""
    root = tmp_path_factory.mktemp("team")
    YAML(typ="safe").dump(with_changes(small_values, FEW), root / "params.yaml")
    script = root / "steps.py"
    script.write_text(STEPS)
    for name, command in (("one", [sys.executable]), ("two", TORCHRUN)):
        run([*command, str(script), str(root), str(root / name), *CASES], 1)
    return [root / "one", root / "two"]


@pytest.mark.xdist_group("team")
@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_does(case: str, learnt: list[Path]) -> None:
    found = []
    for root in learnt:
        (curves,) = (root / "plots/curves").glob(f"*-{case}")
        rows = list(csv.DictReader((curves / "plots/metrics/loss.tsv").open(), delimiter="\t"))
        found.append((load_file(curves / "weights"), [float(row["loss"]) for row in rows]))
    (one, losses), (two, others) = found
    assert losses and losses == pytest.approx(others, rel=1e-5)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
    if case == "pruned":
        zeros = [sum(int((value == 0).sum()) for value in weights.values()) for weights in (one, two)]
        assert zeros[0] == zeros[1] > 0.4 * sum(value.numel() for value in one.values())


def test_shares_are_all_rows_once() -> None:
    batch = torch.arange(7)
    for size in (1, 2, 3, 7):
        shares = [Team(rank, size).own_rows(batch) for rank in range(size)]
        assert torch.cat(shares).tolist() == batch.tolist()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_fewer_rows_than_processes() -> None:
    batch = torch.arange(3.0)
    with torch.no_grad():
        assert Team(1, 4).gather(Team(1, 4).own_rows(batch), 3).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="a batch of 3 for 4 processes; give a larger batch_size"):
        Team(1, 4).own_rows(batch)


def test_a_rank_of_something_else_keeps_nobody_from_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.setenv(name, "3")
    files.write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").read_text() == "1\n"


KILLED = """
import sys
from lowenergy.base import checkpoint
checkpoint.SECONDS = 0.0
from lowenergy.base.stage import run
from stages import teacher
run(teacher.main)
"""


@pytest.fixture
def workspace(tmp_path: Path, small_values: Any) -> Path:
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    more = {"ebm.train.epochs": 6, "data.limit": 300}
    YAML(typ="safe").dump(with_changes(small_values, more), tmp_path / "params.yaml")
    for stage in ("prepare", "recipes"):
        run([sys.executable, "-m", f"stages.{stage}"], 1, tmp_path)
    return tmp_path


def test_one_that_dies_ends_all_and_the_rerun_goes_on(workspace: Path) -> None:
    output = run([*TORCHRUN, "-m", "stages.teacher", "ebm"], 1, workspace)
    assert output.count("step 24/24") == 1  # the second process is silent
    model = workspace / "models/ebm.safetensors"
    whole = model.read_bytes()
    model.unlink()

    script = workspace / "killed.py"
    script.write_text(KILLED)
    here = os.environ | {"LOWENERGY_PROCESSES": "2", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    first = subprocess.Popen(
        [sys.executable, str(script), "ebm"],
        cwd=workspace,
        env=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 100
    while not (workspace / ".checkpoints/ebm.fit.pt").exists():
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.01)
    (second,) = psutil.Process(first.pid).children()
    second.send_signal(signal.SIGKILL)
    output, _ = first.communicate(timeout=60)
    assert first.returncode not in (0, None) and "another process of this stage has ended" in output
    assert not model.exists()

    output = run([sys.executable, "-m", "stages.teacher", "ebm"], 2, workspace)
    assert "resumed at step" in output
    assert model.read_bytes() == whole


def test_a_number_that_cannot_be(workspace: Path) -> None:
    output = run([sys.executable, "-m", "stages.teacher", "ebm"], "two", workspace, code=1)
    assert output == "LOWENERGY_PROCESSES=two: give a number from 1, or all for one on each GPU\n"
