"""What a measurement leaves behind: its figures, and all it takes to judge them, as benchmarks/records/NAME.json."""

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


def write(name: str, rows: Sequence[dict[str, Any]], **facts: Any) -> Path:
    """Write the rows with commit, command, machine and wall time since the start of the process.

    Args:
        facts: what else decides the figures, such as seed and params that differ.
    """
    commit = os.environ.get("COMMIT")  # where the files went without the repository
    if not commit:
        described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
        commit = described.stdout.strip()
    own = Path(sys.argv[0]).resolve().relative_to(Path(__file__).resolve().parents[1])
    shown = [Path(part).name if Path(part).is_absolute() else part for part in sys.argv[1:]]  # places of no machine
    command = " ".join(["python", str(own), *shown])
    content = {
        "command": command,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "seconds": round(time.time() - STARTED),
        **facts,
        "rows": list(rows),
    }
    path = RECORDS / f"{name}.json"
    files.write_json(path, content)
    return path


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
