"""What workers are given of a workspace: what stages read there, without passing through anybody's memory."""

import errno
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_running import LOWENERGY, TOY, Toy

from lowenergy import params
from lowenergy.running import experiments, pipeline, workspace
from lowenergy.running.crew import RunError
from lowenergy.running.screen import ROWS, Screen
from lowenergy.running.workspace import Snapshot
from lowenergy.searching import session

LARGE = 2 * 10**8
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("most memory", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(code)
"""


def sparse(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def photographs(place: Path) -> Toy:
    """A project whose first stage reads a folder of its own, and some of whose files nobody reads."""
    toy = Toy.make(place, amount=1)
    (toy.place / "dvc.yaml").write_text(
        TOY.replace("outs: [out/root]", "deps: [photos, work.py]\n    outs: [out/root]")
    )
    for i in range(3):
        sparse(toy.place / "photos" / f"{i}.raw", 10**6)
    return toy


def names_in(snap: Snapshot, place: Path) -> set[str]:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    snap.unpack(place)
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def test_a_snapshot_takes_disk_not_memory(tmp_path: Path) -> None:
    root = tmp_path / "project"
    sparse(root / "large.bin", LARGE)
    (root / "small.py").write_text("print()")
    (tmp_path / "elsewhere.txt").write_text("linked")
    (root / "link").symlink_to(tmp_path / "elsewhere.txt")
    tracemalloc.start()
    try:
        with workspace.snapshot(root, ["large.bin", "small.py", "link", "gone"], []) as snap:
            assert names_in(snap, tmp_path / "copy") == {"large.bin", "small.py", "link"}
            assert tracemalloc.get_traced_memory()[1] < 2e7
            assert snap.path.exists()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "copy/large.bin").stat().st_size == LARGE
    assert (tmp_path / "copy/link").read_text() == "linked"
    assert not snap.path.exists()


def test_what_only_stages_here_read_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = photographs(tmp_path / "toy")
    monkeypatch.chdir(toy.place)

    def carried(dvc_yaml: str = "") -> set[str]:
        (toy.place / "dvc.yaml").write_text(dvc_yaml or (toy.place / "dvc.yaml").read_text())
        repo = pipeline.opened()
        with workspace.snapshot(toy.place, workspace.carried(repo), workspace.not_carried(repo)) as snap:
            return {name for name in names_in(snap, tmp_path / "copy") if not name.startswith(".")}

    text = (toy.place / "dvc.yaml").read_text()
    photos = {f"photos/{i}.raw" for i in range(3)}
    assert carried() == {"dvc.yaml", "params.yaml", "work.py"}, "a script may be imported by others"
    assert carried(text.replace("[out/root, work.py]", "[out/root, work.py, photos]")) >= photos
    assert carried(text.replace("[out/root, work.py]", "[out/root, work.py, photos/1.raw]")) >= photos
    assert carried(text.replace("    meta: {where: here}\n", "")) >= photos

    # Git takes neither what it is told to ignore nor what is in a repository within this one.
    (toy.place / ".gitignore").write_text((toy.place / ".gitignore").read_text() + "*.pt\n")
    toy("git", "init", "-q", "nets")
    for name in ("net.py", "weights.pt", "unread.pt"):
        (toy.place / ("nets" if name == "net.py" else "") / name).write_text("")
    read = carried(text.replace("[out/root, work.py]", "[out/root, work.py, nets, weights.pt]"))
    assert read == {"dvc.yaml", "params.yaml", "work.py", "nets/net.py", "weights.pt"}


@pytest.mark.slow
def test_a_run_beside_large_files_stays_small(tmp_path: Path) -> None:
    toy = photographs(tmp_path / "toy")
    sparse(toy.place / "photos" / "large.raw", LARGE)
    sparse(toy.place / "notes" / "large.bin", LARGE // 2)  # nobody reads it, but git would take it
    said = toy(sys.executable, "-c", MEASURED, *LOWENERGY, "run", "mid@0", "--jobs", "1")
    assert "2 done" in said and int(said.split()[-1]) < 3.5e8


def test_an_experiments_files_come_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = photographs(tmp_path / "toy.1")
    sparse(toy.place / "photos" / "large.raw", LARGE // 4)
    commit = committed(toy)
    monkeypatch.chdir(toy.place)
    repo = pipeline.opened()
    tracemalloc.start()
    try:
        place = toy.place / experiments.PLACE / "v1.2"
        copied, names = experiments.unpacked(repo, commit, place, place.with_name("checkpoints"))
        assert tracemalloc.get_traced_memory()[1] < 2e7
    finally:
        tracemalloc.stop()
    assert {"photos/large.raw", "work.py"} <= set(names) and Path(copied.root_dir) == place
    assert sorted(path.name for path in place.parent.iterdir()) == ["checkpoints", "v1.2"]


def committed(toy: Toy) -> str:
    toy("git", "add", "--all")
    toy("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "more")
    return toy("git", "rev-parse", "HEAD").strip()


def test_large_snapshots_for_other_machines_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = Toy.make(tmp_path / "toy")
    toy("dvc", "remote", "add", "--default", "shared", "../shared")
    monkeypatch.chdir(toy.place)
    monkeypatch.setattr(workspace, "persistently", lambda transfer: None)
    crew: Any
    with pipeline.crew_of(pipeline.opened(), [], None, "tcp://127.0.0.1:9") as crew:
        for size, said in ((10**6, False), (12 * 10**7, True)):
            sparse(toy.place / "large.bin", size)
            with workspace.snapshot(toy.place, ["large.bin"], []) as snap:
                crew.know(snap, toy.place)
            assert ("120 MB of files go to each worker" in capsys.readouterr().out) == said


def test_claims_that_a_kill_has_cut_short_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.rwlock import rwlock

    toy = photographs(tmp_path / "toy")
    monkeypatch.chdir(toy.place)
    repo = pipeline.opened()
    with workspace.snapshot(toy.place, workspace.known_files(toy.place), []) as snap:
        arguments = (tmp_path / "copy", snap, workspace.config_of(repo), tmp_path / "checkpoints")
        claims = Path(workspace.Workspace(*arguments).repo.tmp_dir) / "rwlock"
        claims.write_text('{"out/root": {"wri')
        copied = workspace.Workspace(*arguments).repo
        with rwlock(copied.tmp_dir, copied.fs, "a stage", [], [str(tmp_path / "copy" / "out")], False):
            assert claims.exists()


def test_names_in_git_need_not_be_utf_8(tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    name = os.fsdecode(b"caf\xe9.txt")
    (root / name).write_text("here")
    with workspace.snapshot(root, workspace.known_files(root), []) as snap:
        assert names_in(snap, tmp_path / "copy") == {name}


def test_images_that_copies_would_lack_are_named(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for name in ("known", "odd", "added"):
        (tmp_path / name / "cats").mkdir(parents=True)
        (tmp_path / name / "cats/0.png").touch()
    subprocess.run(["git", "add", "known"], cwd=tmp_path, check=True)
    repo = SimpleNamespace(
        root_dir=str(tmp_path), index=SimpleNamespace(outs=[SimpleNamespace(fs_path=str(tmp_path / "added"))])
    )

    def check(source: str, folder: str) -> None:
        experiments.check_images(repo, {"data": {"source": source, "folder": folder}})

    for folder in ("known", "known/", "added", str(tmp_path / "odd")):
        check("folder", folder)
    check("digits", "odd")
    experiments.check_images(repo, None)
    for folder in ("odd", "../elsewhere"):
        with pytest.raises(RunError, match=f"data.folder {folder}: not in git, .*; give an absolute path"):
            check("folder", folder)


def test_no_experiment_begins_that_would_lack_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those of DVC's queue nor those of a search."""
    toy = Toy.make(tmp_path / "project", amount=1)
    (toy.place / "params.yaml").write_text("data: {source: folder, folder: odd}\n")
    toy("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qam", "odd")
    monkeypatch.chdir(toy.place)
    commit = toy("git", "rev-parse", "HEAD").strip()
    monkeypatch.setattr(experiments, "waiting", lambda repo: [SimpleNamespace(stash_rev=commit, name="x")])
    with pytest.raises(RunError, match="data.folder odd: not in git"):
        experiments.run_queued(jobs=1)
    monkeypatch.setattr(params, "load", lambda: SimpleNamespace(teachers={"ebm": None}))
    monkeypatch.setattr(session, "_teacher", lambda target: {"validation": {"fid_interval": [1, 2]}})
    monkeypatch.setattr(session.spaces, "load", lambda *given: None)
    with pytest.raises(RunError, match="data.folder odd: not in git"):
        session.search("ebm", max_loss="5%")


def test_a_remote_that_refuses_connections_is_tried_again_a_full_disk_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    refused, full = (OSError(number, os.strerror(number)) for number in (errno.ECONNREFUSED, errno.ENOSPC))
    answers: list[Any] = [refused, ConnectionResetError(errno.ECONNRESET, "reset"), "done"]

    def transfer() -> Any:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    assert workspace.persistently(transfer) == "done"
    answers[:] = [full, "done"]
    with pytest.raises(OSError, match="space"):
        workspace.persistently(transfer)


def test_a_screen_that_is_full_of_running_stages_shows_no_others() -> None:
    screen = Screen(names := [f"stage{number}" for number in range(ROWS + 5)])
    for number, name in enumerate(names):
        screen.since[name] = float(number)
        screen.state[name] = "running" if number < ROWS else "done"
        if number >= ROWS:
            screen.took[name] = 1.0
    assert screen.table().row_count == ROWS
    screen.state["stage0"], screen.took["stage0"] = "done", 1.0
    assert screen.table().row_count == ROWS


def test_a_stage_of_another_dvc_yaml_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = photographs(tmp_path / "toy")
    (toy.place / "sub").mkdir()
    own = "stages:\n  pre:\n    cmd: cp ../work.py out\n    deps: [../work.py]\n    outs: [out]\n"
    (toy.place / "sub/dvc.yaml").write_text(own)
    toy("dvc", "add", "-q", "photos")
    monkeypatch.chdir(toy.place)
    for force in (False, True):
        pipeline.run(["photos.dvc"], jobs=1, force=force)  # there is nothing to run
        with pytest.raises(RunError):
            pipeline.run(["sub/dvc.yaml:pre"], jobs=1, force=force)
        log = toy.place / pipeline.LOGS / "sub/dvc.yaml:pre.log"
        assert log.read_text().endswith("run `dvc repro sub/dvc.yaml:pre` first\n")
        assert not (toy.place / "dvc.lock").exists()


def test_experiments_without_git_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy.make(tmp_path / "toy")
    toy("dvc", "config", "core.no_scm", "true")
    monkeypatch.chdir(toy.place)
    with pytest.raises(RunError, match="keeps experiments in git; `git init`"):
        experiments.run_queued(jobs=1)
