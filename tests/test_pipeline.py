"""The DAG as users drive it: real `dvc` commands in a scratch clone whose small pipeline has really run."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Clone, stages_run
from dvc.repo import Repo
from ruamel.yaml import YAML

import lowenergy
from lowenergy import params
from lowenergy.base.nested import with_values
from lowenergy.params import methods, recipes
from lowenergy.storage import artifact

TARGETS = ("classifier", "ebm")
BRANCHES = tuple(f"{target}-{method}" for target in TARGETS for method in methods())
MODELS = (*TARGETS, *BRANCHES)
EVERY_STAGE = {
    *("prepare", "recipes", "scorer", "report"),
    *(f"{stage}@{name}" for name in TARGETS for stage in ("teacher", "evaluate-teacher")),
    *(f"{stage}@{name}" for name in BRANCHES for stage in ("compress", "evaluate")),
}


def made(*names: str) -> set[str]:
    """The stages that run when these branches are made anew."""
    return {"report", *(f"{stage}@{name}" for name in names for stage in ("compress", "evaluate"))}


def hashes(clone: Clone) -> dict[str, str]:
    """Of every output of every stage, as DVC recorded them."""
    lock = yaml.safe_load((clone.path / "dvc.lock").read_text())
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def card_of(clone: Clone, name: str) -> dict[str, Any]:
    return json.loads((clone.path / f"cards/{name}.json").read_text())


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_first_run_runs_every_stage_once(clone: Clone) -> None:
    assert stages_run(clone.first_output) == EVERY_STAGE


def test_second_run_does_nothing_and_is_quick(clone: Clone) -> None:
    start = time.monotonic()
    output = clone.run("dvc", "repro")
    assert stages_run(output) == set()
    assert "up to date" in output
    assert time.monotonic() - start < 15  # 2 s alone; tests share the machine


def test_every_model_loads_and_is_as_large_as_its_card_says(clone: Clone) -> None:
    for name in MODELS:
        path = clone.path / f"models/{name}.safetensors"
        network, card = lowenergy.load(path), card_of(clone, name)
        assert card["size_bytes"] == path.stat().st_size
        assert card["parameters"] == sum(w.numel() for w in network.parameters())
        assert name in TARGETS or card["compression_ratio"] > 1.5, name


def test_provenance_names_the_start_by_its_hash(clone: Clone) -> None:
    for name, start in (("ebm-prune", "ebm"), ("ebm-quantize", "ebm-distill")):
        _, header = artifact.read(clone.path / f"models/{name}.safetensors")
        digest = artifact.sha256(clone.path / f"models/{start}.safetensors")
        assert header["provenance"]["start"] == {"name": start, "sha256": digest}
        assert header["target"] == "ebm"


def test_cards_are_those_of_the_contract(clone: Clone) -> None:
    size = {"size_bytes", "compression_ratio", "bits_per_weight", "parameters", "nonzero_parameters", "macs"}
    answered = {"images", "accuracy", "accuracy_interval", "nll", "calibration_error"}
    in_test_only = {"inception_score", "inception_score_interval"}
    drawn = {"samples", "fid", "fid_interval"} | in_test_only
    kept = json.loads((clone.path / "cards.json").read_text())
    named = yaml.safe_load((clone.path / "params.yaml").read_text())["branches"]
    in_order = [(kind, *(name for name in named if name.startswith(kind))) for kind in TARGETS]
    assert list(kept) == ["scorer", *(name for group in in_order for name in group)] and {*kept} == {"scorer", *MODELS}
    assert {path.stem for path in (clone.path / "metrics").iterdir()} == kept.keys()
    for name in MODELS:
        target, _, method = name.partition("-")
        card, few = card_of(clone, name), json.loads((clone.path / f"metrics/{name}.json").read_text())
        assert kept[name] == card
        quality = "accuracy" if target == "classifier" else "fid"
        assert set(few) == {"size_bytes", quality, "validation"} and set(few["validation"]) == {quality}
        assert all(card[key] == value for key, value in few.items() if key != "validation")
        assert few["validation"][quality] == card["validation"][quality] != card[quality]
        by_method = {"pq": {"codes_bytes", "codebooks_bytes", "other_bytes"}, "prune": {"pruned"}}.get(method, set())
        of_kind = answered | {"micronet"} if target == "classifier" else drawn | {"ood_auroc"}
        compared = {"agreement"} if target == "classifier" else {"fid_to_teacher", "energy_correlation"}
        of_teacher = {"recoveries"} if name == "ebm" else set()
        beside_it = of_teacher if name == target else compared | {"lost"}
        seldom = {"warnings", "lost_most"}
        assert set(card) - seldom == size | {"validation"} | by_method | of_kind | beside_it
        validation = card["validation"]
        assert set(validation) == of_kind - {"micronet", "ood_auroc"} - in_test_only | ({"lost"} & beside_it)
        for figures in (card, validation):
            low, high = figures[f"{quality}_interval"]
            assert low < figures[quality] < high
            if "lost" in figures:
                low, high = figures["lost"][f"{quality}_interval"]
                own, theirs = (f if figures is card else f["validation"] for f in (card, kept[target]))
                lost = theirs[quality] - own[quality] if quality == "accuracy" else own[quality] - theirs[quality]
                assert low < figures["lost"][quality] < high and figures["lost"][quality] == pytest.approx(lost)
    scores = {"score", "score_integer", "score_tree", "simplified"}
    assert set(kept["classifier"]["micronet"]) == {"storage", "operations"} | scores
    assert set(kept["ebm"]["ood_auroc"]) == {"noise", "rotation", "reduction"}
    pruned = kept["classifier-prune"]
    assert pruned["nonzero_parameters"] < 0.35 * pruned["parameters"]  # amount: 0.7, masks held while finetuning


def test_what_git_has_is_what_the_last_stage_wrote(clone: Clone) -> None:
    """All else is in DVC's cache, so that it can be made anywhere and taken from there."""
    uncached = {out.def_path for stage in Repo(str(clone.path)).index.stages for out in stage.outs if not out.use_cache}
    assert uncached == {"cards.json", "metrics"}
    tracked = clone.run("git", "ls-files", "cards.json", "metrics", "cards", "models", "data/recipes").split()
    assert set(tracked) == {"cards.json", *(f"metrics/{name}.json" for name in ("scorer", *MODELS))}


def test_report_is_one_self_contained_page(clone: Clone) -> None:
    page = (clone.path / "report.html").read_text()
    for text in ("Which model should I take?", "Classifier", "Energy-based model", "compression_ratio", "distill"):
        assert text in page
    first_screen = page[page.index("<body>") : page.index("<details>")]
    assert first_screen.count('<svg class="front"') == len(TARGETS) and first_screen.count("<title>") == 10
    assert "<img" not in first_screen  # folded below
    assert (
        page.count('class="grid"') == len([name for name in MODELS if name.startswith("ebm")]) + 4
    )  # samples of each EBM; what else shows of the teacher
    assert "<svg" in page
    assert page.count('class="changed"') == sum(card_of(clone, name).get("agreement", 1) < 1 for name in MODELS) > 0
    assert 'src="http' not in page and 'href="http' not in page.replace('xlink:href="http', "")


NEW = "{target: classifier, start: classifier, by: pq, codewords: 16}"


@pytest.mark.slow
def test_an_experiment_reruns_exactly_what_its_changes_reach(clone: Clone) -> None:
    """One entry has another value, one another start, one is new and one is gone; DVC shows all of it."""
    changes = ("++branches.classifier-prune.amount=0.8", "branches.classifier-quantize.start=classifier-distill")
    entries = (f"+branches.classifier-coarse={NEW}", "~branches.ebm-prune")
    options = [part for change in (*changes, *entries) for part in ("-S", change)]
    output = clone.run("dvc", "exp", "run", "-n", "other", *options)
    try:
        assert stages_run(output) == made("classifier-prune", "classifier-quantize", "classifier-coarse")
        _, header = artifact.read(clone.path / "models/classifier-quantize.safetensors")
        assert header["provenance"]["start"]["name"] == "classifier-distill"
        chained, student = (card_of(clone, f"classifier-{name}") for name in ("quantize", "distill"))
        assert chained["size_bytes"] < student["size_bytes"] / 2

        changed = table(clone.run("dvc", "params", "diff", "HEAD", "--md").replace("|", ","))
        assert any("branches.classifier-prune.amount" in str(row) for row in changed)

        rows = json.loads(clone.run("dvc", "metrics", "diff", "HEAD", "other", "--json"))
        moved = rows.get("diff", rows)
        names = ("classifier-prune", "classifier-quantize", "classifier-coarse", "ebm-prune")
        assert set(moved) == {f"metrics/{name}.json" for name in names}
        assert not (clone.path / "metrics/ebm-prune.json").exists()
        sparser = moved["metrics/classifier-prune.json"]["size_bytes"]
        assert sparser["new"] < sparser["old"]
        assert card_of(clone, "classifier-coarse")["size_bytes"] < card_of(clone, "classifier-pq")["size_bytes"]

        shown = {row["Experiment"]: row for row in table(clone.run("dvc", "exp", "show", "--csv"))}
        assert shown["other"]["branches.classifier-prune.amount"] == "0.8"
        assert shown["other"]["metrics/classifier-prune.json:size_bytes"] == str(sparser["new"])

        page = clone.run("dvc", "plots", "diff", "HEAD", "other", "--out", "plots_diff")
        assert (clone.path / "plots_diff" / "index.html").exists(), page
        assert "size against accuracy" in (clone.path / "plots_diff" / "index.html").read_text()
    finally:
        restore(clone)


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"pq.kmeans_steps": 6}, {"compress@classifier-pq", "compress@ebm-pq"}),  # of all branches by a method
        ({"energies.matching.images": 101}, {"recipes", *(f"compress@ebm-{method}" for method in methods())}),
        (
            {"ebm.evaluate.samples": 201},
            {"recipes", "evaluate-teacher@ebm", *(f"evaluate@ebm-{method}" for method in methods())},
        ),
        ({"teachers.classifier.architecture": {"width": 8}}, {"recipes", "teacher@classifier", "report"}),
        ({"jem.train.lr": 0.1}, {"recipes"}),  # of no teacher
        ({"branches.ebm-pq.codewords": 16}, {"compress@ebm-pq", "report"}),
    ],
)
def test_values_are_read_by_the_stages_that_say_so(
    clone: Clone, change: dict[str, Any], stages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the recipes rewritten, as the first stage would; `recipes` itself has other parameters, or other outputs."""
    monkeypatch.chdir(clone.path)
    path, yaml = Path("params.yaml"), YAML()
    before, stale = path.read_text(), set(Repo(str(clone.path)).status())
    assert stale <= {"report"}  # which other tests of this clone may leave to be written again
    try:
        yaml.dump(with_values(yaml.load(before), change), path)
        recipes.write(params.load())
        assert set(Repo(str(clone.path)).status()) == stages | stale
    finally:
        path.write_text(before)
        recipes.write(params.load())


@pytest.mark.slow
def test_a_sweep_survives_a_bad_cell_and_a_killed_worker(clone: Clone, tmp_path: Path) -> None:
    """Two cells: one cannot be done, one is killed while it runs and is queued again; the table has what was done."""

    def queue(amounts: str) -> None:
        clone.run(
            *("dvc", "exp", "run", "--queue", "-S", "+branches.classifier-prune.kind=structured"),
            *("-S", "+branches.classifier-prune.amount_of=macs", "-S", f"+branches.classifier-prune.amount={amounts}"),
        )

    def states() -> list[str]:
        return [line.split()[-1] for line in clone.run("dvc", "queue", "status").splitlines()[1:] if line.strip()]

    def start() -> None:
        # Not through a pipe: the worker would inherit it, and its end be waited for.
        nowhere = subprocess.DEVNULL
        command = ["dvc", "queue", "start"]
        subprocess.run(command, cwd=clone.path, env=clone.environment, stdout=nowhere, stderr=nowhere, check=True)

    def run_queue() -> list[str]:
        start()
        for _ in range(120):
            time.sleep(2)
            if not {"Queued", "Running"} & set(found := states()):
                return found
        raise AssertionError(clone.run("dvc", "queue", "status"))

    clone.run("dvc", "queue", "remove", "--all", check=False)  # of earlier tests
    queue("0.3,0.999")
    try:
        start()
        for pid in running_stages(clone):
            os.kill(pid, signal.SIGKILL)
        found = run_queue()
        assert (found.count("Failed"), found.count("Success")) == (2, 0)
        assert "more multiply-accumulates than can go" in "".join(
            path.read_text() for path in (clone.path / ".dvc/tmp/exps/run").rglob("*.out")
        )
        queue("0.3")  # the killed one again
        assert run_queue().count("Success") == 1

        output = clone.run("lowenergy", "sweep-plot", "--target", "classifier", "--out", str(tmp_path))
        assert "2 failed: " in output
        rows = [row for row in table((tmp_path / "classifier.csv").read_text()) if row["prune.amount_of"] == "macs"]
        assert [row["prune.amount"] for row in rows] == ["0.3"]
        assert 0 < float(rows[0]["macs"]) <= 0.7 * card_of(clone, "classifier")["macs"]
        for chart in ("amount", "ratio"):
            assert "<svg" in (tmp_path / f"classifier-{chart}.svg").read_text()
        again = tmp_path / "again"
        clone.run(
            "lowenergy", "sweep-plot", str(tmp_path / "classifier.csv"), "--target", "classifier", "--out", str(again)
        )
        for path in again.iterdir():
            assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    finally:
        clone.run("dvc", "queue", "stop", "--kill", check=False)
        clone.run("dvc", "queue", "remove", "--all", check=False)
        restore(clone)


def running_stages(clone: Clone) -> list[int]:
    """The processes of stages that run in the clone's queue."""
    for _ in range(300):
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                inside = (process / "cwd").readlink().is_relative_to(clone.path / ".dvc/tmp/exps")
                if inside and b"stages.compress" in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError("no stage runs")


@pytest.mark.slow
def test_forced_rerun_gives_the_same_bytes(clone: Clone) -> None:
    """One stage of each kind, one after another and side by side; without names all of them are run again."""
    again = ["report", "evaluate-teacher@classifier", *(f"compress@ebm-{m}" for m in ("prune", "quantize", "distill"))]
    before = hashes(clone)
    output = clone.run("dvc", "repro", "--force", "--single-item", *again)
    assert stages_run(output) == set(again)
    assert hashes(clone) == before
    output = clone.run("lowenergy", "run", "--force", "--jobs", "2", "evaluate@ebm-pq")
    assert "7 done" in output  # prepare, recipes, scorer, teacher, evaluate-teacher, compress, evaluate
    assert hashes(clone) == before
    assert stages_run(clone.run("dvc", "repro")) == set()
    assert clone.run("git", "status", "--porcelain") == ""


def test_bad_params_stop_the_first_stage_and_lose_nothing(clone: Clone) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(clone.path / "models").rglob("*.safetensors")}
    try:
        clone.set({"seed": 5, "prune.amount": 1.2, "branches.ebm-pq.start": "ebm-quantize"})
        output = clone.run("dvc", "repro", check=False)
        assert "prune.amount = 1.2" in output and "coded by quantize" in output
        assert stages_run(output) <= {"prepare", "recipes"}
    finally:
        restore(clone)
    after = {path: path.stat().st_mtime_ns for path in Path(clone.path / "models").rglob("*.safetensors")}
    assert set(after) == set(before)


def restore(clone: Clone) -> None:
    """Back to the committed first run, files and all."""
    shutil.rmtree(clone.path / "plots_diff", ignore_errors=True)
    clone.run("git", "reset", "-q", "--hard", "main")
    clone.run("dvc", "checkout", "-q", "--force")
