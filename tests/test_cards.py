"""Cards that git has stand for models that were not measured here, as long as params.yaml makes the same ones."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from lowenergy import params
from lowenergy.base import cards
from lowenergy.base.files import FileError
from lowenergy.reporting import markdown

RECIPE = b'{"epochs": 1}'
VALUES: dict[str, Any] = {
    "seed": 0,
    "data": {"source": "digits"},
    "prune": {"amount": 0.5},
    "teachers": {"ebm": {"kind": "ebm"}},
    "branches": {
        "ebm-prune": {"target": "ebm", "start": "ebm", "by": "prune"},
        "ebm-twice": {"target": "ebm", "start": "ebm-prune", "by": "prune"},
    },
}


def stage(params: dict[str, Any], deps: dict[str, str], outs: dict[str, str]) -> dict[str, Any]:
    deps_, outs_ = ([{"path": path, "md5": md5} for path, md5 in each.items()] for each in (deps, outs))
    return {"params": {"params.yaml": params}, "deps": deps_, "outs": outs_}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    recipe = hashlib.md5(RECIPE).hexdigest()
    stages = {
        "prepare": stage({"data": {"source": "digits"}, "seed": 0}, {}, {"data/splits": "s"}),
        "recipes": stage({"teachers": VALUES["teachers"]}, {}, {"data/recipes": "r.dir"}),
        "teacher@ebm": stage({"seed": 0}, {"data/splits": "s", "data/recipes/ebm.json": recipe}, {"models/ebm": "e"}),
        "compress@ebm-prune": stage({"prune": {"amount": 0.5}}, {"models/ebm": "e"}, {"models/ebm-prune": "p"}),
        "compress@ebm-twice": stage({"prune": {"amount": 0.5}}, {"models/ebm-prune": "p"}, {"models/ebm-twice": "t"}),
    }
    (tmp_path / "data/recipes").mkdir(parents=True)
    (tmp_path / "data/recipes/ebm.json").write_bytes(RECIPE)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(VALUES))
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    (tmp_path / "cards.json").write_text(json.dumps({name: {"fid": 1.0} for name in ("ebm", "ebm-prune", "ebm-twice")}))
    return tmp_path


def there(root: Path) -> list[str]:
    return [*cards.collect(["ebm", "ebm-prune", "ebm-twice"], root)]


def test_git_s_figures_count_in_a_fresh_clone(root: Path) -> None:
    assert there(root) == ["ebm", "ebm-prune", "ebm-twice"]


@pytest.mark.parametrize(
    ("place", "value", "left"),
    [
        (("data", "source"), "folder", []),
        (("seed",), 1, []),
        (("prune", "amount"), 0.9, ["ebm"]),
    ],
)
def test_figures_of_other_values_do_not_count(root: Path, place: tuple[str, ...], value: Any, left: list[str]) -> None:
    values = yaml.safe_load((root / "params.yaml").read_text())
    section = values
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    assert there(root) == left


def test_values_are_read_as_dvc_reads_them(root: Path) -> None:
    """To YAML 1.1, 5e-1 is a text and 00 an octal number."""
    text = (root / "params.yaml").read_text()
    assert "amount: 0.5" in text and "seed: 0" in text
    (root / "params.yaml").write_text(text.replace("amount: 0.5", "amount: 5e-1").replace("seed: 0", "seed: 00"))
    assert there(root) == ["ebm", "ebm-prune", "ebm-twice"]


@pytest.mark.parametrize(("made", "left"), [("teacher@ebm", ["ebm"]), ("prepare", [])])
def test_figures_of_other_files_do_not_count(root: Path, made: str, left: list[str]) -> None:
    """A run that has got as far as this stage has made another file than the figures are of."""
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    lock["stages"][made]["outs"][0]["md5"] = "new"
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert there(root) == left


def test_figures_of_another_recipe_do_not_count(root: Path) -> None:
    (root / "data/recipes/ebm.json").write_bytes(b'{"epochs": 2}')
    assert there(root) == []


def test_what_was_measured_here_counts(root: Path) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump(VALUES | {"seed": 1}))
    (root / "cards").mkdir()
    (root / "cards/ebm.json").write_text('{"fid": 2.0}')
    assert cards.collect(["ebm", "ebm-prune"], root) == {"ebm": {"fid": 2.0}}


def test_a_comment_has_nothing_but_its_text(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`lowenergy report` prints it, so git must not print as well."""
    for command in (
        ["init", "-q"],
        ["-c", "user.name=t", "-c", "user.email=t@e", "commit", "-qm", "t", "--allow-empty"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(markdown, "collect", lambda *_: pd.DataFrame({"target": [], "model": []}))
    capfd.readouterr()
    assert markdown.text(params.load(), "HEAD", tmp_path).startswith("## Compressed models")
    assert capfd.readouterr().out == ""


def test_what_the_figures_do_not_show_is_said(root: Path) -> None:
    """A branch that has none yet, and one whose figures are from before a change, as after a run that failed."""
    names = ["ebm", "ebm-prune", "ebm-new"]
    (root / "cards").mkdir()
    (root / "cards/ebm-prune.json").write_text(json.dumps({"fid": 2.0}))
    assert cards.remarks(names, root) == ["no figures yet: ebm-new"]
    (root / "params.yaml").write_text(yaml.safe_dump({**VALUES, "prune": {"amount": 0.9}}))
    assert cards.remarks(names, root) == [
        "no figures yet: ebm-new",
        "figures from before a change of what they are made from: ebm-prune",
    ]
    assert cards.collect(["ebm-prune"], root)["ebm-prune"] == {"fid": 2.0}
    (root / "dvc.lock").unlink()
    assert cards.remarks(["ebm-prune"], root) == []


def test_a_card_that_its_stage_did_not_write_is_named(root: Path) -> None:
    (root / "cards").mkdir()
    (root / "cards/ebm-prune.json").write_text(json.dumps({"fid": 2.0}))
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    for content, said in (
        (b'{"fid": 2.0}', []),
        (b'{"fid": 1.0}', ["cards that their stages did not write: ebm-prune"]),
    ):
        outs = {"cards/ebm-prune.json": hashlib.md5(content).hexdigest()}
        lock["stages"]["evaluate@ebm-prune"] = stage({}, {}, outs)
        (root / "dvc.lock").write_text(yaml.safe_dump(lock))
        assert cards.remarks(["ebm-prune"], root) == said


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"fid": 1.',
        "[]",
        "{}",
        "3",
        '{"fid": "x"}',
        '{"fid": 1.0, "validation": {"fid": "x"}}',
        '{"accuracy": null}',
    ],
)
@pytest.mark.parametrize("name", ["cards/ebm.json", "cards.json"])
def test_a_damaged_card_is_one_line(root: Path, name: str, content: str) -> None:
    (root / "cards").mkdir()
    (root / name).write_text(f'{{"ebm": {content}}}' if name == "cards.json" and ": " in content else content)
    with pytest.raises(FileError, match=f"{name}: damaged, there are no figures in it; `dvc repro` makes it again"):
        cards.collect(["ebm"], root)
