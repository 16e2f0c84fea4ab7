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

import pytest
import yaml
from conftest import Clone, stages_run

import lowenergy
from lowenergy.base.params import BRANCHES
from lowenergy.storage import artifact

TARGETS = ("classifier", "ebm")
EVERY_STAGE = {"prepare", "scorer", "report"} | {
    stage
    for target in TARGETS
    for stage in (f"teacher@{target}", *(f"{method}@{target}" for method in BRANCHES[1:]))
    + tuple(f"evaluate@{target}-{branch}" for branch in BRANCHES)
}
PRUNE_STAGES = {"report"} | {s for t in TARGETS for s in (f"prune@{t}", f"evaluate@{t}-prune")}


def hashes(clone: Clone) -> dict[str, str]:
    """Of every output of every stage, as DVC recorded them."""
    lock = yaml.safe_load((clone.path / "dvc.lock").read_text())
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


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


def test_every_model_loads_and_is_as_large_as_its_metrics_say(clone: Clone) -> None:
    for target in TARGETS:
        for branch in BRANCHES:
            path = clone.path / "models" / target / f"{branch}.safetensors"
            network = lowenergy.load(path)
            metrics = json.loads((clone.path / "metrics" / target / f"{branch}.card.json").read_text())
            assert metrics["size_bytes"] == path.stat().st_size
            assert metrics["parameters"] == sum(w.numel() for w in network.parameters())
            if branch != "teacher":
                assert metrics["compression_ratio"] > 1.5, (target, branch)


def test_provenance_names_the_source_by_its_hash(clone: Clone) -> None:
    _, header = artifact.read(clone.path / "models/ebm/prune.safetensors")
    teacher = artifact.sha256(clone.path / "models/ebm/teacher.safetensors")
    assert header["provenance"]["source"] == {"branch": "teacher", "sha256": teacher}


def test_metric_keys_are_those_of_the_contract(clone: Clone) -> None:
    size = {"size_bytes", "compression_ratio", "bits_per_weight", "parameters", "nonzero_parameters", "macs"}
    for branch in BRANCHES:
        classifier, ebm = (
            json.loads((clone.path / f"metrics/{target}/{branch}.card.json").read_text()) for target in TARGETS
        )
        for target, card in (("classifier", classifier), ("ebm", ebm)):  # the few that DVC shows are of the card
            few = json.loads((clone.path / f"metrics/{target}/{branch}.json").read_text())
            quality = "accuracy" if target == "classifier" else "fid"
            assert set(few) == {"size_bytes", quality, "validation"} and set(few["validation"]) == {quality}
            assert all(card[key] == value for key, value in few.items() if key != "validation")
            assert few["validation"][quality] == card["validation"][quality] != card[quality]
        split = {"codes_bytes", "codebooks_bytes", "other_bytes"} if branch == "pq" else set()
        of_teacher = {"recoveries"} if branch == "teacher" else set()
        assert set(classifier) == size | split | {"accuracy", "nll", "validation", "micronet"}
        assert set(classifier["micronet"]) == {"storage", "operations", "score", "simplified"}
        assert set(ebm) == size | split | {"fid", "inception_score", "ood_auroc", "validation"} | of_teacher
        assert set(ebm["ood_auroc"]) == {"noise", "rotation", "reduction"}
    pruned = json.loads((clone.path / "metrics/classifier/prune.card.json").read_text())
    assert pruned["nonzero_parameters"] < 0.35 * pruned["parameters"]  # amount: 0.7, masks held while finetuning


def test_report_is_one_self_contained_page(clone: Clone) -> None:
    page = (clone.path / "report.html").read_text()
    for text in ("Which model should I take?", "Classifier", "Energy-based model", "compression_ratio", "distill"):
        assert text in page
    first_screen = page[page.index("<body>") : page.index("<details>")]
    assert first_screen.count('<svg class="front"') == len(TARGETS) and first_screen.count("<title>") == 10
    assert "<img" not in first_screen  # folded below
    assert page.count('class="grid"') == len(BRANCHES) + 4  # samples of each EBM; what else shows of the teacher
    assert "<svg" in page
    assert 'src="http' not in page and 'href="http' not in page.replace('xlink:href="http', "")


def test_changed_parameter_reruns_exactly_what_reads_it(clone: Clone) -> None:
    output = clone.run("dvc", "exp", "run", "-n", "sparser", "-S", "prune.amount=0.8")
    try:
        assert stages_run(output) == PRUNE_STAGES

        changed = table(clone.run("dvc", "params", "diff", "HEAD", "--md").replace("|", ","))
        assert any("prune.amount" in str(row) for row in changed)

        rows = json.loads(clone.run("dvc", "metrics", "diff", "HEAD", "--json"))
        assert set(rows) == {"diff"} or rows
        moved = rows.get("diff", rows)
        assert set(moved) == {"metrics/classifier/prune.json", "metrics/ebm/prune.json"}
        sparser = moved["metrics/classifier/prune.json"]["size_bytes"]
        assert sparser["new"] < sparser["old"]

        shown = table(clone.run("dvc", "exp", "show", "--csv"))
        names = {row["Experiment"]: row for row in shown}
        assert names["sparser"]["prune.amount"] == "0.8"

        page = clone.run("dvc", "plots", "diff", "HEAD", "sparser", "--out", "plots_diff")
        assert (clone.path / "plots_diff" / "index.html").exists(), page
        assert "size against accuracy" in (clone.path / "plots_diff" / "index.html").read_text()
    finally:
        restore(clone)


def test_metrics_diff_between_branches_and_experiments(clone: Clone) -> None:
    clone.run("git", "checkout", "-q", "-b", "narrow")
    try:
        clone.set({"distill.student.width": 4})
        clone.run("dvc", "repro", "evaluate@classifier-distill")
        clone.commit("narrower student")
        rows = json.loads(clone.run("dvc", "metrics", "diff", "main", "narrow", "--json"))
        moved = rows.get("diff", rows)["metrics/classifier/distill.json"]["size_bytes"]
        assert moved["new"] < moved["old"]
    finally:
        clone.run("git", "checkout", "-q", "main")
        restore(clone)


def test_queued_experiments_run_and_show_up(clone: Clone) -> None:
    clone.run("dvc", "exp", "run", "--queue", "-n", "coarse", "-S", "pq.codewords=16", "-S", "~targets.ebm")
    try:
        clone.run("dvc", "exp", "run", "--run-all")
        shown = {row["Experiment"]: row for row in table(clone.run("dvc", "exp", "show", "--csv"))}
        assert shown["coarse"]["pq.codewords"] == "16"
        rows = json.loads(clone.run("dvc", "metrics", "diff", "main", "coarse", "--json"))
        moved = rows.get("diff", rows)["metrics/classifier/pq.json"]["size_bytes"]
        assert moved["new"] < moved["old"]
    finally:
        restore(clone)


def test_a_sweep_survives_a_bad_cell_and_a_killed_worker(clone: Clone, tmp_path: Path) -> None:
    """Three cells: one cannot be done, one is killed while it runs and is queued again; the table has all others."""

    def queue(amounts: str) -> None:
        clone.run(
            *("dvc", "exp", "run", "--queue", "-S", "prune.kind=structured", "-S", "prune.amount_of=macs"),
            *("-S", f"prune.amount={amounts}", "-S", "~targets.ebm", "evaluate@classifier-prune"),
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
    queue("0.3,0.999,0.5")
    try:
        start()
        for pid in running_stages(clone):
            os.kill(pid, signal.SIGKILL)
        found = run_queue()
        assert (found.count("Failed"), found.count("Success")) == (2, 1)
        assert "more multiply-accumulates than can go" in "".join(
            path.read_text() for path in (clone.path / ".dvc/tmp/exps/run").rglob("*.out")
        )
        queue("0.3")  # the killed one again
        assert run_queue().count("Success") == 2

        output = clone.run("lowenergy", "sweep-plot", "--target", "classifier", "--out", str(tmp_path))
        assert "2 failed: " in output
        rows = [row for row in table((tmp_path / "classifier.csv").read_text()) if row["prune.amount_of"] == "macs"]
        assert [row["prune.amount"] for row in rows] == ["0.3", "0.5"]
        assert float(rows[0]["macs"]) > float(rows[1]["macs"]) > 0
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


def test_chained_source_rewires_the_graph(clone: Clone) -> None:
    try:
        clone.set({"quantize.source": "distill", "targets": {"classifier": "classifier"}})
        output = clone.run("dvc", "repro", "evaluate@classifier-quantize")
        assert stages_run(output) == {"quantize@classifier", "evaluate@classifier-quantize"}
        _, header = artifact.read(clone.path / "models/classifier/quantize.safetensors")
        assert header["provenance"]["source"]["branch"] == "distill"
        chained = json.loads((clone.path / "metrics/classifier/quantize.json").read_text())
        student = json.loads((clone.path / "metrics/classifier/distill.json").read_text())
        assert chained["size_bytes"] < student["size_bytes"] / 2
    finally:
        restore(clone)


def test_forced_rerun_gives_the_same_bytes(clone: Clone) -> None:
    """One stage of each kind, one after another and side by side; without names all of them are run again."""
    again = ["report", "evaluate@classifier-teacher", *(f"{method}@ebm" for method in ("prune", "quantize", "distill"))]
    before = hashes(clone)
    output = clone.run("dvc", "repro", "--force", "--single-item", *again)
    assert stages_run(output) == set(again)
    assert hashes(clone) == before
    output = clone.run("lowenergy", "run", "--force", "--jobs", "2", "evaluate@ebm-pq")
    assert "5 done" in output  # prepare, scorer, teacher, pq, evaluate
    assert hashes(clone) == before
    assert stages_run(clone.run("dvc", "repro")) == set()
    assert clone.run("git", "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("change", "field"),
    [({"prune.amount": 1.2}, "prune.amount = 1.2"), ({"pq.source": "quantize"}, "pq.source = 'quantize'")],
)
def test_bad_params_stop_the_first_stage_and_lose_nothing(clone: Clone, change: dict, field: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(clone.path / "models").rglob("*.safetensors")}
    try:
        clone.set({"seed": 5, **change})
        output = clone.run("dvc", "repro", check=False)
        assert field in output
        assert stages_run(output) <= {"prepare"}
    finally:
        restore(clone)
    after = {path: path.stat().st_mtime_ns for path in Path(clone.path / "models").rglob("*.safetensors")}
    assert set(after) == set(before)


def restore(clone: Clone) -> None:
    """Back to the committed first run, files and all."""
    shutil.rmtree(clone.path / "plots_diff", ignore_errors=True)
    clone.run("git", "reset", "-q", "--hard", "main")
    clone.run("dvc", "checkout", "-q", "--force")
