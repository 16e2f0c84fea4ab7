"""Flash and RAM before there is a model: as the compiler and the arena then say; searches that heed them."""

import shutil
from typing import Any

import pytest
from conftest import ROOT

from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.cli import main
from lowenergy.runtimes.c import devices, forecast
from lowenergy.searching import fits
from lowenergy.searching.goal import Goal
from lowenergy.storage import artifact

TINY = ROOT / "pretrained" / "mnist-ebm-tiny.safetensors"
WITH_COMPILER = pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"), reason="arm-none-eabi-gcc is not installed")


def test_an_untrained_model_takes_what_the_trained_one_takes() -> None:
    trained, _ = artifact.read(TINY)
    untrained = forecast.untrained(trained.spec, "ebm", forecast.Coding(bits=8))
    before, after = forecast.forecast(untrained), forecast.forecast(trained)
    assert before.flash == pytest.approx(after.flash, rel=0.02)
    assert before.ram == pytest.approx(after.ram, rel=0.02)
    assert before.work == after.work


@WITH_COMPILER
@pytest.mark.parametrize(
    ("name", "target", "coding"),
    [
        ("compact", "ebm", forecast.Coding(codewords=64)),
        ("compact", "ebm", forecast.Coding(bits=4)),
        ("resnet8", "classifier", forecast.Coding()),
    ],
)
def test_without_a_compiler_code_is_estimated(
    name: str, target: str, coding: forecast.Coding, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = None if target == "classifier" else "mean"
    spec = networks.Spec(name, 16, "3x3", "swish", "none", 1, 28, 10, head)
    model = forecast.untrained(spec, target, coding)
    compiled = forecast.forecast(model)
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    estimated = forecast.forecast(model)
    assert compiled.compiled and not estimated.compiled
    assert estimated.flash == pytest.approx(compiled.flash, rel=0.02)


def test_the_least_memory_is_named() -> None:
    model, _ = artifact.read(TINY)
    least = forecast.smallest(model)
    assert forecast.forecast(model, ram=least.ram).ram <= least.ram
    with pytest.raises(UserError, match=f"the smallest takes {least.ram:,}; give --ram {least.ram}"):
        forecast.forecast(model, ram=least.ram - 1)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(TINY), "--ram", "18k", "--device", "rp2040"]) == 0
    said = capsys.readouterr().out
    assert "it fits" in said and "RAM   17," in said
    assert main(["plan", str(TINY), "--device", "pdp11"]) == 2
    assert "there are arduino-nano-33-ble, rp2040, stm32f746" in capsys.readouterr().err
    assert main(["plan", "ebm", "--bits", "4", "--sparse", "0.5"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert main(["plan", "ebm", "--bits", "4", "--length", "8"]) == 2
    assert "give --codewords, too" in capsys.readouterr().err
    assert main(["plan", str(TINY), "--bits", "4"]) == 2
    assert f"{TINY} has weights" in capsys.readouterr().err


@pytest.mark.parametrize("coding", [{"bits": 9}, {"sparse": 1.5}, {"codewords": 0}, {"length": 0}])
def test_an_encoding_that_is_none(coding: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="give"):
        forecast.Coding(**coding)


@pytest.mark.parametrize("limits", [{"max_flash": 12_000}, {"max_ram": 4_000}])
def test_a_trial_that_cannot_fit_is_refused(limits: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = networks.Spec("compact", 16, "3x3", "swish", "none", 1, 28, 1, "mean")
    monkeypatch.setattr(forecast, "described", lambda p, target, student: (spec, target))
    monkeypatch.chdir(ROOT)
    from ruamel.yaml import YAML

    values: Any = YAML(typ="safe").load(ROOT / "params.yaml")
    given = {"max_flash": None, "max_ram": None} | limits
    assert fits.too_large(values, "ebm-quantize", **given)
    assert not fits.too_large(values, "ebm-quantize", max_flash=40_000, max_ram=40_000)
    values["branches"]["ebm-prune"]["kind"] = "structured"
    assert not fits.too_large(values, "ebm-prune", **given)  # who knows what will be left


def test_a_goal_with_a_device() -> None:
    goal = Goal("ram", max_flash=1000)
    figures = {"validation": {"fid": 1.0}, "flash": 2000, "ram": 500, "size_bytes": 1, "macs": 1}
    assert goal.of_device and not Goal().of_device
    assert goal.cost(figures) == 500
    assert goal.violations(figures, figures)[0] > 0
    assert devices.named("rp2040").ram == 264 * 1024
