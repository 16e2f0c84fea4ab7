"""Shared fixtures: the digits, a small valid params file, and a scratch clone whose pipeline has run once."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from lowenergy import data
from lowenergy.base import params

TARGETS = tuple(params.FAMILIES)

ROOT = Path(__file__).parents[1]
SMALL = {  # every stage does its real work, briefly
    "targets": {"classifier": "classifier", "ebm": "energies"},
    "scorer.train.epochs": 4,
    "classifier.architecture.width": 16,
    "classifier.train.epochs": 4,
    "energies.train.chain_steps": 5,
    "energies.train.burn_in": 5,
    "energies.train.buffer_size": 256,
    "energies.matching.images": 100,
    "energies.matching.chains": 20,
    "energies.matching.chain_steps": 8,
    "ebm.train.epochs": 2,
    "ebm.train.contrastive_from": 0.2,
    "ebm.evaluate.samples": 200,
    "ebm.evaluate.chain_steps": 10,
    "jem.train.epochs": 2,
    "jem.train.contrastive_from": 0.2,
    "jem.evaluate.samples": 200,
    "jem.evaluate.chain_steps": 10,
    "prune.finetune.epochs": 1,
    "prune.retrain.epochs": 1,
    "prune.scan_images": 40,
    "quantize.finetune.epochs": 1,
    "distill.train.epochs": 2,
    "distill.retrain.epochs": 1,
    "pq.finetune.epochs": 1,
    "pq.kmeans_steps": 5,
}


def with_changes(values: Any, changes: dict[str, Any]) -> Any:
    """A copy of nested dicts with dotted keys set; the keys must exist."""
    values = copy.deepcopy(values)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        section = values
        for key in path:
            section = section[key]
        assert last in section, dotted
        section[last] = value
    return values


@pytest.fixture(scope="session")
def values() -> Any:
    """The shipped params.yaml as plain dicts."""
    return YAML(typ="safe").load(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def small_values(values: Any) -> Any:
    return with_changes(values, SMALL)


@pytest.fixture(scope="session")
def small(small_values: Any) -> params.Params:
    return params.check(small_values)


@pytest.fixture(scope="session")
def splits(small: params.Params) -> data.Splits:
    return data.prepare(small.data, seed=0).read()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook; it cannot with pytest 9.2
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a pipeline go to one worker, which runs it once."""
    for item in items:
        for pipeline in ("clone", "extended"):
            if pipeline in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(pipeline))


class Clone:
    """A scratch clone of the working tree with its own git and DVC history."""

    def __init__(self, path: Path, trace: Path) -> None:
        self.path, self.trace, self.tracing = path, trace, True
        tracked = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        ).stdout.splitlines()
        for name in tracked:
            if (ROOT / name).is_file():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, path / name)
        for name in ("dvc.lock", "metrics"):  # of the real runs
            target = path / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        self.set(SMALL)
        self.run("git", "init", "-q", "-b", "main")
        self.commit("start")

    @property
    def environment(self) -> dict[str, str]:
        here = os.environ.copy()
        here |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{here['PATH']}",
            "PYTHONPATH": str(ROOT / "tests" / "trace"),
            "LOWENERGY_TRACE": str(self.trace) if self.tracing else "",
            "PYTHONWARNINGS": "ignore",
            "COLUMNS": "300",
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
        }
        return here

    def run(self, *command: str, check: bool = True) -> str:
        """stdout and stderr of a command in the clone."""
        done = subprocess.run(
            command, cwd=self.path, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0 or not check, f"{' '.join(command)}\n{done.stdout}"
        return done.stdout

    def set(self, changes: dict[str, Any]) -> None:
        yaml = YAML()
        path = self.path / "params.yaml"
        yaml.dump(with_changes(yaml.load(path), changes), path)

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "-q", "-m", message)


def stages_run(output: str) -> set[str]:
    """The stages that a `dvc repro` or `dvc exp run` executed, by its output."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")}


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The small pipeline, run once under DVC and committed; tests leave it as they found it."""
    clone = Clone(tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("trace"))
    clone.first_output = clone.run("dvc", "repro")
    clone.tracing = False  # what later tests change is not what the guards compare
    clone.commit("first run")
    return clone
