"""A copy of the workspace in which stages run one after another, on this machine or another.

A snapshot holds the files that git would commit, as they are now. Outputs of other stages come through DVC's cache,
which workers on one machine share, or else through the project's remote.
"""

import errno
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowenergy.base.errors import UserError

AWAY = {None, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT}
AWAY |= {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}  # errors of a remote, not of a disk
CHECKPOINTS = ".checkpoints"  # of lowenergy/base/checkpoint.py


@dataclass(frozen=True)
class Snapshot:
    """Files of a workspace as they were at one moment: a tar file on this machine, or its content in transit."""

    path: Path
    name: str
    content: bytes | None = None

    @classmethod
    def of(cls, path: Path) -> "Snapshot":
        with path.open("rb") as file:
            return cls(path, hashlib.file_digest(file, "sha256").hexdigest()[:12])

    def carried(self) -> "Snapshot":
        """The snapshot together with its content, for machines that share no disk with this one."""
        return replace(self, content=self.path.read_bytes())

    def unpack(self, place: Path) -> None:
        content = io.BytesIO(self.content) if self.content is not None else self.path.open("rb")
        with content, tarfile.open(fileobj=content) as tar:
            tar.extractall(place, filter="data")


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
    return os.fsdecode(listed.stdout).split("\0")  # names need not be UTF-8


def carried(repo: Any) -> set[str]:
    """Paths of all files that workers may need: what is in git or would be added, and what their stages depend on. Git
    may ignore some of that, and does not look into a repository within this one."""
    root = Path(repo.root_dir)
    deps = {Path(dep.fs_path) for stage in repo.index.stages if not runs_here(stage) for dep in stage.deps}
    inside = [path for path in deps if path.is_relative_to(root)]
    files = {path for path in inside if path.is_file()}
    for folder in (path for path in inside if path.is_dir()):
        files |= {Path(path) for path in repo.dvcignore.find(repo.fs, str(folder))}
    return {*known_files(root), *(str(path.relative_to(root)) for path in files)}


@contextmanager
def snapshot(root: Path, names: Iterable[str], without: Iterable[str]) -> Iterator[Snapshot]:
    """Yield a snapshot of these files of a workspace, and delete it afterwards.

    It leaves out what is at or below `without`, dvc.lock and .dvc/config.local. It is made on disk: a workspace may
    hold more than memory does.
    """
    left_out = tuple(map(Path, without))
    path = root / ".dvc" / "tmp" / "lowenergy" / "snapshot.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(path, "w", dereference=True) as tar:  # a link may lead outside
            for name in sorted(set(names) - {"", "dvc.lock", ".dvc/config.local"}):
                if (root / name).is_file() and not any(Path(name).is_relative_to(place) for place in left_out):
                    info = tar.gettarinfo(root / name, name)
                    info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
                    with (root / name).open("rb") as file:
                        tar.addfile(info, file)
        yield Snapshot.of(path)
    finally:
        path.unlink(missing_ok=True)


Entry = dict[str, Any]  # what dvc.lock says about a stage, or about one output


class Workspace:
    """An unpacked snapshot that DVC works in."""

    def __init__(self, place: Path, snap: Snapshot, config: str, checkpoints: Path) -> None:
        """
        Args:
            config: DVC's local configuration: where the cache is, and the credentials of a remote.
            checkpoints: the folder where stages keep them, shared so that a stage can go on in another workspace.
        """
        self.place, marker = place, place / ".dvc" / "snapshot"
        if not marker.exists() or marker.read_text() != snap.name:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            snap.unpack(place)
            (place / ".dvc").mkdir(exist_ok=True)
            checkpoints.mkdir(parents=True, exist_ok=True)
            (place / CHECKPOINTS).symlink_to(checkpoints.resolve())
            marker.write_text(snap.name)
        (place / ".dvc" / "config.local").write_text(config)
        # Nobody else works here. DVC does not write its list of claims atomically, so a kill may have cut it short.
        (place / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
        self.repo = open_repo(place)

    def run(self, name: str, inputs: Iterable[Entry], run: Callable[[Any], None], *, remote: bool) -> Entry:
        """Put the stage's inputs in place, run it, and bring its outputs into the cache.

        Args:
            inputs: outputs of other stages.
            run: is given the DVC stage, and runs its command.
            remote: inputs come from the project's remote, and outputs go there.
        Returns:
            The stage's entry for dvc.lock.
        """
        from dvc.repo import lock_repo

        os.chdir(self.place)  # DVC's run cache expects dvc.yaml in the working directory
        with lock_repo(self.repo):
            stage = self.repo.stage.load_one(str(self.place / "dvc.yaml"), name)
            for input_ in inputs:
                out = output_of(self.repo, input_)
                if remote and not out.exists:
                    pull(self.repo, out)
                out.checkout(force=True)
            stage.remove_outs()
            stage.save_deps()
        run(stage)
        with lock_repo(self.repo):
            entry = finished(stage)
            if remote:
                for item in entry["outs"]:
                    push(self.repo, output_of(self.repo, item))
        return entry


@contextmanager
def working_in(place: Path) -> Iterator[None]:
    """Work in this folder for a while: DVC looks up some paths, and its run cache dvc.yaml, from there."""
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
    """A project's local DVC configuration for a copy of it: without git, with remotes' URLs that work there, too."""
    from configobj import ConfigObj

    local = Path(repo.root_dir) / ".dvc" / "config.local"
    parsed = ConfigObj(local.read_text().splitlines() if local.exists() else [])
    parsed.setdefault("core", {})["no_scm"] = "true"
    for name, remote in repo.config["remote"].items():
        parsed.setdefault(f'remote "{name}"', {})["url"] = str(remote["url"])
    return "\n".join(parsed.write()) + "\n"


def with_cache(config: str, cache: str) -> str:
    """The configuration with this folder as DVC's cache."""
    from configobj import ConfigObj

    parsed = ConfigObj(config.splitlines())
    parsed.setdefault("cache", {})["dir"] = cache
    return "\n".join(parsed.write()) + "\n"


def not_carried(repo: Any) -> set[str]:
    """Paths that workers need not be given: outputs, and folders that only stages running here depend on."""
    here: set[Path] = set()
    others: set[Path] = set()
    for stage in repo.index.stages:
        (here if runs_here(stage) else others).update(Path(dep.def_path) for dep in stage.deps)
    only_here = {
        path
        for path in here
        if (Path(repo.root_dir) / path).is_dir()
        and not any(path.is_relative_to(other) or other.is_relative_to(path) for other in others)
    }
    return {out.def_path for stage in repo.index.stages for out in stage.outs} | set(map(str, only_here))


def runs_here(stage: Any) -> bool:
    """True if a stage must run in this workspace, because only it has what the stage reads (`meta: {where: here}` in
    dvc.yaml), or because DVC does not cache an output and only git keeps it."""
    return (stage.meta or {}).get("where") == "here" or not all(out.use_cache for out in stage.outs)


def finished(stage: Any) -> Entry:
    """Hash a stage's inputs and outputs, cache the outputs and what they came from; return its entry for dvc.lock."""
    from dvc.stage.serialize import to_single_stage_lockfile

    stage.save(run_cache=True)
    stage.commit()
    return dict(to_single_stage_lockfile(stage))


def output_of(repo: Any, entry: Entry) -> Any:
    """The DVC output of an entry, without its stage in dvc.yaml."""
    from dvc.stage import PipelineStage, create_stage
    from dvc.stage.loader import StageLoader

    root = repo.root_dir
    stage = create_stage(PipelineStage, repo, f"{root}/dvc.yaml", cmd="-", wdir=root, outs=[entry["path"]])
    StageLoader.fill_from_lock(stage, {"outs": [entry]})
    return stage.outs[0]


def _objects(out: Any) -> Any:
    """The objects of an output in the cache: its files and, for a folder, the list of them."""
    return {item for objects in out.get_used_objs().values() for item in objects}


def pull(repo: Any, out: Any) -> None:
    """Bring an output from the remote into the cache."""
    persistently(lambda: repo.cloud.pull(_objects(out)))


def push(repo: Any, out: Any) -> None:
    """Send an output from the cache to the remote."""
    persistently(lambda: repo.cloud.push(_objects(out)))


def persistently(transfer: Callable[[], Any], patience: float = 300.0) -> Any:
    """Try a transfer until it works: a remote may be away for a while. Errors of this machine are raised at once.

    Args:
        patience: seconds after which any error is raised.
    """
    import time

    from dvc.exceptions import DvcException

    started, pause = time.monotonic(), 1.0
    while True:
        try:
            return transfer()
        except (DvcException, OSError, ConnectionError) as error:
            if getattr(error, "errno", None) not in AWAY or time.monotonic() - started > patience:
                raise
            print(f"the remote does not answer ({error}); trying again in {pause:.0f} s", flush=True)
            time.sleep(pause)
            pause = min(2 * pause, 30.0)
