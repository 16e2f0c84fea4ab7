"""dvc.yaml tells the truth: a stage's deps are what it imports and opens, its params are what it reads.

Compared against a trace of the real run (tests/trace/sitecustomize.py), so nothing is ever stale or rerun in vain.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Clone

from lowenergy.base.params import METHODS


def traces(clone: Clone) -> dict[str, Any]:
    """What each stage really used, by DVC's name of the stage."""
    found = {}
    for path in clone.trace.glob("*.json"):
        trace = json.loads(path.read_text())
        args = trace["args"]
        if trace["stage"] == "compress":
            name = f"{args[0]}@{args[1]}"
        else:
            name = "@".join([trace["stage"], "-".join(args)]) if args else trace["stage"]
        found[name] = trace
    return found


def declared(clone: Clone) -> dict[str, Any]:
    """deps and params of each stage, templates resolved, as DVC locked them."""
    return yaml.safe_load((clone.path / "dvc.lock").read_text())["stages"]


def leaves(value: Any, at: str) -> set[str]:
    if isinstance(value, dict) and at != "targets":  # which there are is the value
        return {leaf for key, part in value.items() for leaf in leaves(part, f"{at}.{key}")}
    return {at}


def test_every_stage_was_traced(clone: Clone) -> None:
    assert set(traces(clone)) == set(declared(clone))


def test_code_deps_are_the_modules_imported(clone: Clone) -> None:
    """Folders and files of code: all that is imported is inside, and of each something is imported by some target."""
    used: dict[tuple[str, str], bool] = {}
    for name, stage in declared(clone).items():
        code = {dep["path"] for dep in stage["deps"] if dep["path"].split("/")[0] in ("lowenergy", "stages")}
        imported = {path for path in traces(clone)[name]["modules"] if path not in OF_NO_CONSEQUENCE}
        assert not (undeclared := {path for path in imported if not inside(path, code)}), f"{name} imports {undeclared}"
        for dep in code:
            some = any(inside(path, {dep}) for path in imported)
            place = (name.split("@")[0], re.sub(r"/targets/\w+", "/targets/…", dep))
            used[place] = used.get(place, False) or some
    assert not (unused := [place for place, some in used.items() if not some]), unused


# They say where things are, and do nothing.
OF_NO_CONSEQUENCE = {
    "lowenergy/__init__.py",
    "lowenergy/runtimes/__init__.py",
    "lowenergy/scoring/__init__.py",
    "lowenergy/compression/__init__.py",
    "lowenergy/targets/__init__.py",
    "lowenergy/reporting/__init__.py",
    "stages/__init__.py",
}

ROOMS = (
    *("base", "data", "networks", "energies", "storage", "runtimes", "training", "targets", "compression", "scoring"),
    *("reporting", "running", "timing", "searching", "profiles", "cli"),
)  # each imports from those before it


def test_imports_point_one_way() -> None:
    package = ROOT / "lowenergy"
    assert {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} == {
        "__init__",
        *ROOMS,
    }
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                parts = name.split(".")
                if parts[0] == "lowenergy" and len(parts) > 1 and parts[1] in ROOMS:
                    there = ROOMS.index(parts[1])
                    assert there <= ROOMS.index(room), f"{path.relative_to(ROOT)} imports {name}"


def test_data_deps_are_the_files_opened(clone: Clone) -> None:
    outputs = {out["path"] for stage in declared(clone).values() for out in stage["outs"]}
    for name, stage in declared(clone).items():
        data = {dep["path"] for dep in stage["deps"] if dep["path"].split("/")[0] not in ("lowenergy", "stages")}
        own = {out["path"] for out in stage["outs"]}
        opened = {path for path in traces(clone)[name]["opened"] if not inside(path, own) and inside(path, outputs)}
        undeclared = {path for path in opened if not inside(path, data)}
        assert not undeclared, f"{name} opens {undeclared} undeclared"
        if name == "prepare":
            continue  # data/images is read for source folder only
        unread = {dep for dep in data if not any(inside(path, {dep}) for path in opened)}
        assert unread <= allowed_unread(name), f"{name} declares {unread} and never opens it"


def allowed_unread(name: str) -> set[str]:
    """What `evaluate`, written once for all targets, needs without opening it everywhere."""
    if not name.startswith("evaluate@"):
        return set()
    target = name.removeprefix("evaluate@").split("-")[0]
    size_only = {f"models/{target}/teacher.safetensors"}
    for_samples = {"models/scorer.safetensors", "models/reference.safetensors"}
    return size_only | (for_samples if target == "classifier" else set())


def inside(path: str, places: set[str]) -> bool:
    return any(Path(path).is_relative_to(place) for place in places)


def test_params_are_the_keys_read(clone: Clone) -> None:
    for name, stage in declared(clone).items():
        keys = stage.get("params", {}).get("params.yaml", {})
        known = set().union(*(leaves(value, key) for key, value in keys.items()))
        read = set()
        for leaf in traces(clone)[name]["read"]:
            # What a target shares with its kin is read from its own section, and declared where it stands.
            shared = re.sub(r"^(ebm|jem)\.", "energies.", leaf)
            if leaf in known or shared in known:
                read.add(leaf if leaf in known else shared)
            elif not any(leaf.startswith(f"{key}.") for key in keys):  # else params.yaml need not name it
                read.add(leaf)
        # `networks` is a dependency by its content; targets and names of their networks say whom to trust, no figure.
        read -= {
            "networks",
            "targets",
            *(leaf for leaf in read if leaf.endswith(("architecture.name", "student.name"))),
        } - known
        assert read <= known, f"{name} reads {read - known} undeclared"
        vain = {leaf for leaf in known - read if not only_sometimes(leaf, name)}
        assert not vain, f"{name} declares {vain} and never reads it"


def only_sometimes(leaf: str, name: str) -> bool:
    """Read under other values only: data.* of the sources not in use, blocks of layers that a network lacks."""
    finetunes_layers = {"pq.layer_finetune.lr", "quantize.retrain.lr", "pq.retrain.lr"}  # not with 0 steps
    of_channels = {"prune.amount_of"}
    method, _, target = name.partition("@")
    if method in METHODS and leaf.split(".")[0] in (target, "energies") and leaf.split(".")[1] == "train":
        return True  # retraining has its own epochs and schedule; a change of the teacher's makes another source anyway
    if target == "classifier" and leaf.endswith(".retrain.contrastive_from"):
        return True
    return leaf in {"data.root", "data.folder", "pq.block_1x1", "pq.block_small"} | finetunes_layers | of_channels


@pytest.mark.parametrize("source", ["params.yaml", "dvc.yaml"])
def test_files_are_commented_for_the_reader(source: str) -> None:
    lines = (Path(__file__).parents[1] / source).read_text().splitlines()
    assert lines[0].startswith("# ")
