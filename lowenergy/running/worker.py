"""What a Dask worker does: run one stage in its copy of the workspace, and tell of it."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from distributed import Worker, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from lowenergy.base import curves
from lowenergy.base.curves import Point
from lowenergy.running.workspace import Entry, Snapshot, Workspace, with_cache

TOPIC = "lowenergy"
LOOK_EVERY = 1.0  # seconds, at the curves of a stage that is watched
TAIL = 40  # lines of its output that a failed stage shows
LEAST_FREE = 2**24  # bytes; a stage that fails on a disk with less has failed for want of it


class StageError(RuntimeError):
    """A stage's command has failed; the message ends with what it printed last."""


class NodeFullError(RuntimeError):
    """The disk of this worker is full; another may have room."""


@dataclass(frozen=True)
class Task:
    """One stage to run."""

    name: str
    label: str  # before the name, where it is shown
    snapshot: str
    inputs: tuple[Entry, ...]
    environment: dict[str, str] | None  # of its process; None: that of the worker's machine
    watched: bool = False  # tell of its curves, too


@dataclass(frozen=True)
class Done:
    entry: Entry  # for dvc.lock
    log: str


class Project(WorkerPlugin):
    """A snapshot on its way to every worker, those that join later too, and the workspace that each makes of it."""

    idempotent = True

    def __init__(
        self,
        snap: Snapshot,
        *,
        cache: str | None,
        checkpoints: str | None,
        config: str,
        jobs: int = 0,
        gpus: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            cache: DVC's cache on this machine, shared by its workers; None: each machine its own, and a remote.
            checkpoints: folder of the workspace that is run; None: one for each machine.
            config: of workspace.config_of.
            jobs, gpus: workers of this machine and what they divide among them; workers of a cluster see what they see.
        """
        self.jobs, self.gpus = jobs, gpus
        self.environment: dict[str, str] = {}
        self.name = f"lowenergy-{snap.name}"
        self.snap, self.cache, self.checkpoints, self.config = snap, cache, checkpoints, config
        self.remote = cache is None
        self.process: subprocess.Popen[str] | None = None
        self.stage = ""  # that it runs

    def setup(self, worker: Worker) -> None:
        own = Path(worker.local_directory)
        cache = self.cache or str(own.parent / "lowenergy-cache")
        self.checkpoints = self.checkpoints or str(own.parent / "lowenergy-checkpoints")
        self.config = with_cache(self.config, cache)
        self.place = own / self.name
        if self.gpus:
            self.environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_share(self.gpus, int(str(worker.name)), self.jobs))

    def workspace(self) -> Workspace:
        assert self.checkpoints is not None
        return Workspace(self.place, self.snap, self.config, Path(self.checkpoints))

    def teardown(self, worker: Worker) -> None:
        if self.process is not None:
            end(self.process)


def gpu_share(gpus: tuple[str, ...], worker: int, workers: int) -> tuple[str, ...]:
    """Those GPUs that one of so many workers uses: some for itself, or else one that it shares."""
    return gpus[worker::workers] or (gpus[worker % len(gpus)],)


def execute(task: Task) -> Done:
    """Run a stage in this worker's workspace.

    Raises:
        StageError: its command failed.
        NodeFullError: this worker's disk is full.
    """
    worker = get_worker()
    project = worker.plugins[f"lowenergy-{task.snapshot}"]
    assert isinstance(project, Project)
    lines: list[str] = []

    def run(stage: Any) -> None:
        def tell(news: str | Point) -> None:
            what = {"line": news} if isinstance(news, str) else {"point": asdict(news)}
            worker.log_event(TOPIC, {"stage": task.label + task.name, **what})

        environment = own_environment(worker) if task.environment is None else task.environment
        with following(stage, tell) if task.watched else nullcontext():
            lines.extend(
                command(
                    stage,
                    environment | project.environment,
                    tell,
                    lambda process: setattr(project, "process", process),
                )
            )

    project.stage = task.label + task.name
    try:
        entry = project.workspace().run(task.name, task.inputs, run, remote=project.remote)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NodeFullError(f"{worker.address}: {error.strerror}") from None
        raise
    except StageError as error:
        if os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(project.place).free < LEAST_FREE:
            raise NodeFullError(f"{worker.address}: disk full; {error}") from None
        raise
    return Done(entry, "\n".join(lines))


def command(
    stage: Any,
    environment: dict[str, str],
    tell: Callable[[str], None],
    started: Callable[[subprocess.Popen[str] | None], None],
) -> list[str]:
    """Run the command of a DVC stage as DVC would; the lines that it printed.

    Args:
        environment: all of it; not this process's, which Dask has changed.
    Raises:
        StageError: it failed.
    """
    from dvc.env import DVC_ROOT, DVC_STAGE
    from dvc.stage.run import get_executable, prepare_kwargs
    from dvc.utils import fix_env

    lines: deque[str] = deque(maxlen=10_000)
    settings = prepare_kwargs(stage)
    settings["env"] = fix_env(environment) | {key: settings["env"][key] for key in (DVC_ROOT, DVC_STAGE)}
    for text in [stage.cmd] if isinstance(stage.cmd, str) else stage.cmd:
        process = subprocess.Popen(
            [get_executable(), "-c", text],
            **settings | {"shell": False},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        started(process)
        assert process.stdout is not None
        told = 0.0
        with _ends_with_us(process):
            for line in process.stdout:
                lines.append(line.rstrip())
                if time.monotonic() - told > 1 and line.strip():
                    tell(line.strip())
                    told = time.monotonic()
            code = process.wait()
        started(None)
        if code:
            tail = "\n".join(list(lines)[-TAIL:])
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise StageError(f"`{text}` ended with {how}\n{tail}")
    return list(lines)


@contextmanager
def following(stage: Any, tell: Callable[[Point], None]) -> Iterator[None]:
    """Within it, every point of the curves that a stage draws is told, once and in order."""
    over = threading.Event()

    def follow() -> None:
        told: dict[str, int] = {}
        while not over.wait(LOOK_EVERY):
            for curve, points in groupby(points_of(stage, curves.so_far), lambda point: point.curve):
                new = list(points)[told.get(curve, 0) :]
                told[curve] = told.get(curve, 0) + len(new)
                for point in new:
                    tell(point)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def points_of(stage: Any, look: Callable[[Path], Iterator[Point]]) -> Iterator[Point]:
    """Of the curves in a stage's outputs, which are named as they are in dvc.yaml."""
    for out in stage.outs:
        if Path(out.fs_path).is_dir():
            for point in look(Path(out.fs_path)):
                yield replace(point, curve=os.path.normpath(f"{out.def_path}/{point.curve}"))


def own_environment(worker: Worker) -> dict[str, str]:
    """What a stage would find on a worker's machine without Dask; threads are those that the worker was given.

    A nanny adds variables, such as one that makes malloc hand memory back so often that some stages take twice as long.
    """
    import dask
    import psutil

    environment = with_own_python(without_dask(os.environ))
    if worker.nanny:
        before: dict[str, str] = {}
        with suppress(psutil.Error):
            before = psutil.Process(os.getppid()).environ()  # the nanny's, when it was started
        for key, value in {**dask.config.get("distributed.nanny.pre-spawn-environ"), "PYTHONHASHSEED": "6640"}.items():
            if key in before:
                environment[key] = before[key]
            elif environment.get(key) == str(value):
                del environment[key]
    if threads := worker.state.total_resources.get("threads"):
        environment.setdefault("OMP_NUM_THREADS", str(int(threads)))
    return environment


def without_dask(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what Dask notes there for itself when it is imported."""
    return {key: value for key, value in environment.items() if not key.startswith("__DASK_")}


def with_own_python(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which `python`, as stages' commands say, is the one that runs here.

    Who calls .venv/bin/lowenergy may not have activated .venv.
    """
    path, own = environment.get("PATH", os.defpath), Path(sys.executable).parent
    found = shutil.which("python", path=path)
    if found is not None and Path(found).parent == own:
        return dict(environment)
    return {**environment, "PATH": f"{own}{os.pathsep}{path}"}


def stop(snapshot: str, stage: str, dask_worker: Worker) -> None:
    """End a stage if it is this worker that runs it."""
    project = dask_worker.plugins.get(f"lowenergy-{snapshot}")
    if isinstance(project, Project) and project.stage == stage and project.process is not None:
        end(project.process)


def end(process: subprocess.Popen[str]) -> None:
    """End a stage and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _ends_with_us(process: subprocess.Popen[str]) -> Iterator[None]:
    """A worker that is killed takes along its stage: the shell, and all that the shell has started."""
    # Nothing is ever written to this pipe; it closes when this process ends, of whatever cause.
    watch = subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill -s KILL -- "-$1"', "sh", str(process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        watch.kill()
        watch.communicate()
