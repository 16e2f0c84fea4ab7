"""The examples run, on little: what they print has the lines that stand beside them."""

import contextlib
import functools
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import lowenergy
from lowenergy import networks
from lowenergy.storage import artifact

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
OUTPUT = "# Output"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes of a dozen small photographs, of different sizes."""
    generator = np.random.default_rng(0)
    for label, colour in enumerate((40, 180)):
        folder = tmp_path / "photographs" / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(colour, colour + 60, (40 + i, 44, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photographs"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compression that does not try which layer bears most."""
    quicker = functools.partial(lowenergy.compress, allocation="uniform", calibration_images=30)
    monkeypatch.setattr(lowenergy, "compress", quicker, raising=False)


def said(name: str, *arguments: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a script prints, which has as many lines as it shows, and all words of each."""
    script = EXAMPLES / name
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    return capsys.readouterr().out


def shown(name: str) -> list[str]:
    lines = (EXAMPLES / name).read_text().partition(OUTPUT)[2].splitlines()[1:]
    return [line.removeprefix("#").removeprefix("   ") for line in lines]


def words(text: str) -> list[str]:
    """Without the figures."""
    return re.findall(r"[A-Za-z_.]{3,}", text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_is_short_and_shows_what_it_prints(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert len(lines) <= 60 and f"python examples/{script.name}" in lines[2]
    assert shown(script.name) and all(line.startswith("#") for line in lines[lines.index(next(
        line for line in lines if line.startswith(OUTPUT)
    )):])  # fmt: skip


@pytest.mark.slow
def test_a_classifier_of_ones_own(quick: None, photographs: Path, monkeypatch: Any, capsys: Any) -> None:
    text = said("compress_a_classifier.py", photographs, 1, monkeypatch=monkeypatch, capsys=capsys)
    first, *_, last = text.splitlines()
    assert words(first) == words(shown("compress_a_classifier.py")[0]) and last.startswith("answers [")
    assert len(text.splitlines()) == len(shown("compress_a_classifier.py"))
    assert Path("small.onnx").exists() and Path("small.safetensors").stat().st_size < 200_000


@pytest.mark.slow
def test_an_energy_that_draws(monkeypatch: Any, capsys: Any) -> None:
    text = said("train_an_energy.py", 1, monkeypatch=monkeypatch, capsys=capsys)
    wanted = shown("train_an_energy.py")
    assert [words(line) for line in text.splitlines()[:3]] == [words(line) for line in wanted[:3]]
    assert len(text.splitlines()) == len(wanted) == 3 + 8
    assert Path("small.safetensors").stat().st_size < Path("energy.safetensors").stat().st_size


@pytest.mark.slow
def test_the_smallest_that_is_good_enough(quick: None, monkeypatch: Any, capsys: Any) -> None:
    text = said("smallest_within_half_a_point.py", 1, monkeypatch=monkeypatch, capsys=capsys)
    rows = re.findall(r"^(.{20}) +([\d,]+) bytes  ([+-][\d.]+) points, at worst ([+-][\d.]+)$", text, re.M)
    assert [name for name, *_ in rows] == [line[:20] for line in shown("smallest_within_half_a_point.py")[:5]]
    good = {int(size.replace(",", "")) for _, size, _, worst in rows if float(worst) > -0.5}
    if good:
        assert Path("smallest.safetensors").stat().st_size == min(good)
    else:
        assert "None is sure" in text


@pytest.mark.slow
def test_a_device_and_a_page(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    spec = networks.Spec("compact", 4, "3x3", "swish", "none", 1, 28, 1, "mean")
    sampler = {"step_size": 0.1, "noise": 0.01, "gradient_clamp": 1.0, "chain_steps": 10}
    model = artifact.dense(networks.build(spec, seed=0).eval(), "ebm")
    artifact.save(model, "tiny.safetensors", {"sampler": sampler})
    text = said("to_a_device_or_a_page.py", "tiny.safetensors", monkeypatch=monkeypatch, capsys=capsys)
    wanted = shown("to_a_device_or_a_page.py")
    assert [words(line) for line in text.splitlines()] == [words(line) for line in wanted][: len(text.splitlines())]
    sizes = [json.loads(Path(f"{name}-c/card.json").read_text())["arena_bytes"] for name in ("model", "lean")]
    assert sizes[1] < sizes[0]


@pytest.mark.slow
def test_the_pipeline_on_ones_own_images(photographs: Path, tmp_path: Path) -> None:
    """As far as its first stage, in a copy of what the repository tracks."""
    tracked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.yaml", ".dvc*", "data"]
    for name in subprocess.check_output(tracked, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "copy" / name)
    place = tmp_path / "copy"
    subprocess.run(["git", "init", "-q"], cwd=place, check=True)
    command = [sys.executable, "examples/pipeline_on_your_images.py", str(photographs), "prepare"]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        command, cwd=place, env={"PATH": path, "PYTHONPATH": str(place)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "params.yaml: valid; source folder" in done.stdout and (place / "data/splits.safetensors").exists()


@pytest.mark.slow
def test_the_notebook_is_from_import_to_onnx_in_fifteen_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book = json.loads((EXAMPLES / "your_own_module.ipynb").read_text())
    assert book["nbformat"] == 4 and len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in cell["source"] if line.strip()]
    assert "import" in lines[0] and lines.index('lowenergy.export(small, "small.onnx")') < 15
    space: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        source = "".join(cell["source"]).replace("range(200)", "range(20)")
        exec(compile(source, "cell", "exec"), space)
        wanted = [line for output in cell["outputs"] for line in "".join(output["text"]).splitlines()]
        said = capsys.readouterr().out.splitlines()
        # Trained for less, it says the same things, but not always that a class lost.
        assert [words(line)[:3] for line in said] == [words(line)[:3] for line in wanted]
    assert Path("small.onnx").exists() and Path("small.safetensors").stat().st_size <= 5_000
