"""Every kind of bad params file is refused with the field, the value and what is allowed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, with_changes
from pydantic import BaseModel
from ruamel.yaml import YAML

from lowenergy import params
from lowenergy.base.nested import leaves, with_values
from lowenergy.params import ParamsError, data, recipes


def test_shipped_params_are_valid() -> None:
    p = params.load(ROOT / "params.yaml")
    assert {name: teacher.kind for name, teacher in p.teachers.items()} == {name: name for name in params.kinds()}
    assert p.ebm.train.sampler == p.jem.train.sampler  # said once
    assert p.ebm.train.lr != p.jem.train.lr
    assert p.teachers["ebm"].section == p.ebm
    assert p.chain("ebm-distill-quantize") == ["ebm", "ebm-distill", "ebm-distill-quantize"]
    assert p.models[:2] == ["classifier", "classifier-prune"] and len(p.models) == len(p.teachers) + len(p.branches)
    assert {p.target_of(name) for name in p.models[-3:]} == {"jem"}
    assert {(b.target, b.by) for b in p.branches.values()} == {(t, m) for t in params.kinds() for m in params.methods()}


def test_an_entrys_values_lie_over_its_sections(values: Any) -> None:
    p = params.check(
        with_values(
            values,
            {
                "teachers.wide": {"kind": "ebm", "architecture": {"width": 99}, "train": {"sampler": {"noise": 0.5}}},
                "branches.wide-half": {
                    "target": "wide",
                    "start": "wide",
                    "by": "prune",
                    "amount": 0.5,
                    "finetune": {"lr": 0.7},
                },
            },
        )
    )
    wide, ebm, half = p.teachers["wide"], p.teachers["ebm"], p.branches["wide-half"]
    assert (wide.kind, wide.architecture.width, wide.train.sampler.noise) == ("ebm", 99, 0.5)
    assert wide.train.sampler.step_size == ebm.train.sampler.step_size  # of energies
    assert wide.train.lr == ebm.train.lr and wide.matching == ebm.matching
    assert (half.params.amount, half.params.finetune.lr) == (0.5, 0.7)
    assert half.params.finetune.epochs == p.prune.finetune.epochs
    assert p.branches["ebm-prune"].params == p.prune
    assert p.architectures["wide.architecture"].width == 99


def test_recipes_hold_what_stages_read(values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def files(changes: dict[str, Any]) -> dict[str, bytes]:
        recipes.write(params.check(with_values(values, changes)))
        return {path.name: path.read_bytes() for path in recipes.FOLDER.iterdir()}

    before = files({})
    p = params.check(values)
    for name, teacher in p.teachers.items():
        read = recipes.read(name, "train")
        assert (read.kind, read.architecture, read.train) == (name, teacher.architecture, teacher.train)
        read = recipes.read(name, "matching")
        assert (read.kind, read.train, read.matching) == (name, teacher.train, teacher.matching)
        assert recipes.read(name, "evaluate").evaluate == teacher.evaluate
        with pytest.raises(AttributeError):
            _ = read.evaluate  # it would not be noticed if that changed
    for changes, changed in (
        ({"energies.matching.images": 7}, {"ebm.matching.json", "jem.matching.json"}),
        ({"teachers.ebm.matching": {"images": 7}}, {"ebm.matching.json"}),
        ({"jem.evaluate.samples": 700}, {"jem.evaluate.json"}),
        ({"classifier.architecture.width": 8}, {"classifier.train.json"}),
        ({"classifier.train.lr": 0.3}, {"classifier.train.json", "classifier.matching.json"}),
        ({"energies.train.flip": False, "prune.amount": 0.1}, set()),
    ):
        after = files(changes)
        assert {name for name in before if after[name] != before[name]} == changed, changes


PRUNED = {"target": "ebm", "start": "ebm", "by": "prune"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prune.amount": 1.2}, "prune.amount = 1.2: input should be less than 1 (fraction to remove)"),
        ({"quantize.keep_float": ["ebm:fc"]}, "write ebm/fc; DVC's YAML cannot read [ebm:fc]"),
        ({"prune.amount": "lots"}, "prune.amount = 'lots': input should be a valid number"),
        ({"ebm.train.epochs": 0}, "ebm: train.epochs = 0 leaves random weights; give some, or architecture.weights"),
        ({"ebm.train.epochs": 2.5}, "ebm.train.epochs = 2.5: input should be a valid integer"),
        ({"scorer.train.crop_padding": 8}, "scorer.train.crop_padding = 8: images have 8 pixels a side; give at most"),
        ({"teachers.ebm.train": {"crop_padding": 9}}, "ebm.train.crop_padding = 9: images have 8 pixels a side"),
        (
            {"data.source": "imagenet"},
            "data.source: 'imagenet' is none of cifar100, digits, folder, mnist, the files of",
        ),
        (
            {"scorer.architecture.name": "vgg16"},
            "scorer.architecture.name: 'vgg' is none of cnn, compact, residual, resnet",
        ),
        ({"distill.student.name": "resnet9"}, "distill.student.name: 'resnet9' is not resnet8 or resnet10 or resnet18"),
        ({"ebm.train.epochs": 10**21}, f"ebm.train.epochs = {10**21}: input should be less than or equal to 100000"),
        ({"ebm.train.lr": float("nan")}, "ebm.train.lr = nan: input should be a finite number"),
        ({"energies.train.sampler.step_size": float("inf")}, "energies.train.sampler.step_size = inf: input should be"),
        ({"energies": 5}, "energies = 5: input should be a valid dictionary"),
        ({"energies": None}, "energies = None: input should be a valid dictionary"),
        ({"energies.train": 5}, "energies.train = 5: input should be a valid dictionary"),
        ({"energies.matching.images": 0}, "energies.matching.images = 0: input should be greater than or equal to 1"),
        ({"data.source": "folder"}, "data.image_size must be given for source folder"),
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
        # Entries.
        ({"teachers": {}}, "teachers = {}: dictionary should have at least 1 item"),
        ({"teachers": ["ebm"]}, "teachers = ['ebm']: input should be a valid dictionary"),
        ({"branches": "all"}, "branches = 'all': input should be a valid dictionary"),
        ({"teachers.gan": {"kind": "gan"}}, "teachers.gan.kind = 'gan' is no kind; there are classifier, ebm, jem"),
        ({"teachers.gan": {"kind": ["ebm"]}}, "teachers.gan.kind = ['ebm'] is no kind; there are"),
        ({"teachers.gan": {}}, "teachers.gan.kind is missing; there are classifier, ebm, jem"),
        ({"teachers.ebm": "ebm"}, "teachers.ebm = 'ebm': give a dictionary such as {kind: ebm}"),
        ({"teachers.ebm.train": {"lr": -1.0}}, "teachers.ebm.train.lr = -1.0: input should be greater than 0 (Adam's"),
        ({"teachers.ebm.trian": {"lr": 1.0}}, "teachers.ebm.trian = {'lr': 1.0} is not a parameter"),
        ({"teachers.ebm.train": {"epochs": 0}}, "teachers.ebm: train.epochs = 0 leaves random weights"),
        ({"teachers.scorer": {"kind": "ebm"}}, "teachers: 'scorer' cannot be a name: lower-case letters"),
        ({"branches.Best": PRUNED}, "branches: 'Best' cannot be a name: lower-case letters, digits, - and _ make one"),
        ({f"branches.{'x' * 101}": PRUNED}, "- and _ make one of at most 100, and scorer and reference are taken"),
        ({"networks": ""}, "networks = '': string should have at least 1 character"),
        ({"data.folder": ""}, "data.folder = '': string should have at least 1 character"),
        ({"data.folder": "a\0b"}, "string should match pattern"),
        ({"data.classes": []}, "data.classes = []: list should have at least 1 item"),
        ({"data.classes": ["a", "b", "a"]}, "data.classes: a stands there twice"),
        ({"data.source": "torchvision.datasets."}, "data.source: 'torchvision.datasets.' is none of"),
        ({"branches.ebm": PRUNED}, "branches.ebm: teachers has one of this name, too; give it another"),
        ({"branches.x": {"target": "ebm", "start": "ebm"}}, "branches.x.by is missing (the method)"),
        (
            {"branches.x": {**PRUNED, "by": "prun"}},
            "branches.x.by = 'prun' is no method; there are prune, quantize, distill",
        ),
        ({"branches.x": {**PRUNED, "by": "budget"}}, "branches.x.by = 'budget' is no method"),  # but a file there
        ({"branches.x": {**PRUNED, "start": "none"}}, "branches.x.start = 'none' is no model; there are classifier"),
        ({"branches.x": {**PRUNED, "target": "ebm-pq"}}, "branches.x.target = 'ebm-pq' is no teacher; there are"),
        ({"branches.x": {**PRUNED, "amount": 2}}, "branches.x.amount = 2: input should be less than 1 (fraction to"),
        ({"branches.x": {**PRUNED, "bits": 2}}, "branches.x.bits = 2 is not a parameter; `lowenergy params` lists"),
        ({"branches.x": {**PRUNED, "kind": "2of4"}}, "branches.x: prune.kind = 2of4 halves every layer at once"),
        (
            {"branches.x": {**PRUNED, "start": "ebm-pq"}},
            "branches.x.start = 'ebm-pq' has been coded by pq, and no method goes on from codes; start from ebm",
        ),
        (
            {"branches.x": {**PRUNED, "start": "y"}, "branches.y": {**PRUNED, "start": "x"}},
            "branches: x, y start from each other; let one of them start from a teacher",
        ),
        ({"branches.x": {**PRUNED, "start": "x"}}, "branches: x start from each other"),
        (
            {"branches.x": {**PRUNED, "start": "jem-prune"}},
            "branches.x: start jem-prune comes from teacher jem of kind jem, target ebm is of kind ebm; both must be",
        ),
        (
            {
                "teachers.one": {"kind": "ebm", "architecture": {"head": "scalar", "logits": 1}},
                "branches.x": {**PRUNED, "start": "one"},
            },
            "branches.x: start one comes from teacher one of head scalar, target ebm is of head mean; both must be",
        ),
    ],
)
def test_bad_values_are_refused(values: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError) as error:
        params.check(with_values(values, change))
    assert message in str(error.value)
    lines = str(error.value).splitlines()
    assert all(line.startswith("params.yaml: ") for line in lines)
    assert len(lines) == 1 or any(key in change for key in ("teachers", "prune.amount", "branches.x"))
    assert len(lines) < 3


def test_unknown_and_missing_keys_are_refused(values: Any) -> None:
    changed = with_changes(values, {})
    changed["prune"]["ammount"] = changed["prune"].pop("amount")
    changed["extra"] = {}
    del changed["teachers"]["ebm"]["kind"], changed["prune"]["finetune"]["lr"], changed["ebm"]["architecture"]["name"]
    del changed["data"]
    with pytest.raises(ParamsError) as error:
        params.check(changed)
    for line in (
        "prune.ammount = 0.7 is not a parameter",
        "prune.finetune.lr is missing (peak learning rate (Adam, one cycle))",
        "extra is no section; `lowenergy params` lists all of them",
        "teachers.ebm.kind is missing",
        "ebm.architecture.name is missing (resnet18, resnet10",
        "data is missing (the images)",
    ):
        assert f"params.yaml: {line}" in str(error.value)
    changed = with_changes(values, {})
    del changed["jem"], changed["branches"]
    with pytest.raises(ParamsError, match="branches is missing"):
        params.check(changed)
    del changed["energies"]  # DVC, too, wants all sections that its stages name
    with pytest.raises(ParamsError, match="energies is missing .what kinds ebm and jem share."):
        params.check(changed)


@pytest.mark.parametrize("method", params.methods())
def test_defaults_of_methods_are_those_that_are_shipped(values: Any, method: str) -> None:
    """For whoever calls a method without a params.yaml."""
    assert params.method(method, {}) == params.method(method, values[method])


@pytest.mark.parametrize("kind", params.kinds())
def test_defaults_of_kinds_are_those_that_are_shipped(values: Any, kind: str) -> None:
    shipped = getattr(params.check(values), kind)
    for part in ("train", "matching", "evaluate"):
        assert getattr(shipped, part) == type(getattr(shipped, part))(), f"{kind}.{part}"


def test_what_is_left_out_of_the_file_is_the_default(values: Any) -> None:
    changed = with_changes(values, {})
    del changed["prune"]["amount"], changed["ebm"]["train"]["lr"], changed["energies"]["matching"]["images"]
    assert params.check(changed) == params.check(values)


def test_what_is_given_in_part_keeps_the_other_defaults() -> None:
    section = params.method("prune", {"amount": 0.5, "finetune": {"epochs": 1}})
    assert (section.amount, section.finetune.epochs, section.finetune.lr) == (0.5, 1, 0.002)
    with pytest.raises(ParamsError, match="^prune.finetune.epochs = -1: input should be"):
        params.method("prune", {"finetune": {"epochs": -1}})


def test_params_yaml_is_no_longer_than_a_person_reads(values: Any) -> None:
    sections = {name: section for name, section in values.items() if name not in ("teachers", "branches")}
    assert len(list(leaves(sections))) <= 150
    listed = {name: allowed for name, allowed, _ in params.listing()}
    assert {"pq.budget_bytes", "ebm.train.sampler.noise", "data.source", "teachers", "branches"} <= listed.keys()
    assert listed["prune.amount"] == "0 < number < 1"


def test_all_problems_are_reported_at_once(values: Any) -> None:
    with pytest.raises(ParamsError) as error:
        params.check(with_changes(values, {"seed": -1, "prune.amount": 0, "branches.ebm-pq.start": "none"}))
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [", "not valid YAML: while parsing a flow node did not find"),
        ("- 1", "expected sections"),
        ("seed: 0\nseed: 1", 'not valid YAML: .* found duplicate key "seed"'),
        pytest.param(f"seed: {'9' * 5000}", "not valid YAML: Exceeds the limit", id="digits"),
        ("x: &a {b: *a}", "more than 32 sections or lists in each other; an alias may lead to itself"),
        pytest.param(f"x: {'[' * 3000}{']' * 3000}", "more than 32 sections or lists in each other", id="deep"),
    ],
)
def test_files_that_are_no_params(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=message) as error:
        params.load(tmp_path / "params.yaml")
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ParamsError, match="no such file"):
        params.load(tmp_path / "elsewhere.yaml")


def test_what_changes_while_a_stage_runs_is_refused(
    values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC would note the new values beside what was made with the old ones."""
    monkeypatch.chdir(tmp_path)

    @params.held("seed", "prune", "branches.ebm-prune")
    def stage(changes: dict[str, Any]) -> None:
        YAML().dump(with_values(values, changes), Path("params.yaml"))

    for changes, named in (
        ({"prune.amount": 0.1}, "prune"),
        ({"branches.ebm-prune.amount": 0.1, "seed": 1}, "seed, branches.ebm-prune"),
    ):
        YAML().dump(values, Path("params.yaml"))
        with pytest.raises(ParamsError, match=f"^params.yaml: {named} changed while this stage ran.*run it again$"):
            stage(changes)
    YAML().dump(values, Path("params.yaml"))
    stage({"pq.codewords": 16, "branches.ebm-new": PRUNED})  # it does not read these


@pytest.mark.parametrize("place", ["data", "data/recipes", "models/photos", ".", "{}/plots/curves"])
def test_images_are_not_where_the_pipeline_deletes(
    values: Any, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("digits", "folder"):
        of_folder = {"data.source": source, "data.image_size": 16, "data.folder": place.format(tmp_path)}
        YAML().dump(with_values(values, of_folder), Path("params.yaml"))
        if source == "digits":
            params.load()
            continue
        with pytest.raises(ParamsError, match="the pipeline writes and deletes .*; move the images to a folder apart"):
            params.load()


def test_what_the_pipeline_deletes_are_the_outputs_of_dvc_yaml() -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].values()
    made = [stage.get("do", stage) for stage in stages]
    found = [out for stage in made for key in ("outs", "plots", "metrics") for out in stage.get(key, [])]
    outputs = [Path(out if isinstance(out, str) else next(iter(out))) for out in found]
    ours = [Path(out) for out in data.OUTPUTS]
    assert all(any(out.is_relative_to(own) for own in ours) for out in outputs)
    assert all(any(out.is_relative_to(own) for out in outputs) for own in ours)


def test_every_parameter_says_what_it_means() -> None:
    def check(section: type[BaseModel]) -> None:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                check(field.annotation)

    for section in (params.Params, *params.kinds().values(), *params.methods().values()):
        check(section)


def test_reading_takes_no_torch() -> None:
    """All sections are imported: shipped ones must be light, or every command and stage waits."""
    code = "import sys; from lowenergy import params; params.load(); assert params.methods() and params.kinds(); "
    heavy = "print([name for name in ('torch', 'numpy', 'pandas') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + heavy], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
