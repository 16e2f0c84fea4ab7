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
from lowenergy.running.pipeline import Pipeline, Plan, alone, claimed, opened, report
from lowenergy.running.workspace import Snapshot

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
    with alone(), claimed(repo, [str(root / PLACE)]):
        queued = []
        for entry in entries:
            name = entry.name or entry.stash_rev[:7]
            # Checkpoints of its own: stages of one name, but of other params, would overwrite each other's.
            place, names = unpacked(repo, entry.stash_rev, root / PLACE / name, root / PLACE / f"{name}.checkpoints")
            with workspace.working_in(Path(place.root_dir)):
                queued.append((name, place, names, Plan.of(place, targets_of(place))))
        stages = [f"{name}:{stage.addressing}" for name, _, _, plan in queued for stage in plan.stages]
        with ExitStack() as stack:
            for _, place, _, _ in queued:
                stack.enter_context(lock_repo(place))
            crew = stack.enter_context(crew_of(repo, stages, jobs, address))
            pipelines = []
            for name, place, names, plan in queued:
                snap = workspace.snapshot(Path(place.root_dir), names, workspace.outputs_of(place))
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
            raise RunError(f"DVC could not record the experiments: {PLACE / 'record.log'}")
        shutil.rmtree(root / PLACE)
    print(f"{', '.join(name for name, *_ in queued)}: `dvc exp show` shows them")


def unpacked(repo: Any, commit: str, place: Path, checkpoints: Path) -> tuple[Any, list[str]]:
    """DVC's view of a workspace with the files of a commit and the outputs that are in the cache; the files' names."""
    archive = subprocess.run(["git", "archive", commit], cwd=repo.root_dir, capture_output=True, check=True).stdout
    config = workspace.with_cache(workspace.config_of(repo), repo.cache.legacy.path)
    copied = workspace.Workspace(place, Snapshot(archive), config, checkpoints).repo
    copied.checkout(allow_missing=True, force=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return copied, tar.getnames()


def targets_of(repo: Any) -> list[str]:
    """The stages that a queued experiment asks for; none for all."""
    from dvc.repo.experiments.executor.base import BaseExecutor

    packed = Path(repo.root_dir) / ".dvc" / "tmp" / BaseExecutor.PACKED_ARGS_FILE
    if not packed.exists():
        return []
    arguments, named = BaseExecutor.unpack_repro_args(packed)  # which DVC has written on this machine
    asked = named.get("targets") or (arguments[0] if arguments else None) or []
    return [asked] if isinstance(asked, str) else list(asked)
