"""Nobody else may command workers: the commands of docs/clusters.md work, and what is open is said."""

import gc
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from distributed import Client
from test_running import Toy

from lowenergy.running import crew


def commands() -> list[str]:
    """Of the shell, in the part of docs/clusters.md on several machines, one a line."""
    part = (ROOT / "docs/clusters.md").read_text().partition("## Several machines")[2]
    return [line for block in re.findall(r"```sh\n(.*?)```", part, re.DOTALL) for line in block.splitlines()]


def listens(port: int, patience: float = 120.0) -> None:
    """Wait until a scheduler answers there: importing all that it needs takes longer than a run waits for it."""
    until = time.monotonic() + patience
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            assert time.monotonic() < until, "no scheduler"
            time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="the commands need it")
def test_the_documented_commands_work(tmp_path: Path) -> None:
    toy = Toy.make(tmp_path / "toy", amount=1)
    (tmp_path / "node").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lines = [line.replace("10.0.0.1", "127.0.0.1").replace("8786", str(port)) for line in commands()]
    lines = [
        line.replace("s3://my-bucket/lowenergy", "../shared").replace("--nworkers 4", "--nworkers 1") for line in lines
    ]
    makes_key, (tls, scheduler, worker), run = lines[:2], lines[2:5], lines[5:9]
    assert "--scheduler-file" in lines[9], "and the last are Slurm's"
    (tmp_path / "bin").mkdir()
    for name, module in (("dask", "dask"), ("lowenergy", "lowenergy.cli"), ("dvc", "dvc")):
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        command.chmod(0o755)
    home = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}{os.pathsep}{toy.environment['PATH']}"}
    toy.environment |= home
    toy("sh", "-ec", "\n".join(makes_key))
    started = [
        subprocess.Popen(
            ["sh", "-c", f"{tls}\nexec {line}"],
            cwd=tmp_path / "node",
            env=toy.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for line in (scheduler, worker)
    ]
    try:
        listens(port)
        said = toy("sh", "-ec", "\n".join(run))
        assert "6 done" in said and "whoever reaches" not in said
        for scheme, mend in (("tls", "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY"), ("tcp", "start one")):
            with pytest.raises(crew.RunError, match=mend) as refused, crew.scheduler(f"{scheme}://127.0.0.1:{port}"):
                pass  # somebody without the key
            assert len(str(refused.value).splitlines()) == 1
    finally:
        for process in started:
            process.terminate()
            process.wait()


def test_workers_of_this_machine_obey_nobody_else(tmp_path: Path) -> None:
    with crew.workers(1, 1, tmp_path) as client:
        address = client.scheduler.address
        assert client.submit(os.getppid).result()
        for other in (address, address.replace("tls:", "tcp:")):
            gc.collect()  # one that is collected while the next starts waits for a lock of Dask's for ever
            with pytest.raises((TypeError, OSError)):
                Client(other, timeout="3s", loop=client.loop)


def test_a_client_that_is_collected_while_dask_starts_holds_up_nothing(tmp_path: Path) -> None:
    from distributed.utils import LoopRunner

    collected = threading.Event()

    class Old:
        """In a circle, as a client that found no scheduler: it stops its loop when it is collected."""

        def __init__(self) -> None:
            self.circle, self.runner = self, LoopRunner()
            self.runner.start()

        def __del__(self) -> None:
            self.runner.stop()
            collected.set()

    def collect(*_: object) -> None:
        if not collected.is_set():
            gc.collect()

    gc.collect()
    gc.disable()  # until then
    Old()
    threading.setprofile(collect)  # in threads that start from now on
    try:
        with crew.workers(1, 1, tmp_path) as client:
            assert client.submit(os.getppid).result()
    finally:
        threading.setprofile(None)
        gc.enable()
    assert collected.is_set()


def test_workers_that_are_slow_to_go_cost_nothing() -> None:
    class Slow:
        def close(self) -> None:
            raise TimeoutError

    with crew._ended(Slow()) as cluster:
        assert isinstance(cluster, Slow)
    with pytest.raises(ZeroDivisionError), crew._ended(Slow()):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("address", "is_open"),
    [
        ("tcp://10.0.0.1:8786", True),
        ("10.0.0.1:8786", True),
        ("tcp://node1:8786", True),
        ("tcp://[fe80::1]:8786", True),
        ("ws://node1:8786", True),
        ("tls://10.0.0.1:8786", False),
        ("tcp://127.0.0.1:8786", False),
        ("tcp://127.8.0.1:8786", False),
        ("tcp://[::1]:8786", False),
        ("localhost:8786", False),
    ],
)
def test_open_schedulers_are_known(address: str, is_open: bool) -> None:
    assert crew.is_open(address) == is_open


def test_an_open_scheduler_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Connected:
        def __init__(self, address: str, timeout: str, loop: object) -> None:
            pass

        def __enter__(self) -> "Connected":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("distributed.Client", Connected)
    for address, lines in (("tcp://node1:8786", 1), ("tls://node1:8786", 0)):
        with crew.scheduler(address):
            assert len(capsys.readouterr().out.splitlines()) == lines
