"""docs/extending.md, word by word: its files written, its entries made, its commands run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Clone, stages_run
from ruamel.yaml import YAML

from lowenergy.base.nested import laid_over, with_values

pytestmark = pytest.mark.slow

DOCUMENT = (ROOT / "docs" / "extending.md").read_text()


ENTRIES = ("teachers", "branches")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    clone = Clone.made(tmp_path_factory.mktemp("extended"), tmp_path_factory.mktemp("trace"))
    for path, code in re.findall(r"```python\n# (\S+)\n(.*?)```", DOCUMENT, re.DOTALL):
        assert not (clone.path / path).exists()
        (clone.path / path).parent.mkdir(exist_ok=True)
        (clone.path / path).write_text(code)
    yaml, params = YAML(), clone.path / "params.yaml"
    values: Any = {name: part for name, part in yaml.load(params).items() if name not in ENTRIES}
    blocks = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    (listed,) = (block for block in blocks if block.startswith("    params: "))
    for block in blocks:
        if block is not listed:
            values = laid_over(YAML(typ="safe").load(block), values)
    yaml.dump(values, params)
    pipeline = clone.path / "dvc.yaml"
    before = "    params: [teachers, classifier, energies, ebm, jem]\n"
    assert before in pipeline.read_text()
    pipeline.write_text(pipeline.read_text().replace(before, listed))
    clone.commit("extended")
    return clone


def test_one_of_each_is_added_and_runs(extended: Clone) -> None:
    output = extended.run("dvc", "repro", "evaluate@margin-halve")
    of_models = {f"{stage}@margin" for stage in ("teacher", "evaluate-teacher")}
    of_models |= {f"{stage}@margin-halve" for stage in ("compress", "evaluate")}
    assert stages_run(output) == {"prepare", "recipes", "scorer"} | of_models
    card = json.loads((extended.path / "cards/margin-halve.json").read_text())
    assert card["accuracy"] > 0.95
    assert 1.5 < card["compression_ratio"] < 2.1
    assert "halve" in extended.run("python", "-m", "lowenergy.cli", "table")
    scorer = json.loads((extended.path / "cards/scorer.json").read_text())
    assert scorer["accuracy"] > 0.95  # by the added network


def test_mistakes_in_the_added_section_are_named(extended: Clone) -> None:
    params = extended.path / "params.yaml"
    before = params.read_text()
    try:
        for change, message in (
            ({"halve.smallest": 0}, "halve.smallest = 0: input should be greater than or equal to 1 (tensors with"),
            ({"branches.margin-halve.smallest": 0}, "branches.margin-halve.smallest = 0: input should be greater"),
            ({"margin.train.lr": -1}, "margin.train.lr = -1: input should be greater than 0"),
        ):
            YAML().dump(with_values(YAML().load(before), change), params)
            assert message in extended.run("python", "-m", "lowenergy.cli", "check", check=False)
    finally:
        params.write_text(before)


def test_the_added_files_are_all_of_the_change(extended: Clone) -> None:
    changed = extended.run("git", "status", "--porcelain", "--untracked-files=all")
    assert not [line for line in changed.splitlines() if not line.endswith((".json", "dvc.lock"))]
    assert len(re.findall(r"```python\n# ", DOCUMENT)) == 4
    assert Path(ROOT / "docs/extending.md").stat().st_size < 10_000
