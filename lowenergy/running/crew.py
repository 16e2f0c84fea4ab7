"""Those who run stages: workers of this machine or of a cluster, and this process."""

import logging
import os
import queue
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowenergy.base.errors import UserError
from lowenergy.running import workspace
from lowenergy.running.screen import Screen
from lowenergy.running.worker import TOPIC, Project, stop
from lowenergy.running.workspace import Snapshot

if TYPE_CHECKING:
    from lowenergy.running.pipeline import Pipeline

PATIENCE = 0.5  # seconds between two looks at the screen
Watch = Callable[[str, str], str | None]  # (stage, a line that it printed) -> why to stop it; None to let it run


class RunError(UserError):
    """A stage has failed, or the run cannot start."""


class Crew:
    """Those who run stages: Dask's workers, which are called when the first stage needs them, and this process."""

    def __init__(
        self, repo: Any, call: Callable[[], Any], screen: Screen, environment: dict[str, str], *, jobs: int | None
    ) -> None:
        """
        Args:
            environment: of every stage.
            jobs: workers of this machine; None: they are on others, and share only the remote of this repository.
        """
        self.repo, self.call, self.screen, self.environment, self.jobs = repo, call, screen, environment, jobs
        self.remote = jobs is None
        self.projects: list[Project] = []
        self.over: queue.Queue[tuple[Pipeline, str, Any]] = queue.Queue()  # stages that have ended
        self.here = ThreadPoolExecutor(1, thread_name_prefix="here")
        self.watch: Watch | None = None  # stops stages whose pipelines are hopeless
        self.told: deque[tuple[str, str]] = deque()  # what it has not seen yet

    def tell(self, stage: str, line: str) -> None:
        """A running stage has printed this."""
        self.screen.tell(stage, line)
        if self.watch is not None:
            self.told.append((stage, line))

    def know(self, snap: Snapshot, checkpoints: Path) -> None:
        """Let workers unpack a snapshot, before any of them is called; this machine's keep their checkpoints there."""
        self.projects.append(
            Project(
                snap,
                cache=None if self.remote else self.repo.cache.legacy.path,
                checkpoints=None if self.remote else str(checkpoints),
                config=workspace.config_of(self.repo),
                jobs=self.jobs or 0,
                gpus=() if self.remote else gpus(),
            )
        )

    @cached_property
    def client(self) -> Any:
        client = self.call()
        for project in self.projects:
            client.register_plugin(project)
        return client

    def workers(self) -> list[str]:
        return list(self.client.scheduler_info(n_workers=-1)["workers"])

    def run(self, pipelines: "Sequence[Pipeline]", *, keep_going: bool) -> None:
        """Until every stage is done, or none can go on. What several pipelines have in common runs once.

        Args:
            keep_going: after a failure, run what does not need that stage; else nothing more of its pipeline.
        """
        try:
            self._run(pipelines, keep_going)
        finally:
            for pipeline in pipelines:
                pipeline.lock.write()

    def _run(self, pipelines: "Sequence[Pipeline]", keep_going: bool) -> None:
        keys: dict[tuple[Pipeline, str], str | None] = {}  # of the stages that run, what they make
        making: dict[str, list[tuple[Pipeline, str]]] = {}  # and who else waits for it
        while True:
            for pipeline in pipelines:
                pipeline.settle()
            ready = [(p, name) for p in pipelines for name in p.ready if keep_going or not p.failed]
            ready.sort(key=lambda item: -item[0].plan.height[item[1]])
            room = max(1, sum(self.client.nthreads().values())) - sum(len(p.running) for p in pipelines) if ready else 0
            for pipeline, name in ready:
                key = pipeline.ready[name]
                if key is not None and key in making:
                    if (pipeline, name) not in making[key]:
                        making[key].append((pipeline, name))
                elif room > 0:
                    room -= 1
                    if key is not None:
                        making[key] = []
                    keys[pipeline, name] = key
                    pipeline.start(name)
            if not any(p.running for p in pipelines):
                break
            pipeline, name, future = self._next(pipelines)
            done = pipeline.finish(name, future)
            if name in pipeline.running:  # tried again elsewhere
                continue
            for other, same in making.pop(keys.pop((pipeline, name)) or "", []):
                if done:
                    other.again(same)
                else:
                    other.fail(same, f"as {pipeline.label}{name}")
        for pipeline in pipelines:
            pipeline.skip()

    def _next(self, pipelines: "Sequence[Pipeline]") -> tuple["Pipeline", str, Any]:
        while True:
            try:
                return self.over.get(timeout=PATIENCE)
            except queue.Empty:
                self.screen.refresh()
                self._stop_hopeless(pipelines)

    def _stop_hopeless(self, pipelines: "Sequence[Pipeline]") -> None:
        while self.told:
            stage, line = self.told.popleft()
            why = self.watch(stage, line) if self.watch else None
            for pipeline in pipelines:
                name = stage.removeprefix(pipeline.label)
                if why and stage.startswith(pipeline.label) and name in pipeline.running:
                    pipeline.stopped[name] = why
                    self.client.run(stop, pipeline.snap.name, pipeline.label + name)


@contextmanager
def crew_of(repo: Any, stages: Iterable[str], jobs: int | None, address: str | None) -> Iterator[Crew]:
    """Workers of this machine, or of a cluster; and a screen that shows these stages.

    Raises:
        RunError: there is no remote for other machines to share.
    """
    remote = address is not None
    if remote and not repo.config["core"].get("remote"):
        raise RunError(
            "workers of other machines get data through the project's remote, and there is none; "
            "`dvc remote add --default NAME URL`"
        )
    if remote:
        workspace.persistently(lambda: repo.stage_cache.pull(None))
    jobs, threads = (None, None) if remote else shares(jobs)
    with ExitStack() as stack:
        screen = stack.enter_context(Screen(stages))

        def call() -> Any:
            made = scheduler(address) if address else workers(jobs or 1, threads or 1, Path(repo.root_dir))
            client = stack.enter_context(made)
            client.subscribe_topic(TOPIC, lambda event: crew.tell(event[1]["stage"], event[1]["line"]))
            return client

        crew = Crew(repo, call, screen, {"OMP_NUM_THREADS": str(threads)} if threads else {}, jobs=jobs)
        try:
            yield crew
        finally:
            crew.here.shutdown(wait=False, cancel_futures=True)
    if remote:
        workspace.persistently(lambda: repo.stage_cache.push(None))


def gpus() -> tuple[str, ...]:
    """Names of this machine's NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name for name in visible.split(",") if name)
    return tuple(str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*")))


def shares(jobs: int | None) -> tuple[int, int]:
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
