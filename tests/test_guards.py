"""dvc.yaml tells the truth: a stage's deps are what it imports and opens, its params are what it reads.

Compared against a trace of the real run (tests/trace/sitecustomize.py), so nothing is ever stale or rerun in vain.
"""

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Clone

from lowenergy.base.nested import leaves


@cache
def declared(clone: Clone) -> dict[str, Any]:
    """deps and params of each stage, templates resolved, as DVC locked them."""
    return yaml.safe_load((clone.path / "dvc.lock").read_text())["stages"]


@cache
def traces(clone: Clone) -> dict[str, Any]:
    """What each stage really used, by DVC's name of the stage."""
    found = [json.loads(path.read_text()) for path in clone.trace.glob("*.json")]
    by_command = {" ".join(["python -m", f"stages.{trace['stage']}", *trace["args"]]): trace for trace in found}
    names = {stage["cmd"]: name for name, stage in declared(clone).items()}
    return {names[command]: trace for command, trace in by_command.items()}


def test_every_stage_was_traced(clone: Clone) -> None:
    assert set(traces(clone)) == set(declared(clone))


def test_code_deps_are_the_modules_imported(clone: Clone) -> None:
    """Folders and files of code: all that is imported is inside, and of each something is imported by some target."""
    used: dict[tuple[str, str], bool] = {}
    for name, stage in declared(clone).items():
        code = {dep["path"] for dep in stage["deps"] if dep["path"].split("/")[0] in ("lowenergy", "stages")}
        trace = traces(clone)[name]
        imported = {path for path in trace["modules"] if path not in OF_NO_CONSEQUENCE}
        described = {path for leaf, path in trace["described"].items() if not leaf.endswith(TRUST)}
        needed = {path for path in imported if path in described or not SECTIONS.fullmatch(path)}
        assert not (undeclared := {path for path in needed if not inside(path, code)}), f"{name} imports {undeclared}"
        for dep in code:
            some = any(inside(path, {dep}) for path in imported)
            place = (name.split("@")[0], re.sub(r"/(targets|compression)/\w+$", r"/\1/…", dep))
            used[place] = used.get(place, False) or some
    assert not (unused := [place for place, some in used.items() if not some]), unused


# A method's or kind's section, with which all of params.yaml is checked: of consequence to who reads its parameters.
SECTIONS = re.compile(r"lowenergy/(targets|compression)/\w+/__init__.py")

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
    *("base", "params", "data", "networks", "energies", "storage", "runtimes", "training", "targets", "compression"),
    *("scoring", "reporting", "running", "timing", "searching", "profiles", "starting", "calls", "commands", "cli"),
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
    """What `evaluate`, written once for all kinds, needs without opening it everywhere."""
    stage, _, model = name.partition("@")
    if not stage.startswith("evaluate"):
        return set()
    target = model.split("-")[0]
    size_only = {f"models/{target}.safetensors"}
    for_samples = {"models/scorer.safetensors", "models/reference.safetensors"}
    return size_only | (for_samples if target == "classifier" else set())


def inside(path: str, places: set[str]) -> bool:
    return any(Path(path).is_relative_to(place) for place in places)


def test_params_are_the_keys_read(clone: Clone) -> None:
    for name, stage in declared(clone).items():
        if name == "recipes":
            continue  # it writes all that it declares: test_params.py
        keys = stage.get("params", {}).get("params.yaml", {})
        known = dict(place for key, value in keys.items() for place in leaves(value, key))
        entry = next((key for key in keys if key.startswith("branches.")), None)
        read = set()
        for leaf in traces(clone)[name]["read"]:
            if entry and leaf.startswith(f"{entry}.") and leaf not in known:  # what is not its own is of its method
                leaf = leaf.replace(entry, keys[entry]["by"])
            # Of a recipe another test tells; of a declared section params.yaml need not name all.
            if leaf in known or not leaf.startswith(("data/recipes/", *(f"{key}." for key in keys))):
                read.add(leaf)
        # `networks` is a dependency by its content; who has which network says whom to trust, no figure.
        read -= {"networks", "teachers", "branches", *(leaf for leaf in read if leaf.endswith(TRUST))} - known.keys()
        assert read <= known.keys(), f"{name} reads {read - known.keys()} undeclared"
        vain = {leaf for leaf in known.keys() - read if not only_sometimes(leaf, name)}
        assert not vain, f"{name} declares {vain} and never reads it"


TRUST = ("architecture.name", "student.name")


def test_recipes_hold_what_is_read(clone: Clone) -> None:
    for name, stage in declared(clone).items():
        for dep in (dep["path"] for dep in stage["deps"] if dep["path"].startswith("data/recipes/")):
            values = json.loads((clone.path / dep).read_text())
            del values["kind"]
            read = {leaf.partition(":")[2] for leaf in traces(clone)[name]["read"] if leaf.startswith(f"{dep}:")}
            vain = {leaf for leaf, _ in leaves(values) if leaf not in read and not of_another_network(leaf, name)}
            assert read and not vain, f"{name} has {vain} in {dep} and never reads it"


def of_another_network(leaf: str, name: str) -> bool:
    """Read where networks differ; and retraining has its own epochs and schedule."""
    return name.startswith("compress@") and leaf.startswith("train.")


def only_sometimes(leaf: str, name: str) -> bool:
    """Read under other values only: data.* of the sources not in use, blocks of layers that a network lacks."""
    finetunes_layers = {"pq.layer_finetune.lr", "quantize.retrain.lr", "pq.retrain.lr"}  # not with 0 steps
    of_channels = {"prune.amount_of"}
    if name.startswith("compress@") and leaf.endswith((".target", ".start", ".by")):
        return True  # which a trace does not show
    if name.startswith("compress@classifier") and leaf.endswith(".retrain.contrastive_from"):
        return True
    if name == "report":
        return True  # entries as they are
    if name == "compress@ebm-quantize" and leaf == "quantize.weight_bits":
        return True  # its own lie over them
    return leaf in {"data.root", "data.folder", "pq.block_1x1", "pq.block_small"} | finetunes_layers | of_channels


@pytest.mark.parametrize("source", ["params.yaml", "dvc.yaml"])
def test_files_are_commented_for_the_reader(source: str) -> None:
    lines = (Path(__file__).parents[1] / source).read_text().splitlines()
    assert lines[0].startswith("# ")
