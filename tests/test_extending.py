"""docs/extending.md, word by word: its files written, its entries made, its commands run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Clone, stages_run
from ruamel.yaml import YAML

DOCUMENT = (ROOT / "docs" / "extending.md").read_text()


def merge(values: Any, changes: Any) -> None:
    for key, new in changes.items():
        if isinstance(new, dict) and key in values and key != "targets":
            merge(values[key], new)
        else:
            values[key] = new


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    clone = Clone.made(tmp_path_factory.mktemp("extended"), tmp_path_factory.mktemp("trace"))
    for path, code in re.findall(r"```python\n# (\S+)\n(.*?)```", DOCUMENT, re.DOTALL):
        assert not (clone.path / path).exists()
        (clone.path / path).write_text(code)
    yaml, params = YAML(), clone.path / "params.yaml"
    values = yaml.load(params)
    blocks = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    (stage,) = (block for block in blocks if block.startswith("  "))
    for block in blocks:
        if block is not stage:
            merge(values, YAML(typ="safe").load(block))
    yaml.dump(values, params)
    pipeline = clone.path / "dvc.yaml"
    text = pipeline.read_text()
    listed = re.search(r"branch: \[.*?\]", DOCUMENT)
    assert listed
    text = re.sub(r"branch: \[.*?\]", listed[0], text).replace("  evaluate: #", f"{stage}\n  evaluate: #")
    pipeline.write_text(text)
    clone.commit("extended")
    return clone


def test_one_of_each_is_added_and_runs(extended: Clone) -> None:
    output = extended.run("dvc", "repro", "evaluate@margin-halve")
    assert stages_run(output) == {"prepare", "scorer", "teacher@margin", "halve@margin", "evaluate@margin-halve"}
    card = json.loads((extended.path / "metrics/margin/halve.card.json").read_text())
    assert card["accuracy"] > 0.95
    assert 1.5 < card["compression_ratio"] < 2.1
    assert "halve" in extended.run("python", "-m", "lowenergy.cli", "table")
    scorer = json.loads((extended.path / "metrics/scorer.json").read_text())
    assert scorer["accuracy"] > 0.95  # by the added network


def test_mistakes_in_the_added_section_are_named(extended: Clone) -> None:
    yaml, params = YAML(), extended.path / "params.yaml"
    before = params.read_text()
    values = yaml.load(params)
    values["halve"]["source"] = "pq"
    yaml.dump(values, params)
    output = extended.run("python", "-m", "lowenergy.cli", "check", check=False)
    params.write_text(before)
    assert "halve.source = 'pq': input should be 'teacher' or 'distill'" in output


def test_the_added_files_are_all_of_the_change(extended: Clone) -> None:
    changed = extended.run("git", "status", "--porcelain", "--untracked-files=all")
    assert not [line for line in changed.splitlines() if not line.endswith((".json", "dvc.lock"))]
    assert len(re.findall(r"```python\n# ", DOCUMENT)) == 4
    assert Path(ROOT / "docs/extending.md").stat().st_size < 10_000
