"""The same pixels on a desktop, on emulated microcontrollers and in a browser; sizes as the plan and the bars say."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_device import HEADER, SMALLEST, Compiled, zoo

from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.cli import main
from lowenergy.runtimes import c
from lowenergy.runtimes.c import forecast
from lowenergy.storage import artifact

sys.path.insert(0, str(ROOT / "benchmarks"))
import targets

SEED, STEPS = 3, 4
CHROMIUM = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def checksum(image: np.ndarray) -> int:
    """FNV-1a of the pixels as bytes, as the examples print it."""
    total = 2166136261
    for byte in ((image + np.float32(1)) * np.float32(127.5) + np.float32(0.5)).astype(np.uint8).ravel().tolist():
        total = (total ^ byte) * 16777619 & 0xFFFFFFFF
    return total


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """C of the shipped 12 kB energy for 32 kB of RAM, its arena's bytes, and the checksum of an image of it."""
    out = tmp_path_factory.mktemp("smallest") / "c"
    model, header = artifact.read(SMALLEST)
    card = c.export(model, header, out, ram=30000)
    return out, card["arena_bytes"], checksum(Compiled(out).sample(SEED, STEPS))


@pytest.mark.skipif(targets.missing() is not None, reason=f"{targets.missing()} is not installed")
@pytest.mark.parametrize("target", targets.TARGETS)
def test_the_same_pixels_on_microcontrollers(target: str, smallest: tuple[Path, int, int]) -> None:
    out, arena, wanted = smallest
    found = targets.run(out, target, seed=SEED, steps=STEPS if target != "cortex-m0plus" else 1)
    if target == "cortex-m0plus":  # floats in software take their time
        wanted = checksum(Compiled(out).sample(SEED, 1))
    assert found.hash == wanted
    assert found.stack <= json.loads((out / "card.json").read_text())["stack_bytes_at_most"]
    assert arena + found.stack <= 32 * 1024
    assert targets.code(out, target) <= 16 * 1024


@pytest.mark.skipif(targets.missing(targets.AVR_TOOLS) is not None, reason="avr-gcc or simavr is not installed")
def test_the_same_pixels_on_eight_bits(tmp_path: Path) -> None:
    spec = networks.Spec("shallow", 4, "3x3", "swish", "none", 1, 8, 1, "mean")
    model = forecast.untrained(spec, "ebm", forecast.Coding(bits=8))
    ranges = forecast.ranges(c.planned(model).program)
    with pytest.raises(c.NoPlanError) as least:
        c.planned(replace(model, activations=ranges), ram=1)
    card = c.export(replace(model, activations=ranges), HEADER, tmp_path / "c", ram=least.value.smallest)
    found = targets.run_on_avr(tmp_path / "c", seed=SEED, steps=STEPS)
    assert found.hash == checksum(Compiled(tmp_path / "c").sample(SEED, STEPS))
    assert found.stack <= card["stack_bytes_at_most"]
    assert found.ram + found.stack <= 2048


@pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")
def test_the_page_is_small_and_asks_for_nothing(tmp_path: Path, smallest: tuple[Path, int, int]) -> None:
    out = tmp_path / "model.html"
    assert main(["export", str(SMALLEST), "--to", "page", "--out", str(out)]) == 0
    text = out.read_text()
    assert len(text.encode()) <= 48 * 1024
    assert not re.search(r"https?:|src=|import |fetch\(|<link", text)
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed")
    for budget in (20, 60, 180, 540):  # seconds by the page's clock, which may pass while WebAssembly is compiled
        shown = subprocess.run(
            [*CHROMIUM, f"--user-data-dir={tmp_path}/profile{budget}", f"--virtual-time-budget={1000 * budget}",
             "--dump-dom", f"file://{out}#seed={SEED}&steps={STEPS}"],
            capture_output=True, text=True, timeout=120,
        ).stdout  # fmt: skip
        if f"step {STEPS} of" in shown:
            break
    assert f"step {STEPS} of {STEPS}" in shown
    assert f"pixels {smallest[2]:08x}" in shown


@pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")
def test_a_classifiers_page_takes_pictures(tmp_path: Path) -> None:
    c.export_page(zoo("shallow", "classifier"), {"provenance": {"data": "<b>"}}, tmp_path / "model.html")
    text = (tmp_path / "model.html").read_text()
    assert "<title>&lt;b&gt;: a classifier" in text and "<b>" not in text
    assert "give a picture of ${WIDTH} × ${HEIGHT}" in text and "outputs}" not in text


@pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")
def test_a_page_has_memory_for_its_picture(tmp_path: Path) -> None:
    model = zoo("resnet8", "classifier", width=2, stem="7x7", channels=3, image_size=176)
    c.export_page(model, {"provenance": {"data": "pictures"}}, tmp_path / "model.html")
    assert (tmp_path / "model.html").exists()


@pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")
def test_a_page_shows_grey_or_colours(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images of 1 or 3 channels, not of 2; export it `--to c`"):
        c.export_page(zoo("shallow", "classifier", channels=2), {}, tmp_path / "model.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_drawn_in_c_is_a_picture(channels: int, tmp_path: Path) -> None:
    """Channels that are no colours lie below each other; they were written pixel by pixel under a header for one."""
    out = tmp_path / "c"
    c.export(zoo("shallow", "ebm", channels=channels), HEADER, out)
    subprocess.run(["make", "-s"], cwd=out, check=True)
    said = subprocess.run([out / "main", "1", "2"], capture_output=True, text=True, check=True).stdout
    (out / "drawn.ppm").write_text(said)
    with Image.open(out / "drawn.ppm") as picture:
        drawn = np.asarray(picture)
    side = drawn.shape[1]
    assert drawn.shape == ((side, side, 3) if channels == 3 else (channels * side, side))
    planes = drawn.transpose(2, 0, 1) if channels == 3 else drawn
    total = checksum((planes.astype(np.float32) - np.float32(0.25)) / np.float32(127.5) - np.float32(1))
    assert f"pixels {total:08x}" in said


def test_a_page_needs_its_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowenergy.runtimes.c.page.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lowenergy\[device\]'"):
        c.export_page(zoo("shallow", "classifier"), {}, tmp_path / "model.html")
    assert not list(tmp_path.iterdir())


def test_the_shipped_code_is_what_is_exported(smallest: tuple[Path, int, int], tmp_path: Path) -> None:
    shipped = ROOT / "docs" / "device" / "mnist-ebm-12k"
    model, header = artifact.read(SMALLEST)
    c.export(model, header, tmp_path / "c", ram=32000)
    for name in ("model.h", "model.c", "main.c", "Makefile"):
        assert (tmp_path / "c" / name).read_text() == (shipped / name).read_text(), name
    page = (ROOT / "docs" / "demo.html").read_text()
    assert "mnist: an energy-based model" in page and len(page.encode()) <= 48 * 1024
