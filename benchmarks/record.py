"""What a measurement leaves behind, as benchmarks/records/NAME.json: its figures, and all it takes to judge them.

A record is a list of runs. Each has a command, the commit that it ran, the machine, the seconds and its own rows: what
several runs have measured is never put down to the last of them.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lowenergy.base import files

RECORDS = Path(__file__).parent / "records"
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")  # that decide which kernels run
STARTED = time.time()
EARLIER: dict[str, list[dict[str, Any]]] = {}  # runs that were in a record before this process wrote to it


def runs(name: str) -> list[dict[str, Any]]:
    """The runs of a record, oldest first; none if there is no record yet."""
    path = RECORDS / f"{name}.json"
    found: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
    return found


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of all runs of a record."""
    return [row for run in runs(name) for row in run["rows"]]


def write(name: str, rows: Sequence[dict[str, Any]], **facts: Any) -> Path:
    """Write all rows of a record: those of earlier runs stay theirs, the others are this process's.

    Args:
        facts: what else decides the figures, such as seed and params that differ.
    Raises:
        SystemExit: the code that has measured is not committed, so that nobody could run it again.
    """
    own = Path(sys.argv[0]).resolve().relative_to(Path(__file__).resolve().parents[1])
    shown = [Path(part).name if Path(part).is_absolute() else part for part in sys.argv[1:]]  # places of no machine
    earlier = EARLIER.setdefault(name, runs(name))
    kept = [{**run, "rows": [row for row in run["rows"] if row in rows]} for run in earlier]
    new = [row for row in rows if not any(row in run["rows"] for run in kept)]
    this = {
        "command": " ".join(["python", str(own), *shown]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "seconds": round(time.time() - STARTED),
        **facts,
        "rows": new,
    }
    path = RECORDS / f"{name}.json"
    files.write_json(path, {"runs": [run for run in [*kept, this] if run["rows"]]})
    return path


def commit() -> str:
    """The commit whose code is running."""
    if given := os.environ.get("COMMIT"):  # where the files went without the repository
        return given
    root = Path(__file__).parents[1]

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "lowenergy", "stages", "benchmarks/*.py")
    if changed:
        raise SystemExit(f"commit first, a record names the code that has measured:\n{changed}")
    return git("rev-parse", "--short", "HEAD")


def machine() -> dict[str, Any]:
    """Cores and instructions, which figures depend on; no name of it."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }
