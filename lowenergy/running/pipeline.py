"""`lowenergy run`: the stages that `dvc repro` would run, independent ones side by side.

    plan        DVC's own: which stages, in which order
    for each stage whose upstream stages are done, starting with the one with the longest row of stages after it:
        unchanged, or in the cache or on the remote  ->  nothing runs
        otherwise                                    ->  a Dask worker runs it in a copy of the workspace
    its outputs and its entry of dvc.lock come back to this workspace

At any time, even after Ctrl-C or a kill, the workspace is as if DVC itself had run the stages done so far.
"""

import atexit
import json
import logging
import os
import sys
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from lowenergy.base import curves, files
from lowenergy.running import workspace
from lowenergy.running.crew import Crew, RunError, crew_of
from lowenergy.running.worker import Done, NodeFullError, StageError, Task, command, execute, points_of
from lowenergy.running.workspace import Entry, Snapshot

LOGS = Path(".dvc/tmp/lowenergy/logs")
ATTEMPTS = 5  # to run a stage where disks are full, each on another worker


@dataclass
class Plan:
    """Stages to look at, in DVC's order."""

    stages: list[Any]
    upstream: dict[str, set[str]]  # stage: the stages of this plan that it needs
    height: dict[str, int] = field(default_factory=dict)  # stage: the steps of the longest way from it to an end

    @classmethod
    def of(cls, repo: Any, targets: Iterable[str]) -> "Plan":
        """Plan as `dvc repro` does.

        Raises:
            RunError: no such stage, or a dvc.yaml that DVC cannot read.
        """
        from dvc.exceptions import DvcException
        from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

        try:
            graph = get_active_graph(repo.index.graph)
            stages = plan_repro(graph, collect_stages(repo, list(targets) or ["dvc.yaml"]))
        except DvcException as error:
            raise RunError(f"{error}; `dvc stage list` names the stages") from None
        names = {stage.addressing for stage in stages}
        upstream = {s.addressing: {u.addressing for u in graph.successors(s)} & names for s in stages}
        height: dict[str, int] = dict.fromkeys(names, 0)
        for stage in reversed(stages):
            for above in upstream[stage.addressing]:
                height[above] = max(height[above], height[stage.addressing] + 1)
        return cls(stages, upstream, height)


class Lock:
    """dvc.lock, with new entries in the order in which `dvc repro` would have written them."""

    def __init__(self, root: Path, plan: Plan) -> None:
        self.path = root / "dvc.lock"
        self.order = [stage.addressing for stage in plan.stages]  # the file of a `dvc add` has no name
        self.before = self.path.read_bytes() if self.path.exists() else None
        self.entries: dict[str, Entry] = {}
        self.written, self.cost = 0.0, 0.0

    def add(self, name: str, entry: Entry) -> None:
        """Add an entry and write the file, at once or soon: one of a thousand stages takes seconds to write."""
        self.entries[name] = entry
        if time.monotonic() - self.written > 20 * self.cost:
            self.write()

    def write(self) -> None:
        from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

        if not self.entries:
            return
        started = time.monotonic()
        lock: Any = parse_yaml_for_update(self.before.decode(), str(self.path)) if self.before else {"schema": "2.0"}
        stages = lock.setdefault("stages", {})
        stages.update({name: self.entries[name] for name in self.order if name in self.entries})
        files.write_bytes(self.path, dumps_yaml(lock).encode())
        self.written = time.monotonic()
        self.cost = self.written - started


class Pipeline:
    """A plan that is being carried out."""

    def __init__(
        self,
        repo: Any,
        plan: Plan,
        crew: Crew,
        snap: Snapshot,
        *,
        experiment: str = "",
        force: bool = False,
    ) -> None:
        """
        Args:
            snap: the files of its workspace that workers have.
            experiment: its name, if the plan is of one; shown before the names of its stages.
        """
        self.repo, self.plan, self.crew, self.snap, self.experiment = repo, plan, crew, snap, experiment
        self.label = f"{experiment}:" if experiment else ""
        self.force, self.remote = force, crew.remote
        self.root = Path(repo.root_dir)
        self.by_name = {stage.addressing: stage for stage in plan.stages}
        # The plan's outputs go last, and win: results are noted on them, and DVC may have reread dvc.yaml since.
        self.outputs = {out.fs_path: out for stage in [*repo.index.stages, *plan.stages] for out in stage.outs}
        self.paths = sorted(self.outputs)
        self.lock = Lock(self.root, plan)
        self.waiting = {name: set(above) for name, above in plan.upstream.items()}
        self.ready: dict[str, str | None] = {}  # stage: the key of what it makes, see _key
        self.running: set[str] = set()
        self.failed: dict[str, str] = {}
        self.lost: set[str] = set()  # those of them whose command did not fail: a disk was full, a worker died
        self.stopped: dict[str, str] = {}  # stages ended because they were hopeless, and why
        self.attempts: dict[str, list[str]] = {}
        self.shared: set[str] = set()  # outputs that are on the remote

    def settle(self) -> None:
        """Sort stages whose upstream stages are done into those with nothing to do and those that are ready to run."""
        from dvc.exceptions import DvcException

        while free := [name for name, above in self.waiting.items() if not above]:
            for name in free:
                del self.waiting[name]
                try:
                    with workspace.working_in(self.root):
                        if self._settled(name):
                            self._ended(name)
                        else:
                            self.ready[name] = _key(self.by_name[name])
                except (DvcException, RunError) as error:  # an input is missing, or the stage is not of this dvc.yaml
                    self.fail(name, str(error))

    def again(self, name: str) -> None:
        """Look once more at a stage that was ready: another pipeline has made what it would make."""
        del self.ready[name]
        self.waiting[name] = set()

    def skip(self) -> None:
        """Show the stages that were never started as skipped."""
        for name in [*self.ready, *self.waiting]:
            self._show(name, "skipped")

    def _ended(self, name: str, state: str = "") -> bool:
        """Mark a stage as done, so that others may begin, and return True; a hopeless one as failed, and return False.

        Its curves are judged as they would have been while it ran.
        """
        if why := self.stopped.get(name) or self._hopeless(name):
            self.fail(name, why)
            return False
        if state:
            self._show(name, state)
        for above in self.waiting.values():
            above.discard(name)
        return True

    def _hopeless(self, name: str) -> str | None:
        watch = self.crew.watch
        points = points_of(self.by_name[name], curves.drawn) if watch else ()
        return next((why for point in points if watch and (why := watch(self.label + name, point))), None)

    def _show(self, name: str, state: str) -> None:
        self.crew.screen.set(self.label + name, state)

    def _settled(self, name: str) -> bool:
        """True if nothing needs to run: the stage is unchanged, frozen or has no command, or its outputs were restored.

        They come from the cache or, where workers are on other machines, from the remote.
        """
        from dvc.stage.cache import RunCacheNotFoundError
        from dvc_data.hashfile.hash_info import HashInfo

        stage = self.by_name[name]
        if not stage.cmd or stage.frozen or not (self.force or stage.changed()):
            self._show(name, "unchanged")
            return True
        if Path(stage.path) != self.root / "dvc.yaml":
            raise RunError(
                f"{name} is not in the project's own dvc.yaml, whose stages `lowenergy run` runs; move it there, or "
                f"run `dvc repro {name}` first"
            )
        if self.force:
            return False
        stage.remove_outs()
        try:
            self.repo.stage_cache.restore(stage, pull=self.remote)
        except RunCacheNotFoundError:
            stage.save_deps()
            for out in stage.outs:  # else DVC, asked once more, takes the old hashes for what these deps lead to
                out.hash_info = HashInfo()
            return False
        self.lock.add(stage.name, workspace.finished(stage))
        self._show(name, "cached")
        return True

    def start(self, name: str) -> None:
        stage, crew = self.by_name[name], self.crew
        self.ready.pop(name, None)
        self.running.add(name)
        self._show(name, "running")
        if workspace.runs_here(stage):
            stage.remove_outs()
            future: Any = crew.here.submit(
                command,
                stage,
                crew.environment,
                lambda line: crew.tell(self.label + name, {"line": line}),
                lambda _: None,
            )
        else:
            task = Task(
                name=name,
                label=self.label,
                snapshot=self.snap.name,
                inputs=tuple(self._inputs(stage)),
                environment=None if crew.remote else crew.environment,
                watched=crew.watch is not None,
            )
            tried = self.attempts.setdefault(name, [])
            known = [address for address in crew.workers() if address not in tried]
            future = crew.client.submit(
                execute,
                task,
                key=f"{self.label}{name}-{len(tried)}-{time.time_ns()}",
                priority=self.plan.height[name],
                workers=known if tried and known else None,
                resources={key: value for key, value in (stage.meta or {}).items() if key in ("threads", "gpus")},
                pure=False,
            )
        future.add_done_callback(lambda future: crew.over.put((self, name, future)))

    def _inputs(self, stage: Any) -> Iterator[Entry]:
        """Yield the outputs that a stage reads: each dependency itself, folders around it, and what is inside it."""
        for dep in stage.deps:
            around = [str(place) for place in (Path(dep.fs_path), *Path(dep.fs_path).parents)]
            below = bisect_left(self.paths, dep.fs_path + os.sep)
            within = takewhile(lambda path: path.startswith(dep.fs_path + os.sep), self.paths[below:])  # noqa: B023
            for path in [*(path for path in around if path in self.outputs), *within]:
                out = self.outputs[path]
                entry = {"path": out.def_path, "hash": "md5", **out.hash_info.to_dict(), **out.meta.to_dict()}
                entry.pop("isdir", None)
                if self.remote and path not in self.shared:
                    workspace.push(self.repo, out)
                    self.shared.add(path)
                yield entry

    def finish(self, name: str, future: Any) -> bool:
        """Bring back the results of a stage that has ended; return whether it is done."""
        self.running.discard(name)
        try:
            result = future.result()
        except NodeFullError as error:
            self.attempts[name].append(str(error).split(": ")[0])
            if len(self.attempts[name]) < ATTEMPTS and len(self.attempts[name]) < len(self.crew.workers()):
                self.start(name)
            else:
                self.lost.add(name)
                self.fail(name, str(error))
            return False
        except Exception as error:  # of any kind: it concerns only this stage, and others may go on
            if name not in self.stopped and not isinstance(error, StageError):
                self.lost.add(name)
            self.fail(name, self.stopped.get(name) or str(error))
            return False
        with workspace.working_in(self.root):
            self._take(name, result)
        return self._ended(name, "done")

    def _take(self, name: str, found: Done | list[str]) -> None:
        """Put a stage's outputs into the workspace, its entry into dvc.lock, and what it printed into its log."""
        from dvc.stage.loader import StageLoader

        stage = self.by_name[name]
        log = found.log if isinstance(found, Done) else "\n".join(found)
        files.write_bytes(self.root / LOGS / f"{name}.log", (log + "\n").encode())
        if not isinstance(found, Done):
            entry = workspace.finished(stage)
            self.lock.add(stage.name, entry)
            for item in entry["outs"] if self.remote else ():  # so that a clone elsewhere need not run the stage
                workspace.push(self.repo, workspace.output_of(self.repo, item))
            return
        StageLoader.fill_from_lock(stage, found.entry)
        self.shared |= {out.fs_path for out in stage.outs} if self.remote else set()
        for out in stage.outs:
            if self.remote:
                workspace.pull(self.repo, out)
            out.checkout(force=True)
            out.ignore()
        stage.md5 = stage.compute_md5()
        if self.remote:
            self.repo.stage_cache.save(stage)
        self.lock.add(stage.name, found.entry)

    def fail(self, name: str, why: str) -> None:
        self.ready.pop(name, None)
        self.failed[name] = why
        files.write_bytes(self.root / LOGS / f"{name}.log", (why + "\n").encode())
        self._show(name, "failed")


def _key(stage: Any) -> str | None:
    """Everything that decides what a stage makes, as one key; None if DVC's run cache keeps nothing of the stage."""
    from dvc.stage.serialize import to_single_stage_lockfile

    if not (stage.deps and stage.outs) or stage.always_changed:
        return None
    entry = to_single_stage_lockfile(stage)
    return json.dumps({**entry, "outs": [out["path"] for out in entry["outs"]]}, sort_keys=True)


def run(
    targets: Sequence[str],
    *,
    jobs: int | None,
    address: str | None = None,
    force: bool = False,
    keep_going: bool = False,
    dry: bool = False,
) -> None:
    """Run the pipeline of this workspace.

    Args:
        targets: stages to run, along with those that they need; empty for all.
        jobs: stages at a time on this machine; None for one per two cores, but at least two if there are two cores.
        address: of a Dask scheduler whose workers run the stages instead of this machine.
    Raises:
        RunError: a stage failed, another run is under way, or there is no remote for other machines to share.
    """
    from dvc.repo import lock_repo

    repo = opened()
    with alone(), lock_repo(repo):
        plan = Plan.of(repo, targets)
        if dry:
            _say(repo, plan, force)
            return
        outputs = {Path(out.fs_path) for stage in plan.stages for out in stage.outs}
        with claimed(repo, _around(Path(repo.root_dir), outputs)):
            _run(repo, plan, jobs, address, force, keep_going)


@contextmanager
def alone() -> Iterator[None]:
    """Turn DVC's error about a lock that somebody else holds into one line.

    Raises:
        RunError: another run is under way.
    """
    from dvc.lock import LockError

    try:
        yield
    except LockError as error:
        first, *more = str(error).splitlines()
        by = "".join(f": {line.strip()}" for line in more[:1] if "PID" in line)
        raise RunError(f"another run is under way in this workspace: {first.removesuffix(':')}{by}") from None


def _around(root: Path, paths: Iterable[Path]) -> list[str]:
    """The top-level folders of the workspace that hold these paths; a path outside it stays as it is.

    Few claims are better: DVC reads and writes all of them at every stage.
    """
    tops = {root / path.relative_to(root).parts[0] if path.is_relative_to(root) else path for path in paths}
    return sorted(map(str, tops))


def opened() -> Any:
    """DVC's view of the project in this folder.

    Raises:
        RunError: there is none.
    """
    from dvc.exceptions import DvcException

    logging.getLogger("dvc").setLevel(logging.WARNING)  # what it would say about each stage is on our screen
    try:
        repo = workspace.open_repo(Path.cwd())
    except DvcException as error:
        raise RunError(f"{error}; run it in the project's folder") from None
    atexit.register(repo.close)  # a git file left open at exit would put a traceback on the user's screen
    return repo


def _say(repo: Any, plan: Plan, force: bool) -> None:
    """Print what would run, as far as one can know beforehand."""
    changed: set[str] = set()
    for stage in plan.stages:
        if force or plan.upstream[stage.addressing] & changed or stage.changed():
            changed.add(stage.addressing)
            print(f"{stage.addressing}: {stage.cmd}")
    print(f"{len(changed)} of {len(plan.stages)} stages changed")


@contextmanager
def claimed(repo: Any, paths: Sequence[str]) -> Iterator[None]:
    """Claim these paths for writing: `dvc repro` and a second run see that and refuse."""
    from dvc.rwlock import rwlock

    with rwlock(repo.tmp_dir, repo.fs, " ".join(sys.argv), [], list(paths), False):
        yield


def _run(repo: Any, plan: Plan, jobs: int | None, address: str | None, force: bool, keep_going: bool) -> None:
    root = Path(repo.root_dir)
    with (
        crew_of(repo, [s.addressing for s in plan.stages], jobs, address) as crew,
        workspace.snapshot(root, workspace.carried(repo), workspace.not_carried(repo)) as snap,
    ):
        crew.know(snap, root / workspace.CHECKPOINTS)
        pipeline = Pipeline(repo, plan, crew, snap, force=force)
        crew.run([pipeline], keep_going=keep_going)
    report([pipeline])


def report(pipelines: Sequence[Pipeline]) -> None:
    """Show what the failed stages have printed.

    Raises:
        RunError: a stage failed.
    """
    for pipeline in pipelines:
        for name, why in pipeline.failed.items():
            log = (pipeline.root / LOGS / f"{name}.log").relative_to(Path.cwd())
            print(f"\n{pipeline.label}{name} failed:\n{why}\n(all of it: {log})", file=sys.stderr)
    if failed := [p.label + name for p in pipelines for name in p.failed]:
        more = "; --keep-going runs what does not need it" if any(p.ready for p in pipelines) else ""
        raise RunError(f"failed: {', '.join(failed)}; all that was done before is kept{more}")
