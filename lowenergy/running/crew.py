"""What runs stages: Dask workers on this machine or a cluster, and this process itself."""

import asyncio
import fcntl
import gc
import logging
import os
import queue
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from lowenergy.base.curves import Point
from lowenergy.base.errors import UserError
from lowenergy.running import workspace
from lowenergy.running.screen import Screen
from lowenergy.running.worker import TOPIC, Project, stop, with_own_python, without_dask
from lowenergy.running.workspace import Snapshot

if TYPE_CHECKING:
    from lowenergy.running.pipeline import Pipeline

LARGE = 10**8  # bytes; the user is told if a larger snapshot is sent to other machines
TLS = tuple(f"DASK_DISTRIBUTED__COMM__TLS__{name}" for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY"))
PATIENCE = 0.5  # seconds to wait for a stage to end before refreshing the screen
Watch = Callable[[str, Point], str | None]  # (stage, a point of its curves) -> why to stop it; None to let it run


class RunError(UserError):
    """A stage has failed, or the run cannot start."""


class Crew:
    """What runs stages: this process, and Dask's workers, which are called when the first stage needs them."""

    def __init__(
        self, repo: Any, call: Callable[[], Any], screen: Screen, threads: int | None, *, jobs: int | None
    ) -> None:
        """
        Args:
            threads: for each stage on this machine; None: as many as it takes.
            jobs: workers on this machine; None: they are on other machines, and share only this repository's remote.
        """
        self.repo, self.call, self.screen, self.jobs = repo, call, screen, jobs
        # For every stage on this machine; taken now, before Dask's nannies change it.
        threads_of_each = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        self.environment = with_own_python(without_dask(os.environ)) | threads_of_each
        self.remote = jobs is None
        self.projects: list[Project] = []
        self.over: queue.Queue[tuple[Pipeline, str, Any]] = queue.Queue()  # stages that have ended
        self.here = ThreadPoolExecutor(1, thread_name_prefix="here")
        self.watch: Watch | None = None  # stops stages whose pipelines are hopeless
        self.told: deque[tuple[str, Point]] = deque()  # points that it has not seen yet

    def tell(self, stage: str, news: dict[str, Any]) -> None:
        """Take news of a running stage: a line that it printed, or a new point of one of its curves."""
        if "line" in news:
            self.screen.tell(stage, news["line"])
        else:
            self.told.append((stage, Point(**news["point"])))

    def know(self, snap: Snapshot, checkpoints: Path) -> None:
        """Have workers unpack a snapshot; call this before they start. Local ones keep their checkpoints there."""
        if self.remote and (size := snap.path.stat().st_size) > LARGE:
            print(
                f"{size / 1e6:,.0f} MB of files go to each worker: all that git does not ignore and no stage makes; "
                "name data in .gitignore, or give it to DVC: `dvc add`",
                flush=True,
            )
        self.projects.append(
            Project(
                snap.carried() if self.remote else snap,
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
        """Run stages until all are done or none can go on. A stage that several pipelines share runs once.

        Args:
            keep_going: after a failure, still start what does not need that stage; else nothing more of its pipeline.
        """
        try:
            self._run(pipelines, keep_going)
        finally:
            for pipeline in pipelines:
                pipeline.lock.write()

    def _run(self, pipelines: "Sequence[Pipeline]", keep_going: bool) -> None:
        keys: dict[tuple[Pipeline, str], str | None] = {}  # running stages, and the key of what each makes
        making: dict[str, list[tuple[Pipeline, str]]] = {}  # by key, the other stages that wait for it
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
            stage, point = self.told.popleft()
            why = self.watch(stage, point) if self.watch else None
            for pipeline in pipelines:
                name = stage.removeprefix(pipeline.label)
                if why and stage.startswith(pipeline.label) and name in pipeline.running - pipeline.stopped.keys():
                    pipeline.stopped[name] = why
                    self.client.run(stop, pipeline.snap.name, pipeline.label + name)


@contextmanager
def crew_of(repo: Any, stages: Iterable[str], jobs: int | None, address: str | None) -> Iterator[Crew]:
    """Yield a crew with workers on this machine or a cluster, and a screen that shows these stages.

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
    jobs, threads = (None, None) if remote else jobs_and_threads(jobs)
    with ExitStack() as stack:
        screen = stack.enter_context(Screen(stages))

        def call() -> Any:
            connection = scheduler(address) if address else workers(jobs or 1, threads or 1, Path(repo.root_dir))
            client = stack.enter_context(connection)
            client.subscribe_topic(TOPIC, lambda event: crew.tell(event[1]["stage"], event[1]))
            return client

        crew = Crew(repo, call, screen, threads, jobs=jobs)
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


def jobs_and_threads(jobs: int | None) -> tuple[int, int]:
    """How many stages run at a time and the threads of each: together at most the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs or max(2, cores // 2), cores)
    return jobs, cores // jobs


@contextmanager
def scheduler(address: str) -> Iterator[Any]:
    """Yield a client of a Dask cluster that is already running.

    Raises:
        RunError: no scheduler answers.
    """
    with _event_loop() as loop, _connected(address, loop) as client:
        if is_open(address):
            print(
                f"{address}: whoever reaches this scheduler can run programs on its workers, and read the remote's "
                "credentials on their way there; docs/clusters.md says how to have TLS",
                flush=True,
            )
        yield client


def _connected(address: str, loop: Any) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout="10s", loop=loop)
    except (OSError, TimeoutError, ValueError, TypeError) as error:  # the last, where TLS is not set up
        mend = "start one, see docs/clusters.md"
        if address.startswith("tls:"):
            mend = f"name the scheduler's certificate and its key in {', '.join(TLS)}, see docs/clusters.md"
        raise RunError(f"no Dask scheduler at {address}: {str(error).splitlines()[0]}; {mend}") from None


def is_open(address: str) -> bool:
    """True if a scheduler is unencrypted and not limited to this machine."""
    scheme, _, place = address.rpartition("://")
    host = place.rpartition(":")[0].strip("[]")
    try:
        return scheme in ("", "tcp", "ws") and not ip_address(host).is_loopback
    except ValueError:  # a host name
        return scheme in ("", "tcp", "ws") and host != "localhost"


@contextmanager
def workers(jobs: int, threads: int, root: Path) -> Iterator[Any]:
    """Yield a client of a new Dask cluster here, with one process per concurrent stage; killed ones are replaced.

    Its certificate is made for this run and never leaves it, so other users of this machine cannot command the workers.
    """
    import dask
    from distributed import Client, LocalCluster, Security

    settings: dict[str, Any] = {
        # Stages are separate processes, whose memory Dask does not see, and they may keep every core from the workers.
        "distributed.scheduler.worker-ttl": None,
        "distributed.logging.distributed": "critical",
        # Profiles every 10 ms, which nobody reads, and ticks every 20: a seventh of a core for three idle processes.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "500ms",
        "distributed.nanny.pre-spawn-environ": {},  # Dask sets it in this process, too
    }
    with (
        own_folder(root / ".dvc" / "tmp" / "lowenergy" / "workers") as scratch,
        _environment_restored(),
        dask.config.set(settings),
        _event_loop() as loop,
        _ended(
            LocalCluster(
                n_workers=jobs,
                threads_per_worker=1,
                resources={"threads": threads},
                memory_limit=0,
                dashboard_address=None,
                local_directory=str(scratch),
                loop=loop,
                silence_logs=logging.CRITICAL,
                protocol="tls",
                security=Security.temporary(),
            )
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder in this one, and remove those that runs which were killed have left there.

    A search and a run may work in one workspace side by side. The kernel holds a lock as long as its process lives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder):
        for other in folder.iterdir():
            with suppress(OSError), _held(other, wait=False):
                shutil.rmtree(other, ignore_errors=True)
        own = Path(tempfile.mkdtemp(dir=folder))
        lock = ExitStack()
        lock.enter_context(_held(own))
    with lock:
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)


@contextmanager
def _held(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a folder's lock, where the file system has locks.

    Raises:
        OSError: another process holds it, or may, and this one is not to wait.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            if not wait:
                raise
        yield
    finally:
        os.close(handle)


@contextmanager
def _event_loop() -> Iterator[Any]:
    """Yield an event loop in a thread of its own.

    Dask would start one itself, but waits for it no longer than ten seconds, and holds a lock meanwhile. If an older
    client happens to be garbage-collected then, it waits for the same lock, for as long or for ever. So whatever is
    left of older clients is collected first.
    """
    from tornado.ioloop import IOLoop

    gc.collect()
    ready: Future[tuple[IOLoop, asyncio.Event]] = Future()

    async def run() -> None:
        over = asyncio.Event()
        ready.set_result((IOLoop.current(), over))
        await over.wait()

    thread = Thread(target=asyncio.run, args=(run(),), daemon=True, name="event loop")
    thread.start()
    loop, over = ready.result()
    try:
        yield loop
    finally:
        loop.add_callback(over.set)
        thread.join()


@contextmanager
def _ended(cluster: Any) -> Iterator[Any]:
    """Yield the cluster, then close it. On a busy machine workers take longer than Dask waits, which loses nothing."""
    try:
        yield cluster
    finally:
        with suppress(TimeoutError):
            cluster.close()


@contextmanager
def _environment_restored() -> Iterator[None]:
    """Restore this process's environment afterwards: DVC, which runs next, hands it to stages."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for key in os.environ.keys() - before.keys():
            del os.environ[key]
        os.environ.update(before)
