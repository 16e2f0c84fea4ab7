"""`lowenergy run`: the stages that `dvc repro` would run, independent ones side by side.

    plan        DVC's own: which stages, in what order
    for each stage whose upstream stages are done, the one with most to come after it first:
        unchanged, or in the cache or on the remote  ->  nothing runs
        otherwise                                    ->  a Dask worker runs it in a copy of the workspace
    its outputs and its entry of dvc.lock come back to this workspace

so that at any time, also after Ctrl-C or a kill, the workspace is one in which DVC has run as many stages.
"""

import logging
import os
import queue
import shutil
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from lowenergy.base import files
from lowenergy.base.errors import UserError
from lowenergy.running import workspace
from lowenergy.running.screen import Screen
from lowenergy.running.worker import TOPIC, Done, NodeFullError, Project, Task, command, execute
from lowenergy.running.workspace import Input

HERE = "here"  # `meta: {where: here}` of a stage in dvc.yaml: it reads what only this workspace has
LOGS = Path(".dvc/tmp/lowenergy/logs")
ATTEMPTS = 5  # of a stage whose worker's disk was full, each on another worker
PATIENCE = 0.5  # seconds between two looks at the screen


class RunError(UserError):
    """A stage has failed, or the run cannot start."""


@dataclass
class Plan:
    """Stages to look at, in DVC's order."""

    stages: list[Any]
    upstream: dict[str, set[str]]  # by name, those of this plan
    height: dict[str, int] = field(default_factory=dict)  # the longest way from a stage to an end

    @classmethod
    def of(cls, repo: Any, targets: Iterable[str]) -> "Plan":
        """As `dvc repro` plans it.

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
        self.path, self.order = root / "dvc.lock", [stage.name for stage in plan.stages]
        self.before = self.path.read_bytes() if self.path.exists() else None
        self.entries: dict[str, Any] = {}
        self.written, self.cost = 0.0, 0.0

    def add(self, name: str, entry: dict[str, Any]) -> None:
        """Written at once, or soon: a file of a thousand stages takes seconds to write."""
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
    """One run of a plan."""

    def __init__(
        self,
        repo: Any,
        plan: Plan,
        cluster: Callable[[], Any],
        screen: Screen,
        *,
        force: bool,
        keep_going: bool,
        remote: bool,
    ) -> None:
        self.repo, self.plan, self.cluster, self.screen = repo, plan, cluster, screen
        self.force, self.keep_going, self.remote = force, keep_going, remote
        self.root = Path(repo.root_dir)
        self.by_name = {stage.addressing: stage for stage in plan.stages}
        self.outputs = {out.fs_path: out for stage in repo.index.stages for out in stage.outs}
        self.paths = sorted(self.outputs)
        self.lock = Lock(self.root, plan)
        self.over: queue.Queue[tuple[str, Any]] = queue.Queue()  # (stage, its future)
        self.here = ThreadPoolExecutor(1, thread_name_prefix="here")
        self.failed: dict[str, str] = {}
        self.attempts: dict[str, list[str]] = {}
        self.running: set[str] = set()
        self.shared: set[str] = set()  # outputs that are on the remote
        self.project = ""

    @cached_property
    def client(self) -> Any:
        """Of the cluster, which is started when the first stage needs it."""
        return self.cluster()

    def run(self, project: str, environment: dict[str, str]) -> None:
        """Until every stage is done, or none can go on.

        Args:
            project: name of the snapshot that workers have.
        """
        from dvc.exceptions import DvcException

        self.project, self.environment = project, environment
        waiting = {name: set(above) for name, above in self.plan.upstream.items()}
        ready: list[str] = []

        def done(name: str) -> None:
            for other in waiting:
                waiting[other].discard(name)

        while waiting or ready or self.running:
            free = [name for name, above in waiting.items() if not above]
            for name in free:
                del waiting[name]
                try:
                    settled = self._settled(name)
                except DvcException as error:  # an input that is not there
                    self._fail(name, str(error))
                    continue
                if settled:
                    done(name)
                else:
                    ready.append(name)
            if any(not above for above in waiting.values()):
                continue
            ready.sort(key=lambda name: -self.plan.height[name])
            stopped = self.failed and not self.keep_going
            while ready and not stopped and len(self.running) < max(1, sum(self.client.nthreads().values())):
                self._start(ready.pop(0))
            if not self.running:
                if stopped or not ready:
                    break
                continue
            over = self._next()
            if over is not None:
                done(over)
        for name in [*ready, *waiting]:
            self.screen.set(name, "skipped")

    def _settled(self, name: str) -> bool:
        """Whether nothing needs to run: the stage is unchanged, or what it makes is in the cache or on the remote."""
        from dvc.stage.cache import RunCacheNotFoundError

        stage = self.by_name[name]
        if self.force:
            return False
        if not stage.changed():
            self.screen.set(name, "unchanged")
            return True
        if not stage.cmd or stage.frozen:
            return True
        stage.remove_outs()
        try:
            self.repo.stage_cache.restore(stage, pull=self.remote)
        except RunCacheNotFoundError:
            stage.save_deps()
            return False
        self.lock.add(stage.name, workspace.finished(stage))
        self.screen.set(name, "cached")
        return True

    def _start(self, name: str) -> None:
        stage = self.by_name[name]
        self.running.add(name)
        self.screen.set(name, "running")
        if (stage.meta or {}).get("where") == HERE:
            stage.remove_outs()
            future: Any = self.here.submit(
                command, stage, self.environment, lambda line: self.screen.tell(name, line), lambda process: None
            )
        else:
            task = Task(
                name=name,
                snapshot=self.project,
                inputs=tuple(self._inputs(stage)),
                uncached=tuple(out.def_path for out in stage.outs if not out.use_cache),
                environment=self.environment,
            )
            tried = self.attempts.setdefault(name, [])
            known = [address for address in self._workers() if address not in tried]
            future = self.client.submit(
                execute,
                task,
                key=f"{name}-{len(tried)}-{time.time_ns()}",
                priority=self.plan.height[name],
                workers=known if tried and known else None,
                resources={key: value for key, value in (stage.meta or {}).items() if key in ("threads", "gpus")},
                pure=False,
            )
        future.add_done_callback(lambda future: self.over.put((name, future)))

    def _inputs(self, stage: Any) -> Iterator[Input]:
        """Outputs of other stages that it reads: itself, a folder around it, or what is in it."""
        for dep in stage.deps:
            around = [str(place) for place in (Path(dep.fs_path), *Path(dep.fs_path).parents)]
            below = bisect_left(self.paths, dep.fs_path + os.sep)
            within = takewhile(lambda path: path.startswith(dep.fs_path + os.sep), self.paths[below:])  # noqa: B023
            for path in [*(path for path in around if path in self.outputs), *within]:
                out = self.outputs[path]
                content = None if out.use_cache else Path(path).read_bytes()
                entry = {"path": out.def_path, "hash": "md5", **out.hash_info.to_dict(), **out.meta.to_dict()}
                entry.pop("isdir", None)
                if self.remote and out.use_cache and path not in self.shared:
                    workspace.push(self.repo, out)
                    self.shared.add(path)
                yield Input(out.def_path, entry, content)

    def _next(self) -> str | None:
        """Wait for a stage to end and bring its results here; its name if it is done."""
        while True:
            try:
                name, future = self.over.get(timeout=PATIENCE)
                break
            except queue.Empty:
                self.screen.refresh()
        self.running.discard(name)
        try:
            found = future.result()
        except NodeFullError as error:
            self.attempts[name].append(str(error).split(": ")[0])
            if len(self.attempts[name]) < ATTEMPTS and len(self.attempts[name]) < len(self._workers()):
                self._start(name)
            else:
                self._fail(name, str(error))
            return None
        except Exception as error:  # of whatever kind: it is this stage's, and others may go on
            self._fail(name, str(error))
            return None
        self._take(name, found)
        self.screen.set(name, "done")
        return name

    def _workers(self) -> list[str]:
        return list(self.client.scheduler_info(n_workers=-1)["workers"])

    def _take(self, name: str, found: Done | list[str]) -> None:
        """Outputs into the workspace, the entry into dvc.lock."""
        from dvc.stage.loader import StageLoader

        stage = self.by_name[name]
        log = found.log if isinstance(found, Done) else "\n".join(found)
        files.write_bytes(self.root / LOGS / f"{name}.log", (log + "\n").encode())
        if not isinstance(found, Done):
            self.lock.add(stage.name, workspace.finished(stage))
            return
        StageLoader.fill_from_lock(stage, found.entry)
        self.shared |= {out.fs_path for out in stage.outs} if self.remote else set()
        for path, content in found.files.items():
            files.write_bytes(self.root / path, content)
        for out in stage.outs:
            if out.use_cache:
                if self.remote:
                    workspace.pull(self.repo, out)
                out.checkout(force=True)
                out.ignore()
        stage.md5 = stage.compute_md5()
        if self.remote:
            self.repo.stage_cache.save(stage)
        self.lock.add(stage.name, found.entry)

    def _fail(self, name: str, why: str) -> None:
        self.failed[name] = why
        files.write_bytes(self.root / LOGS / f"{name}.log", (why + "\n").encode())
        self.screen.set(name, "failed")


def run(
    targets: list[str],
    *,
    jobs: int | None,
    address: str | None = None,
    force: bool = False,
    keep_going: bool = False,
    dry: bool = False,
) -> None:
    """Run the pipeline of this workspace.

    Args:
        targets: stages, with those that they need; none for all.
        jobs: stages at a time on this machine; None for one for each two cores, but at least two if there are two.
        address: of a Dask scheduler whose workers run the stages, instead of this machine.
    Raises:
        RunError: a stage failed, another run is under way, or there is no remote for other machines to share.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import lock_repo

    logging.getLogger("dvc").setLevel(logging.WARNING)  # what it would say of each stage is on our screen
    try:
        repo = workspace.open_repo(Path.cwd())
    except DvcException as error:
        raise RunError(f"{error}; run it in the project's folder") from None
    try:
        with lock_repo(repo):
            plan = Plan.of(repo, targets)
            if dry:
                _say(repo, plan, force)
                return
            with _claimed(repo, plan):
                _run(repo, plan, jobs, address, force, keep_going)
    except LockError as error:
        raise RunError(f"another run is under way in this workspace: {str(error).splitlines()[0]}") from None


def _say(repo: Any, plan: Plan, force: bool) -> None:
    """What would run, as far as one can know before it does."""
    changed: set[str] = set()
    for stage in plan.stages:
        if force or plan.upstream[stage.addressing] & changed or stage.changed():
            changed.add(stage.addressing)
            print(f"{stage.addressing}: {stage.cmd}")
    print(f"{len(changed)} of {len(plan.stages)} stages changed")


@contextmanager
def _claimed(repo: Any, plan: Plan) -> Iterator[None]:
    """The outputs of all stages are ours to write: `dvc repro` and a second run see that and refuse."""
    from dvc.rwlock import rwlock

    outputs = [out.fs_path for stage in plan.stages for out in stage.outs]
    with rwlock(repo.tmp_dir, repo.fs, " ".join(sys.argv), [], outputs, False):
        yield


def _run(repo: Any, plan: Plan, jobs: int | None, address: str | None, force: bool, keep_going: bool) -> None:
    root = Path(repo.root_dir)
    remote = address is not None
    if remote and not repo.config["core"].get("remote"):
        raise RunError(
            "workers of other machines get data through the project's remote, and there is none; "
            "`dvc remote add --default NAME URL`"
        )
    if remote:
        workspace.persistently(lambda: repo.stage_cache.pull(None))
    outputs = {out.def_path for stage in repo.index.stages for out in stage.outs}
    snap = workspace.snapshot(root, outputs)
    local = root / ".dvc" / "config.local"
    project = Project(
        snap,
        cache=None if remote else repo.cache.legacy.path,
        checkpoints=None if remote else str(root / workspace.CHECKPOINTS),
        config=local.read_text() if local.exists() else "",
    )
    jobs, threads = (0, None) if remote else _shares(jobs)
    environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    with ExitStack() as stack:
        screen = stack.enter_context(Screen([s.addressing for s in plan.stages]))

        def connect() -> Any:
            made = scheduler(address) if address else workers(jobs, threads or 1, root)
            client = stack.enter_context(made)
            client.register_plugin(project)
            client.subscribe_topic(TOPIC, lambda event: screen.tell(event[1]["stage"], event[1]["line"]))
            return client

        pipeline = Pipeline(repo, plan, connect, screen, force=force, keep_going=keep_going, remote=remote)
        try:
            pipeline.run(snap.name, environment)
        finally:
            pipeline.lock.write()
            pipeline.here.shutdown(wait=False, cancel_futures=True)
    if remote:
        workspace.persistently(lambda: repo.stage_cache.push(None))
    if pipeline.failed:
        for name, why in pipeline.failed.items():
            print(f"\n{name} failed:\n{why}\n(all of it: {LOGS / name}.log)", file=sys.stderr)
        raise RunError(f"failed: {', '.join(pipeline.failed)}; all that was done before is kept")


def _shares(jobs: int | None) -> tuple[int, int]:
    """How many stages at a time, and the threads of each: together, the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs or max(2, cores // 2), cores)
    return jobs, cores // jobs


@contextmanager
def scheduler(address: str) -> Iterator[Any]:
    """A client of a Dask cluster that is there already.

    Raises:
        RunError: no scheduler answers.
    """
    from distributed import Client

    try:
        client = Client(address, timeout="10s")
    except (OSError, TimeoutError, ValueError) as error:
        raise RunError(f"no Dask scheduler at {address}: {error}") from None
    with client:
        yield client


@contextmanager
def workers(jobs: int, threads: int, root: Path) -> Iterator[Any]:
    """A client of a Dask cluster on this machine, a process for each stage at a time; killed ones are replaced."""
    import dask
    from distributed import Client, LocalCluster

    scratch = root / ".dvc" / "tmp" / "lowenergy" / "workers"
    shutil.rmtree(scratch, ignore_errors=True)
    settings = {
        # Stages are processes of their own, whose memory Dask does not see; and they may keep workers from all cores.
        "distributed.scheduler.worker-ttl": None,
        "distributed.logging.distributed": "critical",
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=jobs,
            threads_per_worker=1,
            resources={"threads": threads},
            memory_limit=0,
            dashboard_address=None,
            local_directory=str(scratch),
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
