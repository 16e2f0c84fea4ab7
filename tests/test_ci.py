"""docs/ci.md by its own commands: what a pull request would say, and a model from the registry."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Clone

import lowenergy

pytestmark = pytest.mark.slow

DOCUMENT = (ROOT / "docs/ci.md").read_text()


def test_the_workflow_says_what_changed(clone: Clone) -> None:
    workflow = yaml.safe_load(re.search(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)[1])
    steps = {step["name"]: step["run"] for step in workflow["jobs"]["compress"]["steps"] if "run" in step}
    assert list(steps) == ["install", "run what changed", "say what it gives", "post it"]
    clone.run("git", "update-ref", "refs/remotes/origin/main", "main")
    clone.run("git", "checkout", "-q", "-b", "change")
    try:
        clone.set({"distill.student.width": 4})
        for name in ("run what changed", "say what it gives"):
            clone.run("bash", "-ec", steps[name])
        said = (clone.path / "report.md").read_text()
        changes, rest = said[: said.index("###")], said[said.index("###") :]
        rows = [line.split("|")[1:-1] for line in changes.splitlines() if line.startswith("| ")]
        assert [cell.strip() for cell in rows[0]] == ["model", "figure", "origin/main", "now"]
        assert {row[0].strip() for row in rows[1:]} == {"classifier-distill", "ebm-distill", "ebm-quantize"}
        card = json.loads((clone.path / "metrics/classifier-distill.json").read_text())
        assert any(row[1].strip() == "bytes" and row[3].strip() == f"{card['size_bytes']:,}" for row in rows[1:])
        assert "Classifier: which to take" in rest and "val. acc." in rest
        pictures = re.findall(r"\]\((.*?)\)", rest)
        assert len(pictures) == 5 and all((clone.path / picture).exists() for picture in pictures)
        assert "No figure differs from" not in said
    finally:
        clone.run("git", "checkout", "-q", "--force", "main")
        (clone.path / "report.md").unlink(missing_ok=True)
        clone.run("dvc", "checkout", "-q", "--force")
        clone.run("git", "update-ref", "-d", "refs/remotes/origin/main")
    assert "No figure differs from main's" in clone.run("lowenergy", "report", "--base", "main")
    assert "git knows no such revision" in clone.run("lowenergy", "report", "--base", "none", check=False)


def test_a_registered_model_can_be_got(clone: Clone, tmp_path: Path) -> None:
    clone.run("gto", "register", "ebm")
    try:
        assert clone.run("git", "tag").split() == ["ebm@v0.0.1"]
        out = tmp_path / "got.safetensors"
        clone.run("dvc", "artifacts", "get", str(clone.path), "ebm", "--rev", "v0.0.1", "--out", str(out))
        assert out.read_bytes() == (clone.path / "models/ebm-distill.safetensors").read_bytes()
        assert lowenergy.load(out).spec.head == "mean"
    finally:
        clone.run("git", "tag", "--delete", "ebm@v0.0.1")
        shutil.rmtree(tmp_path, ignore_errors=True)
