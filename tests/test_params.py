"""Every kind of bad params file is refused with the field, the value and what is allowed."""

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, with_changes
from pydantic import BaseModel

from lowenergy import profiles
from lowenergy.base import params
from lowenergy.base.params import ParamsError


def test_shipped_params_are_valid() -> None:
    p = params.load(ROOT / "params.yaml")
    assert p.targets == {"classifier": "classifier", "ebm": "energies", "jem": "energies"}
    assert p.ebm.train.sampler == p.jem.train.sampler  # said once
    assert p.ebm.train.lr != p.jem.train.lr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prune.amount": 1.2}, "prune.amount = 1.2: input should be less than 1 (fraction to remove)"),
        ({"quantize.keep_float": ["ebm:fc"]}, "write ebm/fc; DVC's YAML cannot read [ebm:fc]"),
        ({"prune.amount": "lots"}, "prune.amount = 'lots': input should be a valid number"),
        ({"ebm.train.epochs": 0}, "ebm: train.epochs = 0 leaves random weights; give some, or architecture.weights"),
        ({"ebm.train.epochs": 2.5}, "ebm.train.epochs = 2.5: input should be a valid integer"),
        (
            {"data.source": "imagenet"},
            "data.source: 'imagenet' is none of cifar100, digits, folder, mnist, the files of",
        ),
        (
            {"scorer.architecture.name": "vgg16"},
            "scorer.architecture.name: 'vgg' is none of cnn, compact, residual, resnet",
        ),
        ({"ebm.train.epochs": 10**21}, f"ebm.train.epochs = {10**21}: input should be less than or equal to 100000"),
        ({"ebm.train.lr": float("nan")}, "ebm.train.lr = nan: input should be a finite number"),
        ({"energies.train.sampler.step_size": float("inf")}, "energies.train.sampler.step_size = inf: input should be"),
        ({"energies.matching.images": 0}, "energies.matching.images = 0: input should be greater than or equal to 1"),
        ({"data.source": "folder"}, "data.image_size must be given for source folder"),
        ({"targets": {}}, "targets = {}: dictionary should have at least 1 item"),
        ({"targets": {"gan": "energies"}}, "targets: {gan: energies} names no two sections that go together as"),
        ({"targets": {"ebm": "classifier"}}, "targets: {ebm: classifier} names no two sections that go together as"),
        ({"targets": ["ebm"]}, "targets is a list; write targets: {ebm: energies}"),
        ({"pq.source": "quantize"}, "pq.source = 'quantize': input should be 'teacher', 'prune' or 'distill'"),
        ({"prune.source": "distill", "distill.source": "prune"}, "prune <- distill <- prune is a circle"),
        ({"ebm.architecture.head": "scalar"}, "head scalar needs logits = 1, got 10"),
        ({"classifier.train.flip": "yes"}, "classifier.train.flip = 'yes': input should be a valid boolean"),
        (
            {"classifier.architecture.name": "cnn", "classifier.train.image_scales": [0.5, 1.0]},
            "classifier: train.image_scales = [0.5, 1.0] needs a resnet",
        ),
        (
            {"prune.allocation": "sensitivity", "prune.scan_images": 0},
            "prune: prune.allocation = sensitivity needs a scan: give prune.scan_images, e.g. 500",
        ),
        (
            {"prune.kind": "2of4"},
            "prune: prune.kind = 2of4 halves every layer at once: give prune.amount 0.5, rounds 1",
        ),
        ({"prune.amount_of": "macs"}, "prune: prune.amount_of = macs needs kind structured and allocation ranked"),
        (
            {"energies.matching.energy_weight": 0.0, "energies.matching.score_weight": 0.0},
            "energies.matching: energy_weight and score_weight are both 0",
        ),
        ({"seed": -1}, "seed = -1: input should be greater than or equal to 0"),
    ],
)
def test_bad_values_are_refused(values: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError) as error:
        params.check(with_changes(values, change))
    assert message in str(error.value)
    assert str(error.value).startswith("params.yaml: ")


def test_unknown_and_missing_keys_are_refused(values: Any) -> None:
    changed = with_changes(values, {})
    changed["prune"]["ammount"] = changed["prune"].pop("amount")
    with pytest.raises(ParamsError) as error:
        params.check(changed)
    assert "prune.ammount = 0.7 is not a parameter" in str(error.value)
    assert "prune.amount is missing (fraction to remove)" in str(error.value)


def test_old_files_are_told_what_moved_where(values: Any) -> None:
    changed = with_changes(values, {})
    changed["ebm"]["train"]["langevin"] = changed["energies"]["train"].pop("sampler")
    changed["ebm"]["probes"] = {"images": 5}
    changed["pq"]["finetune"]["precision"] = "32-true"
    changed["extra"] = {}
    with pytest.raises(ParamsError) as error:
        params.check(changed)
    for line in (
        "ebm.train.langevin is no parameter any more: now ebm.train.sampler",
        "ebm.probes is no parameter any more: now energies.matching",
        "pq.finetune.precision is no parameter any more: now that of classifier.train",
        "extra is no section; `lowenergy params` lists all of them",
    ):
        assert f"params.yaml: {line}" in str(error.value)


def test_params_yaml_is_no_longer_than_a_person_reads(values: Any) -> None:
    def leaves(value: Any) -> int:
        return sum(map(leaves, value.values())) if isinstance(value, dict) else 1

    assert leaves(values) <= 150
    listed = {name for name, _, _ in params.listing()}
    assert {"pq.budget_bytes", "ebm.train.sampler.noise", "data.source"} <= listed
    assert {name: allowed for name, allowed, _ in params.listing()}["prune.amount"] == "0 < number < 1"


def test_all_problems_are_reported_at_once(values: Any) -> None:
    with pytest.raises(ParamsError) as error:
        params.check(with_changes(values, {"seed": -1, "prune.amount": 0}))
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(("text", "message"), [("seed: [", "not valid YAML"), ("- 1", "expected sections")])
def test_files_that_are_no_params(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=message):
        params.load(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match="no such file"):
        params.load(tmp_path / "elsewhere.yaml")


def test_every_parameter_says_what_it_means() -> None:
    def check(section: type[BaseModel]) -> None:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                check(field.annotation)

    check(params.Params)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "profiles").mkdir()
    for path in (ROOT / "profiles").glob("*.yaml"):
        (tmp_path / "profiles" / path.name).write_text(path.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "cifar100"])
def test_profiles_apply_and_digits_brings_everything_back(project: Path, name: str) -> None:
    before = (project / "params.yaml").read_text()
    assert profiles.apply(name)
    assert params.load().data.source == name
    (project / "nets").mkdir()
    (project / "nets/mnist-ebm-tiny.safetensors").touch()  # that one of them starts from
    presets = {path.stem for path in (ROOT / "profiles").glob("*.yaml")} - {"digits", "mnist", "cifar100"}
    for preset in sorted(presets):
        assert profiles.apply(preset)
    (project / "profiles/spare.yaml").write_text("quantize: {keep_float: [features.0.conv, ebm/fc]}\n")
    assert profiles.apply("spare")
    assert params.load().quantize.keep_float == ["features.0.conv", "ebm/fc"]
    assert "# at most so many" in (project / "params.yaml").read_text()
    profiles.apply("digits")
    assert (project / "params.yaml").read_text() == before


def test_bad_profiles_change_nothing(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    (project / "profiles/bad.yaml").write_text("prune: {amount: 3.0}\n")
    (project / "profiles/typo.yaml").write_text("prune: {ammount: 0.3}\n")
    for name, message in (("bad", "prune.amount = 3.0"), ("typo", "prune.ammount"), ("none", "no such profile")):
        with pytest.raises(ParamsError, match=message):
            profiles.apply(name)
    assert (project / "params.yaml").read_text() == before
