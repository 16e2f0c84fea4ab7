"""Profiles are pure functions of their names, and no value of the user's own is lost to one unnoticed."""

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from lowenergy import cli, params, profiles
from lowenergy.base.nested import value_at
from lowenergy.params import ParamsError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_default_profile_is_params_yaml() -> None:
    assert (ROOT / "params.yaml").read_text() == (profiles.FOLDER / "default.yaml").read_text()
    assert profiles.text(profiles.composed("default")) == (ROOT / "params.yaml").read_text()


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_is_valid_and_the_same_whatever_was_before(name: str, project: Path) -> None:
    p = params.check(YAML(typ="safe").load(profiles.text(profiles.composed(name))), name)
    assert YAML(typ="safe").load(profiles.text(profiles.composed(name))) == profiles.composed(name)
    assert p.data.source == (
        "digits" if name == "default" else "cifar100" if "cifar" in name or "pq-" in name else "mnist"
    )
    for before in ("default", "mnist-study", "cifar100-energy-full") if name == "mnist" else ("cifar100-half",):
        profiles.apply(before)
        changed = profiles.apply(name)
        assert bool(changed) == (before != name)
        assert (project / "params.yaml").read_text() == profiles.text(profiles.composed(name))
    text = profiles.text(profiles.composed(name))
    assert "limit: null # at most so many" in text and max(map(len, text.splitlines())) <= 120
    assert "\n\ndata:\n" in text and "  # " not in text.replace("\n# ", "\n")
    assert profiles.apply(name) == []


OWN = {  # of each profile, a few of what it is for
    "default": {"ebm.train.epochs": 75},
    "mnist": {"ebm.architecture.name": "strided", "scorer.train.epochs": 6, "energies.train.sampler.step_size": 0.05},
    "mnist-large": {"ebm.architecture.width": 32, "jem.architecture.width": 32, "ebm.train.epochs": 24},
    "mnist-tiny": {"distill.retrain.epochs": 60, "branches.ebm-distill-quantize.start": "ebm-distill"},
    "mnist-12k": {"ebm.train.epochs": 0, "ebm.architecture.weights": "nets/mnist-ebm-tiny.safetensors"},
    "mnist-study": {"energies.train.flow_weight": 0.0, "ebm.train.lr": 0.0001},
    "prune-study": {"prune.importance": "l1", "ebm.train.epochs": 36},
    "cifar100": {"classifier.architecture.name": "resnet18", "pq.budget_bytes": 1400000},
    "cifar100-half": {"branches.classifier-prune-pq.start": "classifier-prune", "pq.budget_bytes": 695000},
    "cifar100-energy": {"energies.train.flow_rest": 0.2, "jem.train.classification_weight": 0.03},
    "cifar100-energy-full": {"quantize.weight_bits": 7, "energies.train.flow_rest": 0.2},
    "cifar100-energy-unet": {"ebm.architecture.name": "unet", "ebm.architecture.width": 24},
    "pq-punynet": {"pq.gram": "layer", "classifier.architecture.name": "resnet18"},
    "pq-large-blocks": {"pq.block_conv": 18, "pq.kmeans_steps": 20},
}


def test_profiles_compose() -> None:
    assert OWN.keys() == set(profiles.names())
    for name, places in OWN.items():
        values = profiles.composed(name)
        assert {place: value_at(values, place) for place in places} == places
    assert set(profiles.composed("cifar100-half")["branches"]) == {
        "classifier-prune",
        "classifier-prune-quantize",
        "classifier-prune-pq",
    }
    assert [name for name, _ in profiles.described()] == ["default", *(n for n in profiles.names() if n != "default")]


def test_values_of_the_users_own_are_overwritten_by_force_only(project: Path, capsys: Any) -> None:
    profiles.apply("mnist-large")
    path = project / "params.yaml"
    mine = path.read_text().replace("amount: 0.7", "amount: 0.75")
    mine = mine.replace(
        "  ebm-pq: {target: ebm, start: ebm, by: pq}\n", "  ebm-half: {target: ebm, start: ebm, by: pq}\n"
    )
    path.write_text(mine)
    assert cli.main(["profile", "cifar100"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "`lowenergy profile cifar100 --force`" in said
    assert "prune.amount: 0.75" in said and "branches.ebm-half: {'target': 'ebm'" in said and "width" not in said
    assert path.read_text() == mine
    assert cli.main(["profile", "cifar100", "--force"]) == 0
    assert "prune.amount: 0.75 -> 0.5" in capsys.readouterr().out
    assert path.read_text() == profiles.text(profiles.composed("cifar100"))
    path.write_text(path.read_text().replace("amount: 0.5", "amount: 0.7"))  # as the default has it: nothing is lost
    assert profiles.apply("default")
    path.unlink()
    assert profiles.apply("mnist") and path.read_text() == profiles.text(profiles.composed("mnist"))


def test_comments_of_the_users_own_are_overwritten_by_force_only(project: Path, capsys: Any) -> None:
    path = project / "params.yaml"
    mine = path.read_text().replace("seed: 0", "seed: 0 # as in the paper").replace("  limit:", "  # ours\n  limit:")
    path.write_text(mine)
    for command in (["profile", "mnist"], ["start", "photos"]):
        assert cli.main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "params.yaml has comments of your own, which would be lost: # as in the paper and 1 more" in line
        assert path.read_text() == mine
    assert cli.main(["profile", "mnist", "--force"]) == 0


def test_names_are_written_as_they_are() -> None:
    values = profiles.composed("default")
    for name in ("my  #1", "two  spaces  " * 12 + " #x", "emoji😀"):
        values["data"]["folder"] = name
        assert YAML(typ="safe").load(profiles.text(values))["data"]["folder"] == name
    values["data"]["folder"] = "\x85next line"
    with pytest.raises(ParamsError, match=r"YAML cannot hold data.folder: '\\x85next line'; give it another name"):
        profiles.text(values)


@pytest.mark.parametrize(
    "text", ["seed: [", "- 1\n", "x: &a {b: *a}", pytest.param(f"seed: {'9' * 5000}", id="digits")]
)
def test_what_is_no_params_file_is_left_alone(project: Path, text: str) -> None:
    (project / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match="mend or delete it"):
        profiles.apply("mnist")
    with pytest.raises(ParamsError, match="no such profile; there are cifar100, cifar100-energy"):
        profiles.apply("none")
    assert (project / "params.yaml").read_text() == text


def test_a_wheel_has_the_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from setuptools import Distribution

    monkeypatch.chdir(ROOT)
    wheel = Distribution({"script_name": "setup.py"})
    wheel.parse_config_files()
    files = wheel.get_command_obj("build_py")
    files.ensure_finalized()
    assert {f"{name}.yaml" for name in profiles.names()} <= {
        name for package, _, _, names in files.data_files if package == "lowenergy.profiles" for name in names
    }
