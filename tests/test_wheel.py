"""The wheel in an environment of its own, outside the checkout: the calls, the command line, and what is in it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from conftest import ROOT

from lowenergy.base.errors import EXTRAS


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git tracks or would."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = [
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "lowenergy",
        "pyproject.toml",
        "README.md",
    ]
    for name in subprocess.check_output([*listed, "LICENSE"], cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(folder / "source")], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty one: the wheel, and beside it this environment's packages, which need not be fetched again; not those
    that it has in editable form."""
    place = tmp_path_factory.mktemp("room") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin/python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.check_output([python, "-c", ask], text=True).strip())
    (own / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ["--no-deps", "--no-index", "--no-compile", "--quiet", "--ignore-installed"]  # what PYTHONPATH has
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel)], check=True)
    return place


def run(environment: Path, *command: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_", "LOWENERGY"))}
    place = environment.parent / "elsewhere"
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]], cwd=place, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CALLS = """
import lowenergy, torch
from pathlib import Path
from torch import nn

assert "site-packages" in lowenergy.__file__ and not Path("params.yaml").exists()
network = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
images = torch.randint(256, (100, 1, 8, 8), dtype=torch.uint8)
labels = (images[:, 0, 0, 0] > 127).long()
small = lowenergy.compress(network, "prune", images=images, labels=labels, scan_images=0, finetune={"epochs": 1},
    retrain={"epochs": 0}, accept_chance=True)
small.save("small.safetensors")
again = lowenergy.load("small.safetensors", network=network)
assert torch.equal(again(torch.ones(2, 1, 8, 8)), small.network(torch.ones(2, 1, 8, 8)))
print(small.card(images, labels))
lowenergy.export(small, "small-c")
energy = lowenergy.train({"name": "cnn", "width": 4, "stem": "3x3", "activation": "swish", "norm": "none"}, "ebm",
    images=images, epochs=1)
energy.save("energy.safetensors")
print(tuple(lowenergy.sample("energy.safetensors", n=4, steps=2).shape))
"""


@pytest.mark.slow
def test_the_calls_and_the_command_line_run_from_the_wheel_alone(environment: Path) -> None:
    said = run(environment, "python", "-c", CALLS)
    assert "MicroNet score" in said and "(4, 1, 8, 8)" in said
    assert "pq.codewords" in run(environment, "lowenergy", "params", "pq")
    assert "mnist-12k" in run(environment, "lowenergy", "profile")
    drawn = run(environment, "lowenergy", "sample", "energy.safetensors", "--n", "2", "--steps", "2")
    assert drawn == "samples.png: 2 images\n"


def test_the_wheel_names_what_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        needs = Parser().parsestr(content.read(metadata).decode()).get_all("Requires-Dist") or []
    assert "lowenergy/py.typed" in names and "lowenergy/runtimes/c/kernels.c" in names
    assert not [name for name in names if name.startswith(("tests", "stages", "benchmarks"))]
    core = {need for need in needs if "extra ==" not in need}
    assert core == {"numpy", "pydantic", "safetensors", "torch", "zstandard"}
    packages = {"PIL": "pillow", "sklearn": "scikit-learn", "ruamel": "ruamel.yaml"}
    for module, extra in EXTRAS.items():
        name = packages.get(module, module.replace("_", "-"))
        assert f'{name}; extra == "{extra}"' in needs, f"{module} is said to come with {extra}"
