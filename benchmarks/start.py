"""A stranger's images: `lowenergy start` and `lowenergy run` in a fresh clone, and nothing else.

    python benchmarks/start.py ../shared/datasets/sign-digits --work FOLDER

Kept are the time that was said and the time that was taken, stage by stage, the card of every model, and the FID of a
Gaussian of the training images, below half of which energies should be. What the two commands print goes to
FOLDER/start.txt and FOLDER/run.txt; where these are there, nothing is run again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fid_scale import gaussian
from record import rows as recorded
from record import write

from lowenergy import data
from lowenergy.runtimes.loading import dense_network
from lowenergy.scoring import generation
from lowenergy.storage import artifact

ROOT = Path(__file__).parents[1]
DRAWN = 2000


def said(clone: Path, log: Path, *command: str) -> str:
    """What a command of lowenergy prints in the clone, from its log if that is there."""
    if not log.exists():
        part = log.with_suffix(".part")
        started = time.time()
        with part.open("w") as out:
            own = Path(sys.executable).parent
            environment = os.environ | {"PYTHONPATH": str(clone.resolve()), "PATH": f"{own}:{os.environ['PATH']}"}
            program = [str(own / "lowenergy"), *command]
            code = subprocess.run(program, cwd=clone, env=environment, stdout=out, stderr=out).returncode
            out.write(f"ended with {code} after {time.time() - started:.0f} s\n")
        part.rename(log)
    return log.read_text()


def gaussian_fid(clone: Path) -> float:
    splits = data.load(clone / data.SPLITS)
    scorer = dense_network(artifact.read(clone / "models/scorer.safetensors")[0])
    images = gaussian(data.to_float(splits.train.images), DRAWN, torch.Generator().manual_seed(0)).clamp(-1, 1)
    return generation.measure(scorer, clone / "models/reference.safetensors", images, 0)["fid"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="a folder, or a data set as data.source names it")
    parser.add_argument("--budget", default="1h")
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    clone, place = args.work / "clone", args.images
    if Path(place).exists():
        place = str(Path(place).resolve())
    if not clone.exists():
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    planned = said(clone, args.work / "start.txt", "start", place, "--budget", args.budget)
    ran = said(clone, args.work / "run.txt", "run")
    wanted = {name: 60 * float(minutes) for name, minutes in re.findall(r"^(\S+) +([\d.]+) +\d+$", planned, re.M)}
    taken = {name: int(seconds) for name, seconds in re.findall(r"^done (\S+) in (\d+) s$", ran, re.M)}
    row: dict[str, Any] = {
        "images": Path(place).name,
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=clone, text=True).strip(),
        "budget": args.budget,
        "planned_minutes": float(re.findall(r"in all, ([\d.]+) minutes", planned)[0]),
        "minutes": round(int(re.findall(r"ended with 0 after (\d+) s", ran)[0]) / 60, 1),
        "stages": {name: {"planned_seconds": wanted.get(name), "seconds": taken[name]} for name in taken},
        "pixels": data.load(clone / data.SPLITS).input_shape[-1],
        "gaussian_fid": gaussian_fid(clone),
        "cards": json.loads((clone / "cards.json").read_text()),
    }
    others = [old for old in recorded("start") if (old["images"], old["budget"]) != (row["images"], row["budget"])]
    print(write("start", [*others, row], seed=0), row["minutes"], "minutes")


if __name__ == "__main__":
    main()
