"""`lowenergy run` with real Dask workers, DVC and S3: what DVC says afterwards, and what is left after faults."""

import csv
import hashlib
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT

from lowenergy.running import crew, experiments, pipeline
from lowenergy.running.worker import gpu_share

pytestmark = pytest.mark.slow

LOWENERGY = [sys.executable, "-m", "lowenergy.cli"]
TOY = """
stages:
  root:
    cmd: mkdir -p out && cp local/secret out/root
    outs: [out/root]
    meta: {where: here}
  mid:
    matrix: {i: [0, 1, 2, 3]}
    cmd: python work.py ${item.i}
    deps: [out/root, work.py]
    params: [amount]
    outs: ["out/mid${item.i}"]
    metrics: ["out/m${item.i}.json"]
  end:
    cmd: echo end >> $RAN && cat out/m0.json out/m1.json out/mid3 > out/end && cp out/m1.json end.json
    deps: [out/m0.json, out/m1.json, out/mid3]
    params: [end]
    outs: [out/end]
    metrics: [end.json: {cache: false}]
"""
# Counts to `amount`, a checkpoint each time; says in `ran` (outside of any workspace) that it was started, and where.
WORK = """
import os, sys, time
from pathlib import Path
i, checkpoint = sys.argv[1], Path(f".checkpoints/{sys.argv[1]}")
amount = int(Path("params.yaml").read_text().split()[1])
with open(os.environ["RAN"], "a") as ran:
    ran.write(f"{i} from {checkpoint.read_text() if checkpoint.exists() else 0}\\n")
checkpoint.parent.mkdir(exist_ok=True)
Path("out").mkdir(exist_ok=True)
for step in range(int(checkpoint.read_text()) if checkpoint.exists() else 0, amount):
    print(f"step {step}", flush=True)
    time.sleep(float(os.environ.get("PACE", 0.1)))
    Path(f"{checkpoint}.new").write_text(str(step + 1))
    os.replace(f"{checkpoint}.new", checkpoint)  # it may be killed at any time
if i == os.environ.get("BAD"):
    sys.exit("this one is bad")
if full := os.environ.get("FULL"):
    while not Path(full).exists():
        time.sleep(0.1)
    with open("/dev/full", "w") as disk:
        disk.write("x" * 10**6)
Path(f"out/mid{i}").write_text(f"{Path('out/root').read_text()}{i} of {amount}")
Path(f"out/m{i}.json").write_text('{"i": ' + i + "}\\n")
checkpoint.unlink()
"""


class Toy:
    """A small project under git and DVC in a folder of its own."""

    def __init__(self, place: Path) -> None:
        self.place, self.ran = place, place.parent / f"{place.name}.ran"
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "RAN": str(self.ran),
            "SHELL": "/bin/sh",  # dash stays between a worker and its stage; bash would not
        }

    @classmethod
    def make(cls, place: Path, *, amount: int = 3) -> "Toy":
        toy = cls(place)
        (place / "local").mkdir(parents=True)
        (place / "local" / "secret").write_text("only here ")
        (place / ".gitignore").write_text("/out\n/local\n.checkpoints\n")
        (place / "dvc.yaml").write_text(TOY)
        (place / "work.py").write_text(WORK)
        (place / "params.yaml").write_text(f"amount: {amount}\nend: 0\n")
        toy("git", "init", "-q")
        toy("dvc", "init", "-q")
        toy("dvc", "config", "core.analytics", "false")
        toy("git", "add", "--all")
        toy("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "start")
        return toy

    def __call__(self, *command: str, code: int = 0, **environment: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.place,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def run(self, *arguments: str, code: int = 0, **environment: str) -> str:
        return self(*LOWENERGY, "run", *arguments, code=code, **environment)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*LOWENERGY, "run", *arguments],
            cwd=self.place,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell's background jobs ignore Ctrl-C, and what they start does, too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def started(self, what: str = " from ") -> list[str]:
        """What work.py said of being started; of `end` it is just that."""
        return [line for line in self.ran.read_text().splitlines() if what in line] if self.ran.exists() else []

    def is_clean(self) -> bool:
        """Whether DVC finds nothing to run, nor to take from its cache."""
        said = self("dvc", "repro")
        return "Running stage" not in said and "is cached" not in said


def serial(toy: Toy, place: Path) -> bytes:
    """dvc.lock of the same project after a plain `dvc repro`."""
    shutil.copytree(toy.place, place, ignore=shutil.ignore_patterns("out", "dvc.lock", "*.json", "cache", "tmp"))
    other = Toy(place)
    other("dvc", "repro", PACE="0")
    return (place / "dvc.lock").read_bytes()


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def steps_of(toy: Toy) -> list[psutil.Process]:
    """Processes that do the work of a stage."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            if "work.py" in command and process.environ().get("RAN") == str(toy.ran):
                found.append(process)
    return found


def test_is_what_dvc_repro_would_have_left(tmp_path: Path) -> None:
    toy = Toy.make(tmp_path / "toy")
    output = toy.run("--jobs", "2")
    assert "6 done" in output and "step 0" in output
    assert (toy.place / "dvc.lock").read_bytes() == serial(toy, tmp_path / "serial")
    for name in ("out/m2.json", "end.json"):
        assert (toy.place / name).read_bytes() == (tmp_path / "serial" / name).read_bytes()
    assert (toy.place / "out/end").read_text() == '{"i": 0}\n{"i": 1}\nonly here 3 of 3'
    assert toy.is_clean()
    assert "6 unchanged" in toy.run()

    for name in ("out", "end.json", "dvc.lock"):  # outputs go, the cache stays, uncached metrics too
        path = toy.place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = toy.started()
    assert "5 cached" in toy.run()
    assert toy.started() == before
    assert toy.is_clean()

    (toy.place / "params.yaml").write_text("amount: 2\nend: 0\n")
    assert "5 of 6 stages changed" in toy.run("--dry")
    assert toy.started() == before
    assert "1 done, 1 unchanged" in toy.run("mid@2")
    assert "5 done" not in toy.run("--force", "mid@2") and len(toy.started()) == len(before) + 2
    toy.run()
    assert toy.is_clean()


def test_a_bad_stage_ends_its_dependents_only(tmp_path: Path) -> None:
    toy = Toy.make(tmp_path / "toy")
    output = toy.run("--jobs", "2", "--keep-going", code=2, BAD="0")
    assert "failed mid@0" in output and "this one is bad" in output and "skipped end" in output
    assert "4 done, 1 failed, 1 skipped" in output
    assert "this one is bad" in (toy.place / ".dvc/tmp/lowenergy/logs/mid@0.log").read_text()
    assert "2 done, 4 unchanged" in toy.run()
    assert toy.is_clean()
    for arguments in (["nothing"], ["--jobs", "0"], ["--address", "tcp://127.0.0.1:9"]):
        assert len(toy.run(*arguments, code=2).splitlines()) == 1


def test_one_run_at_a_time(tmp_path: Path) -> None:
    toy = Toy.make(tmp_path / "toy", amount=3000)  # no machine is so slow that this ends before it is stopped
    run = toy.start("--jobs", "2")
    try:
        until(lambda: len(steps_of(toy)) == 2)
        assert "another run is under way" in (said := toy.run(code=2)) and not said.rstrip().endswith(":")
        assert "lock" in toy("dvc", "repro", code=255).lower()
    finally:
        run.send_signal(signal.SIGINT)
        run.wait(60)
    until(lambda: not steps_of(toy))
    assert run.returncode != 0
    assert "out/root" in (toy.place / "dvc.lock").read_text()
    assert "mid@" not in (toy.place / "dvc.lock").read_text()

    (toy.place / "params.yaml").write_text("amount: 1\nend: 0\n")
    toy.run()
    assert any("from " in line and not line.endswith("from 0") for line in toy.started())  # goes on where it was
    assert toy.is_clean()


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    toy = Toy.make(tmp_path / "toy", amount=60)
    run = toy.start("--jobs", "2")
    until(lambda: len(steps_of(toy)) == 2 and len(list((toy.place / ".checkpoints").glob("?"))) == 2)
    work = steps_of(toy)[0]
    worker = next(p for p in psutil.Process(run.pid).children() if p in work.parents())
    worker.kill()
    until(lambda: not work.is_running() or work.status() == psutil.STATUS_ZOMBIE, 4)  # its stage ends with it
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 0, output
    assert len(toy.started()) == 5  # one twice
    assert any(not line.endswith("from 0") for line in toy.started())
    assert (toy.place / "dvc.lock").read_bytes() == serial(toy, tmp_path / "serial")
    assert toy.is_clean()


def test_queued_experiments_share_what_they_have_in_common(tmp_path: Path) -> None:
    toy = Toy.make(tmp_path / "toy", amount=2)
    assert len(toy.run("--queue", code=2).splitlines()) == 1  # nothing is queued
    toy.run()
    toy("git", "add", "--all")
    toy("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "ran")
    before = toy.started()
    for name, amount, end in (("one", 3, 1), ("two", 3, 2), ("three", 2, 3)):
        toy("dvc", "exp", "run", "--queue", "--name", name, "-S", f"amount={amount}", "-S", f"end={end}")
    output = toy.run("--queue", "--jobs", "2")
    assert len(toy.started()) == len(before) + 4  # what one and two have in common, once; three's is there already
    assert len(toy.started("end")) == 1 + 3  # and DVC, when it recorded them, found all of it in the cache
    assert "one:mid@0" in output and "two:mid@0" in output and "three:mid@0" not in output
    shown = list(csv.DictReader(toy("dvc", "exp", "show", "--csv", "--no-pager").splitlines()))
    found = {row["Experiment"]: (row["amount"], row["end"], row["out/m2.json:i"]) for row in shown}
    assert found["one"] == ("3", "1", "2") and found["two"] == ("3", "2", "2") and found["three"] == ("2", "3", "2")
    assert "Queued" not in toy("dvc", "queue", "status") and toy("dvc", "queue", "status").count("Success") == 3
    toy("dvc", "exp", "apply", "two")
    assert toy.is_clean()
    assert len(toy.started()) == len(before) + 4

    toy("dvc", "exp", "run", "--queue", "--name", "bad", "-S", "amount=1")
    toy("dvc", "exp", "run", "--queue", "--name", "good", "-S", "end=7")
    output = toy.run("--queue", code=2, BAD="2")
    assert "failed: bad:mid@2" in output and "this one is bad" in output
    status = toy("dvc", "queue", "status")
    assert status.count("Success") == 4 and status.count("Failed") == 1


IMPATIENT = """
from lowenergy.running import experiments
if __name__ == "__main__":
    experiments.ASK_AGAIN = 8.0
    experiments.run_queued(jobs=1)
"""


def test_experiments_are_recorded_though_dvcs_worker_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was killed has left word to shut down: the next one takes one experiment and goes."""
    toy = Toy.make(tmp_path / "toy", amount=1)
    toy.run()
    toy("git", "add", "--all")
    toy("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "ran")
    toy("dvc", "exp", "run", "--queue", "--name", "zero", "-S", "end=9")
    toy.run("--queue")
    monkeypatch.chdir(toy.place)
    queue = pipeline.opened().experiments.celery_queue
    assert not queue.worker_status(), "it would begin what is queued next by itself"
    worker = f"dvc-exp-{hashlib.sha256(queue.wdir.encode()).hexdigest()[:6]}-1@localhost"
    queue.celery.control.shutdown(destination=[worker])
    for name, end in (("one", 1), ("two", 2), ("three", 3)):
        toy("dvc", "exp", "run", "--queue", "--name", name, "-S", f"end={end}")
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    toy(sys.executable, str(tmp_path / "impatient.py"))
    found = experiments.revisions(pipeline.opened(), ["one", "two", "three"])
    assert found.keys() == {"one", "two", "three"}
    log = (toy.place / ".dvc/tmp/exps/celery/dvc-exp-worker-1.out").read_text()
    assert log.count("ready.") >= 3, "the second was to end early"


@pytest.mark.parametrize(
    ("seen", "asked"),
    [
        # DVC ends while its worker is not done with the last one; another's experiment is not waited for.
        ([({"a"}, {"x"}), (set(), {"a", "x"}), (set(), {"x"})], [30, 30]),
        # On a machine so slow that it does not even begin within the first half a minute.
        ([({"a"}, set())] * 3 + [(set(), {"a"})] * 2 + [(set(), set())], [30, 60, 90, 30, 60]),
        # In vain.
        ([({"a"}, set())] * 7, [30, 60, 90, 120, 150, 180]),
    ],
)
def test_dvc_is_asked_again_until_nothing_is_left(
    seen: list[tuple[set[str], set[str]]], asked: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy.make(tmp_path / "toy")
    (toy.place / experiments.PLACE).mkdir(parents=True)
    monkeypatch.chdir(toy.place)
    looks = iter(seen)
    waits: list[float] = []
    monkeypatch.setattr(experiments, "unfinished", lambda repo: next(looks))
    monkeypatch.setattr(experiments, "_ask", lambda repo, log, patience: waits.append(patience))
    assert experiments.record(pipeline.opened(), ["a"]) == ["a"]
    assert waits == asked and not list(looks)


def test_an_experiment_that_dvc_has_not_recorded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy.make(tmp_path / "toy", amount=1)
    toy.run("mid@0")
    toy("dvc", "exp", "run", "--name", "there", "mid@0")
    monkeypatch.chdir(toy.place)
    (toy.place / experiments.PLACE).mkdir(parents=True)
    assert experiments.record(pipeline.opened(), ["there", "gone"]) == ["gone"]  # with nothing queued it makes none


# -- several machines: workers that share nothing but a bucket ---------------------------------------------------------


class Gate(socketserver.ThreadingTCPServer):
    """A port in front of the S3 server that can be closed for a while."""

    allow_reuse_address = daemon_threads = True
    open = True

    def __init__(self, behind: int) -> None:
        gate = self

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                if not gate.open:
                    return
                with socket.create_connection(("127.0.0.1", behind)) as server:
                    threading.Thread(target=pump, args=(server, self.request), daemon=True).start()
                    pump(self.request, server)

        super().__init__(("127.0.0.1", 0), Connection)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while received := source.recv(65536):
            sink.sendall(received)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def s3() -> Iterator[Gate]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield Gate(server.get_host_and_port()[1])
    server.stop()


KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class Cluster:
    """A Dask scheduler and workers, processes with folders of their own."""

    def __init__(self, place: Path, environment: dict[str, str]) -> None:
        self.place, self.environment = place, environment | KEYS
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self.processes = [self._dask("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")]

    def worker(self, name: str, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        folder = self.place / name
        folder.mkdir(parents=True)
        arguments = [
            "--nthreads",
            "1",
            *(options or ["--no-nanny"]),
            "--no-dashboard",
            "--local-directory",
            str(folder),
            "--name",
            name,
        ]
        self.processes.append(self._dask("worker", self.address, *arguments, **environment))
        return self.processes[-1]

    def _dask(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]],
            env=self.environment | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.place,
        )

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def project(tmp_path: Path, s3: Gate) -> Iterator[tuple[Toy, Cluster]]:
    """A project whose remote is a bucket, and a cluster without workers yet."""
    import boto3

    bucket = f"b{time.time_ns()}"
    session = boto3.Session("test", "test", region_name="us-east-1")
    session.client("s3", endpoint_url=s3.url).create_bucket(Bucket=bucket)
    toy = Toy.make(tmp_path / "toy", amount=10)
    toy("dvc", "remote", "add", "--default", "bucket", f"s3://{bucket}/dvc")
    toy("dvc", "remote", "modify", "bucket", "endpointurl", s3.url)
    toy.environment |= KEYS
    (tmp_path / "nodes").mkdir()
    cluster = Cluster(tmp_path / "nodes", toy.environment)
    yield toy, cluster
    cluster.stop()
    s3.open = True


def test_machines_share_only_a_remote(tmp_path: Path, project: tuple[Toy, Cluster], s3: Gate) -> None:
    toy, cluster = project
    cluster.worker("one")
    cluster.worker("two")
    output = toy.run("--address", cluster.address)
    assert "6 done" in output
    assert (toy.place / "dvc.lock").read_bytes() == serial(toy, tmp_path / "serial")
    assert toy.is_clean()
    for name in ("one", "two"):
        assert list((cluster.place / name).rglob("files/md5/*/*")), f"{name} did nothing"

    # A colleague's clone, another cache: all of it is on the remote, and nothing runs.
    elsewhere = Toy(tmp_path / "elsewhere")
    elsewhere.environment |= KEYS
    skipped = shutil.ignore_patterns("mid?", "*.json", "end", "dvc.lock", "cache", "tmp")
    shutil.copytree(toy.place, elsewhere.place, ignore=skipped)
    assert "1 done, 5 cached" in elsewhere.run("--address", cluster.address)
    assert elsewhere.started() == []
    assert elsewhere.is_clean()


def test_a_shared_folder_named_relative_to_the_project(tmp_path: Path) -> None:
    toy = Toy.make(tmp_path / "toy", amount=1)
    toy("dvc", "remote", "add", "--default", "shared", "../shared")
    (tmp_path / "nodes").mkdir()
    cluster = Cluster(tmp_path / "nodes", toy.environment)
    try:
        cluster.worker("one")
        assert "6 done" in toy.run("--address", cluster.address)
    finally:
        cluster.stop()
    assert toy.is_clean()
    assert list((tmp_path / "shared").rglob("files/md5/*/*"))


def test_the_remote_may_be_away_for_a_while(project: tuple[Toy, Cluster], s3: Gate) -> None:
    toy, cluster = project
    cluster.worker("one")
    run = toy.start("--address", cluster.address)
    until(lambda: steps_of(toy))
    s3.open = False
    time.sleep(15)
    s3.open = True
    output, _ = run.communicate(timeout=200)
    assert run.returncode == 0, output
    assert len(toy.started()) == 4
    assert toy.is_clean()


def test_a_lost_host_and_a_full_disk(tmp_path: Path, project: tuple[Toy, Cluster]) -> None:
    toy, cluster = project
    (toy.place / "params.yaml").write_text("amount: 25\nend: 0\n")
    full = tmp_path / "full"  # when it is there, so is another worker
    lost = [cluster.worker(f"lost{i}") for i in range(3)]
    run = toy.start("--address", cluster.address)
    until(lambda: len(steps_of(toy)) == 3)
    cluster.worker("full", FULL=str(full))
    for worker in lost:
        worker.kill()
    until(lambda: len(steps_of(toy)) == 1)
    cluster.worker("good")
    until(lambda: len(steps_of(toy)) == 2)
    full.touch()
    output, _ = run.communicate(timeout=200)
    assert run.returncode == 0, output
    assert (toy.place / "dvc.lock").read_bytes() == serial(toy, tmp_path / "serial")
    assert toy.is_clean()


def test_local_workers_divide_threads_and_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5")
    assert [gpu_share(crew.gpus(), worker, 2) for worker in range(2)] == [("0", "5"), ("2",)]
    assert [gpu_share(("7",), worker, 2) for worker in range(2)] == [("7",), ("7",)]
    toy = Toy.make(tmp_path / "toy", amount=1)
    pipeline = (
        (toy.place / "dvc.yaml")
        .read_text()
        .replace("mkdir -p out && cp local/secret", f"env > {tmp_path}/seen; mkdir out; cp work.py")
    )
    (toy.place / "dvc.yaml").write_text(pipeline.replace("    meta: {where: here}\n", ""))
    toy.run("root", "--jobs", "2", CUDA_VISIBLE_DEVICES="3")
    seen = (tmp_path / "seen").read_text().splitlines()
    assert "CUDA_VISIBLE_DEVICES=3" in seen and f"OMP_NUM_THREADS={crew.jobs_and_threads(2)[1]}" in seen


def test_dvc_yaml_says_where_stages_run() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {name for name, stage in stages.items() if stage.get("meta")} == {"prepare"}
