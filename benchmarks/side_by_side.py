"""The whole pipeline of this commit on digits: `dvc repro`, stage after stage, and `lowenergy run --jobs N`.

    .venv/bin/python benchmarks/side_by_side.py FOLDER [--jobs 2]

Each runs in a clone of its own under FOLDER, with an empty cache and all cores: `dvc repro` on as many threads as torch
takes, the other on its share of them for each stage. Give FOLDER again after a kill: a way that has ended is not run
again.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import write

from lowenergy.base import files

ROOT = Path(__file__).resolve().parents[1]


def fresh(place: Path) -> None:
    """A clone without what was computed."""
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(place)], check=True)
    (place / "dvc.lock").unlink(missing_ok=True)


def timed(place: Path, *command: str) -> float:
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONWARNINGS": "ignore"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    started = time.monotonic()
    with (place.parent / f"{place.name}.log").open("w") as log:
        subprocess.run([sys.executable, "-m", *command], cwd=place, env=environment, check=True, stdout=log, stderr=log)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    commands = {
        "dvc repro": ("dvc", "repro", "--quiet"),
        f"lowenergy run --jobs {args.jobs}": ("lowenergy.cli", "run", "--jobs", str(args.jobs)),
    }
    rows: list[dict[str, Any]] = []
    for number, (name, command) in enumerate(commands.items()):
        place = args.folder / str(number)
        took = args.folder / f"{number}.json"
        if not took.exists():
            fresh(place)
            files.write_json(took, round(timed(place, *command)))
        rows.append({"command": name, "seconds": json.loads(took.read_text())})
        rows[-1]["share"] = round(rows[-1]["seconds"] / rows[0]["seconds"], 3)
        rows[-1]["commit"] = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=place, capture_output=True, text=True
        ).stdout.strip()
        if ends := re.findall(r"^done .+ in (\d+) s$", (args.folder / f"{number}.log").read_text(), re.M):
            rows[-1]["seconds of all stages"] = sum(map(int, ends))
        status = subprocess.run([sys.executable, "-m", "dvc", "status"], cwd=place, capture_output=True, text=True)
        rows[-1]["dvc status"] = status.stdout.strip()
        print(rows[-1], flush=True)
    write("side_by_side", rows)


if __name__ == "__main__":
    main()
