"""A copy of the workspace in which one stage after another can run, on this machine or on another.

A snapshot holds what git would commit, as it is now. Outputs of other stages come through DVC's cache, which workers of
one machine share, or else through the project's remote; uncached ones (metrics) are sent along.
"""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lowenergy.base.errors import UserError

CHECKPOINTS = ".checkpoints"  # of lowenergy/base/checkpoint.py


@dataclass(frozen=True)
class Snapshot:
    content: bytes  # a tar file

    @cached_property
    def name(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:12]


def known_files(root: Path) -> list[str]:
    """Paths of all files that are in git or would be added.

    Raises:
        UserError: not a git repository.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True
    )
    if listed.returncode:
        raise UserError(f"{root}: `lowenergy run` copies what git knows of; `git init` first")
    return listed.stdout.decode().split("\0")


def snapshot(root: Path, names: Iterable[str], without: Iterable[str]) -> Snapshot:
    """These files of a workspace, but those below `without`: outputs of stages."""
    outputs = tuple(without)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in sorted(set(names) - {"", "dvc.lock", ".dvc/config.local"}):
            if (root / name).is_file() and not any(Path(name).is_relative_to(output) for output in outputs):
                info = tar.gettarinfo(root / name, name)
                info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
                with (root / name).open("rb") as file:
                    tar.addfile(info, file)
    return Snapshot(archive.getvalue())


@dataclass(frozen=True)
class Input:
    """One output of another stage: where it is, and what DVC's lock file says of it."""

    path: str
    entry: dict[str, Any]
    content: bytes | None = None  # of one that is not cached


class Workspace:
    """A snapshot unpacked, under DVC."""

    def __init__(self, place: Path, snap: Snapshot, config: str, checkpoints: Path) -> None:
        """
        Args:
            config: DVC's local configuration: where the cache is, and the credentials of a remote.
            checkpoints: where stages keep them, shared so that a stage goes on in another workspace.
        """
        self.place, marker = place, place / ".dvc" / "snapshot"
        if not marker.exists() or marker.read_text() != snap.name:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            with tarfile.open(fileobj=io.BytesIO(snap.content)) as tar:
                tar.extractall(place, filter="data")
            (place / ".dvc").mkdir(exist_ok=True)
            checkpoints.mkdir(parents=True, exist_ok=True)
            (place / CHECKPOINTS).symlink_to(checkpoints.resolve())
            marker.write_text(snap.name)
        (place / ".dvc" / "config.local").write_text(config)
        self.repo = open_repo(place)

    def run(self, name: str, inputs: Iterable[Input], run: Callable[[Any], None], *, remote: bool) -> dict[str, Any]:
        """Put the stage's inputs in place, run it, bring its outputs into the cache.

        Args:
            run: runs the command of the DVC stage that it is given.
            remote: inputs come from the project's remote, outputs go there.
        Returns:
            The stage's entry for dvc.lock.
        """
        from dvc.repo import lock_repo

        os.chdir(self.place)  # DVC's run cache takes dvc.yaml to be in the working directory
        with lock_repo(self.repo):
            stage = self.repo.stage.load_one(str(self.place / "dvc.yaml"), name)
            for input_ in inputs:
                self._put(input_, remote=remote)
            stage.remove_outs()
            stage.save_deps()
        run(stage)
        with lock_repo(self.repo):
            entry = finished(stage)
            if remote:
                for item in entry["outs"]:  # uncached ones too, so that a clone elsewhere need not run the stage
                    push(self.repo, output_of(self.repo, Input(item["path"], item)))
        return entry

    def _put(self, input_: Input, *, remote: bool) -> None:
        path = self.place / input_.path
        if input_.content is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(input_.content)
            return
        out = output_of(self.repo, input_)
        if remote and not out.exists:
            pull(self.repo, out)
        out.checkout(force=True)


@contextmanager
def working_in(place: Path) -> Iterator[None]:
    """DVC takes some paths, and its run cache dvc.yaml, from the working directory."""
    before = Path.cwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)


def open_repo(root: Path) -> Any:
    """DVC's view of a project."""
    from dvc.repo import Repo

    return Repo(str(root))


def config_of(repo: Any) -> str:
    """A project's local DVC configuration as a copy of it needs it: without git, and with remotes that are found from
    there as well."""
    from configobj import ConfigObj

    local = Path(repo.root_dir) / ".dvc" / "config.local"
    parsed = ConfigObj(local.read_text().splitlines() if local.exists() else [])
    parsed.setdefault("core", {})["no_scm"] = "true"
    for name, remote in repo.config["remote"].items():
        parsed.setdefault(f'remote "{name}"', {})["url"] = str(remote["url"])
    return "\n".join(parsed.write()) + "\n"


def with_cache(config: str, cache: str) -> str:
    """The configuration with DVC's cache in this folder."""
    from configobj import ConfigObj

    parsed = ConfigObj(config.splitlines())
    parsed.setdefault("cache", {})["dir"] = cache
    return "\n".join(parsed.write()) + "\n"


def outputs_of(repo: Any) -> set[str]:
    """Paths of all stages' outputs."""
    return {out.def_path for stage in repo.index.stages for out in stage.outs}


def finished(stage: Any) -> dict[str, Any]:
    """Hash a stage's inputs and outputs, cache them and what they came from; its entry for dvc.lock."""
    from dvc.stage.serialize import to_single_stage_lockfile

    stage.save(run_cache=True)
    stage.commit()
    return dict(to_single_stage_lockfile(stage))


def output_of(repo: Any, input_: Input) -> Any:
    """A DVC output that is not bound to a stage's place in dvc.yaml."""
    from dvc.stage import PipelineStage, create_stage
    from dvc.stage.loader import StageLoader

    root = repo.root_dir
    stage = create_stage(PipelineStage, repo, f"{root}/dvc.yaml", cmd="-", wdir=root, outs=[input_.path])
    StageLoader.fill_from_lock(stage, {"outs": [input_.entry]})
    return stage.outs[0]


def _objects(out: Any) -> Any:
    """What of an output is in the cache: files, and of a folder its list."""
    return {found for objects in out.get_used_objs().values() for found in objects}


def pull(repo: Any, out: Any) -> None:
    """An output from the remote into the cache."""
    persistently(lambda: repo.cloud.pull(_objects(out)))


def push(repo: Any, out: Any) -> None:
    """An output from the cache to the remote."""
    persistently(lambda: repo.cloud.push(_objects(out)))


def persistently(transfer: Callable[[], Any], patience: float = 300.0) -> Any:
    """Try until it works: a remote may be away for a while.

    Args:
        patience: seconds after which its error is raised.
    """
    import time

    from dvc.exceptions import DvcException

    started, pause = time.monotonic(), 1.0
    while True:
        try:
            return transfer()
        except (DvcException, OSError, ConnectionError) as error:
            if getattr(error, "errno", None) is not None or time.monotonic() - started > patience:
                raise
            print(f"the remote does not answer ({error}); trying again in {pause:.0f} s", flush=True)
            time.sleep(pause)
            pause = min(2 * pause, 30.0)
