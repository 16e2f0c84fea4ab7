"""Shared fixtures: the digits, a small valid params file, and a scratch clone whose pipeline has run once."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from ruamel.yaml import YAML

from lowenergy import data, params
from lowenergy.base.nested import MISSING, value_at, with_values

TARGETS = tuple(params.kinds())

ROOT = Path(__file__).parents[1]
SMALL = {  # every stage does its real work, briefly
    "teachers": {target: {"kind": target} for target in ("classifier", "ebm")},
    "branches": {
        **{
            f"{target}-{method}": {"target": target, "start": target, "by": method}
            for target in ("classifier", "ebm")
            for method in ("prune", "quantize", "distill", "pq")
        },
        "ebm-quantize": {"target": "ebm", "start": "ebm-distill", "by": "quantize", "weight_bits": 7},
    },
    "scorer.train.epochs": 4,
    "classifier.architecture.width": 16,
    "classifier.train.epochs": 4,
    "energies.train.chain_steps": 5,
    "energies.train.burn_in": 5,
    "energies.train.buffer_size": 256,
    "energies.train.sampler.step_size": 0.05,
    "energies.matching.images": 100,
    "energies.matching.chains": 20,
    "energies.matching.chain_steps": 8,
    "ebm.train.epochs": 2,
    "ebm.train.contrastive_from": 0.2,
    "ebm.evaluate.samples": 200,
    "ebm.evaluate.chain_steps": 10,
    "ebm.evaluate.step_factor": 2.0,
    "jem.train.epochs": 2,
    "jem.train.contrastive_from": 0.2,
    "jem.evaluate.samples": 200,
    "jem.evaluate.chain_steps": 10,
    "jem.evaluate.step_factor": 2.0,
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
    for place in changes:
        assert value_at(values, place) is not MISSING, place
    return with_values(values, changes)


def only(values: Any, teacher: str) -> Any:
    """A copy with this teacher and the branches that start from it."""
    branches = {name: entry for name, entry in values["branches"].items() if entry["start"] == teacher}
    return {**values, "teachers": {teacher: values["teachers"][teacher]}, "branches": branches}


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


@pytest.fixture(scope="session", autouse=True)
def _operators_are_read_once() -> None:
    """torch reads all that it can say in ONNX anew for each file, for half a second."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    if not hasattr(ONNXRegistry.from_torchlib, "cache_info"):
        ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _same_numbers_whatever_ran_before() -> None:
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


HEAVY = ("test_running", "test_team", "test_extending")  # processes of their own, minutes of them


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook; it cannot with pytest 9.2
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first worker makes the small pipeline while the others do what needs none; what is slow comes first."""
    items.sort(key=_turn)
    for item in items:
        if _turn(item) == 0 or "extended" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def _turn(item: pytest.Item) -> int:
    if item.path.stem == "test_guards":
        return 0
    if item.path.stem in HEAVY:
        return 1
    if "clone" in getattr(item, "fixturenames", ()):
        return 2 if item.get_closest_marker("slow") else 4
    return 3


def last_said(output: str) -> str:
    """The last lines that are not of a traceback that Python ignored, in one line."""
    noise = ("Exception ignored", "Traceback", "ImportError: sys.meta_path", " ")
    return " / ".join([line for line in output.splitlines() if line.strip() and not line.startswith(noise)][-3:])


class Clone:
    """A scratch clone of the working tree with its own git and DVC history."""

    def __init__(self, path: Path, trace: Path, tracing: bool = False) -> None:
        self.path, self.trace, self.tracing = path, trace, tracing

    @classmethod
    def made(cls, path: Path, trace: Path) -> "Clone":
        tracked = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        ).stdout.splitlines()
        for name in tracked:
            if (ROOT / name).is_file():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, path / name)
        for name in ("dvc.lock", "metrics", "cards.json"):  # of the real runs
            target = path / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        clone = cls(path, trace, tracing=True)
        clone.set(SMALL)
        clone.run("git", "init", "-q", "-b", "main")
        clone.commit("start")
        return clone

    @property
    def environment(self) -> dict[str, str]:
        here = os.environ.copy()
        here |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{here['PATH']}",
            "PYTHONPATH": f"{ROOT / 'tests' / 'trace'}{os.pathsep}{self.path}",  # of `lowenergy`, too, the clone's own
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
        # The first line of a failure is what is left of it where a log is cut: what was said last.
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {last_said(done.stdout)}\n{done.stdout}"
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
    """The small pipeline, run once under DVC and committed; a copy for each worker. Tests leave it as they found it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "first"
    with FileLock(f"{shared}.lock"):
        if not (shared / "output").exists():
            shutil.rmtree(shared, ignore_errors=True)
            for name in ("clone", "trace"):
                (shared / name).mkdir(parents=True)
            first = Clone.made(shared / "clone", shared / "trace")
            output = first.run("dvc", "repro")
            first.commit("first run")
            (shared / "output").write_text(output)
    clone = Clone(base / "clone", shared / "trace")  # what tests change is not what the guards compare
    shutil.copytree(shared / "clone", clone.path)
    clone.first_output = (shared / "output").read_text()
    return clone
