"""The `lowenergy` command, and the README's commands."""

import argparse
import errno
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Clone, with_changes
from torchvision.io import decode_png, read_file

from lowenergy import cli, data, params
from lowenergy.base import checkpoint
from lowenergy.reporting import page
from lowenergy.scoring import report_card
from lowenergy.timing import bench


@pytest.fixture
def inside(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> Clone:
    monkeypatch.chdir(clone.path)
    return clone


def test_each_command_has_the_arguments_of_its_function() -> None:
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        module, _, function = parser.get_default("command").partition(":")
        signature = inspect.signature(getattr(import_module(f"lowenergy.{module}"), function))
        options = {action.dest: action for action in parser._actions if action.dest != "help"}
        assert options.keys() == signature.parameters.keys(), name
        for key, parameter in signature.parameters.items():
            if parameter.default is not parameter.empty and module == "commands":
                given = options[key].default
                given = tuple(given) if isinstance(given, list) else given
                assert given == parameter.default or not (given or parameter.default), (name, key)


def test_table(inside: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["table"]) == 0
    text = capsys.readouterr().out
    assert "Classifier" in text and "distill" in text and "FID" in text and "inception_score" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert cli.main(["table", "--all"]) == 0
    everything = capsys.readouterr().out
    assert "inception_score" in everything and max(map(len, everything.splitlines())) <= 100


def test_profiles_and_parameters_are_listed(inside: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile"]) == 0
    assert "mnist-tiny" in capsys.readouterr().out
    assert cli.main(["params", "prune.am"]) == 0
    assert "prune.amount  (0 < number < 1)\n    fraction to remove" in capsys.readouterr().out
    assert cli.main(["params", "nothing"]) == 2


def test_a_reader_that_ends_early_is_no_error() -> None:
    """As head does; the pipe has no reader from the beginning, so that nothing depends on time."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "lowenergy.cli", "params"], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_figures_that_cannot_be_written_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(bench, "bench", measured)
    assert cli.main(["bench", "ebm.safetensors", "--json", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path}: Is a directory")


@pytest.mark.parametrize("model", ["", "."])
def test_what_names_no_file_is_one_line(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", model]) == 2
    assert capsys.readouterr().err == ".: give the file of a model\n"


def test_a_kept_table_of_a_sweep_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = ROOT / "docs" / "sweeps"
    assert cli.main(["sweep-plot", str(kept / "ebm.csv"), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in kept.iterdir()}
    for chart in ("ebm-amount.svg", "ebm-ratio.svg"):
        assert "after retraining" in (tmp_path / "ebm-amount.svg").read_text() or chart != "ebm-amount.svg"
        assert (tmp_path / chart).stat().st_size > 10_000
    assert (tmp_path / "ebm.csv").read_bytes() == (kept / "ebm.csv").read_bytes()
    assert cli.main(["sweep-plot", str(kept / "ebm.csv"), "--out", str(tmp_path), "--quality", "charm"]) == 2
    assert "no figure 'charm' in these experiments" in capsys.readouterr().err
    assert cli.main(["sweep-plot", str(kept / "ebm.csv"), "--target", "jem"]) == 2
    assert "no rows of target jem" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "finetune", "retrain", "untrained"),
    [
        ("prune", "0", "0", True),
        ("quantize", "0", "0", True),
        ("pq", "0", "", True),
        ("pq", "0", "3", False),
        ("quantize", "20", "0", False),
        ("distill", "", "0", False),  # a student was trained all the same
    ],
)
def test_a_chart_tells_what_was_trained_after_it_was_compressed(
    tmp_path: Path, method: str, finetune: str, retrain: str, untrained: bool
) -> None:
    head = "target,chain,prune.kind,prune.scope,prune.amount,{0}.finetune.epochs,{0}.retrain.epochs,{1}\n"
    lines = [
        head.format(method, "compression_ratio,size_bytes,accuracy"),
        "classifier,teacher,,,,,,1,4000,0.9\n",
        f"classifier,{method},structured,conv,0.5,{finetune},{retrain},2,2000,0.8\n",
    ]
    (tmp_path / "kept.csv").write_text("".join(lines))
    assert (
        cli.main(["sweep-plot", str(tmp_path / "kept.csv"), "--target", "classifier", "--out", f"{tmp_path}/out"]) == 0
    )
    chart = (tmp_path / "out" / "classifier-ratio.svg").read_text()
    assert ("not trained after -->" in chart) is untrained
    assert f"<!-- {method}" in chart


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "No columns to parse from file"),
        (b"a,b\n\xff\xfe,2\n", "codec can't decode"),
        (b"target,chain,compression_ratio\n", "it has no rows"),
        (b"target\nebm\n", "it lacks chain"),
        (b"target,chain\nebm,pq\n", "it lacks compression_ratio"),
        (b"target,chain,compression_ratio,fid\nebm,pq,large,1\n", "Unable to parse string"),
        (b"target,chain,compression_ratio,fid\nebm,prune,2,1\n", "it lacks prune.kind"),
        (b"target,chain,compression_ratio,fid\nebm,,2,1\n", "it lacks chain"),
    ],
)
def test_tables_of_others_are_one_line(
    tmp_path: Path, text: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.csv").write_bytes(text)
    assert cli.main(["sweep-plot", str(tmp_path / "other.csv"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "other.csv: no table of a sweep: " in line and said in line and "`lowenergy sweep-plot` wrote" in line


def test_figures_of_a_sweep_are_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.csv").write_text("target,chain,compression_ratio,fid\nebm,a $x$ b^{,2,good\n")
    command = ["sweep-plot", str(tmp_path / "words.csv"), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "no figure 'fid' in these experiments; there are compression_ratio" in capsys.readouterr().err
    assert cli.main([*command, "--quality", "compression_ratio"]) == 0


@pytest.mark.slow
def test_what_cannot_be_written_is_one_line_and_loses_nothing(
    inside: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    out.write_bytes(b"what was there")
    for number, word in (
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EACCES, "Permission denied"),
    ):

        def fail(file: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fail)
        assert cli.main(["export", "models/ebm-prune.safetensors", "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"{out}: {word}") and line.endswith("Nothing that was there is lost")
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"what was there"]


def test_a_stage_without_space_says_so() -> None:
    """A real full disk of its own is not to be had here: the stage writes to one that always is."""
    code = """
import sys
from lowenergy.base import stage
def main():
    open("/dev/full", "wb", buffering=0).write(b"x")
stage.run(main)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "No space left on device; free some space and run again" in done.stderr and "Traceback" not in done.stderr


def test_check(inside: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 0
    assert "source digits, classifier, ebm and 8 branches" in capsys.readouterr().out


def test_show(inside: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "models/ebm-pq.safetensors"]) == 0
    text = capsys.readouterr().out
    assert '"name": "ebm"' in text and re.search(r"pq +[\d,]+ bytes  fc.weight \(10, 256\)", text)


def test_score_is_what_the_evaluation_measured(inside: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["score", "models/classifier-pq.safetensors"]) == 0
    text = capsys.readouterr().out
    kept = json.loads((inside.path / "cards/classifier-pq.json").read_text())
    assert f"{kept['size_bytes']:,} bytes, 359 test images of digits" in text
    assert f"accuracy {kept['accuracy']:.4f}" in text and f"nll {kept['nll']:.4f}" in text
    assert kept["codes_bytes"] + kept["codebooks_bytes"] + kept["other_bytes"] == kept["size_bytes"]


def test_fid_of_images_in_a_file(inside: Clone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = json.loads((inside.path / "cards/scorer.json").read_text())["test_images"]
    test = data.load("data/splits.safetensors").test.images.numpy()
    np.savez(tmp_path / "test.npz", images=test[:, 0])
    assert cli.main(["fid", str(tmp_path / "test.npz")]) == 0
    text = capsys.readouterr().out
    assert f"fid {kept['fid']:.4f}" in text and f"inception_score {kept['inception_score']:.4f}" in text
    np.savez(tmp_path / "small.npz", images=test[:, 0, :4, :4])
    (tmp_path / "no.npz").write_bytes(b"no archive")
    for name, message in (("small", "images of (1, 8, 8)"), ("no", "no .npz or .npy file"), ("none", "No such file")):
        assert cli.main(["fid", str(tmp_path / f"{name}.npz")]) == 2
        assert message in capsys.readouterr().err


def test_fid_by_a_scorer_from_elsewhere(inside: Clone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("scorer", "reference"):
        shutil.copy(f"models/{name}.safetensors", tmp_path / f"my-{name}.safetensors")
    np.savez(tmp_path / "test.npz", images=data.load("data/splits.safetensors").test.images.numpy())
    for options in ([], ["--scorer", str(tmp_path / "my-scorer.safetensors")]):
        assert cli.main(["fid", str(tmp_path / "test.npz"), *options]) == 0
    own, other = capsys.readouterr().out.split("test.npz: ")[1:]
    assert own.splitlines()[1:3] == other.splitlines()[1:3]
    assert cli.main(["fid", str(tmp_path / "test.npz"), "--scorer", str(tmp_path / "none.safetensors")]) == 2


@pytest.mark.slow
def test_bench(inside: Clone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["models/classifier-distill.safetensors"]
    few = ["--batch", "1", "8", "--rounds", "3", "--way", "eager", "--way", "onnxruntime", "--way", "int8 onnxruntime"]
    assert cli.main(["bench", *models, *few, "--json", str(tmp_path / "times.json")]) == 0
    shown = capsys.readouterr().out
    assert "distill" in shown and "onnxruntime" in shown and max(map(len, shown.splitlines())) <= 100
    rows = json.loads((tmp_path / "times.json").read_text())
    wanted = [(way, batch) for way in ("eager", "onnxruntime") for batch in (1, 8)]
    assert [(row["way"], row["batch"]) for row in rows] == wanted
    assert all(0 < row["low_ms"] <= row["ms"] <= row["high_ms"] and row["mib"] >= 0 for row in rows)
    assert all(row["per_second"] == pytest.approx(1000 * row["batch"] / row["ms"]) for row in rows)
    energies = [Path(f"models/{name}.safetensors") for name in ("ebm-quantize", "ebm")]
    assert cli.main(["bench", str(energies[0]), "--steps", *few]) == 0
    assert "Langevin step" in capsys.readouterr().out
    assert 0 < bench.share_of_time(*energies, steps=True, rounds=5) < 50
    assert bench.share_of_time(energies[1], energies[1], rounds=20) == pytest.approx(1, rel=0.5)
    for bad, message in (
        ([models[0], "--steps"], "has no energy"),
        ([models[0], "--way", "abacus"], "--way abacus: there are eager"),
        ([models[0], "--rounds", "0"], "give at least 1"),
        (["none.safetensors"], "none.safetensors"),
    ):
        assert cli.main(["bench", *bad]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ebm", "ebm-prune", "ebm-quantize", "ebm-distill", "ebm-pq"])
def test_sample_from_every_model(inside: Clone, tmp_path: Path, name: str) -> None:
    out = tmp_path / "grid.png"
    model = f"models/{name}.safetensors"
    assert cli.main(["sample", model, "--n", "16", "--steps", "3", "--out", str(out)]) == 0
    image = decode_png(read_file(str(out)))
    assert image.shape == (3, 2 * 34 + 2, 8 * 34 + 2)
    assert image.float().std() > 10  # something is drawn
    archive = tmp_path / "images.npz"
    assert cli.main(["sample", model, "--n", "16", "--steps", "3", "--out", str(archive)]) == 0
    with np.load(archive) as arrays:
        images = torch.from_numpy(arrays["images"])
    assert images.shape == (16, 1, 8, 8)
    for i in range(16):  # the grid shows each pixel as 4x4
        top, left = 2 + i // 8 * 34, 2 + i % 8 * 34
        assert torch.equal(image[0, top : top + 32 : 4, left : left + 32 : 4], images[i, 0])


def test_errors_are_one_line_and_exit_2(inside: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    for command, message in (
        (["sample", "models/classifier-pq.safetensors"], "has no energy to sample from"),
        (["sample", "models/ebm-pq.safetensors", "--n", "-1"], "n=-1: give at least 1"),
        (["sample", "models/ebm-pq.safetensors", "--steps", "0"], "steps=0: give at least 1"),
        (["sample", "models/ebm-pq.safetensors", "--step-size", "nan"], "step_size=nan: give a number above 0"),
        (["score", "models/ebm-pq.safetensors"], "an ebm does not classify"),
        (["show", "models/none.safetensors"], "no such file"),
        (["export", "models/none.safetensors"], "no such file"),
        (
            ["profile", "none"],
            "there are cifar100, cifar100-energy, cifar100-energy-full, cifar100-energy-unet, cifar100-half, default",
        ),
    ):
        assert cli.main(command) == 2
        assert message in capsys.readouterr().err


def test_report_is_written_from_what_is_on_disk(inside: Clone) -> None:
    report, pareto = (inside.path / name for name in ("report.html", "plots/pareto.csv"))
    before = report.read_bytes(), pareto.read_bytes()
    page.write(params.load())
    assert (report.read_bytes(), pareto.read_bytes()) == before


@pytest.mark.parametrize(
    ("name", "killed_after"), [("classifier-quantize", ()), ("ebm-pq", ()), ("ebm-distill", (7, 14))]
)
def test_measuring_again_gives_the_same_figures(
    inside: Clone,
    name: str,
    killed_after: tuple[int, ...],
    small: params.Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = name.split("-")[0]
    steps: list[Path] = []
    keep = checkpoint.Checkpoint.keep

    def keep_and_die(self: checkpoint.Checkpoint, content: Any) -> None:
        keep(self, content)
        steps.append(self.path)
        if len(steps) in killed_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)
    monkeypatch.setattr(checkpoint.Checkpoint, "keep", keep_and_die)
    for _ in killed_after:
        with pytest.raises(KeyboardInterrupt):
            measured(name, small, tmp_path / name)
    card = measured(name, small, tmp_path / name)
    assert len(steps) == (20 if target == "ebm" else 0), "of two draws, no step twice"
    assert not any(path.exists() for path in steps)
    assert card == json.loads((inside.path / f"cards/{name}.json").read_text())
    pictures = {f"{picture}.png" for picture in ("samples", "strip", "neighbours", "classes", "energies")}
    plots = list((tmp_path / name).iterdir())
    answers = {"confusion.csv"} | ({"changed.png"} if card.get("agreement", 1) < 1 else set())
    assert {path.name for path in plots} == (answers if target == "classifier" else pictures)
    for path in plots:
        assert path.read_bytes() == (inside.path / "plots/models" / name / path.name).read_bytes()


def test_longer_steps_go_further_in_as_many(inside: Clone, small_values: Any, tmp_path: Path) -> None:
    before = json.loads((inside.path / "cards/ebm.json").read_text())
    longer = {**small_values["ebm"]["evaluate"], "step_factor": 4.0}
    bold = params.check(with_changes(small_values, {"ebm.evaluate": longer}))
    card = measured("ebm", bold, tmp_path)
    assert card["fid"] < before["fid"]
    assert card["ood_auroc"] == before["ood_auroc"], "no samples are in it"


def measured(name: str, small: params.Params, plots: Path) -> dict[str, Any]:
    target = name.split("-")[0]
    return report_card.measure(
        path=f"models/{name}.safetensors",
        teacher=f"models/{target}.safetensors",
        said=str(plots.parent / "said.safetensors") if name == target else f"said/{target}.safetensors",
        scorer="models/scorer.safetensors",
        reference="models/reference.safetensors",
        splits=data.load("data/splits.safetensors"),
        p=getattr(small, target).evaluate,
        seed=small.seed,
        plots=plots,
    )


def test_every_stage_and_parameter_in_the_readme_exists(clone: Clone) -> None:
    from ruamel.yaml import YAML

    text = (ROOT / "README.md").read_text()
    values = YAML(typ="safe").load(ROOT / "params.yaml")
    dotted = set(re.findall(r"-S '?([a-z_.0-9-]+)=", text))
    assert dotted
    for key in dotted:
        section = values
        for part in key.split("."):
            assert part in section, key
            section = section[part]
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / path).exists(), path


def test_devices_are_chosen_by_what_is_there() -> None:
    from lowenergy.training import Run

    assert Run("x", 0, []).device.type == ("cuda" if torch.cuda.is_available() else "cpu")
