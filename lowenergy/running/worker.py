"""What a Dask worker does: run one stage in its copy of the workspace, and report on it."""

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
LOOK_EVERY = 1.0  # seconds between two looks at the curves of a stage that is watched
TAIL = 40  # lines of a failed stage's output that are shown
LEAST_FREE = 2**24  # bytes; a stage that fails on a disk with less free has failed for lack of space


class StageError(RuntimeError):
    """A stage's command has failed; the message ends with what it printed last."""


class NodeFullError(RuntimeError):
    """The disk of this worker is full; another may have room."""


@dataclass(frozen=True)
class Task:
    """One stage to run."""

    name: str
    label: str  # goes before the name where it is shown
    snapshot: str
    inputs: tuple[Entry, ...]
    environment: dict[str, str] | None  # of its process; None: that of the worker's machine
    watched: bool = False  # report the points of its curves, too


@dataclass(frozen=True)
class Done:
    entry: Entry  # for dvc.lock
    log: str


class Project(WorkerPlugin):
    """A snapshot sent to every worker, including those that join later, and the workspace that each unpacks it into."""

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
            cache: DVC's cache on this machine, shared by its workers; None: each machine has its own, and a remote.
            checkpoints: the folder that belongs to the workspace being run; None: one for each machine.
            config: what workspace.config_of returns.
            jobs, gpus: workers on this machine and the GPUs that they divide; cluster workers use those that they see.
        """
        self.jobs, self.gpus = jobs, gpus
        self.environment: dict[str, str] = {}
        self.name = f"lowenergy-{snap.name}"
        self.snap, self.cache, self.checkpoints, self.config = snap, cache, checkpoints, config
        self.remote = cache is None
        self.process: subprocess.Popen[str] | None = None
        self.stage = ""  # the one that it runs

    def setup(self, worker: Worker) -> None:
        scratch = Path(worker.local_directory)
        cache = self.cache or str(scratch.parent / "lowenergy-cache")
        self.checkpoints = self.checkpoints or str(scratch.parent / "lowenergy-checkpoints")
        self.config = with_cache(self.config, cache)
        self.place = scratch / self.name
        if self.gpus:
            self.environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_share(self.gpus, int(str(worker.name)), self.jobs))

    def workspace(self) -> Workspace:
        assert self.checkpoints is not None
        return Workspace(self.place, self.snap, self.config, Path(self.checkpoints))

    def teardown(self, worker: Worker) -> None:
        if self.process is not None:
            end(self.process)


def gpu_share(gpus: tuple[str, ...], worker: int, workers: int) -> tuple[str, ...]:
    """The GPUs that one of `workers` workers uses: some for itself, or else one that it shares."""
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
    """Run the command of a DVC stage as DVC would; return the last 10,000 lines that it printed.

    Args:
        environment: the whole of it; not this process's, which Dask has changed.
    Raises:
        StageError: the command failed.
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
    """Tell the points of the curves that a stage draws, each once and in order, while the context lasts.

    Points from after the last look are left out; Pipeline._ended looks at all of them.
    """
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
    """Yield the points of the curves in a stage's outputs, each curve named by its path as dvc.yaml has it."""
    for out in stage.outs:
        if Path(out.fs_path).is_dir():
            for point in look(Path(out.fs_path)):
                yield replace(point, curve=os.path.normpath(f"{out.def_path}/{point.curve}"))


def own_environment(worker: Worker) -> dict[str, str]:
    """The environment that a stage would find on a worker's machine without Dask.

    A nanny adds variables, such as one that makes malloc hand memory back so often that some stages take twice as long.
    OMP_NUM_THREADS is what the user set there, or else the number of threads that the worker was given.
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
    """An environment without the variables in which Dask keeps notes for itself when it is imported."""
    return {key: value for key, value in environment.items() if not key.startswith("__DASK_")}


def with_own_python(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which `python`, which the commands of stages call, is the one that runs here.

    Someone who calls .venv/bin/lowenergy may not have activated .venv.
    """
    path, folder = environment.get("PATH", os.defpath), Path(sys.executable).parent
    python = shutil.which("python", path=path)
    if python is not None and Path(python).parent == folder:
        return dict(environment)
    return {**environment, "PATH": f"{folder}{os.pathsep}{path}"}


def stop(snapshot: str, stage: str, dask_worker: Worker) -> None:
    """Kill a stage if this worker is the one that runs it."""
    project = dask_worker.plugins.get(f"lowenergy-{snapshot}")
    if isinstance(project, Project) and project.stage == stage and project.process is not None:
        end(project.process)


def end(process: subprocess.Popen[str]) -> None:
    """Kill a stage and everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _ends_with_us(process: subprocess.Popen[str]) -> Iterator[None]:
    """Let a killed worker take its stage along: the shell, and everything that the shell has started."""
    # Nothing is ever written to this pipe; it closes when this process ends, whatever the cause.
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
