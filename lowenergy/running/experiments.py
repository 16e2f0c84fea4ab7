"""`lowenergy run --queue`: all stages of DVC's queued experiments, side by side.

    each queued experiment         ->  a workspace of its own, and its plan
    stages of all of these plans   ->  run as those of one pipeline; what two have in common, once
    `dvc exp run --run-all`        ->  finds each of them in the cache, and records the experiments

so that afterwards they are what `dvc queue start` would have made of them.
"""

import io
import shutil
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lowenergy.running import workspace
from lowenergy.running.crew import RunError, crew_of
from lowenergy.running.pipeline import Pipeline, Plan, claimed, opened, report
from lowenergy.running.worker import local_config

PLACE = Path(".dvc/tmp/lowenergy/queue")


def run_queued(*, jobs: int | None, address: str | None = None, keep_going: bool = False) -> None:
    """Run the experiments that `dvc exp run --queue` has queued in this repository.

    Args:
        jobs, address: see pipeline.run.
    Raises:
        RunError: none is queued, another such run is under way, or some failed: DVC then knows them as failed.
    """
    from dvc.repo import lock_repo

    repo = opened()
    entries = list(repo.experiments.celery_queue.iter_queued())
    if not entries:
        raise RunError("no experiment is queued; `dvc exp run --queue -S prune.amount=0.7`")
    root = Path(repo.root_dir)
    with claimed(repo, [str(root / PLACE)]):
        found = [(entry.name or entry.stash_rev[:7], entry.stash_rev) for entry in entries]
        places = [unpacked(repo, rev, root / PLACE / name) for name, rev in found]
        plans = []
        for place in places:
            with workspace.working_in(Path(place.root_dir)):
                plans.append(Plan.of(place, targets_of(place)))
        labels = [f"{name}:" for name, _ in found]
        stages = [label + s.addressing for label, plan in zip(labels, plans, strict=True) for s in plan.stages]
        with ExitStack() as stack:
            for place in places:
                stack.enter_context(lock_repo(place))
            crew = stack.enter_context(crew_of(repo, stages, jobs, address))
            pipelines = []
            for (name, rev), place, plan in zip(found, places, plans, strict=True):
                names = workspace.known_files(root, rev)
                snap = workspace.snapshot(Path(place.root_dir), names, workspace.outputs_of(place))
                # Of its own: stages of one name, but of other params, would overwrite each other's checkpoints.
                crew.know(snap, root / PLACE / f"{name}.checkpoints")
                pipelines.append(Pipeline(place, plan, crew, snap, label=f"{name}:"))
            crew.run(pipelines, keep_going=keep_going)
        recorded = subprocess.run(
            [sys.executable, "-m", "dvc", "exp", "run", "--run-all", "--jobs", str(jobs or 1)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        (root / PLACE / "record.log").write_text(recorded.stdout)
        report(pipelines)
        if recorded.returncode:
            raise RunError(f"DVC could not record the experiments: {root / PLACE / 'record.log'}")
        print(f"{', '.join(name for name, _ in found)}: `dvc exp show` shows them")
        shutil.rmtree(root / PLACE)


def unpacked(repo: Any, commit: str, place: Path) -> Any:
    """DVC's view of a workspace that holds the files of a commit, and those outputs that are in the cache."""
    root = Path(repo.root_dir)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", commit], cwd=root, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(place, filter="data")
    local = root / ".dvc" / "config.local"
    config = local_config(local.read_text() if local.exists() else "", cache=repo.cache.legacy.path)
    (place / ".dvc" / "config.local").write_text(config)
    opened = workspace.open_repo(place)
    opened.checkout(allow_missing=True, force=True)
    return opened


def targets_of(repo: Any) -> list[str]:
    """The stages that a queued experiment asks for; none for all."""
    from dvc.repo.experiments.executor.base import BaseExecutor

    packed = Path(repo.root_dir) / ".dvc" / "tmp" / BaseExecutor.PACKED_ARGS_FILE
    if not packed.exists():
        return []
    arguments, named = BaseExecutor.unpack_repro_args(packed)  # which DVC has written on this machine
    asked = named.get("targets") or (arguments[0] if arguments else None) or []
    return [asked] if isinstance(asked, str) else list(asked)
