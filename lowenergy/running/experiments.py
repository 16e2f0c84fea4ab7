"""`lowenergy run --queue`: all stages of DVC's queued experiments, side by side.

    each queued experiment         ->  gets a workspace and a plan of its own
    the stages of all these plans  ->  run as one pipeline; a stage that two plans share runs once
    `dvc exp run --run-all`        ->  finds each stage in the cache, and records the experiments

Afterwards the experiments are what `dvc queue start` would have made of them.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lowenergy.base.nested import value_at
from lowenergy.running import workspace
from lowenergy.running.crew import RunError, Watch, crew_of
from lowenergy.running.pipeline import Pipeline, Plan, alone, claimed, opened, report
from lowenergy.running.worker import with_own_python
from lowenergy.running.workspace import Snapshot

PLACE = Path(".dvc/tmp/lowenergy/queue")
NOT_RECORDED = f"DVC has not recorded {{}}: {PLACE / 'record.log'}; queue and run again, what was done is in the cache"

ASK_AGAIN = 30.0  # seconds; twice as many after a try without progress, three times as many after the next, and so on
PATIENCE = 6  # tries in a row without progress, after which we give up
# A shell tells what it runs in the background to ignore interrupts; DVC must not.
RUN_ALL = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from dvc.cli import main
sys.exit(main(["exp", "run", "--run-all", "--jobs", "1"]))
"""


def run_queued(*, jobs: int | None, address: str | None = None, keep_going: bool = False) -> None:
    """Run the experiments that `dvc exp run --queue` has queued in this repository.

    Args:
        jobs, address: see pipeline.run.
    Raises:
        RunError: none is queued, another such run is under way, the images are not where experiments run, DVC has not
            recorded some, or some failed; DVC then lists those as failed.
    """
    repo = opened()
    with ours(repo):
        entries = waiting(repo)
        if not entries:
            raise RunError("no experiment is queued; `dvc exp run --queue -S prune.amount=0.7`")
        for entry in entries:
            check_images(repo, _params_of(repo, entry.stash_rev))
        pipelines = run_entries(repo, entries, jobs=jobs, address=address, keep_going=keep_going)
        lost = record(repo, [pipeline.experiment for pipeline in pipelines if not pipeline.failed])
        report(pipelines)
        if lost:
            raise RunError(NOT_RECORDED.format(", ".join(lost)))
        shutil.rmtree(Path(repo.root_dir) / PLACE)
    print(f"{', '.join(map(name_of, entries))}: `dvc exp show` shows them")


def check_images(repo: Any, values: Any) -> None:
    """Check that experiments will find their images: they run in copies of what git and DVC know.

    Args:
        values: those of params.yaml.
    Raises:
        RunError: the folder is neither absolute, nor in git, nor added to DVC.
    """
    source, folder = (value_at(values, f"data.{key}") for key in ("source", "folder"))
    if source != "folder" or not isinstance(folder, str) or Path(folder).is_absolute():
        return
    place = Path(repo.root_dir) / folder
    listed = subprocess.run(["git", "ls-files", "--", folder], cwd=repo.root_dir, capture_output=True)
    if not listed.stdout and not any(place.is_relative_to(out.fs_path) for out in repo.index.outs):
        raise RunError(f"data.folder {folder}: not in git, and experiments run in copies; give an absolute path")


def _params_of(repo: Any, commit: str) -> Any:
    """The values of params.yaml in a commit; None if it has none, which its stages will report."""
    shown = subprocess.run(["git", "show", f"{commit}:./params.yaml"], cwd=repo.root_dir, capture_output=True)
    try:
        return YAML(typ="safe").load(shown.stdout)
    except (YAMLError, ValueError, RecursionError):
        return None


@contextmanager
def ours(repo: Any) -> Iterator[None]:
    """Keep other runs off the queued experiments here while the context lasts.

    Raises:
        RunError: another run is working on them.
    """
    with alone(), claimed(repo, [str(Path(repo.root_dir) / PLACE)]):
        yield


def waiting(repo: Any) -> list[Any]:
    """DVC's entries of queued experiments.

    Raises:
        RunError: the project is not in git.
    """
    if repo.config["core"].get("no_scm"):
        raise RunError("DVC keeps experiments in git; `git init`, and `dvc config core.no_scm false`")
    return list(repo.experiments.celery_queue.iter_queued())


def name_of(entry: Any) -> str:
    return str(entry.name or entry.stash_rev[:7])


def run_entries(
    repo: Any,
    entries: Sequence[Any],
    *,
    jobs: int | None,
    address: str | None = None,
    keep_going: bool = False,
    watch: Watch | None = None,
) -> list[Pipeline]:
    """Run all stages of queued experiments. Results are in the cache and, until PLACE is removed, in workspaces there.

    Args:
        watch: see Crew.
    Returns:
        One pipeline per experiment; some may have failed.
    """
    from dvc.repo import lock_repo

    root = Path(repo.root_dir)
    queued = []
    for entry in entries:
        name = name_of(entry)
        # Each has its own checkpoints: stages with the same name but other params would overwrite each other's.
        place, names = unpacked(repo, entry.stash_rev, root / PLACE / name, root / PLACE / f"{name}.checkpoints")
        with workspace.working_in(Path(place.root_dir)):
            queued.append((name, place, names, Plan.of(place, targets_of(place))))
    stages = [f"{name}:{stage.addressing}" for name, _, _, plan in queued for stage in plan.stages]
    with ExitStack() as stack:
        for _, place, _, _ in queued:
            stack.enter_context(lock_repo(place))
        crew = stack.enter_context(crew_of(repo, stages, jobs, address))
        crew.watch = watch
        pipelines = []
        for name, place, names, plan in queued:
            files = workspace.snapshot(Path(place.root_dir), names, workspace.not_carried(place))
            snap = stack.enter_context(files)
            crew.know(snap, root / PLACE / f"{name}.checkpoints")
            pipelines.append(Pipeline(place, plan, crew, snap, experiment=name))
        crew.run(pipelines, keep_going=keep_going)
    return pipelines


def record(repo: Any, names: Collection[str]) -> list[str]:
    """Let DVC record all queued experiments from its cache; its output is kept in PLACE/record.log.

    It records one at a time: when two of its workers collect at the same moment, DVC may lose one and say nothing. DVC
    waits for ever if its worker ends early, as happens when a killed worker has left a message for it. So DVC is asked
    again every now and then, which starts another worker where there is none. DVC may also end before its worker does.

    Returns:
        Those of the names that no recorded experiment has.
    """
    left = unfinished(repo)
    _, others = left  # begun before: not ours, or left behind by a killed worker
    in_vain = 0
    with (Path(repo.root_dir) / PLACE / "record.log").open("ab") as log:
        while in_vain < PATIENCE:
            _ask(repo, log, ASK_AGAIN * (1 + in_vain))
            before, left = left, unfinished(repo)
            queued, begun = left
            if not queued and begun <= others:
                break
            in_vain = in_vain + 1 if left == before else 0
    if not others:
        worker_ended(repo)
    return sorted(set(names) - revisions(repo, names).keys())


def worker_ended(repo: Any, patience: float = 120.0) -> bool:
    """Wait for DVC's own worker to end, some ten seconds after its last experiment; False if it is still there.

    Whatever is queued before then, it begins by itself, one stage after the other and unseen by us.

    Args:
        patience: seconds to wait at most.
    """
    until = time.monotonic() + patience
    while repo.experiments.celery_queue.worker_status():
        if time.monotonic() > until:
            return False
        time.sleep(1.0)
    return True


def unfinished(repo: Any) -> tuple[set[str], set[str]]:
    """The stash revisions of the experiments that DVC has yet to begin, and of those that it has begun."""
    # In this order, an experiment begun meanwhile is in both sets, not in neither.
    queued = {entry.stash_rev for entry in waiting(repo)}
    return queued, {entry.stash_rev for entry in repo.experiments.celery_queue.iter_active()}


def _ask(repo: Any, log: IO[bytes], patience: float) -> None:
    """Let DVC work on the queue until it is done or `patience` seconds have passed; its worker goes on."""
    here = with_own_python(os.environ)  # DVC starts its worker as `dvc`, wherever that is
    dvc = subprocess.Popen(
        [sys.executable, "-c", RUN_ALL], cwd=repo.root_dir, env=here, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        dvc.wait(patience)
    except subprocess.TimeoutExpired:
        dvc.send_signal(signal.SIGINT)  # killed, it would leave its lock to a child
        dvc.wait()


def revisions(repo: Any, names: Collection[str]) -> dict[str, str]:
    """The commits of those of the named experiments that exist, by name."""
    from dvc.repo.experiments.utils import exp_refs_by_names

    refs_by_name = exp_refs_by_names(repo.scm, set(names))
    return {name: repo.scm.get_ref(str(refs[0])) for name, refs in refs_by_name.items() if refs}


def unpacked(repo: Any, commit: str, place: Path, checkpoints: Path) -> tuple[Any, list[str]]:
    """Unpack a commit's files and its cached outputs into a workspace; return DVC's view of it and the files' names."""
    archive = place.parent / f"{place.name}.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "archive", "--output", archive, commit], cwd=repo.root_dir, capture_output=True, check=True)
    config = workspace.with_cache(workspace.config_of(repo), repo.cache.legacy.path)
    copied = workspace.Workspace(place, Snapshot.of(archive), config, checkpoints).repo
    with _unsaid("dvc_data"):  # it logs a line for each output that is not in the cache
        copied.checkout(allow_missing=True, force=True)
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    archive.unlink()
    return copied, names


@contextmanager
def _unsaid(logger: str) -> Iterator[None]:
    """Silence a library's warnings while the context lasts."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def targets_of(repo: Any) -> list[str]:
    """The stages that a queued experiment asks for; an empty list for all."""
    from dvc.repo.experiments.executor.base import BaseExecutor

    packed = Path(repo.root_dir) / ".dvc" / "tmp" / BaseExecutor.PACKED_ARGS_FILE
    if not packed.exists():
        return []
    arguments, named = BaseExecutor.unpack_repro_args(packed)  # pickled, but by DVC on this machine
    asked = named.get("targets") or (arguments[0] if arguments else None) or []
    return [asked] if isinstance(asked, str) else list(asked)
