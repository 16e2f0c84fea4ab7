"""What stages find around them: the user's environment, whoever runs them, and packages with byte code."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from conftest import ROOT
from test_running import KEYS, Cluster, Toy

from lowenergy.running import crew
from lowenergy.running.worker import own_environment

SEEN = """
stages:
  here:
    cmd: env -0 > here.seen
    outs: [here.seen: {cache: false}]
    meta: {where: here}
  there:
    cmd: env -0 > there.seen
    outs: [there.seen]
"""
SHELLS = {"_", "PWD", "OLDPWD", "SHLVL"}
OWN = {"OF_THE_USER": "kept", "MKL_NUM_THREADS": "3", "PYTHONHASHSEED": "7", "PYTHONDONTWRITEBYTECODE": "1"}


def seen(toy: Toy, stage: str) -> dict[str, str]:
    """The environment of a stage, without what a shell sets in it."""
    pairs = (toy.place / f"{stage}.seen").read_text().rstrip("\0").split("\0")
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs) if key not in SHELLS}


def looking(place: Path) -> Toy:
    toy = Toy.make(place)
    (toy.place / "dvc.yaml").write_text(SEEN)
    for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_"):
        toy.environment.pop(key, None)
    toy.environment |= OWN
    return toy


@pytest.mark.slow
def test_a_stage_has_the_users_environment_and_its_threads(tmp_path: Path) -> None:
    toy = looking(tmp_path / "toy")
    toy("dvc", "repro")
    plain = {stage: seen(toy, stage) for stage in ("here", "there")}
    assert plain["there"].items() >= OWN.items() and "OMP_NUM_THREADS" not in plain["there"]

    toy.run("--force", "--jobs", "2")
    threads = {"OMP_NUM_THREADS": str(crew.jobs_and_threads(2)[1])}
    assert seen(toy, "here") == plain["here"] | threads
    there = seen(toy, "there")
    assert Path(there["DVC_ROOT"]).is_relative_to(toy.place / ".dvc" / "tmp")  # the copy that it ran in
    assert there == plain["there"] | threads | {"DVC_ROOT": there["DVC_ROOT"]}


@pytest.mark.slow
def test_workers_elsewhere_have_their_machines_environment(tmp_path: Path) -> None:
    toy = looking(tmp_path / "toy")
    toy("dvc", "remote", "add", "--default", "shared", "../shared")
    toy("dvc", "repro", "there")
    plain = seen(toy, "there")
    (tmp_path / "nodes").mkdir()
    cluster = Cluster(tmp_path / "nodes", toy.environment)
    try:
        cluster.worker("one", "--nanny", OF_THE_USER="of that machine")
        toy.run("there", "--force", "--address", cluster.address)
    finally:
        cluster.stop()
    there = seen(toy, "there")
    assert there == plain | KEYS | {"OF_THE_USER": "of that machine", "DVC_ROOT": there["DVC_ROOT"]}


@pytest.mark.parametrize(
    ("nanny", "threads", "before", "now", "own"),
    [
        ("tcp://", None, {}, {"MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "6640"}, {}),
        ("tcp://", None, {"PYTHONHASHSEED": "0"}, {"PYTHONHASHSEED": "6640"}, {"PYTHONHASHSEED": "0"}),
        ("tcp://", 4, {}, {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "4"}),
        ("tcp://", 4, {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "1"}),
        ("tcp://", None, {}, {"MKL_NUM_THREADS": "2"}, {"MKL_NUM_THREADS": "2"}),  # set by the program that started it
        (None, None, {}, {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "1"}),
    ],
)
def test_what_a_nanny_sets_is_taken_out(
    nanny: str | None,
    threads: float | None,
    before: dict[str, str],
    now: dict[str, str],
    own: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(psutil.Process, "environ", lambda process: before)
    path = {"PATH": str(Path(sys.executable).parent)}
    monkeypatch.setattr(os, "environ", {"HOME": "/", "__DASK_PARENT_PID": "1", **path, **now})
    state = SimpleNamespace(total_resources={"threads": threads} if threads else {})
    worker: Any = SimpleNamespace(nanny=nanny, state=state)
    assert own_environment(worker) == {"HOME": "/", **path, **own}


def test_stages_run_under_the_python_of_who_runs_them(tmp_path: Path) -> None:
    """As with .venv/bin/lowenergy, where .venv was not activated and another python comes first."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/false")
    toy = Toy.make(tmp_path / "toy")
    where = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.prefix)"
    stages = {
        stage: {"cmd": f'python -c "{where}" {stage}', "outs": [{stage: {"cache": cached}}], "meta": {"where": place}}
        for stage, cached, place in (("here", False, "here"), ("there", True, ""))
    }
    (toy.place / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    toy.environment["PATH"] = os.pathsep.join([str(tmp_path / "bin"), os.defpath])
    toy.run()
    assert {(toy.place / stage).read_text() for stage in stages} == {sys.prefix}


def test_a_run_leaves_the_environment_as_it_was(tmp_path: Path) -> None:
    before = dict(os.environ)
    with crew.workers(1, 1, tmp_path) as client:
        client.submit(os.getpid).result()
    assert dict(os.environ) == before


def test_setting_up_writes_the_packages_byte_code(tmp_path: Path) -> None:
    """Without it, on a machine that forbids it later, every stage compiles torch: 4 to 7 processor seconds."""
    package = tmp_path / ".venv" / "lib" / "package"
    (package / "tests").mkdir(parents=True)
    (tmp_path / ".venv" / "bin").mkdir()
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    for file in ("__init__.py", "tests/__init__.py"):
        (package / file).write_text("x = 1\n")
    (package / "template.py").write_text("{% template %}\n")
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for stamp in ("pyproject.toml", "constraints.txt", ".venv/ready", ".venv/ready-to-test"):
        (tmp_path / stamp).touch()
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    for _ in range(2):
        subprocess.run(["make", "setup"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert [path.parent.parent.name for path in tmp_path.rglob("*.pyc")] == ["package"]


def test_the_demo_writes_the_byte_code_of_what_it_imports(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for stamp in ("pyproject.toml", "constraints.txt", ".venv/ready"):
        (tmp_path / stamp).touch()
    command = tmp_path / ".venv/bin/lowenergy"
    command.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:], sys.dont_write_bytecode)\n")
    command.chmod(0o755)
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.run(["make", "demo"], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert "['run'] False" in said.stdout


def test_runs_side_by_side_leave_each_others_workers_alone(tmp_path: Path) -> None:
    """A search lost its trials when somebody ran the pipeline in the same workspace."""
    holds = "import sys; from pathlib import Path; from lowenergy.running.crew import own_folder\n"
    holds += "with own_folder(Path(sys.argv[1])) as own:\n    print(own, flush=True); sys.stdin.read()\n"
    command = [sys.executable, "-c", holds, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        (theirs / "result").touch()
        with crew.own_folder(tmp_path) as own:
            assert {*tmp_path.iterdir()} == {own, theirs} and (theirs / "result").exists()
        assert [*tmp_path.iterdir()] == [theirs]
        other.kill()
    with crew.own_folder(tmp_path) as own:
        assert [*tmp_path.iterdir()] == [own]
