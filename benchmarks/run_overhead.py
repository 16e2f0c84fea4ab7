"""What `lowenergy run` costs beside the work of the stages: pipelines of empty stages, fresh, cached and unchanged.

    .venv/bin/python benchmarks/run_overhead.py FOLDER [--stages 33 200 1000] [--jobs 2] [--serial 200]

Each stage copies one small file. `dvc repro` of the same pipeline stands beside it; both include the start of Python.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import write

PIPELINE = """
stages:
  each:
    foreach: [{items}]
    do:
      cmd: mkdir -p out && cp source out/${{item}} && echo ${{item}} >> out/${{item}}
      deps: [source]
      outs: ["out/${{item}}"]
"""


def project(place: Path, stages: int) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "dvc.yaml").write_text(PIPELINE.format(items=", ".join(map(str, range(stages)))))
    (place / "source").write_text("something\n")
    (place / ".gitignore").write_text("/out\n")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"], ["git", "add", "--all"]):
        subprocess.run(command, cwd=place, check=True)


def timed(place: Path, *command: str) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", *command], cwd=place, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def forget(place: Path) -> None:
    """Outputs and lock go, the cache stays."""
    shutil.rmtree(place / "out")
    (place / "dvc.lock").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", type=int, nargs="*", default=[33, 200, 1000])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--serial", type=int, default=200, help="largest for dvc repro, which takes n² of time")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for stages in args.stages:
        for name, command in (
            ("lowenergy run", ("lowenergy.cli", "run", "--jobs", str(args.jobs))),
            ("dvc repro", ("dvc", "repro", "--quiet")),
        ):
            if name == "dvc repro" and stages > args.serial:
                continue
            place = args.folder / f"{stages}-{name.split()[0]}"
            project(place, stages)
            seconds = {"fresh": timed(place, *command)}
            lock = (place / "dvc.lock").read_bytes()
            seconds["unchanged"] = timed(place, *command)
            forget(place)
            seconds["cached"] = timed(place, *command)
            assert (place / "dvc.lock").read_bytes() == lock
            rows.append(
                {"stages": stages, "command": name}
                | {f"{key}_s": round(value, 1) for key, value in seconds.items()}
                | {f"{key}_ms_per_stage": round(1000 * value / stages, 1) for key, value in seconds.items()}
            )
            print(rows[-1], flush=True)
        write("run_overhead", rows, jobs=args.jobs)


if __name__ == "__main__":
    main()
